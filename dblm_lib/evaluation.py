"""Evaluation: let a model write, and measure all that it wrote.

Chapters 7 and 9. The same piece of code fills `data/MANIFEST.json`, the table that
``dblm eval`` prints, and the figures of the chapter.
"""

import functools
import json
import math
import time
from itertools import compress

import torch

from . import (
    checks,
    decoding,
    denoiser,
    likelihood,
    metrics,
    resources,
    tales,
    text,
    training,
    writing,
)

__all__ = [
    "CONTINUED",
    "COUNTED",
    "JUDGE",
    "MASKED_STEPS",
    "NATS",
    "SAMPLES",
    "STEPS",
    "affordable",
    "beginnings",
    "differing",
    "diffuses",
    "evaluate",
    "has_nats",
    "measured",
    "nats",
    "orders",
    "point",
    "real_tales",
    "results",
    "steps_of",
    "training_tales",
    "write",
]

JUDGE = "tales-gpt2"
SAMPLES = 1_000
STEPS = (64, 16, 8)
# Of a model that fills masks: half of 64 reveals two tokens at a time.
MASKED_STEPS = (64, 32, 16, 8)
# The title of what a model's bound says of tales.
NATS = "nats a tale"
CONTINUED = 200
# Few texts have more different pairs, and seem to have less entropy and
# other choices, than many texts of the same kind.
COUNTED = ("distinct_2", "entropy", "slot_distance", "above_true")
# Tokens that a language model writes at most.
_LONGEST = 72
# How often the bound masks each tale, and tales whose tokens are asked one
# by one, from left to right.
_ROUNDS, _ORDERED = 16, 100
# How many words of a held-out tale are given, in turn.
_WORDS = (4, 8, 16, 24)


def beginnings(texts):
    """The first words of texts, to be continued: 4, 8, 16, 24, 4, ...

    Parameters
    ----------
    texts : list of str

    Returns
    -------
    list of str
        One for each text; of a short text at most all words but the last.
    """
    found = []
    for i, words in enumerate(texts):
        words = words.split(" ")
        found.append(" ".join(words[: min(_WORDS[i % 4], len(words) - 1)]))
    return found


@functools.cache
def training_tales(size=text.TRAIN_TALES):
    """The tales that the checkpoints were trained on, as a frozen set."""
    return frozenset(text.load("tales", size=size, valid_size=1).train)


def real_tales():
    """Held-out tales of the part that nothing was chosen by; list of str."""
    return text.load("tales", size=1, valid_size=1, test_size=1_000).test


def results():
    """The grid of samplers that the book brings along.

    It was made by ``python -m recipes samplers``.

    Returns
    -------
    list of dict
        One for each writer and sampler: ``writer``, ``way``, ``num_steps``
        (0 from left to right), the sampler's settings, and what `measured`
        said of 300 tales.
    """
    file = resources.verified("samplers") / "grid.json"
    return json.loads(file.read_text("utf-8"))


def orders():
    """What the book measured of the masked denoiser, order by order.

    It was made by ``python -m recipes orders``. Chapter 9.

    Returns
    -------
    rows : list of dict
        As in `results`, with ``temperature`` and ``nfe``, the evaluations of
        a text in the mean; the writer ``"oracle"`` is the exact denoiser.
    floor : list of dict
        ``writer``, ``num_steps`` (None for the bound in continuous time),
        and how far the bound of so many steps lies ``above`` the exact
        value, in nats a tale, with its standard ``error``.
    """
    folder = resources.verified("orders")
    rows, floor = (
        json.loads((folder / f"{name}.json").read_text("utf-8"))
        for name in ("orders", "floor")
    )
    return rows, floor


def point(grid, writer, way, num_steps=0):
    """One row of a grid of samplers.

    Parameters
    ----------
    grid : list of dict
        As `results` gives it.
    writer, way : str
    num_steps : int
        0 for a writer from left to right.

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        If the grid has no such row, or several.
    """
    keys = ("writer", "way", "num_steps")
    wanted = (writer, way, num_steps)
    found = [row for row in grid if tuple(row[k] for k in keys) == wanted]
    if len(found) != 1:
        known = sorted({row["way"] for row in grid if row["writer"] == writer})
        raise ValueError(
            f"{len(found)} rows for {writer!r}, {way!r} and {num_steps!r} "
            f"steps; ways of this writer: {', '.join(known) or 'none'}"
        )
    return found[0]


