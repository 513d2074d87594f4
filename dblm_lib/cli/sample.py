"""``dblm sample``: texts out of noise."""

import math
import sys

from .models import check_kind, check_room, default_model, load
from .parser import STEPS
from .printing import printable, say

__all__ = ["run"]

_TOGETHER = 1000  # texts
_ASKED = ("order", "stagger", "temperature")  # of the sampler


def run(options):
    """Let a denoiser write, and print what it wrote."""
    from .. import decoding, writing

    name = options.name if options.model is None else options.model
    if None not in (options.name, options.model) and (
        options.name != options.model
    ):
        raise ValueError(
            f"two models are named, {options.name!r} and {options.model!r}: "
            "one of them writes"
        )
    name = default_model() if name is None else name
    model, tokenizer = load(name, length=options.length)
    check_kind(name, model, options)
    length = options.length or decoding.canvas_of(model)
    check_room(name, model, length)
    if options.prompt is not None:
        _check_prompt(options.prompt, tokenizer, length)
    found = _write(options, model, tokenizer, length)
    first = next(found)
    if options.show and writing.fills(model):
        _show_filling(first.course, model.config.mask_id, tokenizer)
    elif options.show:
        _show(first.trajectory, model.schedule, tokenizer)
    texts = [*first.texts, *(words for more in found for words in more.texts)]
    _print_texts(texts, options.check)


def _write(options, model, tokenizer, length):
    """Write the texts, some hundred at once: memory has an end."""
    import torch

    from .. import decoding, writing

    masked = writing.fills(model)
    asked = {name: getattr(options, name) for name in _ASKED}
    asked = {name: value for name, value in asked.items() if value is not None}
    generator = torch.Generator().manual_seed(options.seed)
    for begin in range(0, options.count, _TOGETHER):
        yield (writing if masked else decoding).generate(
            model,
            tokenizer,
            options.prompt,
            record=options.show and not begin,
            generator=generator,
            max_length=length,
            num_return_sequences=min(_TOGETHER, options.count - begin),
            num_steps=options.steps or STEPS["masks" if masked else "noise"],
            progress=sys.stderr.isatty(),
            **asked,
        )


def _check_prompt(prompt, tokenizer, length):
    """Refuse a prompt that leaves no room."""
    from .. import text

    text.check_known(prompt, tokenizer)
    count = len(tokenizer(prompt)["input_ids"])
    if count > length:
        raise ValueError(
            f"the prompt has {count} tokens, the canvas only {length}: "
            "shorten it, or raise --length"
        )


def _show(path, schedule, tokenizer, lines=16):
    """Print the guess of the first text at `lines` of the steps at most."""
    from .. import text

    print("How the denoiser's guess of the first text changes:")
    print("  noise  guess, each position rounded to its nearest token")
    every = math.ceil(len(path.times) / lines)
    for t, ids in list(zip(path.times, path.ids))[::every]:
        words = text.decode_batch(ids[:1], tokenizer)[0]
        say(printable(words), f"{float(schedule.noise_level(t)):7.2f}  ")
    print()


def _show_filling(course, mask_id, tokenizer, lines=16):
    """Print the canvas of the first text before `lines` steps at most."""
    from .. import writing

    print("How the first text is filled in:")
    print("  masks  the canvas, an underscore for each mask")
    every = math.ceil(max(1, len(course.canvases)) / lines)
    for canvas in [*course.canvases[::every], course.ids]:
        row = canvas[0].cpu()
        line = writing.words(row, tokenizer, mask_id).lstrip()
        say(printable(line), f"{int((row == mask_id).sum()):7}  ")
    print()


def _print_texts(texts, check):
    from .. import tales

    width = len(str(len(texts)))
    coherent = 0
    for i, words in enumerate(texts, start=1):
        # Numbers are for the eye; other programs count lines themselves.
        label = f"{i:{width}}  " if sys.stdout.isatty() else ""
        say(printable(words), label)
        if check:
            verdict = tales.check(words)
            coherent += verdict.ok
            say("ok" if verdict.ok else verdict.message, " " * 4)
    if check:
        print(f"{coherent} of {len(texts)} hold together")
