"""The denoiser of the book for hybrid noise: masks and random tokens.

As many steps and tokens as `tales_mdlm`, from the same weights, by the same
recipe; about an hour on two processor cores. Resumes.
"""

from dblm_lib import masked

from . import common, tales_mdlm

NOISE = {"noise": "hybrid", **masked.TRAINED_WITH["hybrid"]}


def train(work, steps=tales_mdlm.STEPS, **options):
    """Train it, or go on where it was stopped; as `tales_mdlm.train`."""
    return tales_mdlm.train(work, steps, **NOISE | options)


def make(folder, data, work, jobs=1):
    """Train it, write it in half precision, measure what was written."""
    model, *run = train(work)
    return common.shipped(model, [run], folder, data)
