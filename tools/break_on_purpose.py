"""Break the library on purpose and see which test notices.

    python tools/break_on_purpose.py            run all breaks, write the table
    python tools/break_on_purpose.py --list     what would be broken
    python tools/break_on_purpose.py --only 3   one of them, table untouched

Each break changes one place of `dblm_lib` in a copy of the repository and
runs the tests that should notice. What failed first is written into
`chapters/testing.md`, between the two marks. A break that nothing notices
ends this program with exit code 1.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import marked

ROOT = Path(__file__).resolve().parents[1]
TABLE = "breaks"


@dataclass(frozen=True)
class Break:
    """One deliberate fault: what to change where, and who should notice."""

    meaning: str
    file: str
    old: str
    new: str
    targets: tuple


BREAKS = (
    Break(
        "the posterior forgets how much signal an earlier time still has",
        "dblm_lib/schedules.py",
        "from_x0 = a_s.sqrt() * (1 - ratio) / (1 - a_t)",
        "from_x0 = (1 - ratio) / (1 - a_t)",
        ("tests/test_book_notebooks.py", "tests/test_schedules.py"),
    ),
    Break(
        "Euclidean rounding forgets that rows have different lengths",
        "dblm_lib/noising.py",
        "(table**2).sum(dim=1) / 2",
        "0 * (table**2).sum(dim=1) / 2",
        ("chapters/02_embedding_noising.ipynb",),
    ),
    Break(
        "the network is told the time at a tenth of its scale",
        "dblm_lib/denoiser.py",
        "1000 * t[..., None]",
        "100 * t[..., None]",
        ("chapters/03_gpt2_denoising.ipynb", "tests/test_book_notebooks.py"),
    ),
    Break(
        "every training run draws its batches from other seeds",
        "dblm_lib/training/loop.py",
        "seed = config.seed * 1_000_003 + step",
        "seed = 7 + config.seed * 1_000_003 + step",
        ("chapters/04_training_with_mse.ipynb",),
    ),
    Break(
        "the reverse process stops just short of time 0",
        "dblm_lib/reverse.py",
        "torch.linspace(1, 0, num_steps + 1",
        "torch.linspace(1, 0.02, num_steps + 1",
        ("chapters/05_decoding.ipynb", "tests/test_decoding.py"),
    ),
)


def copy_with(fault, folder):
    """Copy the tracked files into a folder and put the fault in."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    file = folder / fault.file
    source = file.read_text("utf-8")
    if source.count(fault.old) != 1:
        raise SystemExit(
            f"{fault.file} holds {fault.old!r} {source.count(fault.old)} "
            "times instead of once: mend the list of breaks"
        )
    file.write_text(source.replace(fault.old, fault.new), "utf-8")


def first_failure(fault):
    """Run the tests on a broken copy; return the first that fails."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_with(fault, folder)
        # The copy comes before an installed library, in kernels too.
        paths = os.pathsep.join([str(folder), str(folder / "tools")])
        command = "-m pytest --nbval -q -rf --tb=no -p no:cacheprovider"
        run = subprocess.run(
            [sys.executable, *command.split(), *fault.targets],
            check=False,  # a failure is what we look for
            cwd=folder,
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
        )
    failed = re.findall(r"^FAILED (.*?)(?: - .*)?$", run.stdout, re.MULTILINE)
    if run.returncode not in (0, 1):
        raise SystemExit(f"the tests did not run:\n{run.stdout}{run.stderr}")
    return failed


def readable(test):
    """The name of a test as the page gives it."""
    path, _, name = test.partition("::")
    return f"`{Path(path).name}`, `{name}`" if name else f"`{path}`"


def table(results):
    """The page's table of breaks and of what noticed them."""
    header = ["what was broken", "where", "first to notice"]
    rows = [
        [fault.meaning, f"`{fault.file}`", readable(failed[0]), len(failed)]
        for fault, failed in results
    ]
    return marked.table([*header, "tests that failed"], rows)


def main(arguments=None):
    """Run the breaks; return an exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--only", type=int, metavar="N")
    options = parser.parse_args(arguments)
    chosen = (
        BREAKS[options.only - 1 : options.only] if options.only else BREAKS
    )
    if options.list:
        for number, fault in enumerate(BREAKS, 1):
            print(f"{number}. {fault.file}: {fault.meaning}")
        return 0
    results = []
    for fault in chosen:
        failed = first_failure(fault)
        noticed = readable(failed[0]) if failed else "NOTHING NOTICED"
        print(f"{fault.file}: {fault.meaning}\n    {noticed}", flush=True)
        results.append((fault, failed))
    if not all(failed for _, failed in results):
        return 1
    if not options.only:
        marked.write(TABLE, table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
