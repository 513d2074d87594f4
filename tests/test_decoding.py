"""Decoding: chapter 5.

`diffusers` decides what a DDPM and a DDIM step are. A denoiser that knows
the answer decides whether a sampler works: whatever then comes out wrong is
the sampler's fault.
"""

import math
from functools import lru_cache
from itertools import pairwise
from types import SimpleNamespace

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel

from dblm_lib import (
    decoding,
    denoiser,
    noising,
    posterior,
    resources,
    schedules,
)

SCHEDULES = [kind() for kind in schedules.SCHEDULES.values()]
BY_NAME = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
STEP = pytest.mark.parametrize("step", decoding.STEPS)


def draw(*shape, seed=0, dtype=torch.float64):
    """Return standard normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype)


def rng(seed=0):
    """Return a seeded generator."""
    return torch.Generator().manual_seed(seed)


# --- one step ---------------------------------------------------------------


@BY_NAME
@pytest.mark.parametrize("t, s", [(1.0, 0.75), (0.6, 0.59), (0.3, 0.0)])
def test_deterministic_step_lands_on_the_closed_form(schedule, t, s):
    """With the true x0 the step keeps the noise and changes its share."""
    x0, eps = draw(2, 3, 4), draw(2, 3, 4, seed=1)
    zt = schedule.alpha(t) * x0 + schedule.sigma(t) * eps
    expected = schedule.alpha(s) * x0 + schedule.sigma(s) * eps
    got = decoding.deterministic_step(x0, zt, schedule, t, s)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@BY_NAME
@pytest.mark.parametrize("t, s", [(1.0, 0.5), (0.6, 0.55), (0.2, 0.05)])
def test_ancestral_step_draws_from_the_posterior(schedule, t, s):
    """Mean and variance of q(z_s | z_t, x0), by Bayes on two Gaussians.

    q(z_s | x0) = N(alpha_s x0, sigma_s²) is the prior; z_t = r z_s + noise
    of variance sigma_t² - r² sigma_s², r = alpha_t / alpha_s, is what was
    seen.
    """
    x0, zt = 0.8, -0.3
    n = 200_000
    eps = draw(n, 1, 1)
    got = decoding.ancestral_step(
        torch.full_like(eps, x0), torch.full_like(eps, zt), schedule, t, s, eps
    )
    ratio = float(schedule.alpha(t) / schedule.alpha(s))
    prior = float(schedule.sigma(s)) ** 2
    noise = float(schedule.sigma(t)) ** 2 - ratio**2 * prior
    variance = 1 / (1 / prior + ratio**2 / noise)
    mean = variance * (float(schedule.alpha(s)) * x0 / prior)
    mean += variance * ratio * zt / noise
    exact = decoding.ancestral_step(
        *(torch.full((1, 1, 1), v, dtype=torch.float64) for v in (x0, zt)),
        schedule,
        t,
        s,
        torch.zeros(1, 1, 1),
    )
    assert exact.item() == pytest.approx(mean, rel=1e-9)
    error = math.sqrt(variance / n)
    assert abs(got.mean().item() - mean) < 5 * error
    assert got.var().item() == pytest.approx(variance, rel=0.02)


@BY_NAME
def test_ancestral_step_keeps_the_forward_marginal(schedule):
    """Noise to t, step to s: the variance is that of noising to s."""
    t, s, n = 0.7, 0.4, 200_000
    x0 = torch.full((n, 1, 1), 1.5, dtype=torch.float64)
    zt = schedule.alpha(t) * x0 + schedule.sigma(t) * draw(n, 1, 1)
    eps = draw(n, 1, 1, seed=1)
    zs = decoding.ancestral_step(x0, zt, schedule, t, s, eps)
    sigma = float(schedule.sigma(s))
    assert abs(zs.mean() - 1.5 * schedule.alpha(s)) < 5 * sigma / n**0.5
    assert zs.std().item() == pytest.approx(sigma, rel=0.02)


@STEP
def test_last_step_is_the_guess_itself(step):
    """At time 0 of a schedule that ends clean nothing but x0_hat is left."""
    x0_hat, zt, eps = draw(1, 2, 3), draw(1, 2, 3, seed=1), draw(1, 2, 3)
    schedule = schedules.Linear()
    arguments = (x0_hat, zt, schedule, 0.1, 0.0)
    if step == "ancestral":
        got = decoding.ancestral_step(*arguments, eps)
    else:
        got = decoding.deterministic_step(*arguments)
    torch.testing.assert_close(got, x0_hat, rtol=0, atol=1e-12)


@STEP
def test_steps_keep_the_precision_of_the_points(step):
    """Schedules count in float64; the points stay what they were."""
    x0, zt, eps = (
        draw(1, 2, 3, seed=i, dtype=torch.float32) for i in range(3)
    )
    if step == "ancestral":
        got = decoding.ancestral_step(x0, zt, SCHEDULES[0], 0.5, 0.4, eps)
    else:
        got = decoding.deterministic_step(x0, zt, SCHEDULES[0], 0.5, 0.4)
    assert got.dtype == torch.float32


# --- against diffusers ------------------------------------------------------

NUM = 20


class OnGrid(schedules.Schedule):
    """A schedule known only at the times i / NUM: those of some betas."""

    name = "grid"

    def __init__(self, betas):
        one = torch.ones(1, dtype=torch.float64)
        self.values = torch.cat([one, torch.cumprod(1 - betas, 0)])

    def alpha_bar(self, t):
        t = schedules.as_time(t)
        return self.values[(t * NUM).round().long()]


def grid_pair(kind, **options):
    """Return one of diffusers' schedulers, and the same schedule as ours."""
    betas = schedules.Cosine().discretise(NUM).betas
    theirs = kind(
        num_train_timesteps=NUM,
        trained_betas=betas.numpy(),
        prediction_type="sample",
        clip_sample=False,
        **options,
    )
    theirs.alphas_cumprod = torch.cumprod(1 - betas, 0)
    theirs.set_timesteps(NUM)
    return theirs, OnGrid(betas)


