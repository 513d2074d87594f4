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
    "check_keep",
    "check_points",
    "check_rows",
    "check_table",
    "information_band",
    "mask_tokens",
    "nearest",
    "nearest_two",
    "normalise",
    "principal_table",
    "random_table",
    "recovery_curve",
    "spread_time",
    "token_scores",
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


def check_points(x0, eps=None, keep=None):
    """Refuse points, noise or kept positions that do not fit together.

    Returns
    -------
    bool tensor, shape ``(batch, length)``, or None
        What `check_keep` makes of ``keep``.
    """
    shape = tuple(x0.shape)
    if x0.ndim != 3:
        raise ValueError(
            f"x0 must have shape (batch, length, dim); got {shape}"
        )
    if not x0.is_floating_point():
        raise TypeError(
            f"x0 holds {x0.dtype}: noise needs embeddings, not token ids. "
            "Look the ids up in a table first: table[ids]"
        )
    _check_finite(x0, "x0")
    if eps is not None and tuple(eps.shape) != shape:
        raise ValueError(
            f"eps must have the shape of x0, {shape}; got {tuple(eps.shape)}"
        )
    return check_keep(keep, shape[:2])


def _check_finite(values, what):
    if not bool(torch.isfinite(values).all()):
        count = int((~torch.isfinite(values)).sum())
        raise ValueError(
            f"{what} must be finite; {count} of {values.numel()} "
            "numbers are NaN or infinite"
        )


def check_keep(keep, shape, name="keep"):
    """Return a mask as True and False, or say why it is none.

    Parameters
    ----------
    keep : tensor, shape ``shape``, or None
        Of any type; its values are 0 and 1, or False and True. As an index
        whole numbers would pick rows 0 and 1, without a word.
    shape : tuple of int
    name : str
        What the message calls it.

    Returns
    -------
    bool tensor, or None

    Raises
    ------
    ValueError
        If the shape is another, or a value is neither 0 nor 1.
    """
    if keep is None:
        return None
    if not isinstance(keep, torch.Tensor) or keep.shape != torch.Size(shape):
        got = getattr(keep, "shape", None)
        raise ValueError(
            f"{name} must have shape {tuple(shape)}, one True or False a "
            f"position; got {type(keep).__name__}"
            + (f" of shape {tuple(got)}" if got is not None else "")
        )
    if keep.dtype == torch.bool:
        return keep
    found = keep == 1
    if not bool((found | (keep == 0)).all()):
        odd = keep[~(found | (keep == 0))][0].item()
        raise ValueError(
            f"{name} must hold 0 and 1, or False and True, in its shape "
            f"{tuple(shape)}; got {odd}"
        )
    return found


def normalise(table):
    """Scale each row to length sqrt(dim), so that a coordinate has unit size.

    After this, a noise level of 1 means noise as large as the signal,
    whatever the dimension.

    Parameters
    ----------
    table : tensor, shape ``(..., dim)``

    Returns
    -------
    tensor, shape of ``table``

    Raises
    ------
    ValueError
        If a row is zero, NaN or infinite: it has no direction to keep.
    """
    length = table.norm(dim=-1, keepdim=True)
    if not bool(((length > 0) & length.isfinite()).all()):
        raise ValueError(
            "a row that is zero, NaN or infinite has no direction"
        )
    return table / length * math.sqrt(table.shape[-1])


def random_table(vocab_size, embed_dim, generator):
    """A table of random directions, normalised; shape ``(vocab, dim)``."""
    table = torch.randn(vocab_size, embed_dim, generator=generator)
    return normalise(table)


def principal_table(table, embed_dim, rows=None):
    """Press a table into fewer dimensions by its principal components.

    Parameters
    ----------
    table : tensor, shape ``(vocab, dim)``
    embed_dim : int
        At least 1; at most ``dim`` and the number of rows that count.
    rows : tensor of ids, optional
        The tokens that occur in the text; all if left out. Mean and
        directions are those of their rows. The rows of tokens that a model
        never met in training lie together, far from the others: with them
        in the mean, the tokens that do occur all point away from it, and
        their directions hardly differ.

    Returns
    -------
    tensor, shape ``(vocab, embed_dim)``
        Coordinates of all tokens along the directions of largest variance,
        centred.

    Raises
    ------
    ValueError
        If ``embed_dim`` is larger than the table allows, or smaller than 1;
        if a row is asked for that the table does not have.
    """
    check_table(table)
    table = table.to(_precise(table.dtype))
    counted = table
    if rows is not None:
        counted = table[check_rows(rows, len(table)).to(table.device)]
    if not 1 <= embed_dim <= min(counted.shape):
        raise ValueError(
            f"embed_dim must lie between 1 and {min(counted.shape)}; "
            f"got {embed_dim}"
        )
    mean = counted.mean(dim=0)
    _, _, directions = torch.linalg.svd(counted - mean, full_matrices=False)
    # An SVD fixes directions up to their sign; fix that too.
    largest = directions.abs().argmax(dim=1, keepdim=True)
    directions = directions * directions.gather(1, largest).sign()
    return (table - mean) @ directions[:embed_dim].T


