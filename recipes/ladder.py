"""Every rung of the ladder, trained; what each measured and wrote.

42 runs of 600 steps: about an hour on an H100, with ``--jobs 8`` less; days
on two processor cores. Each run is kept as soon as it is done; resumes.
"""

from dblm_lib import denoiser, evaluation, ladder

from . import common

SEEDS = (0, 1)


def written(model, texts=200, shown=20):
    """What a rung writes in 64 steps: plainly, and with a sharper sampler."""
    judge, real = common.judge()
    found = {}
    for way, sampler in (
        ("plain", denoiser.SAMPLER),
        ("sharp", ladder.sharp_sampler(model.config)),
    ):
        told = found[way] = None
        if sampler:
            told = evaluation.write(
                model,
                judge.tokenizer,
                texts,
                batch_size=texts,
                **denoiser.SAMPLER | sampler,
            )
            found[way] = evaluation.measured(judge, told, real=real)
            found[way]["first"] = told[:shown]
    return found


def climb(folder, index, seed, what="run", jobs=1):
    """A run of the ladder, or the levels that one will need."""

    def measure(model):
        return {"side_by_side": jobs} | written(model)

    name, function = ladder.RUNGS[index].name, getattr(ladder, what)
    print(f"{name}, seed {seed}: {what}", flush=True)
    found = function(index, seed, folder, measure, progress=False)
    print(f"{name}, seed {seed}: {what} is done", flush=True)
    return found


def make(folder, data, work, jobs=1):
    """Train all rungs; collect what they measured."""
    count, runs = len(ladder.RUNGS), work / "runs"
    fits = [i for i, rung in enumerate(ladder.RUNGS) if rung.fitted]
    # What others wait for comes first; of the rest the slowest do.
    early = [
        (runs, i, seed, "run", jobs) for i in range(fits[0]) for seed in SEEDS
    ]
    early += [
        (runs, i, seed, "levels_of", jobs) for i in fits[1:] for seed in SEEDS
    ]
    late = [
        (runs, i, seed, "run", jobs)
        for i in range(fits[0], count)
        for seed in SEEDS
    ]
    common.side_by_side(climb, early, jobs)
    common.side_by_side(climb, late[::-1], jobs)
    found = [climb(runs, i, seed) for seed in SEEDS for i in range(count)]
    common.write_rows(folder / "runs.json", found)
    return {
        "runs": len(found),
        "steps": found[0]["steps"],
        "tokens_seen": found[0]["tokens_seen"],
        "device": " and ".join(sorted({run["device"] for run in found})),
        "side_by_side": max(run["side_by_side"] for run in found),
        "seconds_of_training": sum(run["seconds"] for run in found),
    }