@pytest.mark.parametrize("i", [1, 5, 12, NUM])
def test_deterministic_step_is_ddim(i):
    """The step of diffusers' DDIM scheduler with eta = 0."""
    theirs, schedule = grid_pair(
        diffusers.DDIMScheduler, set_alpha_to_one=True
    )
    x0_hat, zt = draw(2, 3, 4), draw(2, 3, 4, seed=1)
    expected = theirs.step(x0_hat, i - 1, zt, eta=0.0).prev_sample
    got = decoding.deterministic_step(
        x0_hat, zt, schedule, i / NUM, (i - 1) / NUM
    )
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("i", [2, 5, 12, NUM])
def test_ancestral_step_is_ddpm(i):
    """The step of diffusers' DDPM scheduler with the posterior variance."""
    theirs, schedule = grid_pair(
        diffusers.DDPMScheduler, variance_type="fixed_small"
    )
    theirs.betas = 1 - schedule.values[1:] / schedule.values[:-1]
    theirs.alphas = 1 - theirs.betas
    x0_hat, zt = draw(2, 3, 4), draw(2, 3, 4, seed=1)
    expected = theirs.step(x0_hat, i - 1, zt, generator=rng(7)).prev_sample
    eps = torch.randn(zt.shape, generator=rng(7), dtype=zt.dtype)
    got = decoding.ancestral_step(
        x0_hat, zt, schedule, i / NUM, (i - 1) / NUM, eps
    )
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_the_whole_deterministic_way_is_ddim():
    """Twenty steps with an imperfect denoiser end at the same points."""
    theirs, schedule = grid_pair(
        diffusers.DDIMScheduler, set_alpha_to_one=True
    )

    def denoise(zt, t):
        return torch.tanh(zt)

    zt = torch.randn((2, 3, 4), generator=rng(3))
    path = decoding.Trajectory()
    decoding.sample(
        denoise,
        schedule,
        (2, 3, 4),
        NUM,
        rng(3),
        "deterministic",
        trajectory=path,
    )
    for i, ours in zip(theirs.timesteps, path.zt, strict=True):
        torch.testing.assert_close(ours, zt, rtol=1e-5, atol=1e-5)
        zt = theirs.step(denoise(zt, None), i, zt, eta=0.0).prev_sample


# --- times ------------------------------------------------------------------


@given(num_steps=st.integers(1, 500))
@settings(deadline=None, derandomize=True, max_examples=25)
def test_reverse_times_run_from_one_to_zero(num_steps):
    """All of them, in order, the ends exact."""
    times = decoding.reverse_times(num_steps)
    assert len(times) == num_steps + 1 and times.dtype == torch.float64
    assert times[0] == 1 and times[-1] == 0
    assert bool((times.diff() < 0).all())


@pytest.mark.parametrize(
    "num_steps, error",
    [
        (0, ValueError),
        (-3, ValueError),
        (2.5, TypeError),
        (64.0, TypeError),
        (True, TypeError),
        ("10", TypeError),
        (None, TypeError),
    ],
)
def test_bad_numbers_of_steps_are_refused(num_steps, error):
    """Before anything runs, and with the number in the message."""
    with pytest.raises(error, match="num_steps.*" + str(num_steps)):
        decoding.reverse_times(num_steps)
    with pytest.raises(error, match="num_steps"):
        decoding.sample(None, SCHEDULES[0], (1, 2, 3), num_steps)


def test_one_step_is_enough_to_ask_for():
    """A single step evaluates the denoiser once, at pure noise."""
    asked = []

    def denoise(zt, t):
        asked.append(t)
        return zt * 0 + 2

    got = decoding.sample(denoise, SCHEDULES[0], (1, 2, 3), 1, rng())
    assert len(asked) == 1 and bool((asked[0] == 1).all())
    assert bool((got == 2).all())


# --- the loop, with a denoiser that knows -----------------------------------


@given(
    name=st.sampled_from(sorted(schedules.SCHEDULES)),
    num_steps=st.integers(1, 20),
    step=st.sampled_from(decoding.STEPS),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, derandomize=True, max_examples=60)
def test_perfect_denoiser_returns_the_data(name, num_steps, step, seed):
    """Any schedule, any number of steps, both samplers.

    And it gets there: each point on the way is as noisy as its time says.
    """
    schedule = schedules.get_schedule(name)
    x0 = draw(3, 40, 16, seed=seed, dtype=torch.float32) * 2
    path = decoding.Trajectory()
    got = decoding.sample(
        lambda zt, t: x0,
        schedule,
        x0.shape,
        num_steps,
        rng(seed),
        step,
        trajectory=path,
    )
    assert torch.equal(got, x0)
    sigma_one = float(schedule.sigma(1.0))
    first = (path.zt[0] - schedule.alpha(1.0) * x0) / sigma_one
    for t, zt in zip(path.times, path.zt, strict=True):
        noise = (zt - schedule.alpha(t) * x0) / schedule.sigma(t)
        # 1,920 draws: five standard errors of their standard deviation;
        # more where the schedule leaves some signal at t = 1.
        assert abs(noise.std().item() - 1) < 0.09 + 2 * schedule.alpha(1.0)
        if step == "deterministic":
            torch.testing.assert_close(noise, first, rtol=1e-2, atol=1e-2)


@given(
    num_steps=st.integers(1, 20),
    step=st.sampled_from(decoding.STEPS),
    metric=st.sampled_from(noising.METRICS),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, derandomize=True, max_examples=30)
def test_one_text_known_by_heart_is_told(num_steps, step, metric, seed):
    """The exact denoiser of a single text, then rounding: that text."""
    table = noising.random_table(30, 16, rng(seed))
    ids = torch.randint(30, (1, 12), generator=rng(seed + 1))
    denoise = decoding.empirical_denoiser(table[ids], schedules.Cosine())
    x0_hat = decoding.sample(
        denoise,
        schedules.Cosine(),
        (4, 12, 16),
        num_steps,
        rng(seed + 2),
        step,
    )
    assert bool((noising.nearest(x0_hat, table, metric) == ids).all())


