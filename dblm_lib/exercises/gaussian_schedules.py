"""Checkers of chapter 1: Gaussian schedules."""

import math

import numpy as np

from .core import Hint, as_tensors, ask, compare, draw_noise, exercise, numbers


@exercise("1.1")
def _snr(answer):
    """``snr(alpha_bar)``, or its value at ``alpha_bar = 0.9``."""
    bars = [0.9, 0.5, 0.2] if callable(answer) else [0.9]
    got = [
        numbers(ask(answer, b) if callable(answer) else answer, ())
        for b in bars
    ]
    a = np.array(bars)
    mistakes = {
        "that is the ratio of amplitudes, alpha / sigma. The signal-to-noise "
        "ratio compares variances: leave the square root out.": np.sqrt(
            a / (1 - a)
        ),
        "upside down: the signal's share belongs on top.": (1 - a) / a,
        "that is the signal's share alone; divide it by the noise's share.": a,
        "that is the noise's share alone.": 1 - a,
        "that is the logarithm of the ratio; the ratio itself was asked "
        "for.": np.log(a / (1 - a)),
        "alpha_bar is alpha squared already: do not square it again.": a**2
        / (1 - a**2),
    }
    compare(
        got,
        a / (1 - a),
        mistakes,
        "the variance of the signal is alpha_bar, the variance of the noise "
        "is what is left of 1. Divide the first by the second.",
    )
    return (
        "snr = alpha_bar / (1 - alpha_bar): at 0.9 there is nine times as "
        "much signal as noise, at 0.5 as much of each."
    )


@exercise("1.2")
def _q_sample(answer):
    """``q_sample(x0, eps, alpha_bar)``, the closed form."""
    x0, eps, bar = draw_noise(1, 4, 3), draw_noise(2, 4, 3), 0.3
    got = ask(answer, *as_tensors(x0, eps, bar))
    got = numbers(got, x0.shape, "the noised batch")
    a, s = math.sqrt(bar), math.sqrt(1 - bar)
    mistakes = {
        "is your square root on alpha_bar? Amplitudes are the roots of the "
        "shares: both factors need one.": bar * x0 + (1 - bar) * eps,
        "the signal's factor is right; the noise's share is 1 - alpha_bar, "
        "and its factor the square root of that.": a * x0 + (1 - bar) * eps,
        "the noise's factor is right; is your square root on alpha_bar?": bar
        * x0
        + s * eps,
        "the noise's factor is sqrt(1 - alpha_bar), not 1 - sqrt(alpha_bar): "
        "the squares of the two factors add up to 1, not the factors.": a * x0
        + (1 - a) * eps,
        "signal and noise have changed places: alpha_bar is the signal's "
        "share.": s * x0 + a * eps,
        "scale the noise too: its factor is sqrt(1 - alpha_bar).": a * x0
        + eps,
        "scale the signal too: its factor is sqrt(alpha_bar).": x0 + s * eps,
        "a difference flips the noise's sign; the closed form adds it.": a * x0
        - s * eps,
    }
    compare(
        got,
        a * x0 + s * eps,
        mistakes,
        "the closed form is sqrt(alpha_bar) * x0 + sqrt(1 - alpha_bar) * eps, "
        "with the eps that was given: draw no noise of your own.",
    )
    return (
        "one line replaces all the small steps: signal times sqrt(alpha_bar) "
        "plus noise times sqrt(1 - alpha_bar)."
    )


class _Power:
    """A schedule with a known answer: alpha_bar = 1 - t^k."""

    def __init__(self, power):
        self.power = power

    def alpha_bar(self, t):
        return 1 - t**self.power

    def alpha(self, t):
        return self.alpha_bar(t) ** 0.5

    def sigma(self, t):
        return (t**self.power) ** 0.5

    def snr(self, t):
        signal, noise = self.alpha_bar(t), t**self.power
        clean = isinstance(t, (int, float)) and noise == 0
        return math.inf if clean else signal / noise

    def noise_level(self, t):
        return self.sigma(t) / self.alpha(t)


@exercise("1.3")
def _even_odds(answer):
    """``t`` where ``snr(t) == 1``: a function of the schedule, or cosine's."""
    if not callable(answer):
        t = float(numbers(answer, (), "t"))
        _time(t)
        compare(t, 0.5, {}, _cosine_hint(t), tolerance=0.008)
        return (
            "signal and noise are equal in the middle of the cosine "
            "schedule, where cos and sin are equal."
        )
    for power in (1, 2, 6):
        t = float(numbers(ask(answer, _Power(power)), (), "t"))
        _time(t)
        right = 0.5 ** (1 / power)
        mistakes = {
            "your t is the middle of time whatever the schedule: look where "
            "this schedule's snr crosses 1.": 0.5,
            "that is where alpha is one half, not alpha_bar = alpha "
            "squared.": 0.75 ** (1 / power),
        }
        ratio = _Power(power).snr(min(max(t, 1e-6), 1 - 1e-6))
        side = "too early" if ratio > 1 else "too late"
        compare(
            t,
            right,
            mistakes,
            f"on a schedule with alpha_bar = 1 - t^{power}, snr at your t = "
            f"{t:.3f} is {ratio:.2f}: {side}.",
            tolerance=0.008,
        )
    return "snr falls from one end to the other, so there is one crossing."


def _time(t):
    if not 0 <= t <= 1:
        raise Hint(
            f"time runs from 0 (clean) to 1 (noise); {t:g} lies outside. "
            "If it is a step number, divide it by the number of steps."
        )


def _cosine_hint(t):
    share = math.cos(math.pi * t / 2) ** 2
    return (
        f"at t = {t:g} the cosine schedule keeps alpha_bar = {share:.2f}; "
        "snr is 1 where alpha_bar is one half."
    )
