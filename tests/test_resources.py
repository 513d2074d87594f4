"""The book's data, its digests, and where models come from.

A small data folder is built for each question, so that it can be damaged:
cut off, renamed, exchanged, one bit flipped. What is damaged is refused by
name, before anything is made of it.
"""

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dblm_lib import denoiser, resources

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = "checkpoints/tales-gpt2"
WEIGHTS = f"{CHECKPOINT}/model.safetensors"
CONFIG = f"{CHECKPOINT}/config.json"
TOKENIZER = "tokenizer/tokenizer.json"
FILES = (WEIGHTS, CONFIG, f"{CHECKPOINT}/tokenizer.json", TOKENIZER)


# --- a small book -----------------------------------------------------------


def train_tokenizer(path):
    """Write a byte-level BPE of few merges."""
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        ["once upon a time there was a fox"] * 3,
        vocab_size=270,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    bpe.save(str(path))


def save_gpt2(folder, seed=0):
    """Write a tiny GPT-2 in the hub's layout."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=270,
        n_positions=16,
        n_embd=8,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def write_manifest(root):
    """List each file with its size and sha256, by hashlib alone."""
    files = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.name != "MANIFEST.json":
            content = path.read_bytes()
            files[path.relative_to(root).as_posix()] = {
                "sha256": hashlib.sha256(content).hexdigest(),
                "bytes": len(content),
            }
    whole = {"artifacts": {}, "files": files}
    (root / "MANIFEST.json").write_text(json.dumps(whole), "utf-8")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """Build a data folder once; tests work on copies."""
    root = tmp_path_factory.mktemp("pristine")
    train_tokenizer(root / TOKENIZER)
    save_gpt2(root / CHECKPOINT)
    shutil.copy(root / TOKENIZER, root / CHECKPOINT)
    write_manifest(root)
    return root


@pytest.fixture
def data(pristine, tmp_path, monkeypatch):
    """Return a copy that may be damaged, named by DBLM_DATA."""
    root = tmp_path / "data"
    shutil.copytree(pristine, root)
    monkeypatch.setenv("DBLM_DATA", str(root))
    return root


def load_everything():
    """Use all files of the small book, as a chapter does."""
    resources.load_tokenizer("tales")
    resources.load_backbone("tales-gpt2")


# --- where the data is ------------------------------------------------------


def test_the_folder_named_by_the_variable_wins(data):
    """And what is in it can be asked for by parts."""
    assert resources.data_path() == data
    assert resources.data_path("tokenizer", "tokenizer.json").is_file()
    assert resources.checkpoints() == ["tales-gpt2"]
    backbone = resources.load_backbone("tales-gpt2")
    assert not backbone.model.training
    assert backbone.model.config.n_layer == 2
    ids = backbone.tokenizer("once upon a time")["input_ids"]
    assert backbone.tokenizer.decode(ids) == "once upon a time"
    assert backbone.tokenizer.pad_token_id == 0


def test_missing_data_is_said_and_what_to_do(tmp_path, monkeypatch):
    """No traceback from deep inside; the place and the remedy."""
    monkeypatch.setenv("DBLM_DATA", str(tmp_path / "nowhere"))
    for use in (
        resources.data_path,
        resources.manifest,
        resources.load_tokenizer,
        resources.load_backbone,
    ):
        with pytest.raises(resources.DataError) as caught:
            use()
        assert str(tmp_path / "nowhere") in str(caught.value)
        assert "DBLM_DATA" in str(caught.value)


def test_a_missing_part_is_named(data):
    """Which file, of which folder."""
    shutil.rmtree(data / "tokenizer")
    with pytest.raises(resources.DataError, match="tokenizer is missing"):
        resources.load_tokenizer("tales")


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"files": {}}', "\x00", ""]
)
def test_a_damaged_manifest_is_named(data, content):
    """It is the root of all trust, and is not guessed at."""
    (data / "MANIFEST.json").write_text(content, "utf-8")
    with pytest.raises(resources.DataError, match=r"MANIFEST\.json"):
        load_everything()


def test_the_real_manifest_lists_the_real_files():
    """Size and digest of each file of data/, and no file unlisted."""
    root = ROOT / "data"
    if not (root / CHECKPOINT).is_dir():
        pytest.skip("data/ has not been made yet")
    listed = json.loads((root / "MANIFEST.json").read_text("utf-8"))["files"]
    for name, entry in listed.items():
        content = (root / name).read_bytes()
        assert len(content) == entry["bytes"], name
        assert hashlib.sha256(content).hexdigest() == entry["sha256"], name
    found = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
    assert found - {"MANIFEST.json"} == set(listed)


# --- damage -----------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused_by_name(data, name, share):
    """However much of it is left."""
    content = (data / name).read_bytes()
    (data / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(resources.DataError, match=name):
        load_everything()


@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.sampled_from(FILES), st.floats(0, 1), st.integers(0, 7))
def test_a_flipped_bit_is_refused_by_name(data, name, place, bit):
    """Any bit of any file; put back, all is well."""
    path = data / name
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[int(place * (len(content) - 1))] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        with pytest.raises(resources.DataError, match=name):
            resources.verified(*name.split("/")[:-1])
        with pytest.raises(resources.DataError, match=name):
            load_everything()
    finally:
        path.write_bytes(content)
    resources.verified(*name.split("/"))


@pytest.mark.parametrize("name", FILES)
def test_a_renamed_file_is_refused_by_name(data, name):
    """It is not where the manifest says."""
    (data / name).rename((data / name).with_suffix(".bak"))
    stem = name.rsplit(".", 1)[0]
    with pytest.raises(resources.DataError, match=rf"{stem}\.bak.*not listed"):
        load_everything()
    (data / name).with_suffix(".bak").unlink()
    with pytest.raises(resources.DataError, match=f"{name} is missing"):
        load_everything()


def test_a_foreign_checkpoint_is_refused_by_name(data, tmp_path):
    """A sound file of another model is not the file of this book."""
    save_gpt2(tmp_path / "other", seed=1)
    shutil.copy(tmp_path / "other" / "model.safetensors", data / WEIGHTS)
    with pytest.raises(resources.DataError, match=WEIGHTS):
        resources.load_backbone("tales-gpt2")


def test_a_file_that_was_added_is_refused_by_name(data):
    """A pickle beside the weights, or a checkpoint nobody listed."""
    (data / CHECKPOINT / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(
        resources.DataError, match=r"pytorch_model\.bin.*not listed"
    ):
        resources.load_backbone("tales-gpt2")
    (data / "checkpoints" / "mine").mkdir()
    with pytest.raises(resources.DataError, match="mine is not listed"):
        resources.load_backbone("mine")


def test_damage_is_found_before_anything_is_read(data, monkeypatch):
    """Neither weights nor tokenizer are touched when a digest is wrong."""
    import transformers

    def never(*arguments, **options):
        raise AssertionError("read before it was checked")

    for kind in ("GPT2LMHeadModel", "PreTrainedTokenizerFast"):
        monkeypatch.setattr(
            getattr(transformers, kind), "from_pretrained", never
        )
    (data / WEIGHTS).write_bytes(b"0" * (data / WEIGHTS).stat().st_size)
    with pytest.raises(resources.DataError, match=WEIGHTS):
        resources.load_backbone("tales-gpt2")


# --- a reader's own folder --------------------------------------------------


@pytest.fixture
def own(data, tmp_path):
    """Return a folder in the hub's layout; no manifest knows it."""
    folder = tmp_path / "own model"
    shutil.copytree(data / CHECKPOINT, folder)
    return folder


