"""What the book brings along: text, tokenizer, checkpoints, their digests.

Everything lies in one folder, ``data/``, which the wheel carries too. Each
file is listed in ``MANIFEST.json`` with its sha256 and is checked against it
before use, so that a truncated or exchanged file is named, not obeyed.
"""

import contextlib
import difflib
import hashlib
import json
import os
import re
import warnings
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "HUB_NAMES",
    "PRECISIONS",
    "Backbone",
    "DataError",
    "TwoMeanings",
    "autocast",
    "check_architecture",
    "check_vocabulary",
    "checkpoints",
    "data_path",
    "device",
    "device_name",
    "has_fast_bf16",
    "load_backbone",
    "load_tokenizer",
    "load_weights",
    "locate",
    "manifest",
    "note_other_meaning",
    "progress_bar",
    "reach_hub",
    "resolved",
    "seed_everything",
    "sha256",
    "user_path",
    "verified",
]

HUB_NAMES = ("gpt2", "distilgpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
PRECISIONS = ("fp32", "bf16", "auto")
END = "<|endoftext|>"

_LITTER = ("thumbs.db", "desktop.ini")  # what systems leave behind
_REPAIR = (
    "Install the package again, or run 'git checkout -- data' in a clone."
)


class DataError(ValueError):
    """A file that is missing, damaged or not what it claims to be."""


class TwoMeanings(UserWarning):
    """A name of the book that is also the name of a file or folder here."""


class Backbone(NamedTuple):
    """A language model and the tokenizer that belongs to it."""

    model: object
    tokenizer: object


def data_path(*parts):
    """Path of the book's ``data`` folder, or of something in it.

    The folder named by the environment variable ``DBLM_DATA`` wins; then the
    one inside the installed package; then the one of the repository.

    Raises
    ------
    DataError
        If there is no data folder, or nothing of that name in it.
    """
    package = Path(__file__).resolve().parent
    places = [package / "data", package.parent / "data"]
    if os.environ.get("DBLM_DATA"):
        places = [user_path(os.environ["DBLM_DATA"])]
    for place in places:
        if (place / "MANIFEST.json").is_file():
            break
    else:
        raise DataError(
            "the book's data folder is missing (looked for MANIFEST.json in "
            + " and ".join(map(str, places))
            + "). Install the package again, or name the folder in DBLM_DATA."
        )
    path = place.joinpath(*parts)
    if not path.exists():
        raise DataError(
            f"{'/'.join(parts)} is missing from {place}. Install the package "
            "again, or run 'make checkpoints' in a clone to remake it."
        )
    return path


def user_path(name):
    """A path that a reader gave, with ``~`` and ``~name`` written out.

    Raises
    ------
    ValueError
        If there is no such user, or the path holds a NUL.
    """
    if "\0" in str(name):
        raise ValueError(f"{str(name)!r} is no path: it holds a NUL")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{name}: the home folder that ~ stands for is not known; write "
            "the path out"
        ) from error


def manifest():
    """The contents of ``data/MANIFEST.json`` as a dictionary.

    ``files`` maps each file to its sha256 and size; ``artifacts`` says for
    each tokenizer and checkpoint by which command it was made, in how many
    seconds, and what was measured on it.
    """
    path = data_path("MANIFEST.json")
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is no valid JSON: {error}") from error
    for part in ("files", "artifacts"):
        if not isinstance(content, dict) or part not in content:
            raise DataError(f"{path} is damaged: it has no {part!r}")
        records = content[part]
        if not isinstance(records, dict) or not all(
            isinstance(record, dict)
            and isinstance(record.get("metrics", {}), dict)
            for record in records.values()
        ):
            raise DataError(f"{path} is damaged: its {part!r} are no records")
    for name, record in content["files"].items():
        if not {"sha256", "bytes"} <= set(record):
            raise DataError(f"{path} is damaged: {name} has no sha256 or size")
    return content


