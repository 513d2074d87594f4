"""Checkers of chapter 9: masked diffusion."""

import math

import numpy as np

from .core import Hint, ask, compare, exercise, kind_of, numbers

# Nats of all masked tokens with 1 to 6 masks: ten for the first, and half as
# much again for each further one.
_NATS = np.array([10.0, 15.0, 20.0, 25.0, 30.0, 35.0])


def _weights(steps, length, weight):
    """What so many masks weigh in all steps together."""
    counts = np.arange(1, length + 1)
    found = np.zeros(length)
    for k in range(1, steps + 1):
        t = k / steps
        chance = [
            math.comb(length, n) * t**n * (1 - t) ** (length - n)
            for n in counts
        ]
        found += weight(k) * np.array(chance)
    return found


@exercise("9.1")
def _steps_cost(answer):
    """``bound_of(nats, steps)``: the T-step bound from a table by masks."""
    steps, length = 3, len(_NATS)
    got = numbers(ask(answer, _NATS.tolist(), steps), (), "the answer")

    def said(weight):
        return _weights(steps, length, weight) @ _NATS

    mistakes = {
        "each step weighs 1/k, the share of the masks that it reveals; that "
        "is without a weight.": said(lambda k: 1.0),
        "the weight of step k is 1/k; that takes 1/T for all of them.": (
            said(lambda k: 1 / steps)
        ),
        "that is T/k: the steps are added up, not averaged.": (
            said(lambda k: steps / k)
        ),
        "that is the bound in continuous time, with 1/l for l masks.": (
            (_NATS / np.arange(1, length + 1)).sum()
        ),
        "at time k/T the number of masks is binomial; that takes its mean, "
        "k/T times the length.": sum(
            _NATS[round(length * k / steps) - 1] / k
            for k in range(1, steps + 1)
        ),
    }
    compare(
        got,
        said(lambda k: 1 / k),
        mistakes,
        "add up over k = 1 to T: 1/k times the mean of the nats, where l "
        "masks have the probability comb(L, l) (k/T)^l (1 - k/T)^(L - l).",
    )
    return "the same table gives the bound for every number of steps."


class _Step:
    """Of `unmasking.Step` what an order by places may look at."""

    def __init__(self, masked, quota):
        self.ids, self.masked, self.quota = masked.long(), masked, quota

    def best(self, scores):
        """The ``quota`` masks of each row with the highest scores."""
        scores = scores.masked_fill(~self.masked, -math.inf)
        order = scores.argsort(dim=1, descending=True, stable=True)
        return self.masked & (order.argsort(dim=1) < self.quota[:, None])


@exercise("9.2")
def _from_the_end(answer):
    """``right_to_left(step)``: an order of your own."""
    import torch

    masked = torch.tensor(
        [[True, True, False, True, True], [True, False, False, False, True]]
    )
    quota = torch.tensor([2, 1])
    step = _Step(masked, quota)
    got = ask(answer, step)
    if not (hasattr(got, "dtype") and got.dtype == torch.bool):
        raise Hint(
            "an order gives True and False, one for each position, as "
            f"`step.best(scores)` does; I was given {kind_of(got)}."
        )
    if got.shape != masked.shape:
        raise Hint(
            f"the answer has shape {tuple(got.shape)}; that of step.ids, "
            f"{tuple(masked.shape)}, was expected."
        )
    wanted = torch.tensor(
        [[False, False, False, True, True], [False] * 4 + [True]]
    )
    if torch.equal(got, wanted):
        return "the rightmost masks, as many as the quota asks for."
    if bool((got & ~masked).any()):
        raise Hint("a visible position was chosen: reveal masks only.")
    leftmost = torch.tensor([[True, True] + [False] * 3, [True] + [False] * 4])
    if torch.equal(got, leftmost):
        raise Hint("that is left to right: `best` takes the highest scores.")
    if not torch.equal(got.sum(1), quota):
        raise Hint(
            "reveal `step.quota` masks of each row, 2 and 1 here; you "
            f"reveal {got.sum(1).tolist()}."
        )
    raise Hint("the rightmost masks are wanted: score positions by place.")


@exercise("9.3")
def _never_drawn(answer):
    """``lost(p, steps)``: what float32 takes from a rare token."""
    p, steps = 1e-6, 64
    got = numbers(ask(answer, p, steps), (), "the answer")

    def share(a):
        return 1 / (a * math.expm1(1 / a))

    a = p / steps * 2**24
    mistakes = {
        "that is the share that is drawn; how much is lost was asked.": (
            share(a)
        ),
        "divide p by the number of steps: a step reveals a mask with about "
        "the probability 1/T only.": 1 - share(p * 2**24),
        "that is float64: `bits=24` for float32.": (
            1 - share(p / steps * 2**53)
        ),
        "in T steps nothing is lost T times: each step loses the same share "
        "of its own small probability.": 1 - share(a) ** steps,
    }
    compare(
        got,
        1 - share(a),
        mistakes,
        "the probability in one step is p / T; `unmasking.race_share` of it "
        "is the share that is drawn.",
    )
    return "a temperature that nobody asked for, and it grows with T."
