"""A run's folder: nothing of a reader is lost, the same run or an error."""

import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import bystanders
import numpy
import pytest
import torch
from test_training import (
    same_weights,
    small_run,
    tiny_model,
    tiny_texts,
)

from dblm_lib import resources, training
from dblm_lib.training.checkpoints import RECORD


class Stop(Exception):
    """Raised by a loss, in the place of whatever ends a run."""


def stopping_at(step, loss=training.denoising_loss):
    calls = iter(range(10_000))

    def stopped(model, batch):
        if next(calls) == step:
            raise Stop
        return loss(model, batch)

    return stopped


def begun(folder, model=None, texts=None, stop=8, **options):
    """A run of 12 steps that breaks off; a checkpoint of step 5 is there."""
    config = small_run(**{"save_every": 5, "ema": 0.9, **options})
    with pytest.raises(Stop):
        training.train(
            tiny_model() if model is None else model,
            *(texts or tiny_texts()),
            config,
            loss=stopping_at(stop),
            folder=folder,
        )
    return config


def resumed(folder, config, model=None, texts=None, **options):
    model = tiny_model(seed=3) if model is None else model
    training.train(
        model,
        *(texts or tiny_texts()),
        config,
        folder=folder,
        resume=True,
        **options,
    )
    return model


def whole_run(config, **options):
    model = tiny_model()
    training.train(model, *tiny_texts(), config, **options)
    return model


# Nothing of a reader is deleted or overwritten -------------------------------


@pytest.mark.parametrize("name", bystanders.FILES)
def test_a_folder_that_holds_anything_is_refused(tmp_path, name):
    bystanders.put(tmp_path, [name])
    before = bystanders.snapshot(tmp_path)
    asked = []
    if name in ("run.json", ".run.json.1-0.dblm-tmp"):
        config = small_run(steps=2)  # no obstacle: nothing is written there
        training.train(tiny_model(), *tiny_texts(), config, folder=tmp_path)
    else:
        with pytest.raises(ValueError):
            training.train(
                tiny_model(),
                *tiny_texts(),
                small_run(),
                loss=lambda *given: asked.append(given),
                folder=tmp_path,
            )
    assert not asked  # not a step was taken
    assert not bystanders.lost(before, bystanders.snapshot(tmp_path))


def test_bystanders_of_a_running_run_stay(tmp_path):
    config = begun(tmp_path)
    step = tmp_path / "step-0000005"
    shutil.copytree(step, tmp_path / "step-0000005-good")
    mine = [
        name
        for name in bystanders.FILES
        if name.split("/")[0] not in ("training.json", "step-0000003")
    ]
    bystanders.put(tmp_path, mine)
    before = bystanders.snapshot(tmp_path)
    model = resumed(tmp_path, config)
    after = bystanders.snapshot(tmp_path)
    gone = {
        name
        for name in bystanders.lost(before, after)
        if name.split("/")[0] != "step-0000005"
    }
    assert not gone
    assert same_weights(model, whole_run(config))
    assert not step.exists() and (tmp_path / "step-0000012").is_dir()


def test_a_checkpoint_in_which_a_reader_wrote_stays(tmp_path):
    config = begun(tmp_path)
    note = tmp_path / "step-0000005" / "notes.txt"
    note.write_text("mine", "utf-8")
    with pytest.warns(UserWarning, match=r"stays.*notes\.txt"):
        model = resumed(tmp_path, config)
    assert note.read_text("utf-8") == "mine"
    assert same_weights(model, whole_run(config))


def test_a_foreign_step_is_refused_before_training(tmp_path):
    config = begun(tmp_path)
    shutil.copytree(tmp_path / "step-0000005", tmp_path / "elsewhere")
    (tmp_path / "step-0000010").mkdir()
    with pytest.raises(resources.DataError, match="step-0000010"):
        resumed(tmp_path, config, loss=stopping_at(0))


def test_a_finished_run_is_not_begun_anew(tmp_path):
    config = small_run()
    training.train(tiny_model(), *tiny_texts(), config, folder=tmp_path)
    before = bystanders.snapshot(tmp_path)
    for again in (config, small_run(seed=9)):
        with pytest.raises(ValueError, match="already holds a run"):
            training.train(tiny_model(), *tiny_texts(), again, folder=tmp_path)
    assert bystanders.snapshot(tmp_path) == before


