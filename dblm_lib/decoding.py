r"""Decoding: from pure noise back to text.

Chapter 5. The reverse process starts from noise at t = 1 and goes down a
grid of times to 0. At each step a denoiser guesses the clean embeddings and
the noised ones move a little towards the guess. At the end each point is
rounded to a token.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import torch

from . import noising, resources, schedules, text

__all__ = [
    "STEPS",
    "Generation",
    "Trajectory",
    "ancestral_step",
    "clamp",
    "deterministic_step",
    "empirical_denoiser",
    "generate",
    "generate_ids",
    "reverse_times",
    "sample",
]

STEPS = ("ancestral", "deterministic")


def reverse_times(num_steps):
    """Times from 1 down to 0, ``num_steps + 1`` of them; float64."""
    num_steps = schedules.check_num_steps(num_steps)
    return torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)


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
    """Snap each guess to the nearest token's embedding (Li et al., 2022)."""
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
    """

    times: list = field(default_factory=list)
    x0_hat: list = field(default_factory=list)
    zt: list = field(default_factory=list)


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

    Returns
    -------
    tensor of ``shape``
        The last guess of x0; the prompt as it was given.
    """
    if step not in STEPS:
        raise ValueError(f"step is one of {', '.join(STEPS)}; got {step!r}")
    times = reverse_times(num_steps)
    zt = torch.randn(shape, generator=generator).to(device)
    hold = keep is not None and bool(keep.any())
    pairs = list(pairwise(times))
    bar = resources.progress_bar(pairs, disable=not progress, desc="denoising")
    for t, s in bar:
        per_position = t.expand(shape[:2])
        if hold:
            zt = torch.where(keep[..., None], known, zt)
            per_position = per_position.where(~keep.cpu(), 0.0)
        x0_hat = denoise(zt, per_position.to(device))
        if snap is not None:
            x0_hat = snap(x0_hat)
        if hold:
            x0_hat = torch.where(keep[..., None], known, x0_hat)
        if trajectory is not None:
            trajectory.times.append(float(t))
            trajectory.x0_hat.append(x0_hat.cpu())
            trajectory.zt.append(zt.cpu())
        if step == "ancestral":
            eps = torch.randn(shape, generator=generator).to(device)
            zt = ancestral_step(x0_hat, zt, schedule, t, s, eps)
        else:
            zt = deterministic_step(x0_hat, zt, schedule, t, s)
    return x0_hat


def empirical_denoiser(points, schedule):
    r"""The exact denoiser when the data is a finite list of texts.

    .. math:: E[x_0 \mid z_t] = \sum_i w_i x_i, \qquad
              w_i \propto \exp(-\|z_t - \alpha x_i\|^2 / 2 \sigma^2)

    It knows its texts by heart and can say nothing else, but for them no
    network does better.

    Parameters
    ----------
    points : tensor, shape ``(n, length, dim)``
    schedule : Schedule

    Returns
    -------
    callable ``(zt, t) -> x0_hat``
        For `sample`; times may differ by position.
    """
    flat = points.flatten(1)
    squares = points.square().sum(dim=-1)  # (n, length)

    def denoise(zt, t):
        t = torch.as_tensor(t).expand(zt.shape[:2])
        alpha = schedule.alpha(t).to(zt)
        variance = schedule.sigma_squared(t).clamp(min=1e-12).to(zt)
        pull = (alpha / variance)[..., None] * zt
        log_odds = pull.flatten(1) @ flat.T
        log_odds -= (alpha**2 / variance) @ squares.T / 2
        weights = log_odds.softmax(dim=1)
        return (weights @ flat).reshape(zt.shape)

    return denoise


@torch.no_grad()
def generate_ids(
    model,
    input_ids=None,
    keep=None,
    max_length=64,
    num_return_sequences=1,
    num_steps=64,
    generator=None,
    step="ancestral",
    snap=False,
    metric="euclidean",
    trajectory=None,
    progress=False,
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
    num_steps, generator, step, trajectory, progress
        See `sample`.
    snap : bool
        Clamp each guess to the nearest embedding.
    metric : {"euclidean", "cosine", "dot"}
        Of the final rounding.

    Returns
    -------
    tensor of ids, shape ``(batch * num_return_sequences, max_length)``
    """
    model.eval()
    device = next(model.parameters()).device
    table = model.table()
    dim = table.shape[1]
    count = schedules.check_num_steps(num_return_sequences)
    known = keep_all = None
    batch = count
    if input_ids is not None:
        ids = torch.as_tensor(input_ids)
        ids = (ids[None] if ids.ndim == 1 else ids).repeat_interleave(count, 0)
        if ids.shape[1] == 0:
            raise ValueError("the prompt is empty; leave it out instead")
        if ids.shape[1] > max_length:
            raise ValueError(
                f"the prompt has {ids.shape[1]} tokens, the canvas only "
                f"{max_length}: shorten it or raise max_length"
            )
        given = torch.ones_like(ids, dtype=torch.bool)
        if keep is not None:
            keep = keep[None] if keep.ndim == 1 else keep
            given = keep.repeat_interleave(count, 0)
        batch = len(ids)
        canvas = torch.zeros(batch, max_length, dtype=torch.long)
        canvas[:, : ids.shape[1]] = ids
        keep_all = torch.zeros(batch, max_length, dtype=torch.bool)
        keep_all[:, : ids.shape[1]] = given
        keep_all = keep_all.to(device)
        known = model.embed(canvas.to(device))
    x0_hat = sample(
        lambda zt, t: model(zt, t),
        model.schedule,
        (batch, max_length, dim),
        num_steps,
        generator=generator,
        step=step,
        known=known,
        keep=keep_all,
        snap=(lambda x: clamp(x, table)) if snap else None,
        trajectory=trajectory,
        progress=progress,
        device=device,
    )
    ids_out = noising.nearest(x0_hat, table, metric)
    if keep_all is not None:  # two tokens may share an embedding
        ids_out = torch.where(keep_all, canvas.to(device), ids_out)
    return ids_out


@dataclass
class Generation:
    """Generated texts and how they came about.

    Attributes
    ----------
    texts : list of str
        Read up to the first end-of-text token.
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
        If a prompt is empty, longer than the canvas, or has no word that the
        tokenizer knows whole.
    """
    options.setdefault("generator", torch.Generator().manual_seed(seed))
    trajectory = Trajectory() if record else None
    if prompt is not None:
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        for words in prompts:
            text.check_known(words, tokenizer)
        ids, keep = text.pad_prompts(prompts, tokenizer)
        options |= {"input_ids": ids, "keep": keep}
    ids = generate_ids(model, trajectory=trajectory, **options)
    return Generation(text.decode_batch(ids, tokenizer), ids, trajectory)
