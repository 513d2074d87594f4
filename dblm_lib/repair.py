"""The repaired model, from texts to weights: how it is trained.

Chapter 7. In three parts: a short run over a wide range of noise, to whose
loss the range is fitted (time warping); then the model itself, which at first
only learns to look at clean neighbours, and then all together. The book's own
teacher is trained like this, and so is what ``dblm train`` leaves.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from . import ablation, checks, ladder, resources, training

__all__ = ["FIT", "PARTS", "SAMPLER", "Plan", "begin", "plan", "train"]

PARTS = ("fit", "neighbours", "together")
SAMPLER = ladder.SAMPLER
# What the short run differs in, and the share of the rise that is left out.
FIT = {"clean_rate": 0.5, "trim": 0.005}
# Held-out texts whose loss is measured, and logits that fit into memory.
_MEASURED, _LOGITS = 256, 2**27


@dataclass(frozen=True)
class Plan:
    """How many steps each part gets.

    Attributes
    ----------
    fit : int
        The short run over a wide range, whose weights are not kept.
    neighbours : int
        Those in which the model only learns to look at clean neighbours.
    together : int
    """

    fit: int
    neighbours: int
    together: int

    @property
    def steps(self):
        """All of them."""
        return self.fit + self.neighbours + self.together


def plan(steps):
    """Share out the steps of a training among its parts.

    A tenth, and 300 at most, for the range; a sixth for the neighbours, in
    trainings of more than 6,000 steps 1,000, and a tenth in very long ones.

    Parameters
    ----------
    steps : int
        At least 3.

    Returns
    -------
    Plan
    """
    if not checks.is_whole(steps, len(PARTS)):
        raise ValueError(
            f"the repaired model is trained in {len(PARTS)} parts: give at "
            f"least {len(PARTS)} steps, not {steps!r}"
        )
    fit = max(1, min(300, steps // 10))
    neighbours = max(1, steps // 10, min(1000, steps // 6))
    return Plan(fit, neighbours, steps - fit - neighbours)


def begin(levels=None, backbone=None, seed=0, seq_len=None):
    """The repaired model before it is trained.

    Parameters
    ----------
    levels : list of float, optional
        The fitted range of noise. If left out, the model is the one of the
        short run, over a wide range.
    backbone : resources.Backbone, optional
        The embedded GPT-2 if left out.
    seed : int
    seq_len : int, optional
        Kept in its configuration as the length of its canvases.

    Returns
    -------
    denoiser.DBLM
        On the device that there is.

    Raises
    ------
    ValueError
        If the backbone knows fewer positions, or has no token to begin with.
    """
    wide = levels is None
    levels = _wide() if wide else levels
    model = ladder.build(ladder.REPAIRED, levels, seed, backbone)
    if wide:
        model.config.clean_rate = FIT["clean_rate"]
    longest = model.config.n_positions - model.config.shift
    if seq_len is not None and seq_len > longest:
        raise ValueError(
            f"the backbone knows {longest} positions behind a start; got "
            f"seq_len {seq_len}"
        )
    if seq_len is not None:
        model.config.seq_len = seq_len  # see `decoding.canvas_of`
    return model.to(resources.device())


def train(
    ids,
    valid,
    plan,
    folder=None,
    backbone=None,
    seed=0,
    seq_len=None,
    about=None,
    watch=None,
    tell=None,
    progress=True,
    **changes,
):
    """Train the repaired model; resumes by itself.

    Parameters
    ----------
    ids : tensor of ids, shape ``(n, length)``
        The texts. Every position counts, see `ladder.canvases`.
    valid : tensor of ids, shape ``(m, length)``
        Held-out texts, to whose loss the range of noise is fitted.
    plan : Plan
    folder : path, optional
        Where each part keeps its checkpoints, and the fitted range lies.
        Nothing is kept if left out.
    backbone, seed, seq_len
        As in `begin`.
    about : dict, optional
        What else the fitted range depends on, for its record.
    watch : callable ``(model, done) -> loss``, optional
        Is asked for the loss of each part but the first, given the steps
        done since that; `training.loss_for` if left out.
    tell : callable ``(part, steps, seconds)``, optional
        Hears which part begins, and how long it and what follows will take,
        as far as the part before it showed; otherwise None.
    progress : bool
    **changes
        Fields of `training.TrainConfig`, as in `ladder.recipe`.

    Returns
    -------
    model : denoiser.DBLM
        With its `SAMPLER`.
    runs : list of (training.History, training.TrainConfig)
        Of the two parts that trained it.

    Raises
    ------
    resources.DataError
        If what lies in the folder is of another run, or damaged.
    """
    given = {"progress": progress, "resume": folder is not None}
    tell = tell or (lambda part, steps, seconds: None)
    made = (backbone, seed, seq_len)
    speed = None  # steps a second, of the part before

    def run(model, part, loss=None):
        nonlocal speed
        where = None if folder is None else Path(folder) / part
        config = _config(plan, part, seed, changes)
        left = sum(getattr(plan, name) for name in PARTS[PARTS.index(part) :])
        tell(part, config.steps, speed and left / speed)
        mask = ids.new_ones(ids.shape, dtype=bool)
        history = training.train(
            model, ids, mask, config, loss=loss, folder=where, **given
        )
        tokens = config.batch_size * ids.shape[1]
        speed = history.tokens_per_second / tokens
        return history, config

    def fitted():
        model = begin(None, *made)
        run(model, "fit")
        rows = _LOGITS // (ids.shape[1] * len(model.table()))
        measured = valid[: min(_MEASURED, max(1, rows))]
        report = ladder.level_report(model, measured, ladder.FIT_LEVELS)
        return ladder.fit_levels(report, trim=FIT["trim"])

    levels = ablation.result(
        ablation.Run(
            "levels",
            {"levels": _wide(), **FIT, **(about or {})},
            asdict(_config(plan, "fit", seed, changes)),
        ),
        fitted,
        folder,
    )
    model = begin(levels, *made)
    watch = watch or (lambda model, done: training.loss_for(model))
    loss = watch(model, 0)
    with ladder.only_neighbours(model.config):
        first = run(model, "neighbours", loss)
    second = run(model, "together", watch(model, plan.neighbours))
    model.config.sampler = dict(SAMPLER)
    return model, [first, second]


def _wide():
    """The levels of the short run."""
    return list(ladder.FIT_LEVELS[4:])


def _config(plan, part, seed, changes):
    """The recipe of a part: a short one warms up and averages for less long.

    The averages reach over the last third of the short run, and over the
    last tenth of the others.
    """
    steps = getattr(plan, part)
    most, share = (0.99, 3) if part == "fit" else (0.998, 10)
    settings = {
        "steps": steps,
        "batch_size": 64,
        "seed": seed,
        "warmup": min(100, steps // 3),
        "ema": max(0.0, min(most, 1 - share / steps)),
        "save_every": min(250, max(1, steps // 5)),
    }
    return ladder.recipe(ladder.REPAIRED, **settings | changes)
