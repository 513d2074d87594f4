"""GPT-2 as a denoiser: chapter 3.

`transformers` decides what GPT-2 computes; the rest is held to what a
reader would check from outside: disturb one input, look at the outputs.
"""

import json
import math
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
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

VOCAB, DIM, LAYERS = 50, 32, 3


def backbone(seed=0, std=None, dim=DIM, layers=LAYERS):
    """Return a small random GPT-2; a large ``std`` makes it lively."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=80,
        n_embd=dim,
        n_layer=layers,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).eval()
    if std is not None:
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_(0, std)
    return resources.Backbone(model, None)


def make(causal=False, conditioning="time", seed=0, **options):
    """Return a lively small denoiser."""
    return denoiser.DBLM.from_backbone(
        backbone(seed, std=0.2),
        causal=causal,
        conditioning=conditioning,
        **options,
    )


@lru_cache
def pair():
    """Return the denoiser that sees both sides, and the causal one."""
    return make(causal=False), make(causal=True)


def points(batch=2, length=9, dim=DIM, seed=1):
    """Return random vectors, as a noised text."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, dim, generator=generator)


def call(model, zt, t=0.5, mask=None):
    """Run a model without gradients."""
    with torch.no_grad():
        return model(zt, t, attention_mask=mask).x0


# --- it is GPT-2 ------------------------------------------------------------


@pytest.mark.parametrize("std", [None, 0.2])
@pytest.mark.parametrize("batch, length", [(1, 1), (3, 7), (2, 64), (2, 80)])
@pytest.mark.parametrize("padded", [False, True])
def test_equals_gpt2_to_the_last_bit(std, batch, length, padded):
    """Causal, unconditioned, clean: hidden states of transformers' GPT-2."""
    original = backbone(seed=length, std=std)
    model = denoiser.DBLM.from_backbone(
        original, causal=True, conditioning="none"
    )
    ids = torch.randint(VOCAB, (batch, length))
    mask = torch.ones(batch, length, dtype=torch.bool)
    if padded:
        mask[0, (length + 1) // 2 :] = False
    given_mask = mask if padded else None
    with torch.no_grad():
        expected = original.model.transformer(
            input_ids=ids,
            attention_mask=mask.long() if padded else None,
        ).last_hidden_state
        got = model(model.embed(ids), attention_mask=given_mask).x0
    assert torch.equal(got, expected)


def test_embedded_backbone_gives_the_same_hidden_states():
    """The book's own GPT-2, with real tales on padded canvases."""
    from dblm_lib import text

    try:
        original = resources.load_backbone("tales-gpt2")
    except resources.DataError as error:
        pytest.skip(f"no data yet: {error}")
    texts = text.load("tales", size=1, valid_size=5).valid
    ids, mask = text.encode_batch(texts, original.tokenizer, 64)
    model = denoiser.DBLM.from_backbone(
        original, causal=True, conditioning="none"
    )
    with torch.no_grad():
        expected = original.model.transformer(
            input_ids=ids, attention_mask=mask.long()
        ).last_hidden_state
    assert torch.equal(call(model, model.embed(ids), None, mask), expected)


def test_backbone_is_copied_not_shared():
    """Training the denoiser leaves the language model as it was."""
    original = backbone()
    model = denoiser.DBLM.from_backbone(original)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert original.model.transformer.wte.weight.abs().sum() > 0
    assert original.model.transformer.h[0].attn.c_attn.weight.abs().sum() > 0


# --- who sees whom ----------------------------------------------------------


@settings(max_examples=8)
@given(st.integers(0, 8), st.integers(0, 20))
def test_both_sides_or_only_the_left(position, seed):
    """A disturbed token moves all outputs, or only the later ones."""
    zt = points(seed=seed)
    disturbed = zt.clone()
    # Not a constant: layer norms take that away again.
    disturbed[:, position] = points(seed=seed + 100)[:, 0]
    for causal in (False, True):
        model = pair()[causal]
        change = (call(model, disturbed) - call(model, zt)).abs().amax(-1)
        assert (change[:, position:] > 1e-5).all()
        if causal:
            assert (change[:, :position] < 1e-6).all()
        else:
            assert (change[:, :position] > 1e-5).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("conditioning", ["none", "time"])
def test_padding_changes_nothing(causal, conditioning):
    """Neither how much of it there is, nor what stands in it."""
    model = make(causal, conditioning)
    zt, real = points(length=20), 13
    mask = torch.zeros(2, 20, dtype=torch.bool)
    mask[:, :real] = True
    alone = call(model, zt[:, :real])
    padded = call(model, zt, mask=mask)[:, :real]
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)
    other = torch.where(mask[..., None], zt, 100 * points(length=20, seed=9))
    rubbish = call(model, other, mask=mask)[:, :real]
    torch.testing.assert_close(rubbish, alone, atol=1e-5, rtol=1e-5)
    if not causal:  # the test could fail
        careless = call(model, other)[:, :real]
        assert (careless - alone).abs().max() > 1e-2


def test_rows_of_a_batch_do_not_mix():
    """Each text of a batch is denoised by itself, whatever its length."""
    model, zt = make(), points(batch=3, length=12)
    lengths = torch.tensor([12, 5, 9])
    mask = torch.arange(12) < lengths[:, None]
    together = call(model, zt, torch.tensor([0.1, 0.5, 0.9]), mask)
    for i, n in enumerate(lengths.tolist()):
        single = call(model, zt[i : i + 1, :n], [0.1, 0.5, 0.9][i])
        torch.testing.assert_close(
            together[i : i + 1, :n], single, atol=1e-5, rtol=1e-5
        )


