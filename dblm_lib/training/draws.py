"""Random numbers of a training step: times, noise, what stays clean.

Chapters 4, 7, 9 and 10. Each function takes a model, the ids of a batch and a
generator, and gives a dictionary that the losses know how to read.
"""

import torch

__all__ = [
    "draw_clean_neighbours",
    "draw_for",
    "draw_masks",
    "draw_noise",
    "draw_noised",
    "draw_staggered",
    "staggered_masks",
]


def draw_noise(model, ids, generator):
    """Draw a time for each sequence and the noise for each coordinate.

    Returns
    -------
    dict
        ``t``, shape ``(batch,)``, uniform in [0, 1], float64; ``eps``, shape
        ``(batch, length, dim)``.
    """
    dim = model.embeddings.embedding_dim
    t = torch.rand(len(ids), generator=generator, dtype=torch.float64)
    eps = torch.randn(*ids.shape, dim, generator=generator)
    return {"t": t, "eps": eps}


def draw_clean_neighbours(model, ids, generator):
    """Draw noise of which some positions of some sequences are spared.

    In a share ``clean_rate`` of the sequences three to nine in ten positions
    stay clean, and the others are noised to a time near the end of the
    schedule, mostly: they have little of their own to go by, and must look
    at their neighbours. It is also what a prompt looks like. Chapter 7.

    Returns
    -------
    dict
        ``t``, shape ``(batch, length)``, 0 at clean positions; ``eps`` as
        in `draw_noise`; ``keep``, bool, shape ``(batch, length)``, True at
        clean positions.
    """
    noise = draw_noise(model, ids, generator)
    count = len(ids)
    spared = torch.rand(count, generator=generator) < model.config.clean_rate
    share = 0.3 + 0.6 * torch.rand(count, 1, generator=generator)
    keep = torch.rand(ids.shape, generator=generator) < share
    keep &= spared[:, None]
    t = torch.where(spared, noise["t"] ** (1 / 8), noise["t"])
    t = t[:, None].expand(ids.shape).masked_fill(keep, 0.0)
    return {"t": t, "eps": noise["eps"], "keep": keep}


def draw_staggered(model, ids, generator):
    """Draw noise that grows from left to right in the other sequences.

    As in `draw_clean_neighbours`, but a sequence of which nothing is spared
    gets the times of a moment of a staggered reverse process: any moment is
    as likely as another, and a stagger s below the largest, S, has the
    probability sqrt(s / S). Chapter 7.

    Returns
    -------
    dict
        As `draw_clean_neighbours`; what the process is done with is kept.
    """
    noise = draw_clean_neighbours(model, ids, generator)
    count, length = ids.shape
    dice = torch.rand(2, count, 1, generator=generator, dtype=torch.float64)
    stagger = model.config.stagger * dice[0] ** 2
    delay = stagger * torch.linspace(1, 0, length, dtype=torch.float64)
    t = ((1 + stagger) * dice[1] - delay).clamp(0, 1)
    t = torch.where(noise["keep"].any(1, keepdim=True), noise["t"], t)
    return {"t": t, "eps": noise["eps"], "keep": t == 0}


def draw_masks(model, ids, generator):
    """Draw the time of each sequence, and which of its tokens are masked.

    Times are spread evenly over the batch, all moved by one draw (Kingma et
    al., 2021): the rows of a batch are in random order already. Chapter 9.

    Returns
    -------
    dict
        ``t``, shape ``(batch,)``, float64, at least ``low`` of the model's
        configuration; with ``draws="counts"`` the share of tokens that are
        masked, one of them at least. ``keep``, bool, shape
        ``(batch, length)``, True at tokens that stay visible. With
        ``draws="staggered"`` also ``rates``, what `staggered_masks` says.
    """
    config, (count, length) = model.config, ids.shape
    t = torch.rand(1, generator=generator, dtype=torch.float64)
    t = (t + torch.arange(count)) / count
    dice = torch.rand(ids.shape, generator=generator, dtype=torch.float64)
    if config.draws == "staggered":
        return staggered_masks(t, dice, config.low, generator)
    if config.draws == "counts":
        number = (t * length).long().clamp(max=length - 1) + 1
        keep = dice.argsort(dim=1).argsort(dim=1) >= number[:, None]
        return {"t": number.double() / length, "keep": keep}
    t = config.low + (1 - config.low) * t
    return {"t": t, "keep": dice >= t[:, None]}


def staggered_masks(progress, dice, low, generator, most=8.0):
    """Masks of which every other canvas has more on the right.

    A canvas with stagger S is at the times ``(1 + S) progress - S (1 - x)``,
    cut to [0, 1], with x from 0 at the left end to 1 at the right one. Each
    position has its own schedule, and its own weight in the bound:
    :math:`(1 + S) / t` while its time lies inside, 0 before and after.

    Parameters
    ----------
    progress : tensor, shape ``(batch,)``
        0 at the clean text.
    dice : tensor, shape ``(batch, length)``
        Uniform numbers.
    low : float
        Smaller times count as 0.
    generator : torch.Generator
    most : float
        The largest stagger. Half of the canvases have none, the others its
        product with a uniform number.

    Returns
    -------
    dict
        ``t``, shape ``(batch,)``, the mean time; ``keep``; ``rates``, shape
        ``(batch, length)``.
    """
    count, length = dice.shape
    drawn = torch.rand(count, 1, generator=generator, dtype=torch.float64)
    stagger = most * drawn * (torch.arange(count) % 2)[:, None]
    delay = stagger * torch.linspace(1, 0, length, dtype=torch.float64)
    t = ((1 + stagger) * progress[:, None] - delay).clamp(0, 1)
    t = t.where(t >= low, 0.0)
    inside = (t > 0) & (t < 1)
    rates = torch.where(inside, (1 + stagger) / t, 0.0)
    return {"t": t.mean(1), "keep": dice >= t, "rates": rates}


def draw_noised(model, ids, generator):
    """Draw the time of each sequence, and its tokens noised to that time.

    Times are spread evenly as in `draw_masks`, inside
    ``[low, 1 - low]`` of the model's configuration. Chapter 10.

    Returns
    -------
    dict
        ``t``, shape ``(batch,)``, float64; ``zt``, ids, shape
        ``(batch, length)``.
    """
    low, count = model.config.low, len(ids)
    t = torch.rand(1, generator=generator, dtype=torch.float64)
    t = low + (1 - 2 * low) * (t + torch.arange(count)) / count
    return {"t": t, "zt": model.process.add_noise(ids, t, generator)}


def draw_for(model):
    """The function that draws noise as a model's configuration asks."""
    if model.config.loss == "noised":
        return draw_noised
    if model.config.loss in ("masked", "drafts"):
        return draw_masks
    if model.config.stagger:
        return draw_staggered
    return draw_clean_neighbours if model.config.clean_rate else draw_noise
