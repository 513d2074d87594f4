"""Masks, uniform and hybrid noise: one code, held against enumeration."""

import functools
import math

import numpy as np
import pytest
import torch
from toy_joint import (
    ENTROPY,
    JOINT,
    LENGTH,
    MASK,
    NOISED,
    ONE_HOT,
    SIZE,
    TEXTS,
    around,
    likelihoods,
    plain,
    seeded,
    texts,
)

from dblm_lib import masking, processes

PROCESSES = {
    "mask": processes.Masked(SIZE),
    "mask, cosine": processes.Masked(SIZE, masking.CosineMasking()),
    "uniform": processes.Uniform(SIZE),
    "hybrid": processes.Hybrid(SIZE, 0.2),
    "hybrid, gamma 2": processes.Hybrid(SIZE, 0.4, gamma=2.0),
}
NAMES = list(PROCESSES)


def law(process, t):
    """q(z_t | x_0 = v) of one token, (V, V + 1)."""
    one_hot = torch.eye(SIZE)[None]
    return process.probabilities(one_hot, t)[0]


def reachable(process, t):
    """The noised texts that have a probability, and that, (n,)."""
    single = likelihoods(process, NOISED, t).prod(-1)
    probability = single @ JOINT
    there = probability > 0
    return NOISED[there], probability[there]


# --- forward ----------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_shares_are_probabilities_with_the_right_ends(name):
    process = PROCESSES[name]
    for t in (0.0, 0.3, 0.9, 1.0):
        rows = law(process, t)
        assert bool((rows >= 0).all())
        torch.testing.assert_close(rows.sum(-1), torch.ones(3).double())
    torch.testing.assert_close(law(process, 0)[:, :3], torch.eye(3).double())
    assert torch.equal(law(process, 1)[0], law(process, 1)[1])


