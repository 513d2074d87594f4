"""The masked denoiser of the book, trained from the embedded GPT-2.

9,500 steps of 64 tales: as many tokens as the repaired denoiser sees in its
two phases, 39 million. About an hour on two processor cores, minutes on a
GPU. Resumes.
"""

import torch

from dblm_lib import evaluation, ladder, masked, resources, text

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
        seq_len=common.SEQ_LEN, **{"draws": "counts"} | options
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
    model, history, config = train(work)
    model.half().save_pretrained(folder)
    tokenizer = common.add_tokenizer(folder, data)
    model = resources.load_weights(masked.MaskedDenoiser, folder)
    model.to(resources.device())
    valid = text.load("tales", size=1, valid_size=common.VALID_TALES).valid
    seen = config.steps * config.batch_size * common.SEQ_LEN
    measured = evaluation.nats(model, tokenizer, valid)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": config.steps,
        "tokens_seen": seen,
        "seconds_of_training": round(seen / history.tokens_per_second),
        "last_training_loss": round(history.loss[-1], 4),
        **measured,
        "evaluation": evaluation.evaluate(model, tokenizer, progress=True),
    }
