"""Checkpoints: written whole, resumed exactly, removed only if ours.

A run's folder holds `RECORD`, which says what run it is, and the last
checkpoint, ``step-0000250`` or so. The tensors are written and read by
Accelerate: weights as safetensors, states of the optimisers as tensors
without code in them.
"""

import contextlib
import json
import random
import re
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy
import torch
from accelerate import checkpointing
from safetensors.torch import load as load_bytes

from .. import checks, resources, storage

__all__ = ["RECORD", "Checkpoints"]

RECORD = "training.json"
# What `dblm train` leaves beside the checkpoints.
SETTINGS = "run.json"
# In a checkpoint, beside what Accelerate writes.
STATE, DRAW = "state.json", "draw.pt"
_NAME = re.compile(r"step-(\d{7,})")


class Checkpoints:
    """The checkpoints of one run, in a folder that belongs to it.

    Parameters
    ----------
    folder : path
    identity : dict
        What makes it this run and no other, see `checks.differences`: what
        JSON can hold.
    parts : dict
        What is kept beside the optimisers: ``model``, ``average`` and
        ``draw``. None, and what has no ``state_dict``, is left out.
    optimizers : list
    resume : bool
        Whether there may be a run already. It must be the same one.

    Raises
    ------
    ValueError
        If the folder holds anything, and no run of ours.
    resources.DataError
        If the run in the folder is another one, its record is damaged, or
        something stands where its checkpoints go.
    """

    def __init__(self, folder, identity, parts, optimizers, resume=False):
        self.folder, self.optimizers = Path(folder), optimizers
        modules = (parts["model"], parts["average"])
        self.models = [part for part in modules if part is not None]
        self.draw = parts["draw"]
        record = self.folder / RECORD
        if record.exists():
            self.owner = self._same_run(record, identity, resume)
        else:
            self.owner = storage.claim(
                self.folder, RECORD, {"run": identity}, beside=(SETTINGS,)
            )
        for step, path in self._steps().items():
            if not self._is_ours(path):
                raise resources.DataError(
                    f"{path} was not written by this run, or its marker is "
                    f"damaged, and a step {step} would be written there: move "
                    "it elsewhere, or give another folder"
                )
        storage.sweep(self.folder, self.owner)

    @staticmethod
    def _same_run(record, identity, resume):
        if not resume:
            raise ValueError(
                f"{record.parent} already holds a run: resume it, or give "
                "another folder"
            )
        try:
            kept = json.loads(record.read_text("utf-8"))
            owner, before = kept["owner"], kept["run"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise resources.DataError(
                f"{record} is damaged ({error}): give another folder"
            ) from error
        # As it would be read from the file.
        now = json.loads(json.dumps(identity))
        found = checks.differences(before, now)
        if found:
            raise resources.DataError(
                f"{record.parent} belongs to another run, with "
                f"{'; '.join(found[:8])}: give another folder, or what that "
                "run was given"
            )
        return owner

    def _steps(self):
        """Step -> folder, of all that is named like a checkpoint."""
        found = [
            (_NAME.fullmatch(path.name), path)
            for path in self.folder.glob("step-*")
        ]
        return {int(match[1]): path for match, path in found if match}

    def _is_ours(self, path):
        return path.is_dir() and storage.owner_of(path) == self.owner

    def last(self):
        """The last checkpoint, checked file by file; None if there is none.

        Raises
        ------
        resources.DataError
            If a file of it is missing or has changed.
        """
        steps = self._steps()
        if not steps:
            return None
        last = steps[max(steps)]
        try:
            storage.verify(last, self.owner)
        except resources.DataError as error:
            raise resources.DataError(
                f"the checkpoint {last} is damaged ({error}); delete that "
                "folder to start again"
            ) from error
        return last

    def save(self, step, history):
        """Write a checkpoint; then remove the one before it.

        Parameters
        ----------
        step : int
            Steps done.
        history : History

        Raises
        ------
        FloatingPointError
            If a weight is not finite. The checkpoint before it stays.
        OSError
            If it cannot be written. The checkpoint before it stays.
        """
        path = self.folder / f"step-{step:07d}"
        before = [p for p in self._steps().values() if p != path]
        try:
            with storage.writing(path, self.owner) as draft:
                checkpointing.save_accelerator_state(
                    draft,
                    [model.state_dict() for model in self.models],
                    self.optimizers,
                    [],
                    [],
                    process_index=0,
                    step=step,
                )
                if hasattr(self.draw, "state_dict"):
                    torch.save(self.draw.state_dict(), draft / DRAW)
                state = {"step": step, "history": asdict(history)}
                (draft / STATE).write_text(json.dumps(state), "utf-8")
                _check_finite(draft, step)
        except FloatingPointError:
            raise
        except Exception as error:
            raise OSError(
                f"the checkpoint of step {step} cannot be written to "
                f"{self.folder} ({error}); the previous one, if any, is "
                "untouched"
            ) from error
        for old in before:
            try:
                storage.discard(old, self.owner)
            except (OSError, ValueError) as error:
                # A file that is open cannot be removed on every system.
                warnings.warn(
                    f"the checkpoint {old} stays: {error}", stacklevel=2
                )

    def restore(self, history):
        """Load the last checkpoint, if there is one.

        Parameters
        ----------
        history : History
            Becomes what it was then.

        Returns
        -------
        int
            Steps done: where to go on.
        """
        last = self.last()
        if last is None:
            return 0
        try:
            state = json.loads((last / STATE).read_text("utf-8"))
            with _kept_random_state():
                checkpointing.load_accelerator_state(
                    last,
                    self.models,
                    self.optimizers,
                    [],
                    [],
                    process_index=0,
                )
            if hasattr(self.draw, "load_state_dict"):
                self.draw.load_state_dict(
                    torch.load(last / DRAW, weights_only=True)
                )
        except Exception as error:
            raise resources.DataError(
                f"the checkpoint {last} does not fit this run ({error})"
            ) from error
        for name, value in state["history"].items():
            setattr(history, name, value)
        return state["step"]


def _check_finite(folder, step):
    """Read weights back from the disk and look for NaN and infinity."""
    for file in folder.glob("model*.safetensors"):
        for name, values in load_bytes(file.read_bytes()).items():
            if values.is_floating_point() and not values.isfinite().all():
                raise FloatingPointError(
                    f"after step {step} the weights {name} are not finite "
                    "and were not kept: lower the learning rate, or clip "
                    "the gradient"
                )


@contextlib.contextmanager
def _kept_random_state():
    """Accelerate restores the random state of a run; ours needs none."""
    before = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(before[0])
            numpy.random.set_state(before[1])
