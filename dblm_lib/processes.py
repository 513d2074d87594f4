r"""Noise on tokens: masks, random tokens, and both together.

Chapter 10. Time runs from 0, the clean text, to 1, nothing but noise. At time
t a token is still clean with probability ``alpha(t)``; otherwise the noise
has put something there, whatever it was: a mask, or a token drawn at random.
Text is ``ids``, shape ``(batch, length)``, with tokens from 0 to
``vocab_size - 1``; the mask is one id more. Times and probabilities are
float64.
"""

import torch
import torch.nn.functional as F

from . import checks, schedules
from .masking import LINEAR, check_logits, look_up
from .noising import check_keep, spread_time

__all__ = [
    "PROCESSES",
    "Hybrid",
    "Masked",
    "Process",
    "Uniform",
    "get_process",
    "leave_one_out",
    "plain_logits",
]


class Process:
    r"""A noise that puts tokens anywhere, whatever stood there before.

    :math:`q(z_t | x_0)` is :math:`\alpha(t)` at the clean token, plus what
    the noise has spread: ``noise(t)`` is the pair (share of masks, share of
    each single token), and ``rate(t)`` the pair of the rates at which a
    position jumps there. Subclasses give ``alpha`` and the two pairs; all
    else follows here, for every such noise alike.

    Parameters
    ----------
    vocab_size : int
        The mask's id is ``vocab_size``.
    """

    def __init__(self, vocab_size):
        if not checks.is_whole(vocab_size, 2):
            raise ValueError(
                f"vocab_size must be 2 or more; got {vocab_size!r}"
            )
        self.vocab_size = self.mask_id = vocab_size

    def alpha(self, t):
        """Probability that the noise has not touched a token."""
        raise NotImplementedError

    def noise(self, t):
        """Shares of masks and of each single token, float64."""
        raise NotImplementedError

    def rate(self, t):
        """Rates of jumps to a mask and to each single token, float64."""
        raise NotImplementedError

    def add_noise(self, ids, t, generator=None, keep=None):
        """Noise ids to time ``t``; as `mask_tokens`, with its draws."""
        keep = check_keep(keep, ids.shape)
        t = spread_time(t, ids.shape).cpu()
        masks, each = self.noise(t)
        draw = torch.rand(ids.shape, generator=generator)
        if keep is not None:
            draw = draw.masked_fill(keep.cpu(), 2.0)
        zt = ids.masked_fill((draw < masks).to(ids.device), self.mask_id)
        if bool((each > 0).any()):
            other = torch.randint(
                self.vocab_size, ids.shape, generator=generator
            )
            random = (draw >= masks) & (draw < masks + self.vocab_size * each)
            zt = torch.where(random.to(ids.device), other.to(ids), zt)
        return zt

    def probabilities(self, x0, t):
        """q(z_t | x_0) of every id, shape ``(batch, length, V + 1)``.

        ``x0`` holds probabilities, ``(batch, length, V)``.
        """
        return self._mix(x0.double(), *self._at(t, x0))

    def posterior(self, x0, zt, s, t):
        r"""What stood there at time s: q(z_s | z_t, x_0).

        Parameters
        ----------
        x0 : tensor, shape ``(batch, length, V)``
            Probabilities of the clean token: one-hot, or a model's in its
            place. Then the step is that of the model only if they are
            those of the text *around* the position: see `leave_one_out`.
        zt : tensor of ids, shape ``(batch, length)``
        s, t : float or tensor, shape ``(batch,)`` or ``(batch, length)``
            ``s <= t``.

        Returns
        -------
        tensor, shape ``(batch, length, V + 1)``, float64
        """
        early, late = self._at(s, x0), self._at(t, x0)
        stays = torch.where(early[0] > 0, late[0] / early[0], 0.0)
        # From s to t: stays there, or is where the noise has put it since.
        since = [b - stays * a for a, b in zip(early[1:], late[1:])]
        ids = zt[..., None]
        seen = torch.where(ids == self.mask_id, *since).clamp(min=0)
        there = seen.expand(*zt.shape, self.vocab_size + 1).clone()
        there.scatter_add_(-1, ids, stays.expand(ids.shape))
        joint = there * self._mix(x0.double(), *early)
        return joint / joint.sum(-1, keepdim=True)

    def leave_one_out(self, logits, zt, t):
        """The function `leave_one_out` with this noise at time ``t``.

        Noise without random tokens leaves nothing to convert.
        """
        alpha, _, each = self._at(t, logits)
        if not bool((each > 0).any()):
            return logits
        return leave_one_out(logits, zt, alpha, each)

    def weight(self, zt, ids, t):
        """Weight of a position in the bound: rate over share of what it is.

        There are three kinds: a mask, a wrong token, the right one.

        Parameters
        ----------
        zt, ids : tensors of ids, shape ``(batch, length)``
            Noised and clean.
        t : float or tensor inside (0, 1)

        Returns
        -------
        tensor, shape of ``ids``, float64
        """
        t = spread_time(t, ids.shape).to(ids.device)
        if bool(((t <= 0) | (t >= 1)).any()):
            raise ValueError("the bound needs times inside (0, 1)")
        is_mask = zt == self.mask_id
        rate = torch.where(is_mask, *self.rate(t))
        share = torch.where(is_mask, *self.noise(t))
        share = share + self.alpha(t) * (zt == ids)
        return torch.where(rate > 0, rate / share, 0.0)

    def bound(self, logits, zt, ids, t):
        r"""Terms of the bound in nats, one a position.

        Their sum over a text, in the mean over times and noise, is at least
        -log p(x_0): :math:`w\,(\mathrm{KL}(q(\cdot|x_0) \| q(\cdot|\hat x))
        + r - \log r - 1)` with :math:`r = q(z_t|x_0) / q(z_t|\hat x)` and w
        the `weight` (GIDD, von Rütte et al., 2025). For masks this is the
        cross-entropy of the masked tokens times 1/t. What makes it smallest
        are leave-one-out logits.

        Parameters
        ----------
        logits : tensor, shape ``(batch, length, V)``
        zt, ids : tensors of ids, shape ``(batch, length)``
        t : float or tensor inside (0, 1)

        Returns
        -------
        tensor, shape of ``ids``, float64
        """
        check_logits(logits, ids)
        weight = self.weight(zt, ids, t)
        alpha, _, each = self._at(t, logits)
        guess = torch.logaddexp(
            logits.double().log_softmax(-1) + alpha.log(), each.log()
        )
        truth = F.one_hot(ids, self.vocab_size) * alpha + each
        # The share of masks is the same in both, and drops out.
        terms = truth * (truth.clamp(min=1e-300).log() - guess)
        gap = torch.where(truth > 0, terms, 0.0).sum(-1)
        is_mask = zt == self.mask_id
        seen = zt.where(~is_mask, 0)[..., None]
        log_r = (truth.gather(-1, seen).log() - guess.gather(-1, seen))[..., 0]
        gap = gap + torch.where(is_mask, 0.0, log_r.expm1() - log_r)
        return torch.where(weight > 0, weight * gap, 0.0)

    def _at(self, t, like):
        """alpha and both shares at ``t``, shape ``(batch, length, 1)``."""
        t = spread_time(t, like.shape[:2]).to(like.device)
        return [v[..., None] for v in (self.alpha(t), *self.noise(t))]

    def _mix(self, x0, alpha, masks, each):
        return torch.cat([alpha * x0 + each, masks], dim=-1)


