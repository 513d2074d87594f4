"""The models that a command works with, and their tokenizers."""

import json
import os

from .. import resources
from .parser import EXACT, MODEL
from .printing import note, paste, printable

__all__ = ["any_model", "check_kind", "check_room", "default_model", "load"]

_LONGEST = 256  # that the exact denoiser is made for
_RUN, _FINAL = "run.json", "final"  # see `train`


def longest_of(model):
    """The number of positions that a model knows."""
    config = getattr(model, "config", None)
    if config is None:
        return _LONGEST
    return config.max_position_embeddings - config.shift


def check_room(name, model, length):
    """Refuse a canvas that is longer than the model."""
    longest = longest_of(model)
    if length > longest:
        raise ValueError(
            f"{name} knows {longest} positions: --length is {longest} at "
            f"most, not {length}"
        )


class _ByHeart:
    """The exact denoiser of some tales, in the place of a trained model."""

    def __init__(self, tokenizer, extra, length):
        import torch

        from .. import decoding, noising, schedules, text

        texts = [*extra, *text.load("tales", size=2000, valid_size=1).train]
        ids, _ = text.encode_batch(texts, tokenizer, length)
        self._table = noising.random_table(
            len(tokenizer), 32, torch.Generator().manual_seed(20221)
        )  # its own seed: the noise must not repeat the table's numbers
        self.schedule = schedules.LogUniform(0.05, 20)
        self._denoise = decoding.empirical_denoiser(
            self._table[ids], self.schedule
        )

    def __call__(self, zt, t):
        from ..denoiser import DenoiserOutput

        return DenoiserOutput(x0=self._denoise(zt, t))

    def table(self):
        return self._table

    def embed(self, ids):
        return self._table[ids]

    def parameters(self):
        yield self._table

    def eval(self):
        return self


def load(name, extra=(), length=None):
    """A trained denoiser of either kind or the exact one; its tokenizer.

    Parameters
    ----------
    name : str
    extra : sequence of str
        Texts that the exact one is to know, besides its tales.
    length : int, optional
        Of its canvas.
    """
    from .. import decoding, denoiser, masked

    if name == EXACT:
        resources.note_other_meaning(name)
        tokenizer = resources.load_tokenizer("tales")
        length = decoding.CANVAS if length is None else length
        if length > _LONGEST:
            raise ValueError(
                f"{EXACT} writes texts of {_LONGEST} tokens at most, not "
                f"{length}: lower --length"
            )
        return _ByHeart(tokenizer, extra, length), tokenizer
    name = _model_of(name)
    if _kind(name) == masked.MaskedConfig.model_type:
        model = masked.load(name)
        return model, _tokenizer(name, model.config.vocab_size)
    model = denoiser.load(name)
    return model, _tokenizer(name, len(model.table()))


def check_kind(name, model, options):
    """Refuse options that mean nothing to a model.

    Parameters
    ----------
    name : str
        Of the model.
    model
        As `load` gives it.
    options
        With ``order`` for models that fill masks, and ``stagger`` for the
        others; None if not given.
    """
    from .. import unmasking, writing
    from ..masking import look_up

    if options.order is not None:
        look_up("order", options.order, unmasking.ORDERS)
        if not writing.fills(model):
            raise ValueError(
                f"--order says how masks are filled; {printable(name)} is a "
                "model of vectors, which writes everywhere at once: leave it "
                "out, or name a model trained with masks"
            )
        if writing.noise_of(model) == "uniform":
            raise ValueError(
                f"--order says how masks are filled; {printable(name)} was "
                "trained with random tokens and knows no masks: leave it out"
            )
    if options.stagger is not None and writing.fills(model):
        raise ValueError(
            f"--stagger is for models of vectors; {printable(name)} fills "
            "masks: leave it out, or choose an --order"
        )


def _model_of(name):
    """The model in the folder of a run; any other name as it is."""
    if not name.strip() or name in resources.checkpoints():
        return name
    folder = resources.user_path(name)
    if not os.path.isfile(folder / _RUN) or os.path.isfile(
        folder / "config.json"
    ):
        return name
    if not os.path.isdir(folder / _FINAL):
        raise ValueError(
            f"the run in {printable(str(folder))} is not finished; go on with "
            f"it: {paste('dblm', 'train', f'--out={folder}', '--resume')}"
        )
    return str(folder / _FINAL)


def _tokenizer(name, size):
    """The tokenizer that lies beside a trained model, else that of tales."""
    folder = resources.locate(name)
    own = (folder / "tokenizer.json").is_file()
    tokenizer = resources.load_tokenizer(name if own else "tales")
    resources.check_vocabulary(tokenizer, size, folder)
    return tokenizer


def default_model():
    """The book's denoiser; in its absence the exact one."""
    if MODEL in resources.checkpoints():
        return MODEL
    note(
        f"{MODEL} is not in {resources.data_path()}: using the exact denoiser"
    )
    return EXACT


def any_model(name):
    """A denoiser or a language model, and its tokenizer."""
    if name == EXACT:
        raise ValueError(
            f"{EXACT} knows its texts by heart: there is nothing to measure"
        )
    name = _model_of(name)
    if _kind(name) == "gpt2":
        return resources.load_backbone(name)
    return load(name)


def _kind(name):
    """The architecture that a model names; None if it names none."""
    file = resources.locate(name) / "config.json"
    try:
        return json.loads(file.read_text("utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None  # loading will say what is wrong
