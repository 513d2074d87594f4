"""`dblm eval`: the table, from the code that fills MANIFEST.json."""

import functools
import json
import re

import pytest
from small_book import small_book

from dblm_lib import (
    cli,
    denoiser,
    evaluation,
    masked,
    resources,
    speed,
    text,
)
from dblm_lib.cli import printing

QUICK = ["--samples", "6", "--steps", "3", "2", "--continued", "4"]


@pytest.fixture(scope="module", autouse=True)
def fewer_tales():
    """A small corpus to look for copies in, and few real tales."""
    load = text.load

    @functools.cache
    def small(name="tales", size=1, valid_size=1000, test_size=0):
        most = min(size, 50), min(valid_size, 30), min(test_size, 30)
        return load(name, *most)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "load", small)
        evaluation.training_tales.cache_clear()
        yield
    evaluation.training_tales.cache_clear()


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """A book whose manifest says what the same code has measured."""
    root = tmp_path_factory.mktemp("book")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DBLM_DATA", str(small_book(root / "bare")))
        found = evaluation.evaluate(
            denoiser.load("tales-dblm"),
            resources.load_tokenizer(),
            samples=6,
            steps=(3, 2),
            continued=4,
        )
    return small_book(root / "data", metrics={"evaluation": found})


@pytest.fixture(autouse=True)
def opened(book, monkeypatch):
    monkeypatch.setenv("DBLM_DATA", str(book))
    # The clock by few texts: what it says is tested elsewhere.
    quick = functools.partial(speed.rates, batch_sizes=(1, 2), turns=1)
    monkeypatch.setattr(speed, "rates", quick)


def run(capsys, *arguments):
    code = cli.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out


def test_the_tables_of_a_denoiser(capsys):
    """A table a way of writing: figures, intervals, those of the manifest."""
    code, out = run(capsys, "eval", "tales-dblm", *QUICK)
    assert code == 0
    head, *tables = out.split("\n\n")
    assert re.match(r"tales-dblm: [\d,]+ parameters, judged by tales-", head)
    titles = [table.splitlines()[0] for table in tables]
    for title, start in zip(
        titles,
        (
            "6 texts, written in 3 steps (",
            "6 texts, written in 2 steps (",
            "4 beginnings of held-out tales",
            "2 texts behind the proposal's prompts",
            "30 held-out tales",
        ),
    ):
        assert title.startswith(start)
    recorded = resources.manifest()["artifacts"]["tales-dblm"]["metrics"]
    report = recorded["evaluation"]["3 steps"]
    low, high = report["judge_interval"]
    row = next(x for x in tables[0].splitlines() if "by the judge" in x)
    assert re.split(r"\s{2,}", row.strip())[1:] == [
        f"{report['judge']:.3f}",
        f"{low:.3f} to {high:.3f}",
        f"{report['judge']:.3f}",
    ]
    row = next(x for x in tables[4].splitlines() if "hold together" in x)
    assert row.split()[2] == "100.0%"
    assert "first broken: syntax 6" in tables[0]
    assert "what follows is measured" in tables[3]
    clock = next(x for x in tables if x.startswith("milliseconds a text"))
    ways = [row.split()[:3] for row in clock.splitlines()[2:]]
    assert ways == [[n, k, "steps"] for n in ("1", "2") for k in ("3", "2")]
    assert tables[-1].strip() == (
        "All figures equal MANIFEST.json within sampling error."
    )
    assert max(map(len, out.splitlines())) <= 80


def test_the_same_as_json(capsys):
    code, out = run(capsys, "eval", "tales-dblm", *QUICK, "--json")
    facts = json.loads(out)
    model = denoiser.load("tales-dblm")
    assert code == 0 and facts["name"] == "tales-dblm"
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    recorded = resources.manifest()["artifacts"]["tales-dblm"]["metrics"]
    assert facts["manifest"] == recorded["evaluation"]
    for title, report in facts["evaluation"].items():
        for name, value in report.items():
            if name != "seconds":
                assert value == facts["manifest"][title][name], (title, name)
    assert facts["differing"] == [] and facts["seconds"] > 0
    assert len(facts["clock"]) == 4


def test_a_manifest_that_says_something_else_is_noticed(
    capsys, book, tmp_path, monkeypatch
):
    content = json.loads((book / "MANIFEST.json").read_text("utf-8"))
    recorded = content["artifacts"]["tales-dblm"]["metrics"]["evaluation"]
    recorded["3 steps"]["judge"] += 30
    root = small_book(tmp_path / "data", metrics={"evaluation": recorded})
    monkeypatch.setenv("DBLM_DATA", str(root))
    _, out = run(capsys, "eval", "tales-dblm", *QUICK)
    assert out.rstrip().splitlines()[-2:] == [
        "Beyond sampling error of MANIFEST.json (3 standard errors):",
        "  3 steps: judge",
    ]
    assert "All figures" not in out


