"""`dblm train`: the repaired model by default, and Part I's if asked for."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command import MASKED, PROPOSAL, QUICK, mistake, run

from dblm_lib import (
    cli,
    denoiser,
    ladder,
    masked,
    repair,
    resources,
    text,
    training,
)
from dblm_lib.cli import train
from dblm_lib.training.checkpoints import RECORD, Checkpoints

pytestmark = pytest.mark.usefixtures("book")

ROOT = Path(__file__).resolve().parents[1]
# One step for the range, two with clean neighbours, nine of all together.
TWELVE = ["--steps", "12", *QUICK[2:]]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """With more, sums come out in another order than in a process of one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def repaired(tmp_path_factory, stories):
    """The folder of a finished run of twelve steps; no recipe was named."""
    out = tmp_path_factory.mktemp("runs") / "repaired"
    arguments = ["train", "--out", out, "--text", stories, *TWELVE]
    assert cli.main([str(a) for a in arguments]) == 0
    return out


def digest(out):
    return resources.sha256(out / "final" / "model.safetensors")


# --- what comes of it ---------------------------------------------------------


def test_the_default_is_the_top_of_the_ladder(repaired):
    model = denoiser.load(repaired / "final")
    levels = model.config.schedule_options["levels"]
    wanted = ladder.options(ladder.REPAIRED, levels)
    wanted |= {"seq_len": 16, "sampler": repair.SAMPLER}
    for name, value in wanted.items():
        assert getattr(model.config, name) == value, name
    assert len(levels) == 17
    kept = json.loads((repaired / "run.json").read_text("utf-8"))["settings"]
    assert kept["recipe"] == "repaired" and kept["steps"] == 12
    for part, steps in (("fit", 1), ("neighbours", 2), ("together", 9)):
        names = [path.name for path in (repaired / part).glob("step-*")]
        assert names == [f"step-{steps:07d}"]


def test_it_is_what_the_library_trains(repaired, stories):
    """With all that was given, and the texts filled up with their end."""
    corpus = text.load(str(stories))
    backbone = resources.load_backbone("tales-gpt2")
    ids, valid = (
        text.encode_batch(texts, backbone.tokenizer, 16)[0]
        for texts in (corpus.train, corpus.valid)
    )
    model, _ = repair.train(
        *(ids, valid, repair.plan(12)),
        backbone=backbone,
        seq_len=16,
        batch_size=4,
        progress=False,
    )
    found = denoiser.load(repaired / "final")
    assert all(map(torch.equal, found.parameters(), model.parameters()))


def test_the_proposal_is_trained_as_it_always_was(trained, stories):
    corpus = text.load(str(stories))
    backbone = resources.load_backbone("tales-gpt2")
    resources.seed_everything(0)
    model = denoiser.DBLM.from_backbone(
        backbone, causal=False, normalise_embeddings=True
    )
    texts = text.encode_batch(corpus.train, backbone.tokenizer, 16)
    config = training.TrainConfig(
        steps=3, batch_size=4, learning_rate=1e-3, warmup=0, seed=0
    )
    training.train(model, *texts, config, progress=False)
    found = denoiser.load(trained / "final")
    assert all(map(torch.equal, found.parameters(), model.parameters()))
    assert found.config.head == "vector" and not found.config.sampler
    assert (trained / RECORD).is_file() and list(trained.glob("step-*"))


def test_masks_are_trained_as_the_books_model_is(filling, stories, capsys):
    """By the recipe of tales-mdlm, texts filled up with their end."""
    corpus = text.load(str(stories))
    backbone = resources.load_backbone("tales-gpt2")
    ids, _ = text.encode_batch(corpus.train, backbone.tokenizer, 16)
    resources.seed_everything(0)
    model = masked.MaskedDenoiser.from_backbone(
        backbone, seq_len=16, **masked.TRAINED_WITH["mask"]
    )
    config = ladder.recipe(
        ladder.REPAIRED, steps=3, batch_size=4, warmup=1, ema=0.0, seed=0
    )
    assert config.optimizer == "muon"
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    training.train(model, ids, everywhere, config, progress=False)
    found = masked.load(filling / "final")
    assert all(map(torch.equal, found.parameters(), model.parameters()))
    assert found.config.seq_len == 16
    kept = json.loads((filling / "run.json").read_text("utf-8"))["settings"]
    assert (kept["noise"], kept["recipe"]) == ("mask", "masked")
    few = "sample", filling, "-n", 2, "--steps", 2, "--order", "random"
    assert run(capsys, *few)[0] == 0