def sha256(path):
    """Hexadecimal sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def verified(*parts):
    """Like `data_path`, after checking each file there by its digest.

    What systems, editors and Jupyter leave behind does not count: hidden
    files, anything in hidden folders, and the like.

    Raises
    ------
    DataError
        If a file is missing, differs from the manifest, or is not in it.
    """
    path, root = data_path(*parts), data_path()
    listed = manifest()["files"]
    name = "/".join(parts)
    wanted = [n for n in listed if n == name or n.startswith(name + "/")]
    found = [
        file.relative_to(root).as_posix()
        for file in path.rglob("*")
        if file.is_file() and not _is_litter(file.relative_to(root))
    ]
    for file in [*found, *([] if wanted else [name])]:
        if file not in listed:
            raise DataError(
                f"{file} is not listed in MANIFEST.json: it does not belong "
                "to the book. Move it elsewhere, and name its folder."
            )
    for file in wanted:
        if not (root / file).is_file():
            raise DataError(f"{file} is missing from {root}. {_REPAIR}")
        size, expected = (root / file).stat().st_size, listed[file]
        if size != expected["bytes"] or (
            sha256(root / file) != expected["sha256"]
        ):
            raise DataError(
                f"{file} is not the file the book was made with ({size} bytes, "
                f"expected {expected['bytes']}; or another sha256). {_REPAIR}"
            )
    return path


def _is_litter(path):
    """Whether a path is hidden, or of what systems and editors leave."""
    name = path.name.lower()
    return (
        any(part.startswith(".") for part in path.parts)
        or name in _LITTER
        or name.endswith("~")
    )


def checkpoints():
    """Names of the checkpoints in ``data/checkpoints``."""
    folder = data_path("checkpoints")
    return sorted(
        p.name
        for p in folder.iterdir()
        if p.is_dir() and not p.name.startswith(".")
    )


def load_backbone(name="tales-gpt2"):
    """Load a GPT-2 and its tokenizer: the small embedded one or a real one.

    Parameters
    ----------
    name : str or path
        ``"tales-gpt2"`` (embedded), ``"gpt2"``, ``"distilgpt2"`` or any id
        of a GPT-2 model on the hub, or a local folder in the hub's layout.

    Returns
    -------
    Backbone
        ``model`` is a `transformers.GPT2LMHeadModel` in evaluation mode.

    Raises
    ------
    DataError
        If the model is absent and cannot be fetched, or its files are
        damaged or those of another architecture.
    ValueError
        If the name is unknown; the message suggests the nearest.
    """
    from transformers import GPT2LMHeadModel

    source = locate(name)
    check_architecture(source, "gpt2")
    model = load_weights(GPT2LMHeadModel, source)
    tokenizer = load_tokenizer(source)
    check_vocabulary(tokenizer, model.config.vocab_size, source)
    return Backbone(model, tokenizer)


def check_vocabulary(tokenizer, size, folder):
    """Refuse a tokenizer that writes ids which a model has no vector for.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerFast
    size : int
        Rows of the model's table of embeddings.
    folder : path
        Where the model lies.

    Raises
    ------
    DataError
    """
    if len(tokenizer) > size:
        raise DataError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens and the "
            f"model embeddings for {size} only: they do not belong together. "
            "Put the tokenizer.json that the model was trained with beside it."
        )


def load_weights(kind, folder):
    """Load a model from a folder; no weight is made up.

    Parameters
    ----------
    kind : type
        A subclass of `transformers.PreTrainedModel`.
    folder : path

    Returns
    -------
    model of that kind
        In evaluation mode.

    Raises
    ------
    DataError
        If weights are missing, or do not fit the configuration. By itself
        `transformers` would fill the gaps with random numbers.
    """
    import torch

    try:
        # Half-precision files are small; processors compute in float32.
        model, report = kind.from_pretrained(
            folder, output_loading_info=True, dtype=torch.float32
        )
    except Exception as error:
        raise DataError(
            f"{folder}: the weights cannot be read ({error})"
        ) from error
    if report["missing_keys"]:
        raise DataError(
            f"{folder}/model.safetensors lacks weights: "
            + ", ".join(sorted(report["missing_keys"])[:3])
        )
    # Loaded tensors may be views of the file, and Windows neither replaces
    # nor removes a file that is mapped.
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()
    return model.eval()


def load_tokenizer(name="tales"):
    """Load a tokenizer; ``"tales"`` is the one trained on Tiny Tales.

    Parameters
    ----------
    name : str or path
        ``"tales"``, a name that `load_backbone` takes, a folder with a
        ``tokenizer.json``, or that file.

    Returns
    -------
    transformers.PreTrainedTokenizerFast
        Its end-of-text token also pads.
    """
    from transformers import PreTrainedTokenizerFast

    if isinstance(name, str) and name == "tales":
        note_other_meaning(name)
        file = verified("tokenizer") / "tokenizer.json"
    elif not _is_known(name) and os.path.isfile(user_path(name)):
        file = user_path(name)
    else:
        file = locate(name) / "tokenizer.json"
    if not file.is_file():
        raise DataError(f"there is no tokenizer.json in {file.parent}")
    try:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(file),
            eos_token=END,
            bos_token=END,
            pad_token=END,
            clean_up_tokenization_spaces=False,
        )
    except Exception as error:
        raise DataError(
            f"{file} cannot be read as a tokenizer: {error}"
        ) from error
    if not _has_end(file):  # it would get an id behind the last
        raise DataError(
            f"{file} has no {END} token, which ends and pads texts here"
        )
    return tokenizer


def _has_end(file):
    """Whether a tokenizer's file holds the end-of-text token itself."""
    content = json.loads(file.read_text("utf-8"))
    added = [token["content"] for token in content.get("added_tokens", ())]
    return END in added or END in content["model"].get("vocab", ())


