"""Measures of generated text: repetition, coherence, likelihood.

Chapter 5. `distinct_n` and `top_token_share` work on lists of tokens (ids
or words); the others judge Tiny Tales, where the truth is known.
"""

import math
from collections import Counter

from . import tales, text

__all__ = [
    "coherent_share",
    "distinct_n",
    "nats_per_tale",
    "sample_language_model",
    "top_token_share",
]


def distinct_n(sequences, n):
    """Share of different n-grams among all n-grams of some sequences.

    Parameters
    ----------
    sequences : list of sequences of tokens
    n : int
        Length of an n-gram, at least 1.

    Returns
    -------
    float
        1 if no n-gram occurs twice, near 0 for a text that repeats itself
        (Li et al., 2016). Counted over all sequences together, and therefore
        comparable only between equally many tokens.

    Raises
    ------
    ValueError
        If no sequence is long enough to hold an n-gram.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1; got {n}")
    grams = [
        tuple(tokens[i : i + n])
        for tokens in sequences
        for i in range(len(tokens) - n + 1)
    ]
    if not grams:
        raise ValueError(f"no sequence holds {n} tokens")
    return len(set(grams)) / len(grams)


def top_token_share(sequences):
    """The commonest token and its share of all tokens.

    Parameters
    ----------
    sequences : list of sequences of tokens

    Returns
    -------
    token, share : the token itself and a float in (0, 1]
        Of several that are equally common, the one met first.

    Raises
    ------
    ValueError
        If there are no tokens.
    """
    counts = Counter(token for tokens in sequences for token in tokens)
    if not counts:
        raise ValueError("there are no tokens to count")
    token, count = counts.most_common(1)[0]
    return token, count / sum(counts.values())


def coherent_share(texts):
    """Share of texts that are coherent tales, and what broke in the others.

    Parameters
    ----------
    texts : list of str

    Returns
    -------
    share : float
    broken : collections.Counter
        First broken agreement -> how many texts.

    Raises
    ------
    ValueError
        If there are no texts.
    """
    if not texts:
        raise ValueError("there are no texts to check")
    broken = Counter()
    for words in texts:
        verdict = tales.check(words)
        if not verdict.ok:
            broken[verdict.broken] += 1
    return 1 - sum(broken.values()) / len(texts), broken


def nats_per_tale(model, tokenizer, texts, batch_size=100):
    """Negative log-likelihood of texts under a language model.

    Parameters
    ----------
    model : transformers.GPT2LMHeadModel
    tokenizer : transformers.PreTrainedTokenizerFast
    texts : list of str

    Returns
    -------
    mean, standard_error : float
        Nats a text, its end-of-text token included.
    """
    import torch

    from . import training

    device = next(model.parameters()).device
    longest = max(len(row) for row in tokenizer(list(texts))["input_ids"])
    ids, mask = text.encode_batch(texts, tokenizer, longest + 1)
    nats = []
    with torch.no_grad():
        for part, real in zip(ids.split(batch_size), mask.split(batch_size)):
            losses = training.next_token_nats(model, part.to(device)).cpu()
            nats.append((losses * real).sum(dim=1))
    nats = torch.cat(nats)
    error = nats.std().item() / math.sqrt(len(nats)) if len(nats) > 1 else 0
    return nats.mean().item(), error


def sample_language_model(model, tokenizer, count, seed=0, max_length=72):
    """Sample texts from an autoregressive model, at temperature 1.

    The whole distribution is sampled, nothing cut off. The global random
    numbers are left as they were.

    Parameters
    ----------
    model : transformers.GPT2LMHeadModel
    tokenizer : transformers.PreTrainedTokenizerFast
    count : int
    seed : int
    max_length : int
        Tokens a text at most.

    Returns
    -------
    list of str
    """
    import torch

    device = next(model.parameters()).device
    end = tokenizer.eos_token_id
    start = torch.full((count, 1), end, device=device)
    # `generate` takes no generator: seed the global one, then put it back.
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(seed)
        ids = model.generate(
            start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=max_length,
            do_sample=True,
            top_k=0,
            pad_token_id=end,
        )
    return text.decode_batch(ids[:, 1:].cpu(), tokenizer)
