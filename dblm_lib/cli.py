"""The command ``dblm``: sample, train, watch denoising, print the facts.

Exit codes: 0 all well; 1 the work failed (a damaged file, no network);
2 the request was not understood or cannot be met. A user's mistake gets one
line, never a traceback.
"""

import argparse
import json
import sys
from itertools import pairwise
from pathlib import Path

from . import __version__, resources

__all__ = ["build_parser", "main"]

_SAMPLE = """\
examples:
  dblm sample                               8 texts out of pure noise
  dblm sample --check                       with the grammar's verdicts
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
OUT/final, which `dblm sample --model OUT/final` reads.
"""
_DENOISE = """\
examples:
  dblm denoise "In the middle of the night..."
  dblm denoise "Anna felt sad" --level 2 --steps 12

Each line is one step: the clean guess at that moment, rounded to tokens.
"""


def build_parser():
    """The parser of the command line, with its help texts."""
    parser = argparse.ArgumentParser(
        prog="dblm",
        description="Diffusion language models, from the book "
        "'Words from Noise'.",
        epilog="'dblm COMMAND --help' explains a command with examples.",
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
    info = commands.add_parser(
        "info",
        help="versions, data and measured figures",
        description="Print versions, what data/ holds, and the figures "
        "measured on it, from data/MANIFEST.json.",
    )
    info.add_argument(
        "--measure",
        action="store_true",
        help="measure the embedded GPT-2 again (about a minute)",
    )
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(run=_info)
    return parser


def _command(commands, name, short, epilog):
    return commands.add_parser(
        name,
        help=short,
        description=short[0].upper() + short[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_sample(commands):
    sub = _command(commands, "sample", "write texts by diffusion", _SAMPLE)
    sub.add_argument("--model", help="a trained model (name or folder)")
    sub.add_argument("--prompt", help="how each text begins")
    sub.add_argument("-n", "--count", type=_whole, default=8)
    sub.add_argument(
        "--steps", type=_whole, default=64, help="reverse steps (default 64)"
    )
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument(
        "--check", action="store_true", help="the grammar's verdict on each"
    )
    sub.add_argument(
        "--show", action="store_true", help="the first text, step by step"
    )
    sub.set_defaults(run=_sample)


def _add_train(commands):
    sub = _command(commands, "train", "train a denoiser", _TRAIN)
    sub.add_argument(
        "--text",
        default="tales",
        help="tales, tinystories or a text file (default tales)",
    )
    sub.add_argument("--backbone", default="tales-gpt2")
    sub.add_argument("--out", required=True, help="folder of the run")
    sub.add_argument("--steps", type=_whole, default=500)
    sub.add_argument("--batch-size", type=_whole, default=64)
    sub.add_argument("--learning-rate", type=float, default=1e-3)
    sub.add_argument("--seq-len", type=_whole, default=64)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument(
        "--causal", action="store_true", help="see only the left, as GPT-2"
    )
    sub.add_argument(
        "--proposal",
        action="store_true",
        help="the first proposal's recipe; other settings are ignored",
    )
    sub.add_argument("--resume", action="store_true")
    sub.set_defaults(run=_train)


def _add_denoise(commands):
    sub = _command(
        commands, "denoise", "watch a sentence come out of noise", _DENOISE
    )
    sub.add_argument("sentence")
    sub.add_argument("--model", help="a trained model (name or folder)")
    sub.add_argument(
        "--level",
        type=float,
        default=4.0,
        help="noise level sigma/alpha to start from (default 4)",
    )
    sub.add_argument("--steps", type=_whole, default=10)
    sub.add_argument("--seed", type=int, default=0)
    sub.set_defaults(run=_denoise)


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


def _exact_model(extra=()):
    """An exact denoiser in place of a network, and what belongs to it."""
    import torch

    from . import decoding, noising, schedules, text

    tokenizer = resources.load_tokenizer("tales")
    texts = [*extra, *text.load("tales", size=2000, valid_size=1).train]
    ids, _ = text.encode_batch(texts, tokenizer, 64)
    table = noising.random_table(
        len(tokenizer), 32, torch.Generator().manual_seed(20221)
    )  # its own seed: the noise must not repeat the table's numbers
    schedule = schedules.LogUniform(0.05, 20)
    denoise = decoding.empirical_denoiser(table[ids], schedule)
    return tokenizer, table, schedule, denoise


def _trained_model(name):
    from . import denoiser

    model = denoiser.load(name)
    tokenizer = resources.load_tokenizer(
        name if (Path(name) / "tokenizer.json").is_file() else "tales"
    )
    return tokenizer, model.table().detach(), model.schedule, model


def _setting(options, extra=()):
    """Tokenizer, table, schedule and denoiser that the options ask for."""
    if options.model:
        return _trained_model(options.model)
    return _exact_model(extra)


def _reverse(options, setting, count, prompt=None, progress=True):
    """Run the reverse process; return ids and the trajectory."""
    import torch

    from . import decoding, noising, text

    tokenizer, table, schedule, denoise = setting
    length = 64
    known = keep = None
    if prompt is not None:
        text.check_known(prompt, tokenizer)
        row = tokenizer(prompt)["input_ids"]
        if len(row) > length:
            raise ValueError(
                f"the prompt has {len(row)} tokens, the canvas only {length}"
            )
        canvas = torch.zeros(count, length, dtype=torch.long)
        canvas[:, : len(row)] = torch.tensor(row)
        keep = torch.zeros(count, length, dtype=torch.bool)
        keep[:, : len(row)] = True
        known = table[canvas]
    trajectory = decoding.Trajectory()
    x0_hat = decoding.sample(
        denoise,
        schedule,
        (count, length, table.shape[1]),
        options.steps,
        torch.Generator().manual_seed(options.seed),
        known=known,
        keep=keep,
        trajectory=trajectory,
        progress=progress and sys.stderr.isatty(),
    )
    return noising.nearest(x0_hat, table), trajectory


def _sample(options):
    from . import noising, tales, text

    setting = _setting(options)
    tokenizer, table = setting[:2]
    ids, path = _reverse(options, setting, options.count, options.prompt)
    if options.show:
        for t, x0_hat in zip(path.times, path.x0_hat):
            row = noising.nearest(x0_hat[:1], table)
            print(f"t={t:4.2f}  {text.decode_batch(row, tokenizer)[0]}")
        print()
    coherent = 0
    for words in text.decode_batch(ids, tokenizer):
        print(words)
        if options.check:
            verdict = tales.check(words)
            coherent += verdict.ok
            print(f"    {'ok' if verdict.ok else verdict.message}")
    if options.check:
        print(f"{coherent} of {options.count} hold together")


def _denoise(options):
    import torch

    from . import decoding, noising, text

    tokenizer = resources.load_tokenizer("tales")
    text.check_known(options.sentence, tokenizer)
    setting = _setting(options, extra=(options.sentence,))
    tokenizer, table, schedule, denoise = setting
    ids, mask = text.encode_batch([options.sentence], tokenizer, 64)
    if int(mask.sum()) == 64 and ids[0, -1] != tokenizer.eos_token_id:
        raise ValueError("the sentence is longer than the canvas of 64 tokens")
    generator = torch.Generator().manual_seed(options.seed)
    x0 = table[ids]
    start = _time_of(schedule, options.level)
    zt, _ = noising.add_noise(x0, start, schedule, generator)
    times = decoding.reverse_times(options.steps) * start
    read = int(mask.sum()) - 1
    noisy = noising.nearest(zt, table)[0, :read]
    print(f"{'noised':>8}  {tokenizer.decode(noisy)}")
    with torch.no_grad():
        for t, s in pairwise(times):
            x0_hat = denoise(zt, t.expand(ids.shape))
            words = noising.nearest(x0_hat, table)[0, :read]
            level = float(schedule.noise_level(t))
            print(f"{level:8.2f}  {tokenizer.decode(words)}")
            eps = torch.randn(zt.shape, generator=generator)
            zt = decoding.ancestral_step(x0_hat, zt, schedule, t, s, eps)
    right = (words == ids[0, :read]).double().mean().item()
    print(f"{right:.0%} of {read} tokens recovered")


def _time_of(schedule, level):
    """The time at which the schedule reaches a noise level, by bisection."""
    import torch

    low, high = (float(schedule.noise_level(t)) for t in (0.0, 1.0))
    if not low <= level <= high:
        raise ValueError(
            f"this schedule has noise levels {low:.2f} to {high:.2f}; "
            f"got {level}"
        )
    below, above = 0.0, 1.0
    for _ in range(60):
        middle = (below + above) / 2
        if float(schedule.noise_level(middle)) < level:
            below = middle
        else:
            above = middle
    return torch.tensor(above, dtype=torch.float64)


def _train(options):
    from . import denoiser, text, training

    backbone = resources.load_backbone(options.backbone)
    tokenizer = backbone.tokenizer
    if options.proposal:
        texts, config = training.PROPOSAL_SENTENCES, training.proposal_config()
        model = denoiser.DBLM.from_backbone(
            backbone, causal=True, conditioning="none"
        )
        seq_len = 16
    else:
        texts = text.load(options.text).train
        config = training.TrainConfig(
            steps=options.steps,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            warmup=min(50, options.steps // 10),
            seed=options.seed,
            save_every=max(1, options.steps // 5),
        )
        model = denoiser.DBLM.from_backbone(
            backbone, causal=options.causal, normalise_embeddings=True
        )
        seq_len = options.seq_len
    out = Path(options.out)
    if list(out.glob("step-*")) and not options.resume:
        raise ValueError(
            f"{out} already holds a run: add --resume to go on with it, or "
            "give another folder"
        )
    ids, mask = text.encode_batch(texts, tokenizer, seq_len)
    history = training.train(
        model, ids, mask, config, folder=out, resume=options.resume
    )
    model.cpu().save_pretrained(out / "final")
    tokenizer.backend_tokenizer.save(str(out / "final" / "tokenizer.json"))
    if history.loss:
        print(f"loss {history.loss[0]:.4f} -> {history.loss[-1]:.4f}")
    print(f"model in {out / 'final'}")


def _info(options):
    from . import tales

    facts = {"version": __version__, "data": str(resources.data_path())}
    facts["artifacts"] = resources.manifest()["artifacts"]
    if options.measure:
        facts["measured now"] = _measure()
    if options.json:
        print(json.dumps(facts, indent=1))
        return
    import torch
    import transformers

    print(f"dblm {__version__}, torch {torch.__version__}, ", end="")
    print(f"transformers {transformers.__version__}")
    print(f"device: {resources.device()}")
    print(f"data: {facts['data']}")
    print(f"entropy of the grammar: {tales.entropy():.4f} nats a tale")
    for name, record in facts["artifacts"].items():
        print(f"\n{name} (made in {record['seconds']} s)")
        print(f"  {record['command']}")
        for key, value in record["metrics"].items():
            print(f"  {key.replace('_', ' ')}: {value}")
    for key, value in facts.get("measured now", {}).items():
        print(f"measured now: {key.replace('_', ' ')}: {value}")


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


def main(arguments=None):
    """Run the command line; return an exit code."""
    options = build_parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, TypeError) as error:
        failed = isinstance(error, resources.DataError)
        print(f"dblm: {error}", file=sys.stderr)
        return 1 if failed else 2
    except OSError as error:
        print(f"dblm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dblm: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
