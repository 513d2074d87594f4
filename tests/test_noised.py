"""Noise on tokens beside masks: what trains on it, its bound, its loops."""

import pytest
import torch
import torch.nn.functional as F
from test_masked import batch_of, make, texts
from toy_joint import (
    ENTROPY,
    JOINT,
    LENGTH,
    MASK,
    SIZE,
    TEXTS,
    around,
    chi_square,
    masked_denoiser,
    plain,
    seeded,
)
from toy_joint import texts as toy_texts

from dblm_lib import likelihood, processes, renoising, training, unmasking

UNIFORM = {"noise": "uniform", "conditioning": "time", "low": 0.02}
HYBRID = {**UNIFORM, "noise": "hybrid"}
NOISES = pytest.mark.parametrize("fields", [UNIFORM, HYBRID])
EMPTY = torch.full((6000, LENGTH), MASK)
PROCESSES = {
    "mask": processes.Masked(SIZE),
    "uniform": processes.Uniform(SIZE),
    "hybrid": processes.Hybrid(SIZE, 0.3),
}
ODD = 60.0  # see `chi_square`


def exact(process, answer):
    """A perfect network of the toy that takes a time for each row."""

    def denoise(ids, t):
        rows = [answer(process, i[None], float(s)) for i, s in zip(ids, t)]
        return torch.cat(rows)

    return denoise


# --- training ---------------------------------------------------------------


@NOISES
def test_the_draw_noises_by_the_models_own_process(fields):
    model, ids = make(**fields), texts(200, 20)
    assert training.draw_for(model) is training.draw_noised
    found = training.draw_noised(model, ids, seeded())
    t, zt = found["t"], found["zt"]
    assert t.dtype == torch.float64 and t.min() >= 0.02 and t.max() <= 0.98
    touched = 1 - model.process.alpha(t)
    # A random token may be the right one: one in 50.
    moved = (zt != ids).double().mean(1)
    error = (moved - touched) / (touched * (1 - touched) / 20).sqrt()
    assert error.abs().max() < 5 and error.mean().abs() < 0.3
    assert bool((zt == model.config.mask_id).any()) == (
        fields["noise"] == "hybrid"
    )


@NOISES
def test_the_loss_asks_every_position_and_weighs_a_canvas_by_its_noise(fields):
    model, ids = make(**fields), texts()
    assert training.loss_for(model) is training.noised_loss
    batch = {"ids": ids, "mask": torch.ones_like(ids, dtype=torch.bool)}
    batch |= training.draw_noised(model, ids, seeded())
    logits = model(batch["zt"], batch["mask"], batch["t"])
    total = 0.0
    for row, text, t in zip(logits, ids, batch["t"]):
        nats = F.cross_entropy(row, text, reduction="sum")
        total += nats.item() / (1 - model.process.alpha(t)).item()
    loss = training.noised_loss(model, batch)
    assert loss.item() == pytest.approx(total / ids.numel(), rel=1e-5)
    batch["mask"][:, -3:] = False  # padding has no say
    short = training.noised_loss(model, batch)
    assert short.item() != pytest.approx(loss.item(), rel=1e-3)


def test_the_hybrid_share_is_that_of_the_configuration():
    assert make(**HYBRID).process.uniform_share == 0.1
    model = make(**HYBRID, uniform_share=0.3)
    assert model.process.uniform_share == 0.3
    assert isinstance(make().process, processes.Masked)


def test_the_loss_of_drafts_is_that_of_masks_and_of_the_draft():
    """A model that is certain of its drafts: they are known beforehand."""
    model, ids = make(drafts=True), texts()
    assert training.loss_for(model) is training.draft_loss
    batch = batch_of(model, ids)
    asked = []

    def network(canvas, mask, t):
        asked.append(canvas.clone())
        logits = torch.zeros(*canvas.shape, 50)
        return logits + 60.0 * F.one_hot((ids + 1) % 50, 50)

    network.module = model
    loss = training.draft_loss(network, batch)
    masks, draft = asked
    assert torch.equal(masks == model.config.mask_id, ~batch["keep"])
    assert torch.equal(draft, torch.where(batch["keep"], ids, (ids + 1) % 50))
    count = (~batch["keep"]).sum(1) + ids.shape[1]
    want = 60.0 * (count / batch["t"]).sum() / ids.numel()
    assert loss.item() == pytest.approx(want.item(), rel=1e-4)


@pytest.mark.parametrize("fields", [UNIFORM, HYBRID, {"drafts": True}])
def test_training_learns(fields):
    """Each text is one of four tokens, over and over; Muon."""
    model = make(**fields)
    ids = torch.tensor([3, 9, 17, 31]).repeat(16)[:, None].expand(-1, 9)
    config = training.TrainConfig(
        steps=30, batch_size=16, learning_rate=2e-2, warmup=3,
        optimizer="muon", log_every=1,
    )  # fmt: skip
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    history = training.train(model, ids, everywhere, config, progress=False)
    assert sum(history.loss[-4:]) < 0.6 * sum(history.loss[:4])


