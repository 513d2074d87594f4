"""`dblm` on consoles of every kind, and near misses on its command line."""

import os
import signal
import subprocess
import sys

import pytest
from command import mistake, run

from dblm_lib import cli

pytestmark = pytest.mark.usefixtures("book")


def process(*arguments, module="dblm_lib", **options):
    """The command in a process of its own, its output as bytes."""
    env = {**os.environ, **options.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        **{"capture_output": True, "env": env, "timeout": 120} | options,
        check=False,
    )


@pytest.mark.parametrize("module", ["dblm_lib", "dblm_lib.cli"])
def test_the_package_is_a_command(module):
    done = process("--version", module=module)
    assert done.returncode == 0 and done.stdout.startswith(b"dblm ")
    done = process("sample", "--steps", "0", module=module)
    assert done.returncode == 2 and b"at least 1" in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_console_that_is_not_utf_8(encoding):
    """What it cannot show is a question mark, not the end."""
    sentence = "Anna felt sad ❤."
    done = process(
        *("denoise", sentence, "--steps", "4"),
        env={"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
    )
    out = done.stdout.decode(encoding)
    assert done.returncode == 0, done.stderr
    last = out.splitlines()[-1]
    sign = "❤" if encoding == "utf-8" else "?"
    assert last.endswith(f"Anna felt sad {sign}.")
    assert len(out.splitlines()) == 5 + 5  # the head; four steps, the end


def test_a_message_on_such_a_console():
    done = process(
        *("sample", "--model", "./❤"), env={"PYTHONIOENCODING": "ascii"}
    )
    assert done.returncode == 1
    assert done.stderr.decode("ascii").startswith("dblm: there is no folder")


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
@pytest.mark.parametrize(
    ("closed", "code"), [(">&-", 1), ("2>&-", 0), (">&- 2>&-", 1)]
)
def test_closed_streams(closed, code):
    """As with a reader who is gone; a remark that nobody sees is none."""
    line = f'"{sys.executable}" -m dblm_lib info --json {closed}'
    done = subprocess.run(
        line, shell=True, capture_output=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (code, b"")
    assert done.stdout.startswith(b"{" if code == 0 else b"")
    line = f'"{sys.executable}" -m dblm_lib sample --steps 0 {closed}'
    done = subprocess.run(
        line, shell=True, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 2 and b"Traceback" not in done.stderr
    assert done.stdout == b""  # what is for one stream is not for the other


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
def test_a_help_text_that_nobody_reads_to_its_end():
    line = f'"{sys.executable}" -m dblm_lib sample --help'
    done = subprocess.run(
        f"({line}; echo $? >&2) | true",
        shell=True,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stderr.strip() in ("0", "1")  # one or the other was faster


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
def test_ctrl_c_while_libraries_are_loaded():
    # In the middle of PyTorch's own imports, however fast the machine is.
    code = (
        "import os, signal, sys; from dblm_lib import cli\n"
        "class Press:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'torch.nn':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Press())\n"
        "sys.exit(cli.main(['info']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in (130, -signal.SIGINT), done.stderr
    assert done.stderr.splitlines()[-1] == "dblm: stopped"
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="POSIX hands over bytes")
def test_words_in_another_encoding():
    for arguments in (
        ["sample", "--prompt", b"\xff the"],
        ["denoise", b"the \xe9"],
    ):
        done = process(*arguments)
        assert done.returncode == 2
        assert b"is not valid Unicode" in done.stderr
        assert done.stderr.count(b"\n") == 1


def test_names_with_control_characters_do_not_drive_the_terminal(capsys):
    for arguments in (
        ["sample", "--model", "./\x1b[2J"],
        ["train", "--out", "x", "--text", "\x1b[2J"],
        ["dream\x1b[2J"],
        ["info", "\x1b[2J"],
    ):
        _, out, error = run(capsys, *arguments)
        assert all(c.isprintable() or c == "\n" for c in out + error)
        assert "·[2J" in error or "\\x1b[2J" in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "--model", "~nosuchuser/run"],
        ["eval", "~nosuchuser/run"],
        ["denoise", "the night", "--model", "~nosuchuser/run"],
        ["train", "--out", "~nosuchuser/run"],
        ["train", "--out", "r", "--text", "~nosuchuser/a.txt"],
        ["train", "--out", "r", "--backbone", "~nosuchuser/g"],
    ],
)
def test_a_home_that_nobody_has(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "the home folder" in mistake(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_like_the_books_model(tmp_path, monkeypatch, capsys):
    """The book's is used, and one line says how to have the other."""
    few = "sample", "-n", 2, "--steps", 2
    _, expected, _ = run(capsys, *few)
    monkeypatch.chdir(tmp_path)
    for name in ("tales-dblm", "exact"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text("{}")
    code, out, error = run(capsys, *few, "--model", "tales-dblm")
    assert (code, out) == (0, expected)
    (line,) = error.splitlines()
    assert "write ./tales-dblm" in line
    code, out, error = run(capsys, *few, "--model", "exact")
    assert code == 0 and "write ./exact" in error
    said = mistake(capsys, *few, "--model", "./tales-dblm", code=1)
    assert "no readable config.json" in said
    assert "by heart" in mistake(capsys, "eval", "exact")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sample", "-n", "1000001"], "must be at most 1,000,000"),
        (["sample", "--steps", "9" * 5000], "is no whole number"),
        (["sample", "--seed", "9" * 5000], "a seed is a whole number"),
        (["sample", "--length", "0"], "must be at least 1"),
        (["train", "--out", "r", "--learning-rate", "inf"], "and finite"),
        (["train", "--out", "r", "--learning-rate", "x"], "is no number"),
        (["denoise", "the night<|endoftext|>"], "which ends a text"),
    ],
)
def test_numbers_and_marks_that_mean_nothing(arguments, said, capsys):
    message = mistake(capsys, *arguments)
    assert said in message and len(message) < 200


def test_more_texts_than_memory_are_written_in_parts(capsys, monkeypatch):
    """The first of them are those of a smaller request."""
    from dblm_lib.cli import sample

    few = "sample", "--steps", 2, "-n"
    _, whole, _ = run(capsys, *few, 3)
    monkeypatch.setattr(sample, "_TOGETHER", 3)
    _, parts, _ = run(capsys, *few, 7)
    assert parts.splitlines()[:3] == whole.splitlines()
    assert len(set(parts.splitlines())) == 7
    assert cli.main(["sample", "--steps", "2", "-n", "3"]) == 0
