"""Schedules: against diffusers, exact arithmetic and direct integration."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dblm_lib import schedules
from dblm_lib.schedules import (
    Cosine,
    DiscreteSchedule,
    Linear,
    LogUniform,
    Sigmoid,
    Sqrt,
    Warped,
    closed_form,
    forward_step,
    get_schedule,
    mixture_denoiser,
    posterior,
)

NAMES = sorted(schedules.SCHEDULES)
STEPS = [1, 2, 10, 50, 1000]


def between(low, high):
    """Draw floats from an interval, both ends included."""
    return st.floats(low, high, allow_nan=False, allow_subnormal=False)


ANY_SCHEDULE = st.one_of(
    st.builds(Linear, between(0.01, 1), between(1, 50)),
    st.builds(Cosine, between(0, 0.2)),
    st.builds(Sqrt, between(0, 0.01)),
    st.builds(Sigmoid, between(-9, -0.1), between(0.1, 9), between(0.2, 3)),
    st.builds(LogUniform, between(1e-3, 0.9), between(1, 1e3)),
    st.builds(
        lambda low, ratios: Warped(low * np.cumprod([1, *ratios])),
        between(1e-3, 0.5),
        st.lists(between(1.1, 4), min_size=1, max_size=8),
    ),
)
TIME = between(0, 1)


def close(got, wanted, tolerance=1e-6):
    """Compare in float64, absolutely."""
    torch.testing.assert_close(
        torch.as_tensor(got, dtype=torch.float64),
        torch.as_tensor(wanted, dtype=torch.float64),
        atol=tolerance,
        rtol=0,
    )


def normal(*shape, seed=0):
    """Standard normal numbers in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# Against diffusers


def reference(kind, betas, exact=True, **options):
    """A scheduler of diffusers with these betas; in float64 if ``exact``.

    It rounds betas to float32. Its formulas work in any precision, so the
    rounded numbers are replaced before its steps are compared with ours.
    """
    betas = torch.as_tensor(betas)
    scheduler = kind(
        num_train_timesteps=len(betas),
        trained_betas=betas.tolist(),
        clip_sample=False,
        prediction_type=options.pop("prediction_type", "sample"),
        **options,
    )
    if exact:
        scheduler.betas = betas.double()
        scheduler.alphas = 1 - scheduler.betas
        scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    return scheduler


def test_linear_is_the_schedule_of_ddpm():
    """The scheduler's own defaults: nothing of ours goes in."""
    theirs, ours = DDPMScheduler(), Linear().discretise(1000)
    close(ours.betas, theirs.betas, 1e-8)
    close(ours.alpha_bar, theirs.alphas_cumprod)


@pytest.mark.parametrize("steps", [30, 100, 4000])
def test_linear_scales_with_the_number_of_steps(steps):
    theirs = DDPMScheduler(steps, beta_start=0.1 / steps, beta_end=20 / steps)
    ours = Linear().discretise(steps)
    close(ours.betas, theirs.betas)
    close(ours.alpha_bar, theirs.alphas_cumprod)


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize("steps", STEPS)
def test_cosine_is_the_capped_cosine(kind, steps):
    theirs = kind(steps, beta_schedule="squaredcos_cap_v2")
    ours = Cosine().discretise(steps)
    close(ours.betas, theirs.betas)
    close(ours.alpha_bar, theirs.alphas_cumprod)


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", NAMES)
def test_trained_betas_give_the_same_signal_shares(name, steps, kind):
    ours = get_schedule(name).discretise(steps)
    theirs = reference(kind, ours.betas, exact=False)
    close(ours.betas, theirs.betas)
    close(ours.alpha_bar, theirs.alphas_cumprod)


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize("name", NAMES)
def test_noising_is_theirs(name, kind):
    """``add_noise`` at all times in one batch, in float64."""
    ours = get_schedule(name).discretise(20)
    x0, eps = normal(20, 3, 4), normal(20, 3, 4, seed=1)
    times = torch.arange(20)
    theirs = reference(kind, ours.betas).add_noise(x0, eps, times)
    got = closed_form(x0, ours.alpha_bar[:, None, None], eps)
    close(got, theirs, 1e-12)


