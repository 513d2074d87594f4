r"""Training a denoiser with a mean squared error.

Chapter 4. One loop serves everything: the proposal's hundred steps, longer
runs, and the pretraining of the embedded GPT-2. All randomness of step k is
drawn from a generator seeded with (seed, k); a run that was interrupted
and resumed therefore sees the very same numbers, and so do several
processes that share a batch.
"""

import contextlib
import json
import math
import os
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F

from . import muon, noising, resources

__all__ = [
    "PROPOSAL_PROMPTS",
    "PROPOSAL_SENTENCES",
    "History",
    "TrainConfig",
    "cross_entropy_loss",
    "denoising_loss",
    "draw_clean_neighbours",
    "draw_for",
    "draw_noise",
    "draw_staggered",
    "evaluate_denoising",
    "first_guess",
    "learning_rate",
    "loss_for",
    "next_token_loss",
    "next_token_nats",
    "normalised_mse",
    "proposal_config",
    "train",
    "weight_change",
]

PROPOSAL_SENTENCES = (
    "Once upon a time, in a land far, far away...",
    "In the middle of the night...",
)
PROPOSAL_PROMPTS = ("so as i was saying,", "generate me a story")


@dataclass
class TrainConfig:
    """What the loop needs to know.

    Attributes
    ----------
    steps, batch_size : int
    learning_rate : float
        Its peak.
    warmup : int
        Steps over which the learning rate rises from zero.
    final_fraction : float
        The cosine falls to this share of the peak; 1 keeps it constant.
    optimizer : {"adamw", "adam", "muon"}
        Muon (Jordan et al., 2024) turns the update of each matrix of the
        blocks into an orthogonal one, of the size that AdamW's would have;
        all other weights stay with AdamW.
    weight_decay : float
        On matrices only (AdamW).
    clip : float
        Largest norm of the gradient; 0 leaves it alone.
    ema : float
        Decay of the averaged weights; 0 keeps no average. With an average,
        the model ends with the averaged weights.
    precision : {"fp32", "bf16", "auto"}
        bf16 autocast is two to three times faster on hardware that computes
        with it, and many times slower on a processor that has to pretend;
        "auto" asks, see `resources.has_fast_bf16`.
    embedding_rate : float
        Factor on the learning rate of the embeddings, if they are trained.
    seed : int
    log_every, save_every : int
        Steps between points of the loss curve and between checkpoints
        (0: none but the last).
    """

    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup: int = 50
    final_fraction: float = 0.1
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.0
    precision: str = "fp32"
    embedding_rate: float = 1.0
    seed: int = 0
    log_every: int = 10
    save_every: int = 0

    def __post_init__(self):
        positive = (
            "steps",
            "batch_size",
            "learning_rate",
            "embedding_rate",
            "log_every",
        )
        for name in positive:
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"{name} must be positive; got {getattr(self, name)}"
                )
        if self.optimizer not in ("adamw", "adam", "muon"):
            raise ValueError(
                f"unknown optimizer {self.optimizer!r}; "
                "choose one of adamw, adam, muon"
            )
        if self.precision not in ("fp32", "bf16", "auto"):
            raise ValueError(
                f"precision is fp32, bf16 or auto, not {self.precision}"
            )
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1); got {self.ema}")


def proposal_config():
    """The first proposal's recipe: 100 steps of Adam at 1e-5, nothing else."""
    return TrainConfig(
        steps=100,
        batch_size=len(PROPOSAL_SENTENCES),
        learning_rate=1e-5,
        warmup=0,
        final_fraction=1.0,
        optimizer="adam",
        clip=0.0,
        log_every=1,
    )


@dataclass
class History:
    """What a run has seen: one entry every ``log_every`` steps."""

    steps: list = field(default_factory=list)
    loss: list = field(default_factory=list)
    tokens_per_second: float = 0.0


def learning_rate(step, config):
    """Warm up in a straight line, then fall along half a cosine.

    Parameters
    ----------
    step : int
        Counted from 0.
    config : TrainConfig
    """
    peak, warmup = config.learning_rate, config.warmup
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    low = config.final_fraction
    return peak * (low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2)


