"""Muon, held against singular values and against PyTorch's own."""

import copy

import pytest
import torch

from dblm_lib import muon

SHAPES = pytest.mark.parametrize("shape", [(24, 24), (16, 48), (48, 16)])


def matrix(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@SHAPES
def test_singular_values_are_about_one_and_directions_stay(shape):
    update = matrix(*shape)
    found = muon.orthogonal(update)
    assert found.shape == update.shape
    u, _, v = torch.linalg.svd(update.double(), full_matrices=False)
    inside = u.T @ found.double() @ v.T
    values = inside.diagonal()
    assert 0.3 < values.min() and values.max() < 1.3
    # Nothing is turned: in the old directions the new matrix is diagonal.
    assert (inside - torch.diag(values)).abs().max() < 1e-4


@SHAPES
def test_size_does_not_matter_and_zero_stays_zero(shape):
    update = matrix(*shape)
    torch.testing.assert_close(
        muon.orthogonal(update), muon.orthogonal(1e3 * update)
    )
    assert not muon.orthogonal(torch.zeros(shape)).any()


@SHAPES
def test_steps_are_those_of_torch(shape):
    """Five steps beside torch.optim.Muon, which computes in bf16."""
    start = torch.nn.Parameter(matrix(*shape))
    ours, theirs = copy.deepcopy(start), copy.deepcopy(start)
    settings = {"lr": 0.02, "weight_decay": 0.1}
    optimizers = [
        muon.Muon([ours], **settings),
        torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **settings),
    ]
    for step in range(5):
        for p in (ours, theirs):
            p.grad = matrix(*shape, seed=step + 1)
        for optimizer in optimizers:
            optimizer.step()
    moved = (theirs - start).norm()
    assert moved > 0.1
    assert (ours - theirs).norm() < 0.02 * moved


def test_it_minimises():
    goal, p = matrix(8, 12), torch.nn.Parameter(torch.zeros(8, 12))
    optimizer = muon.Muon([p], lr=0.05, weight_decay=0.0)

    def closure():
        optimizer.zero_grad()
        loss = (p - goal).square().mean()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(120)]
    assert losses[-1] < 0.1 * losses[0]


def test_what_is_no_matrix_is_refused():
    with pytest.raises(ValueError, match="only a matrix"):
        muon.orthogonal(torch.zeros(3))
    with pytest.raises(ValueError, match=r"shape \(3,\) to AdamW"):
        muon.Muon([torch.nn.Parameter(torch.zeros(3))])


def test_a_parameter_without_a_gradient_is_left_alone():
    p = torch.nn.Parameter(matrix(3, 4))
    before = p.detach().clone()
    muon.Muon([p]).step()
    assert torch.equal(p, before)
