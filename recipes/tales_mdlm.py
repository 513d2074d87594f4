"""The masked denoiser of the book, trained from the embedded GPT-2.

9,500 steps of 64 tales: as many tokens as the repaired denoiser sees in its
two phases, 39 million. About an hour on two processor cores, minutes on a
GPU. Resumes.
"""

import torch

from dblm_lib import ladder, masked, resources

from . import common

STEPS = 9500


def train(work, steps=STEPS, **options):
    """Train it with Muon, or go on where it was stopped.

    Parameters
    ----------
    work : path
    steps : int
    **options
        Fields of `masked.MaskedConfig`, to compare with others: a run keeps
        to its folder, so give each its own.

    Returns
    -------
    model, history, config
    """
    tokenizer = resources.load_tokenizer()
    ids, _ = ladder.canvases(tokenizer, common.TRAIN_TALES)
    torch.manual_seed(0)  # for what the backbone does not bring
    model = masked.MaskedDenoiser.from_backbone(
        seq_len=common.SEQ_LEN, **masked.TRAINED_WITH["mask"] | options
    )
    model.to(resources.device())
    history, config = common.trained(
        model,
        ids,
        work / "run",
        steps=steps,
        warmup=min(100, steps // 3),
        ema=max(0.0, min(0.998, 1 - 10 / steps)),
    )
    return model.cpu(), history, config


def make(folder, data, work, jobs=1):
    """Train it, write it in half precision, measure what was written."""
    model, *run = train(work)
    return common.shipped(model, [run], folder, data)