def draw_noise(model, ids, generator):
    """Draw a time for each sequence and the noise for each coordinate.

    Returns
    -------
    dict
        ``t``, shape ``(batch,)``, uniform in [0, 1], float64; ``eps``, shape
        ``(batch, length, dim)``.
    """
    dim = model.embeddings.embedding_dim
    t = torch.rand(len(ids), generator=generator, dtype=torch.float64)
    eps = torch.randn(*ids.shape, dim, generator=generator)
    return {"t": t, "eps": eps}


def denoising_loss(model, batch):
    """Mean squared error between denoised and clean embeddings.

    Parameters
    ----------
    model : DBLM, possibly wrapped for several processes
    batch : dict
        ``ids``, ``mask``, ``t``, ``eps``, and ``weight``, which shares out
        the mean: zero at padding, summing to one; from Chapter 7 on also
        ``keep``, the positions that are not noised.

    Returns
    -------
    scalar tensor
        Squared error a coordinate, averaged over real positions.
    """
    bare = getattr(model, "module", model)
    x0, keep = bare.embed(batch["ids"]), batch.get("keep")
    zt, _ = noising.add_noise(
        x0, batch["t"], bare.schedule, eps=batch["eps"], keep=keep
    )
    x0_hat = model(zt, batch["t"], batch["mask"]).x0
    error = (x0_hat.float() - x0).square().mean(dim=-1)
    return (error * batch["weight"]).sum()


def draw_clean_neighbours(model, ids, generator):
    """Draw noise of which some positions of some sequences are spared.

    In a share ``clean_rate`` of the sequences three to nine in ten positions
    stay clean, and the others are noised to a time near the end of the
    schedule, mostly: they have little of their own to go by, and must look
    at their neighbours. It is also what a prompt looks like. Chapter 7.

    Returns
    -------
    dict
        ``t``, shape ``(batch, length)``, 0 at clean positions; ``eps`` as
        in `draw_noise`; ``keep``, bool, shape ``(batch, length)``, True at
        clean positions.
    """
    noise = draw_noise(model, ids, generator)
    count = len(ids)
    spared = torch.rand(count, generator=generator) < model.config.clean_rate
    share = 0.3 + 0.6 * torch.rand(count, 1, generator=generator)
    keep = torch.rand(ids.shape, generator=generator) < share
    keep &= spared[:, None]
    t = torch.where(spared, noise["t"] ** (1 / 8), noise["t"])
    t = t[:, None].expand(ids.shape).masked_fill(keep, 0.0)
    return {"t": t, "eps": noise["eps"], "keep": keep}


def draw_staggered(model, ids, generator):
    """Draw noise that grows from left to right in the other sequences.

    As in `draw_clean_neighbours`, but a sequence of which nothing is spared
    gets the times of a moment of a staggered reverse process: any moment is
    as likely as another, and a stagger s below the largest, S, has the
    probability sqrt(s / S). Chapter 7.

    Returns
    -------
    dict
        As `draw_clean_neighbours`; what the process is done with is kept.
    """
    noise = draw_clean_neighbours(model, ids, generator)
    count, length = ids.shape
    dice = torch.rand(2, count, 1, generator=generator, dtype=torch.float64)
    stagger = model.config.stagger * dice[0] ** 2
    delay = stagger * torch.linspace(1, 0, length, dtype=torch.float64)
    t = ((1 + stagger) * dice[1] - delay).clamp(0, 1)
    t = torch.where(noise["keep"].any(1, keepdim=True), noise["t"], t)
    return {"t": t, "eps": noise["eps"], "keep": t == 0}


def draw_for(model):
    """The function that draws noise as a model's configuration asks."""
    if model.config.stagger:
        return draw_staggered
    return draw_clean_neighbours if model.config.clean_rate else draw_noise


def loss_for(model):
    """The loss that a model's configuration asks for."""
    return {"mse": denoising_loss, "ce": cross_entropy_loss}[model.config.loss]


