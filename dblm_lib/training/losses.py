"""Losses of a denoiser, and what is measured of one beside them.

Chapters 4, 7, 9 and 10. A loss is a function ``(model, batch) -> scalar``; the
batch is a dictionary that the loop makes.
"""

import torch
import torch.nn.functional as F

from .. import levels, noising

__all__ = [
    "cross_entropy_loss",
    "denoising_loss",
    "draft_loss",
    "evaluate_denoising",
    "first_guess",
    "loss_for",
    "masked_loss",
    "noised_loss",
    "normalised_mse",
    "weight_change",
]


def denoising_loss(model, batch):
    """Mean squared error between denoised and clean embeddings.

    Parameters
    ----------
    model : DBLM, possibly wrapped for several processes
    batch : dict
        ``ids``, ``mask``, ``t``, ``eps``, and ``weight``, which shares out
        the mean: zero at padding, summing to one; from Chapter 7 on also
        ``keep``, the positions that are not noised.

    Returns
    -------
    scalar tensor
        Squared error a coordinate, averaged over real positions.
    """
    bare = getattr(model, "module", model)
    x0, keep = bare.embed(batch["ids"]), batch.get("keep")
    zt, _ = noising.add_noise(
        x0, batch["t"], bare.schedule, eps=batch["eps"], keep=keep
    )
    x0_hat = model(zt, batch["t"], batch["mask"]).x0
    error = (x0_hat.float() - x0).square().mean(dim=-1)
    return (error * batch["weight"]).sum()


def loss_for(model):
    """The loss that a model's configuration asks for."""
    return {
        "mse": denoising_loss,
        "ce": cross_entropy_loss,
        "masked": masked_loss,
        "drafts": draft_loss,
        "noised": noised_loss,
    }[model.config.loss]


def cross_entropy_loss(model, batch):
    """Cross-entropy of the clean tokens given the noised ones, in nats.

    Parameters
    ----------
    model : DBLM with a mixture head, possibly wrapped
    batch : dict
        As for `denoising_loss`.

    Returns
    -------
    scalar tensor
        Nats a position that was noised. No bound of the likelihood: it
        depends on which noise levels are drawn.
    """
    bare = getattr(model, "module", model)
    x0, keep = bare.embed(batch["ids"]), batch.get("keep")
    zt, _ = noising.add_noise(
        x0, batch["t"], bare.schedule, eps=batch["eps"], keep=keep
    )
    guess = first_guess(bare, zt, batch["t"], batch["mask"], keep)
    asked = ~keep if keep is not None else torch.ones_like(batch["mask"])
    logits = model(zt, batch["t"], batch["mask"], guess, ~asked).logits
    nats = F.cross_entropy(logits, batch["ids"][asked], reduction="none")
    return (nats * batch["weight"][asked]).sum()


def masked_loss(model, batch):
    """Cross-entropy of the masked tokens given the visible ones, in nats.

    Parameters
    ----------
    model : MaskedDenoiser, possibly wrapped
    batch : dict
        ``ids``, ``mask``, ``weight``, and what `draw_masks` gives: ``t`` and
        ``keep``, or ``rates`` in place of 1/t.

    Returns
    -------
    scalar tensor
        With the weighting ``"1/t"`` nats a position: times the length an
        unbiased estimate of the bound, but for times below ``low``. With
        ``"mean"`` nats a masked token, which is no bound.
    """
    config, keep = getattr(model, "module", model).config, batch["keep"]
    canvas = batch["ids"].masked_fill(~keep, config.mask_id)
    logits = model(canvas, batch["mask"], batch["t"], keep)
    nats = F.cross_entropy(logits, batch["ids"][~keep], reduction="none")
    if config.weighting == "mean":
        return (nats * batch["weight"][~keep]).sum()
    rates = batch.get("rates", 1 / batch["t"][:, None])
    weight = (batch["mask"] * rates)[~keep]
    return (nats * weight.to(nats.dtype)).sum() / batch["mask"].sum()


def draft_loss(model, batch):
    """`masked_loss`, and the cross-entropy of all tokens given a draft.

    The masks of a draft are filled by what the model itself draws at each of
    them, without regard to the others: the errors that it will have to mend
    when it writes (ProSeCo, 2026). Costs a second pass.

    Parameters
    ----------
    model : MaskedDenoiser, possibly wrapped
    batch : dict
        As for `masked_loss`.

    Returns
    -------
    scalar tensor
        Nats a position; the second part weighs each canvas as the first
        does, all of its tokens alike.
    """
    config, keep = getattr(model, "module", model).config, batch["keep"]
    canvas = batch["ids"].masked_fill(~keep, config.mask_id)
    logits = model(canvas, batch["mask"], batch["t"])
    # Drawn by Gumbel's trick, on the device; dropout aside this is the model.
    noise = -torch.empty_like(logits).exponential_().log()
    draft = torch.where(keep, canvas, (logits.detach() + noise).argmax(-1))
    nats = _nats(logits, batch["ids"]).masked_fill(keep, 0.0)
    nats = nats + _nats(model(draft, batch["mask"], batch["t"]), batch["ids"])
    weight = batch["mask"] / batch["t"][:, None]
    return (nats * weight.to(nats.dtype)).sum() / batch["mask"].sum()


