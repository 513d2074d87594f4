"""Instruments: small measurements of a denoiser and of what it works with.

Chapter 6. Of a denoiser, an embedding table, a schedule, a path of sampling.
"""

import math

import torch
import torch.nn.functional as F

from .. import decoding, noising
from ..levels import answer, as_mask

__all__ = [
    "SHARES",
    "accuracy_by_position",
    "contextual_rounding",
    "difficult_levels",
    "examine",
    "fit_head",
    "gain",
    "landing",
    "level_report",
    "pairwise_distance",
    "terminal_nats",
    "trivial_share",
    "within_nearest",
]

# Rounding alone finds these shares of the tokens at the levels of `gain`.
SHARES = (0.9, 0.7, 0.5, 0.3, 0.1)


def recovered(table, ids, eps, level):
    """Share of tokens that rounding finds again at a noise level."""
    found = noising.nearest(table[ids] + level * eps, table)
    return (found == ids).double().mean().item()


def difficult_levels(table, ids, shares=SHARES, seed=0):
    """Noise levels at which rounding alone finds given shares of a text.

    A noise level means nothing by itself: how much it destroys depends on
    the table. These levels are equally difficult for every table.

    Parameters
    ----------
    table : tensor, shape ``(vocab, dim)``
    ids : tensor of ids, shape ``(n,)``
        Tokens as they occur in texts.
    shares : sequence of float
        Each between 0 and 1.
    seed : int

    Returns
    -------
    list of float
        sigma / alpha, one a share.

    Raises
    ------
    ValueError
        If a share is not between 0 and 1.
    """
    generator = torch.Generator().manual_seed(seed)
    eps = torch.randn(*ids.shape, table.shape[1], generator=generator)
    spread = table.std().item()
    levels = []
    for share in shares:
        if not 0 < share < 1:
            raise ValueError(f"a share lies between 0 and 1; got {share}")
        low, high = 0.03 * spread, 30 * spread
        for _ in range(12):
            middle = math.sqrt(low * high)
            if recovered(table, ids, eps, middle) > share:
                low = middle
            else:
                high = middle
        levels.append(math.sqrt(low * high))
    return levels


@torch.no_grad()
def level_report(denoise, table, schedule, ids, real, levels, seed=0):
    """What a denoiser answers at each noise level.

    Parameters
    ----------
    denoise : callable ``(zt, t) -> x0_hat``
        A `decoding.Guesser` rounds by its own rule; otherwise the nearest
        token counts.
    table : tensor, shape ``(vocab, dim)``
    schedule : Schedule
    ids : tensor of ids, shape ``(batch, length)``
    real : mask of that shape
        1 at the positions that count.
    levels : sequence of float
        sigma / alpha.
    seed : int
        Of the noise, the same for each denoiser.

    Returns
    -------
    dict of lists, one entry a level
        ``accuracy`` of the rounded answer; ``baseline``, of rounding the
        noised point; ``error``, MSE / Var; ``norm``, length of the answer
        over that of the clean embedding; ``cosine`` of the answer to the
        mean embedding; ``top``, share of the commonest rounded token.

    Raises
    ------
    ValueError
        If ``real`` does not fit, see `levels.as_mask`, or is 0 everywhere.
    """
    real = as_mask(real, ids)
    if not real.any():
        raise ValueError("no position counts: the mask is 0 everywhere")
    clean = table[ids[real]]
    mean = clean.mean(dim=0)
    variance = (clean - mean).square().mean()
    names = ("accuracy", "baseline", "error", "norm", "cosine", "top")
    rows = {name: [] for name in names}
    for level in levels:
        generator = torch.Generator().manual_seed(seed)
        t = schedule.time_of(level)
        found = answer(denoise, table, schedule, ids, real, t, generator)
        guess = found.guess
        values = (
            found.accuracy,
            found.baseline,
            found.mse() / variance,
            guess.norm(dim=-1).mean() / clean.norm(dim=-1).mean(),
            F.cosine_similarity(guess, mean[None], dim=-1).mean(),
            found.found.bincount().max() / len(clean),
        )
        for row, value in zip(rows.values(), values):
            row.append(float(value))
    return rows


def examine(model, ids, real, levels, seed=0, rounding="model"):
    """`level_report` of a model.

    ``rounding="model"``: as it rounds when it samples, which is by its
    logits if it has a mixture head; ``"nearest"``: to the nearest token.
    """
    if rounding not in ("model", "nearest"):
        raise ValueError(f"rounding is model or nearest, not {rounding}")
    model.eval()
    if rounding == "model":
        denoise = decoding.Guesser(model)
    else:

        def denoise(zt, t):
            return model(zt, t).x0

    table, schedule = model.table().detach(), model.schedule
    return level_report(denoise, table, schedule, ids, real, levels, seed)


def gain(model, ids, real, seed=0, rounding="model"):
    """One number for a denoiser: its gain over rounding alone.

    Accuracy on held-out texts minus that of rounding the noised points,
    averaged over the noise levels at which rounding finds 90, 70, 50, 30 and
    10 % of the tokens. As in sampling, the model is not told where a text
    ends.

    Parameters
    ----------
    model : DBLM
    ids : tensor of ids, and real : mask, shape ``(batch, length)``
    seed : int
    rounding : {"model", "nearest"}
        See `examine`.

    Returns
    -------
    float
        0 is as good as no network; 0.5 would be perfect; below 0 the
        network loses tokens that rounding finds.
    """
    real = as_mask(real, ids)
    levels = difficult_levels(model.table().detach(), ids[real], seed=seed)
    report = examine(model, ids, real, levels, seed, rounding)
    won = [a - b for a, b in zip(report["accuracy"], report["baseline"])]
    return sum(won) / len(won)


