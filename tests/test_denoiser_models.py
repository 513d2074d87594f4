"""Denoisers as files and as programs: what is loaded, in which precision.

`tests/test_denoiser.py` asks what a denoiser computes.
"""

import inspect
import math
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

import one_way
import pytest
import torch
from transformers.utils import ModelOutput

from dblm_lib import decoding, denoiser, resources, training

ALL = {
    "normalise_embeddings": True,
    "train_embeddings": True,
    "head": "mixture",
    "loss": "ce",
    "input_std": 0.2,
    "self_conditioning": 0.5,
    "likelihood": True,
    "evidence": True,
    "shift": True,
    "embed_dim": 8,
    "clean_rate": 0.5,
}
KINDS = pytest.mark.parametrize("fields", [{}, ALL], ids=["plain", "all"])


def make(fields=None, vocab=50):
    """Return a small random denoiser."""
    torch.manual_seed(0)
    config = denoiser.DBLMConfig(
        vocab_size=vocab,
        n_positions=40,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **(fields or {}),
    )
    return denoiser.DBLM(config).eval()


def points(model, batch=2, length=9):
    """Return random vectors, as a noised text."""
    generator = torch.Generator().manual_seed(1)
    dim = model.embeddings.embedding_dim
    return torch.randn(batch, length, dim, generator=generator)


# --- the program ------------------------------------------------------------


def test_each_branch_of_forward_is_a_field_of_the_configuration():
    """It reads from top to bottom: no other condition, no loop, no hook."""
    assert one_way.branches(denoiser.DBLM) > 5
    own = {n for n, v in vars(denoiser.DBLM).items() if inspect.isfunction(v)}
    assert own == {"__init__", "forward"}


def test_an_answer_has_names():
    """As in transformers: by name, by key, by place; without None."""
    model = make(ALL)
    with torch.no_grad():
        answer = model(points(model), 0.5)
    assert isinstance(answer, ModelOutput)
    assert list(answer) == ["x0", "logits"]
    assert answer["x0"] is answer[0] is answer.x0
    plain = make()
    with torch.no_grad():
        answer = plain(points(plain), 0.5)
    assert list(answer) == ["x0"] and answer.logits is None


@KINDS
def test_no_number_of_the_input_is_looked_at(fields, monkeypatch):
    """On a GPU each look makes the program wait; sampling looks."""
    model = make(fields)

    def look(*_):
        raise AssertionError("looked")

    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(torch, "isfinite", look)
        assert model(points(model), 0.5).x0.shape == points(model).shape
    with torch.no_grad():
        model.trunk.ln_f.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="t = 1.000 is not finite"):
        model.generate(max_length=6, num_steps=4)


@KINDS
@pytest.mark.parametrize("given", [False, True])
@torch.no_grad()
def test_a_forward_waits_for_no_device(fields, given, monkeypatch):
    """On the device ``meta`` there are no numbers to look at or wait for."""
    # Which knows no lower precision to leave out.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    model = make(fields).to("meta")
    zt = points(model).to("meta")
    t = torch.full((2, 9), 0.5, dtype=torch.float64, device="meta")
    options = {"table": model.table()} if given else {}
    if model.config.self_conditioning:
        options["previous"] = zt
    real = torch.ones(2, 9, dtype=torch.bool, device="meta")
    for mask in (None, real):
        answer = model(zt, t, mask, **options)
        assert answer.x0.shape == zt.shape and answer.x0.device.type == "meta"
    with pytest.raises(RuntimeError, match="meta"):
        bool(zt.isfinite().all())  # what such a look would do


@KINDS
@torch.no_grad()
def test_a_table_given_is_the_table(fields):
    """The same answer to the last bit; and it is what is read."""
    model = make(fields)
    zt, table = points(model), model.table()
    expected, got = model(zt, 0.5), model(zt, 0.5, table=table)
    assert torch.equal(got.x0, expected.x0)
    if fields:
        assert torch.equal(got.logits, expected.logits)
        turned = model(zt, 0.5, table=table.flip(0))
        assert not torch.equal(turned.x0, expected.x0)


@KINDS
@torch.no_grad()
def test_one_row_of_times_is_that_of_each_sequence(fields):
    """Expanded, it is embedded once; written out, once a sequence."""
    model = make(fields)
    zt, row = points(model), torch.linspace(0, 1, 9, dtype=torch.float64)
    expanded = model(zt, row.expand(2, 9)).x0
    written_out = model(zt, row.repeat(2, 1)).x0
    torch.testing.assert_close(expanded, written_out, rtol=0, atol=1e-5)


@KINDS
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32])
@torch.no_grad()
def test_masks_of_any_type_mean_the_same(fields, dtype):
    """0 and 1, or False and True; nothing else."""
    model = make(fields)
    real = torch.arange(9) < torch.tensor([[9], [6]])
    keep = torch.arange(9) < torch.tensor([[0], [2]])
    zt, t = points(model), torch.full((2, 9), 0.5).masked_fill(keep, 0.0)
    expected = model(zt, t, real, keep=keep)
    got = model(zt, t, real.to(dtype), keep=keep.to(dtype))
    assert torch.equal(got.x0, expected.x0)
    plain = model(zt, t, keep=keep)
    assert not torch.equal(plain.x0, expected.x0)
    for wrong in ({"attention_mask": 2 * real.long()}, {"keep": -keep.long()}):
        with pytest.raises(ValueError, match="must hold 0 and 1"):
            model(zt, t, **wrong)


