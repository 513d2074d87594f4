"""The command ``dblm``: sample, measure, train, watch denoising, say facts.

Exit codes: 0 all well; 1 the work failed (a damaged file, no network);
2 the request was not understood or cannot be met; 130 stopped by Ctrl-C.
A user's mistake gets one line, never a traceback.
"""

import contextlib
import importlib
import os
import sys
import warnings

from .. import resources
from .parser import build_parser
from .printing import note

__all__ = ["build_parser", "main"]


def main(arguments=None):
    """Run the command line.

    Parameters
    ----------
    arguments : list of str, optional
        Those of the process if left out.

    Returns
    -------
    int
        The exit code.
    """
    with _streams() as complete, _notes():
        code = _run(arguments)
        # What was to be printed went nowhere, as with a reader who is gone.
        return code if complete or code else 1


def _run(arguments):
    try:
        try:
            options = build_parser().parse_args(arguments)
        finally:  # it may have printed a help text
            sys.stdout.flush()
        # Only the command that is asked for, and what it needs.
        command = importlib.import_module(f"{__name__}.{options.command}")
        command.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has enough
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        note("stopped")
        return 130
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        note(" ".join(str(error).split()) or type(error).__name__)
        return code
    return 0


def _exit_code(error):
    """1 or 2 for what a user can do something about; None for our faults."""
    failures = (
        resources.DataError,
        OSError,
        MemoryError,
        FloatingPointError,
        ImportError,  # an installation that is not whole
    )
    if isinstance(error, failures):
        return 1
    if isinstance(error, (ValueError, TypeError)):
        return 2
    if isinstance(error, RuntimeError) and "memory" in str(error).lower():
        return 1  # PyTorch's way to say that the memory is too small
    return None


@contextlib.contextmanager
def _streams():
    """Streams that take any character; give whether the output is open.

    A console that is not UTF-8 gets a question mark for what it cannot show.
    A stream that was closed (``>&-``) is missing here: what is written to it
    goes nowhere.
    """
    streams = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stdout, sys.stderr = (
            nowhere if stream is None else stream for stream in streams
        )
        for stream in streams:
            with contextlib.suppress(AttributeError, ValueError):
                stream.reconfigure(errors="replace")
        try:
            yield streams[0] is not None
        finally:
            sys.stdout, sys.stderr = streams


@contextlib.contextmanager
def _notes():
    """Print warnings of a name with two meanings as one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", resources.TwoMeanings)
        show = warnings.showwarning

        def one_line(message, category, *where, **options):
            if issubclass(category, resources.TwoMeanings):
                note(message)
            else:
                show(message, category, *where, **options)

        warnings.showwarning = one_line
        yield
