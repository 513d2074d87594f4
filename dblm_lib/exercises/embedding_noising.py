"""Checkers of chapter 2: embedding noising."""

import numpy as np

from .core import (
    Hint,
    as_tensors,
    ask,
    compare,
    draw_noise,
    exercise,
    is_close,
    numbers,
)

# The band of chapter 2's normalised table, in round numbers.
LOW, HIGH = 2.0, 10.0


def _levels(t):
    """Noise level of the cosine schedule."""
    angle = (t + 0.008) / 1.008 * np.pi / 2
    bar = (np.cos(angle) / np.cos(0.008 / 1.008 * np.pi / 2)) ** 2
    return np.sqrt((1 - bar).clip(0) / bar.clip(1e-12))


@exercise("2.1")
def _draw_times(answer):
    """``draw_times(u)``: times of which at least half lie in the band."""
    u = (np.random.default_rng(5).permutation(4000) + 0.5) / 4000
    got = ask(answer, *as_tensors(u))
    t = numbers(got, u.shape, "the answer, one time for each number of u,")
    if t.min() < 0 or t.max() > 1:
        raise Hint(
            f"times lie between 0 and 1; yours go from {t.min():.2f} to "
            f"{t.max():.2f}. Times were asked for, not noise levels."
        )
    if np.ptp(t) < 1e-3:
        raise Hint(
            "every number gives the same time: a denoiser trained so would "
            "know a single noise level."
        )
    levels = _levels(t)
    below, above = (levels < LOW).mean(), (levels > HIGH).mean()
    inside = 1 - below - above
    said = (
        f"{below:.0%} of your levels lie below the band, {inside:.0%} in it "
        f"and {above:.0%} above"
    )
    if np.abs(t - u).max() < 1e-3:
        raise Hint(f"these are the uniform times themselves: {said}.")
    if inside < 0.5:
        where = "later" if below > above else "earlier"
        raise Hint(f"{said}. Move times to where it is {where}.")
    if min(below, above) < 0.1:
        side = "below" if below < above else "above"
        raise Hint(
            f"{said}. That is enough inside, but a sampler passes through "
            f"all levels: leave at least a tenth {side} the band."
        )
    return (
        f"{said}. The schedule is the same as before; only the draw of t has "
        "changed."
    )


@exercise("2.2")
def _half_lost(answer):
    """``(measured, rule)`` for 1,000 random directions in 512 dimensions."""
    if callable(answer):
        answer = ask(answer)
    measured, rule = numbers(answer, (2,), "the pair (measured, rule)")
    d, v = 512.0, 1000.0
    right = np.sqrt(d / (2 * np.log(v)))
    mistakes = {
        "the second number is the square of the rule: take the root.": right
        ** 2,
        "the 2 of the rule is missing: divide by 2 ln V.": right * np.sqrt(2),
        "your rule is upside down: more dimensions bear more noise, so d is "
        "on top.": 1 / right,
        "your rule has log2; it needs the natural logarithm.": np.sqrt(
            d / (2 * np.log2(v))
        ),
        "your rule has log10; it needs the natural logarithm.": np.sqrt(
            d / (2 * np.log10(v))
        ),
        "your rule lacks the logarithm of V.": np.sqrt(d / (2 * v)),
        "in your rule d and V have changed places.": np.sqrt(
            v / (2 * np.log(d))
        ),
    }
    if is_close(measured, right, 5e-3) and not is_close(rule, right, 5e-3):
        raise Hint("the pair is the wrong way round: first the measured one.")
    compare(
        rule,
        right,
        mistakes,
        f"the rule is sqrt(d / (2 ln V)) with d = 512 and V = 1000; your "
        f"second number is {rule:.2f}.",
        tolerance=5e-3,
    )
    if is_close(measured, right, 5e-3):
        raise Hint("the first number is the rule again: measure it.")
    if not 6.5 < measured < 7.6:
        # Levels at which other shares come back, as measured once.
        known = {0.95: 4.3, 0.75: 5.6, 0.25: 9.2, 0.05: 14.7}
        near = min(known, key=lambda share: abs(measured - known[share]))
        raise Hint(
            f"at noise level {measured:.2f} about {near:.0%} of the tokens "
            "come back; look for the level at which half do."
        )
    return (
        "half are lost a little above the rule. It takes sqrt(2 ln V) for "
        "the largest of V draws, which is a little more than the largest "
        "usually is."
    )


@exercise("2.3")
def _keep(answer):
    """``noise_rest(x0, eps, alpha, sigma, keep)``: a prompt stays clean."""
    x0, eps, a, s = draw_noise(3, 2, 4, 3), draw_noise(4, 2, 4, 3), 0.8, 0.6
    keep = np.array([[1, 1, 0, 0], [1, 0, 0, 1]], dtype=bool)
    got = ask(answer, *as_tensors(x0, eps, a, s, keep))
    got = numbers(got, x0.shape, "the noised batch")
    noised, mask = a * x0 + s * eps, keep[..., None]
    mistakes = {
        "every position was noised: where keep is True, put x0 back.": noised,
        "keep is upside down: True means that the position stays "
        "clean.": np.where(mask, noised, x0),
        "kept positions get no noise, but they were scaled by alpha too: "
        "untouched means equal to x0.": np.where(mask, a * x0, noised),
        "kept positions are zero now: put x0 there.": np.where(
            mask, 0, noised
        ),
        "nothing was noised: where keep is False, use alpha * x0 + sigma * "
        "eps.": x0,
    }
    compare(
        got,
        np.where(mask, x0, noised),
        mistakes,
        "where keep is True the result is x0, elsewhere alpha * x0 + sigma * "
        "eps. `torch.where` needs keep with one more axis: keep[..., None].",
    )
    return "the prompt stays exact, and only the rest has to be denoised."
