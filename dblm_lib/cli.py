"""The command ``dblm``: sample, measure, train, watch denoising, say facts.

Exit codes: 0 all well; 1 the work failed (a damaged file, no network);
2 the request was not understood or cannot be met; 130 stopped by Ctrl-C.
A user's mistake gets one line, never a traceback.
"""

import argparse
import contextlib
import json
import math
import os
import shutil
import sys
import textwrap
import time
from itertools import pairwise
from pathlib import Path

from . import __version__, resources

__all__ = ["build_parser", "main"]

CANVAS = 64  # tokens, of `sample` and `denoise`
MODEL = "tales-dblm"  # what `sample` uses
EXACT = "exact"  # in the place of a model: a denoiser that knows its texts

_EPILOG = """\
Begin with:
  dblm denoise "In the middle of the night..."
  dblm sample --check
  dblm eval tales-dblm

'dblm COMMAND --help' explains a command with examples.
Exit codes: 0 all well; 1 the work failed (a damaged file, no network);
2 a request that cannot be met; 130 stopped by Ctrl-C.
"""
_SAMPLE = """\
examples:
  dblm sample                               8 tales out of pure noise
  dblm sample --check                       with the grammar's verdicts
  dblm sample --show -n 1 --steps 12        the way there, step by step
  dblm sample --prompt "One sunny morning," --seed 3
  dblm sample --model my-run/final --steps 16
  dblm sample --model exact                 by a denoiser that is always right

Without --model the book's own tales-dblm is used. 'exact' is the denoiser of
2,000 tales that it knows by heart; it shows what the reverse process does
when the denoiser is right.
"""
_EVAL = """\
examples:
  dblm eval tales-dblm                      all figures (minutes)
  dblm eval tales-dblm --samples 100 --steps 8
  dblm eval tales-gpt2                      its twin, from left to right
  dblm eval my-run/final --samples 100 --steps 64 --continued 0

Each table says of the texts written in one way which share of them hold
together, what the autoregressive judge tales-gpt2 gives them beside real
tales, how rich their tokens are, and whether they are copied. Beside each
figure stand its 95 % interval and, for a model of the book, the figure in
data/MANIFEST.json.
"""
_TRAIN = """\
examples:
  dblm train --out my-run                   Tiny Tales, 500 steps
  dblm train --out my-run --resume          go on where it stopped
  dblm train --text my-stories.txt --out my-run --steps 2000
  dblm train --proposal --out my-run        the first proposal's 100 steps

--out keeps checkpoints while training runs, and the trained model in
OUT/final, which 'dblm sample --model OUT/final' reads. OUT/run.json keeps the
settings: --resume needs none of them again.
"""
_DENOISE = """\
examples:
  dblm denoise "In the middle of the night..."
  dblm denoise "Anna felt sad." --level 2 --steps 6
  dblm denoise "Anna felt sad." --model my-run/final --guess

A sentence is a row of points, one a token. They are noised to --level, and
the reverse process takes the noise out again, a little at each step. A line
shows the points of one step, each rounded to its nearest token, and how many
of them are right: first there, then in the denoiser's guess.

Without --model the denoiser is the exact one of 2,000 tales and your
sentence: it knows them by heart, and therefore guesses well from the start.
A network, such as --model tales-dblm, knows tales and not your sentence.
"""


def build_parser():
    """The parser of the command line, with its help texts."""
    parser = argparse.ArgumentParser(
        prog="dblm",
        description="Diffusion language models, from the book "
        "'Words from Noise'.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"dblm {__version__}"
    )
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True
    )
    _add_sample(commands)
    _add_eval(commands)
    _add_train(commands)
    _add_denoise(commands)
    _add_info(commands)
    return parser


