"""``dblm train``: a run, its folder, and the model that comes of it."""

import contextlib
import json
import os
import re
import sys

from .. import resources, storage
from .parser import SETTINGS
from .printing import note, paste, printable

__all__ = ["run"]

_RUN = "run.json"  # in the folder of a run: whose it is, and its settings


def run(options):
    """Train a denoiser, or go on with a run."""
    out = _folder(options.out)
    with contextlib.ExitStack() as held:
        if storage.is_vacant(out):
            if options.resume:
                note(f"there is no run in {out} yet: starting one")
            if os.path.lexists(out / storage.LOCK):
                held.enter_context(_lock(out))
            settings = {**SETTINGS, **_given(options)}
            # What is wrong with them is said before the folder is made.
            parts = _prepare(settings)
            held.enter_context(_lock(out))
            owner = _claim(out, settings)
        else:
            owner, settings = _kept(out, options.resume)
            _check_given(out, settings, _given(options))
            held.enter_context(_lock(out))
            storage.check_ours(out / "final", owner)
            storage.sweep(out, owner)
            parts = _prepare(settings)
        _train(out, owner, parts, options.resume)


def _train(out, owner, parts, resume):
    """The work itself, in a folder that is ours."""
    from .. import training

    said, config, model, tokenizer, ids, mask = parts
    if said:
        note(said)
    note(f"training {config.steps} steps; checkpoints go to {out}")
    try:
        history = training.train(
            model,
            ids,
            mask,
            config,
            folder=out,
            resume=resume,
            progress=sys.stderr.isatty(),
        )
        _save_final(model.cpu(), tokenizer, out / "final", owner)
    except KeyboardInterrupt:
        _say_what_is_kept(out)
        raise
    print(f"loss {history.loss[0]:.4f} -> {history.loss[-1]:.4f}")
    print(f"model in {printable(str(out / 'final'))}")


# --- the folder -------------------------------------------------------------