@settings(max_examples=30)
@given(
    st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1),
    st.booleans(),
)
def test_mask_is_what_its_name_says(rows, causal):
    """Entry (i, j): j is real, and not to the right of i if causal."""
    real = torch.tensor(rows)
    mask = denoiser.attention_mask_4d(real, causal)
    assert mask.shape == (len(rows), 1, 5, 5)
    assert mask.dtype == torch.bool
    for b, row in enumerate(rows):
        for i in range(5):
            for j in range(5):
                expected = row[j] and (j <= i or not causal)
                assert mask[b, 0, i, j].item() == expected


@pytest.mark.parametrize("causal", [False, True])
def test_mask_is_made_where_it_is_used(causal):
    """No copy from one device to another, which a GPU would wait for."""

    class Calls(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_dispatch__(self, called, types, args=(), kwargs=None):
            self.names.append(str(called))
            return called(*args, **(kwargs or {}))

    real = torch.ones(2, 5, dtype=torch.bool, device="meta")
    with Calls() as calls:
        mask = denoiser.attention_mask_4d(real, causal)
    assert mask.device.type == "meta" and calls.names
    assert not [name for name in calls.names if "copy" in name]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_attention_is_scaled_dot_product(monkeypatch, causal, padded):
    """One fused call a layer, for the whole batch: no loop in Python."""
    shapes = []
    original = F.scaled_dot_product_attention

    def counted(query, *arguments, **options):
        shapes.append(tuple(query.shape))
        return original(query, *arguments, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    model, zt = make(causal), points(batch=5, length=11)
    mask = torch.ones(5, 11, dtype=torch.bool)
    mask[0, 7:] = not padded
    call(model, zt, mask=mask)
    assert shapes == [(5, 4, 11, DIM // 4)] * LAYERS


# --- time -------------------------------------------------------------------


def test_one_time_is_the_same_in_every_form():
    """A float, a tensor, one a sequence, one a position."""
    model, zt = make(), points()
    expected = call(model, zt, 0.3)
    for t in (
        torch.tensor(0.3),
        torch.tensor([0.3]),
        torch.full((2,), 0.3, dtype=torch.float64),
        torch.full((2, 9), 0.3),
    ):
        torch.testing.assert_close(
            call(model, zt, t), expected, atol=1e-5, rtol=1e-5
        )


def test_each_sequence_and_each_position_has_its_time():
    """Another time for one of them changes just what it should."""
    model, zt = make(causal=True), points()
    still = call(model, zt, torch.tensor([0.3, 0.3]))
    change = (call(model, zt, torch.tensor([0.3, 0.9])) - still).abs()
    assert change[0].max() < 1e-6
    assert change[1].amax(-1).min() > 1e-3
    t = torch.full((2, 9), 0.3)
    t[:, 4] = 0.9
    change = (call(model, zt, t) - still).abs().amax(-1)
    assert change[:, :4].max() < 1e-6
    assert change[:, 4:].min() > 1e-5


def test_two_times_for_two_positions_are_no_two_sequences():
    """A (2,) tensor on a square batch means the sequences."""
    model, zt = make(causal=True), points(batch=2, length=2)
    t = torch.tensor([0.1, 0.9])
    expected = call(model, zt, t[:, None].expand(2, 2))
    torch.testing.assert_close(call(model, zt, t), expected)


def test_without_conditioning_the_time_is_not_heard():
    """`none` needs no t, and ignores one."""
    model, zt = make(conditioning="none"), points()
    assert not hasattr(model, "noise_mlp")
    assert torch.equal(call(model, zt, None), call(model, zt, 0.9))


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_noise_embedding_is_the_formula(times):
    """Against the formula in double precision, one number at a time."""
    t = torch.tensor(times, dtype=torch.float64)
    got = denoiser.noise_embedding(t, 8)
    assert got.shape == (len(times), 8)
    for row, time in zip(got.tolist(), times, strict=True):
        for k in range(4):
            angle = 1000 * time * 10_000 ** (-k / 4)
            assert row[k] == pytest.approx(math.sin(angle), abs=2e-4)
            assert row[k + 4] == pytest.approx(math.cos(angle), abs=2e-4)


def test_noise_embedding_tells_a_thousand_times_apart():
    """Any two of 1,001 times differ; the nearest in time is nearest."""
    codes = denoiser.noise_embedding(torch.linspace(0, 1, 1001), 64)
    distances = torch.cdist(codes, codes).fill_diagonal_(torch.inf)
    assert distances.min() > 0.1
    off = distances.argmin(dim=1) - torch.arange(1001)
    assert (off.abs() == 1).all()
    shape = denoiser.noise_embedding(torch.rand(2, 3), 64).shape
    assert shape == (2, 3, 64)


# --- spaces and weights -----------------------------------------------------


def test_embeddings_are_fixed_unless_asked():
    """What is to be hit does not move; everything else learns."""
    model = make()
    fixed = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert fixed == ["embeddings.weight"]
    model = make(train_embeddings=True)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True},
        {"conditioning": "none"},
        {"embed_dim": 8},
        {"embed_dim": 8, "train_embeddings": True},
        {"train_embeddings": True, "normalise_embeddings": True},
    ],
)
def test_gradient_reaches_every_weight_that_learns(options):
    """No dead branch; positions beyond the text excepted."""
    model = make(**options)
    ids = torch.randint(VOCAB, (4, 80))
    x0 = model.embed(ids)
    zt, _ = noising.add_noise(
        x0, 0.3, model.schedule, torch.Generator().manual_seed(0)
    )
    (model(zt, 0.3).x0 - x0).square().mean().backward()
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None, name
            assert weight.grad.abs().sum() > 0, name
        else:
            assert weight.grad is None, name


@pytest.mark.parametrize("embed_dim", [1, 8, DIM])
def test_a_smaller_space(embed_dim):
    """The table is pressed by principal components; shapes follow."""
    original = backbone(std=0.2)
    model = denoiser.DBLM.from_backbone(original, embed_dim=embed_dim)
    wide = original.model.transformer.wte.weight.detach()
    assert model.table().shape == (VOCAB, embed_dim)
    zt = points(dim=embed_dim)
    assert call(model, zt).shape == zt.shape
    if embed_dim == DIM:  # nothing to press, nothing to project
        assert torch.equal(model.table(), wide)
        assert isinstance(model.project_in, torch.nn.Identity)
    else:
        # Principal components keep the most variance: numpy's SVD says
        # how much that can be.
        values = torch.linalg.svdvals((wide - wide.mean(0)).double())
        best = values[:embed_dim].square().sum()
        kept = model.table().double().square().sum()
        assert kept.item() == pytest.approx(best.item(), rel=1e-4)


def test_a_smaller_space_of_the_tokens_that_occur():
    original = backbone(std=0.2)
    rows = torch.arange(0, VOCAB, 2)
    model = denoiser.DBLM.from_backbone(original, rows, embed_dim=4)
    wide = original.model.transformer.wte.weight.detach()
    wanted = noising.principal_table(wide, 4, rows)
    torch.testing.assert_close(model.table(), wanted)


def test_normalised_embeddings_have_length_sqrt_dim():
    """One config field; the weights stay as they came."""
    original = backbone(std=0.2)
    model = denoiser.DBLM.from_backbone(original, normalise_embeddings=True)
    length = model.table().norm(dim=1)
    torch.testing.assert_close(length, torch.full((VOCAB,), DIM**0.5))
    raw = original.model.transformer.wte.weight
    assert torch.equal(model.embeddings.weight, raw)
    ids = torch.tensor([[3, 4]])
    assert torch.equal(model.embed(ids), model.table()[ids])


# --- files ------------------------------------------------------------------


def test_config_survives_a_round_trip(tmp_path):
    """Every field that is ours, and those of GPT-2."""
    fields = {
        "causal": True,
        "conditioning": "none",
        "embed_dim": 7,
        "normalise_embeddings": True,
        "train_embeddings": True,
        "schedule": "linear",
        "schedule_options": {"beta_max": 10.0},
        "n_layer": 2,
        "n_embd": 16,
        "vocab_size": 11,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    denoiser.DBLMConfig(**fields).save_pretrained(tmp_path)
    again = denoiser.DBLMConfig.from_pretrained(tmp_path)
    for name, value in fields.items():
        assert getattr(again, name) == value, name
    stored = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert stored["model_type"] == "dblm"


def test_saved_and_loaded_it_answers_the_same(tmp_path):
    """`save_pretrained`, `from_pretrained`, `denoiser.load`; safetensors."""
    model = make(embed_dim=8, schedule="cosine")
    model.save_pretrained(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["config.json", "model.safetensors"]
    zt = points(dim=8)
    expected = call(model, zt)
    for again in (
        denoiser.DBLM.from_pretrained(tmp_path),
        denoiser.load(tmp_path),
        denoiser.load(str(tmp_path)),
    ):
        assert not again.training
        assert torch.equal(call(again, zt), expected)
        assert again.schedule == model.schedule
        assert not again.embeddings.weight.requires_grad


def test_load_refuses_a_language_model(tmp_path):
    """A plain GPT-2 is no denoiser, and is named as what it is."""
    backbone().model.save_pretrained(tmp_path)
    with pytest.raises(resources.DataError, match="gpt2.*dblm"):
        denoiser.load(tmp_path)


def test_load_refuses_weights_that_are_cut_off(tmp_path):
    """Found in the header, before a weight is used."""
    make().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(resources.DataError, match="model.safetensors"):
        denoiser.load(tmp_path)


def test_generate_is_on_the_model():
    """The same keywords as transformers where the meaning is the same."""
    ids = make().generate(
        torch.tensor([[1, 2, 3]]),
        max_length=10,
        num_return_sequences=2,
        num_steps=3,
        generator=torch.Generator().manual_seed(0),
    )
    assert ids.shape == (2, 10)
    assert ids[:, :3].tolist() == [[1, 2, 3]] * 2


# --- bad input --------------------------------------------------------------


@pytest.mark.parametrize(
    "zt, t, mask, words",
    [
        (points(dim=DIM + 1), 0.5, None, r"\(batch, length, 32\).*33"),
        (points()[0], 0.5, None, r"\(batch, length, 32\)"),
        (points(length=81), 0.5, None, "80 positions; got 81"),
        (points(), None, None, "conditioned on the time: give t"),
        (points(), 1.5, None, r"\[0, 1\].*1.5"),
        (points(), -0.1, None, r"\[0, 1\].*-0.1"),
        (points(), math.nan, None, r"\[0, 1\].*nan"),
        (points(), torch.rand(3), None, r"\(2, 9\).*\(3,\)"),
        (points(), torch.rand(9), None, r"\(2, 9\).*\(9,\)"),
        (points(), torch.rand(1, 9), None, r"\(2, 9\).*\(1, 9\)"),
        (points(batch=0), 0.5, None, r"no position.*\(0, 9, 32\)"),
        (points(length=0), 0.5, None, r"no position.*\(2, 0, 32\)"),
        (points().long(), 0.5, None, "int64.*not token ids"),
        (points(), 0.5, torch.full((2, 9), 0.5), "mask.*0 and 1.*got 0.5"),
        (points(), 0.5, torch.ones(2, 8), r"mask.*\(2, 9\).*\(2, 8\)"),
        (points(), 0.5, torch.ones(9), r"mask.*\(2, 9\).*\(9,\)"),
    ],
)
def test_bad_input_is_explained(zt, t, mask, words):
    """What was given, what was expected; no crash deep inside."""
    with pytest.raises(ValueError, match=words):
        make()(zt, t, attention_mask=mask)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"conditioning": "clock"}, "clock.*none, time"),
        ({"embed_dim": 0}, "embed_dim.*0"),
        ({"embed_dim": -3}, "embed_dim.*-3"),
        ({"embed_dim": 2.5}, "embed_dim.*2.5"),
        ({"schedule": "linaer"}, "linaer"),
        ({"n_embd": 33, "n_head": 3}, "even.*33"),
    ],
)
def test_bad_config_is_explained(options, words):
    """Before anything is built."""
    with pytest.raises(ValueError, match=words):
        denoiser.DBLMConfig(**options)


