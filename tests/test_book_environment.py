"""One set of versions: pyproject, constraints, conda, Colab and this machine.

Each file that names a version agrees with the others, and the configuration
of the tests makes a bare ``pytest --nbval`` enough.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pin
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
PROJECT = tomllib.loads(PYPROJECT)["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pins(text):
    """Return {name: version} of a constraints file's text."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    pairs = (line.split("==") for line in lines if line)
    return {pin.canonical(name): version for name, version in pairs}


CONSTRAINTS = pins((ROOT / "constraints.txt").read_text("utf-8"))
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
REQUIREMENTS = [r for r in pin.wanted(PYPROJECT) if r.name != "dblm"]


# --- versions ---------------------------------------------------------------


@pytest.mark.parametrize("line", PROJECT["dependencies"])
def test_dependencies_have_lower_bounds_only(line):
    """Colab brings its own versions; the library must not push them."""
    operators = {s.operator for s in Requirement(line).specifier}
    assert operators == {">="}


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_pinned_version_satisfies_pyproject(requirement):
    """constraints.txt pins each requirement, inside its bounds."""
    version = CONSTRAINTS[pin.canonical(requirement.name)]
    assert requirement.specifier.contains(version), version


def test_pins_are_of_the_installed_set():
    """constraints.txt was read off an environment whose tests passed.

    Compared only where the main packages are the pinned ones: another
    environment (oldest, newest, Colab) is another set.
    """
    installed = pin.closure(REQUIREMENTS)
    main = ("torch", "transformers", "numpy", "matplotlib", "nbval")
    if any(installed.get(n) != CONSTRAINTS[n] for n in main):
        pytest.skip("this environment is not the pinned one")
    different = {
        name: (version, CONSTRAINTS.get(name))
        for name, version in installed.items()
        if CONSTRAINTS.get(name) != version
    }
    assert not different, "run tools/pin.py, or reinstall"


def conda_pip():
    """Return what environment.yml hands to pip."""
    (lists,) = (d for d in CONDA["dependencies"] if isinstance(d, dict))
    return lists["pip"]


def test_conda_installs_the_same_set():
    """environment.yml uses constraints.txt and the extras book and test."""
    assert "-c constraints.txt" in conda_pip()
    assert "-e .[book,test]" in conda_pip()
    assert {"book", "test"} <= set(EXTRAS)


def test_conda_takes_only_python_from_conda():
    """A torch or numpy from two sources would bring OpenMP twice."""
    plain = [d for d in CONDA["dependencies"] if isinstance(d, str)]
    names = {re.split(r"[=<>]", name)[0] for name in plain}
    assert names == {"python", "pip"}
    (python,) = (d for d in plain if d.startswith("python="))
    assert (
        Version(python.split("=")[1])
        in Requirement(f"python{PROJECT['requires-python']}").specifier
    )


def test_oldest_promised_versions():
    """What the README and the workflows promise."""
    bounds = {
        r.name: str(r.specifier)
        for r in map(Requirement, PROJECT["dependencies"])
    }
    assert PROJECT["requires-python"] == ">=3.11"
    assert bounds["torch"] == ">=2.9"
    assert bounds["transformers"] == ">=5.1"
    assert bounds["ipython"] == ">=7.34"
    assert bounds["ipywidgets"] == ">=7.7"


# --- a bare `pytest --nbval` is enough --------------------------------------


@pytest.fixture
def book(tmp_path):
    """Write a folder with the test configuration and one notebook."""
    for name in ("conftest.py", "nbval_sanitize.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "chapters").mkdir()
    (tmp_path / "tests").mkdir()
    return tmp_path


def notebook(book, *cells, name="01_noise"):
    """Store a notebook of (source, printed, more) cells in the book."""
    stored = [
        {
            "cell_type": "code",
            "id": f"c{number}",
            "metadata": {},
            "execution_count": number,
            "source": source,
            "outputs": [
                {"output_type": "stream", "name": "stdout", "text": printed}
            ]
            if printed
            else [],
            **more,
        }
        for number, (source, printed, more) in enumerate(cells, 1)
    ]
    content = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": {"name": "a-kernel-of-my-own"}},
        "cells": stored,
    }
    path = book / "chapters" / f"{name}.ipynb"
    path.write_text(json.dumps(content), "utf-8")


