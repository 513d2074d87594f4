"""``dblm train``: a run, its folder, and the model that comes of it."""

import contextlib
import hashlib
import json
import os
import re
import sys

from .. import resources, storage
from .parser import GAUSSIAN, ONLY_PROPOSAL, PROPOSAL, SETTINGS
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
            settings = _settings(_given(options))
            # What is wrong with them is said before the folder is made.
            job = _prepare(settings)
            held.enter_context(_lock(out))
            owner = _claim(out, settings)
        else:
            owner, settings = _kept(out, options.resume)
            _check_given(out, settings, _given(options))
            held.enter_context(_lock(out))
            storage.check_ours(out / "final", owner)
            storage.sweep(out, owner)
            job = _prepare(settings)
            job.check(out)
        _train(out, owner, job, options.resume)


def _train(out, owner, job, resume):
    """The work itself, in a folder that is ours."""
    if job.said:
        note(job.said)
    note(f"training {job.plan()}; checkpoints go to {out}")
    try:
        model, history = job.train(out, resume)
        _save_final(model.cpu(), job.tokenizer, out / "final", owner)
    except KeyboardInterrupt:
        _say_what_is_kept(out, job.kept(out))
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
        # Before there were two recipes there was the proposal's, and before
        # there were masks all noise was Gaussian.
        early = {"recipe": "proposal", "noise": GAUSSIAN}
        kept = early | record["settings"]
        settings = {name: kept[name] for name in SETTINGS}
        wrong = [
            name
            for name, value in settings.items()
            if type(value) is not type(SETTINGS[name])
        ]
        if wrong or not isinstance(record["owner"], str):
            raise ValueError(f"{', '.join(wrong) or 'owner'} of a wrong type")
        if settings["recipe"] not in _JOBS:
            raise ValueError(f"the recipe {settings['recipe']!r} is unknown")
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


def _say_what_is_kept(out, step):
    """After Ctrl-C: from which step the run would go on, and how."""
    name = str(out)
    where = [f"--out={name}"] if name.startswith("-") else ["--out", name]
    command = paste("dblm", "train", *where, "--resume")
    if step:
        note(f"kept is step {step}; go on from there with: {command}")
    else:
        note(f"no step is kept yet; begin again with: {command}")


def _last_step(folder):
    """The step of the last checkpoint in a folder; 0 if there is none."""
    steps = [
        int(path.name[5:])
        for path in folder.glob("step-*")
        if re.fullmatch(r"step-\d{7,}", path.name) and path.is_dir()
    ]
    return max(steps, default=0)


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


def _settings(given):
    """All settings of a new run; refuse those of another recipe."""
    if given.get("noise", GAUSSIAN) != GAUSSIAN:
        wrong = [n for n in ("recipe", *ONLY_PROPOSAL) if given.get(n)]
        if wrong:
            raise ValueError(
                f"--{wrong[0]} is known to --noise {GAUSSIAN} only: leave it "
                f"out, or the noise {given['noise']}"
            )
        return {**SETTINGS, "recipe": "masked"} | given
    named = given.get("recipe")
    recipe = "proposal" if given.get("proposal") else SETTINGS["recipe"]
    settings = {**SETTINGS, "recipe": named or recipe}
    if settings["recipe"] == "proposal":
        settings |= PROPOSAL
    else:
        wrong = [name for name in ONLY_PROPOSAL if given.get(name)]
        if wrong:
            raise ValueError(
                f"--{wrong[0]} is known to --recipe proposal only: leave it "
                "out, or name that recipe"
            )
    return settings | given


def _check_given(out, kept, given):
    changed = [name for name, value in given.items() if kept[name] != value]
    if changed:
        raise ValueError(
            f"the run in {out} began with "
            + ", ".join(f"{name} {kept[name]}" for name in changed)
            + ": leave it as it was, or give another folder"
        )


def _prepare(settings):
    """What is to be done: the recipe's job, with its texts on canvases."""
    return _JOBS[settings["recipe"]](settings)


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


def _canvases(settings, texts, backbone, seq_len, start=0):
    """Texts on canvases, if the backbone has room for them.

    Its first ``start`` positions are taken.
    """
    from .. import text

    longest = backbone.model.config.max_position_embeddings - start
    if seq_len > longest:
        raise ValueError(
            f"{settings['backbone']} knows {longest} positions"
            f"{' behind a start' * bool(start)}; got --seq-len {seq_len}"
        )
    return text.encode_batch(texts, backbone.tokenizer, seq_len)


# --- the recipes ------------------------------------------------------------


class _InOnePart:
    """One training of ``model`` on ``texts``, with its ``config``."""

    def plan(self):
        return f"{self.config.steps} steps"

    def check(self, out):
        """Its checkpoints lie in the folder itself, and are checked there."""

    def train(self, out, resume):
        from .. import training

        history = training.train(
            self.model,
            *self.texts,
            self.config,
            folder=out,
            resume=resume,
            progress=sys.stderr.isatty(),
        )
        return self.model, history

    def kept(self, out):
        return _last_step(out)