def test_a_space_wider_than_the_backbone_is_refused():
    """There are no more principal components than dimensions."""
    with pytest.raises(ValueError, match="embed_dim.*between 1 and 32"):
        denoiser.DBLM.from_backbone(backbone(), embed_dim=DIM + 1)


# --- repairs (chapter 7) ----------------------------------------------------

REPAIRED = {
    "embed_dim": 8,
    "normalise_embeddings": True,
    "train_embeddings": True,
    "head": "mixture",
    "loss": "ce",
    "input_std": 0.05,
    "self_conditioning": 0.5,
    "likelihood": True,
    "clean_rate": 0.7,
    "schedule": "warped",
    "schedule_options": {"levels": [0.1, 0.7, 9.0]},
}
BY_NAME = pytest.mark.parametrize("name", sorted(schedules.SCHEDULES))


def repaired(seed=0, **options):
    """Return a new small denoiser with all repairs but those changed."""
    torch.manual_seed(seed)
    fields = {
        "vocab_size": VOCAB,
        "n_positions": 80,
        "n_embd": DIM,
        "n_layer": LAYERS,
        "n_head": 4,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }
    config = denoiser.DBLMConfig(**{**fields, **REPAIRED, **options})
    return denoiser.DBLM(config).eval()


def test_by_default_nothing_is_repaired():
    """Part I's model: the same weights, and what enters goes in as it is."""
    model, zt, seen = make(), points(), []
    names = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert names == {"embeddings", "trunk", "noise_mlp"}
    model.trunk.register_forward_pre_hook(
        lambda _, __, given: seen.append(given), with_kwargs=True
    )
    states = []
    model.trunk.register_forward_hook(
        lambda _, __, output: states.append(output.last_hidden_state)
    )
    with torch.no_grad():
        output = model(zt, 0.5)
        code = denoiser.noise_embedding(torch.full((2, 1), 0.5), DIM)
        entered = zt + model.noise_mlp(code)
    assert torch.equal(seen[0]["inputs_embeds"], entered)
    assert seen[0]["attention_mask"].shape == (1, 1, 9, 9)  # one for all
    assert output.x0.data_ptr() == states[0].data_ptr()
    assert output.logits is None


