"""What a setting may be: numbers that are numbers, and not True or NaN."""

import math
import numbers

__all__ = ["is_number", "is_whole"]


def is_number(value):
    """Say whether a value is a finite real number; True and False are not."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and math.isfinite(value)


def is_whole(value, least=1):
    """Say whether a value is a whole number of at least ``least``."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and value >= least
