"""Text to learn from: Tiny Tales, real stories, or a reader's own file."""

import os
import re
from dataclasses import dataclass, field
from itertools import islice

from . import resources, tales

__all__ = [
    "Corpus",
    "check_known",
    "check_text",
    "count_cut",
    "decode_batch",
    "encode_batch",
    "load",
    "pad_prompts",
]

END = resources.END

# So many tales the checkpoints were trained on.
TRAIN_TALES = 100_000

# Held-out tales come from their own seed.
_TRAIN_SEED, _VALID_SEED, _TEST_SEED = 1, 2, 3


@dataclass
class Corpus:
    """Texts to train on, and others held out.

    Attributes
    ----------
    name : str
    train, valid, test : list of str
        To learn from; to choose settings by; to report figures on, which
        nothing was chosen by. Without a ``test_size`` the last is empty.
    left_out : int
        Texts of a file that are none of them, since fewer were asked for.
    """

    name: str
    train: list = field(repr=False)
    valid: list = field(repr=False)
    left_out: int = 0
    test: list = field(repr=False, default_factory=list)


def load(name="tales", size=20_000, valid_size=1_000, test_size=0):
    """Load a corpus by name or from a file.

    Parameters
    ----------
    name : str or path
        ``"tales"``: Tiny Tales, sampled from the grammar with fixed seeds.
        ``"tinystories"``: real stories, from the folder named by the
        environment variable ``DBLM_TINYSTORIES`` (files ``train.txt`` and
        ``valid.txt``), else streamed from the hub.
        A path: your own text file; blank lines (or ``<|endoftext|>`` lines)
        separate its texts, and every tenth text is held out. A file that
        is called like one of the above is ``./tales``, or a `pathlib.Path`.
    size, valid_size : int
        At most so many texts; at least 1.
    test_size : int
        At most so many texts of a third part; 0 for none. Of a file of your
        own it is another tenth.

    Returns
    -------
    Corpus

    Raises
    ------
    ValueError
        If the file is missing, empty, not UTF-8, or too short to hold a text
        out; or if a size is smaller than 1.
    TypeError
        If a size is no whole number.
    resources.DataError
        If the real stories are not here and cannot be fetched.
    """
    for count in (size, valid_size):
        _check_count(count)
    _check_count(test_size, least=0)
    if isinstance(name, str) and name in ("tales", "tinystories"):
        resources.note_other_meaning(name)
    if isinstance(name, str) and name == "tales":
        train = tales.corpus(size, seed=_TRAIN_SEED)
        valid = tales.corpus(valid_size, seed=_VALID_SEED)
        test = tales.corpus(test_size, seed=_TEST_SEED)
        return Corpus("tales", train, valid, test=test)
    if isinstance(name, str) and name == "tinystories":
        parts = ("train", size), ("valid", valid_size + test_size)
        if os.environ.get("DBLM_TINYSTORIES"):
            whole = [_read_tinystories(part) for part, _ in parts]
        else:
            whole = [_stream_tinystories(*part) for part in parts]
        found = [texts[:count] for texts, (_, count) in zip(whole, parts)]
        left_out = sum(map(len, whole)) - sum(map(len, found))
        train, held = found
        valid, test = held[:valid_size], held[valid_size:]
        return Corpus("tinystories", train, valid, left_out, test)
    path = resources.user_path(name)
    if not os.path.isfile(path):
        raise ValueError(
            f"no corpus {str(name)!r}: give 'tales', 'tinystories' or the "
            "path of a text file"
        )
    texts = _split(path)
    if len(texts) < 2:
        raise ValueError(
            f"{path} holds {len(texts)} text(s); at least 2 are needed, "
            "separated by blank lines, so that one can be held out"
        )
    valid = texts[::10][:valid_size]
    test = texts[5::10][:test_size]
    held_out = (0, 5) if test_size else (0,)
    train = [text for i, text in enumerate(texts) if i % 10 not in held_out]
    train = train[:size]
    left_out = len(texts) - len(train) - len(valid) - len(test)
    return Corpus(path.name, train, valid, left_out, test)


def _check_count(count, least=1):
    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(
            f"how many texts must be a whole number; got {count!r}"
        )
    if count < least:
        raise ValueError(f"ask for at least {least} text(s); got {count}")


def _split(path):
    """Texts of a file: at <|endoftext|> where there is one, else at blanks."""
    try:
        whole = path.read_text("utf-8-sig")  # CRLF becomes LF on the way
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text ({error}): save it as UTF-8"
        ) from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    parts = whole.split(END) if END in whole else re.split(r"\n\s*\n", whole)
    return [part.strip() for part in parts if part.strip()]


def _read_tinystories(part):
    """Real stories from the folder that ``DBLM_TINYSTORIES`` names."""
    folder = resources.user_path(os.environ["DBLM_TINYSTORIES"])
    path = folder / f"{part}.txt"
    if not os.path.isfile(path):
        raise resources.DataError(
            f"there is no {path}: DBLM_TINYSTORIES must name a folder with "
            "train.txt and valid.txt, or be unset"
        )
    return _split(path)


