r"""Unmasking: from a canvas of masks back to text.

Chapter 9. `unmask` fills masks in a loop: the network says what may
stand at each mask, an *order* chooses the masks that are revealed next, and
their tokens are drawn. An order is a short function; `ORDERS` names them. Networks are
callables that answer with logits of the clean tokens, ``(batch, length,
vocab_size)``; ids have the shape ``(batch, length)``.
"""

import inspect
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch

from . import checks, masking
from .masking import LINEAR, look_up
from .schedules import check_num_steps

__all__ = [
    "ORDERS",
    "REMASKING",
    "Course",
    "Step",
    "accept",
    "ancestral",
    "check_sampling",
    "confidence",
    "draw_tokens",
    "drawn",
    "entropy",
    "entropy_bound",
    "first_hitting",
    "left_to_right",
    "margin",
    "race",
    "race_share",
    "random",
    "remask_share",
    "rule_of",
    "threshold",
    "unmask",
]

REMASKING = ("cap", "rescale", "conf")


# --- drawing tokens ---------------------------------------------------------


def draw_tokens(logits, temperature=1.0, generator=None, dtype=torch.float64):
    """Draw a token at each position, on the CPU.

    Parameters
    ----------
    logits : tensor, shape ``(..., vocab_size)``
    temperature : float
        0 takes the most probable.
    generator : torch.Generator, optional
    dtype : torch.float64 or torch.float32
        Of the probabilities; see `race_share` for what float32 may do.

    Returns
    -------
    tensor of ids, shape ``(...)``
    """
    if temperature == 0:
        return logits.argmax(-1)
    flat = logits.reshape(-1, logits.shape[-1]).to(dtype) / temperature
    if not len(flat):
        return logits.new_empty(logits.shape[:-1], dtype=torch.long)
    probs = flat.softmax(-1).cpu()
    ids = torch.multinomial(probs, 1, generator=generator)
    return ids.to(logits.device).view(logits.shape[:-1])


def race(probs, generator=None, bits=53):
    """Draw by a race: the token with the largest p / E wins, E exponential.

    The same as adding Gumbel noise to log p. E is ``-log(u)`` with u a
    multiple of 2^-bits, 24 in float32 and 53 in float64. E has no value
    between 0 and 2^-bits, and a token of a probability as small wins too
    rarely (Zheng et al., 2025).
    """
    u = torch.randint(2**bits, probs.shape, generator=generator)
    # Half a step in place of 0, whose logarithm would be infinite.
    times = -(u.double().clamp(min=0.5) / 2**bits).log().to(probs.device)
    return (probs.double() / times).argmax(-1)


def race_share(probability, bits=24):
    r"""How often a rare token wins a `race`, as a share of how often it should.

    :math:`r = 1 / (a\,(e^{1/a} - 1))` with :math:`a = q\,2^{bits}`, for a
    token of probability q against one of nearly 1, such as the mask that
    stays a mask in a small step.
    """
    a = torch.as_tensor(probability, dtype=torch.float64) * 2.0**bits
    return 1 / (a * torch.expm1(1 / a))


# --- orders -----------------------------------------------------------------


class Step:
    """What an order may look at.

    Attributes
    ----------
    ids : tensor of ids, shape ``(batch, length)``
        The canvas.
    masked : bool tensor, shape of ``ids``
        What may be revealed now: the masks, or those of the current block.
    quota : tensor of ids, shape ``(batch,)``
        How many to reveal, so that the steps that are left suffice.
    share : tensor, shape of ``ids``
        Probability with which the ancestral step changes a position.
    logits, probs : tensor, shape ``(batch, length, vocab_size)``
        Of the network, with `masking.carry_over`; asking for them evaluates
        it, for the rows that have changed since.
    tokens : tensor of ids, shape of ``ids``
        A draw for every position.
    """

    def __init__(self, ids, masked, quota, share, answer, draw, generator):
        self.ids, self.masked, self.quota = ids, masked, quota
        self.share, self.generator = share, generator
        self._answer, self._draw = answer, draw

    @cached_property
    def logits(self):
        return self._answer(self.ids, self.masked.any(1))

    @cached_property
    def probs(self):
        return self.logits.softmax(-1)

    @cached_property
    def tokens(self):
        return self._draw(self.logits)

    def random(self):
        """Uniform numbers, shape of ``ids``, float64."""
        drawn = torch.rand(
            self.ids.shape, generator=self.generator, dtype=torch.float64
        )
        return drawn.to(self.ids.device)

    def best(self, scores):
        """The ``quota`` masks of each row with the highest scores."""
        scores = scores.masked_fill(~self.masked, -torch.inf)
        order = scores.argsort(dim=1, descending=True, stable=True)
        rank = order.argsort(dim=1)
        return self.masked & (rank < self.quota[:, None])

    def entropies(self):
        """Entropy of the token at each position, in nats."""
        return torch.special.entr(self.probs).sum(-1)


