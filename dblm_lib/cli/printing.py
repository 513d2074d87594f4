"""How the command line prints: results, remarks, commands to be pasted."""

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import textwrap

__all__ = ["note", "paste", "print_rows", "printable", "say"]


def printable(words):
    """Show a text on one line; control characters could drive a terminal."""
    visible = (c if c.isprintable() and c != "\ufffd" else "·" for c in words)
    return "".join(visible)


def say(words, label=""):
    """Print a text behind a label, wrapped where somebody is looking.

    Into a pipe or a file goes one line a text, for other programs.
    """
    line = label + words
    if sys.stdout.isatty():
        width = max(len(label) + 20, shutil.get_terminal_size().columns)
        line = textwrap.fill(
            line,
            width=min(width, 100),
            subsequent_indent=" " * len(label),
            drop_whitespace=True,
            break_on_hyphens=False,
        )
    print(line)


def note(words):
    """Print a remark that is no result: to the standard error."""
    with contextlib.suppress(OSError):  # nobody is there to read it
        print(f"dblm: {printable(str(words))}", file=sys.stderr, flush=True)


def paste(*words):
    """A command as it can be pasted into a shell of this system."""
    if os.name == "nt":
        return subprocess.list2cmdline(words)
    return shlex.join(words)


def print_rows(rows, indent=""):
    """Print a record, one entry a line."""
    width = max(map(len, rows), default=0)
    for key, value in rows.items():
        if isinstance(value, dict):
            parts = [f"{k} {_brief(v)}" for k, v in value.items()]
            value = ", ".join(parts) or "none"
        print(f"{indent}{key.replace('_', ' '):{width}}  {value}")


def _brief(value):
    """A number; of a whole report the share that holds together.

    And how far the choices made in it are from the grammar's: a share is
    easily bought by writing about few things.
    """
    if isinstance(value, dict) and "coherent" in value:
        share = f"{value['coherent']:.1%} coherent"
        if "slot_distance" in value:
            share += f" (slot distance {value['slot_distance']:.3f})"
        return share
    if isinstance(value, dict) and "bound_nats_per_tale" in value:
        return (
            f"{value['bound_nats_per_tale']:.2f} by the bound (exact "
            f"{value['exact_nats_of_these']:.2f})"
        )
    return value