# --- the bound --------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_the_bound_of_a_perfect_network_is_the_entropy(name):
    process = PROCESSES[name]
    ids = toy_texts(120)
    truth = -JOINT[(ids * torch.tensor([9, 3, 1])).sum(1)].log().mean()
    found = {}
    for answer, converted in ((plain, False), (around, True)):
        found[converted] = likelihood.noised_bound(
            exact(process, answer), ids, process, 2, leave_one_out=converted
        )
    bound = found[False]
    assert bound.mean == pytest.approx(found[True].mean, rel=1e-6)
    assert abs(bound.mean - truth) < 4 * bound.draw_error + 0.02
    assert abs(truth - ENTROPY) < 0.4
    if name != "mask":
        # Taken for leave-one-out answers the plain ones are worse.
        wrong = likelihood.noised_bound(
            exact(process, plain), ids, process, 2, leave_one_out=True
        )
        assert wrong.mean > bound.mean + 0.04


def test_of_masks_it_is_the_masked_bound():
    ids, process = toy_texts(400), PROCESSES["mask"]
    one = likelihood.noised_bound(
        lambda zt, t: masked_denoiser(zt), ids, process, 8
    )
    other = likelihood.bound(masked_denoiser, ids, MASK, rounds=8)
    error = (one.draw_error**2 + other.draw_error**2) ** 0.5
    assert abs(one.mean - other.mean) < 4 * error


def test_a_bound_without_a_time_is_refused():
    with pytest.raises(ValueError, match=r"between 0 and 0\.5"):
        likelihood.noised_bound(None, TEXTS, PROCESSES["mask"], low=0.5)


# --- the loops --------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_many_small_steps_give_the_joint_law(name):
    process = PROCESSES[name]

    def denoise(ids, t):
        return plain(process, ids, float(t[0]))

    course = renoising.sample_noised(
        denoise, EMPTY, process, 200, generator=seeded(1)
    )
    assert chi_square(course.ids) < ODD
    assert course.nfe.eq(200).all() and course.calls == 200


def test_what_is_given_stays():
    process = PROCESSES["hybrid"]
    keep = torch.tensor([1, 0, 0]).expand(50, 3)
    canvas = EMPTY[:50].where(keep == 0, 2)
    course = renoising.sample_noised(
        lambda ids, t: torch.zeros(*ids.shape, SIZE),
        canvas, process, 6, keep, seeded(), record=True,
    )  # fmt: skip
    assert bool((course.ids[:, 0] == 2).all())
    assert bool((course.ids < SIZE).all())
    assert bool((course.revealed[:, 0] == 0).all())
    assert course.times == pytest.approx([1 - k / 6 for k in range(6)])


def test_without_editing_masks_are_filled_as_in_unmasking():
    """At temperature 0 both are certain."""
    for order in ("left-to-right", "entropy", "confidence"):
        options = {"order": order, "num_steps": 2, "temperature": 0.0}
        one = renoising.revise(
            masked_denoiser, EMPTY[:3], MASK, edit=1.0, **options
        )
        other = unmasking.unmask(masked_denoiser, EMPTY[:3], MASK, **options)
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.nfe, other.nfe)
        assert not one.changed.any()


def test_what_no_longer_fits_is_overwritten():
    """The network holds for right what it has thought of last."""
    calls = []

    def denoise(ids):
        calls.append(ids.clone())
        token = 1 if len(calls) > 2 else 0
        return 9.0 * F.one_hot(torch.full_like(ids, token), SIZE).double()

    canvas = torch.tensor([[2, MASK, MASK, MASK], [2, 2, 2, 2]])
    course = renoising.revise(
        denoise, canvas, MASK, num_steps=6, filling=0.5, generator=seeded()
    )
    assert course.ids.tolist() == [[2, 1, 1, 1], [2, 2, 2, 2]]
    assert course.changed[0].tolist() == [0, 1, 1, 0]
    assert course.revealed[0].tolist() == [0, 3, 3, 3]
    # Three steps fill; nothing was overwritten in the fourth.
    assert course.nfe.tolist() == [4, 0] and course.calls == 4
    calls.clear()
    kept = renoising.revise(
        denoise, canvas, MASK, num_steps=6, filling=0.5, edit=1.0
    )
    assert kept.ids[0].tolist() == [2, 0, 0, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "entropi"}, "did you mean 'entropy'"),
        ({"edit": 0}, "edit must be positive"),
        ({"filling": 1.5}, "a share of the steps"),
        ({"temperature": -1}, "temperature must be"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        renoising.revise(masked_denoiser, EMPTY[:2], MASK, **options)
