r"""Decoding: from pure noise back to text.

Chapter 5. The reverse process starts from noise at t = 1 and goes down a
grid of times to 0. At each step a denoiser guesses the clean embeddings and
the noised ones move a little towards the guess. At the end each point is
rounded to a token.
"""

import math
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from . import denoiser, noising, resources, schedules, text

__all__ = [
    "STEPS",
    "Generation",
    "Guesser",
    "Trajectory",
    "ancestral_step",
    "clamp",
    "deterministic_step",
    "empirical_denoiser",
    "generate",
    "generate_ids",
    "reverse_times",
    "sample",
    "staggered_times",
]

STEPS = ("ancestral", "deterministic")


def reverse_times(num_steps):
    """Times from 1 down to 0 in equal steps.

    Parameters
    ----------
    num_steps : int
        At least 1.

    Returns
    -------
    tensor, shape ``(num_steps + 1,)``, float64

    Raises
    ------
    TypeError, ValueError
        If ``num_steps`` is no whole number of at least 1.
    """
    num_steps = schedules.check_num_steps(num_steps)
    return torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)


def staggered_times(num_steps, length, stagger):
    """Times by position: the left of the text goes first, the right later.

    Every position goes from 1 to 0 in a window of its own. With ``stagger``
    1 the last begins when the first is done; with 0 all go together (Wu et
    al., 2023, choose the speeds otherwise).

    Parameters
    ----------
    num_steps, length : int
    stagger : float
        0 or more; the windows overlap less and less.

    Returns
    -------
    tensor, shape ``(num_steps + 1, length, 1)``, float64
    """
    if not 0 <= stagger < float("inf"):
        raise ValueError(f"stagger must be 0 or more; got {stagger}")
    clock = (1 + stagger) * reverse_times(num_steps)[:, None]
    delay = stagger * torch.linspace(1, 0, length, dtype=torch.float64)
    times = clock - delay
    times[times < 1e-9] = 0  # not a step as small as a rounding error
    times[times > 1 - 1e-9] = 1
    return times[..., None]


def ancestral_step(x0_hat, zt, schedule, t, s, eps):
    """One random step from time t to the earlier time s.

    Draws from the posterior q(z_s | z_t, x_0) with the guess in place of
    x_0 (Ho et al., 2020, eq. 7).

    Parameters
    ----------
    x0_hat, zt, eps : tensor, shape ``(batch, length, dim)``
        The guess, the current points, a standard normal draw.
    schedule : Schedule
    t, s : float
        ``s < t``.

    Returns
    -------
    tensor, shape of ``zt``
    """
    mean, variance = schedules.posterior(
        x0_hat, zt, schedule.alpha_bar(s), schedule.alpha_bar(t)
    )
    return (mean + variance.clamp(min=0).sqrt() * eps).to(zt.dtype)


def deterministic_step(x0_hat, zt, schedule, t, s):
    """One step from t to s without chance (DDIM; Song et al., 2021).

    If x0_hat is right, then the noise in zt is known: keep that noise, and
    mix it with the guess in the proportions of time s.

    Parameters
    ----------
    x0_hat, zt : tensor, shape ``(batch, length, dim)``
    schedule : Schedule
    t, s : float
        ``s < t``.

    Returns
    -------
    tensor, shape of ``zt``
    """
    eps_hat = (zt - schedule.alpha(t) * x0_hat) / schedule.sigma(t)
    zs = schedule.alpha(s) * x0_hat + schedule.sigma(s) * eps_hat
    return zs.to(zt.dtype)


def clamp(x0_hat, table, metric="euclidean"):
    """Snap each guess to the nearest token's embedding (Li et al., 2022).

    Parameters
    ----------
    x0_hat : tensor, shape ``(batch, length, dim)``
    table : tensor, shape ``(vocab, dim)``
    metric : {"euclidean", "cosine", "dot"}

    Returns
    -------
    tensor, shape of ``x0_hat``
        Rows of ``table``.
    """
    return table[noising.nearest(x0_hat, table, metric)]


