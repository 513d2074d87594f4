"""Random tokens: steps and corrector against diffusers and exact laws."""

import pytest
import torch
from diffusers import DiscreteDDIMScheduler, EntropyBoundScheduler
from toy_joint import (
    JOINT,
    LENGTH,
    SIZE,
    TEXTS,
    around,
    chi_square,
    likelihoods,
    plain,
    seeded,
    texts,
)

from dblm_lib import processes, renoising

ODD = 60.0  # see `chi_square`
UNIFORM = processes.Uniform(SIZE)
EMPTY = torch.zeros(6000, LENGTH).long()


def network(length, vocab_size, seed=0):
    """A network that looks at everything, and means nothing."""
    shape = (length, vocab_size, length, vocab_size)
    weights = torch.randn(shape, generator=seeded(seed))

    def denoise(ids, t):
        return weights[torch.arange(length), ids].sum(1)

    return denoise


def exact(answer):
    """A perfect network of the toy: `plain` or `around`."""

    def denoise(ids, t):
        return answer(UNIFORM, ids, float(t[0]))

    return denoise


def sample(answer=plain, rows=6000, **options):
    options.setdefault("generator", seeded(1))
    return renoising.sample_uniform(
        exact(answer), EMPTY[:rows], SIZE, **options
    )


def noised_law(t):
    """p_t of the 27 texts of plain tokens, and draws from it."""
    law = likelihoods(UNIFORM, TEXTS, t).prod(-1) @ JOINT
    drawn = torch.multinomial(law, 20000, True, generator=seeded(2))
    return law, TEXTS[drawn]


# --- laws -------------------------------------------------------------------


def test_many_steps_give_the_joint_law():
    assert chi_square(sample(num_steps=60).ids) < ODD


def test_leave_one_out_answers_give_it_too_if_they_are_named_so():
    """The same draws; and taken for the plain posterior they are wrong."""
    bare = sample(num_steps=25)
    named = sample(around, num_steps=25, leave_one_out=True)
    same = (bare.ids == named.ids).double().mean()
    assert float(same) > 0.999
    assert chi_square(sample(around, num_steps=25).ids) > 3 * ODD


def test_one_step_is_exact_in_each_token():
    """From draws at t, the law of a token at s, for all contexts at once."""
    t, s = 0.6, 0.4
    _, zt = noised_law(t)
    zs = renoising.uniform_step(
        plain(UNIFORM, zt, t), zt, 1 - s, 1 - t, seeded(3)
    )
    want = noised_law(s)[0] @ torch.nn.functional.one_hot(
        TEXTS, SIZE
    ).double().flatten(1)
    got = torch.nn.functional.one_hot(zs, SIZE).double().flatten(1).mean(0)
    torch.testing.assert_close(got, want, atol=0.012, rtol=0)


def test_the_corrector_keeps_the_law_if_it_chooses_blindly():
    """And does not if it prefers tokens that are far behind another."""
    t = 0.5
    law, zt = noised_law(t)
    assert chi_square(zt, law) < ODD
    moved = {}
    for select in renoising.SELECTIONS:
        z, generator = zt, seeded(5)
        for _ in range(4):
            z = renoising.uniform_correct(
                plain(UNIFORM, z, t), z, 1 - t, 1, select, generator
            )
        assert float((z != zt).double().mean()) > 0.1
        moved[select] = chi_square(z, law)
    assert moved["random"] < ODD
    assert moved["margin"] > 3 * ODD


def test_the_corrector_brings_few_steps_closer():
    bare = sample(num_steps=4)
    mended = sample(num_steps=4, corrector_steps=4, select="random")
    assert chi_square(mended.ids) < 0.7 * chi_square(bare.ids)
    assert bool((bare.nfe == 4).all()) and bare.calls == 4
    # None after the last step, where nothing is left to correct.
    assert bool((mended.nfe == 4 + 3 * 4).all())


# --- against diffusers ------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_the_step_is_that_of_diffusers(temperature):
    scheduler = DiscreteDDIMScheduler(num_inference_steps=8)
    zt = torch.randint(9, (6, 11), generator=seeded())
    for k in range(8):
        logits = 2 * torch.randn(6, 11, 9, generator=seeded(k))
        want = scheduler.step(
            logits, k, zt, temperature=temperature, generator=seeded(k + 1)
        ).prev_sample
        got = renoising.uniform_step(
            logits, zt, (k + 1) / 8, k / 8, seeded(k + 1), temperature,
            torch.float32,
        )  # fmt: skip
        assert torch.equal(got, want)
        zt = want


@pytest.mark.parametrize(
    ("select", "theirs"),
    [("margin", "lowest_log_margin"), ("random", "random")],
)
@pytest.mark.parametrize("count", [1, 3])
def test_the_corrector_is_that_of_diffusers(select, theirs, count):
    scheduler = DiscreteDDIMScheduler(
        num_inference_steps=8, corrector_k=count, corrector_selection=theirs
    )
    zt = torch.randint(9, (6, 11), generator=seeded())
    for k in range(7):
        logits = 2 * torch.randn(6, 11, 9, generator=seeded(k))
        want = scheduler.step_correct(
            logits, k, zt, generator=seeded(k + 1)
        ).prev_sample
        got = renoising.uniform_correct(
            logits, zt, (k + 1) / 8, count, select, seeded(k + 1)
        )
        assert torch.equal(got, want)
        assert int((got != zt).sum(1).max()) <= count
        zt = want


