"""The command ``dblm``: sample, train, watch denoising, print the facts.

Exit codes: 0 all well; 1 the work failed (a damaged file, no network);
2 the request was not understood or cannot be met; 130 stopped by Ctrl-C.
A user's mistake gets one line, never a traceback.
"""

import argparse
import json
import math
import os
import shutil
import sys
import textwrap
from itertools import pairwise
from pathlib import Path

from . import __version__, resources

__all__ = ["build_parser", "main"]

CANVAS = 64  # tokens, of `sample` and `denoise`

_EPILOG = """\
Begin with:
  dblm denoise "In the middle of the night..."
  dblm sample --check

'dblm COMMAND --help' explains a command with examples.
Exit codes: 0 all well; 1 the work failed (a damaged file, no network);
2 a request that cannot be met; 130 stopped by Ctrl-C.
"""
_SAMPLE = """\
examples:
  dblm sample                               8 texts out of pure noise
  dblm sample --check                       with the grammar's verdicts
  dblm sample --show -n 1 --steps 12        the way there, step by step
  dblm sample --prompt "One sunny morning," --seed 3
  dblm sample --model my-run/final --steps 16

Without --model the exact denoiser of 2,000 tales is used: it knows them by
heart, and shows what the reverse process does when the denoiser is right.
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


_MODEL = "folder of a trained model (OUT/final of 'dblm train')"
_SEED = "random numbers to use (default 0)"


def _add_sample(commands):
    sub = _command(commands, "sample", "write texts by diffusion", _SAMPLE)
    add = sub.add_argument
    add("--model", help=_MODEL)
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
        default=64,
        metavar="N",
        help="reverse steps (default 64)",
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
    add("--model", help=_MODEL)
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


def _exact_model(tokenizer, extra=()):
    """Table, schedule and an exact denoiser in place of a network."""
    import torch

    from . import decoding, noising, schedules, text

    texts = [*extra, *text.load("tales", size=2000, valid_size=1).train]
    ids, _ = text.encode_batch(texts, tokenizer, CANVAS)
    table = noising.random_table(
        len(tokenizer), 32, torch.Generator().manual_seed(20221)
    )  # its own seed: the noise must not repeat the table's numbers
    schedule = schedules.LogUniform(0.05, 20)
    return table, schedule, decoding.empirical_denoiser(table[ids], schedule)


def _setting(name, tokenizer, extra=()):
    """Table, schedule and denoiser: of a trained model, or the exact one."""
    from . import denoiser

    if name is None:
        return _exact_model(tokenizer, extra)
    model = denoiser.load(name)
    return model.table().detach(), model.schedule, model


def _tokenizer(name):
    """The tokenizer that lies beside a trained model, else that of tales."""
    own = Path(name or "").expanduser() / "tokenizer.json"
    return resources.load_tokenizer(own if name and own.is_file() else "tales")


def _given(prompt, count, tokenizer):
    """The prompt on `count` canvases, and where it stands."""
    import torch

    from . import text

    text.check_known(prompt, tokenizer)
    row = tokenizer(prompt)["input_ids"]
    if len(row) > CANVAS:
        raise ValueError(
            f"the prompt has {len(row)} tokens, the canvas only {CANVAS}: "
            "shorten it"
        )
    canvas = torch.zeros(count, CANVAS, dtype=torch.long)
    canvas[:, : len(row)] = torch.tensor(row)
    keep = (torch.arange(CANVAS) < len(row)).expand(count, CANVAS)
    return canvas, keep


def _sample(options):
    import torch

    from . import decoding, noising, text

    tokenizer = _tokenizer(options.model)
    canvas = keep = None
    if options.prompt is not None:
        canvas, keep = _given(options.prompt, options.count, tokenizer)
    table, schedule, denoise = _setting(options.model, tokenizer)
    path = decoding.Trajectory() if options.show else None
    x0_hat = decoding.sample(
        denoise,
        schedule,
        (options.count, CANVAS, table.shape[1]),
        options.steps,
        torch.Generator().manual_seed(options.seed),
        known=None if canvas is None else table[canvas],
        keep=keep,
        trajectory=path,
        progress=sys.stderr.isatty(),
    )
    if options.show:
        _show(path, table, schedule, tokenizer)
    ids = noising.nearest(x0_hat, table)
    _print_texts(text.decode_batch(ids, tokenizer), options.check)


def _show(path, table, schedule, tokenizer, lines=16):
    """Print the guess of the first text at `lines` of the steps at most."""
    from . import noising, text

    print("How the denoiser's guess of the first text changes:")
    print("  noise  guess, each position rounded to its nearest token")
    every = math.ceil(len(path.times) / lines)
    for t, x0_hat in list(zip(path.times, path.x0_hat))[::every]:
        row = noising.nearest(x0_hat[:1], table)
        words = text.decode_batch(row, tokenizer)[0]
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

    tokenizer = _tokenizer(options.model)
    text.check_known(options.sentence, tokenizer)
    count = len(tokenizer(options.sentence)["input_ids"])
    if count >= CANVAS:
        raise ValueError(
            f"the sentence has {count} tokens; the canvas holds {CANVAS - 1} "
            "and an end: shorten it"
        )
    setting = _setting(options.model, tokenizer, (options.sentence,))
    table, schedule, _ = setting
    ids, _ = text.encode_batch([options.sentence], tokenizer, CANVAS)
    level = options.level
    if level is None:
        std = table.std().item()
        level = 3 * noising.information_band(*table.T.shape, std)
    times = _falling_times(schedule, level, options.steps)
    _explain(options)
    print("  noise  right  guess")
    with torch.no_grad():
        for t, zt, x0_hat in _backwards(setting, ids, times, options.seed):
            found = [
                noising.nearest(points[0, :count], table)
                for points in (zt, x0_hat)
            ]
            _print_step(
                "clean" if t is None else f"{schedule.noise_level(t):.2f}",
                *[(row == ids[0, :count]).double().mean() for row in found],
                tokenizer.decode(found[options.guess]),
            )


def _explain(options):
    which = (
        f"the network in {options.model}"
        if options.model is not None
        else "the exact one of 2,000 tales and your sentence, by heart"
    )
    shown = "guess" if options.guess else "points"
    print(f"Denoiser: {which}.")
    print(
        f"A line shows the {shown} of one step, rounded to tokens; 'right' "
        "and 'guess' are\nthe shares of right tokens in the points and in "
        "the denoiser's guess.\n"
    )


def _print_step(name, right, guess, words):
    _say(_printable(words), f"{name:>7}  {right:5.0%}  {guess:5.0%}  ")


def _backwards(setting, ids, times, seed):
    """Noise a sentence and take it back: ``(t, zt, x0_hat)`` of each step.

    The last has no time: its points are the last guess itself.
    """
    import torch

    from . import decoding, noising

    table, schedule, denoise = setting
    generator = torch.Generator().manual_seed(seed)
    zt, _ = noising.add_noise(table[ids], times[0], schedule, generator)
    for t, s in pairwise([*times, None]):
        x0_hat = denoise(zt, t.expand(ids.shape))
        yield t, zt, x0_hat
        if s is not None:
            eps = torch.randn(zt.shape, generator=generator)
            zt = decoding.ancestral_step(x0_hat, zt, schedule, t, s, eps)
    yield None, x0_hat, x0_hat


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
    return [_time_of(schedule, level) for level in levels]


def _time_of(schedule, level):
    """The time at which the schedule reaches a noise level, by bisection."""
    import torch

    below, above = 0.0, 1.0
    for _ in range(60):
        middle = (below + above) / 2
        if float(schedule.noise_level(middle)) < level:
            below = middle
        else:
            above = middle
    return torch.tensor(above, dtype=torch.float64)


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
            value = ", ".join(f"{k} {n}" for k, n in value.items()) or "none"
        print(f"{indent}{key.replace('_', ' '):{width}}  {value}")


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
