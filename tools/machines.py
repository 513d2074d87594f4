"""Run the chapters as other machines would, and say which cells differ.

    python tools/machines.py                       every machine, all chapters
    python tools/machines.py --list                the machines
    python tools/machines.py --only laptop,1-thread chapters/07*.ipynb
    python tools/machines.py --python old/bin/python --python new/bin/python
    python tools/machines.py --page                and write the page's table

A machine is a setting of the environment that makes the libraries compute as
they would on another processor, with another number of threads, or another
Python with other versions. Each chapter is run by `pytest --nbval`, which
compares what comes out with what is stored. The table at the end says for
each machine and chapter whether all cells agreed, or how many did not; above
it, each cell that differs is shown as stored and as computed.

What was run is kept in `_build/machines.json` and is not run again while
library, notebook and machine are the same (`--again` does). With `--page`
what was found is recorded in `tests/machines.json`, for the chapters that are
named, and the table in `chapters/testing.md` is written anew. The record also
says how far each numeric comparison in an assertion was from failing (see
`--room`); a run without `--page` is held against it.
"""

import argparse
import ast
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import chapter_rules
import machine_kernel
import marked

from dblm_lib import storage

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "_build" / "machines.json"
RECORD = ROOT / "tests" / "machines.json"
PAGE = marked.PAGE
TABLE = "machines"
LEAST_ROOM = 0.2
# Settings of the caller that would make every machine another one.
SETTINGS = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "MKL_CBWR",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    machine_kernel.BF16,
    machine_kernel.ROUGH,
)