@pytest.mark.parametrize("noise", ["uniform", "hybrid"])
def test_other_noises_are_trained_sampled_and_measured(
    noise, capsys, tmp_path, stories
):
    out = tmp_path / "run"
    words = "train", "--out", out, "--text", stories, *QUICK
    assert run(capsys, *words, "--noise", noise)[0] == 0
    config = masked.load(out / "final").config
    for name, value in masked.TRAINED_WITH[noise].items():
        assert getattr(config, name) == value
    assert config.noise == noise
    few = "sample", out, "-n", 2, "--steps", 3
    assert run(capsys, *few, "--show")[0] == 0
    if noise == "uniform":
        message = mistake(capsys, *few, "--order", "random")
        assert "random tokens and knows no masks" in message
    else:
        assert run(capsys, *few, "--order", "random")[0] == 0


def test_each_recipe_has_its_own_defaults(tmp_path, monkeypatch, stories):
    asked = {}

    def look(settings):
        asked.update(settings)
        raise ValueError("seen")

    for name in train._JOBS:
        monkeypatch.setitem(train._JOBS, name, look)
    words = ["train", "--out", str(tmp_path / "r"), "--text", str(stories)]
    for more, steps, rate in (
        ([], 1000, 4e-3),
        (["--recipe", "repaired"], 1000, 4e-3),
        (["--recipe", "proposal"], 500, 1e-3),
        (["--proposal"], 500, 1e-3),
        (["--recipe", "proposal", "--steps", "7"], 7, 1e-3),
        (["--learning-rate", "0.5"], 1000, 0.5),
        (["--noise", "gaussian"], 1000, 4e-3),
        (["--noise", "mask"], 1000, 4e-3),
    ):
        assert cli.main([*words, *more]) == 2
        assert (asked["steps"], asked["learning_rate"]) == (steps, rate)
        (wanted,) = {"proposal", "--proposal", "mask"} & set(more) or ["-"]
        names = {"mask": "masked", "-": "repaired"}
        assert asked["recipe"] == names.get(wanted, "proposal")


def test_the_help_tells_the_recipes_and_their_shares(capsys):
    code, out, _ = run(capsys, "train", "--help")
    said = " ".join(out.split())
    assert code == 0 and "--recipe {repaired,proposal}" in said
    assert "(default repaired)" in said
    assert "(default 1000; of the proposal 500)" in said
    assert "Of its steps a tenth, 300 at most" in said


def test_the_folder_of_a_run_is_a_name_of_its_model(repaired, capsys):
    few = "-n", 2, "--steps", 3
    code, out, _ = run(capsys, "sample", repaired, *few)
    assert code == 0 and len(out.splitlines()) == 2
    for name in (
        ["--model", repaired],
        ["--model", repaired / "final"],
        [repaired / "final"],
        [repaired, "--model", repaired],
    ):
        assert run(capsys, "sample", *name, *few)[1] == out
    message = mistake(capsys, "sample", repaired, "--model", "exact", *few)
    assert "two models are named" in message
    words = "denoise", "the night", "--model", repaired, "--steps", 2
    assert run(capsys, *words)[0] == 0


def test_the_model_of_a_run_writes_with_its_own_sampler(
    repaired, capsys, monkeypatch
):
    from dblm_lib import decoding

    seen, sample = [], decoding.sample

    def look(*arguments, **options):
        seen.append(options)
        return sample(*arguments, **options)

    monkeypatch.setattr(decoding, "sample", look)
    assert run(capsys, "sample", repaired, "-n", 1, "--steps", 2)[0] == 0
    assert seen[0]["stagger"] == repair.SAMPLER["stagger"]
    assert seen[0]["step"] == repair.SAMPLER["step"]


# --- what is said -------------------------------------------------------------


