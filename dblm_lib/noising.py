r"""Noise on words: tokens as points, and what Gaussian noise does to them.

Chapter 2. A token becomes a point, its embedding. Noise moves the point;
rounding goes back to the nearest token. Everything here works on plain
tensors: ids ``(batch, length)``, points ``(batch, length, dim)``, a table
``(vocab, dim)``.
"""

import math

import torch
import torch.nn.functional as F

from . import schedules

__all__ = [
    "METRICS",
    "add_noise",
    "information_band",
    "mask_tokens",
    "nearest",
    "nearest_two",
    "normalise",
    "principal_table",
    "random_table",
    "recovery_curve",
]

METRICS = ("euclidean", "cosine", "dot")

# Largest matrix of scores held at once, in numbers (64 MB of float32).
_BLOCK = 2**24


def check_table(table):
    """Refuse a table that is not ``(vocab, dim)`` or holds NaN or inf."""
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(
            "an embedding table has shape (vocab, dim); "
            f"got {tuple(table.shape)}"
        )
    _check_finite(table, "the embedding table")


def _check_finite(values, what):
    if not bool(torch.isfinite(values).all()):
        count = int((~torch.isfinite(values)).sum())
        raise ValueError(
            f"{what} must be finite; {count} of {values.numel()} "
            "numbers are NaN or infinite"
        )


def normalise(table):
    """Scale each row to length sqrt(dim), so that a coordinate has unit size.

    After this, a noise level of 1 means noise as large as the signal,
    whatever the dimension.

    Parameters
    ----------
    table : tensor, shape ``(..., dim)``

    Raises
    ------
    ValueError
        If a row is zero: it has no direction to keep.
    """
    length = table.norm(dim=-1, keepdim=True)
    if bool((length == 0).any()):
        raise ValueError("a row of zeros has no direction to normalise")
    return table / length * math.sqrt(table.shape[-1])


def random_table(vocab_size, embed_dim, generator):
    """A table of random directions, normalised; shape ``(vocab, dim)``."""
    table = torch.randn(vocab_size, embed_dim, generator=generator)
    return normalise(table)


