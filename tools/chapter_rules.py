"""The rules that a chapter keeps; each can be broken, and is in a test.

    python tools/chapter_rules.py                    # all chapters
    python tools/chapter_rules.py chapters/02_*.ipynb

A rule is a function: it takes a notebook (a plain dict, format 4) and yields
one sentence for each place where the notebook breaks it.
"""

import ast
import builtins
import json
import re
import sys
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TAGS = {
    "setup",
    "shown",
    "exercise",
    "solution",
    "live",
    "table",
    "hide-input",
    "hide-cell",
    "hide-output",
    "remove-cell",
    "remove-input",
    "remove-output",
    "nbval-ignore-output",
    "coarse",  # compared, though what is printed was trained: see below
    "raises-exception",
}
CLOSING = "Where the ideas come from"
MAX_COLUMNS = 76
MAX_BYTES = 2_000_000
NOT_YET = re.compile(r"not yet", re.IGNORECASE)
# What an exercise prints before it is answered.
INVITATION = re.compile(r"(?m)^Exercise [\d.]+: write your answer")


# --- reading a notebook -----------------------------------------------------


def text_of(value):
    """Join the lines in which a notebook may store a text."""
    return value if isinstance(value, str) else "".join(value)


def cells_of(notebook, kind):
    """Yield (position, source, cell) of the cells of one kind."""
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == kind:
            yield number, text_of(cell["source"]), cell


def tags_of(cell):
    """Return the set of a cell's tags."""
    return set(cell.get("metadata", {}).get("tags", []))


def tree_of(source):
    """Parse a cell, its lines with a magic or a shell command left out."""
    lines = [
        re.sub(r"^(\s*)[%!].*$", r"\1pass", line)
        for line in source.splitlines()
    ]
    return ast.parse("\n".join(lines))


def printed(cell):
    """Return all the text that a cell shows, whatever its type."""
    parts = []
    for output in cell.get("outputs", []):
        parts.append(text_of(output.get("text", "")))
        for key, value in output.get("data", {}).items():
            if key.startswith("text/"):
                parts.append(text_of(value))
    return "\n".join(parts)


# --- outputs ----------------------------------------------------------------


def executed_in_order(notebook):
    """Code cells are numbered 1..n, as one run from top to bottom does."""
    expected = 0
    for number, source, cell in cells_of(notebook, "code"):
        if not source.strip():
            yield f"cell {number} is empty"
            continue
        expected += 1
        if cell.get("execution_count") != expected:
            yield (
                f"cell {number} has execution count "
                f"{cell.get('execution_count')}, not {expected}: "
                "run `make refresh`"
            )


def no_errors(notebook):
    """No cell failed or warned when it was run."""
    for number, _, cell in cells_of(notebook, "code"):
        for output in cell["outputs"]:
            failed = output["output_type"] == "error"
            if failed and "raises-exception" not in tags_of(cell):
                yield f"cell {number} raised {output['ename']}"
            if output.get("name") == "stderr":
                yield f"cell {number} writes to stderr: {printed(cell)[:60]}"


def _calls(statements):
    """Yield the names called by statements that surely run."""
    for node in statements:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield ast.unparse(node.value.func)
        elif isinstance(node, (ast.With, ast.For)):
            yield from _calls(node.body)


def outputs_present(notebook):
    """A cell that prints, displays or plots has something to show."""
    speaking = SHOWING | {"plt.show", "exercises.check"}
    for number, source, cell in cells_of(notebook, "code"):
        called = speaking & set(_calls(tree_of(source).body))
        if called and not cell["outputs"]:
            yield f"cell {number} calls {called.pop()} but stores no output"


def figures_described(notebook):
    """Each picture has a caption and a text for those who cannot see it."""
    for number, _, cell in cells_of(notebook, "code"):
        kinds = {k for o in cell["outputs"] for k in o.get("data", {})}
        if not any(kind.startswith("image/") for kind in kinds):
            continue
        described = cell["metadata"].get("mystnb", {})
        for part, key in (("figure", "caption"), ("image", "alt")):
            if not str(described.get(part, {}).get(key, "")).strip():
                yield f"cell {number}: a picture without {part} {key}"
    for number, source, _ in cells_of(notebook, "markdown"):
        if re.search(r"!\[\s*\]\(", source):
            yield f"cell {number}: a picture without alt text"


