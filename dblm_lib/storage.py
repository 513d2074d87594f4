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
    "MARKER",
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


def is_vacant(folder):
    """Whether a folder is absent, or holds nothing that matters to anyone."""
    folder = Path(folder)
    if not folder.exists():
        return True
    return folder.is_dir() and not any(
        entry.name not in (LOCK, *LITTER)
        and not entry.name.endswith(_TEMPORARY)
        for entry in folder.iterdir()
    )


@contextlib.contextmanager
def lock(folder):
    """Keep other processes out of a folder meanwhile; it is made if absent.

    Raises
    ------
    OSError
        If the folder cannot be made.
    BlockingIOError
        If another process works in it.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Gone with its process, however that ends.
    held = FileLock(folder / LOCK, timeout=0)
    try:
        held.acquire()
    except Timeout:
        raise BlockingIOError(
            f"another process works in {folder}: wait for it, or give "
            "another folder"
        ) from None
    try:
        yield
    finally:
        held.release()


def claim(folder, name, record):
    """Make a folder one's own by writing a file into it; hold its `lock`.

    Parameters
    ----------
    folder : path
        Absent, or without anything in it.
    name : str
        Of the file.
    record : dict
        What the file is to say; ``owner`` is added.

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
    if not is_vacant(folder):
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
    try:
        marker = json.loads((Path(folder) / MARKER).read_text("utf-8"))
        return str(marker["owner"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


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
    _check_ours(folder, owner)
    draft = folder.with_name(f"{_DRAFT}{folder.name}-{_unique()}")
    draft.mkdir(parents=True)
    _mark(draft, owner)
    try:
        yield draft
        _mark(draft, owner, _digests(draft))
        for file in draft.rglob("*"):
            if file.is_file():
                with open(file, "rb+") as handle:
                    os.fsync(handle.fileno())
        verify(draft, owner)
        _check_ours(folder, owner)  # somebody may have come in between
        discard(folder, owner)
        os.replace(draft, folder)
        _sync(folder.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            discard(draft, owner)
        raise


def verify(folder, owner=None):
    """Check a folder against its marker.

    Parameters
    ----------
    folder : path
    owner : str, optional
        Who must have written it.

    Raises
    ------
    resources.DataError
        If the marker is missing or unreadable, or names another owner; or if
        a file is missing, changed, or not one of ours.
    """
    folder = Path(folder)
    try:
        marker = json.loads((folder / MARKER).read_text("utf-8"))
        found, listed = marker["owner"], marker["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise resources.DataError(
            f"{folder} has no readable {MARKER} ({error}): it was not "
            "written by this program"
        ) from error
    if owner is not None and found != owner:
        raise resources.DataError(f"{folder} belongs to another run")
    if listed is None:
        raise resources.DataError(f"{folder} was never finished")
    here = _digests(folder)
    for name in sorted({*listed, *here}):
        if listed.get(name) != here.get(name):
            what = (
                "is missing"
                if name not in here
                else "has changed"
                if name in listed
                else "was put there by somebody else"
            )
            raise resources.DataError(f"{folder}: {name} {what}")


def discard(path, owner):
    """Remove a folder that is one's own, and nothing else. The only way.

    Nothing happens where there is nothing. A folder that was never finished
    is known by its marker alone.

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
    path = Path(path)
    _check_ours(path, owner)
    if not path.exists():
        return
    # Renamed first: half of it must never be taken for the whole.
    trash = path.with_name(f"{_TRASH}{path.name}-{_unique()}")
    os.replace(path, trash)
    shutil.rmtree(trash)


def sweep(folder, owner):
    """Remove the drafts that killed processes of this owner left behind."""
    for entry in list(Path(folder).glob(".*")):
        if entry.name.startswith((_DRAFT, _TRASH)) and (
            entry.is_dir() and owner_of(entry) == owner
        ):
            with contextlib.suppress(OSError):
                shutil.rmtree(entry)


def _check_ours(path, owner):
    """Refuse to touch what is there unless this owner wrote all of it."""
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_dir() or owner_of(path) != owner:
        raise ValueError(
            f"{path} was not written by this run and stays as it is: move it "
            "elsewhere, or give another folder"
        )
    marker = json.loads((path / MARKER).read_text("utf-8"))
    if marker.get("files") is None:
        return
    here = _digests(path)
    foreign = [n for n in here if here[n] != marker["files"].get(n)]
    if foreign:
        raise ValueError(
            f"{path} holds {foreign[0]}, which this run did not write, or "
            "which has changed since: move it elsewhere, or give another "
            "folder"
        )


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


def _mark(folder, owner, files=None):
    content = json.dumps({"owner": owner, "files": files}, indent=1)
    write_text(folder / MARKER, content + "\n")


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
