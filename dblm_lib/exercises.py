"""Checkers for the book's exercises: they teach rather than grade.

    from dblm_lib.exercises import check
    check("1.2", q_sample)

`check` prints ``Right: ...`` or ``Not yet: ...`` with something to look
at. It never raises for an answer: a function that stops with an error gets
the error's message, and dots that were never replaced get a reminder.

A checker is a function of the answer, registered under the exercise's
number. It returns what to say about a right answer, and raises `Hint`
with what to say about a wrong one. Most wrong answers are old friends, so
a checker compares the answer with what each well-known mistake would give
and names the mistake.
"""

import difflib
import math
from dataclasses import dataclass

import numpy as np

REGISTRY = {}
BLANK = "replace the dots by your answer."


class Hint(Exception):
    """What to look at in an answer that is not right yet."""


@dataclass(frozen=True)
class Verdict:
    """What a checker says.

    Attributes
    ----------
    ok : bool
    message : str
        Why it is right, or what to look at.
    """

    ok: bool
    message: str

    def __bool__(self):
        return self.ok

    def __str__(self):
        return f"{'Right' if self.ok else 'Not yet'}: {self.message}"


def exercise(number):
    """Register a checker under an exercise's number, such as ``"1.2"``."""

    def register(checker):
        REGISTRY[number] = checker
        return checker

    return register


def check(number, answer=...):
    """Print what is right about an answer, or what to look at.

    Parameters
    ----------
    number : str
        The exercise, such as ``"1.2"``.
    answer : object
        What the exercise asks for: often a function that you wrote.
    """
    print(verdict(number, answer))


def verdict(number, answer=...):
    """Judge an answer and return the `Verdict` instead of printing it."""
    number = str(number)
    if number not in REGISTRY:
        near = difflib.get_close_matches(number, REGISTRY, n=1, cutoff=0.0)
        return Verdict(
            False, f"there is no exercise {number}; did you mean {near[0]}?"
        )
    if is_blank(answer):
        return Verdict(False, BLANK)
    try:
        return Verdict(True, REGISTRY[number](answer))
    except Hint as hint:
        return Verdict(False, str(hint))
    except Exception as error:  # noqa: BLE001  (a reader sees no traceback)
        return Verdict(False, f"this answer cannot be read ({error}).")


def is_blank(answer):
    """Tell whether an answer is still the dots of the exercise."""
    return answer is None or answer is Ellipsis


# --- What the checkers share ---------------------------------------------


def ask(function, *arguments):
    """Call the reader's function; turn its failure into a hint."""
    if not callable(function):
        raise Hint(
            f"hand over your function itself, without brackets after its "
            f"name; I was given {_kind(function)}."
        )
    try:
        with np.errstate(all="ignore"):
            answer = function(*arguments)
    except (Exception, SystemExit) as error:  # noqa: BLE001  (any of theirs)
        text = str(error).strip().split("\n")[0][:200] or "no message"
        raise Hint(
            f"your function stopped with {type(error).__name__}: {text}"
        ) from None
    if is_blank(answer):
        raise Hint(
            BLANK[:-1] + "; your function gives back nothing so far "
            "(is there a `return`?)."
        )
    return answer


def numbers(answer, shape=None, what="your answer"):
    """Read an answer as float64; refuse wrong kinds, shapes and NaN."""
    if hasattr(answer, "detach"):
        answer = answer.detach().cpu().numpy()
    try:
        array = np.asarray(answer, dtype=float)
    except (TypeError, ValueError):
        raise Hint(
            f"{what} should be numbers, but it is {_kind(answer)}."
        ) from None
    if shape is not None and array.shape != tuple(shape):
        raise Hint(
            f"{what} has shape {array.shape}; {tuple(shape)} was expected."
        )
    if np.isnan(array).any():
        raise Hint(f"{what} holds NaN: is there a 0/0 or a negative root?")
    return array


def compare(got, right, mistakes, otherwise, tolerance=1e-3):
    """Accept the right numbers; name the mistake that gives these.

    Parameters
    ----------
    got, right : array
    mistakes : dict of str to array
        Hint, and what this mistake would give.
    otherwise : str
        Hint for any other answer.
    """
    if _close(got, right, tolerance):
        return
    for hint, wrong in mistakes.items():
        if _close(got, wrong, tolerance):
            raise Hint(hint)
    raise Hint(otherwise)


