r"""Muon: updates of matrices that are equally strong in all directions.

Chapter 7. The update of a matrix, :math:`U \Sigma V^\top` by its singular
values, is replaced by nearly :math:`U V^\top`: directions that the gradient
hardly names are stepped along as far as those that it shouts
(Jordan et al., 2024). `torch.optim.Muon` does the same in bf16, which many
processors can only imitate, forty times more slowly than float32.
"""

import math

import torch

__all__ = ["Muon", "orthogonal"]


def orthogonal(update, steps=5):
    r"""The nearest matrix whose singular values are all about one.

    Newton and Schulz's iteration, without the singular values themselves:
    :math:`X \leftarrow a X + b X X^\top X + c (X X^\top)^2 X` takes each of
    them to near one and leaves all directions as they are.

    Parameters
    ----------
    update : tensor, shape ``(rows, columns)``
    steps : int

    Returns
    -------
    tensor of that shape
        After five steps singular values lie between about 0.5 and 1.5,
        unless they were hundreds of times smaller than the largest.

    Raises
    ------
    ValueError
        If ``update`` is no matrix.
    """
    if update.ndim != 2:
        raise ValueError(
            f"only a matrix has directions; got shape {tuple(update.shape)}"
        )
    a, b, c = 3.4445, -4.7750, 2.0315  # chosen so that small ones grow fast
    x = update / update.norm().clamp(min=1e-7)
    tall = len(x) > x.shape[1]
    x = x.T if tall else x
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal; for matrices only.

    Parameters
    ----------
    params : iterable of parameters or of groups
    lr : float
        The update is scaled to the size that AdamW's would have, so that
        AdamW's learning rates and decays serve here, too.
    weight_decay : float
    momentum : float
        Nesterov's.

    Raises
    ------
    ValueError
        If a parameter is no matrix.
    """

    def __init__(self, params, lr=1e-3, weight_decay=0.1, momentum=0.95):
        settings = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
        }
        super().__init__(params, settings)
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2:
                    raise ValueError(
                        "Muon trains matrices; leave a parameter of shape "
                        f"{tuple(p.shape)} to AdamW"
                    )

    @torch.no_grad()
    def step(self, closure=None):
        """Take one step.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss again, as for any optimiser of PyTorch.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                mean = state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
                update = orthogonal(p.grad.lerp(mean, momentum))
                p.mul_(1 - rate * group["weight_decay"])
                p.add_(update, alpha=-rate * 0.2 * math.sqrt(max(p.shape)))
        return loss