def _command(commands, name, short, epilog):
    return commands.add_parser(
        name,
        help=short,
        description=short[0].upper() + short[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


_MODEL = (
    "tales-dblm, folder of a trained model (OUT/final of 'dblm train'), or "
    "exact (default {})"
)
_SEED = "random numbers to use (default 0)"


def _add_sample(commands):
    sub = _command(commands, "sample", "write texts by diffusion", _SAMPLE)
    add = sub.add_argument
    add("--model", metavar="NAME", help=_MODEL.format(MODEL))
    add("--prompt", metavar="TEXT", help="how each text begins")
    add(
        *("-n", "--count"),
        type=_whole,
        default=8,
        metavar="N",
        help="number of texts (default 8)",
    )
    add(
        "--steps",
        type=_whole,
        default=32,
        metavar="N",
        help="reverse steps (default 32)",
    )
    add("--seed", type=_seed, default=0, metavar="N", help=_SEED)
    add(
        "--check",
        action="store_true",
        help="the grammar's verdict on each text (Tiny Tales only)",
    )
    add(
        "--show",
        action="store_true",
        help="first, how the denoiser's guess of the first text changes",
    )
    sub.set_defaults(run=_sample)


def _add_eval(commands):
    sub = _command(commands, "eval", "measure what a model writes", _EVAL)
    add = sub.add_argument
    add("name", metavar="NAME", help="tales-dblm, tales-gpt2, or a folder")
    add(
        "--samples",
        type=_whole,
        metavar="N",
        help="texts for each number of steps (default 1000, or fewer where "
        "that would take longer than five minutes)",
    )
    add(
        "--continued",
        type=_none_or_more,
        default=200,
        metavar="N",
        help="beginnings of tales to continue; 0: none (default 200)",
    )
    add(
        "--steps",
        type=_whole,
        nargs="+",
        default=[64, 16, 8],
        metavar="N",
        help="numbers of reverse steps; prompts get the first (64 16 8)",
    )
    add("--seed", type=_seed, default=0, metavar="N", help=_SEED)
    add("--json", action="store_true", help="print JSON")
    sub.set_defaults(run=_eval)


# Settings that `train` writes down and that `--resume` reads again.
_SETTINGS = {
    "text": "tales",
    "backbone": "tales-gpt2",
    "steps": 500,
    "batch_size": 64,
    "learning_rate": 1e-3,
    "seq_len": 64,
    "seed": 0,
    "causal": False,
    "proposal": False,
}


def _add_train(commands):
    sub = _command(commands, "train", "train a denoiser", _TRAIN)

    def add(name, text, kind=str, metavar="N"):
        default = _SETTINGS[name[2:].replace("-", "_")]
        sub.add_argument(
            name,
            type=kind,
            metavar=metavar,
            help=f"{text} (default {default})",
        )

    sub.add_argument("--out", required=True, help="folder of the run")
    add("--text", "tales, tinystories or a text file", metavar="TEXT")
    add("--backbone", "the GPT-2 to start from: name or folder", str, "NAME")
    add("--steps", "training steps", _whole)
    add("--batch-size", "texts a step", _whole)
    add("--learning-rate", "peak of the learning rate", float, "RATE")
    add("--seq-len", "tokens a text; the rest is cut off", _whole)
    add("--seed", "random numbers to use", _seed)
    for name, text in {
        "--causal": "see only the left, as GPT-2",
        "--proposal": "the first proposal's recipe and its two sentences; "
        "only --backbone and --out count",
    }.items():
        sub.add_argument(name, action="store_true", default=None, help=text)
    sub.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in OUT, with its settings",
    )
    sub.set_defaults(run=_train)


def _add_denoise(commands):
    sub = _command(
        commands, "denoise", "watch a sentence come out of noise", _DENOISE
    )
    add = sub.add_argument
    add("sentence", help="in quotation marks")
    add("--model", metavar="NAME", help=_MODEL.format(EXACT))
    add(
        "--level",
        type=float,
        metavar="X",
        help="noise level sigma/alpha to start from; the last is a sixth of "
        "it (default: three times the level where rounding begins to fail)",
    )
    add(
        "--steps",
        type=_whole,
        default=12,
        metavar="N",
        help="reverse steps (default 12)",
    )
    add("--seed", type=_seed, default=0, metavar="N", help=_SEED)
    add(
        "--guess",
        action="store_true",
        help="print the denoiser's guess instead of the points",
    )
    sub.set_defaults(run=_denoise)


def _add_info(commands):
    sub = commands.add_parser(
        "info",
        help="versions, data and measured figures",
        description="Print versions, what data/ holds, and the figures "
        "measured on it, from data/MANIFEST.json.",
    )
    sub.add_argument(
        "--measure",
        action="store_true",
        help="measure the embedded GPT-2 again (about a minute)",
    )
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub.set_defaults(run=_info)


def _whole(value):
    """A whole number of at least 1, for argparse."""
    try:
        number = int(value)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{value!r} is no whole number"
        ) from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def _none_or_more(value):
    """A whole number of at least 0, for argparse."""
    return 0 if value == "0" else _whole(value)


