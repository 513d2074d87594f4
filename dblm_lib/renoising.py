r"""Renoising: from a canvas of random tokens back to text.

Chapter 10. No position is ever finished: each step of `sample_uniform` may
replace any token. Its steps are those of discrete DDIM, with a corrector, or
of DiffusionGemma, which accepts tokens of low entropy and noises the rest.
"""

import math

import torch

from . import noising, processes
from .masking import check_logits, look_up
from .schedules import check_num_steps
from .unmasking import Course, accept, check_sampling, draw_tokens

__all__ = [
    "SELECTIONS",
    "STEPS",
    "entropy_bound_step",
    "sample_uniform",
    "uniform_correct",
    "uniform_step",
]

STEPS = ("posterior", "entropy-bound")
SELECTIONS = ("margin", "random")


def uniform_step(
    logits, zt, alpha_s, alpha_t, generator=None, temperature=1.0,
    dtype=torch.float64,
):  # fmt: skip
    """One step of discrete DDIM from t to the earlier time s.

    Draws the clean token, and then from q(z_s | z_t, x_0) (Austin et al.,
    2021): go to that token, stay, or go to a random one.

    Parameters
    ----------
    logits : tensor, shape ``(batch, length, vocab_size)``
        Of the plain posterior, which has counted the token itself.
    zt : tensor of ids, shape ``(batch, length)``
    alpha_s, alpha_t : float
    generator, temperature, dtype
        See `draw_tokens`.

    Returns
    -------
    tensor of ids, shape of ``zt``
    """
    size = logits.shape[-1]
    x0 = draw_tokens(logits, temperature, generator, dtype)
    kept = alpha_t / alpha_s  # from s to t
    same = (x0 == zt).to(dtype).cpu()
    clean = alpha_s * (1 - kept) / size + kept * alpha_s * same
    stay = torch.full_like(same, kept * (1 - alpha_s) / size)
    other = torch.full_like(same, (1 - kept) * (1 - alpha_s) / size)
    routes = torch.stack([clean, stay, other], -1)
    routes = (routes / routes.sum(-1, keepdim=True)).view(-1, 3)
    route = torch.multinomial(routes, 1, generator=generator).view_as(same)
    noise = torch.randint(size, zt.shape, generator=generator).to(zt.device)
    route = route.to(zt.device)
    return torch.where(route == 0, x0, torch.where(route == 1, zt, noise))


def uniform_correct(
    logits, zt, alpha, count=1, select="margin", generator=None, keep=None
):
    """Draw some positions anew, given all others, at one and the same time.

    From the leave-one-out posterior with the noise of that time on top
    (Gourevitch et al., 2026). One position, chosen blindly (``random``),
    leaves the law of the noised text as it is. ``margin`` prefers tokens
    that are far behind the best other one: that looks at the token, so the
    law does change.

    Parameters
    ----------
    logits : tensor, shape ``(batch, length, vocab_size)``
        Of the plain posterior at this time.
    zt : tensor of ids, shape ``(batch, length)``
    alpha : float inside (0, 1)
    count : int
        Positions a row.
    select : {"margin", "random"}
    generator : torch.Generator, optional
    keep : bool tensor, shape of ``zt``, optional
        Positions that are given.

    Returns
    -------
    tensor of ids, shape of ``zt``
    """
    look_up("selection", select, dict.fromkeys(SELECTIONS))
    if not 0 < alpha < 1:
        raise ValueError(f"a corrector needs alpha inside (0, 1); got {alpha}")
    alone = processes.leave_one_out(logits.double(), zt, alpha).log_softmax(-1)
    noise = torch.tensor(math.log1p(-alpha) - math.log(logits.shape[-1]))
    wanted = torch.logaddexp(math.log(alpha) + alone, noise.to(alone))
    u = torch.rand(zt.shape, generator=generator).to(zt.device)
    if select == "random":
        keys = u
    else:
        token = zt[..., None]
        others = wanted.scatter(-1, token, -torch.inf).amax(-1)
        keys = others - wanted.gather(-1, token)[..., 0]
        # Gumbel noise: drawn by the sizes, not the largest for certain.
        keys = keys - (-u.double().clamp(1e-12, 1 - 1e-12).log()).log()
    if keep is not None:
        keys = keys.masked_fill(keep, -torch.inf)
    place = keys.topk(min(count, zt.shape[1]), dim=1).indices
    rows = torch.arange(len(zt), device=zt.device)[:, None]
    found = draw_tokens(wanted[rows, place], 1.0, generator)
    corrected = zt.scatter(1, place, found)
    return corrected if keep is None else torch.where(keep, zt, corrected)


