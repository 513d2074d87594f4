"""Checkers of chapter 6: autopsy."""

import numpy as np

from .core import as_tensors, ask, compare, draw_noise, exercise, numbers


@exercise("6.1")
def _gain(answer):
    """``gain(clean, noised, denoised)``: tokens won over no network."""
    clean = [3, 1, 4, 1, 5, 9, 2, 6]
    noised = [3, 1, 0, 1, 0, 9, 0, 0]
    denoised = [3, 1, 4, 0, 5, 9, 2, 0]
    got = float(numbers(ask(answer, clean, noised, denoised), (), "the gain"))
    mistakes = {
        "that is the accuracy of the denoised text: how much of it was there "
        "before?": 6 / 8,
        "that is what rounding finds without a network.": 4 / 8,
        "the other way round: what the network has, minus what was there.": (
            -2 / 8
        ),
        "that is a count: divide by the number of tokens.": 2,
        "a token that was right and is wrong now counts against the network.": (
            3 / 8
        ),
    }
    compare(
        got,
        2 / 8,
        mistakes,
        "count the right tokens of the denoised text and of the noised one, "
        "each beside the clean text, and divide the difference by 8.",
    )
    return "above zero, the network earns its keep."


@exercise("6.2")
def _mean_distance(answer):
    """``mean_distance(table)``: between two different rows."""
    table = draw_noise(17, 5, 3)
    got = float(numbers(ask(answer, *as_tensors(table)), (), "the distance"))
    gaps = table[:, None] - table[None]
    lengths = np.sqrt((gaps**2).sum(axis=-1))
    centre = table - table.mean(axis=0)
    mistakes = {
        "a row has no distance to itself: leave the pairs of one row out of "
        "the mean.": lengths.mean(),
        "that is the sum: divide by the number of pairs.": lengths.sum() / 2,
        "that is the mean of the squared distances: take the root of each "
        "first.": (lengths**2).sum() / 20,
        "that is the root of a mean: take the root of each distance, then "
        "the mean.": np.sqrt((lengths**2).sum() / 20),
        "that is the distance to the mean row.": np.sqrt(
            (centre**2).sum(axis=1)
        ).mean(),
        "each pair counts once, above and below: you have divided twice.": (
            lengths.sum() / 40
        ),
    }
    compare(
        got,
        lengths.sum() / 20,
        mistakes,
        "take the length of the difference of each pair of different rows, "
        "and then the mean over pairs.",
    )
    return "watch it while embeddings learn: at zero all words are one."


@exercise("6.3")
def _blame(answer):
    """``blame(broken, fixed_one, repaired_but_one, repaired)``."""
    scores = (-0.4, -0.3, 0.02, 0.1)
    given = ask(answer, *scores)
    got = numbers(given, (2,), "the pair of shares")
    alone, rest = 0.1 / 0.5, 0.08 / 0.5
    mistakes = {
        "first alone, then given the others fixed.": [rest, alone],
        "these are differences of scores: divide by the damage.": [0.1, 0.08],
        "the signs: better minus worse, both times.": [-alone, -rest],
        "the damage is what the broken model lacks to the repaired one, and "
        "not the repaired model's score.": [0.1 / 0.1, 0.08 / 0.1],
        "the first sign is right; in the second, too, take better minus "
        "worse.": [alone, -rest],
        "what one cause does alone is not what the rest leaves over.": [
            alone,
            1 - alone,
        ],
    }
    compare(
        got,
        np.array([alone, rest]),
        mistakes,
        "the damage is repaired minus broken. What putting one right wins, "
        "and what putting it back loses, are each a share of it.",
    )
    return "if the two differ, causes hide behind one another."
