"""`dblm train` owns what it wrote, and touches nothing else.

What a reader has put somewhere, under whatever name, is there afterwards
with the same bytes; and of two processes that want one folder, one has it.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
from bystanders import snapshot
from command import MASKED, PROPOSAL, QUICK, mistake, run

from dblm_lib import denoiser, masked, resources, storage, text, training
from dblm_lib.cli import printing, train

pytestmark = pytest.mark.usefixtures("book")

# All names that the program itself uses, and some that look like them.
NAMES = (
    "final/thesis.txt",
    "final/model.safetensors",
    "final.tmp/a",
    "unfinished/chapter.md",
    "step-0000001/notes.txt",
    "step-0000003-good/state.json",
    "step-by-step/a.md",
    "step-plan.md",
    "run.json",
    "run.tmp",
    "training.json",
    "levels.json",
    "fit/step-0000001/state.json",
    "neighbours/notes.md",
    "together/training.json",
    ".draft-final-1-2/x",
    ".trash-final-1-2/x",
    ".dblm.json",
    "config.json",
    "tokenizer.json",
    "thesis.txt",
    "nested/deep/thesis.txt",
)


def put(root, name, content="mine"):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, "utf-8")


def never(*arguments, **options):
    raise AssertionError("this was not to be called")


# --- bystanders -------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("resume", [[], ["--resume"]])
@pytest.mark.parametrize("settings", [PROPOSAL, MASKED])
def test_a_folder_that_holds_anything_is_refused_before_loading(
    name, resume, settings, tmp_path, capsys, monkeypatch, stories
):
    monkeypatch.setattr(text, "load", never)
    monkeypatch.setattr(resources, "load_backbone", never)
    put(tmp_path / "thesis", name)
    before = snapshot(tmp_path)
    code = 1 if name == "run.json" and resume else 2
    message = mistake(
        *(capsys, "train", "--out", tmp_path / "thesis", "--text", stories),
        *(*settings, *resume),
        code=code,
    )
    assert name.split("/")[0] in message and "folder" in message
    assert snapshot(tmp_path) == before  # no lock either


def test_all_of_them_at_once_are_there_afterwards(tmp_path, capsys, stories):
    for name in NAMES:
        put(tmp_path / "thesis", name, f"the reader's {name}")
    before = snapshot(tmp_path)
    arguments = "train", "--out", tmp_path / "thesis", "--text", stories
    said = mistake(capsys, *arguments, *PROPOSAL)
    assert 0 < sum(name in said for name in NAMES) < len(NAMES) // 2
    mistake(capsys, *arguments, "--resume", code=1)
    assert snapshot(tmp_path) == before


def test_bystanders_beside_and_within_a_run_survive_it(
    tmp_path, capsys, either
):
    """Of names that the run does not use, and of the reader's own files."""
    _, trained = either
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    beside = ["notes.md", "steps/a.md", "final.bak/a", ".draft-x/y"]
    for name in beside:
        put(out, name)
    mine = {name: snapshot(out)[name] for name in beside}
    (step,) = (p for p in out.glob("step-*") if p.name[5:].isdigit())
    code, _, _ = run(capsys, "train", "--out", out, "--resume")
    assert code == 0 and step.is_dir()
    after = snapshot(out)
    assert {name: after.get(name) for name in beside} == mine


@pytest.mark.parametrize(
    "change", ["file", "added", "changed", "other", "unmarked"]
)
def test_a_final_that_is_not_this_runs_stops_resume_before_training(
    change, tmp_path, capsys, monkeypatch, trained
):
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    final = out / "final"
    marker = final / storage.MARKER
    if change == "file":
        shutil.rmtree(final)
        put(out, "final", "a chapter")
    if change == "added":
        put(final, "notes.txt")
    if change == "changed":
        put(final, "config.json", "{}")
    if change == "other":
        said = marker.read_text("utf-8")
        owner = storage.owner_of(final)
        marker.write_text(said.replace(owner, "0" * 16), "utf-8")
    if change == "unmarked":
        marker.unlink()
    before = snapshot(out)
    monkeypatch.setattr(training, "train", never)
    monkeypatch.setattr(resources, "load_backbone", never)
    message = mistake(capsys, "train", "--out", out, "--resume")
    assert str(final) in message and "elsewhere" in message
    # The lock is no file of anyone's.
    assert snapshot(out) == before | {
        name: kept
        for name, kept in snapshot(out).items()
        if name == storage.LOCK
    }


