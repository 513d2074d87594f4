"""Causes: put one right in the proposal, or put one back in a repaired model.

Chapter 6. Each run trains one model with given settings and measures it.
"""

import json
import time
from dataclasses import asdict

import torch

from .. import ablation, decoding, denoiser, resources, text, training
from .instruments import difficult_levels, score

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
        Tokens as they occur; the noise range is fitted to them.
    seed : int

    Returns
    -------
    DBLM
    """
    torch.manual_seed(seed)
    backbone = resources.load_backbone("tales-gpt2")
    options = {k: v for k, v in settings.items() if k not in _OURS}
    model = denoiser.DBLM.from_backbone(backbone, **options)
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
        ``settings``, ``seed``, ``steps``; ``marks``, ``scores`` and
        ``moved``: the `score` after so many steps, and by how much the
        weights had changed (`training.weight_change`), the last entry at
        the end; ``nearest``, the last score if each answer is rounded to
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
    course = {"marks": [], "scores": [], "moved": []}

    def measure(step):
        moved = training.weight_change(start, model.state_dict())
        course["marks"].append(step)
        course["moved"].append(round(moved, 5))
        course["scores"].append(round(score(model, valid, real), 4))
        model.train()

    def watched(network, batch):
        if settings["recipe"] != "proposal" and watched.step in MARKS:
            measure(watched.step)
        watched.step += 1
        return loss(network, batch)

    watched.step = 0
    training.train(model, ids, counted, config, watched, progress=progress)
    measure(config.steps)
    nearest = score(model, valid, real, rounding="nearest")
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
    return runs


def long_runs(progress=True, folder=None, seeds=(0, 1)):
    """Train everything that is too long for the chapter's page.

    Parameters
    ----------
    progress : bool
        Print each finished run.
    folder : path, optional
        Where each run is kept when it is done; those found there are read
        and not repeated.
    seeds : sequence of int

    Returns
    -------
    dict
        Name of a run to the list of its results, one a seed.

    Raises
    ------
    resources.DataError
        If a run in ``folder`` was asked for something else.
    """
    found = {name: [] for name in plan()}
    for seed in seeds:
        for name, settings in plan().items():
            steps = STEPS.get(settings["recipe"])
            recipe = asdict(_recipe(settings, steps, seed))
            one = ablation.Run(f"{seed} {name}", settings, recipe)

            def make(name=name, settings=settings, seed=seed):
                result = run(settings, seed)
                if progress:
                    print(seed, name, result["scores"], flush=True)
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
    return json.loads(file.read_text("utf-8"))


def explained(runs):
    r"""How much of the damage each cause explains, in two ways.

    The damage is the difference of the scores of the repaired small model
    and of the proposal.

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

    def ends(name):
        return [one["scores"][-1] for one in runs[name]]

    def shares(better, worse):
        if not (runs.get(better) and runs.get(worse)):
            return None
        rows = zip(ends(better), ends(worse), damage)
        return [(a - b) / whole for a, b, whole in rows]

    damage = [a - b for a, b in zip(ends("repaired"), ends("proposal"))]
    table = {}
    for cause in CAUSES:
        table[cause] = {
            "alone": shares(f"fixed: {cause}", "proposal"),
            "trained": shares(f"trained, fixed: {cause}", "trained"),
            "given": shares("repaired", f"broken: {cause}"),
        }
    return table
