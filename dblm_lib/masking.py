r"""Noise on tokens: masks, random tokens, and both together.

Chapters 9 and 10. Time runs from 0, the clean text, to 1, nothing but noise.
At time t a token is still clean with probability ``alpha(t)``; otherwise the
noise has put something else there, wherever it stood: a mask, or a token
drawn at random. Text is ``ids``, shape ``(batch, length)``, with tokens from
0 to ``vocab_size - 1``; the mask is one id more. Times and probabilities are
float64.
"""

import difflib
import math

import torch
import torch.nn.functional as F

from . import checks, schedules
from .noising import check_keep, mask_tokens, spread_time

__all__ = [
    "DRAWS",
    "PROCESSES",
    "SCHEDULES",
    "CosineMasking",
    "Hybrid",
    "LinearMasking",
    "Masked",
    "MaskingSchedule",
    "PowerMasking",
    "Process",
    "Uniform",
    "carry_over",
    "draw_counts",
    "draw_times",
    "get_process",
    "get_schedule",
    "leave_one_out",
    "mask_count",
    "mask_posterior",
    "mask_tokens",
    "mask_weight",
    "plain_logits",
    "reveal_share",
]

DRAWS = ("iid", "stratified", "low-discrepancy")


# --- schedules --------------------------------------------------------------


class MaskingSchedule:
    """How many tokens are clean at time t; subclasses give three functions.

    ``masked(t)`` is ``1 - alpha(t)``, written out so that no digit is lost,
    and ``slope(t)`` the derivative of alpha, which is never positive.
    """

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
    return _look_up("schedule", name, SCHEDULES)(**options)


def _look_up(what, name, known):
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
    _check_logits(logits, ids)
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


def _check_logits(logits, ids):
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


def draw_times(batch, how="low-discrepancy", generator=None):
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
    how = _look_up("draw of times", how, dict(zip(DRAWS, DRAWS, strict=True)))
    _check_whole(batch, "batch")
    single = how == "low-discrepancy"
    drawn = torch.rand(
        1 if single else batch, generator=generator, dtype=torch.float64
    )
    if how != "iid":
        part = torch.randperm(batch, generator=generator)
        drawn = (part + drawn) / batch
    # Neither end, where a weight may be infinite.
    return drawn.clamp(2.0**-53, 1 - 2.0**-53)


def draw_counts(batch, length, generator=None):
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
    _check_whole(batch, "batch")
    _check_whole(length, "length")
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


def _check_whole(value, name):
    if not checks.is_whole(value):
        raise ValueError(
            f"{name} must be a whole number of at least 1; got {value!r}"
        )


# --- masks, random tokens, and both -----------------------------------------


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
        """The function `leave_one_out` with this noise at time ``t``."""
        alpha, _, each = self._at(t, logits)
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
        _check_logits(logits, ids)
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
    return _look_up("noise", name, PROCESSES)(vocab_size, **options)


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
    _check_logits(logits, ids)
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