def test_mixture_is_the_mean_embedding():
    """Softmax times table, and so inside the tokens' convex hull."""
    model = repaired()
    zt = points(dim=8)
    with torch.no_grad():
        output = model(zt, 0.5)
    x0_hat, logits = output.x0, output.logits
    assert logits.shape == (2, 9, VOCAB) and logits.dtype == torch.float32
    shares = logits.double().exp()
    shares /= shares.sum(-1, keepdim=True)
    expected = torch.einsum("blv,vd->bld", shares, model.table().double())
    torch.testing.assert_close(x0_hat.double(), expected, rtol=0, atol=1e-5)
    # A hull lies on one side of each plane that its corners lie on one
    # side of: along any direction no guess goes beyond the tokens.
    along = points(1, 500, 8, seed=3)[0].T
    tokens, guesses = model.table() @ along, x0_hat.flatten(0, 1) @ along
    assert (guesses <= tokens.amax(0) + 1e-5).all()
    assert (guesses >= tokens.amin(0) - 1e-5).all()


@pytest.mark.parametrize("embed_dim", [8, DIM])
@torch.no_grad()
def test_logits_are_products_with_the_embeddings(embed_dim):
    """One table for the way in and the way out, and no layer beside it."""
    model, zt = repaired(likelihood=False, embed_dim=embed_dim), []
    model.project_out.register_forward_hook(
        lambda _, __, output: zt.append(output)
    )
    logits = model(points(dim=embed_dim), 0.5).logits
    expected = torch.einsum("blk,vk->blv", zt[0], model.table())
    torch.testing.assert_close(logits, expected)
    shapes = [tuple(p.shape) for p in model.parameters()]
    assert [s for s in shapes if VOCAB in s] == [(VOCAB, embed_dim)]


