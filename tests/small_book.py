"""A data folder for tests: the book's own, with small denoisers."""

import json
import shutil

import torch

from dblm_lib import denoiser, masked, resources


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

    Its tales-dblm has all repairs, its tales-mdlm fills masks, and neither
    has learned anything; `metrics` is what MANIFEST.json says of the first.
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
        metrics = metrics or {}
        tokenizer = resources.load_tokenizer(root / "tokenizer")
        _add_model(root, content, "tales-dblm", _repaired(tokenizer), metrics)
        _add_model(root, content, "tales-mdlm", filler(tokenizer), {})
    path = root / "MANIFEST.json"
    path.write_text(json.dumps(content), "utf-8")
    return root


def _add_model(root, content, name, model, metrics):
    folder = root / "checkpoints" / name
    model.half().save_pretrained(folder)
    shutil.copy(root / "tokenizer" / "tokenizer.json", folder)
    for file in folder.iterdir():
        content["files"][file.relative_to(root).as_posix()] = {
            "sha256": resources.sha256(file),
            "bytes": file.stat().st_size,
        }
    content["artifacts"][name] = {
        "command": f"python -m recipes {name}",
        "seconds": 1,
        "metrics": {"parameters": 1, **metrics},
    }


def filler(tokenizer, **fields):
    """A small model that fills masks."""
    torch.manual_seed(0)
    fields = {"seq_len": 64} | fields
    config = masked.MaskedConfig(**sizes(tokenizer, 96), **fields)
    return masked.MaskedDenoiser(config).eval()


def _repaired(tokenizer):
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