def cross_entropy_loss(model, batch):
    """Cross-entropy of the clean tokens given the noised ones, in nats.

    Parameters
    ----------
    model : DBLM with a mixture head, possibly wrapped
    batch : dict
        As for `denoising_loss`.

    Returns
    -------
    scalar tensor
        Nats a position that was noised. No bound of the likelihood: it
        depends on which noise levels are drawn.
    """
    bare = getattr(model, "module", model)
    x0, keep = bare.embed(batch["ids"]), batch.get("keep")
    zt, _ = noising.add_noise(
        x0, batch["t"], bare.schedule, eps=batch["eps"], keep=keep
    )
    guess = first_guess(bare, zt, batch["t"], batch["mask"], keep)
    asked = ~keep if keep is not None else torch.ones_like(batch["mask"])
    logits = model(zt, batch["t"], batch["mask"], guess, ~asked).logits
    nats = F.cross_entropy(logits, batch["ids"][asked], reduction="none")
    return (nats * batch["weight"][asked]).sum()


@torch.no_grad()
def first_guess(model, zt, t, mask, keep=None):
    """A guess without a previous one, for some sequences (Chen et al., 2023).

    Parameters
    ----------
    model : DBLM
    zt : tensor, shape ``(batch, length, dim)``
    t, mask, keep
        As `DBLM.forward` takes them.

    Returns
    -------
    tensor, shape of ``zt``, or None
        The guess for a share ``self_conditioning`` of the sequences (the
        rows are in random order already), zeros for the others; None where
        the configuration asks for none.
    """
    count = round(model.config.self_conditioning * len(zt))
    if not count:
        return None
    guess = torch.zeros_like(zt)
    given = (t, mask, keep)
    t, mask, keep = (v if v is None else v[:count] for v in given)
    guess[:count] = model(zt[:count], t, mask, keep=keep).x0.to(zt.dtype)
    return guess


def next_token_nats(model, ids):
    """Cross-entropy of each token given those before it, in nats.

    The first token is predicted from an end-of-text token, which is also
    what a reader samples from.

    Parameters
    ----------
    model : transformers.GPT2LMHeadModel, possibly wrapped
    ids : tensor of ids, shape ``(batch, length)``

    Returns
    -------
    tensor, shape of ``ids``
    """
    bare = getattr(model, "module", model)
    start = torch.full_like(ids[:, :1], bare.config.eos_token_id)
    logits = model(
        input_ids=torch.cat([start, ids[:, :-1]], dim=1), use_cache=False
    ).logits
    return F.cross_entropy(
        logits.float().transpose(1, 2), ids, reduction="none"
    )


def next_token_loss(model, batch):
    """Weighted mean of `next_token_nats`: the loss of a language model."""
    return (next_token_nats(model, batch["ids"]) * batch["weight"]).sum()


def normalised_mse(mse, table):
    """MSE / Var: 1 is what always answering the mean embedding scores.

    Parameters
    ----------
    mse : float or tensor
    table : tensor, shape ``(n, dim)``
        The embeddings that occur, one row an occurrence.
    """
    return mse / table.var(dim=0, unbiased=False).mean()


