r"""The reverse process: from noise at t = 1 down a grid of times to 0.

Chapter 5. At each step a denoiser guesses the clean embeddings and the
noised ones move a little towards the guess. `decoding` adds what is needed
for tokens; its names include those of this module.
"""

from dataclasses import dataclass, field

import torch

from . import checks, noising, resources, schedules

__all__ = [
    "STEPS",
    "Trajectory",
    "ancestral_step",
    "check_power",
    "check_stagger",
    "check_step",
    "clamp",
    "deterministic_step",
    "reverse_times",
    "run_times",
    "sample",
    "staggered_times",
]

STEPS = ("ancestral", "deterministic")


def check_step(step):
    """Refuse a step that is none of `STEPS`."""
    if not isinstance(step, str) or step not in STEPS:
        raise ValueError(f"step is one of {', '.join(STEPS)}; got {step!r}")


def check_stagger(stagger):
    """Refuse a stagger that is no number, or negative."""
    if not (checks.is_number(stagger) and stagger >= 0):
        raise ValueError(f"stagger must be 0 or more; got {stagger!r}")


def check_power(power):
    """Refuse a power that is no number above 0."""
    if not (checks.is_number(power) and power > 0):
        raise ValueError(f"power must be positive; got {power!r}")


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


def run_times(num_steps, length, stagger=0.0, power=1.0):
    """The times at which a run stands, from first to last.

    Parameters
    ----------
    num_steps, length : int
    stagger, power : float
        As in `sample`.

    Returns
    -------
    float64 tensor, shape ``(num_steps + 1,)``
        With a stagger ``(num_steps + 1, length, 1)``: each position has its
        own. Where all have one, a step's factors are plain numbers, and the
        points are moved in their own precision.
    """
    times = reverse_times(num_steps)
    check_stagger(stagger)
    if stagger:
        times = staggered_times(num_steps, length, stagger)
    check_power(power)
    return times**power


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
        Asked once, for all times of the run.
    shape : tuple ``(batch, length, dim)``
    num_steps : int
    generator : torch.Generator, optional
        On the CPU.
    step : {"ancestral", "deterministic"}
    known : tensor of ``shape``, and keep : tensor ``(batch, length)``
        Clean embeddings of a prompt, and 1 (or True) where it stands.
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
        is not finite. The last is seen at the end: a look at every step
        would make the program wait for a GPU.
    """
    times = run_times(num_steps, shape[1], stagger, power)
    _check_generator(generator)
    keep = noising.check_keep(keep, shape[:2])
    # What no step changes is worked out before the first.
    on_grid = _OnGrid(schedule, times, device)
    moves = (times[1:] < times[:-1]).to(device)
    asked = times[:-1].reshape(len(moves), 1, -1).to(device)
    noised = None if keep is None else ~keep.to(device)
    advance = _advance(step, on_grid, shape, generator, device)
    hold = _hold(known, keep, shape)
    zt = torch.randn(shape, generator=generator).to(device)
    finite = []
    bar = resources.progress_bar(
        range(len(moves)), disable=not progress, desc="denoising"
    )
    for i in bar:
        zt, t = hold(zt), asked[i].expand(shape[:2])
        if noised is not None:
            t = t.where(noised, 0.0)
        x0_hat = denoise(zt, t)
        _check_shape(x0_hat, shape)
        finite.append(torch.isfinite(x0_hat).all())
        if snap is not None:
            x0_hat = snap(x0_hat)
        x0_hat = hold(x0_hat)
        if trajectory is not None:
            trajectory.times.append(float(times[i].mean()))
            trajectory.x0_hat.append(x0_hat.cpu())
            trajectory.zt.append(zt.cpu())
        # Where the time stands still, so do the points.
        zt = advance(x0_hat, zt, i, i + 1).where(moves[i], zt)
    _check_finite(finite, times)
    return x0_hat


class _OnGrid:
    """A schedule at the times of a run, asked by their number from 0 on.

    To the steps it is a `Schedule`; it has what they ask for.
    """

    def __init__(self, schedule, times, device):
        names = ("alpha_bar", "alpha", "sigma")
        values = (getattr(schedule, name)(times).to(device) for name in names)
        self._alpha_bar, self._alpha, self._sigma = values

    def alpha_bar(self, i):
        return self._alpha_bar[i]

    def alpha(self, i):
        return self._alpha[i]

    def sigma(self, i):
        return self._sigma[i]


def _advance(step, schedule, shape, generator, device):
    """The step that the name stands for, as a function of the points."""
    check_step(step)

    def ancestral(x0_hat, zt, t, s):
        eps = torch.randn(shape, generator=generator)
        eps = eps.to(device, non_blocking=True)
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
    if tuple(known.shape) != tuple(shape):
        raise ValueError(
            f"known must have the shape of the sample, {tuple(shape)}; "
            f"got {tuple(known.shape)}"
        )
    if not bool(torch.isfinite(known).all()):
        raise ValueError("known must be finite; it holds NaN or infinity")
    here = keep.to(known.device)[..., None]
    return lambda points: torch.where(here, known, points)


def _check_generator(generator):
    """Refuse what draws no numbers, or draws them elsewhere."""
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            "generator must be a torch.Generator, such as "
            f"torch.Generator().manual_seed(0); got {generator!r}"
        )
    if generator.device.type != "cpu":
        raise ValueError(
            "the generator must be one of the CPU, so that every device sees "
            f"the same numbers; got one of {generator.device}"
        )


def _check_shape(x0_hat, shape):
    """Refuse a guess of another shape: it would broadcast without a word."""
    if tuple(x0_hat.shape) != tuple(shape):
        raise ValueError(
            f"the denoiser must answer with shape {tuple(shape)}; "
            f"got {tuple(x0_hat.shape)}"
        )


def _check_finite(finite, times):
    """Refuse a run with a guess that was not finite; name the first."""
    finite = torch.stack(finite).cpu()
    if not bool(finite.all()):
        t = times[int((~finite).int().argmax())].mean()
        raise ValueError(
            f"the denoiser's guess at t = {float(t):.3f} is not "
            "finite: it holds NaN or infinity; has its training diverged?"
        )
