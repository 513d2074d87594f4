"""Checkers of chapter 4: training with MSE."""

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
def _draw_times(answer):
    """``draw_times(count, generator)``: times of a batch, less by chance.

    The batch's mean of the error t^2 stands for the loss. It must stay
    right on average, whatever the error, and jump less than with
    independent times.
    """
    import torch

    count, batches = 8, 1000
    generator = torch.Generator().manual_seed(0)
    drawn = [_times(ask(answer, count, generator)) for _ in range(batches)]
    times = np.array([t for t, _ in drawn])
    weights = np.array([w for _, w in drawn])
    if np.ptp(np.sort(times, axis=1), axis=0).max() < 1e-6:
        raise Hint(
            "these are the same times at each call, so the network would "
            "never see a time between them: let the generator shift them."
        )
    for share in (1, 0.1, 0.25, 0.5, 0.75, 0.9):
        found = (weights * (times < share)).mean()
        if abs(found - share) > 0.03:
            raise Hint(
                f"on average {found:.2f} of the loss comes from times below "
                f"{share:g}, where uniform times give {share:.2f}. Draw each "
                "time uniformly, or return (t, weight) with weight 1 / "
                "density of t."
            )
    jumps = (weights * times**2).mean(axis=1).std()
    ratio = jumps / np.sqrt(4 / 45 / count)  # t^2 has the variance 4 / 45
    said = (
        f"over {batches:,} batches of {count} times, the mean of t^2 varies "
        f"{ratio:.2f} times as much as with independent times"
    )
    if ratio > 0.5:
        raise Hint(
            f"{said}. Let the times of a batch share out [0, 1] between "
            "them, one in each part, or draw more where the error is large "
            "and weigh it down."
        )
    return f"{said}, and its average is the same."


def _times(answer):
    """Read times, with weights of one or those that came along."""
    if isinstance(answer, tuple) and len(answer) == 2:
        t, weight = answer
    else:
        t, weight = answer, None
    t = numbers(t, (8,), "what you return for count = 8")
    if (t < 0).any() or (t > 1).any():
        raise Hint(
            f"times lie between 0 and 1; one of yours is "
            f"{t[(t < 0) | (t > 1)][0]:.2f}. `% 1` brings them back."
        )
    if weight is None:
        return t, np.ones(8)
    return t, numbers(weight, (8,), "the weight")


@exercise("4.3")
def _noise_weight(answer):
    """``weight(alpha, sigma)`` of the x0 error in a loss on the noise."""
    alpha = np.array([0.95, 0.8, 0.6, 0.3, 0.1])
    sigma = np.sqrt(1 - alpha**2)
    got = [
        numbers(ask(answer, *pair), (), "the weight")
        for pair in zip(*as_tensors(alpha, sigma), strict=True)
    ]
    compare(
        np.array(got),
        (alpha / sigma) ** 2,
        {
            "that is its root: the errors are squared, so the factor "
            "between them is squared too.": alpha / sigma,
            "upside down: at little noise a small error in x0 is a large "
            "one in the noise.": (sigma / alpha) ** 2,
            "that is the noise level; the weight is large where the noise "
            "is small.": sigma / alpha,
            "zt is divided by sigma, so sigma belongs into the weight: it "
            "is not alpha squared alone.": alpha**2,
            "x0 is multiplied by alpha before sigma divides: it is not 1 / "
            "sigma squared.": 1 / sigma**2,
            "with weight 1 the two losses would be the same, and they are "
            "not: put x0_hat into the equation for the noise.": np.ones(5),
            "half the signal-to-noise ratio is what the bound has over "
            "log-snr; here no half is needed.": (alpha / sigma) ** 2 / 2,
        },
        "write eps = (zt - alpha * x0) / sigma, and eps_hat with x0_hat. "
        "Subtract: zt drops out. What stands before x0 - x0_hat?",
    )
    return (
        "it is the signal-to-noise ratio. A loss on the noise looks mostly "
        "at little noise, a loss on x0 treats all times alike."
    )
