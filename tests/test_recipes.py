"""Recipes: made again, resumed, put in place; and nothing lost on the way."""

import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import recipes
from dblm_lib import resources, storage
from recipes import __main__ as command
from recipes import common, placing

ROOT = Path(__file__).resolve().parent.parent
# Names that the book's own programs use, in folders that they write.
NAMES = (
    "draft",
    "final",
    "unfinished",
    "made",
    "run",
    "runs",
    "fit",
    "points",
    "step-0000001",
    "levels.json",
    "runs.json",
    "recipe.json",
    "record.json",
    "training.json",
    "run.json",
    "notes.txt",
    "valid.txt.tmp",
    ".dblm.json",
    ".draft-made-1-abcd",
    ".trash-made-1-abcd",
)


def contents(folder):
    """All files below a folder, and their bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.name != storage.LOCK
    }


def bystander(folder, name):
    """Put something of a reader there: a file, or a folder with one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if not path.suffix or name.startswith((".draft", ".trash")):
        path.mkdir()
        path /= "thesis.txt"
    path.write_bytes(b"mine " + name.encode())
    return path


@pytest.fixture
def book(tmp_path, monkeypatch):
    """An empty data folder; work and what is replaced lie beside it."""
    monkeypatch.setattr(placing, "ROOT", tmp_path)
    monkeypatch.setattr(placing, "BUILD", tmp_path / "_build")
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def quick(monkeypatch):
    """Let each recipe write a small file, and count how often it does."""
    calls = []

    class Module:
        """It is quick."""

        text = "one\n"

        @classmethod
        def make(cls, folder, data, work, jobs):
            calls.append((folder, data, work, jobs))
            (folder / "deep").mkdir()
            (folder / "valid.txt").write_text(cls.text, "utf-8")
            (folder / "deep" / "more.json").write_text("[1]", "utf-8")
            return {"tales": 1, "seconds_of_training": 77}

    monkeypatch.setattr(command, "load", lambda name: Module)
    Module.calls = calls
    return Module


# --- as it should go ----------------------------------------------------------


def test_an_artefact_is_made_listed_and_its_work_moved_aside(book, quick):
    record = command.make("tales-gpt2", book, jobs=3)
    place = book / "checkpoints" / "tales-gpt2"
    assert contents(place) == {"valid.txt": b"one\n", "deep/more.json": b"[1]"}
    assert record == {
        "command": "python -m recipes tales-gpt2",
        "seconds": 77,
        "metrics": {"tales": 1, "seconds_of_training": 77},
    }
    content = json.loads((book / "MANIFEST.json").read_text("utf-8"))
    assert content["artifacts"] == {"tales-gpt2": record}
    assert list(content["files"]) == [
        "checkpoints/tales-gpt2/deep/more.json",
        "checkpoints/tales-gpt2/valid.txt",
    ]
    for file, entry in content["files"].items():
        assert entry["sha256"] == resources.sha256(book / file)
        assert entry["bytes"] == (book / file).stat().st_size
    ((_, data, work, jobs),) = quick.calls
    assert (data, jobs) == (book, 3)
    assert not work.exists()
    (moved,) = (book.parent / "_build" / "replaced").iterdir()
    assert moved.name.startswith("tales-gpt2-")
    assert placing.state(book, "tales-gpt2") == "as listed"
    # Nothing hidden is left in the data folder.
    assert not [p for p in book.rglob(".*")]


def test_the_book_s_own_tales_leave_its_manifest_as_it_is(book):
    """Made again, listed again: not a byte of the manifest changes."""
    source = resources.data_path()
    text = (source / "MANIFEST.json").read_bytes()
    (book / "MANIFEST.json").write_bytes(text)
    record = command.make("tales", book)
    old = json.loads(text)["artifacts"]["tales"]
    assert {**record, "seconds": old["seconds"]} == old
    if record["seconds"] == old["seconds"]:
        assert (book / "MANIFEST.json").read_bytes() == text


def test_what_is_replaced_is_moved_not_deleted(book, quick, capsys):
    command.make("tales", book)
    before = contents(book / "tales")
    quick.text = "two\n"
    command.make("tales", book)
    assert (book / "tales" / "valid.txt").read_bytes() == b"two\n"
    replaced = sorted((book.parent / "_build" / "replaced").iterdir())
    assert before in [contents(folder) for folder in replaced]
    assert f"{book / 'tales'} is now" in capsys.readouterr().out


