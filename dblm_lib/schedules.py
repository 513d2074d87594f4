r"""Gaussian noise schedules: how much signal is left at time t.

Chapter 1. A schedule says, for a time ``t`` in [0, 1], what share of the
signal and how much noise make up a noised value

.. math:: z_t = \alpha(t)\, x_0 + \sigma(t)\, \epsilon,
          \qquad \alpha(t)^2 + \sigma(t)^2 = 1 .

All schedules here preserve variance. All of them compute in float64: near
``t = 0`` and ``t = 1`` the interesting quantity is a tiny difference.
"""

import itertools
import math
from dataclasses import dataclass

import torch

__all__ = [
    "SCHEDULES",
    "Cosine",
    "DiscreteSchedule",
    "Linear",
    "LogUniform",
    "Schedule",
    "Sigmoid",
    "Sqrt",
    "Warped",
    "as_time",
    "check_num_steps",
    "closed_form",
    "fit_warp",
    "forward_step",
    "get_schedule",
    "mixture_denoiser",
    "posterior",
    "rising_loss",
]


def as_time(t):
    """Return ``t`` as a float64 tensor, or say why it is no time.

    Parameters
    ----------
    t : float, array or tensor
        Times; 0 is clean data, 1 is (almost) pure noise.

    Raises
    ------
    TypeError
        If it is no number.
    ValueError
        If a value is NaN or lies outside [0, 1]. Values on a GPU are not
        looked at: the program would have to wait for them.
    """
    try:
        t = torch.as_tensor(t, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"t must be a number or numbers in [0, 1]; got {t!r}"
        ) from None
    if t.device.type == "cpu" and not bool(((t >= 0) & (t <= 1)).all()):
        bad = t[~((t >= 0) & (t <= 1))].flatten()[0].item()
        raise ValueError(
            f"t must lie in [0, 1], where 0 is clean and 1 is noise; got {bad}"
        )
    return t


def check_num_steps(num_steps):
    """Return ``num_steps`` if it is a whole number of at least 1.

    Raises
    ------
    TypeError
        If it is no whole number (2.5, "10", True).
    ValueError
        If it is smaller than 1.
    """
    if isinstance(num_steps, bool) or not hasattr(num_steps, "__index__"):
        raise TypeError(
            "num_steps must be a whole number such as 64; "
            f"got {num_steps!r} ({type(num_steps).__name__})"
        )
    num_steps = num_steps.__index__()
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1; got {num_steps}")
    return num_steps


class Schedule:
    """A variance-preserving schedule; subclasses give two functions.

    ``alpha_bar(t)`` is the share of the variance that is still signal, and
    ``sigma_squared(t) = 1 - alpha_bar(t)`` the share that is noise. Each is
    written out where the difference would lose digits.
    """

    name = "schedule"

    def alpha_bar(self, t):
        """Signal share of the variance, alpha(t)**2; shape of ``t``."""
        raise NotImplementedError

    def sigma_squared(self, t):
        """Noise share of the variance, sigma(t)**2; shape of ``t``."""
        return 1 - self.alpha_bar(t)

    def alpha(self, t):
        """Factor on the signal at time ``t``."""
        return self.alpha_bar(t).clamp(min=0).sqrt()

    def sigma(self, t):
        """Standard deviation of the noise at time ``t``."""
        return self.sigma_squared(t).clamp(min=0).sqrt()

    def snr(self, t):
        """Signal-to-noise ratio alpha_bar / sigma**2 (a variance ratio)."""
        return self.alpha_bar(t) / self.sigma_squared(t)

    def noise_level(self, t):
        """Noise per unit of signal, sigma / alpha; infinite if alpha is 0."""
        return self.sigma(t) / self.alpha(t)

    def time_of(self, level):
        """The time at which a noise level is reached, by bisection.

        Parameters
        ----------
        level : float
            sigma / alpha, above 0.

        Returns
        -------
        tensor, shape ``()``, float64
            0 or 1 where the schedule does not reach down or up to it.

        Raises
        ------
        ValueError
            If the level is not positive.
        """
        if not level > 0:
            raise ValueError(f"a noise level must be positive; got {level}")
        below = torch.tensor(0.0, dtype=torch.float64)
        above = torch.tensor(1.0, dtype=torch.float64)
        if self.noise_level(below) >= level:
            return below
        for _ in range(60):
            middle = (below + above) / 2
            if self.noise_level(middle) < level:
                below = middle
            else:
                above = middle
        return above

    def discretise(self, num_steps, max_beta=0.999):
        """Cut the schedule into ``num_steps`` Markov steps.

        Step ``i`` (counted from 0) leads from time ``i / num_steps`` to
        ``(i + 1) / num_steps``. Its variance beta is capped at ``max_beta``,
        as in Nichol & Dhariwal (2021), because the last step of a schedule
        that ends in pure noise would otherwise be exactly 1.

        Parameters
        ----------
        num_steps : int
        max_beta : float in (0, 1)

        Returns
        -------
        DiscreteSchedule

        Raises
        ------
        TypeError, ValueError
            If ``num_steps`` is no whole number of at least 1.
        """
        num_steps = check_num_steps(num_steps)
        grid = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
        signal, noise = self.alpha_bar(grid), self.sigma_squared(grid)
        signal[0], noise[0] = 1, 0  # the first step starts from clean data
        fall = 1 - signal[1:] / signal[:-1]
        rise = noise.diff() / signal[:-1]  # the same, with more digits early
        betas = torch.where(signal[1:] > 0.5, rise, fall)
        return DiscreteSchedule(betas.clamp(max=max_beta))

    def __repr__(self):
        values = ", ".join(f"{k}={v!r}" for k, v in vars(self).items())
        return f"{type(self).__name__}({values})"

    def __eq__(self, other):
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self):
        return hash((type(self), tuple(sorted(vars(self).items()))))


