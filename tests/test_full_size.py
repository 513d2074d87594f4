"""Full-size GPT-2 goes the way of chapters 3 to 5.

Its weights cannot be fetched where these tests run, so they are drawn at
random and saved in the hub's layout: 124 million of them, and nothing in
the book's code can tell the difference but by reading what it writes.
"""

import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from dblm_lib import decoding, denoiser, noising, resources, text, training

SENTENCES = list(training.PROPOSAL_SENTENCES)


def put_tokenizer(folder):
    """Copy GPT-2's own tokenizer, or train a small one."""
    own = os.environ.get("DBLM_GPT2_TOKENIZER")
    if own:
        shutil.copy(Path(own) / "tokenizer.json", folder)
        return
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        SENTENCES * 3,
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    bpe.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """Save a random GPT-2 of full size as the hub would hold it."""
    folder = tmp_path_factory.mktemp("hub") / "gpt2"
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config())
    assert sum(p.numel() for p in model.parameters()) == 124_439_808
    model.save_pretrained(folder)
    put_tokenizer(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
def test_full_size_gpt2_from_backbone_to_text(gpt2):
    """Load, equal GPT-2, noise, two training steps, three of decoding."""
    backbone = resources.load_backbone(gpt2)
    tokenizer = backbone.tokenizer
    if os.environ.get("DBLM_GPT2_TOKENIZER"):
        assert len(tokenizer) == 50_257
    ids, mask = text.encode_batch(SENTENCES, tokenizer, 16)

    # Chapter 3: it is GPT-2, with vectors for tokens.
    plain = denoiser.DBLM.from_backbone(
        backbone, causal=True, conditioning="none"
    )
    with torch.no_grad():
        expected = backbone.model.transformer(
            input_ids=ids, attention_mask=mask.long()
        ).last_hidden_state
        got = plain(plain.embed(ids), attention_mask=mask).x0
    assert torch.equal(got, expected)
    del plain

    # Chapter 2: noise, and rounding in a vocabulary of 50,257.
    model = denoiser.DBLM.from_backbone(backbone)
    del backbone
    generator = torch.Generator().manual_seed(0)
    x0 = model.embed(ids)
    zt, _ = noising.add_noise(x0, 0.5, model.schedule, generator)
    assert torch.equal(noising.nearest(x0, model.table()), ids)
    with torch.no_grad():
        assert model(zt, 0.5, mask).x0.shape == x0.shape

    # Chapter 4: two steps of the proposal's recipe.
    before = model.trunk.h[0].attn.c_attn.weight.detach().clone()
    table = model.embeddings.weight.detach().clone()
    config = training.proposal_config()
    config.steps = 2
    history = training.train(model, ids, mask, config, progress=False)
    assert len(history.loss) == 2
    assert all(0 < loss < 100 for loss in history.loss)
    change = (model.trunk.h[0].attn.c_attn.weight - before).abs().max()
    assert 0 < change.item() < 1e-4  # Adam: at most 1e-5 a step
    assert torch.equal(model.embeddings.weight, table)

    # Chapter 5: a prompt, three steps, a text.
    prompt = SENTENCES[1]
    made = decoding.generate(
        model, tokenizer, prompt, num_steps=3, max_length=16
    )
    assert made.ids.shape == (1, 16)
    length = len(tokenizer(prompt)["input_ids"])
    assert torch.equal(made.ids[0, :length], ids[1, :length])
    assert made.texts[0].startswith(prompt)