@pytest.mark.parametrize("stride", [1, 5])
@pytest.mark.parametrize("name", NAMES)
def test_ancestral_steps_are_theirs(name, stride):
    """Mean and variance of each step, fixed_small, with strides too."""
    ours = get_schedule(name).discretise(20)
    theirs = reference(DDPMScheduler, ours.betas, variance_type="fixed_small")
    theirs.set_timesteps(20 // stride)
    zt, x0 = normal(4, 3), normal(4, 3, seed=1)
    for t in theirs.timesteps.tolist():
        s = t - stride
        a_s = ours.alpha_bar[s] if s >= 0 else 1.0
        mean, variance = posterior(x0, zt, a_s, ours.alpha_bar[t])
        # They never let it reach 0, so as to take its logarithm.
        close(variance.clamp(min=1e-20), theirs._get_variance(t), 1e-12)
        noise = normal(4, 3, seed=t) * (t > 0)
        generator = torch.Generator().manual_seed(t)
        step = theirs.step(x0, t, zt, generator=generator).prev_sample
        close(mean + variance.sqrt() * noise, step, 1e-12)


@pytest.mark.parametrize("stride", [1, 5])
@pytest.mark.parametrize("name", NAMES)
def test_deterministic_steps_are_the_closed_form_with_the_noise_kept(
    name, stride
):
    """DDIM with eta = 0, whether it is told x0 or eps."""
    ours = get_schedule(name).discretise(20)
    x0, eps = normal(4, 3), normal(4, 3, seed=1)
    for told, answer in (("sample", x0), ("epsilon", eps)):
        theirs = reference(DDIMScheduler, ours.betas, prediction_type=told)
        theirs.set_timesteps(20 // stride)
        for t in theirs.timesteps.tolist():
            a_s = ours.alpha_bar[t - stride] if t >= stride else 1.0
            zt = closed_form(x0, ours.alpha_bar[t], eps)
            step = theirs.step(answer, t, zt, eta=0.0).prev_sample
            close(closed_form(x0, a_s, eps), step, 1e-10)


def test_ddim_with_full_noise_is_the_posterior():
    """Eta = 1: a second formula, written otherwise, for the same step."""
    ours = Cosine().discretise(20)
    theirs = reference(DDIMScheduler, ours.betas)
    theirs.set_timesteps(20)
    x0, zt, noise = normal(4, 3), normal(4, 3, seed=1), normal(4, 3, seed=2)
    for t in range(1, 20):
        mean, variance = posterior(
            x0, zt, ours.alpha_bar_previous[t], ours.alpha_bar[t]
        )
        step = theirs.step(x0, t, zt, eta=1.0, variance_noise=noise)
        wanted = mean + variance.sqrt() * noise
        close(wanted, step.prev_sample, 1e-10)


# Continuous schedules


@given(ANY_SCHEDULE, TIME)
def test_variance_is_preserved(schedule, t):
    """alpha² + sigma² = 1, each in [0, 1]."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    assert 0 <= alpha <= 1 + 1e-15
    assert 0 <= sigma <= 1 + 1e-15
    assert float(alpha**2 + sigma**2) == pytest.approx(1, abs=2e-14)
    assert float(schedule.alpha_bar(t)) == pytest.approx(float(alpha**2))
    assert float(schedule.sigma_squared(t)) == pytest.approx(float(sigma**2))


@given(ANY_SCHEDULE, TIME, TIME)
def test_signal_falls_and_never_comes_back(schedule, a, b):
    assume(abs(a - b) > 1e-6)
    early, late = min(a, b), max(a, b)
    assert schedule.snr(early) > schedule.snr(late) >= 0
    assert schedule.noise_level(early) < schedule.noise_level(late)


@given(ANY_SCHEDULE, between(1e-6, 1 - 1e-6))
def test_noise_level_and_snr_say_the_same(schedule, t):
    product = schedule.noise_level(t) ** 2 * schedule.snr(t)
    assert float(product) == pytest.approx(1, rel=1e-9)
    ratio = schedule.alpha(t) / schedule.sigma(t)
    assert float(ratio**2) == pytest.approx(float(schedule.snr(t)))


@pytest.mark.parametrize("name", NAMES)
def test_schedules_run_from_clean_to_noise(name):
    """All begin with little noise; all end with little signal."""
    schedule = get_schedule(name)
    assert schedule.sigma_squared(0.0) <= 0.01 + 1e-12
    assert schedule.alpha_bar(1.0) < 0.003


def test_log_uniform_visits_the_levels_that_it_names():
    schedule = LogUniform(0.1, 10)
    levels = schedule.noise_level([0.0, 0.25, 0.5, 0.75, 1.0])
    wanted = [0.1, 10**-0.5, 1, 10**0.5, 10]
    torch.testing.assert_close(levels, torch.tensor(wanted).double())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["alpha", "sigma", "snr", "noise_level"])
def test_results_are_float64_and_have_the_shape_of_the_times(name, method):
    function = getattr(get_schedule(name), method)
    for t in (
        0.5,
        [0.5, 0.25],
        np.full((2, 3), 0.5, dtype=np.float32),
        torch.full((2, 3, 1), 0.5),
        torch.zeros(0),
    ):
        value = function(t)
        assert value.dtype == torch.float64
        assert value.shape == torch.as_tensor(t).shape
    whole = function([0.25, 0.5, 0.75])
    torch.testing.assert_close(whole[1], function(0.5), rtol=0, atol=0)


# Noise levels given one by one


@given(between(1e-3, 0.9), between(1, 1e3), st.integers(2, 40), TIME)
def test_levels_in_equal_factors_are_log_uniform(low, high, count, t):
    """Two levels or forty: the straight line is the same."""
    levels = np.geomspace(low, high, count)
    warped, straight = Warped(levels), LogUniform(levels[0], levels[-1])
    for method in ("alpha", "sigma", "alpha_bar", "sigma_squared"):
        close(getattr(warped, method)(t), getattr(straight, method)(t), 1e-12)


@given(st.lists(between(1.05, 9), min_size=1, max_size=12))
def test_warped_visits_its_levels_at_equal_times(ratios):
    """And halfway in time lies their geometric mean."""
    levels = 0.01 * np.cumprod([1.0, *ratios])
    levels = levels[levels < 1e6]
    schedule, n = Warped(levels), len(levels) - 1
    times = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    got = schedule.noise_level(times) / torch.as_tensor(levels)
    close(got, torch.ones(n + 1), 1e-9)
    middle = schedule.noise_level((times[1:] + times[:-1]) / 2)
    product = torch.as_tensor(levels[1:] * levels[:-1])
    close(middle**2 / product, torch.ones(n), 1e-9)


@given(ANY_SCHEDULE, between(0.01, 1))
def test_time_of_undoes_noise_level(schedule, t):
    level = schedule.noise_level(t)
    assume(1e-6 < level < 1e6)
    found = schedule.time_of(level)
    assert found.shape == () and found.dtype == torch.float64
    assert float(found) == pytest.approx(t, abs=1e-6)
    assert float(schedule.noise_level(found) / level) == pytest.approx(1)


def test_time_of_a_level_out_of_reach_is_an_end():
    schedule = LogUniform(0.1, 10)
    assert schedule.time_of(0.05) == 0 and schedule.time_of(0.1) == 0
    assert schedule.time_of(20) == 1
    assert Sqrt().time_of(1e-3) == 0  # it starts with some noise
    assert Linear().time_of(math.inf) == 1


@pytest.mark.parametrize("level", [0, -1.0, math.nan])
def test_time_of_no_level_is_refused(level):
    with pytest.raises(ValueError, match="must be positive"):
        Cosine().time_of(level)


def sigmoid_loss(levels, middle, slope):
    """A loss that rises from 0 to 3 around a noise level."""
    x = slope * (torch.as_tensor(levels).double() / middle).log()
    return 3 * torch.sigmoid(x)


@given(between(0.3, 3), between(1, 3), st.integers(2, 30), between(0, 0.2))
@settings(max_examples=50)
def test_fitted_levels_part_the_rise_equally(middle, slope, count, trim):
    """A known curve on a fine grid: its inverse gives the levels."""
    grid = np.geomspace(1e-6, 1e5, 8000)
    loss = sigmoid_loss(grid, middle, slope)
    levels = schedules.fit_warp(grid, loss, count, trim)
    rise = sigmoid_loss(levels, middle, slope).diff()
    step = (1 - 2 * trim) * (loss[-1] - loss[0]) / (count - 1)
    close(rise, step.expand(count - 1), 1e-3)
    # log-odds of the shares, undone: the curve's own inverse
    if trim > 0.01:
        shares = torch.linspace(trim, 1 - trim, count).double()
        wanted = middle * torch.exp(torch.logit(shares) / slope)
        close(torch.tensor(levels) / wanted, torch.ones(count), 0.01)
    assert Warped(levels).levels == tuple(levels)


def test_fitted_levels_of_a_straight_line_are_geometric():
    grid = np.geomspace(0.1, 10, 7)
    got = schedules.fit_warp(grid, np.arange(7.0), count=5, trim=0)
    close(got, np.geomspace(0.1, 10, 5), 1e-5)
    inner = schedules.fit_warp(grid, np.arange(7.0), count=3, trim=0.25)
    close(inner, np.geomspace(0.1, 10, 5)[1:4], 1e-5)


def test_a_loss_that_dips_or_rests_still_gives_rising_levels():
    loss = [0.0, 0.0, 1.0, 0.4, 1.0, 1.0, 2.0, 1.9]
    levels = schedules.fit_warp(np.geomspace(0.1, 10, 8), loss, count=20)
    assert all(a < b for a, b in itertools.pairwise(levels))
    level = np.maximum.accumulate(loss)
    grid = np.geomspace(0.1, 10, 8)
    assert levels == schedules.fit_warp(grid, level, count=20)
    # From the third to the sixth nothing rises: hardly a level lies there.
    assert sum(0.4 < v < 2.6 for v in levels) <= 1
    Warped(levels)


def test_a_loss_is_made_to_rise_and_hardly_moved():
    levels, losses = [0.1, 1.0, 2.0, 10.0], [0.5, 0.2, 0.5, 2.5]
    logs, rise = schedules.rising_loss(levels, losses)
    assert logs.exp().tolist() == pytest.approx(levels)
    assert bool((rise.diff() > 0).all())
    assert rise.tolist() == pytest.approx([0.5, 0.5, 0.5, 2.5], abs=1e-5)


@pytest.mark.parametrize(
    ("levels", "losses", "options", "words"),
    [
        ([1, 2], [1, 2, 3], {}, "one length"),
        ([1], [1], {}, "2 at least"),
        ([[1, 2]], [[1, 2]], {}, "one length"),
        ([2, 1], [0, 1], {}, "levels must rise"),
        ([0, 0], [0, 1], {}, "levels must rise"),
        ([-1, 1], [0, 1], {}, "levels must rise"),
        ([1, 2], [0, math.nan], {}, "finite"),
        ([1, 2], [0, math.inf], {}, "finite"),
        ([1, 2], [1, 1], {}, "does not rise"),
        ([1, 2], [2, 1], {}, "does not rise"),
        ([1, 2], [0, 1], {"count": 1}, "count >= 2"),
        ([1, 2], [0, 1], {"trim": 0.5}, "trim < 0.5"),
        ([1, 2], [0, 1], {"trim": -0.1}, "0 <= trim"),
        ([1, 2], [0, 1], {"trim": math.nan}, "trim"),
    ],
)
def test_losses_that_fit_no_schedule_are_refused(
    levels, losses, options, words
):
    with pytest.raises(ValueError, match=words):
        schedules.fit_warp(levels, losses, **options)


# Exact arithmetic: what float64 must not lose


def _exact(schedule, t):
    """Signal and noise shares with 60 digits, from the papers' formulas."""
    f = mpmath.mpf
    t = f(t)
    if isinstance(schedule, Linear):
        low, high = f(schedule.beta_min), f(schedule.beta_max)
        bar = mpmath.exp(-(low * t + (high - low) * t**2 / 2))
    elif isinstance(schedule, Cosine):
        s = f(schedule.offset)

        def wave(x):
            return mpmath.cos((x + s) / (1 + s) * mpmath.pi / 2) ** 2

        bar = wave(t) / wave(0)
    elif isinstance(schedule, Sqrt):
        s = f(schedule.offset)
        bar = 1 - mpmath.sqrt((t + s) / (1 + s))
    elif isinstance(schedule, Sigmoid):
        start, end, tau = f(schedule.start), f(schedule.end), f(schedule.tau)

        def rise(x):
            return 1 / (1 + mpmath.exp(-(x * (end - start) + start) / tau))

        bar = (rise(f(1)) - rise(t)) / (rise(f(1)) - rise(f(0)))
    elif isinstance(schedule, Warped):
        place = t * (len(schedule.levels) - 1)
        left = min(int(mpmath.floor(place)), len(schedule.levels) - 2)
        low, high = (f(v) for v in schedule.levels[left : left + 2])
        bar = 1 / (1 + (low * (high / low) ** (place - left)) ** 2)
    else:
        low, high = f(schedule.low), f(schedule.high)
        bar = 1 / (1 + (low * (high / low) ** t) ** 2)
    return bar, 1 - bar


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("t", [1e-300, 1e-15, 1e-12, 1e-9, 1e-6, 1e-3, 0.5])
def test_the_first_traces_of_noise_are_exact(name, t):
    """Relative error at most 1e-12 however early: 1 - alpha_bar has none."""
    schedule = get_schedule(name)
    with mpmath.workdps(340):
        _, noise = _exact(schedule, t)
        got = mpmath.mpf(float(schedule.sigma_squared(t)))
        assert abs(got - noise) <= mpmath.mpf(1e-12) * noise
        root = mpmath.mpf(float(schedule.sigma(t)))
        assert abs(root - mpmath.sqrt(noise)) <= 1e-12 * mpmath.sqrt(noise)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("left", [1e-12, 1e-9, 1e-6, 1e-3])
def test_the_last_traces_of_signal_are_exact(name, left):
    """Relative error 1e-13; a cosine near its zero has fewer digits."""
    schedule = get_schedule(name)
    t = 1 - left
    with mpmath.workdps(60):
        signal, _ = _exact(schedule, t)
        got = mpmath.mpf(float(schedule.alpha_bar(t)))
        lost = 1e-15 / left if name == "cosine" else 0.0
        assert abs(got - signal) <= mpmath.mpf(1e-13 + lost) * signal


def test_float32_would_have_lost_the_tail():
    """Why all of this is computed in float64."""
    t = torch.tensor(1e-6, dtype=torch.float32)
    right = float(Cosine().sigma_squared(t))
    careless = 1 - float(Cosine().alpha_bar(t).float())
    assert abs(careless - right) > 0.2 * right


@given(ANY_SCHEDULE, TIME)
@settings(max_examples=60)
def test_any_options_agree_with_exact_arithmetic(schedule, t):
    with mpmath.workdps(60):
        signal, noise = (float(v) for v in _exact(schedule, t))
    assert float(schedule.alpha_bar(t)) == pytest.approx(signal, abs=1e-13)
    assert float(schedule.sigma_squared(t)) == pytest.approx(noise, abs=1e-13)


# In steps


@given(ANY_SCHEDULE, st.integers(1, 300))
def test_steps_give_the_curve_back(schedule, steps):
    """Up to the first step that the cap holds back, but for linear."""
    cut = schedules.Schedule.discretise(schedule, steps)
    assert cut.num_steps == len(cut.betas) == steps
    free = int((cut.betas < 0.999).long().cumprod(0).sum())
    grid = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    close(cut.alpha_bar[:free], schedule.alpha_bar(grid)[:free], 1e-12)
    assert (cut.alpha_bar.diff() <= 0).all()


@pytest.mark.parametrize("name", sorted({*NAMES} - {"linear"}))
def test_a_million_steps_keep_their_digits(name):
    """The first betas are near 1e-8; 1 - alpha_bar would leave half of it."""
    schedule, n = get_schedule(name), 1_000_000
    betas = schedule.discretise(n).betas
    with mpmath.workdps(40):
        signal = [1, *(_exact(schedule, i / n)[0] for i in (1, 2, 3))]
        for i in range(3):
            wanted = float(1 - signal[i + 1] / signal[i])
            assert float(betas[i]) == pytest.approx(wanted, rel=1e-8)


@given(ANY_SCHEDULE, st.integers(1, 300))
def test_betas_and_signal_shares_fit_together(schedule, steps):
    cut = schedule.discretise(steps)
    assert ((cut.betas > 0) & (cut.betas <= 0.999)).all()
    assert cut.alpha_bar_previous[0] == 1
    close(cut.alpha_bar_previous * (1 - cut.betas), cut.alpha_bar, 1e-14)


def test_many_linear_steps_come_close_to_the_curve():
    grid = torch.arange(1, 100_001, dtype=torch.float64) / 100_000
    cut = Linear().discretise(100_000)
    close(cut.alpha_bar, Linear().alpha_bar(grid), 1e-3)


@pytest.mark.parametrize("steps", [1, 2, 10, 20])
def test_few_linear_steps_still_end_in_noise(steps):
    cut = Linear().discretise(steps)
    assert cut.alpha_bar[-1] < 0.002
    assert (cut.betas[:-1] < 0.999).all()


# The forward process


@given(st.lists(between(1e-6, 0.999), min_size=1, max_size=60))
def test_iterated_steps_are_the_closed_form_in_moments(betas):
    """Factor on x0 and variance of the noise, followed step by step."""
    factor, variance = torch.tensor(1.0).double(), 0.0
    for beta in betas:
        factor = forward_step(factor, beta, 0.0)
        variance = (1 - beta) * variance + beta
    alpha_bar = DiscreteSchedule(betas).alpha_bar[-1]
    close(closed_form(1.0, alpha_bar, 0.0), factor, 1e-12)
    close(closed_form(0.0, alpha_bar, 1.0) ** 2, variance, 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_iterated_steps_are_the_closed_form_by_chance(name):
    """Monte Carlo: mean, variance and fourth moment after 12 of 16 steps."""
    n, x0 = 100_000, 1.5
    cut = get_schedule(name).discretise(16)
    x = torch.full((n,), x0, dtype=torch.float64)
    for i in range(12):
        x = forward_step(x, cut.betas[i], normal(n, seed=i))
    mean = x0 * cut.alpha_bar[11].sqrt()
    variance = 1 - cut.alpha_bar[11]
    noise = (x - mean) / variance.sqrt()
    assert abs(noise.mean()) < 5 / n**0.5
    assert abs(noise.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs((noise**4).mean() - 3) < 5 * (96 / n) ** 0.5


@given(between(0, 1), between(-5, 5))
def test_a_step_and_a_jump_keep_unit_variance(share, value):
    """The two factors are the sides of a right triangle."""
    for function in (forward_step, closed_form):
        a = float(function(1.0, share, 0.0))
        b = float(function(0.0, share, 1.0))
        assert a**2 + b**2 == pytest.approx(1)
        got = float(function(value, share, -value))
        assert got == pytest.approx((a - b) * value, abs=1e-12)


# The posterior

SHARES = st.tuples(between(0.01, 0.99), between(0.01, 0.95)).map(
    lambda pair: (pair[0], pair[0] * pair[1])
)


@given(between(-3, 3), between(-3, 3), SHARES)
@settings(max_examples=50)
def test_posterior_is_gaussian_conditioning(x0, xt, shares):
    """Against Bayes' rule on a grid: q(z_s | x_0) times q(z_t | z_s)."""
    a_s, a_t = shares
    ratio = a_t / a_s
    first, last = math.sqrt(a_s) * x0, xt / math.sqrt(ratio)
    wide = 9 * math.sqrt(max(1 - a_s, (1 - ratio) / ratio))
    z = np.linspace(min(first, last) - wide, max(first, last) + wide, 40_001)
    log_p = -((z - first) ** 2) / (2 * (1 - a_s))
    log_p -= (xt - math.sqrt(ratio) * z) ** 2 / (2 * (1 - ratio))
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    mean, variance = posterior(x0, xt, a_s, a_t)
    assert float(mean) == pytest.approx((p * z).sum(), abs=1e-8)
    spread = (p * (z - (p * z).sum()) ** 2).sum()
    assert float(variance) == pytest.approx(spread, rel=1e-6)


@given(SHARES)
def test_a_step_forth_and_back_changes_no_distribution(shares):
    """Averaged over z_t, the posterior is q(z_s | x_0)."""
    a_s, a_t = shares
    from_x0, variance = posterior(1.0, 0.0, a_s, a_t)
    from_xt, _ = posterior(0.0, 1.0, a_s, a_t)
    mean = float(from_x0 + from_xt * math.sqrt(a_t))
    spread = float(from_xt**2 * (1 - a_t) + variance)
    assert mean == pytest.approx(math.sqrt(a_s))
    assert spread == pytest.approx(1 - a_s)


def test_the_ends_of_a_path_are_certain():
    """At s = 0 it is x0, at s = t it is z_t; from pure noise q(z_s | x0)."""
    x0, xt = normal(5), normal(5, seed=1)
    for a_s, wanted, spread in (
        (1.0, x0, 0.0),
        (0.3, xt, 0.0),
    ):
        mean, variance = posterior(x0, xt, a_s, 0.3)
        close(mean, wanted, 1e-12)
        close(variance, spread, 1e-12)
    mean, variance = posterior(x0, xt, 0.3, 0.0)
    close(mean, math.sqrt(0.3) * x0, 1e-12)
    close(variance, 0.7, 1e-12)


def test_posterior_takes_one_time_a_row():
    x0, xt = normal(3, 2), normal(3, 2, seed=1)
    a_s = torch.tensor([[0.9], [0.8], [0.7]])
    mean, variance = posterior(x0, xt, a_s, a_s / 2)
    assert mean.shape == (3, 2) and variance.shape == (3, 1)
    for i in range(3):
        alone, _ = posterior(x0[i], xt[i], a_s[i], a_s[i] / 2)
        close(mean[i], alone, 1e-14)


# The exact denoiser

MIXTURE = st.integers(1, 4).flatmap(
    lambda k: st.tuples(
        st.lists(between(-3, 3), min_size=k, max_size=k),
        st.lists(between(0.1, 1), min_size=k, max_size=k),
        st.lists(between(0.05, 1), min_size=k, max_size=k),
    )
)


def density(z, alpha_bar, means, stds, weights):
    """Density of the noised mixture, for NumPy and for autograd."""
    means, stds, weights = (
        torch.as_tensor(v, dtype=torch.float64) for v in (means, stds, weights)
    )
    variance = alpha_bar * stds**2 + 1 - alpha_bar
    error = z[:, None] - math.sqrt(alpha_bar) * means
    bells = torch.exp(-(error**2) / (2 * variance)) / variance.sqrt()
    return (weights * bells).sum(dim=1) / weights.sum()


@given(MIXTURE, between(0.05, 0.95), between(-3, 3))
@settings(max_examples=50)
def test_denoiser_is_the_mean_of_all_that_could_have_been(mixture, bar, z):
    """Against the two integrals over x0, summed on a fine grid."""
    x = torch.linspace(-12, 12, 40_001, dtype=torch.float64)
    clean = density(x, 1.0, *mixture)
    p = clean * torch.exp(-((z - math.sqrt(bar) * x) ** 2) / 2 / (1 - bar))
    wanted = float((p * x).sum() / p.sum())
    got = mixture_denoiser([z], bar, *mixture)
    assert float(got) == pytest.approx(wanted, abs=1e-7)


@given(MIXTURE, between(0.05, 0.95))
@settings(max_examples=50)
def test_denoiser_is_tweedies_formula(mixture, bar):
    """alpha x0_hat = z + sigma² d log p(z) / dz, by autograd."""
    z = torch.linspace(-4, 4, 33, dtype=torch.float64, requires_grad=True)
    p = density(z, bar, *mixture)
    (score,) = torch.autograd.grad(p.log().sum(), z)
    wanted = (z + (1 - bar) * score) / math.sqrt(bar)
    close(mixture_denoiser(z, bar, *mixture), wanted, 1e-9)


def test_no_other_guess_is_better():
    """Its error is uncorrelated with anything that is computed from z."""
    n, means, stds, weights = 200_000, [-4 / 3, 2 / 3], [1 / 3] * 2, [1, 2]
    generator = torch.Generator().manual_seed(2)
    peak = torch.multinomial(
        torch.tensor(weights).double(), n, True, generator=generator
    )
    x0 = torch.tensor(means).double()[peak] + normal(n) / 3
    zt = closed_form(x0, 0.6, normal(n, seed=1))
    error = x0 - mixture_denoiser(zt, 0.6, means, stds, weights)
    for other in (torch.ones(n), zt, zt**2, zt.sin(), (zt > 0).double()):
        product = error * other
        assert abs(product.mean()) < 5 * product.std() / n**0.5
    assert (error**2).mean() < ((x0 - zt) ** 2).mean()


def test_denoiser_without_noise_and_without_signal():
    mixture = ([-1.0, 2.0], [0.5, 0.25], [0.3, 0.7])
    z = torch.linspace(-3, 3, 7, dtype=torch.float64)
    close(mixture_denoiser(z, 1.0, *mixture), z, 1e-12)
    mean = torch.full((7,), 1.1, dtype=torch.float64)
    close(mixture_denoiser(z, 0.0, *mixture), mean, 1e-12)


def test_denoiser_of_one_gaussian_is_a_straight_line():
    z = torch.linspace(-3, 3, 7, dtype=torch.float64)
    got = mixture_denoiser(z, 0.5, [1.0], [2.0], [1.0])
    gain = math.sqrt(0.5) * 4 / (0.5 * 4 + 0.5)
    close(got, 1 + gain * (z - math.sqrt(0.5)), 1e-12)


def test_denoiser_of_points_is_a_softmax():
    """No width at all: the weights of a classifier."""
    points = torch.tensor([-1.0, 0.2, 1.5]).double()
    z = normal(6)
    logits = -((z[:, None] - math.sqrt(0.4) * points) ** 2) / (2 * 0.6)
    got = mixture_denoiser(z, 0.4, points, torch.zeros(3), torch.ones(3))
    close(got, logits.softmax(1) @ points, 1e-12)


def test_denoiser_is_finite_far_from_all_data():
    """exp(-1e10) is 0 for all components; their ratio is not 0 / 0."""
    z = torch.tensor([-1e5, 1e5])
    got = mixture_denoiser(z, 0.9999, [-1, 1], [0.01, 0.01], [0.5, 0.5])
    assert torch.isfinite(got).all() and got[0] < 0 < got[1]


def test_only_the_proportions_of_the_weights_count():
    z = normal(5)
    mixture = ([-1, 1], [0.3, 0.4])
    small = mixture_denoiser(z, 0.5, *mixture, [0.2, 0.8])
    large = mixture_denoiser(z, 0.5, *mixture, [1, 4])
    close(small, large, 1e-14)
    without = mixture_denoiser(z, 0.5, *mixture, [0, 1])
    close(without, mixture_denoiser(z, 0.5, [1], [0.4], [1]), 1e-14)


# Bad input


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["alpha", "sigma", "snr", "alpha_bar"])
@given(
    t=st.floats().filter(lambda t: not 0 <= t <= 1),
    good=st.lists(TIME, max_size=3),
)
@settings(max_examples=20)
def test_times_outside_zero_and_one_are_refused(name, method, t, good):
    """NaN and infinity too, alone or among good ones; the message says t."""
    function = getattr(get_schedule(name), method)
    for times in (t, [*good, t]):
        with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]") as e:
            function(times)
        assert str(t) in str(e.value)


@pytest.mark.parametrize("bad", ["noon", None, [0.1, "x"], [[0.1], [0.2, 1]]])
def test_a_time_that_is_no_number_is_refused(bad):
    with pytest.raises(TypeError, match=r"t must be a number .* got"):
        Cosine().alpha(bad)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [0, -1, -100])
def test_too_few_steps_are_refused(name, steps):
    with pytest.raises(ValueError, match=f"at least 1; got {steps}"):
        get_schedule(name).discretise(steps)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [2.5, 10.0, True, "10", None, [10]])