class Linear(Schedule):
    r"""Noise added at a rate that grows linearly (Ho et al., 2020).

    :math:`\bar\alpha(t) = \exp(-b_0 t - (b_1 - b_0) t^2 / 2)`, the limit of
    many small steps (Song et al., 2021). ``discretise(1000)`` gives the
    betas of DDPM itself, 0.0001 to 0.02 in equal steps. With so few steps
    that the last beta would reach 1, the curve above is cut instead.
    """

    name = "linear"

    def __init__(self, beta_min=0.1, beta_max=20.0):
        if not 0 < beta_min <= beta_max < math.inf:
            raise ValueError(
                "need 0 < beta_min <= beta_max; "
                f"got beta_min={beta_min}, beta_max={beta_max}"
            )
        self.beta_min, self.beta_max = beta_min, beta_max

    def _exponent(self, t):
        t = as_time(t)
        return self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2

    def alpha_bar(self, t):
        return torch.exp(-self._exponent(t))

    def sigma_squared(self, t):
        return -torch.expm1(-self._exponent(t))

    def discretise(self, num_steps, max_beta=0.999):
        num_steps = check_num_steps(num_steps)
        if num_steps <= self.beta_max:
            return super().discretise(num_steps, max_beta)
        betas = torch.linspace(
            self.beta_min, self.beta_max, num_steps, dtype=torch.float64
        )
        return DiscreteSchedule((betas / num_steps).clamp(max=max_beta))


def _check_offset(offset):
    """Return what keeps the first step of a schedule from being too small."""
    if not 0 <= offset < math.inf:
        raise ValueError(f"the offset must be 0 or more; got {offset}")
    return offset


class Cosine(Schedule):
    r"""A quarter of a cosine (Nichol & Dhariwal, 2021).

    :math:`\bar\alpha(t) = \cos^2 \phi / \cos^2 \phi_0`, with the angle
    :math:`\phi = \frac{t + c}{1 + c} \frac{\pi}{2}`, the ``offset`` c and
    :math:`\phi_0 = \phi(0)`.
    """

    name = "cosine"

    def __init__(self, offset=0.008):
        self.offset = _check_offset(offset)

    def _angles(self, t):
        quarter = math.pi / 2 / (1 + self.offset)
        start = self.offset * quarter
        return as_time(t) * quarter, start  # phi - phi_0, phi_0

    def alpha_bar(self, t):
        turn, start = self._angles(t)
        ratio = torch.cos(start + turn) / math.cos(start)
        return (ratio**2).clamp(max=1)

    def sigma_squared(self, t):
        # cos² a - cos² b = sin(b - a) sin(b + a): no cancellation at 0.
        turn, start = self._angles(t)
        product = torch.sin(turn) * torch.sin(turn + 2 * start)
        return product / math.cos(start) ** 2


