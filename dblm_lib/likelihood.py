r"""How probable texts are to a masked denoiser: bounds, orders, the truth.

Chapters 9 and 11. All figures are in nats a text. With :math:`L` positions
and a cross-entropy that is summed over the masked ones:

- the *bound* :math:`E_t\, (1/t) \sum_{masked}` over times, which is
  :math:`E_l\, (L/l) \sum_{masked}` over the number :math:`l` of masks: the
  mean of the chain rule over all orders;
- the *T-step bound* :math:`\sum_{k=1}^{T} (1/k)\, E \sum_{masked}` at the times
  k/T: what a sampler of T steps loses whose steps reveal several tokens at
  once, each without regard to the others, is in it;
- the *chain rule* in one order, one position after the other.

A denoiser is a callable that answers a canvas with logits; every position of
a text counts, those behind its end, too.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from . import checks, masking, tales

__all__ = [
    "DRAWS",
    "LOW",
    "Counts",
    "Nats",
    "bound",
    "chain_rule",
    "count_nats",
    "exact",
    "noised_bound",
    "random_orders",
    "step_bound",
    "step_bounds",
    "step_weights",
]

DRAWS = ("iid", "stratified", "low-discrepancy", "counts")
# Smallest time that is drawn: with times down to 0 the weight 1/t would have
# no finite variance.
LOW = 1e-3


@dataclass(frozen=True)
class Nats:
    """Nats of some texts, and how far chance may have moved their mean.

    Attributes
    ----------
    rounds : float64 tensor, shape ``(rounds, n)``
        Of each text, as often as it was measured with new random masks.
    places : float64 tensor, shape ``(n, length)``, or None
        Of each position, where a measure can tell.
    """

    rounds: torch.Tensor
    places: torch.Tensor | None = None

    @property
    def values(self):
        """The mean over the rounds of each text, shape ``(n,)``."""
        return self.rounds.mean(dim=0)

    @property
    def mean(self):
        """Nats a text."""
        return self.rounds.mean().item()

    @property
    def error(self):
        """Standard error of the mean: other texts, and other masks.

        Texts are taken for independent. Where times were spread evenly over
        them it is too large rather than too small. NaN for a single text.
        """
        values = self.values
        return (values.std() / math.sqrt(len(values))).item()

    @property
    def draw_error(self):
        """Standard error of the mean for these very texts: other masks only.

        From the means of the rounds; NaN for a single round.
        """
        means = self.rounds.mean(dim=1)
        return (means.std() / math.sqrt(len(means))).item()

    def minus(self, other):
        """The difference to other nats of the same texts, text by text.

        It has a smaller error than the two by themselves, since what makes
        a text improbable does so for both.
        """
        if self.rounds.shape[1] != other.rounds.shape[1]:
            raise ValueError(
                "only nats of the same texts can be compared; got "
                f"{self.rounds.shape[1]} and {other.rounds.shape[1]} of them"
            )
        return Nats(self.rounds - other.values)

    def __str__(self):
        return f"{self.mean:.2f} ± {self.error:.2f} nats a text"


@dataclass(frozen=True)
class Counts:
    """What `count_nats` finds, from which all T-step bounds follow.

    Attributes
    ----------
    nats : float64 tensor, shape ``(rounds, n, length)``
        Cross-entropy of all masked tokens; column l - 1 with l masks.
    orders : Nats
        The chain rule in the order in which the masks of each text fell.
    """

    nats: torch.Tensor
    orders: Nats


# --- The truth --------------------------------------------------------------


def exact(texts):
    """What the grammar says of its tales; their mean is near its entropy.

    Parameters
    ----------
    texts : list of str

    Returns
    -------
    Nats

    Raises
    ------
    tales.ParseError
        If a text is no tale.
    """
    if isinstance(texts, str) or not texts:
        raise ValueError(f"give a list of tales; got {texts!r}")
    values = [-tales.log_prob(tales.parse(words)) for words in texts]
    return Nats(torch.tensor([values], dtype=torch.float64))


# --- Bounds -----------------------------------------------------------------


def bound(
    denoise,
    ids,
    mask_id,
    draw="low-discrepancy",
    rounds=1,
    generator=None,
    low=LOW,
    batch_size=64,
):
    """The bound in continuous time, by one of four ways to draw the masks.

    All four estimate the same figure at the same cost, ``rounds`` forward
    passes a text; they differ in their standard error.

    Parameters
    ----------
    denoise : callable ``ids -> logits``
    ids : tensor of ids, shape ``(n, length)``
        Texts, without masks.
    mask_id : int
    draw : {"iid", "stratified", "low-discrepancy", "counts"}
        A time for each text: by itself; one in each of n equal parts; in
        equal distances, all moved by one draw (Kingma et al., 2021). Or no
        time but a number of masks, spread evenly over 1 to ``length`` (Nie
        et al., 2025).
    rounds : int
        How often each text is masked anew.
    generator : torch.Generator, optional
        A new one of seed 0 if left out.
    low : float
        Times are drawn above it, counts are not. What is left out of the
        bound is about ``low * length`` times the cross-entropy of a token
        given all others.
    batch_size : int

    Returns
    -------
    Nats

    Raises
    ------
    ValueError
        If an argument is unknown or does not fit, or the denoiser answers
        with another shape.
    """
    _check(ids, mask_id, rounds=rounds, batch_size=batch_size)
    if draw not in DRAWS:
        raise ValueError(
            f"unknown draw {draw!r}; choose one of {', '.join(DRAWS)}"
        )
    if not (checks.is_number(low) and 0 < low < 1):
        raise ValueError(
            f"low must lie between 0 and 1, both excluded; got {low!r}"
        )
    generator = generator or torch.Generator().manual_seed(0)
    count, length = ids.shape
    found = []
    for _ in range(rounds):
        dice = torch.rand(ids.shape, generator=generator, dtype=torch.float64)
        if draw == "counts":
            number = masking.sample_counts(count, length, generator)
            hidden = dice.argsort(dim=1).argsort(dim=1) < number[:, None]
            weight = length / number.double()
        else:
            t = masking.sample_times(count, draw, generator)
            t = low + (1 - low) * t
            hidden = dice < t[:, None]
            weight = (1 - low) / t
        nats = _hidden_nats(denoise, ids, hidden, mask_id, batch_size)
        found.append(weight * nats.sum(dim=1))
    return Nats(torch.stack(found))


def noised_bound(
    denoise,
    ids,
    process,
    rounds=1,
    generator=None,
    low=LOW,
    batch_size=64,
    leave_one_out=False,
):
    """The bound in continuous time for any noise on tokens.

    Times are spread evenly and moved by one draw, as in `bound`.

    Parameters
    ----------
    denoise : callable ``(ids, t) -> logits``
        ``t`` has the shape ``(batch,)``.
    ids : tensor of ids, shape ``(n, length)``
    process : processes.Process
        The noise.
    rounds, generator, batch_size
        As in `bound`.
    low : float
        Times are drawn inside ``[low, 1 - low]``; what the two ends hold is
        left out.
    leave_one_out : bool
        Whether the denoiser answers without looking at the token that
        stands at a position. If not, as after training with cross-entropy,
        its answer is converted by `processes.leave_one_out`.

    Returns
    -------
    Nats
    """
    _check(ids, process.mask_id, rounds=rounds, batch_size=batch_size)
    if not (checks.is_number(low) and 0 < low < 0.5):
        raise ValueError(
            f"low must lie between 0 and 0.5, both excluded; got {low!r}"
        )
    generator = generator or torch.Generator().manual_seed(0)
    found = torch.zeros(rounds, len(ids), dtype=torch.float64)
    for row in found:
        t = masking.sample_times(len(ids), "low-discrepancy", generator)
        t = low + (1 - 2 * low) * t
        zt = process.add_noise(ids, t, generator)
        for start in range(0, len(ids), batch_size):
            part = slice(start, start + batch_size)
            here, text, time = zt[part], ids[part], t[part].to(ids.device)
            with torch.no_grad():
                logits = denoise(here, time).double()
            if not leave_one_out:
                logits = process.leave_one_out(logits, here, time)
            terms = process.bound(logits, here, text, time)
            row[part] = (1 - 2 * low) * terms.sum(dim=1).cpu()
    return Nats(found)


def step_bound(
    denoise, ids, mask_id, steps, rounds=1, generator=None, batch_size=64
):
    """The bound of T steps, as it is defined: one pass for each step.

    With one step everything is masked, and it is the sum of the
    cross-entropies of the positions, each by itself. With more steps it
    falls, towards `bound`.

    Parameters
    ----------
    denoise, ids, mask_id, rounds, generator, batch_size
        As in `bound`.
    steps : int
        T.

    Returns
    -------
    Nats
    """
    _check(ids, mask_id, rounds=rounds, batch_size=batch_size, steps=steps)
    generator = generator or torch.Generator().manual_seed(0)
    found = torch.zeros(rounds, len(ids), dtype=torch.float64)
    for row in found:
        for k in range(1, steps + 1):
            dice = torch.rand(ids.shape, generator=generator).double()
            nats = _hidden_nats(
                denoise, ids, dice < k / steps, mask_id, batch_size
            )
            row += nats.sum(dim=1) / k
    return Nats(found)


def count_nats(denoise, ids, mask_id, rounds=1, generator=None, batch_size=64):
    """Cross-entropy of all masked tokens by how many of them there are.

    From this table follow the bound and the T-step bounds for every T, see
    `step_bounds`, all from the same ``length`` forward passes a text.

    Parameters
    ----------
    denoise, ids, mask_id, rounds, generator, batch_size
        As in `bound`. In each round the masks of a text fall in one random
        order, so that those of a higher count hold those of a lower one.

    Returns
    -------
    Counts
    """
    _check(ids, mask_id, rounds=rounds, batch_size=batch_size)
    generator = generator or torch.Generator().manual_seed(0)
    count, length = ids.shape
    found = torch.zeros(rounds, count, length, dtype=torch.float64)
    orders = torch.zeros(rounds, count, dtype=torch.float64)
    number, places = torch.arange(1, length + 1)[:, None], range(length)
    for table, chain in zip(found, orders):
        drawn = random_orders(length, count, generator)
        for row, order in enumerate(drawn):
            hidden = order.argsort() < number
            text = ids[row].expand(length, -1)
            nats = _hidden_nats(denoise, text, hidden, mask_id, batch_size)
            table[row] = nats.sum(dim=1)
            chain[row] = nats[places, order].sum()
    return Counts(found, Nats(orders))


def step_weights(steps, length):
    """What the nats of each number of masks weigh in the T-step bound.

    At the time k/T the number of masks is binomial, and the step weighs 1/k.

    Parameters
    ----------
    steps : int, or ``math.inf`` for the bound in continuous time
    length : int

    Returns
    -------
    float64 tensor, shape ``(length,)``
        For 1 to ``length`` masks. In continuous time 1/l.
    """
    number = torch.arange(1, length + 1, dtype=torch.float64)
    if steps == math.inf:
        return 1 / number
    checks.check_whole("steps", steps)
    k = torch.arange(1, steps + 1, dtype=torch.float64)[:, None]
    chance = torch.distributions.Binomial(length, probs=k / steps)
    share = chance.log_prob(number).exp()
    # At t = 1 every token is masked; the formula divides by 1 - t.
    share[-1] = (number == length).double()
    return (share / k).sum(dim=0)


def step_bounds(table, steps):
    """The T-step bounds that follow from what `count_nats` found.

    Of the nats with l masks the mean over all orders has two estimates: those
    of all l masked tokens over l, or those of the one that is revealed next.
    Weighted 1/l, their difference is 0 in the mean over the orders. It is
    taken off: for large T next to nothing is then left to chance, and with a
    denoiser whose orders agree nothing at all.

    Parameters
    ----------
    table : Counts
    steps : sequence of int
        Values of T; ``math.inf`` stands for the bound in continuous time.

    Returns
    -------
    dict
        T -> Nats.
    """
    length = table.nats.shape[-1]
    limit = step_weights(math.inf, length)
    return {
        T: Nats(
            table.orders.rounds
            + table.nats @ (step_weights(T, length) - limit)
        )
        for T in steps
    }


# --- One order --------------------------------------------------------------


def random_orders(length, count, generator=None):
    """Orders in which a text may be written, all equally probable.

    Returns
    -------
    tensor of positions, shape ``(count, length)``
    """
    dice = torch.rand(count, length, generator=generator)
    return dice.argsort(dim=1)


def chain_rule(denoise, ids, mask_id, order=None, batch_size=64):
    """The likelihood when tokens are revealed one by one in a given order.

    No bound of anything: for each order it is the exact log-probability of
    the texts under the sampler that reveals one token after the other in
    that order. Costs ``length`` forward passes a text.

    Parameters
    ----------
    denoise, ids, mask_id, batch_size
        As in `bound`.
    order : tensor of positions, shape ``(length,)`` or ``(n, length)``
        The same for all texts, or one for each; from left to right if left
        out.

    Returns
    -------
    Nats
        With the nats of each position.
    """
    _check(ids, mask_id, batch_size=batch_size)
    count, length = ids.shape
    places = torch.arange(length)
    order = places if order is None else torch.as_tensor(order).cpu()
    if order.shape not in [(length,), (count, length)] or not (
        (order.sort(dim=-1).values == places).all()
    ):
        raise ValueError(
            f"order must hold each position from 0 to {length - 1} once, in "
            f"shape ({length},) or ({count}, {length}); got "
            f"{tuple(order.shape)}"
        )
    order = order.expand(count, length)
    found = torch.zeros(count, length, dtype=torch.float64)
    for row, text, mine in zip(found, ids, order):
        hidden = mine.argsort() >= places[:, None]
        asked = F.one_hot(mine, length).bool()
        nats = _hidden_nats(
            denoise,
            text.expand(length, -1),
            hidden,
            mask_id,
            batch_size,
            asked,
        )
        row += nats.sum(dim=0)
    return Nats(found.sum(dim=1)[None], found)


# --- What they share --------------------------------------------------------


@torch.no_grad()
def _hidden_nats(denoise, ids, hidden, mask_id, batch_size, asked=None):
    """Cross-entropy of the hidden tokens, zero elsewhere, in float64.

    If some of them are asked, of those only.
    """
    asked = hidden if asked is None else asked
    found = torch.zeros(ids.shape, dtype=torch.float64)
    for start in range(0, len(ids), batch_size):
        part = slice(start, start + batch_size)
        here, text = asked[part].to(ids.device), ids[part]
        canvas = text.masked_fill(hidden[part].to(ids.device), mask_id)
        logits = denoise(canvas)
        if logits.ndim != 3 or logits.shape[:2] != canvas.shape:
            raise ValueError(
                "a denoiser answers a canvas of shape "
                f"{tuple(canvas.shape)} with logits of shape (batch, length, "
                f"vocab); got {tuple(logits.shape)}"
            )
        nats = F.cross_entropy(
            logits[here].double(), text[here], reduction="none"
        )
        found[part][here.cpu()] = nats.cpu()
    return found


def _check(ids, mask_id, **sizes):
    """Refuse texts and sizes that do not fit."""
    if ids.ndim != 2 or ids.numel() == 0:
        raise ValueError(
            "ids must have shape (n, length), with at least one position; "
            f"got {tuple(ids.shape)}"
        )
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"ids must be whole numbers; got {ids.dtype}")
    if (ids == mask_id).any():
        raise ValueError(
            f"a text holds the mask, {mask_id}: give texts without masks, "
            "which are made here"
        )
    for name, value in sizes.items():
        checks.check_whole(name, value)
