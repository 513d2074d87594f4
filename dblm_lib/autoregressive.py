"""The language model that writes from left to right: its likelihood.

Chapter 5. GPT-2 as `transformers` ships it; it is the backbone from which
denoisers are made, their judge and their rival.
"""

import torch
import torch.nn.functional as F

__all__ = ["next_token_loss", "next_token_nats"]


def next_token_nats(model, ids):
    """Cross-entropy of each token given those before it, in nats.

    The first token is predicted from an end-of-text token, which is also
    what a reader samples from.

    Parameters
    ----------
    model : transformers.GPT2LMHeadModel, possibly wrapped
    ids : tensor of ids, shape ``(batch, length)``

    Returns
    -------
    tensor, shape of ``ids``
    """
    bare = getattr(model, "module", model)
    start = torch.full_like(ids[:, :1], bare.config.eos_token_id)
    logits = model(
        input_ids=torch.cat([start, ids[:, :-1]], dim=1), use_cache=False
    ).logits
    return F.cross_entropy(
        logits.float().transpose(1, 2), ids, reduction="none"
    )


def next_token_loss(model, batch):
    """Weighted mean of `next_token_nats`: the loss of a language model."""
    return (next_token_nats(model, batch["ids"]) * batch["weight"]).sum()