def ancestral(step):
    """Each mask by itself, with the probability of the step of time."""
    return step.random() < step.share


def first_hitting(step):
    """One mask, each equally probable: what happens next in many steps.

    Between two such events nothing happens, and nothing need be evaluated
    (Zheng et al., 2025). With n masks left the next is revealed when the
    time, of the linear schedule, has fallen by a factor of u^(1/n).
    """
    step.quota = step.masked.any(1).long()
    return step.best(step.random())


def random(step):
    """Any masks, equally many in each step."""
    return step.best(step.random())


def left_to_right(step, tau=None):
    """The leftmost masks.

    With ``tau`` only the leftmost, and wherever they stand all masks whose
    best token is more probable than that: tokens that are unsure are drawn
    one after the other, and only those that hardly depend on chance
    together. The last step reveals what is left.
    """
    length = step.ids.shape[1]
    place = torch.arange(length, 0, -1, device=step.ids.device)
    place = place.double().expand(step.ids.shape)
    if tau is None:
        return step.best(place)
    masks = step.masked.sum(1)
    step.quota = torch.where(step.quota < masks, 1, step.quota)
    return step.best(place) | (step.masked & (step.probs.amax(-1) > tau))


def confidence(step):
    """Where the most probable token has the largest probability."""
    return step.best(step.probs.amax(-1))


def drawn(step):
    """Where the token drawn has the largest probability, as in LLaDA.

    Positions whose draw was a probable one come first: above temperature 0
    even one token a step is no draw from the model.
    """
    token = step.tokens[..., None]
    return step.best(step.probs.gather(-1, token)[..., 0])


def margin(step):
    """Where the most probable token is furthest ahead of the second."""
    first, second = step.probs.topk(2, dim=-1).values.unbind(-1)
    return step.best(first - second)


def entropy(step):
    """Where the entropy of the token is lowest."""
    return step.best(-step.entropies())


def threshold(step, tau=0.9):
    """All masks whose best token is more probable than ``tau``.

    At least as many as the steps that are left ask for (Fast-dLLM; Wu et
    al., 2025).
    """
    top = step.probs.amax(-1)
    return step.best(top) | (step.masked & (top > tau))


def entropy_bound(step, bound=0.1):
    """The lowest entropies, while all but the last sum to at most ``bound``.

    That sum bounds what the tokens drawn together should have known of each
    other, in nats (Ben-Hamu et al., 2025).
    """
    entropies = step.entropies()
    return step.best(-entropies) | accept(entropies, bound, step.masked)


def accept(entropies, bound, among):
    """The rule of `entropy_bound`, at the positions ``among``."""
    ranked, place = entropies.masked_fill(~among, torch.inf).sort(1)
    below = ranked.cumsum(1) - ranked <= bound  # inf - inf is not
    return among & torch.zeros_like(among).scatter(1, place, below)


ORDERS = {
    "ancestral": ancestral,
    "first-hitting": first_hitting,
    "random": random,
    "left-to-right": left_to_right,
    "confidence": confidence,
    "drawn": drawn,
    "margin": margin,
    "entropy": entropy,
    "threshold": threshold,
    "entropy-bound": entropy_bound,
}