def _seed(value):
    """A whole number of at least 0 that a generator takes, for argparse."""
    if not (value.isascii() and value.isdigit() and int(value) < 2**32):
        raise argparse.ArgumentTypeError(
            f"a seed is a whole number from 0 to {2**32 - 1}, not {value!r}"
        )
    return int(value)


# --- what is printed --------------------------------------------------------


def _printable(words):
    """Show a text on one line; control characters could drive a terminal."""
    visible = (c if c.isprintable() and c != "\ufffd" else "·" for c in words)
    return "".join(visible)


def _say(words, label=""):
    """Print a text behind a label, wrapped where somebody is looking.

    Into a pipe or a file goes one line a text, for other programs.
    """
    line = label + words
    if sys.stdout.isatty():
        width = max(len(label) + 20, shutil.get_terminal_size().columns)
        line = textwrap.fill(
            line,
            width=min(width, 100),
            subsequent_indent=" " * len(label),
            drop_whitespace=True,
            break_on_hyphens=False,
        )
    print(line)


def _note(words):
    """Print a remark that is no result: to the standard error."""
    print(f"dblm: {words}", file=sys.stderr, flush=True)


# --- sample and denoise -----------------------------------------------------


class _ByHeart:
    """The exact denoiser of some tales, in the place of a trained model."""

    def __init__(self, tokenizer, extra=()):
        import torch

        from . import decoding, noising, schedules, text

        texts = [*extra, *text.load("tales", size=2000, valid_size=1).train]
        ids, _ = text.encode_batch(texts, tokenizer, CANVAS)
        self._table = noising.random_table(
            len(tokenizer), 32, torch.Generator().manual_seed(20221)
        )  # its own seed: the noise must not repeat the table's numbers
        self.schedule = schedules.LogUniform(0.05, 20)
        self._denoise = decoding.empirical_denoiser(
            self._table[ids], self.schedule
        )

    def __call__(self, zt, t):
        from .denoiser import DenoiserOutput

        return DenoiserOutput(x0=self._denoise(zt, t))

    def table(self):
        return self._table

    def embed(self, ids):
        return self._table[ids]

    def parameters(self):
        yield self._table

    def eval(self):
        return self


def _load(name, tokenizer, extra=()):
    """A trained model, or the exact denoiser."""
    from . import denoiser

    if name == EXACT:
        return _ByHeart(tokenizer, extra)
    return denoiser.load(name)


def _tokenizer(name):
    """The tokenizer that lies beside a trained model, else that of tales."""
    own = Path(name or "").expanduser() / "tokenizer.json"
    return resources.load_tokenizer(own if name and own.is_file() else "tales")


def _default_model():
    """The book's denoiser; in its absence the exact one."""
    if MODEL in resources.checkpoints():
        return MODEL
    _note(
        f"{MODEL} is not in {resources.data_path()}: using the exact denoiser"
    )
    return EXACT


def _sample(options):
    from . import decoding

    name = options.model
    name = _default_model() if name is None else name
    tokenizer = _tokenizer(name)
    found = decoding.generate(
        (model := _load(name, tokenizer)),
        tokenizer,
        options.prompt,
        record=options.show,
        seed=options.seed,
        max_length=CANVAS,
        num_return_sequences=options.count,
        num_steps=options.steps,
        progress=sys.stderr.isatty(),
    )
    if options.show:
        _show(found.trajectory, model.schedule, tokenizer)
    _print_texts(found.texts, options.check)


