"""Each chapter keeps the rules of the book, and each rule can fail.

The rules are in ``tools/chapter_rules.py``. First they are tried on a small
notebook that is in order, then on the same notebook broken in one place at a
time; a rule that notices nothing is no rule.
"""

import copy
import json
from pathlib import Path

import chapter_rules as rules
import pytest

from dblm_lib import exercises

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
PNG = "iVBORw0KGgo="


# --- the chapters -----------------------------------------------------------


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda r: r.__name__)
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_chapter(path, rule):
    """No chapter breaks a rule."""
    found = list(rule(json.loads(path.read_text("utf-8"))))
    assert not found, "\n".join([path.name, *found])


# Neither the welcome nor an appendix.
NUMBERED = [path for path in CHAPTERS if path.stem[:2].strip("0").isdigit()]


@pytest.mark.parametrize("path", NUMBERED, ids=lambda p: p.stem)
def test_chapter_has_its_parts(path):
    """Exercises, a moving figure, shown code, a closing with citations."""
    notebook = json.loads(path.read_text("utf-8"))
    tags = [t for cell in notebook["cells"] for t in rules.tags_of(cell)]
    assert tags.count("exercise") >= 2
    assert tags.count("shown") >= 1
    assert tags.count("live") >= 1
    text = "\n".join(s for _, s, _ in rules.cells_of(notebook, "markdown"))
    assert f"# {rules.CLOSING}" in text
    assert rules.citations(text)
    asserts = [
        source
        for _, source, _ in rules.cells_of(notebook, "code")
        if "assert " in source
    ]
    assert len(asserts) >= 3


# --- a notebook to break ----------------------------------------------------


def markdown(source):
    """Return a text cell."""
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def stream(text, name="stdout"):
    """Return what a cell printed."""
    return {"output_type": "stream", "name": name, "text": text}


def picture():
    """Return a figure's output."""
    return {
        "output_type": "display_data",
        "metadata": {},
        "data": {"image/png": PNG, "text/plain": "<Figure>"},
    }


def code(source, *outputs, tags=(), **metadata):
    """Return a code cell that has been run."""
    return {
        "cell_type": "code",
        "execution_count": 0,
        "metadata": {**metadata, **({"tags": [*tags]} if tags else {})},
        "outputs": list(outputs),
        "source": source,
    }


def good():
    """Return a small chapter that is in order."""
    described = {"figure": {"caption": "A line."}, "image": {"alt": "Line"}}
    cells = [
        markdown("# 9. A chapter\n\nText."),
        code("import sys", tags=["setup", "hide-input"]),
        code("import torch\n\nx = torch.ones(3)"),
        code("print(x.sum())", stream("3\n")),
        code("plt.plot(x)\nplt.show()", picture(), mystnb=described),
        code("print(x.mean())", stream("1"), tags=["nbval-ignore-output"]),
        code("assert x.mean() == 1"),
        code(SHOWN, tags=["shown"]),
        code(
            'exercises.check("9.1", ...)',
            stream(BLANK),
            tags=["exercise"],
        ),
        code(
            'exercises.check("9.1", 3)',
            stream("Right."),
            tags=["solution", "hide-cell"],
        ),
        markdown("## Where the ideas come from\n\n{cite}`ho2020denoising`."),
        code(TRAINED),
        code("print(run.loss)", stream("0.12"), tags=["nbval-ignore-output"]),
        code("assert run.loss < 1"),
        code("print(run.loss < 1)", stream("True"), tags=["coarse"]),
    ]
    count = 0
    for number, cell in enumerate(cells):
        cell["id"] = f"c{number}"
        if cell["cell_type"] == "code":
            count += 1
            cell["execution_count"] = count
    return {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {
            "kernelspec": {"name": "python3"},
            "language_info": {"name": "python"},
        },
        "cells": cells,
    }


BLANK = f"Exercise 9.1: {exercises.BLANK}"
TRAINED = """recipe = ladder.recipe("proposal", precision="fp32")
run = training.train(model, x, recipe)"""
SHOWN = "def twice(x):\n    # two times\n    return 2 * x"
SHIPPED = 'def twice(x):\n    """Return the double."""\n    return 2 * x'


@pytest.fixture(autouse=True)
def small_library(request, monkeypatch):
    """Give the broken notebooks a library of one function."""
    if "broken" in request.fixturenames or "in_order" in request.node.name:
        library = {"twice": [rules.bare(rules.ast.parse(SHIPPED).body[0])]}
        monkeypatch.setattr(rules, "library_definitions", lambda: library)


def test_a_good_notebook_is_in_order():
    """The notebook that is broken below is whole."""
    assert rules.problems(good()) == []


def setter(position, key, value):
    """Return a function that replaces one entry of one cell."""

    def change(notebook):
        notebook["cells"][position][key] = value

    return change


def insert(position, cell):
    """Return a function that puts a cell in, and numbers all again."""

    def change(notebook):
        notebook["cells"].insert(position, {**cell, "id": "new"})
        count = 0
        for each in notebook["cells"]:
            if each["cell_type"] == "code":
                count += 1
                each["execution_count"] = count

    return change


