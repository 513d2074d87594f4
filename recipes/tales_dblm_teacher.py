"""The repaired denoiser: the top of the ladder, trained to the budget.

9,500 steps in two phases, after 300 steps to which the noise range is fitted:
over an hour on two processor cores, minutes on a GPU. Resumes.
"""

from dblm_lib import ladder, repair, resources

from . import common

PLAN = repair.Plan(fit=300, neighbours=1000, together=8500)


def train(work, watch=None):
    """Train it, see `repair.train`; resumes by itself.

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
    model, runs = repair.train(
        ids, valid, PLAN, work, watch=watch, save_every=250
    )
    return model.cpu(), runs


def make(folder, data, work, jobs=1):
    """Train it, with its own sampler; measure what it writes."""
    model, runs = train(work)
    return common.shipped(model, runs, folder, data)
