"""Real stories with GPT-2's own tokenizer, from the text to the text.

The stories, the tokenizer and a judge lie beside the checkout of some
machines; the environment variables DBLM_TINYSTORIES, DBLM_GPT2_TOKENIZER and
DBLM_JUDGE name their folders.
"""

import math
import os
import random

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from dblm_lib import decoding, denoiser, resources, text, training


def needs(*names):
    """Skip, with the reason, where a folder is not named."""
    missing = [name for name in names if not os.environ.get(name)]
    return pytest.mark.skipif(
        bool(missing), reason=f"{' and '.join(missing)} not set"
    )


real_text = needs("DBLM_TINYSTORIES", "DBLM_GPT2_TOKENIZER")
judged = needs("DBLM_TINYSTORIES", "DBLM_GPT2_TOKENIZER", "DBLM_JUDGE")
VOCAB, SEQ_LEN = 50_257, 32


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A small GPT-2 that knows nothing, with the real tokenizer, on disk."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = GPT2Config(n_embd=64, n_layer=2, n_head=2, n_positions=64)
    assert config.vocab_size == VOCAB
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer = resources.load_tokenizer(os.environ["DBLM_GPT2_TOKENIZER"])
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    return resources.load_backbone(folder)


@pytest.fixture(scope="module")
def stories():
    return text.load("tinystories", size=400, valid_size=40)


@pytest.fixture(scope="module")
def run(backbone, stories):
    """A denoiser after 50 steps, its history and its texts."""
    model = denoiser.DBLM.from_backbone(
        backbone, embed_dim=32, normalise_embeddings=True
    )
    ids, mask = text.encode_batch(stories.train, backbone.tokenizer, SEQ_LEN)
    config = training.TrainConfig(
        steps=50, batch_size=16, learning_rate=3e-3, warmup=5, log_every=1
    )
    history = training.train(model, ids, mask, config, progress=False)
    generation = decoding.generate(
        model,
        backbone.tokenizer,
        "Once upon a time",
        num_return_sequences=4,
        num_steps=8,
        max_length=SEQ_LEN,
    )
    return model, history, generation


@real_text
def test_the_tokenizer_is_gpt2s(backbone):
    assert len(backbone.tokenizer) == VOCAB
    assert backbone.tokenizer.eos_token_id == VOCAB - 1
    # As OpenAI's own tokenizer writes it.
    ids = backbone.tokenizer("Hello world")["input_ids"]
    assert ids == [15496, 995]


@real_text
def test_stories_go_round(backbone, stories):
    tokenizer = backbone.tokenizer
    short = [" ".join(words.split()[:40]) for words in stories.train[:50]]
    ids, mask = text.encode_batch(short, tokenizer, 128)
    assert text.decode_batch(ids, tokenizer) == short
    assert mask.any(dim=1).all() and not mask.all()


@real_text
def test_fifty_steps_bring_the_loss_down(run):
    _, history, _ = run
    assert len(history.loss) == 50
    first, last = history.loss[:5], history.loss[-5:]
    assert all(map(math.isfinite, history.loss))
    assert sum(last) < 0.95 * sum(first)


@real_text
def test_what_comes_out_is_text(run, backbone):
    model, _, generation = run
    ids = generation.ids
    assert ids.shape == (4, SEQ_LEN)
    assert 0 <= ids.min() and ids.max() < VOCAB
    prompt = backbone.tokenizer("Once upon a time")["input_ids"]
    for row, words in zip(ids.tolist(), generation.texts):
        assert row[: len(prompt)] == prompt
        assert words.startswith("Once upon a time")
    assert len({tuple(row) for row in ids.tolist()}) == 4
    assert model.table().shape == (VOCAB, 32)


@real_text
def test_denoising_helps_on_stories_never_seen(run, backbone, stories):
    """At half time the guess beats the mean; near pure noise it ties."""
    model = run[0]
    ids, mask = text.encode_batch(stories.valid, backbone.tokenizer, SEQ_LEN)
    result = training.evaluate_denoising(
        model, ids, mask, [0.5, 0.9], torch.Generator().manual_seed(0)
    )
    # 1 is the score of always answering the mean embedding.
    halfway, late = result["normalised"]
    assert halfway < 0.95 and late < 1.05


# --- the judge --------------------------------------------------------------


@pytest.fixture(scope="module")
def perplexity():
    """Perplexity under a language model that we did not write."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = os.environ["DBLM_JUDGE"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model.eval()

    @torch.no_grad()
    def measure(texts):
        nats = count = 0
        for words in texts:
            ids = tokenizer(words, return_tensors="pt")["input_ids"][:, :128]
            nats += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
        return math.exp(nats / count)

    return measure


@judged
def test_the_judge_tells_stories_from_noise(perplexity, run, stories):
    real = [" ".join(words.split()[:60]) for words in stories.valid[:12]]
    rng = random.Random(0)
    shuffled = [" ".join(rng.sample(w.split(), len(w.split()))) for w in real]
    scores = [perplexity(t) for t in (real, shuffled, run[2].texts)]
    story, mixed, decoded = scores
    assert 1 < story < 20, scores  # a fluent story: about 4
    assert mixed > 10 * story, scores
    assert decoded > 10 * story, scores
