r"""The ladder: from the proposal to a model that writes, a step at a time.

Chapter 7. Each rung takes one step from the one that it stands on. `RUNGS`
stand on each other, from the proposal to the top; `COMPARISONS` stand beside
them. All are trained by the same loop, on the same tales, for the same number
of steps, and measured by the same table.
"""

import contextlib
import dataclasses
import functools
import json
import time
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from . import (
    ablation,
    configuration,
    decoding,
    denoiser,
    resources,
    schedules,
    text,
    training,
)
from .levels import answer

__all__ = [
    "COMPARISONS",
    "FIT_LEVELS",
    "REPAIRED",
    "RUNGS",
    "SAMPLER",
    "SEQ_LEN",
    "TOP",
    "TRAIN_TALES",
    "Rung",
    "build",
    "canvases",
    "fit_levels",
    "level_report",
    "levels_of",
    "measured_at",
    "only_neighbours",
    "options",
    "path",
    "recipe",
    "results",
    "run",
    "runs_in_cell",
    "sampler",
    "train",
]

SEQ_LEN = 64
TRAIN_TALES = text.TRAIN_TALES
FIT_STEPS = 300
# Noise levels at which a loss is measured before a range is fitted to it.
FIT_LEVELS = tuple(0.1 * 400 ** (i / 24) for i in range(25))


