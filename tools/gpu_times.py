"""Run the chapters on a machine with a GPU and write down their seconds.

    python tools/gpu_times.py                  # every chapter, one by one
    python tools/gpu_times.py --jobs 8 --out /tmp/gpu_times.json
    python tools/gpu_times.py --allow-cpu --out /tmp/t.json NOTEBOOK

The book prints what ``chapters/gpu_times.json`` holds: a run replaces the
whole file, so let the one that is committed be a run of all chapters. A
chapter that fails is listed there under ``failed``, without seconds, and
the exit status is 1; the tests refuse such a file. The kernel is this very
Python, and must find the library by itself. No notebook is written.
"""

import argparse
import datetime
import json
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

import refresh

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "chapters" / "gpu_times.json"
# Runs after the last cell, in the same kernel; its time is not counted.
PROBE = """
import json, sys
torch = sys.modules.get("torch")
gpu = torch is not None and torch.cuda.is_available()
peak = torch.cuda.max_memory_allocated() if gpu else 0
print(json.dumps({"prefix": sys.prefix, "peak": peak}))
"""


def run(path, timeout):
    """Run one chapter from its first cell to its last.

    Returns
    -------
    seconds : float
        Wall-clock time, the start of the kernel included.
    peak : int
        The most bytes that torch held on the GPU at once.
    """
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    last = len(notebook.cells)
    notebook.cells.append(nbformat.v4.new_code_cell(PROBE))
    start = end = time.monotonic()

    def progress(done):
        nonlocal end
        if done < last:
            end = time.monotonic()

    refresh.execute(notebook, path.parent.resolve(), timeout, progress)
    found = json.loads(
        "".join(o.text for o in notebook.cells[-1].outputs if _is_stdout(o))
    )
    if found["prefix"] != sys.prefix:
        raise RuntimeError(
            f"the kernel 'python3' is the Python of {found['prefix']}, "
            f"not of {sys.prefix}"
        )
    return end - start, found["peak"]


def _is_stdout(output):
    return output.output_type == "stream" and output.name == "stdout"


def reason(error):
    """Say in one line why a chapter failed."""
    if hasattr(error, "ename"):  # a cell raised; the rest is its traceback
        text = f"{error.ename}: {error.evalue}"
    else:
        text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def machine():
    """Name the GPU, the versions and the day."""
    import torch

    gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if gpu else "CPU",
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
    }


def run_all(paths, jobs, timeout):
    """Run the chapters, ``jobs`` at a time; go on after a failure.

    Returns
    -------
    dict
        Of each chapter its seconds, and whether it used the GPU and how
        many megabytes of it; or else why it failed.
    """
    seconds, used, megabytes, failed = {}, {}, {}, {}
    # A process each: kernels that are driven from the threads of one
    # process now and then stand still until the time limit of a cell.
    new = {"mp_context": get_context("spawn"), "max_tasks_per_child": 1}
    with ProcessPoolExecutor(jobs, **new) as pool:
        runs = {pool.submit(_timed, path, timeout): path for path in paths}
        for done in as_completed(runs):
            name = runs[done].stem
            took, peak, error = done.result()
            if error is None:
                seconds[name] = round(took, 1)
                used[name] = peak > 0
                megabytes[name] = round(peak / 1e6, 1)
            else:
                failed[name] = error
            print(f"{name}: {took:.1f} s, {error or 'ok'}", flush=True)
    return {
        "seconds": dict(sorted(seconds.items())),
        "used_gpu": dict(sorted(used.items())),
        "gpu_megabytes": dict(sorted(megabytes.items())),
        "failed": dict(sorted(failed.items())),
    }


def _timed(path, timeout):
    """Run one chapter; return its seconds, its bytes, and its error."""
    from nbclient.exceptions import CellControlSignal

    start = time.monotonic()
    try:
        return *run(path, timeout), None
    except (CellControlSignal, RuntimeError, ValueError, OSError) as error:
        return time.monotonic() - start, 0, reason(error)


def main(argv=None):
    """Run the notebooks named on the command line; return the status."""
    parser = argparse.ArgumentParser(
        prog="tools/gpu_times.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("notebooks", nargs="*", type=Path, metavar="NOTEBOOK")
    add("--out", type=Path, metavar="FILE", help=f"default: {OUT.name}")
    add("--jobs", type=int, default=1, help="notebooks side by side")
    add("--timeout", type=int, default=300, help="seconds a cell may take")
    add(
        "--allow-cpu",
        action="store_true",
        help="run without a GPU, to try this tool; needs --out",
    )
    options = parser.parse_args(argv)
    paths = options.notebooks or sorted((ROOT / "chapters").glob("*.ipynb"))
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        parser.error(f"no such notebook: {', '.join(missing)}")
    if options.jobs < 1:
        parser.error("--jobs must be 1 or more")
    if options.allow_cpu and options.out is None:
        parser.error("--allow-cpu needs --out: the book prints GPU times")
    import torch

    if not options.allow_cpu and not torch.cuda.is_available():
        parser.error(
            f"torch {torch.__version__} sees no CUDA device; run this on a "
            "machine with an NVIDIA GPU"
        )
    refresh.prepare_kernels()
    if options.jobs > 1:
        os.environ["OMP_NUM_THREADS"] = "2"
    record = {**machine(), "side_by_side": options.jobs}
    record |= run_all(paths, options.jobs, options.timeout)
    out = options.out or OUT
    refresh.write(out, json.dumps(record, indent=2) + "\n")
    print(f"{out}: {len(record['seconds'])} chapters on {record['device']}")
    if record["failed"]:
        print(f"failed: {', '.join(record['failed'])}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
