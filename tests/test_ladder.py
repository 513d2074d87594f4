"""The ladder: chapter 7. One change a rung, and figures that can be redone."""

import dataclasses
import json
import math
from functools import lru_cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from dblm_lib import ladder, noising, resources, schedules, training

VOCAB, DIM = 60, 48
LEVELS = [0.2, 0.5, 1.0, 3.0]
ALL = ladder.RUNGS + ladder.COMPARISONS
UP = [rung.name for rung in ladder.RUNGS]
BOTTOM = UP[0]
FITTED = next(rung.name for rung in ladder.RUNGS if rung.fitted)
BY_RUNG = pytest.mark.parametrize("name", [rung.name for rung in ALL])


@lru_cache
def backbone():
    """Return a small random GPT-2 in the place of tales-gpt2."""
    torch.manual_seed(11)
    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=ladder.SEQ_LEN + 1,  # and a start
        n_embd=DIM,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    return resources.Backbone(GPT2LMHeadModel(config).eval(), None)


def build(name, seed=0):
    return ladder.build(name, LEVELS, seed, backbone())


def reaches_the_fit(name):
    return any(rung.fitted for rung in ladder.path(name))


def texts(count, seed=0, length=ladder.SEQ_LEN):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB, (count, length), generator=generator)


def fields(model):
    """What a model's configuration says, without names of files."""
    return {
        name: value
        for name, value in model.config.to_dict().items()
        if name not in ("architectures", "transformers_version", "dtype")
    }


# --- rungs --------------------------------------------------------------------


def test_names_are_different_and_fit_in_file_names():
    names = [rung.name for rung in ALL]
    assert len(set(names)) == len(names)
    assert all(n.replace("-", "").isalnum() and n.islower() for n in names)
    assert all(rung.title for rung in ALL)


def test_rungs_stand_on_each_other_and_comparisons_on_them():
    assert [rung.on for rung in ladder.RUNGS] == [None, *UP[:-1]]
    assert [rung.name for rung in ladder.path(ladder.TOP)] == UP
    for rung in ladder.COMPARISONS:
        assert ladder.path(rung.name)[-1] == rung
        assert ladder.path(rung.name)[:-1] == ladder.path(rung.on)


def test_a_rung_that_is_not_there_is_named_beside_those_that_are():
    with pytest.raises(ValueError, match="no rung 'muno'.*proposal, .*muon"):
        ladder.path("muno")


def test_the_first_rung_is_the_proposal():
    """Causal, not told the time, GPT-2's own embeddings, plain MSE."""
    model = build(BOTTOM)
    config = model.config
    assert config.causal and config.conditioning == "none"
    assert (config.head, config.loss) == ("vector", "mse")
    assert torch.equal(model.table(), backbone().model.transformer.wte.weight)
    ids = texts(2)
    with torch.no_grad():
        expected = backbone().model.transformer(ids).last_hidden_state
        # Not to the last bit: `build` takes the same activation, fused.
        torch.testing.assert_close(
            model(model.embed(ids)).x0, expected, rtol=0, atol=1e-5
        )


def test_the_top_has_all_repairs():
    """And stands in GPT-2's own space, as the proposal did."""
    model = build(ladder.TOP)
    config = model.config
    assert config.shift and config.embed_dim is None
    assert torch.equal(
        model.embeddings.weight, backbone().model.transformer.wte.weight
    )
    assert not config.causal and config.conditioning == "time"
    assert (config.head, config.loss) == ("mixture", "ce")
    assert config.likelihood and config.evidence
    assert config.self_conditioning
    assert config.train_embeddings and config.stagger
    assert ladder.sampler(config) == ladder.SAMPLER
    assert config.schedule == "warped"
    assert config.schedule_options == {"levels": LEVELS}