@dataclass
class Trajectory:
    """The path of a sample, for pictures.

    Attributes
    ----------
    times : list of float
        The time of each evaluation, from 1 downwards.
    x0_hat, zt : list of tensors, each ``(batch, length, dim)``
        The guess at that time and the points it was made from.
    ids : list of tensors, each ``(batch, length)``
        The guess rounded to tokens. Like ``confidence`` filled by
        `generate_ids`, and empty after a bare `sample`.
    confidence : list of tensors, each ``(batch, length)``
        Probability of that token, see `Guesser`.
    """

    times: list = field(default_factory=list)
    x0_hat: list = field(default_factory=list)
    zt: list = field(default_factory=list)
    ids: list = field(default_factory=list)
    confidence: list = field(default_factory=list)


@torch.no_grad()
def sample(
    denoise,
    schedule,
    shape,
    num_steps,
    generator=None,
    step="ancestral",
    known=None,
    keep=None,
    snap=None,
    trajectory=None,
    progress=False,
    device="cpu",
    stagger=0.0,
    power=1.0,
):
    """Run the reverse process; the network is evaluated once a step.

    Parameters
    ----------
    denoise : callable ``(zt, t) -> x0_hat``
        ``t`` has shape ``(batch, length)``; it is 0 where ``keep`` is True.
    schedule : Schedule
    shape : tuple ``(batch, length, dim)``
    num_steps : int
    generator : torch.Generator, optional
        On the CPU.
    step : {"ancestral", "deterministic"}
    known : tensor of ``shape``, and keep : bool tensor ``(batch, length)``
        Clean embeddings of a prompt, and where it stands.
    snap : callable ``x0_hat -> x0_hat``, optional
        Applied to each guess, see `clamp`.
    trajectory : Trajectory, optional
        Filled as the sample moves.
    progress : bool
        Show a progress bar.
    stagger : float
        How far the left is ahead of the right, see `staggered_times`; with
        0 all positions have the same noise.
    power : float
        Times are raised to it: below 1 more of the steps are spent where
        there is much noise (Karras et al., 2022, bend theirs likewise).

    Returns
    -------
    tensor of ``shape``
        The last guess of x0; the prompt as it was given.

    Raises
    ------
    TypeError, ValueError
        If the number of steps or the name of the step is wrong, if the
        prompt does not fit, or if the denoiser's guess has another shape or
        is not finite.
    """
    times = reverse_times(num_steps)
    if stagger:
        times = staggered_times(num_steps, shape[1], stagger)
    if not 0 < power < math.inf:
        raise ValueError(f"power must be positive; got {power}")
    times = times**power
    advance = _advance(step, schedule, shape, generator, device)
    hold = _hold(known, keep, shape)
    zt = torch.randn(shape, generator=generator).to(device)
    bar = resources.progress_bar(
        list(pairwise(times)), disable=not progress, desc="denoising"
    )
    for t, s in bar:
        zt, per_position = hold(zt), t.reshape(-1).expand(shape[:2])
        if keep is not None:
            per_position = per_position.where(~keep.cpu(), 0.0)
        x0_hat = denoise(zt, per_position.to(device))
        _check_guess(x0_hat, shape, t)
        if snap is not None:
            x0_hat = snap(x0_hat)
        x0_hat = hold(x0_hat)
        if trajectory is not None:
            trajectory.times.append(float(t.mean()))
            trajectory.x0_hat.append(x0_hat.cpu())
            trajectory.zt.append(zt.cpu())
        # Where the time stands still, so do the points.
        t, s = t.to(device), s.to(device)
        zt = advance(x0_hat, zt, t, s).where(s < t, zt)
    return x0_hat


def _advance(step, schedule, shape, generator, device):
    """The step that the name stands for, as a function of the points."""
    if step not in STEPS:
        raise ValueError(f"step is one of {', '.join(STEPS)}; got {step!r}")

    def ancestral(x0_hat, zt, t, s):
        eps = torch.randn(shape, generator=generator).to(device)
        return ancestral_step(x0_hat, zt, schedule, t, s, eps)

    def deterministic(x0_hat, zt, t, s):
        return deterministic_step(x0_hat, zt, schedule, t, s)

    return ancestral if step == "ancestral" else deterministic


