"""Wall clock: how long writers take for a text, side by side.

Seconds depend on the machine and on what else it does. So writers take turns
in one process, and what is compared is their ratio.
"""

import statistics
import time

from . import checks, evaluation

__all__ = ["BATCH_SIZES", "TURNS", "rates", "seconds_a_text"]

BATCH_SIZES = (1, 32)
TURNS = 3


def seconds_a_text(writers, batch_size, turns=TURNS):
    """Time writers in turns; the median of each.

    Parameters
    ----------
    writers : dict
        Name -> callable ``(count, seed)`` that writes ``count`` texts side
        by side.
    batch_size : int
        Texts side by side.
    turns : int
        Of each writer, behind one that only warms up.

    Returns
    -------
    dict
        Name -> seconds a text.

    Raises
    ------
    ValueError
        If there is nothing to time.
    """
    for name, value in (("batch_size", batch_size), ("turns", turns)):
        if not checks.is_whole(value):
            raise ValueError(
                f"{name} must be a whole number of at least 1; got {value!r}"
            )
    seconds = {name: [] for name in writers}
    for turn in range(turns + 1):
        for name, write in writers.items():
            start = time.perf_counter()
            write(batch_size, turn)
            seconds[name].append(time.perf_counter() - start)
    return {
        name: statistics.median(found[1:]) / batch_size
        for name, found in seconds.items()
    }


def rates(
    model,
    twin,
    tokenizer,
    steps=evaluation.STEPS,
    batch_sizes=BATCH_SIZES,
    turns=TURNS,
):
    """Milliseconds a text of a model and of an autoregressive twin.

    The twin writes token by token and keeps the keys and values of what it
    has read (a KV cache).

    Parameters
    ----------
    model : DBLM or transformers.GPT2LMHeadModel
    twin : transformers.GPT2LMHeadModel
    tokenizer : transformers.PreTrainedTokenizerFast
    steps : sequence of int
        Of a denoiser.
    batch_sizes : sequence of int
    turns : int

    Returns
    -------
    list of dict
        ``batch_size``, ``way`` (``"64 steps"`` and so on, or ``"left to
        right"``), ``milliseconds`` a text, ``twin``, the twin's, and
        ``times_twin``, their ratio: below 1 the model is faster.
    """

    def writer(who, num_steps):
        def write(count, seed):
            return evaluation.write(
                who, tokenizer, count, num_steps, seed, batch_size=count
            )

        return write

    ways = {f"{n} steps": writer(model, n) for n in steps}
    if not evaluation.diffuses(model):
        ways = {"left to right": writer(model, 0)}
    rows = []
    for size in batch_sizes:
        writers = {"twin": writer(twin, 0)} | ways
        found = seconds_a_text(writers, size, turns)
        beside = found.pop("twin")
        rows += [
            {
                "batch_size": size,
                "way": way,
                "milliseconds": round(1000 * seconds, 2),
                "twin": round(1000 * beside, 2),
                "times_twin": round(seconds / beside, 3),
            }
            for way, seconds in found.items()
        ]
    return rows