def _show(path, schedule, tokenizer, lines=16):
    """Print the guess of the first text at `lines` of the steps at most."""
    from . import text

    print("How the denoiser's guess of the first text changes:")
    print("  noise  guess, each position rounded to its nearest token")
    every = math.ceil(len(path.times) / lines)
    for t, ids in list(zip(path.times, path.ids))[::every]:
        words = text.decode_batch(ids[:1], tokenizer)[0]
        _say(_printable(words), f"{float(schedule.noise_level(t)):7.2f}  ")
    print()


def _print_texts(texts, check):
    from . import tales

    width = len(str(len(texts)))
    coherent = 0
    for i, words in enumerate(texts, start=1):
        # Numbers are for the eye; other programs count lines themselves.
        label = f"{i:{width}}  " if sys.stdout.isatty() else ""
        _say(_printable(words), label)
        if check:
            verdict = tales.check(words)
            coherent += verdict.ok
            _say("ok" if verdict.ok else verdict.message, " " * 4)
    if check:
        print(f"{coherent} of {len(texts)} hold together")


def _denoise(options):
    import torch

    from . import noising, text

    name = EXACT if options.model is None else options.model
    tokenizer = _tokenizer(name)
    text.check_known(options.sentence, tokenizer)
    count = len(tokenizer(options.sentence)["input_ids"])
    if count >= CANVAS:
        raise ValueError(
            f"the sentence has {count} tokens; the canvas holds {CANVAS - 1} "
            "and an end: shorten it"
        )
    model = _load(name, tokenizer, (options.sentence,))
    table = model.table().detach()
    ids, _ = text.encode_batch([options.sentence], tokenizer, CANVAS)
    level = options.level
    if level is None:
        std = table.std().item()
        level = 3 * noising.information_band(*table.T.shape, std)
    times = _falling_times(model.schedule, level, options.steps)
    _explain(name, options.guess)
    print("  noise  right  guess")
    with torch.no_grad():
        for t, *found in _backwards(model, ids, times, options.seed):
            found = [row[0, :count] for row in found]
            _print_step(
                "clean"
                if t is None
                else f"{model.schedule.noise_level(t):.2f}",
                *[(row == ids[0, :count]).double().mean() for row in found],
                tokenizer.decode(found[options.guess]),
            )


def _explain(name, guess):
    which = (
        "the exact one of 2,000 tales and your sentence, by heart"
        if name == EXACT
        else f"the network in {name}"
    )
    shown = "guess" if guess else "points"
    print(f"Denoiser: {which}.")
    print(
        f"A line shows the {shown} of one step, rounded to tokens; 'right' "
        "and 'guess' are\nthe shares of right tokens in the points and in "
        "the denoiser's guess.\n"
    )


def _print_step(name, right, guess, words):
    _say(_printable(words), f"{name:>7}  {right:5.0%}  {guess:5.0%}  ")


def _backwards(model, ids, times, seed):
    """Noise a sentence and take it back: ``(t, points, guess)`` of each step.

    Both are rounded to ids. The last step has no time: its points are the
    last guess itself.
    """
    import torch

    from . import decoding, noising

    table, schedule = model.table().detach(), model.schedule
    guesser = decoding.Guesser(model)
    generator = torch.Generator().manual_seed(seed)
    zt, _ = noising.add_noise(table[ids], times[0], schedule, generator)
    for t, s in pairwise([*times, None]):
        x0_hat = guesser(zt, t.expand(ids.shape))
        yield t, noising.nearest(zt, table), guesser.ids
        if s is not None:
            eps = torch.randn(zt.shape, generator=generator)
            zt = decoding.ancestral_step(x0_hat, zt, schedule, t, s, eps)
    yield None, guesser.ids, guesser.ids


def _falling_times(schedule, level, steps):
    """Times at which the noise level falls evenly, to a sixth of itself.

    Evenly means by the same factor: from three times the level at which
    rounding begins to fail to half of it.
    """
    low, high = (float(schedule.noise_level(t)) for t in (0.0, 1.0))
    if not low < level <= high:
        raise ValueError(
            f"--level must lie above {low:.2f} and be {high:.2f} at most "
            f"with this noise schedule; got {level}"
        )
    last = max(low, level / 6)
    shares = [k / max(1, steps - 1) for k in range(steps)]
    levels = [level * (last / level) ** share for share in shares]
    return [schedule.time_of(level) for level in levels]