def train(
    model,
    ids,
    mask,
    config,
    loss=None,
    draw="model",
    folder=None,
    resume=False,
    progress=True,
    accelerator=None,
):
    """Train a model in place, on the device where it is.

    For a GPU, say ``model.to(resources.device())`` first. For several
    processes, start the program with ``accelerate launch`` and hand an
    ``Accelerator()`` in.

    Parameters
    ----------
    model : torch.nn.Module
    ids, mask : tensors, shape ``(n, length)``
        The texts, see `text.encode_batch`.
    config : TrainConfig
    loss : callable ``(model, batch) -> scalar``, optional
        The one of `loss_for` if left out.
    draw : callable ``(model, ids, generator) -> dict``, or None
        The random numbers of a batch; those of `draw_for` if left out.
    folder : path, optional
        Where checkpoints go.
    resume : bool
        Continue from the last whole checkpoint in ``folder``.
    progress : bool
        Show a progress bar with the loss and tokens per second.
    accelerator : accelerate.Accelerator, optional
        Brings several GPUs or machines; it then chooses the devices.

    Returns
    -------
    History

    Raises
    ------
    resources.DataError
        If a checkpoint is damaged or belongs to another run.
    """
    if len(ids) == 0 or ids.shape != mask.shape:
        raise ValueError(
            "ids and mask must have one shape (n, length) with n > 0; got "
            f"{tuple(ids.shape)} and {tuple(mask.shape)}"
        )
    loss = loss or loss_for(model)
    draw = draw_for(model) if draw == "model" else draw
    accelerator = accelerator or _where_the_model_is(model)
    optimizers = _optimizers(model, config)
    average = _Average(model, config.ema)
    model, *optimizers = accelerator.prepare(model, *optimizers)
    bare = accelerator.unwrap_model(model)
    average.to(accelerator.device)
    bf16 = config.precision == "bf16" or (
        config.precision == "auto"
        and resources.has_fast_bf16(accelerator.device)
    )
    history, first = History(), 0
    if resume:
        first = _restore(folder, bare, optimizers, average, history, config)
    bar = resources.progress_bar(
        range(first, config.steps),
        initial=first,
        total=config.steps,
        disable=not (progress and accelerator.is_main_process),
        desc="training",
        mininterval=0.5,
    )
    model.train()
    start, tokens = time.perf_counter(), 0
    with _fast_attention(bare, accelerator.device):
        for step in bar:
            batch = _batch(bare, ids, mask, draw, step, config, accelerator)
            for group in [g for o in optimizers for g in o.param_groups]:
                rate = learning_rate(step, config)
                group["lr"] = rate * group.get("rate", 1.0)
            with torch.autocast(
                accelerator.device.type,
                dtype=torch.bfloat16,
                enabled=bf16,
            ):
                value = loss(model, batch)
            for optimizer in optimizers:
                optimizer.zero_grad()
            accelerator.backward(value)
            if config.clip:
                accelerator.clip_grad_norm_(model.parameters(), config.clip)
            for optimizer in optimizers:
                optimizer.step()
            average.update(bare)
            tokens += batch["ids"].numel() * accelerator.num_processes
            if step % config.log_every == 0 or step == config.steps - 1:
                value = accelerator.reduce(value.detach(), "mean").item()
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"the loss is {value} at step {step}: lower the "
                        "learning rate, or clip the gradient"
                    )
                history.steps.append(step)
                history.loss.append(value)
                speed = tokens / (time.perf_counter() - start)
                history.tokens_per_second = speed
                bar.set_postfix_str(f"loss {value:.4f}, {speed:,.0f} tokens/s")
            done = step + 1
            due = config.save_every and done % config.save_every == 0
            if folder and (due or done == config.steps):
                if accelerator.is_main_process:
                    _save(
                        folder,
                        done,
                        bare,
                        optimizers,
                        average,
                        history,
                        config,
                    )
                accelerator.wait_for_everyone()
    average.copy_to(bare)
    bare.eval()
    return history


@contextlib.contextmanager
def _fast_attention(model, device):
    """On a processor use eager attention meanwhile.

    For short texts its gradient takes a fifth of the time that the one of
    scaled-dot-product attention takes (torch 2.13).
    """
    config = getattr(model, "config", None)
    before = getattr(config, "_attn_implementation", None)
    changes = device.type == "cpu" and before == "sdpa"
    if changes:
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        if changes:
            model.set_attn_implementation(before)


def _where_the_model_is(model):
    """An accelerator for one process, on the model's own device."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    on_cpu = next(model.parameters()).device.type == "cpu"
    known = PartialState() if PartialState._shared_state else None
    # Accelerate remembers the first device of a process; we may have
    # trained elsewhere since.
    if known is not None and (
        known.num_processes == 1 and (known.device.type == "cpu") != on_cpu
    ):
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=on_cpu)


def _batch(model, ids, mask, draw, step, config, accelerator):
    """The rows of one step, their noise, and this process's share of them."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    torch.manual_seed(config.seed * 1_000_003 + step)  # dropout, if any
    rows = torch.randint(len(ids), (config.batch_size,), generator=generator)
    batch = {"ids": ids[rows], "mask": mask[rows]}
    if draw is not None:
        batch |= draw(model, batch["ids"], generator)
    # Each process weighs its rows by the positions of the whole batch;
    # the processes' gradients are averaged afterwards, hence the factor.
    processes = accelerator.num_processes
    counted = batch["mask"]
    if "keep" in batch:  # what was not noised is no task
        counted = counted & ~batch["keep"]
    counted = counted.float()
    batch["weight"] = counted / counted.sum().clamp(min=1) * processes
    mine = slice(accelerator.process_index, None, processes)
    return {k: v[mine].to(accelerator.device) for k, v in batch.items()}