def run_pytest(book, *arguments):
    """Run `pytest --nbval` in the folder, as a reader would."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST_", "COV_"))
    }
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval", "-v", *arguments],
        cwd=book,
        env=environment,
        capture_output=True,
        check=False,
        encoding="utf-8",
        timeout=240,
    )


def test_equal_outputs_pass_and_addresses_do_not_matter(book):
    """Sanitised: object addresses. Kernel: this one, whatever its name."""
    notebook(
        book,
        ("print(1 + 1)", "2\n", {}),
        (
            "print('<object at 0x7f00aa55cc11>')",
            "<object at 0x11aa22bb>\n",
            {},
        ),
    )
    done = run_pytest(book)
    assert done.returncode == 0, done.stdout
    assert "notebook cells: 2 compared" in done.stdout


BAD_CELLS = {
    "different": ("print(1 + 1)", "3\n", {}),
    "never run": ("x = 1", "", {"execution_count": None}),
    "skipped": ("x = 1", "", {"metadata": {"tags": ["nbval-skip"]}}),
    "comment": ("# NBVAL_IGNORE_OUTPUT\nprint(1)", "2\n", {}),
}


def test_nothing_passes_unseen(book):
    """A changed output, a cell without outputs, a skip: each one fails."""
    for number, (name, cell) in enumerate(BAD_CELLS.items()):
        notebook(book, cell, name=f"{number:02}_{name.replace(' ', '_')}")
    done = run_pytest(book)
    assert done.returncode == 1, done.stdout
    assert f"{len(BAD_CELLS)} failed" in done.stdout, done.stdout


def test_chapters_can_be_shuffled_but_not_their_cells(book):
    """--shuffle-chapters draws another order of whole notebooks."""
    for number in range(4):
        cells = [("x = 1", "", {}), ("print(x)", "1\n", {})]
        notebook(book, *cells, name=f"{number:02}_chapter")
    orders = set()
    for seed in ("1", "2", "3"):
        done = run_pytest(book, "--shuffle-chapters", seed, "--collect-only")
        assert done.returncode == 0, done.stdout
        orders.add(tuple(re.findall(r"\d\d_chapter", done.stdout)))
        cells = re.findall(r"Cell (\d)", done.stdout)
        assert cells == ["0", "1"] * 4
    assert len(orders) > 1


# --- refresh ----------------------------------------------------------------


def digest(path):
    """Return the sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refresh(*arguments):
    """Run tools/refresh.py."""
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "refresh.py"), *arguments],
        capture_output=True,
        check=False,
        encoding="utf-8",
        timeout=240,
    )


PLOT = (
    "import matplotlib.pyplot as plt\n"
    "_ = plt.plot([1, 2])\n"
    "plt.show()\n"
    "import ipywidgets\n"
    "display(ipywidgets.IntSlider())\n"
)


def test_a_second_refresh_changes_no_byte(book):
    """Pictures included; no widget state, no timing, kernel python3."""
    more = {"metadata": {"tags": ["a"], "execution": {"x": 1}}}
    notebook(book, ("print(1)\nprint(2)", "", {}), (PLOT, "", more))
    path = book / "chapters" / "01_noise.ipynb"
    assert refresh(str(path)).returncode == 0
    once = digest(path)
    stored = json.loads(path.read_text("utf-8"))
    assert set(stored["metadata"]) == {"kernelspec", "language_info"}
    assert stored["metadata"]["kernelspec"]["name"] == "python3"
    assert stored["cells"][1]["metadata"] == {"tags": ["a"]}
    kinds = [set(o["data"]) for o in stored["cells"][1]["outputs"]]
    assert {"image/png", "text/plain"} in kinds
    assert not any("widget-view" in kind for k in kinds for kind in k)
    assert refresh("--check", str(path)).returncode == 0
    assert refresh(str(path)).returncode == 0
    assert digest(path) == once


def test_refresh_leaves_a_failing_notebook_as_it_was(book):
    """The error is shown, the exit status is 1, the file is untouched."""
    notebook(book, ("print(1)", "1\n", {}), ("1 / 0", "", {}))
    path = book / "chapters" / "01_noise.ipynb"
    before = digest(path)
    done = refresh(str(path))
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert digest(path) == before


def test_refresh_says_what_it_does_not_find():
    """A wrong name is the user's mistake: no traceback."""
    done = refresh("nowhere.ipynb")
    assert done.returncode == 2
    assert "nowhere.ipynb" in done.stderr
    assert "Traceback" not in done.stderr


# --- make -------------------------------------------------------------------


def make(*arguments):
    """Run make in the root without doing anything costly."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    return subprocess.run(
        ["make", *arguments],
        cwd=ROOT,
        capture_output=True,
        check=False,
        encoding="utf-8",
    )


def test_make_alone_helps():
    """Every target is explained; nothing is done."""
    done = make()
    assert done.returncode == 0
    text = (ROOT / "Makefile").read_text("utf-8")
    (targets,) = re.findall(r"(?m)^\.PHONY: (.*)$", text)
    for target in set(targets.split()) - {"help", "distclean"}:
        assert f"make {target}" in done.stdout


def test_an_old_python_is_refused(tmp_path):
    """The message says what is needed and how to choose another."""
    old = tmp_path / "python3"
    old.write_text(
        '#!/bin/sh\ncase "$1" in --version) echo Python 3.9.2;; '
        "*) exit 1;; esac\n"
    )
    old.chmod(0o755)
    done = make(f"PYTHON={old}", f"VENV={tmp_path}/env", "test")
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stdout
    assert "Python 3.9.2" in done.stdout
    assert not (tmp_path / "env").exists()
