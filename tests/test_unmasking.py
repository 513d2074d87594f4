"""Unmasking: exact laws on a toy, diffusers, remasking, and what is counted.

The network of the toy is perfect, so that a sampler whose law is exact must
give the joint law itself.
"""

import itertools
import math

import pytest
import torch
from diffusers import BlockRefinementScheduler
from toy_joint import (
    JOINT,
    LENGTH,
    MARGINALS,
    MASK,
    SIZE,
    TEXTS,
    chi_square,
    masked_denoiser,
    seeded,
)

from dblm_lib import masking, unmasking

ODD = 60.0  # see `chi_square`
EMPTY = torch.full((10000, LENGTH), MASK)


def sample(order, rows=10000, **options):
    options.setdefault("generator", seeded(1))
    return unmasking.unmask(
        masked_denoiser, EMPTY[:rows], MASK, order, **options
    )


def network(length, vocab_size, seed=0):
    """A network that looks at everything, and means nothing."""
    shape = (length, vocab_size + 1, length, vocab_size)
    weights = torch.randn(shape, generator=seeded(seed))

    def denoise(ids):
        return weights[torch.arange(length), ids].sum(1)

    return denoise


# --- laws -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "options"),
    [
        ("ancestral", {"num_steps": 128}),
        ("ancestral", {"num_steps": 128, "schedule": masking.CosineMasking()}),
        ("ancestral", {"num_steps": 128, "stagger": 1.0}),
        ("first-hitting", {}),
        ("left-to-right", {}),
        ("random", {}),
        ("confidence", {}),
        ("margin", {}),
        ("entropy", {}),
        ("threshold", {"tau": 1.0}),
        ("entropy-bound", {"bound": 0.0}),
        ("random", {"block_length": 2}),
        ("ancestral", {"num_steps": 128, "remask": "cap", "eta": 0.05}),
        ("ancestral", {"num_steps": 128, "remask": "rescale", "eta": 0.3}),
    ],
)
def test_one_token_at_a_time_gives_the_joint_law(order, options):
    """Any order, even one that looks at what the network says."""
    assert chi_square(sample(order, **options).ids) < ODD


@pytest.mark.parametrize("order", ["ancestral", "random", "confidence"])
def test_all_at_once_gives_the_product_of_the_marginals(order):
    """Not the joint: what is revealed together does not agree."""
    ids = sample(order, num_steps=1).ids
    product = MARGINALS[torch.arange(LENGTH), TEXTS].prod(1)
    assert chi_square(ids, product) < ODD
    assert chi_square(ids) > 10 * ODD


def test_tokens_chosen_for_their_own_draw_are_no_draw_from_the_model():
    """LLaDA's confidence, one token at a time: likely texts too often."""
    ids = sample("drawn").ids
    assert chi_square(ids) > 5 * ODD
    code = (ids * torch.tensor([9, 3, 1])).sum(1)
    assert float((code == JOINT.argmax()).double().mean()) > JOINT.max() + 0.02


def test_more_steps_come_closer():
    found = [
        chi_square(sample("ancestral", num_steps=n).ids) for n in (1, 4, 16)
    ]
    assert found[0] > 2 * found[1] > 4 * found[2]


# --- what is revealed when --------------------------------------------------


def test_equally_many_are_revealed_in_each_step():
    denoise = network(10, 5)
    canvas = torch.full((20, 10), 5)
    canvas[10:, :3] = 1  # 7 to be written
    for order in ("random", "confidence", "left-to-right", "drawn"):
        course = unmasking.unmask(
            denoise, canvas, 5, order, num_steps=4, generator=seeded()
        )
        counts = torch.stack(
            [(course.revealed == k).sum(1) for k in range(1, 5)], 1
        )
        assert bool((counts[:10] == torch.tensor([3, 3, 2, 2])).all())
        assert bool((counts[10:] == torch.tensor([2, 2, 2, 1])).all())
        assert bool((course.revealed[10:, :3] == 0).all())
        assert torch.equal(course.ids[10:, :3], canvas[10:, :3])
        assert course.calls == 4 and bool((course.nfe == 4).all())


