"""Distillation: the student's own path, and where the teacher leads."""

import copy
import re
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from dblm_lib import (
    decoding,
    denoiser,
    distillation,
    posterior,
    resources,
    training,
)

VOCAB, LENGTH, DIM = 30, 8, 16
SAMPLER = {
    "step": "deterministic",
    "stagger": 1.5,
    "power": 1.2,
    "temperature": 0.7,
    "likelihood_weight": 0.4,
}


def small_model(seed=0, **options):
    torch.manual_seed(seed)
    options = {
        "vocab_size": VOCAB,
        "n_embd": DIM,
        "n_layer": 1,
        "n_head": 2,
        "n_positions": 16,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "head": "mixture",
        "loss": "ce",
        "normalise_embeddings": True,
        "input_std": 0.2,
        "likelihood": True,
        "self_conditioning": 0.5,
        "clean_rate": 0.3,
        "sampler": SAMPLER,
    } | options
    model = denoiser.DBLM(denoiser.DBLMConfig(**options)).eval()
    with torch.no_grad():  # a guess that is an input must make a difference
        model.project_guess.weight.normal_()
    return model


def noise(seed=3, count=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, LENGTH, DIM, generator=generator)


def texts(count=6):
    generator = torch.Generator().manual_seed(9)
    return torch.randint(VOCAB, (count, LENGTH), generator=generator)


def path_of(model, steps, seed=3, count=5):
    """The path of `decoding.generate_ids`, which begins with `noise`."""
    path = decoding.Trajectory()
    decoding.generate_ids(
        model,
        max_length=LENGTH,
        num_return_sequences=count,
        num_steps=steps,
        generator=torch.Generator().manual_seed(seed),
        trajectory=path,
    )
    return path


@pytest.mark.parametrize("looks", [0, 1, 5, 11])
def test_one_who_takes_the_teachers_steps_arrives_where_it_does(looks):
    teacher = small_model()
    made = distillation.lesson(teacher, teacher, noise(), looks, 1, fine=12)
    path = path_of(teacher, 12)
    assert torch.equal(made["answers"], path.ids[-1])
    torch.testing.assert_close(made["points"], path.zt[looks])
    assert len(made["answers"].unique()) > 3  # not all the same token


def test_points_are_moved_in_the_precision_of_the_sampler(monkeypatch):
    """With one time for all positions a step's factors are plain numbers."""
    teacher = small_model(sampler={**SAMPLER, "stagger": 0.0})
    taken = []
    step = decoding.deterministic_step

    def noted(x0_hat, zt, schedule, t, s):
        taken.append(schedule.alpha(t).shape)
        return step(x0_hat, zt, schedule, t, s)

    monkeypatch.setattr("dblm_lib.decoding.deterministic_step", noted)
    made = distillation.lesson(teacher, teacher, noise(), 5, 1, fine=12)
    assert taken == [()] * 12
    path = path_of(teacher, 12)
    torch.testing.assert_close(made["points"], path.zt[5])
    assert torch.equal(made["answers"], path.ids[-1])
    assert made["times"].unique().tolist() == [path.times[5]]


@pytest.mark.parametrize("looks", [1, 2, 3])
def test_a_student_stands_on_its_own_path(looks):
    """Of 4 steps, where the teacher has 12; not on the teacher's path."""
    student, teacher = small_model(1), small_model(0)
    made = distillation.lesson(student, teacher, noise(), looks, 3, fine=12)
    path = path_of(student, 4)
    torch.testing.assert_close(made["points"], path.zt[looks])
    torch.testing.assert_close(made["guesses"], path.x0_hat[looks - 1])
    other = path_of(teacher, 4)
    assert (made["points"] - other.zt[looks]).abs().max() > 0.01
    times = decoding.staggered_times(4, LENGTH, 1.5)[looks, :, 0] ** 1.2
    assert made["times"].shape == (5, LENGTH)
    torch.testing.assert_close(made["times"][2], times)


def test_the_teacher_goes_on_from_there():
    """By hand: its steps, with the student's last guess as its first."""
    student, teacher = small_model(1), small_model(0)
    made = distillation.lesson(student, teacher, noise(), 2, 4, fine=12)
    zt, guess = made["points"], made["guesses"]
    times = decoding.staggered_times(12, LENGTH, 1.5)[8:] ** 1.2
    for t, s in pairwise(times):
        with torch.no_grad():
            logits = teacher(
                zt,
                t[:, 0].expand(5, LENGTH),
                previous=guess,
                likelihood_weight=0.4,
            ).logits
        guess = posterior.token_mean(logits / 0.7, teacher.table())
        moved = decoding.deterministic_step(guess, zt, teacher.schedule, t, s)
        zt = torch.where(s < t, moved, zt)
    assert torch.equal(made["answers"], logits.argmax(-1))