def test_every_step_up_starts_from_gpt2_and_comparisons_show_without():
    """Those from chance have the shapes of the top, but its weights."""
    assert all(rung.backbone for rung in ladder.RUNGS)
    top, scratch = build(ladder.TOP), build("scratch")
    shapes = [
        {name: tuple(p.shape) for name, p in model.named_parameters()}
        for model in (top, scratch)
    ]
    assert shapes[0] == shapes[1]
    chance = {rung.name for rung in ALL if not rung.backbone}
    assert chance == {"scratch", "scratch-no-shift"}


def test_dimensions_and_interface_are_compared_two_by_two():
    found = {
        (build(n).config.embed_dim, build(n).config.shift)
        for n in ("self-conditioning", "shift", "low-dim", "low-dim-shift")
    }
    assert found == {(None, False), (None, True), (32, False), (32, True)}


def test_muon_and_adamw_differ_in_the_optimiser_alone():
    pair = [dataclasses.asdict(ladder.recipe(n)) for n in ("adamw", "muon")]
    assert {k for k in pair[0] if pair[0][k] != pair[1][k]} == {"optimizer"}
    assert fields(build("adamw")) == fields(build("muon"))


def test_few_dimensions_are_those_of_tokens_that_occur():
    rows = torch.arange(20, VOCAB)
    model = ladder.build("low-dim", LEVELS, 0, backbone(), rows)
    table = backbone().model.transformer.wte.weight.detach()
    wanted = noising.principal_table(table, 32, rows)
    torch.testing.assert_close(model.embeddings.weight.detach(), wanted)
    rotated = noising.principal_table(table, 32)
    assert not torch.allclose(wanted, rotated, atol=1e-3)


@pytest.mark.parametrize(
    "name", [rung.name for rung in ALL if rung.on is not None]
)
def test_a_rung_changes_only_what_it_says(name):
    """Its fields beside those of the rung below: no other differs."""
    rung = ladder.path(name)[-1]
    below, here = (fields(build(n)) for n in (rung.on, name))
    assert below.keys() == here.keys()
    changed = {field for field in here if here[field] != below[field]}
    said = set(rung.changes)
    if name == FITTED:  # later on the levels change
        said |= {"schedule", "schedule_options"}
    assert changed == said
    for field, value in rung.changes.items():
        assert here[field] == value
    assert changed or rung.recipe or rung.first


@BY_RUNG
def test_options_add_up(name):
    """Each rung's own options win, and none of those below is lost."""
    options, way = ladder.options(name, LEVELS), ladder.path(name)
    for number, rung in enumerate(way):
        later = set().union(*(r.changes for r in way[number + 1 :]))
        for field, value in rung.changes.items():
            assert field in options
            assert field in later or options[field] == value
    assert ("schedule" in options) == reaches_the_fit(name)


@BY_RUNG
def test_levels_are_needed_from_the_fitted_rung_on(name):
    if not reaches_the_fit(name):
        assert ladder.options(name) == ladder.options(name, LEVELS)
    else:
        with pytest.raises(ValueError, match=f"{FITTED!r} needs levels"):
            ladder.options(name)


@BY_RUNG
def test_a_seed_builds_the_same_model(name):
    """Bit for bit; another seed changes what does not come from GPT-2."""
    first, again, other = build(name), build(name), build(name, seed=1)
    config = first.config
    weights = [m.state_dict() for m in (first, again, other)]
    names = weights[0].keys()
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in names)
    moved = {n for n in names if not torch.equal(weights[0][n], weights[2][n])}
    trunk = {n for n in names if n.startswith("trunk.h.0.attn.c_attn.weight")}
    if ladder.path(name)[-1].backbone:
        gpt2 = backbone().model.transformer.state_dict()
        for key, value in gpt2.items():
            if config.shift and key.startswith("ln_f."):
                value = value * config.input_std  # see `DBLM`
            if key != "wte.weight":
                assert torch.equal(weights[0][f"trunk.{key}"], value)
        assert not moved & trunk
    else:
        assert trunk <= moved
    # Before it is told the noise all of its weights come from GPT-2.
    assert bool(moved) == (config.conditioning == "time")
    assert not first.training


