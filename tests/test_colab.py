"""A chapter opened in Colab: installs one wheel, changes nothing else.

What Colab had installed is in ``data/colab-constraints.txt``; the public
names of its old IPython and ipywidgets are in ``data/colab-interfaces.json``.
"""

import ast
import json
import os
import re
import sys
import tomllib
from pathlib import Path

import environments
import nbformat
import pytest
from environments import PIP, ROOT, Environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

DATA = ROOT / "tests" / "data"
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
INTERFACES = json.loads((DATA / "colab-interfaces.json").read_text("utf-8"))
SCRIPT = ROOT / "tools" / "reader_run.py"
LINUX = {
    "python_version": "3.13",
    "python_full_version": "3.13.15",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "extra": "",
}


def colab_versions(path=DATA / "colab-constraints.txt"):
    """Read ``{canonical name: version}`` of Colab's packages."""
    lines = path.read_text("utf-8").splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def code_cells(path):
    """List the code cells of a notebook."""
    cells = nbformat.read(path, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code"]


def cell_tree(source):
    """Parse a cell as Colab's oldest Python would; magics become blank."""
    plain = re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", source)
    return ast.parse(plain, feature_version=(3, 11))


# The packages


def test_there_are_chapters():
    """The tests below are about each of them."""
    assert len(CHAPTERS) >= 6


@pytest.mark.parametrize("requirement", PROJECT["project"]["dependencies"])
def test_colab_satisfies_each_dependency(requirement):
    """A bound that Colab does not meet would replace its packages."""
    requirement = Requirement(requirement)
    if requirement.marker and not requirement.marker.evaluate(LINUX):
        pytest.skip("not needed on Colab")
    version = colab_versions().get(canonicalize_name(requirement.name))
    assert version is not None, f"Colab has no {requirement.name}"
    assert requirement.specifier.contains(version, prereleases=True)


def stub(environment, name, version):
    """Make a package that pip believes to be installed."""
    stem = name.replace("-", "_")
    folder = environment.packages / f"{stem}-{version}.dist-info"
    folder.mkdir()
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (folder / "METADATA").write_text(text, "utf-8")
    (folder / "INSTALLER").write_text("pip\n", "utf-8")
    (folder / "RECORD").write_text("", "utf-8")


def plan(folder, versions):
    """Ask pip's resolver what installing our wheel beside them would do."""
    environment = Environment(folder / "env", borrow=False)
    for name, version in versions.items():
        stub(environment, name, version)
    options = ["install", "--dry-run", "--quiet", "--report", "-"]
    command = [*PIP, "--python", environment.python, *options]
    return environments.run(
        [*command, environments.wheel()], folder, check=False
    )


def test_resolver_installs_our_wheel_and_nothing_else(tmp_path):
    """Beside Colab's versions, pip's plan is one package: ours."""
    done = plan(tmp_path, colab_versions())
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["install"]
    assert [p["metadata"]["name"] for p in report] == ["dblm"]


def test_resolver_agrees_beside_all_that_colab_has(tmp_path):
    """The same beside the whole list, where a development machine has it."""
    whole = os.environ.get("DBLM_COLAB_FREEZE")
    if not whole:
        pytest.skip("DBLM_COLAB_FREEZE does not name Colab's whole list")
    everything = colab_versions(Path(whole))
    assert colab_versions().items() <= everything.items()
    done = plan(tmp_path, everything)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["install"]
    assert [p["metadata"]["name"] for p in report] == ["dblm"]


@pytest.mark.parametrize(
    ("name", "version"), [("torch", "2.5.1"), ("transformers", "4.57.0")]
)
def test_resolver_notices_a_version_that_is_too_old(tmp_path, name, version):
    """The test above can fail: an older runtime would be changed."""
    done = plan(tmp_path, colab_versions() | {name: version})
    assert done.returncode != 0
    assert name in done.stderr


# What the chapters may use


def widget_calls(tree):
    """Yield ``(name, keywords)`` of what a module takes from ipywidgets."""
    modules, names = set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for item in node.names:
                if item.name == "ipywidgets":
                    modules.add(item.asname or item.name)
        elif isinstance(node, ast.ImportFrom) and node.module == "ipywidgets":
            for item in node.names:
                names[item.asname or item.name] = item.name
                yield item.name, ()
    for node in ast.walk(tree):
        keywords = ()
        target = node
        if isinstance(node, ast.Call):
            target = node.func
            keywords = tuple(k.arg for k in node.keywords if k.arg)
        if isinstance(target, ast.Attribute) and isinstance(
            target.value, ast.Name
        ):
            if target.value.id in modules:
                yield target.attr, keywords
        elif isinstance(target, ast.Name) and target.id in names:
            yield names[target.id], keywords


def too_new(tree):
    """List what ``tree`` uses that Colab's ipywidgets does not have."""
    found = []
    for name, keywords in widget_calls(tree):
        if name in INTERFACES["functions"].split():
            continue
        if name not in INTERFACES["widgets"]:
            found.append(f"ipywidgets.{name}")
            continue
        traits = INTERFACES["widgets"][name].split()
        found += [f"{name}({k}=...)" for k in keywords if k not in traits]
    return found


def display_names(tree):
    """List what a module takes from ``IPython.display``."""
    return [
        item.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and node.module == "IPython.display"
        for item in node.names
    ]


def sources():
    """Yield each chapter's cells and each module of the library, parsed."""
    for path in CHAPTERS:
        for number, cell in enumerate(code_cells(path), 1):
            yield f"{path.name}, cell {number}", cell_tree(cell.source)
    for path in sorted((ROOT / "dblm_lib").rglob("*.py")):
        yield path.name, ast.parse(path.read_text("utf-8"))


def test_widgets_are_those_of_ipywidgets_7():
    """Neither chapters nor library use a newer widget or keyword."""
    found = {where: too_new(tree) for where, tree in sources()}
    assert {k: v for k, v in found.items() if v} == {}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import ipywidgets as w\nw.Stack()", ["ipywidgets.Stack"]),
        (
            "from ipywidgets import Tab\nTab(titles=['a'])",
            ["Tab(titles=...)"],
        ),
        ("import ipywidgets\nipywidgets.IntSlider(value=1, max=3)", []),
        ("import ipywidgets\nipywidgets.interact(print, x=3)", []),
    ],
)
def test_scan_tells_ipywidgets_8_from_7(code, expected):
    """The scan itself can fail, and does not cry wolf."""
    assert sorted(set(too_new(ast.parse(code)))) == expected


