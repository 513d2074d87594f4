"""The masked denoiser: what it computes, how it is told, kept and trained."""

import inspect
import math
from contextlib import nullcontext

import one_way
import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from dblm_lib import evaluation, likelihood, masked, resources, text, training
from recipes import tales_mdlm

VOCAB, MASK = 50, 50
SMALL = {
    "vocab_size": VOCAB,
    "n_positions": 24,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
TIMED = {"conditioning": "time"}
KINDS = pytest.mark.parametrize(
    "fields",
    [{}, TIMED, {"shift": False}],
    ids=["plain", "timed", "unshifted"],
)


def make(**fields):
    """Return a small random masked denoiser."""
    torch.manual_seed(0)
    config = masked.MaskedConfig(**{**SMALL, **fields})
    return masked.MaskedDenoiser(config).eval()


def texts(count=4, length=9, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCAB, (count, length), generator=generator)


def canvases(count=4, length=9, seed=1):
    """Texts of which every third token is masked."""
    ids = texts(count, length, seed)
    return ids.masked_fill(torch.arange(length) % 3 == 1, MASK)


# --- what it computes -------------------------------------------------------


def test_each_branch_of_forward_is_a_field_of_the_configuration():
    """It reads from top to bottom: no other condition, no loop."""
    assert one_way.branches(masked.MaskedDenoiser) == 3


@torch.no_grad()
def test_causal_and_without_masks_it_is_gpt2():
    torch.manual_seed(3)
    gpt2 = GPT2LMHeadModel(GPT2Config(**SMALL)).eval()
    model = masked.MaskedDenoiser.from_backbone(
        resources.Backbone(gpt2, None), causal=True
    )
    ids = texts()
    start = torch.zeros_like(ids[:, :1])
    wanted = gpt2(torch.cat([start, ids[:, :-1]], dim=1)).logits
    torch.testing.assert_close(model(ids), wanted, rtol=0, atol=1e-5)
    table = model.embeddings.weight
    assert len(table) == VOCAB + 1 and model.config.mask_id == MASK
    torch.testing.assert_close(table[MASK], table[:MASK].mean(dim=0))
    assert torch.equal(table[:MASK], gpt2.transformer.wte.weight)


@KINDS
@torch.no_grad()
def test_it_answers_every_position_with_every_token_but_the_mask(fields):
    model, ids = make(**fields), canvases()
    logits = model(ids)
    assert logits.shape == (4, 9, VOCAB) and logits.dtype == torch.float32
    keep = ids != MASK
    asked = model(ids, keep=keep)
    assert asked.shape == (int((~keep).sum()), VOCAB)
    torch.testing.assert_close(asked, logits[~keep], rtol=0, atol=1e-6)


@pytest.mark.parametrize("shift", [True, False])
@torch.no_grad()
def test_it_sees_both_sides_and_causal_only_the_left(shift):
    ids = canvases()
    other = ids.clone()
    other[:, 6] = 7
    both = make(shift=shift)
    assert (both(ids) != both(other)).any(dim=2).all()
    left = make(shift=shift, causal=True)
    moved = (left(ids) != left(other)).any(dim=2)
    assert not moved[:, : 6 + shift].any()
    assert moved[:, 6 + shift :].all()


@KINDS
@torch.no_grad()
def test_padding_is_not_looked_at(fields):
    model, ids = make(**fields), canvases()
    real = (torch.arange(9) < 6).expand(4, 9)
    padded = torch.where(real, ids, 3)
    expected = model(ids, real)[real]
    torch.testing.assert_close(
        model(padded, real)[real], expected, rtol=0, atol=1e-6
    )
    assert not torch.equal(model(padded)[real], expected)


@torch.no_grad()
def test_only_a_model_that_is_told_the_time_listens_to_it():
    ids, plain, timed = canvases(), make(), make(**TIMED)
    assert torch.equal(plain(ids, t=0.1), plain(ids, t=0.9))
    # A new one is told nothing yet.
    assert torch.equal(timed(ids, t=0.1), timed(ids, t=0.9))
    timed.noise_mlp[-1].weight.normal_(
        std=0.2, generator=torch.Generator().manual_seed(0)
    )
    early, late = timed(ids, t=0.1), timed(ids, t=0.9)
    assert not torch.allclose(early, late, atol=1e-3)
    mixed = timed(ids, t=torch.tensor([0.1, 0.9, 0.1, 0.9]))
    torch.testing.assert_close(mixed[::2], early[::2], rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed[1::2], late[1::2], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_time_that_is_not_given_is_the_share_of_masks():
    timed, ids = make(**TIMED), canvases()
    timed.noise_mlp[-1].weight.normal_(
        std=0.2, generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(timed(ids), timed(ids, t=3 / 9))
    real = (torch.arange(9) < 5).expand(4, 9)  # two masks of five
    torch.testing.assert_close(timed(ids, real), timed(ids, real, t=2 / 5))


@KINDS
@torch.no_grad()
def test_a_forward_waits_for_no_device(fields, monkeypatch):
    """On the device ``meta`` there are no numbers to look at."""
    # Which knows no lower precision to leave out.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    model = make(**fields).to("meta")
    ids = canvases().to("meta")
    real = torch.ones_like(ids, dtype=torch.bool)
    for mask in (None, real):
        logits = model(ids, mask)
        assert logits.shape == (4, 9, VOCAB) and logits.device.type == "meta"
    with pytest.raises(RuntimeError, match="meta"):
        bool((ids == MASK).any())  # what a look would do


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((torch.zeros(9, dtype=torch.long),), r"\(batch, length\)"),
        ((torch.zeros(0, 9, dtype=torch.long),), "at least one position"),
        ((torch.zeros(2, 9),), "torch.float32: the input are token ids"),
        ((torch.zeros(2, 24, dtype=torch.long),), "23 positions; got 24"),
        ((canvases(), 2 * torch.ones(4, 9)), "must hold 0 and 1"),
        ((canvases(), None, torch.zeros(3)), r"shape \(4,\); got \(3,\)"),
        ((canvases(), None, 1.5), "1.5"),
    ],
)
def test_input_that_does_not_fit_is_named(given, words):
    with pytest.raises(ValueError, match=words):
        make(**TIMED)(*given)


# --- the configuration ------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "error", "words"),
    [
        ("causal", 1, TypeError, "True or False; got 1"),
        ("shift", None, TypeError, "True or False; got None"),
        ("conditioning", "noise", ValueError, "one of none, time"),
        ("weighting", "1/T", ValueError, "one of 1/t, mean"),
        ("draws", ["times"], ValueError, "one of times, counts"),
        ("low", 0, ValueError, "between 0 and 1"),
        ("low", 1.0, ValueError, "between 0 and 1"),
        ("low", True, ValueError, "between 0 and 1"),
        ("noise", "masks", ValueError, "one of mask, uniform, hybrid"),
        ("uniform_share", 1, ValueError, "below 1; got 1"),
        ("drafts", "yes", TypeError, "True or False; got 'yes'"),
        ("seq_len", 0, ValueError, "whole number above 0; got 0"),
        ("seq_len", 24, ValueError, "23 positions"),
        ("vocab_size", 0, ValueError, "vocab_size"),
        ("attn_pdrop", 2, ValueError, "attn_pdrop is a share"),
        ("bos_token_id", VOCAB, ValueError, "bos_token_id"),
    ],
)
def test_a_wrong_field_is_named(field, value, error, words):
    with pytest.raises(error, match=words):
        masked.MaskedConfig(**{**SMALL, field: value})