@BY_NAME
@pytest.mark.parametrize("t", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("normalised", [False, True])
def test_likelihood_is_that_of_a_gaussian(name, t, normalised):
    """`torch.distributions`, up to a constant a position."""
    model = repaired(
        schedule=name, schedule_options={}, normalise_embeddings=normalised
    )
    if not normalised:  # rows of all lengths
        with torch.no_grad():
            model.embeddings.weight.copy_(points(1, VOCAB, 8, seed=2)[0])
    zt = points(dim=8)
    times = torch.tensor([[t], [1 - t / 4]], dtype=torch.float64)
    with torch.no_grad():
        got = posterior.log_likelihood(
            zt, times, model.table(), model.schedule
        )
    alpha = model.schedule.alpha(times)[..., None, None]
    sigma = model.schedule.sigma(times)[..., None, None]
    normal = torch.distributions.Normal(
        alpha * model.table().double().detach(), sigma.expand(2, 1, 1, 1)
    )
    wanted = normal.log_prob(zt[:, :, None].double()).sum(-1)
    gap = (got.double() - wanted).diff(dim=-1)
    assert (model.schedule.snr(times) < 100).all()  # not yet held back
    torch.testing.assert_close(
        gap, torch.zeros_like(gap), rtol=0, atol=2e-5 * wanted.abs().max()
    )


@BY_NAME
@pytest.mark.parametrize("t", [0.0, 1e-9, 0.5, 1.0])
def test_likelihood_is_finite_at_every_time(name, t):
    """No noise, and no signal: some schedules have one or the other."""
    model = repaired(schedule=name, schedule_options={})
    zt = points(dim=8).requires_grad_()
    answer = model(zt, t).x0
    assert torch.isfinite(answer).all()
    answer.square().sum().backward()
    assert torch.isfinite(zt.grad).all()
    if t <= 1e-9:  # a clean token is recognised
        ids = torch.arange(VOCAB)[None]
        with torch.no_grad():
            logits = model(model.embed(ids), t).logits
        assert torch.equal(logits.argmax(-1), ids)


def test_likelihood_keeps_its_digits_under_autocast():
    """bf16 would decide between near tokens by its rounding error."""
    model = repaired()
    zt, t = points(dim=8), torch.tensor([[0.1], [0.6]], dtype=torch.float64)
    with torch.no_grad():
        table, logits = model.table(), points(dim=VOCAB)
        given = zt, t, table, model.schedule
        exact = posterior.log_likelihood(*given)
        mean = posterior.token_mean(logits, table)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(posterior.log_likelihood(*given), exact)
            assert torch.equal(posterior.token_mean(logits, table), mean)
            assert model(zt, t[:, 0]).x0.dtype == torch.float32


@settings(max_examples=25)
@given(
    st.sampled_from(sorted(schedules.SCHEDULES)),
    st.floats(0.25, 1),
    st.integers(0, 100),
)
def test_a_silent_network_with_likelihood_is_bayes_rule(name, t, seed):
    """Tokens drawn evenly and by themselves: the exact denoiser of one."""
    model = repaired(seed, schedule=name, schedule_options={})
    with torch.no_grad():
        model.project_out.weight.zero_()
        model.project_out.bias.zero_()
    zt = points(4, 7, 8, seed=seed)
    table = model.table().detach()
    exact = decoding.empirical_denoiser(table[:, None], model.schedule)
    alone = zt.reshape(-1, 1, 8)
    expected = exact(alone, torch.full((28, 1), t)).reshape(zt.shape)
    torch.testing.assert_close(call(model, zt, t), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("input_std", [0.02, 0.05, 1.0])
@pytest.mark.parametrize("embed_dim", [8, DIM])
@pytest.mark.parametrize("start", ["new", "backbone"])
def test_points_enter_at_the_scale_asked_for(input_std, embed_dim, start):
    """Points of unit variance, seen where the trunk takes them in."""
    options = {"embed_dim": embed_dim, "input_std": input_std}
    if start == "new":
        options |= {"conditioning": "none", "likelihood": False}
        model = repaired(**options)
    else:
        model = denoiser.DBLM.from_backbone(
            backbone(),
            normalise_embeddings=True,
            conditioning="none",
            **options,
        )
    entered = []
    model.trunk.register_forward_pre_hook(
        lambda _, __, given: entered.append(given["inputs_embeds"]),
        with_kwargs=True,
    )
    call(model, points(16, 40, embed_dim))
    assert entered[0].std().item() == pytest.approx(input_std, rel=0.15)


def test_the_time_is_not_heard_at_first():
    """Its last layer starts at zero; then it is heard, and learns."""
    model, zt = repaired(likelihood=False), points(dim=8)
    assert torch.equal(call(model, zt, 0.1), call(model, zt, 0.9))
    model(zt, 0.5).x0.square().sum().backward()
    assert model.noise_mlp[-1].weight.grad.abs().max() > 0
    with torch.no_grad():
        model.noise_mlp[-1].weight.normal_()
    gap = call(model, zt, 0.1) - call(model, zt, 0.9)
    assert gap.abs().max() > 1e-3
    plain = make()  # without input_std it is heard from the start
    zt = points()
    assert not torch.equal(call(plain, zt, 0.1), call(plain, zt, 0.9))


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("input_std", [None, 0.2])
def test_answers_of_a_backbone_are_scaled_as_what_enters(shift, input_std):
    """ln_f is multiplied by input_std where the answers are shifted."""
    scale = input_std if shift and input_std else 1.0
    original = backbone(std=0.2)
    model = denoiser.DBLM.from_backbone(
        original, shift=shift, input_std=input_std
    )
    theirs = original.model.transformer.ln_f
    for name, value in theirs.named_parameters():
        got = model.trunk.ln_f.get_parameter(name)
        torch.testing.assert_close(got, scale * value)


def test_answers_of_a_new_model_are_scaled_as_what_enters():
    """Not only those that come from a backbone."""
    weight = repaired(shift=True, input_std=0.2).trunk.ln_f.weight
    torch.testing.assert_close(weight, torch.full((DIM,), 0.2))


@pytest.mark.parametrize("t", [0.2, 0.6, 0.9])
def test_evidence_is_bayes_rule_without_context(t):
    """Against the posterior mean of one point, written out in float64."""
    model, zt = repaired(evidence=True), points(dim=8)
    frequency = torch.linspace(-2, 1, VOCAB)
    with torch.no_grad():
        model.log_frequency.copy_(frequency)
        entered = []
        model.project_in.register_forward_pre_hook(
            lambda _, given: entered.append(given[0])
        )
        model(zt, t)
    got = entered[0]
    table, point = model.table().detach().double(), zt.double()[..., None, :]
    alpha, sigma = model.schedule.alpha(t), model.schedule.sigma(t)
    odds = frequency.double() - (
        (point - alpha * table).square().sum(-1) / (2 * sigma**2)
    )
    expected = odds.softmax(-1) @ table
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-4)


def test_evidence_is_all_that_the_trunk_reads():
    """Two points that tell the same give the same answer."""
    model = repaired(evidence=True, likelihood=False)
    flat = model.embeddings.weight.detach().clone()
    flat[:, -1] = 0  # a direction in which no token stands out
    with torch.no_grad():
        model.embeddings.weight.copy_(flat)
        zt = points(dim=8)
        moved = zt.clone()
        moved[..., -1] += 3
        assert torch.allclose(call(model, zt), call(model, moved), atol=1e-5)
        plain = repaired(likelihood=False)
        plain.embeddings.weight.copy_(flat)
        assert (call(plain, zt) - call(plain, moved)).abs().max() > 1e-4


def test_evidence_learns_how_frequent_tokens_are():
    model = repaired(evidence=True)
    assert model.log_frequency.abs().max() == 0
    model(points(dim=8), 0.5).x0.square().sum().backward()
    assert model.log_frequency.grad.abs().max() > 0
    names = [name for name, _ in repaired().named_parameters()]
    assert "log_frequency" not in names


def test_evidence_survives_saving(tmp_path):
    model, zt = repaired(evidence=True), points(dim=8)
    with torch.no_grad():
        model.log_frequency.normal_()
    model.save_pretrained(tmp_path)
    again = denoiser.load(tmp_path)
    assert again.config.evidence
    assert torch.equal(call(again, zt), call(model, zt))


def test_a_first_guess_changes_nothing_at_first():
    """Its layer starts at zero; then it is heard, and learns."""
    model, zt, guess = repaired(), points(dim=8), points(dim=8, seed=5)
    assert model.project_guess.weight.abs().max() == 0
    with torch.no_grad():
        told = model(zt, 0.5, previous=guess).x0
        assert torch.equal(told, model(zt, 0.5).x0)
    model(zt, 0.5, previous=guess).x0.square().sum().backward()
    assert model.project_guess.weight.grad.abs().max() > 0
    with torch.no_grad():
        model.project_guess.weight.normal_()
        alone, told = model(zt, 0.5).x0, model(zt, 0.5, previous=guess).x0
        zeros = model(zt, 0.5, previous=torch.zeros_like(guess)).x0
    assert (told - alone).abs().max() > 1e-3
    assert torch.equal(zeros, alone)  # zeros and None: there is none


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_both_attentions_give_the_same(eager, causal):
    """Training on processors uses the eager one; padding stays unseen."""
    model, zt = make(causal), points()
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, 6:] = False
    expected = call(model, zt, mask=mask)
    model.set_attn_implementation("eager" if eager else "sdpa")
    got = call(model, zt, mask=mask)
    torch.testing.assert_close(got[mask], expected[mask], atol=1e-5, rtol=1e-5)
    rubbish = torch.where(mask[..., None], zt, 100 * zt)
    again = call(model, rubbish, mask=mask)
    torch.testing.assert_close(again[mask], got[mask], atol=1e-5, rtol=1e-5)


