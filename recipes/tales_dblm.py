"""The repaired denoiser, taught by itself to take few steps.

1,500 steps with the teacher at hand: about half an hour on two processor
cores. Resumes.
"""

import copy

from dblm_lib import denoiser, distillation, ladder, repair, resources

from . import common

# Chance would lead the teacher anywhere: lessons need deterministic steps.
SAMPLER = dict(repair.SAMPLER)


def train(work, teacher):
    """The teacher once more, as a student of its own; resumes by itself."""
    teacher = teacher.to(resources.device())
    tokenizer = resources.load_tokenizer()
    ids, _ = ladder.canvases(tokenizer, common.TRAIN_TALES)
    model = copy.deepcopy(teacher)
    run = common.trained(
        model,
        ids,
        work / "run",
        loss=distillation.distillation_loss,
        draw=distillation.Lessons(teacher, precision="auto"),
        steps=1500,
        batch_size=16,
        learning_rate=2e-3,
        final_fraction=0.05,
    )
    return model.cpu(), [run]


def make(folder, data, work, jobs=1):
    """Teach it, with its own sampler; measure what it writes."""
    place = common.ingredient(data, "tales-dblm-teacher")
    teacher = resources.load_weights(denoiser.DBLM, place)
    teacher.config.sampler = SAMPLER
    model, runs = train(work, teacher)
    return common.shipped(model, runs, folder, data)