def noised_loss(model, batch):
    """Cross-entropy of all clean tokens given the noised ones, in nats.

    Tokens that stand there may be wrong, so that every position is asked.
    A canvas weighs one over the share of tokens that noise has touched: 1/t
    with masks. The network learns the plain posterior, which has counted
    the token that stands there; for the bound see
    `processes.leave_one_out`.

    Parameters
    ----------
    model : MaskedDenoiser, possibly wrapped
    batch : dict
        ``ids``, ``mask``, ``weight``, and what `draw_noised` gives: ``t``
        and ``zt``.

    Returns
    -------
    scalar tensor
        Nats a position; no bound.
    """
    process = getattr(model, "module", model).process
    nats = _nats(model(batch["zt"], batch["mask"], batch["t"]), batch["ids"])
    weight = batch["mask"] / (1 - process.alpha(batch["t"]))[:, None]
    return (nats * weight.to(nats.dtype)).sum() / batch["mask"].sum()


def _nats(logits, ids):
    """Cross-entropy at each position, shape of ``ids``."""
    return F.cross_entropy(logits.transpose(1, 2), ids, reduction="none")


@torch.no_grad()
def first_guess(model, zt, t, mask, keep=None):
    """A guess without a previous one, for some sequences (Chen et al., 2023).

    Parameters
    ----------
    model : DBLM
    zt : tensor, shape ``(batch, length, dim)``
    t, mask, keep
        As `DBLM.forward` takes them.

    Returns
    -------
    tensor, shape of ``zt``, or None
        The guess for a share ``self_conditioning`` of the sequences (the
        rows are in random order already), zeros for the others; None where
        the configuration asks for none.
    """
    count = round(model.config.self_conditioning * len(zt))
    if not count:
        return None
    guess = torch.zeros_like(zt)
    given = (t, mask, keep)
    t, mask, keep = (v if v is None else v[:count] for v in given)
    guess[:count] = model(zt[:count], t, mask, keep=keep).x0.to(zt.dtype)
    return guess


def normalised_mse(mse, table):
    """MSE / Var: 1 is what always answering the mean embedding scores.

    Parameters
    ----------
    mse : float or tensor
    table : tensor, shape ``(n, dim)``
        The embeddings that occur, one row an occurrence.
    """
    return mse / table.var(dim=0, unbiased=False).mean()


@torch.no_grad()
def evaluate_denoising(model, ids, mask, times, generator, batch_size=64):
    """Error and rounding accuracy at chosen times.

    Parameters
    ----------
    model : DBLM
    ids, mask : tensors, shape ``(n, length)``
    times : sequence of float
    generator : torch.Generator

    Returns
    -------
    dict of tensors, each shape ``(len(times),)``
        ``mse``; ``normalised`` (MSE / Var of the clean embeddings that
        occur); ``accuracy`` of rounding the denoised points; ``baseline``,
        that of rounding the noised points, without any network.
    """
    model.eval()
    device = next(model.parameters()).device
    table = model.table()
    mask = noising.check_keep(mask, ids.shape, "mask")
    rows = {"mse": [], "accuracy": [], "baseline": []}
    for time in times:
        sums = torch.zeros(3, dtype=torch.float64)
        for part, real in zip(ids.split(batch_size), mask.split(batch_size)):
            part, real = part.to(device), real.to(device)
            t = torch.full((len(part),), float(time), dtype=torch.float64)
            found = levels.answer(
                lambda zt, t, real=real: model(zt, t, real).x0,
                table,
                model.schedule,
                part,
                real,
                t,
                generator,
                rescale=False,
            )
            error = found.squared_error().sum().item()
            sums += torch.tensor([error, found.right, found.alone])
        for row, value in zip(rows.values(), sums / mask.sum()):
            row.append(value)
    result = {name: torch.stack(values) for name, values in rows.items()}
    occurring = model.embed(ids[mask].to(device)).cpu()
    result["normalised"] = normalised_mse(result["mse"], occurring)
    return result


def weight_change(before, after):
    """How far the weights have moved, relative to their size.

    Parameters
    ----------
    before, after : dict of tensors
        Two state dicts of one model.

    Returns
    -------
    float
        ||after - before|| / ||before|| over all weights together.
    """
    moved = sum((after[k] - before[k]).double().square().sum() for k in before)
    size = sum(before[k].double().square().sum() for k in before)
    return (moved / size).sqrt().item()