# Shifted answers are what GPT-2 gives, if nothing else is changed.
AS_GPT2 = {
    "causal": True,
    "conditioning": "none",
    "head": "mixture",
    "shift": True,
}


@pytest.mark.parametrize("std", [None, 0.2])
@pytest.mark.parametrize("batch, length", [(1, 1), (3, 7), (2, 79)])
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_shifted_logits_are_those_of_gpt2(std, batch, length, padded):
    """Each token from those before it, behind an end-of-text start."""
    original = backbone(seed=length, std=std)
    model = denoiser.DBLM.from_backbone(original, **AS_GPT2)
    ids = torch.randint(1, VOCAB, (batch, length))
    mask = torch.ones(batch, length, dtype=torch.bool)
    if padded:
        mask[0, (length + 1) // 2 :] = False
    start = torch.zeros(batch, 1, dtype=torch.long)
    expected = original.model(torch.cat([start, ids[:, :-1]], dim=1)).logits
    got = model(model.embed(ids), attention_mask=mask).logits
    assert got.shape == (batch, length, VOCAB)
    torch.testing.assert_close(got[mask], expected[mask], atol=1e-4, rtol=1e-4)
    if length > 1:  # the test could fail: without the shift, one too far
        model.config.shift = False
        other = model(model.embed(ids), attention_mask=mask).logits
        assert (other[mask] - expected[mask]).abs().max() > 1e-3


def test_embedded_backbone_and_its_shifted_denoiser_agree():
    """The book's own GPT-2: the same nats for real tales."""
    from dblm_lib import text, training

    try:
        original = resources.load_backbone("tales-gpt2")
    except resources.DataError as error:
        pytest.skip(f"no data yet: {error}")
    texts = text.load("tales", size=1, valid_size=5).valid
    ids, mask = text.encode_batch(texts, original.tokenizer, 64)
    model = denoiser.DBLM.from_backbone(original, **AS_GPT2)
    with torch.no_grad():
        expected = training.next_token_nats(original.model, ids)
        logits = model(model.embed(ids), attention_mask=mask).logits
    got = F.cross_entropy(logits.transpose(1, 2), ids, reduction="none")
    torch.testing.assert_close(got[mask], expected[mask], atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_shifted_and_causal_a_position_is_answered_unseen():
    """Its own point counts only from the next answer on."""
    model = denoiser.DBLM.from_backbone(backbone(std=0.2), **AS_GPT2)
    zt, disturbed = points(), points()
    disturbed[:, 4] = points(seed=9)[:, 4]
    change = (call(model, disturbed) - call(model, zt)).abs().amax(-1)
    assert (change[:, :5] < 1e-6).all()
    assert (change[:, 5:] > 1e-6).all()


@pytest.mark.parametrize("shift", [False, True])
def test_the_start_takes_one_position(shift):
    """The longest text is one shorter, and the message says so."""
    model, longest = repaired(shift=shift), 80 - shift
    zt = points(1, longest, 8)
    assert call(model, zt).shape == zt.shape
    with pytest.raises(ValueError, match=f"knows {longest} positions; got"):
        model(points(1, longest + 1, 8), 0.5)


def test_a_shifted_model_saves_and_loads(tmp_path):
    """The field, the scaled layer norm, and the same answers."""
    model = repaired(shift=True)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(tmp_path)
    again, zt = denoiser.load(tmp_path), points(dim=8)
    assert again.config.shift is True
    assert torch.equal(call(again, zt), call(model, zt))


def test_a_shifted_model_takes_prompts_and_guesses():
    """Prompts stay; a previous guess of each position is heard."""
    model = repaired(shift=True)
    with torch.no_grad():
        model.project_guess.weight.normal_()
        zt, guess = points(dim=8), points(dim=8, seed=5)
        told = model(zt, 0.5, previous=guess).x0
        assert told.shape == zt.shape
        assert (told - model(zt, 0.5).x0).abs().max() > 1e-3
    ids = model.generate(
        torch.tensor([[1, 2, 3]]),
        max_length=79,
        num_return_sequences=2,
        num_steps=3,
        generator=torch.Generator().manual_seed(0),
    )
    assert ids.shape == (2, 79)
    assert ids[:, :3].tolist() == [[1, 2, 3]] * 2


def test_every_field_is_documented():
    """In the order of the arguments; nothing else is."""
    import inspect
    import re

    fields = list(inspect.signature(denoiser.DBLMConfig).parameters)
    told = re.findall(
        r"^ {4}(\w+) :", denoiser.DBLMConfig.__doc__, re.MULTILINE
    )
    assert told == fields[:-1] and fields[-1] == "kwargs"


@pytest.mark.parametrize("half", [False, True])
def test_repairs_survive_a_round_trip(tmp_path, half):
    """Each field and weight; half-precision files compute in float32."""
    model = repaired()
    with torch.no_grad():
        model.project_guess.weight.normal_()
    saved = repaired()
    saved.load_state_dict(model.state_dict())
    (saved.half() if half else saved).save_pretrained(tmp_path)
    again = denoiser.load(tmp_path)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    for field, value in REPAIRED.items():
        assert getattr(again.config, field) == value, field
    assert again.schedule == model.schedule
    assert again.embeddings.weight.requires_grad
    size = (tmp_path / "model.safetensors").stat().st_size
    count = sum(p.numel() for p in model.parameters())
    assert abs(size - count * (2 if half else 4)) < 10_000
    zt, guess = points(dim=8), points(dim=8, seed=5)
    with torch.no_grad():
        got, expected = (
            m(zt, 0.5, previous=guess).logits for m in (again, model)
        )
    if half:
        torch.testing.assert_close(got, expected, atol=0.1, rtol=0.01)
    else:
        assert torch.equal(got, expected)


def test_a_checkpoint_of_part_one_still_loads(tmp_path):
    """Its config has never heard of the repairs."""
    model = make(embed_dim=8)
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    stored = json.loads(file.read_text("utf-8"))
    for field in ("head", "loss", "input_std", "self_conditioning"):
        stored.pop(field)
    for field in ("likelihood", "evidence", "shift", "clean_rate"):
        stored.pop(field)
    file.write_text(json.dumps(stored), "utf-8")
    again, zt = denoiser.load(tmp_path), points(dim=8)
    assert again.config.head == "vector" and again.config.loss == "mse"
    assert torch.equal(call(again, zt), call(model, zt))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"head": "softmax"}, "head.*softmax.*vector, mixture"),
        ({"loss": "l1"}, "loss.*l1.*mse, ce"),
        ({"loss": "ce"}, "loss='ce' needs.*head='mixture'"),
        ({"likelihood": True}, "likelihood=True needs.*head='mixture'"),
        (
            {"likelihood": True, "head": "mixture", "conditioning": "none"},
            "likelihood=True needs.*conditioning='time'",
        ),
        (
            {"evidence": True, "conditioning": "none"},
            "evidence=True needs.*conditioning='time'",
        ),
        ({"self_conditioning": 0.5}, "set loss='ce'"),
        (
            {"self_conditioning": 0.5, "head": "mixture"},
            "cross-entropy only: set loss='ce'",
        ),
        (
            {"self_conditioning": 1.5, "head": "mixture", "loss": "ce"},
            "self_conditioning is a share.*1.5",
        ),
        ({"clean_rate": -0.1}, "clean_rate is a share.*-0.1"),
        ({"clean_rate": 2}, "clean_rate is a share.*2"),
        ({"clean_rate": math.nan}, "clean_rate is a share.*nan"),
        ({"stagger": -0.5}, "stagger must be 0 or more; got -0.5"),
        ({"stagger": math.inf}, "stagger must be 0 or more"),
        ({"sampler": {"steps": 8}}, "sampler has no steps.*stagger"),
        ({"shift": True, "bos_token_id": None}, "bos_token_id.*None"),
        (
            {"shift": True, "bos_token_id": 50, "vocab_size": 50},
            "bos_token_id.*50",
        ),
        ({"input_std": 0.0}, "input_std must be positive; got 0.0"),
        ({"input_std": math.inf}, "input_std must be positive"),
        ({"input_std": math.nan}, "input_std must be positive"),
        ({"schedule": "warped", "schedule_options": {"levels": [1]}}, "two"),
    ],
)
def test_repairs_that_do_not_fit_are_refused(options, words):
    """Each message says which other field is missing."""
    with pytest.raises(ValueError, match=words):
        denoiser.DBLMConfig(**options)