def test_what_is_given_stays():
    """As in `decoding.generate_ids`, which is handed the same beginning."""
    teacher, ids = small_model(), texts(5)
    keep = (torch.arange(LENGTH) < 3).expand(5, LENGTH)
    made = distillation.lesson(
        teacher, teacher, noise(), 5, 1, fine=12, ids=ids, keep=keep
    )
    path = decoding.Trajectory()
    decoding.generate_ids(
        teacher,
        ids[:, :3],
        max_length=LENGTH,
        num_steps=12,
        generator=torch.Generator().manual_seed(3),
        trajectory=path,
    )
    torch.testing.assert_close(made["points"], path.zt[5])
    assert (made["times"][:, :3] == 0).all() and made["times"][:, 3:].all()
    assert (made["answers"][:, :3] == distillation.NOTHING).all()
    assert torch.equal(made["answers"][:, 3:], path.ids[-1][:, 3:])


def test_who_has_not_looked_has_no_guess():
    student, teacher = small_model(1), small_model(0)
    made = distillation.lesson(student, teacher, noise(), 0, 4, fine=12)
    assert torch.equal(made["points"], noise())
    assert not made["guesses"].any() and (made["times"] == 1).all()
    assert torch.equal(made["answers"], path_of(teacher, 12).ids[-1])


@pytest.mark.parametrize("looks, stride", [(3, 4), (-1, 4), (1, 5), (12, 1)])
def test_steps_that_do_not_fit_are_refused(looks, stride):
    model = small_model()
    with pytest.raises(ValueError, match=f"{looks} steps of {stride}"):
        distillation.lesson(model, model, noise(), looks, stride, fine=12)


def test_a_prompt_without_its_places_is_refused():
    model = small_model()
    with pytest.raises(ValueError, match="ids and keep belong together"):
        distillation.lesson(model, model, noise(), 1, ids=texts(5))
    keep = torch.zeros(5, LENGTH + 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="keep"):
        distillation.lesson(model, model, noise(), 1, ids=texts(5), keep=keep)


@pytest.mark.parametrize("name", ["rows", "every", "kept"])
def test_lessons_come_in_whole_numbers(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        distillation.Lessons(small_model(), **{name: 0})


@pytest.mark.parametrize("sampler", [{}, {**SAMPLER, "step": "ancestral"}])
def test_a_sampler_with_chance_is_refused(sampler):
    model = small_model(sampler=sampler)
    with pytest.raises(ValueError, match=re.escape("{'step': 'determin")):
        distillation.lesson(model, model, noise(), 1, 4)
    with pytest.raises(ValueError, match="by chance"):
        distillation.Lessons(model)


# --- batches ------------------------------------------------------------------


def test_lessons_are_kept_and_learned_from_again():
    model = small_model()
    draw = distillation.Lessons(
        small_model(1), rows=4, every=3, kept=2, stride=2, fine=8
    )
    made, original = [], draw.make

    def noted(*arguments):
        made.append(original(*arguments))
        return made[-1]

    draw.make = noted
    model.train()
    for step in range(12):
        batch = draw(model, texts(), torch.Generator().manual_seed(step))
        assert len(made) == step // 3 + 1 and model.training
        assert batch["t"].shape == (6, LENGTH)  # texts with ordinary noise
        assert batch["points"].shape == (4, LENGTH, DIM)
        rows = [
            (points, answers)
            for lessons in made[-2:]
            for points, answers in zip(lessons["points"], lessons["answers"])
        ]
        for points, answers in zip(batch["points"], batch["answers"]):
            assert any(
                torch.equal(points, p) and torch.equal(answers, a)
                for p, a in rows
            )


def test_all_looks_are_drawn():
    model = small_model()
    draw = distillation.Lessons(model, rows=1, stride=2, fine=8)
    generator = torch.Generator().manual_seed(0)
    found = set()
    for _ in range(60):
        made = draw.make(model, texts(), generator)
        found.add(round(made["times"][0, -1].item(), 3))
    times = decoding.staggered_times(8, LENGTH, 1.5)[::2, -1, 0] ** 1.2
    assert found == {round(t.item(), 3) for t in times[:-1]}


def test_some_lessons_have_a_beginning():
    """A share clean_rate, of all lengths up to three quarters."""
    model = small_model()
    draw = distillation.Lessons(model, rows=3000, stride=2, fine=2)
    ids = texts()
    made = draw.make(model, ids, torch.Generator().manual_seed(0))
    given = made["answers"] == distillation.NOTHING
    assert (given.int().diff(dim=1) <= 0).all()  # from the left
    lengths = given.sum(1)
    assert (lengths > 0).double().mean().item() == pytest.approx(0.3, abs=0.03)
    counts = lengths[lengths > 0].bincount(minlength=7)[1:]
    assert len(counts) == 6 == LENGTH * 3 / 4
    assert counts.min() > 100 and (made["times"][given] == 0).all()
    clean = torch.cat([model.embed(ids), model.embed(ids)[:1]])
    for points, known in zip(made["points"][:50], given[:50]):
        same = (points == clean).all(-1) | ~known
        assert same.all(1).any()  # one of the texts


@pytest.fixture
def says_bf16(monkeypatch):
    """Give a function that makes the hardware say what it computes in."""

    def say(fast):
        monkeypatch.setattr(resources, "has_fast_bf16", lambda device: fast)

    return say


def lessons_in(precision, model):
    draw = distillation.Lessons(
        model, rows=4, stride=2, fine=8, precision=precision
    )
    return draw.make(model, texts(), torch.Generator().manual_seed(0))


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_lessons_are_made_in_the_precision_that_is_asked_for(says_bf16):
    """The hardware has no say, unless "auto" asks it."""
    model, made = small_model(), {}
    for fast in (False, True):
        says_bf16(fast)
        for precision in resources.PRECISIONS:
            made[precision, fast] = lessons_in(precision, model)
    for precision in ("fp32", "bf16"):
        assert same(made[precision, False], made[precision, True])
    assert not same(made["fp32", True], made["bf16", True])
    assert same(made["auto", False], made["fp32", False])
    assert same(made["auto", True], made["bf16", True])


def test_a_distillation_in_fp32_is_the_same_on_all_hardware(says_bf16):
    """Chapter 7 prints the losses of one; they were red where bf16 is."""
    losses = []
    for fast in (False, True):
        says_bf16(fast)
        teacher = small_model()
        config = training.TrainConfig(
            steps=4, batch_size=4, learning_rate=1e-2, warmup=1, log_every=1
        )
        history = training.train(
            copy.deepcopy(teacher),
            texts(8),
            torch.ones(8, LENGTH, dtype=torch.bool),
            config,
            loss=distillation.distillation_loss,
            draw=distillation.Lessons(teacher, rows=4, stride=2, fine=8),
            progress=False,
        )
        losses.append(history.loss)
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_a_precision_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="fp32, bf16 or auto, not 'fp8'"):
        distillation.Lessons(small_model(), precision="fp8")