def test_a_local_folder_is_loaded(own):
    """By path or by string."""
    for name in (own, str(own)):
        model, tokenizer = resources.load_backbone(name)
        assert model.config.n_embd == 8
        assert len(tokenizer) == 270
    assert len(resources.load_tokenizer(own)) == 270
    assert len(resources.load_tokenizer(own / "tokenizer.json")) == 270


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt_neox", "dblm", None])
def test_another_architecture_is_refused(own, kind):
    """What it is, and what is needed."""
    (own / "config.json").write_text(json.dumps({"model_type": kind}), "utf-8")
    with pytest.raises(resources.DataError, match=f"{kind}.*'gpt2' is needed"):
        resources.load_backbone(own)


def test_a_real_bert_is_refused(own):
    """Its own weights and config, as another library saved them."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
    )
    BertModel(config).save_pretrained(own)
    with pytest.raises(resources.DataError, match="'bert'"):
        resources.load_backbone(own)
    # With a GPT-2's config the header still gives it away.
    lie = {"model_type": "gpt2"}
    (own / "config.json").write_text(json.dumps(lie), "utf-8")
    with pytest.raises(resources.DataError, match="no weights of a GPT-2"):
        resources.load_backbone(own)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff\xfe"])
def test_an_unreadable_config_is_refused(own, content):
    """Missing, cut off, no object, no text."""
    if content is None:
        (own / "config.json").unlink()
    else:
        (own / "config.json").write_bytes(content)
    with pytest.raises(resources.DataError, match=r"config\.json"):
        resources.load_backbone(own)


@pytest.mark.parametrize("content", [None, b"", b"junk", b"\x80\x04pickle."])
def test_unreadable_weights_are_refused(own, content):
    """Missing, empty, junk, a pickle under a false name."""
    path = own / "model.safetensors"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(resources.DataError, match=r"model\.safetensors"):
        resources.load_backbone(own)


@pytest.mark.parametrize("lost", ["transformer.h.1.mlp.c_fc.weight", None])
def test_weights_that_are_missing_are_not_made_up(own, lost):
    """transformers would draw them at random, with a warning at most."""
    from safetensors.torch import load_file, save_file

    weights = load_file(own / "model.safetensors")
    if lost:
        del weights[lost]
    else:  # of another size than the config says
        weights["transformer.wpe.weight"] = weights["transformer.wpe.weight"][
            :4
        ].clone()
    save_file(weights, own / "model.safetensors", {"format": "pt"})
    with pytest.raises(resources.DataError, match=lost or "weights"):
        resources.load_backbone(own)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"\xff\xfe"])
def test_an_unreadable_tokenizer_is_refused(own, content):
    """By the file's name."""
    (own / "tokenizer.json").write_bytes(content)
    with pytest.raises(resources.DataError, match=r"tokenizer\.json"):
        resources.load_backbone(own)