def test_only_entries_of_the_artefact_change_in_the_manifest(book, quick):
    """A file of somebody else's does not become one of the book's."""
    command.make("tales", book)
    mine = bystander(book, "notes.txt")
    entries = placing.read_manifest(book)["files"]
    command.make("tokenizer", book)
    after = placing.read_manifest(book)["files"]
    assert entries.items() <= after.items()
    assert {name.split("/")[0] for name in after} == {"tales", "tokenizer"}
    assert mine.read_bytes() == b"mine notes.txt"


def test_a_stopped_recipe_goes_on_in_its_folder(book, quick, monkeypatch):
    make = quick.make

    def stopped(folder, data, work, jobs):
        make(folder, data, work, jobs)
        (work / "run").mkdir()
        (work / "run" / "step").write_text("5", "utf-8")
        raise KeyboardInterrupt

    monkeypatch.setattr(quick, "make", stopped)
    with pytest.raises(KeyboardInterrupt):
        command.make("tales", book)
    assert contents(book) == {}

    def goes_on(folder, data, work, jobs):
        assert (work / "run" / "step").read_text("utf-8") == "5"
        return make(folder, data, work, jobs)

    monkeypatch.setattr(quick, "make", goes_on)
    command.make("tales", book)
    assert placing.state(book, "tales") == "as listed"


@pytest.mark.parametrize("function", ["put", "_replace", "aside"])
def test_what_is_whole_is_not_made_again(book, quick, monkeypatch, function):
    """Stopped between its last step and its place."""
    before = getattr(placing, function)

    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(placing, function, stopped)
    with pytest.raises(KeyboardInterrupt):
        command.make("tales", book)
    monkeypatch.setattr(placing, function, before)
    command.make("tales", book)
    assert len(quick.calls) == 1
    assert placing.state(book, "tales") == "as listed"


def test_stopped_between_place_and_manifest_it_goes_on(
    book, quick, monkeypatch
):
    """The new files are known by the folder in which they were made."""
    command.make("tales", book)
    quick.text = "two\n"
    write = storage.write_text

    def stopped(path, text):
        if path.name == "MANIFEST.json":
            raise KeyboardInterrupt
        write(path, text)

    monkeypatch.setattr(storage, "write_text", stopped)
    with pytest.raises(KeyboardInterrupt):
        command.make("tales", book)
    assert "differs" in placing.state(book, "tales")
    monkeypatch.setattr(storage, "write_text", write)
    assert command.main(["tales", "--out", str(book)]) == 0
    assert placing.state(book, "tales") == "as listed"
    assert len(quick.calls) == 2


def test_what_cannot_be_copied_leaves_the_old_in_place(
    book, quick, monkeypatch
):
    command.make("tales", book)
    before = contents(book)
    quick.text = "two\n"
    rename = os.rename

    def full(source, target):
        if "-new-" in str(source) and Path(target) == book / "tales":
            raise OSError("the disk is full")
        rename(source, target)

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="disk is full"):
        command.make("tales", book)
    assert contents(book) == before
    assert sorted(p.name for p in book.iterdir()) == ["MANIFEST.json", "tales"]


# --- what is in the way stays -------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_bystander_in_its_place_is_a_reason_not_to_begin(
    book, quick, capsys, name
):
    command.make("tales", book)
    path = bystander(book / "tales", name)
    before = contents(book)
    quick.calls.clear()
    assert command.main(["tokenizer", "tales", "--out", str(book)]) == 1
    assert not quick.calls  # before the hours of training, even of others
    assert contents(book) == before
    file = path.relative_to(book / "tales").as_posix()
    assert f"{file} is not listed" in capsys.readouterr().err
    assert file in placing.state(book, "tales")


@pytest.mark.parametrize("name", NAMES)
def test_a_bystander_that_comes_during_the_training_stays(
    book, quick, monkeypatch, name
):
    """And what was trained is kept, to be put in place later."""
    command.make("tales", book)
    make = quick.make

    def meanwhile(folder, data, work, jobs):
        bystander(book / "tales", name)
        return make(folder, data, work, jobs)

    monkeypatch.setattr(quick, "make", meanwhile)
    quick.text = "two\n"
    with pytest.raises(resources.DataError, match="not listed"):
        command.make("tales", book)
    path = book / "tales" / name
    mine = path / "thesis.txt" if path.is_dir() else path
    assert mine.read_bytes() == b"mine " + name.encode()
    assert (book / "tales" / "valid.txt").read_bytes() == b"one\n"
    os.rename(path, book.parent / "elsewhere")
    calls = len(quick.calls)
    command.make("tales", book)
    assert len(quick.calls) == calls
    assert (book / "tales" / "valid.txt").read_bytes() == b"two\n"


