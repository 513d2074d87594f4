"""The clock: writers in turns, the median, nothing of the warm-up."""

import pytest
import torch
from small_book import sizes
from transformers import GPT2Config, GPT2LMHeadModel

from dblm_lib import denoiser, resources, speed


@pytest.fixture
def clock(monkeypatch):
    """A clock that only writers move."""
    now = [0.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
    return now


def test_the_median_of_each_writer(clock):
    """The first call of each warms up; one slow turn counts for nothing."""
    turns = []

    def writer(name, seconds):
        def write(count, seed):
            turns.append((name, count, seed))
            clock[0] += count * seconds[seed]

        return write

    writers = {
        "quick": writer("quick", [50, 1, 2, 3]),
        "slow": writer("slow", [90, 4, 400, 5]),
    }
    found = speed.seconds_a_text(writers, 8, turns=3)
    assert found == {"quick": 2, "slow": 5}
    assert turns[:2] == [("quick", 8, 0), ("slow", 8, 0)]
    assert [name for name, _, _ in turns] == ["quick", "slow"] * 4
    assert {count for _, count, _ in turns} == {8}


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"batch_size": 2.5}, {"turns": 0}]
)
def test_nothing_to_time_is_refused(wrong):
    asked = {"batch_size": 1, "turns": 1} | wrong
    with pytest.raises(ValueError, match="whole number of at least 1"):
        speed.seconds_a_text({}, **asked)


@pytest.fixture(scope="module")
def tokenizer():
    return resources.load_tokenizer("tales")


@pytest.fixture(scope="module")
def twin(tokenizer):
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**sizes(tokenizer, 32))).eval()


def test_a_denoiser_beside_its_twin(twin, tokenizer):
    config = denoiser.DBLMConfig(**sizes(tokenizer, 32), seq_len=16)
    model = denoiser.DBLM(config).eval()
    rows = speed.rates(model, twin, tokenizer, (4, 1), (1, 2), turns=1)
    ways = [(row["batch_size"], row["way"]) for row in rows]
    assert ways == [(n, way) for n in (1, 2) for way in ("4 steps", "1 steps")]
    for row in rows:
        ratio = row["milliseconds"] / row["twin"]
        assert row["times_twin"] == pytest.approx(ratio, rel=0.05)
        assert row["milliseconds"] > 0


def test_a_language_model_has_no_steps(twin, tokenizer):
    (row,) = speed.rates(twin, twin, tokenizer, batch_sizes=(1,), turns=1)
    assert row["way"] == "left to right"