class Sqrt(Schedule):
    r"""The schedule of Diffusion-LM (Li et al., 2022).

    :math:`\bar\alpha(t) = 1 - \sqrt{(t + c) / (1 + c)}` with the ``offset``
    c: the noise starts high at once, since words survive a little noise
    unharmed.
    """

    name = "sqrt"

    def __init__(self, offset=1e-4):
        self.offset = _check_offset(offset)

    def alpha_bar(self, t):
        # 1 - root = (1 - root²) / (1 + root): no cancellation at t = 1.
        root = self.sigma_squared(t)
        return (1 - as_time(t)) / (1 + self.offset) / (1 + root)

    def sigma_squared(self, t):
        return ((as_time(t) + self.offset) / (1 + self.offset)).sqrt()


class Sigmoid(Schedule):
    r"""A stretched sigmoid (Jabri et al., 2022).

    :math:`\bar\alpha(t)` falls like :math:`\mathrm{sigmoid}(-x)` for x from
    ``start`` to ``end``, shifted and scaled to run from 1 to 0.
    """

    name = "sigmoid"

    def __init__(self, start=-3.0, end=3.0, tau=1.0):
        if not (start < end and 0 < tau < math.inf):
            raise ValueError(
                "need start < end and tau > 0; "
                f"got start={start}, end={end}, tau={tau}"
            )
        if max(abs(start), abs(end)) / tau > 700:
            raise ValueError(
                "start / tau and end / tau must lie between -700 and 700, "
                f"or float64 overflows; got start={start}, end={end}, "
                f"tau={tau}"
            )
        self.start, self.end, self.tau = start, end, tau

    def _share(self, t, way, far):
        # sigmoid(a) - sigmoid(b)
        #     = sinh((a - b) / 2) / (2 cosh(a / 2) cosh(b / 2)):
        # no cancellation where a and b are close.
        width = (self.end - self.start) / self.tau / 2
        height = math.cosh(far / self.tau / 2) / math.sinh(width)
        u = self.start / self.tau / 2 + t * width
        return (height * torch.sinh(way * width) / torch.cosh(u)).clamp(max=1)

    def alpha_bar(self, t):
        t = as_time(t)
        return self._share(t, way=1 - t, far=self.start)

    def sigma_squared(self, t):
        t = as_time(t)
        return self._share(t, way=t, far=self.end)


class LogUniform(Schedule):
    r"""Noise level sigma / alpha growing by equal factors.

    From ``low`` at t = 0 to ``high`` at t = 1, so that a uniform ``t`` draws
    the logarithm of the noise level uniformly. Of the schedules here it is
    the only one that names the noise levels it will visit. Geometric levels
    are those of Song & Ermon (2019).
    """

    name = "log-uniform"

    def __init__(self, low=0.05, high=20.0):
        if not 0 < low < high < math.inf:
            raise ValueError(f"need 0 < low < high; got low={low}, {high=}")
        self.low, self.high = low, high

    def _level_squared(self, t):
        ratio = math.log(self.high / self.low)
        return (self.low * torch.exp(as_time(t) * ratio)) ** 2

    def alpha_bar(self, t):
        return 1 / (1 + self._level_squared(t))

    def sigma_squared(self, t):
        level_squared = self._level_squared(t)
        return level_squared / (1 + level_squared)


class Warped(Schedule):
    r"""Noise levels given one by one, at equal steps of time.

    Between them the logarithm of the level is interpolated in straight
    lines. With the levels of `fit_warp` each stretch of time takes away
    equally much information (Dieleman et al., 2022).
    """

    name = "warped"

    def __init__(self, levels=(0.05, 20.0)):
        levels = tuple(float(level) for level in levels)
        rising = all(a < b for a, b in itertools.pairwise(levels))
        if not (
            len(levels) >= 2 and rising and 0 < levels[0] <= levels[-1] < 1e6
        ):
            raise ValueError(
                "levels must be two or more positive numbers below 1e6, each "
                f"larger than the one before; got {levels}"
            )
        self.levels = levels

    def _level_squared(self, t):
        t = as_time(t)
        logs = torch.tensor(self.levels, dtype=torch.float64).log()
        logs = logs.to(t.device, non_blocking=True)
        place = t * (len(logs) - 1)
        left = place.long().clamp(max=len(logs) - 2)
        share = place - left
        return torch.exp(
            2 * (logs[left] * (1 - share) + logs[left + 1] * share)
        )

    def alpha_bar(self, t):
        return 1 / (1 + self._level_squared(t))

    def sigma_squared(self, t):
        level_squared = self._level_squared(t)
        return level_squared / (1 + level_squared)


