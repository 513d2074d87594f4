"""Checkers of chapter 8: few steps."""

import numpy as np

from .core import Hint, ask, compare, exercise, kind_of, numbers

_SHARES = {"ball": 0.4, "kite": 0.35, "drum": 0.15, "shell": 0.1}


def _sharpened(shares, power):
    powers = np.array(list(shares.values())) ** power
    return powers / powers.sum()


@exercise("8.1")
def _sharpen(answer):
    """``sharpen(shares, temperature)``: the same options, sharper."""
    warm = 0.6
    got = ask(answer, dict(_SHARES), warm)
    if not isinstance(got, dict) or set(got) != set(_SHARES):
        raise Hint(
            "give a dictionary with the same options as `shares`; I was "
            f"given {kind_of(got)}."
        )
    got = numbers([got[option] for option in _SHARES], (4,), "the answer")
    p = np.array(list(_SHARES.values()))
    mistakes = {
        "the powers must add up to 1: divide by their sum.": p ** (1 / warm),
        "the exponent is 1 / temperature: one below 1 makes likely options "
        "likelier.": _sharpened(_SHARES, warm),
        "that is p / temperature, scaled back to p: it belongs into the "
        "exponent.": p,
        "that divides p itself: it belongs into the exponent.": p / warm,
        "that is a softmax of p: it takes logarithms of probabilities for "
        "logits.": np.exp(p / warm) / np.exp(p / warm).sum(),
    }
    compare(
        got,
        _sharpened(_SHARES, 1 / warm),
        mistakes,
        "raise each probability to the power 1 / temperature, then divide by "
        "the sum.",
    )
    return "dividing logits by a temperature does just this to probabilities."


@exercise("8.2")
def _distance_at(answer):
    """``distance_at(shares, temperature)``: what it costs in variety."""
    warm = 0.6
    got = numbers(ask(answer, dict(_SHARES), warm), (), "the answer")
    p, cold = np.array(list(_SHARES.values())), _sharpened(_SHARES, 1 / warm)
    gaps = np.abs(cold - p)
    mistakes = {
        "take half of the sum: what one option gains another one loses.": (
            gaps.sum()
        ),
        "add the differences up; that is their mean.": gaps.mean(),
        "that is their largest; add all of them up and halve the sum.": (
            gaps.max()
        ),
        "without absolute values the differences add up to 0.": 0.0,
        "take absolute values, no squares.": (gaps**2).sum(),
        "the exponent is 1 / temperature.": (
            np.abs(_sharpened(_SHARES, warm) - p).sum() / 2
        ),
    }
    compare(
        got,
        gaps.sum() / 2,
        mistakes,
        "sharpen the shares, then take half of the sum of the absolute "
        "differences.",
    )
    return "with very many tales, this is how far temperature alone leads."


@exercise("8.3")
def _choose(answer):
    """``choose(rows, share, steps)``: the most varied of the good ones."""
    points = [
        (0, 0.99, 0.08),
        (8, 0.80, 0.09),
        (16, 0.96, 0.12),
        (8, 0.95, 0.15),
        (64, 0.99, 0.11),
        (4, 0.97, 0.20),
    ]
    rows = [
        {"num_steps": n, "coherent": share, "slot_distance": distance}
        for n, share, distance in points
    ]
    got = ask(answer, [dict(row) for row in rows], 0.95, 16)
    if got not in rows:
        raise Hint(f"give one of the rows; I was given {kind_of(got)}.")
    hints = {
        0: "0 steps stands for left to right: leave these rows out.",
        1: "that one is not coherent enough.",
        3: "another one is as good and nearer to the grammar.",
        4: "that one takes too many steps.",
        5: "the smallest slot distance was asked for.",
    }
    place = rows.index(got)
    if place in hints:
        raise Hint(hints[place])
    return "the nearest to the grammar, of those that are coherent enough."
