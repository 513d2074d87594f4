"""Checkers of chapter 4: training with MSE."""

import math

import numpy as np

from .core import Hint, as_tensors, ask, compare, draw_noise, exercise, numbers


@exercise("4.1")
def _masked_mse(answer):
    """``masked_mse(prediction, target, mask)``, mask 1 = a real token."""
    guess, x0 = draw_noise(5, 2, 4, 3), draw_noise(6, 2, 4, 3)
    mask = np.array([[1.0, 1, 1, 1], [1, 0, 0, 0]])
    got = numbers(ask(answer, *as_tensors(guess, x0, mask)), None, "the loss")
    if got.shape != ():
        raise Hint(
            f"the loss is one number, yours has shape {got.shape}: take the "
            "mean over the real positions."
        )
    square = (guess - x0) ** 2
    kept = (square * mask[..., None]).sum()
    rows = (square.mean(-1) * mask).sum(1) / mask.sum(1)
    other = 1 - mask
    mistakes = {
        "that is the mean over everything: padding counts. Multiply by the "
        "mask.": square.mean(),
        "the padding adds nothing any more, but it is still counted: divide "
        "by the number of real positions, not of all.": kept / square.size,
        "you divided by the positions, and there are 3 numbers in each: "
        "divide by mask.sum() * dim.": kept / mask.sum(),
        "that is the sum; divide it by how many numbers are in it.": kept,
        "a mean of the sentences' means gives short sentences more weight "
        "per token: add up everything, then divide once.": rows.mean(),
        "the mask is upside down: 1 marks a real token.": (
            square * other[..., None]
        ).sum()
        / (3 * other.sum()),
        "that is the root of it: MSE keeps the square.": np.sqrt(
            kept / (3 * mask.sum())
        ),
        "that is the absolute difference; square it.": (
            np.abs(guess - x0) * mask[..., None]
        ).sum()
        / (3 * mask.sum()),
    }
    compare(
        got,
        kept / (3 * mask.sum()),
        mistakes,
        "square the difference, multiply by mask[..., None], add up, and "
        "divide by the number of real positions times dim.",
    )
    return "padding neither adds to the loss nor dilutes it."


@exercise("4.2")
def _normalised(answer):
    """``normalised_mse(prediction, target)``: MSE / Var(target)."""
    x0 = 0.4 + 0.5 * draw_noise(7, 20, 25, 4)
    guess = x0 + 0.2 * draw_noise(8, 20, 25, 4)
    got = numbers(ask(answer, *as_tensors(guess, x0)), (), "the loss")
    mse, var = ((guess - x0) ** 2).mean(), x0.var()
    # One mean for the table or one for each dimension: both are in use.
    each = x0.reshape(-1, 4).var(0).mean()
    for right in (mse / var, mse / each):
        if math.isclose(float(got), right, rel_tol=0.015):
            return (
                "1 is what the mean of the data would score, whatever the "
                "scale of the embeddings."
            )
    mistakes = {
        "that is the plain MSE: divide by the variance of the target.": mse,
        "that is divided by the standard deviation; the units cancel only "
        "with the variance.": mse / math.sqrt(var),
        "upside down: the error belongs on top.": var / mse,
        "that is the variance of the prediction; a prediction that varies "
        "more would look better. Take the target's.": mse / guess.var(),
        "the mean of target² is no variance: take the target's mean off "
        "first.": mse / (x0**2).mean(),
        "that is the share explained; the share left was asked for.": 1
        - mse / var,
        "that is its root.": math.sqrt(mse / var),
    }
    compare(
        got,
        mse / var,
        mistakes,
        "divide the mean squared error by the variance of the target: "
        "mean((target - mean(target))²).",
        tolerance=5e-3,
    )


@exercise("4.3")
def _learning_rate(answer):
    """``learning_rate(step, peak, warmup, total)``."""
    peak, warm, total = 0.01, 100, 1100
    steps = (0, 50, 100, 350, 600, 850, 1100)
    got = [numbers(ask(answer, s, peak, warm, total), ()) for s in steps]
    got = np.array(got) / peak
    s = np.array(steps, dtype=float)
    rise, share = s / warm, (s - warm) / (total - warm)
    fall = (1 + np.cos(np.pi * share)) / 2

    def plan(decay):
        return np.where(s < warm, rise, decay)

    right = plan(fall)
    mistakes = {
        "the warm-up is missing: below `warmup` the rate rises from 0 to "
        "the peak in a straight line.": np.where(s < warm, 1, fall),
        "with no warm-up the cosine starts at the peak at step 0: rise "
        "first.": (1 + np.cos(np.pi * s / total)) / 2,
        "after the warm-up it should fall as half a cosine; yours is a "
        "straight line.": plan(1 - share),
        "the cosine should begin where the warm-up ends: measure progress "
        "as (step - warmup) / (total - warmup).": plan(
            (1 + np.cos(np.pi * s / total)) / 2
        ),
        "cos runs from 1 to -1, so your rate turns negative: use "
        "(1 + cos) / 2.": plan(np.cos(np.pi * share)),
        "after the warm-up the rate should fall, and yours stays at the "
        "peak.": plan(1 + 0 * s),
        "that is a quarter of a cosine wave, cos(pi/2 * progress); half a "
        "wave, (1 + cos(pi * progress)) / 2, is flat at both ends.": plan(
            np.cos(np.pi * share / 2)
        ),
        "progress runs the wrong way: the rate rises after the warm-up.": plan(
            1 - fall
        ),
    }
    if np.allclose(got * peak, right, atol=1e-3):
        raise Hint("that is the share of the peak: multiply by `peak`.")
    # A warm-up that counts from 1 is one step of 100 ahead.
    compare(
        got,
        right,
        mistakes,
        "rise from 0 to the peak in `warmup` steps, then fall as peak * "
        "(1 + cos(pi * progress)) / 2, progress from 0 to 1. Yours is "
        f"{got[2]:.2f} of the peak after the warm-up and {got[4]:.2f} half "
        "way down; 1.00 and 0.50 were expected.",
        tolerance=0.0101,
    )
    return "slow while Adam's averages fill, slow again to settle."
