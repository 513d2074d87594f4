"""What one noised point says: against Bayes' rule written out in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dblm_lib import decoding, noising, posterior, schedules

VOCAB, DIM = 20, 6
BY_NAME = pytest.mark.parametrize("name", sorted(schedules.SCHEDULES))


def draw(*shape, seed=0):
    """Draw standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def table_of(seed=0):
    """Draw rows of all lengths."""
    return draw(VOCAB, DIM, seed=seed)


@BY_NAME
@pytest.mark.parametrize("t", [0.3, 0.6, 0.9])
def test_likelihood_is_that_of_a_gaussian(name, t):
    """Differences between tokens are those of the densities."""
    table, schedule = table_of(), schedules.get_schedule(name)
    zt = draw(3, 4, DIM, seed=1)
    times = torch.full((3, 1), t, dtype=torch.float64)
    got = posterior.log_likelihood(zt, times, table, schedule)
    assert got.shape == (3, 4, VOCAB) and got.dtype == torch.float32
    alpha, sigma = schedule.alpha(times[0]), schedule.sigma(times[0])
    normal = torch.distributions.Normal(alpha * table.double(), sigma)
    wanted = normal.log_prob(zt[:, :, None].double()).sum(-1)
    assert schedule.snr(times).max() < posterior.LARGEST_SNR
    gap = (got.double() - wanted).diff(dim=-1)
    assert gap.abs().max() < 2e-5 * wanted.abs().max()


@BY_NAME
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_likelihood_is_finite_at_both_ends(name, t):
    """Some schedules have no noise at 0, or no signal at 1."""
    table = noising.normalise(table_of())
    times = torch.tensor([[t]], dtype=torch.float64)
    got = posterior.log_likelihood(
        table[None], times, table, schedules.get_schedule(name)
    )
    assert torch.isfinite(got).all()
    if t == 0:
        assert torch.equal(got[0].argmax(-1), torch.arange(VOCAB))


def test_likelihood_stops_growing():
    """Beyond the largest signal-to-noise ratio it is that of it."""
    table, schedule = table_of(), schedules.Cosine()
    clean = table[None, :3]
    times = [schedule.time_of(level) for level in (0.01, 0.05, 0.1, 0.2)]
    spread = [
        float(
            posterior.log_likelihood(
                clean * schedule.alpha(t).float(),
                t.reshape(1, 1),
                table,
                schedule,
            ).std()
        )
        for t in times
    ]
    assert spread[0] == pytest.approx(spread[1], rel=1e-3)
    assert spread[1] == pytest.approx(spread[2], rel=1e-3)
    assert spread[3] == pytest.approx(spread[2] / 4, rel=1e-3)


@settings(max_examples=30)
@given(st.floats(0.05, 20), st.integers(0, 1000))
def test_mean_is_weighted_by_probabilities(temperature, seed):
    """Softmax times table, in float64; and within the tokens' range."""
    table, logits = table_of(seed), draw(2, 3, VOCAB, seed=seed + 1)
    got = posterior.token_mean(logits, table, temperature)
    odds = (logits.double() / temperature).exp()
    wanted = odds @ table.double() / odds.sum(-1, keepdim=True)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=1e-5)
    assert (got <= table.amax(0) + 1e-5).all()
    assert (got >= table.amin(0) - 1e-5).all()


def test_both_count_in_float32():
    """Half-precision points and tables, and under autocast."""
    table, zt = table_of().bfloat16(), draw(2, 3, DIM, seed=1).bfloat16()
    t = torch.tensor([[0.4], [0.8]], dtype=torch.float64)
    given_ = t, table.float(), schedules.Linear()
    exact = posterior.log_likelihood(zt.float(), *given_)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = posterior.log_likelihood(zt, t, table, schedules.Linear())
        mean = posterior.token_mean(exact.bfloat16(), table)
    assert torch.equal(got, exact)
    assert mean.dtype == torch.float32


@pytest.mark.parametrize("level", [0.3, 1.0, 3.0])
def test_it_is_the_exact_denoiser_of_texts_of_one_token(level):
    """The same posterior mean, written twice."""
    table, schedule = table_of(), schedules.Cosine()
    t = schedule.time_of(level)
    zt = draw(40, 1, DIM, seed=2)
    texts = posterior.empirical_denoiser(table[:, None], schedule)
    alone = posterior.token_mean(
        posterior.log_likelihood(zt, t.reshape(1, 1), table, schedule), table
    )
    torch.testing.assert_close(alone, texts(zt, t), rtol=0, atol=1e-4)
    assert decoding.empirical_denoiser is posterior.empirical_denoiser


def test_gradients_are_those_of_finite_differences():
    """Of the points and of the table, which may learn."""
    table = draw(5, 3).double().requires_grad_()
    zt = draw(2, 2, 3, seed=1).double().requires_grad_()
    t, schedule = torch.tensor([[0.5]]).double(), schedules.Cosine()

    def guess(points, rows):
        own = posterior.log_likelihood(points, t, rows, schedule)
        return posterior.token_mean(own, rows)

    # It counts in float32 whatever comes in: wide steps, loose bounds.
    torch.autograd.gradcheck(
        guess, (zt, table), eps=1e-2, atol=2e-3, rtol=2e-2, nondet_tol=0
    )
