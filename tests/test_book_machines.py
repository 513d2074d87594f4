"""The chapters run as on other machines: the tool, its kernels, the page."""

import ast
import json
from pathlib import Path

import machine_kernel
import machines
import marked
import nbformat
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))


# --- machines ---------------------------------------------------------------


def test_each_machine_sets_what_it_says(tmp_path, monkeypatch):
    """And nothing of the caller's settings is left."""
    for name in machines.SETTINGS:
        monkeypatch.setenv(name, "of the caller")
    for machine in machines.MACHINES:
        found = machine.environment(tmp_path)
        ours = {k: found[k] for k in machines.SETTINGS if k in found}
        assert ours == machine.settings
        assert set(machine.settings) <= set(machines.SETTINGS)
        assert found["IPYTHONDIR"] == str(tmp_path)
    names = [machine.name for machine in machines.MACHINES]
    assert len(set(names)) == len(names)


def test_the_machines_that_were_promised_are_there():
    settings = [
        (name, value)
        for machine in machines.MACHINES
        for name, value in machine.settings.items()
    ]
    promised = {
        "ATEN_CPU_CAPABILITY": {"default", "avx2"},
        "ONEDNN_MAX_CPU_ISA": {"SSE41", "AVX2"},
        "MKL_CBWR": {"COMPATIBLE"},
        "OMP_NUM_THREADS": {"1", "2", "4"},
        machine_kernel.BF16: {"on", "off"},
    }
    for name, values in promised.items():
        assert values == {v for n, v in settings if n == name}


def small_notebook(path, source, stored):
    """Write a chapter of one cell that prints."""
    notebook = nbformat.v4.new_notebook()
    output = nbformat.v4.new_output("stream", name="stdout", text=stored)
    cell = nbformat.v4.new_code_cell(source, execution_count=1)
    cell.outputs = [output]
    notebook.cells = [cell]
    nbformat.write(notebook, path)
    return path


SOURCE = """import os
import torch

print(os.environ.get("OMP_NUM_THREADS"), torch.cpu._is_avx512_bf16_supported())
assert torch.ones(3).sum() < 4
"""


@pytest.mark.parametrize(
    ("name", "printed"),
    [("4-threads", "4 True"), ("1-thread", "1 False")],
)
def test_a_notebook_is_run_on_a_machine(name, printed, tmp_path):
    """What differs is shown, what was asserted is measured."""
    chapter = small_notebook(tmp_path / "01_x.ipynb", SOURCE, "something\n")
    (machine,) = [m for m in machines.MACHINES if m.name == name]
    result = machines.run(machine, chapter)
    (text,) = result["differ"].values()
    shown = machines.clipped(text)
    assert list(result["differ"]) == ["Cell 0"]
    assert printed in shown and "something" in shown and "\x1b" not in shown
    assert result["distances"] == {"torch.ones(3).sum() < 4": 1.0}


def test_a_notebook_that_agrees_is_not_reported(tmp_path):
    chapter = small_notebook(tmp_path / "01_x.ipynb", "print(1)", "1\n")
    result = machines.run(machines.MACHINES[0], chapter)
    assert result["differ"] == {} == result["distances"]


def test_a_failed_assertion_is_reported(tmp_path):
    chapter = small_notebook(tmp_path / "01_x.ipynb", "assert 1 > 2", "")
    result = machines.run(machines.MACHINES[0], chapter)
    assert "AssertionError" in machines.clipped(result["differ"]["Cell 0"])
    assert result["distances"] == {"1 > 2": -1.0}


@pytest.fixture
def outcomes(monkeypatch, tmp_path):
    """Replace the running by a list of what was run."""
    ran = []

    def run(machine, chapter):
        ran.append((machine.name, chapter.stem))
        cells = {"Cell 3": "boom"} if machine.name == "laptop" else {}
        distance = 0.05 if machine.name == "1-thread" else 1.0
        found = {"a < b": distance, "b < c": 0.5}
        return {"seconds": 1.0, "differ": cells, "distances": found}

    monkeypatch.setattr(machines, "run", run)
    monkeypatch.setattr(machines, "KEPT", tmp_path / "kept.json")
    monkeypatch.setattr(machines, "RECORD", tmp_path / "record.json")
    monkeypatch.setattr(machines, "PAGE", tmp_path / "page.md")
    (tmp_path / "page.md").write_text("\n".join(marked.marks("machines")))
    return ran


