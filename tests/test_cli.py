"""The command line: it teaches, it works, and it forgives mistakes."""

import contextlib
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from command import MASKED, PROPOSAL, QUICK, mistake, run
from small_book import small_book

from dblm_lib import (
    cli,
    denoiser,
    evaluation,
    masked,
    noising,
    resources,
    speed,
    tales,
    text,
    training,
    writing,
)
from dblm_lib.cli import info, parser, printing, sample
from dblm_lib.training.checkpoints import Checkpoints

COMMANDS = ("sample", "eval", "train", "denoise", "info")


@pytest.fixture(scope="module", autouse=True)
def book(tmp_path_factory):
    """The book's data with a small tales-dblm, fresh from chance."""
    root = tmp_path_factory.mktemp("book") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DBLM_DATA", str(small_book(root)))
        yield root


@pytest.fixture(scope="module", autouse=True)
def tales_once():
    """Draw the same tales once, not for every command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "load", functools.cache(text.load))
        yield


# --- help -------------------------------------------------------------------


def test_the_help_names_every_command_and_the_exit_codes(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for word in (*COMMANDS, "Exit codes", "130", "dblm COMMAND --help"):
        assert word in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command, capsys):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    sub = cli.build_parser()._subparsers._group_actions[0].choices[command]
    for action in sub._actions:
        assert action.help, action.dest
    assert max(map(len, out.splitlines())) <= 80


def examples():
    """The command lines that stand in the help texts."""
    texts = (
        parser._EPILOG,
        parser._SAMPLE,
        parser._EVAL,
        parser._TRAIN,
        parser._DENOISE,
    )
    for line in "\n".join(texts).splitlines():
        if line.startswith("  dblm "):
            yield re.split(r"\s{3,}", line.strip())[0]


def test_there_are_examples_for_each_command():
    used = {shlex.split(line)[1] for line in examples()}
    assert used == {"sample", "eval", "train", "denoise"}


@pytest.mark.parametrize("line", dict.fromkeys(examples()))
def test_the_examples_of_the_help_run(
    line, capsys, tmp_path, monkeypatch, trained, stories
):
    monkeypatch.chdir(tmp_path)
    if "my-run" in line and ("train" not in line or "--resume" in line):
        shutil.copytree(trained, tmp_path / "my-run")
    shutil.copy(stories, "my-stories.txt")
    arguments = shlex.split(line)[1:]
    if arguments[0] == "train" and "--resume" not in arguments:
        quick_training(monkeypatch)
        arguments += QUICK[2:]  # the steps are cut short anyway
        if "--text" not in arguments:
            arguments += ["--text", "my-stories.txt"]
    if arguments[0] == "eval":
        quick_evaluation(monkeypatch)
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and out.strip()


def quick_evaluation(monkeypatch):
    """Few texts in one step, whatever was asked for."""
    full, load = evaluation.evaluate, text.load

    def fewer(name="tales", size=1, valid_size=1000, test_size=0):
        most = min(size, 50), min(valid_size, 30), min(test_size, 30)
        return load(name, *most)

    monkeypatch.setattr(text, "load", fewer)
    monkeypatch.setattr(evaluation, "training_tales", frozenset)

    def short(model, tokenizer, samples, steps, continued, **options):
        samples, continued = min(samples, 3), min(continued, 2)
        return full(model, tokenizer, samples, [1], 0, continued)

    monkeypatch.setattr(evaluation, "evaluate", short)
    quick = functools.partial(speed.rates, batch_sizes=(1,), turns=1)
    monkeypatch.setattr(speed, "rates", quick)


def quick_training(monkeypatch):
    """Two steps, whatever was asked for."""
    full = training.train

    def short(model, ids, mask, config, **options):
        config.steps = 2
        return full(model, ids[:8], mask[:8], config, **options)

    monkeypatch.setattr(training, "train", short)


def test_the_command_line_needs_no_torch_to_explain_itself():
    code = (
        "import sys; from dblm_lib import cli\n"
        "try: cli.main(['sample', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --- sample -----------------------------------------------------------------


def test_sample_prints_one_text_a_line(capsys):
    arguments = "sample", "--model", "exact", "-n", 3, "--steps", 8
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and len(out.splitlines()) == 3
    assert run(capsys, *arguments)[1] == out
    assert run(capsys, *arguments, "--seed", 1)[1] != out


def test_check_gives_the_grammars_verdicts(capsys):
    options = "--model", "exact", "-n", 3, "--steps", 16, "--check"
    _, out, _ = run(capsys, "sample", *options)
    lines = out.splitlines()
    assert lines[-1] == "3 of 3 hold together"
    assert [line.strip() for line in lines[1:-1:2]] == ["ok"] * 3
    assert all(tales.check(words).ok for words in lines[:-1:2])


def test_check_says_what_is_broken(capsys, trained):
    _, out, _ = run(
        *(capsys, "sample", "-n", 2, "--steps", 2, "--check"),
        *("--model", trained / "final"),
    )
    words, verdict, *_, summary = out.splitlines()
    assert verdict.strip() == tales.check(words).message
    assert summary == "0 of 2 hold together"


def test_show_prints_the_way_and_then_the_texts(capsys):
    command = "sample", "--model", "exact", "-n", 2, "--steps", 40
    _, out, _ = run(capsys, *command, "--show")
    way, texts = out.split("\n\n")
    levels = [float(line.split()[0]) for line in way.splitlines()[2:]]
    assert 10 <= len(levels) <= 16
    assert levels == sorted(levels, reverse=True) and levels[0] == 20
    assert texts == run(capsys, *command)[1]


@pytest.mark.parametrize("model", ["exact", "tales-dblm", "tales-mdlm"])
def test_a_prompt_begins_every_text(model, capsys):
    prompt = "One sunny morning,"
    command = "sample", "-n", 3, "--steps", 16, "--prompt", prompt
    _, out, _ = run(capsys, *command, "--model", model)
    assert len(out.splitlines()) == 3
    assert all(line.startswith(prompt) for line in out.splitlines())


def test_sample_is_by_the_books_own_model(capsys):
    """What it prints is what `DBLM.generate` makes of the same numbers."""
    options = "sample", "-n", 3, "--steps", 4, "--seed", 7
    code, out, error = run(capsys, *options)
    assert code == 0 and "exact" not in error
    ids = denoiser.load("tales-dblm").generate(
        num_return_sequences=3,
        num_steps=4,
        generator=torch.Generator().manual_seed(7),
    )
    texts = text.decode_batch(ids, resources.load_tokenizer())
    assert out.splitlines() == [printing.printable(words) for words in texts]
    assert run(capsys, *options, "--model", "tales-dblm")[1] == out


def test_the_way_shown_ends_where_the_texts_are(capsys):
    """Of a model with a mixture head too: ids, not nearest neighbours."""
    command = "sample", "-n", 2, "--steps", 5, "--show"
    _, out, _ = run(capsys, *command)
    way, texts = out.split("\n\n")
    last = way.splitlines()[-1]
    assert last[9:] == texts.splitlines()[0]
    assert len(way.splitlines()) == 2 + 5


def test_without_the_books_model_the_exact_denoiser_serves(
    book, capsys, monkeypatch, tmp_path
):
    small_book(tmp_path / "data", with_model=False)
    monkeypatch.setenv("DBLM_DATA", str(tmp_path / "data"))
    options = "sample", "-n", 2, "--steps", 8
    code, out, error = run(capsys, *options)
    assert code == 0 and "tales-dblm is not in" in error
    _, exact, error = run(capsys, *options, "--model", "exact")
    assert exact == out and "tales-dblm" not in error


def test_a_masked_model_writes_in_the_order_asked_for(capsys):
    """What it prints is what `writing.generate` makes of the same numbers."""
    command = "sample", "tales-mdlm", "-n", 3, "--steps", 8, "--seed", 7
    tokenizer = resources.load_tokenizer()
    model, printed = masked.load("tales-mdlm"), set()
    for asked in ({}, {"order": "entropy"}, {"temperature": 0.0}):
        words = [x for k, v in asked.items() for x in (f"--{k}", v)]
        code, out, _ = run(capsys, *command, *words)
        made = writing.generate(
            model,
            tokenizer,
            seed=7,
            num_return_sequences=3,
            num_steps=8,
            **asked,
        )
        texts = [printing.printable(words) for words in made.texts]
        assert code == 0 and out.splitlines() == texts
        printed.add(out)
    assert len(printed) == 3


def test_a_stagger_is_what_the_model_is_sampled_with(capsys):
    command = "sample", "-n", 1, "--steps", 6
    found = {run(capsys, *command, "--stagger", x)[1] for x in (0, "3.5", 0)}
    assert len(found) == 2


def test_the_canvas_is_shown_filling(capsys):
    """At most 16 steps and the end; masks never come back."""
    command = "sample", "tales-mdlm", "-n", 2, "--order", "random"
    _, out, _ = run(capsys, *command, "--show")
    way, texts = out.split("\n\n")
    lines = way.splitlines()
    assert "underscore" in lines[1]
    left = [int(line.split()[0]) for line in lines[2:]]
    assert left == [*range(64, 0, -4), 0]
    assert lines[2][9:] == " ".join("_" * 64)
    assert lines[-1][9:] == texts.splitlines()[0].lstrip()
    assert texts == run(capsys, *command)[1]


# --- denoise ----------------------------------------------------------------


def steps_of(out):
    """Lines of `dblm denoise`: name, shares in percent, words."""
    row = re.compile(r" *([\d.]+|clean) +(\d+)% +(\d+)%  ?(.*)")
    found = [row.fullmatch(line) for line in out.splitlines()]
    rows = [match.groups() for match in found if match]
    return [(name, int(a), int(b), words) for name, a, b, words in rows]


SENTENCES = [
    "In the middle of the night...",
    "Anna felt sad.",
    tales.corpus(1, seed=77)[0],
]


@pytest.mark.parametrize(
    ("sentence", "seed"), [(words, i) for i, words in enumerate(SENTENCES)]
)
def test_denoise_shows_the_sentence_coming_out_of_noise(
    sentence, seed, capsys
):
    code, out, _ = run(capsys, "denoise", sentence, "--seed", seed)
    names, right, guess, words = zip(*steps_of(out))
    assert code == 0 and "Denoiser: the exact one" in out
    # Far from right at first, settled at last, and on the way over lines.
    assert right[0] <= 25 and right[-1] == guess[-1] == 100
    assert words[-1] == sentence and words[0] != sentence
    wrong = sum(share < 100 for share in right)
    assert 4 <= wrong <= 11
    assert sum(0 < share < 100 for share in right) >= 2
    assert len(names) == 13 and names[-1] == "clean"


def test_the_points_become_readable_where_rounding_does(capsys):
    """Chapter 2's information band, seen from the other side."""
    _, out, _ = run(capsys, "denoise", SENTENCES[2], "--steps", 20)
    band = noising.information_band(32, 1024)
    for name, right, *_ in steps_of(out)[:-1]:
        if float(name) > 2 * band:
            assert right < 25
        if float(name) < band / 1.8:
            assert right > 90


