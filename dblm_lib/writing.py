"""Writing: texts of a model that works on tokens.

Chapters 9 and 10. What `decoding.generate` is for models of vectors: prompts
are laid on canvases, what is not given is masked, a sampler writes it, and a
text ends where the model ended it. Which sampler that is depends on the
noise that the model was trained with.
"""

from dataclasses import dataclass

import torch

from . import (
    decoding,
    masked,
    prompts,
    renoising,
    resources,
    text,
    unmasking,
)

__all__ = [
    "BLANK",
    "DOUBT",
    "SAMPLER",
    "SAMPLERS",
    "Written",
    "fills",
    "generate",
    "generate_ids",
    "noise_of",
    "sampler_of",
    "theatre_panel",
    "words",
]

# How masks are filled if neither the call nor the model says.
SAMPLER = {"order": "left-to-right", "tau": 0.99}
# The same for each noise that a model may be trained with.
SAMPLERS = {
    "mask": SAMPLER,
    "uniform": {},
    "hybrid": SAMPLER | {"edit": 0.9},
}
# What share of a canvas without masks a model of hybrid noise is told to be
# noised: at 0 it would take all that it has written for right.
DOUBT = 0.1
# Stands for a mask where tokens are words.
BLANK = "[MASK]"


@dataclass
class Written:
    """Texts and how they came about.

    Attributes
    ----------
    texts : list of str
        The prompt and what follows, up to the first end-of-text token.
    ids : tensor of ids, shape ``(batch, length)``
    course : unmasking.Course
        With every step, if recorded.
    """

    texts: list
    ids: torch.Tensor
    course: unmasking.Course


def fills(model):
    """Whether a model works on tokens, and `generate` is its way to write."""
    return isinstance(model, masked.MaskedBase)


def noise_of(model):
    """The noise that a model was trained with: a name in `SAMPLERS`."""
    return model.config.noise


def sampler_of(model, asked=None):
    """The options that a model is sampled with.

    Parameters
    ----------
    model : MaskedDenoiser
        Its configuration may name a sampler of its own, a dictionary.
    asked : dict, optional
        What the call names. With an order, what was meant for another is
        left aside.

    Returns
    -------
    dict
        Options of `unmasking.unmask`.

    Raises
    ------
    ValueError
        If nothing is known of the model's noise.
    TypeError
        If its own sampler is no dictionary.
    """
    noise, asked = noise_of(model), asked or {}
    if noise not in tuple(SAMPLERS):  # a damaged one may be anything
        raise ValueError(
            f"no sampler is known for the noise {noise!r}; there is one for "
            f"{', '.join(SAMPLERS)}"
        )
    if "order" in asked:
        return dict(asked)
    own = getattr(model.config, "sampler", None) or {}
    if not isinstance(own, dict):
        raise TypeError(
            "the sampler that the model's configuration names must be a "
            f"dictionary of options; got {own!r}"
        )
    return {**SAMPLERS[noise], **own, **asked}


@torch.no_grad()
def generate_ids(
    model,
    input_ids=None,
    keep=None,
    max_length=None,
    num_return_sequences=1,
    num_steps=64,
    generator=None,
    attention_mask=None,
    record=False,
    progress=False,
    **sampler,
):
    """Write token ids where nothing is given.

    Parameters
    ----------
    model : MaskedDenoiser
    input_ids, keep, attention_mask, max_length, num_return_sequences
        Prompts, also with gaps, as `decoding.generate_ids` takes them.
    num_steps : int, optional
        Evaluations of the network at most; as many as tokens to be written
        if None, or with the order "first-hitting", which refuses fewer.
    generator : torch.Generator, optional
        On the CPU.
    record : bool
        Keep every step.
    progress : bool
    **sampler
        Options of `unmasking.unmask`, such as ``order`` and
        ``temperature``; of `renoising.revise` for a model of hybrid noise,
        and of `renoising.sample_noised` for one of uniform noise. See
        `sampler_of` for what holds if they are left out.

    Returns
    -------
    unmasking.Course

    Raises
    ------
    TypeError, ValueError
        If a prompt or an option means nothing, or does not suit the model.
    """
    model.eval()
    sampler = sampler_of(model, sampler)
    canvas, given = decoding.lay_out(
        model,
        model.config.vocab_size,
        input_ids,
        keep,
        attention_mask,
        max_length,
    )
    canvas, given = prompts.repeat(canvas, given, num_return_sequences)
    device = next(model.parameters()).device
    bar = resources.progress_bar(
        total=num_steps, disable=not progress, desc="writing"
    )

    def denoise(ids, t=None):
        bar.update(1)
        return model(ids, t=t)

    if num_steps is None:
        num_steps = int((~given).sum(dim=1).max()) or 1
    write = _WRITERS[noise_of(model)]
    with bar:
        return write(
            denoise,
            canvas.to(device),
            given.to(device),
            model,
            num_steps=num_steps,
            generator=generator,
            record=record,
            **sampler,
        )


