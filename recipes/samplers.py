"""What each writer can do: coherence beside variety, over its samplers.

The denoiser as trained and as distilled, in more and fewer steps, and the two
autoregressive twins, each at several temperatures. 300 texts a point: half an
hour on two processor cores. Each point is kept as soon as it is measured;
resumes.
"""

import time

from dblm_lib import ablation, denoiser, evaluation, resources

from . import common

TEMPERATURES = (1.0, 0.8, 0.6)
TEACHER, STUDENT = "tales-dblm-teacher", "tales-dblm"
TWINS = "tales-gpt2", "tales-gpt2-long"
STEPS = {TEACHER: (64, 16, 8), STUDENT: (64, 16, 8, 4)}


def ways(own):
    """What is measured of each writer.

    Parameters
    ----------
    own : dict
        Writer -> the sampler that its configuration names.

    Returns
    -------
    list of (writer, way, steps, sampler)
        Steps are 0 for a writer from left to right.
    """
    found = []
    for tau in TEMPERATURES:
        title = f"temperature {tau:g}"
        hot = {"temperature": tau}
        found += [(twin, title, 0, hot) for twin in TWINS]
        for writer, counts in STEPS.items():
            settings = denoiser.SAMPLER | own[writer] | hot
            found += [(writer, title, n, settings) for n in counts]
    settings = denoiser.SAMPLER | own[TEACHER]
    for weight in (0.5, 1.0):
        changed = settings | {"likelihood_weight": weight}
        found.append((TEACHER, f"output prior {weight:g}", 64, changed))
    changed = settings | {"step": "ancestral"}
    found.append((TEACHER, "ancestral", 64, changed))
    found.append((TEACHER, "plain", 64, denoiser.SAMPLER))
    sharp = denoiser.SAMPLER | common.SHARP
    found.append((TEACHER, "sharp", 64, sharp))
    return found


def point(folder, writer, way, num_steps, settings, place, texts):
    """One point, unless it is there already."""

    def make():
        if writer in TWINS:
            model = resources.load_backbone(place).model
        else:
            model = resources.load_weights(denoiser.DBLM, place)
        model.to(resources.device())
        judge, real = common.judge()
        start = time.perf_counter()
        told = evaluation.write(
            model,
            judge.tokenizer,
            texts,
            num_steps,
            batch_size=100,
            **settings,
        )
        row = {"writer": writer, "way": way, "num_steps": num_steps}
        row |= settings
        row["seconds"] = round(time.perf_counter() - start, 1)
        row["device"] = resources.device_name()
        row |= evaluation.measured(judge, told, real=real)
        print(writer, way, num_steps, row["coherent"], flush=True)
        return row

    weights = resources.sha256(place / "model.safetensors")
    asked = {"sampler": settings, "texts": texts, "weights": weights}
    run = ablation.Run(f"{writer}-{way}-{num_steps}", asked)
    return ablation.result(run, make, folder)


def make(folder, data, work, jobs=1, texts=300):
    """Measure all points."""
    places = {
        name: common.ingredient(data, name)
        for name in (*TWINS, TEACHER, STUDENT)
    }
    own = {
        name: denoiser.DBLMConfig.from_pretrained(places[name]).sampler
        for name in STEPS
    }
    tasks = [
        (work / "points", *way, places[way[0]], texts) for way in ways(own)
    ]
    common.side_by_side(point, tasks, jobs)
    grid = [point(*task) for task in tasks]
    common.write_rows(folder / "grid.json", grid)
    return {
        "points": len(grid),
        "texts": texts,
        "device": " and ".join(sorted({row["device"] for row in grid})),
        "seconds_of_sampling": round(sum(row["seconds"] for row in grid)),
    }