@dataclass(frozen=True)
class Machine:
    """A way to run the chapters."""

    name: str
    meaning: str
    settings: dict = field(default_factory=dict)
    python: str = sys.executable

    def environment(self, folder):
        """The variables that its kernels get; its start-up is in folder."""
        env = {k: v for k, v in os.environ.items() if k not in SETTINGS}
        env.update(self.settings)
        paths = [str(ROOT), *env.get("PYTHONPATH", "").split(os.pathsep)]
        env["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        env["IPYTHONDIR"] = str(folder)
        env[machine_kernel.RECORD] = str(Path(folder) / "record.json")
        return env


def _threads(count, meaning, **settings):
    word = "thread" if count == 1 else "threads"
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return Machine(
        f"{count}-{word}",
        f"{count} {word}, {meaning}",
        dict.fromkeys(names, str(count)) | settings,
    )


def _set(name, meaning, **settings):
    return Machine(name, meaning, settings)


MACHINES = (
    Machine("here", "as the machine is"),
    _set(
        "old",
        "no vector instructions in PyTorch, SSE 4.1 in oneDNN",
        ATEN_CPU_CAPABILITY="default",
        ONEDNN_MAX_CPU_ISA="SSE41",
    ),
    _set("mkl", "MKL as on any processor", MKL_CBWR="COMPATIBLE"),
    _set(
        "laptop",
        "AVX2 in PyTorch and oneDNN",
        ATEN_CPU_CAPABILITY="avx2",
        ONEDNN_MAX_CPU_ISA="AVX2",
    ),
    _threads(1, "no bf16 in hardware", **{machine_kernel.BF16: "off"}),
    _threads(
        2,
        "sums ten times less exact than on any other",
        **{machine_kernel.ROUGH: "1e-6"},
    ),
    _threads(4, "bf16 in hardware", **{machine_kernel.BF16: "on"}),
)
ANSI = re.compile(r"(?:#x1B|\x1b)\[[\d;]*m")  # colours, as XML has them, too
VERSIONS = """
import importlib.metadata as m, json
names = "torch", "transformers", "numpy", "matplotlib"
print(json.dumps({n: m.version(n).partition("+")[0] for n in names}))
"""


def of_python(path):
    """Describe another Python by the versions that it brings."""
    path = os.path.abspath(path)  # a symbolic link is the environment
    try:
        asked = subprocess.run(
            [path, "-c", VERSIONS], check=False, capture_output=True, text=True
        )
    except OSError as error:
        raise SystemExit(f"{path} does not run: {error}") from error
    if asked.returncode:
        raise SystemExit(
            f"{path} does not run, or lacks a library:\n{asked.stderr[-500:]}"
        )
    found = json.loads(asked.stdout)
    meaning = ", ".join(f"{name} {version}" for name, version in found.items())
    return Machine(f"torch-{found['torch']}", meaning, python=path)


# --- one chapter on one machine ---------------------------------------------


def prepare(folder):
    """Write the start-up file of the kernels."""
    start = Path(folder) / "profile_default" / "startup"
    start.mkdir(parents=True)
    (start / "00-machine.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT / 'tools')!r})\n"
        "import machine_kernel\n"
        "sys.path.pop(0)\n"
        "machine_kernel.begin(get_ipython())\n"
        "del machine_kernel, sys\n",
        "utf-8",
    )


def run(machine, chapter):
    """Run a chapter; return what differs and the room of its assertions.

    Returns
    -------
    dict
        ``seconds``; ``differ``: {cell: what pytest said}; ``distances``:
        {comparison: its distance to failing}.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        report = folder / "report.xml"
        command = [
            *(machine.python, "-m", "pytest", "--nbval", str(chapter)),
            *("-q", "-p", "no:cacheprovider", f"--junitxml={report}"),
            *("-o", "junit_logging=no"),
        ]
        began = time.monotonic()
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=machine.environment(folder),
            check=False,
            capture_output=True,
            text=True,
        )
        seconds = time.monotonic() - began
        if done.returncode not in (0, 1) or not report.is_file():
            raise SystemExit(
                f"pytest did not run:\n{done.stdout}{done.stderr}"
            )
        record = folder / "record.json"
        distances = (
            json.loads(record.read_text("utf-8")) if record.is_file() else {}
        )
        return {
            "seconds": round(seconds, 1),
            "differ": differing(report.read_text("utf-8")),
            "distances": distances,
        }


def differing(report):
    """Return {cell: text} of the failures in a report of pytest's."""
    found = {}
    for case in ET.fromstring(report).iter("testcase"):
        for problem in [*case.findall("failure"), *case.findall("error")]:
            text = ANSI.sub("", problem.text or "")
            name = re.sub(r".*?(Cell \d+)$", r"\1", case.get("name", "?"))
            found[name] = text.strip()
    return found


def clipped(text, lines=24):
    """The part of a failure that says what was stored and what came out."""
    start = re.search(r"(?m)^.*(Reference output|Traceback:)", text)
    text = text[start.start() :] if start else text
    rows = [row.rstrip()[:160] for row in text.splitlines() if row.strip()]
    more = [f"... {len(rows) - lines} more lines"] if len(rows) > lines else []
    return "\n".join(f"    {row}" for row in [*rows[:lines], *more])


# --- what was run already ---------------------------------------------------


def key(machine, chapter):
    """Identify a run by all that its outcome should depend on."""
    digest = hashlib.sha256()
    files = sorted((ROOT / "dblm_lib").rglob("*.py"))
    files += [ROOT / "conftest.py", ROOT / "nbval_sanitize.cfg", chapter]
    files += [ROOT / "data" / "MANIFEST.json"]
    for file in files:
        digest.update(file.read_bytes())
    digest.update(repr((machine.settings, machine.meaning)).encode())
    return f"{machine.name}, {chapter.stem}, {digest.hexdigest()[:16]}"


def kept():
    """Return the runs that were kept: {key: what `run` returned}."""
    try:
        return json.loads(KEPT.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def keep(name, result):
    """Add a run to those kept, in one step."""
    storage.write_text(KEPT, json.dumps({**kept(), name: result}))


# --- all of them ------------------------------------------------------------


def run_all(machines, chapters, again=False, jobs=1):
    """Run chapters on machines; return {(machine, chapter): result}."""
    results, total = {}, len(machines) * len(chapters)
    began = time.monotonic()

    def one(pair):
        machine, chapter = pair
        name = key(machine, chapter)
        result = None if again else kept().get(name)
        return (name, "kept", result) if result else (name, "", run(*pair))

    pairs = [(m, c) for m in machines for c in chapters]
    with ThreadPoolExecutor(jobs) as pool:
        for pair, (name, how, result) in zip(pairs, pool.map(one, pairs)):
            machine, chapter = pair
            if not how:
                keep(name, result)
                how = f"{result['seconds']:.0f} s"
            results[machine.name, chapter.stem] = result
            cells = result["differ"]
            said = f"{len(cells)} cells differ" if cells else "the same"
            minutes = (time.monotonic() - began) / 60
            print(
                f"[{len(results)}/{total}, {minutes:.0f} min] {machine.name}, "
                f"{chapter.stem}: {said} ({how})",
                flush=True,
            )
            for cell, text in cells.items():
                print(f"  {chapter.name}, {cell}\n{clipped(text)}")
    return results


def outcomes(machines, results):
    """How many cells differ: {machine: {"setting": ..., "differ": ...}}."""
    found = {}
    for machine in machines:
        setting = " ".join(
            f"`{k}={v}`"
            for k, v in machine.settings.items()
            if not k.startswith("MACHINES_")
        )
        counts = {
            stem: len(result["differ"])
            for (name, stem), result in results.items()
            if name == machine.name
        }
        found[machine.meaning] = {"setting": setting, "differ": counts}
    return found


def table(found):
    """Return the table of what `outcomes` found, in Markdown."""
    stems = sorted({stem for row in found.values() for stem in row["differ"]})
    rows = []
    for meaning, row in found.items():
        counts = [row["differ"].get(stem) for stem in stems]
        cells = [
            "–" if n is None else f"{n} differ" if n else "same"
            for n in counts
        ]
        rows.append([meaning, row["setting"] or "–", *cells])
    numbers = [
        str(int(stem[:2])) if stem[:2].isdigit() else "appendix"
        for stem in stems
    ]
    return marked.table(["machine", "setting", *numbers], rows)


def room(chapters, results, before=None):
    """How much of its distance to failing each comparison keeps.

    The room of a comparison is its smallest distance to failing on any
    machine, divided by the median one. 1: it is the same everywhere; 0: it
    nearly failed somewhere. What holds with equality on all machines has
    distance 0 everywhere, and room 1.

    Parameters
    ----------
    chapters : list of paths
    results : dict
        From `run_all`.
    before : dict, optional
        What this function returned for many machines. Its distances then
        take the place of the medians, which one machine does not have.

    Returns
    -------
    dict
        {chapter: {comparison: {"distance": median, "room": share}}}
    """
    found = {}
    for chapter in chapters:
        runs = [
            result["distances"]
            for (_, stem), result in results.items()
            if stem == chapter.stem
        ]
        known = (before or {}).get(chapter.stem, {})
        found[chapter.stem] = {
            name: _room(
                [one[name] for one in runs if name in one],
                known.get(name, {}).get("distance"),
            )
            for name in sorted({name for one in runs for name in one})
        }
    return found


def _room(distances, usual=None):
    if usual is None:
        usual = statistics.median(distances)
    share = min(distances) / usual if usual else float(not any(distances))
    return {"distance": float(f"{usual:.3g}"), "room": round(share, 3)}


def narrow(found):
    """List the comparisons with too little room, as sentences."""
    return [
        f"{chapter}: {name}: distance {row['distance']}, room {row['room']}"
        for chapter, rows in found.items()
        for name, row in rows.items()
        if row["room"] < LEAST_ROOM
    ]


def recorded():
    """Return what was stored last: ``machines`` and ``assertions``."""
    if RECORD.is_file():
        return json.loads(RECORD.read_text("utf-8"))
    return {"machines": {}, "assertions": {}}


def store(found, assertions):
    """Put outcomes and room of some chapters into the record and the page.

    What was recorded of other chapters stays; machines that were not run
    now, and chapters that are gone, are dropped.
    """
    before, here = recorded(), {p.stem for p in every_chapter()}
    for meaning, row in found.items():
        old = before["machines"].get(meaning, {}).get("differ", {})
        both = {**old, **row["differ"]}
        row["differ"] = {stem: both[stem] for stem in sorted(here & {*both})}
    both = {**before["assertions"], **assertions}
    kept_here = {stem: both[stem] for stem in sorted(here & {*both})}
    record = {"machines": found, "assertions": kept_here}
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    storage.write_text(RECORD, text)
    marked.write(TABLE, table(found), PAGE)


def every_chapter():
    """List the notebooks of the book."""
    return sorted((ROOT / "chapters").glob("*.ipynb"))


def asserted(notebook):
    """Return the names of all numeric comparisons in a notebook's asserts.

    Those of a live figure are left out: they wait for a reader.
    """
    found = set()
    for _, source, cell in chapter_rules.cells_of(notebook, "code"):
        if "live" in chapter_rules.tags_of(cell):
            continue
        for node in ast.walk(chapter_rules.tree_of(source)):
            if isinstance(node, (ast.Assert, ast.Expr)):
                found |= {
                    machine_kernel.named(node, inner)
                    for inner, _, _ in machine_kernel.comparisons(node)
                }
    return found


# --- the command ------------------------------------------------------------


def parser():
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="tools/machines.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("chapters", nargs="*", type=Path)
    made.add_argument(
        "--list", action="store_true", help="print the machines and stop"
    )
    made.add_argument(
        "--only", metavar="NAMES", help="some of the machines, with commas"
    )
    made.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="PATH",
        help="another machine: a Python with other versions (repeatable)",
    )
    made.add_argument(
        "--page",
        action="store_true",
        help="write the record and the table on the page",
    )
    made.add_argument(
        "--room",
        action="store_true",
        help="print how far each assertion was from failing",
    )
    made.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="chapters that run side by side (default: 1)",
    )
    made.add_argument(
        "--again", action="store_true", help="run what was run already, too"
    )
    return made