def _unmask(denoise, canvas, given, model, num_steps, **options):
    """Fill the masks of a canvas."""
    mask_id = model.config.mask_id
    if options["order"] in ("first-hitting", unmasking.first_hitting):
        most = int((~given).sum(dim=1).max())
        num_steps = None if num_steps >= most else num_steps
    return unmasking.unmask(
        denoise,
        canvas.masked_fill(~given, mask_id),
        mask_id,
        num_steps=num_steps,
        **options,
    )


def _revise(denoise, canvas, given, model, num_steps, **options):
    """Fill masks, and write over what no longer fits."""
    mask_id = model.config.mask_id

    def doubting(ids):
        share = (ids == mask_id).double().mean(dim=1)
        return denoise(ids, share.clamp(min=DOUBT))

    return renoising.revise(
        doubting,
        canvas.masked_fill(~given, mask_id),
        mask_id,
        num_steps=num_steps,
        **options,
    )


def _renoise(denoise, canvas, given, model, num_steps, **options):
    """Reverse the noise by its posterior."""
    return renoising.sample_noised(
        denoise, canvas, model.process, num_steps, given, **options
    )


# How a model of each noise writes: (denoise, canvas, given, model, num_steps,
# generator, record, and the options of its sampler) -> Course.
_WRITERS = {"mask": _unmask, "hybrid": _revise, "uniform": _renoise}


def generate(model, tokenizer, prompt=None, record=False, seed=0, **options):
    """Write texts, with or without a prompt.

    Parameters
    ----------
    model : MaskedDenoiser
    tokenizer : transformers.PreTrainedTokenizerFast
    prompt : str or list of str, optional
        White space at its ends is left out: no text was trained with it.
    record : bool
        Keep every step.
    seed : int
        Of a new generator, unless ``generator`` is given.
    **options
        See `generate_ids`.

    Returns
    -------
    Written

    Raises
    ------
    TypeError, ValueError
        If a prompt is no text, empty, longer than the canvas, has no word
        that the tokenizer knows whole, or holds the end-of-text mark.
    """
    options.setdefault("generator", torch.Generator().manual_seed(seed))
    if prompt is not None:
        ids, keep = prompts.encode(prompt, tokenizer)
        options |= {"input_ids": ids, "keep": keep}
    course = generate_ids(model, record=record, **options)
    texts = text.decode_batch(course.ids, tokenizer)
    return Written(texts, course.ids, course)


# --- looking at it ----------------------------------------------------------


def words(row, tokenizer, mask_id, blank=" _"):
    """A canvas up to its first end-of-text token, with blanks for masks.

    Parameters
    ----------
    row : tensor of ids, shape ``(length,)``
    tokenizer : transformers.PreTrainedTokenizerFast
    mask_id : int
    blank : str

    Returns
    -------
    str
    """
    row, found, run = row.tolist(), [], []
    if tokenizer.eos_token_id in row:
        row = row[: row.index(tokenizer.eos_token_id)]
    for token in [*row, mask_id]:
        if token != mask_id:
            run.append(token)
            continue
        # Neighbours at once: a letter may need more than one token.
        found += [tokenizer.decode(run)] if run else []
        found.append(blank)
        run = []
    return "".join(found[:-1])


def theatre_panel(course, tokenizer, mask_id, row=0, count=None):
    """A recorded text as `widgets.theatre` draws it.

    Parameters
    ----------
    course : unmasking.Course
        Recorded.
    tokenizer : transformers.PreTrainedTokenizerFast
    mask_id : int
    row : int
        Which of the texts.
    count : int, optional
        As many frames: the last is repeated, for a figure in which another
        text takes longer.

    Returns
    -------
    dict
        ``frames``: the tokens before each step and at the end, list of list
        of str, with `BLANK` for masks. ``confidence``, shape ``(steps + 1,
        length)``: the probability of the most probable token at each mask,
        1 elsewhere.

    Raises
    ------
    ValueError
        If the course was not recorded, or has more steps than frames.
    """
    if not course.canvases:
        raise ValueError(
            "this course has no steps: let it be recorded (record=True)"
        )
    rows = [*(canvas[row] for canvas in course.canvases), course.ids[row]]
    sure = [found[row] for found in course.confidence]
    sure.append(torch.ones_like(sure[0]))
    count = len(rows) if count is None else count
    if len(rows) > count:
        raise ValueError(
            f"the course has {len(rows)} frames; got count {count!r}"
        )
    more = count - len(rows)
    tokens = [
        [BLANK if i == mask_id else tokenizer.decode([i]) for i in ids]
        for ids in (canvas.tolist() for canvas in rows)
    ]
    return {
        "frames": tokens + tokens[-1:] * more,
        "confidence": torch.stack(sure + sure[-1:] * more).float(),
    }
