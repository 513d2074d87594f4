"""Every exercise: right answers pass, blanks fail, wrong ones are named."""

import functools
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dblm_lib import (
    decoding,
    exercises,
    metrics,
    noising,
    resources,
    schedules,
    tales,
    text,
    unmasking,
)
from dblm_lib.exercises import (
    BLANK,
    check,
    embedding_noising,
    gaussian_schedules,
    verdict,
)
from dblm_lib.likelihood import step_weights

PEAKS = (torch.tensor([-4, 2]) / 3, torch.ones(2) / 3, torch.tensor([1, 2]))


def eight_steps(steps=8, fresh=False, told=None, seed=0):
    """Chapter 1's distances to the data, by the library's own functions."""
    x = torch.linspace(-4, 4, 401).double()
    bells = [
        share * torch.exp(-((x - mean) ** 2) / (2 / 9))
        for mean, _, share in zip(*PEAKS, strict=True)
    ]
    clean = sum(bells) / sum(bells).sum()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(15_000, generator=generator).double()
    found = {}
    for name in ("linear", "cosine", "sqrt", "sigmoid", "log-uniform"):
        schedule = schedules.get_schedule(name)
        z, a = noise, schedule.alpha_bar(torch.linspace(1, 0, steps + 1))
        b = told.alpha_bar(torch.linspace(1, 0, steps + 1)) if told else a
        for i in range(steps):
            x0 = schedules.mixture_denoiser(z, b[i], *PEAKS)
            if fresh:
                mean, variance = schedules.posterior(x0, z, a[i + 1], a[i])
                eps = torch.randn(len(z), generator=generator)
                z = mean + variance.clamp(min=0).sqrt() * eps
            else:
                eps = (z - a[i].sqrt() * x0) / (1 - a[i]).sqrt()
                z = schedules.closed_form(x0, a[i + 1], eps)
        below = torch.searchsorted(z.sort().values, x) / len(z)
        gap = below - clean.cumsum(0) + clean / 2
        found[name] = gap.abs().sum() * (x[1] - x[0])
    return found


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


def half_lost(dim, vocab_size):
    """Where a measured recovery curve comes nearest to one half."""
    generator = torch.Generator().manual_seed(0)
    rows = noising.random_table(vocab_size, dim, generator)
    levels = torch.linspace(6, 8, 21)
    share = noising.recovery_curve(rows, levels, generator)
    return levels[(share - 0.5).abs().argmin()]


def sharpen(shares, tau):
    powers = {o: p ** (1 / tau) for o, p in shares.items()}
    total = sum(powers.values())
    return {o: value / total for o, value in powers.items()}


def gaps_at(shares, tau):
    cold = sharpen(shares, tau)
    return [abs(cold[o] - shares[o]) for o in shares]


def distance_at(shares, tau):
    return sum(gaps_at(shares, tau)) / 2


def choose(rows, share, steps):
    good = [
        row
        for row in rows
        if 0 < row["num_steps"] <= steps and row["coherent"] >= share
    ]
    return min(good, key=lambda row: row["slot_distance"])


def shuffled(rows, rng):
    return [rng.sample(row, len(row)) for row in rows]


def zero(measure, draw, count, repeats):
    pairs = [(draw(count), draw(count)) for _ in range(repeats)]
    return sum(measure(a, b) for a, b in pairs) / repeats


def sets_first(measure, draw, count, repeats):
    """All first sets are drawn before all others."""
    ones, others = ([draw(count) for _ in range(repeats)] for _ in range(2))
    return sum(map(measure, ones, others)) / repeats


def gap_of(one, other):
    return sum(a != b for a, b in zip(one, other))


def changed_share(found, known, slots, of=min, least=1):
    nearest = [of(gap_of(tale, k) for k in known) for tale in found]
    return sum(least <= n <= slots for n in nearest) / len(found)


def noise_rest(x0, eps, alpha, sigma, keep):
    return torch.where(keep[..., None], x0, alpha * x0 + sigma * eps)