@STEP
@BY_NAME
def test_texts_known_by_heart_are_told_evenly(schedule, step):
    """Every sample is one of the texts, and none of them is preferred."""
    points = draw(4, 6, 8, seed=1, dtype=torch.float32)
    denoise = decoding.empirical_denoiser(points, schedule)
    n = 500
    got = decoding.sample(denoise, schedule, (n, 6, 8), 60, rng(5), step)
    distance = torch.cdist(got.flatten(1), points.flatten(1))
    nearest, which = distance.min(dim=1)
    assert nearest.median() < 0.2
    counts = which.bincount(minlength=4)
    assert counts.sum() == n and counts.min() > 75, counts.tolist()


# --- the exact denoiser -----------------------------------------------------


@given(
    t=st.floats(0.01, 1.0),
    name=st.sampled_from(sorted(schedules.SCHEDULES)),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, derandomize=True, max_examples=40)
def test_empirical_denoiser_is_the_posterior_mean(t, name, seed):
    """Bayes' rule written out, text by text, in float64."""
    schedule = schedules.get_schedule(name)
    points, zt = draw(5, 3, 4, seed=seed), draw(2, 3, 4, seed=seed + 1)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    expected = []
    for z in zt:
        likelihood = torch.distributions.Normal(alpha * points, sigma)
        log_odds = likelihood.log_prob(z).sum(dim=(1, 2))
        weights = (log_odds - log_odds.max()).exp()
        weights /= weights.sum()
        expected.append((weights[:, None, None] * points).sum(dim=0))
    got = decoding.empirical_denoiser(points, schedule)(zt, t)
    torch.testing.assert_close(got, torch.stack(expected), rtol=0, atol=1e-8)


def test_empirical_denoiser_takes_a_time_for_each_position():
    """Each position's evidence weighs by its own noise."""
    schedule = schedules.Cosine()
    points, zt = draw(5, 3, 4), draw(2, 3, 4, seed=1)
    t = torch.tensor([[0.2, 0.9, 0.5], [0.7, 0.3, 1.0]], dtype=torch.float64)
    alpha, sigma = schedule.alpha(t)[..., None], schedule.sigma(t)[..., None]
    likelihood = torch.distributions.Normal(alpha[:, None] * points, 1.0)
    error = (zt[:, None] - likelihood.mean) / sigma[:, None]
    weights = (-error.square().sum(dim=(2, 3)) / 2).softmax(dim=1)
    expected = torch.einsum("bn,nld->bld", weights, points)
    got = decoding.empirical_denoiser(points, schedule)(zt, t)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-8)


def test_empirical_denoiser_listens_beside_a_prompt():
    """A clean prompt does not drown what the other positions say.

    Two texts share the prompt. In float32 the prompt's evidence, a huge
    number, would swallow the difference that the rest makes.
    """
    prompt = draw(1, 20, 32, dtype=torch.float32)
    rest = draw(2, 1, 32, seed=1, dtype=torch.float32)
    points = torch.cat([prompt.expand(2, -1, -1), rest], dim=1)
    t = torch.zeros(2, 21, dtype=torch.float64)
    t[:, -1] = 0.5
    schedule = schedules.Cosine()
    zt = points.clone()
    zt[:, -1] *= float(schedule.alpha(0.5))
    got = decoding.empirical_denoiser(points, schedule)(zt, t)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, points, rtol=0, atol=1e-3)


# --- prompts, clamping, what is recorded ------------------------------------


def keep_of(*lengths, length=6):
    """Return a mask of prompts of different lengths."""
    return torch.arange(length) < torch.tensor(lengths)[:, None]


@STEP
def test_prompt_is_kept_to_the_last_bit(step):
    """At every step and in the result; and the denoiser is told time 0."""
    known = draw(2, 6, 4, dtype=torch.float32)
    keep, path, times = keep_of(2, 5), decoding.Trajectory(), []

    def denoise(zt, t):
        times.append(t)
        assert torch.equal(zt[keep], known[keep])
        return zt * 0.5 + 0.1

    got = decoding.sample(
        denoise,
        SCHEDULES[1],
        (2, 6, 4),
        5,
        rng(),
        step,
        known=known,
        keep=keep,
        trajectory=path,
    )
    assert torch.equal(got[keep], known[keep])
    assert not bool(torch.isclose(got[~keep], known[~keep]).any())
    for x0_hat, zt in zip(path.x0_hat, path.zt, strict=True):
        assert torch.equal(x0_hat[keep], known[keep])
        assert torch.equal(zt[keep], known[keep])
    for i, t in enumerate(times):
        assert bool((t[keep] == 0).all())
        assert t[~keep].tolist() == pytest.approx([1 - i / 5] * 5)


def test_prompt_survives_a_snap_that_would_move_it():
    """Clamping is for guesses; what is given stays given."""
    known, keep = draw(1, 6, 4, dtype=torch.float32), keep_of(3)
    got = decoding.sample(
        lambda zt, t: zt,
        SCHEDULES[0],
        (1, 6, 4),
        2,
        rng(),
        known=known,
        keep=keep,
        snap=torch.zeros_like,
    )
    assert torch.equal(got[keep], known[keep])
    assert bool((got[~keep] == 0).all())