def update(mapping, **entries):
    """Return a function that changes entries of the notebook itself."""
    return lambda notebook: notebook[mapping].update(entries)


def failed(name="ValueError"):
    """Return a traceback's output."""
    return {"output_type": "error", "ename": name, "evalue": "", "text": ""}


def html(text):
    """Return an HTML output."""
    return {"output_type": "display_data", "data": {"text/html": text}}


RIGHT = stream("Right.")
WIDGETS = {"application/vnd.jupyter.widget-state+json": {}}
BROKEN = [
    ("executed_in_order", setter(3, "execution_count", None)),
    ("executed_in_order", setter(3, "execution_count", 7)),
    ("executed_in_order", setter(3, "source", "")),
    ("no_errors", setter(3, "outputs", [failed()])),
    ("no_errors", setter(3, "outputs", [stream("careful", "stderr")])),
    ("outputs_present", setter(3, "outputs", [])),
    ("outputs_present", setter(4, "outputs", [])),
    ("outputs_present", insert(4, code("for i in x:\n    print(i)"))),
    ("figures_described", setter(4, "metadata", {})),
    (
        "figures_described",
        setter(4, "metadata", {"mystnb": {"figure": {"caption": "Line."}}}),
    ),
    (
        "figures_described",
        setter(4, "metadata", {"mystnb": {"image": {"alt": "Line"}}}),
    ),
    ("figures_described", insert(1, markdown("![](picture.png)"))),
    ("ignored_outputs_asserted", setter(6, "source", "assert True")),
    (
        "ignored_outputs_asserted",
        insert(
            6,
            code("print(other)", RIGHT, tags=["nbval-ignore-output"]),
        ),
    ),
    (
        "ignored_outputs_asserted",
        setter(3, "source", "# NBVAL_IGNORE_OUTPUT\nprint(x)"),
    ),
    ("steady_outputs", setter(12, "metadata", {})),
    ("steady_outputs", setter(14, "metadata", {})),
    ("steady_outputs", setter(3, "metadata", {"tags": ["coarse"]})),
    ("precision_asked", setter(11, "source", TRAINED.replace("fp32", "auto"))),
    (
        "precision_asked",
        setter(11, "source", TRAINED.replace(', precision="fp32"', "")),
    ),
    ("precision_asked", setter(2, "source", "diagnostics.run({})")),
    ("precision_asked", setter(2, "source", "x = distillation.Lessons(y)")),
    (
        "shown_is_shipped",
        setter(7, "source", "def twice(x):\n    return 3 * x"),
    ),
    ("shown_is_shipped", setter(7, "metadata", {})),
    ("shown_is_shipped", setter(7, "source", "y = 1")),
    (
        "shown_is_shipped",
        setter(7, "source", "def thrice(x):\n    return 3 * x"),
    ),
    ("narrow_code", setter(6, "source", f"assert x.mean() == {1:075d}")),
    ("installs_only_in_setup", setter(2, "source", "%pip install torch")),
    ("installs_only_in_setup", setter(2, "source", "!ls")),
    ("installs_only_in_setup", setter(1, "metadata", {})),
    ("known_tags", setter(2, "metadata", {"tags": ["hide_input"]})),
    ("known_tags", setter(2, "metadata", {"tags": ["nbval-skip"]})),
    ("known_tags", setter(2, "metadata", {"tags": ["live"]})),
    ("plain_text", insert(1, markdown("See {term}`nat`."))),
    ("plain_text", insert(1, markdown(":::{note}\nHello\n:::"))),
    ("plain_text", insert(1, markdown("```{figure} x.png\n```"))),
    ("citations_resolve", setter(10, "source", "{cite:p}`nobody1900x`")),
    (
        "citations_resolve",
        setter(10, "source", "{cite}`ho2020denoising, nobody1900x`"),
    ),
    ("one_title", setter(0, "source", "Text without a title")),
    ("one_title", insert(2, markdown("# A second title"))),
    ("exercises_answered", setter(8, "outputs", [RIGHT])),
    ("exercises_answered", setter(8, "outputs", [])),
    ("exercises_answered", setter(8, "outputs", [stream("Not yet: 3")])),
    ("exercises_answered", setter(9, "outputs", [stream("Not yet: 3")])),
    ("exercises_answered", setter(9, "outputs", [stream(BLANK)])),
    ("exercises_answered", setter(9, "outputs", [])),
    ("exercises_answered", setter(9, "metadata", {})),
    ("exercises_answered", setter(9, "metadata", {"tags": ["solution"]})),
    ("exercises_answered", setter(8, "metadata", {})),
    ("tidy_file", update("metadata", kernelspec={"name": "mine"})),
    ("tidy_file", update("metadata", widgets=WIDGETS)),
    ("tidy_file", lambda notebook: notebook.update(nbformat_minor=4)),
    ("tidy_file", setter(2, "metadata", {"execution": {}})),
    ("tidy_file", setter(2, "id", "c1")),
    ("no_paths", setter(3, "outputs", [stream("/home/ada/x.py:1")])),
    ("no_paths", setter(3, "source", 'print(open("/tmp/x"))')),
    (
        "self_contained_html",
        setter(3, "outputs", [html('<img src="https://a.b/c.png">')]),
    ),
    (
        "self_contained_html",
        setter(3, "outputs", [html("<script src='//cdn.net/x.js'>")]),
    ),
    ("small_file", setter(3, "outputs", [stream("x" * 2_000_001)])),
]


