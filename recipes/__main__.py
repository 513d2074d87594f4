"""Make everything in data/ again: text, tokenizer, checkpoints, manifest.

    python -m recipes --list               what there is, and how long it took
    python -m recipes                      all of it, in order
    python -m recipes tokenizer            one artefact
    python -m recipes --out /tmp/data      somewhere else
    python -m recipes ladder --jobs 8      runs side by side

A recipe that was stopped goes on where it was, given the same command. It
works in _build/training/NAME; when the artefact is whole it is put in place,
and MANIFEST.json records the command, the seconds it took, what was measured,
and the sha256 of every file.

Nothing is deleted. What stood in an artefact's place is moved to
_build/replaced, and only if MANIFEST.json lists all of it: a file of your own
there, or a changed one, is a reason not to begin. (`make clean` empties
_build, unfinished trainings included.)
"""

import argparse
import json
import math
import os
import shlex
import sys
import time
from pathlib import Path

from dblm_lib import resources, storage

from . import PLACES, load, placing


def make(name, out, jobs=1):
    """Make one artefact, or go on; put it into ``out``.

    Parameters
    ----------
    name : str
        One of `PLACES`.
    out : path
        The data folder.
    jobs : int
        Processes side by side.

    Returns
    -------
    dict
        What the manifest now says of it.

    Raises
    ------
    resources.DataError
        If something is in the way that no recipe put there.
    BlockingIOError
        If another process is making it.
    OSError
        If it cannot be written.
    """
    out = Path(out).resolve()
    work = placing.BUILD / "training" / name
    made = work / "made"
    with storage.lock(work):
        owner = placing.own(work, {"recipe": name, "out": str(out)})
        storage.sweep(work, owner)
        if storage.owner_of(made) != owner:
            if os.path.lexists(made):
                raise resources.DataError(
                    f"{made} is not this recipe's: move it elsewhere"
                )
            placing.check(out, name)
            with storage.writing(made, owner) as draft:
                record = _follow(name, draft, out, work, jobs)
                text = json.dumps(record, indent=1) + "\n"
                storage.write_text(draft / placing.RECORD, text)
        storage.verify(made, owner)
        storage.check_ours(made, owner)  # nobody has added anything
        record = json.loads((made / placing.RECORD).read_text("utf-8"))
        with storage.lock(placing.BUILD / "placing"):
            placing.put(made, out, name, record)
    placing.aside(work, out)
    return record


def _follow(name, draft, out, work, jobs):
    """Run a recipe; say what is to be recorded."""
    start = time.perf_counter()
    measured = load(name).make(draft, out, work, jobs)
    seconds = math.ceil(time.perf_counter() - start)
    # Runs that were kept from an earlier call took their time, too.
    kept = ("seconds_of_training", "seconds_of_sampling")
    seconds = max(seconds, *(measured.get(part, 0) for part in kept))
    command = f"python -m recipes {name}"
    return {"command": command, "seconds": seconds, "metrics": measured}


def show(out):
    """Print all artefacts: place, seconds when last made, and state."""
    artifacts = placing.read_manifest(out)["artifacts"]
    print(f"{'artefact':20}{'place':34}{'seconds':>8}  in {out}")
    for name, place in PLACES.items():
        seconds = artifacts.get(name, {}).get("seconds", "-")
        begun = (placing.BUILD / "training" / name / "recipe.json").is_file()
        state = placing.state(out, name) + (
            ", unfinished run" if begun else ""
        )
        print(f"{name:20}{place:34}{seconds:>8}  {state}")


def parser():
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m recipes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="what to make: " + ", ".join(PLACES) + " (default: all)",
    )
    found.add_argument(
        "--list",
        action="store_true",
        help="make nothing: print each artefact's place, the seconds it took "
        "when it was last made, and whether its files are those listed",
    )
    found.add_argument(
        "--out",
        type=Path,
        default=placing.ROOT / "data",
        metavar="FOLDER",
        help="the data folder to fill (default: data); what a recipe builds "
        "on is taken from there if it is there, else from the book's",
    )
    found.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="processes side by side, for what consists of many runs; one "
        "GPU has room for some (default: 1)",
    )
    return found


def main(arguments=None):
    """Run the command; return its exit code."""
    command = parser()
    options = command.parse_args(arguments)
    for name in options.names:
        if name not in PLACES:
            command.error(f"unknown name {name!r}; known: {', '.join(PLACES)}")
    if options.jobs < 1:
        command.error(f"--jobs must be 1 or more; got {options.jobs}")
    out = options.out.expanduser()
    if out.exists() and not out.is_dir():
        command.error(f"--out must be a folder; {out} is a file")
    left = list(dict.fromkeys(options.names or PLACES))
    try:
        if options.list:
            show(out)
            return 0
        for name in left:  # before the hours, not behind them
            made = placing.BUILD / "training" / name / "made"
            placing.check(out, name, made if made.is_dir() else None)
        while left:
            print(f"{left[0]}: {load(left[0]).__doc__}", flush=True)
            print(json.dumps(make(left[0], out, options.jobs), indent=1))
            del left[0]
    except KeyboardInterrupt:
        again = ["python", "-m", "recipes", *left]
        if out != placing.ROOT / "data":
            again += ["--out", str(out)]
        if options.jobs > 1:
            again += ["--jobs", str(options.jobs)]
        print(f"\nstopped; go on with: {shlex.join(again)}", file=sys.stderr)
        return 130
    except (resources.DataError, OSError) as error:
        print(f"recipes: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