def test_left_to_right_is_left_to_right():
    course = sample("left-to-right", 8)
    assert bool((course.revealed == torch.tensor([1, 2, 3])).all())


@pytest.mark.parametrize("order", list(unmasking.ORDERS))
def test_blocks_are_finished_one_after_the_other(order):
    canvas = torch.full((6, 12), 5)
    canvas[0, :4] = 2  # its first block is given
    canvas[1, 1:6] = 3
    steps = None if order == "first-hitting" else 6
    course = unmasking.unmask(
        network(12, 5), canvas, 5, order, steps, seeded(), block_length=4
    )
    assert not bool((course.ids == 5).any())
    when = course.revealed.view(6, 3, 4).double()
    given = (canvas != 5).view(6, 3, 4)
    last = when.masked_fill(given, 0).amax(-1)
    first = when.masked_fill(given, 99).amin(-1)
    assert bool((last[:, 0] < first[:, 1]).all())
    assert bool((last[:, 1] < first[:, 2]).all())
    if steps:
        assert int(course.revealed.max()) <= 6


def test_the_left_is_ahead_with_a_stagger():
    canvas = torch.full((400, 8), 5)
    course = unmasking.unmask(
        network(8, 5), canvas, 5, "ancestral", 64, seeded(), stagger=3.0
    )
    when = course.revealed.double().mean(0)
    assert bool((when.diff() > 2).all())


def test_a_threshold_takes_what_is_sure_and_at_least_the_surest():
    probs = torch.tensor([[0.95, 0.05], [0.6, 0.4], [0.92, 0.08]])
    probs = torch.stack([probs, probs.flip(0) * 0 + 0.5])
    seen = []

    def denoise(ids):
        seen.append(len(ids))
        return probs[: len(ids)].log()

    canvas = torch.full((1, 3), 2)
    course = unmasking.unmask(denoise, canvas, 2, "threshold", tau=0.9)
    assert course.revealed.tolist() == [[1, 2, 1]]
    course = unmasking.unmask(denoise, canvas, 2, "threshold", tau=0.99)
    assert sorted(course.revealed[0].tolist()) == [1, 2, 3]
    assert course.revealed[0, 0] == 1
    assert len(seen) == 2 + 3


def test_from_the_left_what_is_sure_is_taken_along():
    probs = torch.tensor([[0.6, 0.4], [0.95, 0.05], [0.7, 0.3], [0.92, 0.08]])
    canvas = torch.full((1, 4), 2)
    for tau, when in (
        (None, [1, 2, 3, 4]),
        (0.93, [1, 1, 2, 3]),
        (0.9, [1, 1, 2, 1]),
        (0.5, [1, 1, 1, 1]),
    ):
        course = unmasking.unmask(
            lambda ids: probs[None].log(), canvas, 2, "left-to-right",
            tau=tau,
        )  # fmt: skip
        assert course.revealed.tolist() == [when]
        assert course.nfe.tolist() == [max(when)]
    course = unmasking.unmask(
        lambda ids: probs[None].log(), canvas, 2, "left-to-right", 2, tau=0.93
    )
    assert course.revealed.tolist() == [[1, 1, 2, 2]]


def test_the_entropy_bound_is_its_formula():
    """Against all subsets in the order of the entropies, by a loop."""
    logits = 2 * torch.randn(50, 9, 6, generator=seeded())
    entropies = torch.distributions.Categorical(logits=logits).entropy()
    among = torch.rand(50, 9, generator=seeded(1)) < 0.7
    got = unmasking.accept(entropies, 1.0, among)
    for row in range(50):
        taken, total = set(), 0.0
        for i in entropies[row].argsort().tolist():
            if not bool(among[row, i]) or total > 1.0:
                continue
            taken.add(i)
            total += float(entropies[row, i])
        assert set(got[row].nonzero()[:, 0].tolist()) == taken


# --- what is counted --------------------------------------------------------


