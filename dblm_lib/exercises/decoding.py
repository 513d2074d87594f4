"""Checkers of chapter 5: decoding."""

from .core import Hint, ask, compare, exercise, numbers


@exercise("5.1")
def _different(answer):
    """``different(name, num_steps)``: how many tales 300 texts contain.

    Even draws contain 190, with a standard deviation of 5. The chapter's
    experiment gives about 190 for log-uniform in two steps and for linear in
    eight, 120 for cosine in two and 175 for sqrt in eight; a reader may take
    either step and any seed.
    """
    asked = [("log-uniform", 2), ("cosine", 2), ("linear", 8), ("sqrt", 8)]
    got = [float(numbers(ask(answer, *one), (), "the count")) for one in asked]
    warped, leap, gentle, late = got
    if min(got) < 0 or max(got) > 300:
        raise Hint("of 300 texts, 0 to 300 can be different tales.")
    if 0 < max(got) <= 1:
        raise Hint(
            "that is a share; how many different tales there are was asked."
        )
    if min(got) > 260:
        raise Hint(
            "that is how many of the texts are tales. Count how many "
            "different ones: a set keeps each text once."
        )
    if max(got) < 100:
        raise Hint(
            f"at most {max(got):.0f} different tales: draw 300 texts with "
            "the denoiser of 300 tales, and decode each one as a whole."
        )
    if max(got) - min(got) < 1:
        raise Hint(
            "the same number for every schedule and any number of steps: do "
            "`name` and `num_steps` reach the sampler?"
        )
    if leap > 155:
        raise Hint(
            f"with cosine and two steps you find {leap:.0f}, far more than "
            "two steps give: does `num_steps` reach the sampler?"
        )
    if warped < 160:
        raise Hint(
            f"with log-uniform and two steps you find only {warped:.0f}: the "
            "denoiser must know the schedule too. Make it anew for each name, "
            "with the schedule of that name."
        )
    if not 172 <= gentle <= 215 or not 145 <= late <= 205:
        raise Hint(
            f"in eight steps you find {gentle:.0f} with linear and {late:.0f} "
            "with sqrt; about 190 and 175 were expected. Give the denoiser "
            "and the sampler the same schedule."
        )
    return (
        "linear and log-uniform come close to even draws in few steps. The "
        "first guess is nearly the average of all tales. Carried down at once "
        "to a low noise level, as cosine, sigmoid and sqrt do, it favours "
        "the tales that are near the average."
    )


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
    return (
        "1 means that no run comes twice, near 0 that the same run comes again "
        "and again."
    )


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
    return (
        "it notices a single word that comes too often, as in the first text. "
        "In the second no word does; there distinct-1 is low, because the "
        "same few words come again."
    )
