"""What do our loops cost beyond the network itself?

    python benchmarks/loop_speed.py [--model repaired] [--json]

Prints three ratios of tokens per second, each with its spread:

- training: `training.train` (batches, noise, loss, clipping, optimiser)
  against forward and backward of a bare `GPT2Model` of the same shape;
- training, own loss: the same loop against forward and backward of the
  denoiser's own loss, which may ask the network twice and knows a vocabulary;
- sampling: `decoding.generate_ids` against the bare evaluations of the
  same denoiser, one a step, all positions at one time.

The optimiser is counted in the loop and not in the bare network, so a
ratio below 1 holds its price too. Loop and bare network take turns in one
process, A B A B ..., and a ratio compares neighbours: on a busy machine
the speeds move, their ratio hardly. The spread is from the lower to the
upper quartile. Where other programs take the processor away, `--clock cpu`
counts seconds of processor time, of all threads together, instead of those
on the wall; the ratio is steadier then. Nothing is read from disk; the
weights are random.
"""

import argparse
import json
import statistics
import time
from functools import partial

import torch
from transformers import GPT2Config, GPT2Model

from dblm_lib import decoding, denoiser, ladder, training

BARS = {"training": 0.9, "training, own loss": 0.9, "sampling": 0.9}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
# What each model adds to GPT-2's configuration.
MODELS = {
    "plain": {},
    # Chapter 7's best; in training it guesses half of the batch twice.
    "repaired": ladder.options(ladder.REPAIRED, ladder.FIT_LEVELS),
}