@BY_RUNG
def test_every_rung_trains(name):
    """Two steps of the recipe: the loss is finite, and weights move."""
    model = build(name)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    ids = texts(20)
    config = ladder.recipe(steps=2, batch_size=4, log_every=1)
    history = training.train(
        model, ids, torch.ones_like(ids).bool(), config, progress=False
    )
    assert all(math.isfinite(v) for v in history.loss)
    moved = any((p != before[n]).any() for n, p in model.named_parameters())
    assert moved


def test_only_gpt2s_own_activation_is_exchanged():
    """For the same function, computed in one go; any other one stays."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "n_embd": DIM, "n_layer": 1, "n_head": 2}
    config = GPT2Config(
        **sizes, activation_function="relu", bos_token_id=0, eos_token_id=0
    )
    other = resources.Backbone(GPT2LMHeadModel(config).eval(), None)
    for given, found in (
        (backbone(), "gelu_pytorch_tanh"),
        (other, "relu"),
    ):
        model = ladder.build(ladder.TOP, LEVELS, 0, given)
        assert model.config.activation_function == found


def test_recipe_takes_changes():
    plain, other = ladder.recipe(), ladder.recipe(steps=7, seed=3)
    assert (other.steps, other.seed) == (7, 3)
    assert other.learning_rate == plain.learning_rate
    with pytest.raises(TypeError, match="stepps"):
        ladder.recipe(stepps=7)


@BY_RUNG
def test_a_rung_keeps_the_recipe_of_those_below(name):
    config, plain = ladder.recipe(name), ladder.recipe()
    late = any(rung.name == "muon" for rung in ladder.path(name))
    assert config.optimizer == ("muon" if late else "adamw")
    assert config.steps == plain.steps
    assert config.batch_size == plain.batch_size
    # The embeddings' own rate stays what it was.
    assert config.learning_rate * config.embedding_rate == pytest.approx(
        plain.learning_rate * plain.embedding_rate
    )


def test_only_neighbours_ends_also_after_an_error():
    config = build(ladder.TOP).config
    before = fields(build(ladder.TOP))
    with pytest.raises(KeyError), ladder.only_neighbours(config):
        assert config.clean_rate == 1
        assert not config.stagger and not config.self_conditioning
        raise KeyError
    after = config.to_dict()
    assert all(after[name] == value for name, value in before.items())


def test_a_rung_with_a_first_phase_trains_in_two(monkeypatch):
    """The first only on clean neighbours; together as long as any other."""
    calls = []
    train = training.train

    def watched(model, ids, mask, config, **options):
        rates = model.config.clean_rate, model.config.stagger
        calls.append((config.steps, *rates))
        return train(model, ids, mask, config, **options)

    monkeypatch.setattr(training, "train", watched)
    config = ladder.recipe(
        ladder.REPAIRED, steps=10, batch_size=4, log_every=1
    )
    model, ids = build(ladder.REPAIRED), texts(12)
    rates = model.config.clean_rate, model.config.stagger
    history = ladder.train(model, ladder.REPAIRED, ids, config, progress=False)
    assert calls == [(2, 1.0, 0.0), (8, *rates)]
    assert history.steps == list(range(10)) and len(history.loss) == 10
    calls.clear()
    ladder.train(build("scaled"), "scaled", ids, config, progress=False)
    assert [steps for steps, *_ in calls] == [10]


@BY_RUNG
def test_the_sampler_asks_for_nothing_that_a_model_lacks(name):
    """So that what it names can be handed on, and means something."""
    config = build(name).config
    sampler = ladder.sampler(config)
    assert ("likelihood_weight" in sampler) == config.likelihood
    assert bool(sampler) == config.likelihood
    assert ("stagger" in sampler) == bool(config.stagger)
    assert sampler.items() <= ladder.SAMPLER.items()


def test_the_runs_that_the_book_brings_are_whole():
    """Two of each rung, as the rungs are now; shares that can be counted."""
    try:
        runs = ladder.results()
    except resources.DataError as error:
        pytest.skip(f"no data yet: {error}")
    expected = [(r.name, seed) for seed in (0, 1) for r in ALL]
    assert [(run["rung"], run["seed"]) for run in runs] == expected
    steps = ladder.recipe().steps
    for run in runs:
        name = run["rung"]
        assert run["steps"] == steps and run["device"]
        assert bool(run["levels"]) == reaches_the_fit(name)
        config = ladder.build(
            name, run["levels"], 0, backbone(), range(VOCAB)
        ).config
        assert bool(run["tuned"]) == bool(ladder.sampler(config))
        for row in (run["plain"], run["tuned"] or run["plain"]):
            good = row["texts"] - sum(row["broken"].values())
            assert row["coherent"] == pytest.approx(good / row["texts"])
            assert not good or 0 <= row["slot_distance"] <= 1
            assert len(row["first"]) == 20


def test_canvases_are_whole_tales_and_ends():
    """Every position counts: behind the end there are only ends."""
    try:
        tokenizer = resources.load_tokenizer("tales")
    except resources.DataError as error:
        pytest.skip(f"no data yet: {error}")
    from dblm_lib import text

    train, valid = ladder.canvases(tokenizer, 30)
    assert train.shape == (30, ladder.SEQ_LEN)
    assert valid.shape == (1000, ladder.SEQ_LEN)
    corpus = text.load("tales", size=30, valid_size=1000)
    assert text.decode_batch(train, tokenizer) == corpus.train
    assert text.decode_batch(valid, tokenizer) == corpus.valid
    end = tokenizer.eos_token_id
    for row in train.tolist():
        first = row.index(end)
        assert set(row[first:]) == {end}


# --- the report by noise level ------------------------------------------------


def by_hand(model, ids, level, seed=0):
    """One row of the report, from the schedule's own formula."""
    x0 = model.embed(ids).detach()
    rng = torch.Generator().manual_seed(seed)
    eps = torch.randn(x0.shape, generator=rng)
    alpha = 1 / math.sqrt(1 + level**2)
    zt = alpha * (x0 + level * eps)
    t = model.schedule.time_of(level)
    table = model.table()
    if model.config.head == "mixture":
        logits = model(zt, t).logits
        x0_hat = logits.softmax(-1) @ table
        guess = logits.argmax(-1)
        nats = F.cross_entropy(logits.transpose(1, 2), ids).item()
    else:
        x0_hat, nats = model(zt, t).x0, None
        guess = torch.cdist(x0_hat, table).argmin(-1)
    near = torch.cdist(x0 + level * eps, table).argmin(-1)
    variance = x0.flatten(0, 1).var(0, unbiased=False).mean()
    return {
        "level": level,
        "accuracy": (guess == ids).float().mean().item(),
        "baseline": (near == ids).float().mean().item(),
        "error": ((x0_hat - x0).square().mean() / variance).item(),
        "nats": nats,
    }