def test_denoise_prints_the_guess_if_asked(capsys):
    _, out, _ = run(capsys, "denoise", SENTENCES[2], "--guess")
    for _, right, guess, words in steps_of(out):
        assert (words == SENTENCES[2]) == (guess == 100)
        assert guess >= right


def test_denoise_with_one_step_and_a_chosen_level(capsys):
    _, out, _ = run(
        capsys, "denoise", SENTENCES[0], "--steps", 1, "--level", 2
    )
    assert [row[0] for row in steps_of(out)] == ["2.00", "clean"]


def test_denoise_names_the_network_it_uses(capsys, trained):
    model = trained / "final"
    code, out, _ = run(
        capsys, "denoise", SENTENCES[0], "--model", model, "--steps", 4
    )
    assert code == 0 and f"Denoiser: the network in {model}" in out
    assert len(steps_of(out)) == 5


def test_denoise_by_a_mixture_shows_the_tokens_it_thinks_likeliest(capsys):
    options = "--model", "tales-dblm", "--steps", 3, "--guess"
    code, out, _ = run(capsys, "denoise", SENTENCES[2], *options)
    assert code == 0 and "Denoiser: the network in tales-dblm" in out
    names, right, guess, _ = zip(*steps_of(out))
    assert names[-1] == "clean" and right[-1] == guess[-1]


