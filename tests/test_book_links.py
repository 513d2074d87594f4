"""Links lead where they say: to this very notebook, page, symbol or source.

``tools/address.py`` knows the one address; here it is proved that each Colab
link opens the notebook it stands in, at the release that the page is from.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import address
import chapter_rules as rules
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
TEXTS = sorted((ROOT / "chapters").glob("*.md"))
SLUG, VERSION = address.read()
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))


def pages():
    """List all pages of the table of contents, the root first."""
    entries = [c for part in TOC["parts"] for c in part["chapters"]]
    return [TOC["root"], *(entry["file"] for entry in entries)]


def text_of(path):
    """Return the text cells of a notebook, or a text file, without code."""
    text = path.read_text("utf-8")
    if path.suffix == ".ipynb":
        cells = rules.cells_of(json.loads(text), "markdown")
        text = "\n\n".join(source for _, source, _ in cells)
    return re.sub(r"(?ms)^```(?!\{).*?^```", "", text)


def colab_links(path):
    """List the Colab addresses in a notebook, wherever they stand."""
    return re.findall(
        r"https://colab\.research\.google\.com/[^\s)\"'<>\\]+",
        path.read_text("utf-8"),
    )


# --- the table of contents --------------------------------------------------


def test_every_page_exists():
    """Each entry is one file: a notebook or a text."""
    for page in pages():
        files = [ROOT / f"{page}{end}" for end in (".ipynb", ".md")]
        assert sum(f.is_file() for f in files) == 1, page


def test_every_chapter_is_in_the_contents():
    """No chapter is written and then left out."""
    listed = {page.removeprefix("chapters/") for page in pages()}
    assert {path.stem for path in [*CHAPTERS, *TEXTS]} <= listed


def test_every_module_is_in_the_reference():
    """The API page names each module of the library."""
    text = (ROOT / "chapters" / "api.md").read_text("utf-8")
    named = set(re.findall(r"automodule:: dblm_lib\.(\w+)", text))
    library = ROOT / "dblm_lib"
    modules = {p.stem for p in library.glob("[!_]*.py")}
    modules |= {p.parent.name for p in library.glob("*/__init__.py")}
    assert named == modules


# --- Colab ------------------------------------------------------------------


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_colab_links_open_this_very_notebook(path):
    """Owner, repository, release tag and path are those of this file."""
    relative = path.relative_to(ROOT).as_posix()
    links = colab_links(path)
    assert links, f"{path.name} has no link to Colab"
    for link in links:
        assert link == address.colab(SLUG, VERSION, relative)


def test_colab_button_of_the_page_opens_the_release():
    """Jupyter Book builds the button from repository and branch."""
    repository = CONFIG["repository"]
    assert repository["url"] == f"https://github.com/{SLUG}"
    assert repository["branch"] == address.tag(VERSION)
    assert "path_to_book" not in repository  # puts ./ into the address
    url = CONFIG["launch_buttons"]["colab_url"]
    assert url == "https://colab.research.google.com"


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_setup_cell_installs_this_release_in_colab_only(path):
    """All chapters begin with the same cell; elsewhere it does nothing."""
    notebook = json.loads(path.read_text("utf-8"))
    _, source, cell = next(iter(rules.cells_of(notebook, "code")))
    code = [s for s in source.splitlines() if s and not s.startswith("#")]
    assert code == [
        "import sys",
        'if "google.colab" in sys.modules:',
        f'    %pip install -q "{address.install_line(SLUG, VERSION)}"',
    ]
    assert cell["outputs"] == []


def test_setup_cells_are_the_same():
    """What installs the library is not written twice in two ways."""
    cells = set()
    for path in CHAPTERS:
        notebook = json.loads(path.read_text("utf-8"))
        cells.add(next(iter(rules.cells_of(notebook, "code")))[1])
    assert len(cells) <= 1


# --- one place that knows the address ---------------------------------------


def test_address_is_the_same_everywhere():
    """What `python tools/address.py` would write is what is there."""
    wrong = address.apply(ROOT, {address.EXAMPLE}, SLUG, VERSION, write=False)
    assert wrong == [], "run `python tools/address.py`"


def small_book(folder):
    """Write a book of one chapter into a folder."""
    chapter = folder / "chapters" / "01_noise.ipynb"
    chapter.parent.mkdir()
    chapter.write_text(
        '"[Colab](https://colab.research.google.com/github/ada/book'
        '/blob/v0.1.0/chapters/other.ipynb)"\n'
        '"%pip install -q \\"dblm @ git+https://github.com/ada/book@v0.1.0'
        '\\""\n',
        "utf-8",
    )
    (folder / "pyproject.toml").write_text(
        '[project]\nversion = "0.2.0"\n[project.urls]\n'
        'Repository = "https://github.com/ada/book"\n',
        "utf-8",
    )
    (folder / "_config.yml").write_text(
        "repository:\n  url: https://github.com/ada/book\n  branch: v0.1.0\n",
        "utf-8",
    )
    (folder / "README.md").write_text(
        "git clone https://github.com/ada/book.git\n"
        "https://github.com/ada/bookshop https://github.com/bada/book\n"
        "`OWNER/REPO`\n",
        "utf-8",
    )
    return chapter


def test_a_new_address_goes_everywhere(tmp_path, capsys):
    """Set-up cell, links, configuration; not to names that only resemble."""
    chapter = small_book(tmp_path)
    root = ["--root", str(tmp_path)]
    assert address.main([*root, "--check"]) == 1
    assert address.main([*root, "bob/noise"]) == 0
    assert address.main([*root, "--check"]) == 0
    text = chapter.read_text("utf-8")
    link = "github/bob/noise/blob/v0.2.0/chapters/01_noise.ipynb)"
    assert link in text
    assert "git+https://github.com/bob/noise@v0.2.0" in text
    config = yaml.safe_load((tmp_path / "_config.yml").read_text("utf-8"))
    assert config["repository"] == {
        "url": "https://github.com/bob/noise",
        "branch": "v0.2.0",
    }
    readme = (tmp_path / "README.md").read_text("utf-8").split()
    assert readme[2] == "https://github.com/bob/noise.git"
    assert readme[3:5] == [
        "https://github.com/ada/bookshop",
        "https://github.com/bada/book",
    ]
    assert readme[5] == "`OWNER/REPO`"


def test_publishing_from_elsewhere_is_refused(tmp_path, monkeypatch):
    """A fork that publishes links to the original is told so."""
    small_book(tmp_path)
    root = ["--root", str(tmp_path)]
    address.main(root)
    for here, status in (("ada/book", 0), ("eve/book", 1), ("", 1)):
        monkeypatch.setenv("GITHUB_REPOSITORY", here)
        assert address.main([*root, "--check", "--published"]) == status


@pytest.mark.parametrize("wrong", ["book", "https://github.com/a/b", "a b/c"])
def test_an_address_of_another_form_is_refused(wrong):
    """The error says what was expected; nothing is changed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "address.py"), wrong],
        capture_output=True,
        check=False,
        encoding="utf-8",
    )
    assert done.returncode == 2
    assert "OWNER/REPO" in done.stderr
    assert "Traceback" not in done.stderr