@pytest.mark.parametrize("name", ["both-sides", "scaled", FITTED, "muon"])
@torch.no_grad()
def test_report_is_what_one_would_count_by_hand(name):
    model, ids = build(name), texts(6)
    levels = [0.3, 0.7, 2.0]
    report = ladder.level_report(model, ids, levels, seed=4)
    mixture = model.config.head == "mixture"
    assert ("nats" in report) == mixture
    for i, level in enumerate(levels):
        expected = by_hand(model, ids, level, seed=4)
        for key, row in report.items():
            # One token more or less may fall on the border.
            room = 1.5 / ids.numel() if key in ("accuracy", "baseline") else 0
            assert row[i] == pytest.approx(expected[key], rel=1e-3, abs=room)
    assert report == ladder.level_report(model, ids, levels, seed=4)
    assert report != ladder.level_report(model, ids, levels, seed=5)


def test_baseline_is_the_recovery_curve_of_chapter_two():
    """Within five standard errors; drawn by another piece of code."""
    model, ids = build("scaled"), texts(120)
    levels = [0.5, 1.0, 1.5, 2.5]
    report = ladder.level_report(model, ids, levels)
    curve = noising.recovery_curve(
        model.table().detach(),
        levels,
        torch.Generator().manual_seed(9),
        num_samples=20_000,
        ids=ids,
    )
    for got, share in zip(report["baseline"], curve.tolist(), strict=True):
        error = math.sqrt(share * (1 - share) * (1 / ids.numel() + 1 / 20_000))
        assert abs(got - share) < 5 * error + 1e-9
    assert report["baseline"][0] > report["baseline"][-1] + 0.2


