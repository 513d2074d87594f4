r"""The training loop.

Chapter 4. One loop serves everything: the proposal's hundred steps, longer
runs, and the pretraining of the embedded GPT-2. All randomness of step k is
drawn from a generator seeded with (seed, k); a run that was interrupted
and resumed therefore sees the very same numbers, and so do several
processes that share a batch.
"""

import contextlib
import hashlib
import math
import os
import signal
import threading
import time
from dataclasses import asdict, dataclass, field

import torch

from .. import noising, resources, storage
from .checkpoints import Checkpoints
from .config import learning_rate
from .draws import draw_for
from .losses import loss_for
from .optimizers import average_of, optimizers_for

__all__ = ["History", "copy_weights", "make_batch", "one_process", "train"]


@dataclass
class History:
    """What a run has seen: one entry every ``log_every`` steps."""

    steps: list = field(default_factory=list)
    loss: list = field(default_factory=list)
    tokens_per_second: float = 0.0

    def add(self, step, loss, tokens_per_second):
        """Note a point of the loss curve; refuse one that is not finite."""
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at step {step}: lower the learning "
                "rate, or clip the gradient"
            )
        self.steps.append(step)
        self.loss.append(loss)
        self.tokens_per_second = tokens_per_second


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
    ``Accelerator()`` in. The reader's own random numbers stay as they are.

    Parameters
    ----------
    model : torch.nn.Module
    ids, mask : tensors, shape ``(n, length)``
        The texts, see `text.encode_batch`. The mask holds 0 and 1, of any
        type.
    config : TrainConfig
    loss : callable ``(model, batch) -> scalar``, optional
        The one of `loss_for` if left out.
    draw : callable ``(model, ids, generator) -> dict``, or None
        The random numbers of a batch; those of `draw_for` if left out. One
        that remembers something between steps has ``state_dict`` and
        ``load_state_dict``.
    folder : path, optional
        Where checkpoints go: absent or empty, or that of this run. After
        Ctrl-C the step is finished and kept there.
    resume : bool
        Continue from the last checkpoint in ``folder``, if there is one.
    progress : bool
        Show a progress bar with the loss and tokens per second.
    accelerator : accelerate.Accelerator, optional
        Brings several GPUs or machines; it then chooses the devices.

    Returns
    -------
    History

    Raises
    ------
    ValueError
        If the texts do not fit, or if something is in the folder that this
        run did not write.
    resources.DataError
        If a checkpoint is damaged or belongs to another run.
    FloatingPointError
        If the loss or a weight is not finite.
    """
    ids, mask = _checked_texts(ids, mask)
    loss = loss or loss_for(model)
    draw = draw_for(model) if draw == "model" else draw
    accelerator = _checked(accelerator) or one_process(model)
    device, leads = accelerator.device, accelerator.is_main_process
    bare = accelerator.unwrap_model(model, keep_torch_compile=False)
    optimizers = optimizers_for(bare, config)
    network, *optimizers = accelerator.prepare(model, *optimizers)
    average = average_of(bare, config.ema)
    autocast = resources.autocast(device, config.precision)
    history, first, checkpoints = History(), 0, None
    with contextlib.ExitStack() as stack:
        if folder is not None:
            if leads:
                stack.enter_context(storage.lock(folder))
            with accelerator.main_process_first():
                checkpoints = Checkpoints(
                    folder,
                    _identity(bare, ids, mask, config, device),
                    {"model": bare, "average": average, "draw": draw},
                    optimizers,
                    resume=resume or not leads,
                )
                first = checkpoints.restore(history)
        stack.enter_context(_own_random_numbers(device))
        stack.enter_context(_fast_attention(bare, device))
        stopped = stack.enter_context(_stop_between_steps(accelerator, folder))
        bar = resources.progress_bar(
            range(first, config.steps),
            initial=first,
            total=config.steps,
            disable=not (progress and leads),
            desc="training",
            mininterval=0.5,
        )
        network.train()
        start, tokens = time.perf_counter(), 0
        for step in bar:
            batch = make_batch(
                bare, ids, mask, draw, step, config, accelerator
            )
            for group in [g for o in optimizers for g in o.param_groups]:
                rate = learning_rate(step, config)
                group["lr"] = rate * group.get("rate", 1.0)
            with autocast:
                value = loss(network, batch)
            for optimizer in optimizers:
                optimizer.zero_grad()
            accelerator.backward(value)
            if config.clip:
                accelerator.clip_grad_norm_(network.parameters(), config.clip)
            for optimizer in optimizers:
                optimizer.step()
            if average is not None:
                average.update_parameters(bare)
            tokens += batch["ids"].numel() * accelerator.num_processes
            done = step + 1
            if step % config.log_every == 0 or done == config.steps:
                value = accelerator.reduce(value.detach(), "mean").item()
                speed = tokens / (time.perf_counter() - start)
                history.add(step, value, speed)
                bar.set_postfix_str(f"loss {value:.4f}, {speed:,.0f} tokens/s")
            due = config.save_every and done % config.save_every == 0
            if checkpoints and (due or done == config.steps or stopped()):
                if leads:
                    checkpoints.save(done, history)
                accelerator.wait_for_everyone()
            if stopped():
                raise KeyboardInterrupt
    if average is not None:
        copy_weights(average.module, bare)
    network.eval()
    return history


def make_batch(model, ids, mask, draw, step, config, accelerator):
    """The rows of one step, their noise, and this process's share of them.

    Parameters
    ----------
    model : DBLM, or another model that ``draw`` knows
    ids, mask, draw, config, accelerator
        As in `train`.
    step : int

    Returns
    -------
    dict of tensors
        ``ids``, ``mask``, what ``draw`` gave, and ``weight``, which is zero
        where nothing is asked.
    """
    seed = config.seed * 1_000_003 + step
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout, if any
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


@torch.no_grad()
def copy_weights(source, target):
    """Copy the parameters of a model into another of the same kind."""
    for old, new in zip(target.parameters(), source.parameters()):
        old.copy_(new)


def _checked_texts(ids, mask):
    """The texts as the loop needs them: whole numbers, and True or False."""
    if len(ids) == 0 or ids.shape != mask.shape or ids.ndim != 2:
        raise ValueError(
            "ids and mask must have one shape (n, length) with n > 0; got "
            f"{tuple(ids.shape)} and {tuple(mask.shape)}"
        )
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"ids must be whole numbers; got {ids.dtype}")
    return ids.long(), noising.check_keep(mask, ids.shape, "mask")


def _identity(model, ids, mask, config, device):
    """What makes a run this run: model, texts, recipe; for the record."""
    fields = {}
    if getattr(model, "config", None) is not None:
        fields = model.config.to_dict()
    for name in ("transformers_version", "_name_or_path"):
        fields.pop(name, None)  # the same model on another machine
    recipe = asdict(config)
    recipe["precision"] = resources.resolved(config.precision, device)
    # How often something is written down does not change the run; nor does
    # its length, if the learning rate stays constant.
    for name in ("log_every", "save_every"):
        del recipe[name]
    if config.final_fraction == 1:
        del recipe["steps"]
    digest = hashlib.sha256()
    for tensor in (ids, mask):
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return {
        "model": fields,
        "weights": {
            name: [*p.shape, "trained" if p.requires_grad else "fixed"]
            for name, p in model.named_parameters()
        },
        "texts": {
            "shape of the texts": list(ids.shape),
            "sha256 of the texts": digest.hexdigest(),
        },
        "recipe": recipe,
    }


# --- Accelerate -------------------------------------------------------------


def one_process(model):
    """An accelerator for one process, on the model's own device.

    Accelerate reads its settings from the environment, where an earlier
    launch may have left some; here the recipe alone counts.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise ValueError(
            "this is one of several processes: hand an accelerate.Accelerator "
            "in, or all of them train the same model, each for itself"
        )
    on_cpu = next(model.parameters()).device.type == "cpu"
    known = PartialState() if PartialState._shared_state else None
    # Accelerate remembers the first device of a process; we may have
    # trained elsewhere since.
    if known is not None and (
        known.num_processes == 1 and (known.device.type == "cpu") != on_cpu
    ):
        AcceleratorState._reset_state(reset_partial_state=True)
    with _without_settings():
        return Accelerator(
            cpu=on_cpu, mixed_precision="no", gradient_accumulation_steps=1
        )


