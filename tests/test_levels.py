"""What a denoiser answers at one time: against counting by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dblm_lib import levels, noising, schedules

GEN = torch.Generator().manual_seed
COSINE = schedules.Cosine()


def texts(count=4, length=6, vocab=12, dim=5):
    table = noising.random_table(vocab, dim, GEN(0))
    ids = torch.randint(vocab, (count, length), generator=GEN(1))
    mask = torch.rand(count, length, generator=GEN(2)) < 0.7
    return table, ids, mask


@pytest.mark.parametrize("rescale", [True, False])
def test_an_answer_is_what_counting_by_hand_gives(rescale):
    table, ids, mask = texts()
    table = table * torch.linspace(0.2, 3, len(table))[:, None]
    t, seen = 0.6, []

    def denoise(zt, time):
        seen.append((zt, time))
        return 0.5 * zt

    found = levels.answer(
        denoise, table, COSINE, ids, mask, t, GEN(7), rescale
    )
    ((zt, time),) = seen
    alpha, sigma = (float(f(t)) for f in (COSINE.alpha, COSINE.sigma))
    eps = torch.randn(*ids.shape, table.shape[1], generator=GEN(7))
    assert time == t and torch.allclose(zt, alpha * table[ids] + sigma * eps)
    right = alone = squares = 0
    for i, j in mask.nonzero().tolist():
        bare = zt[i, j] / alpha if rescale else zt[i, j]
        near = [(table - z).norm(dim=1).argmin() for z in (zt[i, j] / 2, bare)]
        right += int(near[0] == ids[i, j])
        alone += int(near[1] == ids[i, j])
        squares += (zt[i, j] / 2 - table[ids[i, j]]).square().mean().item()
    count = mask.sum().item()
    assert (found.right, found.alone) == (right, alone)
    assert found.accuracy == right / count and found.baseline == alone / count
    assert found.mse().item() == pytest.approx(squares / count, rel=1e-5)
    assert found.squared_error().sum().item() == pytest.approx(squares)
    assert torch.equal(found.ids, ids[mask])
    assert torch.equal(found.clean, table[ids][mask])


def test_a_guesser_rounds_by_its_own_rule():
    table, ids, mask = texts()

    class Guesser:
        def __call__(self, zt, t):
            self.ids = (ids + 1) % len(table)
            return table[ids]

    found = levels.answer(Guesser(), table, COSINE, ids, mask, 0.1, GEN(0))
    assert found.right == 0 and found.mse() == 0
    assert torch.equal(found.found, (ids[mask] + 1) % len(table))


TYPES = (torch.bool, torch.uint8, torch.int64, torch.float32, torch.float64)


@given(st.lists(st.booleans(), min_size=6, max_size=6))
def test_a_mask_of_any_type_is_the_same_mask(bits):
    table, ids, _ = texts(2, 3)
    real = torch.tensor(bits).view(2, 3)
    rows = []
    for kind in TYPES:
        mask = levels.as_mask(real.to(kind), ids)
        assert mask.dtype == torch.bool and torch.equal(mask, real)
        found = levels.answer(
            lambda zt, t: zt, table, COSINE, ids, real.to(kind), 0.5, GEN(3)
        )
        rows.append((found.right, found.alone, found.ids.tolist()))
    assert all(row == rows[0] for row in rows)
    assert torch.equal(levels.as_mask(real.int().tolist(), ids), real)
    assert torch.equal(levels.as_mask(real.numpy(), ids), real)


@pytest.mark.parametrize("value", [2, -1, 255, 0.5, math.nan, math.inf])
def test_a_mask_of_other_values_is_refused(value):
    mask = torch.ones(2, 3, dtype=torch.float64)
    mask[1, 1] = value
    with pytest.raises(ValueError, match=f"got {value}"):
        levels.as_mask(mask, torch.zeros(2, 3))


@pytest.mark.parametrize("shape", [(3,), (3, 2), (1, 3), (2, 3, 1)])
def test_a_mask_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="must have shape"):
        levels.as_mask(torch.ones(shape), torch.zeros(2, 3))
