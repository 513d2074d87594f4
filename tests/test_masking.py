"""Masks against enumeration: posterior, bounds, draws of times."""

import itertools
import math

import numpy as np
import pytest
import torch
from toy_joint import (
    ENTROPY,
    JOINT,
    LENGTH,
    MARGINAL_ENTROPY,
    MASK,
    NOISED,
    ONE_HOT,
    SIZE,
    TEXTS,
    masked_denoiser,
    seeded,
    texts,
)

from dblm_lib import masking, noising

NAMES = list(masking.SCHEDULES)


def patterns():
    """Each choice of positions to mask, (8, length), as True and False."""
    return torch.unique(NOISED == MASK, dim=0)


def losses():
    """Cross-entropy of the masked tokens, in the mean over texts, (8,)."""
    found = []
    for hidden in patterns():
        logits = masked_denoiser(TEXTS.masked_fill(hidden, MASK))
        right = logits.gather(-1, TEXTS[..., None])[..., 0]
        found.append(-(JOINT @ (right * hidden).sum(1)))
    return torch.stack(found)


def loss_at(share):
    """The same at mask shares: the mean over patterns, exact."""
    share = torch.as_tensor(share)[..., None]
    count = patterns().sum(1)
    law = share**count * (1 - share) ** (LENGTH - count)
    return law @ losses()


def quadrature(points=400):
    """Nodes and weights on (0, 1), dense at both ends."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    u = torch.tensor((nodes + 1) / 2)
    t = torch.sin(u * math.pi / 2) ** 2
    slope = math.pi / 2 * torch.sin(u * math.pi)
    return t, torch.tensor(weights / 2) * slope


# --- schedules, weights, bounds ---------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_schedule_runs_from_clean_to_masked_and_knows_its_slope(name):
    schedule = masking.get_schedule(name)
    ends = torch.tensor([0.0, 1.0])
    assert torch.allclose(schedule.alpha(ends), 1 - ends.double())
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    both = schedule.alpha(t) + schedule.masked(t)
    torch.testing.assert_close(both, torch.ones_like(t))
    step = 1e-6
    rise = schedule.alpha(t + step) - schedule.alpha(t - step)
    torch.testing.assert_close(
        schedule.slope(t), rise / (2 * step), rtol=1e-6, atol=1e-8
    )
    weight = -schedule.slope(t) / (1 - schedule.alpha(t))
    torch.testing.assert_close(masking.mask_weight(t, schedule), weight)


def test_the_linear_weight_is_one_over_t():
    t = torch.tensor([1e-6, 0.25, 1.0], dtype=torch.float64)
    torch.testing.assert_close(masking.mask_weight(t), 1 / t)
    with pytest.raises(ValueError, match="nothing is masked"):
        masking.mask_weight([0.5, 0.0])


@pytest.mark.parametrize("name", NAMES)
def test_every_schedule_gives_the_same_bound_and_here_it_is_the_entropy(name):
    """Integrated, not sampled: the bound of a perfect network."""
    schedule = masking.get_schedule(name)
    t, width = quadrature()
    terms = masking.mask_weight(t, schedule) * loss_at(schedule.masked(t))
    assert float(width @ terms) == pytest.approx(ENTROPY, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_bound_of_t_steps_falls_from_marginals_to_entropy(name):
    """One step: the sum of the marginals' entropies. Many: the entropy."""
    schedule = masking.get_schedule(name)
    found = []
    for steps in (1, 2, 4, 8, 64, 4096):
        grid = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        alphas = schedule.alpha(grid)
        share = masking.reveal_share(alphas[:-1], alphas[1:])
        found.append(float(share @ loss_at(schedule.masked(grid[1:]))))
    assert found[0] == pytest.approx(MARGINAL_ENTROPY)
    assert all(a > b for a, b in itertools.pairwise(found))
    assert found[-1] > ENTROPY
    assert found[-1] == pytest.approx(ENTROPY, abs=2e-3)
    assert MARGINAL_ENTROPY > ENTROPY + 0.2, "or the test shows nothing"


def test_a_step_of_the_linear_schedule_reveals_one_in_k():
    k = torch.arange(1, 65, dtype=torch.float64)
    share = masking.reveal_share(1 - (k - 1) / 64, 1 - k / 64)
    torch.testing.assert_close(share, 1 / k)


@pytest.mark.parametrize("pair", [(0.2, 0.5), (1.2, 0.5), (0.5, -0.1)])
def test_alphas_in_the_wrong_order_are_refused(pair):
    with pytest.raises(ValueError, match="0 <= alpha_t <= alpha_s <= 1"):
        masking.reveal_share(*pair)
    with pytest.raises(ValueError, match="nothing is masked"):
        masking.reveal_share(1.0, 1.0)


