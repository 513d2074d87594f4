r"""The popular measures of generated text, each computed as its authors do.

Chapter 11. None of them knows a grammar: they count tokens, or compare a
set of texts with a set of real ones. Sequences are lists of tokens, ids or
words; features are tensors of shape ``(texts, dim)``. Likelihood under a
judge is `metrics.judge`, and the share of different n-grams
`metrics.distinct_n`. Beside them stands `nearest`, a measure of the book's
own: it asks how far tales are from those of the training text.
"""

import math
from collections import Counter
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F

from . import checks, tales

__all__ = [
    "TwoSample",
    "bag_of_ngrams",
    "divergence_curve",
    "k_means",
    "kl_divergence",
    "mauve",
    "mauve_of_shares",
    "nearest",
    "ngram_divergence",
    "quantise",
    "sample_entropy",
    "self_bleu",
    "states",
    "two_sample_test",
]


# --- counting tokens --------------------------------------------------------


def sample_entropy(sequences):
    """Entropy of the tokens of each text by itself, averaged, in nats.

    What papers on diffusion language models print beside generative
    perplexity (Zheng et al., 2025; Sahoo et al., 2024): low for a text that
    repeats its words. Other texts play no part, so a writer of one and the
    same text may have any value.

    Parameters
    ----------
    sequences : list of sequences of tokens

    Returns
    -------
    mean, standard_error : float

    Raises
    ------
    ValueError
        If there are no sequences; an empty one counts 0.
    """
    _check_some(sequences)
    found = []
    for tokens in sequences:
        total = max(1, len(tokens))
        counts = Counter(tokens).values()
        found.append(sum(n * math.log(total / n) for n in counts) / total)
    values = torch.tensor(found, dtype=torch.float64)
    if len(values) < 2:
        return values.mean().item(), 0.0
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


def self_bleu(sequences, n=4):
    r"""How much texts of one writer resemble each other (Zhu et al., 2018).

    The mean over the texts of their BLEU against all others as references
    (Papineni et al., 2002): the geometric mean, over lengths 1 to n, of the
    share of n-grams that some other text holds as often, times a penalty for
    a text that is shorter than the reference nearest in length. Where no
    n-gram is found, .1 is counted (method 1 of Chen & Cherry, 2014).

    Parameters
    ----------
    sequences : list of sequences of tokens
        At least two.
    n : int

    Returns
    -------
    float
        1 if every text stands there twice. It rises with the number of
        texts: compare equal numbers only.

    Raises
    ------
    ValueError
        If there is no other text, or n is no whole number above 0.
    """
    _check_some(sequences, 2)
    _check_whole("n", n)
    log = torch.zeros(len(sequences), dtype=torch.float64)
    for order in range(1, n + 1):
        counts = [Counter(_ngrams(tokens, order)) for tokens in sequences]
        best = _two_largest(counts)
        for i, mine in enumerate(counts):
            hits = 0
            for gram, count in mine.items():
                most, owner, second = best[gram]
                hits += min(count, second if owner == i else most)
            total = max(1, sum(mine.values()))
            log[i] += math.log((hits or 0.1) / total) / n
    lengths = [len(tokens) for tokens in sequences]
    for i, length in enumerate(lengths):
        others = lengths[:i] + lengths[i + 1 :]
        nearest_ = min(others, key=lambda other: (abs(other - length), other))
        if length < nearest_:
            log[i] += 1 - nearest_ / max(1, length)
    return log.exp().mean().item()


def _two_largest(counts):
    """Gram -> its largest count, whose it is, and the largest of the others."""
    best = {}
    for i, mine in enumerate(counts):
        for gram, count in mine.items():
            most, owner, second = best.get(gram, (0, None, 0))
            if count > most:
                best[gram] = (count, i, most)
            else:
                best[gram] = (most, owner, max(second, count))
    return best


def ngram_divergence(found, real, n=2):
    r"""Jensen-Shannon divergence of the n-grams of two sets of texts, in nats.

    .. math:: \frac12 KL(p \| m) + \frac12 KL(q \| m), \quad m = (p + q) / 2

    Parameters
    ----------
    found, real : lists of sequences of tokens
    n : int

    Returns
    -------
    float
        From 0 to log 2. It is above 0 for two sets from one source, the
        more so the fewer they are: its value for real against real texts is
        the zero to read it by.

    Raises
    ------
    ValueError
        If a set holds no n-gram, or n is no whole number above 0.
    """
    counts = [_shares(sequences, n) for sequences in (found, real)]
    total = 0.0
    for gram in counts[0].keys() | counts[1].keys():
        p, q = (shares.get(gram, 0.0) for shares in counts)
        middle = (p + q) / 2
        total += sum(a / 2 * math.log(a / middle) for a in (p, q) if a)
    return total


