"""Checkers of chapter 3: GPT-2 denoising."""

import numpy as np

from .core import Hint, as_tensors, ask, compare, exercise, kind_of, numbers


@exercise("3.1")
def _causal(answer):
    """``causal_mask(n)``: True where row i may look at column j."""
    for n in (4, 1, 7):
        array = numbers(ask(answer, n), (n, n), "the mask")
        if np.isneginf(array).any() or (array < -1e3).any():
            raise Hint(
                "that mask is to be added to the scores (0 and -inf). Give "
                "True where looking is allowed and False elsewhere."
            )
        whole = np.ones((n, n))
        mistakes = {
            "here every position sees every other: that is no causal mask. "
            "Row i may look at columns 0 to i.": whole,
            "that mask looks into the future: rows look, columns are looked "
            "at (the lower triangle, not the upper).": np.triu(whole),
            "a position may look at itself: keep the diagonal.": np.tril(
                whole, -1
            ),
            "True marks what is hidden in your mask; it should mark what may "
            "be seen.": np.triu(whole, 1),
            "every position sees only itself.": np.eye(n),
        }
        compare(
            array,
            np.tril(whole),
            mistakes,
            "row i is True in columns 0 to i and False after that.",
        )
    return "each position sees itself and what came before."


@exercise("3.2")
def _sinusoid(answer):
    """``noise_embedding(t, dim)``: t of shape (n,), result (n, dim)."""
    t = np.array([0.0, 0.25, 0.5, 0.51, 1.0])
    for dim in (8, 32):
        got = ask(answer, *as_tensors(t), dim)
        rows = numbers(got, (len(t), dim), "the embedding, (times, dim),")
        if np.allclose(rows, rows[:1], atol=1e-5):
            raise Hint("every t gives the same vector: does t enter it?")
        if np.abs(rows).max() > 1 + 1e-4:
            raise Hint(
                "a sine never exceeds 1: is there a number beside sin and "
                "cos in your vector?"
            )
        if np.linalg.matrix_rank(rows, tol=1e-3) <= 2:
            raise Hint(
                "all waves have one frequency, so one pair would do: give "
                "each pair its own, from fast to slow."
            )
        power = (rows**2).sum(1)
        if not np.allclose(power, dim / 2, atol=1e-2):
            raise Hint(
                "sin² + cos² is 1, so each of the dim / 2 pairs adds 1 to "
                f"the squared length: {dim / 2:g} here, for every t. Yours "
                f"runs from {power.min():.2f} to {power.max():.2f}: half of "
                "the numbers are sines, half cosines of the same angles."
            )
        if np.abs(rows[2] - rows[3]).max() < 0.05:
            raise Hint(
                "t = 0.50 and t = 0.51 look almost the same: no wave is fast "
                "enough for a t in [0, 1]. Multiply t by 1000 first."
            )
    return "slow waves tell early from late, fast ones tell neighbours apart."


@exercise("3.3")
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
