"""Put what a recipe made into data/, and delete nothing on the way.

A place in data/ is replaced only if every file in it is one that
`MANIFEST.json` lists, with its digest; even then the old folder is not
removed but moved aside. So are the folders in which a recipe worked.
"""

import json
import os
import shutil
import time
from pathlib import Path

from dblm_lib import ablation, resources, storage

from . import PLACES

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
# In the folder that a recipe made, beside its files: what is to be recorded.
RECORD = "record.json"
_CLAIM = "recipe.json"


def read_manifest(out):
    """What `MANIFEST.json` of a folder says; empty where there is none.

    Raises
    ------
    resources.DataError
        If it is not one of ours, which is never written over.
    """
    path = Path(out) / "MANIFEST.json"
    if not os.path.lexists(path):
        return {"artifacts": {}, "files": {}}
    try:
        content = json.loads(path.read_text("utf-8"))
        for part in ("artifacts", "files"):
            for entry in content[part].values():
                entry.keys()
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise resources.DataError(
            f"{path} is not the list of a data folder ({error}): move it "
            "elsewhere, or give another folder with --out"
        ) from error
    return content


def digests(folder):
    """Size and sha256 of each file that a recipe left in a folder."""
    ours = (storage.MARKER, RECORD)
    return {
        file.relative_to(folder).as_posix(): {
            "sha256": resources.sha256(file),
            "bytes": file.stat().st_size,
        }
        for file in sorted(Path(folder).rglob("*"))
        if file.is_file() and file.name not in ours
    }


def listed(out, name):
    """What the manifest lists below the place of an artefact."""
    start = PLACES[name] + "/"
    return {
        file.removeprefix(start): entry
        for file, entry in read_manifest(out)["files"].items()
        if file.startswith(start)
    }


def foreign(out, name, made=None):
    """Say what stands in an artefact's place that no recipe put there.

    Parameters
    ----------
    out : path
        The data folder.
    name : str
        Of the artefact.
    made : path, optional
        A folder that was made for that place; its files may be there.

    Returns
    -------
    str, or None
        Such as "valid.txt differs from MANIFEST.json".
    """
    place, wanted = Path(out) / PLACES[name], listed(out, name)
    if not os.path.lexists(place):
        return None
    if place.is_symlink() or not place.is_dir():
        return "it is no folder"
    new = digests(made) if made else {}
    for entry in sorted(place.rglob("*")):
        file = entry.relative_to(place).as_posix()
        if entry.is_symlink():
            return f"{file} is a link"
        if not entry.is_file() or entry.name in storage.LITTER:
            continue
        if file not in wanted and file not in new:
            return f"{file} is not listed in MANIFEST.json"
        found = {
            "sha256": resources.sha256(entry),
            "bytes": entry.stat().st_size,
        }
        if found not in (wanted.get(file), new.get(file)):
            return f"{file} differs from what MANIFEST.json lists"
    return None


def check(out, name, made=None):
    """Refuse to make an artefact whose place is not ours to take.

    Raises
    ------
    resources.DataError
    """
    reason = foreign(out, name, made)
    if reason:
        raise resources.DataError(
            f"{Path(out) / PLACES[name]} stays as it is: {reason}. Move that "
            "elsewhere, or give another folder with --out"
        )


def state(out, name):
    """Whether data/ has an artefact, in a few words."""
    place, wanted = Path(out) / PLACES[name], listed(out, name)
    if not wanted or not place.is_dir():
        return "missing"
    missing = [file for file in wanted if not (place / file).is_file()]
    if missing:
        return f"{missing[0]} is missing"
    return foreign(out, name) or "as listed"


def aside(path, out):
    """Move a folder away instead of deleting it; say where it went.

    To ``_build/replaced`` for what lies in the repository, otherwise beside
    ``out``: never to another disk, where a move would delete and copy.

    Returns
    -------
    path
        Where it is now.
    """
    path, out = Path(path), Path(out).resolve()
    inside = path.resolve().is_relative_to(ROOT)
    away = BUILD / "replaced"
    if not inside:
        away = out.with_name(f"{out.name}-replaced")
    away.mkdir(parents=True, exist_ok=True)
    name = path.name.lstrip(".") + time.strftime("-%Y-%m-%d-%H%M%S")
    target, number = away / name, 1
    while os.path.lexists(target):
        number += 1
        target = away / f"{name}-{number}"
    os.rename(path, target)
    print(f"{path} is now {target}", flush=True)
    return target


def put(made, out, name, record):
    """Copy what was made into its place, and list it in the manifest.

    What stood there is moved aside. If something fails, it is put back.

    Raises
    ------
    resources.DataError
        If something stands there that is not ours.
    """
    out, made = Path(out), Path(made)
    check(out, name, made)
    place, files = out / PLACES[name], digests(made)
    if not place.is_dir() or digests(place) != files:
        _replace(place, made, files, out)
    start = PLACES[name] + "/"
    content = read_manifest(out)
    content["artifacts"][name] = record
    entries = {
        file: entry
        for file, entry in content["files"].items()
        if not file.startswith(start)
    }
    entries |= {start + file: entry for file, entry in files.items()}
    # As a walk through the folder would find them.
    order = sorted(entries, key=lambda file: file.split("/"))
    content["files"] = {file: entries[file] for file in order}
    text = json.dumps(content, indent=1) + "\n"
    storage.write_text(out / "MANIFEST.json", text)


def _replace(place, made, files, out):
    new = place.with_name(f".{place.name}-new-{os.getpid()}-{time.time_ns()}")
    new.mkdir(parents=True)
    old = None
    try:
        for file in files:
            (new / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(made / file, new / file)
        if digests(new) != files:
            raise OSError(f"{new} cannot be read back as it was written")
        if os.path.lexists(place):
            old = aside(place, out)
        os.rename(new, place)
    except BaseException:
        if old and not os.path.lexists(place):
            os.rename(old, place)
        if new.exists():
            aside(new, out)
        raise


def own(work, asked):
    """Make a folder the recipe's own, or know it again; hold its lock.

    Parameters
    ----------
    work : path
    asked : dict
        What the recipe is and whom it works for.

    Returns
    -------
    str
        The owner, see `storage`.

    Raises
    ------
    resources.DataError
        If there is anything that no recipe put there, or the folder is that
        of another recipe.
    """
    file = Path(work) / _CLAIM
    if not os.path.lexists(file):
        if not storage.is_vacant(work):
            raise resources.DataError(
                f"{work} is not empty, and the recipe would write there: "
                "move it elsewhere"
            )
        return storage.claim(work, _CLAIM, asked)
    try:
        record = json.loads(file.read_text("utf-8"))
        owner = str(record.pop("owner"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise resources.DataError(
            f"{file} is no record of a recipe ({error}): move {work} elsewhere"
        ) from error
    changed = ablation.differences(record, asked)
    if changed:
        raise resources.DataError(
            f"{work} is of another run, with {'; '.join(changed)}: finish "
            "that one, or move the folder elsewhere"
        )
    return owner
