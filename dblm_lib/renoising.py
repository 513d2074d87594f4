r"""Renoising: from masks or random tokens back to text, no token being final.

Chapter 10. `sample_uniform` begins with random tokens; its steps are those of
discrete DDIM, with a corrector, or of DiffusionGemma, which accepts tokens of
low entropy and noises the rest. `sample_noised` reverses any noise by its
posterior. `revise` fills masks in an order, as `unmasking` does, and writes
over tokens that no longer fit.
"""

import math

import torch

from . import checks, noising, processes
from .masking import carry_over, check_logits, look_up
from .schedules import check_num_steps
from .unmasking import (
    Course,
    Step,
    accept,
    check_sampling,
    draw_tokens,
    rule_of,
)

__all__ = [
    "SELECTIONS",
    "STEPS",
    "entropy_bound_step",
    "revise",
    "sample_noised",
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
    keep = _given(keep, canvas)
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


@torch.no_grad()
def sample_noised(
    denoise,
    canvas,
    process,
    num_steps=64,
    keep=None,
    generator=None,
    temperature=1.0,
    leave_one_out=False,
    dtype=torch.float64,
    record=False,
):
    """Reverse any noise on tokens, step by step, by its posterior.

    In each step every position is drawn anew from q(z_s | z_t, x_0), with
    the model's leave-one-out probabilities in the place of x_0. A step may
    reveal a mask, put another token in the place of one, or leave things as
    they are.

    Parameters
    ----------
    denoise : callable ``(ids, t) -> logits``
        t has the shape ``(batch,)``.
    canvas : tensor of ids, shape ``(batch, length)``
        Of which only the positions in ``keep`` are read.
    process : processes.Process
        At t = 1 it has left nothing of the text.
    num_steps : int
    keep : tensor of 0 and 1, shape of ``canvas``, optional
        1 (or True) at positions that are given.
    generator : torch.Generator, optional
        On the CPU.
    temperature : float
        The logits are divided by it.
    leave_one_out : bool
        Whether the network answers with leave-one-out logits.
    dtype, record
        See `unmasking.unmask`.

    Returns
    -------
    unmasking.Course
    """
    num_steps = check_num_steps(num_steps)
    check_sampling(canvas, temperature, dtype)
    keep = _given(keep, canvas)
    # Whatever stood there: at t = 1 the noise has replaced all of it.
    zt = process.add_noise(torch.zeros_like(canvas), 1.0, generator)
    zt = torch.where(keep, canvas, zt)
    course = Course(zt, torch.zeros_like(zt), zt.new_zeros(len(zt)))
    for k in range(num_steps):
        t, s = 1 - k / num_steps, 1 - (k + 1) / num_steps
        times = torch.full((len(zt),), t, dtype=torch.float64)
        logits = denoise(zt, times.to(zt.device)).double()
        check_logits(logits, zt)
        course.calls += 1
        course.nfe += 1
        if not leave_one_out and t < 1:
            logits = process.leave_one_out(logits, zt, t)
        if record:
            course.note(t, zt, logits, keep)
        logits = logits / (temperature or 1e-6)
        probs = process.posterior(logits.softmax(-1), zt, s, t)
        zs = zt.clone()
        zs[~keep] = draw_tokens(probs[~keep].log(), 1.0, generator, dtype)
        course.revealed[zs != zt] = k + 1
        zt = zs
    course.ids = zt
    return course


@torch.no_grad()
def revise(
    denoise,
    canvas,
    mask_id,
    order="left-to-right",
    num_steps=64,
    edit=0.9,
    filling=1.0,
    generator=None,
    temperature=1.0,
    dtype=torch.float64,
    record=False,
    **options,
):
    """Fill masks in an order, and write over tokens that no longer fit.

    A token that was written, not given, is overwritten by another one as
    soon as the network holds that for more probable than ``edit``: the
    token-to-token editing of LLaDA2.1. The network must have been trained on
    wrong tokens; to one that has seen masks only, all that is visible is
    right.

    Parameters
    ----------
    denoise : callable ``ids -> logits``
    canvas : tensor of ids, shape ``(batch, length)``
        What is visible stays.
    mask_id : int
    order : name in `unmasking.ORDERS`, or callable
        Not the ancestral one, nor first-hitting.
    num_steps : int
        Evaluations at most. A row is finished when it has no mask and no
        token to overwrite.
    edit : float
        Of 1 or more: nothing is overwritten.
    filling : float in (0, 1]
        Share of the steps in which masks are filled; in the others, if
        any, tokens are only overwritten.
    generator, temperature, dtype, record
        See `unmasking.unmask`.
    **options
        Of the order, such as ``tau``.

    Returns
    -------
    unmasking.Course
        With ``changed``, shape ``(batch, length)``: how often a token was
        overwritten.
    """
    rule = rule_of(order, options)
    num_steps = check_num_steps(num_steps)
    check_sampling(canvas, temperature, dtype)
    for name, value in (("edit", edit), ("filling", filling)):
        if not (checks.is_number(value) and value > 0):
            raise ValueError(f"{name} must be positive; got {value!r}")
    if filling > 1:
        raise ValueError(f"filling is a share of the steps; got {filling!r}")
    ids, free = canvas.clone(), canvas == mask_id
    course = Course(ids, torch.zeros_like(ids), ids.new_zeros(len(ids)))
    course.changed = torch.zeros_like(ids)
    last = max(1, round(filling * num_steps))
    busy = free.any(1)
    for k in range(num_steps):
        masked = ids == mask_id
        if not bool(busy.any()):
            break
        raw = denoise(ids).double() / (temperature or 1.0)
        check_logits(raw, ids)
        course.calls += 1
        course.nfe += busy
        if record:
            course.note(masked.sum() / free.sum(), ids, raw, ~masked)
        logits = carry_over(raw, ids, mask_id)

        def draw(logits):
            heat = float(temperature > 0)
            return draw_tokens(logits, heat, generator, dtype)

        quota = -(-masked.sum(1) // max(1, last - k))
        step = Step(
            ids, masked, quota, None, lambda *_, x=logits: x, draw, generator
        )
        reveal = rule(step) & masked
        sure, best = raw.softmax(-1).max(-1)
        wrong = free & ~masked & (best != ids) & (sure > edit)
        wrong &= busy[:, None]
        written = torch.where(
            reveal, step.tokens, torch.where(wrong, best, ids)
        )
        course.changed += wrong
        course.revealed[reveal | wrong] = k + 1
        busy = (written == mask_id).any(1) | (busy & wrong.any(1))
        busy |= busy & (k + 1 < last)
        ids = written
    course.ids = ids
    return course


def _given(keep, canvas):
    """``keep`` as a bool tensor where the canvas is; nothing if left out."""
    keep = noising.check_keep(keep, canvas.shape)
    if keep is None:
        return torch.zeros_like(canvas, dtype=torch.bool)
    return keep.to(canvas.device)
