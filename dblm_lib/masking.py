r"""Masks: what they do to a text, and how it is undone.

Chapter 9. Time runs from 0, the clean text, to 1, nothing but masks. At time
t a token is still clean with probability ``alpha(t)``, and a mask otherwise.
Text is ``ids``, shape ``(batch, length)``; the mask is an id above those of
the tokens. Times and probabilities are float64.
"""

import difflib
import math

import torch
import torch.nn.functional as F

from . import checks, schedules
from .noising import check_keep, mask_tokens

__all__ = [
    "DRAWS",
    "SCHEDULES",
    "CosineMasking",
    "LinearMasking",
    "MaskingSchedule",
    "PowerMasking",
    "carry_over",
    "check_logits",
    "get_schedule",
    "look_up",
    "mask_count",
    "mask_posterior",
    "mask_tokens",
    "mask_weight",
    "reveal_share",
    "sample_counts",
    "sample_times",
]

DRAWS = ("iid", "stratified", "low-discrepancy")


# --- schedules --------------------------------------------------------------


class MaskingSchedule:
    """How many tokens are clean at time t; subclasses give three functions.

    ``masked(t)`` is ``1 - alpha(t)``, written out so that no digit is lost,
    and ``slope(t)`` the derivative of alpha, which is never positive.
    """

    def __repr__(self):
        given = ", ".join(f"{k}={v!r}" for k, v in vars(self).items())
        return f"{type(self).__name__}({given})"

    def alpha(self, t):
        """Probability that a token is clean at time ``t``."""
        raise NotImplementedError

    def masked(self, t):
        """Probability that it is not."""
        raise NotImplementedError

    def slope(self, t):
        """Derivative of alpha by t."""
        raise NotImplementedError


class LinearMasking(MaskingSchedule):
    """alpha = 1 - t: time is the probability of a mask."""

    def alpha(self, t):
        return 1 - schedules.as_time(t)

    def masked(self, t):
        return schedules.as_time(t)

    def slope(self, t):
        return -torch.ones_like(schedules.as_time(t))


class CosineMasking(MaskingSchedule):
    r"""alpha = 1 - sin(pi t / 2), the cosine schedule of MDLM."""

    def alpha(self, t):
        return 2 * torch.sin((1 - schedules.as_time(t)) * math.pi / 4) ** 2

    def masked(self, t):
        return torch.sin(schedules.as_time(t) * math.pi / 2)

    def slope(self, t):
        return -math.pi / 2 * torch.cos(schedules.as_time(t) * math.pi / 2)


class PowerMasking(MaskingSchedule):
    """alpha = 1 - t^power: above 1, more of the time goes to few masks."""

    def __init__(self, power=2.0):
        if not (checks.is_number(power) and power > 0):
            raise ValueError(f"power must be positive; got {power!r}")
        self.power = power

    def alpha(self, t):
        return -torch.expm1(self.power * schedules.as_time(t).log())

    def masked(self, t):
        return schedules.as_time(t) ** self.power

    def slope(self, t):
        return -self.power * schedules.as_time(t) ** (self.power - 1)


SCHEDULES = {
    "linear": LinearMasking,
    "cosine": CosineMasking,
    "power": PowerMasking,
}
LINEAR = LinearMasking()


def get_schedule(name, **options):
    """Make the schedule of a name in `SCHEDULES`."""
    return look_up("schedule", name, SCHEDULES)(**options)


def look_up(what, name, known):
    """An entry of a dictionary, or what was probably meant."""
    if isinstance(name, str) and name in known:
        return known[name]
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
    raise ValueError(
        f"unknown {what} {name!r}; did you mean {near!r}? Known: "
        f"{', '.join(known)}"
    )


# --- masks ------------------------------------------------------------------


