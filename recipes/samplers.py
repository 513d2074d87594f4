"""Ways to take the steps, and how many: a grid of samplers.

All of tales-dblm-teacher but the last, which is that of tales-dblm. 500 texts
a point: a quarter of an hour on an H100, with ``--jobs`` less; hours on two
processor cores. Each point is kept as soon as it is measured; resumes.
"""

import time

from dblm_lib import ablation, denoiser, evaluation, resources

from . import common

COUNTS = (4, 8, 16, 32, 64, 128, 256)


def ways(teacher, student):
    """Samplers, from the plain one to a model's own, a setting at a time."""
    found, settings = {"plain": denoiser.SAMPLER}, dict(denoiser.SAMPLER)
    for name, value in teacher.sampler.items():
        settings = settings | {name: value}
        found[f"+ {name} {value}"] = settings
    found["deterministic"] = denoiser.SAMPLER | {"step": "deterministic"}
    found["as the student"] = denoiser.SAMPLER | student.sampler
    found["student"] = found["as the student"]
    return found


def point(folder, way, num_steps, settings, place, texts):
    """One point of the grid, unless it is there already."""

    def make():
        model = resources.load_weights(denoiser.DBLM, place)
        model.to(resources.device())
        judge, real = common.judge()
        start = time.perf_counter()
        told = evaluation.write(
            model,
            judge.tokenizer,
            texts,
            num_steps,
            batch_size=250,
            **settings,
        )
        row = {"way": way, "num_steps": num_steps} | settings
        row["seconds"] = round(time.perf_counter() - start, 1)
        row["device"] = resources.device_name()
        row |= evaluation.measured(judge, told, real=real)
        print(way, num_steps, row["coherent"], flush=True)
        return row

    weights = resources.sha256(place / "model.safetensors")
    asked = {"sampler": settings, "texts": texts, "weights": weights}
    run = ablation.Run(f"{way}-{num_steps}", asked)
    return ablation.result(run, make, folder)


def make(folder, data, work, jobs=1, texts=500):
    """Measure the grid."""
    places = [
        common.ingredient(data, name)
        for name in ("tales-dblm-teacher", "tales-dblm")
    ]
    named = ways(*map(denoiser.DBLMConfig.from_pretrained, places))
    tasks = [
        (work / "points", way, n, settings, places[way == "student"], texts)
        for n in COUNTS
        for way, settings in named.items()
    ]
    common.side_by_side(point, tasks[::-1], jobs)
    grid = [point(*task) for task in tasks]
    common.write_rows(folder / "grid.json", grid)
    return {
        "points": len(grid),
        "texts": texts,
        "device": " and ".join(sorted({row["device"] for row in grid})),
        "seconds_of_sampling": round(sum(row["seconds"] for row in grid)),
    }