def test_the_command_says_what_differs_and_fails(outcomes, capsys):
    chapter = str(CHAPTERS[0])
    assert machines.main(["--only", "here", chapter]) == 0
    assert machines.main(["--only", "here,laptop", chapter]) == 1
    said = capsys.readouterr().out
    assert f"{CHAPTERS[0].name}, Cell 3" in said and "boom" in said
    row = "| AVX2 in PyTorch and oneDNN | `ATEN_CPU_CAPABILITY=avx2` `ONEDNN_MAX_CPU_ISA=AVX2` |"
    assert f"{row} 1 differ |" in said and "| – | same |" in said


def test_what_was_run_is_not_run_again_unless_asked(outcomes):
    command = ["--only", "here", str(CHAPTERS[0])]
    machines.main(command)
    machines.main(command)
    assert len(outcomes) == 1
    machines.main([*command, "--again"])
    assert len(outcomes) == 2


def test_a_change_of_the_notebook_runs_it_again(outcomes, tmp_path):
    chapter = small_notebook(tmp_path / "01_x.ipynb", "print(1)", "1\n")
    machines.main(["--only", "here", str(chapter)])
    small_notebook(chapter, "print(2)", "2\n")
    machines.main(["--only", "here", str(chapter)])
    assert len(outcomes) == 2


def test_too_little_room_fails(outcomes, capsys):
    """Its smallest distance to failing is a twentieth of the median."""
    command = ["--only", "here,old,1-thread", str(CHAPTERS[0])]
    assert machines.main(command) == 1
    said = capsys.readouterr().out
    assert "too little room" in said and "a < b" in said
    assert "b < c" not in said


def test_one_machine_is_held_against_what_many_were_seen_to_do(
    outcomes, capsys
):
    """CI runs one; the distances of all are in a file."""
    chapter = CHAPTERS[0]
    many = {"a < b": {"distance": 1.0}, "b < c": {"distance": 0.5}}
    record = {"machines": {}, "assertions": {chapter.stem: many}}
    machines.RECORD.write_text(json.dumps(record), "utf-8")
    assert machines.main(["--only", "here", str(chapter)]) == 0
    assert machines.main(["--only", "1-thread", str(chapter)]) == 1
    assert "a < b: distance 1.0, room 0.05" in capsys.readouterr().out


def test_the_page_is_written_chapter_by_chapter(outcomes, capsys):
    """What was found of another chapter stays."""
    first, second = CHAPTERS[:2]
    machines.main(["--page", str(first)])
    machines.main(["--page", str(second)])
    record = machines.recorded()
    assert set(record["assertions"]) == {first.stem, second.stem}
    meanings = [machine.meaning for machine in machines.MACHINES]
    assert list(record["machines"]) == meanings
    for meaning, row in record["machines"].items():
        count = int("AVX2 in PyTorch" in meaning)
        assert row["differ"] == {first.stem: count, second.stem: count}
    page = marked.read("machines", machines.PAGE)
    assert page == machines.table(record["machines"])
    assert page.startswith("| machine | setting | 0 | 1 |")
    settings = "`ATEN_CPU_CAPABILITY=avx2` `ONEDNN_MAX_CPU_ISA=AVX2`"
    assert f"| {settings} | 1 differ | 1 differ |" in page
    assert set(record["assertions"][first.stem]["a < b"]) == {
        "distance",
        "room",
    }


def test_chapters_may_run_side_by_side(outcomes):
    command = ["--only", "here,old", "--jobs", "3"]
    command += [str(path) for path in CHAPTERS[:3]]
    assert machines.main(command) == 0
    assert len(outcomes) == 6


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--only", "cray"], "unknown machine: cray; there are here, old"),
        (["no.ipynb"], "no such notebook"),
        (["--page", "--only", "here"], "leave --only out"),
        (["--python", "/nonexistent/python"], "does not run"),
    ],
)
def test_a_command_that_makes_no_sense_is_refused(arguments, match):
    with pytest.raises(SystemExit, match=match):
        machines.main(arguments)