def trivial_share(schedule, easy, hopeless, count=1001):
    """Shares of a schedule's time below and above a band of noise levels.

    Parameters
    ----------
    schedule : Schedule
    easy, hopeless : float
        Ends of the band, noise levels.
    count : int
        Times looked at.

    Returns
    -------
    below, above : float
    """
    t = torch.linspace(0, 1, count, dtype=torch.float64)
    level = schedule.noise_level(t)
    below = (level < easy).double().mean().item()
    return below, (level > hopeless).double().mean().item()


def pairwise_distance(table):
    """Mean distance of two different rows of a table.

    Parameters
    ----------
    table : tensor, shape ``(n, dim)``

    Returns
    -------
    float
        0 if all rows are one point: nothing can be told apart any more.

    Raises
    ------
    ValueError
        If there are fewer than two rows.
    """
    if len(table) < 2:
        raise ValueError(f"two rows at least are needed; got {len(table)}")
    return torch.pdist(table.detach().double()).mean().item()


def landing(guesses, table):
    """Distance of guesses to their nearest and second-nearest token.

    Parameters
    ----------
    guesses : sequence of tensors, each ``(batch, length, dim)``
        Such as `Trajectory.x0_hat`.
    table : tensor, shape ``(vocab, dim)``

    Returns
    -------
    tensor, shape ``(len(guesses), 2)``
        Means, in units of the mean length of an embedding.
    """
    unit = table.norm(dim=-1).mean()
    means = [noising.nearest_two(x, table).mean(dim=(0, 1)) for x in guesses]
    return torch.stack(means) / unit


def accuracy_by_position(found, ids, real):
    """Share of right tokens at each position of the canvas.

    Parameters
    ----------
    found, ids : tensors of ids, shape ``(batch, length)``
    real : mask of that shape

    Returns
    -------
    tensor, shape ``(length,)``
        NaN where no text is that long.
    """
    real = as_mask(real, ids)
    right = ((found == ids) & real).double().sum(dim=0)
    return right / real.sum(dim=0)


def within_nearest(points, ids, table, count):
    """Share of points whose token is among the nearest ones.

    It is what an oracle could round to that may choose between ``count``
    tokens.

    Parameters
    ----------
    points : tensor, shape ``(n, dim)``
    ids : tensor of ids, shape ``(n,)``
    table : tensor, shape ``(vocab, dim)``
    count : int
    """
    near = torch.cdist(points, table).topk(count, largest=False).indices
    return (near == ids[:, None]).any(dim=1).double().mean().item()


def fit_head(points, ids, vocab_size, steps=100, seed=0):
    """A linear map from vectors to logits of tokens, trained to round them.

    Parameters
    ----------
    points : tensor, shape ``(n, dim)``
        Answers of a denoiser that stays as it is.
    ids : tensor of ids, shape ``(n,)``
    vocab_size, steps, seed : int

    Returns
    -------
    torch.nn.Linear
    """
    torch.manual_seed(seed)
    head = torch.nn.Linear(points.shape[1], vocab_size)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.03)
    for _ in range(steps):
        rows = torch.randint(len(points), (512,))
        loss = F.cross_entropy(head(points[rows]), ids[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head


@torch.no_grad()
def contextual_rounding(x0_hat, table, gpt2, count=10, weight=1.0):
    """Round from left to right, asking a language model at each position.

    Among the nearest tokens the one wins whose distance and whose
    probability after the tokens chosen so far are best together.

    Parameters
    ----------
    x0_hat : tensor, shape ``(batch, length, dim)``
    table : tensor, shape ``(vocab, dim)``
    gpt2 : transformers.GPT2LMHeadModel
    count : int
        Nearest tokens that may be chosen.
    weight : float
        Of a nat of the language model; a unit of the other side is the mean
        squared distance to the nearest token.

    Returns
    -------
    tensor of ids, shape ``(batch, length)``
    """
    gap, near = torch.cdist(x0_hat, table).topk(count, largest=False)
    cost = gap**2 / gap[..., 0].square().mean()
    last = torch.full_like(near[:, :1, 0], gpt2.config.eos_token_id)
    chosen, cache = [], None
    for place in range(x0_hat.shape[1]):
        out = gpt2(last, cache, use_cache=True)
        cache = out.past_key_values
        nats = -out.logits[:, -1].log_softmax(-1).gather(1, near[:, place])
        best = (cost[:, place] + weight * nats).argmin(1, keepdim=True)
        last = near[:, place].gather(1, best)
        chosen.append(last)
    return torch.cat(chosen, dim=1)


def terminal_nats(schedule, table, ids):
    r"""What is left of a text at t = 1, in nats a token.

    The Kullback-Leibler divergence from the noised text at t = 1 to the
    standard normal draw with which sampling begins:
    :math:`\frac12 (\alpha^2 |x_0|^2 + d(\sigma^2 - 1 - \ln \sigma^2))`.

    Parameters
    ----------
    schedule : Schedule
    table : tensor, shape ``(vocab, dim)``
    ids : tensor of ids
        Tokens as they occur in texts.

    Returns
    -------
    float
    """
    left = schedule.alpha_bar(1.0).item()
    noise = 1 - left
    size = table[ids].square().sum(dim=-1).mean().item()
    dim = table.shape[1]
    return (left * size + dim * (noise - 1 - math.log(noise))) / 2