def test_pairs_of_tokens_stand_beside_those_of_as_many_texts(capsys):
    """Fewer texts hold more different pairs: no comparison."""

    def pairs(samples):
        few = "--samples", samples, "--steps", 3, "--continued", 0
        _, out = run(capsys, "eval", "tales-dblm", *few)
        row = next(x for x in out.splitlines() if "different pairs" in x)
        return re.findall(r"[\d.]+%", row)

    assert len(pairs(6)) == 4 and len(pairs(5)) == 3


@pytest.mark.parametrize("asked", [[], ["--samples", 5]])
def test_a_slow_machine_writes_fewer_texts_unless_told(
    capsys, monkeypatch, asked
):
    """It says so, and how to get them all."""
    monkeypatch.setattr(evaluation, "affordable", lambda *given: 4)
    command = "eval", "tales-dblm", "--steps", "2", "--continued", "0", *asked
    assert cli.main([str(word) for word in command]) in (None, 0)
    out, err = capsys.readouterr()
    assert f"{5 if asked else 4} texts, written in 2 steps" in out
    assert ("4 texts for each number" in err) == (not asked)


def test_the_seed_and_the_numbers_asked_for_count(capsys):
    few = "--samples", 4, "--steps", 2, "--continued", 0, "--json"
    found = [
        json.loads(run(capsys, "eval", "tales-dblm", *few, "--seed", i)[1])
        for i in (0, 0, 5)
    ]
    one, again, other = (facts["evaluation"] for facts in found)
    assert list(one) == ["2 steps", "real tales"]
    assert one["2 steps"]["texts"] == 4
    assert one["2 steps"]["judge"] == again["2 steps"]["judge"]
    assert one["2 steps"]["judge"] != other["2 steps"]["judge"]


def test_the_twin_from_left_to_right(capsys):
    """Beside what the manifest has of it."""
    few = "--samples", 8, "--continued", 2
    code, out = run(capsys, "eval", "tales-gpt2", *few)
    assert code == 0 and "8 texts, written from left to right" in out
    figures = resources.manifest()["artifacts"]["tales-gpt2"]["metrics"]
    row = next(x for x in out.splitlines() if "hold together" in x)
    recorded = figures["evaluation"]["left to right"]["coherent"]
    assert row.split()[-1] == f"{recorded:.1%}"


def test_the_tables_of_a_model_that_fills_masks(capsys):
    """The same, and what it thinks of tales beside the truth."""
    code, out = run(capsys, "eval", "tales-mdlm", *QUICK)
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    _, *tables = out.split("\n\n")
    starts = [table.splitlines()[0] for table in tables]
    assert [line.split(" (")[0] for line in starts[:3]] == [
        "6 texts, written in 3 steps",
        "6 texts, written in 2 steps",
        "2 texts, written in 3 steps, random order",
    ]
    (table,) = [x for x in tables if x.startswith("nats a tale, of 6")]
    rows = [re.split(r"\s{2,}", x.strip()) for x in table.splitlines()[2:]]
    found = evaluation.nats(
        masked.load("tales-mdlm"),
        resources.load_tokenizer(),
        evaluation.real_tales()[:6],
    )
    assert [row[0] for row in rows[:4]] == [
        "exact, by the grammar",
        "bound of the model",
        "the bound, above exact",
        "from left to right, above exact",
    ]
    assert rows[0][1] == f"{found['exact_nats_of_these']:.3f}"
    low, high = found["bound_above_exact_interval"]
    assert rows[2][1:] == [
        f"{found['bound_above_exact']:+.3f}",
        f"{low:+.3f} to {high:+.3f}",
    ]
    assert f"{found['bound_above_exact_percent']:.1f} % above" in table
    clock = next(x for x in tables if x.startswith("milliseconds a text"))
    assert "3 steps" in clock


@pytest.mark.parametrize("name", ["tales-dblm", "tales-mdlm"])
def test_a_readers_own_model(name, capsys, book, tmp_path):
    """A folder: measured the same way, with nothing beside it."""
    folder = tmp_path / "mine"
    source = book / "checkpoints" / name
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    code, out = run(capsys, "eval", folder, *QUICK)
    assert code == 0 and out.startswith(f"{folder}: ")
    assert "MANIFEST" not in out


def test_info_says_of_nats_what_the_bound_is():
    found = evaluation.nats(
        masked.load("tales-mdlm"),
        resources.load_tokenizer(),
        evaluation.real_tales()[:2],
        rounds=1,
        ordered=2,
    )
    bound, exact = found["bound_nats_per_tale"], found["exact_nats_of_these"]
    assert printing._brief(found) == (
        f"{bound:.2f} by the bound (exact {exact:.2f})"
    )


def test_info_says_of_an_evaluation_what_holds_together(capsys):
    code, out = run(capsys, "info")
    assert code == 0 and "3 steps 0.0% coherent" in out
    assert "real tales 100.0% coherent" in out