def test_a_final_that_somebody_makes_meanwhile_is_kept(
    tmp_path, capsys, monkeypatch, stories
):
    """And the model is not lost: the way on is told."""
    full, out = training.train, tmp_path / "run"

    def slow(*arguments, **options):
        history = full(*arguments, **options)
        put(out, "final/thesis.txt")
        return history

    monkeypatch.setattr(training, "train", slow)
    arguments = "train", "--out", out, "--text", stories, *PROPOSAL
    message = mistake(capsys, *arguments)
    assert "was not written by this run" in message and "--resume" in message
    assert (out / "final" / "thesis.txt").read_text() == "mine"
    monkeypatch.undo()
    (out / "final").rename(tmp_path / "elsewhere")
    assert run(capsys, "train", "--out", out, "--resume")[0] == 0
    assert denoiser.load(out / "final")


def test_the_model_of_a_run_is_replaced_by_the_same_run(
    tmp_path, capsys, trained
):
    """The folder is marked, so this is known to be one's own."""
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    storage.verify(
        out / "final", json.loads((out / "run.json").read_text())["owner"]
    )
    (out / "final" / "tokenizer.json").unlink()
    assert run(capsys, "train", "--out", out, "--resume")[0] == 0
    assert (out / "final" / "tokenizer.json").is_file()


def test_what_a_killed_process_left_is_swept(tmp_path, capsys, trained):
    """Only what is marked as this run's."""
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    shutil.copytree(out / "final", out / ".draft-final-1-aa")
    put(out, ".draft-mine/x")
    assert run(capsys, "train", "--out", out, "--resume")[0] == 0
    assert not (out / ".draft-final-1-aa").exists()
    assert (out / ".draft-mine" / "x").is_file()


def test_an_empty_folder_with_litter_is_fine(tmp_path, capsys, stories):
    put(tmp_path / "run", ".DS_Store")
    put(tmp_path / "run", "desktop.ini")
    arguments = (
        "train",
        "--out",
        tmp_path / "run",
        "--text",
        stories,
        *PROPOSAL,
    )
    assert run(capsys, *arguments)[0] == 0
    assert (tmp_path / "run" / ".DS_Store").read_text() == "mine"


# --- whose run it is --------------------------------------------------------


def test_a_run_of_an_early_version_is_not_guessed_at(
    tmp_path, capsys, trained
):
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    kept = json.loads((out / "run.json").read_text("utf-8"))
    (out / "run.json").write_text(json.dumps(kept["settings"]), "utf-8")
    message = mistake(capsys, "train", "--out", out, "--resume", code=1)
    assert "names no owner" in message and "another folder" in message


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "7", "{}", "null", "[" * 100_000, '{"owner": "a"}'),
        '{"owner": 7, "settings": {}}',
        '{"owner": "a", "settings": []}',
        '{"owner": "a", "settings": {"steps": 3}}',
    ],
)
def test_a_damaged_run_json(content, tmp_path, capsys):
    put(tmp_path, "run.json", content)
    message = mistake(capsys, "train", "--out", tmp_path, "--resume", code=1)
    assert "run.json" in message and "give another folder" in message
    assert snapshot(tmp_path) == {"run.json": content.encode()}


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", "3"), ("steps", 2.5), ("text", None), ("causal", 1)],
)
def test_a_setting_of_a_wrong_type(name, value, tmp_path, capsys, trained):
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    kept = json.loads((out / "run.json").read_text("utf-8"))
    kept["settings"][name] = value
    (out / "run.json").write_text(json.dumps(kept), "utf-8")
    message = mistake(capsys, "train", "--out", out, "--resume", code=1)
    assert f"{name} of a wrong type" in message


