"""Evaluation: what is written, and that what is measured is what it says."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from small_book import filler, sizes
from transformers import GPT2Config, GPT2LMHeadModel

from dblm_lib import (
    denoiser,
    evaluation,
    likelihood,
    metrics,
    resources,
    tales,
    text,
    writing,
)

TITLES = ("beginnings", "prompts", "real tales")


@pytest.fixture(scope="module")
def tokenizer():
    return resources.load_tokenizer("tales")


@pytest.fixture(scope="module", autouse=True)
def fewer_tales():
    """A small corpus to look for copies in, and few real tales."""
    load = text.load

    def small(name="tales", size=1, valid_size=1000, test_size=0):
        most = min(size, 50), min(valid_size, 30), min(test_size, 30)
        return load(name, *most)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "load", small)
        evaluation.training_tales.cache_clear()
        yield
    evaluation.training_tales.cache_clear()


@pytest.fixture(scope="module")
def model(tokenizer):
    """A denoiser with all repairs, fresh from chance."""
    torch.manual_seed(0)
    config = denoiser.DBLMConfig(
        **sizes(tokenizer, 96),
        embed_dim=8,
        head="mixture",
        loss="ce",
        self_conditioning=0.5,
        likelihood=True,
        normalise_embeddings=True,
        input_std=0.05,
    )
    return denoiser.DBLM(config).eval()


@pytest.fixture(scope="module")
def filling(tokenizer):
    """A model that fills masks, fresh from chance."""
    return filler(tokenizer)


@pytest.fixture(scope="module")
def language_model(tokenizer):
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**sizes(tokenizer, 96))).eval()


# --- writing ----------------------------------------------------------------


class Bar:
    """Counts what a progress bar would show."""

    total = 0

    def update(self, amount):
        self.total += amount


@pytest.mark.parametrize("kind", ["model", "filling"])
def test_a_denoiser_writes_in_batches(kind, request, tokenizer):
    """As many texts as asked for; one seed, one result; all steps shown."""
    model = request.getfixturevalue(kind)
    bar = Bar()
    options = {"count": 5, "num_steps": 3, "batch_size": 2}
    texts = evaluation.write(model, tokenizer, **options, bar=bar)
    assert len(set(texts)) == 5, "the noise of a batch is not that of another"
    assert bar.total == 5 * 3
    assert texts == evaluation.write(model, tokenizer, **options)
    assert texts != evaluation.write(model, tokenizer, **options, seed=1)


def test_all_kinds_of_model_continue_prompts(
    model, filling, language_model, tokenizer
):
    """One text a prompt, in their order, whatever the batches."""
    prompts = ["Once upon a time,", "Anna", "In the middle of the night..."]
    for writer in (model, filling, language_model):
        texts = evaluation.write(
            writer, tokenizer, num_steps=2, prompts=prompts, batch_size=2
        )
        assert len(texts) == 3
        for words, prompt in zip(texts, prompts):
            assert words.startswith(prompt) and words != prompt


def test_evaluation_is_sampling_by_the_models_own_method(model, tokenizer):
    """The texts are those of `DBLM.generate`."""
    texts = evaluation.write(model, tokenizer, count=2, num_steps=3, seed=4)
    ids = model.generate(
        num_return_sequences=2,
        num_steps=3,
        generator=torch.Generator().manual_seed(4),
    )
    assert texts == text.decode_batch(ids, tokenizer)


def test_masks_are_filled_by_the_models_own_sampler(filling, tokenizer):
    """Or by what is asked for; the texts are those of `writing.generate`."""
    for sampler in ({}, {"order": "random", "temperature": 0.7}):
        options = {"num_steps": 3, "seed": 4, **sampler}
        texts = evaluation.write(filling, tokenizer, count=2, **options)
        made = writing.generate(
            filling, tokenizer, num_return_sequences=2, **options
        )
        assert texts == made.texts


# --- prompts ----------------------------------------------------------------


def test_beginnings_begin_tales_and_leave_something_to_say():
    corpus = tales.corpus(8, seed=9)
    found = evaluation.beginnings(corpus)
    assert [len(words.split()) for words in found] == [4, 8, 16, 24] * 2
    for words, tale in zip(found, corpus):
        assert tale.startswith(words + " ")
    assert evaluation.beginnings(["one two three"]) == ["one two"]


# --- the table --------------------------------------------------------------


@pytest.fixture(scope="module")
def found(model, tokenizer):
    return evaluation.evaluate(
        model, tokenizer, samples=6, steps=(3, 2), continued=8
    )


def test_the_table_of_a_denoiser(found):
    assert tuple(found) == ("3 steps", "2 steps", *TITLES)
    counts = [row["texts"] for row in found.values()]
    assert counts == [6, 6, 8, 4, 30]
    for title, row in found.items():
        assert ("above_real" in row) == (title != "real tales")
        assert ("seconds" in row) == (title != "real tales")
    assert found["3 steps"]["coherent"] == 0
    json.dumps(found, allow_nan=False)


def test_real_tales_are_the_measure_of_all_others(found):
    """They hold together; their judge's score is what others are above."""
    real = found["real tales"]
    assert real["coherent"] == 1 and real["broken"] == {}
    backbone = resources.load_backbone()
    valid = evaluation.real_tales()
    assert real["judge"] == pytest.approx(
        metrics.judge(*backbone, valid)[0], abs=1e-5
    )
    row = found["3 steps"]
    gap = row["judge"] - real["judge"]
    assert row["above_real"] == pytest.approx(gap, abs=2e-5)
    starts = evaluation.beginnings(valid[:8])
    other, _ = metrics.judge(*backbone, valid[:8], starts)
    row = found["beginnings"]
    assert row["above_real"] == pytest.approx(row["judge"] - other, abs=2e-5)


