"""The floors of the library: who may import whom.

    python tools/floors.py            the floors, and what each module imports
    python tools/floors.py --check    exit 1 if an import goes up, or round

A module stands on a floor and imports from lower ones only; within a floor
only from those named before it in `HELPERS`. What stands beside the floors
knows nothing of ours but the book's style of figures.
"""

import argparse
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "dblm_lib"
FLOORS = {
    0: (
        *("resources", "checks", "schedules", "storage", "tales", "text"),
        *("noising", "masking", "processes", "muon", "variety"),
        "conditionals",
    ),
    1: (
        *("posterior", "reverse", "prompts", "decoding"),
        *("unmasking", "renoising"),
    ),
    2: (
        *("autoregressive", "configuration", "denoiser", "levels", "masked"),
        "writing",
    ),
    3: ("training", "metrics", "likelihood", "popular"),
    4: (
        *("ablation", "diagnostics", "ladder", "repair", "distillation"),
        *("evaluation", "speed"),
    ),
    5: ("cli",),
}
BESIDE = ("plots", "drawings", "widgets", "exercises")
# What others of their own floor may import: parts of one thing.
HELPERS = {
    0: ("resources", "checks", "schedules", "tales", "noising", "masking"),
    1: ("posterior", "reverse", "prompts", "unmasking"),
    2: ("configuration", "denoiser", "masked"),
    4: ("ablation", "ladder", "evaluation"),
    None: ("plots",),  # beside the floors
}
# Tables are longer than code should be.
LONG = {"tales.py": "the tables of the grammar"}
MOST_LINES = 700


def files():
    """Path -> name of its module, of all code of the library."""
    return {
        path: path.relative_to(LIBRARY).parts[0].removesuffix(".py")
        for path in sorted(LIBRARY.rglob("*.py"))
    }


def imports():
    """Module -> the modules of ours that it imports anywhere, itself not."""
    found = {name: set() for name in files().values()}
    for path, name in files().items():
        inside = len(path.relative_to(LIBRARY).parts)
        named = imported(path.read_text("utf-8"), inside)
        found[name] |= {n for n in named if n in found and n != name}
    return found


def imported(source, level=1):
    """The modules of ours that a module imports, in whichever form.

    Parameters
    ----------
    source : str
    level : int
        How many dots lead from it to the package: 2 in a folder of it.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level == level:
                parts = module.split(".")
            elif not node.level and module.split(".")[0] == "dblm_lib":
                parts = module.split(".")[1:] or [""]
            else:
                continue
            names |= {parts[0]} if parts[0] else {a.name for a in node.names}
        elif isinstance(node, ast.Import):
            parts = [alias.name.split(".") for alias in node.names]
            names |= {p[1] for p in parts if p[0] == "dblm_lib" and p[1:]}
    return {name for name in names if not name.startswith("__")}


def floor_of(name):
    """The floor of a module; None beside them."""
    for floor, names in FLOORS.items():
        if name in names:
            return floor
    return None


def broken_rules():
    """Yield a sentence for each import that is not allowed."""
    found = imports()
    known = {name for names in FLOORS.values() for name in names}
    for name, others in found.items():
        if name in ("__init__", "__main__"):
            continue
        if name not in known | set(BESIDE):
            yield f"{name} has no floor: give it one in tools/floors.py"
            continue
        here = floor_of(name)
        for other in sorted(others):
            there = floor_of(other)
            if here is None and there is None:
                if not _may_help(here, other, name):
                    yield f"{name} stands beside the floors with {other}"
            elif here is None:
                yield f"{name} stands beside the floors and imports {other}"
            elif there is None or there > here:
                yield f"{name} (floor {here}) imports {other} above it"
            elif there == here and not _may_help(here, other, name):
                yield f"{name} imports {other} of its own floor {here}"


def _may_help(floor, other, name):
    helpers = HELPERS.get(floor, ())
    if other not in helpers:
        return False
    # A helper may lean on those before it: never in a circle.
    return name not in helpers or helpers.index(other) < helpers.index(name)


def long_files():
    """Yield (lines, path) of each file that is too long without a reason."""
    for path in files():
        lines = len(path.read_text("utf-8").splitlines())
        if lines > MOST_LINES and path.name not in LONG:
            yield lines, path.relative_to(ROOT).as_posix()


def main(arguments=None):
    """Print the floors; return 1 if a rule is broken."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--check", action="store_true", help="print broken rules only"
    )
    options = parser.parse_args(arguments)
    faults = [
        *broken_rules(),
        *(f"{path} has {lines} lines" for lines, path in long_files()),
    ]
    if not options.check:
        _print_floors()
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def _print_floors():
    found = imports()
    for floor in sorted(FLOORS, reverse=True):
        for name in FLOORS[floor]:
            if name in found:
                others = ", ".join(sorted(found[name])) or "nothing of ours"
                print(f"{floor}  {name:16} <- {others}")
    for name in BESIDE:
        others = ", ".join(sorted(found.get(name, ()))) or "nothing of ours"
        print(f"-  {name:16} <- {others}")
    lines, path = max(
        (len(path.read_text("utf-8").splitlines()), path) for path in files()
    )
    print(f"longest file: {path.relative_to(ROOT)}, {lines} lines")


if __name__ == "__main__":
    sys.exit(main())
