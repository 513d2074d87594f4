"""What lies in data/ is what the manifest says, and as good as it says."""

import json
import math

import pytest

import recipes
from dblm_lib import evaluation, metrics, resources, tales, text

MEGABYTE = 2**20
SAMPLES = 100


@pytest.fixture(scope="module")
def manifest():
    return resources.manifest()


@pytest.fixture(scope="module")
def figures(manifest):
    """What was measured on the embedded GPT-2 when it was made."""
    return manifest["artifacts"]["tales-gpt2"]["metrics"]


@pytest.fixture(scope="module")
def backbone():
    return resources.load_backbone("tales-gpt2")


@pytest.fixture(scope="module")
def held_out():
    return text.load("tales", size=1).valid


# --- files ------------------------------------------------------------------


def test_every_file_is_listed_and_as_listed(manifest):
    root = resources.data_path()
    here = {
        path.relative_to(root).as_posix(): path
        for path in root.rglob("*")
        if path.is_file()
        and path.name not in ("MANIFEST.json", "__init__.py")
        and "__pycache__" not in path.parts
    }
    assert here.keys() == manifest["files"].keys()
    for name, listed in manifest["files"].items():
        assert here[name].stat().st_size == listed["bytes"], name
        assert resources.sha256(here[name]) == listed["sha256"], name


def test_the_manifest_says_how_everything_was_made(manifest):
    assert manifest["artifacts"].keys() == recipes.PLACES.keys()
    for name, record in manifest["artifacts"].items():
        assert record["command"] == f"python -m recipes {name}"
        assert record["seconds"] > 0 and record["metrics"]
        place = recipes.PLACES[name]
        assert resources.verified(*place.split("/")).is_dir()


def test_the_data_is_small_enough_to_clone():
    sizes = [p.stat().st_size for p in resources.data_path().rglob("*")]
    assert sum(sizes) < 40 * MEGABYTE
    assert max(sizes) < 16 * MEGABYTE


# --- text and tokenizer -----------------------------------------------------


def test_the_held_out_tales_are_those_of_the_grammar(
    manifest, tmp_path, held_out
):
    measured = recipes.load("tales").make(tmp_path)
    shipped = resources.data_path("tales", "valid.txt").read_bytes()
    assert (tmp_path / "valid.txt").read_bytes() == shipped
    assert measured == manifest["artifacts"]["tales"]["metrics"]
    assert shipped.decode().splitlines() == held_out


def test_the_tokenizer_is_what_its_command_makes(manifest, tmp_path):
    measured = recipes.load("tokenizer").make(tmp_path)
    shipped = resources.data_path("tokenizer", "tokenizer.json").read_bytes()
    assert (tmp_path / "tokenizer.json").read_bytes() == shipped
    assert measured == manifest["artifacts"]["tokenizer"]["metrics"]


def test_the_model_has_the_same_tokenizer(manifest):
    digests = {
        listed["sha256"]
        for name, listed in manifest["files"].items()
        if name.endswith("tokenizer.json")
    }
    assert len(digests) == 1


# --- the embedded GPT-2 -----------------------------------------------------


def test_it_is_a_small_gpt2(backbone, figures):
    assert type(backbone.model).__name__ == "GPT2LMHeadModel"
    count = sum(p.numel() for p in backbone.model.parameters())
    assert count == figures["parameters"] < 4_000_000
    assert backbone.model.config.vocab_size == len(backbone.tokenizer)


def test_the_figures_promise_what_they_should(figures):
    """As asked of it: 3 % from the entropy, 97 % of 500 tales coherent."""
    entropy = tales.entropy()
    assert figures["entropy_nats_per_tale"] == pytest.approx(entropy, abs=1e-4)
    assert figures["valid_nats_per_tale"] <= 1.03 * entropy
    # Nothing can beat the truth on the same tales, but by chance.
    assert figures["valid_nats_per_tale"] > figures["exact_nats_of_these"]
    assert figures["coherent_share_of_500"] >= 0.97
    broken = sum(figures["broken"].values())
    assert broken == round(500 * (1 - figures["coherent_share_of_500"]))


def test_it_is_as_near_to_the_entropy_as_the_manifest_says(
    backbone, figures, held_out
):
    texts = held_out[:300]
    nats, error = metrics.nats_per_tale(*backbone, texts)
    exact = -sum(tales.log_prob(tales.parse(t)) for t in texts) / len(texts)
    assert abs(nats - figures["valid_nats_per_tale"]) < 3 * error
    assert abs(nats / tales.entropy() - 1) < 0.03
    # On the same tales chance cancels: the model pays a little, everywhere.
    assert 0 < nats / exact - 1 < 0.01


def test_its_tales_hold_together(backbone, figures):
    """No fewer than chance allows where the manifest's share is true."""
    texts = metrics.sample_language_model(*backbone, SAMPLES, seed=1)
    share, _ = metrics.coherent_share(texts)
    promised = figures["coherent_share_of_500"]
    spread = math.sqrt(promised * (1 - promised) / SAMPLES)
    assert share >= promised - 3 * spread
    # It has not merely learned a few tales by heart.
    assert len(set(texts)) > 0.99 * SAMPLES
    assert not set(texts) <= set(text.load("tales", size=2000).train)


