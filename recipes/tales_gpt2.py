"""The embedded GPT-2, trained on Tiny Tales with the book's own loop.

3,000 steps: about 20 minutes on two processor cores, less on a GPU, which is
used if there is one. Resumes.
"""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from dblm_lib import evaluation, metrics, resources, tales, text, training

from .common import (
    SEQ_LEN,
    TRAIN_TALES,
    VALID_TALES,
    add_tokenizer,
    ingredient,
)


def build(tokenizer):
    """A new GPT-2 of four layers, 128 wide."""
    end = tokenizer.eos_token_id
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=256,
            n_embd=128,
            n_layer=4,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def make(folder, data, work, jobs=1, steps=3000, ema=0.995):
    """Train, save, and measure on tales that were held out."""
    tokenizer = resources.load_tokenizer(ingredient(data, "tokenizer"))
    model = build(tokenizer).to(resources.device())
    config = training.TrainConfig(
        steps=steps,
        batch_size=64,
        learning_rate=2e-3,
        warmup=100,
        ema=ema,
        precision="auto",
        save_every=250,
    )
    corpus = text.load("tales", size=TRAIN_TALES, valid_size=VALID_TALES)
    ids, mask = text.encode_batch(corpus.train, tokenizer, SEQ_LEN)
    history = training.train(
        model,
        ids,
        mask,
        config,
        loss=training.next_token_loss,
        draw=None,
        folder=work / "run",
        resume=True,
    )
    model.cpu().save_pretrained(folder)
    add_tokenizer(folder, data)
    nats, error = metrics.nats_per_tale(model, tokenizer, corpus.valid)
    samples = metrics.sample_language_model(model, tokenizer, 500)
    share, broken = metrics.coherent_share(samples)
    entropy = tales.entropy()
    exact = -sum(tales.log_prob(tales.parse(t)) for t in corpus.valid)
    exact /= len(corpus.valid)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": config.steps,
        "tokens_seen": config.steps * config.batch_size * SEQ_LEN,
        "last_training_loss": round(history.loss[-1], 4),
        "entropy_nats_per_tale": round(entropy, 4),
        "valid_nats_per_tale": round(nats, 4),
        "valid_standard_error": round(error, 4),
        "exact_nats_of_these": round(exact, 4),
        "above_exact_percent": round(100 * (nats / exact - 1), 3),
        "above_entropy_percent": round(100 * (nats / entropy - 1), 3),
        "coherent_share_of_500": round(share, 4),
        "broken": dict(broken),
        "evaluation": evaluation.evaluate(model, tokenizer, progress=True),
    }