def _close(a, b, tolerance):
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    return a.shape == b.shape and np.allclose(a, b, tolerance, tolerance)


def _kind(thing):
    return f"{type(thing).__name__} ({str(thing)[:40]})"


def _tensors(*arrays):
    """Hand the reader's function tensors, as the chapters do."""
    import torch

    return [
        torch.as_tensor(
            a, dtype=torch.float32 if np.asarray(a).dtype == float else None
        )
        for a in arrays
    ]


def _noise(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


# --- Chapter 1: Gaussian schedules ---------------------------------------


@exercise("1.1")
def _snr(answer):
    """``snr(alpha_bar)``, or its value at ``alpha_bar = 0.9``."""
    bars = [0.9, 0.5, 0.2] if callable(answer) else [0.9]
    got = [
        numbers(ask(answer, b) if callable(answer) else answer, ())
        for b in bars
    ]
    a = np.array(bars)
    mistakes = {
        "that is the ratio of amplitudes, alpha / sigma. The signal-to-noise "
        "ratio compares variances: leave the square root out.": np.sqrt(
            a / (1 - a)
        ),
        "upside down: the signal's share belongs on top.": (1 - a) / a,
        "that is the signal's share alone; divide it by the noise's share.": a,
        "that is the noise's share alone.": 1 - a,
        "that is the logarithm of the ratio; the ratio itself was asked "
        "for.": np.log(a / (1 - a)),
        "alpha_bar is alpha squared already: do not square it again.": a**2
        / (1 - a**2),
    }
    compare(
        got,
        a / (1 - a),
        mistakes,
        "the variance of the signal is alpha_bar, the variance of the noise "
        "is what is left of 1. Divide the first by the second.",
    )
    return (
        "snr = alpha_bar / (1 - alpha_bar): at 0.9 there is nine times as "
        "much signal as noise, at 0.5 as much of each."
    )


@exercise("1.2")
def _q_sample(answer):
    """``q_sample(x0, eps, alpha_bar)``, the closed form."""
    x0, eps, bar = _noise(1, 4, 3), _noise(2, 4, 3), 0.3
    got = ask(answer, *_tensors(x0, eps, bar))
    got = numbers(got, x0.shape, "the noised batch")
    a, s = math.sqrt(bar), math.sqrt(1 - bar)
    mistakes = {
        "is your square root on alpha_bar? Amplitudes are the roots of the "
        "shares: both factors need one.": bar * x0 + (1 - bar) * eps,
        "the signal's factor is right; the noise's share is 1 - alpha_bar, "
        "and its factor the square root of that.": a * x0 + (1 - bar) * eps,
        "the noise's factor is right; is your square root on alpha_bar?": bar
        * x0
        + s * eps,
        "the noise's factor is sqrt(1 - alpha_bar), not 1 - sqrt(alpha_bar): "
        "the squares of the two factors add up to 1, not the factors.": a * x0
        + (1 - a) * eps,
        "signal and noise have changed places: alpha_bar is the signal's "
        "share.": s * x0 + a * eps,
        "scale the noise too: its factor is sqrt(1 - alpha_bar).": a * x0
        + eps,
        "scale the signal too: its factor is sqrt(alpha_bar).": x0 + s * eps,
        "a difference flips the noise's sign; the closed form adds it.": a * x0
        - s * eps,
    }
    compare(
        got,
        a * x0 + s * eps,
        mistakes,
        "the closed form is sqrt(alpha_bar) * x0 + sqrt(1 - alpha_bar) * eps, "
        "with the eps that was given: draw no noise of your own.",
    )
    return (
        "one line replaces all the small steps: signal times sqrt(alpha_bar) "
        "plus noise times sqrt(1 - alpha_bar)."
    )


class _Power:
    """A schedule with a known answer: alpha_bar = 1 - t^k."""

    def __init__(self, power):
        self.power = power

    def alpha_bar(self, t):
        return 1 - t**self.power

    def alpha(self, t):
        return self.alpha_bar(t) ** 0.5

    def sigma(self, t):
        return (t**self.power) ** 0.5

    def snr(self, t):
        signal, noise = self.alpha_bar(t), t**self.power
        clean = isinstance(t, (int, float)) and noise == 0
        return math.inf if clean else signal / noise

    def noise_level(self, t):
        return self.sigma(t) / self.alpha(t)


@exercise("1.3")
def _even_odds(answer):
    """``t`` where ``snr(t) == 1``: a function of the schedule, or cosine's."""
    if not callable(answer):
        t = float(numbers(answer, (), "t"))
        _time(t)
        compare(t, 0.5, {}, _cosine_hint(t), tolerance=0.008)
        return (
            "signal and noise are equal in the middle of the cosine "
            "schedule, where cos and sin are equal."
        )
    for power in (1, 2, 6):
        t = float(numbers(ask(answer, _Power(power)), (), "t"))
        _time(t)
        right = 0.5 ** (1 / power)
        mistakes = {
            "your t is the middle of time whatever the schedule: look where "
            "this schedule's snr crosses 1.": 0.5,
            "that is where alpha is one half, not alpha_bar = alpha "
            "squared.": 0.75 ** (1 / power),
        }
        ratio = _Power(power).snr(min(max(t, 1e-6), 1 - 1e-6))
        side = "too early" if ratio > 1 else "too late"
        compare(
            t,
            right,
            mistakes,
            f"on a schedule with alpha_bar = 1 - t^{power}, snr at your t = "
            f"{t:.3f} is {ratio:.2f}: {side}.",
            tolerance=0.008,
        )
    return "snr falls from one end to the other, so there is one crossing."


def _time(t):
    if not 0 <= t <= 1:
        raise Hint(
            f"time runs from 0 (clean) to 1 (noise); {t:g} lies outside. "
            "If it is a step number, divide it by the number of steps."
        )


def _cosine_hint(t):
    share = math.cos(math.pi * t / 2) ** 2
    return (
        f"at t = {t:g} the cosine schedule keeps alpha_bar = {share:.2f}; "
        "snr is 1 where alpha_bar is one half."
    )


# --- Chapter 2: embedding noising ----------------------------------------


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
    got = ask(answer, *_tensors(vectors, table))
    array = numbers(got, None, "the answer")
    if array.shape == cosine.shape:
        raise Hint(
            "these are similarities to every row; ask for the number of the "
            "best row: argmax over the last axis."
        )
    if _close(array, cosine.max(1), 1e-3):
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
    x0, eps, a, s = _noise(3, 2, 4, 3), _noise(4, 2, 4, 3), 0.8, 0.6
    keep = np.array([[1, 1, 0, 0], [1, 0, 0, 1]], dtype=bool)
    got = ask(answer, *_tensors(x0, eps, a, s, keep))
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


# --- Chapter 3: GPT-2 denoising ------------------------------------------


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
        got = ask(answer, *_tensors(t), dim)
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
                f"a set of positions was expected, got {_kind(got)}."
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


# --- Chapter 4: training with MSE ----------------------------------------


@exercise("4.1")
def _masked_mse(answer):
    """``masked_mse(prediction, target, mask)``, mask 1 = a real token."""
    guess, x0 = _noise(5, 2, 4, 3), _noise(6, 2, 4, 3)
    mask = np.array([[1.0, 1, 1, 1], [1, 0, 0, 0]])
    got = numbers(ask(answer, *_tensors(guess, x0, mask)), None, "the loss")
    if got.shape != ():
        raise Hint(
            f"the loss is one number, yours has shape {got.shape}: take the "
            "mean over the real positions."
        )
    square = (guess - x0) ** 2
    kept = (square * mask[..., None]).sum()
    rows = (square.mean(-1) * mask).sum(1) / mask.sum(1)
    other = 1 - mask
    mistakes = {
        "that is the mean over everything: padding counts. Multiply by the "
        "mask.": square.mean(),
        "the padding adds nothing any more, but it is still counted: divide "
        "by the number of real positions, not of all.": kept / square.size,
        "you divided by the positions, and there are 3 numbers in each: "
        "divide by mask.sum() * dim.": kept / mask.sum(),
        "that is the sum; divide it by how many numbers are in it.": kept,
        "a mean of the sentences' means gives short sentences more weight "
        "per token: add up everything, then divide once.": rows.mean(),
        "the mask is upside down: 1 marks a real token.": (
            square * other[..., None]
        ).sum()
        / (3 * other.sum()),
        "that is the root of it: MSE keeps the square.": np.sqrt(
            kept / (3 * mask.sum())
        ),
        "that is the absolute difference; square it.": (
            np.abs(guess - x0) * mask[..., None]
        ).sum()
        / (3 * mask.sum()),
    }
    compare(
        got,
        kept / (3 * mask.sum()),
        mistakes,
        "square the difference, multiply by mask[..., None], add up, and "
        "divide by the number of real positions times dim.",
    )
    return "padding neither adds to the loss nor dilutes it."


@exercise("4.2")
def _normalised(answer):
    """``normalised_mse(prediction, target)``: MSE / Var(target)."""
    x0 = 0.4 + 0.5 * _noise(7, 20, 25, 4)
    guess = x0 + 0.2 * _noise(8, 20, 25, 4)
    got = numbers(ask(answer, *_tensors(guess, x0)), (), "the loss")
    mse, var = ((guess - x0) ** 2).mean(), x0.var()
    # One mean for the table or one for each dimension: both are in use.
    each = x0.reshape(-1, 4).var(0).mean()
    for right in (mse / var, mse / each):
        if math.isclose(float(got), right, rel_tol=0.015):
            return (
                "1 is what the mean of the data would score, whatever the "
                "scale of the embeddings."
            )
    mistakes = {
        "that is the plain MSE: divide by the variance of the target.": mse,
        "that is divided by the standard deviation; the units cancel only "
        "with the variance.": mse / math.sqrt(var),
        "upside down: the error belongs on top.": var / mse,
        "that is the variance of the prediction; a prediction that varies "
        "more would look better. Take the target's.": mse / guess.var(),
        "the mean of target² is no variance: take the target's mean off "
        "first.": mse / (x0**2).mean(),
        "that is the share explained; the share left was asked for.": 1
        - mse / var,
        "that is its root.": math.sqrt(mse / var),
    }
    compare(
        got,
        mse / var,
        mistakes,
        "divide the mean squared error by the variance of the target: "
        "mean((target - mean(target))²).",
        tolerance=5e-3,
    )


@exercise("4.3")
def _learning_rate(answer):
    """``learning_rate(step, peak, warmup, total)``."""
    peak, warm, total = 0.01, 100, 1100
    steps = (0, 50, 100, 350, 600, 850, 1100)
    got = [numbers(ask(answer, s, peak, warm, total), ()) for s in steps]
    got = np.array(got) / peak
    s = np.array(steps, dtype=float)
    rise, share = s / warm, (s - warm) / (total - warm)
    fall = (1 + np.cos(np.pi * share)) / 2

    def plan(decay):
        return np.where(s < warm, rise, decay)

    right = plan(fall)
    mistakes = {
        "the warm-up is missing: below `warmup` the rate rises from 0 to "
        "the peak in a straight line.": np.where(s < warm, 1, fall),
        "with no warm-up the cosine starts at the peak at step 0: rise "
        "first.": (1 + np.cos(np.pi * s / total)) / 2,
        "after the warm-up it should fall as half a cosine; yours is a "
        "straight line.": plan(1 - share),
        "the cosine should begin where the warm-up ends: measure progress "
        "as (step - warmup) / (total - warmup).": plan(
            (1 + np.cos(np.pi * s / total)) / 2
        ),
        "cos runs from 1 to -1, so your rate turns negative: use "
        "(1 + cos) / 2.": plan(np.cos(np.pi * share)),
        "after the warm-up the rate should fall, and yours stays at the "
        "peak.": plan(1 + 0 * s),
        "that is a quarter of a cosine wave, cos(pi/2 * progress); half a "
        "wave, (1 + cos(pi * progress)) / 2, is flat at both ends.": plan(
            np.cos(np.pi * share / 2)
        ),
        "progress runs the wrong way: the rate rises after the warm-up.": plan(
            1 - fall
        ),
    }
    if np.allclose(got * peak, right, atol=1e-3):
        raise Hint("that is the share of the peak: multiply by `peak`.")
    # A warm-up that counts from 1 is one step of 100 ahead.
    compare(
        got,
        right,
        mistakes,
        "rise from 0 to the peak in `warmup` steps, then fall as peak * "
        "(1 + cos(pi * progress)) / 2, progress from 0 to 1. Yours is "
        f"{got[2]:.2f} of the peak after the warm-up and {got[4]:.2f} half "
        "way down; 1.00 and 0.50 were expected.",
        tolerance=0.0101,
    )
    return "slow while Adam's averages fill, slow again to settle."


# --- Chapter 5: decoding -------------------------------------------------


@exercise("5.1")
def _ddim(answer):
    """``step(zt, x0_hat, alpha_t, sigma_t, alpha_s, sigma_s)``."""
    x0, noise = _noise(9, 3, 2), _noise(10, 3, 2)
    at, st, a, s = 0.6, 0.8, 0.96, 0.28
    zt = at * x0 + st * noise
    given = (*_tensors(zt, x0), at, st, a, s)
    got = numbers(ask(answer, *given), zt.shape, "the next z")
    again = numbers(ask(answer, *given), zt.shape, "the next z")
    if not _close(got, again, 1e-6):
        raise Hint(
            "two calls give two results: a deterministic step draws no new "
            "noise. Take the noise that is in zt."
        )
    mistakes = {
        "that is the old level: the result belongs at level s, with alpha_s "
        "and sigma_s.": zt,
        "that is the clean guess itself; only the last step may go all the "
        "way.": x0,
        "the guess is scaled to level s, but the noise is missing: add "
        "sigma_s times the noise that is in zt.": a * x0,
        "the noise in zt is (zt - alpha_t * x0_hat) / sigma_t: the division "
        "is missing.": a * x0 + s * (zt - at * x0),
        "take alpha_t * x0_hat off, not x0_hat: the signal in zt is scaled "
        "down.": a * x0 + s * (zt - x0) / st,
        "zt as a whole is not the noise: take its signal off and divide by "
        "sigma_t.": a * x0 + s * zt,
        "the noise is right; scale the guess by alpha_s.": x0 + s * noise,
        "the guess is scaled by alpha_t; at level s it is alpha_s.": at * x0
        + s * noise,
        "the noise is scaled by sigma_t; at level s it is sigma_s.": a * x0
        + st * noise,
    }
    compare(
        got,
        a * x0 + s * noise,
        mistakes,
        "work out the noise in zt, eps = (zt - alpha_t * x0_hat) / sigma_t, "
        "and mix anew: alpha_s * x0_hat + sigma_s * eps.",
    )
    return "the same guess, the same noise, in the proportions of level s."


@exercise("5.2")
def _distinct(answer):
    """``distinct_n(tokens, n)`` of one sequence."""
    cases = [
        (["the", "the", "the", "dog", "the", "the"], 2),
        ([5, 1, 5, 1, 5], 1),
        ([1, 2, 3, 1, 2, 3, 4, 1, 2], 3),
    ]
    for tokens, n in cases:
        got = float(numbers(ask(answer, list(tokens), n), (), "the share"))
        grams = [tuple(tokens[i:][:n]) for i in range(len(tokens) - n + 1)]
        kinds = len(set(grams))
        right = kinds / len(grams)
        blocks = [tuple(tokens[i:][:n]) for i in range(0, len(tokens), n)]
        mistakes = {
            "that is how many kinds there are; divide by how many runs there "
            "are in all.": kinds,
            "upside down: kinds on top.": len(grams) / kinds,
            "that is the share of repeats; the share of distinct runs was "
            "asked for.": 1 - right,
            f"divide by the number of runs, len(tokens) - n + 1 = "
            f"{len(grams)}, not by the number of tokens.": kinds / len(tokens),
            "you count single tokens whatever n is.": len(set(tokens))
            / len(tokens),
            "your runs do not overlap: start one at every token.": len(
                set(blocks)
            )
            / len(blocks),
        }
        compare(
            got,
            right,
            mistakes,
            f"in {' '.join(map(str, tokens))!r} there are {len(grams)} runs "
            f"of {n}, {kinds} of them different; your share is {got:.3f}.",
        )
    return "1 means that no run comes twice, near 0 means a stuck record."


@exercise("5.3")
def _top_share(answer):
    """``top_token_share(tokens)`` of one sequence."""
    for tokens in (
        [3, 7, 7, 2, 7, 9, 3, 7, 3, 7, 6, 4, 4],
        [1, 1, 1, 1, 4],
        [2, 5, 5, 8, 8, 8],
    ):
        got = ask(answer, list(tokens))
        if isinstance(got, tuple) and len(got) == 2:
            got = got[1]  # the library names the token too
        got = float(numbers(got, (), "the share"))
        counts = {t: tokens.count(t) for t in tokens}
        best, n = max(counts.values()), len(tokens)
        mistakes = {
            "that is how often the commonest token comes; divide by the "
            "number of tokens.": best,
            "that is the commonest token itself; its share was asked "
            "for.": max(counts, key=counts.get),
            "that is how many different tokens there are, as a share: "
            "distinct-1.": len(counts) / n,
            "you divided by the number of different tokens; divide by all of "
            "them.": best / len(counts),
            "that is the rarest token's share.": min(counts.values()) / n,
            "that is the share of all other tokens.": 1 - best / n,
            "that is the share of the first token.": counts[tokens[0]] / n,
            "that is the share of the last token.": counts[tokens[-1]] / n,
        }
        compare(
            got,
            best / n,
            mistakes,
            f"in {tokens} the commonest token comes {best} times out of {n}; "
            f"your share is {got:.3f}.",
        )
    return "the higher it is, the more the text is one word over and over."


# --- Chapter 6: Autopsy ----------------------------------------------------


@exercise("6.1")
def _gain(answer):
    """``gain(clean, noised, denoised)``: tokens won over no network."""
    clean = [3, 1, 4, 1, 5, 9, 2, 6]
    noised = [3, 1, 0, 1, 0, 9, 0, 0]
    denoised = [3, 1, 4, 0, 5, 9, 2, 0]
    got = float(numbers(ask(answer, clean, noised, denoised), (), "the gain"))
    mistakes = {
        "that is the accuracy of the denoised text: how much of it was there "
        "before?": 6 / 8,
        "that is what rounding finds without a network.": 4 / 8,
        "the other way round: what the network has, minus what was there.": (
            -2 / 8
        ),
        "that is a count: divide by the number of tokens.": 2,
        "a token that was right and is wrong now counts against the network.": (
            3 / 8
        ),
    }
    compare(
        got,
        2 / 8,
        mistakes,
        "count the right tokens of the denoised text and of the noised one, "
        "each beside the clean text, and divide the difference by 8.",
    )
    return "above zero, the network earns its keep."


@exercise("6.2")
def _mean_distance(answer):
    """``mean_distance(table)``: between two different rows."""
    table = _noise(17, 5, 3)
    got = float(numbers(ask(answer, *_tensors(table)), (), "the distance"))
    gaps = table[:, None] - table[None]
    lengths = np.sqrt((gaps**2).sum(axis=-1))
    centre = table - table.mean(axis=0)
    mistakes = {
        "a row has no distance to itself: leave the pairs of one row out of "
        "the mean.": lengths.mean(),
        "that is the sum: divide by the number of pairs.": lengths.sum() / 2,
        "that is the mean of the squared distances: take the root of each "
        "first.": (lengths**2).sum() / 20,
        "that is the root of a mean: take the root of each distance, then "
        "the mean.": np.sqrt((lengths**2).sum() / 20),
        "that is the distance to the mean row.": np.sqrt(
            (centre**2).sum(axis=1)
        ).mean(),
        "each pair counts once, above and below: you have divided twice.": (
            lengths.sum() / 40
        ),
    }
    compare(
        got,
        lengths.sum() / 20,
        mistakes,
        "take the length of the difference of each pair of different rows, "
        "and then the mean over pairs.",
    )
    return "watch it while embeddings learn: at zero all words are one."


@exercise("6.3")
def _blame(answer):
    """``blame(broken, fixed_one, repaired_but_one, repaired)``."""
    scores = (-0.4, -0.3, 0.02, 0.1)
    given = ask(answer, *scores)
    got = numbers(given, (2,), "the pair of shares")
    alone, rest = 0.1 / 0.5, 0.08 / 0.5
    mistakes = {
        "first alone, then given the others fixed.": [rest, alone],
        "these are differences of scores: divide by the damage.": [0.1, 0.08],
        "the signs: better minus worse, both times.": [-alone, -rest],
        "the damage is what the broken model lacks to the repaired one, and "
        "not the repaired model's score.": [0.1 / 0.1, 0.08 / 0.1],
        "the first sign is right; in the second, too, take better minus "
        "worse.": [alone, -rest],
        "what one cause does alone is not what the rest leaves over.": [
            alone,
            1 - alone,
        ],
    }
    compare(
        got,
        np.array([alone, rest]),
        mistakes,
        "the damage is repaired minus broken. What putting one right wins, "
        "and what putting it back loses, are each a share of it.",
    )
    return "if the two differ, causes hide behind one another."


# --- Chapter 7: the ladder -----------------------------------------------


@exercise("7.1")
def _mixture_guess(answer):
    """``mix(logits, table)``: the mean embedding under the logits."""
    logits, table = 2 * _noise(11, 4, 6), _noise(12, 6, 3)
    given = _tensors(logits, table)
    got = numbers(ask(answer, *given), (4, 3), "the guess")
    odds = np.exp(logits)
    right = odds / odds.sum(axis=1, keepdims=True) @ table
    mistakes = {
        "logits are no probabilities yet: a softmax is missing.": logits
        @ table,
        "the weights must add up to 1: divide by the sum of the "
        "exponentials.": odds @ table,
        "the softmax runs over tokens, the last dimension: yours runs over "
        "positions.": odds / odds.sum(axis=0) @ table,
        "that is the embedding of the likeliest token: take the mean of all, "
        "weighted by their probabilities.": table[logits.argmax(axis=1)],
        "that is the plain mean of the table, whatever the logits say.": 0
        * right
        + table.mean(axis=0),
    }
    compare(
        got,
        right,
        mistakes,
        "turn the logits into probabilities over tokens, then take the mean "
        "of the table's rows under them.",
    )
    return "a mean of embeddings, which is what a denoiser should answer."


@exercise("7.2")
def _likelihood(answer):
    """``likelihood(zt, table, alpha, sigma)``, up to a constant."""
    table, alpha, sigma = _noise(13, 5, 3), 0.6, 0.8
    table *= np.array([[0.5], [1], [1.5], [2], [1]])  # lengths matter
    zt = alpha * table[2] + sigma * _noise(14, 3)
    got = numbers(
        ask(answer, *_tensors(zt, table), alpha, sigma), (5,), "the answer"
    )

    def square(gap):
        return (gap**2).sum(axis=1)

    gap = zt - alpha * table
    right = -square(gap) / (2 * sigma**2)
    snr = (alpha / sigma) ** 2
    mistakes = {
        "that is the density itself: logits want its logarithm.": np.exp(
            right
        ),
        "the sign is the wrong way round: a near token is a likely one.": (
            -right
        ),
        "divide by two: the exponent of a Gaussian is the squared distance "
        "over 2 sigma².": 2 * right,
        "divide by 2 sigma²: how far is far depends on the noise.": -square(
            gap
        ),
        "halving is right; divide by sigma², too.": -square(gap) / 2,
        "divide by sigma² and not by sigma.": -square(gap) / (2 * sigma),
        "that is the distance: a Gaussian has its square.": -np.sqrt(
            square(gap)
        )
        / (2 * sigma**2),
        "at time t a token's point is alpha times its embedding: alpha is "
        "missing.": -square(zt - table) / (2 * sigma**2),
        "the half square of each embedding's length is missing: long "
        "embeddings win by it.": snr * table @ (zt / alpha),
    }
    shifted = {hint: v - v.mean() for hint, v in mistakes.items()}
    compare(
        got - got.mean(),
        right - right.mean(),
        shifted,
        "square the distances of zt from alpha times each embedding, and "
        "divide them by minus 2 sigma².",
    )
    return "what the point says of each token; a softmax does the rest."


@exercise("7.3")
def _equal_rises(answer):
    """``fit(levels, losses, count)``: levels of equal rises of a loss."""
    levels = np.array([0.1, 0.3, 1.0, 2.0, 20.0])
    losses = np.array([0.5, 0.6, 2.0, 4.0, 4.5])
    count = 6
    given = (levels.tolist(), losses.tolist(), count)
    got = numbers(ask(answer, *given), (count,), "the row of levels")
    wanted = np.linspace(losses[0], losses[-1], count)
    logs = np.interp(wanted, losses, np.log(levels))
    mistakes = {
        "these are the logarithms of the levels: take the exponential.": logs,
        "these are the losses; the levels where they are reached were asked "
        "for.": wanted,
        "between two given levels let the logarithm of the level go in a "
        "straight line, not the level.": np.interp(wanted, losses, levels),
        "these levels stand in equal steps; equal steps of the loss were "
        "asked for.": np.linspace(levels[0], levels[-1], count),
        "these levels grow by equal factors; equal steps of the loss were "
        "asked for.": np.geomspace(levels[0], levels[-1], count),
        "from low to high, please.": np.exp(logs)[::-1],
    }
    compare(
        got,
        np.exp(logs),
        mistakes,
        "the first and the last level are those given. Cut the loss between "
        "them into equal steps, and ask np.interp at which logarithm of the "
        "level each is reached.",
    )
    return "many levels where the loss climbs, few where nothing happens."