def changed(j, seq_len, causal):
    return set(range(j if causal else 0, seq_len))


def windowed(evidence, w, left=None):
    place = torch.arange(evidence.shape[-1])
    apart = place[:, None] - place
    near = (apart <= (w if left is None else left)) & (-apart <= w)
    return evidence @ near.T.to(evidence.dtype)


def shifted(evidence, w):
    total = torch.zeros_like(evidence)
    for k in range(-min(w, 6), min(w, 6) + 1):
        total += torch.roll(evidence, k, dims=-1)
    return total


def probe(states, targets, new_states, penalty):
    mean, middle = states.mean(0), targets.mean(0)
    x = states - mean
    squares = x.T @ x + penalty * torch.eye(x.shape[1])
    return middle + (new_states - mean) @ torch.linalg.solve(
        squares, x.T @ (targets - middle)
    )


def probe_by_rows(states, targets, new_states, penalty):
    # The penalty as further observations: least squares does the rest.
    mean, middle = states.mean(0), targets.mean(0)
    size = states.shape[1]
    x = torch.cat([states - mean, penalty**0.5 * torch.eye(size)])
    y = torch.cat([targets - middle, torch.zeros(size, targets.shape[1])])
    return middle + (new_states - mean) @ torch.linalg.lstsq(x, y).solution


def without_constant(x, y, new, p):
    return new @ torch.linalg.solve(x.T @ x + p * torch.eye(4), x.T @ y)


def penalised_constant(x, y, new, p):
    x, new = (F.pad(v, (0, 1), value=1.0) for v in (x, new))
    return new @ torch.linalg.solve(x.T @ x + p * torch.eye(5), x.T @ y)


def masked_mse(prediction, target, mask):
    square = (prediction - target).square() * mask[..., None]
    return square.sum() / (mask.sum() * target.shape[-1])


def stratified(count, generator):
    shift = torch.rand(count, generator=generator)
    return (torch.arange(count) + shift) / count


def one_shift(count, generator):
    shift = torch.rand(1, generator=generator)
    return (torch.arange(count) / count + shift) % 1


def importance(count, generator, power=3):
    """Draw with the density ``power`` t^(power - 1), weigh by one over it."""
    t = (1 - torch.rand(count, generator=generator)) ** (1 / power)
    return t, 1 / (power * t ** (power - 1))


def independent(count, generator):
    return torch.rand(count, generator=generator)


@functools.cache
def tale_world():
    """Three hundred tales, and a table of random embeddings for them."""
    tokenizer = resources.load_tokenizer("tales")
    some = text.load("tales", size=4000, valid_size=100).train[:300]
    draw = torch.Generator().manual_seed(1)
    ids, _ = text.encode_batch(some, tokenizer, seq_len=64)
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


def still_found(table, ids, keep):
    mean = table[ids].mean(dim=0)
    shrunk = mean + keep * (table[ids] - mean)
    return (noising.nearest(shrunk, table) == ids).double().mean()


def shrunk_to(centre):
    """An answer to 6.1 with another centre."""

    def found(table, ids, keep):
        middle = centre(table, ids)
        points = middle + keep * (table[ids] - middle)
        return (noising.nearest(points, table) == ids).double().mean()

    return found


def by_chance(seeds, sides=2, paired=False, repeats=40_000):
    draw = torch.Generator().manual_seed(seeds)
    ours, theirs = torch.randn(2, repeats, seeds, generator=draw)
    if paired:
        above, below = (ours > theirs).all(1), (ours < theirs).all(1)
    else:
        above = ours.amin(1) > theirs.amax(1)
        below = theirs.amin(1) > ours.amax(1)
    return (above | below if sides == 2 else above).double().mean()


def weigh(gain):
    neither, both = gain(False, False), gain(True, True)
    first, second = gain(True, False), gain(False, True)
    damage = both - neither
    return [
        [(first - neither) / damage, (both - second) / damage],
        [(second - neither) / damage, (both - first) / damage],
    ]