# --- inside the book --------------------------------------------------------


def anchors(path):
    """Return the anchors that MyST gives the headings of a page."""
    found = set()
    for heading in re.findall(r"(?m)^#+ +(.*)$", text_of(path)):
        plain = re.sub(r"[*_`]|\$[^$]*\$", "", heading).strip().lower()
        found.add(re.sub(r"[^\w\s-]", "", plain).replace(" ", "-"))
    return found


def internal_links(path):
    """List the links of a page that stay in the repository."""
    links = re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)", text_of(path))
    return [link for link in links if "://" not in link]


@pytest.mark.parametrize("path", [*CHAPTERS, *TEXTS], ids=lambda p: p.name)
def test_internal_links_resolve(path):
    """The file is there, and so is the heading after the #."""
    for link in internal_links(path):
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.is_file(), f"{path.name}: {link}"
        if anchor and target.suffix in (".md", ".ipynb"):
            assert anchor in anchors(target), f"{path.name}: {link}"


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.name)
def test_citations_of_the_back_matter_resolve(path):
    """As in the chapters: each key is in references.bib."""
    for key in rules.citations(path.read_text("utf-8")):
        assert key in rules.bibliography()


def test_references_are_whole():
    """Each entry: author, title, year; no key twice."""
    text = (ROOT / "chapters" / "references.bib").read_text("utf-8")
    keys = re.findall(r"(?m)^@\w+\{\s*([^,\s]+)\s*,", text)
    assert len(keys) == len(set(keys))
    for entry in re.split(r"(?m)^(?=@)", text):
        if entry.startswith("@"):
            for field in ("author", "title", "year"):
                assert re.search(rf"(?m)^\s+{field}\s*=", entry), entry[:40]


def test_figure_names_are_unique_in_the_whole_book():
    """Two chapters with one name: the build fails, late and far away."""
    names = [
        cell["metadata"]["mystnb"]["figure"]["name"]
        for path in sorted((ROOT / "chapters").glob("*.ipynb"))
        for cell in json.loads(path.read_text("utf-8"))["cells"]
        if "name" in cell["metadata"].get("mystnb", {}).get("figure", {})
    ]
    assert len(names) > 10
    assert sorted(names) == sorted(set(names))