def _stream_tinystories(part, count):
    """Real stories from the hub; only what is asked for is fetched."""
    advice = (
        "TinyStories cannot be fetched from the hub. Connect to the internet, "
        "or put train.txt and valid.txt into a folder and name it in "
        "DBLM_TINYSTORIES."
    )
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise resources.DataError(
            "'tinystories' needs the package datasets (pip install datasets) "
            "or a local copy named by DBLM_TINYSTORIES"
        ) from error
    resources.reach_hub(advice)
    split = {"train": "train", "valid": "validation"}[part]
    try:
        rows = load_dataset(
            "roneneldan/TinyStories", split=split, streaming=True
        )
        return [row["text"].strip() for row in islice(rows, count)]
    except Exception as error:
        raise resources.DataError(
            f"{advice} ({type(error).__name__})"
        ) from error


def encode_batch(texts, tokenizer, seq_len):
    """Write texts on canvases of fixed length.

    Each text is followed by one end-of-text token and then padded with it;
    what does not fit is cut off. The mask says which positions count: those
    of the text and of its first end-of-text token.

    Parameters
    ----------
    texts : list of str
    tokenizer : transformers.PreTrainedTokenizerFast
    seq_len : int

    Returns
    -------
    ids : tensor of ids, shape ``(batch, seq_len)``
    mask : bool tensor, shape ``(batch, seq_len)``

    Raises
    ------
    ValueError
        If there are no texts, or no position to write them on, or if a
        text is no valid Unicode.
    TypeError
        If ``texts`` is a single string, or one of them is no string.
    """
    import torch

    if isinstance(texts, str):
        raise TypeError("texts must be a list; got one string: write [text]")
    if not texts:
        raise ValueError("no texts to encode: the list is empty")
    for words in texts:
        check_text(words)
    if seq_len < 1:
        raise ValueError(f"seq_len must be at least 1; got {seq_len}")
    end = tokenizer.eos_token_id
    ids = torch.full((len(texts), seq_len), end)
    mask = torch.zeros(len(texts), seq_len, dtype=torch.bool)
    rows = tokenizer(list(texts))["input_ids"]
    for i, row in enumerate(rows):
        row = [*row[:seq_len], end][:seq_len]
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = True
    return ids, mask


def count_cut(ids, mask, tokenizer):
    """How many of the texts that `encode_batch` wrote were cut off.

    Parameters
    ----------
    ids, mask : tensors, shape ``(batch, seq_len)``
    tokenizer : transformers.PreTrainedTokenizerFast

    Returns
    -------
    int
        Texts whose end-of-text token found no room.
    """
    cut = mask.all(dim=1) & (ids[:, -1] != tokenizer.eos_token_id)
    return int(cut.sum())


def check_text(words):
    """Refuse what is no text: no string, or halves of characters."""
    if not isinstance(words, str):
        raise TypeError(f"a text must be a string; got {words!r}")
    try:
        words.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text is not valid Unicode: its character {error.start + 1}, "
            f"{words[error.start]!r}, is none (was it typed or saved in an "
            "encoding other than UTF-8?)"
        ) from error


def decode_batch(ids, tokenizer):
    """Read canvases up to their first end-of-text token; list of str."""
    texts = []
    for row in ids.tolist():
        if tokenizer.eos_token_id in row:
            row = row[: row.index(tokenizer.eos_token_id)]
        texts.append(tokenizer.decode(row))
    return texts


def check_known(words, tokenizer):
    """Refuse a text that is empty or has no word the tokenizer knows whole.

    A byte-level tokenizer can spell anything, letter by letter if need be;
    but a model that has never met a single word of a prompt has nothing to
    go on.

    Raises
    ------
    ValueError
        Or if it is no valid Unicode.
    TypeError
        If it is no string.
    """
    check_text(words)
    if not words.strip():
        raise ValueError(
            f"the text is empty ({words!r}): give at least one word"
        )
    for i, word in enumerate(words.split()):
        word = word.strip(".,!?;:\"'()")
        # Inside a text a word's token begins with the space before it.
        if word and len(tokenizer.tokenize(" " + word)) == 1:
            return
        if i == 0 and len(word) > 1 and len(tokenizer.tokenize(word)) == 1:
            return
    raise ValueError(
        f"no word of {words!r} is in the vocabulary of this tokenizer; use "
        "words of the text that the model was trained on"
    )


def pad_prompts(prompts, tokenizer):
    """Encode prompts of different lengths side by side.

    Parameters
    ----------
    prompts : list of str
    tokenizer : transformers.PreTrainedTokenizerFast

    Returns
    -------
    ids : tensor of ids, shape ``(batch, longest)``
    given : bool tensor, same shape
        False where a shorter prompt has ended.

    Raises
    ------
    ValueError
        If there are no prompts, or one is no valid Unicode.
    TypeError
        If ``prompts`` is a single string, or one of them is no string.
    """
    import torch

    if isinstance(prompts, str):
        raise TypeError("prompts must be a list: write [prompt]")
    if not prompts:
        raise ValueError("no prompts to encode: the list is empty")
    for words in prompts:
        check_text(words)
    rows = tokenizer(list(prompts))["input_ids"]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    given = torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        given[i, : len(row)] = True
    return ids, given
