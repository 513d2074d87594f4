"""A data folder for tests: the book's own, with a small tales-dblm."""

import json
import shutil

import torch

from dblm_lib import denoiser, resources


def sizes(tokenizer, n_positions=64):
    """Fields of the configuration of a network that is quick."""
    return {
        "vocab_size": len(tokenizer),
        "n_positions": n_positions,
        "n_embd": 16,
        "n_layer": 1,
        "n_head": 2,
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def small_book(root, with_model=True, metrics=None):
    """Make the folder; return its path.

    The model has all repairs and has learned nothing; `metrics` is what
    MANIFEST.json says of it.
    """
    source = resources.data_path()
    parts = "tokenizer", "tales", "checkpoints/tales-gpt2"
    for part in parts:
        shutil.copytree(source / part, root / part)
    content = json.loads((source / "MANIFEST.json").read_text("utf-8"))
    artifacts = content["artifacts"]
    kept = ("tales", "tokenizer", "tales-gpt2")
    content["artifacts"] = {name: artifacts[name] for name in kept}
    content["files"] = {
        name: record
        for name, record in content["files"].items()
        if name.startswith(tuple(f"{part}/" for part in parts))
    }
    if with_model:
        _add_model(root, content, metrics or {})
    path = root / "MANIFEST.json"
    path.write_text(json.dumps(content), "utf-8")
    return root


def _add_model(root, content, metrics):
    folder = root / "checkpoints" / "tales-dblm"
    _make_model(root / "tokenizer").half().save_pretrained(folder)
    shutil.copy(root / "tokenizer" / "tokenizer.json", folder)
    for file in folder.iterdir():
        content["files"][file.relative_to(root).as_posix()] = {
            "sha256": resources.sha256(file),
            "bytes": file.stat().st_size,
        }
    content["artifacts"]["tales-dblm"] = {
        "command": "python -m recipes tales-dblm",
        "seconds": 1,
        "metrics": {"parameters": 1, **metrics},
    }


def _make_model(folder):
    tokenizer = resources.load_tokenizer(folder)
    torch.manual_seed(0)
    config = denoiser.DBLMConfig(
        **sizes(tokenizer),
        embed_dim=8,
        head="mixture",
        loss="ce",
        self_conditioning=0.5,
        likelihood=True,
        normalise_embeddings=True,
        train_embeddings=True,
        input_std=0.05,
        schedule="warped",
        schedule_options={"levels": [0.3, 1.0, 3.0, 10.0]},
    )
    return denoiser.DBLM(config)