# --- eval -------------------------------------------------------------------

# What is printed of a report: name, words, and how the number is written.
_FIGURES = (
    ("coherent", "hold together", "share"),
    ("distinct", "differ from each other", "share"),
    ("copied", "copied from the training text", "share"),
    ("judge", "nats a token, by the judge", "number"),
    ("above_real", "the same, above real tales", "signed"),
    ("entropy", "entropy of single tokens, nats", "number"),
    ("distinct_2", "different pairs of tokens", "share"),
    ("repeats", "tokens like their left neighbour", "share"),
    ("tokens", "tokens a text", "number"),
)
_WRITTEN = {"share": "{:.1%}", "number": "{:.3f}", "signed": "{:+.3f}"}
_TITLES = {
    "beginnings": "beginnings of held-out tales, continued",
    "prompts": "texts behind the proposal's prompts, which begin no tale:\n"
    "only what follows is measured, put behind an opening of the grammar",
    "left to right": "texts, written from left to right",
    "real tales": "held-out tales, for comparison",
}


def _eval(options):
    from . import evaluation

    start = time.perf_counter()
    model, tokenizer = _any_model(options.name)
    model.to(resources.device())
    steps = list(dict.fromkeys(options.steps))
    samples = options.samples or evaluation.affordable(
        model, tokenizer, steps, options.continued
    )
    if samples < (options.samples or evaluation.SAMPLES):
        print(
            f"{samples} texts for each number of steps: more would take this "
            f"machine over five minutes (--samples {evaluation.SAMPLES} for "
            "all).",
            file=sys.stderr,
        )
    found = evaluation.evaluate(
        model,
        tokenizer,
        samples=samples,
        steps=steps,
        seed=options.seed,
        continued=options.continued,
        progress=sys.stderr.isatty(),
    )
    recorded = _recorded(options.name)
    facts = {
        "name": options.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "judge": evaluation.JUDGE,
        "seconds": round(time.perf_counter() - start, 1),
    }
    differing = evaluation.differing(found, recorded)
    if options.json:
        facts |= {"evaluation": found, "manifest": recorded}
        print(json.dumps(facts | {"differing": differing}, indent=1))
        return
    print(
        f"{facts['name']}: {facts['parameters']:,} parameters, judged by "
        f"{facts['judge']}; {facts['seconds']:.0f} s in all"
    )
    for title, report in found.items():
        beside = dict(recorded.get(title, {}))
        if beside.get("texts") != report["texts"]:
            for figure in evaluation.COUNTED:
                beside.pop(figure, None)
        _print_report(title, report, beside)
    _print_differing(differing, found, recorded)


def _any_model(name):
    """A denoiser or a language model, and its tokenizer."""
    from . import denoiser

    with contextlib.suppress(OSError, ValueError, AttributeError):
        config = (resources.locate(name) / "config.json").read_text("utf-8")
        if json.loads(config).get("model_type") == "gpt2":
            return resources.load_backbone(name)
    return denoiser.load(name), _tokenizer(name)


def _recorded(name):
    """The evaluation of a model that MANIFEST.json holds; may be empty."""
    from . import metrics

    record = resources.manifest()["artifacts"].get(str(name), {})
    figures = record.get("metrics", {})
    if "coherent_share_of_500" in figures:  # all that is kept of tales-gpt2
        share = figures["coherent_share_of_500"]
        row = {"texts": 500, "coherent": share}
        row["coherent_interval"] = metrics.interval(round(500 * share), 500)
        return {"left to right": row, **figures.get("evaluation", {})}
    return figures.get("evaluation", {})


