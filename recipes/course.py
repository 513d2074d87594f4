"""The teacher's training once more, measured on its way.

At each mark a mean of the weights of the last hundred steps or so writes
tales, once with the plain sampler and once with the sharp one. About
an hour on two processor cores. Begins anew each time, since what was measured
before a stop is lost.
"""

import time

from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dblm_lib import (
    denoiser,
    evaluation,
    ladder,
    metrics,
    resources,
    text,
    training,
)

from . import common, tales_dblm_teacher

# Steps after which the teacher is measured, and at its end.
MARKS = (250, 500, 1000, 1500, 2000, 3000, 4000, 5000, 6000, 8000)


def make(folder, data, work, jobs=1, marks=MARKS, texts=100):
    """Train and measure at each mark."""
    judge = resources.load_backbone("tales-gpt2")
    _, valid = ladder.canvases(judge.tokenizer, common.TRAIN_TALES)
    real = metrics.judge(*judge, text.load("tales", size=1).valid)
    course = []

    def measure(model, done):
        for way, sampler in (
            ("plain", denoiser.SAMPLER),
            ("own", common.SHARP),
        ):
            told = evaluation.write(model, judge.tokenizer, texts, **sampler)
            found = metrics.report(
                told, judge, evaluation.training_tales(), real
            )
            course.append({"step": done, "way": way} | found)
            print(done, way, found["coherent"], found["broken"], flush=True)
        course[-1]["by_level"] = ladder.level_report(
            model, valid[:256], ladder.FIT_LEVELS
        )

    def watch(model, done):
        loss = training.loss_for(model)
        mean = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))

        def watched(network, batch):
            if watched.done in marks:
                measure(mean.module.eval(), watched.done)
            watched.done += 1
            mean.update_parameters(model)
            return loss(network, batch)

        watched.done = done
        return watched

    anew = work / time.strftime("%Y-%m-%d-%H%M%S")
    model, runs = tales_dblm_teacher.train(anew, watch)
    measure(model, sum(config.steps for _, config in runs))
    common.write_rows(folder / "course.json", course)
    return {
        "points": len(course),
        "texts": texts,
        "steps": [config.steps for _, config in runs],
    }