class Masked(Process):
    """Masks alone, with any schedule."""

    def __init__(self, vocab_size, schedule=LINEAR):
        super().__init__(vocab_size)
        self.schedule = schedule

    def alpha(self, t):
        return self.schedule.alpha(t)

    def noise(self, t):
        masked = self.schedule.masked(t)
        return masked, torch.zeros_like(masked)

    def rate(self, t):
        rate = -self.schedule.slope(t) / self.schedule.alpha(t)
        return rate, torch.zeros_like(rate)


class Uniform(Process):
    """Random tokens alone, with alpha = 1 - t; the draw may hit the same."""

    def alpha(self, t):
        return 1 - schedules.as_time(t)

    def noise(self, t):
        each = schedules.as_time(t) / self.vocab_size
        return torch.zeros_like(each), each

    def rate(self, t):
        each = 1 / (1 - schedules.as_time(t)) / self.vocab_size
        return torch.zeros_like(each), each


class Hybrid(Process):
    r"""Masks with a share of random tokens (GIDD, von Rütte et al., 2025).

    With :math:`c(t) = 2^\gamma \frac{p_u}{1 - p_u} (t (1 - t))^{\gamma/2}`
    the shares of clean tokens, masks and random tokens are as
    :math:`1 - t`, :math:`t` and :math:`c`. Both ends are those of masking;
    half-way a share :math:`p_u` of the tokens is random.

    Parameters
    ----------
    vocab_size : int
    uniform_share : float in [0, 1)
        p_u; with 0 this is `Masked`.
    gamma : float in (0, 2]
        Above 2 tokens would have to be taken back from the noise.
    """

    def __init__(self, vocab_size, uniform_share=0.1, gamma=1.0):
        super().__init__(vocab_size)
        if not (checks.is_number(uniform_share) and 0 <= uniform_share < 1):
            raise ValueError(
                "uniform_share must be at least 0 and below 1 (for 1 take "
                f"Uniform); got {uniform_share!r}"
            )
        if not (checks.is_number(gamma) and 0 < gamma <= 2):
            raise ValueError(
                f"gamma must be above 0 and at most 2; got {gamma!r}"
            )
        self.uniform_share, self.gamma = uniform_share, gamma

    def _shares(self, t):
        t = schedules.as_time(t)
        peak = 2**self.gamma * self.uniform_share / (1 - self.uniform_share)
        return t, peak * (t * (1 - t)) ** (self.gamma / 2)

    def alpha(self, t):
        t, c = self._shares(t)
        return (1 - t) / (1 + c)

    def noise(self, t):
        t, c = self._shares(t)
        return t / (1 + c), c / (1 + c) / self.vocab_size

    def rate(self, t):
        t, c = self._shares(t)
        # c + (1 - t) c', with the derivative c' written out
        grows = c * (1 + self.gamma / 2 * (1 - 2 * t) / t)
        whole = (1 + c) * (1 - t)
        return 1 / whole, grows / whole / self.vocab_size