def test_levels_out_of_reach_are_replaced_by_the_ends():
    model, ids = build(FITTED), texts(3)
    report = ladder.level_report(model, ids, [0.01, 0.1, 0.6, 3.0, 40.0])
    assert report["level"] == pytest.approx([0.2, 0.2, 0.6, 3.0, 3.0])
    assert report["error"][0] == report["error"][1]


def test_levels_are_fitted_to_the_cross_entropy_if_there_is_one():
    """Repeated ends count once; the error serves where nats are missing."""
    level = [0.2, 0.2, 0.5, 1.0, 2.0, 2.0]
    error = [0.0, 0.0, 0.1, 0.5, 1.0, 1.0]
    nats = [0.0, 0.0, 1.0, 1.5, 2.0, 2.0]
    once = [0.2, 0.5, 1.0, 2.0]
    report = {"level": level, "error": error}
    assert ladder.fit_levels(report, 5, 0.05) == schedules.fit_warp(
        once, [0.0, 0.1, 0.5, 1.0], 5, 0.05
    )
    assert ladder.fit_levels(report | {"nats": nats}, 5, 0.05) == (
        schedules.fit_warp(once, [0.0, 1.0, 1.5, 2.0], 5, 0.05)
    )
    got = ladder.fit_levels(report)
    assert len(got) == 17 and 0.2 <= got[0] < got[-1] <= 2.0
    schedules.Warped(got)


def test_the_levels_of_the_fit_are_rising_and_wide():
    assert ladder.FIT_LEVELS[0] == pytest.approx(0.1)
    assert ladder.FIT_LEVELS[-1] == pytest.approx(40)
    wide = schedules.LogUniform(0.1, 40)
    grid = torch.linspace(0, 1, len(ladder.FIT_LEVELS))
    assert wide.noise_level(grid).tolist() == pytest.approx(ladder.FIT_LEVELS)


# --- reading the runs ---------------------------------------------------------


def report_of(level, baseline, **columns):
    return {"by_level": {"level": level, "baseline": baseline, **columns}}


def test_a_report_is_read_at_multiples_of_h():
    """h lies halfway, by factors, between 1 and 4: rounding gets 0.5 there."""
    run = report_of([1, 4, 16], [0.9, 0.1, 0.0], accuracy=[1.0, 0.6, 0.2])
    assert ladder.measured_at(run, "level") == pytest.approx(2.5)  # not 2
    assert ladder.measured_at(run, "accuracy") == pytest.approx(0.8)
    assert ladder.measured_at(run, "accuracy", 2) == pytest.approx(0.6)
    got = ladder.measured_at(run, "accuracy", np.array([1 / 8, 4, 8, 9]))
    assert got[:3] == pytest.approx([1.0, 0.4, 0.2])
    assert np.isnan(got[3])  # beyond the schedule


@pytest.mark.parametrize("half", [0.3, 1.0, 2.5])
def test_h_is_where_rounding_gets_half_of_the_tokens(half):
    level = np.geomspace(0.01, 100, 4001)
    baseline = 1 / (1 + (level / half) ** 3)
    run = report_of(level.tolist(), baseline.tolist(), nats=np.log(level))
    assert ladder.measured_at(run, "nats") == pytest.approx(
        np.log(half), abs=1e-4
    )
    assert ladder.measured_at(run, "baseline", 2) == pytest.approx(
        1 / 9, rel=1e-3
    )