def entropy_bound_step(logits, bound=0.1, generator=None, dtype=torch.float64):
    """Accept tokens of low entropy, see `entropy_bound`; noise the rest.

    The step of DiffusionGemma.

    Returns
    -------
    ids : tensor of ids, shape ``(batch, length)``
    accepted : bool tensor, shape ``(batch, length)``
    """
    tokens = draw_tokens(logits, 1.0, generator, dtype)
    log_p = logits.log_softmax(-1)
    entropies = -(log_p.exp() * log_p).sum(-1)
    everywhere = torch.ones_like(tokens, dtype=torch.bool)
    accepted = accept(entropies, bound, everywhere)
    noise = torch.randint(logits.shape[-1], tokens.shape, generator=generator)
    return torch.where(accepted, tokens, noise.to(tokens)), accepted


@torch.no_grad()
def sample_uniform(
    denoise,
    canvas,
    vocab_size,
    num_steps=64,
    keep=None,
    generator=None,
    step="posterior",
    temperature=1.0,
    leave_one_out=False,
    corrector_steps=0,
    corrector_count=1,
    select="margin",
    bound=0.1,
    stability_threshold=None,
    confidence_threshold=0.005,
    dtype=torch.float64,
    record=False,
):
    """Write tokens over random ones; the linear schedule, alpha = 1 - t.

    Parameters
    ----------
    denoise : callable ``(ids, t) -> logits``
        t has the shape ``(batch,)``. A network without a time input is
        ``lambda ids, t: network(ids)``.
    canvas : tensor of ids, shape ``(batch, length)``
        Of which only the positions in ``keep`` are read.
    vocab_size, num_steps : int
    keep : tensor of 0 and 1, shape of ``canvas``, optional
        1 (or True) at positions that are given.
    generator : torch.Generator, optional
        On the CPU.
    step : {"posterior", "entropy-bound"}
        `uniform_step` or `entropy_bound_step`. The latter ends with the
        most probable tokens.
    temperature : float, or (first, last)
        The logits are divided by it.
    leave_one_out : bool
        Whether the network answers with leave-one-out logits.
    corrector_steps, corrector_count, select
        After each step but the last, so often `uniform_correct`, with an
        evaluation each.
    bound : float
        Of the entropy bound.
    stability_threshold : int, optional
        A row is done when its most probable tokens have stayed the same for
        so many steps and their mean entropy is below
        ``confidence_threshold``; without it every step is taken.
    dtype, record
        See `unmask`.

    Returns
    -------
    Course
    """
    look_up("step", step, dict.fromkeys(STEPS))
    num_steps = check_num_steps(num_steps)
    first, last = (
        temperature if isinstance(temperature, tuple) else (temperature,) * 2
    )
    for value in (first, last):
        check_sampling(canvas, value, dtype)
    if corrector_steps and step != "posterior":
        raise ValueError("a corrector belongs to the step 'posterior'")
    keep = noising.check_keep(keep, canvas.shape)
    if keep is None:
        keep = torch.zeros_like(canvas, dtype=torch.bool)
    keep = keep.to(canvas.device)
    noise = torch.randint(vocab_size, canvas.shape, generator=generator)
    zt = torch.where(keep, canvas, noise.to(canvas))
    course = Course(zt, torch.zeros_like(zt), zt.new_zeros(len(zt)))
    course.revealed[~keep] = 1
    done = keep.all(1)
    guess, stable = torch.full_like(zt, -1), zt.new_zeros(len(zt))

    def evaluate(ids, t):
        logits = denoise(ids, torch.full((len(ids),), t).to(ids.device))
        check_logits(logits, ids)
        course.calls += 1
        course.nfe += ~done
        if leave_one_out and t < 1:
            logits = processes.plain_logits(logits, ids, 1 - t)
        return logits

    for k in range(num_steps):
        if bool(done.all()):
            break
        t, s = 1 - k / num_steps, 1 - (k + 1) / num_steps
        heat = last + (first - last) * (1 - k / num_steps)
        logits = evaluate(zt, t) / (heat or 1.0)
        if record:
            course.note(t, zt, logits, keep)
        if step == "posterior":
            greedy = float(heat > 0)
            zs = uniform_step(
                logits, zt, 1 - s, 1 - t, generator, greedy, dtype
            )
        else:
            zs, _ = entropy_bound_step(logits, bound, generator, dtype)
        zs = torch.where(keep | done[:, None], zt, zs)
        for _ in range(corrector_steps if s > 0 else 0):
            again = evaluate(zs, s)
            zs = uniform_correct(
                again, zs, 1 - s, corrector_count, select, generator,
                keep | done[:, None],
            )  # fmt: skip
        best = torch.where(keep | done[:, None], zt, logits.argmax(-1))
        if step == "entropy-bound" and k + 1 == num_steps:
            zs = best
        if stability_threshold is not None:
            same = (best == guess).all(1)
            stable, guess = torch.where(same, stable + 1, 0), best
            log_p = logits.log_softmax(-1)
            mean = -(log_p.exp() * log_p).sum(-1).mean(1)
            ends = stable >= stability_threshold
            ends &= (mean < confidence_threshold) & ~done
            zs = torch.where(ends[:, None], best, zs)
            done = done | ends
        course.revealed[zs != zt] = k + 1
        zt = zs
    course.ids = zt
    return course
