"""Measures of generated text: repetition, coherence, likelihood.

Chapter 5. `distinct_n` and `top_token_share` work on lists of tokens (ids
or words); the others judge Tiny Tales, where the truth is known. From
chapter 7 on `report` takes all measures at once, each with an interval that
holds the true value in 95 % of all repetitions.
"""

import math
from collections import Counter
from itertools import pairwise

from . import tales, text
from .variety import (
    coherent_tales,
    frontier,
    grammar_nats,
    slot_distance,
    slot_distances,
    total_variation,
)

__all__ = [
    "agreements",
    "behind_opening",
    "coherent_share",
    "coherent_tales",
    "copied_share",
    "distinct_n",
    "distinct_share",
    "frontier",
    "grammar_nats",
    "interval",
    "jackknife",
    "judge",
    "mean_interval",
    "nats_per_tale",
    "repeat_share",
    "report",
    "sample_language_model",
    "slot_distance",
    "slot_distances",
    "token_entropy",
    "top_token_share",
    "total_variation",
]

# 95 % of a normal distribution lie within so many standard deviations.
_Z95 = 1.959964


def interval(successes, total):
    """95 % interval of a share, from counts (Wilson, 1927).

    Parameters
    ----------
    successes, total : int

    Returns
    -------
    low, high : float
        Within [0, 1], also next to 0 and 1, where the usual formula fails.

    Raises
    ------
    ValueError
        If the counts are no counts of a share.
    """
    if not 0 <= successes <= total or total < 1:
        raise ValueError(
            "a share needs 0 <= successes <= total and a total of at least "
            f"1; got {successes} of {total}"
        )
    share, square = successes / total, _Z95**2
    middle = (share + square / (2 * total)) / (1 + square / total)
    spread = share * (1 - share) / total + square / (4 * total**2)
    half = _Z95 * math.sqrt(spread) / (1 + square / total)
    # Rounding must not push the ends past the share itself.
    return min(share, max(0.0, middle - half)), max(
        share, min(1.0, middle + half)
    )


def mean_interval(mean, error):
    """95 % interval of a mean with a known standard error."""
    return mean - _Z95 * error, mean + _Z95 * error


def jackknife(measure, rows, groups=25):
    """Standard error of a measure that is no plain mean (Tukey, 1958).

    Each group of rows is left out once; how much the measure moves says how
    much it owes to chance.

    Parameters
    ----------
    measure : callable ``rows -> float``
    rows : list
        Independent of each other, such as texts.
    groups : int
        Of equal size but for one row.

    Returns
    -------
    float
        0 for a single row: nothing can be said.
    """
    groups = min(groups, len(rows))
    if groups < 2:
        return 0.0
    left = [
        measure([row for i, row in enumerate(rows) if i % groups != g])
        for g in range(groups)
    ]
    mean = sum(left) / groups
    squares = sum((value - mean) ** 2 for value in left)
    return math.sqrt((groups - 1) / groups * squares)


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


def token_entropy(sequences):
    """Entropy of the distribution of single tokens, in nats.

    Low if few tokens do all the work. Order plays no part.

    Parameters
    ----------
    sequences : list of sequences of tokens

    Returns
    -------
    float
        From 0 to the logarithm of the number of different tokens.

    Raises
    ------
    ValueError
        If there are no tokens.
    """
    counts = Counter(token for tokens in sequences for token in tokens)
    total = sum(counts.values())
    if not total:
        raise ValueError("there are no tokens to count")
    return sum(n * math.log(total / n) for n in counts.values()) / total


def repeat_share(sequences):
    """Share of tokens that equal their left neighbour, as in "the the".

    Parameters
    ----------
    sequences : list of sequences of tokens

    Returns
    -------
    float
        Of the tokens that have a left neighbour; 0 if none has.
    """
    pairs = [pair for tokens in sequences for pair in pairwise(tokens)]
    return sum(a == b for a, b in pairs) / len(pairs) if pairs else 0.0


def distinct_share(texts):
    """Different texts among all texts, as a share."""
    if not texts:
        raise ValueError("there are no texts to compare")
    return len(set(texts)) / len(texts)


def copied_share(texts, training_texts):
    """Share of texts that stand in the training text, letter for letter.

    Parameters
    ----------
    texts : list of str
    training_texts : collection of str
        A set is the quickest.

    Returns
    -------
    float
    """
    if not texts:
        raise ValueError("there are no texts to compare")
    known = training_texts
    known = known if isinstance(known, (set, frozenset)) else set(known)
    return sum(words in known for words in texts) / len(texts)


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