def ignored_outputs_asserted(notebook):
    """What nbval does not compare is asserted: a shared name in an assert."""
    asserted = set()
    for _, source, _ in cells_of(notebook, "code"):
        for node in ast.walk(tree_of(source)):
            if isinstance(node, ast.Assert):
                asserted |= _names(node)
    for number, source, cell in cells_of(notebook, "code"):
        if re.search(r"#\s*(NBVAL_|PYTEST_VALIDATE_)", source):
            yield f"cell {number}: use a tag, not a comment, to steer nbval"
        if "nbval-ignore-output" not in tags_of(cell):
            continue
        if not cell["outputs"] and "live" not in tags_of(cell):
            yield f"cell {number} needs no nbval-ignore-output: no output"
        if not _names(tree_of(source)) & asserted:
            yield (
                f"cell {number} is not compared (nbval-ignore-output) and "
                "no assert in the notebook uses a value of it"
            )


def _names(tree):
    """Return the variables in a tree, modules and builtins left out."""
    builtins_ = set(dir(builtins))
    modules = library_modules() | {"plt", "np", "torch", "sns", "display"}
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    return names - builtins_ - modules


# --- the same page on every machine -----------------------------------------

# What comes out of these differs in its last digits from one processor to
# the next, and training and sampling amplify the difference.
UNSTEADY = {
    "training.train",
    "training.evaluate_denoising",
    "ladder.train",
    "ladder.level_report",
    "diagnostics.run",
    "diagnostics.fit_head",
    "diagnostics.level_report",
    "diagnostics.contextual_rounding",
    "decoding.generate",
    "decoding.generate_ids",
    "decoding.sample",
    "distillation.lesson",
    "distillation.Lessons",
    "evaluation.write",
    "metrics.judge",
    "metrics.report",
    "metrics.sample_language_model",
    "optimizer.step",
    "examine",
}
# Of these, the first argument is trained, in place.
TRAINERS = {"training.train", "ladder.train"}
SHOWING = {"print", "display", "plots.show_table"}
EXEMPT = {"nbval-ignore-output", "coarse"}


def steady_outputs(notebook):
    """What training or sampling made is not compared digit by digit.

    A name is *unsteady* if it was assigned from a call in `UNSTEADY`, from an
    unsteady name, or trained; a function is if its body uses one. A cell that
    prints or displays an unsteady name must not be compared
    (``nbval-ignore-output``; an assertion then says what must hold), or
    promise by the tag ``coarse`` that it prints too coarsely to differ.
    `tools/machines.py` tries whether that is so. Pictures are not compared.
    """
    flow = _Flow()
    for number, source, cell in cells_of(notebook, "code"):
        shown = flow.through(tree_of(source).body)
        exempt = tags_of(cell) & EXEMPT
        if shown and not exempt:
            yield (
                f"cell {number} shows {', '.join(sorted(shown))}, which was "
                "trained or sampled: tag it nbval-ignore-output and assert "
                "what must hold, or print it coarsely and tag it coarse"
            )
        if "coarse" in exempt and not shown:
            yield f"cell {number} is tagged coarse and shows nothing unsteady"


