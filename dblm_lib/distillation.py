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

from . import decoding, noising, resources, training

__all__ = [
    "FINE",
    "NOTHING",
    "STRIDE",
    "Lessons",
    "distillation_loss",
    "lesson",
]

# Steps of the teacher from one end to the other, and how many of them the
# student takes in one: that makes eight.
FINE = 32
STRIDE = 4
# In the place of an answer where nothing was asked; cross-entropy skips it.
NOTHING = -100


def _settings(model):
    """How a model samples, the kind of its steps left out."""
    settings = decoding.SAMPLER | model.config.sampler
    if settings.pop("step") != "deterministic":
        raise ValueError(
            "only a sampler with deterministic steps can be taught: by "
            "chance the teacher would arrive at any text. Set "
            "sampler={'step': 'deterministic'} in the configuration"
        )
    return settings


def _descend(guesser, zt, times, ids, keep):
    """Take deterministic steps along a grid of times; the points there."""
    model = guesser.model
    known = model.embed(ids)

    def hold(points):
        return torch.where(keep[..., None], known, points)

    zt = hold(zt)
    for t, s in pairwise(times.to(zt.device)):
        here = t.reshape(-1).expand(keep.shape).masked_fill(keep, 0.0)
        x0_hat = hold(guesser(zt, here))
        moved = decoding.deterministic_step(x0_hat, zt, model.schedule, t, s)
        zt = hold(moved.where(s < t, zt))
    return zt


@torch.no_grad()
def lesson(
    student,
    teacher,
    eps,
    looks,
    stride=STRIDE,
    fine=FINE,
    ids=None,
    keep=None,
):
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
    ids, keep : tensors, shape ``(batch, length)``, optional
        Tokens, and True where they are given, such as the beginning of a
        text.

    Returns
    -------
    dict of tensors, one row a text
        ``points`` and ``times``, where the student stands; ``guesses``, its
        last one, zeros if there is none; ``answers``, ids of the text at
        which the teacher arrives, `NOTHING` where a token was given.

    Raises
    ------
    ValueError
        If the numbers of steps do not fit, the steps are not deterministic,
        or only one of ``ids`` and ``keep`` is there.
    """
    if fine % stride or not 0 <= looks * stride < fine:
        raise ValueError(
            f"{looks} steps of {stride} leave nothing of {fine} to teach, "
            "or do not fit into them"
        )
    if (ids is None) != (keep is None):
        raise ValueError(
            "ids and keep belong together: tokens, and where they are given"
        )
    keep = noising.check_keep(keep, eps.shape[:2])
    if ids is None:
        ids = torch.zeros(eps.shape[:2], dtype=torch.long, device=eps.device)
        keep = torch.zeros_like(ids, dtype=torch.bool)
    settings = _settings(teacher)
    stagger, power = settings.pop("stagger"), settings.pop("power")
    times = decoding.run_times(fine, eps.shape[1], stagger, power)
    here = looks * stride
    guesser = decoding.Guesser(student, **settings)
    points = _descend(guesser, eps, times[: here + 1 : stride], ids, keep)
    guesses = guesser.previous
    if guesses is None:
        guesses = torch.zeros_like(points)
    guesser.model, guesser.table = teacher, teacher.table()
    _descend(guesser, points, times[here:], ids, keep)
    at = times[here].reshape(-1).to(eps.device).expand(keep.shape)
    return {
        "points": points,
        "times": at.masked_fill(keep, 0.0),
        "guesses": guesses,
        "answers": guesser.ids.masked_fill(keep, NOTHING),
    }


class Lessons:
    """Draws batches for `distillation_loss`; a ``draw`` for `training.train`.

    A lesson costs many evaluations of the network. So each is kept for a
    while and learned from more than once; a run's checkpoint keeps them, too.
    In a share ``clean_rate`` of them, a field of the model's
    configuration, the beginning of a text is given, up to three quarters of
    the canvas.

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
    precision : {"fp32", "bf16", "auto"}
        In which lessons are made: give that of the `training.TrainConfig`.
    """

    def __init__(
        self,
        teacher,
        rows=64,
        every=4,
        kept=24,
        stride=STRIDE,
        fine=FINE,
        precision="fp32",
    ):
        _settings(teacher)
        resources.autocast("cpu", precision)  # refuses another
        for name, value in (("rows", rows), ("every", every), ("kept", kept)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        self.teacher, self.rows = teacher.eval(), rows
        self.every, self.stride, self.fine = every, stride, fine
        self.precision = precision
        self.pool, self.batches = deque(maxlen=kept), 0

    def __call__(self, model, ids, generator):
        if self.batches % self.every == 0:
            self.pool.append(self.make(model, ids, generator))
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

    def state_dict(self):
        """What a run that is resumed must know: the lessons that are kept."""
        return {"batches": self.batches, "pool": list(self.pool)}

    def load_state_dict(self, state):
        """Go on with the lessons of `state_dict`."""
        self.batches = state["batches"]
        self.pool = deque(state["pool"], maxlen=self.pool.maxlen)

    def make(self, model, ids, generator):
        """New lessons: after how many looks is drawn for all of them."""
        most = self.fine // self.stride
        looks = torch.randint(most, (), generator=generator).item()
        rows, length = self.rows, ids.shape[1]
        dim = model.embeddings.embedding_dim
        eps = torch.randn(rows, length, dim, generator=generator)
        which = torch.randint(len(ids), (rows,), generator=generator)
        dice = torch.rand(2, rows, 1, generator=generator)
        given = (0.75 * length * dice[0]).ceil()
        given = given.where(dice[1] < model.config.clean_rate, 0)
        keep = torch.arange(length) < given
        device = next(model.parameters()).device
        eps, begun, keep = (v.to(device) for v in (eps, ids[which], keep))
        was_training = model.training
        model.eval()
        with resources.autocast(device, self.precision):
            made = lesson(
                model,
                self.teacher,
                eps,
                looks,
                self.stride,
                self.fine,
                begun,
                keep,
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
    weight = (decoding.SAMPLER | bare.config.sampler)["likelihood_weight"]
    logits = model(
        batch["points"],
        batch["times"],
        previous=batch["guesses"],
        likelihood_weight=weight,
    ).logits
    taught = F.cross_entropy(logits.flatten(0, 1), batch["answers"].flatten())
    fresh = training.cross_entropy_loss(model, batch)
    share = len(batch["ids"]) / (len(batch["ids"]) + len(batch["answers"]))
    return share * fresh + (1 - share) * taught