@pytest.mark.parametrize(
    "known, keep, message",
    [
        (torch.zeros(1, 6, 4), None, "belong together"),
        (None, keep_of(2), "belong together"),
        (torch.zeros(1, 5, 4), keep_of(2), r"shape of the sample"),
        (torch.zeros(1, 6, 4), keep_of(2, length=5), "one True or False"),
        (torch.zeros(1, 6, 4), keep_of(2).float() / 2, "0 and 1.*got 0.5"),
        (torch.full((1, 6, 4), math.nan), keep_of(2), "known must be finite"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(known, keep, message):
    """A half-given or misshapen prompt says what is wrong."""
    with pytest.raises(ValueError, match=message):
        decoding.sample(
            lambda zt, t: zt,
            SCHEDULES[0],
            (1, 6, 4),
            2,
            known=known,
            keep=keep,
        )


@pytest.mark.parametrize("metric", noising.METRICS)
def test_clamp_gives_rows_of_the_table(metric):
    """Each point becomes the token it would be rounded to."""
    table = noising.random_table(11, 5, rng())
    guess = draw(2, 3, 5, seed=1, dtype=torch.float32)
    snapped = decoding.clamp(guess, table, metric)
    ids = noising.nearest(guess, table, metric)
    assert snapped.shape == guess.shape
    assert torch.equal(snapped, table[ids])
    assert torch.equal(decoding.clamp(snapped, table), snapped)


@STEP
@pytest.mark.parametrize("num_steps", [1, 7])
def test_trajectory_holds_every_evaluation(step, num_steps):
    """Times, points and guesses; the last guess is the result."""
    path = decoding.Trajectory()
    got = decoding.sample(
        lambda zt, t: zt * 0.5,
        SCHEDULES[0],
        (2, 3, 4),
        num_steps,
        rng(),
        step,
        trajectory=path,
    )
    assert path.times == decoding.reverse_times(num_steps)[:-1].tolist()
    assert len(path.zt) == len(path.x0_hat) == num_steps
    assert torch.equal(path.x0_hat[-1], got)
    for zt, x0_hat in zip(path.zt, path.x0_hat, strict=True):
        assert torch.equal(x0_hat, zt * 0.5)
    assert torch.equal(path.zt[0], torch.randn(2, 3, 4, generator=rng()))


def test_unknown_step_is_refused():
    """The message lists those there are."""
    with pytest.raises(ValueError, match="ancestral, deterministic"):
        decoding.sample(None, SCHEDULES[0], (1, 2, 3), 2, step="euler")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_denoiser_that_has_diverged_is_named(bad):
    """NaN is refused where it appears, with the time."""

    def denoise(zt, t):
        return zt * bad if float(t.max()) < 0.6 else zt

    with pytest.raises(ValueError, match="t = 0.500 is not finite"):
        decoding.sample(denoise, SCHEDULES[0], (1, 2, 3), 4, rng())
    with pytest.raises(ValueError, match="finite"):
        decoding.clamp(torch.full((1, 1, 3), bad), torch.eye(3))


def test_denoiser_with_another_shape_is_named():
    """A wrong shape would broadcast without a word."""
    with pytest.raises(ValueError, match=r"\(1, 2, 3\); got \(1, 1, 3\)"):
        decoding.sample(
            lambda zt, t: zt[:, :1], SCHEDULES[0], (1, 2, 3), 4, rng()
        )


# --- with a model -----------------------------------------------------------

WORDS = ["<|endoftext|>", *"abcdefghijklmnop"]


class Tokenizer:
    """A word a token; what the real one offers and decoding uses."""

    eos_token_id = 0

    def __call__(self, texts):
        texts = [texts] if isinstance(texts, str) else texts
        rows = [[self._id(word) for word in t.split()] for t in texts]
        return {"input_ids": rows}

    def _id(self, word):
        return WORDS.index(word) if word in WORDS else 16

    def tokenize(self, word):
        known = word.strip() in WORDS
        return [word] if known else list(word)

    def decode(self, ids):
        return " ".join(WORDS[i] for i in ids)


@lru_cache
def small_model(conditioning="time"):
    """Return a random denoiser of 17 tokens."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(WORDS), n_positions=32, n_embd=16, n_layer=2, n_head=2
    )
    gpt2 = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for weight in gpt2.parameters():
            weight.normal_(0, 0.3)
    return denoiser.DBLM.from_backbone(
        resources.Backbone(gpt2, None), conditioning=conditioning
    )


def write(prompt=None, **options):
    """Generate with few steps."""
    options = {"max_length": 10, "num_steps": 4, **options}
    return decoding.generate(small_model(), Tokenizer(), prompt, **options)


@STEP
def test_same_seed_same_text(step):
    """And another seed another one."""
    first, second = write(step=step), write(step=step)
    assert torch.equal(first.ids, second.ids) and first.texts == second.texts
    others = [write(step=step, seed=i).ids for i in range(1, 5)]
    assert any(not torch.equal(first.ids, other) for other in others)


@pytest.mark.parametrize("prompt", [None, "a b c"])
def test_shapes_of_a_batch(prompt):
    """A row for each sample, a text for each row."""
    result = write(prompt, num_return_sequences=3)
    assert result.ids.shape == (3, 10) and len(result.texts) == 3
    assert result.trajectory is None
    assert result.ids.dtype == torch.long


def test_prompts_of_different_length_are_kept():
    """Each row begins with its own prompt; copies of one stand together."""
    prompts = ["a b c d e", "f"]
    result = write(prompts, num_return_sequences=2, record=True)
    assert result.ids.shape == (4, 10)
    for row, words in zip(result.ids, [p for p in prompts for _ in "12"]):
        ids = torch.tensor(Tokenizer()(words)["input_ids"][0])
        assert torch.equal(row[: len(ids)], ids)
    x0_hat = result.trajectory.x0_hat[-1]
    assert torch.equal(x0_hat[0, :5], small_model().embed(result.ids[0, :5]))
    assert len(result.trajectory.times) == 4


def test_prompt_of_token_ids():
    """`generate` on the model takes ids, as in transformers."""
    model, ids = small_model(), torch.tensor([3, 1, 4])
    options = {"max_length": 8, "num_steps": 3}
    got = model.generate(ids, generator=rng(), **options)
    assert got.shape == (1, 8) and torch.equal(got[0, :3], ids)
    keep = torch.tensor([True, False, True])
    got = model.generate(ids, keep=keep, generator=rng(), **options)
    assert got[0, 0] == 3 and got[0, 2] == 4
    free = model.generate(generator=rng(), num_return_sequences=2, **options)
    assert free.shape == (2, 8)


def test_prompt_whose_embedding_is_shared_keeps_its_ids():
    """Two tokens at one point: rounding could name the other one."""
    model = denoiser.DBLM(small_model().config).eval()
    with torch.no_grad():
        model.embeddings.weight[5] = model.embeddings.weight[2]
    ids = torch.tensor([5, 5, 5])
    got = model.generate(ids, max_length=4, num_steps=2, generator=rng())
    assert got[0, :3].tolist() == [5, 5, 5]


def test_snap_moves_guesses_onto_tokens():
    """With snap each recorded guess is a row of the table."""
    table = small_model().table()
    for snap in (True, False):
        path = write(snap=snap, record=True).trajectory
        guess = path.x0_hat[1].flatten(0, 1)
        on_table = torch.cdist(guess, table).min(dim=1).values < 1e-4
        assert bool(on_table.all()) == snap


def test_dropout_is_off():
    """Sampling from a model in training mode gives the same text."""
    model = denoiser.DBLM(small_model().config)
    model.train()
    options = {"max_length": 6, "num_steps": 2}
    first = model.generate(generator=rng(), **options)
    assert torch.equal(first, model.generate(generator=rng(), **options))


@pytest.mark.parametrize(
    "prompt, message",
    [
        ("", "empty"),
        ("   ", "empty"),
        (["a b", ""], "empty"),
        ([], "empty"),
        ("a b c d e f g h i j k", "11 tokens, the canvas only 10"),
        ("zzyx qqq", "no word of 'zzyx qqq' is in the vocabulary"),
    ],
)
def test_bad_prompts_are_refused(prompt, message):
    """Each with what was given and what to do."""
    with pytest.raises(ValueError, match=message):
        write(prompt)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"input_ids": []}, "empty"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, "empty"),
        ({"input_ids": [99]}, "17 tokens, ids 0 to 16; .* 99"),
        ({"input_ids": [-1]}, "ids 0 to 16"),
        ({"input_ids": torch.rand(3)}, "must be token ids"),
        ({"input_ids": [1, 2], "keep": torch.tensor([True])}, "keep must"),
        ({"max_length": 0}, "max_length must"),
        ({"max_length": 33}, "32 positions"),
        ({"num_return_sequences": 0}, "num_return_sequences must"),
        ({"metric": "manhattan"}, "unknown metric"),
    ],
)
def test_bad_options_are_refused(options, message):
    """On the model's own `generate`."""
    options = {"max_length": 8, "num_steps": 2, **options}
    with pytest.raises(ValueError, match=message):
        small_model().generate(**options)


def test_embedded_tokenizer_and_model():
    """The book's own GPT-2, the proposal's prompts, end to end."""
    try:
        backbone = resources.load_backbone("tales-gpt2")
    except resources.DataError as error:
        pytest.skip(f"no data yet: {error}")
    from dblm_lib import training

    model = denoiser.DBLM.from_backbone(
        backbone, causal=True, conditioning="none"
    )
    prompts = list(training.PROPOSAL_PROMPTS)
    result = decoding.generate(
        model, backbone.tokenizer, prompts, max_length=24, num_steps=3
    )
    for words, prompt in zip(result.texts, prompts, strict=True):
        assert words.startswith(prompt)


def test_a_stand_in_model_is_enough():
    """Decoding asks a model for four things only, so any may be plugged in."""
    table = noising.random_table(17, 8, rng())
    story = torch.tensor([4, 2, 9, 1, 0, 0])

    class Oracle(SimpleNamespace):
        def __call__(self, zt, t):
            x0_hat = table[story].expand(zt.shape)
            return SimpleNamespace(x0=x0_hat, logits=None)

    model = Oracle(
        eval=lambda: None,
        parameters=lambda: iter([table]),
        table=lambda: table,
        embed=lambda ids: table[ids],
        schedule=schedules.Sqrt(),
    )
    result = decoding.generate(
        model, Tokenizer(), "d", max_length=6, num_steps=5
    )
    assert result.texts == ["d b i a"]
    assert result.ids.tolist() == [story.tolist()]


# --- positions that go first (chapter 7) ------------------------------------


@given(
    num_steps=st.integers(1, 60),
    length=st.integers(2, 30),
    stagger=st.floats(0, 10),
)
def test_staggered_times_fall_from_one_to_zero(num_steps, length, stagger):
    """At each position; and the left is never behind the right."""
    times = decoding.staggered_times(num_steps, length, stagger)
    assert times.shape == (num_steps + 1, length, 1)
    assert times.dtype == torch.float64
    assert (times[0] == 1).all() and (times[-1] == 0).all()
    assert (times.diff(dim=0) <= 0).all()
    assert (times.diff(dim=1) >= -1e-12).all()


@given(num_steps=st.integers(1, 60), length=st.integers(1, 30))
def test_without_stagger_all_go_together(num_steps, length):
    times = decoding.staggered_times(num_steps, length, 0.0)
    expected = decoding.reverse_times(num_steps)[:, None, None]
    assert torch.equal(times, expected.expand_as(times))


@pytest.mark.parametrize("power", [1.0, 0.7])
def test_a_run_has_times_by_position_only_with_a_stagger(power):
    """Plain numbers otherwise: points stay in their own precision."""
    times = decoding.run_times(6, 5, power=power)
    assert times.dtype == torch.float64
    assert torch.equal(times, decoding.reverse_times(6) ** power)
    times = decoding.run_times(6, 5, 1.5, power)
    expected = decoding.staggered_times(6, 5, 1.5) ** power
    assert torch.equal(times, expected)


@pytest.mark.parametrize("stagger", [0.5, 1.0, 3.0])
def test_each_position_has_a_window_of_the_same_width(stagger):
    """1 / (1 + stagger) of the run; with 1 the last waits for the first."""
    n, length = 3000, 4
    times = decoding.staggered_times(n, length, stagger)[..., 0]
    moving = (times[:-1] > times[1:]).double()
    width = moving.mean(0)
    expected = torch.full((length,), 1 / (1 + stagger), dtype=torch.float64)
    torch.testing.assert_close(width, expected, atol=2 / n, rtol=0)
    began = moving.argmax(0) / n
    expected = torch.linspace(0, stagger / (1 + stagger), length)
    torch.testing.assert_close(began, expected, atol=2 / n, rtol=0)
    first_done = float((times[:, 0] > 0).double().mean())
    if stagger >= 1:
        assert began[-1] >= first_done - 2 / n
    else:
        assert began[-1] < first_done - 0.1


@pytest.mark.parametrize("stagger", [-0.1, math.nan, math.inf])
def test_bad_staggers_are_refused(stagger):
    with pytest.raises(ValueError, match="stagger must be 0 or more"):
        decoding.staggered_times(4, 3, stagger)
    with pytest.raises(ValueError, match="stagger must be 0 or more"):
        decoding.sample(
            lambda zt, t: zt, SCHEDULES[0], (1, 2, 3), 4, stagger=stagger
        )


@STEP
@BY_NAME
@pytest.mark.parametrize("stagger", [0.5, 2.0])
def test_a_staggered_run_tells_a_text_too(schedule, step, stagger):
    """The exact denoiser takes a time for each position."""
    points = draw(4, 6, 8, seed=1, dtype=torch.float32)
    denoise = decoding.empirical_denoiser(points, schedule)
    n = 200
    got = decoding.sample(
        denoise, schedule, (n, 6, 8), 60, rng(5), step, stagger=stagger
    )
    distance = torch.cdist(got.flatten(1), points.flatten(1))
    nearest, which = distance.min(dim=1)
    assert nearest.median() < 0.2
    assert which.bincount(minlength=4).min() > 20


@STEP
def test_points_stand_still_where_time_does(step):
    """Before a position's window and after it nothing moves there."""
    path, asked = decoding.Trajectory(), []

    def denoise(zt, t):
        asked.append(t)
        return zt * 0.5

    decoding.sample(
        denoise,
        SCHEDULES[0],
        (2, 5, 3),
        12,
        rng(),
        step,
        trajectory=path,
        stagger=1.5,
    )
    times = decoding.staggered_times(12, 5, 1.5)[..., 0]
    stood = moved = 0
    for i in range(11):
        assert torch.equal(asked[i], times[i].expand(2, 5))
        still = times[i] == times[i + 1]
        change = (path.zt[i + 1] - path.zt[i]).abs().amax((0, 2))
        assert (change[still] == 0).all() and (change[~still] > 0).all()
        stood, moved = stood + int(still.sum()), moved + int((~still).sum())
    assert stood > 5 and moved > 5
    assert path.times == pytest.approx(times[:-1].mean(1).tolist())


def test_a_staggered_run_is_as_noisy_as_its_times_say():
    """With a denoiser that knows: the noise at each position has its size."""
    schedule, path = schedules.Cosine(), decoding.Trajectory()
    x0 = draw(400, 5, 8, dtype=torch.float32)
    decoding.sample(
        lambda zt, t: x0,
        schedule,
        x0.shape,
        9,
        rng(1),
        trajectory=path,
        stagger=1.0,
    )
    times = decoding.staggered_times(9, 5, 1.0)[..., 0]
    for t, zt in zip(times, path.zt, strict=False):
        spread = (zt - schedule.alpha(t)[:, None] * x0).std((0, 2))
        torch.testing.assert_close(
            spread.double(), schedule.sigma(t), rtol=0.06, atol=1e-6
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@STEP
def test_a_staggered_run_on_a_gpu_is_that_of_the_processor(step):
    x0 = draw(2, 5, 8, dtype=torch.float32)
    shown = [
        decoding.sample(
            lambda zt, t: (x0.to(zt.device) + zt) / 2,
            SCHEDULES[1],
            (2, 5, 8),
            9,
            rng(),
            step,
            device=device,
            stagger=1.0,
        ).cpu()
        for device in ("cpu", "cuda")
    ]
    torch.testing.assert_close(*shown, rtol=1e-4, atol=1e-4)


# --- what a model remembers and how sure it is ------------------------------


@lru_cache
def repaired_model(**options):
    """Return a random denoiser with a mixture head that remembers."""
    torch.manual_seed(0)
    fields = {
        "embed_dim": 6,
        "normalise_embeddings": True,
        "head": "mixture",
        "loss": "ce",
        "self_conditioning": 0.5,
        "likelihood": True,
        "input_std": 0.3,
        **options,
    }
    config = denoiser.DBLMConfig(
        vocab_size=len(WORDS),
        n_positions=32,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        **fields,
    )
    model = denoiser.DBLM(config).eval()
    if config.self_conditioning:
        with torch.no_grad():
            model.project_guess.weight.normal_()
    return model


@pytest.mark.parametrize("remembers", [0.0, 0.5])
@pytest.mark.parametrize("num_steps", [1, 7])
def test_one_evaluation_a_step_even_with_a_memory(remembers, num_steps):
    """The guess of the last step is handed on, not made again."""
    model, calls = repaired_model(self_conditioning=remembers), []
    hook = model.register_forward_pre_hook(
        lambda _, __, given: calls.append(given.get("previous")),
        with_kwargs=True,
    )
    path = decoding.Trajectory()
    try:
        decoding.generate_ids(
            model,
            max_length=8,
            num_steps=num_steps,
            generator=rng(),
            trajectory=path,
        )
    finally:
        hook.remove()
    assert len(calls) == num_steps and calls[0] is None
    for previous, x0_hat in zip(calls[1:], path.x0_hat, strict=False):
        if remembers:
            assert torch.equal(previous, x0_hat)
        else:
            assert previous is None


@pytest.mark.parametrize("shift", [False, True])
def test_a_memory_changes_what_is_written(shift):
    model = repaired_model(shift=shift)
    with_memory = decoding.Guesser(model)
    zt = draw(2, 5, 6, dtype=torch.float32)
    first = with_memory(zt, 0.8)
    second = with_memory(zt, 0.8)
    forgetful = decoding.Guesser(model)
    assert torch.equal(forgetful(zt, 0.8), first)
    assert (second - first).abs().max() > 1e-4
    again = model(zt, 0.8, previous=first).x0
    torch.testing.assert_close(second, again)


@torch.no_grad()
def test_ids_of_a_mixture_are_the_largest_logits():
    """Not the nearest of the mean, which may be a third token."""
    model = repaired_model(self_conditioning=0.0)
    guesser, zt = decoding.Guesser(model), 2 * draw(8, 9, 6).float()
    x0_hat = guesser(zt, 0.7)
    logits = model(zt, 0.7).logits
    shares = logits.double().softmax(-1)
    assert torch.equal(guesser.ids, logits.argmax(-1))
    sure, likely = shares.max(-1)
    assert torch.equal(guesser.ids, likely)
    torch.testing.assert_close(guesser.confidence.double(), sure)
    assert not torch.equal(guesser.ids, noising.nearest(x0_hat, model.table()))


@torch.no_grad()
def test_temperature_sharpens_and_changes_no_rounding():
    model = repaired_model(self_conditioning=0.0)
    zt = 2 * draw(8, 9, 6).float()
    plain = decoding.Guesser(model)
    plain(zt, 0.7)
    cold = decoding.Guesser(model, temperature=0.5)
    x0_hat = cold(zt, 0.7)
    assert torch.equal(cold.ids, plain.ids)
    assert (cold.confidence > plain.confidence).all()
    squared = plain.answer.logits.double().softmax(-1).square()
    expected = (squared / squared.sum(-1, True)) @ model.table().double()
    torch.testing.assert_close(x0_hat.double(), expected, rtol=0, atol=1e-5)
    hot = decoding.Guesser(model, temperature=1e6)
    mean = model.table().mean(dim=0).expand_as(x0_hat)
    torch.testing.assert_close(hot(zt, 0.7), mean, rtol=0, atol=1e-4)


def test_temperature_reaches_the_sampler():
    model = repaired_model()
    told = [
        decoding.generate_ids(
            model,
            num_return_sequences=2,
            max_length=8,
            num_steps=6,
            generator=torch.Generator().manual_seed(0),
            temperature=temperature,
        )
        for temperature in (1.0, 1, 50.0)
    ]
    assert torch.equal(told[0], told[1])
    assert not torch.equal(told[0], told[2])


def test_a_model_may_name_its_own_sampler():
    """It is used where the call does not say otherwise, and only there."""
    model = repaired_model()

    def drawn(**options):
        return decoding.generate_ids(
            model,
            num_return_sequences=2,
            max_length=8,
            num_steps=6,
            generator=torch.Generator().manual_seed(0),
            **options,
        )

    own = {"step": "deterministic", "stagger": 1.5, "temperature": 30.0}
    own |= {"power": 0.4}
    plain, asked = drawn(), drawn(**own)
    model.config.sampler = own
    assert not torch.equal(plain, asked)
    assert torch.equal(drawn(), asked)
    assert torch.equal(drawn(**denoiser.SAMPLER), plain)
    model.config.sampler = {"likelihood_weight": 0.3}
    assert not torch.equal(plain, drawn())
    assert torch.equal(drawn(likelihood_weight=1.0), plain)
    model.config.sampler = {}


@pytest.mark.parametrize("stagger", [0.0, 1.5])
def test_a_power_bends_the_times(stagger):
    """What the network is told: the times of all positions, raised to it."""

    def asked(power):
        seen = []

        def denoise(zt, t):
            seen.append(t[0])
            return torch.zeros_like(zt)

        decoding.sample(
            denoise,
            schedules.Linear(),
            (1, 5, 2),
            4,
            generator=torch.Generator().manual_seed(0),
            stagger=stagger,
            power=power,
        )
        return torch.stack(seen)

    plain = asked(1.0)
    assert torch.equal(asked(0.5), plain.sqrt())
    assert (asked(0.5) >= plain).all() and plain.max() == 1


@pytest.mark.parametrize("power", [0, -1.0, math.nan, math.inf])
def test_bad_powers_are_refused(power):
    with pytest.raises(ValueError, match="power must be positive"):
        decoding.generate_ids(repaired_model(), num_steps=2, power=power)


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf])
def test_bad_temperatures_are_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be positive"):
        decoding.Guesser(repaired_model(), temperature=temperature)


def test_a_vector_has_no_temperature():
    with pytest.raises(ValueError, match="it has no temperature"):
        decoding.Guesser(small_model(), temperature=0.9)


@torch.no_grad()
def test_confidence_of_vectors_compares_the_two_nearest():
    model = small_model()
    guesser, zt = decoding.Guesser(model), draw(2, 9, 16).float()
    x0_hat = guesser(zt, 0.5)
    distance = torch.cdist(x0_hat, model.table()).double()
    two = distance.topk(2, largest=False).values
    variance = two[..., :1] ** 2 / 16
    expected = (-(two**2) / (2 * variance)).softmax(-1)[..., 0]
    torch.testing.assert_close(
        guesser.confidence.double(), expected, rtol=1e-3, atol=1e-3
    )
    assert (guesser.confidence >= 0.5).all()
    assert torch.equal(guesser.ids, distance.argmin(-1))


@pytest.mark.parametrize("kind", ["vector", "mixture", "shifted"])
@pytest.mark.parametrize("stagger", [0.0, 1.0])
def test_trajectory_of_a_model_tells_tokens_and_confidence(kind, stagger):
    """A row for each step; the prompt is certain and the last row is it."""
    model = {
        "vector": small_model,
        "mixture": repaired_model,
        "shifted": lambda: repaired_model(shift=True),
    }[kind]()
    path = decoding.Trajectory()
    ids = decoding.generate_ids(
        model,
        torch.tensor([[3, 1, 4], [1, 5, 9]]),
        max_length=8,
        num_steps=5,
        num_return_sequences=2,
        generator=rng(),
        trajectory=path,
        stagger=stagger,
    )
    assert len(path.ids) == len(path.confidence) == len(path.zt) == 5
    for row, sure in zip(path.ids, path.confidence, strict=True):
        assert row.shape == sure.shape == (4, 8) and row.dtype == torch.long
        assert row[:, :3].tolist() == [[3, 1, 4]] * 2 + [[1, 5, 9]] * 2
        assert (sure[:, :3] == 1).all()
        assert ((sure > 0) & (sure <= 1)).all()
    assert torch.equal(path.ids[-1], ids)
    known = model.embed(ids[:, :3])
    assert all(torch.equal(zt[:, :3], known) for zt in path.zt)


def test_snap_of_a_mixture_lands_on_the_likeliest_token():
    model, path = repaired_model(), decoding.Trajectory()
    decoding.generate_ids(
        model,
        max_length=8,
        num_steps=3,
        generator=rng(),
        snap=True,
        trajectory=path,
    )
    for ids, x0_hat in zip(path.ids, path.x0_hat, strict=True):
        assert torch.equal(x0_hat, model.embed(ids))


@torch.no_grad()
def test_the_likelihood_weighs_what_is_asked():
    """At weight w the logits are those of the net plus w likelihoods."""
    model = repaired_model(self_conditioning=0.0)
    generator = torch.Generator().manual_seed(0)
    zt = torch.randn(2, 5, model.table().shape[1], generator=generator)
    t = torch.full((2,), 0.6, dtype=torch.float64)
    table, times = model.table(), torch.full((2, 5), 0.6)
    whole = model(zt, t).logits
    own = posterior.log_likelihood(zt, times, table, model.schedule)
    for weight in (0.0, 0.3, 2.0):
        guesser = decoding.Guesser(model, likelihood_weight=weight)
        found = guesser(zt, t)
        wanted = whole - own + weight * own
        assert torch.allclose(guesser.answer.logits, wanted, atol=1e-3)
        mixed = posterior.token_mean(wanted, table)
        assert torch.allclose(found, mixed, atol=1e-4)
    assert own.std() > 0.1


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_bad_weights_of_the_likelihood_are_refused(weight):
    with pytest.raises(ValueError, match="must not be negative"):
        decoding.generate_ids(
            repaired_model(), num_steps=2, likelihood_weight=weight
        )


def test_without_a_likelihood_there_is_nothing_to_weigh():
    with pytest.raises(ValueError, match="no likelihood to its logits"):
        decoding.Guesser(small_model(), likelihood_weight=0.5)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32])