def test_step_counts_that_are_no_whole_number_are_refused(name, steps):
    with pytest.raises(TypeError, match="whole number such as 64; got"):
        get_schedule(name).discretise(steps)


def test_whole_numbers_of_other_libraries_are_welcome():
    for steps in (np.int64(7), torch.tensor(7)):
        assert Cosine().discretise(steps).num_steps == 7


@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (4, 1)])
def test_betas_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match="one row of numbers"):
        DiscreteSchedule(torch.full(shape, 0.1))


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, 1.5, math.nan, math.inf])
def test_betas_outside_zero_and_one_are_refused(bad):
    """The message says which step, and what it was."""
    with pytest.raises(ValueError, match=f"step 2 has {bad}"):
        DiscreteSchedule([0.1, 0.2, bad, 0.3, bad])


@pytest.mark.parametrize("cap", [0.0, -1.0, math.nan])
def test_a_cap_that_stops_all_steps_is_refused(cap):
    with pytest.raises(ValueError, match="between 0 and 1"):
        Cosine().discretise(10, max_beta=cap)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (Linear, {"beta_min": 0}, "0 < beta_min"),
        (Linear, {"beta_min": 3, "beta_max": 2}, "0 < beta_min"),
        (Linear, {"beta_max": math.inf}, "0 < beta_min"),
        (Linear, {"beta_min": math.nan}, "0 < beta_min"),
        (Cosine, {"offset": -1e-9}, "the offset must"),
        (Cosine, {"offset": math.nan}, "the offset must"),
        (Cosine, {"offset": math.inf}, "the offset must"),
        (Sqrt, {"offset": -1}, "the offset must"),
        (Sqrt, {"offset": math.inf}, "the offset must"),
        (Sigmoid, {"start": 3}, "start < end"),
        (Sigmoid, {"tau": 0}, "tau > 0"),
        (Sigmoid, {"end": math.nan}, "start < end"),
        (Sigmoid, {"tau": 1e-3}, "overflows"),
        (Sigmoid, {"end": math.inf}, "overflows"),
        (LogUniform, {"low": 0}, "0 < low < high"),
        (LogUniform, {"low": 2, "high": 1}, "0 < low < high"),
        (LogUniform, {"high": math.inf}, "0 < low < high"),
        (Warped, {"levels": [1.0]}, "two or more"),
        (Warped, {"levels": [0.0, 1.0]}, "positive"),
        (Warped, {"levels": [-1.0, 1.0]}, "positive"),
        (Warped, {"levels": [1.0, 1.0]}, "larger than the one before"),
        (Warped, {"levels": [1.0, 3.0, 2.0]}, "larger than the one before"),
        (Warped, {"levels": [1.0, math.nan]}, "levels must be"),
        (Warped, {"levels": [1.0, math.inf]}, "below 1e6"),
    ],
)
def test_options_that_make_no_schedule_are_refused(kind, options, words):
    with pytest.raises(ValueError, match=words):
        kind(**options)


# By name


@pytest.mark.parametrize("name", NAMES)
def test_a_name_gives_its_schedule(name):
    schedule = get_schedule(name)
    assert schedule.name == name
    assert schedule == get_schedule(name)
    assert hash(schedule) == hash(get_schedule(name))
    assert get_schedule(schedule) is schedule
    assert eval(repr(schedule), vars(schedules)) == schedule


def test_options_reach_the_schedule():
    assert get_schedule("cosine", offset=0.1) == Cosine(0.1) != Cosine()
    with pytest.raises(TypeError, match="finished.*'cosine'.* with offset"):
        get_schedule(Cosine(), offset=0.1)
    with pytest.raises(TypeError, match="tau"):
        get_schedule("cosine", tau=1)


@pytest.mark.parametrize("bad", ["cosin", "Cosine", "", None, 3, ["linear"]])
def test_an_unknown_name_lists_those_there_are(bad):
    with pytest.raises(ValueError, match="unknown schedule") as error:
        get_schedule(bad)
    for name in NAMES:
        assert name in str(error.value)


def test_a_base_schedule_says_what_is_missing():
    with pytest.raises(NotImplementedError):
        schedules.Schedule().alpha(0.5)