PROCESSES = {"mask": Masked, "uniform": Uniform, "hybrid": Hybrid}


def get_process(name, vocab_size, **options):
    """Make the process of a name in `PROCESSES`."""
    return look_up("noise", name, PROCESSES)(vocab_size, **options)


def leave_one_out(logits, ids, alpha, each=None):
    r"""What a text says about a token without looking at that token.

    Where noise puts random tokens, the token that stands at a position is
    evidence like the others, and a model that was trained with
    cross-entropy has counted it. Its logit is larger by
    :math:`\log(1 + \alpha / u)` than the rest of the text alone would make
    it, with u the probability that noise puts that one token there
    (Gourevitch et al., 2026). Masks stay as they are: they say nothing.

    Parameters
    ----------
    logits : tensor, shape ``(batch, length, vocab_size)``
    ids : tensor of ids, shape ``(batch, length)``
        Ids of ``vocab_size`` and more are masks.
    alpha : float or tensor that fits ``(batch, length, 1)``
    each : float or tensor, optional
        u; ``(1 - alpha) / vocab_size`` of uniform noise if left out.

    Returns
    -------
    tensor, shape of ``logits``
        Unnormalised, as they were.

    Raises
    ------
    ValueError
        If u is 0 at a token while alpha is not: what stands there is then
        certain, and the logits have forgotten what the rest says.
    """
    return logits.scatter_add(-1, *_evidence(logits, ids, alpha, each, -1))


def plain_logits(logits, ids, alpha, each=None):
    """The way back from `leave_one_out`: count the token itself again."""
    return logits.scatter_add(-1, *_evidence(logits, ids, alpha, each, 1))


def _evidence(logits, ids, alpha, each, sign):
    check_logits(logits, ids)
    vocab_size = logits.shape[-1]
    alpha = torch.as_tensor(alpha, dtype=torch.float64)
    if each is None:
        each = (1 - alpha) / vocab_size
    each = torch.as_tensor(each, dtype=torch.float64).to(logits.device)
    token = (ids < vocab_size)[..., None]
    ratio = torch.where(alpha > 0, alpha.to(logits.device) / each, 0.0)
    ratio = ratio.expand(token.shape).where(token, 0.0)
    if not bool(torch.isfinite(ratio).all()):
        raise ValueError(
            "at a token that noise cannot have put there nothing is left "
            "to say about it: leave_one_out needs a time above 0"
        )
    seen = ids[..., None].where(token, 0)
    return seen, (sign * torch.log1p(ratio)).to(logits.dtype)
