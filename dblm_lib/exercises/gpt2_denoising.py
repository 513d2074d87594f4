"""Checkers of chapter 3: GPT-2 denoising."""

import numpy as np

from .core import (
    Hint,
    as_tensors,
    ask,
    compare,
    draw_noise,
    exercise,
    kind_of,
    numbers,
)


@exercise("3.1")
def _changed(answer):
    """``changed(j, seq_len, causal)``: the positions whose output moves."""
    for j, n, causal in ((2, 6, True), (2, 6, False), (0, 4, True)):
        got = ask(answer, j, n, causal)
        try:
            got = {int(i) for i in got}
        except (TypeError, ValueError):
            raise Hint(
                f"a set of positions was expected, got {kind_of(got)}."
            ) from None
        right = set(range(j, n)) if causal else set(range(n))
        if got == right:
            continue
        mask = "a causal mask" if causal else "no causal mask"
        case = f"with {mask} and {n} tokens, changing token {j}"
        named = [
            (set(range(j + 1)), "moves later outputs, not earlier ones."),
            (right - {j}, "moves the output at its own position too."),
            ({j}, "moves more than its own output: attention passes it on."),
            (
                set(range(n)),
                "cannot move what comes before it, which never looks at it.",
            ),
            (
                set(range(j, n)),
                "moves earlier outputs too: they look at both sides.",
            ),
            (
                {i + 1 for i in right},
                "is off by one: positions are counted from 0.",
            ),
        ]
        for wrong, hint in named:
            if got == wrong:
                raise Hint(f"{case} {hint}")
        raise Hint(
            f"{case} does not move exactly {sorted(got)}: which rows of the "
            f"mask look at column {j}?"
        )
    return (
        "a causal denoiser cannot mend a word by what follows it; one that "
        "sees both sides can."
    )


@exercise("3.2")
def _windowed(answer):
    """``windowed(log_lik, w)``: sums over positions at most w away."""
    log_lik = draw_noise(32, 2, 3, 7)
    place = np.arange(7)
    apart = place[:, None] - place  # position i, the row, minus j

    def over(seen):
        return log_lik @ seen.T.astype(float)

    for w in (4, 1, 0, 9):
        near = np.abs(apart) <= w
        around = [np.roll(log_lik, k, axis=-1) for k in range(-w, w + 1)]
        count = near.sum(axis=1)
        mistakes = {
            f"with w = {w} the window reaches to the left only: what stands "
            "up to w places to the right is seen too.": over(
                near & (apart >= 0)
            ),
            "position i itself is missing from its window.": over(
                near & (apart != 0)
            ),
            "log-likelihoods of independent observations are added up; "
            "yours are averaged.": over(near) / count,
            "a window of w reaches w places to each side, not w / 2: "
            "2 w + 1 positions in all.": over(2 * np.abs(apart) <= w),
            "your window ends one place too early: positions exactly w away "
            "are seen.": over(np.abs(apart) < w),
            "your window goes round the corner: to the left of the first "
            "position there is nothing (torch.roll brings in the last).": sum(
                around
            ),
            "that is the sum over all positions: does w enter?": over(
                np.ones_like(near)
            ),
            "that is the sum over all positions up to i, as for a causal "
            "denoiser: does w enter?": over(apart >= 0),
            "every position sees itself only: does w enter?": log_lik,
        }
        compare(
            numbers(
                ask(answer, *as_tensors(log_lik), w),
                log_lik.shape,
                "what windowed returns, (batch, texts, positions),",
            ),
            over(near),
            mistakes,
            f"with w = {w}, entry i of the last dimension should be the sum "
            "of the entries i - w to i + w that exist.",
        )
    return (
        "each position adds up its own log-likelihood and those of w "
        "neighbours on each side."
    )


@exercise("3.3")
def _probe(answer):
    """``probe(states, targets, new_states, penalty)``: ridge regression."""
    states = 2 + draw_noise(33, 30, 4)
    new = 2 + draw_noise(34, 6, 4)
    targets = states @ draw_noise(35, 4, 3) - 5 + draw_noise(36, 30, 3)
    for penalty in (8.0, 0.5):
        right = _ridge(states, targets, new, penalty)
        bare = np.linalg.solve(
            states.T @ states + penalty * np.eye(4), states.T @ targets
        )
        centred = states - states.mean(axis=0)
        slopes = np.linalg.solve(
            centred.T @ centred + penalty * np.eye(4), centred.T @ targets
        )
        mistakes = {
            "the constant is missing: take the means of states and targets "
            "off before you solve, and add the targets' mean at the end.": (
                new @ bare
            ),
            "the means were taken off and never added again: the prediction "
            "ends with + targets.mean(dim=0).": (
                (new - states.mean(axis=0)) @ slopes
            ),
            "the new states are centred by a mean of their own. What was "
            "fitted belongs to the mean of the old ones: take that off.": (
                targets.mean(axis=0) + (new - new.mean(axis=0)) @ slopes
            ),
            "the new states are not centred: take the mean of the old ones "
            "off them too.": targets.mean(axis=0) + new @ slopes,
            "the penalty does not enter: add penalty times the identity to "
            "the matrix of squares.": _ridge(states, targets, new, 0.0),
            "the penalty is multiplied by the number of states: it stands "
            "beside the sum of the squares, not beside their mean.": _ridge(
                states, targets, new, penalty * len(states)
            ),
            "the constant is penalised too. Centre states and targets first; "
            "then no constant has to be fitted.": _with_ones(
                states, targets, new, penalty
            ),
            "the same answer for every state is the targets' mean: the "
            "states do not enter.": np.broadcast_to(
                targets.mean(axis=0), right.shape
            ),
        }
        compare(
            numbers(
                ask(answer, *as_tensors(states, targets, new), penalty),
                right.shape,
                "the prediction, (new states, coordinates of a target),",
            ),
            right,
            mistakes,
            "on centred states X and targets Y, solve (XᵀX + penalty I) W = "
            "XᵀY; the prediction is (new_states - mean of states) W + mean "
            "of targets.",
        )
    return (
        "a linear map, fitted on some states and judged on others: its error "
        "says what can be read off without any further network."
    )


def _ridge(states, targets, new, penalty):
    """Ridge regression whose constant is not penalised."""
    mean, middle = states.mean(axis=0), targets.mean(axis=0)
    x = states - mean
    squares = x.T @ x + penalty * np.eye(x.shape[1])
    slopes = np.linalg.solve(squares, x.T @ (targets - middle))
    return middle + (new - mean) @ slopes


def _with_ones(states, targets, new, penalty):
    """The same with a column of ones, and its weight penalised too."""
    x = np.column_stack([states, np.ones(len(states))])
    squares = x.T @ x + penalty * np.eye(x.shape[1])
    slopes = np.linalg.solve(squares, x.T @ targets)
    return np.column_stack([new, np.ones(len(new))]) @ slopes
