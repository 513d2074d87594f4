r"""The ladder: from the proposal to a model that writes, a step at a time.

Chapter 7. Each rung adds to the one below it, most of them by one field of
`DBLMConfig`; those behind `TOP` are comparisons with it. All are trained by
the same loop, on the same tales, for the same number of steps, and measured
by the same table.
"""

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F

from . import denoiser, noising, resources, schedules, text, training

__all__ = [
    "FIT_LEVELS",
    "RUNGS",
    "SEQ_LEN",
    "TOP",
    "TRAIN_TALES",
    "Rung",
    "build",
    "canvases",
    "fit_levels",
    "level_report",
    "options_up_to",
    "recipe",
    "results",
    "run",
]

SEQ_LEN = 64
TRAIN_TALES = text.TRAIN_TALES
FIT_STEPS = 100
# Noise levels at which a loss is measured before a range is fitted to it.
FIT_LEVELS = tuple(0.1 * 400 ** (i / 24) for i in range(25))


@dataclass(frozen=True)
class Rung:
    """One change on the way from the proposal to a model that writes.

    Attributes
    ----------
    name : str
        A word for tables and files.
    title : str
        What changes, in a few words.
    changes : dict
        Fields of `DBLMConfig`.
    fitted : bool
        Whether the noise range is fitted to the loss here: for the first
        time, or anew since other embeddings stand other noise.
    backbone : bool
        Whether training starts from `tales-gpt2`, or from chance.
    """

    name: str
    title: str
    changes: dict = field(default_factory=dict)
    fitted: bool = False
    backbone: bool = True


RUNGS = (
    Rung(
        "proposal",
        "as proposed, trained longer",
        {"causal": True, "conditioning": "none"},
    ),
    Rung(
        "both-sides",
        "sees both sides, is told the noise",
        {"causal": False, "conditioning": "time"},
    ),
    Rung(
        "low-dim",
        "normalised embeddings, 32 dimensions",
        {"embed_dim": 32, "normalise_embeddings": True, "input_std": 1.0},
    ),
    Rung(
        "input-scale",
        "inputs at the scale of GPT-2's positions",
        {"input_std": 0.05},
    ),
    Rung("range", "noise range fitted to the loss", fitted=True),
    Rung("clean", "some positions clean in training", {"clean_rate": 0.5}),
    Rung("mixture", "a mixture of tokens as the guess", {"head": "mixture"}),
    Rung(
        "cross-entropy",
        "cross-entropy, learned embeddings",
        {"loss": "ce", "train_embeddings": True},
    ),
    Rung("likelihood", "likelihood in the logits", {"likelihood": True}),
    Rung(
        "self-conditioning",
        "the last guess is an input",
        {"self_conditioning": 0.5},
    ),
    Rung(
        "own-space",
        "GPT-2's own embeddings again, answers shifted by one",
        {"embed_dim": None, "input_std": 0.2, "shift": True},
        fitted=True,
    ),
    Rung(
        "evidence",
        "reads what each point tells, not the point",
        {"evidence": True},
    ),
    Rung(
        "staggered",
        "the left ahead of the right",
        {"stagger": 2.0, "sampler": {"stagger": 1.0}},
    ),
    Rung(
        "scratch",
        "the same from chance, for comparison",
        {"input_std": 0.02},
        backbone=False,
    ),
)
# The last step up; what follows it is a comparison.
TOP = next(i for i, rung in enumerate(RUNGS) if rung.name == "staggered")


def options_up_to(index, levels=None):
    """Fields of `DBLMConfig` of a rung: its own and all below it.

    Parameters
    ----------
    index : int
    levels : list of float, optional
        The fitted noise levels, needed from the rung "range" on.

    Returns
    -------
    dict
    """
    options = {}
    for rung in RUNGS[: index + 1]:
        options |= rung.changes
        if rung.fitted:
            if levels is None:
                raise ValueError(
                    f"the rung {rung.name!r} needs levels: fit them to the "
                    "loss of the rung below it, see fit_levels"
                )
            options |= {
                "schedule": "warped",
                "schedule_options": {"levels": list(levels)},
            }
    return options