@pytest.mark.parametrize("name", NAMES)
def test_a_bystander_elsewhere_in_the_data_folder_stays(book, quick, name):
    command.make("tales", book)
    path = bystander(book, name)
    quick.text = "two\n"
    command.make("tales", book)
    assert path.read_bytes() == b"mine " + name.encode()
    assert (
        path.relative_to(book).as_posix()
        not in (placing.read_manifest(book)["files"])
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_work_folder_of_somebody_else_is_refused(book, quick, name):
    work = placing.BUILD / "training" / "tales"
    path = bystander(work, name)
    before = contents(work)
    assert command.main(["tales", "--out", str(book)]) == 1
    assert not quick.calls and contents(work) == before
    assert path.read_bytes() == b"mine " + name.encode()


@pytest.mark.parametrize("name", set(NAMES) - {"made", "recipe.json"})
def test_a_bystander_in_the_work_folder_is_moved_with_it(
    book, quick, monkeypatch, name
):
    make, paths = quick.make, []

    def meanwhile(folder, data, work, jobs):
        paths.append(bystander(work, name).relative_to(work))
        return make(folder, data, work, jobs)

    monkeypatch.setattr(quick, "make", meanwhile)
    command.make("tales", book)
    (moved,) = (placing.BUILD / "replaced").iterdir()
    assert (moved / paths[0]).read_bytes() == b"mine " + name.encode()


def test_a_made_folder_that_somebody_changed_is_refused(
    book, quick, monkeypatch
):
    put = placing.put
    monkeypatch.setattr(placing, "put", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        command.make("tales", book)
    monkeypatch.setattr(placing, "put", put)
    made = placing.BUILD / "training" / "tales" / "made"
    (made / "notes.txt").write_text("mine", "utf-8")
    with pytest.raises(ValueError, match="notes.txt"):
        command.make("tales", book)
    assert not (book / "tales").exists()
    assert (made / "notes.txt").read_text("utf-8") == "mine"


def test_a_changed_file_is_a_reason_not_to_begin(book, quick, capsys):
    command.make("tales", book)
    (book / "tales" / "valid.txt").write_text("my own\n", "utf-8")
    quick.calls.clear()
    assert command.main(["tales", "--out", str(book)]) == 1
    assert "valid.txt differs" in capsys.readouterr().err
    assert not quick.calls
    assert (book / "tales" / "valid.txt").read_text("utf-8") == "my own\n"


def test_a_link_or_a_file_in_its_place_is_refused(book, quick, tmp_path):
    (tmp_path / "mine").mkdir()
    (book / "tales").symlink_to(tmp_path / "mine")
    (book / "tokenizer").write_text("mine", "utf-8")
    for name in ("tales", "tokenizer"):
        with pytest.raises(resources.DataError, match="no folder"):
            command.make(name, book)
    assert (book / "tales").is_symlink() and not quick.calls
    assert (book / "tokenizer").read_text("utf-8") == "mine"


@pytest.mark.parametrize(
    "content",
    ["", "my list", "[1]", '{"files": {}}', '{"files": [], "artifacts": {}}'],
)
def test_a_manifest_of_somebody_else_stays(book, quick, content, capsys):
    (book / "MANIFEST.json").write_text(content, "utf-8")
    for arguments in (["tales"], ["--list"]):
        assert command.main([*arguments, "--out", str(book)]) == 1
        assert "not the list of a data folder" in capsys.readouterr().err
    assert not quick.calls
    assert (book / "MANIFEST.json").read_text("utf-8") == content


def test_the_work_for_another_folder_is_not_taken(book, quick, monkeypatch):
    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(quick, "make", stopped)
    with pytest.raises(KeyboardInterrupt):
        command.make("tales", book)
    with pytest.raises(resources.DataError, match="other' out|other'"):
        command.make("tales", book.with_name("other"))


def test_two_at_once_do_not_meet(book, quick, monkeypatch):
    make = quick.make

    refused = []

    def second():
        try:
            command.make("tales", book)
        except BlockingIOError as error:
            refused.append(str(error))

    def twice(folder, data, work, jobs):
        other = threading.Thread(target=second)
        other.start()
        other.join()
        return make(folder, data, work, jobs)

    monkeypatch.setattr(quick, "make", twice)
    command.make("tales", book)
    assert len(refused) == 1 and "another process" in refused[0]


def test_out_of_the_repository_it_is_moved_beside(book, quick, monkeypatch):
    """Never to another disk, where moving is copying and deleting."""
    monkeypatch.setattr(placing, "ROOT", book.parent / "somewhere")
    command.make("tales", book)
    quick.text = "two\n"
    command.make("tales", book)
    (old,) = book.with_name("data-replaced").glob("tales-*/valid.txt")
    assert old.read_bytes() == b"one\n"


def test_random_folders_lose_nothing(book, quick):
    """Whatever stands there: every byte is somewhere afterwards."""
    rng = random.Random(0)
    for number in range(60):
        quick.text = f"{rng.random()}\n"
        for folder in (
            book,
            book / "tales",
            book / "tales" / "deep",
            placing.BUILD / "training" / "tales",
            placing.BUILD / "training" / "tales" / "made",
        ):
            if rng.random() < 0.05:
                name = rng.choice(NAMES)
                if not (folder / name).exists():
                    bystander(folder, name)
        before = list(contents(book.parent).values())
        mine = sorted(b for b in before if b.startswith(b"mine"))
        try:
            command.make("tales", book)
        except ValueError:
            pass
        after = contents(book.parent)
        kept = sorted(b for b in after.values() if b.startswith(b"mine"))
        assert kept == mine
        if rng.random() < 0.3:  # the reader makes room
            os.rename(book, book.parent / f"old-{number}")
            book.mkdir()
        if rng.random() < 0.3 and placing.BUILD.exists():
            os.rename(placing.BUILD, book.parent / f"build-{number}")
    assert len(quick.calls) > 15


# --- the command line ---------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tokeniser"], "unknown name 'tokeniser'; known: tales, tokenizer"),
        (["ladder", "--jobs", "0"], "--jobs must be 1 or more; got 0"),
        (["--out", __file__], "--out must be a folder"),
        (["--shuffle"], "unrecognized arguments"),
    ],
)
def test_a_wrong_request_is_refused_in_a_sentence(capsys, arguments, said):
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_a_stop_says_how_to_go_on(book, quick, monkeypatch, capsys):
    make = quick.make

    def stopped(folder, data, work, jobs):
        if work.name == "tokenizer":
            raise KeyboardInterrupt
        return make(folder, data, work, jobs)

    monkeypatch.setattr(quick, "make", stopped)
    names = ["tales", "tokenizer", "ladder"]
    out = str(book.with_name("other data"))
    assert command.main([*names, "--out", out, "--jobs", "2"]) == 130
    said = capsys.readouterr().err
    assert f"-m recipes tokenizer ladder --out '{out}' --jobs 2" in said