# --- posterior and carry-over -----------------------------------------------


def test_the_posterior_is_bayes_rule():
    """q(z_s | z_t, x0) = q(z_t | z_s) q(z_s | x0) / q(z_t | x0)."""
    alpha_s, alpha_t = 0.7, 0.3
    zt = torch.tensor([[0, MASK, 2]])
    x0 = torch.nn.functional.one_hot(torch.tensor([[0, 1, 2]]), SIZE)
    got = masking.mask_posterior(x0, zt, alpha_s, alpha_t, MASK)
    for i in range(3):
        early = torch.zeros(4).double()
        early[i], early[MASK] = alpha_s, 1 - alpha_s
        kept = alpha_t / alpha_s
        late = torch.zeros(4).double()  # q(z_t = seen | z_s)
        late[zt[0, i]] += kept
        if zt[0, i] == MASK:
            late += 1 - kept
            late[MASK] = 1
        joint = early * late
        torch.testing.assert_close(got[0, i], joint / joint.sum())


def test_noising_and_going_back_gives_the_law_of_the_earlier_time():
    """By Monte Carlo: shares of masks at s, and no wrong token ever."""
    x0 = texts(20000)
    zt = masking.mask_tokens(x0, 0.8, MASK, seeded(1))
    one_hot = torch.nn.functional.one_hot(x0, SIZE)
    law = masking.mask_posterior(one_hot, zt, 0.6, 0.2, MASK)
    drawn = torch.multinomial(law.flatten(0, 1), 1, generator=seeded(2))
    zs = drawn.view_as(x0)
    share = float((zs == MASK).double().mean())
    assert abs(share - 0.4) < 4 * math.sqrt(0.24 / zs.numel())
    assert bool(((zs == x0) | (zs == MASK)).all())