def test_the_table_of_a_language_model(language_model, tokenizer):
    found = evaluation.evaluate(
        language_model, tokenizer, samples=4, continued=4
    )
    assert tuple(found) == ("left to right", *TITLES)
    assert found["left to right"]["texts"] == 4
    found = evaluation.evaluate(
        language_model, tokenizer, samples=4, continued=0
    )
    assert tuple(found) == ("left to right", "real tales")


def test_the_table_of_a_model_that_fills_masks(filling, tokenizer):
    """A quarter of the texts in random order; and what the model thinks."""
    found = evaluation.evaluate(
        filling, tokenizer, samples=6, steps=(3, 2), continued=8
    )
    random = "3 steps, random order"
    assert tuple(found) == (
        *("3 steps", "2 steps", random, *TITLES),
        evaluation.NATS,
    )
    counts = [row["texts"] for row in found.values()]
    assert counts == [6, 6, 2, 8, 4, 30, 6]
    made = writing.generate(
        filling,
        tokenizer,
        num_return_sequences=2,
        num_steps=3,
        order="random",
    )
    scores = metrics.report(made.texts, resources.load_backbone())
    assert found[random]["judge"] == pytest.approx(scores["judge"], abs=1e-4)
    json.dumps(found, allow_nan=False)
    assert evaluation.differing(found, found) == []
    moved = found[evaluation.NATS] | {"bound_above_exact": 1e3}
    assert evaluation.differing(found, {evaluation.NATS: moved}) == [
        "nats a tale: bound_above_exact"
    ]


def test_steps_and_texts_are_those_of_the_kind(
    model, filling, language_model, tokenizer, monkeypatch
):
    steps = [
        evaluation.steps_of(who) for who in (model, filling, language_model)
    ]
    assert steps == [(64, 16, 8), (64, 32, 16, 8), (64, 16, 8)]
    few = {"steps": (3, 2), "continued": 0}
    assert evaluation.affordable(filling, tokenizer, **few, budget=0) == 50
    many = evaluation.affordable(filling, tokenizer, **few, budget=1e6)
    assert many == evaluation.SAMPLES
    for who, has in ((model, 0), (filling, 1), (language_model, 0)):
        assert evaluation.has_nats(who) == has
        assert evaluation.diffuses(who) == (who is not language_model)


def test_nats_are_those_of_the_bound_and_of_the_chain_rule(filling, tokenizer):
    """Above the exact ones; a tale that does not fit is left out."""
    texts = evaluation.real_tales()[:7]
    long = [*texts, " ".join(texts[:3])]
    found = evaluation.nats(filling, tokenizer, long, rounds=2, ordered=3)
    ids, _ = text.encode_batch(texts, tokenizer, 64)
    mask_id = filling.config.mask_id
    with torch.no_grad():
        bound = likelihood.bound(filling, ids, mask_id, "counts", rounds=2)
        left = likelihood.chain_rule(filling, ids[:3], mask_id)
    exact = likelihood.exact(texts)
    assert (found["texts"], found["left_to_right_texts"]) == (7, 3)
    assert found["bound_nats_per_tale"] == pytest.approx(bound.mean, abs=1e-3)
    assert found["exact_nats_of_these"] == pytest.approx(exact.mean, abs=1e-4)
    above = bound.minus(exact)
    assert found["bound_above_exact"] == pytest.approx(above.mean, abs=1e-3)
    low, high = found["bound_above_exact_interval"]
    assert (high - low) / 2 == pytest.approx(1.96 * above.error, rel=1e-2)
    gap = left.minus(likelihood.exact(texts[:3])).mean
    assert found["left_to_right_above_exact"] == pytest.approx(gap, abs=1e-3)
    assert found["entropy_nats_per_tale"] == round(tales.entropy(), 5)
    assert found["bound_above_exact_percent"] == pytest.approx(
        100 * above.mean / exact.mean, abs=1e-2
    )