def _print_report(title, report, recorded):
    words = _TITLES.get(title, f"texts, written in {title}")
    seconds = f" ({report['seconds']:.0f} s)" if "seconds" in report else ""
    print(f"\n{report['texts']:,} {words}{seconds}")
    heads = "", "here", "95 % interval", "MANIFEST" if recorded else ""
    print("  {:32}  {:>8}  {:>18}  {:>8}".format(*heads).rstrip())
    for name, label, kind in _FIGURES:
        if name not in report:
            continue
        written = _WRITTEN[kind].format
        low, high = map(written, report[f"{name}_interval"])
        there = written(recorded[name]) if name in recorded else ""
        ends = f"{low} to {high}"
        print(
            f"  {label:32}  {written(report[name]):>8}  {ends:>18}  "
            f"{there:>8}".rstrip()
        )
    broken = ", ".join(f"{k} {n}" for k, n in report["broken"].items())
    if broken:
        print(f"  first broken: {broken}")


def _print_differing(differing, found, recorded):
    """Say whether the figures are those of MANIFEST.json."""
    if not set(found) & set(recorded):
        return
    if differing:
        print("\nBeyond sampling error of MANIFEST.json (3 standard errors):")
        print("\n".join(f"  {name}" for name in differing))
    else:
        print("\nAll figures equal MANIFEST.json within sampling error.")


# --- train ------------------------------------------------------------------


def _train(options):
    from . import training

    out = Path(options.out).expanduser()
    settings = _settings_of(options, out)
    model, tokenizer, ids, mask = _prepare(settings)
    config = _train_config(settings)
    _write_settings(out, settings)
    _note(f"training {config.steps} steps; checkpoints go to {out}")
    try:
        history = training.train(
            model,
            ids,
            mask,
            config,
            folder=out,
            resume=options.resume,
            progress=sys.stderr.isatty(),
        )
    except KeyboardInterrupt:
        _note(f"go on with: dblm train --out {out} --resume")
        raise
    _save_final(model.cpu(), tokenizer, out / "final")
    print(f"loss {history.loss[0]:.4f} -> {history.loss[-1]:.4f}")
    print(f"model in {out / 'final'}")


