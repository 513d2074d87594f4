"""Licences, citation and the contributor's page agree with the project."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))[
    "project"
]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))


def read(name):
    """Read a file of the root."""
    return (ROOT / name).read_text("utf-8")


def test_citation_follows_its_schema():
    """The format's own JSON schema accepts it."""
    beside = str(Path(sys.executable).parent)
    name = "check-jsonschema"
    command = shutil.which(name, path=beside) or shutil.which(name)
    if command is None:
        pytest.skip(f"{name} is not installed (pip install {name})")
    schema = ["--builtin-schema", "vendor.citation-file-format"]
    done = subprocess.run(
        [command, *schema, str(ROOT / "CITATION.cff")],
        capture_output=True,
        check=False,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_citation_is_of_this_version_and_address():
    """pyproject.toml is the one place that knows them."""
    assert CITATION["version"] == PROJECT["version"]
    assert CITATION["repository-code"] == PROJECT["urls"]["Repository"]
    authors = [author["name"] for author in CITATION["authors"]]
    assert authors == [author["name"] for author in PROJECT["authors"]]
    assert CITATION["license"] == PROJECT["license"] == "MIT"


def test_licences_name_holder_and_scope():
    """MIT for code; CC BY 4.0, with its link, for prose."""
    (author,) = PROJECT["authors"]
    assert f"Copyright (c) 2026 {author['name']}" in read("LICENSE")
    prose = read("LICENSE-PROSE.md")
    assert "https://creativecommons.org/licenses/by/4.0/" in prose
    for folder in re.findall(r"`(\w+)/`", prose):
        assert (ROOT / folder).is_dir(), folder


@pytest.mark.parametrize(
    "page", ["CONTRIBUTING.md", "LICENSE-PROSE.md", "tests/README.md"]
)
def test_links_between_pages_lead_somewhere(page):
    """Relative links of the repository's own pages."""
    for target in re.findall(r"\]\(([^)#:]+)\)", read(page)):
        assert ((ROOT / page).parent / target).exists(), target


def test_files_named_by_contributing_exist():
    """A contributor is sent to no file that is not there."""
    text = read("CONTRIBUTING.md")
    kinds = "py|toml|md|bib|json|yml"
    named = re.findall(rf"`(?:python )?([\w./-]+\.(?:{kinds}))\b", text)
    missing = {name for name in named if not (ROOT / name).exists()}
    examples = {"dblm_lib/name.py", "tests/test_name.py"}
    assert missing - examples == set()


@pytest.mark.parametrize(
    ("path", "attribute", "value"),
    [
        ("data/MANIFEST.json", "text", "unset"),
        ("data/tokenizer/merges.txt", "text", "unset"),
        ("chapters/00_welcome.ipynb", "eol", "lf"),
        ("dblm_lib/tales.py", "eol", "lf"),
    ],
)
def test_windows_gets_the_same_bytes(path, attribute, value):
    """A changed line ending would break every digest of data/."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    done = subprocess.run(
        [git, "check-attr", attribute, "--", path],
        cwd=ROOT,
        capture_output=True,
        check=True,
        encoding="utf-8",
    )
    assert done.stdout.strip() == f"{path}: {attribute}: {value}"


def test_new_chapter_takes_ten_lines():
    """The promise of the issue that asked for it."""
    section = read("CONTRIBUTING.md").split("## ")[1]
    assert section.startswith("Add a chapter")
    numbers = re.findall(r"(?m)^(\d+)\.", section)
    assert numbers == [str(n) for n in range(1, 11)]


def test_readme_of_the_tests_sends_to_options_that_exist():
    """Each test file it names is there."""
    for name in re.findall(r"`(test_[a-z]+\.py)`", read("tests/README.md")):
        assert (ROOT / "tests" / name).is_file(), name
