"""Checkers of chapter 1: Gaussian schedules."""

import functools
import math
import statistics

import numpy as np

from .core import Hint, ask, compare, draw_noise, exercise, kind_of, numbers


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


SHARES, MEANS, WIDTH = np.array([1, 2]) / 3, np.array([-4, 2]) / 3, 1 / 3
GRID = np.linspace(-4, 4, 401)


def _alpha_bars(t):
    """The five schedules of chapter 1, from their formulas."""
    turn = np.pi / 2 / 1.008
    wave = [1 / (1 + np.exp(6 * x - 3)) for x in (t, 0.0, 1.0)]
    return {
        "linear": np.exp(-0.1 * t - 19.9 * t**2 / 2),
        "cosine": (np.cos((t + 0.008) * turn) / np.cos(0.008 * turn)).clip(
            0, 1
        )
        ** 2,
        "sqrt": 1 - np.sqrt((t + 1e-4) / 1.0001),
        "sigmoid": (wave[0] - wave[2]) / (wave[1] - wave[2]),
        "log-uniform": 1 / (1 + (0.05 * 400**t) ** 2),
    }


def _guess(z, a):
    """The posterior mean of chapter 1's two peaks."""
    variance = a * WIDTH**2 + 1 - a
    error = z[:, None] - np.sqrt(a) * MEANS
    fit = SHARES * np.exp(-(error**2) / (2 * variance))
    guess = MEANS + np.sqrt(a) * WIDTH**2 / variance * error
    return (fit * guess).sum(1) / fit.sum(1)


@functools.lru_cache
def _quantiles(n=6000):
    """Standard normal numbers without the chance in their draw."""
    quantile = statistics.NormalDist().inv_cdf
    return np.array([quantile((k + 0.5) / n) for k in range(n)])


def _run(bars, guessed=None, fresh=False):
    """Distance to the data after a run backwards; ``bars`` from t = 1."""
    z = _quantiles()
    n = len(z)
    bars = np.clip(bars, 1e-12, 1)
    guessed = bars if guessed is None else np.clip(guessed, 1e-12, 1)
    for i in range(len(bars) - 1):
        x0, a_t, a_s = _guess(z, guessed[i]), bars[i], bars[i + 1]
        noise, kept = (z - np.sqrt(a_t) * x0) / np.sqrt(1 - a_t), 1 - a_s
        if fresh:
            kept = (1 - a_s) ** 2 / (1 - a_t) * a_t / a_s
            new = np.sqrt(max(1 - a_s - kept, 0))
            noise_kept = np.sqrt(kept) * noise
            z = np.sqrt(a_s) * x0 + noise_kept + new * draw_noise(i, n)
        else:
            z = np.sqrt(a_s) * x0 + np.sqrt(kept) * noise
    bell = np.exp(-((GRID[:, None] - MEANS) ** 2) / (2 * WIDTH**2)) @ SHARES
    share = bell / bell.sum()
    below = np.searchsorted(np.sort(z), GRID) / n
    step = GRID[1] - GRID[0]
    return np.abs(below - share.cumsum() + share / 2).sum() * step


def _distances(steps=8, guess_by=None, fresh=False):
    bars = _alpha_bars(np.linspace(1, 0, steps + 1))
    guessed = bars.get(guess_by)
    return np.array([_run(row, guessed, fresh) for row in bars.values()])


@exercise("1.2")
def _eight_steps(answer):
    """Distance to the data after eight steps, for each schedule's name."""
    names = list(_alpha_bars(0.5))
    if callable(answer):
        answer = ask(answer)
    if not isinstance(answer, dict):
        raise Hint(
            "give a dictionary: the distance to the data for each schedule's "
            f"name; I was given {kind_of(answer)}."
        )
    if missing := [name for name in names if name not in answer]:
        raise Hint(f"these schedules are still missing: {', '.join(missing)}.")
    got = np.array(
        [numbers(answer[n], (), f"the distance of {n}") for n in names]
    )
    mistakes = {
        "these are the distances of the ancestral sampler; the deterministic "
        "one was asked for.": _distances(fresh=True),
        "in every run the denoiser was told the cosine schedule's share of "
        "signal; tell it that of the schedule that the run "
        "follows.": _distances(guess_by="cosine"),
        "these are the distances after 4 steps.": _distances(4),
        "these are the distances after 16 steps.": _distances(16),
        "all five are equal to the cosine schedule's: does the run follow "
        "the schedule of the loop?": np.full(5, _distances()[1]),
    }
    # Draws of the first noise differ: 15,000 numbers, about .01 either way.
    if np.abs(got - _distances()).max() > 0.015:
        far = {hint: np.abs(got - x).max() for hint, x in mistakes.items()}
        near = min(far, key=far.get)
        if far[near] < 0.035:
            raise Hint(near)
        raise Hint(
            "run the deterministic sampler from the same noise in 8 steps "
            "under each schedule, `run_backwards(best_guess, noise, 8, "
            "ancestral=False, schedule=...)`, and measure the last row of "
            "its path with `distance`."
        )
    return (
        "in eight steps cosine and sigmoid come nearest to these data and "
        "sqrt, made for words, ends about twice as far away. A schedule is "
        "also the grid of the sampler's steps."
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