def _shares(sequences, n):
    _check_whole("n", n)
    counts = Counter(g for tokens in sequences for g in _ngrams(tokens, n))
    total = sum(counts.values())
    if not total:
        raise ValueError(f"no sequence holds {n} tokens")
    return {gram: count / total for gram, count in counts.items()}


def _ngrams(tokens, n):
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


# --- MAUVE ------------------------------------------------------------------


@torch.no_grad()
def states(model, tokenizer, texts, batch_size=100):
    """The last hidden state of a language model at the end of each text.

    MAUVE's features, where the model is GPT-2 large.

    Parameters
    ----------
    model : transformers.GPT2LMHeadModel
    tokenizer : transformers.PreTrainedTokenizerFast
    texts : list of str

    Returns
    -------
    tensor, shape ``(texts, hidden)``
        Behind the text's last token, after the final layer norm.

    Raises
    ------
    ValueError
        If there are no texts.
    """
    if isinstance(texts, str) or not texts:
        raise ValueError(f"give a list of texts; got {texts!r}")
    end, device = tokenizer.eos_token_id, next(model.parameters()).device
    rows = [
        [end, *row][: model.config.n_positions]
        for row in tokenizer(list(texts))["input_ids"]
    ]
    found = []
    for i in range(0, len(rows), batch_size):
        part = rows[i : i + batch_size]
        last = torch.tensor([len(row) - 1 for row in part], device=device)
        ids = torch.full((len(part), int(last.max()) + 1), end)
        for row, tokens in zip(ids, part):
            row[: len(tokens)] = torch.tensor(tokens)
        hidden = model.transformer(ids.to(device)).last_hidden_state
        found.append(hidden[torch.arange(len(part)), last].float().cpu())
    return torch.cat(found)


def k_means(points, clusters, seed=0, restarts=5, rounds=500):
    """Put points into clusters (Lloyd, 1982); the best of some restarts.

    Parameters
    ----------
    points : tensor, shape ``(n, dim)``
    clusters : int
        At most n. They start at as many of the points.
    seed, restarts, rounds : int

    Returns
    -------
    tensor of ids, shape ``(n,)``

    Raises
    ------
    ValueError
        If there are more clusters than points, or none.
    """
    if not (checks.is_whole(clusters) and clusters <= len(points)):
        raise ValueError(
            f"clusters must be from 1 to the {len(points)} points; got "
            f"{clusters!r}"
        )
    generator = torch.Generator().manual_seed(seed)
    least, best = math.inf, None
    for _ in range(restarts):
        start = torch.randperm(len(points), generator=generator)[:clusters]
        centres, labels = points[start], None
        for _ in range(rounds):
            before = labels
            squares = torch.cdist(points, centres).square()
            labels = squares.argmin(1)
            if before is not None and (labels == before).all():
                break
            members = F.one_hot(labels, clusters).to(points.dtype)
            size = members.sum(0)[:, None]
            # An empty cluster stays where it is.
            centres = torch.where(
                size > 0, members.T @ points / size.clamp(min=1), centres
            )
        cost = squares.min(1).values.sum().item()
        if cost < least:
            least, best = cost, labels
    return best


def quantise(found, real, clusters=None, seed=0, kept=0.9):
    """The shares of two sets of features that fall into common clusters.

    Both together are scaled to length 1, turned onto the principal
    components that hold 90 % of the variance, and put into clusters.

    Parameters
    ----------
    found, real : tensors, shape ``(n, dim)`` and ``(m, dim)``
    clusters : int, optional
        A tenth of the smaller set if left out, at least 2.
    seed : int
    kept : float
        Share of the variance.

    Returns
    -------
    p, q : float64 tensors, shape ``(clusters,)``
    """
    count = len(found)
    if clusters is None:
        clusters = max(2, round(min(count, len(real)) / 10))
    points = F.normalize(torch.cat([found, real]).double(), dim=1)
    points = points - points.mean(0)
    _, sizes, axes = torch.linalg.svd(points, full_matrices=False)
    share = (sizes**2).cumsum(0) / (sizes**2).sum()
    most = int((share < kept).sum()) + 1
    labels = k_means(points @ axes[:most].T, clusters, seed)
    halves = labels[:count], labels[count:]
    return tuple(
        torch.bincount(half, minlength=clusters).double() / len(half)
        for half in halves
    )