def rising_loss(levels, losses, count=2, trim=0.0):
    """Check what `fit_warp` was given, and make the loss rise.

    Parameters
    ----------
    levels, losses, count, trim
        As in `fit_warp`.

    Returns
    -------
    logs, rise : float64 tensors, shape ``(n,)``
        The logarithms of the levels, and losses that rise with each.

    Raises
    ------
    ValueError
        As in `fit_warp`.
    """
    logs = torch.as_tensor(levels, dtype=torch.float64).log()
    rise = torch.as_tensor(losses, dtype=torch.float64)
    if logs.ndim != 1 or logs.shape != rise.shape or len(logs) < 2:
        raise ValueError(
            "levels and losses must be rows of one length, 2 at least; got "
            f"{tuple(logs.shape)} and {tuple(rise.shape)}"
        )
    if not bool((logs.diff() > 0).all() and torch.isfinite(rise).all()):
        raise ValueError("levels must rise, and losses be finite")
    if count < 2 or not 0 <= trim < 0.5:
        raise ValueError(
            f"need count >= 2, 0 <= trim < 0.5; got {count}, {trim}"
        )
    rise = rise.cummax(dim=0).values
    # Never quite flat: each level then has one place on the curve.
    rise = rise + 1e-6 * (rise[-1] - rise[0]) * torch.linspace(0, 1, len(rise))
    if rise[-1] <= rise[0]:
        raise ValueError("the loss does not rise with the noise level")
    return logs, rise


def fit_warp(levels, losses, count=17, trim=0.01):
    """Noise levels between which a loss rises in equal steps.

    Parameters
    ----------
    levels : sequence of float, shape ``(n,)``
        Noise levels, rising.
    losses : sequence of float, shape ``(n,)``
        The loss measured at each: cross-entropy, or MSE / Var. Where it
        falls by chance it is taken as level.
    count : int
        How many levels to return, at least 2.
    trim : float in [0, 0.5)
        Share of the rise that is left out at either end, where the loss is
        flat and its place is chance.

    Returns
    -------
    list of float, length ``count``
        For `Warped`.

    Raises
    ------
    ValueError
        If shapes do not fit, levels do not rise, or the loss never does.
    """
    logs, rise = rising_loss(levels, losses, count, trim)
    shares = (rise - rise[0]) / (rise[-1] - rise[0])
    wanted = torch.linspace(trim, 1 - trim, count, dtype=torch.float64)
    right = torch.searchsorted(shares, wanted).clamp(1, len(shares) - 1)
    left = right - 1
    part = (wanted - shares[left]) / (shares[right] - shares[left])
    return torch.exp(logs[left] + part * (logs[right] - logs[left])).tolist()


SCHEDULES = {
    c.name: c for c in (Linear, Cosine, Sqrt, Sigmoid, LogUniform, Warped)
}


def get_schedule(name, **options):
    """Return a schedule by name, or the schedule itself if given one.

    Raises
    ------
    ValueError
        If there is no such schedule; the message lists those there are.
    TypeError
        If options come with a finished schedule, or are none of its own.
    """
    if isinstance(name, Schedule):
        if options:
            raise TypeError(
                f"{name!r} is finished: give its name, {name.name!r}, "
                f"to build one with {', '.join(options)}"
            )
        return name
    if not isinstance(name, str) or name not in SCHEDULES:
        raise ValueError(
            f"unknown schedule {name!r}; choose one of {', '.join(SCHEDULES)}"
        )
    return SCHEDULES[name](**options)


@dataclass(frozen=True, eq=False)
class DiscreteSchedule:
    """A schedule cut into steps: the variance that each step adds.

    Attributes
    ----------
    betas : tensor, shape ``(num_steps,)``, float64, each in (0, 1)

    Raises
    ------
    ValueError
        If betas are not one row of numbers between 0 and 1.
    """

    betas: torch.Tensor

    def __post_init__(self):
        betas = torch.as_tensor(self.betas, dtype=torch.float64)
        if betas.ndim != 1 or len(betas) == 0:
            raise ValueError(
                "betas must be one row of numbers, one a step; "
                f"got shape {tuple(betas.shape)}"
            )
        wrong = ~((betas > 0) & (betas < 1))
        if bool(wrong.any()):
            step = int(wrong.int().argmax())
            raise ValueError(
                "every beta must lie between 0 and 1, both excluded; "
                f"step {step} has {betas[step].item()}"
            )
        object.__setattr__(self, "betas", betas)

    @property
    def num_steps(self):
        """How many steps there are."""
        return len(self.betas)

    @property
    def alpha_bar(self):
        """Signal share of the variance after each step, ``(num_steps,)``."""
        return torch.cumprod(1 - self.betas, dim=0)

    @property
    def alpha_bar_previous(self):
        """Signal share before each step; 1 before the first."""
        one = torch.ones(1, dtype=torch.float64)
        return torch.cat([one, self.alpha_bar[:-1]])