def reveal_share(alpha_s, alpha_t):
    r"""Probability that a token masked at t is clean at the earlier time s.

    :math:`(\alpha_s - \alpha_t) / (1 - \alpha_t)`. With the linear schedule
    and T equal steps it is 1/k at t = k/T. A step of the T-step bound weighs
    the cross-entropy of the masked tokens with it, too.

    Parameters
    ----------
    alpha_s, alpha_t : float or tensor
        ``alpha_s`` the larger, ``alpha_t`` below 1.

    Returns
    -------
    tensor, float64

    Raises
    ------
    ValueError
        If they are no probabilities in this order.
    """
    alpha_s, alpha_t = _two_alphas(alpha_s, alpha_t)
    if bool((alpha_t >= 1).any()):
        raise ValueError("alpha_t must be below 1: nothing is masked at 1")
    return (alpha_s - alpha_t) / (1 - alpha_t)


def _two_alphas(alpha_s, alpha_t):
    alpha_s = torch.as_tensor(alpha_s, dtype=torch.float64)
    alpha_t = torch.as_tensor(alpha_t, dtype=torch.float64)
    order = (alpha_t >= 0) & (alpha_t <= alpha_s) & (alpha_s <= 1)
    if not bool(order.all()):
        raise ValueError(
            "need 0 <= alpha_t <= alpha_s <= 1, since s is the earlier and "
            f"cleaner time; got alpha_s = {alpha_s}, alpha_t = {alpha_t}"
        )
    return alpha_s, alpha_t


def mask_posterior(x0, zt, alpha_s, alpha_t, mask_id):
    r"""What stood there at time s: q(z_s | z_t, x_0) of masking.

    A visible token stood there already. A mask is x_0 with probability
    `reveal_share`, and a mask otherwise (Austin et al., 2021).

    Parameters
    ----------
    x0 : tensor, shape ``(batch, length, vocab_size)``
        Probabilities of the clean token: one-hot, or a model's.
    zt : tensor of ids, shape ``(batch, length)``
    alpha_s, alpha_t : float or tensor that fits ``zt``
    mask_id : int

    Returns
    -------
    tensor, shape ``(batch, length, vocab_size + 1)``, float64
        Of as many tokens as ``x0`` has if the mask is one of them.
    """
    size = max(x0.shape[-1], mask_id + 1)
    share = reveal_share(alpha_s, alpha_t).to(zt.device)
    share = share.expand(zt.shape)[..., None]
    masked = F.pad(x0.double(), (0, size - x0.shape[-1])) * share
    masked[..., mask_id] += 1 - share[..., 0]
    visible = F.one_hot(zt, size).double()
    return torch.where((zt == mask_id)[..., None], masked, visible)


def carry_over(logits, ids, mask_id):
    """Logits that never answer "mask" and never change what is visible.

    The two halves of SUBS (Sahoo et al., 2024): a visible token has
    probability 1 where it stands, and a mask, if there is a logit for it,
    probability 0 where something is written.

    Parameters
    ----------
    logits : tensor, shape ``(batch, length, vocab_size)``
    ids : tensor of ids, shape ``(batch, length)``
    mask_id : int
        Above all tokens, or one of them.

    Returns
    -------
    tensor, shape of ``logits``

    Raises
    ------
    ValueError
        If shapes do not fit, or a visible id has no logit.
    """
    check_logits(logits, ids)
    visible = ids != mask_id
    vocab_size = logits.shape[-1]
    if mask_id < vocab_size:
        there = torch.arange(vocab_size, device=logits.device) == mask_id
        logits = logits.masked_fill(there, -torch.inf)
    known = ids.where(visible, 0)
    if bool((known >= vocab_size).any()) or bool((known < 0).any()):
        raise ValueError(
            f"a visible id lies outside the {vocab_size} tokens that have "
            f"logits: {ids.min()} to {ids.max()}, mask_id {mask_id}"
        )
    one_hot = torch.full_like(logits, -torch.inf)
    one_hot.scatter_(-1, known[..., None], 0.0)
    return torch.where(visible[..., None], one_hot, logits)