def test_two_runs_in_one_folder(tmp_path):
    inside = []

    def second(model, batch):
        if not inside:
            inside.append(True)
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        return training.denoising_loss(model, batch)

    def other():
        try:
            training.train(
                tiny_model(),
                *tiny_texts(),
                small_run(seed=5),
                folder=tmp_path,
                resume=True,
            )
        except OSError as error:
            inside.append(str(error))

    config = small_run()
    training.train(
        tiny_model(), *tiny_texts(), config, loss=second, folder=tmp_path
    )
    assert "another process works" in inside[1]


# The same run, or an error ----------------------------------------------------


@pytest.mark.parametrize(
    ("field", "model"),
    [
        ("causal, not", {"causal": True}),
        ("schedule, not", {"schedule": "cosine"}),
        ("embed_dim, not", {"embed_dim": 8}),
        ("conditioning, not", {"conditioning": "none"}),
        ("embeddings.weight, not", {"train_embeddings": True}),
    ],
)
def test_another_model_is_named(tmp_path, field, model):
    config = begun(tmp_path)
    with pytest.raises(resources.DataError, match=field):
        resumed(tmp_path, config, tiny_model(**model))


def test_other_texts_are_named(tmp_path):
    ids, mask = tiny_texts()
    config = begun(tmp_path)
    other = ids.clone()
    other[0, 0] = 1 + other[0, 0] % 30
    for texts in ((other, mask), (ids, torch.ones_like(mask)), tiny_texts(31)):
        with pytest.raises(resources.DataError, match="texts"):
            resumed(tmp_path, config, texts=texts)
    resumed(tmp_path, config, texts=(ids.int(), mask.int()))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 1),
        ("steps", 13),
        ("clip", 0.0),
        ("precision", "bf16"),
        ("warmup", 0),
    ],
)
def test_another_recipe_is_named(tmp_path, field, value):
    begun(tmp_path)
    config = small_run(save_every=5, ema=0.9, **{field: value})
    with pytest.raises(resources.DataError, match=f"{field}, not"):
        resumed(tmp_path, config)


def test_a_constant_rate_may_go_on_for_longer(tmp_path):
    short = begun(tmp_path, final_fraction=1.0)
    long = small_run(save_every=3, ema=0.9, final_fraction=1.0, steps=20)
    assert short.steps < long.steps
    assert same_weights(resumed(tmp_path, long), whole_run(long))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"owner": "x"}', "null"])
def test_a_damaged_record_is_named(tmp_path, content):
    config = begun(tmp_path)
    (tmp_path / RECORD).write_text(content, "utf-8")
    with pytest.raises(resources.DataError, match=RECORD):
        resumed(tmp_path, config)


@pytest.mark.slow
def test_compiled_and_plain_are_the_same_run(tmp_path):
    for name, first, second in (
        ("plain first", lambda m: m, torch.compile),
        ("compiled first", torch.compile, lambda m: m),
    ):
        folder = tmp_path / name
        models = tiny_model(), tiny_model(seed=3)
        options = {"backend": "eager"}
        one, two = (
            f(m, **options) if f is torch.compile else f(m)
            for f, m in zip((first, second), models)
        )
        config = begun(folder, one)
        resumed(folder, config, two)
        assert same_weights(models[1], whole_run(config)), name


def test_a_checkpoint_that_lacks_a_weight_is_refused(tmp_path, monkeypatch):
    """As if the record had not told: no weight is left as it was drawn."""
    config = begun(tmp_path)
    monkeypatch.setattr("dblm_lib.checks.differences", lambda *given: [])
    with pytest.raises(resources.DataError, match="does not fit"):
        resumed(tmp_path, config, tiny_model(embed_dim=8))


def test_a_draw_that_remembers_is_resumed(tmp_path):
    class Counting:
        def __init__(self):
            self.seen = torch.zeros(1)

        def __call__(self, model, ids, generator):
            self.seen += 1
            drawn = training.draw_noise(model, ids, generator)
            return drawn | {"eps": drawn["eps"] * self.seen}

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, state):
            self.seen = state["seen"]

    config = small_run(save_every=5)
    with pytest.raises(Stop):
        training.train(
            tiny_model(),
            *tiny_texts(),
            config,
            loss=stopping_at(8),
            draw=Counting(),
            folder=tmp_path,
        )
    one = resumed(tmp_path, config, draw=Counting())
    assert same_weights(one, whole_run(config, draw=Counting()))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux only")
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
def test_no_file_of_a_checkpoint_stays_mapped(tmp_path, optimizer):
    """Windows does not remove a file that is mapped."""
    config = begun(tmp_path, optimizer=optimizer)
    seen = []

    def look(model, batch):
        maps = Path("/proc/self/maps").read_text("utf-8")
        seen.append(str(tmp_path) in maps)
        return training.denoising_loss(model, batch)

    resumed(tmp_path, config, loss=look)
    assert seen and not any(seen)