@torch.no_grad()
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("evidence", [False, True])
def test_kept_positions_are_read_but_not_asked(evidence, shift):
    """The others' answers are those of a pass that asks for all of them."""
    model = repaired(evidence=evidence, shift=shift)
    ids = torch.randint(VOCAB, (2, 9), generator=torch.Generator())
    keep = torch.rand(2, 9, generator=torch.Generator()) < 0.5
    t = torch.full((2, 9), 0.8, dtype=torch.float64).masked_fill(keep, 0.0)
    x0 = model.embed(ids)
    zt, _ = noising.add_noise(
        x0, t, model.schedule, torch.Generator(), keep=keep
    )
    before = zt.clone()
    output = model(zt, t, keep=keep)
    guess, logits = output.x0, output.logits
    assert logits.shape == (int((~keep).sum()), VOCAB)
    # Of a clean point the likelihood says almost surely which token it is.
    expected = model(zt, t).logits
    torch.testing.assert_close(logits, expected[~keep], rtol=0, atol=1e-4)
    assert torch.equal(guess[keep], x0[keep])
    mixed = posterior.token_mean(logits, model.table())
    torch.testing.assert_close(guess[~keep], mixed)
    assert torch.equal(zt, before)


@torch.no_grad()
def test_a_vector_head_keeps_what_is_clean():
    zt, keep = points(), torch.zeros(2, 9, dtype=torch.bool)
    keep[:, 3:5] = True
    model = make()
    guess, plain = model(zt, 0.5, keep=keep).x0, model(zt, 0.5).x0
    assert torch.equal(guess[keep], zt[keep])
    torch.testing.assert_close(guess[~keep], plain[~keep])


def test_keep_must_fit():
    with pytest.raises(ValueError, match=r"keep must have shape \(2, 9\)"):
        make()(points(), 0.5, keep=torch.ones(2, 8, dtype=torch.bool))


def test_what_a_model_lacks_is_named():
    """No first guess without self-conditioning, no odds from vectors."""
    zt = points()
    with pytest.raises(ValueError, match="made without self_conditioning"):
        make()(zt, 0.5, previous=zt)
    with pytest.raises(ValueError, match="vectors.*no temperature"):
        make()(zt, 0.5, temperature=0.5)
    with pytest.raises(ValueError, match="adds no likelihood"):
        make()(zt, 0.5, likelihood_weight=0.5)