def build(index, levels=None, seed=0, backbone=None):
    """A new model of a rung.

    Parameters
    ----------
    index : int
    levels
        As in `options_up_to`.
    seed : int
        Of all weights that do not come from the backbone.
    backbone : resources.Backbone, optional
        The embedded GPT-2 if left out.

    Returns
    -------
    denoiser.DBLM
    """
    backbone = backbone or resources.load_backbone("tales-gpt2")
    torch.manual_seed(seed)
    options = options_up_to(index, levels)
    # GPT-2's own activation, computed in one go instead of eight.
    options["activation_function"] = "gelu_pytorch_tanh"
    if RUNGS[index].backbone:
        return denoiser.DBLM.from_backbone(backbone, **options)
    fields = backbone.model.config.to_dict()
    for name in ("model_type", "architectures", "transformers_version"):
        fields.pop(name, None)
    return denoiser.DBLM(denoiser.DBLMConfig(**{**fields, **options})).eval()


def recipe(**changes):
    """The training settings of every rung.

    Parameters
    ----------
    **changes
        Fields of `training.TrainConfig` that differ.

    Returns
    -------
    training.TrainConfig
    """
    settings = {
        "steps": 500,
        "batch_size": 32,
        "learning_rate": 2e-3,
        "warmup": 100,
        "embedding_rate": 2.0,
        "ema": 0.99,
        "precision": "bf16",
    }
    return training.TrainConfig(**{**settings, **changes})


def canvases(tokenizer, count=TRAIN_TALES):
    """Tales on canvases whose every position counts.

    Behind its end a tale is filled up with end-of-text tokens. They belong
    to the task: a sampled canvas has no mask that says how long it will be.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerFast
    count : int
        Training tales.

    Returns
    -------
    train, valid : tensors of ids, shape ``(n, SEQ_LEN)``
    """
    corpus = text.load("tales", size=count, valid_size=1_000)
    train, _ = text.encode_batch(corpus.train, tokenizer, SEQ_LEN)
    valid, _ = text.encode_batch(corpus.valid, tokenizer, SEQ_LEN)
    return train, valid


@torch.no_grad()
def level_report(model, ids, levels, seed=0):
    """How well a model denoises, noise level by noise level.

    Parameters
    ----------
    model : denoiser.DBLM
    ids : tensor of ids, shape ``(batch, length)``
        Held-out texts; every position counts.
    levels : sequence of float
        Noise levels sigma / alpha. One that the schedule does not reach is
        replaced by the nearest that it does.
    seed : int
        Of the noise.

    Returns
    -------
    dict of lists, one entry a level
        ``level``; ``accuracy`` of the rounded guess; ``baseline``, that of
        rounding without a network; ``error``, MSE / Var; with a mixture head
        ``nats``, the cross-entropy a position.
    """
    model.eval()
    device = next(model.parameters()).device
    schedule, table = model.schedule, model.table()
    ids = ids.to(device)
    x0 = model.embed(ids)
    mixture = model.config.head == "mixture"
    rows = {"level": [], "accuracy": [], "baseline": [], "error": []}
    rows |= {"nats": []} if mixture else {}
    for level in levels:
        t = schedule.time_of(level)
        generator = torch.Generator().manual_seed(seed)
        zt, _ = noising.add_noise(x0, t, schedule, generator)
        alpha = float(schedule.alpha(t))
        rounded = noising.nearest(zt / alpha, table)
        if mixture:
            logits = model(zt, t, logits=True)
            nats = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
            rows["nats"].append(nats.item())
            guess, x0_hat = logits.argmax(-1), model.mix(logits)
        else:
            x0_hat = model(zt, t)
            guess = noising.nearest(x0_hat, table)
        mse = (x0_hat - x0).square().mean()
        rows["level"].append(float(schedule.noise_level(t)))
        rows["accuracy"].append((guess == ids).float().mean().item())
        rows["baseline"].append((rounded == ids).float().mean().item())
        rows["error"].append(
            training.normalised_mse(mse, x0.flatten(0, 1)).item()
        )
    return rows


def fit_levels(report, count=17, trim=0.01):
    """Fit the range of noise to a model's own loss on held-out texts.

    Parameters
    ----------
    report : dict
        What `level_report` said at `FIT_LEVELS` of a model that was trained
        for a while on a wide range.
    count, trim
        As in `schedules.fit_warp`.

    Returns
    -------
    list of float
        Levels for `schedules.Warped`: between neighbours the loss rises by
        equal steps.
    """
    loss = report.get("nats", report["error"])
    # Levels out of a schedule's reach were replaced by its ends: once each.
    levels, losses = [0.0], []
    for level, value in zip(report["level"], loss):
        if level > levels[-1] * (1 + 1e-6):
            levels.append(level)
            losses.append(value)
    return schedules.fit_warp(levels[1:], losses, count, trim)