def rule_of(order, options):
    """The order that is meant, a name or a callable, its options filled in."""
    rule = order if callable(order) else look_up("order", order, ORDERS)
    known = list(inspect.signature(rule).parameters)[1:]
    for name in options:
        if name not in known:
            takes = ", ".join(known) or "none"
            raise TypeError(
                f"order {order!r} has no option {name!r}; it takes {takes}"
            )
    return partial(rule, **options)


# --- remasking --------------------------------------------------------------


def remask_share(how, alpha_s, alpha_t, eta=None, sure=None):
    r"""Probability that a visible token is masked again (ReMDM).

    At most :math:`\sigma_{max} = \min(1, (1 - \alpha_s) / \alpha_t)`; a
    mask is then revealed the more often, so that as many are masked as
    without (Wang et al., 2025). ``cap``: the smaller of it and eta, .008.
    ``rescale``: eta times it, .015. ``conf``: eta times it, 1, shared out
    among the visible tokens, more to those of small probability; then the
    share of masks is no longer exactly that of the schedule.

    Parameters
    ----------
    how : {"cap", "rescale", "conf"}
    alpha_s, alpha_t : tensor, shape ``(batch, length)``
    eta : float in [0, 1], optional
    sure : tensor, shape ``(batch, length)``
        For ``conf``: the probability that each token had when it was
        revealed; infinite where there is none.

    Returns
    -------
    tensor, shape of ``alpha_t``, float64
    """
    look_up("remasking", how, dict.fromkeys(REMASKING))
    if eta is None:
        eta = {"cap": 0.008, "rescale": 0.015, "conf": 1.0}[how]
    if not (checks.is_number(eta) and 0 <= eta <= 1):
        raise ValueError(f"eta must lie in [0, 1]; got {eta!r}")
    most = ((1 - alpha_s) / alpha_t.clamp(min=1e-300)).clamp(max=1)
    if how == "cap":
        return most.clamp(max=eta)
    if how == "rescale":
        return eta * most
    among = torch.isfinite(sure)
    doubt = torch.where(among, -sure, -1e9).softmax(1)
    return torch.where(among, eta * most * doubt, 0.0)


# --- the loop ---------------------------------------------------------------


@dataclass
class Course:
    """A text and how it came about.

    Attributes
    ----------
    ids : tensor of ids, shape ``(batch, length)``
    revealed : tensor, shape ``(batch, length)``
        The step, from 1, in which a token was last written; 0 if given.
    nfe : tensor, shape ``(batch,)``
        How often the network was evaluated for each row. A row whose
        canvas has not changed is not evaluated again.
    calls : int
        How often the network was called, for whichever rows.
    times : list of float
        Before each step, if recorded, like what follows: the share of the
        positions to be written that are masked; of random tokens, the time.
    canvases, guesses : lists of tensors, each ``(batch, length)``
        The canvas before each step, and with its masks filled by the most
        probable tokens.
    confidence : list of tensors, each ``(batch, length)``
        The probability of those tokens; 1 where nothing is guessed.
    """

    ids: torch.Tensor = None
    revealed: torch.Tensor = None
    nfe: torch.Tensor = None
    calls: int = 0
    times: list = field(default_factory=list)
    canvases: list = field(default_factory=list)
    guesses: list = field(default_factory=list)
    confidence: list = field(default_factory=list)

    def note(self, time, canvas, logits, written):
        """Keep a step; guesses where ``written`` is False yet."""
        probs = logits.float().softmax(-1)
        sure, guess = probs.max(-1)
        self.times.append(float(time))
        self.canvases.append(canvas.cpu())
        self.guesses.append(torch.where(written, canvas, guess).cpu())
        self.confidence.append(sure.masked_fill(written, 1.0).cpu())


class _Answers:
    """The network's last answer to each row, and how often it was asked."""

    def __init__(self, denoise, course, mask_id, temperature):
        self.denoise, self.course, self.mask_id = denoise, course, mask_id
        self.scale = temperature or 1.0
        self.seen = self.logits = None

    def __call__(self, ids, rows):
        """Logits of all rows; those in ``rows`` belong to their ids."""
        if self.seen is not None:
            rows = rows & (self.seen != ids).any(1)
        if bool(rows.any()):
            logits = self.denoise(ids[rows])
            masking.check_logits(logits, ids[rows])
            if self.seen is None:
                self.seen = torch.full_like(ids, -1)
                self.logits = logits.new_zeros(*ids.shape, logits.shape[-1])
            self.seen[rows] = ids[rows]
            self.logits[rows] = masking.carry_over(
                logits / self.scale, ids[rows], self.mask_id
            )
            self.course.nfe[rows] += 1
            self.course.calls += 1
        return self.logits