def test_the_list_names_place_seconds_and_state(book, quick, capsys):
    command.make("tales", book)
    command.make("tokenizer", book)
    (book / "tokenizer" / "valid.txt").write_text("changed", "utf-8")
    capsys.readouterr()
    assert command.main(["--list", "--out", str(book)]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == list(recipes.PLACES)
    assert rows[0].split(None, 3) == ["tales", "tales", "77", "as listed"]
    assert "valid.txt differs" in rows[1]
    assert rows[2].split() == [
        "tales-gpt2",
        "checkpoints/tales-gpt2",
        "-",
        "missing",
    ]


def test_the_command_needs_no_torch_to_list():
    code = (
        "import sys, runpy; sys.argv[1:] = ['--list']\n"
        "try: runpy.run_module('recipes', run_name='__main__')\n"
        "except SystemExit as stop: assert stop.code == 0, stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert "differs" not in done.stdout and "missing" not in done.stdout


# --- the recipes --------------------------------------------------------------


@pytest.mark.parametrize("name", recipes.PLACES)
def test_a_recipe_says_what_it_makes_and_how_long_it_takes(name):
    module = recipes.load(name)
    assert module.__doc__.split("\n")[0].endswith((".", ","))
    words = ("second", "minute", "hour")
    assert any(word in module.__doc__ for word in words)
    assert callable(module.make)
    assert Path(module.__file__).stem == name.replace("-", "_")


@pytest.mark.parametrize("jobs", [1, 2])
def test_runs_side_by_side_come_back_in_order(jobs):
    """In processes of their own; the order is that of the tasks."""
    tasks = [(7, 2), (9, 3), (8, 5)]
    assert common.side_by_side(divmod, tasks, jobs) == [
        divmod(*task) for task in tasks
    ]


def test_ingredients_come_from_the_folder_that_is_filled(tmp_path):
    """And from the book where that has none yet."""
    assert common.ingredient(tmp_path, "tokenizer") == resources.data_path(
        "tokenizer"
    )
    (tmp_path / "tokenizer").mkdir()
    assert common.ingredient(tmp_path, "tokenizer") == tmp_path / "tokenizer"


# --- the orders of writing ------------------------------------------------------


@pytest.fixture
def small_orders(tmp_path, monkeypatch):
    """Let the recipe measure a small random masked model, a few ways."""
    import torch

    from dblm_lib import masked

    monkeypatch.setitem(recipes.PLACES, "tales-mdlm", "checkpoints/tales-mdlm")
    orders = recipes.load("orders")
    some = [way for way in orders.ways() if way[2] in (8, 64)]
    wanted = ("entropy", "threshold 0.5", "first-hitting", "ancestral")
    ways = [way for way in some if way[1] in wanted and way[:3] != LONG]
    monkeypatch.setattr(orders, "ways", lambda: ways)
    monkeypatch.setattr(orders, "LAST_STEPS", 4)
    torch.manual_seed(0)
    config = masked.MaskedConfig(
        vocab_size=1024, n_positions=72, n_embd=8, n_layer=1, n_head=1,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = masked.MaskedDenoiser(config)
    model.save_pretrained(tmp_path / "checkpoints" / "tales-mdlm")
    return orders


LONG = ("oracle", "ancestral", 64)


def test_orders_are_measured_kept_and_not_measured_again(
    small_orders, tmp_path, monkeypatch
):
    folder, work = tmp_path / "out", tmp_path / "work"
    folder.mkdir()
    work.mkdir()

    def stopped(*_):
        raise KeyboardInterrupt

    write = small_orders.write
    monkeypatch.setattr(small_orders, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        small_orders.make(folder, tmp_path, work, texts=2, oracle_texts=2)
    assert len(list((work / "points").iterdir())) == 2  # both floors
    monkeypatch.setattr(small_orders, "write", write)
    said = small_orders.make(folder, tmp_path, work, texts=2, oracle_texts=2)
    monkeypatch.setattr(small_orders, "write", stopped)
    assert said == small_orders.make(
        folder, tmp_path, work, texts=2, oracle_texts=2
    )
    rows = json.loads((folder / "orders.json").read_text("utf-8"))
    assert said["points"] == len(rows) == len(small_orders.ways())
    for row, (writer, way, steps, _) in zip(rows, small_orders.ways()):
        assert (row["writer"], row["way"]) == (writer, way)
        assert row["num_steps"] == steps and row["temperature"] == 1
        assert 1 <= row["nfe"] <= steps
        assert row["texts"] == 2
        assert "coherent_interval" in row
    of = {(r["writer"], r["way"], r["num_steps"]): r for r in rows}
    assert of["tales-mdlm", "first-hitting", 64]["nfe"] == 64
    assert of["tales-mdlm", "entropy", 8]["nfe"] == 8
    # What the exact denoiser writes one by one are tales, or nearly.
    floor = json.loads((folder / "floor.json").read_text("utf-8"))
    assert [r["num_steps"] for r in floor] == [1, 2, 3, 4, None] * 2
    exact = [r["above"] for r in floor if r["writer"] == "oracle"]
    assert exact == sorted(exact, reverse=True)
    assert abs(exact[-1]) < 1e-3


def test_orders_of_other_weights_are_refused(small_orders, tmp_path):
    """A row belongs to the weights that it was measured with."""
    task = (tmp_path / "points", tmp_path, "tales-mdlm", "entropy", 8)
    options = {"order": "entropy"}
    small_orders.point(*task, options, 1)
    file = tmp_path / "checkpoints" / "tales-mdlm" / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(resources.DataError, match="weights"):
        small_orders.point(*task, options, 1)


def test_orders_have_names_of_their_own():
    ways = recipes.load("orders").ways()
    assert len({way[:3] for way in ways}) == len(ways)
    assert {way[0] for way in ways} == {"tales-mdlm", "oracle"}
