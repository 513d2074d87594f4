"""The embedded GPT-2 once more, on as many tokens as the repaired denoiser.

12,500 steps of 4,096 tokens: the 12.3 M of `tales-gpt2`, with which the
denoiser begins, and the 38.9 M of its own training. Over an hour on two
processor cores. Resumes.
"""

from . import tales_gpt2

STEPS = 12_500


def make(folder, data, work, jobs=1):
    """Train, save, and measure on tales that were held out."""
    return tales_gpt2.make(folder, data, work, steps=STEPS, ema=0.998)
