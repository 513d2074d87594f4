"""The house: imports go down, files stay short, one function removes."""

import ast
from pathlib import Path

import floors
import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_reader_of_imports_sees_every_form():
    """Or the tests below could not fail."""
    source = (
        "from . import a, b as c\nfrom .d import e\nimport dblm_lib.f\n"
        "from dblm_lib import __version__, g\nfrom dblm_lib.h import i\n"
        "import os\nfrom ..other import j\ndef later():\n    from . import z\n"
    )
    assert floors.imported(source) == set("abdfghz")
    inside = "from .. import a\nfrom ..b import c\nfrom . import d\n"
    assert floors.imported(inside, level=2) == set("ab")


def test_no_module_imports_itself_by_way_of_others():
    """Take away what imports nothing of the rest, until nothing is left."""
    left = floors.imports()
    while left:
        free = {m for m, others in left.items() if not others & set(left)}
        assert free, f"a circle among {sorted(left)}"
        left = {m: others for m, others in left.items() if m not in free}


def test_imports_go_down():
    assert list(floors.broken_rules()) == []


def test_no_file_is_too_long_without_a_reason():
    assert list(floors.long_files()) == []
    for name, reason in floors.LONG.items():
        assert (floors.LIBRARY / name).is_file() and reason


def test_every_module_is_known_to_the_package():
    import dblm_lib

    named = {name for names in floors.FLOORS.values() for name in names}
    named |= set(floors.BESIDE)
    assert set(dblm_lib._MODULES) == named


@pytest.mark.parametrize(
    ("file", "code", "fault"),
    [
        ("schedules.py", "from . import noising", "of its own floor"),
        ("decoding.py", "def f():\n    from . import denoiser", "above it"),
        ("training/loop.py", "from .. import ladder", "above it"),
        ("training/loop.py", "from ..ladder import RUNGS", "above it"),
        ("plots.py", "from . import tales", "beside the floors"),
        ("widgets.py", "from . import exercises", "beside the floors"),
        ("plots.py", "from . import drawings", "beside the floors"),
        ("drawings.py", "from .plots import CARD", None),
        ("extra.py", "", "has no floor"),
        ("training/loop.py", "from . import losses", None),
        ("training/loop.py", "from .. import noising", None),
    ],
)
def test_a_wrong_import_is_found(tmp_path, monkeypatch, file, code, fault):
    for name in [n for names in floors.FLOORS.values() for n in names]:
        (tmp_path / f"{name}.py").write_text("", "utf-8")
    (tmp_path / "training.py").unlink()
    for name in ("plots", "drawings", "exercises"):
        (tmp_path / f"{name}.py").write_text("", "utf-8")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(code, "utf-8")
    monkeypatch.setattr(floors, "LIBRARY", tmp_path)
    found = list(floors.broken_rules())
    assert len(found) == (fault is not None)
    if fault:
        assert fault in found[0]


def removals(path):
    """Lines on which a file calls something that removes."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name.rpartition(".")[2] in (
            *("rmtree", "unlink", "rmdir", "removedirs"),
        ) or name in ("os.remove", "remove"):
            yield node.lineno


def test_only_storage_removes():
    """Everything else goes through `storage.discard`."""
    folders = ("dblm_lib", "tools", "recipes")
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if list(removals(path))
    }
    assert found == {"dblm_lib/storage.py"}
    assert len(list(removals(floors.LIBRARY / "storage.py"))) >= 3
