"""Optimisers for the kinds of weights, and the average of the weights.

Chapters 4 and 7.
"""

import torch
from torch.optim.swa_utils import AveragedModel

from .. import muon

__all__ = ["average_of", "optimizers_for"]


def optimizers_for(model, config):
    """Decay for matrices only; embeddings may learn at a rate of their own.

    Parameters
    ----------
    model : torch.nn.Module
    config : TrainConfig

    Returns
    -------
    list of torch.optim.Optimizer
        A group's ``rate``, if it has one, multiplies the learning rate.

    Raises
    ------
    ValueError
        If no weight is to be trained.
    """
    learns = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not learns:
        raise ValueError("the model has no weights to train")
    if config.optimizer == "adam":
        return [torch.optim.Adam(learns.values(), lr=config.learning_rate)]
    kinds = {"embeddings": [], "matrices": [], "vectors": [], "blocks": []}
    for name, p in learns.items():
        kind = "matrices" if p.ndim >= 2 else "vectors"
        if name == "embeddings.weight" and config.embedding_rate != 1:
            kind = "embeddings"
        elif p.ndim == 2 and ".h." in name and config.optimizer == "muon":
            kind = "blocks"
        kinds[kind].append(p)
    settings = {
        "lr": config.learning_rate,
        "weight_decay": config.weight_decay,
    }
    groups = [
        {"params": kinds["matrices"]},
        {"params": kinds["vectors"], "weight_decay": 0.0},
        {"params": kinds["embeddings"], "rate": config.embedding_rate},
    ]
    optimizers = [
        torch.optim.AdamW(
            [g for g in groups if g["params"]], betas=(0.9, 0.95), **settings
        )
    ]
    if kinds["blocks"]:
        optimizers.append(muon.Muon(kinds["blocks"], **settings))
    return optimizers


def average_of(model, decay):
    """An exponential moving average of a model's weights; None without one.

    Parameters
    ----------
    model : torch.nn.Module
        Where the average begins.
    decay : float
        Share of the old average in the new. The first steps count less, or
        the start would weigh for long.

    Returns
    -------
    torch.optim.swa_utils.AveragedModel or None
    """
    if not decay:
        return None

    def towards(averages, weights, count):
        count = int(count)
        share = min(decay, (1 + count) / (10 + count))
        for mean, weight in zip(averages, weights):
            mean.lerp_(weight.to(mean.dtype), 1 - share)

    average = AveragedModel(model, multi_avg_fn=towards)
    # It holds the model as it is, which counts as the first of them; by
    # itself the first update would replace it.
    average.n_averaged.fill_(1)
    return average
