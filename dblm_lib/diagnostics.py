r"""Autopsy: what is wrong with a denoiser, and how much each cause weighs.

Chapter 6. The first half are instruments: small measurements of a denoiser,
of an embedding table, of a schedule, of a path of sampling. The second half
trains the proposal's model with one cause removed, and a repaired one with
one cause put back.
"""

import json
import math
import time
from dataclasses import asdict

import torch
import torch.nn.functional as F

from . import (
    ablation,
    decoding,
    denoiser,
    noising,
    resources,
    text,
    training,
)
from .levels import answer, as_mask

__all__ = [
    "CAUSES",
    "PROPOSAL",
    "REPAIRED",
    "SHARES",
    "TRAINED",
    "accuracy_by_position",
    "build",
    "contextual_rounding",
    "difficult_levels",
    "examine",
    "explained",
    "fit_head",
    "landing",
    "level_report",
    "long_runs",
    "pairwise_distance",
    "plan",
    "results",
    "run",
    "score",
    "terminal_nats",
    "trivial_share",
    "within_nearest",
]

# Rounding alone finds these shares of the tokens at the levels of `score`.
SHARES = (0.9, 0.7, 0.5, 0.3, 0.1)


# --- Instruments -----------------------------------------------------------


def recovered(table, ids, eps, level):
    """Share of tokens that rounding finds again at a noise level."""
    found = noising.nearest(table[ids] + level * eps, table)
    return (found == ids).double().mean().item()


def difficult_levels(table, ids, shares=SHARES, seed=0):
    """Noise levels at which rounding alone finds given shares of a text.

    A noise level means nothing by itself: how much it destroys depends on
    the table. These levels are equally difficult for every table.

    Parameters
    ----------
    table : tensor, shape ``(vocab, dim)``
    ids : tensor of ids, shape ``(n,)``
        Tokens as they occur in texts.
    shares : sequence of float
        Each between 0 and 1.
    seed : int

    Returns
    -------
    list of float
        sigma / alpha, one a share.

    Raises
    ------
    ValueError
        If a share is not between 0 and 1.
    """
    generator = torch.Generator().manual_seed(seed)
    eps = torch.randn(*ids.shape, table.shape[1], generator=generator)
    spread = table.std().item()
    levels = []
    for share in shares:
        if not 0 < share < 1:
            raise ValueError(f"a share lies between 0 and 1; got {share}")
        low, high = 0.03 * spread, 30 * spread
        for _ in range(12):
            middle = math.sqrt(low * high)
            if recovered(table, ids, eps, middle) > share:
                low = middle
            else:
                high = middle
        levels.append(math.sqrt(low * high))
    return levels


@torch.no_grad()
def level_report(denoise, table, schedule, ids, real, levels, seed=0):
    """What a denoiser answers at each noise level.

    Parameters
    ----------
    denoise : callable ``(zt, t) -> x0_hat``
        A `decoding.Guesser` rounds by its own rule; otherwise the nearest
        token counts.
    table : tensor, shape ``(vocab, dim)``
    schedule : Schedule
    ids : tensor of ids, shape ``(batch, length)``
    real : mask of that shape
        1 at the positions that count.
    levels : sequence of float
        sigma / alpha.
    seed : int
        Of the noise, the same for each denoiser.

    Returns
    -------
    dict of lists, one entry a level
        ``accuracy`` of the rounded answer; ``baseline``, of rounding the
        noised point; ``error``, MSE / Var; ``norm``, length of the answer
        over that of the clean embedding; ``cosine`` of the answer to the
        mean embedding; ``top``, share of the commonest rounded token.

    Raises
    ------
    ValueError
        If ``real`` does not fit, see `levels.as_mask`, or is 0 everywhere.
    """
    real = as_mask(real, ids)
    if not real.any():
        raise ValueError("no position counts: the mask is 0 everywhere")
    clean = table[ids[real]]
    mean = clean.mean(dim=0)
    variance = (clean - mean).square().mean()
    names = ("accuracy", "baseline", "error", "norm", "cosine", "top")
    rows = {name: [] for name in names}
    for level in levels:
        generator = torch.Generator().manual_seed(seed)
        t = schedule.time_of(level)
        found = answer(denoise, table, schedule, ids, real, t, generator)
        guess = found.guess
        values = (
            found.accuracy,
            found.baseline,
            found.mse() / variance,
            guess.norm(dim=-1).mean() / clean.norm(dim=-1).mean(),
            F.cosine_similarity(guess, mean[None], dim=-1).mean(),
            found.found.bincount().max() / len(clean),
        )
        for row, value in zip(rows.values(), values):
            row.append(float(value))
    return rows


