"""The repaired denoiser: the top of the ladder, trained to the budget.

9,500 steps in two phases, after 300 steps to which the noise range is fitted:
over an hour on two processor cores, minutes on a GPU. Resumes.
"""

import contextlib
from dataclasses import asdict

from dblm_lib import ablation, ladder, resources, training

from . import common

# Chosen by coherence and slot distance together, on texts of other seeds.
SAMPLER = {"step": "deterministic", "stagger": 2.0, "likelihood_weight": 0.25}
PHASES = (
    ("neighbours", 1000, ladder.only_neighbours),
    ("together", 8500, contextlib.nullcontext),
)


def fitted_levels(work, train, valid):
    """The noise range, fitted to the loss of a short run over a wide one."""
    wide, changes = ladder.FIT_LEVELS[4:], {"steps": 300}
    settings = {"levels": wide, "clean_rate": 0.5, "trim": 0.005}
    config = ladder.recipe(ladder.TOP, save_every=250, **changes)

    def make():
        model = ladder.build(ladder.TOP, wide, seed=0)
        model.config.clean_rate = settings["clean_rate"]
        model = model.to(resources.device())
        common.trained(model, train, work / "fit", **changes)
        report = ladder.level_report(model, valid[:256], ladder.FIT_LEVELS)
        return ladder.fit_levels(report, trim=settings["trim"])

    run = ablation.Run("levels", settings, asdict(config))
    return ablation.result(run, make, work)


def train(work, watch=None):
    """Train it; resumes by itself.

    First a short run over a wide range of noise, to whose loss the range is
    fitted. Then the model itself, in two phases: at first it only learns to
    look at clean neighbours, then all together.

    Parameters
    ----------
    work : path
    watch : callable ``(model, done) -> loss``, optional
        Is asked for the loss of each phase, given the steps already done;
        `training.loss_for` if left out.

    Returns
    -------
    model, runs
    """
    tokenizer = resources.load_tokenizer()
    ids, valid = ladder.canvases(tokenizer, common.TRAIN_TALES)
    model = ladder.build(ladder.TOP, fitted_levels(work, ids, valid))
    model = model.to(resources.device())
    watch = watch or (lambda model, done: training.loss_for(model))
    runs, done = [], 0
    for name, steps, mode in PHASES:
        ema = min(0.998, 1 - 10 / steps)
        loss = watch(model, done)
        with mode(model.config):
            run = common.trained(
                model, ids, work / name, loss, steps=steps, ema=ema
            )
        runs.append(run)
        done += steps
    return model.cpu(), runs


def make(folder, data, work, jobs=1):
    """Train it, with its own sampler; measure what it writes."""
    model, runs = train(work)
    model.config.sampler = SAMPLER
    return common.shipped(model, runs, folder, data)
