"""``dblm denoise``: a sentence comes out of noise, step by step."""

from itertools import pairwise

from .. import resources
from .models import load
from .parser import EXACT
from .printing import paste, printable, say

__all__ = ["run"]


def run(options):
    """Noise a sentence, and print how it comes out again."""
    import torch

    from .. import decoding, noising, text, writing

    name = EXACT if options.model is None else options.model
    text.check_text(options.sentence)
    if resources.END in options.sentence:
        raise ValueError(
            f"the sentence holds {resources.END}, which ends a text: leave "
            "it out"
        )
    model, tokenizer = load(name, (options.sentence,))
    if writing.fills(model):
        raise ValueError(
            f"{printable(name)} knows masks and no noise level: watch it "
            f"write with {paste('dblm', 'sample', name, '--show')}"
        )
    text.check_known(options.sentence, tokenizer)
    count = len(tokenizer(options.sentence)["input_ids"])
    canvas = decoding.canvas_of(model)
    if count >= canvas:
        raise ValueError(
            f"the sentence has {count} tokens; the canvas holds {canvas - 1} "
            "and an end: shorten it"
        )
    table = model.table().detach()
    ids, _ = text.encode_batch([options.sentence], tokenizer, canvas)
    level = options.level
    if level is None:
        std = table.std().item()
        level = 3 * noising.information_band(*table.T.shape, std)
    times = _falling_times(model.schedule, level, options.steps)
    _explain(name, options.guess)
    print("  noise  right  guess")
    with torch.no_grad():
        for t, *found in _backwards(model, ids, times, options.seed):
            found = [row[0, :count] for row in found]
            _print_step(
                "clean"
                if t is None
                else f"{model.schedule.noise_level(t):.2f}",
                *[(row == ids[0, :count]).double().mean() for row in found],
                tokenizer.decode(found[options.guess]),
            )


def _explain(name, guess):
    which = (
        "the exact one of 2,000 tales and your sentence, by heart"
        if name == EXACT
        else f"the network in {printable(name)}"
    )
    shown = "guess" if guess else "points"
    print(f"Denoiser: {which}.")
    print(
        f"A line shows the {shown} of one step, rounded to tokens; 'right' "
        "and 'guess' are\nthe shares of right tokens in the points and in "
        "the denoiser's guess.\n"
    )


def _print_step(name, right, guess, words):
    say(printable(words), f"{name:>7}  {right:5.0%}  {guess:5.0%}  ")


def _backwards(model, ids, times, seed):
    """Noise a sentence and take it back: ``(t, points, guess)`` of each step.

    Both are rounded to ids. The last step has no time: its points are the
    last guess itself.
    """
    import torch

    from .. import decoding, noising

    table, schedule = model.table().detach(), model.schedule
    guesser = decoding.Guesser(model)
    generator = torch.Generator().manual_seed(seed)
    zt, _ = noising.add_noise(table[ids], times[0], schedule, generator)
    for t, s in pairwise([*times, None]):
        x0_hat = guesser(zt, t.expand(ids.shape))
        yield t, noising.nearest(zt, table), guesser.ids
        if s is not None:
            eps = torch.randn(zt.shape, generator=generator)
            zt = decoding.ancestral_step(x0_hat, zt, schedule, t, s, eps)
    yield None, guesser.ids, guesser.ids


def _falling_times(schedule, level, steps):
    """Times at which the noise level falls evenly, to a sixth of itself.

    Evenly means by the same factor: from three times the level at which
    rounding fails about half the time to half of it.
    """
    low, high = (float(schedule.noise_level(t)) for t in (0.0, 1.0))
    if not low < level <= high:
        raise ValueError(
            f"--level must lie above {low:.2f} and be {high:.2f} at most "
            f"with this noise schedule; got {level}"
        )
    last = max(low, level / 6)
    shares = [k / max(1, steps - 1) for k in range(steps)]
    levels = [level * (last / level) ** share for share in shares]
    return [schedule.time_of(level) for level in levels]
