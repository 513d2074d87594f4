"""Causes: put one right in the proposal, or put one back in a repaired model.

Chapter 6. Each run trains one model with given settings and measures it.
"""

import json
import time
from dataclasses import asdict

import torch

from .. import ablation, decoding, denoiser, resources, text, training
from .instruments import difficult_levels, gain

__all__ = [
    "CAUSES",
    "PROPOSAL",
    "REPAIRED",
    "TRAINED",
    "build",
    "explained",
    "long_runs",
    "plan",
    "results",
    "run",
    "shares",
]

PROPOSAL = {
    "head": "vector",
    "loss": "mse",
    "normalise_embeddings": False,
    "embed_dim": None,
    "schedule": "linear",
    "causal": True,
    "conditioning": "none",
    "input_std": None,
    "train_embeddings": False,
    "recipe": "proposal",
    "data": "two sentences",
    "padding": "left out",
    "start": "tales-gpt2",
}
REPAIRED = {
    "head": "mixture",
    "loss": "ce",
    "normalise_embeddings": True,
    "embed_dim": 32,
    "schedule": "log-uniform",
    "causal": False,
    "conditioning": "time",
    "input_std": 0.05,
    "train_embeddings": False,
    "recipe": "longer",
    "data": "tales",
    "padding": "counted",
    "start": "tales-gpt2",
}
# Names of causes, and the settings that each is about.
CAUSES = {
    "posterior mean": ("head", "loss"),
    "raw embeddings": ("normalise_embeddings", "embed_dim", "input_std"),
    "noise range": ("schedule",),
    "causal mask": ("causal",),
    "not told the noise": ("conditioning",),
    "too little training": ("recipe",),
    "two sentences": ("data",),
    "padding left out": ("padding",),
}
# The proposal, but trained for longer and on the tales.
TRAINED = {**PROPOSAL, "recipe": "longer", "data": "tales"}
_OURS = ("recipe", "data", "padding", "start")
# Training steps of the recipes that are not the proposal's, and the steps
# after which a run is measured.
STEPS = {"longer": 400, "budget": 3000}
MARKS = (0, 20, 50, 100, 200, 400, 1000)
# Causes that are also put back for as many steps as the budget allows: those
# of which 400 steps may say too little.
PATIENT = (
    "causal mask",
    "posterior mean",
    "raw embeddings",
    "padding left out",
)
# What a kept run was asked for besides its settings: what `build` does.
FITTED = {"table": "fitted to the tokens that occur"}


def fixed(cause, base=PROPOSAL):
    """Settings with one cause put right."""
    return {**base, **{name: REPAIRED[name] for name in CAUSES[cause]}}


def broken(cause):
    """Repaired settings with one cause put back."""
    return {**REPAIRED, **{name: PROPOSAL[name] for name in CAUSES[cause]}}


def band(table, ids):
    """Range of a log-uniform schedule that fits a table: its two ends."""
    first, last = difficult_levels(table, ids, (0.98, 0.1))
    return {"low": first / 2, "high": 4 * last}


def build(settings, ids, seed=0):
    """A new model with the given settings.

    Parameters
    ----------
    settings : dict
        Like `PROPOSAL` and `REPAIRED`.
    ids : tensor of ids
        Tokens as they occur; the noise range is fitted to them, and so are
        the directions of a table of fewer dimensions.
    seed : int

    Returns
    -------
    DBLM
    """
    torch.manual_seed(seed)
    backbone = resources.load_backbone("tales-gpt2")
    options = {k: v for k, v in settings.items() if k not in _OURS}
    model = denoiser.DBLM.from_backbone(backbone, rows=ids.unique(), **options)
    if options["schedule"] == "log-uniform":
        table = model.table().detach()
        model.config.schedule_options = band(table, ids)
    if settings["start"] == "scratch":
        fresh = denoiser.DBLM(model.config)
        fresh.embeddings.load_state_dict(model.embeddings.state_dict())
        model = fresh
    return model.eval()


