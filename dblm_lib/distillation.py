r"""Distillation: few steps, taught by many.

Chapter 7. A model that writes well in many small steps is its own teacher
for few large ones. A student, which starts as a copy of it, takes some large
steps of the reverse process. There the teacher takes over and goes the rest
of the way in small steps, to the end. What it arrives at is what the student
should have answered.

Teaching fewer steps by more is progressive distillation (Salimans & Ho,
2022); to teach it on the student's own path, with the mistakes that only the
student makes, is the idea of DAgger (Ross et al., 2011).
"""

from collections import deque
from itertools import pairwise

import torch
import torch.nn.functional as F

from . import decoding, denoiser, training

__all__ = ["FINE", "STRIDE", "Lessons", "distillation_loss", "lesson"]

# Steps of the teacher from one end to the other, and how many of them the
# student takes in one: that makes eight.
FINE = 32
STRIDE = 4


def _settings(model):
    """How a model samples, the kind of its steps left out."""
    settings = denoiser.SAMPLER | model.config.sampler
    if settings.pop("step") != "deterministic":
        raise ValueError(
            "only a sampler with deterministic steps can be taught: by "
            "chance the teacher would arrive at any text. Set "
            "sampler={'step': 'deterministic'} in the configuration"
        )
    return settings


def _descend(guesser, zt, times, schedule):
    """Take deterministic steps along a grid of times; the points there."""
    for t, s in pairwise(times.to(zt.device)):
        x0_hat = guesser(zt, t.reshape(-1).expand(zt.shape[:2]))
        moved = decoding.deterministic_step(x0_hat, zt, schedule, t, s)
        zt = moved.where(s < t, zt)
    return zt


@torch.no_grad()
def lesson(student, teacher, eps, looks, stride=STRIDE, fine=FINE):
    """Where a student gets by itself, and where a teacher gets from there.

    Parameters
    ----------
    student, teacher : DBLM with a mixture head
        The sampler that the teacher's configuration names is the one of
        both.
    eps : tensor, shape ``(batch, length, dim)``
        The noise that the texts begin as.
    looks : int
        Steps that the student takes first; fewer than ``fine / stride``.
    stride : int
        Steps of the teacher that the student takes in one.
    fine : int
        Steps of the teacher from one end to the other.

    Returns
    -------
    dict of tensors, one row a text
        ``points`` and ``times``, where the student stands; ``guesses``, its
        last one, zeros if there is none; ``answers``, ids of the text at
        which the teacher arrives.

    Raises
    ------
    ValueError
        If the numbers of steps do not fit, or the steps are not
        deterministic.
    """
    if fine % stride or not 0 <= looks * stride < fine:
        raise ValueError(
            f"{looks} steps of {stride} leave nothing of {fine} to teach, "
            "or do not fit into them"
        )
    settings = _settings(teacher)
    stagger, power = settings.pop("stagger"), settings.pop("power")
    times = decoding.staggered_times(fine, eps.shape[1], stagger) ** power
    here, schedule = looks * stride, teacher.schedule
    guesser = decoding.Guesser(student, **settings)
    points = _descend(guesser, eps, times[: here + 1 : stride], schedule)
    guesses = guesser.previous
    if guesses is None:
        guesses = torch.zeros_like(points)
    guesser.model, guesser.table = teacher, teacher.table()
    _descend(guesser, points, times[here:], schedule)
    return {
        "points": points,
        "times": times[here, :, 0].expand(points.shape[:2]),
        "guesses": guesses,
        "answers": guesser.ids,
    }


class Lessons:
    """Draws batches for `distillation_loss`; a ``draw`` for `training.train`.

    A lesson costs many evaluations of the network. So each is kept for a
    while and learned from more than once. A run that is resumed begins with
    new ones.

    Parameters
    ----------
    teacher : DBLM
        It is not trained; its configuration names the sampler.
    rows : int
        Lessons in a batch, beside its texts with ordinary noise. As many are
        made at a time.
    every : int
        Batches between two times that lessons are made.
    kept : int
        How many times' lessons are kept.
    stride, fine
        See `lesson`.
    """

    def __init__(
        self, teacher, rows=64, every=4, kept=24, stride=STRIDE, fine=FINE
    ):
        _settings(teacher)
        self.teacher, self.rows = teacher.eval(), rows
        self.every, self.stride, self.fine = every, stride, fine
        self.pool, self.batches = deque(maxlen=kept), 0

    def __call__(self, model, ids, generator):
        if self.batches % self.every == 0:
            self.pool.append(self.make(model, ids.shape[1], generator))
        self.batches += 1
        count = len(self.pool) * self.rows
        which = torch.randint(count, (self.rows,), generator=generator)
        rows = [divmod(i, self.rows) for i in which.tolist()]
        taken = {
            name: torch.stack([self.pool[i][name][j] for i, j in rows])
            for name in self.pool[0]
        }
        noise = training.draw_for(model)(model, ids, generator)
        return noise | taken

    def make(self, model, length, generator):
        """New lessons: after how many looks is drawn for all of them."""
        most = self.fine // self.stride
        looks = torch.randint(most, (), generator=generator).item()
        dim = model.embeddings.embedding_dim
        eps = torch.randn(self.rows, length, dim, generator=generator)
        device = next(model.parameters()).device
        was_training = model.training
        model.eval()
        with torch.autocast(device.type, torch.bfloat16):
            made = lesson(
                model,
                self.teacher,
                eps.to(device),
                looks,
                self.stride,
                self.fine,
            )
        model.train(was_training)
        return {name: values.cpu() for name, values in made.items()}


def distillation_loss(model, batch):
    """Two cross-entropies, in nats a position; every text counts the same.

    One is that of texts with fresh noise, `training.cross_entropy_loss`; it
    keeps what the model knows. The other asks for the teacher's answer where
    the student stands.

    Parameters
    ----------
    model : DBLM with a mixture head, possibly wrapped
    batch : dict
        As for `training.cross_entropy_loss`, and what `lesson` returns.

    Returns
    -------
    scalar tensor
    """
    bare = getattr(model, "module", model)
    weight = (denoiser.SAMPLER | bare.config.sampler)["likelihood_weight"]
    logits = model(
        batch["points"],
        batch["times"],
        previous=batch["guesses"],
        logits=True,
        likelihood_weight=weight,
    )
    taught = F.cross_entropy(logits.flatten(0, 1), batch["answers"].flatten())
    fresh = training.cross_entropy_loss(model, batch)
    share = len(batch["ids"]) / (len(batch["ids"]) + len(batch["answers"]))
    return share * fresh + (1 - share) * taught
