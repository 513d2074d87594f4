"""Nothing that the program did not write is deleted or overwritten."""

import json
import os
import shutil
import subprocess
import sys

import bystanders
import pytest

from dblm_lib import resources, storage


def written(folder, owner="me", **files):
    with storage.writing(folder, owner) as draft:
        for name, text in {"a.txt": "a", **files}.items():
            (draft / name).write_text(text, "utf-8")
    return folder


def test_a_folder_is_written_whole_and_replaced(tmp_path):
    folder = written(tmp_path / "final")
    storage.verify(folder, "me")
    written(folder, **{"a.txt": "b"})
    assert (folder / "a.txt").read_text("utf-8") == "b"
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


def test_a_failure_leaves_what_was_there(tmp_path):
    folder = written(tmp_path / "final")
    before = bystanders.snapshot(tmp_path)
    with (
        pytest.raises(OSError, match="full"),
        storage.writing(folder, "me") as draft,
    ):
        (draft / "a.txt").write_text("half", "utf-8")
        raise OSError("disk full")
    assert bystanders.snapshot(tmp_path) == before


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
    folder = written(tmp_path / "final")
    before = bystanders.snapshot(tmp_path)
    replace = os.replace

    def no_new_one(source, target):
        if os.path.basename(source).startswith(".draft-"):
            raise PermissionError(13, "in use")
        return replace(source, target)

    monkeypatch.setattr(os, "replace", no_new_one)
    with pytest.raises(PermissionError):
        written(folder, **{"a.txt": "b"})
    assert bystanders.snapshot(tmp_path) == before


def add(folder):
    (folder / "notes.txt").write_text("mine", "utf-8")


def change(folder):
    (folder / "a.txt").write_text("mine", "utf-8")


def add_folder(folder):
    (folder / "drafts").mkdir()


def add_link(folder):
    (folder / "link").symlink_to("nowhere")


def strip(folder):
    (folder / storage.MARKER).unlink()


def damage(folder):
    (folder / storage.MARKER).write_text("{", "utf-8")


@pytest.mark.parametrize(
    "touch", [add, change, add_folder, add_link, strip, damage]
)
def test_what_a_reader_did_in_our_folder_stays(tmp_path, touch):
    folder = written(tmp_path / "final")
    touch(folder)
    before = bystanders.snapshot(tmp_path)
    with pytest.raises(ValueError, match="final"):
        storage.discard(folder, "me")
    with pytest.raises(ValueError, match="final"):
        written(folder)
    assert bystanders.snapshot(tmp_path) == before


def test_another_owner_and_another_name_are_not_ours(tmp_path):
    folder = written(tmp_path / "step-0000003")
    shutil.copytree(folder, tmp_path / "step-0000009")  # a reader's backup
    before = bystanders.snapshot(tmp_path)
    for path, owner in (
        (folder, "you"),
        (tmp_path / "step-0000009", "me"),
    ):
        with pytest.raises(ValueError, match="not written by this run"):
            storage.discard(path, owner)
    assert bystanders.snapshot(tmp_path) == before
    storage.discard(folder, "me")
    assert not folder.exists()


@pytest.mark.parametrize("name", bystanders.FILES)
def test_a_bystander_of_any_name_is_never_removed(tmp_path, name):
    bystanders.put(tmp_path, [name])
    before = bystanders.snapshot(tmp_path)
    path = tmp_path / name.split("/", maxsplit=1)[0]
    with pytest.raises(ValueError, match="stays as it is"):
        storage.discard(path, "me")
    with pytest.raises(ValueError, match="stays as it is"):
        written(path)
    storage.sweep(tmp_path, "me")
    if not name.endswith("dblm-tmp"):
        with pytest.raises(ValueError, match="not empty"):
            storage.claim(tmp_path, "run.json", {})
    assert bystanders.snapshot(tmp_path) == before


def test_litter_of_systems_is_no_obstacle(tmp_path):
    folder = written(tmp_path / "final")
    (folder / ".DS_Store").write_bytes(b"x")
    storage.verify(folder, "me")
    written(folder)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "Thumbs.db").write_bytes(b"x")
    assert storage.is_vacant(tmp_path / "new")