def test_the_plan_and_the_time_to_go_are_told(capsys, tmp_path, stories):
    out = tmp_path / "run"
    _, printed, error = run(
        capsys, "train", "--out", out, "--text", stories, *TWELVE
    )
    lines = [x for x in error.splitlines() if x.startswith("dblm: ")]
    assert "36 do not fit into 16 tokens" in lines[0]
    assert (
        "training 12 steps: 1 for the range of noise, 2 with clean "
        f"neighbours, 9 of all together; checkpoints go to {out}"
    ) in lines[1]
    assert lines[2] == "dblm: the range of noise: 1 step"
    assert lines[3].startswith("dblm: clean neighbours: 2 steps; ")
    assert lines[4].startswith("dblm: all together: 9 steps; ")
    assert all(line.endswith("to go") for line in lines[3:5])
    assert printed.startswith("loss ")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (3, "less than a minute"),
        (50, "about 1 minute"),
        (600, "about 10 minutes"),
        (5900, "about 98 minutes"),
        (7300, "about 2 hours"),
    ],
)
def test_a_time_to_come_is_rounded(seconds, said):
    assert train._duration(seconds) == said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--causal"], "--causal is known to --recipe proposal only"),
        (["--recipe", "repaired", "--proposal"], "--proposal is known to"),
        (["--recipe", "best"], "invalid choice: 'best'"),
        (["--steps", "2"], "at least 3 steps, not 2"),
        (["--seq-len", "256"], "knows 255 positions behind a start; got"),
        ([*MASKED, "--seq-len", "256"], "knows 255 positions behind a start"),
        ([*MASKED, "--recipe", "repaired"], "--recipe is known to --noise"),
        ([*MASKED, "--causal"], "--causal is known to --noise gaussian only"),
        ([*MASKED, "--proposal"], "--proposal is known to --noise gaussian"),
        (["--noise", "white"], "invalid choice: 'white'"),
    ],
)
def test_a_request_that_cannot_be_met(
    arguments, said, capsys, tmp_path, stories
):
    words = "train", "--out", tmp_path / "r", "--text", stories, *QUICK
    assert said in mistake(capsys, *words, *arguments)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("noise", ["gaussian", "mask"])
def test_a_backbone_without_a_start_is_refused_before_the_folder(
    noise, capsys, tmp_path, stories, book
):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_positions": 32, "n_embd": 8, "n_layer": 1, "n_head": 2}
    config = GPT2Config(
        vocab_size=1024, bos_token_id=None, eos_token_id=0, **sizes
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "g")
    shutil.copy(book / "tokenizer" / "tokenizer.json", tmp_path / "g")
    words = "train", "--out", tmp_path / "r", "--text", stories, *QUICK
    words = *words, "--noise", noise
    message = mistake(capsys, *words, "--backbone", tmp_path / "g")
    assert "bos_token_id" in message and not (tmp_path / "r").exists()


# --- stopped, and resumed -----------------------------------------------------


@pytest.mark.parametrize(
    ("saves", "kept"), [(1, 1), (2, 2), (3, 3), (7, 7), (12, 12)]
)
def test_stopped_in_any_part_it_ends_with_the_same_model(
    saves, kept, repaired, tmp_path, capsys, monkeypatch, stories
):
    """By Ctrl-C; what is kept counts the steps of the parts before."""
    out, save, count = tmp_path / "stopped", Checkpoints.save, []

    def stop(self, done, history):
        save(self, done, history)
        count.append(done)
        if len(count) == saves:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", stop)
    words = "train", "--out", out
    code, _, error = run(capsys, *words, "--text", stories, *TWELVE)
    assert code == 130 and not (out / "final").exists()
    assert f"kept is step {kept}; go on from there with: dblm train" in error
    message = mistake(capsys, "sample", out, "-n", 1)
    assert "is not finished" in message and "--resume" in message
    code, printed, _ = run(capsys, *words, "--resume")
    assert code == 0 and len(count) == 12
    assert digest(out) == digest(repaired)
    assert f"model in {out / 'final'}" in printed
    # Once more: nothing is left to do, and nothing changes.
    assert run(capsys, *words, "--resume")[0] == 0
    assert len(count) == 12 and digest(out) == digest(repaired)


def test_stopped_before_the_first_step(
    tmp_path, capsys, monkeypatch, stories, repaired
):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", stop)
    words = "train", "--out", tmp_path / "r"
    _, _, error = run(capsys, *words, "--text", stories, *TWELVE)
    assert "no step is kept yet" in error
    monkeypatch.undo()
    assert run(capsys, *words, "--resume")[0] == 0
    assert digest(tmp_path / "r") == digest(repaired)


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
import torch
from dblm_lib import cli, ladder, storage
from dblm_lib.cli import train
from dblm_lib.training.checkpoints import Checkpoints
torch.set_num_threads(1)
words = ["train", "--out", {out!r}, "--text", {text!r}, *{more!r}, "--resume"]
def die(*given, **options):
    os.kill(os.getpid(), signal.SIGKILL)
def before_a_save(number):
    save, count = Checkpoints.save, []
    def killed(self, *given):
        count.append(given)
        (die if len(count) == number else save)(self, *given)
    Checkpoints.save = killed
def within_a_write(number):
    verify, count = storage.verify, []
    def killed(*given):
        count.append(given)
        (die if len(count) == number else verify)(*given)
    storage.verify = killed
def while_it_is_fitted():
    ladder.level_report = die
def at_the_end():
    train._save_final = die
