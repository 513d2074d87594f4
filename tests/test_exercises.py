"""Every exercise: right answers pass, blanks fail, wrong ones are named."""

import functools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dblm_lib import (
    decoding,
    diagnostics,
    exercises,
    metrics,
    noising,
    resources,
    schedules,
    text,
)
from dblm_lib.exercises import BLANK, check, verdict


def q_sample(x0, eps, alpha_bar):
    return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps


def bisect(schedule):
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if schedule.snr(middle) > 1:
            low = middle
        else:
            high = middle
    return middle


def on_grid(schedule):
    t = torch.linspace(0, 1, 1001)
    return t[(schedule.snr(t) - 1).abs().argmin()]


def nearest(vectors, table):
    unit = torch.nn.functional.normalize
    return (unit(vectors, dim=-1) @ unit(table, dim=-1).T).argmax(-1)


def noise_rest(x0, eps, alpha, sigma, keep):
    return torch.where(keep[..., None], x0, alpha * x0 + sigma * eps)


def noise_embedding(t, dim):
    rates = torch.exp(-math.log(1e4) * torch.arange(dim // 2) / (dim // 2))
    angles = 1000 * t[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def waves(rates, scale=1000.0, both=True):
    def embed(t, dim):
        angles = scale * t[:, None] * rates(dim)
        parts = [angles.sin(), angles.cos() if both else angles.sin()]
        return torch.cat(parts, dim=-1)

    return embed


def geometric(dim):
    return torch.exp(-math.log(1e4) * torch.arange(dim // 2) / (dim // 2))


def changed(j, seq_len, causal):
    return set(range(j if causal else 0, seq_len))


def masked_mse(prediction, target, mask):
    square = (prediction - target).square() * mask[..., None]
    return square.sum() / (mask.sum() * target.shape[-1])


def normalised_mse(prediction, target):
    return (prediction - target).square().mean() / target.var()


def learning_rate(step, peak, warmup, total):
    if step < warmup:
        return peak * step / warmup
    share = (step - warmup) / (total - warmup)
    return peak * (1 + math.cos(math.pi * share)) / 2


@functools.cache
def tale_world():
    """Three hundred tales, and a table of random embeddings for them."""
    tokenizer = resources.load_tokenizer("tales")
    tales = text.load("tales", size=4000, valid_size=100).train[:300]
    draw = torch.Generator().manual_seed(1)
    ids, _ = text.encode_batch(tales, tokenizer, seq_len=64)
    return ids, noising.random_table(len(tokenizer), 32, draw)


@functools.cache
def different(name, num_steps, step="deterministic", seed=0):
    """How many of 300 tales are among 300 texts of their exact denoiser."""
    ids, table = tale_world()
    schedule = schedules.get_schedule(name)
    x0_hat = decoding.sample(
        decoding.empirical_denoiser(table[ids], schedule),
        schedule,
        (300, 64, 32),
        num_steps,
        torch.Generator().manual_seed(seed),
        step,
    )
    found = noising.nearest(x0_hat, table)
    return len(set(map(tuple, found.tolist())) & set(map(tuple, ids.tolist())))


def recorded(**counts):
    """An answer to 5.1 that gives four recorded counts."""
    names = {"log2": ("log-uniform", 2), "cos2": ("cosine", 2)}
    names |= {"lin8": ("linear", 8), "sqrt8": ("sqrt", 8)}
    found = {names[key]: value for key, value in counts.items()}
    return lambda name, num_steps: found[name, num_steps]


def runs(tokens, n):
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def distinct_n(tokens, n):
    grams = runs(tokens, n)
    return len(set(grams)) / len(grams)


def top_token_share(tokens):
    return max(tokens.count(t) for t in tokens) / len(tokens)


def gain(clean, noised, denoised):
    def share(found):
        return sum(a == b for a, b in zip(found, clean)) / len(clean)

    return share(denoised) - share(noised)


def mean_distance(table):
    gaps = (table[:, None] - table[None]).norm(dim=-1)
    return gaps.sum() / (len(table) * (len(table) - 1))


def blame(broken, fixed_one, repaired_but_one, repaired):
    damage = repaired - broken
    alone = (fixed_one - broken) / damage
    return alone, (repaired - repaired_but_one) / damage


def mix(logits, table):
    return logits.softmax(-1) @ table


def likelihood(zt, table, alpha, sigma):
    return -(zt - alpha * table).square().sum(-1) / (2 * sigma**2)


def fit(levels, losses, count):
    wanted = np.linspace(losses[0], losses[-1], count)
    return np.exp(np.interp(wanted, losses, np.log(levels)))


RIGHT = {
    "1.1": [9.0, torch.tensor(9.0), lambda a: a / (1 - a)],
    "1.2": [
        q_sample,
        lambda x0, eps, a: schedules.closed_form(x0, a, eps),
        lambda x0, eps, a: math.sqrt(a) * x0 + math.sqrt(1 - a) * eps,
        lambda x0, eps, a: (a**0.5 * x0 + (1 - a) ** 0.5 * eps).numpy(),
    ],
    "1.3": [
        0.5,
        bisect,
        on_grid,
        torch.tensor(0.5),
        # The library's cosine is shifted a little, by s = 0.008.
        bisect(schedules.get_schedule("cosine")),
    ],
    "2.1": [nearest, lambda v, t: noising.nearest(v, t, "cosine")],
    "2.2": [
        5.956,
        lambda d, v: math.sqrt(d / (2 * math.log(v))),
        noising.information_band,
    ],
    "2.3": [noise_rest],
    "3.1": [
        lambda n: torch.ones(n, n).tril().bool(),
        lambda n: torch.ones(n, n).tril(),
        lambda n: [[j <= i for j in range(n)] for i in range(n)],
    ],
    "3.2": [
        noise_embedding,
        waves(lambda d: math.pi * 2.0 ** torch.arange(d // 2) / 16, 16.0),
    ],
    "3.3": [changed, lambda j, n, c: list(range(j, n)) if c else range(n)],
    "4.1": [
        masked_mse,
        lambda p, x, m: (p - x)[m.bool()].square().mean(),
    ],
    "4.2": [
        normalised_mse,
        lambda p, x: (p - x).square().mean() / x.var(correction=0),
        lambda p, x: (
            (p - x).square().mean() / x.flatten(0, 1).var(0).mean().item()
        ),
    ],
    "4.3": [
        learning_rate,
        lambda s, p, w, n: (
            p * (s + 1) / w if s < w else learning_rate(s, p, w, n)
        ),
    ],
    "5.1": [
        different,
        lambda name, n: different(name, n, "ancestral", 1),
        recorded(log2=194, cos2=121, lin8=190, sqrt8=172),
    ],
    "5.2": [distinct_n, lambda t, n: metrics.distinct_n([t], n)],
    "5.3": [top_token_share, lambda t: metrics.top_token_share([t])],
    "6.1": [
        gain,
        lambda c, z, x: np.mean(np.equal(c, x) * 1 - np.equal(c, z)),
    ],
    "6.2": [
        mean_distance,
        lambda e: torch.pdist(e).mean(),
        diagnostics.pairwise_distance,
    ],
    "6.3": [blame, lambda *s: torch.tensor(blame(*s))],
    "7.1": [
        mix,
        lambda x, e: torch.stack([F.softmax(row, 0) @ e for row in x]),
    ],
    "7.2": [
        likelihood,
        lambda z, e, a, s: likelihood(z, e, a, s) - 7,
        lambda z, e, a, s: (a / s) ** 2 * (e @ z / a - e.square().sum(-1) / 2),
        lambda z, e, a, s: (
            torch.distributions.Normal(a * e, s).log_prob(z).sum(-1)
        ),
    ],
    "7.3": [
        fit,
        lambda n, x, count: schedules.fit_warp(n, x, count, trim=0),
        lambda n, x, count: fit(n, x, count).tolist(),
    ],
}

WRONG = {
    "1.1": [
        (3.0, "square root"),
        (lambda a: math.sqrt(a / (1 - a)), "square root"),
        (1 / 9, "upside down"),
        (lambda a: math.log(a / (1 - a)), "logarithm"),
        (0.9, "divide it by the noise"),
        (lambda a: 1 - a, "noise's share alone"),
        (lambda a: a**2 / (1 - a**2), "already"),
        (17, "Divide the first by the second"),
        ("nine", "should be numbers"),
        ([9.0], "shape"),
    ],
    "1.2": [
        (lambda x, e, a: a * x + (1 - a) * e, "square root on alpha_bar"),
        (lambda x, e, a: a.sqrt() * x + (1 - a) * e, "1 - alpha_bar, and"),
        (lambda x, e, a: a * x + (1 - a).sqrt() * e, "on alpha_bar"),
        (lambda x, e, a: a**0.5 * x + (1 - a**0.5) * e, "not 1 - sqrt"),
        (lambda x, e, a: q_sample(e, x, a), "changed places"),
        (lambda x, e, a: a.sqrt() * x + e, "scale the noise"),
        (lambda x, e, a: x + (1 - a).sqrt() * e, "scale the signal"),
        (lambda x, e, a: a**0.5 * x - (1 - a) ** 0.5 * e, "sign"),
        (lambda x, e, a: q_sample(x, torch.randn(4, 3), a), "of your own"),
        (lambda x, e, a: x[0], "shape"),
        (lambda x, e, a: (a - 1).sqrt() * x, "NaN"),
        (lambda x, e, a: undefined, "NameError: name 'undefined'"),  # noqa: F821
        (q_sample(torch.zeros(1), torch.zeros(1), torch.ones(1)), "itself"),
        (lambda x: x, "TypeError"),
    ],
    "1.3": [
        (0.9, "keeps alpha_bar = 0.02"),
        (500, "step number"),
        (lambda schedule: 0.5, "middle of time"),
        (lambda s: 0.75 ** (1 / s.power), "alpha is one half"),
        (lambda s: 0.99, "too late"),
        (lambda s: 0.1, "too early"),
        (lambda s: s.snr, "should be numbers"),
    ],
    "2.1": [
        (lambda v, t: (v @ t.T).argmax(-1), "dot product"),
        (lambda v, t: torch.cdist(v, t).argmin(-1), "by distance"),
        (
            lambda v, t: torch.cosine_similarity(
                v[:, None], t[None], dim=-1
            ).argmin(-1),
            "smallest cosine",
        ),
        (
            lambda v, t: torch.cosine_similarity(v[:, None], t[None], dim=-1),
            "similarities",
        ),
        (
            lambda v, t: (
                torch.cosine_similarity(v[:, None], t[None], dim=-1)
                .max(-1)
                .values
            ),
            "their row",
        ),
        (lambda v, t: 3, "shape"),
        (lambda v, t: v @ t, "RuntimeError"),
    ],
    "2.2": [
        (lambda d, v: d / (2 * math.log(v)), "root"),
        (lambda d, v: math.sqrt(d / math.log(v)), "2 is missing"),
        (lambda d, v: math.sqrt(2 * math.log(v) / d), "upside down"),
        (lambda d, v: math.sqrt(d / (2 * math.log2(v))), "log2"),
        (lambda d, v: math.sqrt(d / (2 * math.log10(v))), "log10"),
        (lambda d, v: math.sqrt(d / (2 * v)), "logarithm of V"),
        (lambda d, v: math.sqrt(v / (2 * math.log(d))), "changed places"),
        (35.47, "root"),
    ],
    "2.3": [
        (lambda x, e, a, s, k: a * x + s * e, "put x0 back"),
        (lambda x, e, a, s, k: noise_rest(x, e, a, s, ~k), "upside down"),
        (
            lambda x, e, a, s, k: a * x + s * e * ~k[..., None],
            "scaled by alpha",
        ),
        (
            lambda x, e, a, s, k: (a * x + s * e) * ~k[..., None],
            "zero",
        ),
        (lambda x, e, a, s, k: x, "nothing was noised"),
        (lambda x, e, a, s, k: torch.where(k, x, e), "RuntimeError"),
    ],
    "3.1": [
        (lambda n: torch.ones(n, n), "no causal mask"),
        (lambda n: torch.ones(n, n).triu(), "future"),
        (lambda n: torch.ones(n, n).tril(-1), "diagonal"),
        (lambda n: torch.ones(n, n).triu(1), "hidden"),
        (lambda n: torch.eye(n), "only itself"),
        (
            lambda n: torch.full((n, n), -math.inf).triu(1),
            "added to the scores",
        ),
        (lambda n: torch.ones(n).bool(), "shape"),
        (lambda n: True, "shape ()"),
    ],
    "3.2": [
        (waves(geometric, both=False), "half cosines"),
        (waves(lambda d: torch.ones(d // 2)), "one frequency"),
        (waves(geometric, scale=1.0), "Multiply t by 1000"),
        (lambda t, d: torch.zeros(len(t), d), "does t enter"),
        (lambda t, d: noise_embedding(t, d // 2), "shape"),
        (lambda t, d: 3 * noise_embedding(t, d), "exceeds 1"),
    ],
    "3.3": [
        (lambda j, n, c: set(range(j + 1)), "not earlier"),
        (lambda j, n, c: changed(j, n, c) - {j}, "own position"),
        (lambda j, n, c: {j}, "passes it on"),
        (lambda j, n, c: set(range(n)), "never looks"),
        (lambda j, n, c: set(range(j, n)), "both sides"),
        (lambda j, n, c: {i + 1 for i in range(j, n)}, "counted from 0"),
        (lambda j, n, c: {1, 4}, "which rows"),
        (lambda j, n, c: 3, "set of positions"),
    ],
    "4.1": [
        (lambda p, x, m: (p - x).square().mean(), "padding counts"),
        (
            lambda p, x, m: ((p - x).square() * m[..., None]).mean(),
            "still counted",
        ),
        (lambda p, x, m: 3 * masked_mse(p, x, m), "numbers in each"),
        (lambda p, x, m: masked_mse(p, x, m) * 15, "sum"),
        (
            lambda p, x, m: (
                ((p - x).square().mean(-1) * m).sum(1) / m.sum(1)
            ).mean(),
            "short sentences",
        ),
        (lambda p, x, m: masked_mse(p, x, 1 - m), "upside down"),
        (lambda p, x, m: masked_mse(p, x, m).sqrt(), "root"),
        (
            lambda p, x, m: (p - x)[m.bool()].abs().mean(),
            "absolute",
        ),
        (lambda p, x, m: (p - x).square(), "one number"),
    ],
    "4.2": [
        (lambda p, x: (p - x).square().mean(), "plain MSE"),
        (lambda p, x: (p - x).square().mean() / x.std(), "standard"),
        (lambda p, x: x.var() / (p - x).square().mean(), "upside down"),
        (lambda p, x: (p - x).square().mean() / p.var(), "prediction"),
        (
            lambda p, x: (p - x).square().mean() / x.square().mean(),
            "mean off first",
        ),
        (lambda p, x: 1 - normalised_mse(p, x), "explained"),
        (lambda p, x: normalised_mse(p, x).sqrt(), "root"),
    ],
    "4.3": [
        (
            lambda s, p, w, n: p if s < w else learning_rate(s, p, w, n),
            "warm-up is missing",
        ),
        (
            lambda s, p, w, n: p * (1 + math.cos(math.pi * s / n)) / 2,
            "at step 0",
        ),
        (
            lambda s, p, w, n: p * min(s / w, 1 - (s - w) / (n - w)),
            "straight line",
        ),
        (
            lambda s, p, w, n: (
                p * (s / w if s < w else (1 + math.cos(math.pi * s / n)) / 2)
            ),
            "where the warm-up ends",
        ),
        (
            lambda s, p, w, n: (
                p * (s / w if s < w else math.cos(math.pi * (s - w) / (n - w)))
            ),
            "negative",
        ),
        (lambda s, p, w, n: p * min(s / w, 1), "stays at the peak"),
        (lambda s, p, w, n: learning_rate(s, 1, w, n), "multiply by"),
        (lambda s, p, w, n: p / 3, "0.50 were expected"),
    ],
    "5.1": [
        (recorded(log2=299, cos2=296, lin8=300, sqrt8=300), "a set keeps"),
        (recorded(log2=0.6, cos2=0.4, lin8=0.6, sqrt8=0.6), "is a share"),
        (recorded(log2=400, cos2=121, lin8=190, sqrt8=174), "0 to 300"),
        (recorded(log2=60, cos2=48, lin8=60, sqrt8=59), "draw 300 texts"),
        (recorded(log2=0, cos2=0, lin8=0, sqrt8=0), "draw 300 texts"),
        (lambda name, num_steps: 190, "do `name` and `num_steps`"),
        (lambda name, n: different(name, 8), "does `num_steps` reach"),
        # The denoiser, or the sampler, always has the cosine.
        (recorded(log2=123, cos2=121, lin8=194, sqrt8=176), "must know"),
        (recorded(log2=188, cos2=121, lin8=162, sqrt8=183), "the same sch"),
    ],
    "5.2": [
        (lambda t, n: len(set(runs(t, n))), "how many kinds"),
        (lambda t, n: len(set(runs(t, n))) / len(t), "not by the number"),
        (lambda t, n: len(set(t)) / len(t), "single tokens"),
        (lambda t, n: 1 - distinct_n(t, n), "share of repeats"),
        (
            lambda t, n: (
                len({tuple(t[i : i + n]) for i in range(0, len(t), n)})
                / len(range(0, len(t), n))
            ),
            "do not overlap",
        ),
        (lambda t, n: len(t) / 0, "ZeroDivision"),
        (lambda t, n: 0.123, "your share is 0.123"),
    ],
    "5.3": [
        (lambda t: max(t.count(x) for x in t), "how often"),
        (lambda t: max(t, key=t.count), "token itself"),
        (lambda t: len(set(t)) / len(t), "distinct-1"),
        (lambda t: t.count(t[0]) / len(t), "first token"),
        (lambda t: min(t.count(x) for x in t) / len(t), "rarest"),
        (lambda t: 1 - top_token_share(t), "all other tokens"),
        (lambda t: max(t.count(x) for x in t) / len(set(t)), "different"),
    ],
    "6.1": [
        (lambda c, z, x: gain(c, c, x) + 1, "before?"),
        (lambda c, z, x: gain(c, c, z) + 1, "without a network"),
        (lambda c, z, x: gain(c, x, z), "other way round"),
        (lambda c, z, x: 8 * gain(c, z, x), "a count"),
        (lambda c, z, x: 4, "each beside"),
        (
            lambda c, z, x: (
                sum(b == a != n for a, n, b in zip(c, z, x)) / len(c)
            ),
            "counts against",
        ),
        (lambda c, z, x: 0.123, "divide the difference"),
    ],
    "6.2": [
        (lambda e: (e[:, None] - e).norm(dim=-1).mean(), "to itself"),
        (lambda e: torch.pdist(e).sum(), "the sum"),
        (lambda e: torch.pdist(e).square().mean(), "squared"),
        (lambda e: torch.pdist(e).square().mean().sqrt(), "root of a mean"),
        (lambda e: (e - e.mean(0)).norm(dim=-1).mean(), "mean row"),
        (lambda e: torch.pdist(e).mean() / 2, "twice"),
        (lambda e: torch.pdist(e), "shape (10,)"),
        (lambda e: e.norm(dim=-1).mean(), "each pair"),
    ],
    "6.3": [
        (lambda *s: blame(*s)[::-1], "first alone"),
        (lambda b, f, o, r: (f - b, r - o), "differences"),
        (lambda b, f, o, r: ((b - f) / (r - b), (o - r) / (r - b)), "signs"),
        (lambda b, f, o, r: ((f - b) / r, (r - o) / r), "repaired model's"),
        (
            lambda b, f, o, r: (blame(b, f, o, r)[0], (o - r) / (r - b)),
            "second",
        ),
        (lambda *s: (blame(*s)[0], 1 - blame(*s)[0]), "leaves over"),
        (lambda *s: blame(*s)[0], "shape ()"),
        (lambda *s: (0.3, 0.3), "repaired minus broken"),
    ],
    "7.1": [
        (lambda x, e: x @ e, "softmax is missing"),
        (lambda x, e: x.exp() @ e, "add up to 1"),
        (lambda x, e: x.softmax(0) @ e, "over positions"),
        (lambda x, e: e[x.argmax(-1)], "likeliest token"),
        (lambda x, e: e.mean(0).expand(len(x), -1), "plain mean"),
        (lambda x, e: x.softmax(-1), "shape (4, 6)"),
        (lambda x, e: 0 * mix(x, e), "turn the logits"),
    ],
    "7.2": [
        (lambda *given: likelihood(*given).exp(), "logarithm"),
        (lambda *given: -likelihood(*given), "sign"),
        (lambda *given: 2 * likelihood(*given), "by two"),
        (lambda z, e, a, s: likelihood(z, e, a, 0.5**0.5), "2 sigma²: how"),
        (lambda z, e, a, s: likelihood(z, e, a, 1), "halving is right"),
        (lambda z, e, a, s: likelihood(z, e, a, s**0.5), "not by sigma."),
        (
            lambda z, e, a, s: -(z - a * e).norm(dim=-1) / (2 * s**2),
            "its square",
        ),
        (lambda z, e, a, s: likelihood(z, e, 1, s), "alpha is missing"),
        (lambda z, e, a, s: a / s**2 * e @ z, "half square"),
        (lambda z, e, a, s: e[:, 0], "square the distances"),
    ],
    "7.3": [
        (lambda n, x, count: np.log(fit(n, x, count)), "exponential"),
        (lambda n, x, count: np.linspace(x[0], x[-1], count), "the losses"),
        (
            lambda n, x, count: np.interp(
                np.linspace(x[0], x[-1], count), x, n
            ),
            "not the level",
        ),
        (lambda n, x, count: np.linspace(n[0], n[-1], count), "equal steps;"),
        (lambda n, x, count: np.geomspace(n[0], n[-1], count), "factors"),
        (lambda n, x, count: fit(n, x, count)[::-1], "low to high"),
        (lambda n, x, count: fit(n, x, count + 1), "shape (7,)"),
        (lambda n, x, count: [0.3] * count, "first and the last"),
    ],
}


def flatten(table):
    return [
        pytest.param(number, case, id=f"{number}-{i}")
        for number, cases in table.items()
        for i, case in enumerate(cases)
    ]


def test_every_exercise_is_tested():
    assert set(exercises.REGISTRY) == set(RIGHT) == set(WRONG)
    assert all(len(wrong) >= 3 for wrong in WRONG.values())
    for chapter in "1234567":
        assert sum(n.startswith(f"{chapter}.") for n in RIGHT) >= 3


@pytest.mark.parametrize(("number", "answer"), flatten(RIGHT))
def test_right_answer_passes(number, answer):
    said = verdict(number, answer)
    assert said.ok, said
    assert str(said).startswith("Right: ")


@pytest.mark.parametrize(("number", "case"), flatten(WRONG))
def test_wrong_answer_is_named(number, case):
    answer, hint = case
    said = verdict(number, answer)
    assert not said.ok
    assert hint in said.message
    assert str(said).startswith("Not yet: ")


@pytest.mark.parametrize("number", RIGHT)
def test_blank_is_not_yet(number):
    for blank in (..., None, lambda *_: ..., lambda *_: None):
        said = verdict(number, blank)
        assert not said.ok
        assert BLANK[:-1] in said.message
    assert verdict(number) == verdict(number, ...)


@pytest.mark.parametrize("number", RIGHT)
@pytest.mark.parametrize(
    "odd", ["text", {}, [], object(), int, float("nan"), b"\xff", -1, [[1], 2]]
)
def test_odd_answers_never_raise(number, odd):
    for answer in (odd, lambda *_: odd):
        assert not verdict(number, answer).ok


@pytest.mark.parametrize("number", RIGHT)
def test_a_crash_is_reported_kindly(number):
    def crash(*_):
        raise RuntimeError("the dog\nhas eaten it")

    def leave(*_):
        raise SystemExit

    for function in (crash, leave):
        said = verdict(number, function)
        assert "your function stopped with" in said.message
    assert "RuntimeError: the dog" in verdict(number, crash).message
    assert "\n" not in verdict(number, crash).message


def test_check_prints_one_line_and_returns_nothing(capsys):
    assert check("1.1", 9) is None
    assert check(1.1, 3) is None
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["Right", "Not yet"]


@pytest.mark.parametrize(("typed", "meant"), [("1.22", "1.2"), ("4,1", "4.1")])
def test_unknown_exercise_names_the_nearest(typed, meant):
    said = verdict(typed, 9)
    assert not said.ok
    assert f"no exercise {typed}; did you mean {meant}?" in said.message


def test_each_chapter_has_its_file_and_each_file_is_read():
    """A checker stands in the file of the chapter that its number names."""
    folder = Path(exercises.__file__).parent
    notebooks = (folder.parents[1] / "chapters").glob("[0-9]*.ipynb")
    chapters = dict(sorted(path.stem.split("_", 1) for path in notebooks))
    del chapters["00"]  # the welcome
    files = {path.stem for path in folder.glob("*.py")}
    assert [*exercises.CHAPTERS] == [*chapters.values()]
    assert files - {"__init__", "core"} == set(exercises.CHAPTERS)
    for number, checker in exercises.REGISTRY.items():
        chapter = chapters[f"{int(number.split('.')[0]):02}"]
        assert checker.__module__ == f"dblm_lib.exercises.{chapter}"


def test_import_is_light():
    code = "import sys, dblm_lib.exercises; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