def examine(model, ids, real, levels, seed=0, rounding="model"):
    """`level_report` of a model.

    ``rounding="model"``: as it rounds when it samples, which is by its
    logits if it has a mixture head; ``"nearest"``: to the nearest token.
    """
    if rounding not in ("model", "nearest"):
        raise ValueError(f"rounding is model or nearest, not {rounding}")
    model.eval()
    if rounding == "model":
        denoise = decoding.Guesser(model)
    else:

        def denoise(zt, t):
            return model(zt, t).x0

    table, schedule = model.table().detach(), model.schedule
    return level_report(denoise, table, schedule, ids, real, levels, seed)


def score(model, ids, real, seed=0, rounding="model"):
    """One number for a denoiser: tokens won beyond rounding alone.

    Accuracy on held-out texts minus that of rounding alone, averaged over
    the noise levels at which rounding finds 90, 70, 50, 30 and 10 % of the
    tokens. As in sampling, the model is not told where a text ends.

    Parameters
    ----------
    model : DBLM
    ids : tensor of ids, and real : mask, shape ``(batch, length)``
    seed : int
    rounding : {"model", "nearest"}
        See `examine`.

    Returns
    -------
    float
        0 is as good as no network; 0.5 would be perfect; below 0 the
        network destroys what was there.
    """
    real = as_mask(real, ids)
    levels = difficult_levels(model.table().detach(), ids[real], seed=seed)
    report = examine(model, ids, real, levels, seed, rounding)
    gains = [a - b for a, b in zip(report["accuracy"], report["baseline"])]
    return sum(gains) / len(gains)


def trivial_share(schedule, easy, hopeless, count=1001):
    """Shares of a schedule's time below and above a band of noise levels.

    Parameters
    ----------
    schedule : Schedule
    easy, hopeless : float
        Ends of the band, noise levels.
    count : int
        Times looked at.

    Returns
    -------
    below, above : float
    """
    t = torch.linspace(0, 1, count, dtype=torch.float64)
    level = schedule.noise_level(t)
    below = (level < easy).double().mean().item()
    return below, (level > hopeless).double().mean().item()


def pairwise_distance(table):
    """Mean distance of two different rows of a table.

    Parameters
    ----------
    table : tensor, shape ``(n, dim)``

    Returns
    -------
    float
        0 if all rows are one point: nothing can be told apart any more.

    Raises
    ------
    ValueError
        If there are fewer than two rows.
    """
    if len(table) < 2:
        raise ValueError(f"two rows at least are needed; got {len(table)}")
    return torch.pdist(table.detach().double()).mean().item()


def landing(guesses, table):
    """Distance of guesses to their nearest and second-nearest token.

    Parameters
    ----------
    guesses : sequence of tensors, each ``(batch, length, dim)``
        Such as `Trajectory.x0_hat`.
    table : tensor, shape ``(vocab, dim)``

    Returns
    -------
    tensor, shape ``(len(guesses), 2)``
        Means, in units of the mean length of an embedding.
    """
    unit = table.norm(dim=-1).mean()
    means = [noising.nearest_two(x, table).mean(dim=(0, 1)) for x in guesses]
    return torch.stack(means) / unit