def divergence_curve(p, q, scale=5.0, points=25):
    """Two kinds of error for mixtures between two distributions.

    Parameters
    ----------
    p, q : float64 tensors, shape ``(clusters,)``
    scale : float
        The constant c of exp(-c KL).
    points : int
        Mixtures between the two.

    Returns
    -------
    float64 tensor, shape ``(points + 2, 2)``
        exp(-c KL(q || r)) and exp(-c KL(p || r)) of each mixture r, with
        the ends (1, 0) and (0, 1) added.
    """
    curve = [(1.0, 0.0)]
    for weight in np.linspace(1e-6, 1 - 1e-6, points):
        r = weight * p + (1 - weight) * q
        errors = [kl_divergence(a, r) for a in (q, p)]
        curve.append([math.exp(-scale * error) for error in errors])
    return torch.tensor([*curve, (0.0, 1.0)], dtype=torch.float64)


def kl_divergence(p, r):
    """KL(p || r) of two distributions, in nats; r is nowhere 0 where p is not.

    Parameters
    ----------
    p, r : float64 tensors, shape ``(clusters,)``

    Returns
    -------
    float
    """
    here = p > 0
    return (p[here] * (p[here] / r[here]).log()).sum().item()


def mauve_of_shares(p, q, scale=5.0, points=25):
    """The area under the divergence curve of two distributions.

    Parameters
    ----------
    p, q, scale, points
        As `divergence_curve` takes them.

    Returns
    -------
    float
        From 0 to 1, where they agree.
    """
    curve = divergence_curve(p, q, scale, points).tolist()
    area = 0.0
    for a, b in ((0, 1), (1, 0)):
        # Where the curve is upright, its upper end comes first.
        line = sorted((point[a], -point[b]) for point in curve)
        x, y = torch.tensor(line, dtype=torch.float64).T
        area += torch.trapezoid(-y, x).item() / 2
    return area


def mauve(found, real, clusters=None, seed=0, scale=5.0):
    """MAUVE of two sets of features (Pillutla et al., 2021).

    Parameters
    ----------
    found, real : tensors, shape ``(n, dim)`` and ``(m, dim)``
        Such as `states` gives them.
    clusters, seed
        As `quantise` takes them.
    scale : float

    Returns
    -------
    float
        From 0 to 1. Its value depends on the numbers of texts and of
        clusters and on the features: compare it only where all three are
        the same.
    """
    return mauve_of_shares(*quantise(found, real, clusters, seed), scale)


# --- telling two sets apart -------------------------------------------------


@dataclass(frozen=True)
class TwoSample:
    """How well a classifier tells two sets of texts apart.

    Attributes
    ----------
    right, total : int
        Texts that it did not learn from and sorted rightly, and all of them.
    area : float
        Area under the ROC curve: how often a found text is ranked above a
        real one; .5 if they cannot be told apart.
    """

    right: int
    total: int
    area: float

    @property
    def accuracy(self):
        """Share of texts sorted rightly."""
        return self.right / self.total


def bag_of_ngrams(found, real, n=2):
    """Which n-grams each text holds, as features for `two_sample_test`.

    Parameters
    ----------
    found, real : lists of sequences of tokens
    n : int
        The longest n-grams; shorter ones are among them.

    Returns
    -------
    found, real : tensors of 0 and 1, shape ``(texts, different n-grams)``
        n-grams of a single text are left out: from them nothing is learnt.
    """
    rows = [
        {g for k in range(1, n + 1) for g in _ngrams(tokens, k)}
        for tokens in (*found, *real)
    ]
    counts = Counter(gram for row in rows for gram in row)
    column = {
        g: i for i, g in enumerate(g for g, c in counts.items() if c > 1)
    }
    table = torch.zeros(len(rows), max(1, len(column)))
    for row, grams in zip(table, rows):
        row[[column[g] for g in grams if g in column]] = 1.0
    return table[: len(found)], table[len(found) :]


