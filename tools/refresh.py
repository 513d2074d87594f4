"""Run notebooks in place and store their outputs, the same way every time.

    python tools/refresh.py                    # every chapter
    python tools/refresh.py chapters/02_*.ipynb
    python tools/refresh.py --check            # would a refresh change a byte?

Two runs in a row leave the same bytes: no timings, no widget state, no
version numbers, streams joined. A notebook that fails is left as it was.
"""

import argparse
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNELSPEC = {
    "display_name": "Python 3 (ipykernel)",
    "language": "python",
    "name": "python3",
}
# What a cell may carry; editors and converters add more.
CELL_METADATA = {"tags", "mystnb", "jupyter"}


def tidy(notebook):
    """Remove from ``notebook`` all that changes from run to run, in place.

    Parameters
    ----------
    notebook : nbformat.NotebookNode
        Format 4; it leaves as 4.5 with an id on each cell.
    """
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata = type(notebook.metadata)(
        {"kernelspec": KERNELSPEC, "language_info": {"name": "python"}}
    )
    for number, cell in enumerate(notebook.cells):
        cell.setdefault("id", f"cell-{number}")
        for key in set(cell.metadata) - CELL_METADATA:
            del cell.metadata[key]
        for output in cell.get("outputs", []):
            _tidy_output(output)


def _tidy_output(output):
    """Drop the view of a widget: its state is not stored, its id random."""
    data = output.get("data", {})
    data.pop("application/vnd.jupyter.widget-view+json", None)
    if "application/vnd.jupyter.widget-view+json" in output.get(
        "metadata", {}
    ):
        del output.metadata["application/vnd.jupyter.widget-view+json"]


def number_cells(notebook):
    """Count the code cells 1..n; a cell without code keeps no number."""
    count = 0
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        if not cell.source.strip():
            cell.execution_count = None
            continue
        count += 1
        cell.execution_count = count
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count


def execute(notebook, folder, timeout, progress):
    """Run all cells in a fresh kernel whose working directory is ``folder``.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        When a cell raises and does not carry the tag ``raises-exception``.
    nbclient.exceptions.CellTimeoutError
        When one cell takes longer than ``timeout`` seconds.
    """
    from nbclient import NotebookClient

    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        # An Output widget fails without it; `tidy` drops the state again.
        store_widget_state=True,
        resources={"metadata": {"path": str(folder)}},
        on_cell_executed=lambda cell, cell_index, **_: progress(cell_index),
    )
    client.execute()
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            # A figure whose drawing fails does not stop the kernel.
            if output.output_type == "error" and (
                "raises-exception" not in cell.metadata.get("tags", [])
            ):
                raise RuntimeError(
                    f"cell {number} stored an error: {output.ename}: "
                    f"{output.evalue}"
                )


def write(path, text):
    """Replace ``path`` in one step, so that a crash leaves the old file."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)


def refresh(path, timeout, check=False, quiet=False):
    """Run one notebook and store it; return True when its bytes changed."""
    import nbformat

    before = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(before, as_version=4)
    tidy(notebook)
    total = len(notebook.cells)
    start = time.monotonic()

    def progress(done):
        if not quiet and sys.stderr.isatty():
            seconds = time.monotonic() - start
            line = f"\r{path.name}: cell {done + 1}/{total}, {seconds:.0f} s"
            print(line, end="", file=sys.stderr, flush=True)

    execute(notebook, path.parent.resolve(), timeout, progress)
    tidy(notebook)
    number_cells(notebook)
    after = nbformat.writes(notebook, version=4).rstrip("\n") + "\n"
    changed = after != before
    if changed and not check:
        write(path, after)
    if not quiet:
        note = "changed" if changed else "unchanged"
        seconds = time.monotonic() - start
        print(f"\r{path.name}: {note}, {seconds:.0f} s", flush=True)
    return changed


def prepare_kernels():
    """Set what kernels inherit, as conftest.py does: no network is asked."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("DBLM_QUIET", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main(argv=None):
    """Refresh the notebooks named on the command line; return the status."""
    parser = argparse.ArgumentParser(
        prog="tools/refresh.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "notebooks",
        nargs="*",
        type=Path,
        help="notebooks to run (default: chapters/*.ipynb)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit 1 if a refresh would change a notebook",
    )
    parser.add_argument(
        "--timeout",
        type=int,
        default=300,
        metavar="SECONDS",
        help="give up on a cell after this time (default: 300)",
    )
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="print failures only"
    )
    options = parser.parse_args(argv)
    prepare_kernels()
    paths = options.notebooks or sorted((ROOT / "chapters").glob("*.ipynb"))
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        parser.error(f"no such notebook: {', '.join(missing)}")
    return _refresh_all(paths, options)


def _refresh_all(paths, options):
    """Refresh each path, go on after a failure, and return the status."""
    from nbclient.exceptions import (
        CellExecutionError,
        CellTimeoutError,
        DeadKernelError,
    )

    failures = (
        CellExecutionError,
        CellTimeoutError,
        DeadKernelError,
        RuntimeError,
    )
    failed, changed = [], []
    for path in paths:
        try:
            if refresh(path, options.timeout, options.check, options.quiet):
                changed.append(path.name)
        except failures as err:
            failed.append(path.name)
            print(f"\n{path.name}: left as it was\n{err}", file=sys.stderr)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    if options.check and changed:
        print(f"would change: {', '.join(changed)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
