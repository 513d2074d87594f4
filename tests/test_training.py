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

from dblm_lib import decoding, resources, training
from dblm_lib.denoiser import DBLM, DBLMConfig, DenoiserOutput

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
    zt = alpha * x0 + sigma * draws["eps"]
    x0_hat = model(zt, draws["t"], mask).x0
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
    for precision in ("fp32", "bf16", "auto"):
        config = small_run(steps=40, learning_rate=1e-3, precision=precision)
        history = training.train(tiny_model(), *texts, config)
        last[precision] = history.loss[-1]
    assert last["bf16"] == pytest.approx(last["fp32"], rel=0.1)
    fast = resources.has_fast_bf16()
    assert last["auto"] == last["bf16" if fast else "fp32"]


@pytest.mark.parametrize("fast", [False, True])
def test_auto_precision_asks_the_hardware(fast, monkeypatch):
    """Many processors compute in bf16 ten times more slowly."""
    seen = []

    def loss(model, batch):
        seen.append(torch.is_autocast_enabled("cpu"))
        return training.denoising_loss(model, batch)

    monkeypatch.setattr(resources, "has_fast_bf16", lambda device: fast)
    config = small_run(steps=2, precision="auto")
    training.train(tiny_model(), *tiny_texts(), config, loss=loss)
    assert seen == [fast, fast]


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
torch.set_num_threads({threads})  # sums come out another way with others
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
        tests=os.path.dirname(__file__),
        folder=str(tmp_path / "run"),
        threads=torch.get_num_threads(),
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
    # Two, if it died between writing a checkpoint and removing the last one.
    last = max((tmp_path / "run").glob("step-*"))
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
from test_training import small_run, {model}, tiny_texts
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
history = training.train({model}(), *tiny_texts(), small_run(
    steps=30, batch_size=8, learning_rate=1e-3), progress=False,
    accelerator=accelerator)