def test_drafts_belong_to_masks():
    with pytest.raises(ValueError, match="belong to the noise 'mask'"):
        make(drafts=True, noise="hybrid")


def test_every_field_is_checked():
    """A field that is added is added here, too."""
    own = set(inspect.signature(masked.MaskedConfig).parameters) - {"kwargs"}
    (mark,) = test_a_wrong_field_is_named.pytestmark
    assert own <= {row[0] for row in mark.args[1]}


# --- files ------------------------------------------------------------------


@KINDS
@torch.no_grad()
def test_a_saved_model_is_the_same(tmp_path, fields):
    model, ids = make(seq_len=9, **fields), canvases()
    model.save_pretrained(tmp_path)
    loaded = masked.load(tmp_path)
    assert torch.equal(loaded(ids), model(ids))
    before, after = model.config.to_dict(), loaded.config.to_dict()
    for name in inspect.signature(masked.MaskedConfig).parameters:
        assert before.get(name) == after.get(name)
    assert loaded.config.seq_len == 9 and not loaded.training
    model.half().save_pretrained(tmp_path / "half")
    close = masked.load(tmp_path / "half")(ids)
    torch.testing.assert_close(close, loaded(ids), rtol=0, atol=1e-2)


def test_a_folder_of_another_model_is_refused(tmp_path):
    GPT2LMHeadModel(GPT2Config(**SMALL)).save_pretrained(tmp_path)
    with pytest.raises(resources.DataError, match="'gpt2'; 'dblm-masked'"):
        masked.load(tmp_path)


