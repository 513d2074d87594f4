"""What a denoiser answers at one time: noise texts, denoise, round, count.

Chapters 4, 6 and 7 report on a denoiser in three shapes. All three take
their figures from `answer`; what they add is the choice of times, of the
noise and of what to divide by.
"""

from dataclasses import dataclass

import torch

from . import noising

__all__ = ["Answer", "answer", "as_mask"]


@dataclass
class Answer:
    """A denoiser's answer at one time, at the positions that count.

    Attributes
    ----------
    right : int
        Positions at which the rounded answer is the token.
    alone : int
        The same if the noised point is rounded, without a network.
    ids, found : tensors of ids, shape ``(n,)``
        The tokens, and those of the rounded answer.
    clean, guess : tensors, shape ``(n, dim)``
        The clean embeddings, and the answer before it is rounded.
    """

    right: int
    alone: int
    ids: torch.Tensor
    found: torch.Tensor
    clean: torch.Tensor
    guess: torch.Tensor

    @property
    def accuracy(self):
        """Share of positions that the rounded answer has right."""
        return self.right / len(self.ids)

    @property
    def baseline(self):
        """Share that rounding the noised points has right."""
        return self.alone / len(self.ids)

    def squared_error(self):
        """Squared error a coordinate, of each position: shape ``(n,)``."""
        return (self.guess - self.clean).square().mean(dim=-1)

    def mse(self):
        """Squared error a coordinate, averaged over positions."""
        return (self.guess - self.clean).square().mean()


@torch.no_grad()
def answer(denoise, table, schedule, ids, mask, t, generator, rescale=True):
    """Noise texts to a time, denoise and round them, and count.

    Parameters
    ----------
    denoise : callable ``(zt, t) -> x0_hat``
        If it has ``ids`` afterwards, as a `decoding.Guesser` has, they are
        its rounded answer; otherwise the nearest tokens are.
    table : tensor, shape ``(vocab, dim)``
    schedule : Schedule
    ids : tensor of ids, shape ``(batch, length)``
    mask : tensor of 0 and 1, of any type, of that shape
        Positions that count. All are noised.
    t : float or tensor, shape ``()`` or ``(batch,)``
        Handed on to ``denoise`` as it is.
    generator : torch.Generator
        Draws the noise.
    rescale : bool
        Divide the noised point by alpha before it is rounded without a
        network; False rounds it as it is.

    Returns
    -------
    Answer

    Raises
    ------
    ValueError
        If the mask does not fit, see `as_mask`.
    """
    mask = as_mask(mask, ids)
    x0 = table[ids]
    zt, _ = noising.add_noise(x0, t, schedule, generator)
    x0_hat = denoise(zt, t)
    found = getattr(denoise, "ids", None)
    if found is None:
        found = noising.nearest(x0_hat, table)
    bare = zt / float(schedule.alpha(t)) if rescale else zt
    alone = noising.nearest(bare, table)
    wanted = ids[mask]
    return Answer(
        right=(found[mask] == wanted).sum().item(),
        alone=(alone[mask] == wanted).sum().item(),
        ids=wanted,
        found=found[mask],
        clean=x0[mask],
        guess=x0_hat[mask],
    )


def as_mask(mask, ids):
    """A mask as PyTorch needs it for indexing: of type bool.

    An integer mask is taken for row numbers by an index, and gives wrong
    figures without a word.

    Parameters
    ----------
    mask : tensor, array or list of 0 and 1, of any type
    ids : tensor
        What the mask is for.

    Returns
    -------
    bool tensor, shape of ``ids``

    Raises
    ------
    ValueError
        If a value is neither 0 nor 1, or the shapes differ.
    """
    return noising.check_keep(torch.as_tensor(mask), ids.shape, "the mask")
