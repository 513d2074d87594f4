"""Checkers of chapter 2: embedding noising."""

import numpy as np

from .core import (
    Hint,
    as_tensors,
    ask,
    compare,
    draw_noise,
    exercise,
    is_close,
    numbers,
)


@exercise("2.1")
def _nearest(answer):
    """``nearest(vectors, table)``: ids by cosine."""
    # The third row is long, the fourth short: dot product and distance
    # each prefer another row than the angle does.
    table = np.array([[1.0, 0.0], [0.0, 1.0], [4.0, 3.0], [0.2, 0.24]])
    vectors = np.array([[2.0, 0.2], [0.3, 3.0], [0.5, 0.375], [4.0, 4.6]])
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = vectors / length @ unit.T
    got = ask(answer, *as_tensors(vectors, table))
    array = numbers(got, None, "the answer")
    if array.shape == cosine.shape:
        raise Hint(
            "these are similarities to every row; ask for the number of the "
            "best row: argmax over the last axis."
        )
    if is_close(array, cosine.max(1), 1e-3):
        raise Hint("these are the best similarities; their row was asked for.")
    array = numbers(got, (4,), "the answer, one id a vector,")
    gaps = ((vectors[:, None] - table) ** 2).sum(-1)
    mistakes = {
        "that is the row with the smallest cosine: the larger, the nearer "
        "(argmax).": cosine.argmin(1),
        "that is the dot product: long rows win. Divide every row of the "
        "table by its length.": (vectors @ table.T).argmax(1),
        "that is the nearest by distance; the cosine ignores length. Divide "
        "rows and vectors by their lengths.": gaps.argmin(1),
        "argmax ran over the wrong axis: one id for each vector, not for "
        "each row of the table.": cosine.argmax(0),
    }
    compare(
        array,
        cosine.argmax(1),
        mistakes,
        "divide vectors and rows by their lengths (the norm over the last "
        "axis), multiply, and take the argmax over the rows.",
    )
    return "the angle decides, and a row's length does not."


@exercise("2.2")
def _band(answer):
    """``band(dim, vocab_size)``, or its value for GPT-2's 768 and 50257."""
    sizes = [(768, 50257)]
    if callable(answer):
        sizes += [(64, 1024), (16, 1024)]
    got = [
        numbers(ask(answer, *s) if callable(answer) else answer, ())
        for s in sizes
    ]
    d, v = np.array(sizes, dtype=float).T
    mistakes = {
        "that is the square: take the root.": d / (2 * np.log(v)),
        "the 2 is missing: divide by 2 ln V.": np.sqrt(d / np.log(v)),
        "upside down: more dimensions bear more noise, so d is on "
        "top.": np.sqrt(2 * np.log(v) / d),
        "that is log2; the formula has the natural logarithm.": np.sqrt(
            d / (2 * np.log2(v))
        ),
        "that is log10; the formula has the natural logarithm.": np.sqrt(
            d / (2 * np.log10(v))
        ),
        "take the logarithm of V: what counts is how many bits a choice "
        "among V tokens needs, not V.": np.sqrt(d / (2 * v)),
        "d and V have changed places.": np.sqrt(v / (2 * np.log(d))),
    }
    compare(
        got,
        np.sqrt(d / (2 * np.log(v))),
        mistakes,
        "the band ends near the noise level sqrt(d / (2 ln V)), d numbers a "
        "vector and V tokens.",
        tolerance=5e-3,
    )
    return (
        "GPT-2's table survives noise almost six times as large as its "
        "signal: below that, rounding alone finds the token."
    )


@exercise("2.3")
def _keep(answer):
    """``noise_rest(x0, eps, alpha, sigma, keep)``: a prompt stays clean."""
    x0, eps, a, s = draw_noise(3, 2, 4, 3), draw_noise(4, 2, 4, 3), 0.8, 0.6
    keep = np.array([[1, 1, 0, 0], [1, 0, 0, 1]], dtype=bool)
    got = ask(answer, *as_tensors(x0, eps, a, s, keep))
    got = numbers(got, x0.shape, "the noised batch")
    noised, mask = a * x0 + s * eps, keep[..., None]
    mistakes = {
        "every position was noised: where keep is True, put x0 back.": noised,
        "keep is upside down: True means that the position stays "
        "clean.": np.where(mask, noised, x0),
        "kept positions get no noise, but they were scaled by alpha too: "
        "untouched means equal to x0.": np.where(mask, a * x0, noised),
        "kept positions are zero now: put x0 there.": np.where(
            mask, 0, noised
        ),
        "nothing was noised: where keep is False, use alpha * x0 + sigma * "
        "eps.": x0,
    }
    compare(
        got,
        np.where(mask, x0, noised),
        mistakes,
        "where keep is True the result is x0, elsewhere alpha * x0 + sigma * "
        "eps. `torch.where` needs keep with one more axis: keep[..., None].",
    )
    return "the prompt stays exact, and only the rest has to be denoised."