def test_a_prompt_is_held_by_a_mask_of_any_type(dtype):
    """In `sample` itself; the times are 0 where it is kept."""
    known = draw(1, 6, 4, dtype=torch.float32)
    keep = torch.tensor([[1, 1, 0, 0, 1, 0]])
    asked = []

    def denoise(zt, t):
        asked.append(t)
        return zt * 0.5

    def run(mask):
        return decoding.sample(
            denoise, SCHEDULES[0], (1, 6, 4), 3, rng(), known=known, keep=mask
        )

    expected = run(keep.bool())
    assert torch.equal(run(keep.to(dtype)), expected)
    assert torch.equal(expected[keep == 1], known[keep == 1])
    assert all((t[keep == 1] == 0).all() for t in asked)


# --- what a step costs ------------------------------------------------------


class Counted(TorchDispatchMode):
    """Counts what PyTorch is asked, inside a model's forward and outside."""

    def __init__(self, model):
        super().__init__()
        self.inside = False
        self.counts = {True: 0, False: 0}
        model.register_forward_pre_hook(lambda *_: self.turn(True))
        model.register_forward_hook(lambda *_: self.turn(False))

    def turn(self, inside):
        self.inside = inside

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        answer = func(*args, **(kwargs or {}))
        self.counts[self.inside] += 1
        return answer