def test_nats_of_what_has_none_are_refused(
    model, filling, tokenizer, monkeypatch
):
    with pytest.raises(TypeError, match="work on tokens; got a DBLM"):
        evaluation.nats(model, tokenizer, ["a"])
    monkeypatch.setattr(filling.config, "seq_len", 4)
    with pytest.raises(ValueError, match="0 texts fit on 4 tokens"):
        evaluation.nats(filling, tokenizer, evaluation.real_tales()[:3])
    found = evaluation.evaluate(
        filling, tokenizer, samples=2, steps=(1,), continued=0
    )
    assert evaluation.NATS not in found
    monkeypatch.undo()
    with pytest.raises(ValueError, match="1 are to be asked"):
        evaluation.nats(
            filling, tokenizer, evaluation.real_tales()[:3], ordered=1
        )
    found = evaluation.evaluate(
        filling, tokenizer, samples=1, steps=(1,), continued=0
    )
    assert found[evaluation.NATS]["texts"] == 2
    json.dumps(found[evaluation.NATS], allow_nan=False)


class Reciter(denoiser.DenoiserBase):
    """Knows the whole of each held-out tale, whatever it is asked."""

    def __init__(self, **options):
        torch.nn.Module.__init__(self)
        self.config = denoiser.DBLMConfig(**options)


def test_a_sampler_of_its_own_is_compared_with_the_plain_one(
    tokenizer, monkeypatch
):
    """A quarter of the texts are written without it; only they."""
    asked = []

    def noted(model, tokenizer, count, steps, seed, prompts, bar, **sampler):
        asked.append((count, steps, sampler))
        return text.load("tales").valid[:count]

    monkeypatch.setattr(evaluation, "write", noted)
    options = {"samples": 10, "steps": (6, 3), "continued": 0}
    model = Reciter(sampler={"stagger": 1.0})
    found = evaluation.evaluate(model, tokenizer, **options)
    assert list(found) == [
        "6 steps",
        "3 steps",
        "6 steps, plain",
        "real tales",
    ]
    plain = {"step": "ancestral", "stagger": 0.0, "power": 1.0}
    plain |= {"temperature": 1.0, "likelihood_weight": 1.0}
    assert asked == [(10, 6, {}), (10, 3, {}), (3, 6, plain)]
    assert found["6 steps, plain"]["texts"] == 3
    found = evaluation.evaluate(Reciter(), tokenizer, **options)
    assert "6 steps, plain" not in found


def test_a_model_that_recites_real_tales_passes_everything(
    tokenizer, monkeypatch
):
    """Beginnings are judged whole, foreign prompts by what follows them."""
    valid = evaluation.real_tales()
    starts = evaluation.beginnings(valid)
    train = text.load("tales", size=50).train

    def recite(model, tokenizer, count, steps, seed, prompts=None, bar=None):
        if not prompts:
            return [*valid[: count - 1], train[7]]
        if prompts[0] in starts:
            return valid[: len(prompts)]
        opening = metrics.behind_opening(valid[0], "")[1]
        return [p + valid[0].removeprefix(opening) for p in prompts]

    monkeypatch.setattr(evaluation, "write", recite)
    found = evaluation.evaluate(
        Reciter(), tokenizer, samples=10, steps=(2,), continued=12
    )
    assert [row["coherent"] for row in found.values()] == [1, 1, 1, 1]
    assert found["2 steps"]["copied"] == pytest.approx(1 / 10)
    assert found["beginnings"]["above_real"] == 0
    assert found["prompts"]["distinct"] < 1  # one tale, told six times
    assert abs(found["2 steps"]["above_real"]) < 0.2


def test_real_tales_are_those_that_nothing_was_chosen_by():
    assert evaluation.real_tales() == tales.corpus(30, seed=3)
    assert not set(evaluation.real_tales()) & set(text.load("tales").valid)