def agreements(texts):
    """How many texts keep each agreement of the grammar, and which break it.

    Parameters
    ----------
    texts : list of str

    Returns
    -------
    dict
        For each name in `tales.AGREEMENTS` and for ``"syntax"`` a dict with
        the numbers of texts that have it ``kept``, ``broken``, broken
        ``first``, or ``untested``: a text that follows no plot is compared
        as far as it can be read.
    """
    counts = ("kept", "broken", "first", "untested")
    names = (*tales.AGREEMENTS, "syntax")
    found = {name: dict.fromkeys(counts, 0) for name in names}
    states = {True: "kept", False: "broken", None: "untested"}
    for words in texts:
        verdict = tales.check(words)
        follows = verdict.broken != "syntax"
        for name, kept in {**verdict.agreements, "syntax": follows}.items():
            found[name][states[kept]] += 1
        if verdict.broken:
            found[verdict.broken]["first"] += 1
    return found


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
    nats, _ = _text_nats(model, tokenizer, texts, None, batch_size)
    error = nats.std().item() / math.sqrt(len(nats)) if len(nats) > 1 else 0
    return nats.mean().item(), error


def judge(model, tokenizer, texts, given=None, batch_size=100):
    """Nats a token that texts cost an autoregressive judge.

    To be read beside the same figure for real texts: lower is no better,
    since the one commonest sentence costs least.

    Parameters
    ----------
    model : transformers.GPT2LMHeadModel
    tokenizer : transformers.PreTrainedTokenizerFast
        The judge's own: texts may come from another one.
    texts : list of str
        May be empty strings: their end-of-text token counts too.
    given : list of str, optional
        How each text begins. The judge reads that, but it does not count.

    Returns
    -------
    mean, standard_error : float
        Over all tokens; the error takes the texts, not their tokens, to be
        independent.

    Raises
    ------
    ValueError
        If there are no texts, or not as many beginnings.
    """
    nats, counts = _text_nats(model, tokenizer, texts, given, batch_size)
    nats, counts = nats.double(), counts.double()
    mean = (nats.sum() / counts.sum()).item()
    if len(nats) < 2:
        return mean, 0.0
    residuals = nats - mean * counts
    error = residuals.std() / math.sqrt(len(nats)) / counts.mean()
    return mean, error.item()


def _text_nats(model, tokenizer, texts, given, batch_size):
    """Nats of each text and how many tokens they are for, its end included.

    What the model has no positions for is left out of both.
    """
    import torch

    from . import autoregressive

    if given is not None and len(given) != len(texts):
        raise ValueError(
            f"{len(texts)} texts need as many beginnings; got {len(given)}"
        )
    device = next(model.parameters()).device
    rows = tokenizer(list(texts))["input_ids"] if texts else [[]]
    longest = min(1 + max(map(len, rows)), model.config.n_positions)
    ids, mask = text.encode_batch(texts, tokenizer, longest)
    if given is not None:
        starts = tokenizer(list(given))["input_ids"]
        for row, start, counted in zip(rows, starts, mask):
            counted[: _common(row, start)] = False
    nats = []
    with torch.no_grad():
        for part, real in zip(ids.split(batch_size), mask.split(batch_size)):
            losses = autoregressive.next_token_nats(
                model, part.to(device)
            ).cpu()
            nats.append((losses * real).sum(dim=1))
    return torch.cat(nats), mask.sum(dim=1)


def _common(row, start):
    """How many tokens two texts have in common at their beginning."""
    same = 0
    while same < min(len(row), len(start)) and row[same] == start[same]:
        same += 1
    return same


def behind_opening(words, prompt):
    """Put what follows a prompt behind an opening of the grammar.

    No tale begins with "so as i was saying,": with such a prompt only what
    follows can be judged. It stays as it is if it brings its own opening.

    Parameters
    ----------
    words, prompt : str
        A continued prompt, and the prompt.

    Returns
    -------
    tale, opening : str
    """
    rest = words.removeprefix(prompt).strip()
    for opening in tales.OPENINGS:
        if rest.startswith(opening):
            return rest, opening
    opening = next(iter(tales.OPENINGS))
    return f"{opening} {rest}", opening


