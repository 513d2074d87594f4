"""The denoiser of the book for hybrid noise: masks and random tokens.

As many steps and tokens as `tales_mdlm`, from the same weights, by the same
recipe; about an hour on two processor cores. Resumes.
"""

from . import tales_mdlm

NOISE = {"noise": "hybrid", "conditioning": "time", "low": 1 / 64}


def train(work, steps=tales_mdlm.STEPS, **options):
    """Train it, or go on where it was stopped; as `tales_mdlm.train`."""
    return tales_mdlm.train(work, steps, **NOISE | options)