@pytest.mark.parametrize(
    ("distances", "room"),
    [
        ([1.0, 1.0, 1.0], 1.0),
        ([1.0, 0.5, 2.0], 0.5),
        ([1.0, -0.5, 1.0], -0.5),
        ([0.0, 0.0], 1.0),  # holds with equality, everywhere
        ([0.0, 0.0, 0.1], 0.0),
        ([3.0, 0.0, 3.0], 0.0),
    ],
)
def test_room_is_the_smallest_distance_in_units_of_the_median(distances, room):
    assert machines._room(distances)["room"] == room


# --- what is recorded -------------------------------------------------------


def names(source):
    """List the comparisons that an assertion holds: (text, kind, sign)."""
    (statement,) = ast.parse(source).body
    return [
        (ast.unparse(node), kind, sign)
        for node, kind, sign in machine_kernel.comparisons(statement)
    ]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("assert a < b", [("a < b", "all", 1)]),
        ("assert a < b and not c > d", [("a < b", "all", 1)]),
        ("assert (a > 0).all()", [("a > 0", "all", 1)]),
        ("assert (a > 0).any()", [("a > 0", "any", 1)]),
        ("assert not (a > 0).all()", [("a > 0", "all", -1)]),
        ("assert all(x > 0 for x in a)", [("x > 0", "all", 1)]),
        ("assert (a > 0).double().mean() > 0.9", None),
        ("assert a == b", []),
        ("assert f(x > 0)", []),
        ("assert math.isclose(a, b)", [("math.isclose(a, b)", "close", 1)]),
        ("print(a < b)", []),
        ("torch.testing.assert_close(a, b)", None),
    ],
)
def test_comparisons_are_found_where_they_decide(source, expected):
    found = names(source)
    if expected is None:
        assert len(found) == 1
    else:
        assert found[: len(expected)] == expected
    if "and not" in source:
        assert found[1] == ("c > d", "all", -1)


@pytest.fixture
def cell(tmp_path):
    """Run code as a cell of a recorded kernel would; return distances."""
    record = machine_kernel.Record(tmp_path / "record.json")

    def run(source):
        tree = machine_kernel.Asserts().visit(ast.parse(source))
        space = {"torch": torch, "__compare__": record.compare}
        space["__close__"] = record.close
        exec(compile(tree, "cell", "exec"), space)  # noqa: S102
        record.write()
        return json.loads((tmp_path / "record.json").read_text("utf-8"))

    return run


@pytest.mark.parametrize(
    ("source", "distance"),
    [
        ("assert 1 < 3", 2.0),
        ("assert 3 > 1 > -1", 2.0),
        ("assert torch.tensor([1.0, 2.0]).max() < 5", 3.0),
        ("assert (torch.tensor([1.0, 2.0]) > 0).all()", 1.0),
        ("assert (torch.tensor([-1.0, 2.0]) > 0).any()", 2.0),
        ("assert not (torch.tensor([-1.0, 2.0]) > 0).all()", 1.0),
        ("assert all(x > 0 for x in (3, 2, 4))", 2.0),
        ("assert any(x > 0 for x in (-3, 2, -4))", 2.0),
        ("import math\nassert math.isclose(1, 1.5, rel_tol=1)", 2 / 3),
        ("x = torch.ones(2)\nassert torch.allclose(x, x)", 1.0),
        ("x = torch.ones(2)\ntorch.testing.assert_close(x, x)", 1.0),
        ("for i in (5, 2, 9):\n    assert i > 0", 2.0),
    ],
)
def test_the_distance_to_failing_is_measured(cell, source, distance):
    (found,) = cell(source).values()
    assert found == pytest.approx(distance)


def test_what_is_no_number_passes_unmeasured(cell):
    assert cell("assert 'a' < 'b'\nassert 'a' == 'a'") == {}


@pytest.mark.parametrize(
    "source",
    [
        "assert 3 < 1",
        "assert 1 < 3 < 2",
        "assert not 1 < 3",
        "assert (torch.tensor([-1.0, 2.0]) > 0).all()",
        "assert torch.allclose(torch.ones(2), torch.zeros(2))",
        "torch.testing.assert_close(torch.ones(2), torch.zeros(2))",
    ],
)
def test_what_fails_still_fails(cell, source):
    with pytest.raises(AssertionError):
        cell(source)


