"""Every rung of the ladder, trained; what each measured and wrote.

Two runs of 600 steps of each rung and each comparison: two hours on two
processor cores with ``--jobs 2``, less on a GPU. Each run is kept as soon as
it is done; resumes.
"""

from dblm_lib import denoiser, evaluation, ladder

from . import common

SEEDS = (0, 1)


def written(model, texts=200, shown=20):
    """What a rung writes in 64 steps: plainly, and with the tuned sampler."""
    judge, real = common.judge()
    found = {}
    for way, sampler in (
        ("plain", denoiser.SAMPLER),
        ("tuned", ladder.sampler(model.config)),
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


def climb(folder, name, seed, what="run", jobs=1):
    """A run of the ladder, or the levels that one will need."""

    def measure(model):
        return {"side_by_side": jobs} | written(model)

    function = getattr(ladder, what)
    print(f"{name}, seed {seed}: {what}", flush=True)
    found = function(name, seed, folder, measure, progress=False)
    print(f"{name}, seed {seed}: {what} is done", flush=True)
    return found


def make(folder, data, work, jobs=1):
    """Train all rungs; collect what they measured."""
    runs, rungs = work / "runs", ladder.RUNGS + ladder.COMPARISONS
    names = [rung.name for rung in rungs]
    fitted = [rung.name for rung in rungs if rung.fitted]
    # What others wait for comes first.
    below = names[: names.index(fitted[0])]
    for what, some in (
        ("run", below),
        ("levels_of", fitted[1:]),
        ("run", names[len(below) :]),
    ):
        tasks = [
            (runs, name, seed, what, jobs) for name in some for seed in SEEDS
        ]
        common.side_by_side(climb, tasks, jobs)
    found = [climb(runs, name, seed) for seed in SEEDS for name in names]
    common.write_rows(folder / "runs.json", found)
    return {
        "runs": len(found),
        "steps": found[0]["steps"],
        "tokens_seen": found[0]["tokens_seen"],
        "device": " and ".join(sorted({run["device"] for run in found})),
        "side_by_side": max(run["side_by_side"] for run in found),
        "seconds_of_training": sum(run["seconds"] for run in found),
    }
