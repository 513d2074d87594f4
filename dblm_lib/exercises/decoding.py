"""Checkers of chapter 5: decoding."""

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


@exercise("5.1")
def _ddim(answer):
    """``step(zt, x0_hat, alpha_t, sigma_t, alpha_s, sigma_s)``."""
    x0, noise = draw_noise(9, 3, 2), draw_noise(10, 3, 2)
    at, st, a, s = 0.6, 0.8, 0.96, 0.28
    zt = at * x0 + st * noise
    given = (*as_tensors(zt, x0), at, st, a, s)
    got = numbers(ask(answer, *given), zt.shape, "the next z")
    again = numbers(ask(answer, *given), zt.shape, "the next z")
    if not is_close(got, again, 1e-6):
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