def _hold(known, keep, shape):
    """A function that puts the prompt back where it stands."""
    if (known is None) != (keep is None):
        raise ValueError(
            "known and keep belong together: the clean embeddings of a "
            "prompt, and the positions where it stands"
        )
    if keep is None:
        return lambda points: points
    noising.check_keep(keep, shape[:2])
    if tuple(known.shape) != tuple(shape):
        raise ValueError(
            f"known must have the shape of the sample, {tuple(shape)}; "
            f"got {tuple(known.shape)}"
        )
    return lambda points: torch.where(keep[..., None], known, points)


def _check_guess(x0_hat, shape, t):
    """Refuse a guess that does not fit; NaN would spread to every token."""
    if tuple(x0_hat.shape) != tuple(shape):
        raise ValueError(
            f"the denoiser must answer with shape {tuple(shape)}; "
            f"got {tuple(x0_hat.shape)}"
        )
    if not bool(torch.isfinite(x0_hat).all()):
        raise ValueError(
            f"the denoiser's guess at t = {float(t.mean()):.3f} is not "
            "finite: it holds NaN or infinity; has its training diverged?"
        )


def empirical_denoiser(points, schedule):
    r"""The exact denoiser when the data is a finite list of texts.

    .. math:: E[x_0 \mid z_t] = \sum_i w_i x_i, \qquad
              w_i \propto \exp(-\|z_t - \alpha x_i\|^2 / 2 \sigma^2)

    It knows its texts by heart and can say nothing else, but for them no
    network does better.

    Parameters
    ----------
    points : tensor, shape ``(n, length, dim)``
        Clean embeddings of the texts.
    schedule : Schedule

    Returns
    -------
    callable ``(zt, t) -> x0_hat``
        For `sample`; times may differ by position. It counts in float64:
        next to a kept prompt the other positions weigh little.
    """
    flat = points.flatten(1).double()
    squares = points.double().square().sum(dim=-1)  # (n, length)

    def denoise(zt, t):
        t = schedules.as_time(t).expand(zt.shape[:2])
        alpha = schedule.alpha(t)
        variance = schedule.sigma_squared(t).clamp(min=1e-6)  # kept: t = 0
        pull = (alpha / variance)[..., None] * zt
        log_odds = pull.flatten(1) @ flat.T
        log_odds -= (alpha**2 / variance) @ squares.T / 2
        weights = log_odds.softmax(dim=1)
        return (weights @ flat).reshape(zt.shape).to(zt.dtype)

    return denoise