def _texts(settings, tokenizer, count=20_000):
    """Training canvases, and the positions that count in the loss."""
    if settings["data"] == "two sentences":
        words, length = training.PROPOSAL_SENTENCES, 16
    else:
        words, length = text.load("tales", size=count).train, 64
    ids, real = text.encode_batch(list(words), tokenizer, seq_len=length)
    if settings["padding"] == "counted":
        real = torch.ones_like(real)
    return ids, real


def _recipe(settings, steps, seed):
    if settings["recipe"] == "proposal":
        config = training.proposal_config()
        config.seed = seed
        return config
    longer = {"batch_size": 16, "learning_rate": 2e-3, "warmup": 20}
    return training.TrainConfig(
        steps=steps, seed=seed, precision="auto", **longer
    )


def run(settings, seed=0, steps=None, progress=False):
    """Train a model with the given settings and measure it.

    Parameters
    ----------
    settings : dict
        Like `PROPOSAL` and `REPAIRED`.
    seed : int
        Of new weights, batches and noise.
    steps : int, optional
        Those of the recipe (`STEPS`), unless given; the proposal's recipe
        has its own.
    progress : bool

    Returns
    -------
    dict
        ``settings``, ``seed``, ``steps``; ``marks``, ``gains`` and
        ``moved``: the `gain` after so many steps, and by how much the
        weights had changed (`training.weight_change`), the last entry at
        the end; ``nearest``, the last gain if each answer is rounded to
        the nearest token; ``texts``, the first eight texts sampled, cut at
        their first end-of-text token; ``seconds`` that it all took.
    """
    began = time.perf_counter()
    tokenizer = resources.load_tokenizer()
    ids, counted = _texts(settings, tokenizer)
    held_out = text.load("tales", size=10, valid_size=48).valid
    valid, real = text.encode_batch(held_out, tokenizer, seq_len=64)
    model = build(settings, valid[real], seed)
    steps = steps or STEPS.get(settings["recipe"])
    config = _recipe(settings, steps, seed)
    loss = training.loss_for(model)
    start = {name: w.clone() for name, w in model.state_dict().items()}
    course = {"marks": [], "gains": [], "moved": []}

    def measure(step):
        moved = training.weight_change(start, model.state_dict())
        course["marks"].append(step)
        course["moved"].append(round(moved, 5))
        course["gains"].append(round(gain(model, valid, real), 4))
        model.train()

    def watched(network, batch):
        if settings["recipe"] != "proposal" and watched.step in MARKS:
            measure(watched.step)
        watched.step += 1
        return loss(network, batch)

    watched.step = 0
    training.train(model, ids, counted, config, watched, progress=progress)
    measure(config.steps)
    nearest = gain(model, valid, real, rounding="nearest")
    draw = torch.Generator().manual_seed(seed)
    drawn = decoding.generate_ids(
        model, num_return_sequences=8, num_steps=32, generator=draw
    )
    return {
        "settings": settings,
        "seed": seed,
        "steps": config.steps,
        **course,
        "nearest": round(nearest, 4),
        "texts": text.decode_batch(drawn, tokenizer),
        "seconds": round(time.perf_counter() - began, 1),
    }


def plan():
    """All runs of the chapter's tables, by name; the most needed first.

    Returns
    -------
    dict of str to settings
    """
    runs = {"repaired": REPAIRED, "proposal": PROPOSAL, "trained": TRAINED}
    runs["repaired, from scratch"] = {**REPAIRED, "start": "scratch"}
    runs |= {f"broken: {cause}": broken(cause) for cause in CAUSES}
    runs |= {f"fixed: {cause}": fixed(cause) for cause in CAUSES}
    vectors = broken("posterior mean")
    runs["learned embeddings"] = {**vectors, "train_embeddings": True}
    for cause, fields in CAUSES.items():
        if fields[0] not in ("recipe", "data"):
            runs[f"trained, fixed: {cause}"] = fixed(cause, TRAINED)
    runs["trained, from scratch"] = {**TRAINED, "start": "scratch"}
    # The posterior mean's three parts: the head, the loss, the rounding.
    runs["repaired, squared error"] = {**REPAIRED, "loss": "mse"}
    runs["trained, mixture head"] = {**TRAINED, "head": "mixture"}
    for name, settings in (("repaired", REPAIRED), ("trained", TRAINED)):
        runs[f"{name}, to the budget"] = {**settings, "recipe": "budget"}
    for cause in PATIENT:
        settings = {**broken(cause), "recipe": "budget"}
        runs[f"broken, to the budget: {cause}"] = settings
    return runs


