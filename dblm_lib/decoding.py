r"""Decoding: from pure noise back to text.

Chapter 5. The reverse process starts from noise at t = 1 and goes down a
grid of times to 0. At each step a denoiser guesses the clean embeddings and
the noised ones move a little towards the guess. At the end each point is
rounded to a token.
"""

from dataclasses import dataclass

import torch

from . import checks, noising, prompts, text
from .posterior import empirical_denoiser
from .reverse import (
    STEPS,
    Trajectory,
    ancestral_step,
    check_power,
    check_stagger,
    check_step,
    clamp,
    deterministic_step,
    reverse_times,
    run_times,
    sample,
    staggered_times,
)

__all__ = [
    "CANVAS",
    "SAMPLER",
    "STEPS",
    "DiffusionMixin",
    "Generation",
    "Guesser",
    "Trajectory",
    "ancestral_step",
    "canvas_of",
    "check_likelihood_weight",
    "check_sampler",
    "check_temperature",
    "clamp",
    "deterministic_step",
    "empirical_denoiser",
    "generate",
    "generate_ids",
    "lay_out",
    "longest_of",
    "reverse_times",
    "run_times",
    "sample",
    "staggered_times",
]

# How samples are drawn if neither the call nor the model says.
SAMPLER = {
    "step": "ancestral",
    "stagger": 0.0,
    "power": 1.0,
    "temperature": 1.0,
    "likelihood_weight": 1.0,
}
# Tokens on a canvas whose length nobody says.
CANVAS = 64


def check_sampler(settings, mixture=True, likelihood=True):
    """Refuse settings that mean nothing, or that a model cannot follow.

    Parameters
    ----------
    settings : dict
        Values for all or some of the names in `SAMPLER`.
    mixture, likelihood : bool
        Whether the model answers with probabilities, and has the likelihood
        in its logits.

    Raises
    ------
    ValueError
    """
    unknown = set(settings) - set(SAMPLER)
    if unknown:
        raise ValueError(
            f"sampler has no {', '.join(sorted(map(str, unknown)))}; "
            f"it knows {', '.join(SAMPLER)}"
        )
    settings = SAMPLER | settings
    check_step(settings["step"])
    check_stagger(settings["stagger"])
    check_power(settings["power"])
    check_temperature(settings["temperature"], mixture)
    check_likelihood_weight(settings["likelihood_weight"], likelihood)


def check_temperature(temperature, mixture):
    """Refuse a temperature that means nothing; 1 suits every model."""
    if not (checks.is_number(temperature) and temperature > 0):
        raise ValueError(f"temperature must be positive; got {temperature!r}")
    if temperature != 1 and not mixture:
        raise ValueError(
            "this model answers with vectors, not with probabilities: "
            "it has no temperature"
        )


def check_likelihood_weight(weight, likelihood):
    """Refuse a weight of the likelihood that means nothing."""
    if not (checks.is_number(weight) and weight >= 0):
        raise ValueError(
            "likelihood_weight must not be negative or infinite; "
            f"got {weight!r}"
        )
    if weight != 1 and not likelihood:
        raise ValueError(
            "this model adds no likelihood to its logits: likelihood_weight "
            "has nothing to weigh"
        )