def test_only_a_changed_canvas_is_evaluated():
    """Hundreds of steps of time, and at most one evaluation a token."""
    course = sample("ancestral", 200, num_steps=400)
    assert bool((course.nfe <= 3).all()) and bool((course.nfe >= 1).all())
    assert float(course.nfe.double().mean()) > 2.9
    assert bool((sample("first-hitting", 50).nfe == 3).all())
    assert bool((sample("threshold", 50, tau=0.0).nfe == 1).all())


def test_the_count_is_that_of_the_rows_handed_over():
    rows = []

    def denoise(ids):
        rows.append(len(ids))
        return masked_denoiser(ids)

    canvas = EMPTY[:60].clone()
    canvas[:20] = 0  # nothing to do
    canvas[20:40, :2] = 1
    for order in ("ancestral", "entropy-bound", "random"):
        rows.clear()
        course = unmasking.unmask(
            denoise, canvas, MASK, order, generator=seeded()
        )
        assert sum(rows) == int(course.nfe.sum()) and 0 not in rows
        assert len(rows) == course.calls
        assert bool((course.nfe[:20] == 0).all())
        assert bool((course.nfe[20:40] == 1).all())
        assert bool((course.revealed[:20] == 0).all())


@pytest.mark.parametrize("order", ["ancestral", "confidence", "threshold"])
def test_a_record_changes_nothing(order):
    bare = sample(order, 100, num_steps=20)
    course = sample(order, 100, num_steps=20, record=True)
    assert torch.equal(bare.ids, course.ids)
    assert torch.equal(bare.nfe, course.nfe)
    assert not bare.canvases
    steps = len(course.times)
    assert steps == int(course.revealed.max())
    assert course.times[0] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(course.times))
    for k in range(steps):
        hidden = course.canvases[k] == MASK
        assert torch.equal(hidden, course.revealed > k)
        assert torch.equal(
            course.guesses[k][~hidden], course.canvases[k][~hidden]
        )
        assert int(course.guesses[k].max()) < SIZE
        assert bool((course.confidence[k][~hidden] == 1).all())
        assert bool((course.confidence[k][hidden] < 1).all())


def test_nothing_to_do_is_done_at_once():
    canvas = torch.zeros(3, 4).long()
    course = unmasking.unmask(network(4, 5), canvas, 5)
    assert torch.equal(course.ids, canvas) and course.calls == 0


def test_the_canvas_given_is_left_alone_and_seeds_decide():
    canvas = EMPTY[:50].clone()
    runs = [
        unmasking.unmask(
            masked_denoiser, canvas, MASK, "random", generator=seeded(s)
        ).ids
        for s in (1, 1, 2)
    ]
    assert bool((canvas == MASK).all())
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_temperature_0_writes_the_most_probable():
    course = sample("left-to-right", 5, temperature=0, generator=None)
    assert bool((course.ids == course.ids[0]).all())
    first = MARGINALS[0].argmax()
    assert course.ids[0, 0] == first
    cold = sample("left-to-right", temperature=0.5).ids[:, 0]
    want = MARGINALS[0] ** 2 / (MARGINALS[0] ** 2).sum()
    share = torch.bincount(cold, minlength=SIZE).double() / len(cold)
    torch.testing.assert_close(share, want, atol=0.02, rtol=0)


# --- remasking --------------------------------------------------------------


@pytest.mark.parametrize("how", unmasking.REMASKING)
def test_without_a_share_remasking_is_ancestral(how):
    bare = sample("ancestral", 300, num_steps=30)
    course = sample("ancestral", 300, num_steps=30, remask=how, eta=0.0)
    assert torch.equal(bare.ids, course.ids)
    assert torch.equal(bare.revealed, course.revealed)