def write(
    model,
    tokenizer,
    count=1,
    num_steps=64,
    seed=0,
    prompts=None,
    batch_size=50,
    bar=None,
    nfe=None,
    **sampler,
):
    """Let a model write: a denoiser of either kind, or a language model.

    Parameters
    ----------
    model : DBLM, MaskedDenoiser or transformers.GPT2LMHeadModel
    tokenizer : transformers.PreTrainedTokenizerFast
    count : int
        Number of texts, without prompts.
    num_steps : int
        Reverse steps of a denoiser; evaluations at most of a masked one.
    seed : int
    prompts : list of str, optional
        One for each text.
    batch_size : int
        Texts that are denoised side by side; with other sizes the same seed
        gives other texts.
    bar : progress bar, optional
        Moved by one a text and step.
    nfe : list, optional
        Takes the number of evaluations of each text, of a model that fills
        masks.
    **sampler
        Other options of `decoding.generate_ids`, or of
        `writing.generate_ids` for a masked model; a language model knows
        ``temperature`` only, which is 1 if left out. The canvas is as long
        as in the model's training if left out.

    Returns
    -------
    list of str
    """
    bar = bar or resources.progress_bar(disable=True)
    if not diffuses(model):
        texts = metrics.sample_language_model(
            model,
            tokenizer,
            1 if prompts else count,
            seed,
            _canvas_of(model),
            prompts=prompts,
            **sampler,
        )
        bar.update(len(texts))
        return texts
    by = writing if writing.fills(model) else decoding
    generator = torch.Generator().manual_seed(seed)
    count = len(prompts) if prompts else count
    texts = []
    for i in range(0, count, batch_size):
        size = min(batch_size, count - i)
        which = {"num_return_sequences": size}
        if prompts:
            which = {"prompt": prompts[i : i + size]}
        made = by.generate(
            model,
            tokenizer,
            num_steps=num_steps,
            generator=generator,
            **which,
            **sampler,
        )
        texts += made.texts
        if nfe is not None and by is writing:
            nfe += made.course.nfe.tolist()
        bar.update(size * num_steps)
    return texts


def diffuses(model):
    """Whether a model is a denoiser; otherwise it is a language model."""
    return isinstance(model, denoiser.DenoiserBase) or writing.fills(model)


def steps_of(model):
    """The numbers of steps that a model is measured at; tuple of int."""
    return MASKED_STEPS if writing.fills(model) else STEPS


def nats(model, tokenizer, texts, rounds=_ROUNDS, ordered=_ORDERED):
    """What the bound and the chain rule of a model of tokens say of tales.

    Parameters
    ----------
    model : MaskedDenoiser
    tokenizer : transformers.PreTrainedTokenizerFast
    texts : list of str
        Tales of the grammar, which knows their exact probability. They are
        measured on canvases as long as in the model's training, with the
        end-of-text tokens behind them; those that do not fit are left out.
    rounds : int
        How often the bound masks each tale.
    ordered : int
        Tales at most whose tokens are asked one by one, at least 2.

    Returns
    -------
    dict
        ``texts``, how many; ``entropy_nats_per_tale`` of the grammar;
        ``exact_nats_of_these``; ``bound_nats_per_tale``;
        ``bound_above_exact``, from differences tale by tale, its standard
        error and its percentage; of a model trained with masks also
        ``left_to_right_above_exact``, by the chain rule, of the first
        ``left_to_right_texts``. Bounds and differences with their 95 %
        intervals.

    Raises
    ------
    TypeError
        If the model does not work on tokens: this bound is not its own.
    ValueError
        If fewer than two tales fit or are to be asked.
    """
    if not has_nats(model):
        raise TypeError(
            "the bound is that of models that work on tokens; got a "
            f"{type(model).__name__}"
        )
    fits = _fits(model, tokenizer, texts)
    texts = list(compress(texts, fits))
    if len(texts) < 2 or not checks.is_whole(ordered, 2):
        raise ValueError(
            f"{len(texts)} texts fit on {_canvas_of(model)} tokens with their "
            f"end, {ordered!r} are to be asked token by token: a standard "
            "error needs at least two"
        )
    mask_id = model.config.mask_id
    model.eval()
    ids, _ = text.encode_batch(texts, tokenizer, _canvas_of(model))
    ids = ids.to(model.device)
    exact = likelihood.exact(texts)
    if masks := writing.noise_of(model) == "mask":
        bound = likelihood.bound(
            model, ids, mask_id, draw="counts", rounds=rounds
        )
    else:
        bound = likelihood.noised_bound(
            lambda zt, t: model(zt, t=t), ids, model.process, rounds
        )
    above = bound.minus(exact)
    found = {
        "texts": len(texts),
        "entropy_nats_per_tale": tales.entropy(),
        "exact_nats_of_these": exact.mean,
        "bound_nats_per_tale": bound.mean,
        "bound_nats_per_tale_interval": _interval(bound),
        "bound_above_exact": above.mean,
        "bound_above_exact_interval": _interval(above),
        "bound_above_exact_error": above.error,
        "bound_above_exact_percent": 100 * above.mean / exact.mean,
    }
    if masks:
        few = likelihood.chain_rule(model, ids[:ordered], mask_id)
        left = few.minus(likelihood.exact(texts[:ordered]))
        found |= {
            "left_to_right_above_exact": left.mean,
            "left_to_right_above_exact_interval": _interval(left),
            "left_to_right_texts": len(ids[:ordered]),
        }
    return {name: _rounded(value) for name, value in found.items()}