class _Clock:
    """Steps, shared out among the blocks of each row that hold masks."""

    def __init__(self, masked, num_steps, block_length):
        length = masked.shape[1]
        block_length = length if block_length is None else block_length
        if not checks.is_whole(block_length):
            raise ValueError(
                "block_length must be a whole number of at least 1; "
                f"got {block_length!r}"
            )
        block = torch.arange(length, device=masked.device) // block_length
        count = masked.new_zeros((len(masked), int(block[-1]) + 1)).long()
        count.scatter_add_(1, block.expand(masked.shape), masked.long())
        if num_steps is not None:
            steps, some = check_num_steps(num_steps), count > 0
            blocks = some.sum(1, keepdim=True)
            if steps < int(blocks.max()):
                raise ValueError(
                    f"{int(blocks.max())} blocks need a step each; "
                    f"got num_steps = {steps}"
                )
            nth, blocks = some.cumsum(1) - 1, blocks.clamp(min=1)
            count = steps // blocks + (nth < steps % blocks)
            count = count.where(some, 0)
        self.block, self.total, self.left = block, count, count.clone()

    def __call__(self, masked, more):
        """The window of each row, and its steps, all and left.

        ``more``: a window lasts until its steps are over, masks or not.
        """
        here = self.left * more
        place = self.block.expand(masked.shape)
        here = here.scatter_add(1, place, masked.long())
        now = (here > 0).int().argmax(1)[:, None]
        window = self.block == now
        all_, left = self.total.gather(1, now), self.left.gather(1, now)
        self.left.scatter_(1, now, (left - 1).clamp(min=0))
        return window, all_[:, 0], left[:, 0]