@pytest.mark.parametrize(("how", "eta"), [("cap", 0.3), ("rescale", 0.5)])
def test_remasking_keeps_the_share_of_masks_and_the_law_of_each_token(
    how, eta
):
    """At every step, not only at the end; and tokens do come back."""
    course = sample(
        "ancestral", num_steps=12, remask=how, eta=eta, record=True
    )
    error = 4 * math.sqrt(0.25 / EMPTY.numel())
    came_back = 0
    for k, canvas in enumerate(course.canvases):
        share = float((canvas == MASK).double().mean())
        assert abs(share - (1 - k / 12)) < error
        assert course.times[k] == pytest.approx(share)
        if k:
            before = course.canvases[k - 1] != MASK
            came_back += int((before & (canvas == MASK)).sum())
    assert came_back > EMPTY.numel() * 0.2
    for i in range(LENGTH):
        seen = torch.bincount(course.ids[:, i], minlength=SIZE).double()
        expected = MARGINALS[i] * len(EMPTY)
        assert float(((seen - expected) ** 2 / expected).sum()) < 20
    assert float(course.nfe.double().mean()) > 4


def test_remasking_costs_agreement_if_the_network_is_perfect():
    """More tokens are revealed together; what it mends are errors."""
    bare = sample("ancestral", num_steps=12)
    again = sample("ancestral", num_steps=12, remask="rescale", eta=0.9)
    assert chi_square(again.ids) > 2 * chi_square(bare.ids)


def test_remasking_spares_what_is_given():
    canvas = EMPTY[:500].clone()
    canvas[:, 1] = 2
    for how in unmasking.REMASKING:
        course = unmasking.unmask(
            masked_denoiser, canvas, MASK, "ancestral", 20, seeded(),
            remask=how, eta=1.0,
        )  # fmt: skip
        assert bool((course.ids[:, 1] == 2).all())
        assert not bool((course.ids == MASK).any())
        assert bool((course.revealed[:, 1] == 0).all())


def test_the_shares_of_remasking_are_those_of_remdm():
    alpha_s, alpha_t = torch.tensor([[0.6, 0.6]]), torch.tensor([[0.5, 0.1]])
    cap = unmasking.remask_share("cap", alpha_s, alpha_t, 0.85)
    torch.testing.assert_close(cap, torch.tensor([[0.8, 0.85]]))
    scaled = unmasking.remask_share("rescale", alpha_s, alpha_t, 0.5)
    torch.testing.assert_close(scaled, torch.tensor([[0.4, 0.5]]))
    sure = torch.tensor([[0.9, 0.2, torch.inf]])
    conf = unmasking.remask_share(
        "conf", torch.tensor(0.6), torch.tensor(0.5), 1.0, sure
    )
    want = torch.tensor([-0.9, -0.2]).softmax(0) * 0.8
    torch.testing.assert_close(conf[0, :2], want)
    assert conf[0, 2] == 0 and conf[0, 1] > conf[0, 0]


def test_conf_knows_the_probability_at_which_a_token_was_revealed(
    monkeypatch,
):
    seen = []

    def spy(how, alpha_s, alpha_t, eta, sure):
        seen.append(sure.clone())
        return exact(how, alpha_s, alpha_t, eta, sure)

    exact = unmasking.remask_share
    monkeypatch.setattr(unmasking, "remask_share", spy)
    canvas = EMPTY[:300].clone()
    canvas[:, 0] = 1
    course = unmasking.unmask(
        masked_denoiser, canvas, MASK, "ancestral", 9, seeded(),
        remask="conf", record=True,
    )  # fmt: skip
    frames, returned = course.canvases, 0
    for k, (sure, frame) in enumerate(zip(seen, frames, strict=True)):
        assert bool(torch.isinf(sure[:, 0]).all())
        written = frame[:, 1:] != MASK
        assert torch.equal(torch.isfinite(sure[:, 1:]), written)
        if k == 0:
            continue
        new = (frame != MASK) & (frames[k - 1] == MASK)
        probs = masked_denoiser(frames[k - 1]).exp()
        want = probs.gather(-1, frame.where(new, 0)[..., None])[..., 0]
        torch.testing.assert_close(sure[new], want[new])
        returned += int(((frame == MASK) & (frames[k - 1] != MASK)).sum())
    assert returned > 50


# --- against diffusers ------------------------------------------------------