# --- training ---------------------------------------------------------------


def batch_of(model, ids, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch = {"ids": ids, "mask": torch.ones_like(ids, dtype=torch.bool)}
    batch |= training.draw_for(model)(model, ids, generator)
    counted = (batch["mask"] & ~batch["keep"]).float()
    return batch | {"weight": counted / counted.sum()}


def test_times_are_spread_evenly_and_masks_follow_them():
    model, ids = make(low=0.01), texts(200, 20)
    draw = training.draw_for(model)
    assert draw is training.draw_masks
    found = draw(model, ids, torch.Generator().manual_seed(0))
    t, keep = found["t"], found["keep"]
    assert t.dtype == torch.float64 and keep.dtype == torch.bool
    gaps = t.sort().values.diff()
    torch.testing.assert_close(gaps, torch.full_like(gaps, 0.99 / 200))
    assert 0.01 <= t.min() < 0.01 + 0.99 / 200
    error = ((~keep).double().mean(dim=1) - t) / (t * (1 - t) / 20).sqrt()
    assert error.abs().max() < 5 and 0.8 < error.std() < 1.2


def test_counts_are_spread_evenly_over_all_numbers_of_masks():
    model, ids = make(draws="counts"), texts(60, 20)
    found = training.draw_masks(model, ids, torch.Generator().manual_seed(0))
    number = (~found["keep"]).sum(dim=1)
    assert number.bincount(minlength=21).tolist() == [0] + 20 * [3]
    torch.testing.assert_close(found["t"], number / 20, check_dtype=False)


@torch.no_grad()
def test_the_plain_loss_is_the_mean_over_masked_tokens():
    model, ids = make(weighting="mean"), texts()
    batch = batch_of(model, ids)
    hidden = ~batch["keep"]
    logits = model(ids.masked_fill(hidden, MASK))
    wanted = F.cross_entropy(logits[hidden], ids[hidden])
    got = training.loss_for(model)(model, batch)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("draws", ["times", "counts"])
@torch.no_grad()
def test_the_weighted_loss_estimates_the_bound(draws):
    """In nats a text, over many batches, within four standard errors."""
    model, ids = make(draws=draws, low=1e-3), texts(32, 9)
    model.embeddings.weight.mul_(20)  # else all tokens are alike to it
    loss = training.loss_for(model)
    found = torch.stack(
        [9 * loss(model, batch_of(model, ids, seed)) for seed in range(64)]
    )
    bound = likelihood.bound(model, ids, MASK, draw="counts", rounds=64)
    error = math.hypot(found.std().item() / 8, bound.draw_error)
    assert bound.mean > 1.1 * 9 * math.log(VOCAB)
    assert error < 0.02 * bound.mean
    assert abs(found.mean().item() - bound.mean) < 4 * error


@pytest.mark.parametrize("weighting", masked.WEIGHTINGS)
def test_the_loss_falls_in_twenty_steps(weighting):
    """Each text is one of four tokens, over and over; Muon."""
    model = make(weighting=weighting)
    ids = torch.tensor([3, 9, 17, 31]).repeat(16)[:, None].expand(-1, 9)
    config = training.TrainConfig(
        steps=20,
        batch_size=16,
        learning_rate=2e-2,
        warmup=3,
        optimizer="muon",
        log_every=1,
    )
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    history = training.train(model, ids, everywhere, config, progress=False)
    first, last = history.loss[:4], history.loss[-4:]
    assert sum(last) < 0.6 * sum(first)


def test_staggered_masks_weigh_by_the_schedule_of_their_position():
    """In the mean over draws each position weighs one: the bound."""
    model, ids = make(draws="staggered", low=1e-3), texts(4000, 9)
    total = torch.zeros(2, 9, dtype=torch.float64)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        found = training.draw_masks(model, ids, generator)
        assert found["t"].shape == (4000,)
        weighed = found["rates"] * ~found["keep"]
        total += torch.stack([weighed[::2].mean(0), weighed[1::2].mean(0)]) / 5
        # A visible token costs nothing, nor does one that is always masked.
        rates = found["rates"][1::2]
        assert (rates == 0).any() and (rates[rates > 0] >= 1).all()
        masks = (~found["keep"])[1::2].double().mean(0)
        assert masks[-1] - masks[0] > 0.4
    assert (total - 1).abs().max() < 0.25
    assert (total.mean(1) - 1).abs().max() < 0.05


def test_the_loss_takes_the_rates_in_place_of_the_time():
    model, ids = make(draws="staggered", low=1e-3), texts(8)
    batch = batch_of(model, ids)
    canvas = ids.masked_fill(~batch["keep"], MASK)
    nats = F.cross_entropy(
        model(canvas).transpose(1, 2), ids, reduction="none"
    )
    want = (nats * batch["rates"] * ~batch["keep"]).sum() / ids.numel()
    loss = training.masked_loss(model, batch)
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)


