"""Make a bare ``pytest --nbval`` test everything, the same way everywhere.

Settings that would otherwise hide in a Makefile or a command line live here:
the clean-up of outputs before they are compared, the kernel, the offline
switch, and the refusal of notebooks that nbval would pass without looking.
"""

import os
import random
import signal

import pytest

# Kernels started by nbval inherit these.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DBLM_QUIET", "1")  # no progress bars in outputs
# Threads that spin while they wait starve each other on a busy machine:
# minutes instead of seconds. To be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_addoption(parser):
    """Add ``--shuffle-chapters SEED``: notebooks in a random order."""
    parser.addoption(
        "--shuffle-chapters",
        metavar="SEED",
        type=int,
        default=None,
        help="run the notebooks in the random order that SEED gives "
        "(the cells of each stay in order)",
    )


def pytest_configure(config):
    """Set what every run of the notebooks and property tests needs."""
    # A shell lets what it runs in the background ignore Ctrl-C, which some
    # tests press.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    options = config.option
    if getattr(options, "nbval", False):
        # A path in `addopts` would depend on the working directory.
        if not options.nbval_sanitize_with:
            rules = config.rootpath / "nbval_sanitize.cfg"
            options.nbval_sanitize_with = str(rules)
        if not options.nbval_kernel_name:
            options.nbval_current_env = True
    # xdist must not deal the cells of one notebook to several workers.
    if getattr(options, "dist", "no") in ("load", "worksteal"):
        options.dist = "loadfile"
    _load_hypothesis_profile()


def _load_hypothesis_profile():
    """Draw the same examples on every machine, however slow it is."""
    try:
        from hypothesis import HealthCheck, settings
    except ImportError:  # the property tests will say so themselves
        return
    settings.register_profile(
        "book",
        derandomize=True,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "book"))


def _cell(item):
    """Return the notebook cell behind a test item, or None."""
    if type(item).__module__.startswith("nbval"):
        return item.cell
    return None


def pytest_collection_modifyitems(config, items):
    """Run unit tests first; shuffle whole notebooks if asked to."""
    notebooks = {}
    others = []
    for item in items:
        if _cell(item) is None:
            others.append(item)
        else:
            notebooks.setdefault(item.path, []).append(item)
    order = list(notebooks)
    seed = config.getoption("--shuffle-chapters")
    if seed is not None:
        random.Random(seed).shuffle(order)
    items[:] = others + [it for path in order for it in notebooks[path]]


# nbval compares nothing in a cell that was never run, and skips on a tag or
# on a comment that a reader overlooks. Silence is not a pass.
def _never_compared(item):
    """Say why nbval would pass this cell unseen, or return None."""
    cell = item.cell
    if cell.source.strip() and cell.execution_count is None:
        return "was never run, so its outputs would not be compared"
    if item.options.get("skip"):
        return "is tagged to be skipped"
    tags = cell.metadata.get("tags", [])
    if not item.options["check"] and "nbval-ignore-output" not in tags:
        return "switches its comparison off by something else than a tag"
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item):
    """Fail a cell that nbval would pass without looking at it."""
    if _cell(item) is None or item.config.option.nbval_lax:
        return
    reason = _never_compared(item)
    if reason:
        where = f"{item.path.name}, code cell {item.cell_num}"
        pytest.fail(
            f"{where} {reason}. Run `make refresh` and commit the outputs.",
            pytrace=False,
        )


def _kind(item):
    """Say how the outputs of a notebook cell are checked."""
    if not item.options["check"]:
        return "ignored by tag"
    outputs = item.cell.outputs
    images = [o for o in outputs if "image/png" in o.get("data", {})]
    if not outputs:
        return "without output"
    return "pictures only" if len(images) == len(outputs) else "compared"


def pytest_terminal_summary(terminalreporter, config):
    """Count what was compared, so that nothing is left out silently."""
    kinds = getattr(config, "_book_cells", None)
    if kinds:
        counts = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
        terminalreporter.write_line(f"notebook cells: {counts}")


def pytest_collection_finish(session):
    """Remember how the collected cells will be checked."""
    kinds = dict.fromkeys(
        ["compared", "pictures only", "without output", "ignored by tag"], 0
    )
    cells = [item for item in session.items if _cell(item) is not None]
    for item in cells:
        kinds[_kind(item)] += 1
    if cells:
        session.config._book_cells = kinds