def refine(denoise, canvas, mask_id, steps, generator, **options):
    """The loop of LLaDA2 around the scheduler of diffusers, one block."""
    scheduler = BlockRefinementScheduler(block_length=canvas.shape[1])
    scheduler.set_timesteps(steps)
    canvases = []
    for k in range(steps):
        if not bool((canvas == mask_id).any()):
            break
        canvases.append(canvas)
        canvas = scheduler.step(
            denoise(canvas), k, canvas, mask_token_id=mask_id,
            generator=generator, **options,
        ).prev_sample  # fmt: skip
    return canvas, canvases


@pytest.mark.parametrize("steps", [1, 3, 4, 10])
def test_confidence_is_the_block_refinement_of_diffusers(steps):
    denoise, canvas = network(10, 7), torch.full((16, 10), 7)
    canvas[:, ::3] = 1
    hidden = int((canvas[0] == 7).sum())
    # Theirs shares out the block's length, ours the masks in it.
    canvas = canvas if steps == 1 else torch.full((16, 10), 7)
    want, frames = refine(
        denoise, canvas, 7, steps, None, temperature=0.0, threshold=2.0
    )
    course = unmasking.unmask(
        denoise, canvas, 7, "confidence", steps, temperature=0, record=True
    )
    assert torch.equal(course.ids, want) and hidden < 10
    assert all(map(torch.equal, course.canvases, frames))
    assert len(frames) == steps


@pytest.mark.parametrize("tau", [0.4, 0.6])
def test_threshold_is_the_block_refinement_of_diffusers(tau):
    """With as many steps as positions: one token at least in each."""
    canvas, lengths = torch.full((1, 10), 7), set()
    for seed in range(5):
        loud = network(10, 7, seed)

        def denoise(ids, loud=loud):
            return 0.4 * loud(ids)

        want, frames = refine(
            denoise, canvas, 7, 10, None, temperature=0.0, threshold=tau
        )
        course = unmasking.unmask(
            denoise, canvas, 7, "threshold", temperature=0, tau=tau,
            record=True,
        )  # fmt: skip
        assert torch.equal(course.ids, want)
        assert len(frames) == course.calls == int(course.nfe)
        assert all(map(torch.equal, course.canvases, frames))
        lengths.add(len(frames))
    assert lengths & set(range(2, 10)), "or the threshold did nothing"


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_drawn_is_the_block_refinement_of_diffusers_with_its_draws(
    temperature,
):
    denoise, canvas = network(12, 7), torch.full((8, 12), 7)
    want, frames = refine(
        denoise, canvas, 7, 5, seeded(3), temperature=temperature,
        threshold=2.0,
    )  # fmt: skip
    course = unmasking.unmask(
        denoise, canvas, 7, "drawn", 5, seeded(3), temperature,
        dtype=torch.float32, record=True,
    )  # fmt: skip
    assert all(map(torch.equal, course.canvases, frames))
    assert torch.equal(course.ids, want)


# --- float32 ----------------------------------------------------------------


def test_the_closed_form_of_a_coarse_race():
    """r(10), r(1), r(1/2) and r(1/10), as worked out by hand."""
    a = torch.tensor([10.0, 1.0, 0.5, 0.1], dtype=torch.float64)
    want = torch.tensor([0.9508, 0.5820, 0.3130, 0.00045]).double()
    got = unmasking.race_share(a * 2.0**-24)
    torch.testing.assert_close(got, want, atol=5e-5, rtol=0)


@pytest.mark.parametrize("a", [4.0, 1.0, 0.5])
def test_a_rare_token_wins_as_seldom_as_the_closed_form_says(a):
    """On a grid of 2^-8, where it can be waited for."""
    q, rows = a * 2.0**-8, 400000
    probs = torch.tensor([q, 1 - q]).expand(rows, 2)
    for bits, want in ((8, q * unmasking.race_share(q, 8)), (53, q)):
        wins = (unmasking.race(probs, seeded(7), bits) == 0).double().mean()
        # 1 - q for nearly 1 in the closed form.
        error = 4 * math.sqrt(q / rows) + (q * q if bits == 8 else 0)
        assert abs(float(wins) - float(want)) < error, bits