def test_a_missing_tokenizer_is_said(own):
    """The weights alone are not enough to read or write a text."""
    (own / "tokenizer.json").unlink()
    with pytest.raises(resources.DataError, match=r"no tokenizer\.json"):
        resources.load_backbone(own)


@pytest.mark.parametrize("name", ["./not here", "/not/here", "~/not-here"])
def test_a_missing_folder_is_said(data, name):
    """A path is a path, and no name of a model."""
    with pytest.raises(resources.DataError, match="there is no folder"):
        resources.load_backbone(name)


# --- names ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, meant",
    [
        ("tales-gtp2", "tales-gpt2"),
        ("tales_gpt2", "tales-gpt2"),
        ("talesgpt", "tales-gpt2"),
        ("gpt-2", "gpt2"),
        ("GPT2", "gpt2"),
        ("distilgpt-2", "distilgpt2"),
        ("gpt2-larg", "gpt2-large"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(data, name, meant):
    """The same for language models and denoisers."""
    for load in (resources.load_backbone, denoiser.load):
        with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
            load(name)


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name_is_said(data, name):
    """It is not the working directory."""
    with pytest.raises(ValueError, match="empty"):
        resources.load_backbone(name)


HUB = """
import json, sys, time
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast
import huggingface_hub
from dblm_lib import resources
for name in sys.argv[1:]:
    start = time.perf_counter()
    try:
        resources.load_backbone(name)
    except resources.DataError as error:
        seconds = time.perf_counter() - start
        print(json.dumps([name, seconds, str(error)]))
"""


@pytest.mark.parametrize(
    "network",
    [
        {"HF_HUB_OFFLINE": "1"},
        {"HF_ENDPOINT": "http://127.0.0.1:9"},
        {"HF_ENDPOINT": "https://no-such-host.invalid"},
    ],
    ids=["offline", "refused", "unknown-host"],
)
def test_without_network_a_hub_name_fails_at_once(data, tmp_path, network):
    """Within five seconds, with what to do; an empty cache."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.lower().endswith("_proxy") and not key.startswith("HF_")
    }
    environment |= network | {"HF_HOME": str(tmp_path / "cache")}
    names = ["gpt2", "someone/some-gpt2"]
    done = subprocess.run(
        [sys.executable, "-c", HUB, *names],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, _, _ in said] == names
    for name, seconds, message in said:
        assert seconds < 5
        for word in (name, "local folder", "tales-gpt2", "internet"):
            assert word in message
    assert done.stderr == ""


# --- a light package --------------------------------------------------------

IMPORT = """
import sys, threading, time
network = []
sys.addaudithook(
    lambda event, _: event.startswith("socket.") and network.append(event)
)
start = time.process_time()
import dblm_lib
seconds = time.process_time() - start
assert seconds < 0.3, f"import dblm_lib took {seconds:.2f} s of CPU time"
for name in sys.argv[1:]:
    getattr(dblm_lib, name)
heavy = {"torch", "transformers", "matplotlib", "pandas"} & set(sys.modules)
assert not heavy, heavy
assert not network, network
if not sys.argv[1:]:  # numpy's own threads come with numpy
    assert threading.active_count() == 1
    tasks = "/proc/self/task"
    import os
    assert not os.path.isdir(tasks) or len(os.listdir(tasks)) == 1
"""


@pytest.mark.parametrize(
    "modules", [[], ["tales", "resources"], ["exercises"], ["cli"]]
)
def test_import_is_light_and_quiet(modules):
    """Under 0.3 s of CPU time; no torch, no network, no thread, no word."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, *modules],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- what the machine can do ------------------------------------------------


def test_the_device_has_a_name():
    import torch

    name = resources.device_name()
    assert name and (name != "CPU") == torch.cuda.is_available()


def test_bf16_is_fast_only_where_the_processor_says_so(monkeypatch):
    """Without torch's private questions the safe answer is no."""
    import torch

    assert isinstance(resources.has_fast_bf16("cpu"), bool)
    names = "_is_amx_tile_supported", "_is_avx512_bf16_supported"
    for name in names:
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert resources.has_fast_bf16(torch.device("cpu")) is False
    monkeypatch.setattr(torch.cpu, names[1], lambda: True, raising=False)
    assert resources.has_fast_bf16("cpu") is True


@pytest.mark.parametrize("fast", [False, True])
def test_autocast_asks_the_hardware_only_if_told_to(fast, monkeypatch):
    """And fp32 means fp32, whatever stands around it."""
    import torch

    monkeypatch.setattr(resources, "has_fast_bf16", lambda device: fast)
    a, b = torch.randn(2, 8, 8)
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    kinds["auto"] = kinds["bf16" if fast else "fp32"]
    assert set(kinds) == set(resources.PRECISIONS)
    for precision, kind in kinds.items():
        outer = torch.autocast("cpu", torch.bfloat16)
        with outer, resources.autocast("cpu", precision):
            assert (a @ b).dtype == kind
        with resources.autocast(torch.device("cpu"), precision):
            assert (a @ b).dtype == kind


def test_autocast_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="not 'half'"):
        resources.autocast("cpu", "half")


def test_one_function_decides_in_what_precision_is_computed():
    """A second one would be asked with another answer in mind."""
    asks = set()
    for path in sorted((ROOT / "dblm_lib").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                chosen = {key.arg for key in node.keywords} | {
                    str(place) for place, _ in enumerate(node.args)
                }
                if called.endswith("has_fast_bf16") or (
                    # Without a type it only switches an autocast off.
                    called == "torch.autocast" and chosen & {"dtype", "1"}
                ):
                    asks.add(path.relative_to(ROOT / "dblm_lib").as_posix())
    assert asks == {"resources.py"}
