"""Files and folders of our own: written whole, removed only if ours.

A folder that this library writes carries a marker, `MARKER`, which names its
owner and the digest of every file in it. Only such a folder is ever removed
or replaced, and only while it holds those files and nothing else: what a
reader put there, or changed there, stays. There is one function that removes,
`discard`, and everything here and in the tools goes through it.
"""

import contextlib
import json
import os
import secrets
import shutil
from pathlib import Path

from . import resources

__all__ = [
    "LOCK",
    "MARKER",
    "check_ours",
    "claim",
    "discard",
    "is_vacant",
    "lock",
    "owner_of",
    "sweep",
    "verify",
    "write_text",
    "writing",
]

MARKER = ".dblm.json"
LOCK = ".dblm.lock"
_DRAFT, _TRASH, _TEMPORARY = ".draft-", ".trash-", ".dblm-tmp"
# What systems and editors leave behind in any folder that is looked at.
LITTER = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})


def write_text(path, text):
    """Replace a file in one step, so that a killed process leaves no half.

    Parameters
    ----------
    path : path
    text : str
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{_unique()}{_TEMPORARY}")
    try:
        with open(draft, "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def is_vacant(folder, beside=()):
    """Whether a folder is absent, or holds nothing that matters to anyone.

    Parameters
    ----------
    folder : path
    beside : sequence of str
        Names that may be there.
    """
    folder = Path(folder)
    if not os.path.lexists(folder):
        return True
    return folder.is_dir() and not any(
        entry.name not in (LOCK, *LITTER, *beside)
        and not entry.name.endswith(_TEMPORARY)
        for entry in folder.iterdir()
    )


@contextlib.contextmanager
def lock(folder):
    """Keep other processes out of a folder meanwhile; it is made if absent.

    Within one thread it may be held more than once.

    Raises
    ------
    OSError
        If the folder cannot be made.
    BlockingIOError
        If another process works in it.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Gone with its process, however that ends.
        held = FileLock(folder / LOCK, timeout=0, is_singleton=True)
        held.acquire()
    except Timeout:
        raise BlockingIOError(
            f"another process works in {folder}: wait for it, or give "
            "another folder"
        ) from None
    except OSError as error:
        raise OSError(f"{folder} cannot be written: {error}") from error
    try:
        yield
    finally:
        held.release()


def claim(folder, name, record, beside=()):
    """Make a folder one's own by writing a file into it; hold its `lock`.

    Parameters
    ----------
    folder : path
        Absent, or without anything in it.
    name : str
        Of the file.
    record : dict
        What the file is to say; ``owner`` is added.
    beside : sequence of str
        Names of other files that may be there.

    Returns
    -------
    str
        The new owner, to be handed to the other functions.

    Raises
    ------
    ValueError
        If the folder holds anything already, or is no folder.
    """
    folder = Path(folder)
    if not is_vacant(folder, beside):
        raise ValueError(
            f"{folder} is not empty, and this run would write there: give a "
            "new folder, or empty this one yourself"
        )
    owner = secrets.token_hex(8)
    content = json.dumps({"owner": owner, **record}, indent=1)
    write_text(folder / name, content + "\n")
    return owner


def owner_of(folder):
    """The owner that a folder's marker names; None without a marker."""
    marker = _read(Path(folder))
    return marker and marker["owner"]


