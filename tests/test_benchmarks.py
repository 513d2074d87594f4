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