if accelerator.is_main_process:
    json.dump(history.loss, open({result!r}, "w"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny_model", "repaired"])
def test_two_processes_give_the_curve_of_one(tmp_path, model):
    """Tolerance 1e-5, relative: sums in another order, nothing else."""
    script, result = tmp_path / "run.py", tmp_path / "loss.json"
    tests = os.path.dirname(__file__)
    script.write_text(
        textwrap.dedent(
            SHARED.format(tests=tests, result=str(result), model=model)
        )
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
    one = training.train(globals()[model](), *tiny_texts(), config)
    two = json.loads(result.read_text())
    assert two == pytest.approx(one.loss, rel=1e-5)


# Evaluation --------------------------------------------------------------------


def test_evaluation_of_a_network_that_copies_its_input(monkeypatch):
    """Known answers: MSE is (sigma² + (1 - alpha)² Var) per coordinate."""
    model, (ids, mask) = tiny_model(n_embd=64), tiny_texts(200)
    model.config.normalise_embeddings = True
    monkeypatch.setattr(
        type(model),
        "forward",
        lambda self, zt, t=None, mask=None: DenoiserOutput(x0=zt),
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


# The losses and draws of chapter 7 ---------------------------------------------

REPAIRED = {
    "embed_dim": 8,
    "normalise_embeddings": True,
    "train_embeddings": True,
    "head": "mixture",
    "loss": "ce",
    "input_std": 0.05,
    "self_conditioning": 0.5,
    "likelihood": True,
    "clean_rate": 0.7,
}


def repaired(seed=0, **options):
    return tiny_model(seed, **{**REPAIRED, **options})


def one_batch(model, count=8, step=0):
    """A batch as the loop makes it, without padding being special."""
    ids, mask = tiny_texts(count)
    return training._batch(
        model,
        ids,
        mask,
        training.draw_for(model),
        step,
        small_run(batch_size=count),
        training._where_the_model_is(model),
    )


def test_a_config_chooses_its_loss_and_its_draw():
    plain = tiny_model()
    assert training.draw_for(plain) is training.draw_noise
    assert training.loss_for(plain) is training.denoising_loss
    model = repaired()
    assert training.draw_for(model) is training.draw_clean_neighbours
    assert training.loss_for(model) is training.cross_entropy_loss
    model = tiny_model(stagger=1.0)
    assert training.draw_for(model) is training.draw_staggered


def test_the_loop_uses_what_the_config_chooses(monkeypatch):
    seen = []
    for name in ("cross_entropy_loss", "draw_clean_neighbours"):
        original = getattr(training, name)

        def noted(*arguments, name=name, original=original):
            seen.append(name)
            return original(*arguments)

        monkeypatch.setattr(training, name, noted)
    training.train(repaired(), *tiny_texts(), small_run(steps=2))
    assert seen == ["draw_clean_neighbours", "cross_entropy_loss"] * 2


@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_clean_neighbours_are_as_many_as_the_rate_says(rate):
    model, length = tiny_model(clean_rate=rate), 16
    ids = torch.zeros(20_000, length, dtype=torch.long)
    rng = torch.Generator().manual_seed(3)
    draw = training.draw_clean_neighbours(model, ids, rng)
    t, keep = draw["t"], draw["keep"]
    assert t.shape == keep.shape == ids.shape and keep.dtype == torch.bool
    assert draw["eps"].shape == (*ids.shape, 16) and t.dtype == torch.float64
    assert (t[keep] == 0).all() and (t[~keep] > 0).all()
    # Shares of 0.3 to 0.9, in a share `rate` of the texts.
    assert keep.double().mean().item() == pytest.approx(0.6 * rate, abs=0.01)
    counts = keep.sum(1)
    # The count is binomial, with a share that is uniform between the two.
    shares = torch.linspace(0.3, 0.9, 2001, dtype=torch.float64)
    for k in range(1, length + 1):
        ways = math.comb(length, k)
        chance = (ways * shares**k * (1 - shares) ** (length - k)).mean()
        got = (counts == k).double().mean().item()
        assert got == pytest.approx(rate * chance.item(), abs=0.006), k
    # What is noised in a text has one time, and beside clean positions one
    # near the end: u^(1/8), of mean 8/9, below 0.85 in 27 % of the texts.
    own = t.amax(1)
    assert ((t == own[:, None]) | keep).all()
    spared = keep.any(1) & ~keep.all(1)
    assert own[spared].mean().item() == pytest.approx(8 / 9, abs=0.01)
    below = (own[spared] < 0.85).double().mean().item()
    assert below == pytest.approx(0.85**8, abs=0.02)
    if rate < 1:
        assert own[~keep.any(1)].mean() < 0.53
    # Positions stay clean by chance, not by place.
    places = keep.double().mean(0)
    assert (places - 0.6 * rate).abs().max() < 0.02


def test_staggered_times_are_moments_of_the_reverse_process():
    """Each row is one of `decoding.staggered_times`, for some stagger."""
    model, length = tiny_model(clean_rate=0.3, stagger=2.0), 16
    ids = torch.zeros(20_000, length, dtype=torch.long)
    rng = torch.Generator().manual_seed(3)
    draw = training.draw_staggered(model, ids, rng)
    t, keep = draw["t"], draw["keep"]
    assert t.dtype == torch.float64 and 0 <= t.min() and t.max() <= 1
    assert torch.equal(keep, t == 0)
    grows = t[(t.diff(dim=1) >= 0).all(1)]
    assert 0.69 < len(grows) / len(t) < 0.72  # the others are spared
    # Between 0 and 1 they grow in a straight line, of slope stagger / 15.
    first, second = grows[:, 7], grows[:, 8]
    inside = (first > 0) & (second < 1)
    slope = (second - first)[inside] * (length - 1)
    assert slope.min() >= 0 and slope.max() <= 2
    moments = decoding.staggered_times(3000, length, 1.2)[..., 0]
    alike = (slope / 1.2 - 1).abs() < 0.003
    assert alike.any()
    for row in grows[inside][alike][:5]:
        assert (moments - row).abs().amax(1).min() < 0.01
    # Of a mean stagger of 2 / 3, among moments that are a third as rare
    # where the process lasts three times as long.
    stagger = torch.linspace(0, 1, 100_001, dtype=torch.float64) ** 2 * 2
    weight = 1 / (1 + stagger)
    expected = (stagger * weight).sum() / weight.sum()
    assert slope.mean().item() == pytest.approx(expected.item(), abs=0.03)


def test_without_stagger_and_clean_rate_all_times_are_alike():
    model = tiny_model(stagger=1e-12)
    ids = torch.zeros(50, 16, dtype=torch.long)
    draw = training.draw_staggered(model, ids, torch.Generator())
    assert (draw["t"].amax(1) - draw["t"].amin(1)).max() < 1e-9
    assert not draw["keep"].any()


def test_clean_neighbours_are_the_same_for_the_same_step():
    model = repaired()
    first, again, later = (one_batch(model, step=s) for s in (3, 3, 4))
    for name in ("ids", "t", "eps", "keep", "weight"):
        assert torch.equal(first[name], again[name]), name
    assert not torch.equal(first["t"], later["t"])
    assert not torch.equal(first["keep"], later["keep"])


def test_clean_positions_are_no_task():
    """Neither they nor the padding weigh; the others sum to one."""
    batch = one_batch(repaired())
    counted = batch["mask"] & ~batch["keep"]
    assert batch["keep"].any() and (~batch["mask"]).any()
    assert ((batch["weight"] > 0) == counted).all()
    assert batch["weight"].sum().item() == pytest.approx(1)
    weights = batch["weight"][counted]
    assert weights.max() == weights.min()


@pytest.mark.parametrize("loss", ["mse", "ce"])
def test_loss_is_not_told_what_stands_on_clean_positions(loss):
    """Only through the network: with a blind one, other ids cost nothing."""
    model = repaired(loss=loss, self_conditioning=0.0, likelihood=False)
    with torch.no_grad():
        model.project_in.weight.zero_()
    batch = one_batch(model)
    function = training.loss_for(model)
    other = torch.where(batch["keep"], 1, batch["ids"])
    assert not torch.equal(other, batch["ids"])
    torch.testing.assert_close(
        function(model, batch), function(model, {**batch, "ids": other})
    )
    wrong = torch.where(batch["keep"], batch["ids"], 1)
    assert function(model, batch) != function(model, {**batch, "ids": wrong})


def test_mse_leaves_kept_positions_as_they_are(monkeypatch):
    """The network sees exactly x0 there, told a time of 0."""
    model = tiny_model(clean_rate=1.0)
    batch = one_batch(model)
    seen = {}
    forward = type(model).forward

    def watched(self, zt, t, mask):
        seen.update(zt=zt, t=t)
        return forward(self, zt, t, mask)

    monkeypatch.setattr(type(model), "forward", watched)
    training.denoising_loss(model, batch)
    keep, x0 = batch["keep"], model.embed(batch["ids"])
    assert torch.equal(seen["zt"][keep], x0[keep])
    assert not torch.isclose(seen["zt"][~keep], x0[~keep]).all(-1).any()
    assert (seen["t"][keep] == 0).all()


@pytest.mark.parametrize("kept", [False, True])
def test_cross_entropy_is_that_of_pytorch(kept):
    """By hand: noise, logits, `F.cross_entropy` of the noised positions."""
    model = repaired(self_conditioning=0.0, clean_rate=0.7 if kept else 0.0)
    batch = one_batch(model)
    keep = batch.get("keep", torch.zeros_like(batch["mask"]))
    t = torch.where(keep, 0.5, batch["t"].reshape(len(keep), -1))
    x0 = model.embed(batch["ids"])
    alpha, sigma = (
        f(t)[..., None].float()
        for f in (model.schedule.alpha, model.schedule.sigma)
    )
    zt = torch.where(keep[..., None], x0, alpha * x0 + sigma * batch["eps"])
    logits = model(zt, batch["t"], batch["mask"]).logits
    counted = batch["mask"] & ~keep
    expected = F.cross_entropy(logits[counted], batch["ids"][counted])
    got = training.cross_entropy_loss(model, batch)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_gradient_of_the_cross_entropy_is_its_slope():
    """A step along the gradient, both ways, in float64."""
    model = repaired(likelihood=False).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model.config.self_conditioning = 0.0  # the first guess has no gradient
    batch = one_batch(model)
    batch = {
        k: v.double() if v.is_floating_point() else v for k, v in batch.items()
    }
    loss = training.cross_entropy_loss(model, batch)
    loss.backward()
    weights = [p for p in model.parameters() if p.grad is not None]
    assert len(weights) == len(list(model.parameters())) - 1  # the guess's
    values, h = [], 1e-3
    slope = sum(p.grad.square().sum() for p in weights)
    with torch.no_grad():
        for sign in (1, -2):
            for p in weights:
                p.add_(sign * h * p.grad / slope.sqrt())
            values.append(training.cross_entropy_loss(model, batch))
    difference = (values[0] - values[1]) / (2 * h)
    assert difference.item() == pytest.approx(slope.sqrt().item(), rel=1e-2)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("likelihood", [False, True])
def test_a_first_guess_costs_no_gradient_even_under_autocast(
    likelihood, shift
):
    """Autocast keeps copies of weights: those of the first guess, made
    without gradient, must not serve the second."""
    model = repaired(likelihood=likelihood, shift=shift)
    with torch.no_grad():  # behind a layer of zeros nothing would learn
        model.project_guess.weight.normal_()
        model.noise_mlp[-1].weight.normal_(std=0.1)
    batch, norms = one_batch(model), {}
    for precision in ("fp32", "bf16"):
        model.zero_grad()
        with torch.autocast(
            "cpu", dtype=torch.bfloat16, enabled=precision == "bf16"
        ):
            loss = training.cross_entropy_loss(model, batch)
        loss.backward()
        norms[precision] = {
            n: p.grad.norm().item() for n, p in model.named_parameters()
        }
    assert min(norms["fp32"].values()) > 0
    assert norms["bf16"] == pytest.approx(norms["fp32"], rel=0.1)


def test_first_guess_is_for_a_share_of_the_texts():
    model = repaired(self_conditioning=0.25)
    batch = one_batch(model)
    x0 = model.embed(batch["ids"])
    guess = training.first_guess(model, x0, batch["t"], batch["mask"])
    assert not guess.requires_grad and guess.shape == x0.shape
    with torch.no_grad():
        expected = model(x0, batch["t"], batch["mask"]).x0
    torch.testing.assert_close(guess[:2], expected[:2])
    assert (guess[2:] == 0).all()
    for share in (0.0, 0.01):  # none, or less than one text
        model.config.self_conditioning = share
        arguments = (model, x0, batch["t"], batch["mask"])
        assert training.first_guess(*arguments) is None


def test_the_first_guess_is_evaluated_once_and_handed_on(monkeypatch):
    model, calls = repaired(), []
    forward = type(model).forward

    def watched(self, zt, t, mask, previous=None, keep=None):
        calls.append((len(zt), previous, torch.is_grad_enabled()))
        return forward(self, zt, t, mask, previous, keep)

    monkeypatch.setattr(type(model), "forward", watched)
    training.cross_entropy_loss(model, one_batch(model))
    (first, none, learns), (second, guess, learns_too) = calls
    assert (first, none, learns) == (4, None, False)
    assert (second, learns_too) == (8, True)
    assert (guess[4:] == 0).all() and (guess[:4] != 0).any(-1).all()


def test_cross_entropy_learns_and_embeddings_move():
    model, (ids, mask) = repaired(), tiny_texts()
    before = model.embeddings.weight.detach().clone()
    config = small_run(
        steps=400, learning_rate=1e-2, batch_size=16, embedding_rate=2.0
    )
    history = training.train(model, ids, mask, config)
    start, end = history.loss[:10], history.loss[-10:]
    assert sum(end) < 0.8 * sum(start)
    assert (model.embeddings.weight - before).abs().max() > 0.01
    guess = training.first_guess(
        model, model.embed(ids), torch.zeros(len(ids)), mask
    )
    assert torch.isfinite(guess).all()


@pytest.mark.parametrize(("steps", "rate"), [(1, 3.0), (2, 0.1)])
def test_embeddings_learn_at_their_own_rate(steps, rate):
    """AdamW's first step is the learning rate itself, whatever the slope."""
    moved = {}
    for embedding_rate in (1.0, rate):
        model = repaired()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        config = small_run(
            steps=steps,
            warmup=0,
            learning_rate=1e-4,
            embedding_rate=embedding_rate,
            weight_decay=0.0,
        )
        training.train(model, *tiny_texts(), config)
        moved[embedding_rate] = {
            n: (p - before[n]).abs().max().item()
            for n, p in model.named_parameters()
        }
    plain, own = moved[1.0], moved[rate]
    ratio = own["embeddings.weight"] / plain["embeddings.weight"]
    assert ratio == pytest.approx(rate, rel=0.05)
    for name in ("project_in.weight", "trunk.ln_f.weight"):
        assert own[name] == pytest.approx(plain[name], rel=0.05), name


def test_embedding_rate_leaves_frozen_embeddings_alone():
    model = tiny_model()
    before = model.embeddings.weight.clone()
    training.train(model, *tiny_texts(), small_run(embedding_rate=5.0))
    assert torch.equal(model.embeddings.weight, before)
    with pytest.raises(ValueError, match="embedding_rate must be positive"):
        small_run(embedding_rate=0)


def test_each_weight_is_in_one_group():
    model = repaired()
    (optimizer,) = training._optimizers(model, small_run(embedding_rate=2.0))
    grouped = [p for g in optimizer.param_groups for p in g["params"]]
    assert len(grouped) == len({id(p) for p in grouped})
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters()}
    (table,) = [g for g in optimizer.param_groups if g.get("rate", 1) != 1]
    assert table["params"][0] is model.embeddings.weight and table["rate"] == 2
    vectors = [g for g in optimizer.param_groups if g["weight_decay"] == 0]
    assert all(p.ndim == 1 for g in vectors for p in g["params"])


def test_muon_takes_the_matrices_of_the_blocks():
    model = repaired()
    adamw, muon = training._optimizers(model, small_run(optimizer="muon"))
    names = {id(p): name for name, p in model.named_parameters()}
    taken = {names[id(p)] for g in muon.param_groups for p in g["params"]}
    assert taken == {
        name
        for name, p in model.named_parameters()
        if name.startswith("trunk.h.") and p.ndim == 2
    }
    left = {names[id(p)] for g in adamw.param_groups for p in g["params"]}
    assert taken and not taken & left and taken | left == set(names.values())


def test_muon_moves_matrices_in_all_directions_alike():
    """Singular values of its step: of one size, which AdamW's are not."""
    spread = {}
    for optimizer in ("adamw", "muon"):
        model = tiny_model()
        name, weight = next(
            (n, p) for n, p in model.named_parameters() if "mlp.c_fc.w" in n
        )
        before = weight.detach().clone()
        config = small_run(
            steps=1, warmup=0, optimizer=optimizer, weight_decay=0.0
        )
        training.train(model, *tiny_texts(), config)
        step = dict(model.named_parameters())[name].detach() - before
        sizes = torch.linalg.svdvals(step)
        spread[optimizer] = (sizes.max() / sizes.median()).item()
    assert spread["muon"] < 2 < spread["adamw"]


def test_muon_resumes_with_the_same_bits(tmp_path):
    texts = tiny_texts()
    whole, half = tiny_model(), tiny_model()
    config = small_run(optimizer="muon", steps=12, ema=0.9)
    training.train(whole, *texts, config)
    calls = iter(range(100))

    class Stop(Exception):
        pass

    def until_eight(model, batch):
        if next(calls) == 8:
            raise Stop
        return training.denoising_loss(model, batch)

    saving = small_run(optimizer="muon", steps=12, ema=0.9, save_every=5)
    with pytest.raises(Stop):
        training.train(half, *texts, saving, loss=until_eight, folder=tmp_path)
    again = tiny_model(seed=3)
    training.train(again, *texts, saving, folder=tmp_path, resume=True)
    assert same_weights(whole, again)


def test_attention_is_put_back_after_training():
    model = tiny_model()
    assert model.config._attn_implementation == "sdpa"
    during = []

    def watched(model, batch):
        during.append(model.config._attn_implementation)
        return training.denoising_loss(model, batch)

    training.train(model, *tiny_texts(), small_run(), loss=watched)
    assert set(during) == {"eager"}
    assert model.config._attn_implementation == "sdpa"
    assert model.trunk.config._attn_implementation == "sdpa"


def test_attention_is_put_back_when_training_breaks_off():
    model = tiny_model()

    def broken(model, batch):
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        training.train(model, *tiny_texts(), small_run(), loss=broken)
    assert model.config._attn_implementation == "sdpa"


def test_resumed_run_with_all_repairs_ends_with_the_same_bits(tmp_path):
    texts = tiny_texts()
    config = small_run(
        ema=0.9, save_every=5, embedding_rate=2.0, precision="bf16"
    )
    whole = repaired()
    full = training.train(whole, *texts, config)
    calls = iter(range(100))

    def until_eight(model, batch):
        if next(calls) == 8:
            raise KeyboardInterrupt
        return training.cross_entropy_loss(model, batch)

    with pytest.raises(KeyboardInterrupt):
        training.train(
            repaired(), *texts, config, loss=until_eight, folder=tmp_path
        )
    other = repaired(seed=3)
    resumed = training.train(
        other, *texts, config, folder=tmp_path, resume=True
    )
    assert same_weights(whole, other)
    assert resumed.loss == full.loss
