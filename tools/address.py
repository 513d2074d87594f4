"""Keep the book's address and version the same everywhere.

    python tools/address.py OWNER/REPO     # the book moves to this address
    python tools/address.py                # copy address and version again
    python tools/address.py --check        # change nothing, exit 1 if needed
    python tools/address.py --check --published   # ... and it lives there

``pyproject.toml`` is the one place that knows: ``[project.urls]`` the address,
``version`` the release. From there they go into the set-up cells and links of
the chapters, ``_config.yml``, ``README.md``, ``CITATION.cff`` and the other
texts. After a new version: change it in pyproject.toml, run this.
"""

import argparse
import os
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = "OWNER/REPO"
SLUG = re.compile(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+")
TEXTS = (
    "README.md",
    "CONTRIBUTING.md",
    "CITATION.cff",
    "LICENSE-PROSE.md",
    "_config.yml",
    "chapters/*.md",
    "chapters/*.ipynb",
    ".github/*.md",
    ".github/*.yml",
    ".github/ISSUE_TEMPLATE/*",
    ".github/workflows/*.yml",
)


def read(root=ROOT):
    """Return (OWNER/REPO, version) as pyproject.toml gives them."""
    text = (Path(root) / "pyproject.toml").read_text("utf-8")
    project = tomllib.loads(text)["project"]
    url = project["urls"]["Repository"]
    return url.removeprefix("https://github.com/"), project["version"]


def tag(version):
    """Return the git tag of a release."""
    return f"v{version}"


def colab(slug, version, path):
    """Return the address that opens ``path`` of the release in Colab."""
    return (
        "https://colab.research.google.com/github/"
        f"{slug}/blob/{tag(version)}/{path}"
    )


def install_line(slug, version):
    """Return what the set-up cell of a chapter hands to pip in Colab."""
    return f"dblm @ git+https://github.com/{slug}@{tag(version)}"


def rewrite(text, old, slug, version, path=""):
    """Return ``text`` with the address and version put right.

    Parameters
    ----------
    text : str
        Contents of a file.
    old : iterable of str
        Addresses that meant this book before, the example among them.
    slug, version : str
        What they become.
    path : str
        Path of the file in the repository, with forward slashes; decides
        which notebook its Colab links open.
    """
    for name in old:
        # In a link; and bare, but then not as part of a longer name.
        link = rf"(github\.com/(?:github/)?){re.escape(name)}(?![\w-])"
        text = re.sub(link, rf"\g<1>{slug}", text)
        if name != EXAMPLE:
            bare = rf"(?<![\w/.-]){re.escape(name)}(?![\w-])"
            text = re.sub(bare, slug, text)
    text = re.sub(
        r"dblm @ git\+https://github\.com/[\w.-]+/[\w.-]+@[\w.]+",
        install_line(slug, version),
        text,
    )
    ours = re.escape(slug)
    text = re.sub(
        rf"(github\.com/github/{ours}/blob/|github\.com/{ours}/"
        rf"(?:blob|tree|raw)/)v?[\w.]+(?=/)",
        rf"\g<1>{tag(version)}",
        text,
    )
    if path.endswith(".ipynb"):
        text = re.sub(
            r"https://colab\.research\.google\.com/github/[^\s)\"'<>\\]+",
            colab(slug, version, path),
            text,
        )
    if path == "_config.yml":
        text = re.sub(r"(?m)^(\s+branch:) .*$", rf"\1 {tag(version)}", text)
    if path == "CITATION.cff":
        text = re.sub(
            r"(?m)^version: .*$", f"version: {version}", text, count=1
        )
        text = re.sub(
            r"(?m)^repository-code: .*$",
            f"repository-code: https://github.com/{slug}",
            text,
        )
    if path == "dblm_lib/__init__.py":
        text = re.sub(
            r'(?m)^__version__ = ".*"$', f'__version__ = "{version}"', text
        )
    return text


def files(root=ROOT):
    """List the files that may name the address or the version."""
    found = [path for glob in TEXTS for path in sorted(root.glob(glob))]
    package = root / "dblm_lib" / "__init__.py"
    return [path for path in [*found, package] if path.is_file()]


def apply(root, old, slug, version, write=True):
    """Put every file right; return the paths that were (or are) not."""
    wrong = []
    for path in files(root):
        name = path.relative_to(root).as_posix()
        before = path.read_text("utf-8")
        after = rewrite(before, old, slug, version, name)
        if after != before:
            wrong.append(name)
            if write:
                path.write_text(after, "utf-8", newline="\n")
    return wrong


def move(root, slug):
    """Write a new address into pyproject.toml; return the one before."""
    before, _ = read(root)
    path = root / "pyproject.toml"
    text = path.read_text("utf-8")
    url = "https://github.com/"
    path.write_text(
        text.replace(url + before, url + slug), "utf-8", newline="\n"
    )
    return before


def parser():
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="tools/address.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("address", nargs="?", metavar="OWNER/REPO")
    result.add_argument("--check", action="store_true", help="only look")
    result.add_argument(
        "--published",
        action="store_true",
        help="with --check, in a workflow: fail if the book says it lives "
        "elsewhere than in $GITHUB_REPOSITORY",
    )
    result.add_argument(
        "--root", type=Path, default=ROOT, help=argparse.SUPPRESS
    )
    return result


def main(argv=None):
    """Do what the command line asks; return the exit status."""
    arguments = parser()
    options = arguments.parse_args(argv)
    root = options.root.resolve()
    old = {EXAMPLE}
    if options.address:
        if options.check:
            arguments.error("give an address or --check, not both")
        if not SLUG.fullmatch(options.address):
            arguments.error(
                f"{options.address!r} is not of the form OWNER/REPO, "
                "such as ada/words-from-noise"
            )
        old.add(move(root, options.address))
    slug, version = read(root)
    old.discard(slug)
    wrong = apply(root, sorted(old), slug, version, not options.check)
    for name in wrong:
        print(f"{'differs' if options.check else 'changed'}: {name}")
    here = os.environ.get("GITHUB_REPOSITORY", "")
    if options.published and here != slug:
        print(
            f"the book says it lives at {slug}, but this is "
            f"{here or 'no GitHub workflow'}: "
            f"run `python tools/address.py {here or EXAMPLE}`"
        )
        return 1
    return 1 if options.check and wrong else 0


if __name__ == "__main__":
    sys.exit(main())