def test_control_characters_never_reach_the_terminal(capsys):
    """Noise rounds to any token, and some are escape or bell bytes."""
    sentence = "the\x1b[2J night\a\x00\r\nwas here " + "the " * 40
    _, out, _ = run(capsys, "denoise", sentence, "--steps", 4)
    assert all(c.isprintable() or c == "\n" for c in out)
    assert "the·[2J night····was here" in out


def test_on_a_terminal_lines_are_wrapped_behind_the_label(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    printing.say("word " * 30, "   1.00  ")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 2 and max(map(len, lines)) <= 60
    assert lines[0].startswith("   1.00  word")
    assert all(re.match(" {9}word", line) for line in lines[1:])


# --- train ------------------------------------------------------------------


def test_train_leaves_a_model_that_can_be_sampled(trained, capsys):
    kept = json.loads((trained / "run.json").read_text("utf-8"))["settings"]
    assert kept["steps"] == 3 and kept["seq_len"] == 16
    names = {path.name for path in (trained / "final").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    model = trained / "final"
    code, out, _ = run(
        capsys, "sample", "--model", model, "-n", 2, "--steps", 2
    )
    assert code == 0 and out


def test_a_resumed_run_ends_with_the_same_model(
    either, tmp_path, capsys, monkeypatch, stories
):
    """Stopped by Ctrl-C after two steps, resumed without its settings."""
    settings, trained = either
    out = tmp_path / "stopped"
    save, saved = Checkpoints.save, []

    def stop_after_two(self, done, history):
        save(self, done, history)
        saved.append(done)
        if saved == [1, 2]:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", stop_after_two)
    arguments = "train", "--out", out
    code, _, error = run(capsys, *arguments, "--text", stories, *settings)
    assert code == 130
    assert f"dblm train --out {out} --resume" in error
    assert not (out / "final").exists()
    code, printed, _ = run(capsys, *arguments, "--resume")
    assert code == 0 and saved == [1, 2, 3]
    assert f"model in {out / 'final'}" in printed
    for name in ("model.safetensors", "tokenizer.json"):
        one, other = (f / "final" / name for f in (trained, out))
        assert resources.sha256(one) == resources.sha256(other)


def test_resume_without_a_run_starts_one(tmp_path, capsys, stories):
    out = tmp_path / "new"
    code, _, error = run(
        *(capsys, "train", "--out", out, "--resume", "--text", stories),
        *PROPOSAL,
    )
    assert code == 0 and "starting one" in error
    assert (out / "final" / "model.safetensors").is_file()


def test_a_run_is_never_overwritten(trained, capsys, stories):
    before = resources.sha256(trained / "final" / "model.safetensors")
    message = mistake(capsys, "train", "--out", trained)
    assert "already holds a run" in message and "--resume" in message
    message = mistake(
        capsys, "train", "--out", trained, "--resume", "--batch-size", 5
    )
    assert "began with batch_size 4" in message
    after = resources.sha256(trained / "final" / "model.safetensors")
    assert before == after


def test_the_proposals_recipe(tmp_path, capsys, monkeypatch):
    seen = {}
    full = training.train

    def look(model, ids, mask, config, **options):
        seen.update(config=config, ids=ids, model=model)
        config.steps = 1
        return full(model, ids, mask, config, **options)

    monkeypatch.setattr(training, "train", look)
    code, _, _ = run(capsys, "train", "--proposal", "--out", tmp_path / "p")
    assert code == 0
    assert seen["config"].learning_rate == 1e-5
    assert seen["config"].optimizer == "adam"
    assert seen["model"].config.causal
    tokenizer = resources.load_tokenizer("tales")
    texts = text.decode_batch(seen["ids"], tokenizer)
    assert texts == list(training.PROPOSAL_SENTENCES)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(denoiser.DBLM, PROPOSAL), (masked.MaskedDenoiser, MASKED)],
)
def test_a_failed_last_write_names_the_way_on(
    kind, settings, tmp_path, capsys, monkeypatch, stories
):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kind, "save_pretrained", full)
    out = tmp_path / "full"
    arguments = "train", "--out", out, "--text", stories, *settings
    message = mistake(capsys, *arguments, code=1)
    assert "No space left" in message and "--resume" in message
    assert not (out / "final").exists() and list(out.glob("step-*"))
    monkeypatch.undo()
    assert run(capsys, "train", "--out", out, "--resume")[0] == 0
    assert (out / "final" / "model.safetensors").is_file()