for how, *given in {deaths}:
    how = globals()[how]
    child = os.fork()
    if not child:
        how(*given)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(cli.main(words))
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), (how, given, status)
assert cli.main(words) == 0
"""


DEATHS = (
    *(("within_a_write", 1), ("while_it_is_fitted",), ("before_a_save", 1)),
    *(("within_a_write", 1), ("before_a_save", 2), ("before_a_save", 3)),
    *(("within_a_write", 4), ("at_the_end",), ("within_a_write", 3)),
)
IN_ONE_PART = (
    *(("before_a_save", 1), ("within_a_write", 1), ("before_a_save", 2)),
    *(("within_a_write", 2), ("at_the_end",)),
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("reference", "more", "deaths", "parts"),
    [
        ("repaired", TWELVE, DEATHS, ("fit", "neighbours", "together")),
        ("filling", MASKED, IN_ONE_PART, (".",)),
    ],
    ids=["repaired", "masks"],
)
def test_killed_in_every_part_it_ends_with_the_same_model(
    reference, more, deaths, parts, request, tmp_path, stories
):
    """SIGKILL before and within checkpoints, between parts, at the end."""
    finished = request.getfixturevalue(reference)
    out = tmp_path / "killed"
    code = KILLED.format(
        root=str(ROOT),
        out=str(out),
        text=str(stories),
        more=more,
        deaths=deaths,
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert digest(out) == digest(finished)
    for part in {*parts, "."}:
        left = [path.name for path in (out / part).iterdir()]
        assert not [x for x in left if x.startswith((".draft", ".trash"))]
        steps = [x for x in left if x.startswith("step-")]
        assert len(steps) == (part in parts)


def test_another_recipe_is_not_resumed(trained, repaired, filling, capsys):
    words = "train", "--resume", "--noise"
    for out, kept, other in (
        (filling, "mask", "gaussian"),
        (repaired, "gaussian", "mask"),
    ):
        message = mistake(capsys, *words, other, "--out", out)
        assert f"began with noise {kept}" in message
    words = "train", "--resume", "--recipe"
    for out, kept, other in (
        (trained, "proposal", "repaired"),
        (repaired, "repaired", "proposal"),
    ):
        message = mistake(capsys, *words, other, "--out", out)
        assert f"began with recipe {kept}" in message


def test_a_run_that_knows_no_recipe_is_the_proposals(
    trained, tmp_path, capsys
):
    """It was begun when there was no other."""
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    record = json.loads((out / "run.json").read_text("utf-8"))
    del record["settings"]["recipe"], record["settings"]["noise"]
    (out / "run.json").write_text(json.dumps(record), "utf-8")
    assert run(capsys, "train", "--out", out, "--resume")[0] == 0
    assert digest(out) == digest(trained)
    record["settings"]["recipe"] = "best"
    (out / "run.json").write_text(json.dumps(record), "utf-8")
    message = mistake(capsys, "train", "--out", out, "--resume", code=1)
    assert "the recipe 'best' is unknown" in message


def stopped_after_the_fit(out, stories, monkeypatch, capsys):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ladder, "only_neighbours", stop)
        words = "train", "--out", out, "--text", stories, *TWELVE
        assert run(capsys, *words)[0] == 130
    assert (out / "levels.json").is_file()
    assert not (out / "neighbours").exists()


@pytest.mark.parametrize("name", ["neighbours/thesis.txt", "together"])
def test_what_stands_where_a_part_would_go_stays(
    name, tmp_path, capsys, monkeypatch, stories
):
    out = tmp_path / "run"
    stopped_after_the_fit(out, stories, monkeypatch, capsys)
    path = out / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    message = mistake(capsys, "train", "--out", out, "--resume")
    assert f"{out / name.split('/')[0]} was not written by this" in message
    assert path.read_text() == "mine"


def test_a_range_of_other_texts_is_not_taken(
    tmp_path, capsys, monkeypatch, stories
):
    """The file has changed between the fit and what follows."""
    mine, out = tmp_path / "mine.txt", tmp_path / "run"
    shutil.copy(stories, mine)
    stopped_after_the_fit(out, mine, monkeypatch, capsys)
    mine.write_text(mine.read_text("utf-8").replace("the", "a"), "utf-8")
    monkeypatch.setattr(text, "load", text.load.__wrapped__)
    message = mistake(capsys, "train", "--out", out, "--resume", code=1)
    assert "levels.json" in message and "sha256 of the texts" in message


def test_the_names_in_use_are_those_of_the_tests():
    """Of folders and of recipes; the tests of folders count on them."""
    from test_cli_folders import NAMES

    for part in (*repair.PARTS, "levels.json"):
        assert any(name.split("/")[0] == part for name in NAMES)
    assert set(train._JOBS) == {"repaired", PROPOSAL[1], "masked"}