def accuracy_by_position(found, ids, real):
    """Share of right tokens at each position of the canvas.

    Parameters
    ----------
    found, ids : tensors of ids, shape ``(batch, length)``
    real : mask of that shape

    Returns
    -------
    tensor, shape ``(length,)``
        NaN where no text is that long.
    """
    real = as_mask(real, ids)
    right = ((found == ids) & real).double().sum(dim=0)
    return right / real.sum(dim=0)


def within_nearest(points, ids, table, count):
    """Share of points whose token is among the nearest ones.

    It is what an oracle could round to that may choose between ``count``
    tokens.

    Parameters
    ----------
    points : tensor, shape ``(n, dim)``
    ids : tensor of ids, shape ``(n,)``
    table : tensor, shape ``(vocab, dim)``
    count : int
    """
    near = torch.cdist(points, table).topk(count, largest=False).indices
    return (near == ids[:, None]).any(dim=1).double().mean().item()


def fit_head(points, ids, vocab_size, steps=100, seed=0):
    """A linear map from vectors to logits of tokens, trained to round them.

    Parameters
    ----------
    points : tensor, shape ``(n, dim)``
        Answers of a denoiser that stays as it is.
    ids : tensor of ids, shape ``(n,)``
    vocab_size, steps, seed : int

    Returns
    -------
    torch.nn.Linear
    """
    torch.manual_seed(seed)
    head = torch.nn.Linear(points.shape[1], vocab_size)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.03)
    for _ in range(steps):
        rows = torch.randint(len(points), (512,))
        loss = F.cross_entropy(head(points[rows]), ids[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head


@torch.no_grad()
def contextual_rounding(x0_hat, table, gpt2, count=10, weight=1.0):
    """Round from left to right, asking a language model at each position.

    Among the nearest tokens the one wins whose distance and whose
    probability after the tokens chosen so far are best together.

    Parameters
    ----------
    x0_hat : tensor, shape ``(batch, length, dim)``
    table : tensor, shape ``(vocab, dim)``
    gpt2 : transformers.GPT2LMHeadModel
    count : int
        Nearest tokens that may be chosen.
    weight : float
        Of a nat of the language model; a unit of the other side is the mean
        squared distance to the nearest token.

    Returns
    -------
    tensor of ids, shape ``(batch, length)``
    """
    gap, near = torch.cdist(x0_hat, table).topk(count, largest=False)
    cost = gap**2 / gap[..., 0].square().mean()
    last = torch.full_like(near[:, :1, 0], gpt2.config.eos_token_id)
    chosen, cache = [], None
    for place in range(x0_hat.shape[1]):
        out = gpt2(last, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        nats = -out.logits[:, -1].log_softmax(-1).gather(1, near[:, place])
        best = (cost[:, place] + weight * nats).argmin(1, keepdim=True)
        last = near[:, place].gather(1, best)
        chosen.append(last)
    return torch.cat(chosen, dim=1)


def terminal_nats(schedule, table, ids):
    r"""What is left of a text at t = 1, in nats a token.

    The Kullback-Leibler divergence from the noised text at t = 1 to the
    standard normal draw with which sampling begins:
    :math:`\frac12 (\alpha^2 |x_0|^2 + d(\sigma^2 - 1 - \ln \sigma^2))`.

    Parameters
    ----------
    schedule : Schedule
    table : tensor, shape ``(vocab, dim)``
    ids : tensor of ids
        Tokens as they occur in texts.

    Returns
    -------
    float
    """
    left = schedule.alpha_bar(1.0).item()
    noise = 1 - left
    size = table[ids].square().sum(dim=-1).mean().item()
    dim = table.shape[1]
    return (left * size + dim * (noise - 1 - math.log(noise))) / 2


# --- Causes: put one right, or put one back --------------------------------

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