def test_in_the_loss_every_text_counts_the_same():
    model = small_model()
    draw = distillation.Lessons(small_model(1), rows=4, fine=8)
    ids, generator = texts(), torch.Generator().manual_seed(0)
    batch = {"ids": ids, "mask": torch.ones_like(ids, dtype=torch.bool)}
    batch |= draw(model, ids, generator)
    weight = (~batch["keep"]).float()
    batch["weight"] = weight / weight.sum()
    logits = model(
        batch["points"],
        batch["times"],
        previous=batch["guesses"],
        likelihood_weight=0.4,
    ).logits
    asked = batch["answers"] != distillation.NOTHING
    assert not asked.all()
    nats = F.cross_entropy(logits[asked], batch["answers"][asked])
    fresh = training.cross_entropy_loss(model, batch)
    expected = (4 * nats + 6 * fresh) / 10
    loss = distillation.distillation_loss(model, batch)
    torch.testing.assert_close(loss, expected)


def test_a_student_learns_to_arrive_in_one_step_and_the_teacher_stays():
    """One step of the student stands for eight of the teacher."""
    teacher = small_model(sampler={**SAMPLER, "stagger": 0.0})
    student = copy.deepcopy(teacher)
    before = copy.deepcopy(teacher.state_dict())

    def agreement():
        made = distillation.lesson(
            student, teacher, noise(11, 200), 0, 8, fine=8
        )
        with torch.no_grad():
            logits = student(made["points"], 1.0).logits
        return (logits.argmax(-1) == made["answers"]).double().mean()

    first = agreement()
    config = training.TrainConfig(
        steps=150, batch_size=8, learning_rate=1e-2, warmup=5
    )
    training.train(
        student,
        texts(40),
        torch.ones(40, LENGTH, dtype=torch.bool),
        config,
        loss=distillation.distillation_loss,
        draw=distillation.Lessons(teacher, rows=32, every=1, stride=8, fine=8),
        progress=False,
    )
    assert agreement() > first + 0.1
    after = teacher.state_dict()
    assert all(torch.equal(after[name], v) for name, v in before.items())


def test_a_resumed_distillation_ends_with_the_same_bits(tmp_path):
    """Lessons that were made before it was stopped are not made anew."""
    teacher = small_model()
    config = training.TrainConfig(
        steps=7, batch_size=4, warmup=1, log_every=1, save_every=3
    )

    class Stop(Exception):
        pass

    calls = iter(range(100))

    def until_five(model, batch):
        if next(calls) == 5:
            raise Stop
        return distillation.distillation_loss(model, batch)

    def distil(loss=distillation.distillation_loss, **options):
        student = copy.deepcopy(teacher)
        training.train(
            student,
            texts(8),
            torch.ones(8, LENGTH, dtype=torch.bool),
            config,
            loss=loss,
            draw=distillation.Lessons(
                teacher, rows=4, every=2, kept=3, stride=2, fine=8
            ),
            progress=False,
            **options,
        )
        return student.state_dict()

    whole = distil()
    with pytest.raises(Stop):
        distil(until_five, folder=tmp_path)
    resumed = distil(folder=tmp_path, resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