class _Flow:
    """Follows unsteady values through the cells of a notebook."""

    def __init__(self):
        self.unsteady, self.printers = set(), set(SHOWING)

    def through(self, statements):
        """Follow a cell; return the unsteady names that it shows."""
        shown = set()
        for position, node in enumerate(statements):
            last = position == len(statements) - 1
            if last and isinstance(node, ast.Expr):
                shown |= self._from(node)
            shown |= self._statement(node)
        return shown

    def _from(self, tree):
        """List why a value is unsteady: names in it, or calls."""
        names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        names -= _local(tree)
        return names & self.unsteady | _called(tree) & UNSTEADY

    def _statement(self, node):
        if isinstance(node, DEFINITION):
            return self._define(node)
        if isinstance(node, (ast.For, ast.With, ast.If, ast.While, ast.Try)):
            return self._block(node)
        shown = set()
        for call in (n for n in ast.walk(node) if isinstance(n, ast.Call)):
            self._train(call)
            if ast.unparse(call.func) in self.printers:
                shown |= self._from(call) - self.printers
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            self._assign(node)
        elif isinstance(node, ast.Expr):  # such as `losses.append(loss)`
            called = getattr(node.value, "func", None)
            if isinstance(called, ast.Attribute) and self._from(node):
                self.unsteady |= _base(called) & _names(called)
        return shown

    def _define(self, node):
        """A function shows and makes what its body does."""
        self.unsteady.discard(node.name)
        if self._from(node):
            self.unsteady.add(node.name)
        if _called(node) & self.printers:
            self.printers.add(node.name)
        return set()

    def _block(self, node):
        """Follow a block twice: a loop comes back to its beginning."""
        shown = set()
        for _ in range(2):
            if isinstance(node, ast.For):
                self._store(node.target, self._from(node.iter))
            for item in getattr(node, "items", []):
                if item.optional_vars is not None:
                    self._store(
                        item.optional_vars, self._from(item.context_expr)
                    )
            for part in ("body", "orelse", "handlers", "finalbody"):
                for inner in getattr(node, part, []):
                    body = getattr(inner, "body", None)
                    if isinstance(inner, ast.ExceptHandler):
                        for each in body:
                            shown |= self._statement(each)
                    else:
                        shown |= self._statement(inner)
        return shown

    def _train(self, call):
        if ast.unparse(call.func) in TRAINERS and call.args:
            self.unsteady |= _base(call.args[0])

    def _assign(self, node):
        why = self._from(node.value) if node.value else set()
        targets = getattr(node, "targets", None) or [node.target]
        for target in targets:
            whole = isinstance(target, (ast.Name, ast.Tuple, ast.List))
            if why or (whole and not isinstance(node, ast.AugAssign)):
                self._store(target, why)

    def _store(self, target, why):
        """Names in a target become unsteady, or steady again."""
        names = _stored(target) | _base(target)
        self.unsteady = self.unsteady | names if why else self.unsteady - names


def _called(tree):
    """Return the functions that a tree calls, as they are written."""
    calls = (n for n in ast.walk(tree) if isinstance(n, ast.Call))
    return {ast.unparse(call.func) for call in calls}