def locate(name):
    """Turn a model's name into a folder on this machine.

    A name of the book, or one of `HUB_NAMES`, means just that; a folder of
    the same name is ``./NAME``, or a `pathlib.Path`.

    Raises
    ------
    DataError
        If it is not here and cannot be fetched, or is damaged.
    ValueError
        If the name is unknown; the message suggests the nearest.
    """
    if not str(name).strip():
        raise ValueError("the model's name is empty; try 'tales-gpt2'")
    if _is_known(name):
        note_other_meaning(name)
        if name in HUB_NAMES:
            return _from_hub(name)
        return verified("checkpoints", name)
    path = user_path(name)
    if os.path.isdir(path):
        return path
    if os.path.lexists(path):
        raise DataError(f"{path} is no folder; give the folder of a model")
    if _is_path(name, path):
        raise DataError(f"there is no folder {path}")
    if "/" not in name:
        known = {n.lower(): n for n in (*checkpoints(), *HUB_NAMES)}
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.0)
        raise ValueError(
            f"unknown model {name!r}; did you mean {known[near[0]]!r}? Known: "
            f"{', '.join(known.values())}, OWNER/NAME on the hub, or a local "
            "folder."
        )
    return _from_hub(name)


def _is_known(name):
    """Whether a name, not a path, is of the book or of `HUB_NAMES`."""
    return isinstance(name, str) and (
        name in HUB_NAMES or name in checkpoints()
    )


def note_other_meaning(name):
    """Warn if a name of the book is that of a file or folder here, too."""
    if os.path.lexists(name):
        warnings.warn(
            f"{name} is the book's own here; to use what stands in this "
            f"folder under that name, write ./{name}",
            TwoMeanings,
            stacklevel=2,
        )


def _is_path(name, path):
    """Whether a name of something absent can only be meant as a path."""
    return (
        not isinstance(name, str)
        or path.is_absolute()
        or name.startswith((".", "~"))
        or "\\" in name
        or re.match(r"[A-Za-z]:", name) is not None
        or ("/" in name and re.fullmatch(r"[\w.-]+/[\w.-]+", name) is None)
        or ("/" in name and os.path.isdir(path.parent))
    )


def _from_hub(name):
    """Folder of a hub model, from the cache or the network."""
    from huggingface_hub import snapshot_download

    wanted = ["config.json", "model.safetensors", "tokenizer.json"]
    with contextlib.suppress(OSError, ValueError):  # not in the cache
        return Path(
            snapshot_download(
                name, allow_patterns=wanted, local_files_only=True
            )
        )
    advice = (
        f"The model {name!r} is not on this machine, and the hub cannot be "
        "reached. Connect to the internet once (it is then kept), give the "
        "path of a local folder, or use the embedded 'tales-gpt2'."
    )
    reach_hub(advice)
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:
        raise DataError(f"{name!r} cannot be fetched: {error}") from error


