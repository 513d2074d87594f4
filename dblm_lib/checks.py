"""What a setting may be, and whether two sets of settings are the same."""

import math
import numbers

__all__ = ["check_whole", "differences", "is_number", "is_whole"]

_ABSENT = object()


def is_number(value):
    """Say whether a value is a finite real number; True and False are not."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and math.isfinite(value)


def is_whole(value, least=1):
    """Say whether a value is a whole number of at least ``least``."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and value >= least


def check_whole(name, value, least=1):
    """Refuse what is no whole number of at least ``least``.

    Parameters
    ----------
    name : str
        What the message calls the value.
    value : object
    least : int

    Raises
    ------
    ValueError
    """
    if not is_whole(value, least):
        raise ValueError(
            f"{name} must be a whole number of at least {least}; got {value!r}"
        )


def differences(stored, asked):
    """Name what differs between two dictionaries, entry by entry.

    Parameters
    ----------
    stored, asked : dict
        Entries that are dictionaries are compared entry by entry, too.

    Returns
    -------
    list of str
        Such as "3 steps, not 4".
    """
    changed = []
    for name in {**stored, **asked}:
        there, here = stored.get(name, _ABSENT), asked.get(name, _ABSENT)
        if isinstance(there, dict) and isinstance(here, dict):
            changed += differences(there, here)
        elif there is _ABSENT:
            changed.append(f"no {name}, not {here!r}")
        elif here is _ABSENT:
            changed.append(f"{there!r} {name}, not without")
        elif there != here:
            changed.append(f"{there!r} {name}, not {here!r}")
    return changed