# --- precision --------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_generates(fields, dtype, attention):
    model = make(fields).to(dtype)
    model.set_attn_implementation(attention)
    ids = model.generate(
        torch.tensor([3, 1, 4]),
        max_length=8,
        num_steps=3,
        generator=torch.Generator().manual_seed(0),
        trajectory=decoding.Trajectory(),
    )
    assert ids.shape == (1, 8) and ids[0, :3].tolist() == [3, 1, 4]


@KINDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_says_nearly_the_same(fields, dtype):
    """The likelihood still sees the point in all its digits."""
    model, half = make(fields), make(fields).to(dtype)
    zt = points(model)
    exact, close = model(zt, 0.5).x0, half(zt, 0.5).x0
    assert (close.float() - exact).norm() < 0.05 * exact.norm()


@KINDS
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64]
)
@torch.no_grad()
def test_points_of_any_precision_are_taken(fields, dtype):
    """They are brought to the precision of the weights."""
    model = make(fields)
    zt = points(model).to(dtype)
    expected = model(zt.float(), 0.5)
    got = model(zt, 0.5)
    torch.testing.assert_close(got.x0, expected.x0)
    assert got.x0.dtype == torch.float32


@KINDS
def test_a_model_in_half_precision_learns(fields):
    model = make(fields).bfloat16()
    ids = torch.randint(50, (8, 9), generator=torch.Generator())
    config = training.TrainConfig(steps=3, batch_size=4, warmup=1)
    before = model.trunk.h[0].attn.c_attn.weight.clone()
    found = training.train(
        model, ids, torch.ones_like(ids).bool(), config, progress=False
    )
    assert all(map(math.isfinite, found.loss))
    assert not torch.equal(model.trunk.h[0].attn.c_attn.weight, before)


# --- files ------------------------------------------------------------------


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="reads /proc/self/maps"
)
@pytest.mark.parametrize(
    "load", [denoiser.load, denoiser.DBLM.from_pretrained]
)
def test_a_loaded_model_does_not_hold_its_file(tmp_path, load):
    """Windows lets no one replace a file that is mapped."""
    make(ALL).save_pretrained(tmp_path)
    model = load(tmp_path)
    maps = Path("/proc/self/maps").read_text("utf-8")
    assert str(tmp_path) not in maps
    assert model.embeddings.weight.requires_grad
    plain = tmp_path / "plain"
    make().save_pretrained(plain)
    assert not load(plain).embeddings.weight.requires_grad


def test_a_tokenizer_of_another_size_is_refused(tmp_path):
    """Its ids would lie outside the table of embeddings."""
    try:
        tokenizer = resources.data_path("tokenizer", "tokenizer.json")
    except resources.DataError as error:
        pytest.skip(f"no data yet: {error}")
    make(vocab=600).save_pretrained(tmp_path)
    assert denoiser.load(tmp_path).config.vocab_size == 600
    shutil.copy(tokenizer, tmp_path)
    words = "tokenizer has 1024 tokens.*for 600 only"
    with pytest.raises(resources.DataError, match=words):
        denoiser.load(tmp_path)
    make(vocab=1024).save_pretrained(tmp_path)
    assert denoiser.load(tmp_path).config.vocab_size == 1024


# What the checkpoints answered when they were made, before `forward` was
# rewritten: logits at four places, their spread, and what they name.
ANSWERS = {
    "tales-dblm-teacher": (
        [11.04949, 2.42215, -3.33364, -9.97752],
        5.07313,
        [[476, 470, 259, 12, 454, 260], [387, 600, 590, 12, 12, 12]],
        [0.90384, 1.40146, -0.44371, 0.43426],
        32.6506,
    ),
}


@pytest.mark.parametrize("name", sorted(ANSWERS))
def test_old_checkpoints_answer_as_they_did(name):
    """With every option of the network, on points made without chance."""
    try:
        model = denoiser.load(name)
    except resources.DataError as error:
        pytest.skip(f"no data yet: {error}")
    rows = [[479, 470, 12, 387, 20, 300], [5, 6, 7, 8, 9, 0]]
    wave = torch.arange(2 * 6 * 128).reshape(2, 6, 128)
    keep = torch.zeros(2, 6, dtype=torch.bool)
    keep[0, :2] = True
    with torch.no_grad():
        clean = model.embed(torch.tensor(rows))
        zt = torch.where(
            keep[..., None], clean, 0.4 * clean + (0.7 * wave).sin()
        )
        answer = model(
            zt,
            torch.full((2, 6), 0.5).masked_fill(keep, 0.0),
            previous=(0.3 * wave).cos(),
            likelihood_weight=0.25,
        )
    at, spread, named, beginning, length = ANSWERS[name]
    logits, x0 = answer.logits, answer.x0
    places = [(0, 0, 479), (0, 3, 387), (1, 2, 0), (1, 5, 1000)]
    got = [logits[place].item() for place in places]
    assert got == pytest.approx(at, abs=2e-3)
    assert logits.std().item() == pytest.approx(spread, abs=1e-3)
    assert logits.argmax(-1).tolist() == named
    assert x0[1, 3, :4].tolist() == pytest.approx(beginning, abs=2e-3)
    assert x0.norm().item() == pytest.approx(length, abs=5e-3)