def forward_step(x, beta, eps):
    """One Markov step of the forward process: shrink, then add noise.

    Parameters
    ----------
    x, eps : tensor
        The value before the step and a standard normal draw of its shape.
    beta : float or tensor
        Variance added by this step.

    Returns
    -------
    tensor
        A draw of q(x_t | x_{t-1}) (Ho et al., 2020, eq. 2).
    """
    beta = torch.as_tensor(beta, dtype=torch.float64)
    return (1 - beta).sqrt() * x + beta.sqrt() * eps


def closed_form(x0, alpha_bar, eps):
    """All steps up to time t at once.

    Parameters
    ----------
    x0, eps : tensor
        Clean value and a standard normal draw of its shape.
    alpha_bar : float or tensor
        Signal share of the variance at time t.

    Returns
    -------
    tensor
        A draw of q(x_t | x_0) (Ho et al., 2020, eq. 4).
    """
    alpha_bar = torch.as_tensor(alpha_bar, dtype=torch.float64)
    return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps


def posterior(x0, xt, alpha_bar_s, alpha_bar_t):
    """Mean and variance of q(x_s | x_t, x_0) for an earlier time s < t.

    Bayes' rule with both ends of a path given: a Gaussian whose mean is a
    weighted sum of the two (Ho et al., 2020, eq. 7, written for any two
    times; derived in chapter 1). At the last step, where ``alpha_bar_s`` is
    1, it is ``x0`` without any variance.

    Parameters
    ----------
    x0, xt : tensor
        Clean value, and the noised one at time t.
    alpha_bar_s, alpha_bar_t : float or tensor
        Signal shares at the earlier and at the later time,
        ``alpha_bar_s >= alpha_bar_t < 1``: with no noise at time t there
        is nothing to ask.

    Returns
    -------
    mean : tensor, shape of ``x0``
    variance : tensor, shape of ``alpha_bar_t``
    """
    a_s = torch.as_tensor(alpha_bar_s, dtype=torch.float64)
    a_t = torch.as_tensor(alpha_bar_t, dtype=torch.float64)
    ratio = a_t / a_s
    from_x0 = a_s.sqrt() * (1 - ratio) / (1 - a_t)
    from_xt = ratio.sqrt() * (1 - a_s) / (1 - a_t)
    variance = (1 - a_s) * (1 - ratio) / (1 - a_t)
    return from_x0 * x0 + from_xt * xt, variance


def mixture_denoiser(zt, alpha_bar, means, stds, weights):
    """The posterior mean E[x0 | zt] when x0 is a mixture of Gaussians.

    The exact denoiser: no network can have a smaller squared error. It
    averages the posterior means of the components, each weighted by the
    posterior probability that its component produced ``zt`` (Robbins, 1956;
    Miyasawa, 1961; chapter 1).

    Parameters
    ----------
    zt : tensor, shape ``(n,)``
        Noised numbers.
    alpha_bar : float
        Signal share of the variance.
    means, stds, weights : sequences, length ``k``
        The components of the density of x0, their shares as weights. A
        standard deviation of 0 makes a component a point; ``alpha_bar``
        must then be below 1.

    Returns
    -------
    tensor, shape ``(n,)``, float64
    """
    alpha_bar = torch.as_tensor(alpha_bar, dtype=torch.float64)
    means, stds, weights = (
        torch.as_tensor(v, dtype=torch.float64) for v in (means, stds, weights)
    )
    zt = torch.as_tensor(zt, dtype=torch.float64)[:, None]
    alpha, variance = alpha_bar.sqrt(), alpha_bar * stds**2 + 1 - alpha_bar
    error = zt - alpha * means  # (n, k): distance to each component
    fit = -(error**2) / (2 * variance) - variance.log() / 2
    log_posterior = weights.log() + fit  # unnormalised
    guess = means + alpha * stds**2 / variance * error
    return (log_posterior.softmax(dim=1) * guess).sum(dim=1)
