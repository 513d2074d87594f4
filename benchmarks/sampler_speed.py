"""What does a sampler cost beyond the network it asks?

    python benchmarks/sampler_speed.py [tales-dblm] [--batch-size 1 32]

A run of `decoding.generate_ids` with the model's own sampler is compared
with two things that it contains, as often as it contains them:

- forwards: the calls of the model as the sampler made them, recorded and
  made again with the same points, times and previous guesses. That is the
  bare network, its four products with the vocabulary included (likelihood,
  the point's own posterior mean, logits, mean of the logits);
- trunk: GPT-2's blocks alone, on states of the same shape. No vocabulary,
  no times, no previous guess.

Printed is their time as a share of the run's: 1 would be a sampler that
costs nothing. All three take turns, and a share compares neighbours, so
that a busy machine changes the times more than the shares. Both clocks are
shown, wall and processor; on a busy machine trust the second.
"""

import argparse
import json
import statistics
import time

import torch

from dblm_lib import decoding, denoiser

BAR = 0.95
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def arguments(given=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", nargs="?", default="tales-dblm", help="as `denoiser.load`")
    add("--batch-size", type=int, nargs="+", default=[1, 32])
    add("--steps", type=int, nargs="+", default=[8, 16, 64])
    add("--threads", type=int, nargs="+", default=[1, 2])
    add("--turns", type=int, default=11, help="of each")
    add("--json", action="store_true", help="one list of JSON")
    options = parser.parse_args(given)
    for name in ("batch_size", "steps", "threads", "turns"):
        values = getattr(options, name)
        if min(values if isinstance(values, list) else [values]) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return options


def contenders(model, batch_size, steps):
    """The run, its forwards and its trunk: three functions to be timed."""

    def run():
        decoding.generate_ids(
            model,
            num_return_sequences=batch_size,
            num_steps=steps,
            generator=torch.Generator().manual_seed(0),
        )

    calls = recorded(model, run)
    (_, states) = recorded(model.trunk, run)[0]

    @torch.no_grad()
    def forwards():
        for given, options in calls:
            model(*given, **options)

    @torch.no_grad()
    def trunk():
        for _ in calls:
            model.trunk(**states)

    return {"run": run, "forwards": forwards, "trunk": trunk}


def recorded(module, run):
    """What a module is called with in a run: pairs of tuple and dict."""
    calls = []
    hook = module.register_forward_pre_hook(
        lambda _, given, options: calls.append((given, options)),
        with_kwargs=True,
    )
    try:
        run()
    finally:
        hook.remove()
    return calls


def timed(function):
    """Seconds that a call takes, by each clock."""
    start = {name: clock() for name, clock in CLOCKS.items()}
    function()
    return {name: clock() - start[name] for name, clock in CLOCKS.items()}


def compare(functions, turns):
    """Let them take turns; median shares and milliseconds, by each clock."""
    for function in functions.values():
        function()  # the first turn of each only warms up
    rows = [
        {name: timed(function) for name, function in functions.items()}
        for _ in range(turns)
    ]
    found = {}
    for clock in CLOCKS:
        found[clock] = {
            name: statistics.median(
                row[name][clock] / row["run"][clock] for row in rows
            )
            for name in ("forwards", "trunk")
        }
        found[clock]["milliseconds"] = 1000 * statistics.median(
            row["run"][clock] for row in rows
        )
    return found


def measure(options):
    """One row for each number of threads, batch size and number of steps."""
    model = denoiser.load(options.model)
    before, rows = torch.get_num_threads(), []
    try:
        for threads in options.threads:
            torch.set_num_threads(threads)
            for batch_size in options.batch_size:
                for steps in options.steps:
                    functions = contenders(model, batch_size, steps)
                    row = {
                        "threads": threads,
                        "batch_size": batch_size,
                        "steps": steps,
                    }
                    rows.append(row | compare(functions, options.turns))
    finally:
        torch.set_num_threads(before)
    return rows


def report(rows, options):
    """The rows as a table."""
    head = (
        f"{options.model}, torch {torch.__version__}, median of "
        f"{options.turns} turns; the bar for forwards is {BAR}"
    )
    lines = [
        head,
        "threads  batch  steps  clock   ms a run  forwards  trunk",
    ]
    for row in rows:
        for clock in CLOCKS:
            found = row[clock]
            lines.append(
                f"{row['threads']:7}  {row['batch_size']:5}  "
                f"{row['steps']:5}  {clock:5}  {found['milliseconds']:9.1f}  "
                f"{found['forwards']:8.3f}  {found['trunk']:5.3f}"
            )
    return "\n".join(lines)


def main(given=None):
    options = arguments(given)
    rows = measure(options)
    print(json.dumps(rows) if options.json else report(rows, options))


if __name__ == "__main__":
    main()