def test_a_mask_inside_the_vocabulary_has_no_row_of_its_own():
    """As in LLaDA, whose mask is one of the tokens."""
    zt = torch.tensor([[2, 1]])
    x0 = torch.tensor([[[0.25, 0.75, 0.0], [0.0, 1.0, 0.0]]])
    got = masking.mask_posterior(x0, zt, 0.5, 0.0, 2)
    want = torch.tensor([[[0.125, 0.375, 0.5], [0, 1, 0]]]).double()
    torch.testing.assert_close(got, want)
    logits = masking.carry_over(torch.zeros(1, 2, 3), zt, 2)
    probs = logits.softmax(-1)
    torch.testing.assert_close(
        probs, torch.tensor([[[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]])
    )


def test_carry_over_keeps_what_is_visible_and_the_logits_of_masks():
    ids = torch.tensor([[1, MASK, 0]])
    logits = torch.randn(1, 3, SIZE, generator=seeded())
    got = masking.carry_over(logits, ids, MASK)
    assert torch.equal(got[0, 1], logits[0, 1])
    assert got.argmax(-1)[0, [0, 2]].tolist() == [1, 0]
    assert torch.equal(got.exp()[0, 0], torch.tensor([0.0, 1.0, 0.0]))
    with pytest.raises(ValueError, match="visible id lies outside"):
        masking.carry_over(logits, ids, mask_id=9)
    with pytest.raises(ValueError, match="logits"):
        masking.carry_over(logits[:, :2], ids, MASK)


def test_the_forward_process_is_that_of_chapter_2():
    assert masking.mask_tokens is noising.mask_tokens


# --- draws ------------------------------------------------------------------


@pytest.mark.parametrize("how", masking.DRAWS)
def test_each_row_sees_all_times(how):
    """A bound of the same texts in the same rows needs it."""
    runs = torch.stack(
        [masking.sample_times(4, how, seeded(i)) for i in range(3000)]
    )
    assert float(runs.min()) > 0 and float(runs.max()) < 1
    error = math.sqrt(1 / 12 / 3000)
    assert bool(((runs.mean(0) - 0.5).abs() < 4 * error).all())
    assert bool(((runs.var(0) - 1 / 12).abs() < 0.006).all())


def test_strata_hold_one_time_each():
    times = masking.sample_times(50, "stratified", seeded())
    assert (times * 50).long().sort().values.tolist() == list(range(50))
    assert times.diff().abs().min() > 0
    times = masking.sample_times(50, "low-discrepancy", seeded())
    gaps = times.sort().values.diff()
    torch.testing.assert_close(gaps, torch.full_like(gaps, 0.02))


def test_counts_are_those_of_llada():
    """Its evaluator: linspace from a random count, rounded, modulo length.

    Equal where the spacing is whole; else it rounds and we cut off.
    """
    for batch, length in ((4, 16), (16, 16), (32, 64)):
        got = masking.sample_counts(batch, length, seeded(5))
        first = int(torch.randint(length, (1,), generator=seeded(5))) + 1
        last = first + (batch - 1) * (length / batch)
        want = torch.linspace(float(first), last, steps=batch).round().long()
        if length % batch == 0:
            assert torch.equal(got, (want - 1) % length + 1)
        assert int(got.min()) >= 1 and int(got.max()) <= length
    runs = torch.stack(
        [masking.sample_counts(2, 5, seeded(i)) for i in range(4000)]
    )
    for column in runs.T:
        seen = torch.bincount(column, minlength=6)[1:].double()
        assert float(((seen - 800) ** 2 / 800).sum()) < 25


def estimates(how, rows, seed):
    """One estimate of the bound a row, by noising and evaluating."""
    # Another seed, or times and texts would be the same draws.
    x0, generator = texts(rows, seed + 1000), seeded(seed)
    if how == "counts":
        counts = masking.sample_counts(rows, LENGTH, generator)
        zt = masking.mask_count(x0, counts, MASK, generator)
        weight = LENGTH / counts.double()
    else:
        t = masking.sample_times(rows, how, generator)
        zt = masking.mask_tokens(x0, t, MASK, generator)
        weight = masking.mask_weight(t)
    right = masked_denoiser(zt).gather(-1, x0[..., None])[..., 0]
    return weight * -(right * (zt == MASK)).sum(1)


@pytest.mark.parametrize("how", [*masking.DRAWS, "counts"])
def test_every_draw_of_times_gives_the_bound(how):
    """Which here is the entropy, within 3 standard errors."""
    found = estimates(how, 20000, seed=1)
    error = float(found.std()) / math.sqrt(len(found))
    assert abs(float(found.mean()) - ENTROPY) < 3 * error
    assert error < 0.06


def test_even_draws_vary_less():
    """The mean of 16 rows of a smooth function of the time."""
    spread = {}
    for how in masking.DRAWS:
        runs = [masking.sample_times(16, how, seeded(i)) for i in range(300)]
        spread[how] = float(torch.stack([r.sqrt().mean() for r in runs]).std())
    assert spread["stratified"] < spread["iid"] / 4
    assert spread["low-discrepancy"] < spread["iid"] / 2
    weighed = {
        how: float(estimates(how, 20000, 2).std()) for how in ("iid", "counts")
    }
    assert weighed["counts"] < weighed["iid"]


def test_so_many_tokens_are_masked_and_every_choice_alike():
    ids = torch.arange(4).expand(6000, 4)
    keep = torch.zeros(6000, 4)
    keep[:, 0] = 1
    got = masking.mask_count(ids, 2, 9, seeded(), keep) == 9
    assert not bool(got[:, 0].any())
    assert bool((got.sum(1) == 2).all())
    code = (got * torch.tensor([0, 1, 2, 4])).sum(1)
    seen = torch.bincount(code, minlength=7)[[3, 5, 6]].double()
    assert float(((seen - 2000) ** 2 / 2000).sum()) < 18
    counts = torch.arange(4).repeat(3)
    got = masking.mask_count(ids[:12], counts, 9, seeded())
    assert torch.equal((got == 9).sum(1), counts)
    with pytest.raises(ValueError, match="between 0 and the 3 tokens"):
        masking.mask_count(ids, 4, 9, keep=keep)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: masking.sample_times(4, "stratifed"), "'stratified'"),
        (lambda: masking.get_schedule("cosin"), "'cosine'"),
        (lambda: masking.get_schedule(3), "unknown schedule 3"),
        (lambda: masking.sample_times(0), "batch must be a whole number"),
        (lambda: masking.sample_counts(4, 2.5), "length must be a whole"),
        (lambda: masking.PowerMasking(0), "power must be positive"),
    ],
)
def test_bad_names_and_numbers_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_one_hot_texts_are_all_there():
    """The toy itself: 27 texts, a law that sums to 1."""
    assert ONE_HOT.shape == (27, LENGTH, SIZE)
    assert float(JOINT.sum()) == pytest.approx(1)


def test_a_schedule_says_how_it_was_made():
    """In a signature on the page, too: no address, the same every time."""
    assert repr(masking.LINEAR) == "LinearMasking()"
    assert repr(masking.PowerMasking(3.0)) == "PowerMasking(power=3.0)"