def mix(logits, table):
    return logits.softmax(-1) @ table


def likelihood(zt, table, alpha, sigma):
    return -(zt - alpha * table).square().sum(-1) / (2 * sigma**2)


def fit(levels, losses, count):
    wanted = np.linspace(losses[0], losses[-1], count)
    return np.exp(np.interp(wanted, losses, np.log(levels)))


def by_masks(nats, steps, divisor=lambda k: k):
    """Exercise 9.1, with the divisor of step k."""
    total, length = 0.0, len(nats)
    for k in range(1, steps + 1):
        chance = torch.distributions.Binomial(length, probs=k / steps)
        counts = torch.arange(1.0, length + 1)
        share = chance.log_prob(counts).exp()
        if k == steps:
            share = (counts == length).float()
        total += (share @ torch.tensor(nats)).item() / divisor(k)
    return total


def rightmost(step):
    """Exercise 9.2, row by row."""
    found = torch.zeros_like(step.masked)
    for row, masked, count in zip(found, step.masked, step.quota):
        row[masked.nonzero()[-int(count) :, 0]] = True
    return found


def others_of(step):
    """As many masks as asked for, neither the left nor the right ones."""
    return torch.tensor([[1, 0, 0, 0, 1], [1, 0, 0, 0, 0]]).bool()