@torch.no_grad()
def unmask(
    denoise,
    canvas,
    mask_id,
    order="confidence",
    num_steps=None,
    generator=None,
    temperature=1.0,
    block_length=None,
    schedule=LINEAR,
    stagger=0.0,
    remask=None,
    eta=None,
    dtype=torch.float64,
    record=False,
    **options,
):
    """Write tokens where a canvas has masks.

    Parameters
    ----------
    denoise : callable ``ids -> logits``
        Of any number of rows; they do not know of each other.
    canvas : tensor of ids, shape ``(batch, length)``
        What is visible stays.
    mask_id : int
    order : name in `ORDERS`, or callable ``step -> bool tensor``
    num_steps : int, optional
        At most so many; as many as there are masks if left out. Orders with
        a quota reveal equally many in each.
    generator : torch.Generator, optional
        On the CPU.
    temperature : float
        The logits are divided by it; 0 writes the most probable token.
    block_length : int, optional
        Finish each block of so many positions before the next begins.
    schedule : masking.MaskingSchedule, and stagger : float
        Of the ancestral order: its times, and how far the left is ahead of
        the right, see `reverse.staggered_times`.
    remask : {"cap", "rescale", "conf"}, and eta : float, optional
        Of the ancestral order: mask visible tokens again, `remask_share`.
    dtype : torch.float64 or torch.float32
        Of the probabilities that tokens are drawn from.
    record : bool
        Keep the canvas of each step, and ask the network about it.
    **options
        Of the order, such as ``tau=0.8`` of "threshold".

    Returns
    -------
    Course

    Raises
    ------
    TypeError, ValueError
        If an option means nothing, or the order does not have it, or the
        network's answer has another shape.
    """
    rule = rule_of(order, options)
    timed = rule.func is ancestral
    check_sampling(canvas, temperature, dtype)
    if not timed and (stagger or remask is not None):
        raise ValueError("stagger and remask belong to the ancestral order")
    if block_length is not None and (stagger or remask is not None):
        raise ValueError("stagger and remask need the whole canvas at once")
    if rule.func is first_hitting and num_steps is not None:
        raise ValueError(
            "first-hitting reveals one token a step; leave num_steps out, "
            "or take the order 'random'"
        )
    ids = canvas.clone()
    free = ids == mask_id
    revealed, nfe = torch.zeros_like(ids), ids.new_zeros(len(ids))
    course = Course(ids, revealed, nfe)
    answer = _Answers(denoise, course, mask_id, temperature)
    clock = _Clock(free, num_steps, block_length)
    sure = torch.full(ids.shape, torch.inf, device=ids.device).double()
    draw = partial(
        draw_tokens,
        temperature=float(temperature > 0),
        generator=generator,
        dtype=dtype,
    )
    number, most = 0, int(clock.total.sum(1).max())
    while bool((ids == mask_id).any()) or bool(clock.left.any() and remask):
        number += 1
        masked = ids == mask_id
        window, total, left = clock(masked, remask is not None)
        share = None
        if timed:
            alphas = _alphas(schedule, total, left, ids.shape, stagger)
            share = _shares(alphas, masked, free, remask, eta, sure)
            share = share * window
        may = masked & window
        quota = -(-may.sum(1) // left.clamp(min=1))
        step = Step(ids, may, quota, share, answer, draw, generator)
        change = _checked(rule(step), ids, number <= most)
        reveal, hide = change & may, change & free & ~masked
        if record:
            time = masked.sum() / free.sum()
            course.note(time, ids, answer(ids, masked.any(1)), ~masked)
        sure[hide] = torch.inf
        if bool(reveal.any()):
            logits = answer(ids, reveal.any(1))[reveal]
            known = "tokens" in vars(step)
            tokens = step.tokens[reveal] if known else draw(logits)
            probs = logits.softmax(-1).double()
            sure[reveal] = probs.gather(-1, tokens[:, None])[:, 0]
        ids = ids.masked_fill(hide, mask_id)
        if bool(reveal.any()):
            ids[reveal], revealed[reveal] = tokens, number
    course.ids = ids
    return course


def _checked(change, ids, in_time):
    """Refuse the answer of an order that is none, or that never ends."""
    if change.dtype != torch.bool or change.shape != ids.shape:
        raise ValueError(
            "an order answers with True and False, shape "
            f"{tuple(ids.shape)}; got {change.dtype} of shape "
            f"{tuple(change.shape)}"
        )
    if not in_time:
        raise ValueError(
            "the order has left masks after its last step: let it reveal "
            "step.quota of them at least, as step.best does"
        )
    return change


def _alphas(schedule, total, left, shape, stagger):
    """alpha at the end and at the beginning of a step, at each position."""
    delay = stagger * torch.linspace(1, 0, shape[1], dtype=torch.float64)
    found = []
    for steps in (left - 1, left):
        t = steps.clamp(min=0).double() / total.clamp(min=1)
        t = (1 + stagger) * t[:, None] - delay.to(t.device)
        t = torch.where(t < 1e-9, 0.0, torch.where(t > 1 - 1e-9, 1.0, t))
        found.append(schedule.alpha(t).expand(shape))
    return found


def _shares(alphas, masked, free, remask, eta, sure):
    """The probability that a position changes: revealed, or masked again."""
    alpha_s, alpha_t = alphas
    sigma = torch.zeros_like(alpha_t)
    if remask is not None:
        sigma = remask_share(remask, alpha_s, alpha_t, eta, sure)
    gone = (1 - alpha_t).clamp(min=1e-300)
    reveal = (alpha_s - (1 - sigma) * alpha_t) / gone
    return torch.where(masked, reveal, sigma) * free


def check_sampling(canvas, temperature, dtype):
    """Refuse a canvas, a temperature or a dtype that means nothing."""
    if canvas.ndim != 2 or canvas.is_floating_point():
        raise ValueError(
            "the canvas holds ids, shape (batch, length); got "
            f"{canvas.dtype} of shape {tuple(canvas.shape)}"
        )
    if not (checks.is_number(temperature) and temperature >= 0):
        raise ValueError(
            f"temperature must be 0 or positive; got {temperature!r}"
        )
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"dtype must be torch.float64 or torch.float32; got {dtype}"
        )
