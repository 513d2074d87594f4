"""The repaired model: how its steps are shared out, and how it is trained."""

import json
import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from dblm_lib import ladder, repair, resources, training
from dblm_lib.training.checkpoints import Checkpoints
from recipes import tales_dblm_teacher

VOCAB, LENGTH = 60, 12
FEW = {"batch_size": 4, "progress": False}
PLAN = repair.Plan(2, 3, 4)


def backbone(**changes):
    """Return a small random GPT-2 in the place of tales-gpt2."""
    torch.manual_seed(11)
    fields = {
        "vocab_size": VOCAB,
        "n_positions": LENGTH + 1,  # and a start
        "n_embd": 16,
        "n_layer": 1,
        "n_head": 2,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    config = GPT2Config(**{**fields, **changes})
    return resources.Backbone(GPT2LMHeadModel(config).eval(), None)


def texts(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB, (count, LENGTH), generator=generator)


def train(plan=PLAN, folder=None, ids=None, **changes):
    ids = texts(30) if ids is None else ids
    return repair.train(
        ids,
        texts(9, seed=1),
        plan,
        folder,
        backbone(),
        **{"seq_len": LENGTH, **FEW, **changes},
    )


def weights(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def same(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


# --- the steps ----------------------------------------------------------------


@given(st.integers(3, 10**6))
def test_the_parts_add_up_and_none_is_empty(steps):
    plan = repair.plan(steps)
    parts = plan.fit, plan.neighbours, plan.together
    assert sum(parts) == steps == plan.steps and min(parts) >= 1
    assert plan.fit <= 300 and plan.together >= plan.neighbours
    if steps >= 20:
        assert plan.fit <= steps / 10
        assert 0.1 <= (plan.neighbours + 1) / steps <= 0.2 + 1 / steps
        assert plan.together >= 0.7 * steps


def test_the_first_parts_never_shrink_with_more_steps():
    plans = [repair.plan(steps) for steps in range(3, 13_000)]
    for part in repair.PARTS[:2]:
        counts = [getattr(plan, part) for plan in plans]
        assert counts == sorted(counts), part


def test_the_plan_of_the_book_s_own_teacher():
    plan = tales_dblm_teacher.PLAN
    assert (plan.fit, plan.neighbours, plan.together) == (300, 1000, 8500)
    assert repair.plan(plan.steps) == plan


@pytest.mark.parametrize("steps", [2, 0, -5, 2.5, True, "20", None])
def test_what_cannot_be_shared_out(steps):
    with pytest.raises(ValueError, match="at least 3 steps, not"):
        repair.plan(steps)


def test_each_part_has_the_recipe_of_the_book_s_own_teacher():
    """As it was written down with the weights that the book brings."""
    plan = tales_dblm_teacher.PLAN
    for part, ema in (
        ("fit", 0.99),
        ("neighbours", 0.99),
        ("together", 0.998),
    ):
        config = repair._config(plan, part, 0, {"save_every": 250})
        steps = getattr(plan, part)
        assert config == ladder.recipe(
            ladder.REPAIRED,
            save_every=250,
            steps=steps,
            ema=ema,
            batch_size=64,
        )
        assert config.warmup == 100 and config.optimizer == "muon"


@pytest.mark.parametrize("steps", [3, 20, 100, 500, 3000])
def test_a_short_part_warms_up_and_averages_for_less_long(steps):
    """Or its average would be where it began, and its rate never high."""
    plan = repair.plan(steps)
    for part in repair.PARTS:
        config = repair._config(plan, part, 5, {})
        count = getattr(plan, part)
        assert config.steps == count and config.seed == 5
        assert config.warmup <= count / 3
        assert config.ema**count < 0.06
        assert 1 <= config.save_every <= max(1, count)
        found = repair._config(plan, part, 5, {"learning_rate": 0.1})
        assert found.learning_rate == 0.1


# --- a training ---------------------------------------------------------------


def test_the_model_is_the_top_of_the_ladder():
    model, runs = train()
    levels = model.config.schedule_options["levels"]
    expected = ladder.build(ladder.REPAIRED, levels, 0, backbone()).config
    expected.seq_len, expected.sampler = LENGTH, repair.SAMPLER
    assert model.config.to_dict() == expected.to_dict()
    assert levels == sorted(levels) and 0.1 <= levels[0] < levels[-1] <= 40
    assert not model.training
    assert [config.steps for _, config in runs] == [3, 4]
    for history, config in runs:
        assert history.steps[-1] == config.steps - 1
        assert all(map(math.isfinite, history.loss))


def test_it_trains_in_three_parts(monkeypatch):
    """Each in its own way; the model of the first is not the others'."""
    seen, begins, full = [], [], training.train

    def watched(model, ids, mask, config, *args, **options):
        here = model.config
        if not any(model is other for other in begins):
            begins.append(model)
        seen.append(
            (
                *(config.steps, here.clean_rate, here.stagger),
                *(here.self_conditioning, bool(mask.all()), len(begins)),
            )
        )
        return full(model, ids, mask, config, *args, **options)

    monkeypatch.setattr(training, "train", watched)
    train()
    assert seen == [
        (2, 0.5, 2.0, 0.5, True, 1),
        (3, 1.0, 0.0, 0.0, True, 2),
        (4, 0.3, 2.0, 0.5, True, 2),
    ]


def test_the_range_is_fitted_to_held_out_texts(monkeypatch):
    """To 256 of them, and fewer where the vocabulary is large."""
    reports, report = [], ladder.level_report

    def watched(model, ids, levels):
        reports.append((ids, levels))
        return report(model, ids, levels)

    monkeypatch.setattr(ladder, "level_report", watched)
    train()
    ids, levels = reports.pop()
    assert torch.equal(ids, texts(9, seed=1))
    assert levels == ladder.FIT_LEVELS
    monkeypatch.setattr(repair, "_MEASURED", 5)
    train()
    assert torch.equal(reports.pop()[0], ids[:5])
    for most, count in ((3.5, 3), (0.5, 1)):
        logits = int(most * LENGTH * VOCAB)
        monkeypatch.setattr(repair, "_LOGITS", logits)
        train()
        assert torch.equal(reports.pop()[0], ids[:count])


def test_another_seed_is_another_model():
    one, again, other = train()[0], train()[0], train(seed=1)[0]
    assert same(one, again) and not same(one, other)


def test_what_is_told_on_the_way(tmp_path):
    """Which part begins; from the second on how long it all will take."""
    told, asked = [], []

    def watch(model, done):
        asked.append(done)
        return training.loss_for(model)

    train(folder=tmp_path, watch=watch, tell=lambda *what: told.append(what))
    assert [what[:2] for what in told] == [
        ("fit", 2),
        ("neighbours", 3),
        ("together", 4),
    ]
    assert told[0][2] is None and asked == [0, 3]
    record = json.loads(
        next((tmp_path / "fit").glob("step-*/state.json")).read_text("utf-8")
    )
    speed = record["history"]["tokens_per_second"] / 4 / LENGTH
    assert told[1][2] == pytest.approx((3 + 4) / speed)
    told.clear()
    train(folder=tmp_path, tell=lambda *what: told.append(what))
    assert [what[0] for what in told] == ["neighbours", "together"]
    assert told[0][2] is None and told[1][2] is not None


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def whole():
    """The model of a training in one go."""
    return train(save_every=1)[0]


@pytest.mark.parametrize("saves", [1, 2, 4, 5, 7])
@pytest.mark.parametrize("after", [True, False])
def test_stopped_anywhere_it_ends_with_the_same_weights(
    saves, after, whole, tmp_path, monkeypatch
):
    """Before or behind a checkpoint of any part; and between two parts."""
    save, count = Checkpoints.save, []

    def stop(self, done, history):
        count.append(done)
        if len(count) == saves and not after:
            raise Stop
        save(self, done, history)
        if len(count) == saves:
            raise Stop

    monkeypatch.setattr(Checkpoints, "save", stop)
    with pytest.raises(Stop):
        train(folder=tmp_path, save_every=1)
    model, runs = train(folder=tmp_path, save_every=1)
    assert same(model, whole)
    assert model.config.to_dict() == whole.config.to_dict()
    assert [len(history.steps) for history, _ in runs] == [2, 2]
    # What was kept was not done again.
    assert len(count) == 2 + 3 + 4 + (not after)


def test_stopped_while_the_range_is_fitted(tmp_path, monkeypatch):
    expected, _ = train()

    def stop(*args):
        raise Stop

    monkeypatch.setattr(ladder, "level_report", stop)
    with pytest.raises(Stop):
        train(folder=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fit"]
    monkeypatch.undo()
    assert same(train(folder=tmp_path)[0], expected)
    # The range is kept: a fit that would fail is not made again.
    monkeypatch.setattr(ladder, "level_report", stop)
    assert same(train(folder=tmp_path)[0], expected)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"plan": repair.Plan(3, 3, 4)}, "2 steps, not 3"),
        ({"plan": repair.Plan(2, 4, 4)}, "3 steps, not 4"),
        ({"plan": repair.Plan(2, 3, 5)}, "4 steps, not 5"),
        ({"seed": 1}, "0 seed, not 1"),
        ({"about": {"what": "this"}}, "what"),
        ({"ids": texts(31)}, "texts"),
        ({"seq_len": LENGTH - 1}, "seq_len, not"),
    ],
)
def test_the_run_in_the_folder_is_another_one(changes, said, tmp_path):
    train(folder=tmp_path)
    with pytest.raises(resources.DataError, match=said):
        train(folder=tmp_path, **changes)