def check_rows(rows, vocab_size):
    """Ids of tokens, each once; refuse what is none, or no id of a table.

    Parameters
    ----------
    rows : tensor or sequence of ids, any shape
    vocab_size : int

    Returns
    -------
    tensor of ids, shape ``(n,)``
        In rising order.

    Raises
    ------
    ValueError
        If there are none, or one lies outside the table.
    """
    found = torch.as_tensor(rows)
    if found.numel() and (
        found.is_floating_point() or found.dtype == torch.bool
    ):
        raise ValueError(f"rows must be token ids; got {found.dtype}")
    found = found.unique()
    if not len(found) or found[0] < 0 or found[-1] >= vocab_size:
        inside = f"from 0 to {vocab_size - 1}"
        got = f"{found[0]} to {found[-1]}" if len(found) else "none"
        raise ValueError(f"rows must be token ids {inside}; got {got}")
    return found


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
    keep : tensor of 0 and 1, shape ``(batch, length)``, optional
        1 (or True) at positions that stay clean, such as a prompt.

    Returns
    -------
    zt, eps : tensor, shape of ``x0``
        The noised points, exactly ``x0`` where ``keep`` is True, and the
        noise (drawn for kept positions too, but not added there).

    Raises
    ------
    ValueError
        If shapes do not fit, ``t`` is outside [0, 1] or ``x0`` not finite.
    TypeError
        If ``x0`` holds token ids.
    """
    keep = check_points(x0, eps, keep)
    t = spread_time(t, x0.shape[:2])
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if keep is not None:
        noised = ~keep.to(t.device)
        alpha, sigma = alpha.where(noised, 1.0), sigma.where(noised, 0.0)
    if eps is None:
        eps = torch.randn(x0.shape, generator=generator)
    alpha, sigma, eps = (v.to(x0) for v in (alpha, sigma, eps))
    return alpha[..., None] * x0 + sigma[..., None] * eps, eps


def spread_time(t, shape):
    """One time for each position, from one for all or one a sequence.

    Parameters
    ----------
    t : float or tensor, shape ``()``, ``(batch,)`` or ``(batch, length)``
    shape : (batch, length)

    Returns
    -------
    tensor, shape ``(batch, length)``, float64

    Raises
    ------
    ValueError
        If a time lies outside [0, 1] or the shapes do not fit.
    """
    t = schedules.as_time(t)
    column = t[:, None] if t.ndim == 1 else t
    try:
        return column.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"t of shape {tuple(t.shape)} does not fit {tuple(shape)} "
            "positions: give one time, one a sequence or one a position"
        ) from None


def token_scores(vectors, table, metric="euclidean"):
    """How near each vector is to each token: the higher, the nearer.

    The Euclidean score is ``v.e - |e|²/2``: that is ``-|v - e|²/2`` without
    the term ``|v|²``, the same for every token. The cosine leaves out the
    length of the vector for the same reason.

    Parameters
    ----------
    vectors : tensor, shape ``(n, dim)``
    table : tensor, shape ``(vocab, dim)``
    metric : {"euclidean", "cosine", "dot"}

    Returns
    -------
    tensor, shape ``(n, vocab)``
    """
    if metric == "cosine":
        table = F.normalize(table, dim=1)
    scores = vectors @ table.T
    if metric == "euclidean":
        scores -= (table**2).sum(dim=1) / 2
    return scores


def _precise(dtype):
    """At least float32: 8 bits of bfloat16 cannot rank 50,257 tokens."""
    return torch.promote_types(dtype, torch.float32)


def _prepare(vectors, table, metric):
    """Check both, bring them to one precision, vectors as ``(n, dim)``."""
    if metric not in METRICS:
        raise ValueError(
            f"unknown metric {metric!r}; choose one of {', '.join(METRICS)}"
        )
    check_table(table)
    dim = table.shape[1]
    if vectors.ndim == 0 or vectors.shape[-1] != dim:
        raise ValueError(
            f"vectors have shape {tuple(vectors.shape)}, but the table's "
            f"tokens have dimension {dim}: the last dimensions must agree"
        )
    _check_finite(vectors, "vectors")
    dtype = _precise(torch.promote_types(vectors.dtype, table.dtype))
    vectors, table = vectors.reshape(-1, dim).to(dtype), table.to(dtype)
    if metric == "euclidean":
        # Distances do not see a common shift; rounding errors do.
        centre = table.mean(dim=0)
        vectors, table = vectors - centre, table - centre
    return vectors, table


def _blocks(vectors, table):
    """Cut vectors so that their scores against the table fit in a block."""
    return vectors.split(max(1, _BLOCK // len(table)))


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
    shape = vectors.shape[:-1]
    vectors, table = _prepare(vectors, table, metric)
    ids = [
        token_scores(block, table, metric).argmax(dim=1)
        for block in _blocks(vectors, table)
    ]
    return torch.cat(ids).reshape(shape)


def nearest_two(vectors, table):
    """Euclidean distances to the nearest and the second-nearest token.

    Parameters
    ----------
    vectors : tensor, shape ``(..., dim)``
    table : tensor, shape ``(vocab, dim)``, at least two tokens

    Returns
    -------
    tensor, shape ``(..., 2)``
        If the two are alike, the point lies between tokens and rounding it
        is a guess.

    Raises
    ------
    ValueError
        As `nearest`; or if the table has a single token.
    """
    shape = vectors.shape[:-1]
    vectors, table = _prepare(vectors, table, "euclidean")
    if len(table) < 2:
        raise ValueError("a table of one token has no second-nearest")
    pairs = []
    for block in _blocks(vectors, table):
        two = token_scores(block, table).topk(2, dim=1).indices
        pairs.append((table[two] - block[:, None]).norm(dim=2))
    return torch.cat(pairs).reshape(*shape, 2)


def recovery_curve(
    table,
    noise_levels,
    generator,
    num_samples=1000,
    metric="euclidean",
    ids=None,
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

    metric : {"euclidean", "cosine", "dot"}
    ids : tensor of ids, optional
        Draw the tokens from these, for instance from a text; otherwise each
        token of the table is as likely as any other.

    Returns
    -------
    tensor, shape ``(len(noise_levels),)``, float64
        The share of tokens recovered.

    Raises
    ------
    ValueError
        If a noise level is negative or not finite, or the table is not.
    """
    check_table(table)
    ids = torch.arange(len(table)) if ids is None else ids.flatten().cpu()
    shape = (num_samples, table.shape[1])
    shares = []
    for level in map(float, noise_levels):
        if not 0 <= level < math.inf:
            raise ValueError(f"a noise level must be 0 or more; got {level}")
        eps = torch.randn(shape, generator=generator).to(table)
        drawn = torch.randint(len(ids), shape[:1], generator=generator)
        tokens = ids[drawn]
        found = nearest(table[tokens] + level * eps, table, metric).cpu()
        shares.append((found == tokens).double().mean())
    return torch.stack(shares)