@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize("stagger", [0.0, 1.5])
@STEP
def test_a_step_costs_little_beside_the_network(step, stagger, prompted):
    """Operations, which a busy machine does not change.

    The schedule, the table and the masks are worked out before the first
    step. Were they worked out in each, it would be hundreds.
    """
    counts = {}
    for num_steps in (3, 13):
        model = denoiser.DBLM(
            repaired_model(evidence=True, schedule="warped").config
        ).eval()
        with Counted(model) as found:
            decoding.generate_ids(
                model,
                torch.tensor([[3, 1]]) if prompted else None,
                max_length=8,
                num_steps=num_steps,
                generator=rng(),
                step=step,
                stagger=stagger,
            )
        counts[num_steps] = found.counts
    a_step = {k: (counts[13][k] - counts[3][k]) / 10 for k in (True, False)}
    assert 5 < a_step[False] <= 65, a_step
    # One layer; each further one adds 30 or so.
    assert 50 < a_step[True] <= 230, a_step


def test_a_table_is_worked_out_once_a_run():
    """Not in each step, and still by each model that is asked without one."""
    model = denoiser.DBLM(repaired_model().config).eval()
    asked, table = [], model.table
    model.table = lambda: asked.append(1) or table()
    for num_steps in (2, 9):
        asked.clear()
        decoding.generate_ids(
            model, max_length=8, num_steps=num_steps, generator=rng()
        )
        assert len(asked) == 1
    model(draw(1, 5, 6).float(), 0.5)
    assert len(asked) == 2


@BY_NAME
@pytest.mark.parametrize("stagger", [0.0, 1.5])
@STEP
def test_a_run_is_the_steps_made_by_hand(schedule, step, stagger):
    """All times at once, or each at its step: the same points."""
    path = decoding.Trajectory()
    options = {"stagger": stagger, "trajectory": path}
    decoding.sample(
        lambda zt, t: zt.tanh(), schedule, (2, 5, 3), 6, rng(), step, **options
    )
    times = decoding.staggered_times(6, 5, stagger)
    generator = rng()
    zt = torch.randn(2, 5, 3, generator=generator)
    for i, (t, s) in enumerate(pairwise(times)):
        torch.testing.assert_close(path.zt[i], zt, rtol=1e-5, atol=1e-5)
        given = (zt.tanh(), zt, schedule, t, s)
        if step == "ancestral":
            eps = torch.randn(2, 5, 3, generator=generator)
            moved = decoding.ancestral_step(*given, eps)
        else:
            moved = decoding.deterministic_step(*given)
        zt = moved.where(s < t, zt)