def _folder(name):
    """The folder of a run; that it cannot be made is said at once."""
    if not name.strip():
        raise ValueError("--out is empty: give the folder of the run")
    out = resources.user_path(name)
    try:
        str(out).encode("utf-8")
    except UnicodeEncodeError as error:  # the weights could not be written
        raise ValueError(
            f"--out {name!r} is not valid Unicode: give another folder"
        ) from error
    above = out
    while not os.path.lexists(above):
        above = above.parent
    if not os.path.isdir(above):
        raise OSError(f"{out} cannot be written: {above} is no folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise OSError(f"{out} cannot be written: no permission in {above}")
    return out


@contextlib.contextmanager
def _lock(out):
    """The lock of the folder: another process in it is a refusal."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(storage.lock(out))
        except BlockingIOError as error:
            raise ValueError(str(error)) from None
        except OSError as error:
            raise OSError(f"{out} cannot be written: {error}") from error
        yield


def _claim(out, settings):
    try:
        return storage.claim(out, _RUN, {"settings": settings})
    except OSError as error:
        raise OSError(f"{out} cannot be written: {error}") from error


def _kept(out, resume):
    """Owner and settings of the run in a folder that is not empty."""
    if not os.path.isfile(out / _RUN):
        raise ValueError(_occupied(out))
    try:
        kept = _read(out / _RUN)
    except resources.DataError:
        if resume:
            raise
        raise ValueError(_occupied(out)) from None
    if not resume:
        raise ValueError(
            f"{out} already holds a run: add --resume to go on with it, or "
            "give another folder"
        )
    return kept


def _read(file):
    """Owner and settings from a ``run.json``."""
    try:
        record = json.loads(file.read_text("utf-8"))
        if isinstance(record, dict) and "owner" not in record:
            raise resources.DataError(
                f"{file} names no owner: it is of an early version, or of "
                "another program; give another folder"
            )
        settings = {name: record["settings"][name] for name in SETTINGS}
        wrong = [
            name
            for name, value in settings.items()
            if type(value) is not type(SETTINGS[name])
        ]
        if wrong or not isinstance(record["owner"], str):
            raise ValueError(f"{', '.join(wrong) or 'owner'} of a wrong type")
    except resources.DataError:
        raise
    except (
        *(OSError, ValueError, KeyError, TypeError),
        RecursionError,
    ) as error:
        raise resources.DataError(
            f"{file} is missing or damaged ({error}); give another folder"
        ) from error
    return record["owner"], settings


def _occupied(out):
    names = sorted(entry.name for entry in out.iterdir())
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return (
        f"{out} is not empty (it holds {shown}), and a new run would write "
        "there: give a folder that is absent or empty"
    )


def _say_what_is_kept(out):
    """After Ctrl-C: from which step the run would go on, and how."""
    name = str(out)
    where = [f"--out={name}"] if name.startswith("-") else ["--out", name]
    command = paste("dblm", "train", *where, "--resume")
    steps = [
        int(entry.name[5:])
        for entry in out.iterdir()
        if re.fullmatch(r"step-\d{7,}", entry.name) and entry.is_dir()
    ]
    if steps:
        note(f"kept is step {max(steps)}; go on from there with: {command}")
    else:
        note(f"no step is kept yet; begin again with: {command}")


def _save_final(model, tokenizer, final, owner):
    """Put the trained model in place once it is whole."""
    try:
        with storage.writing(final, owner) as draft:
            model.save_pretrained(draft)
            tokenizer.backend_tokenizer.save(str(draft / "tokenizer.json"))
    except ValueError as error:  # somebody has put something there meanwhile
        raise ValueError(
            f"{error}; with --resume the run then writes its model, the last "
            "checkpoint is whole"
        ) from error
    except Exception as error:
        raise OSError(
            f"the model cannot be written to {final} ({error}); make room "
            "and add --resume: the last checkpoint is whole"
        ) from error


# --- settings ---------------------------------------------------------------


def _given(options):
    """The settings that were given; of a text file its whole path."""
    given = {name: getattr(options, name) for name in SETTINGS}
    given = {name: v for name, v in given.items() if v is not None}
    if given.get("text", "tales") not in ("tales", "tinystories"):
        path = resources.user_path(given["text"])
        if os.path.isfile(path):
            given["text"] = str(path.resolve())
    return given


def _check_given(out, kept, given):
    changed = [name for name, value in given.items() if kept[name] != value]
    if changed:
        raise ValueError(
            f"the run in {out} began with "
            + ", ".join(f"{name} {kept[name]}" for name in changed)
            + ": leave it as it was, or give another folder"
        )


def _prepare(settings):
    """The recipe, a new model, its tokenizer, and the texts on canvases."""
    from .. import denoiser, text, training

    config = _config(settings)
    resources.seed_everything(settings["seed"])  # new layers begin by chance
    if settings["proposal"]:
        texts, seq_len = training.PROPOSAL_SENTENCES, 16
        corpus = text.Corpus("the proposal's sentences", list(texts), [])
        fields = {"causal": True, "conditioning": "none"}
    else:
        corpus = text.load(settings["text"])
        seq_len = settings["seq_len"]
        fields = {"causal": settings["causal"], "normalise_embeddings": True}
    backbone = resources.load_backbone(settings["backbone"])
    longest = backbone.model.config.max_position_embeddings
    if seq_len > longest:
        raise ValueError(
            f"{settings['backbone']} knows {longest} positions; got --seq-len "
            f"{seq_len}"
        )
    ids, mask = text.encode_batch(corpus.train, backbone.tokenizer, seq_len)
    cut = text.count_cut(ids, mask, backbone.tokenizer)
    model = denoiser.DBLM.from_backbone(backbone, **fields)
    model.config.seq_len = seq_len  # see `decoding.canvas_of`
    model.to(resources.device())
    said = _what_is_cut(corpus, cut, seq_len)
    return said, config, model, backbone.tokenizer, ids, mask


def _what_is_cut(corpus, cut, seq_len):
    """One line on what of the text will not be seen; empty if all will."""
    used, held_out = len(corpus.train), len(corpus.valid)
    said = f"{used:,} texts are trained on"
    if corpus.left_out:
        total = used + held_out + corpus.left_out
        said = (
            f"{used:,} of its {total:,} texts are trained on, {held_out:,} "
            "are held out"
        )
    if cut:
        said += (
            f"; {cut:,} do not fit into {seq_len} tokens and lose their end "
            "(--seq-len)"
        )
    return f"{corpus.name}: {said}" if cut or corpus.left_out else ""


def _config(settings):
    from .. import training

    if settings["proposal"]:
        return training.proposal_config()
    steps = settings["steps"]
    return training.TrainConfig(
        steps=steps,
        batch_size=settings["batch_size"],
        learning_rate=settings["learning_rate"],
        warmup=min(50, steps // 10),
        seed=settings["seed"],
        save_every=max(1, steps // 5),
    )