# --- the equal-token twin ---------------------------------------------------


def test_the_twin_saw_as_many_tokens_as_the_denoiser_in_all(manifest, figures):
    """Those of its backbone and those of its own training."""
    made = manifest["artifacts"]
    twin = made["tales-gpt2-long"]["metrics"]
    teacher = made["tales-dblm-teacher"]["metrics"]
    together = figures["tokens_seen"] + teacher["tokens_seen"]
    assert twin["tokens_seen"] == pytest.approx(together, rel=0.01)
    assert twin["parameters"] == figures["parameters"]


def test_the_twin_writes_better_and_predicts_no_worse(manifest, figures):
    """Four times the tokens, of the same tales: more of them coherent."""
    twin = manifest["artifacts"]["tales-gpt2-long"]["metrics"]
    assert twin["exact_nats_of_these"] == figures["exact_nats_of_these"]
    assert 0 < twin["above_exact_percent"] < 0.5
    assert twin["coherent_share_of_500"] > figures["coherent_share_of_500"]


@pytest.mark.parametrize(
    "name", ["tales-gpt2", "tales-gpt2-long", "tales-dblm-teacher"]
)
def test_what_is_coherent_has_the_grammars_variety(manifest, name):
    """Coherence is not bought: few choices away from the grammar's."""
    found = manifest["artifacts"][name]["metrics"]["evaluation"]
    row = found.get("64 steps") or found["left to right"]
    assert row["coherent_interval"][1] > 0.96
    assert row["above_true"] < 0.08
    assert row["grammar_nats"] > tales.entropy() - 1


# --- samplers, and the teacher on its way -----------------------------------


def test_the_grid_of_samplers_is_whole():
    """Each way of each writer, from the models of today."""
    from dblm_lib import denoiser

    file = resources.verified("samplers") / "grid.json"
    grid = json.loads(file.read_text("utf-8"))
    recipe = recipes.load("samplers")
    own = {n: denoiser.load(n).config.sampler for n in recipe.STEPS}
    asked = recipe.ways(own)
    points = [(r["writer"], r["way"], r["num_steps"]) for r in grid]
    assert points == [(who, way, n) for who, way, n, _ in asked]
    for row, (*_, settings) in zip(grid, asked):
        assert {name: row[name] for name in settings} == settings
        good = row["texts"] - sum(row["broken"].values())
        assert row["coherent"] == pytest.approx(good / row["texts"], abs=1e-5)
        assert row["device"]


def test_the_orders_of_masks_are_whole():
    """Each way, from the model of today, and both floors to their ends."""
    rows, floor = evaluation.orders()
    recipe = recipes.load("orders")
    points = [(r["writer"], r["way"], r["num_steps"]) for r in rows]
    assert points == [way[:3] for way in recipe.ways()]
    for row, (*_, options) in zip(rows, recipe.ways()):
        assert {name: row[name] for name in options} == options
        good = row["texts"] - sum(row["broken"].values())
        assert row["coherent"] == pytest.approx(good / row["texts"], abs=1e-5)
        assert 1 <= row["nfe"] <= row["num_steps"]
    steps = [*range(1, recipe.LAST_STEPS + 1), None]
    for writer in (recipe.WRITER, recipe.ORACLE):
        own = [row for row in floor if row["writer"] == writer]
        assert [row["num_steps"] for row in own] == steps
        above = [own[2**k - 1]["above"] for k in range(9)]
        assert above == sorted(above, reverse=True)
    assert abs(own[-1]["above"]) < 0.01  # the oracle's


def test_the_course_has_its_marks_and_ends_at_the_teacher(manifest):
    file = resources.verified("course") / "course.json"
    course = json.loads(file.read_text("utf-8"))
    facts = manifest["artifacts"]["tales-dblm-teacher"]["metrics"]
    marks = [*recipes.load("course").MARKS, facts["steps"]]
    for way in ("plain", "own"):
        rows = [row for row in course if row["way"] == way]
        assert [row["step"] for row in rows] == marks
        assert ["by_level" in row for row in rows] == [way == "own"] * len(
            rows
        )
        for row in rows:
            low, high = row["coherent_interval"]
            assert 0 <= low <= row["coherent"] <= high <= 1
            good = row["texts"] - sum(row["broken"].values())
            assert row["coherent"] == pytest.approx(good / row["texts"])
    # Another run of the same recipe: equal within the error of sampling.
    last = {"64 steps, plain": course[-2]}
    assert len(evaluation.differing(last, facts["evaluation"])) <= 1
    file = resources.verified("samplers") / "grid.json"
    grid = json.loads(file.read_text("utf-8"))
    sharp = next(row for row in grid if row["way"] == "sharp")
    assert len(evaluation.differing({"": course[-1]}, {"": sharp})) <= 1