@pytest.mark.parametrize(
    ("values", "written"),
    [
        ([7.951, 12.24], "7.95, 12.2"),
        ([0.0, 9.999], "0.00, 10.00"),
        ([10.0], "10.0"),
        ([1.0, math.nan], "–"),
        ([None, None], "–"),
    ],
)
def test_runs_share_a_cell(values, written):
    assert ladder.runs_in_cell(values) == written


# --- a run --------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """Small canvases, a small GPT-2 and few levels; seconds become less."""
    monkeypatch.setattr(ladder, "FIT_LEVELS", (0.1, 0.4, 1.0, 3.0, 10.0))
    monkeypatch.setattr(
        ladder, "canvases", lambda tokenizer: (texts(40), texts(9, seed=1))
    )
    monkeypatch.setattr(
        ladder.resources, "load_backbone", lambda name: backbone()
    )
    return {"steps": 3, "batch_size": 4, "progress": False}


def test_a_run_is_kept_and_read_back(small, tmp_path, monkeypatch):
    """One file, whole; the second time nothing is trained."""
    folder, seen = tmp_path / "new" / "ladder", []

    def measure(model):
        assert not model.training
        seen.append(model)
        return {"coherent": 0.25}

    result = ladder.run("both-sides", 7, folder, measure, **small)
    (file,) = folder.iterdir()
    assert file.name == "both-sides-run-7.json"
    assert json.loads(file.read_text("utf-8"))["found"] == result
    assert (result["rung"], result["seed"]) == ("both-sides", 7)
    assert result["steps"] == 3 and result["coherent"] == 0.25
    assert result["tokens_seen"] == 3 * 4 * ladder.SEQ_LEN
    count = sum(p.numel() for p in seen[0].parameters())
    assert result["parameters"] == count
    assert len(result["by_level"]["error"]) == 5
    assert len(result["fitted_levels"]) == 17
    monkeypatch.setattr(training, "train", None)
    again = ladder.run("both-sides", 7, folder, measure, **small)
    assert again == result
    assert len(seen) == 1


def test_a_run_from_the_fitted_rung_on_fits_first(small, tmp_path):
    """The rung below the fit is trained with the same seed, and kept."""
    configs, under = [], ladder.path(FITTED)[-1].on

    def measure(model):
        configs.append(model.config)
        return {}

    above = ladder.run(FITTED, 2, tmp_path, measure, **small)
    names = sorted(path.name for path in tmp_path.iterdir())
    below, here = f"{under}-run-2.json", f"{FITTED}-run-2.json"
    assert names == sorted([below, here])
    fitted = json.loads((tmp_path / below).read_text("utf-8"))["found"]
    assert configs[0].schedule == "linear" and fitted["levels"] is None
    assert configs[1].schedule == "warped"
    got = configs[1].schedule_options["levels"]
    assert list(got) == fitted["fitted_levels"] == above["levels"]
    ladder.run(under, 2, tmp_path, measure, **small)
    assert len(configs) == 2  # the rung below the fit was read


def test_other_embeddings_get_a_fit_of_their_own(small, tmp_path, monkeypatch):
    """Of the rung that brings them, in some steps more; kept, too."""
    monkeypatch.setattr(ladder, "FIT_STEPS", 2)
    again, above = "score-interpolation", "output-prior"
    trained = []
    train = training.train

    def watched(model, ids, mask, config, **options):
        trained.append((model.config.schedule_options["levels"], config.steps))
        return train(model, ids, mask, config, **options)

    monkeypatch.setattr(training, "train", watched)
    top = ladder.run(above, 3, tmp_path, lambda model: {}, **small)
    kept = tmp_path / f"{again}-levels-3.json"
    levels = json.loads(kept.read_text("utf-8"))["found"]
    assert trained == [([0.4, 1.0, 3.0, 10.0], 2), (levels, 3)]
    assert top["levels"] == levels
    here = ladder.run(again, 3, tmp_path, lambda model: {}, **small)
    assert here["levels"] == levels and len(trained) == 3