def has_nats(model):
    """Whether `nats` can say something of a model."""
    return writing.fills(model)


def _interval(figure):
    return list(metrics.mean_interval(figure.mean, figure.error))


def _canvas_of(model):
    """The tokens that a model can write: a denoiser, or a language model."""
    if diffuses(model):
        return decoding.canvas_of(model)
    return min(_LONGEST, model.config.n_positions)


def _fits(model, tokenizer, prompts):
    """Whether each prompt leaves room on the canvas of a model."""
    if not (prompts and tokenizer):
        return [True] * len(prompts)
    room = _canvas_of(model)
    return [len(row) < room for row in tokenizer(prompts)["input_ids"]]


def _held_out(model, tokenizer, texts):
    """Texts whose beginnings leave room, and these beginnings."""
    starts = beginnings(texts)
    fits = _fits(model, tokenizer, starts)
    return list(compress(texts, fits)), list(compress(starts, fits))


def affordable(model, tokenizer, steps=None, continued=CONTINUED, budget=300):
    """How many texts `evaluate` can let a model write in some minutes.

    Fifty texts are written in a few steps, and the clock is read. A language
    model writes fast enough not to be asked.

    Parameters
    ----------
    model, tokenizer, steps, continued
        As `evaluate` takes them.
    budget : float
        Seconds for all of the evaluation.

    Returns
    -------
    int
        A multiple of 50, from 50 to `SAMPLES`.
    """
    if not diffuses(model):
        return SAMPLES
    steps = steps or steps_of(model)
    write(model, tokenizer, 50, 2)  # the first call only warms up
    start = time.perf_counter()
    write(model, tokenizer, 50, 6)
    each = (time.perf_counter() - start) / (50 * 6)  # a text and step
    held_out = real_tales()[:continued]
    starts = beginnings(held_out)
    jobs = functools.partial(_jobs, model, None)  # all, even without room
    for samples in range(SAMPLES, 50, -50):
        work = _work(model, jobs(samples, steps, held_out, starts))
        if has_nats(model):
            measured = min(samples, len(real_tales()))
            work += _ROUNDS * measured + _ORDERED * _canvas_of(model)
        # Judging and looking for copies take about a fifth as long.
        if 1.2 * each * work <= budget:
            return samples
    return 50


def evaluate(
    model,
    tokenizer,
    samples=SAMPLES,
    steps=None,
    seed=0,
    continued=CONTINUED,
    progress=False,
):
    """Measure what a model writes, without prompts and with them.

    Prompts are the beginnings of held-out tales, and those of the first
    proposal. The latter begin no tale of the grammar: nothing that follows
    can make the whole a tale. Of these texts only what follows is measured,
    put behind an opening of the grammar (`metrics.behind_opening`).

    Parameters
    ----------
    model : DBLM, MaskedDenoiser or transformers.GPT2LMHeadModel
    tokenizer : transformers.PreTrainedTokenizerFast
    samples : int
        Texts without a prompt, for each number of steps.
    steps : sequence of int, optional
        `steps_of` the model if left out. A language model writes token by
        token and has no use for them. Prompts are continued with the first of them.
    seed : int
    continued : int
        Beginnings to be continued, and half as many texts behind the
        proposal's prompts; 0 leaves both out, and what leaves no room on a
        short canvas is left out, too.
    progress : bool

    Returns
    -------
    dict
        Title -> what `metrics.report` says, rounded, and ``seconds``; of a
        model that fills masks also ``nfe``, evaluations a text. Titles
        are ``"64 steps"`` and so on (or ``"left to right"``), ``"64 steps,
        plain"`` if the model names a sampler of its own (see `DBLMConfig`)
        and a quarter of the texts do without it, ``"64 steps, random
        order"`` of as many texts of a masked model (``"no edits"`` of one of
        hybrid noise), ``"beginnings"``, ``"prompts"``, and ``"real tales"``
        for comparison: held-out ones, with which the judge's figures are
        compared, on the same part of the text. No setting was chosen by
        these tales, nor by texts of seed 0. Of a model of tokens also
        ``"nats a tale"``, what `nats` says of them.
    """
    steps = steps or steps_of(model)
    judge = resources.load_backbone(JUDGE)
    judge.model.to(resources.device())
    whole = real_tales()
    held_out, starts = _held_out(model, tokenizer, whole[:continued])
    jobs = _jobs(model, tokenizer, samples, steps, held_out, starts)
    real = _real_scores(judge, whole, held_out, starts)
    found = {}
    bar = resources.progress_bar(
        total=_work(model, jobs), disable=not progress, desc="writing"
    )
    for title, (n, count, given, sampler) in jobs.items():
        start = time.perf_counter()
        nfe, options = [], dict(sampler)
        if writing.fills(model):
            options["nfe"] = nfe
        texts = write(
            model, tokenizer, count, n, seed, given, bar=bar, **options
        )
        seconds = time.perf_counter() - start
        if title == "prompts":
            texts, given = _behind_openings(texts, given)
        score = real.get(title, real["whole"])
        found[title] = measured(judge, texts, given or None, score)
        if nfe:
            found[title]["nfe"] = round(sum(nfe) / len(nfe), 2)
        found[title]["seconds"] = round(seconds, 1)
    bar.close()
    found["real tales"] = measured(judge, whole)
    few = whole[: max(2, samples)]  # of one there is no standard error
    if has_nats(model) and sum(_fits(model, tokenizer, few)) > 1:
        found[NATS] = nats(model, tokenizer, few)
    return found


