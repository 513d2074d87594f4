"""Run chapters as a reader in Colab does: one notebook in an empty folder.

    python tools/reader_run.py chapters/01_*.ipynb
    python tools/reader_run.py --colab --wheel dist/dblm-0.1.0-*.whl NOTEBOOK

The kernel is this very Python, and must find the library by itself. With
``--colab`` (for Colab's runtime image) the library must *not* be there yet:
only the set-up cell may install it, and it may change no other package.
``--wheel`` lets that cell install a wheel in the place of the release.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RELEASE = re.compile(r"dblm @ git\+[^\"'\s]+")
PROBE = "import dblm_lib\nprint(dblm_lib.__file__)"
VERSIONS = """
import json
from importlib.metadata import distributions
print(json.dumps({d.name.lower(): d.version for d in distributions()}))
"""


def python(code, folder):
    """Run ``code`` in a new Python in ``folder``; return what it prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout


def is_installed(folder):
    """Say whether the kernel would find the library without set-up."""
    code = "import importlib.util as u; print(u.find_spec('dblm_lib'))"
    return python(code, folder).strip() != "None"


def prepare(path, wheel=None, colab=False, cells=None):
    """Read a notebook, add the probe, and point its set-up to ``wheel``.

    Parameters
    ----------
    path : pathlib.Path
        The chapter.
    wheel : pathlib.Path, optional
        Takes the place of the release that the set-up cell installs.
    colab : bool
        Whether the kernel should look like Colab's to the set-up cell.
    cells : int, optional
        Keep this many code cells only, counted from the top.

    Raises
    ------
    ValueError
        When no cell installs the library.
    """
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    code = [c for c in notebook.cells if c.cell_type == "code"][:cells]
    if not any(RELEASE.search(cell.source) for cell in code):
        raise ValueError(f"{path.name}: no cell installs 'dblm @ git+...'")
    if wheel is not None:
        target = f"dblm @ {wheel.resolve().as_uri()}"
        for cell in code:
            cell.source = RELEASE.sub(lambda _: target, cell.source)
    if colab:  # Colab's own kernel has done this before the first cell
        code.insert(0, nbformat.v4.new_code_cell("import google.colab"))
    notebook.cells = [*code, nbformat.v4.new_code_cell(PROBE)]
    return notebook


def run(path, wheel=None, colab=False, cells=None, timeout=600):
    """Run one chapter in an empty folder; return where the library lay."""
    from nbclient import NotebookClient

    notebook = prepare(path, wheel, colab, cells)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            notebook,
            timeout=timeout,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
        ).execute()
    return notebook.cells[-1].outputs[0].text.strip()


def changed_packages(before, after):
    """List what became different between two ``{name: version}``."""
    names = sorted(before.keys() | after.keys())
    return [
        f"{name} {before.get(name, 'absent')} -> {after.get(name, 'absent')}"
        for name in names
        if name != "dblm" and before.get(name) != after.get(name)
    ]


def run_in_colab(path, options, folder):
    """Run one chapter where only its set-up cell may install the library."""
    if is_installed(folder):
        raise ValueError(
            "the library is installed already, so that the set-up cell would "
            "prove nothing; run `pip uninstall dblm` first"
        )
    before = json.loads(python(VERSIONS, folder))
    try:
        where = run(path, options.wheel, True, options.cells, options.timeout)
        after = json.loads(python(VERSIONS, folder))
    finally:  # the next chapter starts without it
        pip = [sys.executable, "-m", "pip", "uninstall", "-q", "-y", "dblm"]
        subprocess.run(pip, cwd=folder, check=True)
    changed = changed_packages(before, after)
    if changed:
        raise ValueError(f"set-up changed packages: {'; '.join(changed)}")
    return where


def main(argv=None):
    """Run the notebooks named on the command line; return the status."""
    parser = argparse.ArgumentParser(
        prog="tools/reader_run.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("notebooks", nargs="+", type=Path, metavar="NOTEBOOK")
    add("--wheel", type=Path, help="what set-up installs, not the release")
    add("--colab", action="store_true", help="let only set-up install it")
    add("--cells", type=int, help="run only the first CELLS code cells")
    add("--timeout", type=int, default=600, help="seconds a cell may take")
    options = parser.parse_args(argv)
    from nbclient.exceptions import CellControlSignal, DeadKernelError

    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for path in options.notebooks:
            start = time.monotonic()
            try:
                if options.colab:
                    where = run_in_colab(path, options, folder)
                else:
                    where = run(
                        path,
                        options.wheel,
                        cells=options.cells,
                        timeout=options.timeout,
                    )
            except (CellControlSignal, DeadKernelError, ValueError) as error:
                failures += 1
                print(f"{path.name}: failed\n{error}", file=sys.stderr)
            else:
                seconds = time.monotonic() - start
                print(f"{path.name}: {seconds:.0f} s, library in {where}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
