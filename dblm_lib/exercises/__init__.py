"""Checkers for the book's exercises: they teach rather than grade.

    from dblm_lib.exercises import check
    check("1.1", snr)

`check` prints ``Right: ...`` or ``Not yet: ...`` with something to look
at. It never raises for an answer: a function that stops with an error gets
the error's message, and dots that were never replaced get an invitation.

A checker is a function of the answer, registered under the exercise's
number. It returns what to say about a right answer, and raises `Hint`
with what to say about a wrong one. Most wrong answers are old friends, so
a checker compares the answer with what each well-known mistake would give
and names the mistake.

Each chapter's checkers are in a file named after it.
"""

import importlib

from .core import (
    BLANK,
    REGISTRY,
    Hint,
    Verdict,
    ask,
    check,
    compare,
    exercise,
    is_blank,
    numbers,
    verdict,
)

__all__ = [  # noqa: RUF022  (the order in the book's list of functions)
    "BLANK",
    "REGISTRY",
    "Hint",
    "Verdict",
    "exercise",
    "check",
    "verdict",
    "is_blank",
    "ask",
    "numbers",
    "compare",
]

CHAPTERS = (
    "gaussian_schedules",
    "embedding_noising",
    "gpt2_denoising",
    "training_with_mse",
    "decoding",
    "autopsy",
    "the_ladder",
    "few_steps",
    "masked_diffusion",
    "honest_evaluation",
)
for _chapter in CHAPTERS:
    importlib.import_module(f"{__name__}.{_chapter}")