def _optimizers(model, config):
    """Decay for matrices only; embeddings may learn at a rate of their own."""
    learns = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not learns:
        raise ValueError("the model has no weights to train")
    if config.optimizer == "adam":
        return [torch.optim.Adam(learns.values(), lr=config.learning_rate)]
    kinds = {"embeddings": [], "matrices": [], "vectors": [], "blocks": []}
    for name, p in learns.items():
        kind = "matrices" if p.ndim >= 2 else "vectors"
        if name == "embeddings.weight" and config.embedding_rate != 1:
            kind = "embeddings"
        elif p.ndim == 2 and ".h." in name and config.optimizer == "muon":
            kind = "blocks"
        kinds[kind].append(p)
    settings = {
        "lr": config.learning_rate,
        "weight_decay": config.weight_decay,
    }
    groups = [
        {"params": kinds["matrices"]},
        {"params": kinds["vectors"], "weight_decay": 0.0},
        {"params": kinds["embeddings"], "rate": config.embedding_rate},
    ]
    optimizers = [
        torch.optim.AdamW(
            [g for g in groups if g["params"]], betas=(0.9, 0.95), **settings
        )
    ]
    if kinds["blocks"]:
        optimizers.append(muon.Muon(kinds["blocks"], **settings))
    return optimizers


class _Average:
    """Exponential moving average of the trained weights, in float32."""

    def __init__(self, model, decay):
        self.decay, self.updates = decay, 0
        self.weights = {
            name: p.detach().float().clone()
            for name, p in model.named_parameters()
            if decay and p.requires_grad
        }

    def to(self, device):
        self.weights = {k: v.to(device) for k, v in self.weights.items()}

    @torch.no_grad()
    def update(self, model):
        if not self.weights:
            return
        # The first steps count less, or the start would weigh for long.
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, p in model.named_parameters():
            if name in self.weights:
                self.weights[name].lerp_(p.float(), 1 - decay)

    @torch.no_grad()
    def copy_to(self, model):
        for name, p in model.named_parameters():
            if name in self.weights:
                p.copy_(self.weights[name])


def _save(folder, step, model, optimizers, average, history, config):
    """Write a checkpoint beside the others, then rename it into place.

    The previous checkpoint is removed only when the new one is whole, so a
    full disk or a killed process costs the steps since then and no more.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    final, draft = folder / f"step-{step:07d}", folder / "unfinished"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        parts = {
            "model": _unshared(model.state_dict()),
            "optimizer": _flat(optimizers),
            "average": average.weights,
        }
        digests = {}
        for name, tensors in parts.items():
            file = draft / f"{name}.safetensors"
            save_file(
                {k: v.detach().cpu().contiguous() for k, v in tensors.items()},
                file,
            )
            digests[file.name] = resources.sha256(file)
        state = {
            "step": step,
            "updates": average.updates,
            "config": asdict(config),
            "history": asdict(history),
            "sha256": digests,
        }
        (draft / "state.json").write_text(json.dumps(state), "utf-8")
        for file in draft.iterdir():
            with open(file, "rb+") as handle:
                os.fsync(handle.fileno())
        if final.exists():
            shutil.rmtree(final)
        os.replace(draft, final)
    except Exception as error:
        raise OSError(
            f"the checkpoint of step {step} cannot be written to {folder} "
            f"({error}); the previous one, if any, is untouched"
        ) from error
    for old in folder.glob("step-*"):
        if old != final:
            shutil.rmtree(old)


def _unshared(state):
    """Drop names that share memory with an earlier one (tied weights)."""
    seen, kept = set(), {}
    for name, tensor in state.items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            kept[name] = tensor
        seen.add(tensor.data_ptr())
    return kept


def _flat(optimizers):
    """Optimisers' states as flat names: optimiser.index.entry."""
    return {
        f"{number}.{index}.{entry}": torch.as_tensor(value)
        for number, optimizer in enumerate(optimizers)
        for index, entries in optimizer.state_dict()["state"].items()
        for entry, value in entries.items()
    }


