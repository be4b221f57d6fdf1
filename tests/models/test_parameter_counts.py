"""Numbers of parameters, written out layer by layer from the released definitions."""

from __future__ import annotations

import itertools

import pytest
import torch

from prunelimit.models import MODELS, prunable_names


def linear(*widths: int) -> tuple[int, int]:
    """Weights, and biases, of a chain of linear layers."""
    return sum(a * b for a, b in itertools.pairwise(widths)), sum(widths[1:])


def alexnet_counts() -> tuple[int, int]:
    """model.py of the paper's released code: five convolutions with biases, then 256*5*5-4096-4096-10."""
    convolutions = 3 * 96 * 11**2 + 96 * 256 * 5**2 + 256 * 384 * 9 + 384 * 384 * 9 + 384 * 256 * 9
    weights, biases = linear(256 * 5 * 5, 4096, 4096, 10)
    return convolutions + weights, 96 + 256 + 384 + 384 + 256 + biases


def vgg16_counts() -> tuple[int, int]:
    """model.py of the released code: cfg["VGG16"], convolutions with biases and two BN vectors each, then 512-10."""
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    return 9 * sum(a * b for a, b in itertools.pairwise(widths)) + 512 * 10, 3 * sum(widths[1:]) + 10


def resnet18_counts(classes: int) -> tuple[int, int]:
    """model.py of the released code: a 3x3 stem, four stages of two blocks, 1x1 projections where a stage begins."""
    stages = [64, 128, 256, 512]
    weights, norms = 3 * 64 * 9, 64
    for before, after in itertools.pairwise([64, *stages]):
        weights += 9 * (before * after + 3 * after * after)
        norms += 4 * after
        if before != after:
            weights += before * after
            norms += after
    return weights + 512 * classes, 2 * norms + classes


def resnet50_counts(classes: int) -> tuple[int, int]:
    """model.py of the released code: bottlenecks of 1x1, 3x3 and 1x1 with four times the channels, 3-4-6-3 of them."""
    weights, norms, before = 3 * 64 * 9, 64, 64
    for width, blocks in zip([64, 128, 256, 512], [3, 4, 6, 3], strict=True):
        weights += before * 4 * width  # the projection of the first block: the first stage has one as well
        norms += 4 * width
        for _ in range(blocks):
            weights += before * width + 9 * width * width + width * 4 * width
            norms += 6 * width
            before = 4 * width
    return weights + 2048 * classes, 2 * norms + classes


FC12 = (3072, 1000, 900, 800, 750, 700, 650, 600, 500, 400, 200, 100, 10)


@pytest.mark.parametrize(
    ("name", "shape", "classes", "counts", "total"),
    [
        ("fc5", (3, 32, 32), 10, linear(3072, 1000, 600, 300, 100, 10), 3_885_010),
        ("fc12", (3, 32, 32), 10, linear(*FC12), 7_269_610),
        ("alexnet", (3, 32, 32), 10, alexnet_counts(), 46_787_978),
        ("vgg16", (3, 32, 32), 10, vgg16_counts(), 14_728_266),
        ("resnet18", (3, 32, 32), 100, resnet18_counts(100), 11_220_132),
        ("resnet50", (3, 32, 32), 100, resnet50_counts(100), 23_705_252),
        # The stem and the mean over pixels do not care how large an image is.
        ("resnet18", (3, 64, 64), 200, resnet18_counts(200), 11_271_432),
        ("resnet50", (3, 64, 64), 200, resnet50_counts(200), 23_910_152),
        # WoodFisher's released class with its biases switched on; there they can be switched off, which leaves 32,360.
        ("mlpnet", (1, 28, 28), 10, linear(784, 40, 20, 10), 32_430),
    ],
)
def test_prunable_and_other_parameters(name, shape, classes, counts, total):
    with torch.device("meta"):
        model = MODELS[name](shape, classes)
    named = dict(model.named_parameters())
    prunable = sum(named[n].numel() for n in prunable_names(model))
    assert (prunable, sum(p.numel() for p in named.values()) - prunable) == counts
    assert sum(counts) == total
