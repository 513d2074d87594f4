"""What a name means: the book's own first, a path where it looks like one.

And what lies beside: litter in data/, a tokenizer of another size, a file
that stays mapped, a proxy that leads to the hub.
"""

import json
import os
import shutil
import socket
import sys
import warnings
from pathlib import Path

import pytest
import torch
from small_book import small_book

from dblm_lib import denoiser, resources, text


@pytest.fixture(scope="module", autouse=True)
def book(tmp_path_factory):
    root = tmp_path_factory.mktemp("book") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DBLM_DATA", str(small_book(root)))
        yield root


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save_gpt2(folder, book, tokens=1024):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(
        GPT2Config(
            vocab_size=tokens,
            n_positions=16,
            n_embd=8,
            n_layer=1,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).save_pretrained(folder)
    shutil.copy(book / "tokenizer" / "tokenizer.json", folder)
    return folder


# --- names of the book, and folders that are called so ----------------------


@pytest.mark.parametrize("name", ["tales-gpt2", "tales-dblm"])
def test_a_local_folder_does_not_hide_the_books_model(name, here, book):
    (here / name).mkdir()
    (here / name / "tokenizer.json").write_text("{}")
    own = book / "checkpoints" / name
    with pytest.warns(resources.TwoMeanings, match=f"write ./{name}"):
        assert resources.locate(name) == own
    with pytest.warns(resources.TwoMeanings):
        assert len(resources.load_tokenizer(name)) == 1024
    # As a path it is the folder.
    for path in (f"./{name}", Path(name), here / name, f"{here}/{name}/"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert Path(resources.locate(path)).resolve() == here / name


def test_a_local_folder_does_not_hide_a_model_of_the_hub(here, monkeypatch):
    (here / "gpt2").mkdir()
    asked = []
    monkeypatch.setattr(resources, "_from_hub", asked.append)
    with pytest.warns(resources.TwoMeanings):
        resources.locate("gpt2")
    assert asked == ["gpt2"]
    assert resources.locate("./gpt2") == Path("gpt2")


@pytest.mark.parametrize("name", ["tales", "tinystories"])
def test_a_local_file_does_not_hide_a_text_of_the_book(
    name, here, monkeypatch
):
    (here / name).write_text("One.\n\nTwo.\n\nThree.")
    (here / "kept").mkdir()
    for part in ("train", "valid"):
        (here / "kept" / f"{part}.txt").write_text("A.<|endoftext|>B.")
    monkeypatch.setenv("DBLM_TINYSTORIES", str(here / "kept"))
    with pytest.warns(resources.TwoMeanings, match=f"write ./{name}"):
        assert text.load(name, 5, 5).name == name
    for path in (f"./{name}", Path(name)):
        assert text.load(path).valid == ["One."]


def test_the_tokenizer_of_tales_is_the_books(here):
    (here / "tales").mkdir()
    with pytest.warns(resources.TwoMeanings):
        assert len(resources.load_tokenizer("tales")) == 1024
    with pytest.raises(resources.DataError, match=r"no tokenizer\.json"):
        resources.load_tokenizer("./tales")


# --- near misses ------------------------------------------------------------


@pytest.mark.parametrize("load", [resources.load_backbone, denoiser.load])
def test_the_folder_of_a_run_names_its_model(load, here, book):
    kind = "tales-gpt2" if load is resources.load_backbone else "tales-dblm"
    shutil.copytree(book / "checkpoints" / kind, here / "my-run" / "final")
    with pytest.raises(resources.DataError) as caught:
        load("my-run")
    assert f"its model is {Path('my-run', 'final')}" in str(caught.value)
    load("my-run/final")


@pytest.mark.parametrize("name", ["TALES-DBLM", "Tales-dblm", "tales-DBLM"])
def test_capitals_are_no_other_name(name):
    with pytest.raises(ValueError, match="did you mean 'tales-dblm'"):
        resources.locate(name)


@pytest.mark.parametrize(
    "name",
    [r"C:\Users\me\run", "C:/run", r"runs\mine", "runs/mine/final", "./x"]
    + ["mine/final", "run/", "../run", "/no/run", "a b/c"],
)
def test_what_looks_like_a_path_is_one(name, here):
    (here / "mine").mkdir()
    with pytest.raises(resources.DataError, match="there is no folder"):
        resources.locate(name)


def test_a_file_is_no_folder(here):
    (here / "model.safetensors").write_text("x")
    with pytest.raises(resources.DataError, match="is no folder"):
        resources.locate("model.safetensors")


@pytest.mark.parametrize("name", ["~nosuchuser/run", "~nosuchuser"])
def test_a_home_that_nobody_has(name, monkeypatch):
    said = "the home folder that ~ stands for is not known"
    for load in (resources.locate, resources.load_tokenizer, text.load):
        with pytest.raises(ValueError, match=said):
            load(name)
    monkeypatch.setenv("DBLM_DATA", name)
    with pytest.raises(ValueError, match=said):
        resources.data_path()
    monkeypatch.setenv("DBLM_TINYSTORIES", name)
    with pytest.raises(ValueError, match=said):
        text.load("tinystories")


# --- litter -----------------------------------------------------------------

LITTER = (
    ".ipynb_checkpoints/config-checkpoint.json",
    ".hidden/deeper/model.bin",
    ".DS_Store",
    "._config.json",
    "Thumbs.db",
    "desktop.ini",
    "Desktop.ini",
    "model.safetensors~",
)


@pytest.mark.parametrize("name", LITTER)
def test_what_systems_leave_behind_is_let_pass(
    name, book, tmp_path, monkeypatch
):
    root = shutil.copytree(book, tmp_path / "data")
    monkeypatch.setenv("DBLM_DATA", str(root))
    for folder in ("checkpoints/tales-dblm", "tokenizer"):
        path = root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    assert denoiser.load("tales-dblm") and resources.load_tokenizer()
    (root / "checkpoints" / ".ipynb_checkpoints").mkdir(exist_ok=True)
    known = ["tales-dblm", "tales-gpt2", "tales-mdlm"]
    assert resources.checkpoints() == known
    # What somebody has put there is no litter.
    (root / "checkpoints" / "tales-dblm" / "more.bin").write_bytes(b"x")
    with pytest.raises(resources.DataError, match=r"more\.bin.*not listed"):
        denoiser.load("tales-dblm")


@pytest.mark.parametrize(
    "content",
    [
        {"files": [], "artifacts": {}},
        {"files": {}, "artifacts": {"a": 7}},
        {"files": {}, "artifacts": {"a": {"metrics": 3}}},
        {"files": {"tokenizer/tokenizer.json": {}}, "artifacts": {}},
    ],
)
def test_a_manifest_of_another_shape(content, tmp_path, monkeypatch):
    (tmp_path / "MANIFEST.json").write_text(json.dumps(content))
    monkeypatch.setenv("DBLM_DATA", str(tmp_path))
    with pytest.raises(resources.DataError, match=r"MANIFEST\.json is damag"):
        resources.manifest()


# --- what belongs together --------------------------------------------------


def test_a_tokenizer_with_more_tokens_than_the_model(tmp_path, book):
    folder = save_gpt2(tmp_path / "g", book, tokens=600)
    said = "has 1024 tokens and the model embeddings for 600"
    with pytest.raises(resources.DataError, match=said):
        resources.load_backbone(folder)
    # More rows than tokens are in use for speed, and do no harm.
    assert resources.load_backbone(save_gpt2(tmp_path / "h", book, 1088))


def test_a_tokenizer_without_an_end(tmp_path, book):
    """It would get an id behind the last."""
    folder = save_gpt2(tmp_path / "g", book)
    file = folder / "tokenizer.json"
    content = file.read_text("utf-8").replace(resources.END, "<|other|>")
    file.write_text(content, "utf-8")
    with pytest.raises(resources.DataError, match=r"has no <\|endoftext\|>"):
        resources.load_backbone(folder)


@pytest.mark.skipif(
    not Path("/proc/self/maps").is_file(), reason="Linux tells what is mapped"
)
def test_no_file_stays_mapped_behind_a_model(tmp_path, book):
    """Windows would not let it be replaced while the model is in use."""
    gpt2 = save_gpt2(tmp_path / "g", book)
    dblm = tmp_path / "d"
    denoiser.load("tales-dblm").float().save_pretrained(dblm)
    kept = resources.load_backbone(gpt2), denoiser.load(dblm)
    mapped = Path("/proc/self/maps").read_text()
    assert "libtorch" in mapped and kept
    assert str(tmp_path) not in mapped
    # Tied weights are still one.
    model = kept[0].model
    table = model.transformer.wte.weight
    assert model.lm_head.weight is table
    assert torch.equal(
        table, resources.load_backbone(gpt2).model.lm_head.weight
    )


# --- proxies ----------------------------------------------------------------

VARIABLES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


@pytest.fixture
def hub(monkeypatch):
    """A hub behind a proxy; return the places that were asked for."""
    from huggingface_hub import constants

    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    asked = []

    class Connection:
        def close(self):
            pass

    def connect(address, timeout):
        asked.append(address)
        if address[0] == "hub.invalid":
            raise OSError("unknown host")
        if address[0] == "silent.invalid":
            raise OSError("no answer")
        return Connection()

    monkeypatch.setattr(socket, "create_connection", connect)
    return asked


@pytest.mark.skipif(sys.platform == "win32", reason="one case of names there")
@pytest.mark.parametrize("name", VARIABLES)
def test_a_proxy_by_any_of_its_names_leads_to_the_hub(name, hub, monkeypatch):
    monkeypatch.setenv(name, "http://proxy.invalid:3128")
    resources.reach_hub("Connect first.")
    assert hub == [("proxy.invalid", 3128)]


def test_without_a_proxy_the_hub_itself_is_asked(hub):
    with pytest.raises(resources.DataError, match="Connect first"):
        resources.reach_hub("Connect first.")
    assert hub == [("hub.invalid", 443)]


@pytest.mark.parametrize(
    ("proxy", "asked"),
    [
        ("proxy.invalid:81", ("proxy.invalid", 81)),
        ("socks5://proxy.invalid", ("proxy.invalid", 1080)),
        ("http://me:secret@proxy.invalid", ("proxy.invalid", 80)),
    ],
)
def test_a_proxy_is_written_in_several_ways(proxy, asked, hub, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    resources.reach_hub("Connect first.")
    assert hub == [asked]


@pytest.mark.parametrize("proxy", ["http://silent.invalid", "http://[bad"])
def test_a_proxy_that_does_not_answer_is_named(proxy, hub, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(resources.DataError, match="Connect first") as caught:
        resources.reach_hub("Connect first.")
    assert ("silent.invalid" in str(caught.value)) == ("silent" in proxy)


def test_a_host_without_proxy_is_asked_directly(hub, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid:3128")
    monkeypatch.setenv("NO_PROXY", "hub.invalid")
    with pytest.raises(resources.DataError):
        resources.reach_hub("Connect first.")
    assert hub == [("hub.invalid", 443)]