def principal_table(table, embed_dim):
    """Press a table into fewer dimensions by its principal components.

    Parameters
    ----------
    table : tensor, shape ``(vocab, dim)``
    embed_dim : int
        Between 1 and ``dim``.

    Returns
    -------
    tensor, shape ``(vocab, embed_dim)``
        Coordinates along the directions of largest variance, centred.
    """
    check_table(table)
    if not 1 <= embed_dim <= min(table.shape):
        raise ValueError(
            f"embed_dim must lie between 1 and {min(table.shape)}; "
            f"got {embed_dim}"
        )
    centred = table - table.mean(dim=0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    # An SVD fixes directions up to their sign; fix that too.
    largest = directions.abs().argmax(dim=1, keepdim=True)
    directions = directions * directions.gather(1, largest).sign()
    return centred @ directions[:embed_dim].T


def add_noise(x0, t, schedule, generator=None, eps=None, keep=None):
    """Noise points to time ``t``: zt = alpha(t) x0 + sigma(t) eps.

    Parameters
    ----------
    x0 : tensor, shape ``(batch, length, dim)``
        Clean embeddings.
    t : float or tensor, shape ``()``, ``(batch,)`` or ``(batch, length)``
        One time for all, for each sequence, or for each position.
    schedule : Schedule
    generator : torch.Generator, optional
        Draws the noise on the CPU, so that every device sees the same.
    eps : tensor, shape of ``x0``, optional
        The noise itself, if it is not to be drawn.
    keep : bool tensor, shape ``(batch, length)``, optional
        Positions that stay clean, such as a prompt.

    Returns
    -------
    zt, eps : tensor, shape of ``x0``

    Raises
    ------
    ValueError
        If shapes do not fit, ``t`` is outside [0, 1] or ``x0`` not finite.
    """
    _check_finite(x0, "x0")
    t = _time_per_position(t, x0)
    if eps is None:
        eps = torch.randn(x0.shape, generator=generator)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if keep is not None:
        keep = keep.to(x0.device)
        alpha, sigma = alpha.where(~keep, 1.0), sigma.where(~keep, 0.0)
    eps, alpha, sigma = (v.to(x0) for v in (eps, alpha, sigma))
    return alpha[..., None] * x0 + sigma[..., None] * eps, eps


def _time_per_position(t, x0):
    """Spread ``t`` over ``(batch, length)``, or say why not."""
    if x0.ndim != 3:
        raise ValueError(
            f"x0 must have shape (batch, length, dim); got {tuple(x0.shape)}"
        )
    t = schedules.as_time(t).to(x0.device)
    if t.ndim == 1:
        t = t[:, None]
    try:
        return t.expand(x0.shape[:2])
    except RuntimeError:
        raise ValueError(
            f"t of shape {tuple(t.shape)} does not fit x0 of shape "
            f"{tuple(x0.shape)}: give one time, one a sequence or one a "
            "position"
        ) from None


def _scores(vectors, table, metric):
    """Higher is nearer; shape ``(n, vocab)``."""
    if metric == "euclidean":
        # -|v - e|² up to the term |v|², the same for every token.
        return vectors @ table.T - (table**2).sum(dim=1) / 2
    return vectors @ table.T


def _blocks(vectors, table, metric):
    """Scores of all vectors against the table, a block of rows at a time."""
    if metric not in METRICS:
        raise ValueError(
            f"unknown metric {metric!r}; choose one of {', '.join(METRICS)}"
        )
    check_table(table)
    if vectors.shape[-1] != table.shape[1]:
        raise ValueError(
            f"vectors have dimension {vectors.shape[-1]}, "
            f"the table has {table.shape[1]}"
        )
    _check_finite(vectors, "vectors")
    if metric == "cosine":  # the vectors' own lengths do not matter
        table = F.normalize(table, dim=1)
    rows = max(1, _BLOCK // len(table))
    for block in vectors.reshape(-1, table.shape[1]).split(rows):
        yield block, _scores(block, table, metric)


def nearest(vectors, table, metric="euclidean"):
    """Round points to tokens: the id of the nearest row of the table.

    Works in blocks, so that a vocabulary of 50,257 tokens needs 64 MB of
    scores at a time and not gigabytes.

    Parameters
    ----------
    vectors : tensor, shape ``(..., dim)``
    table : tensor, shape ``(vocab, dim)``
    metric : {"euclidean", "cosine", "dot"}

    Returns
    -------
    tensor of ids, shape ``(...)``

    Raises
    ------
    ValueError
        If the dimensions differ, the metric is unknown or a number is not
        finite.
    """
    ids = [s.argmax(dim=1) for _, s in _blocks(vectors, table, metric)]
    if not ids:  # no vectors, no tokens
        return torch.empty(vectors.shape[:-1], dtype=torch.long)
    return torch.cat(ids).reshape(vectors.shape[:-1])


def nearest_two(vectors, table):
    """Euclidean distances to the nearest and the second-nearest token.

    Returns
    -------
    tensor, shape ``(..., 2)``
        If the two are alike, the point lies between tokens and rounding it
        is a guess.
    """
    pairs = []
    for block, scores in _blocks(vectors, table, "euclidean"):
        two = scores.topk(2, dim=1).indices
        gaps = table[two] - block[:, None]
        pairs.append(gaps.norm(dim=2))
    return torch.cat(pairs).reshape(*vectors.shape[:-1], 2)


def recovery_curve(
    table, noise_levels, generator, num_samples=1000, metric="euclidean"
):
    """How often rounding alone undoes the noise, for each noise level.

    Random tokens of the table are moved by Gaussian noise of standard
    deviation ``noise level`` a coordinate and rounded. No network is used.

    Parameters
    ----------
    table : tensor, shape ``(vocab, dim)``
    noise_levels : sequence of float
        sigma / alpha, in the units of the table.
    generator : torch.Generator
    num_samples : int
        Tokens drawn for each noise level.

    Returns
    -------
    tensor, shape ``(len(noise_levels),)``
        The share of tokens recovered.
    """
    check_table(table)
    shares = []
    for level in noise_levels:
        ids = torch.randint(len(table), (num_samples,), generator=generator)
        eps = torch.randn(num_samples, table.shape[1], generator=generator)
        noisy = table[ids] + float(level) * eps
        shares.append((nearest(noisy, table, metric) == ids).double().mean())
    return torch.stack(shares)


def information_band(embed_dim, vocab_size, std=1.0):
    r"""The noise level where rounding by itself begins to fail.

    About :math:`s \sqrt{d / (2 \ln V)}` for a table of ``vocab_size`` random
    points with standard deviation ``std`` a coordinate: below it, noise is
    trivial to undo; well above it, nothing of the token itself is left.

    Returns
    -------
    float
        A noise level sigma / alpha.
    """
    if embed_dim < 1 or vocab_size < 2:
        raise ValueError(
            "need embed_dim >= 1 and vocab_size >= 2; "
            f"got {embed_dim} and {vocab_size}"
        )
    return std * math.sqrt(embed_dim / (2 * math.log(vocab_size)))


def mask_tokens(ids, t, mask_id, generator, keep=None):
    """The other noise: replace each token by a mask with probability t.

    Parameters
    ----------
    ids : tensor of ids, shape ``(batch, length)``
    t : float or tensor, shape ``()`` or ``(batch,)``
    mask_id : int
    generator : torch.Generator
    keep : bool tensor, shape of ``ids``, optional
        Positions that stay visible.

    Returns
    -------
    tensor of ids, shape of ``ids``
    """
    t = schedules.as_time(t)
    if t.ndim == 1:
        t = t[:, None]
    draw = torch.rand(ids.shape, generator=generator, dtype=torch.float64)
    hidden = draw < t
    if keep is not None:
        hidden &= ~keep
    return ids.masked_fill(hidden.to(ids.device), mask_id)
