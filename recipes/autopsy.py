"""Chapter 6's longer trainings: each cause alone, and all others fixed.

72 runs, most of 400 steps and twelve of 3,000: some two hours on two
processor cores, which ``--jobs 2`` divides between two processes. Each run
is kept as soon as it is done; resumes.
"""

import json

from dblm_lib import diagnostics

from . import common

SEEDS = (0, 1)


def one(name, seed, folder):
    """Make a run of the plan, or find it made."""
    diagnostics.long_runs(folder=folder, seeds=(seed,), names=(name,))


def make(folder, data, work, jobs=1):
    """Train and measure all runs of the plan."""
    runs, plan = work / "runs", diagnostics.plan()
    # The longest first, so that no process waits for the last one.
    names = sorted(plan, key=lambda name: plan[name]["recipe"] != "budget")
    tasks = [(name, seed, runs) for seed in SEEDS for name in names]
    common.side_by_side(one, tasks, jobs)
    found = diagnostics.long_runs(folder=runs, seeds=SEEDS)
    (folder / "runs.json").write_text(json.dumps(found) + "\n", "utf-8")
    return {
        "runs": sum(map(len, found.values())),
        "steps": diagnostics.STEPS,
        "seeds": len(SEEDS),
        "side_by_side": jobs,
        "seconds_of_training": round(
            sum(run["seconds"] for runs in found.values() for run in runs)
        ),
    }