def test_a_checkpoint_that_cannot_be_removed_is_left(tmp_path, monkeypatch):
    config = begun(tmp_path)

    def refuse(path, *rest, **options):
        raise PermissionError(13, "in use")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.warns(UserWarning, match="stays"):
        model = resumed(tmp_path, config)
    monkeypatch.undo()
    assert same_weights(model, whole_run(config))
    # Renamed out of the way: the next resume does not take it for the last.
    assert same_weights(resumed(tmp_path, config), model)


# Numbers that are not finite --------------------------------------------------


def test_weights_that_are_not_finite_replace_no_checkpoint(tmp_path):
    calls = iter(range(100))

    def once_nan(model, batch):
        wrong = math.nan if next(calls) == 7 else 1.0
        return wrong * training.denoising_loss(model, batch)

    config = small_run(steps=40, save_every=4, log_every=10)
    with pytest.raises(FloatingPointError, match="after step 8"):
        training.train(
            tiny_model(),
            *tiny_texts(),
            config,
            loss=once_nan,
            folder=tmp_path,
        )
    assert [p.name for p in tmp_path.glob("step-*")] == ["step-0000004"]
    assert same_weights(resumed(tmp_path, config), whole_run(config))


def test_a_rate_that_blows_up_leaves_no_checkpoint(tmp_path):
    config = small_run(learning_rate=1e20, clip=0.0, save_every=4)
    with pytest.raises(FloatingPointError):
        training.train(tiny_model(), *tiny_texts(), config, folder=tmp_path)
    assert not list(tmp_path.glob("step-*"))


# No silent wrong number -------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [torch.uint8, torch.int32, torch.int64, torch.float32]
)
def test_a_mask_of_zeros_and_ones_is_a_mask(kind):
    ids, mask = tiny_texts()
    config, last = small_run(steps=4), []
    for given in (mask, mask.to(kind)):
        model = tiny_model(clean_rate=0.5)
        training.train(model, ids, given, config)
        last.append(model)
    assert same_weights(*last)


def test_another_mask_is_refused():
    ids, mask = tiny_texts()
    with pytest.raises(ValueError, match="must hold 0 and 1"):
        training.train(tiny_model(), ids, mask * 2.0, small_run())
    with pytest.raises(ValueError, match="whole numbers"):
        training.train(tiny_model(), ids.float(), mask, small_run())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("clip", -1.0),
        ("clip", math.inf),
        ("warmup", -3),
        ("warmup", 1.5),
        ("final_fraction", -1),
        ("final_fraction", 1.5),
        ("save_every", -2),
        ("learning_rate", math.inf),
        ("learning_rate", math.nan),
        ("learning_rate", "1e-3"),
        ("steps", 2.5),
        ("steps", True),
        ("seed", -1),
        ("weight_decay", -0.1),
        ("embedding_rate", math.nan),
        ("ema", math.nan),
        ("ema", -0.5),
        ("precision", None),
    ],
)
def test_every_setting_is_checked(field, value):
    with pytest.raises((ValueError, TypeError), match=field):
        small_run(**{field: value})


def test_numbers_of_numpy_are_numbers():
    small_run(steps=numpy.int64(3), learning_rate=numpy.float32(0.1))


# What the surroundings must not decide ----------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"),
        ("ACCELERATE_DYNAMO_BACKEND", "EAGER"),
        ("ACCELERATE_USE_FSDP", "true"),
        ("LOCAL_RANK", "0"),
    ],
)
def test_variables_left_behind_change_nothing(name, value, monkeypatch):
    from accelerate.state import AcceleratorState

    config = small_run()
    expected = whole_run(config)
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv(name, value)
    assert same_weights(whole_run(config), expected)
    assert os.environ[name] == value


def test_one_of_several_processes_needs_an_accelerator(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="hand an accelerate"):
        whole_run(small_run())


def test_an_accelerator_with_a_recipe_of_its_own_is_refused():
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    with pytest.raises(ValueError, match="gradient_accumulation_steps=4"):
        whole_run(small_run(), accelerator=accelerator)
    whole_run(small_run(), accelerator=Accelerator(cpu=True))