def test_float32_draws_lie_on_that_grid_and_ours_do_not():
    u = torch.rand(5000, generator=seeded())
    scaled = u.double() * 2**24
    assert torch.equal(scaled, scaled.round())
    u = torch.rand(5000, generator=seeded(), dtype=torch.float64) * 2**24
    assert not torch.equal(u, u.round())
    step = unmasking.Step(
        EMPTY[:9], EMPTY[:9] == MASK, None, None, None, None, seeded()
    )
    assert step.random().dtype == torch.float64


# --- refusals ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"order": "confidenc"}, ValueError, "did you mean 'confidence'"),
        ({"order": "threshold", "tua": 1}, TypeError, "no option 'tua'.*tau"),
        ({"order": "random", "remask": "cap"}, ValueError, "ancestral order"),
        ({"order": "margin", "stagger": 1.0}, ValueError, "ancestral order"),
        (
            {"order": "ancestral", "remask": "cap", "block_length": 2},
            ValueError,
            "whole canvas",
        ),
        ({"order": "ancestral", "remask": "kap"}, ValueError, "'cap'"),
        (
            {"order": "ancestral", "remask": "cap", "eta": 2},
            ValueError,
            "eta must lie",
        ),
        ({"order": "first-hitting", "num_steps": 3}, ValueError, "'random'"),
        ({"num_steps": 0}, ValueError, "num_steps must be at least 1"),
        ({"num_steps": 2, "block_length": 1}, ValueError, "3 blocks need"),
        ({"block_length": 0}, ValueError, "block_length must be"),
        ({"temperature": -1}, ValueError, "temperature must be"),
        ({"dtype": torch.float16}, ValueError, "dtype must be"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        unmasking.unmask(masked_denoiser, EMPTY[:2], MASK, **options)


def test_a_canvas_or_an_answer_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(batch, length\)"):
        unmasking.unmask(masked_denoiser, EMPTY[0], MASK)
    with pytest.raises(ValueError, match="logits"):
        unmasking.unmask(lambda ids: torch.zeros(2, 2, 3), EMPTY[:2], MASK)


def test_an_order_of_your_own():
    """Right to left, in one line."""

    def backwards(step, skip=0):
        place = torch.arange(3.0).expand(step.ids.shape)
        return step.best(place - skip)

    course = unmasking.unmask(
        masked_denoiser, EMPTY[:4], MASK, backwards, skip=1
    )
    assert course.revealed[0].tolist() == [3, 2, 1]


def test_an_order_that_answers_wrongly_or_never_ends_is_refused():
    def never(step):
        return torch.zeros_like(step.masked)

    with pytest.raises(ValueError, match="left masks after its last step"):
        unmasking.unmask(masked_denoiser, EMPTY[:2], MASK, never)
    for wrong in (lambda step: step.ids, lambda step: step.masked[:, :1]):
        with pytest.raises(ValueError, match="True and False"):
            unmasking.unmask(masked_denoiser, EMPTY[:2], MASK, wrong)


@pytest.mark.parametrize("how", [None, *unmasking.REMASKING])
def test_a_single_row_may_wait_for_its_first_token(how):
    """Nothing is known before; and a record asks from the first step."""
    for record in (False, True):
        course = unmasking.unmask(
            masked_denoiser, EMPTY[:1], MASK, "ancestral", 100, seeded(),
            remask=how, record=record,
        )  # fmt: skip
        assert not bool((course.ids == MASK).any())
        assert int(course.revealed.min()) > 1


def test_a_mask_that_is_one_of_the_tokens_is_never_written():
    """As in LLaDA; here the network would write it everywhere."""
    logits = torch.tensor([0.0, 1.0, 9.0])
    course = unmasking.unmask(
        lambda ids: logits.expand(len(ids), 4, 3), torch.full((50, 4), 2), 2,
        "random", 2, seeded(),
    )  # fmt: skip
    assert course.ids.unique().tolist() == [0, 1]