def run(index, seed, folder, measure, progress=True, **changes):
    """Train one rung, measure it, and keep what was measured.

    A run that is already in ``folder`` is read, not repeated.

    Parameters
    ----------
    index : int
        Of `RUNGS`.
    seed : int
        Of weights, batches and noise.
    folder : path
        Where results go, one JSON file a run.
    measure : callable ``model -> dict``
        What is added to the report by noise level.
    progress : bool
    **changes
        As in `recipe`.

    Returns
    -------
    dict

    Raises
    ------
    resources.DataError
        If the run in ``folder`` was trained for another number of steps.
    """
    folder = Path(folder)
    rung = RUNGS[index]
    file = folder / f"{index:02d}-{rung.name}-{seed}.json"
    config = recipe(seed=seed, **changes)
    if file.is_file():
        result = json.loads(file.read_text("utf-8"))
        if result["steps"] != config.steps:
            raise resources.DataError(
                f"{file} was trained for {result['steps']} steps, not "
                f"{config.steps}: choose another folder"
            )
        return result
    levels = _levels(index, seed, folder, measure, progress, **changes)
    backbone = resources.load_backbone("tales-gpt2")
    train, valid = canvases(backbone.tokenizer)
    model = build(index, levels, seed, backbone)
    start = time.perf_counter()
    history = training.train(
        model,
        train,
        torch.ones_like(train, dtype=torch.bool),
        config,
        progress=progress,
    )
    seconds = time.perf_counter() - start
    report = level_report(model, valid[:256], FIT_LEVELS)
    result = {
        "rung": rung.name,
        "title": rung.title,
        "seed": seed,
        "steps": config.steps,
        "tokens_seen": config.steps * config.batch_size * SEQ_LEN,
        "seconds": round(seconds),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps_logged": history.steps[::5],
        "loss": [round(v, 5) for v in history.loss[::5]],
        "by_level": {
            name: [round(v, 5) for v in values]
            for name, values in report.items()
        },
        "levels": levels,  # those of its own schedule
        "fitted_levels": fit_levels(report),
        **measure(model),
    }
    return _kept(file, result)


def _kept(file, result):
    """Write a file in one go, so that a killed run leaves no half of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".tmp")
    draft.write_text(json.dumps(result) + "\n", "utf-8")
    os.replace(draft, file)
    return result


def _levels(index, seed, folder, measure, progress, **changes):
    """The noise levels that were fitted for a rung; None below the first.

    The first fit takes the loss of the rung below. Later ones are for other
    embeddings: they take that of a hundred steps of the rung itself, over
    all levels, which are not counted.
    """
    fits = [i for i, rung in enumerate(RUNGS[: index + 1]) if rung.fitted]
    if not fits:
        return None
    if len(fits) == 1:
        below = run(fits[0] - 1, seed, folder, measure, progress, **changes)
        return below["fitted_levels"]
    file = folder / f"{fits[-1]:02d}-levels-{seed}.json"
    if file.is_file():
        return json.loads(file.read_text("utf-8"))
    backbone = resources.load_backbone("tales-gpt2")
    train, valid = canvases(backbone.tokenizer)
    wide = [level for level in FIT_LEVELS if level > 0.25]
    model = build(fits[-1], wide, seed, backbone)
    config = recipe(seed=seed, **{**changes, "steps": FIT_STEPS, "warmup": 20})
    everywhere = torch.ones_like(train, dtype=torch.bool)
    training.train(model, train, everywhere, config, progress=progress)
    report = level_report(model, valid[:256], FIT_LEVELS)
    return _kept(file, fit_levels(report))


def results():
    """The runs of the ladder that the book brings along.

    They were made by ``python tools/make_checkpoints.py ladder``.

    Returns
    -------
    list of dict
        What `run` returned, one rung after the other for each seed, with
        ``texts``, a hundred tales sampled in 64 steps.
    """
    file = resources.verified("ladder") / "runs.json"
    return json.loads(file.read_text("utf-8"))