def test_a_backbone_that_does_not_fit():
    with pytest.raises(ValueError, match="bos_token_id"):
        repair.begin(backbone=backbone(bos_token_id=None))
    short = backbone(n_positions=LENGTH)
    with pytest.raises(ValueError, match=f"{LENGTH - 1} positions"):
        repair.begin(backbone=short, seq_len=LENGTH)


def test_the_sampler_is_one_that_the_model_can_follow():
    """Nothing in it that needs what the repaired model lacks."""
    config = repair.begin(backbone=backbone()).config
    fields = config.to_dict() | {"sampler": repair.SAMPLER}
    assert type(config)(**fields).sampler == repair.SAMPLER


def test_the_recipe_trains_by_the_same_procedure(tmp_path, monkeypatch):
    """With its plan, where it keeps its work, and all it was given."""
    asked = []

    def look(ids, valid, plan, folder, **options):
        asked.append((ids.shape, valid.shape, plan, folder, options))
        return repair.begin(backbone=backbone()), ["runs"]

    monkeypatch.setattr(repair, "train", look)
    monkeypatch.setattr(tales_dblm_teacher.common, "TRAIN_TALES", 50)
    _, runs = tales_dblm_teacher.train(tmp_path, "watch")
    plan = tales_dblm_teacher.PLAN
    shapes = (50, ladder.SEQ_LEN), (1000, ladder.SEQ_LEN)
    options = {"watch": "watch", "save_every": 250}
    assert asked == [(*shapes, plan, tmp_path, options)]
    assert runs == ["runs"]
    assert asdict(plan)["together"] == 8500
