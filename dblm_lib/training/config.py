"""What a training run is told, and the learning rate that follows from it.

Chapter 4.
"""

import math
from dataclasses import dataclass

from .. import checks, resources

__all__ = [
    "PROPOSAL_PROMPTS",
    "PROPOSAL_SENTENCES",
    "TrainConfig",
    "learning_rate",
    "proposal_config",
]

PROPOSAL_SENTENCES = (
    "Once upon a time, in a land far, far away...",
    "In the middle of the night...",
)
PROPOSAL_PROMPTS = ("so as i was saying,", "generate me a story")
OPTIMIZERS = ("adamw", "adam", "muon")


@dataclass
class TrainConfig:
    """What the loop needs to know.

    Attributes
    ----------
    steps, batch_size : int
    learning_rate : float
        Its peak.
    warmup : int
        Steps over which the learning rate rises from zero.
    final_fraction : float
        The cosine falls to this share of the peak; 1 keeps it constant.
    optimizer : {"adamw", "adam", "muon"}
        Muon (Jordan et al., 2024) turns the update of each matrix of the
        blocks into an orthogonal one, of the size that AdamW's would have;
        all other weights stay with AdamW.
    weight_decay : float
        On matrices only (AdamW).
    clip : float
        Largest norm of the gradient; 0 leaves it alone.
    ema : float
        Decay of the averaged weights; 0 keeps no average. With an average,
        the model ends with the averaged weights.
    precision : {"fp32", "bf16", "auto"}
        bf16 autocast is two to three times faster on hardware that computes
        with it, and many times slower on a processor that has to pretend;
        "auto" asks, see `resources.has_fast_bf16`.
    embedding_rate : float
        Factor on the learning rate of the embeddings, if they are trained.
    seed : int
    log_every, save_every : int
        Steps between points of the loss curve and between checkpoints
        (0: none but the last).
    """

    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup: int = 50
    final_fraction: float = 0.1
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.0
    precision: str = "fp32"
    embedding_rate: float = 1.0
    seed: int = 0
    log_every: int = 10
    save_every: int = 0

    def __post_init__(self):
        for name in ("steps", "batch_size", "log_every"):
            _whole(name, getattr(self, name), least=1)
        for name in ("warmup", "seed", "save_every"):
            _whole(name, getattr(self, name), least=0)
        for name in ("learning_rate", "embedding_rate"):
            if _number(name, getattr(self, name)) == 0:
                raise ValueError(f"{name} must be positive; got 0")
        for name in ("weight_decay", "clip"):
            _number(name, getattr(self, name))
        if _number("final_fraction", self.final_fraction) > 1:
            raise ValueError(
                "final_fraction is a share of the peak, from 0 to 1; "
                f"got {self.final_fraction}"
            )
        if _number("ema", self.ema) >= 1:
            raise ValueError(f"ema must lie in [0, 1); got {self.ema}")
        for name, known in (
            ("optimizer", OPTIMIZERS),
            ("precision", resources.PRECISIONS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"unknown {name} {getattr(self, name)!r}; "
                    f"choose one of {', '.join(known)}"
                )


def _whole(name, value, least):
    """Refuse what is no whole number of at least ``least``."""
    if not checks.is_whole(value, least):
        raise ValueError(
            f"{name} must be a whole number of at least {least}; got {value!r}"
        )


def _number(name, value):
    """Refuse what is no finite number of at least 0; else return it."""
    if not checks.is_number(value):
        raise TypeError(f"{name} must be a finite number; got {value!r}")
    if value < 0:
        raise ValueError(f"{name} must be positive or 0; got {value}")
    return value


def proposal_config():
    """The first proposal's recipe: 100 steps of Adam at 1e-5, nothing else."""
    return TrainConfig(
        steps=100,
        batch_size=len(PROPOSAL_SENTENCES),
        learning_rate=1e-5,
        warmup=0,
        final_fraction=1.0,
        optimizer="adam",
        clip=0.0,
        log_every=1,
    )


def learning_rate(step, config):
    """Warm up in a straight line, then fall along half a cosine.

    Parameters
    ----------
    step : int
        Counted from 0.
    config : TrainConfig
    """
    peak, warmup = config.learning_rate, config.warmup
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    low = config.final_fraction
    return peak * (low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2)
