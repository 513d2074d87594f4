"""Checkers of chapter 11: likelihood and honest evaluation."""

import random
from collections import Counter
from itertools import pairwise

import numpy as np

from .core import Hint, ask, compare, exercise, kind_of, numbers

_ROWS = [
    words.split()
    for words in (
        "the cat sat on the mat and the dog sat on the log",
        "the dog sat on the mat and the cat sat on the log",
        "the cat and the dog sat on the mat and on the log",
        "the dog and the cat sat on the log and on the mat",
    )
]


def _distinct_2(rows):
    pairs = [pair for row in rows for pair in pairwise(row)]
    return len(set(pairs)) / len(pairs)


@exercise("11.1")
def _fool(answer):
    """``fool(rows, rng)``: more different pairs from the same tokens."""
    rows = [list(row) for row in _ROWS]
    got = ask(answer, rows, random.Random(0))
    if not isinstance(got, (list, tuple)) or len(got) != len(_ROWS):
        raise Hint(
            f"give a list of {len(_ROWS)} texts, as many as came in; I was "
            f"given {kind_of(got)}."
        )
    if not all(isinstance(row, (list, tuple)) for row in got):
        raise Hint("each text must be a list of tokens.")
    got = [list(row) for row in got]
    if rows != _ROWS and got != rows:
        raise Hint("leave the given texts as they are: change a copy.")
    if got == _ROWS:
        raise Hint("these are the texts as they came in.")
    for row, wanted in zip(got, _ROWS):
        if set(row) - set(wanted):
            raise Hint(
                "a text has a token that it did not have before, so its "
                "entropy may change: move tokens, add none."
            )
        if Counter(row) != Counter(wanted):
            raise Hint(
                "each text must hold the same tokens as often as before: "
                "then its entropy stays what it is."
            )
    before, after = _distinct_2(_ROWS), _distinct_2(got)
    if after < 1.1 * before:
        raise Hint(
            f"distinct-2 went from {before:.2f} to {after:.2f}: which order "
            "of the same tokens has more different pairs?"
        )
    return (
        f"distinct-2 rose from {before:.2f} to {after:.2f}, the entropy of "
        "each text is the same, and nobody would call these texts better."
    )


@exercise("11.2")
def _zero(answer):
    """``zero(measure, draw, count, repeats)``: two sets of one source."""
    asked, drawn = [], []

    def draw(count):
        asked.append(count)
        drawn.append(float(len(drawn) ** 3))
        return drawn[-1:]

    def measure(one, other):
        return abs(one[0] - other[0])

    got = numbers(ask(answer, measure, draw, 30, 4), (), "the answer")
    if not asked:
        raise Hint("use `draw(count)` to get the sets.")
    if set(asked) != {30}:
        raise Hint(
            f"each set must have `count` texts, here 30; you drew {asked[0]}."
        )
    if len(asked) == 4:
        raise Hint(
            "each repetition needs two fresh sets: one that is compared with "
            "itself, or with that of another repetition, says less."
        )
    if len(asked) == 5:
        raise Hint("draw both sets anew in each repetition, not one of them.")
    if len(asked) != 8:
        raise Hint(
            f"4 repetitions need 8 sets; you drew {len(asked)} of them."
        )
    right = np.mean([1, 19, 61, 127])
    apart = np.mean([64, 124, 208, 316])  # all first sets, then all others
    if np.isclose(got, apart):
        got = right
    compare(
        got,
        right,
        {
            "that is the sum; the mean was asked for.": 4 * right,
            "that is the largest, or the last; the mean was asked for.": 127.0,
            "a measure of a set and itself is 0: compare two sets.": 0.0,
        },
        "draw two sets, measure them, and take the mean over the repetitions.",
    )
    return "this is the zero by which the measure is to be read."


_KNOWN = [("Tom", "cat", "park", "red"), ("Lily", "dog", "hill", "blue")]
_FOUND = [
    ("Tom", "cat", "park", "red"),  # a copy
    ("Ben", "cat", "park", "red"),  # one slot
    ("Tom", "cat", "hill", "blue"),  # two slots of either
    ("Emma", "dog", "hill", "red"),  # two slots of the second
    ("Max", "fox", "lake", "pink"),  # four
]


@exercise("11.3")
def _changed_share(answer):
    """``changed_share(found, known, slots)``: near copies, not copies."""
    got = [
        numbers(
            ask(answer, list(_FOUND), list(_KNOWN), slots), (), "the answer"
        )
        for slots in (1, 2, 3)
    ]
    compare(
        got,
        [0.2, 0.6, 0.6],
        {
            "a copy differs in no slot: leave it out.": [0.4, 0.8, 0.8],
            "that is how many; divide by the number of tales.": [1, 3, 3],
            "at most `slots`: that many count, too.": [0.0, 0.2, 0.6],
            "that counts exactly `slots` differences: fewer count, too.": [
                0.2,
                0.4,
                0.0,
            ],
            "compare with every known tale and take the nearest, not only "
            "the first.": [0.2, 0.4, 0.6],
            "the smallest difference over the known tales was asked for, "
            "not the largest.": [0.0, 0.2, 0.4],
        },
        "for each tale count the slots in which it differs from each known "
        "one, take the smallest, and ask whether it lies from 1 to `slots`.",
    )
    return "letters alone do not show these near copies."