class Guesser:
    """A model as `sample` wants it, with what it remembers between steps.

    With self-conditioning the guess of the last step is an input of the
    next: no further evaluation of the network. With a mixture head the
    tokens are those of the largest logits; otherwise the nearest.

    Parameters
    ----------
    model : DBLM
    metric : {"euclidean", "cosine", "dot"}
        Of the rounding, without a mixture head.
    snap : bool
        Clamp each guess to the nearest embedding.
    temperature : float
        Of a mixture head: the logits are divided by it. Below 1 each guess
        leans to the tokens that it holds for likely, and the texts to what
        is common; 1 is what the model was trained for.
    likelihood_weight : float
        Of a model with the likelihood in its logits: the weight of that
        term. It takes each point for a clean embedding with exactly so much
        noise. While sampling that is not quite so, since every step has
        moved the point towards guesses, right or wrong; below 1 it counts
        for less against what the network reads in the rest of the text.
    """

    def __init__(
        self,
        model,
        metric="euclidean",
        snap=False,
        temperature=1.0,
        likelihood_weight=1.0,
    ):
        config = getattr(model, "config", None)
        self.mixture = getattr(config, "head", "vector") == "mixture"
        if not 0 < temperature < math.inf:
            raise ValueError(
                f"temperature must be positive; got {temperature}"
            )
        if temperature != 1 and not self.mixture:
            raise ValueError(
                "this model answers with vectors, not with probabilities: "
                "it has no temperature"
            )
        denoiser.check_likelihood_weight(
            likelihood_weight, getattr(config, "likelihood", False)
        )
        self.temperature = temperature
        # Other models need not know the option.
        self.options = {}
        if likelihood_weight != 1:
            self.options["likelihood_weight"] = likelihood_weight
        self.remembers = bool(getattr(config, "self_conditioning", 0))
        self.model, self.metric, self.snap = model, metric, snap
        self.table = model.table()
        self.previous = self.answer = None

    def __call__(self, zt, t):
        if self.mixture:
            logits = self.model(
                zt, t, previous=self.previous, logits=True, **self.options
            )
            self.answer = logits / self.temperature
            x0_hat = self.model.mix(self.answer)
        else:
            x0_hat = self.answer = self.model(zt, t)
        if self.snap:
            x0_hat = self.table[self.ids]
        if self.remembers:
            self.previous = x0_hat
        return x0_hat

    @property
    def ids(self):
        """The last guess, rounded: ids of shape ``(batch, length)``."""
        if self.mixture:
            return self.answer.argmax(dim=-1)
        return noising.nearest(self.answer, self.table, self.metric)

    @property
    def confidence(self):
        """The probability of each of these ids.

        Without a mixture head there is none: then it is that of a token
        drawn with odds exp(-distance² / 2 v), where v is the squared
        distance a coordinate of the guess from its nearest token. It only
        says whether a second token is as near.
        """
        if self.mixture:
            return self.answer.softmax(dim=-1).amax(dim=-1)
        first, second = noising.nearest_two(self.answer, self.table).unbind(-1)
        variance = (first**2 / self.table.shape[1]).clamp(min=1e-12)
        return torch.sigmoid((second**2 - first**2) / (2 * variance))


@torch.no_grad()
def generate_ids(
    model,
    input_ids=None,
    keep=None,
    max_length=64,
    num_return_sequences=1,
    num_steps=64,
    generator=None,
    step=None,
    snap=False,
    metric="euclidean",
    trajectory=None,
    progress=False,
    stagger=None,
    power=None,
    temperature=None,
    likelihood_weight=None,
):
    """Sample token ids from a denoiser; also `DBLM.generate`.

    Parameters
    ----------
    model : DBLM
    input_ids : tensor of ids, shape ``(length,)`` or ``(batch, length)``
        Prompts, kept at the beginning of the canvas.
    keep : bool tensor, shape of ``input_ids``, optional
        Which of them are given; all if left out.
    max_length : int
        Length of the canvas, prompt included.
    num_return_sequences : int
        Samples for each prompt.
    num_steps, generator, trajectory, progress
        See `sample`.
    step, stagger, power : optional
        See `sample`; what the model's configuration names as its sampler if
        left out, and the defaults of `sample` if it names none.
    snap : bool
        Clamp each guess to the nearest embedding.
    metric : {"euclidean", "cosine", "dot"}
        Of the final rounding.
    temperature, likelihood_weight : float, optional
        See `Guesser`; if left out, as ``step``.

    Returns
    -------
    tensor of ids, shape ``(batch * num_return_sequences, max_length)``

    Raises
    ------
    ValueError
        If a prompt is empty, longer than the canvas or holds an id that the
        model does not have, or if an option does not suit the model.
    """
    model.eval()
    asked = {"step": step, "stagger": stagger, "power": power}
    asked |= {
        "temperature": temperature,
        "likelihood_weight": likelihood_weight,
    }
    asked = {k: v for k, v in asked.items() if v is not None}
    own = getattr(getattr(model, "config", None), "sampler", {})
    settings = denoiser.SAMPLER | own | asked
    device = next(model.parameters()).device
    table = model.table()
    canvas, given = _canvas(
        input_ids, keep, max_length, num_return_sequences, len(table)
    )
    canvas, given = canvas.to(device), given.to(device)
    prompted = bool(given.any())
    known = model.embed(canvas) if prompted else None
    weighed = ("temperature", "likelihood_weight")
    weighed = {name: settings.pop(name) for name in weighed}
    guesser = Guesser(model, metric, snap, **weighed)

    def denoise(zt, t):
        x0_hat = guesser(zt, t)
        if trajectory is not None:
            # The prompt's own ids, not its rounded ones: two tokens may
            # share an embedding.
            ids = torch.where(given, canvas, guesser.ids)
            sure = guesser.confidence.masked_fill(given, 1.0)
            trajectory.ids.append(ids.cpu())
            trajectory.confidence.append(sure.cpu())
        return x0_hat

    sample(
        denoise,
        model.schedule,
        (*canvas.shape, table.shape[1]),
        num_steps,
        generator=generator,
        known=known,
        keep=given if prompted else None,
        trajectory=trajectory,
        progress=progress,
        device=device,
        **settings,
    )
    return torch.where(given, canvas, guesser.ids)