RIGHT = {
    "1.1": [9.0, torch.tensor(9.0), lambda a: a / (1 - a)],
    "1.2": [
        eight_steps(),
        eight_steps(seed=1),
        {name: float(far) for name, far in eight_steps(seed=2).items()},
    ],
    "1.3": [
        0.5,
        bisect,
        on_grid,
        torch.tensor(0.5),
        # The library's cosine is shifted a little, by its offset of 0.008.
        bisect(schedules.get_schedule("cosine")),
    ],
    "2.1": [
        lambda u: 0.6 + 0.4 * u,
        lambda u: torch.where(u < 0.25, u, 0.7 + 0.3 * u),
        lambda u: u.numpy() * 0.4 + 0.6,
        lambda u: u**0.25,
    ],
    "2.2": [
        (6.94, 6.088),
        (half_lost(512, 1000), noising.information_band(512, 1000)),
        torch.tensor([7.0, 6.0877]),
    ],
    "2.3": [noise_rest],
    "3.1": [changed, lambda j, n, c: list(range(j, n)) if c else range(n)],
    "3.2": [
        windowed,
        lambda e, w: torch.stack(
            [
                e[..., max(i - w, 0) : i + w + 1].sum(-1)
                for i in range(e.shape[-1])
            ],
            dim=-1,
        ),
    ],
    "3.3": [probe, probe_by_rows],
    "4.1": [
        masked_mse,
        lambda p, x, m: (p - x)[m.bool()].square().mean(),
    ],
    "4.2": [
        stratified,
        one_shift,
        lambda n, g: importance(n, g, power=2),
        lambda n, g: (stratified(n, g), torch.ones(n)),
    ],
    "4.3": [
        lambda alpha, sigma: alpha**2 / sigma**2,
        lambda alpha, sigma: float(1 / sigma**2 - 1),
    ],
    "5.1": [
        different,
        lambda name, n: different(name, n, "ancestral", 1),
        recorded(log2=194, cos2=121, lin8=190, sqrt8=172),
    ],
    "5.2": [distinct_n, lambda t, n: metrics.distinct_n([t], n)],
    "5.3": [top_token_share, lambda t: metrics.top_token_share([t])],
    "6.1": [
        still_found,
        shrunk_to(lambda table, ids: table[ids].mean(dim=0)),
    ],
    "6.2": [
        by_chance,
        lambda seeds: by_chance(seeds, repeats=10_000),
        lambda seeds: 2 / math.comb(2 * seeds, seeds),
    ],
    "6.3": [weigh, lambda gain: torch.tensor(weigh(gain))],
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
    "8.1": [
        sharpen,
        lambda shares, tau: dict(
            zip(
                shares,
                (torch.tensor([*shares.values()]).log() / tau).softmax(0),
            )
        ),
    ],
    "8.2": [
        distance_at,
        lambda shares, tau: metrics.total_variation(
            Counter(sharpen(shares, tau)), shares
        ),
    ],
    "8.3": [choose],
    "9.1": [
        by_masks,
        lambda nats, steps: (
            step_weights(steps, len(nats)) @ torch.tensor(nats).double()
        ),
    ],
    "9.2": [
        rightmost,
        lambda step: step.best(torch.arange(5.0).expand(step.ids.shape)),
    ],
    "9.3": [
        lambda p, steps: 1 - unmasking.race_share(p / steps),
        lambda p, steps: 1 - float(unmasking.race_share(p / steps, 24)),
    ],
    "11.1": [
        shuffled,
        lambda rows, rng: [
            sorted(r, key=lambda _: rng.random()) for r in rows
        ],
    ],
    "11.2": [zero, sets_first],
    "11.3": [changed_share, lambda f, k, s: changed_share(f, set(k), s)],
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
        (eight_steps(fresh=True), "ancestral"),
        (eight_steps(told=schedules.Cosine()), "was told the cosine"),
        (eight_steps(4), "after 4 steps"),
        (eight_steps(16), "after 16 steps"),
        (dict.fromkeys(eight_steps(1), 0.085), "of the loop"),
        (eight_steps(2), "run the deterministic sampler"),
        ({"cosine": 0.08}, "missing: linear, sqrt, sigmoid, log-uniform"),
        (dict.fromkeys(eight_steps(1), "near"), "should be numbers"),
        ([0.1] * 5, "dictionary"),
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
        (lambda u: u, "uniform times themselves"),
        (lambda u: 1 - u, "Move times to where it is later"),
        (lambda u: u**0.5, "is later"),
        (lambda u: 0.97 + 0.03 * u, "is earlier"),
        (lambda u: 0.72 + 0.28 * u, "a tenth below the band"),
        (lambda u: 0.62 + 0.28 * u, "a tenth above the band"),
        (lambda u: 2 + 8 * u, "not noise levels"),
        (lambda u: torch.full_like(u, 0.8), "a single noise level"),
        (lambda u: u[:10], "shape"),
        (lambda u: u.log(), "lie between 0 and 1"),
    ],
    "2.2": [
        ((6.95, 512 / (2 * math.log(1000))), "square of the rule"),
        ((6.95, math.sqrt(512 / math.log(1000))), "2 of the rule is missing"),
        ((6.95, math.sqrt(2 * math.log(1000) / 512)), "upside down"),
        ((6.95, math.sqrt(512 / (2 * math.log2(1000)))), "log2"),
        ((6.95, math.sqrt(512 / (2 * math.log10(1000)))), "log10"),
        ((6.95, math.sqrt(512 / 2000)), "lacks the logarithm"),
        ((6.95, math.sqrt(1000 / (2 * math.log(512)))), "changed places"),
        ((6.95, 9.5), "your second number is 9.50"),
        ((6.088, 6.95), "wrong way round"),
        ((6.088, 6.088), "measure it"),
        ((4.4, 6.088), "about 95% of the tokens come back"),
        ((15.5, 6.088), "about 5%"),
        (6.95, "shape"),
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
        (lambda j, n, c: set(range(j + 1)), "not earlier"),
        (lambda j, n, c: changed(j, n, c) - {j}, "own position"),
        (lambda j, n, c: {j}, "passes it on"),
        (lambda j, n, c: set(range(n)), "never looks"),
        (lambda j, n, c: set(range(j, n)), "both sides"),
        (lambda j, n, c: {i + 1 for i in range(j, n)}, "counted from 0"),
        (lambda j, n, c: {1, 4}, "which rows"),
        (lambda j, n, c: 3, "set of positions"),
    ],
    "3.2": [
        (lambda e, w: windowed(e, 0, left=w), "to the left only"),
        (lambda e, w: windowed(e, w) - e, "itself is missing"),
        (
            lambda e, w: windowed(e, w) / windowed(torch.ones_like(e), w),
            "averaged",
        ),
        (lambda e, w: windowed(e, w // 2), "w / 2"),
        (lambda e, w: windowed(e, w - 1), "one place too early"),
        (shifted, "round the corner"),
        (lambda e, w: windowed(e, 9), "does w enter"),
        (lambda e, w: e.cumsum(-1), "up to i"),
        (lambda e, w: e, "itself only"),
        (lambda e, w: -windowed(e, w), "i - w to i + w"),
        (lambda e, w: e.sum(-1), "shape"),
    ],
    "3.3": [
        (without_constant, "constant is missing"),
        (
            lambda x, y, new, p: probe(x, y - y.mean(0), new, p),
            "never added again",
        ),
        (
            lambda x, y, new, p: probe(x, y, new - new.mean(0) + x.mean(0), p),
            "mean of their own",
        ),
        (
            lambda x, y, new, p: probe(x, y, new + x.mean(0), p),
            "not centred",
        ),
        (lambda x, y, new, p: probe(x, y, new, 0), "does not enter"),
        (
            lambda x, y, new, p: probe(x, y, new, len(x) * p),
            "beside their mean",
        ),
        (penalised_constant, "penalised too"),
        (
            lambda x, y, new, p: y.mean(0).expand(len(new), -1),
            "states do not enter",
        ),
        (lambda x, y, new, p: probe(x, y, x, p), "shape (30, 3)"),
        (lambda x, y, new, p: 2 * probe(x, y, new, p), "XᵀX"),
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
        (independent, "share out [0, 1]"),
        (lambda n, g: (torch.arange(n) + 0.5) / n, "the same times"),
        (lambda n, g: importance(n, g)[0], "density of t"),
        (lambda n, g: stratified(n, g).square(), "Draw each time uniformly"),
        (lambda n, g: (stratified(n, g), torch.full((n,), 2.0)), "weight 1 /"),
        (lambda n, g: stratified(n, g) + 1, "between 0 and 1"),
        (lambda n, g: stratified(n, g)[:3], "(8,) was expected"),
        (lambda n, g: (stratified(n, g), torch.ones(1)), "the weight has"),
    ],
    "4.3": [
        (lambda a, s: a / s, "its root"),
        (lambda a, s: s**2 / a**2, "upside down"),
        (lambda a, s: s / a, "noise level"),
        (lambda a, s: a**2, "sigma belongs"),
        (lambda a, s: 1 / s**2, "multiplied by alpha"),
        (lambda a, s: torch.ones(()), "with weight 1"),
        (lambda a, s: a**2 / s**2 / 2, "no half"),
        (lambda a, s: a + s, "zt drops out"),
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
        (shrunk_to(lambda e, ids: e.mean(0)), "not that of all rows"),
        (shrunk_to(lambda e, ids: e[ids.unique()].mean(0)), "five times"),
        (shrunk_to(lambda e, ids: torch.zeros(3)), "towards zero"),
        (lambda e, ids, k: still_found(e, ids, 1 - k), "other way round"),
        (lambda e, ids, k: 20 * still_found(e, ids, k), "a count"),
        (lambda e, ids, k: 1 - still_found(e, ids, k), "lost"),
        (lambda e, ids, k: 0.123, "nearest row"),
        (lambda e, ids, k: ids, "shape (20,)"),
    ],
    "6.2": [
        (lambda n: by_chance(n, sides=1), "one direction only"),
        (lambda n: by_chance(n, paired=True), "run by run"),
        (lambda n: by_chance(2), "do you draw `seeds`"),
        (lambda n: 40_000 * by_chance(n), "between 0 and 1"),
        (lambda n: 1 - by_chance(n), "do not overlap"),
        (lambda n: by_chance(n + 1), "do not overlap"),
        (lambda n: "often", "should be numbers"),
    ],
    "6.3": [
        (lambda g: torch.tensor(weigh(g)).T, "one row for each"),
        (lambda g: torch.tensor(weigh(g)).flip(1), "first alone"),
        (lambda g: torch.tensor(weigh(g)) / 2, "differences"),
        (lambda g: -torch.tensor(weigh(g)), "signs"),
        (lambda g: torch.tensor(weigh(g)) * 5, "not the gain with both"),
        (
            lambda g: [
                [alone, given]
                for (alone, _), (_, given) in zip(weigh(g), weigh(g)[::-1])
            ],
            "wrong way round",
        ),
        (lambda g: weigh(g)[0], "shape (2,)"),
        (lambda g: [[0.3, 0.3], [0.3, 0.3]], "the damage is"),
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
    "8.1": [
        (lambda s, tau: {o: p ** (1 / tau) for o, p in s.items()}, "add up"),
        (lambda s, tau: sharpen(s, 1 / tau), "exponent is 1 / temperature"),
        (lambda s, tau: s, "belongs into the exponent"),
        (lambda s, tau: {o: p / tau for o, p in s.items()}, "p itself"),
        (
            lambda s, tau: dict(
                zip(s, (torch.tensor([*s.values()]) / tau).softmax(0))
            ),
            "softmax of p",
        ),
        (lambda s, tau: dict.fromkeys(s, 0.25), "raise each"),
        (lambda s, tau: list(s.values()), "same options"),
    ],
    "8.2": [
        (lambda s, tau: 2 * distance_at(s, tau), "half of the sum"),
        (lambda s, tau: distance_at(s, tau) / 2, "their mean"),
        (lambda s, tau: 0, "absolute values the"),
        (lambda s, tau: distance_at(s, 1 / tau), "exponent"),
        (lambda s, tau: max(gaps_at(s, tau)), "their largest"),
        (lambda s, tau: sum(g**2 for g in gaps_at(s, tau)), "no squares"),
        (lambda s, tau: 0.9, "sharpen the shares"),
    ],
    "8.3": [
        (lambda rows, share, steps: rows[0], "left to right"),
        (lambda rows, share, steps: rows[1], "not coherent"),
        (lambda rows, share, steps: rows[3], "nearer"),
        (lambda rows, share, steps: rows[4], "too many"),
        (lambda rows, share, steps: rows[5], "smallest"),
        (lambda rows, share, steps: 0.12, "one of the rows"),
    ],
    "9.1": [
        (lambda nats, steps: by_masks(nats, steps, lambda k: 1), "without"),
        (lambda nats, steps: by_masks(nats, steps, lambda k: steps), "1/T"),
        (
            lambda nats, steps: by_masks(nats, steps, lambda k: k / steps),
            "not averaged",
        ),
        (
            lambda nats, steps: sum(v / n for n, v in enumerate(nats, 1)),
            "continuous time",
        ),
        (
            lambda nats, steps: sum(
                nats[round(len(nats) * k / steps) - 1] / k
                for k in range(1, steps + 1)
            ),
            "binomial",
        ),
        (lambda nats, steps: nats[-1], "add up over"),
        (lambda nats, steps: nats, "shape (6,)"),
    ],
    "9.2": [
        (unmasking.left_to_right, "takes the highest scores"),
        (lambda step: step.masked, "reveal `step.quota`"),
        (lambda step: ~step.masked, "visible position"),
        (lambda step: step.masked[:1], "shape (1, 5)"),
        (lambda step: step.masked.long(), "True and False"),
        (lambda step: step.masked & False, "reveal `step.quota`"),
        (
            lambda step: step.masked & others_of(step),
            "rightmost masks are wanted",
        ),
    ],
    "9.3": [
        (lambda p, steps: unmasking.race_share(p / steps), "is drawn; how"),
        (lambda p, steps: 1 - unmasking.race_share(p), "divide p"),
        (lambda p, steps: 1 - unmasking.race_share(p / steps, 53), "float64"),
        (
            lambda p, steps: 1 - unmasking.race_share(p / steps) ** steps,
            "T times",
        ),
        (lambda p, steps: 0.5, "is p / T"),
    ],
    "11.1": [
        (lambda rows, rng: rows, "as they came in"),
        (lambda rows, rng: rows[:2], "as many as came in"),
        (lambda rows, rng: [sorted(row) for row in rows], "which order"),
        (lambda rows, rng: [row[:-1] for row in rows], "as often as before"),
        (lambda rows, rng: [[*row, "end"] for row in rows], "add none"),
        (lambda rows, rng: ["a text"] * len(rows), "a list of tokens"),
        (lambda rows, rng: [rng.shuffle(r) or r[::-1] for r in rows], "copy"),
    ],
    "11.2": [
        (lambda m, d, n, k: m(*[d(n)] * 2), "4 repetitions need 8"),
        (lambda m, d, n, k: zero(m, d, n, k) * k, "the sum"),
        (lambda m, d, n, k: 0.07, "use `draw(count)`"),
        (lambda m, d, n, k: zero(m, d, k, k), "`count` texts"),
        (
            lambda m, d, n, k: sum(m(a, a) for a in map(d, [n] * k)) / k,
            "two fresh sets",
        ),
        (
            lambda m, d, n, k: np.mean([m(d(n), a) for a in [d(n)] * k]),
            "not one of them",
        ),
        (
            lambda m, d, n, k: max(m(d(n), d(n)) for _ in range(k)),
            "the mean was asked for",
        ),
    ],
    "11.3": [
        (lambda f, k, s: changed_share(f, k, s, least=0), "a copy differs"),
        (lambda f, k, s: changed_share(f, k, s) * len(f), "divide by"),
        (lambda f, k, s: changed_share(f, k, s - 1), "at most"),
        (lambda f, k, s: changed_share(f, k, s, least=s), "exactly"),
        (lambda f, k, s: changed_share(f, k[:1], s), "every known tale"),
        (lambda f, k, s: changed_share(f, k, s, of=max), "not the largest"),
        (lambda f, k, s: 0.5, "take the smallest"),
    ],
}


def test_the_temperature_of_the_exercise_is_that_of_a_softmax():
    """And what it costs the objects of the grammar."""
    shares = tales.choices()["object"]
    assert 0.05 < distance_at(shares, 0.6) < 0.3
    assert distance_at(shares, 1) == pytest.approx(0)


def flatten(table):
    return [
        pytest.param(number, case, id=f"{number}-{i}")
        for number, cases in table.items()
        for i, case in enumerate(cases)
    ]


def test_every_exercise_is_tested():
    assert set(exercises.REGISTRY) == set(RIGHT) == set(WRONG)
    assert all(len(wrong) >= 3 for wrong in WRONG.values())
    for chapter in (*"123456789", "11"):
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
def test_blank_is_an_invitation(number):
    """Dots fail without a word of failure."""
    for blank in (..., None, lambda *_: ...):
        said = verdict(number, blank)
        assert said.blank
        assert not said.ok
        assert str(said) == f"Exercise {number}: {BLANK}"
    assert verdict(number) == verdict(number, ...)


@pytest.mark.parametrize("number", RIGHT)
def test_a_function_without_return_is_told_so(number):
    said = verdict(number, lambda *_: None)
    assert not said.ok
    assert not said.blank
    assert "`return`?" in str(said)


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


def test_checkers_compute_with_the_schedules_of_the_library():
    """They stand beside the library and spell the formulas out."""
    t = torch.linspace(0, 1, 11).double()
    for name, bars in gaussian_schedules._alpha_bars(t.numpy()).items():
        right = schedules.get_schedule(name).alpha_bar(t)
        assert np.allclose(bars, right, atol=1e-12)
    middle = t[1:-1]
    levels = embedding_noising._levels(middle.numpy())
    assert np.allclose(levels, schedules.Cosine().noise_level(middle))