@contextlib.contextmanager
def _without_settings():
    """Within, the environment has nothing to say to Accelerate."""
    names = [
        name
        for name in os.environ
        if name.startswith("ACCELERATE_")
        or name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    ]
    before = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(before)


def _checked(accelerator):
    """Refuse an accelerator that would train by another recipe."""
    if accelerator is None:
        return None
    for name, wanted in (
        ("mixed_precision", "no"),
        ("gradient_accumulation_steps", 1),
    ):
        found = getattr(accelerator, name)
        if found != wanted:
            raise ValueError(
                f"the accelerator has {name}={found!r}; make it with "
                f"{wanted!r}: precision and batch size are those of "
                "TrainConfig"
            )
    return accelerator


# --- While it runs ----------------------------------------------------------


@contextlib.contextmanager
def _own_random_numbers(device):
    """Leave the reader's own random numbers as they are."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        yield


@contextlib.contextmanager
def _fast_attention(model, device):
    """On a processor use eager attention meanwhile.

    For short texts its gradient takes a fifth of the time that the one of
    scaled-dot-product attention takes (torch 2.13).
    """
    config = getattr(model, "config", None)
    before = getattr(config, "_attn_implementation", None)
    changes = device.type == "cpu" and before == "sdpa" and _heeds_mask(model)
    if changes:
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        if changes:
            model.set_attn_implementation(before)


def _heeds_mask(model):
    """Whether eager attention looks where the model's mask lets it.

    In early versions of transformers 5 that of GPT-2 is causal in any case:
    it has a mask of its own, a buffer of each block.
    """
    return not any(n.endswith("attn.bias") for n, _ in model.named_buffers())


@contextlib.contextmanager
def _stop_between_steps(accelerator, folder):
    """Let Ctrl-C end the step, so that there is something whole to keep.

    Gives a function that says whether it was pressed; pressed twice, it acts
    at once. Where nothing is kept, or others wait, it acts at once, too.
    """
    pressed = threading.Event()
    here = (
        folder is not None
        and accelerator.num_processes == 1
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )

    def note(number, frame):
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    if here:
        signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        if here:
            signal.signal(signal.SIGINT, signal.default_int_handler)