def test_a_row_of_the_grid_is_found_by_writer_way_and_steps():
    grid = [
        {"writer": "a", "way": "cold", "num_steps": 8, "coherent": 0.5},
        {"writer": "a", "way": "cold", "num_steps": 64, "coherent": 0.75},
        {"writer": "b", "way": "hot", "num_steps": 0, "coherent": 1.0},
    ]
    assert evaluation.point(grid, "a", "cold", 64)["coherent"] == 0.75
    assert evaluation.point(grid, "b", "hot")["coherent"] == 1
    with pytest.raises(ValueError, match="0 rows .*ways.*: cold"):
        evaluation.point(grid, "a", "hot", 8)
    with pytest.raises(ValueError, match="2 rows"):
        evaluation.point([*grid, grid[0]], "a", "cold", 8)


def test_the_grid_of_the_book_has_each_point_once():
    grid = evaluation.results()
    for row in grid:
        asked = row["writer"], row["way"], row["num_steps"]
        assert evaluation.point(grid, *asked) is row


def test_copies_are_looked_for_in_what_the_checkpoints_learned_from():
    """The same corpus, from the same seed and of the same size."""
    assert evaluation.training_tales.__wrapped__.__defaults__ == (
        text.TRAIN_TALES,
    )
    known = evaluation.training_tales()
    assert set(text.load("tales", size=text.TRAIN_TALES).train) == known
    assert not known & {*text.load("tales").valid, *evaluation.real_tales()}


# --- two evaluations of one model -------------------------------------------


def row(share, total, **others):
    low, high = metrics.interval(round(share * total), total)
    return {
        "texts": total,
        "coherent": share,
        "coherent_interval": [low, high],
        **others,
    }


def test_what_differs_is_named():
    one = {"64 steps": row(0.95, 1000), "8 steps": row(0.5, 100)}
    near = {"64 steps": row(0.94, 1000), "16 steps": row(0.1, 100)}
    assert evaluation.differing(one, one) == []
    assert evaluation.differing(one, near) == []
    far = {"64 steps": row(0.90, 1000), "8 steps": row(0.6, 100)}
    assert evaluation.differing(one, far) == ["64 steps: coherent"]
    assert evaluation.differing(far, one) == ["64 steps: coherent"]


def test_pairs_are_only_compared_between_equally_many_texts():
    pairs = {"distinct_2": 0.1, "distinct_2_interval": [0.09, 0.11]}
    more = {"distinct_2": 0.3, "distinct_2_interval": [0.29, 0.31]}
    one = {"a": row(0.5, 100, **pairs)}
    assert evaluation.differing(one, {"a": row(0.5, 50, **more)}) == []
    found = evaluation.differing(one, {"a": row(0.5, 100, **more)})
    assert found == ["a: distinct_2"]


def test_chance_alone_rarely_differs():
    """Two evaluations of equal models, many times."""
    generator = torch.Generator().manual_seed(0)
    runs, total, named = 500, 200, 0
    for _ in range(runs):
        draws = torch.rand(2, total, generator=generator) < 0.9
        a, b = (row(int(d.sum()) / total, total) for d in draws)
        named += len(evaluation.differing({"a": a}, {"a": b}))
    assert named / runs < 0.02
    assert math.isfinite(named)


# --- how many texts a machine can afford --------------------------------------


@pytest.mark.parametrize(
    ("each", "texts"), [(1e-6, 1000), (2.2e-3, 900), (4e-3, 400), (1.0, 50)]
)
def test_a_machine_is_asked_for_what_it_can_write(monkeypatch, each, texts):
    """By the clock: seconds a text and step; by hand (300 / 1.2 = 250)."""
    clock = [0.0]

    def writes(model, tokenizer, count, num_steps):
        clock[0] += each * count * num_steps

    monkeypatch.setattr(evaluation, "diffuses", lambda model: True)
    monkeypatch.setattr(evaluation, "write", writes)
    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(evaluation, "real_tales", lambda: ["one two"] * 1000)
    model = SimpleNamespace(config=SimpleNamespace(sampler={"stagger": 1}))
    by_hand = (250 - each * 64 * 300) / (each * (64 + 16 + 8 + 16))
    assert evaluation.affordable(model, None) == texts
    assert texts in (50, 1000) or 0 <= by_hand - texts < 50


def test_a_language_model_is_not_asked(monkeypatch):
    monkeypatch.setattr(evaluation, "write", None)
    assert evaluation.affordable(None, None) == evaluation.SAMPLES
