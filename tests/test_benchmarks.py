"""The benchmarks run and say what they promise; their speeds are not judged."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "loop_speed.py"
SMALL = {
    "batch-size": 2,
    "length": 5,
    "hidden-size": 8,
    "layers": 1,
    "heads": 2,
    "vocab-size": 40,
    "train-steps": 2,
    "sample-steps": 2,
    "pairs": 2,
    "threads": 1,
}
TINY = [f"--{name}={value}" for name, value in SMALL.items()]


@pytest.fixture(scope="module")
def speed():
    return runpy.run_path(str(SCRIPT))


def test_prints_all_ratios():
    done = subprocess.run(
        [sys.executable, SCRIPT, *TINY],
        capture_output=True,
        text=True,
        check=True,
    )
    head, *lines = done.stdout.splitlines()
    assert head.startswith("plain denoiser, batch 2 x 5 tokens, 1 layers of 8")
    assert lines[0].startswith("training: ")
    assert lines[1].startswith("training, own loss: ")
    assert lines[2].startswith("sampling: ")
    assert all("of the bare passes (quartiles" in x for x in lines[:3])
    assert "optimiser" in lines[3]


def test_json_holds_the_same(speed, capsys):
    threads = torch.get_num_threads()
    speed["main"](
        [*TINY, "--model", "repaired", "--ema", "0.9", "--clock=cpu", "--json"]
    )
    assert torch.get_num_threads() == threads
    found = json.loads(capsys.readouterr().out)
    assert found["length"] == 5
    assert found["threads"] == 1
    for name in speed["BARS"]:
        got = found[name]
        assert 0 < got["low"] <= got["ratio"] <= got["high"]
        assert got["pairs"] == 2


@pytest.mark.parametrize("model", ["plain", "repaired"])
def test_own_loss_is_that_of_the_loop(speed, model):
    """Loop and rival do the same work: one loss, all weights learn."""
    options = speed["arguments"]([*TINY, "--model", model])
    ids = torch.arange(10).view(2, 5)
    network, loss = speed["own_passes"](options, ids)
    value = loss()
    value.backward()
    assert value.isfinite() and value == loss()
    assert all(
        p.grad is not None for p in network.parameters() if p.requires_grad
    )


def test_neighbours_are_compared(speed):
    """Each turn is twice as fast as its neighbour, whatever the machine."""
    clock = iter([1, 1, 10, 5, 100, 50, 1000, 500])
    found = speed["compare"](lambda: next(clock), lambda: next(clock), 3)
    assert found["ratio"] == found["low"] == found["high"] == 2
    assert (found["loop"], found["bare"]) == (100, 50)


def test_refuses_nothing_to_measure(speed, capsys):
    with pytest.raises(SystemExit):
        speed["arguments"](["--pairs", "0"])
    assert "--pairs must be at least 1" in capsys.readouterr().err


# What a sampler costs: benchmarks/sampler_speed.py


@pytest.fixture(scope="module")
def sampler_speed():
    return runpy.run_path(str(SCRIPT.with_name("sampler_speed.py")))


def test_a_sampler_is_compared_with_what_it_contains(sampler_speed, capsys):
    """A row for each combination, both clocks, shares of the run's time."""
    given = ["--batch-size", "1", "2", "--steps=2", "--threads=1", "--turns=1"]
    threads = torch.get_num_threads()
    sampler_speed["main"](given)
    assert torch.get_num_threads() == threads
    head, names, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("tales-dblm, torch")
    assert names.split()[:4] == ["threads", "batch", "steps", "clock"]
    assert [line.split()[:4] for line in lines] == [
        ["1", batch, "2", clock] for batch in "12" for clock in ("wall", "cpu")
    ]
    assert all(float(x) > 0 for line in lines for x in line.split()[4:])


def test_the_forwards_are_those_of_the_run(sampler_speed):
    """As many, with the same points; the trunk as often."""
    model = sampler_speed["denoiser"].load("tales-dblm")
    functions = sampler_speed["contenders"](model, 2, 3)
    recorded = sampler_speed["recorded"]
    wanted = recorded(model, functions["run"])
    got = recorded(model, functions["forwards"])
    assert len(got) == len(wanted) == 3
    for (ours, options), (theirs, others) in zip(got, wanted, strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
        assert options.keys() == others.keys()
    states = [
        [call[1]["inputs_embeds"].shape for call in calls]
        for calls in (
            recorded(model.trunk, functions[name]) for name in ("run", "trunk")
        )
    ]
    assert states[0] == states[1] and len(states[0]) == 3


def test_a_sampler_refuses_nothing_to_measure(sampler_speed, capsys):
    with pytest.raises(SystemExit):
        sampler_speed["arguments"](["--steps", "8", "0"])
    assert "--steps must be at least 1" in capsys.readouterr().err
