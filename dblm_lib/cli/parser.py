"""The options of the command line, and its help texts."""

import argparse
import math

from .. import __version__
from .printing import printable

__all__ = [
    "EXACT",
    "GAUSSIAN",
    "MODEL",
    "NOISES",
    "ONLY_PROPOSAL",
    "PROPOSAL",
    "SETTINGS",
    "STEPS",
    "build_parser",
]

MODEL = "tales-dblm"  # what `sample` uses
EXACT = "exact"  # in the place of a model: a denoiser that knows its texts

# Steps in which `sample` writes: out of noise, and out of masks.
STEPS = {"noise": 32, "masks": 64}

_MOST = 1_000_000  # where a whole number is asked for

GAUSSIAN = "gaussian"
NOISES = (GAUSSIAN, "mask", "uniform", "hybrid")

# Settings that `train` writes down and that `--resume` reads again.
SETTINGS = {
    "noise": GAUSSIAN,
    "recipe": "repaired",
    "text": "tales",
    "backbone": "tales-gpt2",
    "steps": 1000,
    "batch_size": 64,
    "learning_rate": 4e-3,
    "seq_len": 64,
    "seed": 0,
    "causal": False,
    "proposal": False,
}
# What is otherwise with the proposal, and what only it knows.
PROPOSAL = {"steps": 500, "learning_rate": 1e-3}
ONLY_PROPOSAL = ("causal", "proposal")

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
  dblm sample my-run --steps 16             by what 'dblm train' left there
  dblm sample tales-mdlm --order entropy --show
                                            masks, filled in one by one
  dblm sample exact                         by a denoiser that is always right

Without a name the book's own tales-dblm is used. 'exact' is the denoiser of
2,000 tales that it knows by heart; it shows what the reverse process does
when the denoiser is right.
"""
_EVAL = """\
examples:
  dblm eval tales-dblm                      all figures (minutes)
  dblm eval tales-dblm --samples 100 --steps 8
  dblm eval tales-gpt2                      its twin, from left to right
  dblm eval my-run/final --samples 100 --steps 64 --continued 0
  dblm eval tales-mdlm                      masks: also its nats a tale

Each table says of the texts written in one way which share of them hold
together, what the autoregressive judge tales-gpt2 gives them beside real
tales, how rich their tokens are, and whether they are copied. Beside each
figure stand its 95 % interval and, for a model of the book, the figure in
data/MANIFEST.json.
"""
_TRAIN = """\
examples:
  dblm train --out my-run                   Tiny Tales, 1000 steps
  dblm train --out my-run --resume          go on where it stopped
  dblm train --text my-stories.txt --out my-run --steps 2000
  dblm train --noise mask --out my-run      masks in place of noise
  dblm train --recipe proposal --out my-run
  dblm train --proposal --out my-run        the first proposal's 100 steps

The proposal is what Part I of the book trains, the repaired model that of
chapter 7. Of its steps a tenth, 300 at most, go into a short run
over a wide range of noise, to whose loss the range is fitted; about a sixth,
at most 1000 or a tenth, into looking at clean neighbours only; in the others
it learns all together.

With --noise mask the same network learns to fill in masked tokens, in one
part. The recipes are of Gaussian noise, and so is what is said of its parts.

--out keeps checkpoints while training runs, and the trained model in
OUT/final, which 'dblm sample OUT' reads. OUT/run.json keeps the
settings: --resume needs none of them again. A new run needs a folder that is
absent or empty: nothing that is there is ever overwritten.
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


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        """Quote what was typed without what could drive a terminal."""
        super().error(printable(message))


def build_parser():
    """The parser of the command line, with its help texts."""
    parser = _Parser(
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
    "tales-dblm, folder of a trained model (OUT of 'dblm train'), or exact "
    "(default {})"
)
_SEED = "random numbers to use (default 0)"


def _add_sample(commands):
    sub = _command(commands, "sample", "write texts by diffusion", _SAMPLE)
    add = sub.add_argument
    add("name", nargs="?", metavar="NAME", help=_MODEL.format(MODEL))
    add("--model", metavar="NAME", help="the same")
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
        metavar="N",
        help=f"reverse steps (default {STEPS['noise']}); with masks, "
        f"evaluations of the network at most (default {STEPS['masks']})",
    )
    add(
        "--order",
        metavar="NAME",
        help="which masks are filled first: left-to-right, entropy, random, "
        "... (models trained with masks only)",
    )
    add(
        "--stagger",
        type=_none_or_rate,
        metavar="X",
        help="how far the left is ahead of the right; 0: not at all (models "
        "of vectors only)",
    )
    add(
        "--temperature",
        type=_none_or_rate,
        metavar="X",
        help="below 1 leans to the probable, and to less variety; 0, with "
        "masks, writes only that (default: the model's own)",
    )
    add(
        "--length",
        type=_whole,
        metavar="N",
        help="tokens a text at most, its prompt and end included (default: "
        "as many as the model was trained on)",
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
        help="first, how the denoiser's guess of the first text changes, or "
        "how its masks are filled",
    )