def test_a_chain_stops_where_it_fails(cell):
    """As Python does: a comparison of tensors has no truth of its own."""
    with pytest.raises(RuntimeError, match="Boolean value of Tensor"):
        cell("assert 0 < torch.tensor([1.0, 2.0]) < 5")


def test_rough_sums_are_repeatable_and_only_in_single_precision(monkeypatch):
    """As another processor computes: other digits, the same every time."""
    for owner, name in (
        (torch, "addmm"),
        (torch, "matmul"),
        (torch, "einsum"),
        (torch, "bmm"),
        (torch.Tensor, "__matmul__"),
        (torch.Tensor, "matmul"),
        (torch.nn.functional, "linear"),
        (torch.nn.functional, "scaled_dot_product_attention"),
        (torch.nn.functional, "layer_norm"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    a = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
    exact, double = a[0] @ a[1], a[0].double() @ a[1].double()
    machine_kernel.roughen(1e-6)
    other = a[0] @ a[1]
    change = ((other - exact) / exact).abs()
    assert 1e-7 < change.mean() < change.max() < 2e-6
    assert torch.equal(other, a[0] @ a[1])
    assert torch.equal(double, a[0].double() @ a[1].double())


# --- what was recorded ------------------------------------------------------


AGAIN = "run `python tools/machines.py --page` with the chapters that changed"


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_each_assertion_holds_with_room(path):
    """On all machines it keeps a fifth of its distance to failing."""
    found = machines.recorded()["assertions"].get(path.stem, {})
    wanted = machines.asserted(json.loads(path.read_text("utf-8")))
    assert wanted == set(found), AGAIN
    assert machines.narrow({path.stem: found}) == []


def test_the_page_shows_all_machines_and_no_difference():
    """The record of the runs, and the table that was made of it."""
    found = machines.recorded()["machines"]
    assert {machine.meaning for machine in machines.MACHINES} <= set(found)
    stems = {path.stem for path in CHAPTERS}
    for meaning, row in found.items():
        assert set(row["differ"]) == stems, f"{meaning}: {AGAIN}"
        assert not any(row["differ"].values()), meaning
    assert marked.read(machines.TABLE) == machines.table(found)


def test_comparisons_of_a_notebook_are_named_as_they_are_recorded(tmp_path):
    source = (
        "x = torch.ones(2)\nfor i in x:\n    assert 0 < i\n"
        "assert (x < 2).all() and x.sum() > 1, 'words'\n"
        "torch.testing.assert_close(x, x)\n"
    )
    record = machine_kernel.Record(tmp_path / "record.json")
    tree = machine_kernel.Asserts().visit(ast.parse(source))
    space = {"torch": torch, "__compare__": record.compare}
    space["__close__"] = record.close
    exec(compile(tree, "cell", "exec"), space)  # noqa: S102
    cell = {"cell_type": "code", "metadata": {}, "source": source}
    live = {**cell, "metadata": {"tags": ["live"]}, "source": "assert 1 < 2"}
    assert machines.asserted({"cells": [cell, live]}) == set(record.found)
    assert len(record.found) == 4


# --- the page ---------------------------------------------------------------


def test_a_table_is_written_between_its_marks(tmp_path):
    begin, end = marked.marks("x")
    page = tmp_path / "page.md"
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n", "utf-8")
    marked.write("x", marked.table(["a", "b"], [[1, "c"]]), page)
    assert marked.read("x", page) == "| a | b |\n|---|---|\n| 1 | c |"
    assert page.read_text("utf-8").startswith(f"before\n{begin}\n| a")
    assert page.read_text("utf-8").endswith(f"|\n{end}\nafter\n")
    for wrong in ("", f"{end}{begin}", f"{begin}{begin}{end}"):
        page.write_text(wrong, "utf-8")
        with pytest.raises(ValueError, match="once each"):
            marked.write("x", "text", page)
        assert page.read_text("utf-8") == wrong
