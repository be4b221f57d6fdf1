"""WoodFisher agrees with dense inverses: its choice, both updates, and the block-diagonal form."""

import pytest
import torch

from prunelimit.datasets import DeviceSplit
from prunelimit.errors import PruneLimitError
from prunelimit.models import mlp, prunable_names
from prunelimit.pruning.fisher import EmpiricalFisher, per_example_gradients
from prunelimit.pruning.magnitude import flatten, removed_count
from prunelimit.pruning.woodfisher import WoodFisherSpec, independent_update, saliencies, woodfisher

DAMPING, SPARSITY = 1e-2, 0.6


@pytest.fixture
def case():
    torch.manual_seed(0)
    model = mlp([9, 5, 3]).double()
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 255, (40, 1, 3, 3), generator=generator, dtype=torch.uint8)
    data = DeviceSplit(images, torch.randint(0, 3, (40,), generator=generator), (0.5,), (0.3,), 255)
    return model, data


def dense_answer(model, data, sparsity, *, joint, block=None):
    """Choose and update with dense inverses only."""
    names = prunable_names(model)
    inputs, targets = data.tensors()
    gradients = per_example_gradients(model, inputs.double(), targets, names)
    parameters = [dict(model.named_parameters())[name] for name in names]
    weights, sizes = flatten(parameters), [p.numel() for p in parameters]
    fisher = DAMPING * torch.eye(len(weights), dtype=torch.float64) + gradients.T @ gradients / len(gradients)
    if block is not None:
        owner = torch.cat([1000 * i + torch.arange(size) // block for i, size in enumerate(sizes)])
        fisher = torch.where(owner[:, None] == owner[None, :], fisher, 0.0)
    inverse = torch.linalg.inv(fisher)
    score = weights**2 / (2 * inverse.diagonal())
    removed = torch.zeros(len(weights), dtype=torch.bool)
    removed[score.argsort()[: removed_count(sparsity, len(weights))]] = True
    if joint:
        inner = torch.linalg.solve(inverse[removed][:, removed], weights[removed])
        new = weights - inverse[:, removed] @ inner
    else:
        new = weights.clone()
        for q in removed.nonzero().squeeze(1):
            new -= weights[q] / inverse[q, q] * inverse[:, q]
    return removed, torch.where(removed, 0.0, new)


@pytest.mark.parametrize("block", [None, 1, 7, 1000])
@pytest.mark.parametrize("joint", [False, True])
def test_masks_and_weights_are_those_of_dense_inverses(case, joint, block):
    spec = WoodFisherSpec(examples=40, damping=DAMPING, joint=joint, block=block)
    pruned = woodfisher(*case, SPARSITY, spec)
    removed, new = dense_answer(*case, SPARSITY, joint=joint, block=block)
    assert torch.equal(flatten(list(pruned.masks.values())) == 0, removed)
    torch.testing.assert_close(flatten(list(pruned.weights.values())), new, rtol=1e-7, atol=1e-9)


def test_blocks_change_the_answer(case):
    whole, blocks = (woodfisher(*case, SPARSITY, WoodFisherSpec(damping=DAMPING, block=b)) for b in (None, 7))
    assert (flatten(list(whole.weights.values())) - flatten(list(blocks.weights.values()))).abs().max() > 1e-3


@pytest.fixture
def fisher():
    generator = torch.Generator().manual_seed(3)
    gradients = torch.randn(20, 12, generator=generator, dtype=torch.float64)
    return EmpiricalFisher(gradients, DAMPING), torch.randn(12, generator=generator, dtype=torch.float64)


def test_for_one_weight_saliency_is_the_rise_and_both_updates_agree(fisher):
    matrix, weights = fisher
    kept = torch.arange(12) != 4
    diagonal = matrix.inverse_diagonal()
    alone, joint = independent_update(matrix, weights, kept, diagonal), matrix.refit(weights, kept)
    torch.testing.assert_close(alone, joint, rtol=1e-9, atol=1e-12)
    rise = matrix.loss_rise(joint - weights)
    assert rise == pytest.approx(float(saliencies(weights, diagonal)[4]), rel=1e-9)


def test_for_several_weights_the_joint_update_is_better(fisher):
    matrix, weights = fisher
    kept = torch.arange(12) >= 6
    alone = independent_update(matrix, weights, kept, matrix.inverse_diagonal())
    assert matrix.loss_rise(matrix.refit(weights, kept) - weights) < 0.9 * matrix.loss_rise(alone - weights)


@pytest.mark.parametrize("options", [{"block": 0}, {"block": True}, {"examples": 0}, {"stages": 0}, {"damping": 0.0}])
def test_settings_that_cannot_prune_are_refused(options):
    with pytest.raises(PruneLimitError, match=f"{next(iter(options))}="):
        WoodFisherSpec(**options)