def _add_eval(commands):
    sub = _command(commands, "eval", "measure what a model writes", _EVAL)
    add = sub.add_argument
    add(
        "name",
        metavar="NAME",
        help="tales-dblm, tales-mdlm, tales-gpt2, or a folder",
    )
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
        metavar="N",
        help="numbers of reverse steps; prompts get the first (64 16 8; "
        "with masks 64 32 16 8)",
    )
    add("--seed", type=_seed, default=0, metavar="N", help=_SEED)
    add("--json", action="store_true", help="print JSON")


def _add_train(commands):
    sub = _command(commands, "train", "train a denoiser", _TRAIN)

    def add(name, text, kind=str, metavar="N"):
        setting = name[2:].replace("-", "_")
        default = f"default {SETTINGS[setting]}"
        if setting in PROPOSAL:
            default += f"; of the proposal {PROPOSAL[setting]}"
        sub.add_argument(
            name, type=kind, metavar=metavar, help=f"{text} ({default})"
        )

    sub.add_argument(
        "--out", required=True, help="folder of the run, new or empty"
    )
    sub.add_argument(
        "--noise",
        choices=NOISES,
        help="what is done to the texts: noise on their vectors, or tokens "
        "that are masked, replaced by others, or both (default "
        f"{SETTINGS['noise']})",
    )
    sub.add_argument(
        "--recipe",
        choices=("repaired", "proposal"),
        help="of Gaussian noise: the model with all repairs of Part II, or "
        f"the one of Part I, which writes no text (default {SETTINGS['recipe']})",
    )
    add("--text", "tales, tinystories or a text file", metavar="TEXT")
    add("--backbone", "the GPT-2 to start from: name or folder", str, "NAME")
    add("--steps", "training steps in all", _whole)
    add("--batch-size", "texts a step", _whole)
    add("--learning-rate", "peak of the learning rate", _rate, "RATE")
    add(
        "--seq-len",
        "tokens a text, also of those that the model will write; the rest "
        "is cut off",
        _whole,
    )
    add("--seed", "random numbers to use", _seed)
    for name, text in {
        "--causal": "see only the left, as GPT-2 (only with --recipe "
        "proposal)",
        "--proposal": "the first proposal to the letter, with its two "
        "sentences: --recipe proposal, of which only --backbone and --out "
        "count",
    }.items():
        sub.add_argument(name, action="store_true", default=None, help=text)
    sub.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in OUT, with its settings",
    )


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
        "it (default: three times the level where rounding fails half the time)",
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


def _whole(value):
    """A whole number from 1 to a million, for argparse."""
    try:
        number = int(value)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{_short(value)} is no whole number"
        ) from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    if number > _MOST:
        raise argparse.ArgumentTypeError(
            f"must be at most {_MOST:,}, not {number:,}"
        )
    return number


def _none_or_more(value):
    """A whole number of at least 0, for argparse."""
    return 0 if value == "0" else _whole(value)


def _none_or_rate(value):
    """A finite number of at least 0, for argparse."""
    number = _number(value)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(
            f"must be 0, or positive and finite, not {number}"
        )
    return number


def _seed(value):
    """A whole number of at least 0 that a generator takes, for argparse."""
    digits = value.isascii() and value.isdigit() and len(value) <= 10
    if not (digits and int(value) < 2**32):
        raise argparse.ArgumentTypeError(
            f"a seed is a whole number from 0 to {2**32 - 1}, not "
            f"{_short(value)}"
        )
    return int(value)


def _rate(value):
    """A positive and finite number, for argparse."""
    number = _number(value)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(
            f"must be positive and finite, not {number}"
        )
    return number


def _number(value):
    """Any number, for argparse."""
    try:
        return float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{_short(value)} is no number"
        ) from None


def _short(value):
    """A value as it was typed, cut where it is very long."""
    return repr(value if len(value) <= 40 else value[:37] + "...")