@dataclass(frozen=True)
class Rung:
    """One step on the way from the proposal to a model that writes.

    Attributes
    ----------
    name : str
        A word for tables and files.
    title : str
        What changes, in a few words.
    on : str, optional
        Name of the rung on which this one stands: all its changes hold here,
        too. None for the lowest.
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
    on: str | None = None
    changes: dict = field(default_factory=dict)
    recipe: dict = field(default_factory=dict)
    fitted: bool = False
    first: float = 0.0
    backbone: bool = True


RUNGS = (
    Rung(
        "proposal",
        "as proposed, trained longer",
        changes={"causal": True, "conditioning": "none"},
    ),
    Rung(
        "both-sides",
        "sees both sides, is told the noise level",
        "proposal",
        {"causal": False, "conditioning": "time"},
    ),
    Rung(
        "scaled",
        "embeddings of equal length, inputs as small as GPT-2's",
        "both-sides",
        {"normalise_embeddings": True, "input_std": 0.2},
    ),
    Rung(
        "time-warping",
        "noise levels fitted to the loss",
        "scaled",
        fitted=True,
    ),
    Rung(
        "score-interpolation",
        "cross-entropy on a mixture of embeddings, which learn",
        "time-warping",
        {"head": "mixture", "loss": "ce", "train_embeddings": True},
        fitted=True,
    ),
    Rung(
        "output-prior",
        "the likelihood of the point in the logits",
        "score-interpolation",
        {"likelihood": True},
    ),
    Rung(
        "self-conditioning",
        "the last guess as an input",
        "output-prior",
        {"self_conditioning": 0.5},
    ),
    Rung(
        "shift",
        "each token from the state before it, as in GPT-2",
        "self-conditioning",
        {"shift": True},
    ),
    Rung(
        "posterior-input",
        "reads what each point tells; the left ahead of the right",
        "shift",
        {"evidence": True, "stagger": 2.0},
    ),
)
TOP = RUNGS[-1].name
_FAST = {"learning_rate": 4e-3, "embedding_rate": 1.0}
COMPARISONS = (
    Rung(
        "low-dim",
        "32 dimensions, without GPT-2's interface",
        "self-conditioning",
        {"embed_dim": 32},
        fitted=True,
    ),
    Rung(
        "low-dim-shift",
        "32 dimensions, with GPT-2's interface",
        "shift",
        {"embed_dim": 32},
        fitted=True,
    ),
    Rung(
        "scratch",
        "the top from chance",
        TOP,
        {"input_std": 0.02},
        backbone=False,
    ),
    Rung(
        "scratch-no-shift",
        "from chance, without GPT-2's interface",
        "scratch",
        {"shift": False},
        backbone=False,
    ),
    Rung("adamw", "AdamW at twice the rate", TOP, recipe=dict(_FAST)),
    Rung(
        "muon",
        "Muon at twice the rate, for the blocks",
        TOP,
        recipe={"optimizer": "muon", **_FAST},
    ),
    Rung(
        "repaired",
        "some positions clean in training, many at first",
        "muon",
        {"clean_rate": 0.3},
        first=0.2,
    ),
)
# How the model of the book's checkpoints and of `dblm train` is made.
REPAIRED = "repaired"
# How it writes where nobody says otherwise: chosen by coherence and slot
# distance together, on texts of seeds that no figure uses.
SAMPLER = {"step": "deterministic", "stagger": 2.0, "likelihood_weight": 0.25}


def sampler(config):
    """`SAMPLER`, as far as a model can use it.

    Parameters
    ----------
    config : DBLMConfig

    Returns
    -------
    dict
        Options of `decoding.generate_ids`: empty without an output prior to
        weigh, and without a stagger for a model trained without one.
    """
    useful = dict(SAMPLER) if config.likelihood else {}
    if not config.stagger:
        useful.pop("stagger", None)
    return useful


def path(name):
    """A rung and all on which it stands, from the lowest up.

    Parameters
    ----------
    name : str
        Of one of `RUNGS` or `COMPARISONS`.

    Returns
    -------
    tuple of Rung
    """
    known = {rung.name: rung for rung in RUNGS + COMPARISONS}
    if name not in known:
        raise ValueError(f"no rung {name!r}; there are {', '.join(known)}")
    rung = known[name]
    below = () if rung.on is None else path(rung.on)
    return (*below, rung)


def options(name, levels=None):
    """Fields of `DBLMConfig` of a rung: its own and all below it.

    Parameters
    ----------
    name : str
    levels : list of float, optional
        The fitted noise levels, needed from "time-warping" on.

    Returns
    -------
    dict
    """
    fields = {}
    for rung in path(name):
        fields |= rung.changes
        if rung.fitted:
            if levels is None:
                raise ValueError(
                    f"the rung {rung.name!r} needs levels: fit them to the "
                    "loss of the rung below it, see fit_levels"
                )
            fields |= {
                "schedule": "warped",
                "schedule_options": {"levels": list(levels)},
            }
    return fields


def build(name, levels=None, seed=0, backbone=None, rows=None):
    """A new model of a rung.

    Parameters
    ----------
    name : str
    levels
        As in `options`.
    seed : int
        Of all weights that do not come from the backbone.
    backbone : resources.Backbone, optional
        The embedded GPT-2 if left out.
    rows : tensor of ids, optional
        The tokens that occur, as in `DBLM.from_backbone`; needed where a
        rung has fewer dimensions than GPT-2.

    Returns
    -------
    denoiser.DBLM
    """
    backbone = backbone or resources.load_backbone("tales-gpt2")
    torch.manual_seed(seed)
    fields = options(name, levels)
    if backbone.model.config.activation_function == "gelu_new":
        # GPT-2's own activation, computed in one go instead of eight.
        fields["activation_function"] = "gelu_pytorch_tanh"
    if path(name)[-1].backbone:
        return denoiser.DBLM.from_backbone(backbone, rows, **fields)
    given = configuration.fields_of(backbone.model.config)
    return denoiser.DBLM(denoiser.DBLMConfig(**{**given, **fields})).eval()


def recipe(name=RUNGS[0].name, **changes):
    """The training settings of a rung: its own and all below it.

    Parameters
    ----------
    name : str
    **changes
        Fields of `training.TrainConfig` that differ.

    Returns
    -------
    training.TrainConfig
    """
    settings = {
        "steps": 600,
        "batch_size": 32,
        "learning_rate": 2e-3,
        "warmup": 100,
        "embedding_rate": 2.0,
        "ema": 0.99,
        "precision": "auto",
    }
    for rung in path(name):
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


def train(model, name, ids, config, progress=True):
    """Train a model of a rung, in one phase or in two.

    Parameters
    ----------
    model : denoiser.DBLM
    name : str
        Of the rung.
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
    first = max(rung.first for rung in path(name))
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