@pytest.mark.parametrize(("name", "broken"), BROKEN)
def test_rule_notices(name, broken):
    """The rule that is broken says so."""
    notebook = copy.deepcopy(good())
    broken(notebook)
    rule = getattr(rules, name)
    assert list(rule(notebook)), f"{name} noticed nothing"


UNSTEADY = [
    "print(run.loss)",
    "run",
    "model",  # trained in place
    "display(Markdown(f'{run.loss:.2f}'))",
    "y = run.loss\nz = [y]\nprint(z)",
    "y = []\ny.append(run.loss)\nprint(y)",
    "y = {}\ny['a'] = run.loss\nprint(y)",
    "for y in run.loss:\n    print(y)",
    "for y in (1, 2):\n    print(z)\n    z = run.loss",
    "y = {k: v for k, v in run.loss}\nprint(y)",
    "def told():\n    return run.loss\n\n\nprint(told())",
    "def say(y):\n    print(y)\n\n\nsay(run.loss)",
    "plots.show_table(['loss'], {'run': [run.loss]})",
    "def say(y):\n    plots.show_table(['loss'], y)\n\n\nsay([[run.loss]])",
    "print(evaluation.write(model))",
    "with torch.no_grad():\n    y = decoding.sample(x)\nprint(y)",
    "try:\n    y = run.loss\nexcept KeyError:\n    pass\nprint(y)",
    "try:\n    pass\nexcept KeyError:\n    y = run.loss\nprint(y)",
    "widgets.tokens(run.loss)",
    "optimizer.step()\nlosses += [run.loss]\nprint(losses)",
]


@pytest.mark.parametrize("source", UNSTEADY)
def test_what_was_trained_is_followed_to_where_it_is_shown(source):
    """Through names, containers, loops, functions."""
    notebook = good()
    notebook["cells"].append(code(source, stream("1")))
    (sentence,) = rules.steady_outputs(notebook)
    assert sentence.startswith("cell 15 shows")


STEADY = [
    "print('run')",
    "run = 3\nprint(run)",  # a name is used again
    "y = run.loss",
    "y = run.loss\nplt.plot(y)\nplt.show()",
    "print([run for run in x])",
    "def told(run):\n    return run + 1\n\n\nprint(told(3))",
    "def told():\n    run = 1\n    return run\n\n\nprint(told())",
    "print((lambda run: 2 * run)(3))",
    "for run in (1, 2):\n    print(run)",
    "assert run.loss < 1\nprint('it is below one')",
    "training.train(other, x)\nprint(training.STEPS)",
]


@pytest.mark.parametrize("source", STEADY)
def test_what_is_the_same_everywhere_may_be_shown(source):
    """A rule that cries wolf would be switched off."""
    notebook = good()
    notebook["cells"].append(code(source, stream("1")))
    assert list(rules.steady_outputs(notebook)) == []


@pytest.mark.parametrize(
    "source",
    [
        "recipe = ladder.recipe()\nprint(recipe)",  # only shown
        (
            "brief = {'precision': 'fp32'}\n"
            "training.train(model, x, ladder.recipe('muon', **brief))"
        ),
        (
            "brief = {}\nbrief['precision'] = 'fp32'\n"
            "training.train(model, x, ladder.recipe('muon', **brief | {'steps': 4}))"
        ),
        "draw = distillation.Lessons(y, precision='fp32')",
    ],
)
def test_a_precision_may_be_asked_for_in_several_ways(source):
    """In the call, or in settings that it is given."""
    notebook = good()
    notebook["cells"].append(code(source))
    assert list(rules.precision_asked(notebook)) == []


def test_every_rule_is_broken_once():
    """A rule without a counter-example is not known to work."""
    assert {name for name, _ in BROKEN} == {r.__name__ for r in rules.RULES}


@pytest.mark.parametrize(
    "source",
    [
        "def twice(x):  # a comment\n    return 2 * x",
        '@staticmethod\ndef twice(x):\n    """Other words."""\n    return 2*x',
    ],
)
def test_layout_and_docstring_do_not_matter_but_decorators_do(source):
    """Syntax trees are compared, not characters."""
    node = rules.ast.parse(source).body[0]
    shipped = rules.bare(rules.ast.parse(SHIPPED).body[0])
    assert (rules.bare(node) == shipped) == (not node.decorator_list)


def test_library_definitions_are_found():
    """The comparison has something to compare with."""
    assert len(rules.library_definitions()) > 20
    assert "closed_form" in rules.library_definitions()
