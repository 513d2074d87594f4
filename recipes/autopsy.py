"""Chapter 6's longer trainings: each cause alone, and all others fixed.

64 runs, most of 400 steps: over an hour on two processor cores. Each run is
kept as soon as it is done; resumes.
"""

import json

from dblm_lib import diagnostics

SEEDS = (0, 1)


def make(folder, data, work, jobs=1):
    """Train and measure all runs of the plan."""
    found = diagnostics.long_runs(folder=work / "runs", seeds=SEEDS)
    (folder / "runs.json").write_text(json.dumps(found) + "\n", "utf-8")
    return {
        "runs": sum(map(len, found.values())),
        "steps": diagnostics.STEPS,
        "seeds": len(SEEDS),
        "seconds_of_training": round(
            sum(run["seconds"] for runs in found.values() for run in runs)
        ),
    }
