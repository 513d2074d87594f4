r"""Training: recipe, random numbers, losses, the loop and its checkpoints.

Chapters 4, 7 and 9. `loop.train` is the one loop; what it does in a step is
decided by a loss and a draw, functions that a model's configuration names.
"""

from ..autoregressive import next_token_loss, next_token_nats
from .config import (
    PROPOSAL_PROMPTS,
    PROPOSAL_SENTENCES,
    TrainConfig,
    learning_rate,
    proposal_config,
)
from .draws import (
    draw_clean_neighbours,
    draw_for,
    draw_masks,
    draw_noise,
    draw_noised,
    draw_staggered,
)
from .loop import History, train
from .losses import (
    cross_entropy_loss,
    denoising_loss,
    draft_loss,
    evaluate_denoising,
    first_guess,
    loss_for,
    masked_loss,
    noised_loss,
    normalised_mse,
    weight_change,
)

__all__ = [
    "PROPOSAL_PROMPTS",
    "PROPOSAL_SENTENCES",
    "History",
    "TrainConfig",
    "cross_entropy_loss",
    "denoising_loss",
    "draft_loss",
    "draw_clean_neighbours",
    "draw_for",
    "draw_masks",
    "draw_noise",
    "draw_noised",
    "draw_staggered",
    "evaluate_denoising",
    "first_guess",
    "learning_rate",
    "loss_for",
    "masked_loss",
    "next_token_loss",
    "next_token_nats",
    "noised_loss",
    "normalised_mse",
    "proposal_config",
    "train",
    "weight_change",
]
