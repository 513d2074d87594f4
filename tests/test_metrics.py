"""Measures of generated text: chapter 5.

Counts are checked by hand, likelihoods against transformers' own loss.
"""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from dblm_lib import metrics, resources, tales, text

tokens = st.lists(st.integers(0, 6), min_size=1, max_size=30)
texts_of_tokens = st.lists(tokens, min_size=1, max_size=5)


# --- distinct-n -------------------------------------------------------------


@pytest.mark.parametrize(
    "sequences, n, share",
    [
        ([["the", "the", "the", "the"]], 1, 1 / 4),
        ([["the", "the", "the", "the"]], 2, 1 / 3),
        ([[1, 2, 3, 4]], 1, 1),
        ([[1, 2, 1, 2, 3]], 2, 3 / 4),
        ([[1, 2], [1, 2]], 2, 1 / 2),
        ([[1, 2], [3, 4]], 2, 1),
        ([[1], [1, 2, 3]], 3, 1),  # the first holds no run of three
        (["aab"], 1, 2 / 3),
    ],
)
def test_distinct_by_hand(sequences, n, share):
    """Runs overlap, and none reaches across the end of a text."""
    assert metrics.distinct_n(sequences, n) == pytest.approx(share)


@given(sequences=texts_of_tokens, n=st.integers(1, 4))
@settings(deadline=None, derandomize=True, max_examples=100)
def test_distinct_properties(sequences, n):
    """Between 0 and 1; a text twice over halves it; names do not matter."""
    if all(len(row) < n for row in sequences):
        with pytest.raises(ValueError, match=f"holds {n} tokens"):
            metrics.distinct_n(sequences, n)
        return
    share = metrics.distinct_n(sequences, n)
    assert 0 < share <= 1
    assert metrics.distinct_n(sequences * 2, n) == pytest.approx(share / 2)
    renamed = [[f"w{token}" for token in row] for row in sequences]
    assert metrics.distinct_n(renamed, n) == share
    assert metrics.distinct_n(sequences[::-1], n) == share


@pytest.mark.parametrize("n", [0, -1])
def test_distinct_refuses_empty_runs(n):
    """A run of no tokens means nothing."""
    with pytest.raises(ValueError, match=f"at least 1; got {n}"):
        metrics.distinct_n([[1, 2]], n)


# --- the commonest token ----------------------------------------------------


@pytest.mark.parametrize(
    "sequences, token, share",
    [
        ([["the", "dog", "the"]], "the", 2 / 3),
        ([[1, 1, 2], [2, 2]], 2, 3 / 5),
        ([[7]], 7, 1),
        ([[3, 4]], 3, 1 / 2),  # a tie: the one met first
        ([[], [5]], 5, 1),
    ],
)
def test_top_token_by_hand(sequences, token, share):
    """The token and its share of all tokens."""
    assert metrics.top_token_share(sequences) == (token, pytest.approx(share))


@given(sequences=texts_of_tokens)
@settings(deadline=None, derandomize=True, max_examples=100)
def test_top_token_properties(sequences):
    """It is as common as it says, and none is commoner."""
    token, share = metrics.top_token_share(sequences)
    flat = [t for row in sequences for t in row]
    assert share == pytest.approx(flat.count(token) / len(flat))
    assert share >= max(flat.count(t) for t in flat) / len(flat) - 1e-12
    assert share >= 1 / len(set(flat)) - 1e-12
    # Few tokens with one common among them: the two measures are tied.
    assert share <= 1 - metrics.distinct_n(sequences, 1) + 1 / len(flat) + 1e-9


@pytest.mark.parametrize("sequences", [[], [[]], [[], []]])
def test_nothing_to_count_is_refused(sequences):
    """Rather than a share of nothing."""
    with pytest.raises(ValueError, match="no tokens"):
        metrics.top_token_share(sequences)


# --- coherence --------------------------------------------------------------


def test_coherent_share_counts_and_names():
    """Whole tales pass; broken ones are counted under what broke."""
    good = tales.corpus(6, seed=3)
    assert metrics.coherent_share(good) == (1.0, Counter())
    spoilt = "The the the"
    share, broken = metrics.coherent_share([*good, spoilt, spoilt])
    assert share == pytest.approx(6 / 8)
    assert broken == Counter({tales.check(spoilt).broken: 2})


def test_coherent_share_of_nothing_is_refused():
    """No texts, no share."""
    with pytest.raises(ValueError, match="no texts"):
        metrics.coherent_share([])


# --- likelihood -------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    """The tokenizer of the tales."""
    try:
        return resources.load_tokenizer("tales")
    except resources.DataError as error:
        pytest.skip(f"no data yet: {error}")


@pytest.fixture(scope="module")
def model(tokenizer):
    """A lively random GPT-2 with the tales' vocabulary."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=96,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    gpt2 = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for weight in gpt2.parameters():
            weight.normal_(0, 0.5)
    return gpt2


def test_nats_agree_with_transformers(model, tokenizer):
    """Each text alone, start and end token added, by the model's own loss."""
    texts = ["Once upon a time.", *text.load("tales", 1, 4).valid]
    end = tokenizer.eos_token_id
    nats = []
    for words in texts:
        ids = torch.tensor([[end, *tokenizer(words)["input_ids"], end]])
        with torch.no_grad():
            loss = model(input_ids=ids, labels=ids).loss.double()
        nats.append(loss.item() * (ids.shape[1] - 1))
    mean, error = metrics.nats_per_tale(model, tokenizer, texts)
    assert mean == pytest.approx(sum(nats) / len(nats), rel=1e-4)
    spread = torch.tensor(nats).std().item()
    assert error == pytest.approx(spread / math.sqrt(len(nats)), rel=1e-3)


def test_nats_do_not_depend_on_the_batches(model, tokenizer):
    """Padding beside a longer text changes nothing."""
    texts = ["Once upon a time.", *text.load("tales", 1, 4).valid]
    whole = metrics.nats_per_tale(model, tokenizer, texts)
    parts = metrics.nats_per_tale(model, tokenizer, texts, batch_size=2)
    assert whole == pytest.approx(parts, rel=1e-5)
    _, error = metrics.nats_per_tale(model, tokenizer, texts[:1])
    assert error == 0


# --- sampling ---------------------------------------------------------------


def test_sampling_is_reproducible_and_leaves_no_trace(model, tokenizer):
    """The same seed the same texts; the global random numbers go on."""
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    options = {"count": 4, "max_length": 12}
    first = metrics.sample_language_model(model, tokenizer, **options)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(99)
    again = metrics.sample_language_model(model, tokenizer, **options)
    other = metrics.sample_language_model(model, tokenizer, seed=1, **options)
    assert first == again and first != other and len(first) == 4
    assert not any("<|endoftext|>" in words for words in first)


def test_samples_follow_the_model(model, tokenizer):
    """The first token is drawn from the model's own distribution."""
    start = torch.tensor([[tokenizer.eos_token_id]])
    with torch.no_grad():
        chances = model(input_ids=start).logits[0, -1].softmax(dim=0)
    n = 2000
    texts = metrics.sample_language_model(model, tokenizer, n, max_length=1)
    token = int(chances.argmax())
    share = texts.count(tokenizer.decode([token])) / n
    chance = chances[token].item()
    assert abs(share - chance) < 5 * math.sqrt(chance * (1 - chance) / n)
    assert 0.02 < chance < 0.98, "a model that leaves a choice"
