"""Checkers of chapter 6: autopsy."""

import numpy as np

from .core import Hint, as_tensors, ask, compare, draw_noise, exercise, numbers

# Tokens of a text in which some come more often than others.
_TEXT = (0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 7, 8, 9, 9)


@exercise("6.1")
def _still_found(answer):
    """``still_found(table, ids, keep)``: shrink, round, count."""
    table = draw_noise(32, 16, 3) + np.array([1.2, 0, 0])
    rows = table[list(_TEXT)]
    asked = (0.7, 0.35)

    def count(centre, shares=asked):
        found = []
        for share in shares:
            shrunk = centre + share * (rows - centre)
            gaps = ((shrunk[:, None] - table) ** 2).sum(axis=-1)
            found.append((gaps.argmin(axis=1) == _TEXT).mean())
        return np.array(found)

    (points,) = as_tensors(table)
    got = [
        float(
            numbers(
                ask(answer, points, as_tensors(np.array(_TEXT))[0], keep),
                (),
                "the share",
            )
        )
        for keep in asked
    ]
    right = count(rows.mean(axis=0))
    used = sorted(set(_TEXT))
    mistakes = {
        "the mean is that of the tokens as they occur in `ids`, not that of "
        "all rows of the table.": count(table.mean(axis=0)),
        "a token that comes five times counts five times in the mean.": count(
            table[used].mean(axis=0)
        ),
        "that shrinks towards zero; the squared error pulls towards the "
        "mean.": count(np.zeros(3)),
        "the other way round: `keep` is the part that is left of the "
        "distance to the mean.": count(
            rows.mean(axis=0), [1 - keep for keep in asked]
        ),
        "that is a count: divide by the number of tokens.": len(_TEXT) * right,
        "that is the share of tokens that are lost.": 1 - right,
    }
    compare(
        np.array(got),
        right,
        mistakes,
        "take m + keep * (e - m) for each token, with m the mean of "
        "`table[ids]`, find the nearest row, and count how often it is the "
        "token.",
    )
    return (
        "each point still lies on the line to its token, and yet many are "
        "rounded to another one, the more the closer the tokens point "
        "together. Stretched back before rounding, all would be found."
    )


@exercise("6.2")
def _by_chance(answer):
    """``by_chance(seeds)``: how often equal models look different."""
    wanted = {2: 1 / 3, 3: 1 / 10, 4: 1 / 35}
    got = {
        seeds: float(numbers(ask(answer, seeds), (), "the share"))
        for seeds in wanted
    }
    if min(got.values()) < 0 or max(got.values()) > 1:
        raise Hint("a share lies between 0 and 1: divide by the repetitions.")
    if max(got.values()) - min(got.values()) < 0.02:
        raise Hint(
            "the same for two, three and four seeds: do you draw `seeds` "
            "numbers for each of the two models?"
        )
    near = {n: 0.12 * share + 0.004 for n, share in wanted.items()}
    if all(abs(got[n] - wanted[n] / 2) < near[n] for n in wanted):
        raise Hint(
            "you count one direction only: all runs of the first model may "
            "be above those of the second, or all below."
        )
    if all(abs(got[n] - 0.5 ** (n - 1)) < near[n] for n in wanted):
        raise Hint(
            "you compare run by run. *Every* run of one model must be above "
            "*every* run of the other: its least above the other's largest."
        )
    if any(abs(got[n] - wanted[n]) > near[n] for n in wanted):
        shown = ", ".join(f"{value:.3f}" for value in got.values())
        raise Hint(
            f"for two, three and four seeds you find {shown}. Draw from the "
            "same normal distribution for both models, some 20,000 times, "
            "and count how often the two groups do not overlap."
        )
    return (
        "one comparison in three of equal models looks like a difference "
        "with two seeds. Five seeds make it less than one in a hundred."
    )


@exercise("6.3")
def _weigh(answer):
    """``weigh(gain)``: what two causes explain, alone and given."""
    gains = {(0, 0): -0.4, (1, 0): -0.3, (0, 1): 0.02, (1, 1): 0.1}

    def gain(first, second):
        return gains[bool(first), bool(second)]

    got = numbers(ask(answer, gain), (2, 2), "the shares")
    right = np.array([[0.2, 0.16], [0.84, 0.8]])
    mistakes = {
        "one row for each cause: what it explains alone, then what it "
        "explains given that the other is repaired.": right.T,
        "given comes second: first alone, then given.": right[:, ::-1],
        "these are differences of gains: divide by the damage.": right / 2,
        "the signs: better minus worse, each time.": -right,
        "the damage is the gain with both repaired minus that with "
        "neither, and not the gain with both.": 5 * right,
        "to put a cause back means that the *other* one stays repaired: the "
        "second column is the wrong way round.": [[0.2, 0.8], [0.84, 0.16]],
    }
    compare(
        got,
        right,
        mistakes,
        "the damage is gain(True, True) - gain(False, False). What repairing "
        "a cause wins where the other is broken, and where it is repaired, "
        "are each a share of it.",
    )
    return (
        "with `min`, where both are needed, each explains nothing alone and "
        "everything given the other. With `max`, where either is enough, it "
        "is the reverse. Only a sum gives the same number twice."
    )