def check_logits(logits, ids):
    """Refuse logits that do not belong to the ids."""
    if ids.ndim != 2 or logits.ndim != 3 or logits.shape[:2] != ids.shape:
        raise ValueError(
            "ids have shape (batch, length) and logits (batch, length, "
            f"vocab_size); got {tuple(ids.shape)} and {tuple(logits.shape)}"
        )


def mask_weight(t, schedule=LINEAR):
    r"""Weight of the masked tokens' cross-entropy in the bound.

    :math:`-\alpha'(t) / (1 - \alpha(t))`: 1/t with the linear schedule.

    Parameters
    ----------
    t : float or tensor in (0, 1]
    schedule : MaskingSchedule

    Returns
    -------
    tensor, shape of ``t``, float64

    Raises
    ------
    ValueError
        If a time is 0: nothing is masked, and the weight infinite.
    """
    t = schedules.as_time(t)
    if bool((t == 0).any()):
        raise ValueError("at t = 0 nothing is masked; draw times above 0")
    return -schedule.slope(t) / schedule.masked(t)


# --- draws of times ---------------------------------------------------------


def sample_times(batch, how="low-discrepancy", generator=None):
    """Times for the rows of a batch; each by itself uniform in (0, 1).

    - ``iid``: independent;
    - ``stratified``: one in each of ``batch`` equal parts (MDLM);
    - ``low-discrepancy``: equally spaced, all moved by one draw (Kingma et
      al., 2021).

    The rows share out the parts at random: a bound of the same texts in the
    same rows would else see the first of them with hardly a mask only.

    Parameters
    ----------
    batch : int
    how : {"iid", "stratified", "low-discrepancy"}
    generator : torch.Generator, optional

    Returns
    -------
    tensor, shape ``(batch,)``, float64
    """
    how = look_up("draw of times", how, dict(zip(DRAWS, DRAWS, strict=True)))
    checks.check_whole("batch", batch)
    single = how == "low-discrepancy"
    drawn = torch.rand(
        1 if single else batch, generator=generator, dtype=torch.float64
    )
    if how != "iid":
        part = torch.randperm(batch, generator=generator)
        drawn = (part + drawn) / batch
    # Neither end, where a weight may be infinite.
    return drawn.clamp(2.0**-53, 1 - 2.0**-53)


def sample_counts(batch, length, generator=None):
    """How many tokens to mask in each row: equally spaced over 1 to length.

    The draw of LLaDA's evaluation (Nie et al., 2025): the first count is
    random, the others follow in equal distances and begin anew after
    ``length``. A masked token then weighs ``length / count``.

    Parameters
    ----------
    batch, length : int
    generator : torch.Generator, optional

    Returns
    -------
    tensor, shape ``(batch,)``, int64
        Each by itself uniform over 1 to ``length``.
    """
    checks.check_whole("batch", batch)
    checks.check_whole("length", length)
    first = torch.randint(length, (1,), generator=generator)
    return (first + torch.arange(batch) * length // batch) % length + 1


def mask_count(ids, counts, mask_id, generator=None, keep=None):
    """Mask so many tokens of each row, every choice equally probable.

    Parameters
    ----------
    ids : tensor of ids, shape ``(batch, length)``
    counts : int or tensor, shape ``(batch,)``
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
        If a row has not so many tokens that may be masked.
    """
    keep = check_keep(keep, ids.shape)
    order = torch.rand(ids.shape, generator=generator, dtype=torch.float64)
    free = torch.ones_like(order, dtype=torch.bool)
    if keep is not None:
        free = ~keep.cpu()
    counts = torch.as_tensor(counts).cpu().expand(len(ids))
    if bool((counts < 0).any() or (counts > free.sum(1)).any()):
        raise ValueError(
            f"counts must lie between 0 and the {free.sum(1).min()} tokens "
            f"of a row that may be masked; got {counts.tolist()}"
        )
    rank = order.masked_fill(~free, 2.0).argsort(1).argsort(1)
    hidden = (rank < counts[:, None]).to(ids.device)
    return ids.masked_fill(hidden, mask_id)