def _local(tree):
    """Names that mean something of their own inside a tree.

    Those of a comprehension, and in a function its parameters and all that
    it assigns or defines.
    """
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.comprehension):
            found |= _stored(node.target)
        elif isinstance(node, DEFINITION):
            found |= _stored(node)
            found |= {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
            found |= {
                n.name for n in ast.walk(node) if isinstance(n, DEFINITION)
            }
        elif isinstance(node, ast.Lambda):
            found |= {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
    return found


def _stored(tree):
    return {
        n.id
        for n in ast.walk(tree)
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }


def _base(node):
    """The name before all dots and brackets, as a set; empty if none."""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return {node.id} if isinstance(node, ast.Name) else set()


def precision_asked(notebook):
    """A page that trains says in what precision; no hardware decides it.

    `ladder.recipe` and `diagnostics.run` ask the hardware (for long runs,
    bf16 where it is fast), and so does the precision "auto".
    """
    trees = [
        (number, tree_of(source))
        for number, source, _ in cells_of(notebook, "code")
    ]
    asked = set()  # names of settings that hold {"precision": "fp32"}
    for _, tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and "fp32" in ast.unparse(node):
                asked |= set().union(*map(_base, node.targets))
    for number, tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node.value == "auto":
                yield f"cell {number}: 'auto' lets the hardware decide"
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called == "diagnostics.run":
                yield f"cell {number}: diagnostics.run asks the hardware"
            if called in ("ladder.recipe", "distillation.Lessons"):
                words = {key.arg for key in node.keywords}
                given = set().union(
                    *(_names(k.value) for k in node.keywords if not k.arg)
                )
                shown_only = called == "ladder.recipe" and not any(
                    _trains(n) for n in ast.walk(tree)
                )
                if "precision" in words or given & asked or shown_only:
                    continue
                yield f"cell {number}: {called} without a precision"


def _trains(node):
    return isinstance(node, ast.Call) and ast.unparse(node.func) in TRAINERS


# --- code -------------------------------------------------------------------


@lru_cache
def library_modules():
    """Return the names of the library's modules, packages among them."""
    library = ROOT / "dblm_lib"
    return {
        *(path.stem for path in library.glob("*.py")),
        *(path.parent.name for path in library.glob("*/__init__.py")),
    }


@lru_cache
def library_definitions():
    """Return {name: [syntax tree, ...]} of the library's functions."""
    found = {}
    for path in sorted((ROOT / "dblm_lib").rglob("*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, DEFINITION):
                found.setdefault(node.name, []).append(bare(node))
    return found


DEFINITION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def bare(node):
    """Dump a definition's syntax tree without any docstring."""
    node = ast.parse(ast.unparse(node)).body[0]
    for inner in ast.walk(node):
        if isinstance(inner, DEFINITION) and ast.get_docstring(inner):
            inner.body = inner.body[1:] or [ast.Pass()]
    return ast.dump(node)


def shown_is_shipped(notebook, library=None):
    """A definition in a chapter that has a library's name is the library's.

    A cell tagged ``shown`` promises so; a definition that takes a library's
    name without the tag would let the page drift from the code.
    """
    library = library_definitions() if library is None else library
    for number, source, cell in cells_of(notebook, "code"):
        nodes = [n for n in tree_of(source).body if isinstance(n, DEFINITION)]
        shown = "shown" in tags_of(cell)
        if shown and not nodes:
            yield f"cell {number} is tagged shown but defines nothing"
        for node in nodes:
            if shown and node.name not in library:
                yield f"cell {number}: dblm_lib has no {node.name}"
            elif shown and bare(node) not in library[node.name]:
                yield f"cell {number}: {node.name} differs from dblm_lib's"
            elif not shown and node.name in library:
                yield f"cell {number} defines {node.name} untagged"


def narrow_code(notebook):
    """Code fits a page: 76 columns."""
    for number, source, cell in cells_of(notebook, "code"):
        if "setup" in tags_of(cell):
            continue  # hidden, and holds an address that cannot be broken
        for line in source.splitlines():
            if len(line) > MAX_COLUMNS:
                yield f"cell {number}: {len(line)} columns: {line.strip()}"


def installs_only_in_setup(notebook):
    """The first code cell, and no other, installs and runs commands."""
    for position, (number, source, cell) in enumerate(
        cells_of(notebook, "code")
    ):
        first = position == 0
        if first != ("setup" in tags_of(cell)):
            yield f"cell {number}: the first code cell is the one for set-up"
        if not first and re.search(
            r"(?m)^\s*(!|%(pip|conda|cd|run|load))|\bos\.system\(", source
        ):
            yield f"cell {number} runs a command"


def known_tags(notebook):
    """A misspelt tag does nothing, silently."""
    for number, cell in enumerate(notebook["cells"]):
        for tag in sorted(tags_of(cell) - TAGS):
            yield f"cell {number}: unknown tag {tag!r}"
        if "live" in tags_of(cell) and "remove-cell" not in tags_of(cell):
            yield f"cell {number}: a live widget is dead on a page"


# --- text -------------------------------------------------------------------


def plain_text(notebook):
    """Main text reads well without Sphinx: no role, no directive.

    They show as raw braces in Jupyter and Colab. Citations stand in the
    closing section.
    """
    for number, source, _ in cells_of(notebook, "markdown"):
        if re.search(rf"(?m)^#+ +{CLOSING}", source):
            return
        source = re.sub(r"(?ms)^```(?!\{).*?^```", "", source)
        for role in re.findall(r"\{[\w:.-]+\}`[^`]*`", source):
            yield f"cell {number}: {role} before '{CLOSING}'"
        for directive in re.findall(
            r"(?m)^\s*(?:`{3,}|:{3,})\{[\w:.-]+\}", source
        ):
            yield f"cell {number}: {directive} shows as it is in Colab"


def citations(text):
    """List the keys that a text cites."""
    found = re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text)
    return [key.strip() for group in found for key in group.split(",")]


@lru_cache
def bibliography():
    """Return the keys of references.bib."""
    text = (ROOT / "chapters" / "references.bib").read_text("utf-8")
    return set(re.findall(r"(?m)^@\w+\{\s*([^,\s]+)\s*,", text))


def citations_resolve(notebook, keys=None):
    """Each citation has an entry in references.bib."""
    keys = bibliography() if keys is None else keys
    for number, source, _ in cells_of(notebook, "markdown"):
        for key in citations(source):
            if key not in keys:
                yield f"cell {number} cites {key}: not in references.bib"


def one_title(notebook):
    """The page begins with its title, and has one."""
    sources = [s for _, s, _ in cells_of(notebook, "markdown")]
    first = notebook["cells"][0]
    if first["cell_type"] != "markdown" or not text_of(
        first["source"]
    ).startswith("# "):
        yield "the first cell is not the title"
    text = re.sub(r"(?ms)^```.*?^```", "", "\n\n".join(sources))
    titles = re.findall(r"(?m)^# .*", text)
    if len(titles) != 1:
        yield f"{len(titles)} titles (lines that begin with '# ')"


# --- exercises --------------------------------------------------------------


def _checked(source):
    return re.findall(r"exercises\.check\(\s*[\"']([\w.]+)[\"']", source)


def exercises_answered(notebook):
    """Each blank invites an answer, and has a solution that passes.

    Judged by what the cells printed when the chapter was run.
    """
    blanks, solutions = {}, {}
    for number, source, cell in cells_of(notebook, "code"):
        for tag, found in (("exercise", blanks), ("solution", solutions)):
            if tag in tags_of(cell):
                for name in _checked(source) or [f"(cell {number})"]:
                    found[name] = (number, cell)
        if _checked(source) and not tags_of(cell) & {"exercise", "solution"}:
            yield f"cell {number} checks an exercise without a tag"
    for name, (number, cell) in blanks.items():
        if not INVITATION.search(printed(cell)):
            yield f"exercise {name}: the blank does not invite an answer"
        if name not in solutions:
            yield f"exercise {name} has no solution"
        elif solutions[name][0] < number:
            yield f"exercise {name}: the solution comes first"
    for name, (number, cell) in solutions.items():
        if name not in blanks:
            yield f"solution {name} (cell {number}) has no exercise"
        said = printed(cell)
        if not said.strip() or NOT_YET.search(said) or INVITATION.search(said):
            yield f"exercise {name}: the solution does not pass"
        if "hide-cell" not in tags_of(cell):
            yield f"exercise {name}: the solution is not hidden"


# --- the file ---------------------------------------------------------------


def tidy_file(notebook):
    """Kernel python3, format 4.5, no widget state, nothing of an editor."""
    kernel = notebook["metadata"].get("kernelspec", {}).get("name")
    if kernel != "python3":
        yield f"kernelspec {kernel!r}, not 'python3'"
    if (notebook["nbformat"], notebook["nbformat_minor"]) != (4, 5):
        yield "not in notebook format 4.5"
    for key in sorted(set(notebook["metadata"])):
        if key not in ("kernelspec", "language_info"):
            yield f"metadata {key!r}: run `make refresh`"
    for number, cell in enumerate(notebook["cells"]):
        extra = set(cell["metadata"]) - {"tags", "mystnb", "jupyter"}
        if extra:
            yield f"cell {number}: metadata {sorted(extra)}"
    names = [cell.get("id") for cell in notebook["cells"]]
    if len(set(names)) != len(names) or None in names:
        yield "cells without an id, or with the same"


def no_paths(notebook):
    """Nothing tells on whose machine the chapter was run."""
    pattern = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|Users|opt)/\w+")
    for number, source, cell in cells_of(notebook, "code"):
        for found in pattern.findall(source + printed(cell)):
            yield f"cell {number} names {found}"


def self_contained_html(notebook):
    """An output loads nothing from elsewhere."""
    pattern = r"(?:src|data-src)\s*=\s*[\"'](?:https?:)?//[^\"']+|@import"
    for number, _, cell in cells_of(notebook, "code"):
        for found in re.findall(pattern, printed(cell)):
            yield f"cell {number} loads {found}"


def small_file(notebook):
    """A notebook travels by git and opens on a phone."""
    size = len(json.dumps(notebook))
    if size > MAX_BYTES:
        yield f"{size} bytes, more than {MAX_BYTES}"


RULES = (
    executed_in_order,
    no_errors,
    outputs_present,
    figures_described,
    ignored_outputs_asserted,
    steady_outputs,
    precision_asked,
    shown_is_shipped,
    narrow_code,
    installs_only_in_setup,
    known_tags,
    plain_text,
    citations_resolve,
    one_title,
    exercises_answered,
    tidy_file,
    no_paths,
    self_contained_html,
    small_file,
)


def problems(notebook):
    """List what is wrong with a notebook: '[rule] sentence'."""
    return [
        f"[{rule.__name__}] {sentence}"
        for rule in RULES
        for sentence in rule(notebook)
    ]


def main(arguments):
    """Print the problems of each notebook; return 1 if there are any."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    paths = [Path(name) for name in arguments]
    status = 0
    for path in paths or sorted((ROOT / "chapters").glob("*.ipynb")):
        found = problems(json.loads(path.read_text("utf-8")))
        status |= bool(found)
        for sentence in found:
            print(f"{path.name}: {sentence}")
        if not found:
            print(f"{path.name}: in order")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
