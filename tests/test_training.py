"""The training loop: right losses, exact resume, safe checkpoints."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from dblm_lib import resources, training
from dblm_lib.denoiser import DBLM, DBLMConfig

VOCAB, LENGTH = 40, 10


def tiny_config(**options):
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return {"vocab_size": VOCAB, **sizes, **still, **ends, **options}


def tiny_model(seed=0, **options):
    torch.manual_seed(seed)
    return DBLM(DBLMConfig(**tiny_config(**options)))


def tiny_texts(count=30):
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(1, VOCAB, (count, LENGTH), generator=generator)
    lengths = torch.randint(3, LENGTH + 1, (count,), generator=generator)
    mask = torch.arange(LENGTH) < lengths[:, None]
    return ids, mask


def small_run(**options):
    defaults = {"steps": 12, "batch_size": 4, "warmup": 2, "log_every": 1}
    return training.TrainConfig(**{**defaults, **options})


def same_weights(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_proposal_is_as_proposed():
    config = training.proposal_config()
    assert (config.steps, config.learning_rate) == (100, 1e-5)
    assert config.optimizer == "adam" and config.clip == 0
    rates = {training.learning_rate(s, config) for s in range(100)}
    assert rates == {1e-5}


def test_loss_is_the_mean_over_real_positions():
    model, (ids, mask) = tiny_model(), tiny_texts(6)
    draws = training.draw_noise(model, ids, torch.Generator().manual_seed(0))
    weight = mask / mask.sum()
    batch = {"ids": ids, "mask": mask, "weight": weight, **draws}
    loss = training.denoising_loss(model, batch)
    alpha = model.schedule.alpha(draws["t"])[:, None, None].float()
    sigma = model.schedule.sigma(draws["t"])[:, None, None].float()
    x0 = model.embed(ids)
    x0_hat = model(alpha * x0 + sigma * draws["eps"], draws["t"], mask)
    expected = F.mse_loss(x0_hat[mask], x0[mask])
    torch.testing.assert_close(loss, expected)


def test_padding_is_not_in_the_loss():
    model, (ids, mask) = tiny_model(), tiny_texts(6)
    draws = training.draw_noise(model, ids, torch.Generator().manual_seed(0))
    weight = mask / mask.sum()
    batch = {"ids": ids, "mask": mask, "weight": weight, **draws}
    other = {**batch, "ids": torch.where(mask, ids, VOCAB - 1)}
    assert (~mask).any()
    torch.testing.assert_close(
        training.denoising_loss(model, batch),
        training.denoising_loss(model, other),
    )


def test_next_token_loss_equals_that_of_transformers():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**tiny_config())).eval()
    ids, _ = tiny_texts(5)
    weight = torch.ones_like(ids) / ids.numel()
    ours = training.next_token_loss(model, {"ids": ids, "weight": weight})
    start = torch.zeros_like(ids[:, :1])
    whole = torch.cat([start, ids], dim=1)
    theirs = model(input_ids=whole, labels=whole).loss
    torch.testing.assert_close(ours, theirs)


def test_normalised_mse_of_answering_the_mean_is_one():
    table = torch.randn(500, 8) * 0.3 + 2
    mse = (table - table.mean(0)).square().mean()
    assert training.normalised_mse(mse, table).item() == pytest.approx(1)


def test_learning_rate_warms_up_and_falls():
    config = small_run(steps=100, warmup=10, learning_rate=2.0)
    rates = [training.learning_rate(s, config) for s in range(100)]
    assert rates[:10] == pytest.approx([0.2 * i for i in range(1, 11)])
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert rates[10] == 2 and rates[-1] == pytest.approx(0.2, rel=0.01)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("batch_size", -1),
        ("learning_rate", 0),
        ("log_every", 0),
        ("optimizer", "sgd"),
        ("precision", "fp8"),
        ("ema", 1.0),
    ],
)
def test_settings_that_make_no_sense_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        small_run(**{field: value})


def test_texts_that_do_not_fit_are_refused():
    ids, mask = tiny_texts()
    with pytest.raises(ValueError, match="one shape"):
        training.train(tiny_model(), ids, mask[:, :-1], small_run())
    with pytest.raises(ValueError, match="one shape"):
        training.train(tiny_model(), ids[:0], mask[:0], small_run())


def test_training_lowers_the_loss_and_keeps_embeddings_frozen():
    model, texts = tiny_model(), tiny_texts()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    config = small_run(steps=80, learning_rate=5e-3, batch_size=8)
    history = training.train(model, *texts, config)
    assert history.loss[-1] < 0.5 * history.loss[0]
    after = model.state_dict()
    name = "embeddings.weight"
    assert torch.equal(before[name], after[name])
    assert training.weight_change(before, after) > 0.01
    assert history.steps[-1] == 79 and len(history.loss) == 80
    assert history.tokens_per_second > 0


def test_a_model_on_the_cpu_stays_there_beside_a_gpu(monkeypatch):
    """So that a chapter gives the same numbers on a machine with one."""
    import accelerate.state

    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = tiny_model()
    training.train(model, *tiny_texts(), small_run())
    assert {p.device.type for p in model.parameters()} == {"cpu"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_the_gpu_is_trained_there_after_one_on_the_cpu():
    texts, last = tiny_texts(), {}
    for device in ("cpu", "cuda", "cpu"):
        model = tiny_model().to(device)
        history = training.train(model, *texts, small_run())
        assert {p.device.type for p in model.parameters()} == {device}
        last[device] = history.loss[-1]
    assert last["cuda"] == pytest.approx(last["cpu"], rel=1e-3)


def test_weight_change_is_relative():
    before = {"a": torch.tensor([3.0, 4.0])}
    after = {"a": torch.tensor([3.0, 4.5])}
    assert training.weight_change(before, after) == pytest.approx(0.1)


def test_same_seed_same_run_other_seed_other_run():
    runs = []
    for seed in (0, 0, 1):
        model = tiny_model()
        training.train(model, *tiny_texts(), small_run(seed=seed))
        runs.append(model)
    assert same_weights(runs[0], runs[1])
    assert not same_weights(runs[0], runs[2])


def test_average_is_what_the_formula_says():
    decay, seen = 0.5, []
    model = tiny_model()
    average = training._Average(model, decay)
    name = "trunk.ln_f.weight"
    weights = dict(model.named_parameters())
    expected = weights[name].detach().clone()
    for step in range(1, 5):
        with torch.no_grad():
            weights[name].add_(step)
        average.update(model)
        share = min(decay, (1 + step) / (10 + step))
        expected = share * expected + (1 - share) * weights[name].detach()
        seen.append(expected)
    torch.testing.assert_close(average.weights[name], expected)
    average.copy_to(model)
    torch.testing.assert_close(weights[name].detach(), expected)


def test_a_loss_that_is_not_finite_stops_the_run():
    model, texts = tiny_model(), tiny_texts()

    def broken(model, batch):
        return training.denoising_loss(model, batch) * math.nan

    with pytest.raises(FloatingPointError, match="learning rate"):
        training.train(model, *texts, small_run(), loss=broken)


def test_bf16_runs_and_stays_close():
    texts, last = tiny_texts(), {}
    for precision in ("fp32", "bf16"):
        config = small_run(steps=40, learning_rate=1e-3, precision=precision)
        history = training.train(tiny_model(), *texts, config)
        last[precision] = history.loss[-1]
    assert last["bf16"] == pytest.approx(last["fp32"], rel=0.1)


# Checkpoints ---------------------------------------------------------------


def test_resumed_run_ends_with_the_same_bits(tmp_path):
    texts, config = tiny_texts(), small_run(ema=0.9, save_every=5)
    whole = tiny_model()
    full = training.train(whole, *texts, config)
    short = small_run(ema=0.9, save_every=5, steps=12)

    class Stop(Exception):
        pass

    calls = iter(range(100))

    def until_eight(model, batch):
        if next(calls) == 8:
            raise Stop
        return training.denoising_loss(model, batch)

    with pytest.raises(Stop):
        training.train(
            tiny_model(), *texts, short, loss=until_eight, folder=tmp_path
        )
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000005"]
    other = tiny_model(seed=3)  # its own weights must not matter
    resumed = training.train(
        other, *texts, config, folder=tmp_path, resume=True
    )
    assert same_weights(whole, other)
    assert resumed.loss == full.loss


KILLED = """
import sys, torch
from dblm_lib import training
sys.path.insert(0, {tests!r})
from test_training import small_run, tiny_model, tiny_texts
config = small_run(steps=200, save_every=7, ema=0.9)
training.train(tiny_model(), *tiny_texts(), config, folder={folder!r},
               resume=True, progress=False)