def chosen(options):
    """Return the machines that the command line names."""
    machines = list(MACHINES)
    if options.only is not None:
        names = [name for name in options.only.split(",") if name]
        known = {machine.name: machine for machine in MACHINES}
        odd = sorted(set(names) - set(known))
        if odd:
            raise SystemExit(
                f"unknown machine: {', '.join(odd)}; there are "
                f"{', '.join(known)}"
            )
        machines = [known[name] for name in names]
    return machines + [of_python(path) for path in options.python]


def main(arguments=None):
    """Run, print the table; return 1 if a cell differs, else 0."""
    options = parser().parse_args(arguments)
    machines = chosen(options)
    if options.list:
        for machine in machines:
            print(f"{machine.name:12} {machine.meaning}")
        return 0
    chapters = [p.resolve() for p in options.chapters] or every_chapter()
    missing = [str(path) for path in chapters if not path.is_file()]
    if missing:
        raise SystemExit(f"no such notebook: {', '.join(missing)}")
    if options.page and options.only is not None:
        raise SystemExit("--page is for all machines: leave --only out")
    results = run_all(machines, chapters, options.again, options.jobs)
    found = outcomes(machines, results)
    print("\n" + table(found))
    before = None if options.page else recorded()["assertions"]
    assertions = room(chapters, results, before)
    if options.room:
        for chapter, rows in assertions.items():
            for name, row in sorted(rows.items(), key=lambda r: r[1]["room"]):
                print(
                    f"{chapter} {row['room']:6.2f} {row['distance']:9} {name}"
                )
    if options.page:
        store(found, assertions)
    tight = narrow(assertions)
    for sentence in tight:
        print(f"too little room: {sentence}")
    return int(bool(tight) or any(r["differ"] for r in results.values()))


if __name__ == "__main__":
    sys.exit(main())
