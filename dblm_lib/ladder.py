r"""The ladder: from the proposal to a model that writes, a step at a time.

Chapter 7. Each rung changes one thing on the one below it, most of them a
field of `DBLMConfig`; those behind `TOP` are comparisons with it. All are
trained by the same loop, on the same tales, for the same number of steps, and
measured by the same table.
"""

import contextlib
import dataclasses
import functools
import json
import time
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from . import (
    ablation,
    decoding,
    denoiser,
    resources,
    schedules,
    text,
    training,
)
from .levels import answer

__all__ = [
    "FIT_LEVELS",
    "RUNGS",
    "SEQ_LEN",
    "SHARP",
    "TOP",
    "TRAIN_TALES",
    "Rung",
    "build",
    "canvases",
    "fit_levels",
    "level_report",
    "levels_of",
    "only_neighbours",
    "options_up_to",
    "recipe",
    "results",
    "run",
    "sharp_sampler",
    "train",
]

SEQ_LEN = 64
TRAIN_TALES = text.TRAIN_TALES
FIT_STEPS = 300
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
    recipe : dict
        Fields of `training.TrainConfig`.
    fitted : bool
        Whether the noise range is fitted to the loss here: for the first
        time, or anew since other embeddings stand other noise.
    first : float
        Share of the steps, at the beginning, in which the model only learns
        to look at clean neighbours, see `only_neighbours`.
    backbone : bool
        Whether training starts from `tales-gpt2`, or from chance.
    """

    name: str
    title: str
    changes: dict = field(default_factory=dict)
    recipe: dict = field(default_factory=dict)
    fitted: bool = False
    first: float = 0.0
    backbone: bool = True


RUNGS = (
    Rung(
        "proposal",
        "as proposed, trained longer",
        {"causal": True, "conditioning": "none"},
    ),
    Rung("both-sides", "sees both sides", {"causal": False}),
    Rung("told", "is told the noise", {"conditioning": "time"}),
    Rung(
        "equal-length",
        "embeddings of equal length",
        {"normalise_embeddings": True},
    ),
    Rung("input-scale", "inputs as small as GPT-2's", {"input_std": 0.2}),
    Rung("low-dim", "embeddings of 32 dimensions", {"embed_dim": 32}),
    Rung("range", "noise range fitted to the loss", fitted=True),
    Rung("clean", "some positions clean in training", {"clean_rate": 0.5}),
    Rung("mixture", "a mixture of tokens as the guess", {"head": "mixture"}),
    Rung("cross-entropy", "cross-entropy as the loss", {"loss": "ce"}),
    Rung(
        "learned",
        "embeddings that learn",
        {"train_embeddings": True},
        fitted=True,
    ),
    Rung("likelihood", "likelihood in the logits", {"likelihood": True}),
    Rung(
        "last-guess",
        "the last guess is an input",
        {"self_conditioning": 0.5},
    ),
    Rung(
        "own-space",
        "GPT-2's own 128 dimensions again",
        {"embed_dim": None},
        fitted=True,
    ),
    Rung("shift", "answers come one position later", {"shift": True}),
    Rung(
        "evidence",
        "reads what each point tells, not the point",
        {"evidence": True},
    ),
    Rung("staggered", "the left ahead of the right", {"stagger": 2.0}),
    Rung(
        "muon",
        "Muon, with larger steps, for the blocks",
        recipe={
            "optimizer": "muon",
            "learning_rate": 4e-3,
            "embedding_rate": 1.0,
        },
    ),
    Rung(
        "neighbours-first",
        "clean neighbours everywhere at first, fewer then",
        {"clean_rate": 0.3},
        first=0.2,
    ),
    Rung(
        "scratch",
        "the same from chance, for comparison",
        {"input_std": 0.02},
        backbone=False,
    ),
    Rung(
        "wider",
        "from chance, and twice as wide",
        {"n_embd": 256, "n_head": 8},
        fitted=True,
        backbone=False,
    ),
)
# The last step up; what follows it are comparisons.
TOP = next(i for i, r in enumerate(RUNGS) if r.name == "neighbours-first")
# What a sampler may do to lean towards what the network holds for likely.
SHARP = {
    "stagger": 2.0,
    "power": 0.8,
    "temperature": 0.6,
    "likelihood_weight": 0.25,
}


def sharp_sampler(config):
    """Settings of the sharper sampler, as far as a model can use them.

    Parameters
    ----------
    config : DBLMConfig

    Returns
    -------
    dict
        Options of `decoding.generate_ids`: a temperature needs a mixture
        head, a weight the likelihood in the logits, and a stagger a model
        that was trained with one. Empty where nothing can be used.
    """
    useful = {
        "temperature": config.head == "mixture",
        "likelihood_weight": config.likelihood,
        "stagger": config.stagger > 0,
        "power": config.stagger > 0,
    }
    return {k: v for k, v in SHARP.items() if useful[k]}


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
    if backbone.model.config.activation_function == "gelu_new":
        # GPT-2's own activation, computed in one go instead of eight.
        options["activation_function"] = "gelu_pytorch_tanh"
    if RUNGS[index].backbone:
        return denoiser.DBLM.from_backbone(backbone, **options)
    fields = backbone.model.config.to_dict()
    for name in ("model_type", "architectures", "transformers_version"):
        fields.pop(name, None)
    return denoiser.DBLM(denoiser.DBLMConfig(**{**fields, **options})).eval()


def recipe(index=0, **changes):
    """The training settings of a rung: its own and all below it.

    Parameters
    ----------
    index : int
    **changes
        Fields of `training.TrainConfig` that differ.

    Returns
    -------
    training.TrainConfig
    """
    settings = {
        "steps": 600,
        "batch_size": 64,
        "learning_rate": 2e-3,
        "warmup": 100,
        "embedding_rate": 2.0,
        "ema": 0.99,
        "precision": "auto",
    }
    for rung in RUNGS[: index + 1]:
        settings |= rung.recipe
    return training.TrainConfig(**{**settings, **changes})


@contextlib.contextmanager
def only_neighbours(config):
    """Within, a model is trained to look at clean neighbours, and only that.

    All sequences have some; no noise grows from left to right, and there is
    no last guess. Afterwards the configuration is as it was.

    Parameters
    ----------
    config : DBLMConfig
    """
    before = config.clean_rate, config.stagger, config.self_conditioning
    config.clean_rate, config.stagger, config.self_conditioning = 1.0, 0.0, 0.0
    try:
        yield
    finally:
        config.clean_rate, config.stagger, config.self_conditioning = before


def train(model, index, ids, config, progress=True):
    """Train a model of a rung, in one phase or in two.

    Parameters
    ----------
    model : denoiser.DBLM
    index : int
        Of `RUNGS`.
    ids : tensor of ids, shape ``(n, SEQ_LEN)``
        Every position counts.
    config : training.TrainConfig
        If the rung has a first phase, it gets its share of the steps.
    progress : bool

    Returns
    -------
    training.History
        Of both phases, one after the other.
    """
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    first = max(r.first for r in RUNGS[: index + 1])
    begun = round(first * config.steps)
    history = training.History()

    def phase(steps, done):
        here = dataclasses.replace(config, steps=steps)
        found = training.train(model, ids, everywhere, here, progress=progress)
        history.steps += [done + step for step in found.steps]
        history.loss += found.loss
        history.tokens_per_second = found.tokens_per_second

    if begun:
        with only_neighbours(model.config):
            phase(begun, 0)
    phase(config.steps - begun, begun)
    return history


@functools.lru_cache(maxsize=1)
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
    ids = ids.to(next(model.parameters()).device)
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    schedule, table = model.schedule, model.table()
    mixture = model.config.head == "mixture"
    rows = {"level": [], "accuracy": [], "baseline": [], "error": []}
    rows |= {"nats": []} if mixture else {}
    for level in levels:
        t = schedule.time_of(level)
        guesser = decoding.Guesser(model)  # anew: without a last guess
        generator = torch.Generator().manual_seed(seed)
        found = answer(guesser, table, schedule, ids, everywhere, t, generator)
        error = training.normalised_mse(found.mse(), found.clean)
        rows["level"].append(float(schedule.noise_level(t)))
        # In single precision, or digits of the recorded runs would move.
        shares = torch.tensor([found.accuracy, found.baseline])
        rows["accuracy"].append(shares[0].item())
        rows["baseline"].append(shares[1].item())
        rows["error"].append(error.item())
        if mixture:
            logits = guesser.answer.logits.flatten(0, 1)
            nats = F.cross_entropy(logits, ids.flatten())
            rows["nats"].append(nats.item())
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

    On the GPU, if there is one. A run that is already in ``folder`` is read,
    not repeated.

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
        If the run in ``folder`` is that of another rung or recipe.
    """
    rung, config = RUNGS[index], recipe(index, seed=seed, **changes)

    def make():
        levels = levels_of(index, seed, folder, measure, progress, **changes)
        backbone = resources.load_backbone("tales-gpt2")
        ids, valid = canvases(backbone.tokenizer)
        model = build(index, levels, seed, backbone).to(resources.device())
        start = time.perf_counter()
        history = train(model, index, ids, config, progress)
        seconds = time.perf_counter() - start
        report = level_report(model, valid[:256], FIT_LEVELS)
        return {
            "rung": rung.name,
            "title": rung.title,
            "seed": seed,
            "steps": config.steps,
            "tokens_seen": config.steps * config.batch_size * SEQ_LEN,
            "seconds": round(seconds),
            "device": resources.device_name(),
            "parameters": sum(p.numel() for p in model.parameters()),
            "steps_logged": history.steps[::10],
            "loss": [round(v, 5) for v in history.loss[::10]],
            "by_level": {
                name: [round(v, 5) for v in values]
                for name, values in report.items()
            },
            "levels": levels,  # those of its own schedule
            "fitted_levels": fit_levels(report),
            **measure(model),
        }

    return ablation.result(_named(rung.name, index, config), make, folder)