def report(texts, backbone, training_texts=(), real=None, given=None):
    """All measures of some tales at once: a row of the ladder's table.

    Parameters
    ----------
    texts : list of str
    backbone : resources.Backbone
        The autoregressive judge and its tokenizer.
    training_texts : collection of str
        Where to look for copies.
    real : tuple ``(mean, standard_error)``, optional
        What `judge` says of real tales.
    given : list of str, optional
        Prompts, if the texts continue any: the judge leaves them out.

    Returns
    -------
    dict
        ``texts``, how many; shares: ``coherent``, ``distinct`` (texts),
        ``copied`` (texts), ``distinct_2`` (pairs of tokens) and ``repeats``
        (tokens); nats: ``judge`` a token, ``above_real``, what that is above
        real tales, and ``entropy`` of single tokens; ``tokens`` a text; and
        ``broken``, the first broken agreement -> how many texts. Of the
        coherent tales, if there are any: ``slot_distance``, ``above_true``,
        what that is above its value for as many true tales (see
        `slot_distances`), and ``grammar_nats``. For each figure
        ``NAME_interval`` is its 95 % interval as a list.
    """
    count, known = len(texts), frozenset(training_texts)
    share, broken = coherent_share(texts)
    rows = backbone.tokenizer(list(texts))["input_ids"]
    nats, error = judge(*backbone, texts, given)
    found = {"texts": count}

    def put(name, value, ends):
        found[name], found[f"{name}_interval"] = value, list(ends)

    for name, value in {
        "coherent": share,
        "distinct": distinct_share(texts),
        "copied": copied_share(texts, known),
    }.items():
        put(name, value, interval(round(value * count), count))
    put("judge", nats, mean_interval(nats, error))
    if real is not None:
        gap = nats - real[0]
        put("above_real", gap, mean_interval(gap, math.hypot(error, real[1])))
    tellable = coherent_tales(texts)
    if tellable:
        distance, expected = slot_distance(tellable)
        error = jackknife(lambda rows: slot_distance(rows)[0], tellable)
        put("slot_distance", distance, mean_interval(distance, error))
        above = distance - expected
        put("above_true", above, mean_interval(above, error))
        nats, error = grammar_nats(tellable)
        put("grammar_nats", nats, mean_interval(nats, error))
    for name, measure in _TOKEN_MEASURES.items():
        value = measure(rows)
        put(name, value, mean_interval(value, jackknife(measure, rows)))
    return found | {"broken": dict(broken.most_common())}


def _mean_length(rows):
    return sum(map(len, rows)) / len(rows)


_TOKEN_MEASURES = {
    "entropy": lambda rows: token_entropy(rows) if any(rows) else 0.0,
    "distinct_2": lambda rows: distinct_n(rows, 2) if _pairs(rows) else 0.0,
    "repeats": repeat_share,
    "tokens": _mean_length,
}


def _pairs(rows):
    return any(len(row) > 1 for row in rows)


def sample_language_model(
    model,
    tokenizer,
    count=1,
    seed=0,
    max_length=72,
    prompts=None,
    temperature=1.0,
):
    """Sample texts from an autoregressive model.

    The whole distribution is sampled, nothing cut off. The global random
    numbers are left as they were.

    Parameters
    ----------
    model : transformers.GPT2LMHeadModel
    tokenizer : transformers.PreTrainedTokenizerFast
    count : int
        Texts for each prompt.
    seed : int
    max_length : int
        Tokens a text at most, its prompt included; one is always added.
    prompts : list of str, optional
        How the texts begin; each is continued.
    temperature : float
        By which the logits are divided; above 0.

    Returns
    -------
    list of str
        Those of the first prompt come first.

    Raises
    ------
    ValueError
        If the temperature is no number above 0.
    """
    import torch

    from . import decoding

    decoding.check_temperature(temperature, mixture=True)
    device = next(model.parameters()).device
    end = tokenizer.eos_token_id
    prompts = [p for p in prompts or [""] for _ in range(count)]
    starts = tokenizer(prompts)["input_ids"]
    # Prompts of one length go side by side, and need no padding.
    lengths = sorted(set(map(len, starts)))
    written = {}
    # `generate` takes no generator: seed the global one, then put it back.
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(seed)
        for length in lengths:
            here = [i for i, row in enumerate(starts) if len(row) == length]
            start = torch.tensor(
                [[end, *starts[i]] for i in here], device=device
            )
            ids = model.generate(
                start,
                attention_mask=torch.ones_like(start),
                max_new_tokens=max(1, max_length - length),
                do_sample=True,
                temperature=float(temperature),
                top_k=0,
                pad_token_id=end,
            )
            texts = text.decode_batch(ids[:, 1:].cpu(), tokenizer)
            written |= dict(zip(here, texts))
    return [written[i] for i in range(len(prompts))]
