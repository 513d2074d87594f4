"""What several recipes need."""

import functools
import json
import multiprocessing
import operator
import os
import shutil
from concurrent.futures import ProcessPoolExecutor

import torch

from dblm_lib import (
    evaluation,
    ladder,
    metrics,
    resources,
    text,
    training,
)

from . import PLACES

TRAIN_TALES = text.TRAIN_TALES
VALID_TALES = 1_000
SEQ_LEN = ladder.SEQ_LEN
# A sampler that leans to what the network holds for likely: chapter 8 shows
# what that buys and what it costs.
SHARP = {
    "stagger": 2.0,
    "power": 0.8,
    "temperature": 0.6,
    "likelihood_weight": 0.25,
}


def ingredient(data, name):
    """Where the artefact lies that another one is made of.

    In the folder that is being filled, if it is there, otherwise in the
    book's own; there its digests are checked.
    """
    place = data / PLACES[name]
    if place.is_dir():
        return place
    return resources.verified(*PLACES[name].split("/"))


def add_tokenizer(folder, data):
    """Copy the tokenizer into a model's folder; return it loaded."""
    source = ingredient(data, "tokenizer")
    shutil.copy(source / "tokenizer.json", folder)
    return resources.load_tokenizer(source)


def write_rows(file, rows):
    """A JSON list with one row a line, so that git shows what changed."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    file.write_text(f"[\n{lines}\n]\n", "utf-8")


def side_by_side(function, tasks, jobs):
    """Do ``function(*task)`` for each task, in ``jobs`` processes."""
    if jobs == 1:
        return [function(*task) for task in tasks]
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(
        jobs,
        multiprocessing.get_context("spawn"),
        torch.set_num_threads,
        (threads,),
    ) as pool:
        return list(pool.map(function, *zip(*tasks, strict=True)))


@functools.cache
def judge():
    """The judge, where it is fastest, and what it says of real tales."""
    found = resources.load_backbone("tales-gpt2")
    found.model.to(resources.device())
    return found, metrics.judge(*found, text.load("tales", size=1).valid)


def trained(model, train, folder, loss=None, draw="model", **changes):
    """Train by the top rung's recipe, or go on where it was stopped.

    Returns
    -------
    history, config
    """
    given = {"save_every": 250, "batch_size": 64} | changes
    config = ladder.recipe(ladder.REPAIRED, **given)
    everywhere = torch.ones_like(train, dtype=torch.bool)
    history = training.train(
        model, train, everywhere, config, loss, draw, folder, resume=True
    )
    return history, config


def shipped(model, runs, folder, data):
    """Write a model in half precision; measure what was written.

    Parameters
    ----------
    model : DBLM or MaskedDenoiser
    runs : list of (history, config)
        What `trained` returned for each phase.
    folder, data : path
        As `make` of a recipe takes them.

    Returns
    -------
    dict
    """
    model.half().save_pretrained(folder)
    tokenizer = add_tokenizer(folder, data)
    model = resources.load_weights(type(model), folder)
    seen = [c.steps * c.batch_size * SEQ_LEN for _, c in runs]
    # Also right where the training was resumed.
    speeds = [history.tokens_per_second for history, _ in runs]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": sum(config.steps for _, config in runs),
        "tokens_seen": sum(seen),
        "seconds_of_training": round(sum(map(operator.truediv, seen, speeds))),
        "last_training_loss": round(runs[-1][0].loss[-1], 4),
        "evaluation": evaluation.evaluate(model, tokenizer, progress=True),
    }
