"""The registry of exercises and what their checkers share."""

import difflib
from dataclasses import dataclass

import numpy as np

REGISTRY = {}
BLANK = "write your answer above and run this cell."


class Hint(Exception):
    """What to look at in an answer that is not right yet."""


class Blank(Exception):
    """Nothing was answered yet: the dots are still there."""


@dataclass(frozen=True)
class Verdict:
    """What a checker says.

    Attributes
    ----------
    ok : bool
    message : str
        Why it is right, or what to look at.
    blank : bool
        Nothing was answered yet, so there is nothing to judge.
    """

    ok: bool
    message: str
    blank: bool = False

    def __bool__(self):
        return self.ok

    def __str__(self):
        if self.blank:
            return self.message
        return f"{'Right' if self.ok else 'Not yet'}: {self.message}"


def exercise(number):
    """Register a checker under an exercise's number, such as ``"1.2"``."""

    def register(checker):
        REGISTRY[number] = checker
        return checker

    return register


def check(number, answer=...):
    """Print what is right about an answer, or what to look at.

    For the dots of an exercise that was not answered yet it prints an
    invitation to do so.

    Parameters
    ----------
    number : str
        The exercise, such as ``"1.2"``.
    answer : object
        What the exercise asks for: often a function that you wrote.
    """
    print(verdict(number, answer))


def verdict(number, answer=...):
    """Judge an answer and return the `Verdict` instead of printing it."""
    number = str(number)
    if number not in REGISTRY:
        near = difflib.get_close_matches(number, REGISTRY, n=1, cutoff=0.0)
        return Verdict(
            False, f"there is no exercise {number}; did you mean {near[0]}?"
        )
    try:
        if is_blank(answer):
            raise Blank
        return Verdict(True, REGISTRY[number](answer))
    except Blank:
        return Verdict(False, f"Exercise {number}: {BLANK}", blank=True)
    except Hint as hint:
        return Verdict(False, str(hint))
    except Exception as error:  # noqa: BLE001  (a reader sees no traceback)
        return Verdict(False, f"this answer cannot be read ({error}).")


def is_blank(answer):
    """Tell whether an answer is still the dots of the exercise."""
    return answer is None or answer is Ellipsis


# --- What the checkers share ---------------------------------------------


def ask(function, *arguments):
    """Call the reader's function; turn its failure into a hint."""
    if not callable(function):
        raise Hint(
            f"hand over your function itself, without brackets after its "
            f"name; I was given {kind_of(function)}."
        )
    try:
        with np.errstate(all="ignore"):
            answer = function(*arguments)
    except (Exception, SystemExit) as error:  # noqa: BLE001  (any of theirs)
        text = str(error).strip().split("\n")[0][:200] or "no message"
        raise Hint(
            f"your function stopped with {type(error).__name__}: {text}"
        ) from None
    if answer is Ellipsis:
        raise Blank
    if answer is None:
        raise Hint("your function gives back nothing: is there a `return`?")
    return answer


def numbers(answer, shape=None, what="your answer"):
    """Read an answer as float64; refuse wrong kinds, shapes and NaN."""
    if hasattr(answer, "detach"):
        answer = answer.detach().cpu().numpy()
    try:
        array = np.asarray(answer, dtype=float)
    except (TypeError, ValueError):
        raise Hint(
            f"{what} should be numbers, but it is {kind_of(answer)}."
        ) from None
    if shape is not None and array.shape != tuple(shape):
        raise Hint(
            f"{what} has shape {array.shape}; {tuple(shape)} was expected."
        )
    if np.isnan(array).any():
        raise Hint(f"{what} holds NaN: is there a 0/0 or a negative root?")
    return array


def compare(got, right, mistakes, otherwise, tolerance=1e-3):
    """Accept the right numbers; name the mistake that gives these.

    Parameters
    ----------
    got, right : array
    mistakes : dict of str to array
        Hint, and what this mistake would give.
    otherwise : str
        Hint for any other answer.
    """
    if is_close(got, right, tolerance):
        return
    for hint, wrong in mistakes.items():
        if is_close(got, wrong, tolerance):
            raise Hint(hint)
    raise Hint(otherwise)


def is_close(a, b, tolerance):
    """Tell whether two arrays have one shape and nearly equal numbers."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    return a.shape == b.shape and np.allclose(a, b, tolerance, tolerance)


def kind_of(thing):
    """Say in a hint what the reader handed over."""
    return f"{type(thing).__name__} ({str(thing)[:40]})"


def as_tensors(*arrays):
    """Hand the reader's function tensors, as the chapters do."""
    import torch

    return [
        torch.as_tensor(
            a, dtype=torch.float32 if np.asarray(a).dtype == float else None
        )
        for a in arrays
    ]


def draw_noise(seed, *shape):
    """Draw the same standard normal numbers each time."""
    return np.random.default_rng(seed).standard_normal(shape)