def test_the_loop_is_that_of_diffusers():
    """Step by step from the same noise, with the same generator."""
    denoise, generator = network(10, 7), seeded(4)
    scheduler = DiscreteDDIMScheduler(num_inference_steps=6)
    zt = torch.randint(7, (5, 10), generator=generator)
    for k in range(6):
        zt = scheduler.step(
            denoise(zt, None), k, zt, temperature=0.8, generator=generator
        ).prev_sample
    course = renoising.sample_uniform(
        denoise, torch.zeros(5, 10).long(), 7, 6, None, seeded(4),
        temperature=0.8, dtype=torch.float32,
    )  # fmt: skip
    assert torch.equal(course.ids, zt)


def test_the_entropy_bound_is_that_of_diffusers():
    """A whole run: temperatures, acceptance and the noise of the rest."""
    denoise, generator = network(10, 7, seed=2), seeded(4)
    scheduler = EntropyBoundScheduler(
        entropy_bound=0.5, t_max=0.8, t_min=0.4, num_inference_steps=6
    )
    zt = torch.randint(7, (5, 10), generator=generator)
    course = renoising.sample_uniform(
        denoise, torch.zeros(5, 10).long(), 7, 6, None, seeded(4),
        step="entropy-bound", temperature=(0.8, 0.4), bound=0.5,
        dtype=torch.float32, record=True,
    )  # fmt: skip
    for k in range(6):
        assert torch.equal(course.canvases[k], zt)
        output = scheduler.step(denoise(zt, None), k, zt, generator=generator)
        zt = output.prev_sample
        assert 0 < int(output.accepted_index.sum()) < 50
    assert torch.equal(course.ids, output.pred_logits.argmax(-1))


# --- the loop ---------------------------------------------------------------


@pytest.mark.parametrize("step", renoising.STEPS)
def test_what_is_given_stays(step):
    canvas = torch.randint(7, (8, 10), generator=seeded())
    keep = torch.zeros(8, 10)
    keep[:, 2:5] = 1
    keep[0] = 1  # all of it
    options = {"corrector_steps": 2} if step == "posterior" else {}
    course = renoising.sample_uniform(
        network(10, 7), canvas, 7, 5, keep, seeded(), step, record=True,
        **options,
    )  # fmt: skip
    assert torch.equal(course.ids[keep == 1], canvas[keep == 1])
    for frame, sure in zip(course.canvases, course.confidence, strict=True):
        assert torch.equal(frame[keep == 1], canvas[keep == 1])
        assert bool((sure[keep == 1] == 1).all())
    assert bool((course.revealed[keep == 1] == 0).all())
    assert bool((course.revealed[keep == 0] >= 1).all())
    assert course.nfe[0] == 0 and course.nfe[1] == course.calls
    assert course.times == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])


def test_a_row_stops_when_it_is_stable_and_sure():
    """A row of sure answers after two steps, one of doubt never."""

    def denoise(ids, t):
        logits = torch.zeros(2, 4, 5)
        logits[0, :, 3] = 30.0
        logits[1, :, 3] = 1.0
        return logits

    course = renoising.sample_uniform(
        denoise, torch.zeros(2, 4).long(), 5, 9, None, seeded(),
        "entropy-bound", stability_threshold=1,
    )  # fmt: skip
    assert course.nfe.tolist() == [2, 9]
    assert bool((course.ids[0] == 3).all())
    both = renoising.sample_uniform(
        denoise, torch.zeros(2, 4).long(), 5, 9, None, seeded(),
        "entropy-bound", stability_threshold=2, confidence_threshold=10.0,
    )  # fmt: skip
    assert both.nfe.tolist() == [3, 3] and both.calls == 3


def test_the_network_is_told_the_time():
    seen = []

    def denoise(ids, t):
        assert t.shape == (3,)
        seen.append(float(t[0]))
        return torch.zeros(*ids.shape, 5)

    renoising.sample_uniform(
        denoise, torch.zeros(3, 2).long(), 5, 4, corrector_steps=1
    )
    want = [1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]
    assert seen == pytest.approx(want)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"step": "posteror"}, ValueError, "did you mean 'posterior'"),
        ({"select": "margn", "corrector_steps": 1}, ValueError, "'margin'"),
        ({"num_steps": 2.5}, TypeError, "num_steps must be a whole number"),
        ({"temperature": (1.0, -1)}, ValueError, "temperature must be"),
        (
            {"step": "entropy-bound", "corrector_steps": 1},
            ValueError,
            "belongs to the step 'posterior'",
        ),
        ({"keep": torch.ones(2, 9)}, ValueError, "keep must have shape"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, error, message):
    options = {"num_steps": 3, **options}
    with pytest.raises(error, match=message):
        renoising.sample_uniform(
            network(4, 5), torch.zeros(2, 4).long(), 5, **options
        )


def test_a_corrector_needs_a_time_inside():
    zt, logits = texts(3), torch.zeros(3, LENGTH, SIZE)
    for alpha in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"inside \(0, 1\)"):
            renoising.uniform_correct(logits, zt, alpha)
