"""Checkers of chapter 7: the ladder."""

import numpy as np

from .core import as_tensors, ask, compare, draw_noise, exercise, numbers


@exercise("7.1")
def _mixture_guess(answer):
    """``mix(logits, table)``: the mean embedding under the logits."""
    logits, table = 2 * draw_noise(11, 4, 6), draw_noise(12, 6, 3)
    given = as_tensors(logits, table)
    got = numbers(ask(answer, *given), (4, 3), "the guess")
    odds = np.exp(logits)
    right = odds / odds.sum(axis=1, keepdims=True) @ table
    mistakes = {
        "logits are no probabilities yet: a softmax is missing.": logits
        @ table,
        "the weights must add up to 1: divide by the sum of the "
        "exponentials.": odds @ table,
        "the softmax runs over tokens, the last dimension: yours runs over "
        "positions.": odds / odds.sum(axis=0) @ table,
        "that is the embedding of the likeliest token: take the mean of all, "
        "weighted by their probabilities.": table[logits.argmax(axis=1)],
        "that is the plain mean of the table, whatever the logits say.": 0
        * right
        + table.mean(axis=0),
    }
    compare(
        got,
        right,
        mistakes,
        "turn the logits into probabilities over tokens, then take the mean "
        "of the table's rows under them.",
    )
    return "a mean of embeddings, which is what a denoiser should answer."


@exercise("7.2")
def _likelihood(answer):
    """``likelihood(zt, table, alpha, sigma)``, up to a constant."""
    table, alpha, sigma = draw_noise(13, 5, 3), 0.6, 0.8
    table *= np.array([[0.5], [1], [1.5], [2], [1]])  # lengths matter
    zt = alpha * table[2] + sigma * draw_noise(14, 3)
    got = numbers(
        ask(answer, *as_tensors(zt, table), alpha, sigma), (5,), "the answer"
    )

    def square(gap):
        return (gap**2).sum(axis=1)

    gap = zt - alpha * table
    right = -square(gap) / (2 * sigma**2)
    snr = (alpha / sigma) ** 2
    mistakes = {
        "that is the density itself: logits want its logarithm.": np.exp(
            right
        ),
        "the sign is the wrong way round: a near token is a likely one.": (
            -right
        ),
        "divide by two: the exponent of a Gaussian is the squared distance "
        "over 2 sigma².": 2 * right,
        "divide by 2 sigma²: how far is far depends on the noise.": -square(
            gap
        ),
        "halving is right; divide by sigma², too.": -square(gap) / 2,
        "divide by sigma² and not by sigma.": -square(gap) / (2 * sigma),
        "that is the distance: a Gaussian has its square.": -np.sqrt(
            square(gap)
        )
        / (2 * sigma**2),
        "at time t a token's point is alpha times its embedding: alpha is "
        "missing.": -square(zt - table) / (2 * sigma**2),
        "the half square of each embedding's length is missing: long "
        "embeddings win by it.": snr * table @ (zt / alpha),
    }
    shifted = {hint: v - v.mean() for hint, v in mistakes.items()}
    compare(
        got - got.mean(),
        right - right.mean(),
        shifted,
        "square the distances of zt from alpha times each embedding, and "
        "divide them by minus 2 sigma².",
    )
    return "what the point says of each token; a softmax does the rest."


@exercise("7.3")
def _equal_rises(answer):
    """``fit(levels, losses, count)``: levels of equal rises of a loss."""
    levels = np.array([0.1, 0.3, 1.0, 2.0, 20.0])
    losses = np.array([0.5, 0.6, 2.0, 4.0, 4.5])
    count = 6
    given = (levels.tolist(), losses.tolist(), count)
    got = numbers(ask(answer, *given), (count,), "the row of levels")
    wanted = np.linspace(losses[0], losses[-1], count)
    logs = np.interp(wanted, losses, np.log(levels))
    mistakes = {
        "these are the logarithms of the levels: take the exponential.": logs,
        "these are the losses; the levels where they are reached were asked "
        "for.": wanted,
        "between two given levels let the logarithm of the level go in a "
        "straight line, not the level.": np.interp(wanted, losses, levels),
        "these levels stand in equal steps; equal steps of the loss were "
        "asked for.": np.linspace(levels[0], levels[-1], count),
        "these levels grow by equal factors; equal steps of the loss were "
        "asked for.": np.geomspace(levels[0], levels[-1], count),
        "from low to high, please.": np.exp(logs)[::-1],
    }
    compare(
        got,
        np.exp(logs),
        mistakes,
        "the first and the last level are those given. Cut the loss between "
        "them into equal steps, and ask np.interp at which logarithm of the "
        "level each is reached.",
    )
    return "many levels where the loss climbs, few where nothing happens."