"""


@pytest.mark.slow
def test_killed_run_ends_with_the_same_bits(tmp_path):
    """SIGKILL at a random moment; resume, and compare bit for bit."""
    code = KILLED.format(
        tests=os.path.dirname(__file__), folder=str(tmp_path / "run")
    )
    kill = getattr(signal, "SIGKILL", signal.SIGTERM)
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"delays drawn with seed {seed}")
    delay = torch.rand(1, generator=torch.Generator().manual_seed(seed))
    process = subprocess.Popen([sys.executable, "-c", code])
    started = time.monotonic()
    while not list(tmp_path.glob("run/step-*")):
        assert time.monotonic() - started < 120 and process.poll() is None
        time.sleep(0.01)
    time.sleep(delay.item() / 4)
    process.send_signal(kill)
    assert process.wait() != 0, "the run ended before it could be killed"
    (last,) = (tmp_path / "run").glob("step-*")
    assert last.name != "step-0000200"
    config = small_run(steps=200, save_every=7, ema=0.9)
    whole = tiny_model()
    training.train(whole, *tiny_texts(), config)
    resumed = tiny_model(seed=1)
    training.train(
        resumed, *tiny_texts(), config, folder=tmp_path / "run", resume=True
    )
    assert same_weights(whole, resumed)


def saved_run(folder):
    config = small_run(save_every=6)
    training.train(tiny_model(), *tiny_texts(), config, folder=folder)
    (last,) = folder.glob("step-*")
    return config, last


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "state.json"]
)
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damaged_checkpoint_is_refused_by_name(tmp_path, name, damage):
    config, last = saved_run(tmp_path)
    file = last / name
    content = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[len(content) // 2 if name != "state.json" else 0] ^= 0x11
        file.write_bytes(content)
    else:
        file.unlink()
    with pytest.raises(resources.DataError, match=last.name):
        training.train(
            tiny_model(), *tiny_texts(), config, folder=tmp_path, resume=True
        )


def test_checkpoint_of_another_run_is_refused(tmp_path):
    saved_run(tmp_path)
    config = small_run(save_every=6, learning_rate=0.5)
    with pytest.raises(resources.DataError, match="learning_rate"):
        training.train(
            tiny_model(), *tiny_texts(), config, folder=tmp_path, resume=True
        )


def test_full_disk_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    import safetensors.torch

    write, calls = safetensors.torch.save_file, iter(range(100))

    def full(tensors, path, *rest, **options):
        if next(calls) >= 4:  # the second checkpoint's second file
            raise OSError(28, "No space left on device")
        return write(tensors, path, *rest, **options)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    config = small_run(save_every=6)
    with pytest.raises(OSError, match="previous one"):
        training.train(tiny_model(), *tiny_texts(), config, folder=tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "step-0000006" / "state.json").is_file()
    other, whole = tiny_model(), tiny_model()
    training.train(other, *tiny_texts(), config, folder=tmp_path, resume=True)
    training.train(whole, *tiny_texts(), config)
    assert same_weights(other, whole)


def test_unwritable_folder_is_said_plainly(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="cannot be written"):
        training.train(
            tiny_model(),
            *tiny_texts(),
            small_run(),
            folder=tmp_path / "file" / "run",
        )


def test_tied_weights_survive_a_checkpoint(tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**tiny_config()))
    settings = {"loss": training.next_token_loss, "draw": None}
    config = small_run(save_every=6)
    training.train(model, *tiny_texts(), config, folder=tmp_path, **settings)
    torch.manual_seed(9)
    other = GPT2LMHeadModel(GPT2Config(**tiny_config()))
    training.train(
        other,
        *tiny_texts(),
        config,
        folder=tmp_path,
        resume=True,
        **settings,
    )
    assert same_weights(model, other)
    assert other.lm_head.weight is other.transformer.wte.weight


# Several processes -----------------------------------------------------------

SHARED = """
import json, sys
from accelerate import Accelerator
from dblm_lib import training
sys.path.insert(0, {tests!r})
from test_training import small_run, tiny_model, tiny_texts
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
history = training.train(tiny_model(), *tiny_texts(), small_run(
    steps=30, batch_size=8, learning_rate=1e-3), progress=False,
    accelerator=accelerator)
