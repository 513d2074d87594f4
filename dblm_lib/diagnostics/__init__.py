r"""Autopsy: what is wrong with a denoiser, and how much each cause weighs.

Chapter 6. `instruments` are small measurements; `causes` trains the
proposal's model with one cause removed, and a repaired one with one cause
put back.
"""

from .causes import (
    CAUSES,
    PROPOSAL,
    REPAIRED,
    STEPS,
    TRAINED,
    broken,
    build,
    explained,
    fixed,
    long_runs,
    plan,
    results,
    run,
    shares,
)
from .instruments import (
    SHARES,
    accuracy_by_position,
    contextual_rounding,
    difficult_levels,
    examine,
    fit_head,
    gain,
    landing,
    level_report,
    pairwise_distance,
    recovered,
    terminal_nats,
    trivial_share,
    within_nearest,
)

__all__ = [
    "CAUSES",
    "PROPOSAL",
    "REPAIRED",
    "SHARES",
    "STEPS",
    "TRAINED",
    "accuracy_by_position",
    "broken",
    "build",
    "contextual_rounding",
    "difficult_levels",
    "examine",
    "explained",
    "fit_head",
    "fixed",
    "gain",
    "landing",
    "level_report",
    "long_runs",
    "pairwise_distance",
    "plan",
    "recovered",
    "results",
    "run",
    "shares",
    "terminal_nats",
    "trivial_share",
    "within_nearest",
]