def long_runs(progress=True, folder=None, seeds=(0, 1), names=None):
    """Train everything that is too long for the chapter's page.

    Parameters
    ----------
    progress : bool
        Print each finished run.
    folder : path, optional
        Where each run is kept when it is done; those found there are read
        and not repeated. Several processes may share it, if each makes
        other runs.
    seeds : sequence of int
    names : sequence of str, optional
        Of runs in `plan`; all of them if left out.

    Returns
    -------
    dict
        Name of a run to the list of its results, one a seed.

    Raises
    ------
    ValueError
        If the plan has no run of a name.
    resources.DataError
        If a run in ``folder`` was asked for something else.
    """
    planned = plan()
    chosen = list(planned) if names is None else list(names)
    unknown = [name for name in chosen if name not in planned]
    if unknown:
        raise ValueError(
            f"no run is called {', '.join(map(repr, unknown))}; the names "
            "are those of `diagnostics.plan()`"
        )
    found = {name: [] for name in chosen}
    for seed in seeds:
        for name in chosen:
            settings = planned[name]
            steps = STEPS.get(settings["recipe"])
            recipe = asdict(_recipe(settings, steps, seed)) | FITTED
            one = ablation.Run(f"{seed} {name}", settings, recipe)

            def make(name=name, settings=settings, seed=seed):
                result = run(settings, seed)
                if progress:
                    print(seed, name, result["gains"], flush=True)
                return result

            found[name].append(ablation.result(one, make, folder))
    return found


def results():
    """The long runs that the book brings along.

    They were made by ``python -m recipes autopsy``.

    Returns
    -------
    dict
        As `long_runs` gives it.
    """
    file = resources.verified("autopsy") / "runs.json"
    runs = json.loads(file.read_text("utf-8"))
    for run in (run for rows in runs.values() for run in rows):
        # Older records call the gains scores.
        if "scores" in run:
            run["gains"] = run.pop("scores")
    return runs


def explained(runs):
    r"""How much of the damage each cause explains, in three settings.

    The damage is the gain of the repaired small model minus that of the
    proposal.

    Parameters
    ----------
    runs : dict
        What `results` gives.

    Returns
    -------
    dict of str to dict
        For each cause ``alone``: what putting right only this one wins in
        the proposal; ``trained``: the same in the proposal trained on tales
        (None where that is the cause); ``given``: what putting it back loses
        in the repaired model. Lists of shares of the damage, one a seed;
        None where there is no such run.
    """
    table = {}
    for cause in CAUSES:
        table[cause] = {
            "alone": shares(runs, f"fixed: {cause}", "proposal"),
            "trained": shares(runs, f"trained, fixed: {cause}", "trained"),
            "given": shares(runs, "repaired", f"broken: {cause}"),
        }
    return table


def shares(runs, better, worse, rounding="model"):
    """What one run gains over another, in shares of the damage.

    Parameters
    ----------
    runs : dict
        What `results` gives.
    better, worse : str
        Names of runs.
    rounding : {"model", "nearest"}
        Of both; see `examine`.

    Returns
    -------
    list of float, or None
        One a seed; None where one of the runs is missing.
    """
    if not (runs.get(better) and runs.get(worse)):
        return None

    def ends(name, rounding="model"):
        if rounding == "nearest":
            return [one["nearest"] for one in runs[name]]
        return [one["gains"][-1] for one in runs[name]]

    damage = [a - b for a, b in zip(ends("repaired"), ends("proposal"))]
    rows = zip(ends(better, rounding), ends(worse, rounding), damage)
    return [(a - b) / whole for a, b, whole in rows]