def test_a_run_is_trained_by_the_recipe_on_every_position(
    small, tmp_path, monkeypatch
):
    calls = []
    train = training.train

    def watched(model, ids, mask, config, **options):
        calls.append((ids, mask, config))
        return train(model, ids, mask, config, **options)

    monkeypatch.setattr(training, "train", watched)
    results = [
        ladder.run(BOTTOM, seed, tmp_path, lambda model: {}, **small)
        for seed in (0, 1)
    ]
    ids, mask, config = calls[0]
    assert torch.equal(ids, texts(40)) and mask.all()
    assert config == ladder.recipe(seed=0, steps=3, batch_size=4)
    assert calls[1][2].seed == 1
    assert results[0]["loss"] != results[1]["loss"]


def test_a_run_that_fails_leaves_no_file(small, tmp_path):
    """So that the next one does not read half a result."""

    def measure(model):
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        ladder.run(BOTTOM, 0, tmp_path, measure, **small)
    assert list(tmp_path.iterdir()) == []


def test_results_are_read_from_the_data_folder(tmp_path, monkeypatch):
    """As they are in the file, and only if the file is the listed one."""
    runs = [{"rung": "proposal", "seed": 0}, {"rung": "range", "seed": 1}]
    (tmp_path / "ladder").mkdir()
    file = tmp_path / "ladder" / "runs.json"
    file.write_text(json.dumps(runs), "utf-8")
    entry = {"sha256": resources.sha256(file), "bytes": file.stat().st_size}
    listed = {"artifacts": {}, "files": {"ladder/runs.json": entry}}
    (tmp_path / "MANIFEST.json").write_text(json.dumps(listed), "utf-8")
    monkeypatch.setenv("DBLM_DATA", str(tmp_path))
    assert ladder.results() == runs
    file.write_text(json.dumps(runs[:1]), "utf-8")
    with pytest.raises(resources.DataError, match="runs.json"):
        ladder.results()


def test_a_run_of_another_length_is_not_taken_for_this_one(small, tmp_path):
    ladder.run(BOTTOM, 0, tmp_path, lambda model: {}, **small)
    with pytest.raises(resources.DataError, match="3 steps, not 4"):
        ladder.run(
            BOTTOM, 0, tmp_path, lambda model: {}, **{**small, "steps": 4}
        )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 5}, "4 batch_size, not 5"),
        ({"learning_rate": 0.5}, "0.002 learning_rate, not 0.5"),
        ({"steps": 4, "clip": 2.0}, "3 steps, not 4; 1.0 clip, not 2.0"),
    ],
)
def test_a_run_of_another_recipe_is_named_by_what_differs(
    small, tmp_path, changes, said
):
    ladder.run(BOTTOM, 0, tmp_path, lambda model: {}, **small)
    (file,) = tmp_path.iterdir()
    before = file.read_bytes()
    with pytest.raises(resources.DataError, match="of another run") as error:
        ladder.run(
            BOTTOM, 0, tmp_path, lambda model: {}, **{**small, **changes}
        )
    assert said in str(error.value)
    assert file.read_bytes() == before


def test_a_rung_that_changed_since_is_another_run(
    small, tmp_path, monkeypatch
):
    """The model's fields are compared, too, not only the recipe."""
    ladder.run("both-sides", 0, tmp_path, lambda model: {}, **small)
    rungs = list(ladder.RUNGS)
    rungs[1] = dataclasses.replace(rungs[1], changes={"causal": True})
    monkeypatch.setattr(ladder, "RUNGS", tuple(rungs))
    with pytest.raises(resources.DataError, match="False causal, not True"):
        ladder.run("both-sides", 0, tmp_path, lambda model: {}, **small)


def test_the_levels_of_another_recipe_are_not_taken(
    small, tmp_path, monkeypatch
):
    monkeypatch.setattr(ladder, "FIT_STEPS", 2)
    again = "score-interpolation"
    given = (again, 3, tmp_path, lambda model: {})
    levels = ladder.levels_of(*given, **small)
    assert ladder.levels_of(*given, **small) == levels
    with pytest.raises(resources.DataError, match="4 batch_size, not 5"):
        ladder.levels_of(*given, **{**small, "batch_size": 5})