# --- info -------------------------------------------------------------------


def test_info_prints_the_figures_of_the_manifest(capsys):
    code, out, _ = run(capsys, "info")
    assert code == 0
    for record in resources.manifest()["artifacts"].values():
        assert record["command"] in out
        for name, value in record["metrics"].items():
            if not isinstance(value, dict):
                row = rf"^  {name.replace('_', ' ')} +{re.escape(str(value))}$"
                assert re.search(row, out, re.MULTILINE), row


def test_info_as_json(capsys):
    _, out, _ = run(capsys, "info", "--json")
    facts = json.loads(out)
    assert facts["artifacts"] == resources.manifest()["artifacts"]
    assert {"dblm", "torch", "transformers", "data"} <= set(facts)


def test_info_measures_again_if_asked(capsys, monkeypatch):
    monkeypatch.setattr(info, "_measure", lambda: {"valid_nats": 25.25})
    assert "valid nats  25.25" in run(capsys, "info", "--measure")[1]
    facts = json.loads(run(capsys, "info", "--measure", "--json")[1])
    assert facts["measured now"] == {"valid_nats": 25.25}


# --- mistakes ---------------------------------------------------------------

LONG = "the night " * 40


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sample", "--prompt", ""], "empty"),
        (["sample", "--prompt", " \n"], "empty"),
        (["sample", "--prompt", LONG], "tokens, the canvas only 64"),
        (["sample", "--prompt", "xqzt Wvrk!"], "no word of"),
        (["sample", "--steps", "0"], "must be at least 1, not 0"),
        (["sample", "--steps", "-1"], "must be at least 1, not -1"),
        (["sample", "--steps", "2.5"], "'2.5' is no whole number"),
        (["sample", "--steps", "many"], "'many' is no whole number"),
        (["sample", "-n", "0"], "must be at least 1"),
        (["sample", "--seed", "-1"], "a seed is a whole number"),
        (["sample", "--seed", str(2**70)], "a seed is a whole number"),
        (["sample", "--model", "tales-gpt"], "did you mean 'tales-gpt2'"),
        (["sample", "--model", ""], "empty"),
        (["sample", "--order", "entropy"], "--order says how masks"),
        (["sample", "exact", "--order", "random"], "exact is a model of"),
        (["sample", "--order", "entrpy"], "did you mean 'entropy'"),
        (["sample", "tales-mdlm", "--order", "x"], "unknown order 'x'"),
        (["sample", "tales-mdlm", "--stagger", "2"], "--stagger is for"),
        (["sample", "--stagger", "-1"], "must be 0, or positive"),
        (["sample", "--temperature", "0.0"], "temperature must be positive"),
        (["sample", "--temperature", "x"], "'x' is no number"),
        (["sample", "exact", "--temperature", "2"], "it has no temperature"),
        (["sample", "tales-mdlm", "--length", "96"], "length is 95 at most"),
        (["denoise", "the night", "--model", "tales-mdlm"], "knows masks"),
        (["denoise", ""], "empty"),
        (["denoise", "xqzt"], "no word of"),
        (["denoise", LONG], "tokens; the canvas holds 63"),
        (["denoise", "the night", "--level", "0"], "--level must lie above"),
        (["denoise", "the night", "--level", "-3"], "--level must lie above"),
        (["denoise", "the night", "--level", "nan"], "--level must lie above"),
        (["denoise", "the night", "--level", "21"], "be 20.00 at most"),
        (["denoise", "the night", "--level", "x"], "invalid float value"),
        (["denoise"], "required: sentence"),
        (["train"], "required: --out"),
        (["train", "--out", "r", "--text", "no.txt"], "no corpus 'no.txt'"),
        (["train", "--out", "r", "--backbone", "distilgtp2"], "'distilgpt2'"),
        (["train", "--out", "r", "--learning-rate", "-1"], "positive"),
        (["train", "--out", "r", "--learning-rate", "nan"], "positive"),
        (
            ["train", "--out", "r", *PROPOSAL, "--seq-len", "999"],
            "knows 256 positions; got",
        ),
        (["train", "--out", "r", "--steps", "0"], "at least 1"),
        (["eval"], "required: NAME"),
        (["eval", "tales-dbml"], "did you mean 'tales-dblm'"),
        (["eval", ""], "empty"),
        (["eval", "tales-dblm", "--samples", "0"], "must be at least 1"),
        (["eval", "tales-dblm", "--steps", "8", "x"], "no whole number"),
        (["eval", "tales-dblm", "--continued", "-1"], "must be at least 1"),
        (["eval", "tales-dblm", "--seed", "x"], "a seed is a whole number"),
        (["dream"], "invalid choice: 'dream'"),
        ([], "required: COMMAND"),
    ],
)
def test_a_request_that_cannot_be_met(
    arguments, said, capsys, tmp_path, monkeypatch, stories
):
    monkeypatch.chdir(tmp_path)
    if "--out" in arguments and "--text" not in arguments:
        arguments = [*arguments, "--text", str(stories)]
    assert said in mistake(capsys, *arguments)
    assert not Path("r").exists()  # nothing is left behind