def reach_hub(advice):
    """Return at once if the hub can be reached.

    The hub's own client retries for most of a minute before it gives up.

    Parameters
    ----------
    advice : str
        What to do without it; begins the error message.

    Raises
    ------
    DataError
        If ``HF_HUB_OFFLINE`` is set, or no connection is made in 3 seconds.
    """
    import socket
    from urllib.parse import urlsplit

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise DataError(advice + " (HF_HUB_OFFLINE is set.)")
    hub = urlsplit(constants.ENDPOINT)
    through = None
    usual = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
    try:
        through = _proxy(hub)
        host = through or hub
        address = host.hostname, host.port or usual.get(host.scheme, 443)
        socket.create_connection(address, timeout=3).close()
    except (OSError, ValueError, UnicodeError) as error:
        if through:
            advice += f" (The proxy {host.hostname} does not answer.)"
        raise DataError(advice) from error


def _proxy(address):
    """The proxy that leads to an address, taken apart; None without one.

    Python knows every spelling of the variables, and the settings of Windows
    and macOS.
    """
    from urllib.parse import urlsplit
    from urllib.request import getproxies, proxy_bypass

    proxies = getproxies()
    proxy = proxies.get(address.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(address.hostname or ""):
        return None
    return urlsplit(proxy if "://" in proxy else f"http://{proxy}")


def check_architecture(folder, wanted):
    """Read the headers only: the right model type, and its weights whole?"""
    from safetensors import safe_open

    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        kind = config.get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        final = folder / "final"
        if (final / "config.json").is_file():
            raise DataError(
                f"{folder} is the folder of a run; its model is {final}"
            ) from error
        raise DataError(
            f"{folder} holds no readable config.json ({error})"
        ) from error
    if kind != wanted:
        raise DataError(
            f"{folder} holds a model of type {kind!r}; {wanted!r} is needed"
        )
    weights = folder / "model.safetensors"
    try:
        with safe_open(weights, framework="pt") as file:
            names = list(file.keys())
            if not any(name.endswith("ln_f.weight") for name in names):
                raise DataError(f"{weights} holds no weights of a GPT-2 trunk")
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{weights} is missing, truncated or no safetensors file ({error})"
        ) from error


def device():
    """The GPU if there is one, else the CPU.

    Apple's MPS is left alone: it has given wrong losses without a word. Ask
    for it yourself with ``torch.device("mps")``.
    """
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name():
    """Name what `device` gives: the GPU's own name, or "CPU"."""
    import torch

    if not torch.cuda.is_available():
        return "CPU"
    return torch.cuda.get_device_name()


def has_fast_bf16(device="cpu"):
    """Say whether the hardware computes in bf16, and not only stores it.

    Parameters
    ----------
    device : str or torch.device

    Returns
    -------
    bool
        True on a GPU that supports bf16, and on processors with AMX or
        AVX-512 BF16. Others get the right result too, about ten times more
        slowly than in fp32.
    """
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported()
    # Not promised by torch, so it may be missing one day.
    known = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, bool)() for name in known)


def autocast(device, precision):
    """Within, networks compute in the given precision.

    All that computes in mixed precision asks for it here, and nowhere else.

    Parameters
    ----------
    device : str or torch.device
    precision : {"fp32", "bf16", "auto"}
        What `training.TrainConfig.precision` says; "auto" is bf16 where
        `has_fast_bf16` finds it, so that results differ between machines.

    Returns
    -------
    torch.autocast
        For a ``with`` statement. In fp32 it switches off an autocast around
        it.

    Raises
    ------
    ValueError
        If the precision is another.
    """
    import torch

    bf16 = resolved(precision, device) == "bf16"
    kind = torch.device(device).type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=bf16)


def resolved(precision, device="cpu"):
    """What a precision means on a device: "fp32" or "bf16".

    Parameters
    ----------
    precision : {"fp32", "bf16", "auto"}
    device : str or torch.device

    Raises
    ------
    ValueError
        If the precision is another.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is fp32, bf16 or auto, not {precision!r}")
    if precision == "auto":
        return "bf16" if has_fast_bf16(device) else "fp32"
    return precision


def seed_everything(seed=0):
    """Seed Python, NumPy and PyTorch; return a CPU `torch.Generator`."""
    import random

    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def progress_bar(iterable=None, **options):
    """A `tqdm.auto` bar; silent where ``DBLM_QUIET`` is set.

    Bars would differ from run to run in the book's stored outputs; the
    build and the tests set that variable.
    """
    from tqdm.auto import tqdm

    quiet = bool(os.environ.get("DBLM_QUIET"))
    options["disable"] = options.get("disable", False) or quiet
    return tqdm(iterable, **options)