def test_training_attends_where_the_model_does():
    """Both sides: also where eager attention has a causal mask of its own."""
    model, ids = make(), texts()
    seen = []

    def loss(network, batch):
        seen.append(network.config._attn_implementation)
        seen.append(network(canvases()).detach())
        return training.masked_loss(network, batch)

    expected = model(canvases()).detach()
    config = training.TrainConfig(steps=1, batch_size=2, precision="fp32")
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    training.train(model, ids, everywhere, config, loss, progress=False)
    torch.testing.assert_close(seen[1], expected, rtol=1e-4, atol=1e-4)
    model.trunk.h[0].attn.register_buffer("bias", torch.ones(1))
    training.train(model, ids, everywhere, config, loss, progress=False)
    assert seen[2] == "sdpa"


def test_a_batch_without_masks_is_no_error():
    model, ids = make(), texts()
    batch = batch_of(model, ids)
    batch["keep"] = torch.ones_like(ids, dtype=torch.bool)
    loss = training.masked_loss(model, batch)
    loss.backward()
    assert loss.item() == 0


def test_the_recipe_trains_resumes_and_measures(tmp_path, monkeypatch):
    try:
        tokenizer = resources.load_tokenizer()
        resources.load_backbone("tales-gpt2")
    except resources.DataError as error:
        pytest.skip(f"no data yet: {error}")
    monkeypatch.setattr(tales_mdlm.common, "TRAIN_TALES", 64)
    model, history, config = tales_mdlm.train(tmp_path, steps=2)
    assert (config.optimizer, config.batch_size) == ("muon", 64)
    assert model.config.seq_len == 64 and model.config.weighting == "1/t"
    again, seen, _ = tales_mdlm.train(tmp_path, steps=2)
    assert seen.loss == history.loss
    for old, new in zip(model.parameters(), again.parameters()):
        assert torch.equal(old, new)
    with pytest.raises(resources.DataError, match="weighting"):
        tales_mdlm.train(tmp_path, steps=2, weighting="mean")
    corpus = text.load("tales", size=1, valid_size=2)
    found = evaluation.nats(model, tokenizer, corpus.valid)
    assert found["texts"] == 2
    assert found["bound_above_exact"] == pytest.approx(
        found["bound_nats_per_tale"] - found["exact_nats_of_these"], abs=1e-3
    )
    assert found["left_to_right_above_exact"] > 0