def test_a_readers_random_numbers_are_left_alone(tmp_path):
    config, drawn = begun(tmp_path), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        numpy.random.seed(seed)
        model = tiny_model()
        state = torch.get_rng_state(), random.getstate()
        whole_run(config)
        torch.set_rng_state(state[0])  # tiny_model seeds, too
        resumed(tmp_path, config, model)
        assert torch.equal(torch.get_rng_state(), state[0])
        assert random.getstate() == state[1]
        drawn.append(numpy.random.rand())
    assert drawn[0] != drawn[1]


# Stopped ----------------------------------------------------------------------


def test_ctrl_c_keeps_the_step_that_it_ends(tmp_path):
    calls = iter(range(100))

    def pressed(model, batch):
        if next(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return training.denoising_loss(model, batch)

    config, handler = small_run(ema=0.9), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        training.train(
            tiny_model(), *tiny_texts(), config, loss=pressed, folder=tmp_path
        )
    assert signal.getsignal(signal.SIGINT) is handler
    assert [p.name for p in tmp_path.glob("step-*")] == ["step-0000004"]
    assert same_weights(resumed(tmp_path, config), whole_run(config))


def test_ctrl_c_twice_or_without_a_folder_acts_at_once(tmp_path):
    for folder, times in ((tmp_path / "run", 2), (None, 1)):
        calls = []

        def pressed(model, batch, calls=calls, times=times):
            calls.append(True)
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
            return training.denoising_loss(model, batch)

        with pytest.raises(KeyboardInterrupt):
            training.train(
                tiny_model(),
                *tiny_texts(),
                small_run(),
                loss=pressed,
                folder=folder,
            )
        assert len(calls) == 1


KILLS = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
import torch
from dblm_lib import cli
import dblm_lib.denoiser, dblm_lib.training, accelerate, transformers
torch.set_num_threads(1)
arguments = {arguments!r}
def run(out, resume):
    words = ["--out", out, "--resume"] if resume else (
        ["--out", out, *arguments])
    child = os.fork()
    if child:
        return child
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os._exit(cli.main(["train", *words]))
# The same in one go: it says how long a run takes, too.
start = time.monotonic()
_, status = os.waitpid(run({whole!r}, False), 0)
assert status == 0, status
seconds = time.monotonic() - start
generator = torch.Generator().manual_seed({seed})
killed, resume = 0, False
while killed < {times}:
    out = {out!r} + f"-{{killed // 10}}"
    resume = os.path.exists(os.path.join(out, "run.json"))
    child = run(out, resume)
    wait = torch.rand(1, generator=generator).item() * seconds
    end = time.monotonic() + wait
    ended = 0
    while time.monotonic() < end and not ended:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.002)
    if ended:
        assert status == 0, status
        # Done before it could be killed: killed while it is done again.
        child = run(out, True)
        time.sleep(wait / 20)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    killed += 1
for i in range(-(-{times} // 10)):
    out = {out!r} + f"-{{i}}"
    resume = os.path.exists(os.path.join(out, "run.json"))
    _, status = os.waitpid(run(out, resume), 0)
    assert status == 0, status
print("killed", killed)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("recipe", ["proposal", "repaired"])
def test_killed_at_random_moments_nothing_is_lost(tmp_path, recipe):
    """SIGKILL at random moments of `dblm train`, up to ten a run.

    ``DBLM_KILLS`` says how many; at every release fifty.
    """
    stories = tmp_path / "stories.txt"
    words = [f"Anna felt sad. The {w} went home." for w in ("dog", "cat")]
    stories.write_text("\n\n".join(words * 20), "utf-8")
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"moments drawn with seed {seed}")
    code = KILLS.format(
        root=str(Path(__file__).resolve().parents[1]),
        arguments=["--text", str(stories), "--steps", "30"]
        + ["--batch-size", "4", "--seq-len", "16", "--recipe", recipe],
        whole=str(tmp_path / "whole"),
        out=str(tmp_path / "run"),
        seed=seed,
        times=int(os.environ.get("DBLM_KILLS", "12")),
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    whole = resources.sha256(tmp_path / "whole/final/model.safetensors")
    runs = sorted(tmp_path.glob("run-*"))
    assert runs
    for run in runs:
        final = run / "final" / "model.safetensors"
        assert resources.sha256(final) == whole, run
        parts = {".": 30}
        if recipe == "repaired":
            parts = {"fit": 3, "neighbours": 5, "together": 22}
        for part, count in parts.items():
            left = sorted(path.name for path in (run / part).iterdir())
            steps = [name for name in left if name.startswith("step-")]
            assert steps == [f"step-{count:07d}"], left
            drafts = (".draft", ".trash")
            assert not [name for name in left if name.startswith(drafts)]
