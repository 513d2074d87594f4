"""The instruments of the autopsy, on cases whose answer is known."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dblm_lib import (
    decoding,
    denoiser,
    diagnostics,
    noising,
    resources,
    schedules,
)
from dblm_lib.diagnostics import PROPOSAL, REPAIRED, causes

GEN = torch.Generator().manual_seed


@pytest.fixture(scope="module")
def table():
    return noising.random_table(50, 16, GEN(0))


@pytest.fixture(scope="module")
def ids():
    return torch.randint(50, (6, 20), generator=GEN(1))


@pytest.fixture(scope="module")
def real(ids):
    return torch.arange(20) < torch.tensor([20, 20, 12, 9, 20, 5])[:, None]


def report(denoise, table, ids, real, levels, schedule=None):
    schedule = schedule or schedules.Cosine()
    return diagnostics.level_report(
        denoise, table, schedule, ids, real, levels
    )


# --- levels and gains ------------------------------------------------------


@pytest.mark.parametrize("factor", [1.0, 0.01, 30.0])
def test_difficult_levels_are_as_difficult_as_they_say(table, factor):
    """Measured again with other noise; in the units of the table."""
    drawn = torch.randint(50, (4000,), generator=GEN(2))
    levels = diagnostics.difficult_levels(table * factor, drawn)
    curve = noising.recovery_curve(table * factor, levels, GEN(3), 4000)
    assert torch.allclose(
        curve, torch.tensor(diagnostics.SHARES).double(), atol=0.04
    )
    assert levels == sorted(levels)


@pytest.mark.parametrize("share", [0, 1, -0.5, 2])
def test_difficult_levels_refuse_what_is_no_share(table, share):
    with pytest.raises(ValueError, match="between 0 and 1"):
        diagnostics.difficult_levels(table, torch.arange(50), [share])


def test_an_oracle_is_right_everywhere(table, ids, real):
    found = report(lambda zt, t: table[ids], table, ids, real, [0.1, 5.0])
    assert found["accuracy"] == [1, 1] and found["error"] == [0, 0]
    assert found["norm"] == pytest.approx([1, 1])
    counts = ids[real].bincount()
    assert found["top"] == pytest.approx(
        [counts.max().item() / len(ids[real])] * 2
    )


def test_the_lazy_answer_has_error_one_and_cosine_one(table, ids, real):
    mean = table[ids[real]].mean(0)
    found = report(
        lambda zt, t: mean.expand(zt.shape), table, ids, real, [1.0]
    )
    assert found["error"] == pytest.approx([1])
    assert found["cosine"] == pytest.approx([1])
    assert found["top"] == [1]


def test_no_network_wins_nothing(table, ids, real):
    """Rounding zt / alpha is the baseline itself; it falls with the level."""
    cosine = schedules.Cosine()

    def alone(zt, t):
        return zt / cosine.alpha(t).float()

    found = report(alone, table, ids, real, [0.2, 2.0, 6.0], cosine)
    assert found["accuracy"] == found["baseline"]
    assert found["baseline"][0] == 1 > found["baseline"][1]
    assert found["baseline"][1] > found["baseline"][2]


def test_padding_does_not_count(table, ids, real):
    wrong = (ids + 1) % 50
    mixed = torch.where(real, ids, wrong)
    found = report(lambda zt, t: table[mixed], table, ids, real, [1.0])
    assert found["accuracy"] == [1] and found["error"] == [0]


def test_the_perfect_denoiser_beats_the_baseline(table, ids, real):
    cosine = schedules.Cosine()
    exact = decoding.empirical_denoiser(table[ids], cosine)
    found = report(exact, table, ids, real, [3.0, 200.0], cosine)
    assert found["accuracy"][0] > 0.99 > found["baseline"][0] + 0.2
    assert found["cosine"][1] > found["cosine"][0]
    assert found["norm"][1] < 0.8


class Stub:
    """As much of a model as a gain needs: it knows the texts or nothing."""

    config = None
    schedule = schedules.Cosine()

    def __init__(self, table, answer):
        self.weights, self.answer = table, answer

    def eval(self):
        return self

    def table(self):
        return self.weights

    def __call__(self, zt, t):
        return denoiser.DenoiserOutput(x0=self.answer(zt, t))


def test_gain_of_an_oracle_and_of_one_word(table):
    ids = torch.arange(50).repeat(40).view(40, 50)
    real = torch.ones_like(ids, dtype=torch.bool)
    oracle = Stub(table, lambda zt, t: table[ids])
    assert diagnostics.gain(oracle, ids, real) == pytest.approx(0.5, abs=0.02)
    the_the = Stub(table, lambda zt, t: table[:1].expand(zt.shape))
    found = diagnostics.gain(the_the, ids, real)
    assert found == pytest.approx(1 / 50 - 0.5, abs=0.02)


@torch.no_grad()
def test_either_rounding_is_what_its_name_says():
    """By hand, on a repaired model: by its logits, and to the nearest."""
    ids = torch.arange(20, 52).view(4, 8)
    real = torch.ones_like(ids, dtype=torch.bool)
    model = diagnostics.build(REPAIRED, ids)
    table, level = model.table(), 2.0
    t = model.schedule.time_of(level)
    zt, _ = noising.add_noise(table[ids], t, model.schedule, GEN(0))
    by_hand = {
        "model": model(zt, t).logits.argmax(-1),
        "nearest": noising.nearest(model(zt, t).x0, table),
    }
    assert not torch.equal(*by_hand.values())
    for rounding, found in by_hand.items():
        rows = diagnostics.examine(model, ids, real, [level], 0, rounding)
        right = (found == ids).double().mean().item()
        assert rows["accuracy"] == pytest.approx([right])
    with pytest.raises(ValueError, match="not oracle"):
        diagnostics.gain(model, ids, real, rounding="oracle")


# --- tables, schedules, paths -----------------------------------------------


def test_trivial_share_by_hand():
    schedule = schedules.LogUniform(0.1, 10.0)
    below, above = diagnostics.trivial_share(schedule, 1.0, math.sqrt(10))
    assert below == pytest.approx(0.5, abs=0.01)
    assert above == pytest.approx(0.25, abs=0.01)


@given(st.integers(2, 7), st.integers(1, 4), st.integers(0, 99))
@settings(deadline=None, derandomize=True, max_examples=25)
def test_pairwise_distance_is_the_mean_over_pairs(rows, dim, seed):
    table = torch.randn(rows, dim, generator=GEN(seed))
    gaps = (table[:, None] - table).norm(dim=-1)
    mean = gaps.sum() / (rows * (rows - 1))
    found = diagnostics.pairwise_distance(table)
    assert found == pytest.approx(mean.item(), rel=1e-4)
    assert diagnostics.pairwise_distance(3 * table + 1) == pytest.approx(
        3 * found, rel=1e-4
    )


def test_pairwise_distance_of_a_collapsed_table_and_of_one_row():
    assert diagnostics.pairwise_distance(torch.ones(4, 3)) == 0
    with pytest.raises(ValueError, match="two rows"):
        diagnostics.pairwise_distance(torch.ones(1, 3))


def test_landing_on_tokens_and_between_them():
    table = torch.tensor([[2.0, 0.0], [-2.0, 0.0]])
    between, on = torch.zeros(1, 3, 2), table[torch.tensor([[0, 1, 1]])]
    found = diagnostics.landing([between, on], table)
    assert torch.allclose(found, torch.tensor([[1.0, 1.0], [0.0, 2.0]]))


def test_accuracy_by_position_leaves_padding_out():
    ids = torch.tensor([[1, 2, 3], [1, 2, 3]])
    found = torch.tensor([[1, 0, 3], [1, 2, 0]])
    real = torch.tensor([[True, True, False], [True, True, False]])
    by_place = diagnostics.accuracy_by_position(found, ids, real)
    assert by_place[:2].tolist() == [1, 0.5] and by_place[2].isnan()


def test_within_nearest_grows_to_one(table):
    ids = torch.arange(50)
    points = table + 3 * torch.randn(50, 16, generator=GEN(4))
    shares = [
        diagnostics.within_nearest(points, ids, table, k) for k in (1, 2, 50)
    ]
    nearest = (noising.nearest(points, table) == ids).double().mean()
    assert shares[0] == nearest < shares[1] < shares[2] == 1


def test_a_head_learns_to_read_shrunk_answers(table):
    """Near the mean nearest neighbours fail; a head does not mind."""
    ids = torch.arange(50).repeat(20)
    shrunk = table[0] + 0.2 * (table[ids] - table[0])
    near = noising.nearest(shrunk, table)
    head = diagnostics.fit_head(shrunk, ids, 50)
    right = (head(shrunk).argmax(-1) == ids).double().mean()
    assert right > 0.95 > (near == ids).double().mean() + 0.3


@given(st.floats(0.01, 0.9), st.integers(1, 5))
@settings(deadline=None, derandomize=True, max_examples=20)
def test_terminal_nats_is_the_divergence_of_torch(left, dim):
    class End(schedules.Schedule):
        def alpha_bar(self, t):
            return torch.as_tensor(left, dtype=torch.float64)

    table = torch.randn(3, dim, generator=GEN(5)).double()
    normal = torch.distributions.Normal
    ids = torch.arange(3)
    here = normal(math.sqrt(left) * table[ids], math.sqrt(1 - left))
    wanted = torch.distributions.kl_divergence(here, normal(0.0, 1.0))
    found = diagnostics.terminal_nats(End(), table, ids)
    assert found == pytest.approx(wanted.sum(-1).mean().item(), rel=1e-6)


# --- causes -------------------------------------------------------------------


def test_putting_all_right_is_the_repaired_model():
    both = dict(PROPOSAL)
    for cause in diagnostics.CAUSES:
        both = diagnostics.fixed(cause, both)
        one = diagnostics.broken(cause)
        changed = {k for k in one if one[k] != REPAIRED[k]}
        assert changed == set(diagnostics.CAUSES[cause])
    assert both == REPAIRED


def test_every_cause_is_in_the_plan_both_ways():
    plan = diagnostics.plan()
    for cause in diagnostics.CAUSES:
        assert plan[f"fixed: {cause}"] == diagnostics.fixed(cause)
        assert plan[f"broken: {cause}"] == diagnostics.broken(cause)
    assert len({json.dumps(s, sort_keys=True) for s in plan.values()}) == len(
        plan
    )


def test_explained_by_hand():
    ends = {"proposal": -0.4, "repaired": 0.1, "trained": -0.3}
    ends |= {"fixed: causal mask": -0.3, "broken: causal mask": 0.0}
    ends |= {"trained, fixed: causal mask": -0.25}
    runs = {name: [{"gains": [9, end]}] for name, end in ends.items()}
    table = diagnostics.explained(runs)
    row = table["causal mask"]
    assert row["alone"] == pytest.approx([0.2])
    assert row["trained"] == pytest.approx([0.1])
    assert row["given"] == pytest.approx([0.2])
    assert table["two sentences"]["given"] is None
    assert diagnostics.shares(runs, "trained", "proposal") == pytest.approx(
        [0.2]
    )
    assert diagnostics.shares(runs, "trained", "nothing") is None
    runs["trained"][0]["nearest"], runs["proposal"][0]["nearest"] = -0.2, -0.4
    found = diagnostics.shares(runs, "trained", "proposal", "nearest")
    assert found == pytest.approx([0.4])


@pytest.mark.parametrize("start", ["tales-gpt2", "scratch"])
def test_build_follows_its_settings(start):
    ids = torch.arange(200)
    model = diagnostics.build({**REPAIRED, "start": start}, ids)
    table = model.table().detach()
    schedule = model.schedule
    low, high = diagnostics.difficult_levels(table, ids, (0.98, 0.1))
    assert schedule.low < low < high < schedule.high
    gpt2 = resources.load_backbone("tales-gpt2").model.transformer
    ours = model.trunk.h[0].attn.c_attn.weight
    same = torch.equal(ours, gpt2.h[0].attn.c_attn.weight)
    assert same == (start == "tales-gpt2")
    assert not model.config.causal and model.config.head == "mixture"
    # The directions are those of the tokens that occur, not of all rows.
    whole = gpt2.wte.weight
    fitted = noising.principal_table(whole, 32, ids)
    assert torch.allclose(table, noising.normalise(fitted), atol=1e-5)
    every = noising.normalise(noising.principal_table(whole, 32))
    assert not torch.allclose(table, every, atol=0.1)


def test_a_run_records_its_course(monkeypatch):
    monkeypatch.setattr(causes, "MARKS", (0, 1, 5))
    quick = {**REPAIRED, "data": "two sentences"}
    found = diagnostics.run(quick, seed=3, steps=2)
    assert found["marks"] == [0, 1, 2] and found["steps"] == 2
    assert len(found["gains"]) == len(found["moved"]) == 3
    assert found["moved"][0] == 0 < found["moved"][1] < found["moved"][2]
    assert found["seed"] == 3 and found["settings"] == quick
    assert len(found["texts"]) == 8 and found["seconds"] > 0


def test_the_runs_of_the_book_are_those_of_the_plan():
    runs, plan = diagnostics.results(), diagnostics.plan()
    # Those to the budget may have been planned since.
    missing = set(plan) - set(runs)
    assert set(runs) <= set(plan)
    assert all(name.startswith("broken, to the budget") for name in missing)
    for name in runs:
        wanted = plan[name]
        assert [run["seed"] for run in runs[name]] == [0, 1]
        for run in runs[name]:
            assert run["settings"] == wanted
            steps = diagnostics.STEPS.get(wanted["recipe"], 100)
            assert run["steps"] == run["marks"][-1] == steps
            assert len(run["gains"]) == len(run["marks"])
            assert "scores" not in run


def test_some_causes_are_put_back_for_longer_too():
    """As many steps as the repaired model that they are held against."""
    plan = diagnostics.plan()
    long = [name for name in plan if name.startswith("broken, to the budget")]
    assert 1 <= len(long) <= 4
    for name in long:
        cause = name.partition(": ")[2]
        short = plan[f"broken: {cause}"]
        changed = {k for k in short if short[k] != plan[name][k]}
        assert changed == {"recipe"}
        budget = plan["repaired, to the budget"]["recipe"]
        assert plan[name]["recipe"] == budget


def test_records_of_either_age_are_read(tmp_path, monkeypatch):
    """The gain was called a score once."""
    monkeypatch.setattr(resources, "verified", lambda name: tmp_path)
    found = []
    for key in ("scores", "gains"):
        rows = {"one": [{key: [0.5], "seed": 0}]}
        (tmp_path / "runs.json").write_text(json.dumps(rows), "utf-8")
        found.append(diagnostics.results())
    assert found[0] == found[1] == {"one": [{"gains": [0.5], "seed": 0}]}


def test_a_run_is_kept_and_not_repeated(tmp_path, monkeypatch):
    calls = []

    def run(settings, seed):
        calls.append(settings)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return {"gains": [len(calls)], "seed": seed}

    names = ("one: a", "two", "three")
    plan = {name: {"data": name, "recipe": "longer"} for name in names}
    monkeypatch.setattr(causes, "plan", lambda: plan)
    monkeypatch.setattr(causes, "run", run)
    with pytest.raises(KeyboardInterrupt):
        diagnostics.long_runs(False, tmp_path, seeds=(0,))
    found = diagnostics.long_runs(False, tmp_path, seeds=(0,))
    assert len(calls) == 4
    assert [found[name][0]["gains"] for name in plan] == [[1], [2], [4]]
    # Another process may have made them, one by one.
    (row,) = diagnostics.long_runs(False, tmp_path, (0,), ["two"]).values()
    assert len(calls) == 4 and row[0]["gains"] == [2]
    diagnostics.long_runs(False, tmp_path, (1,), ["two"])
    assert len(calls) == 5 and calls[-1] == plan["two"]
    with pytest.raises(ValueError, match="no run is called 'four'"):
        diagnostics.long_runs(False, tmp_path, names=["one: a", "four"])


def test_a_run_with_the_older_table_is_not_taken_for_a_new_one(
    tmp_path, monkeypatch
):
    """The settings are the same; the table was fitted to all rows then."""
    settings = {"recipe": "longer"}
    monkeypatch.setattr(causes, "plan", lambda: {"one": settings})
    monkeypatch.setattr(causes, "run", lambda settings, seed: {"gains": [0]})
    diagnostics.long_runs(False, tmp_path, (0,))
    file = tmp_path / "0 one.json"
    kept = json.loads(file.read_text("utf-8"))
    del kept["asked"]["recipe"]["table"]
    file.write_text(json.dumps(kept), "utf-8")
    with pytest.raises(resources.DataError, match="fitted"):
        diagnostics.long_runs(False, tmp_path, (0,))


def test_a_run_of_other_settings_is_named_by_what_differs(
    tmp_path, monkeypatch
):
    def run(settings, seed):
        return {"gains": [0.5], "seed": seed}

    settings = {"recipe": "longer", "causal": True}
    monkeypatch.setattr(causes, "plan", lambda: {"one": settings})
    monkeypatch.setattr(causes, "run", run)
    diagnostics.long_runs(False, tmp_path, seeds=(0,))
    settings["causal"] = False
    with pytest.raises(resources.DataError, match="True causal, not False"):
        diagnostics.long_runs(False, tmp_path, seeds=(0,))
    settings["causal"] = True
    monkeypatch.setitem(diagnostics.STEPS, "longer", 7)
    with pytest.raises(resources.DataError, match="400 steps, not 7"):
        diagnostics.long_runs(False, tmp_path, seeds=(0,))


# --- masks of any type --------------------------------------------------------


TYPES = (torch.uint8, torch.int64, torch.float32, torch.float64)


@given(st.integers(0, 2**12 - 1), st.sampled_from(TYPES))
@settings(deadline=None, derandomize=True, max_examples=30)
def test_a_mask_of_any_type_gives_the_same_figures(bits, kind):
    """As an index, an integer mask would pick rows 0 and 1."""
    table = noising.random_table(9, 4, GEN(0))
    ids = torch.randint(9, (3, 4), generator=GEN(1))
    real = torch.tensor([bits >> i & 1 for i in range(12)]).view(3, 4).bool()
    real[1, 2] = True  # one at least
    typed = real.to(kind)
    model = Stub(table, lambda zt, t: zt)
    levels = [0.3, 1.0]
    for measure in (
        lambda mask: report(lambda zt, t: zt, table, ids, mask, levels),
        lambda mask: diagnostics.examine(model, ids, mask, levels),
        lambda mask: diagnostics.gain(model, ids, mask),
        lambda mask: (
            diagnostics.accuracy_by_position(ids.flip(0), ids, mask)
            .nan_to_num(7)
            .tolist()
        ),
    ):
        assert measure(typed) == measure(real)


@pytest.mark.parametrize("value", [2, -1, 0.5, math.nan])
def test_a_mask_of_something_else_is_refused(table, ids, real, value):
    wrong = real.double()
    wrong[0, 0] = value
    with pytest.raises(ValueError, match="must hold 0 and 1"):
        report(lambda zt, t: zt, table, ids, wrong, [1.0])
    with pytest.raises(ValueError, match="must hold 0 and 1"):
        diagnostics.gain(Stub(table, lambda zt, t: zt), ids, wrong)
    with pytest.raises(ValueError, match="must hold 0 and 1"):
        diagnostics.accuracy_by_position(ids, ids, wrong)


def test_a_mask_that_does_not_fit_is_refused(table, ids, real):
    with pytest.raises(ValueError, match="must have shape"):
        report(lambda zt, t: zt, table, ids, real[:, :-1], [1.0])
    with pytest.raises(ValueError, match="no position counts"):
        report(lambda zt, t: zt, table, ids, real & False, [1.0])