def test_a_file_where_the_folder_should_be(tmp_path, capsys, stories):
    """Unwritable for root too, who may run these tests."""
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        message = mistake(
            *(capsys, "train", "--out", out, "--text", stories),
            *PROPOSAL,
            code=1,
        )
        assert f"{out} cannot be written" in message
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0,
    reason="permissions do not bind this user",
)
def test_a_folder_without_write_permission(tmp_path, capsys, stories):
    tmp_path.chmod(0o500)
    out = tmp_path / "run"
    arguments = "train", "--out", out, "--text", stories, *PROPOSAL
    assert "cannot be written" in mistake(capsys, *arguments, code=1)
    tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    "command", ["sample", "info", "denoise the", "eval tales-dblm"]
)
def test_a_missing_data_folder(command, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("DBLM_DATA", str(tmp_path / "nothing"))
    message = mistake(capsys, *command.split(), code=1)
    assert "data folder is missing" in message and "DBLM_DATA" in message


@pytest.mark.parametrize("damage", ["cut", "swapped", "foreign", "weights"])
def test_a_damaged_model(damage, trained, tmp_path, capsys):
    model = tmp_path / "final"
    shutil.copytree(trained / "final", model)
    weights, config = model / "model.safetensors", model / "config.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:5000])
    if damage == "swapped":
        shutil.copy(config, weights)
    if damage == "foreign":
        config.write_text(json.dumps({"model_type": "llama"}))
    if damage == "weights":
        source = resources.data_path("checkpoints", "tales-gpt2")
        shutil.copy(source / weights.name, weights)
    for command in (["sample", "--model", model], ["eval", model]):
        assert str(model) in mistake(capsys, *command, code=1)


def test_a_damaged_checkpoint_is_not_resumed(trained, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    (step,) = out.glob("step-*")
    weights = step / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    message = mistake(capsys, "train", "--out", out, "--resume", code=1)
    assert "is damaged" in message and "has changed" in message
    (out / "run.json").write_text("{")
    message = mistake(capsys, "train", "--out", out, "--resume", code=1)
    assert "run.json is missing or damaged" in message


def test_ctrl_c(capsys, monkeypatch):
    def stop(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(sample, "run", stop)
    assert "stopped" in mistake(capsys, "sample", code=130)


def test_failures_of_the_machine_and_of_ours(capsys, monkeypatch):
    def fail(options):
        raise error

    monkeypatch.setattr(sample, "run", fail)
    for error in (
        FloatingPointError("the loss is nan"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError("too many texts"),
        OSError("disk full"),
    ):
        assert str(error) in mistake(capsys, "sample", code=1)
    # What no reader can mend must not look like the reader's mistake.
    error = RuntimeError("a fault of this library")
    with pytest.raises(RuntimeError, match="a fault"):
        cli.main(["sample"])


# --- the installed command --------------------------------------------------


def script():
    """The console script beside this Python, else the module."""
    name = "dblm.exe" if os.name == "nt" else "dblm"
    path = Path(sysconfig.get_path("scripts")) / name
    return [str(path)] if path.is_file() else None


def command():
    return script() or [sys.executable, "-m", "dblm_lib"]


@pytest.mark.skipif(script() is None, reason="dblm is not installed here")
def test_the_console_script():
    done = subprocess.run(
        [*command(), "sample", "--steps", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2 and "at least 1" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="no pseudo-terminals on Windows")
def test_a_progress_bar_on_a_terminal(tmp_path, stories):
    import pty
    import termios

    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    quiet = {"DBLM_QUIET": "", "OMP_NUM_THREADS": "1"}
    out = tmp_path / "run"
    with subprocess.Popen(
        [*command(), "train", "--out", out, "--text", stories, *PROPOSAL],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, **quiet},
    ) as process:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # Linux: when the other end closes
            while part := os.read(ours, 4096):
                seen += part
        printed = process.stdout.read().decode()
    os.close(ours)
    assert process.returncode == 0
    assert b"training" in seen and b"3/3" in seen
    assert b"tokens/s" in seen
    assert "loss " in printed and "\r" not in printed


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
def test_a_reader_that_stops_reading_sees_no_traceback():
    process = subprocess.Popen(
        [*command(), "info"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()  # as `head` does when it has enough
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 1
    assert error == ""