@contextlib.contextmanager
def writing(folder, owner):
    """Write a folder as a whole: a draft beside it, then put in its place.

    Within, fill the folder that this gives. Behind it the draft gets its
    marker, is written to the disk, read back, and renamed. An older folder
    of the same name is replaced if it is one's own.

    Parameters
    ----------
    folder : path
    owner : str

    Raises
    ------
    ValueError
        If something stands there that this owner did not write.
    OSError
        If it cannot be written; what stood there is untouched.
    """
    folder = Path(folder)
    check_ours(folder, owner)
    draft = folder.with_name(f"{_DRAFT}{folder.name}-{_unique()}")
    draft.mkdir(parents=True)
    _mark(draft, owner, folder.name)
    try:
        yield draft
        for file in draft.rglob("*"):
            if file.is_file():
                with open(file, "rb+") as handle:
                    os.fsync(handle.fileno())
        _mark(draft, owner, folder.name, _digests(draft))
        verify(draft, owner)
        old = _move_aside(folder, owner)
        try:
            os.replace(draft, folder)
        except OSError:
            if old is not None:
                os.replace(old, folder)
            raise
        _sync(folder.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            _remove(draft)  # made here, a moment ago
        raise
    if old is not None:
        _remove(old)


def verify(folder, owner=None):
    """Check a folder against its marker; files beside ours do not matter.

    Parameters
    ----------
    folder : path
    owner : str, optional
        Who must have written it.

    Raises
    ------
    resources.DataError
        If the marker is missing or unreadable, or names another owner; or if
        a file is missing or has changed.
    """
    folder = Path(folder)
    marker = _read(folder)
    if marker is None:
        raise resources.DataError(
            f"{folder} has no readable {MARKER}: it was not written by this "
            "program, or is damaged"
        )
    if owner is not None and marker["owner"] != owner:
        raise resources.DataError(f"{folder} belongs to another run")
    if marker["files"] is None:
        raise resources.DataError(f"{folder} was never finished")
    here = _digests(folder)
    for name, digest in marker["files"].items():
        if name not in here:
            raise resources.DataError(f"{folder}: {name} is missing")
        if digest != here[name]:
            raise resources.DataError(f"{folder}: {name} has changed")


def discard(path, owner):
    """Remove a folder that is one's own, and nothing else. The only way.

    Nothing happens where there is nothing.

    Parameters
    ----------
    path : path
    owner : str

    Raises
    ------
    ValueError
        If it is not of this owner, or holds or is something else by now.
    OSError
        If the system refuses.
    """
    # Half of a folder must never be taken for the whole.
    old = _move_aside(Path(path), owner)
    if old is not None:
        _remove(old)


def _move_aside(path, owner):
    """Rename a folder of ours to a name that `sweep` knows; None if absent."""
    check_ours(path, owner)
    if not path.exists():
        return None
    trash = path.with_name(f"{_TRASH}{path.name}-{_unique()}")
    os.replace(path, trash)
    return trash


def sweep(folder, owner):
    """Remove what killed processes of this owner left half written.

    Hold the `lock`, or it may be the draft of a process that is alive.
    """
    for entry in list(Path(folder).glob(".*")):
        if not (entry.name.startswith((_DRAFT, _TRASH)) and entry.is_dir()):
            continue
        with contextlib.suppress(OSError):
            if owner_of(entry) == owner:
                _remove(entry)
            else:
                # Killed before its marker was written, or after it was
                # removed: if anything else is in it, this fails.
                for file in entry.glob(f".{MARKER}.*{_TEMPORARY}"):
                    file.unlink()
                entry.rmdir()


def _remove(folder):
    """Remove a folder of ours, its marker last.

    Killed on the way, it leaves a folder that still says whose it is.
    """
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != MARKER:
            entry.unlink()
    shutil.rmtree(folder)


def check_ours(path, owner):
    """Refuse what may not be replaced or removed: all but a folder of ours.

    Parameters
    ----------
    path : path
        What is not there is no obstacle.
    owner : str

    Raises
    ------
    ValueError
        If anything stands there that this owner did not write, under that
        name and with those bytes.
    """
    path = Path(path)
    if not os.path.lexists(path):
        return
    marker = None if path.is_symlink() else _read(path)
    if marker is None or [marker["owner"], marker["name"]] != (
        [owner, path.name]
    ):
        raise ValueError(
            f"{path} was not written by this run and stays as it is: move it "
            "elsewhere, or give another folder"
        )
    listed, here = marker["files"] or {}, _digests(path)
    known = {part.as_posix() for name in listed for part in Path(name).parents}
    known |= {name for name in here if here[name] == listed.get(name)}
    foreign = [
        name
        for name in (
            entry.relative_to(path).as_posix() for entry in path.rglob("*")
        )
        if name not in known and Path(name).name not in (MARKER, *LITTER)
    ]
    if foreign:
        raise ValueError(
            f"{path} holds {foreign[0]}, which this run did not write, or "
            "which has changed since: move it elsewhere, or give another "
            "folder"
        )


def _read(folder):
    """What a folder's marker says; None if it has none that can be read."""
    try:
        marker = json.loads((folder / MARKER).read_text("utf-8"))
        found = {name: marker[name] for name in ("owner", "name", "files")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    known = isinstance(found["files"], (dict, type(None)))
    return found if known else None


def _digests(folder):
    """Size and sha256 of every file below a folder, markers left out."""
    return {
        file.relative_to(folder).as_posix(): [
            file.stat().st_size,
            resources.sha256(file),
        ]
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in (MARKER, *LITTER)
    }


def _mark(folder, owner, name, files=None):
    content = {"owner": owner, "name": name, "files": files}
    write_text(folder / MARKER, json.dumps(content, indent=1) + "\n")


def _unique():
    return f"{os.getpid()}-{secrets.token_hex(4)}"


def _sync(folder):
    """Write a rename to the disk, where the system has a way to."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