def information_band(embed_dim, vocab_size, std=1.0):
    r"""The noise level in the middle of the range where rounding fails.

    :math:`\mathrm{std} \sqrt{d / (2 \ln V)}` for a table of ``vocab_size``
    random points with standard deviation ``std`` a coordinate. At this level
    the true token's mean score equals the best wrong token's, and rounding
    loses between a third and about half of the tokens. It loses the first
    few at half of this level and nearly all at three times of it. Chapter 2
    derives the rule and measures it.

    Parameters
    ----------
    embed_dim, vocab_size : int
    std : float
        In the units of the table; 1 after `normalise`.

    Returns
    -------
    float
        A noise level sigma / alpha.

    Raises
    ------
    ValueError
        If there is no dimension, a single token, or no positive ``std``.
    """
    if not (embed_dim >= 1 and vocab_size >= 2 and 0 < std < math.inf):
        raise ValueError(
            "need embed_dim >= 1, vocab_size >= 2 and std > 0; "
            f"got {embed_dim}, {vocab_size} and {std}"
        )
    return std * math.sqrt(embed_dim / (2 * math.log(vocab_size)))


def mask_tokens(ids, t, mask_id, generator=None, keep=None):
    """The other noise: replace each token by a mask with probability t.

    Parameters
    ----------
    ids : tensor of ids, shape ``(batch, length)``
    t : float or tensor, shape ``()``, ``(batch,)`` or ``(batch, length)``
    mask_id : int
    generator : torch.Generator, optional
    keep : tensor of 0 and 1, shape of ``ids``, optional
        1 (or True) at positions that stay visible.

    Returns
    -------
    tensor of ids, shape of ``ids``

    Raises
    ------
    ValueError
        If shapes do not fit or ``t`` is outside [0, 1].
    """
    if ids.ndim != 2:
        raise ValueError(
            f"ids must have shape (batch, length); got {tuple(ids.shape)}"
        )
    keep = check_keep(keep, ids.shape)
    t = spread_time(t, ids.shape).cpu()
    hidden = torch.rand(ids.shape, generator=generator) < t
    if keep is not None:
        hidden &= ~keep.cpu()
    return ids.masked_fill(hidden.to(ids.device), mask_id)