def _jobs(model, tokenizer, samples, steps, held_out, starts):
    """What to write: title -> steps, texts, prompts (or none), sampler."""
    jobs = {f"{n} steps": (n, samples, [], {}) for n in steps}
    if not diffuses(model):
        jobs = {"left to right": (0, samples, [], {})}
    for name, sampler in _for_comparison(model).items():
        few = math.ceil(samples / 4)
        jobs[f"{steps[0]} steps, {name}"] = steps[0], few, [], sampler
    if held_out:
        each = math.ceil(len(held_out) / 2 / len(training.PROPOSAL_PROMPTS))
        asked = [p for p in training.PROPOSAL_PROMPTS for _ in range(each)]
        jobs["beginnings"] = steps[0], 0, starts, {}
        asked = list(compress(asked, _fits(model, tokenizer, asked)))
        if asked:
            jobs["prompts"] = steps[0], 0, asked, {}
    return jobs


def _for_comparison(model):
    """Other samplers, which write a quarter of the texts."""
    if writing.fills(model):
        return {
            "mask": {"random order": {"order": "random"}},
            "hybrid": {"no edits": {"edit": 2.0}},
            "uniform": {},
        }[writing.noise_of(model)]
    own = diffuses(model) and model.config.sampler
    return {"plain": decoding.SAMPLER} if own else {}


def _work(model, jobs):
    """What jobs cost: texts times steps, or texts of a language model."""
    return sum(
        (n if diffuses(model) else 1) * (len(prompts) or count)
        for n, count, prompts, _ in jobs.values()
    )


def _real_scores(judge, whole, held_out, starts):
    """What the judge says of real tales, on the parts that count."""
    scores = {"whole": metrics.judge(*judge, whole)}
    if held_out:
        scores["beginnings"] = metrics.judge(*judge, held_out, starts)
        openings = [metrics.behind_opening(w, "")[1] for w in held_out]
        scores["prompts"] = metrics.judge(*judge, held_out, openings)
    return scores


def _behind_openings(texts, prompts):
    pairs = [metrics.behind_opening(*pair) for pair in zip(texts, prompts)]
    return [tale for tale, _ in pairs], [opening for _, opening in pairs]


def measured(judge, texts, given=None, real=None):
    """The report of some texts, rounded for JSON.

    Parameters
    ----------
    judge : resources.Backbone
    texts, given, real
        As `metrics.report` takes them.

    Returns
    -------
    dict
        As `metrics.report`, with `training_tales` to look for copies in.
    """
    found = metrics.report(texts, judge, training_tales(), real, given)
    return {name: _rounded(value) for name, value in found.items()}


def _rounded(value):
    if isinstance(value, list):
        return [round(v, 5) for v in value]
    return round(value, 5) if isinstance(value, float) else value


def differing(one, other):
    """Figures of two evaluations that chance alone hardly explains.

    Parameters
    ----------
    one, other : dict
        As `evaluate` returns them. What only one has is left out, and so is
        what depends on the number of texts where these differ, see
        `COUNTED`.

    Returns
    -------
    list of str
        ``"TITLE: NAME"`` where the values lie further apart than three
        standard errors of their difference. Of several hundred figures
        about one will do so without a cause.
    """
    found = []
    for title in [t for t in one if t in other]:
        here, there = one[title], other[title]
        for name in [n for n in here if f"{n}_interval" in here]:
            unequal = here["texts"] != there.get("texts")
            if name not in there or (unequal and name in COUNTED):
                continue
            widths = [row[f"{name}_interval"] for row in (here, there)]
            error = math.hypot(*[(b - a) / (2 * 1.96) for a, b in widths])
            if abs(here[name] - there[name]) > 3 * error:
                found.append(f"{title}: {name}")
    return found