class _Proposal(_InOnePart):
    """The model of Part I: trained by the squared error."""

    def __init__(self, settings):
        from .. import denoiser, text, training

        self.config = self._config(settings)
        # New layers begin by chance.
        resources.seed_everything(settings["seed"])
        if settings["proposal"]:
            texts, seq_len = training.PROPOSAL_SENTENCES, 16
            corpus = text.Corpus("the proposal's sentences", list(texts), [])
            fields = {"causal": True, "conditioning": "none"}
        else:
            corpus = text.load(settings["text"])
            seq_len = settings["seq_len"]
            fields = {"causal": settings["causal"]}
            fields["normalise_embeddings"] = True
        backbone = resources.load_backbone(settings["backbone"])
        self.tokenizer = backbone.tokenizer
        texts = _canvases(settings, corpus.train, backbone, seq_len)
        cut = text.count_cut(*texts, self.tokenizer)
        self.said = _what_is_cut(corpus, cut, seq_len)
        self.texts = texts
        model = denoiser.DBLM.from_backbone(backbone, **fields)
        model.config.seq_len = seq_len  # see `decoding.canvas_of`
        self.model = model.to(resources.device())

    @staticmethod
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


class _Masked(_InOnePart):
    """The model of Part III, which works on tokens."""

    def __init__(self, settings):
        from .. import ladder, masked, text

        noise = settings["noise"]
        fields = {"noise": noise, **masked.TRAINED_WITH[noise]}
        steps = settings["steps"]
        self.config = ladder.recipe(
            ladder.REPAIRED,
            steps=steps,
            batch_size=settings["batch_size"],
            learning_rate=settings["learning_rate"],
            seed=settings["seed"],
            warmup=min(100, steps // 3),
            ema=max(0.0, min(0.998, 1 - 10 / steps)),
            save_every=min(250, max(1, steps // 5)),
        )
        # What the backbone does not bring begins by chance.
        resources.seed_everything(settings["seed"])
        corpus = text.load(settings["text"])
        backbone = resources.load_backbone(settings["backbone"])
        self.tokenizer = backbone.tokenizer
        seq_len = settings["seq_len"]
        ids, mask = _canvases(settings, corpus.train, backbone, seq_len, 1)
        cut = text.count_cut(ids, mask, self.tokenizer)
        self.said = _what_is_cut(corpus, cut, seq_len)
        # Every position counts: the model also says where a text ends.
        self.texts = ids, mask.new_ones(mask.shape)
        model = masked.MaskedDenoiser.from_backbone(
            backbone, seq_len=seq_len, **fields
        )
        self.model = model.to(resources.device())


class _Repaired:
    """The model with all repairs of Part II, trained in three parts."""

    def __init__(self, settings):
        from .. import repair, text

        self.parts = repair.plan(settings["steps"])
        corpus = text.load(settings["text"])
        backbone = resources.load_backbone(settings["backbone"])
        self.tokenizer = backbone.tokenizer
        seq_len = settings["seq_len"]
        ids, mask = _canvases(settings, corpus.train, backbone, seq_len, 1)
        valid, _ = text.encode_batch(corpus.valid, self.tokenizer, seq_len)
        cut = text.count_cut(ids, mask, self.tokenizer)
        self.said = _what_is_cut(corpus, cut, seq_len)
        digest = hashlib.sha256(
            ids.numpy().tobytes() + valid.numpy().tobytes()
        )
        self.model = {
            "backbone": backbone,
            "seed": settings["seed"],
            "seq_len": seq_len,
        }
        self.given = {
            "ids": ids,
            "valid": valid,
            "about": {"sha256 of the texts": digest.hexdigest()},
            "batch_size": settings["batch_size"],
            "learning_rate": settings["learning_rate"],
        }
        repair.begin(**self.model)  # what does not fit is said now

    def plan(self):
        parts = self.parts
        return (
            f"{parts.steps} steps: {parts.fit} for the range of noise, "
            f"{parts.neighbours} with clean neighbours, {parts.together} of "
            "all together"
        )

    def check(self, out):
        """Refuse what a reader put where a part's checkpoints go."""
        from .. import repair
        from ..training.checkpoints import RECORD

        for part in repair.PARTS:
            where = out / part
            if not (storage.is_vacant(where) or (where / RECORD).is_file()):
                raise ValueError(
                    f"{where} was not written by this run and stays as it "
                    "is: move it elsewhere, or give another folder"
                )

    def train(self, out, resume):
        from .. import repair

        model, runs = repair.train(
            plan=self.parts,
            folder=out,
            tell=self._tell,
            progress=sys.stderr.isatty(),
            **self.model,
            **self.given,
        )
        return model, runs[-1][0]

    @staticmethod
    def _tell(part, steps, seconds):
        what = {
            "fit": "the range of noise",
            "neighbours": "clean neighbours",
            "together": "all together",
        }
        left = "" if seconds is None else f"; {_duration(seconds)} to go"
        note(f"{what[part]}: {steps} step{'s' * (steps > 1)}{left}")

    def kept(self, out):
        from .. import repair

        kept = before = 0
        for part in repair.PARTS:
            step = _last_step(out / part)
            kept = before + step if step else kept
            before += getattr(self.parts, part)
        return kept


_JOBS = {"repaired": _Repaired, "proposal": _Proposal, "masked": _Masked}


def _duration(seconds):
    """A time to come, as nobody knows it better."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    if minutes < 100:
        return f"about {minutes} minute{'s' * (minutes > 1)}"
    return f"about {round(minutes / 60)} hours"