def _restore(folder, model, optimizers, average, history, config):
    """Load the last whole checkpoint; return the step to go on with."""
    from safetensors.torch import load_file

    found = sorted(Path(folder).glob("step-*")) if folder else []
    if not found:
        return 0
    last = found[-1]
    try:
        state = json.loads((last / "state.json").read_text("utf-8"))
        digests = state["sha256"]
        for name, digest in digests.items():
            if resources.sha256(last / name) != digest:
                raise ValueError(f"{name} has another sha256")
    except (OSError, ValueError, KeyError) as error:
        raise resources.DataError(
            f"the checkpoint {last} is damaged ({error}); delete that folder "
            "to start again"
        ) from error
    ours, theirs = asdict(config), state["config"]
    changed = [
        name
        for name in {**ours, **theirs}  # what only one of them has, too
        if name not in ("steps", "save_every", "log_every")
        and ours.get(name) != theirs.get(name)
    ]
    if changed:
        raise resources.DataError(
            f"the checkpoint {last} belongs to another run: "
            f"{', '.join(changed)} differ(s)"
        )
    model.load_state_dict(load_file(last / "model.safetensors"), strict=False)
    states = [{} for _ in optimizers]
    for name, value in load_file(last / "optimizer.safetensors").items():
        number, index, entry = name.split(".", 2)
        states[int(number)].setdefault(int(index), {})[entry] = value
    for optimizer, entries in zip(optimizers, states):
        packed = optimizer.state_dict()
        optimizer.load_state_dict({**packed, "state": entries})
    for name, value in load_file(last / "average.safetensors").items():
        average.weights[name].copy_(value)
    average.updates = state["updates"]
    for name, value in state["history"].items():
        setattr(history, name, value)
    return state["step"]


@torch.no_grad()
def evaluate_denoising(model, ids, mask, times, generator, batch_size=64):
    """Error and rounding accuracy at chosen times.

    Parameters
    ----------
    model : DBLM
    ids, mask : tensors, shape ``(n, length)``
    times : sequence of float
    generator : torch.Generator

    Returns
    -------
    dict of tensors, each shape ``(len(times),)``
        ``mse``; ``normalised`` (MSE / Var of the clean embeddings that
        occur); ``accuracy`` of rounding the denoised points; ``baseline``,
        that of rounding the noised points, without any network.
    """
    model.eval()
    device = next(model.parameters()).device
    table = model.table()
    rows = {"mse": [], "accuracy": [], "baseline": []}
    for time_ in times:
        sums = torch.zeros(3, dtype=torch.float64)
        for part, real in zip(ids.split(batch_size), mask.split(batch_size)):
            part, real = part.to(device), real.to(device)
            x0 = model.embed(part)
            t = torch.full((len(part),), float(time_), dtype=torch.float64)
            zt, _ = noising.add_noise(x0, t, model.schedule, generator)
            x0_hat = model(zt, t, real).x0
            guesses = [noising.nearest(z[real], table) for z in (x0_hat, zt)]
            sums += torch.tensor(
                [
                    (x0_hat - x0).square().mean(-1)[real].sum().item(),
                    *((g == part[real]).sum().item() for g in guesses),
                ]
            )
        for row, value in zip(rows.values(), sums / mask.sum()):
            row.append(value)
    result = {name: torch.stack(values) for name, values in rows.items()}
    occurring = model.embed(ids[mask].to(device)).cpu()
    result["normalised"] = normalised_mse(result["mse"], occurring)
    return result


def weight_change(before, after):
    """How far the weights have moved, relative to their size.

    Parameters
    ----------
    before, after : dict of tensors
        Two state dicts of one model.

    Returns
    -------
    float
        ||after - before|| / ||before|| over all weights together.
    """
    moved = sum((after[k] - before[k]).double().square().sum() for k in before)
    size = sum(before[k].double().square().sum() for k in before)
    return (moved / size).sqrt().item()