def _settings_of(options, out):
    """Settings of a run: given ones, those it began with, or defaults."""
    given = {name: getattr(options, name) for name in _SETTINGS}
    given = {name: v for name, v in given.items() if v is not None}
    text = given.get("text", "tales")
    if text not in ("tales", "tinystories") and Path(text).is_file():
        given["text"] = str(Path(text).resolve())
    old = any(out.glob("step-*")) or (out / "run.json").exists()
    if not old:
        if options.resume:
            _note(f"there is no run in {out} yet: starting one")
        return {**_SETTINGS, **given}
    if not options.resume:
        raise ValueError(
            f"{out} already holds a run: add --resume to go on with it, or "
            "give another folder"
        )
    try:
        kept = json.loads((out / "run.json").read_text("utf-8"))
        kept = {name: kept[name] for name in _SETTINGS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise resources.DataError(
            f"{out / 'run.json'} is missing or damaged ({error}); give "
            "another folder"
        ) from error
    changed = [name for name, value in given.items() if kept[name] != value]
    if changed:
        raise ValueError(
            f"the run in {out} began with "
            + ", ".join(f"{name} {kept[name]}" for name in changed)
            + ": leave it as it was, or give another folder"
        )
    return kept


def _prepare(settings):
    """A new model, its tokenizer, and the texts on their canvases."""
    from . import denoiser, text, training

    resources.seed_everything(settings["seed"])  # new layers begin by chance
    if settings["proposal"]:
        texts, seq_len = training.PROPOSAL_SENTENCES, 16
        fields = {"causal": True, "conditioning": "none"}
    else:
        texts = text.load(settings["text"]).train
        seq_len = settings["seq_len"]
        fields = {"causal": settings["causal"], "normalise_embeddings": True}
    backbone = resources.load_backbone(settings["backbone"])
    longest = backbone.model.config.max_position_embeddings
    if seq_len > longest:
        raise ValueError(
            f"{settings['backbone']} knows {longest} positions; got --seq-len "
            f"{seq_len}"
        )
    ids, mask = text.encode_batch(texts, backbone.tokenizer, seq_len)
    model = denoiser.DBLM.from_backbone(backbone, **fields)
    model.to(resources.device())
    return model, backbone.tokenizer, ids, mask


def _train_config(settings):
    from . import training

    if settings["proposal"]:
        return training.proposal_config()
    steps = settings["steps"]
    return training.TrainConfig(
        steps=steps,
        batch_size=settings["batch_size"],
        learning_rate=settings["learning_rate"],
        warmup=min(50, steps // 10),
        seed=settings["seed"],
        save_every=max(1, steps // 5),
    )


def _write_settings(out, settings):
    """Make the folder; if it cannot be written, say so before training."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        draft = out / "run.tmp"
        draft.write_text(json.dumps(settings, indent=1) + "\n", "utf-8")
        os.replace(draft, out / "run.json")
    except OSError as error:
        raise OSError(f"{out} cannot be written: {error}") from error


def _save_final(model, tokenizer, final):
    """Put the trained model in place once it is whole."""
    draft = final.with_name("final.tmp")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        model.save_pretrained(draft)
        tokenizer.backend_tokenizer.save(str(draft / "tokenizer.json"))
        if final.exists():
            shutil.rmtree(final)
        os.replace(draft, final)
    except Exception as error:
        raise OSError(
            f"the model cannot be written to {final} ({error}); make room "
            "and add --resume: the last checkpoint is whole"
        ) from error


# --- info -------------------------------------------------------------------


def _info(options):
    from . import tales

    artifacts = resources.manifest()["artifacts"]
    facts = _versions() | {
        "entropy of the grammar, nats a tale": round(tales.entropy(), 4)
    }
    measured = _measure() if options.measure else {}
    if options.json:
        facts |= {"artifacts": artifacts, "measured now": measured}
        print(json.dumps(facts, indent=1))
        return
    _print_rows(facts)
    for name, record in artifacts.items():
        print(f"\n{name}: {record['command']} ({record['seconds']} s)")
        _print_rows(record["metrics"], "  ")
    if measured:
        print("\nmeasured now:")
        _print_rows(measured, "  ")


def _versions():
    import torch
    import transformers

    return {
        "dblm": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": str(resources.device()),
        "data": str(resources.data_path()),
    }


def _print_rows(rows, indent=""):
    width = max(map(len, rows))
    for key, value in rows.items():
        if isinstance(value, dict):
            parts = [f"{k} {_brief(v)}" for k, v in value.items()]
            value = ", ".join(parts) or "none"
        print(f"{indent}{key.replace('_', ' '):{width}}  {value}")


def _brief(value):
    """A number; of a whole report only the share that holds together."""
    if isinstance(value, dict):
        return f"{value['coherent']:.1%} coherent"
    return value


def _measure():
    """Measure the embedded GPT-2 as `make checkpoints` did."""
    from . import metrics, tales, text

    backbone = resources.load_backbone("tales-gpt2")
    valid = text.load("tales", size=1).valid
    nats, error = metrics.nats_per_tale(*backbone, valid)
    share, broken = metrics.coherent_share(
        metrics.sample_language_model(*backbone, 500)
    )
    return {
        "valid_nats_per_tale": round(nats, 4),
        "valid_standard_error": round(error, 4),
        "above_entropy_percent": round(100 * (nats / tales.entropy() - 1), 3),
        "coherent_share_of_500": round(share, 4),
        "broken": dict(broken),
    }


# --- the whole --------------------------------------------------------------


def main(arguments=None):
    """Run the command line.

    Parameters
    ----------
    arguments : list of str, optional
        Those of the process if left out.

    Returns
    -------
    int
        The exit code.
    """
    options = build_parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        _note("stopped")
        return 130
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        _note(error)
        return code
    return 0


def _exit_code(error):
    """1 or 2 for what a user can do something about; None for our faults."""
    failures = resources.DataError, OSError, MemoryError, FloatingPointError
    if isinstance(error, failures):
        return 1
    if isinstance(error, (ValueError, TypeError)):
        return 2
    if isinstance(error, RuntimeError) and "memory" in str(error).lower():
        return 1  # PyTorch's way to say that the memory is too small
    return None


if __name__ == "__main__":
    sys.exit(main())