def arguments(given=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", choices=MODELS, default="plain")
    add("--batch-size", type=int, default=64)
    add("--length", type=int, default=64)
    add("--hidden-size", type=int, default=128)
    add("--layers", type=int, default=4)
    add("--heads", type=int, default=4)
    add("--vocab-size", type=int, default=1024)
    add("--ema", type=float, default=0.0, help="as in TrainConfig")
    add("--train-steps", type=int, default=2, help="a turn")
    add("--sample-steps", type=int, default=12, help="a turn")
    add("--pairs", type=int, default=7, help="turns of each")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--clock", choices=CLOCKS, default="wall")
    add("--json", action="store_true", help="one object of JSON")
    options = parser.parse_args(given)
    for name, value in vars(options).items():
        if isinstance(value, int) and value < 1 and name not in ("json",):
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return options


def shape(options):
    """Fields of a GPT-2 configuration; no dropout, as in the book."""
    return {
        "vocab_size": options.vocab_size,
        "n_positions": max(256, options.length),
        "n_embd": options.hidden_size,
        "n_layer": options.layers,
        "n_head": options.heads,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


def timed(function, clock):
    """Seconds that a call takes."""
    start = CLOCKS[clock]()
    function()
    return CLOCKS[clock]() - start


def training_turns(options, rival=None):
    """Two functions: tokens per second of the loop, and of its rival.

    The rival is `gpt2_passes` or `own_passes`. Both attend as the loop does
    on a processor (eager).
    """
    size = options.batch_size, options.length
    model = make_model(options)
    ids = torch.randint(options.vocab_size, (8 * size[0], size[1]))
    mask = torch.ones_like(ids, dtype=torch.bool)
    config = training.TrainConfig(
        steps=options.train_steps,
        batch_size=options.batch_size,
        learning_rate=1e-4,
        ema=options.ema,
        log_every=options.train_steps,
    )
    network, loss = (rival or gpt2_passes)(options, ids[: size[0]])

    def loop():
        training.train(model, ids, mask, config, progress=False)

    def passes():
        for _ in range(options.train_steps):
            network.zero_grad()
            loss().backward()

    tokens = options.train_steps * size[0] * size[1]
    return [
        lambda f=f: tokens / timed(f, options.clock) for f in (loop, passes)
    ]


def gpt2_passes(options, ids):
    """A bare `GPT2Model` and a loss: the mean square of its states."""
    config = GPT2Config(**shape(options), attn_implementation="eager")
    network = GPT2Model(config).train()

    def loss():
        states = network(ids, use_cache=False).last_hidden_state
        return states.square().mean()

    return network, loss


def own_passes(options, ids):
    """The denoiser and its own loss, on one batch that is drawn here."""
    network = make_model(options).train()
    network.set_attn_implementation("eager")
    batch = {"ids": ids, "mask": torch.ones_like(ids, dtype=torch.bool)}
    draw = training.draw_for(network)
    batch |= draw(network, ids, torch.Generator().manual_seed(0))
    asked = ~batch.get("keep", ~batch["mask"])
    batch["weight"] = asked / asked.sum()
    return network, lambda: training.loss_for(network)(network, batch)


def sampling_turns(options):
    """The same for sampling; a token counts once a step."""
    size = (options.batch_size, options.length)
    tokens = options.sample_steps * size[0] * size[1]
    model = make_model(options).eval()
    guesser = decoding.Guesser(model)
    zt = torch.randn(*size, model.embeddings.embedding_dim)
    times = torch.linspace(1, 0.01, options.sample_steps)

    def loop():
        generator = torch.Generator().manual_seed(0)
        decoding.generate_ids(
            model,
            max_length=options.length,
            num_return_sequences=options.batch_size,
            num_steps=options.sample_steps,
            generator=generator,
        )

    @torch.no_grad()
    def evaluations():
        guesser.previous = None
        for t in times:
            guesser(zt, t)

    return [
        lambda f=f: tokens / timed(f, options.clock)
        for f in (loop, evaluations)
    ]


def make_model(options):
    """A denoiser with random weights."""
    torch.manual_seed(0)
    config = denoiser.DBLMConfig(**shape(options), **MODELS[options.model])
    return denoiser.DBLM(config)


def compare(loop, alone, pairs):
    """Let loop and bare network take turns.

    Returns
    -------
    dict
        ``ratio``, the median; ``low`` and ``high``, its quartiles; ``loop``
        and ``bare``, median tokens per second; ``pairs``.
    """
    loop(), alone()  # the first turn of each only warms up
    turns = [(loop(), alone()) for _ in range(pairs)]
    ratios = [ours / theirs for ours, theirs in turns]
    low, ratio, high = quartiles(ratios)
    return {
        "ratio": ratio,
        "low": low,
        "high": high,
        "loop": statistics.median(ours for ours, _ in turns),
        "bare": statistics.median(theirs for _, theirs in turns),
        "pairs": pairs,
    }


def quartiles(values):
    """Lower quartile, median and upper quartile."""
    if len(values) == 1:
        return (*values, *values, *values)
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))


def measure(options):
    """Compare both loops; also say with what."""
    turns = {
        "training": training_turns,
        "training, own loss": partial(training_turns, rival=own_passes),
        "sampling": sampling_turns,
    }
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        results = {
            name: compare(*make(options), options.pairs)
            for name, make in turns.items()
        }
    finally:
        torch.set_num_threads(before)
    said = {k: v for k, v in vars(options).items() if k != "json"}
    return {"torch": torch.__version__, **said, **results}


def report(results):
    """The results as lines of text."""
    lines = [
        "{model} denoiser, batch {batch_size} x {length} tokens, "
        "{layers} layers of {hidden_size}, {threads} thread(s), "
        "{clock} clock, torch {torch}".format(**results)
    ]
    for name, bar in BARS.items():
        found = results[name]
        lines.append(
            f"{name}: {found['ratio']:.3f} of the bare passes "
            f"(quartiles {found['low']:.3f} to {found['high']:.3f}, "
            f"{found['pairs']} pairs; {found['loop']:,.0f} against "
            f"{found['bare']:,.0f} tokens/s; the bar is {bar})"
        )
    lines.append("training: the optimiser counts in the loop only")
    return "\n".join(lines)


def main(given=None):
    options = arguments(given)
    results = measure(options)
    print(json.dumps(results) if options.json else report(results))


if __name__ == "__main__":
    main()