# --- two processes ----------------------------------------------------------


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "dblm_lib", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_of_two_processes_at_once_one_has_the_folder(tmp_path, stories):
    out = tmp_path / "two"
    arguments = "train", "--out", out, "--text", stories, *PROPOSAL
    both = [start(*arguments, "--seed", seed) for seed in (1, 2)]
    said = [process.communicate(timeout=120) for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2], said
    won, lost = codes.index(0), codes.index(2)
    assert len(said[lost][1].splitlines()) == 1
    assert said[lost][1].startswith("dblm: ") and str(out) in said[lost][1]
    kept = json.loads((out / "run.json").read_text("utf-8"))
    assert kept["settings"]["seed"] == won + 1
    storage.verify(out / "final", kept["owner"])


def test_a_run_that_is_under_way_is_not_resumed_beside_it(
    tmp_path, capsys, trained
):
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    code = (
        "import sys, time; from dblm_lib import storage\n"
        "with storage.lock(sys.argv[1]):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, out], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        message = mistake(capsys, "train", "--out", out, "--resume")
        assert "another process" in message
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    assert run(capsys, "train", "--out", out, "--resume")[0] == 0


# --- Ctrl-C, and what is said then ------------------------------------------


def hints(error):
    """The command that is to be pasted, as a shell would split it."""
    line = next(x for x in error.splitlines() if ": dblm train" in x)
    return line, shlex.split(line.split(": ", 2)[2])


@pytest.mark.skipif(os.name == "nt", reason="POSIX quoting")
@pytest.mark.parametrize("name", ["my run", "it's $HOME", "-x"])
def test_the_hint_after_ctrl_c_can_be_pasted(
    name, tmp_path, capsys, monkeypatch, stories
):
    monkeypatch.chdir(tmp_path)
    full = training.train

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", stop)
    arguments = "train", f"--out={name}", "--text", stories, *PROPOSAL
    code, _, error = run(capsys, *arguments)
    line, words = hints(error)
    assert code == 130 and "no step is kept yet" in line
    monkeypatch.setattr(training, "train", full)
    assert run(capsys, *words[1:])[0] == 0
    assert (tmp_path / name / "final" / "config.json").is_file()


def test_on_windows_double_quotes(monkeypatch):
    monkeypatch.setattr(printing.os, "name", "nt")
    words = "dblm", "train", "--out", r"C:\my run", "--resume"
    assert printing.paste(*words) == (r'dblm train --out "C:\my run" --resume')


def test_after_ctrl_c_the_step_that_is_kept_is_named(
    tmp_path, capsys, monkeypatch, stories
):
    full, out = training.train, tmp_path / "run"

    def stop(*arguments, **options):
        full(*arguments, **options)
        put(out, "step-9999999-good/state.json")  # a reader's backup
        put(out, "step-plan.md")
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", stop)
    arguments = "train", "--out", out, "--text", stories, *PROPOSAL
    code, _, error = run(capsys, *arguments)
    line, _ = hints(error)
    assert code == 130 and "kept is step 3;" in line


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
def test_a_real_ctrl_c(tmp_path, stories):
    out = tmp_path / "run"
    settings = "--text", stories, *QUICK[2:], "--steps", "20000"
    process = start("train", "--out", out, *settings)
    line = process.stderr.readline()
    while "training" not in line:
        assert line
        line = process.stderr.readline()
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in error
    _, words = hints(error)
    assert words == ["dblm", "train", "--out", str(out), "--resume"]


# --- where the folder cannot be ---------------------------------------------


def test_places_where_no_folder_can_be(tmp_path, capsys, monkeypatch, stories):
    """Said before a text or model is loaded."""
    monkeypatch.setattr(text, "load", never)
    (tmp_path / "file").write_text("mine")
    os.symlink("nowhere", tmp_path / "link")
    for out in ("file", "file/run", "link", "link/run"):
        message = mistake(capsys, "train", "--out", tmp_path / out, code=1)
        assert "cannot be written" in message and "is no folder" in message
    for out, said in (
        ("", "--out is empty"),
        (" ", "--out is empty"),
        ("~nosuchuser/run", "the home folder"),
        ("a\0b", "holds a NUL"),
    ):
        assert said in mistake(capsys, "train", "--out", out)


# --- what was trained is what is sampled ------------------------------------


def test_the_canvas_of_training_is_the_canvas_of_sampling(either, capsys):
    settings, trained = either
    final = trained / "final"
    filling = settings == MASKED
    model = (masked if filling else denoiser).load(final)
    assert model.config.seq_len == 16
    tokenizer = resources.load_tokenizer(final)
    few = "sample", "--model", final, "-n", 4, "--steps", 2

    def longest(*options):
        code, out, _ = run(capsys, *few, *options)
        assert code == 0
        return max(len(tokenizer(x)["input_ids"]) for x in out.splitlines())

    # Read again, a text of a model that has learnt little may take some
    # tokens more than were written.
    assert longest() <= 24 < longest("--length", 60) <= 75
    most = 256 - filling
    said = f"knows {most} positions: --length is {most} at most, not 257"
    assert said in mistake(capsys, *few, "--length", 257)
    prompt = "the night " * 10
    said = mistake(capsys, *few, "--prompt", prompt)
    assert "the canvas only 16" in said and "--length" in said
    assert run(capsys, *few, "--prompt", prompt, "--length", 60)[0] == 0
    said = mistake(capsys, "denoise", prompt, "--model", final)
    assert ("knows masks" if filling else "the canvas holds 15") in said


@pytest.mark.parametrize("settings", [PROPOSAL, MASKED])
def test_a_model_with_few_positions_is_sampled_within_them(
    settings, tmp_path, capsys, stories, book
):
    """A GPT-2 of 32 positions, trained on 16, sampled, measured."""
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt2 = tmp_path / "g"
    GPT2LMHeadModel(
        GPT2Config(
            vocab_size=1024,
            n_positions=32,
            n_embd=8,
            n_layer=1,
            n_head=2,
            eos_token_id=0,
            bos_token_id=0,
        )
    ).save_pretrained(gpt2)
    shutil.copy(book / "tokenizer" / "tokenizer.json", gpt2)
    out = tmp_path / "r"
    arguments = "train", "--backbone", gpt2, "--out", out, "--text", stories
    assert run(capsys, *arguments, *settings)[0] == 0
    model = "--model", out / "final"
    most = 32 - (settings == MASKED)
    assert run(capsys, "sample", *model, "-n", 2, "--steps", 2)[0] == 0
    said = mistake(capsys, "sample", *model, "--length", 33)
    assert f"knows {most} positions" in said
    few = "--samples", 2, "--steps", 2, "--continued", 8
    code, printed, _ = run(capsys, "eval", out / "final", *few)
    assert code == 0
    # Eight words fit on 16 tokens, and 24 do not.
    assert "beginnings of held-out tales, continued" in printed
    assert "8 beginnings" not in printed


def test_a_long_canvas_for_the_exact_denoiser(capsys):
    few = "sample", "--model", "exact", "-n", 2, "--steps", 4
    assert run(capsys, *few, "--length", 20)[0] == 0
    assert "lower --length" in mistake(capsys, *few, "--length", 9999)


# --- nothing is cut in silence ----------------------------------------------


def test_cuts_of_a_readers_text_are_told_in_one_line(
    tmp_path, capsys, monkeypatch
):
    load = text.load

    def smaller(name, size=30, valid_size=3):
        return load(name, size, valid_size)

    monkeypatch.setattr(text, "load", smaller)
    long = "night " * 90
    short = ["the night was here."] * 35

    def said(name, texts):
        path = tmp_path / name
        path.write_text("\n\n".join(texts), "utf-8")
        arguments = ["train", "--text", path, *PROPOSAL, "--seq-len", 64]
        _, _, error = run(capsys, *arguments, "--out", tmp_path / name[:-4])
        return [line for line in error.splitlines() if name in line]

    (line,) = said("many.txt", [*short, long, long])
    assert "30 of its 37 texts are trained on, 3 are held out" in line
    assert "do not fit" not in line  # the first 30 are short ones
    (line,) = said("long.txt", [*short[:9], *[long] * 11])
    # Two of the twenty are held out: a short one and a long one.
    assert "18 texts are trained on; 10 do not fit into 64 tokens" in line
    assert said("fine.txt", short[:10]) == []


def test_the_names_in_use_are_those_of_the_command():
    """Or the bystanders above would prove nothing."""
    for name in ("final", train._RUN, storage.MARKER):
        assert any(x.split("/")[0] == name for x in NAMES)