def run(name, seed, folder, measure, progress=True, **changes):
    """Train one rung, measure it, and keep what was measured.

    On the GPU, if there is one. A run that is already in ``folder`` is read,
    not repeated.

    Parameters
    ----------
    name : str
        Of the rung.
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
    rung, config = path(name)[-1], recipe(name, seed=seed, **changes)

    def make():
        levels = levels_of(name, seed, folder, measure, progress, **changes)
        backbone = resources.load_backbone("tales-gpt2")
        ids, valid = canvases(backbone.tokenizer)
        model = build(name, levels, seed, backbone, ids.unique())
        model.to(resources.device())
        start = time.perf_counter()
        history = train(model, name, ids, config, progress)
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
                key: [round(v, 5) for v in values]
                for key, values in report.items()
            },
            "levels": levels,  # those of its own schedule
            "fitted_levels": fit_levels(report),
            **measure(model),
        }

    return ablation.result(_named("run", name, config), make, folder)


def _named(what, name, config):
    """A run of a rung; its levels are found on the way."""
    settings = {
        "model": options(name, levels=()),
        "backbone": path(name)[-1].backbone,
        "first": max(rung.first for rung in path(name)),
    }
    file = f"{name}-{what}-{config.seed}"
    return ablation.Run(file, settings, dataclasses.asdict(config))


def levels_of(name, seed, folder, measure, progress=True, **changes):
    """The noise levels that are fitted for a rung; None below the first fit.

    The first fit takes the loss of the rung below. Later ones are for other
    embeddings: they take that of some steps of the rung itself, over all
    levels, which are not counted. Fits are kept in ``folder`` as runs are.

    Parameters
    ----------
    name, seed, folder, measure, progress, **changes
        As in `run`.

    Returns
    -------
    list of float, or None
    """
    fits = [rung for rung in path(name) if rung.fitted]
    if not fits:
        return None
    last = fits[-1].name
    if len(fits) == 1:
        below = run(fits[-1].on, seed, folder, measure, progress, **changes)
        return below["fitted_levels"]
    brief = {**changes, "steps": FIT_STEPS, "warmup": 20}
    config = recipe(last, seed=seed, **brief)

    def make():
        backbone = resources.load_backbone("tales-gpt2")
        ids, valid = canvases(backbone.tokenizer)
        wide = [level for level in FIT_LEVELS if level > 0.25]
        model = build(last, wide, seed, backbone, ids.unique())
        model.to(resources.device())
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
        ``plain`` and ``tuned``: what `metrics.report` said of two hundred
        tales that the rung wrote in 64 steps, and ``first``, twenty of them.
        Tuned is `sampler`; None where that is empty. ``title`` is how the
        rung was called when the run was made.
    """
    file = resources.verified("ladder") / "runs.json"
    return json.loads(file.read_text("utf-8"))


def measured_at(run, measure, factor=1.0):
    """Read a run's report at a multiple of its noise level h.

    h is the level at which rounding without a network gets half of the
    tokens right. Between two levels of the report, and for h itself, the
    logarithm of the level counts.

    Parameters
    ----------
    run : dict
        One of `results`.
    measure : str
        A column of its ``by_level``, such as "accuracy".
    factor : float or array
        1 reads at h, 2 at twice as much noise.

    Returns
    -------
    float, or array of the shape of ``factor``
        Below the lowest level of the report the value there, above the
        highest NaN.
    """
    report = run["by_level"]
    levels = np.log(report["level"])
    half = np.interp(-0.5, -np.array(report["baseline"]), levels)
    where = half + np.log(factor)
    return np.interp(where, levels, report[measure], right=np.nan)


def runs_in_cell(values):
    """Write what several runs of a rung have of one measure in one cell.

    Parameters
    ----------
    values : list of float or None
        One a run.

    Returns
    -------
    str
        Such as "7.95, 12.2"; a dash if a run lacks the measure.
    """
    if any(value is None or np.isnan(value) for value in values):
        return "–"
    return ", ".join(f"{v:.2f}" if v < 10 else f"{v:.1f}" for v in values)
