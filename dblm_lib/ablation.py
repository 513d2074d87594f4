"""Runs of an ablation: each is named, made once, kept, and read afterwards.

Chapters 6 and 7. What one of many trainings found is kept as a JSON file,
together with what it was asked for. When it is wanted again it is read, but
only if it was asked for exactly that.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from . import resources, storage
from .checks import differences

__all__ = ["Run", "differences", "result"]


@dataclass(frozen=True)
class Run:
    """One run, and all that decides what it will find.

    Attributes
    ----------
    name : str
        Of its file; a colon is left out there.
    settings : dict
        What is trained or measured, and on what.
    recipe : dict
        How it is trained.
    """

    name: str
    settings: dict = field(default_factory=dict)
    recipe: dict = field(default_factory=dict)

    def file(self, folder):
        """Where it is kept."""
        return Path(folder) / f"{self.name.replace(':', '')}.json"

    def asked(self):
        """Settings and recipe as they come back from a file."""
        asked = {"settings": self.settings, "recipe": self.recipe}
        return json.loads(json.dumps(asked))


def result(run, make, folder=None):
    """What a run found: read it, or let it run and keep it.

    Parameters
    ----------
    run : Run
    make : callable ``() -> found``
        Builds, trains and measures; what it returns must fit into JSON.
    folder : path, optional
        Where runs are kept, one file a run; nothing is kept if left out. A
        file is written when the run is done, and in one step.

    Returns
    -------
    What ``make`` returned, now or then.

    Raises
    ------
    resources.DataError
        If the file is no record of a run, or the record of one that was
        asked for something else; each difference is named. The file stays.
    """
    if folder is None:
        return make()
    file = run.file(folder)
    if file.exists():
        return _read(run, file)
    found = make()
    kept = {"asked": run.asked(), "found": found}
    storage.write_text(file, json.dumps(kept) + "\n")
    return found


def _read(run, file):
    try:
        kept = json.loads(file.read_text("utf-8"))
        asked, found = kept["asked"], kept["found"]
        changed = differences(asked, run.asked())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise resources.DataError(
            f"{file} is no record of a run that this program wrote "
            f"({error}): move it elsewhere, or choose another folder"
        ) from error
    if changed:
        raise resources.DataError(
            f"{file} is of another run, with {'; '.join(changed)}: move it "
            "elsewhere, or choose another folder"
        )
    return found