def two_sample_test(found, real, folds=5, seed=0, penalty=1e-2):
    """Learn to tell two sets apart, and try it on texts held out.

    The classifier two-sample test (Lopez-Paz & Oquab, 2017) with logistic
    regression. Each text is held out once: the texts are dealt into folds,
    and each fold is judged by a classifier that learnt from the others.

    Parameters
    ----------
    found, real : tensors, shape ``(n, dim)`` and ``(m, dim)``
    folds : int
    seed : int
        Of the dealing.
    penalty : float
        Of the mean squared standardised weight (L2), against learning by
        heart.

    Returns
    -------
    TwoSample

    Raises
    ------
    ValueError
        If there are fewer texts than folds, or fewer than two folds.
    """
    least = min(len(found), len(real))
    if not (checks.is_whole(folds) and 2 <= folds <= least):
        raise ValueError(
            f"folds must be from 2 to the {least} texts of the smaller set; "
            f"got {folds!r}"
        )
    points = torch.cat([found, real]).double()
    if points.shape[1] > len(points):
        # Turned into the space that the points span: the same, but smaller.
        points = torch.linalg.qr(points.T).R.T
    wanted = torch.cat([torch.ones(len(found)), torch.zeros(len(real))])
    wanted = wanted.double()
    generator = torch.Generator().manual_seed(seed)
    fold = torch.cat(
        [
            torch.randperm(len(part), generator=generator) % folds
            for part in (found, real)
        ]
    )
    logits = torch.zeros(len(points), dtype=torch.float64)
    for number in range(folds):
        out = fold == number
        logits[out] = _logistic(points, wanted, ~out, penalty)[out]
    right = ((logits > 0) == wanted.bool()).sum().item()
    above = logits[wanted == 1][:, None] - logits[wanted == 0]
    area = ((above > 0).double() + (above == 0).double() / 2).mean().item()
    return TwoSample(right, len(points), area)


def _logistic(points, wanted, among, penalty):
    """Logits of all points, by a logistic regression on some of them."""
    mean = points[among].mean(0)
    # By one scale for all columns: rare n-grams must not weigh most.
    scale = points[among].sub(mean).square().sum(1).mean().sqrt()
    points = (points - mean) / scale.clamp(min=1e-12)
    # One weight a class, whichever is larger.
    share = wanted[among].mean()
    weight = torch.where(wanted[among] == 1, 0.5 / share, 0.5 / (1 - share))
    line = torch.zeros(points.shape[1] + 1, dtype=torch.float64)
    line.requires_grad_()
    solver = torch.optim.LBFGS(
        [line], max_iter=60, line_search_fn="strong_wolfe"
    )

    def closure():
        solver.zero_grad()
        loss = F.binary_cross_entropy_with_logits(
            points[among] @ line[1:] + line[0], wanted[among], weight
        )
        loss = loss + penalty * line[1:].square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    with torch.no_grad():
        return points @ line[1:] + line[0]


# --- novelty ----------------------------------------------------------------


def nearest(found, known):
    """In how many slots each tale differs from the nearest known one.

    Parameters
    ----------
    found, known : lists of tales.Tale
        As `metrics.coherent_tales` reads them; known ones such as those of
        the training text.

    Returns
    -------
    tensor of int, shape ``(found,)``
        0 for a copy, 1 for a copy with one choice changed, which letters
        alone do not show.

    Raises
    ------
    ValueError
        If there are no tales to compare.
    """
    for rows in (found, known):
        _check_some(rows)
    names = [field.name for field in fields(tales.Tale)]
    codes = [{} for _ in names]

    def coded(rows):
        return torch.tensor(
            [
                [
                    code.setdefault(getattr(tale, name), len(code))
                    for name, code in zip(names, codes)
                ]
                for tale in rows
            ],
            dtype=torch.int16,
        )

    there, here = coded(known), coded(found)
    return torch.stack([(there != row).sum(1).min() for row in here])


def _check_some(rows, least=1):
    if isinstance(rows, str) or len(rows) < least:
        raise ValueError(
            f"give a list of at least {least} to measure; got "
            f"{type(rows).__name__} of length {len(rows)}"
        )


def _check_whole(name, value):
    if not checks.is_whole(value):
        raise ValueError(
            f"{name} must be a whole number above 0; got {value!r}"
        )