def test_links_are_not_followed(tmp_path):
    kept = written(tmp_path / "elsewhere" / "final")
    link = tmp_path / "final"
    link.symlink_to(kept, target_is_directory=True)
    with pytest.raises(ValueError, match="stays as it is"):
        storage.discard(link, "me")
    assert (kept / "a.txt").is_file()


@pytest.mark.parametrize("how", ["missing", "changed", "foreign"])
def test_verify_names_the_file(tmp_path, how):
    folder = written(tmp_path / "final")
    if how == "missing":
        (folder / "a.txt").unlink()
    elif how == "changed":
        change(folder)
    with pytest.raises(resources.DataError, match="a.txt|another run"):
        storage.verify(folder, "you" if how == "foreign" else "me")
    with pytest.raises(resources.DataError, match="no readable"):
        storage.verify(tmp_path)


KILLED = """
import os, sys
sys.path.insert(0, {root!r})
from dblm_lib import storage
with storage.writing({folder!r}, "me") as draft:
    (draft / "a.txt").write_text("half")
    os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_killed_process_leaves_a_draft_that_is_swept(tmp_path):
    folder = written(tmp_path / "final")
    code = KILLED.format(root=os.getcwd(), folder=str(folder))
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -9
    assert len(list(tmp_path.iterdir())) == 2
    storage.sweep(tmp_path, "you")  # not theirs
    assert len(list(tmp_path.iterdir())) == 2
    storage.sweep(tmp_path, "me")
    assert [p.name for p in tmp_path.iterdir()] == ["final"]
    storage.verify(folder, "me")


EACH = """
import os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from dblm_lib import storage

KINDS = ("os.remove", "os.rmdir", "os.rename", "os.mkdir", "open")
left = None

def die(event, arguments):
    global left
    if left is None or event not in KINDS:
        return
    left -= 1
    if left < 0:
        os.kill(os.getpid(), 9)

def work(folder):
    for name in ("first", "second"):
        with storage.writing(folder, "me") as draft:
            (draft / "deep").mkdir()
            (draft / "a.txt").write_text(name)
            (draft / "deep" / "z.txt").write_text(name)
    storage.discard(folder, "me")

sys.addaudithook(die)
for moment in range(1000):
    folder = Path({folder!r}) / str(moment) / "final"
    folder.parent.mkdir(parents=True)
    child = os.fork()
    if not child:
        left = moment
        work(folder)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
print(moment)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_before_any_operation_nothing_is_left(tmp_path):
    """SIGKILL before each operation on files, one after the other."""
    code = EACH.format(root=os.getcwd(), folder=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True
    )
    assert int(done.stdout) > 50  # moments
    for folder in tmp_path.iterdir():
        storage.sweep(folder, "me")
        left = [path.name for path in folder.iterdir()]
        assert left in ([], ["final"]), folder
        if left:
            storage.verify(folder / "final", "me")


HELD = """
import sys
sys.path.insert(0, {root!r})
from dblm_lib import storage
with storage.lock({folder!r}):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_processes_cannot_hold_one_folder(tmp_path):
    code = HELD.format(root=os.getcwd(), folder=str(tmp_path / "run"))
    other = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout.readline().strip() == b"held"
    with (
        pytest.raises(BlockingIOError, match="another process"),
        storage.lock(tmp_path / "run"),
    ):
        pass
    other.communicate()
    with storage.lock(tmp_path / "run"), storage.lock(tmp_path / "run"):
        pass


def test_claiming_says_who_owns_it(tmp_path):
    owner = storage.claim(tmp_path / "run", "run.json", {"x": 1})
    kept = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))
    assert kept == {"owner": owner, "x": 1}
    with pytest.raises(ValueError, match="not empty"):
        storage.claim(tmp_path / "run", "run.json", {"x": 2})
    file = tmp_path / "file"
    file.write_text("mine", "utf-8")
    with pytest.raises(ValueError, match="not empty"):
        storage.claim(file, "run.json", {})
    assert file.read_text("utf-8") == "mine"