class Guesser:
    """A model as `sample` wants it, with what it remembers between steps.

    With self-conditioning the guess of the last step is an input of the
    next: no further evaluation of the network. With a mixture head the
    tokens are those of the largest logits; otherwise the nearest.

    A model is anything that has ``table()``, the tokens' embeddings, and
    that, called with points and times, answers with ``x0``, its guess, and
    ``logits``, or None in their place. Whether it can do more is read from
    the fields ``head``, ``self_conditioning`` and ``likelihood`` of its
    ``config``, if it has one; only then is it called with ``previous``,
    ``temperature`` and ``likelihood_weight``, as `DBLM.forward` is. If the
    field ``normalise_embeddings`` says that its table has to be worked out,
    that is done once, here, and each call is given it as ``table``.

    Parameters
    ----------
    model : DBLM, or another model
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
        mixture = getattr(config, "head", "vector") == "mixture"
        check_temperature(temperature, mixture)
        check_likelihood_weight(
            likelihood_weight, getattr(config, "likelihood", False)
        )
        if metric not in noising.METRICS:
            raise ValueError(
                f"unknown metric {metric!r}; "
                f"choose one of {', '.join(noising.METRICS)}"
            )
        if not isinstance(snap, bool):
            raise TypeError(f"snap is True or False; got {snap!r}")
        # Other models need not know the options.
        self.options = {}
        if temperature != 1:
            self.options["temperature"] = temperature
        if likelihood_weight != 1:
            self.options["likelihood_weight"] = likelihood_weight
        self.temperature = temperature
        self.remembers = bool(getattr(config, "self_conditioning", 0))
        self.normalises = bool(getattr(config, "normalise_embeddings", False))
        self.model, self.metric, self.snap = model, metric, snap
        self.table = model.table()
        self.previous = self.answer = None

    def __call__(self, zt, t):
        options = dict(self.options)
        if self.normalises:
            options["table"] = self.table
        if self.remembers:
            options["previous"] = self.previous
        self.answer = self.model(zt, t, **options)
        x0_hat = self.answer.x0
        if self.snap:
            x0_hat = self.table[self.ids]
        if self.remembers:
            self.previous = x0_hat
        return x0_hat

    @property
    def ids(self):
        """The last guess, rounded: ids of shape ``(batch, length)``."""
        if self.answer.logits is not None:
            return self.answer.logits.argmax(dim=-1)
        return noising.nearest(self.answer.x0, self.table, self.metric)

    @property
    def confidence(self):
        """The probability of each of these ids.

        Without a mixture head there is none: then it is that of a token
        drawn with odds exp(-distance² / 2 v), where v is the squared
        distance a coordinate of the guess from its nearest token. It only
        says whether a second token is as near.
        """
        if self.answer.logits is not None:
            logits = self.answer.logits / self.temperature
            return logits.softmax(dim=-1).amax(dim=-1)
        two = noising.nearest_two(self.answer.x0, self.table)
        first, second = two.unbind(-1)
        variance = (first**2 / self.table.shape[1]).clamp(min=1e-12)
        return torch.sigmoid((second**2 - first**2) / (2 * variance))


def canvas_of(model):
    """How many tokens a model writes if the call does not say.

    Parameters
    ----------
    model : DBLM, or another model

    Returns
    -------
    int
        ``seq_len`` of its configuration, the length that it was trained on.
        Where that is not known `CANVAS`, or as many positions as the model
        has if they are fewer.
    """
    config = getattr(model, "config", None)
    return getattr(config, "seq_len", None) or min(CANVAS, longest_of(model))


def longest_of(model):
    """How many tokens a model has positions for; infinity without a limit."""
    config = getattr(model, "config", None)
    known = getattr(config, "max_position_embeddings", None)
    if known is None:
        return float("inf")
    return known - bool(getattr(config, "shift", False))


class DiffusionMixin:
    """What makes a model of vectors write tokens: it knows no model.

    The class that inherits it is one for which `Guesser` is made; it also
    has ``embed(ids)``, ``schedule``, ``eval()`` and ``parameters()``.
    """

    def canvas(self):
        """Length of the canvas that the model writes on; see `canvas_of`."""
        return canvas_of(self)

    def generate(self, input_ids=None, **options):
        """Sample ids by reverse diffusion; see `generate_ids`."""
        return generate_ids(self, input_ids, **options)


@torch.no_grad()
def generate_ids(
    model,
    input_ids=None,
    keep=None,
    max_length=None,
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
    attention_mask=None,
):
    """Sample token ids from a denoiser; also `DBLM.generate`.

    Parameters
    ----------
    model : DBLM, or another model
        See `DiffusionMixin` for what it must have.
    input_ids : tensor of ids, shape ``(length,)`` or ``(batch, length)``
        Prompts, kept at the beginning of the canvas.
    keep : tensor of 0 and 1, shape of ``input_ids``, optional
        Which of them are given; all if left out. The others are written.
    max_length : int, optional
        Length of the canvas, prompt included; `canvas_of` the model if left
        out.
    num_return_sequences : int
        Samples for each prompt.
    num_steps, generator, trajectory, progress
        See `sample`.
    step, stagger, power : optional
        See `sample`; what the model's configuration names as its sampler if
        left out, and `SAMPLER` if it names none.
    snap : bool
        Clamp each guess to the nearest embedding.
    metric : {"euclidean", "cosine", "dot"}
        Of the final rounding.
    temperature, likelihood_weight : float, optional
        See `Guesser`; if left out, as ``step``.
    attention_mask : tensor of 0 and 1, shape of ``input_ids``, optional
        As a tokenizer gives it: 0 at padding, which may stand on the right
        or on the left. In place of ``keep``.

    Returns
    -------
    tensor of ids, shape ``(batch * num_return_sequences, max_length)``

    Raises
    ------
    TypeError, ValueError
        If a prompt is empty, longer than the canvas, padded without a mask
        or holds an id that the model does not have, or if an option does not
        suit the model.
    """
    model.eval()
    asked = {"step": step, "stagger": stagger, "power": power}
    asked |= {
        "temperature": temperature,
        "likelihood_weight": likelihood_weight,
    }
    asked = {k: v for k, v in asked.items() if v is not None}
    own = getattr(getattr(model, "config", None), "sampler", {})
    settings = SAMPLER | own | asked
    device = next(model.parameters()).device
    weighed = ("temperature", "likelihood_weight")
    weighed = {name: settings.pop(name) for name in weighed}
    guesser = Guesser(model, metric, snap, **weighed)
    vocab_size, dim = guesser.table.shape
    canvas, given = lay_out(
        model, vocab_size, input_ids, keep, attention_mask, max_length
    )
    canvas, given = prompts.repeat(canvas, given, num_return_sequences)
    prompted = bool(given.any())
    canvas, given = canvas.to(device), given.to(device)
    known = model.embed(canvas) if prompted else None

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
        (*canvas.shape, dim),
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


def lay_out(
    model,
    vocab_size,
    input_ids=None,
    keep=None,
    attention_mask=None,
    max_length=None,
):
    """Lay prompts on canvases that suit a model.

    Parameters
    ----------
    model : DBLM, MaskedDenoiser, or another model
    vocab_size : int
    input_ids, keep, attention_mask, max_length
        As `generate_ids` takes them.

    Returns
    -------
    canvas : tensor of ids, shape ``(batch, max_length)``
    given : bool tensor, same shape

    Raises
    ------
    ValueError
        If the canvas is longer than the model, or a prompt does not fit.
    """
    if max_length is None:
        max_length = canvas_of(model)
    if not checks.is_whole(max_length):
        raise ValueError(
            "max_length must be a whole number of at least 1; "
            f"got {max_length!r}"
        )
    if max_length > (longest := longest_of(model)):
        raise ValueError(
            f"this model knows {longest} positions: max_length must not be "
            f"above that; got {max_length}"
        )
    return prompts.lay_out(
        input_ids,
        max_length,
        vocab_size,
        keep=keep,
        attention_mask=attention_mask,
        end=getattr(getattr(model, "config", None), "eos_token_id", None),
        longest=longest,
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
        White space at its ends is left out: no text was trained with it.
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
    TypeError, ValueError
        If a prompt is no text, empty, longer than the canvas, has no word
        that the tokenizer knows whole, or holds the end-of-text mark.
    """
    options.setdefault("generator", torch.Generator().manual_seed(seed))
    trajectory = Trajectory() if record else None
    if prompt is not None:
        ids, keep = prompts.encode(prompt, tokenizer)
        options |= {"input_ids": ids, "keep": keep}
    ids = generate_ids(model, trajectory=trajectory, **options)
    return Generation(text.decode_batch(ids, tokenizer), ids, trajectory)
