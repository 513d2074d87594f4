"""``dblm sample``: texts out of noise."""

import math
import sys

from .models import check_room, default_model, load
from .printing import printable, say

__all__ = ["run"]

_TOGETHER = 1000  # texts


def run(options):
    """Let a denoiser write, and print what it wrote."""
    from .. import decoding

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
    length = options.length or decoding.canvas_of(model)
    check_room(name, model, length)
    if options.prompt is not None:
        _check_prompt(options.prompt, tokenizer, length)
    found = _write(options, model, tokenizer, length)
    first = next(found)
    if options.show:
        _show(first.trajectory, model.schedule, tokenizer)
    texts = [*first.texts, *(words for more in found for words in more.texts)]
    _print_texts(texts, options.check)


def _write(options, model, tokenizer, length):
    """Write the texts, some hundred at once: memory has an end."""
    import torch

    from .. import decoding

    generator = torch.Generator().manual_seed(options.seed)
    for begin in range(0, options.count, _TOGETHER):
        yield decoding.generate(
            model,
            tokenizer,
            options.prompt,
            record=options.show and not begin,
            generator=generator,
            max_length=length,
            num_return_sequences=min(_TOGETHER, options.count - begin),
            num_steps=options.steps,
            progress=sys.stderr.isatty(),
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