def _named(what, index, config):
    """A run of a rung; its levels are found on the way."""
    rungs = RUNGS[: index + 1]
    settings = {
        "model": options_up_to(index, levels=()),
        "backbone": RUNGS[index].backbone,
        "first": max(rung.first for rung in rungs),
    }
    name = f"{index:02d}-{what}-{config.seed}"
    return ablation.Run(name, settings, dataclasses.asdict(config))


def levels_of(index, seed, folder, measure, progress=True, **changes):
    """The noise levels that are fitted for a rung; None below the first fit.

    The first fit takes the loss of the rung below. Later ones are for other
    embeddings: they take that of some steps of the rung itself, over all
    levels, which are not counted. Fits are kept in ``folder`` as runs are.

    Parameters
    ----------
    index, seed, folder, measure, progress, **changes
        As in `run`.

    Returns
    -------
    list of float, or None
    """
    fits = [i for i, rung in enumerate(RUNGS[: index + 1]) if rung.fitted]
    if not fits:
        return None
    last = fits[-1]
    if len(fits) == 1:
        below = run(last - 1, seed, folder, measure, progress, **changes)
        return below["fitted_levels"]
    brief = {**changes, "steps": FIT_STEPS, "warmup": 20}
    config = recipe(last, seed=seed, **brief)

    def make():
        backbone = resources.load_backbone("tales-gpt2")
        ids, valid = canvases(backbone.tokenizer)
        wide = [level for level in FIT_LEVELS if level > 0.25]
        model = build(last, wide, seed, backbone).to(resources.device())
        everywhere = torch.ones_like(ids, dtype=torch.bool)
        training.train(model, ids, everywhere, config, progress=progress)
        return fit_levels(level_report(model, valid[:256], FIT_LEVELS))

    return ablation.result(_named("levels", last, config), make, folder)


def results():
    """The runs of the ladder that the book brings along.

    They were made by ``python -m recipes ladder``.

    Returns
    -------
    list of dict
        What `run` returned, one rung after the other for each seed, with
        ``plain`` and ``sharp``: what `metrics.report` said of two hundred
        tales that the rung wrote in 64 steps, and ``first``, twenty of them.
        Sharp is `sharp_sampler`; None where there is nothing to sharpen.
    """
    file = resources.verified("ladder") / "runs.json"
    return json.loads(file.read_text("utf-8"))