if accelerator.is_main_process:
    json.dump(history.loss, open({result!r}, "w"))
"""


@pytest.mark.slow
def test_two_processes_give_the_curve_of_one(tmp_path):
    """Tolerance 1e-5, relative: sums in another order, nothing else."""
    script, result = tmp_path / "run.py", tmp_path / "loss.json"
    tests = os.path.dirname(__file__)
    script.write_text(
        textwrap.dedent(SHARED.format(tests=tests, result=str(result)))
    )
    command = "-m torch.distributed.run --standalone --nproc_per_node 2"
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    subprocess.run(
        [sys.executable, *command.split(), str(script)],
        check=True,
        timeout=300,
        env=environment,
    )
    config = small_run(steps=30, batch_size=8, learning_rate=1e-3)
    one = training.train(tiny_model(), *tiny_texts(), config)
    two = json.loads(result.read_text())
    assert two == pytest.approx(one.loss, rel=1e-5)


# Evaluation --------------------------------------------------------------------


def test_evaluation_of_a_network_that_copies_its_input(monkeypatch):
    """Known answers: MSE is (sigma² + (1 - alpha)² Var) per coordinate."""
    model, (ids, mask) = tiny_model(n_embd=64), tiny_texts(200)
    model.config.normalise_embeddings = True
    monkeypatch.setattr(
        type(model), "forward", lambda self, zt, t=None, mask=None: zt
    )
    times = [0.05, 0.3, 0.9]
    result = training.evaluate_denoising(
        model, ids, mask, times, torch.Generator().manual_seed(0)
    )
    t = torch.tensor(times)
    size = model.embed(ids[mask]).square().mean().double()
    alpha, sigma = model.schedule.alpha(t), model.schedule.sigma(t)
    expected = sigma**2 + (1 - alpha) ** 2 * size
    torch.testing.assert_close(
        result["mse"], expected.detach(), rtol=0.03, atol=0
    )
    assert torch.equal(result["accuracy"], result["baseline"])
    assert result["accuracy"][0] > 0.99
    assert result["accuracy"][2] < 0.5
    variance = model.embed(ids[mask]).var(0, unbiased=False).mean()
    torch.testing.assert_close(
        result["normalised"], result["mse"] / variance.item()
    )