def test_displays_are_those_of_ipython_7():
    """``IPython.display`` of 7.34 has every name that is imported."""
    known = set(INTERFACES["display"].split())
    for where, tree in sources():
        assert set(display_names(tree)) <= known, where


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_magics_are_those_of_ipython_7(path):
    """Each ``%magic`` exists in 7.34; shell lines are for no chapter."""
    for cell in code_cells(path):
        for line in cell.source.splitlines():
            magic = re.match(r"\s*(%{1,2}|!)(\w*)", line)
            if magic is None:
                continue
            assert magic[1] != "!", f"{line} does not run on Windows"
            kind = "line_magics" if magic[1] == "%" else "cell_magics"
            assert magic[2] in INTERFACES[kind].split(), line
            if magic[2] == "pip":  # pip 24.1 is Colab's
                options = re.findall(r"\s(-[-\w]+)", line)
                assert set(options) <= {"-q", "--quiet"}, line


# The set-up cell

RECORDER = """
import builtins, json, socket, sys, types

chapters, pips = json.load(open(sys.argv[1])), {}

def refuse(*_):
    raise OSError("the set-up cell asked for the network")

socket.socket.connect = socket.create_connection = refuse
colab = types.ModuleType("google.colab")
for path, source in chapters.items():
    for inside in (False, True):
        sys.modules.pop("google.colab", None)
        if inside:
            sys.modules["google.colab"] = colab
        called = pips.setdefault(path, {}).setdefault(str(inside), [])
        shell = types.SimpleNamespace(
            run_line_magic=lambda name, line, *_: called.append([name, line])
        )
        exec(source, {"get_ipython": lambda: shell, "__name__": "__main__"})
print("RECORD" + json.dumps(pips))
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Run each set-up cell outside and inside a Colab that records."""
    from IPython.core.inputtransformer2 import TransformerManager

    transform = TransformerManager().transform_cell
    cells = {p.name: transform(code_cells(p)[0].source) for p in CHAPTERS}
    folder = tmp_path_factory.mktemp("setup")
    (folder / "cells.json").write_text(json.dumps(cells), "utf-8")
    command = [sys.executable, "-c", RECORDER, "cells.json"]
    done = environments.run(command, folder)
    (line,) = re.findall(r"RECORD(.*)", done.stdout)
    return json.loads(line)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_setup_cell_installs_the_release_in_colab_only(path, recorded):
    """Outside Colab it calls no magic and no network; inside, one pip."""
    assert "setup" in code_cells(path)[0].metadata.get("tags", [])
    address = PROJECT["project"]["urls"]["Repository"]
    release = f"v{PROJECT['project']['version']}"
    assert recorded[path.name]["False"] == []
    ((name, line),) = recorded[path.name]["True"]
    assert name == "pip"
    assert line == f'install -q "dblm @ git+{address}@{release}"'


def test_setup_cells_are_the_same(recorded):
    """One set-up cell, learnt once, in every chapter."""
    assert len({json.dumps(record) for record in recorded.values()}) == 1


def pretend_colab(environment):
    """Give ``environment`` the package that Colab's kernels import."""
    package = environment.packages / "google" / "colab"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").write_text("", "utf-8")


@pytest.mark.parametrize("path", CHAPTERS[:1], ids=lambda p: p.stem)
def test_setup_cell_really_installs(path, tmp_path):
    """Where only google.colab is, the cell's own pip brings the library."""
    environment = Environment(tmp_path / "env")
    pretend_colab(environment)
    command = [environment.python, SCRIPT, "--colab", "--cells", "1"]
    wheel = ["--wheel", environments.wheel()]
    done = environments.run([*command, *wheel, path], tmp_path)
    assert f"library in {environment.packages}" in done.stdout


def test_reader_run_refuses_where_the_library_is_there(tmp_path):
    """In Colab's image a preinstalled library would prove nothing."""
    environment = Environment(tmp_path / "env")
    pretend_colab(environment)
    environment.install(environments.wheel())
    command = [environment.python, SCRIPT, "--colab", CHAPTERS[0]]
    done = environments.run(command, tmp_path, check=False)
    assert done.returncode == 1
    assert "installed already" in done.stderr