@pytest.mark.parametrize("name", NAMES)
def test_the_rates_are_what_moves_the_shares(name):
    """dq/dt = rate - (sum of rates) q: jumps whatever stood there."""
    process, step = PROCESSES[name], 1e-6
    for t in (0.1, 0.5, 0.9):
        t = torch.tensor(t, dtype=torch.float64)
        masks, each = process.rate(t)
        assert masks >= 0 and each >= 0
        rate = torch.cat([each.expand(SIZE), masks[None]])
        moved = (law(process, t + step) - law(process, t - step)) / (2 * step)
        want = rate - rate.sum() * law(process, t)
        torch.testing.assert_close(moved, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_noised_tokens_follow_the_shares(name):
    process = PROCESSES[name]
    ids = torch.arange(SIZE).expand(20000, SIZE)
    zt = process.add_noise(ids, 0.6, seeded())
    for v in range(SIZE):
        seen = torch.bincount(zt[:, v], minlength=SIZE + 1).double()
        expected = law(process, 0.6)[v] * len(ids)
        some = expected > 0
        assert bool((seen[~some] == 0).all())
        terms = (seen - expected)[some] ** 2 / expected[some]
        assert float(terms.sum()) < 22


def test_noise_keeps_what_is_given_and_takes_times_by_position():
    process = PROCESSES["hybrid"]
    ids = texts(4000)
    keep = torch.zeros_like(ids)
    keep[:, 1] = 1
    zt = process.add_noise(ids, 0.999, seeded(), keep)
    assert torch.equal(zt[:, 1], ids[:, 1])
    assert float((zt[:, 0] == MASK).double().mean()) > 0.9
    t = torch.tensor([0.0, 1.0, 0.0]).expand(4000, 3)
    zt = process.add_noise(ids, t, seeded())
    assert torch.equal(zt[:, ::2], ids[:, ::2])
    assert bool((zt[:, 1] == MASK).all())


def test_without_random_tokens_the_hybrid_is_the_masked_process():
    """Same draws, weights, posterior and bound: CE / t on masks."""
    hybrid, masked = processes.Hybrid(SIZE, 0.0), processes.Masked(SIZE)
    ids, t = texts(400, 1000), masking.sample_times(400, generator=seeded())
    zt = hybrid.add_noise(ids, t, seeded(4))
    assert torch.equal(zt, masked.add_noise(ids, t, seeded(4)))
    assert torch.equal(zt, masking.mask_tokens(ids, t, MASK, seeded(4)))
    logits = torch.randn(400, LENGTH, SIZE, generator=seeded(5))
    got = hybrid.bound(logits, zt, ids, t)
    torch.testing.assert_close(got, masked.bound(logits, zt, ids, t))
    log_p = logits.double().log_softmax(-1)
    loss = -log_p.gather(-1, ids[..., None])[..., 0]
    want = loss * (zt == MASK) * masking.mask_weight(t)[:, None]
    torch.testing.assert_close(got, want)
    x0 = logits.softmax(-1)
    steps = [p.posterior(x0, zt, t / 2, t) for p in (hybrid, masked)]
    torch.testing.assert_close(*steps)


def test_the_weights_are_those_of_gidd():
    """Written out for its three kinds of position, with N = V."""
    p_u, gamma, n = 0.2, 1.0, SIZE
    process = processes.Hybrid(n, p_u, gamma)
    zt, ids = torch.tensor([[MASK, 1, 0]]), torch.tensor([[0, 0, 0]])
    for t in (0.05, 0.5, 0.93):
        c = 2**gamma * p_u / (1 - p_u) * (t * (1 - t)) ** (gamma / 2)
        slope = gamma / 2 * (1 - 2 * t) / (t * (1 - t)) * c
        rise = c + (1 - t) * slope
        want = [
            1 / (t * (1 - t)),
            rise / ((1 - t) * c),
            rise / n / ((1 - t) * (1 - t + c / n)),
        ]
        got = process.weight(zt, ids, t)[0]
        torch.testing.assert_close(got, torch.tensor(want).double())
    half = process.noise(0.5)[1] * n
    assert float(half) == pytest.approx(p_u)


# --- posterior --------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_posterior_is_bayes_rule_on_the_jumps(name):
    """q(z_t | z_s) by many small jumps of the rates, then Bayes."""
    process, s, t, cuts = PROCESSES[name], 0.3, 0.7, 400
    now = s + (t - s) * (torch.arange(cuts).double() + 0.5) / cuts
    masks, each = (v[:, None] for v in process.rate(now))
    rate = torch.cat([each.expand(cuts, SIZE), masks], 1)[:, None]
    jumps = rate - rate.sum(-1, keepdim=True) * torch.eye(SIZE + 1)
    moves = torch.matrix_exp(jumps * (t - s) / cuts)
    move = functools.reduce(torch.matmul, moves)
    early = law(process, s)
    for v in range(SIZE):
        joint = early[v][:, None] * move  # z_s, z_t
        for seen in range(SIZE + 1):
            if joint[:, seen].sum() < 1e-12:
                continue
            x0 = torch.eye(SIZE)[v].expand(1, 1, -1)
            zt = torch.tensor([[seen]])
            got = process.posterior(x0, zt, s, t)[0, 0]
            want = joint[:, seen] / joint[:, seen].sum()
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_the_posterior_of_masks_is_that_of_masking():
    process = PROCESSES["mask, cosine"]
    zt = NOISED
    x0 = torch.rand(64, LENGTH, SIZE, generator=seeded()).softmax(-1)
    alphas = [process.alpha(t) for t in (0.2, 0.7)]
    want = masking.mask_posterior(x0, zt, *alphas, MASK)
    got = process.posterior(x0, zt, 0.2, 0.7)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", ["uniform", "hybrid", "hybrid, gamma 2"])
def test_the_step_is_exact_with_leave_one_out_and_biased_without(name):
    """The true law of z_s at i given z_t, by enumeration."""
    process, s, t = PROCESSES[name], 0.4, 0.6
    zt, _ = reachable(process, t)
    posterior = plain(process, zt, t).exp()
    want = torch.zeros(*zt.shape, SIZE + 1, dtype=torch.float64)
    for v in range(SIZE):  # x0 at i, then z_s given both
        x0 = torch.eye(SIZE)[v].expand(*zt.shape, -1)
        step = process.posterior(x0, zt, s, t)
        want += posterior[..., v, None] * step
    loo = process.leave_one_out(posterior.log(), zt, t).softmax(-1)
    exact = process.posterior(loo, zt, s, t)
    torch.testing.assert_close(exact, want)
    biased = process.posterior(posterior, zt, s, t)
    assert float((biased - want).abs().max()) > 0.02


@pytest.mark.parametrize("name", NAMES)
def test_leave_one_out_is_what_the_others_say(name):
    """By enumeration; and `plain_logits` is the way back."""
    process, t = PROCESSES[name], 0.55
    zt, _ = reachable(process, t)
    if name.startswith("mask"):
        zt = torch.full((1, LENGTH), MASK)
    logits = plain(process, zt, t)
    alone = process.leave_one_out(logits, zt, t)
    torch.testing.assert_close(alone.softmax(-1), around(process, zt, t).exp())
    each = process.noise(t)[1]
    back = processes.plain_logits(alone, zt, process.alpha(t), each)
    torch.testing.assert_close(back.softmax(-1), logits.softmax(-1))


def test_leave_one_out_of_uniform_noise_needs_alpha_only():
    process, t = PROCESSES["uniform"], 0.4
    logits = torch.randn(5, LENGTH, SIZE, generator=seeded())
    zt = texts(5)
    got = processes.leave_one_out(logits, zt, 1 - t)
    torch.testing.assert_close(got, process.leave_one_out(logits, zt, t))
    shift = math.log1p(SIZE * (1 - t) / t)
    seen = (logits - got).gather(-1, zt[..., None])
    torch.testing.assert_close(seen, torch.full_like(seen, shift))
    assert torch.equal(processes.leave_one_out(logits, zt, 0.0), logits)
    with pytest.raises(ValueError, match="time above 0"):
        processes.leave_one_out(logits, zt, 1.0)


# --- bound ------------------------------------------------------------------


def expected_bound(process, network, points=24):
    """The bound in the mean over texts, noise and times: no sampling."""
    nodes, widths = np.polynomial.legendre.leggauss(points)
    total = 0.0
    for node, width in zip((nodes + 1) / 2, widths / 2, strict=True):
        # Times that lie dense, and count little, at both ends.
        t = node**3 * (10 - 15 * node + 6 * node**2)
        slope = 30 * node**2 * (1 - node) ** 2
        zt, _ = reachable(process, t)
        count = len(zt)
        logits = network(process, zt, t).repeat(27, 1, 1)
        ids = TEXTS.repeat_interleave(count, 0)
        terms = process.bound(logits, zt.repeat(27, 1), ids, t).sum(1)
        single = likelihoods(process, zt, t).prod(-1)  # (n, 27)
        value = (single.T * terms.view(27, count)).sum(1) @ JOINT
        total += float(value) * slope * width
    return total


@pytest.mark.parametrize("name", NAMES)
def test_the_bound_of_leave_one_out_is_the_entropy(name):
    """And with the plain posterior in its place it lies above."""
    process = PROCESSES[name]
    found = expected_bound(process, around)
    assert found == pytest.approx(ENTROPY, rel=1e-3)
    if not name.startswith("mask"):
        assert expected_bound(process, plain) > ENTROPY + 0.05


@pytest.mark.parametrize("name", ["uniform", "hybrid"])
def test_the_bound_of_a_wrong_network_is_larger(name):
    def wrong(process, zt, t):
        return 0.5 * around(process, zt, t)

    assert expected_bound(PROCESSES[name], wrong) > ENTROPY + 0.02


def test_the_bound_can_be_learnt_from():
    """Gradients are finite, and zero where nothing is to be learnt."""
    for process in PROCESSES.values():
        ids, t = texts(50, 1000), masking.sample_times(50, generator=seeded())
        zt = process.add_noise(ids, t, seeded(1))
        logits = torch.zeros(50, LENGTH, SIZE, requires_grad=True)
        terms = process.bound(logits, zt, ids, t)
        assert bool((terms >= 0).all())
        terms.sum().backward()
        assert bool(torch.isfinite(logits.grad).all())
        assert float(logits.grad.abs().max()) > 0


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_the_bound_has_no_ends(t):
    ids = texts(2)
    with pytest.raises(ValueError, match=r"inside \(0, 1\)"):
        PROCESSES["hybrid"].weight(ids, ids, t)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: processes.get_process("unifrm", 5), "'uniform'"),
        (lambda: processes.Uniform(1), "vocab_size must be 2 or more"),
        (lambda: processes.Hybrid(5, 1.0), "take Uniform"),
        (lambda: processes.Hybrid(5, 0.1, gamma=2.5), "at most 2"),
    ],
)
def test_processes_that_make_no_sense_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_gamma_above_2_would_need_a_negative_rate():
    """So the limit is no arbitrary one."""
    process = processes.Hybrid(5, 0.3, gamma=2.0)
    process.gamma = 2.5
    assert process.rate(0.99)[1] < 0
    process.gamma = 2.0
    assert process.rate(0.99)[1] > 0


def test_the_names_are_those_of_the_processes():
    for name, kind in processes.PROCESSES.items():
        process = processes.get_process(name, 7)
        assert type(process) is kind and process.mask_id == 7
    assert ONE_HOT.shape[-1] == SIZE