def _canvas(input_ids, keep, max_length, count, vocab_size):
    """Lay prompts on canvases; ids, and which of them are given."""
    for name, value in (
        ("max_length", max_length),
        ("num_return_sequences", count),
    ):
        if not isinstance(value, int) or value < 1:
            raise ValueError(
                f"{name} must be a whole number of at least 1; got {value!r}"
            )
    if input_ids is None:
        canvas = torch.zeros(count, max_length, dtype=torch.long)
        return canvas, torch.zeros_like(canvas, dtype=torch.bool)
    ids = torch.as_tensor(input_ids)
    ids = ids[None] if ids.ndim == 1 else ids
    _check_prompt(ids, max_length, vocab_size)
    given = torch.ones_like(ids, dtype=torch.bool)
    if keep is not None:
        keep = torch.as_tensor(keep)
        given = keep[None] if keep.ndim == 1 else keep
        noising.check_keep(given, ids.shape)
    canvas = torch.zeros(len(ids), max_length, dtype=torch.long)
    held = torch.zeros_like(canvas, dtype=torch.bool)
    canvas[:, : ids.shape[1]], held[:, : ids.shape[1]] = ids, given
    return canvas.repeat_interleave(count, 0), held.repeat_interleave(count, 0)


def _check_prompt(ids, max_length, vocab_size):
    """Refuse prompts that are empty, too long or no ids of this model."""
    if ids.numel() == 0:
        raise ValueError("the prompt is empty; leave it out instead")
    if ids.ndim != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(
            "input_ids must be token ids of shape (length,) or "
            f"(batch, length); got {ids.dtype} of shape {tuple(ids.shape)}"
        )
    if ids.shape[1] > max_length:
        raise ValueError(
            f"the prompt has {ids.shape[1]} tokens, the canvas only "
            f"{max_length}: shorten it or raise max_length"
        )
    if not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise ValueError(
            f"this model has {vocab_size} tokens, ids 0 to {vocab_size - 1}; "
            f"the prompt holds {int(ids.min())} to {int(ids.max())}"
        )


@dataclass
class Generation:
    """Generated texts and how they came about.

    Attributes
    ----------
    texts : list of str
        The prompt and what follows, up to the first end-of-text token.
    ids : tensor of ids, shape ``(batch, length)``
    trajectory : Trajectory or None
    """

    texts: list
    ids: torch.Tensor
    trajectory: Trajectory = None


def generate(model, tokenizer, prompt=None, record=False, seed=0, **options):
    """Write texts, with or without a prompt.

    Parameters
    ----------
    model : DBLM
    tokenizer : transformers.PreTrainedTokenizerFast
    prompt : str or list of str, optional
    record : bool
        Keep the trajectory.
    seed : int
        Of a new generator, unless ``generator`` is given.
    **options
        See `generate_ids`.

    Returns
    -------
    Generation

    Raises
    ------
    ValueError
        If a prompt is empty, longer than the canvas, or has no word that
        the tokenizer knows whole.
    """
    options.setdefault("generator", torch.Generator().manual_seed(seed))
    trajectory = Trajectory() if record else None
    if prompt is not None:
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise ValueError("the list of prompts is empty; leave it out")
        for words in prompts:
            text.check_known(words, tokenizer)
        ids, keep = text.pad_prompts(prompts, tokenizer)
        options |= {"input_ids": ids, "keep": keep}
    ids = generate_ids(model, trajectory=trajectory, **options)
    return Generation(text.decode_batch(ids, tokenizer), ids, trajectory)
