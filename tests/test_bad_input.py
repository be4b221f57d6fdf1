"""One table of bad input: each is a PruneLimitError that names the argument in a sentence or two."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunelimit import (
    PruneLimitError,
    TrainSpec,
    apply_masks,
    build_model,
    load_dataset,
    magnitude_masks,
    predict_limit,
    train,
)
from prunelimit.curvature import HessianOperator, spectrum
from prunelimit.limit import check_epsilon
from prunelimit.models import mlp

INPUTS = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(300) % 3
Loss = Callable[[Tensor, Tensor], Tensor]


def predict(
    model: nn.Module | None = None, loss: Loss = functional.cross_entropy, data: Any = None, **options: Any
) -> None:
    torch.manual_seed(0)
    predict_limit(
        model or mlp([4, 5, 3]), loss, (INPUTS, TARGETS) if data is None else data, **{"epsilon": 0.1} | options
    )


def with_weight(value: float) -> nn.Module:
    model = mlp([4, 5, 3])
    with torch.no_grad():
        model[1].weight[0, 0] = value
    return model


def nan_loss(output: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(output, targets) * torch.nan


def nan_inputs() -> tuple[Tensor, Tensor]:
    inputs = INPUTS.clone()
    inputs[3, 2] = torch.nan
    return inputs, TARGETS


def vector_loss(output: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(output, targets, reduction="none")


def train_in(folder: Path) -> None:
    train(TrainSpec(dataset="digits", model="fc5-quick", epochs=1, train_size=20), folder=folder)


def one_mask(sparsity: float) -> dict[str, Tensor]:
    return {"1.weight": torch.ones(5, 4)}


def flat_masks(sparsity: float) -> dict[str, Tensor]:
    return {"1.weight": torch.ones(20), "3.weight": torch.ones(15)}


def none_masks(sparsity: float) -> None:
    return None


def half_masks(sparsity: float) -> dict[str, Tensor]:
    return {"1.weight": torch.full((5, 4), 0.5), "3.weight": torch.full((3, 5), 0.5)}


def complex_loss(output: Tensor, targets: Tensor) -> Tensor:
    return output.abs().square().mean()


#: What is wrong, what to call, and what the message must say.
CASES: dict[str, tuple[Callable[[], object], str]] = {
    "no batches": (lambda: predict(data=[]), r"^data is empty"),
    "no examples": (lambda: predict(data=(INPUTS[:0], TARGETS[:0])), r"^data is empty"),
    "an empty batch": (lambda: predict(data=[(INPUTS, TARGETS), (INPUTS[:0], TARGETS[:0])]), r"^data is empty"),
    "fewer targets": (lambda: predict(data=(INPUTS, TARGETS[:7])), r"^data has 300 inputs and 7 targets"),
    "fewer targets in a batch": (lambda: predict(data=[(INPUTS, TARGETS[:7])]), r"^data batch 0"),
    "data of another kind": (lambda: predict(data=3), r"^data=int"),
    "NaN weight": (lambda: predict(with_weight(float("nan"))), r"^model .*NaN.*'1.weight'"),
    "infinite weight": (lambda: predict(with_weight(float("inf"))), r"^model .*infinite.*'1.weight'"),
    "NaN loss, formula": (lambda: predict(loss=nan_loss), r"^loss_fn returned nan"),
    "NaN loss, directional": (lambda: predict(loss=nan_loss, method="directional"), r"^loss_fn returned nan"),
    "NaN loss, measured": (lambda: predict(loss=nan_loss, method="measured"), r"^loss_fn returned nan"),
    # Once wrong: the default epsilon is NaN then, and the message asks for an epsilon instead.
    "NaN loss, default epsilon": (lambda: predict(loss=nan_loss, epsilon=None), r"^loss_fn returned nan"),
    "NaN inputs": (lambda: predict(data=nan_inputs()), r"^loss_fn returned nan.*data"),
    "loss that is not a scalar": (lambda: predict(loss=vector_loss), r"^loss_fn returned shape \(300,\)"),
    # Once wrong: measured and the default epsilon raise torch's own RuntimeError.
    "loss that is not a scalar, measured": (
        lambda: predict(loss=vector_loss, method="measured"),
        r"^loss_fn returned shape \(300,\)",
    ),
    "no prunable weights": (
        lambda: predict(nn.Sequential(nn.Flatten(), nn.ReLU())),
        r"^model=Sequential has no prunable",
    ),
    "frozen weights": (lambda: predict(mlp([4, 3]).requires_grad_(False)), r"^model=Sequential has no prunable"),
    "frozen prunable": (
        lambda: magnitude_masks(nn.Linear(2, 2).requires_grad_(False), 0.5, ["weight"]),
        r"^prunable='weight' is frozen",
    ),
    "empty prunable": (lambda: predict(prunable=[]), r"^prunable=\[\]"),
    "unknown prunable": (lambda: predict(prunable=["1.wieght"]), r"^prunable='1.wieght'.*Did you mean '1.weight'"),
    "negative sparsity": (lambda: magnitude_masks(mlp([4, 3]), -0.1), r"^sparsity=-0.1"),
    "sparsity one": (lambda: magnitude_masks(mlp([4, 3]), 1.0), r"^sparsity=1.0"),
    "sparsity NaN": (lambda: magnitude_masks(mlp([4, 3]), float("nan")), r"^sparsity=nan"),
    "epsilon zero": (lambda: predict(epsilon=0.0), r"^epsilon=0.0"),
    "epsilon negative": (lambda: predict(epsilon=-1.0, method="measured"), r"^epsilon=-1.0"),
    "epsilon NaN": (lambda: predict(epsilon=float("nan"), method="directional"), r"^epsilon=nan"),
    "epsilon infinite": (lambda: predict(epsilon=float("inf")), r"^epsilon=inf"),
    # Once wrong: Python's own TypeError.
    "epsilon a string": (lambda: check_epsilon("0.1"), r"^epsilon='0.1'"),  # type: ignore[arg-type]
    "epsilon a list": (lambda: check_epsilon([0.1]), r"^epsilon=\[0.1\]"),  # type: ignore[arg-type]
    "epsilon unknown and data few": (
        lambda: predict(epsilon=None, data=(INPUTS[:9], TARGETS[:9])),
        r"^epsilon=None.*give epsilon",
    ),
    "unknown method": (lambda: predict(method="measure"), r"^method='measure'.*Did you mean 'measured'"),
    "unknown curvature": (lambda: predict(curvature="hesian"), r"^curvature='hesian'.*Did you mean 'hessian'"),
    "no steps": (lambda: predict(steps=0), r"^steps=0"),
    "no probes": (lambda: predict(probes=0), r"^probes=0"),
    "tolerance zero": (lambda: predict(tolerance=0.0), r"^tolerance=0.0"),
    "mask missing": (lambda: predict(masks=one_mask), r"^masks\(.*'3.weight'"),
    # Once wrong: torch's own RuntimeError.
    "mask of another shape": (lambda: predict(masks=flat_masks, method="measured"), r"^masks"),
    # Once wrong: a TypeError, and a limit of what no mask can do.
    "masks that are no function": (lambda: predict(masks={"1.weight": torch.ones(5, 4)}), r"^masks=dict"),
    "masks that return nothing": (lambda: predict(masks=none_masks), r"^masks\(.*NoneType"),
    "masks between 0 and 1": (lambda: predict(masks=half_masks), r"^masks\(.*0 and 1"),
    # Once wrong: the letter 1 was the unknown name.
    "prunable a string": (lambda: predict(prunable="1.weight"), r"^prunable='1.weight' is one string"),
    # Once wrong: torch's RuntimeError about the complex quadratic form.
    "complex weights": (
        lambda: predict(nn.Linear(4, 3, dtype=torch.complex64), complex_loss, (INPUTS.cfloat(), TARGETS)),
        r"^prunable='weight' is complex",
    ),
    "unknown mask": (lambda: apply_masks(mlp([4, 3]), {"1.wait": torch.ones(1)}), r"^masks='1.wait'.*Did you mean"),
    "unknown rule": (
        lambda: HessianOperator(mlp([4, 3]), functional.cross_entropy, (INPUTS, TARGETS), rule="retain"),
        r"^rule='retain'.*Did you mean 'retained'",
    ),
    "operator without probes": (
        lambda: spectrum(HessianOperator(mlp([4, 3]), functional.cross_entropy, (INPUTS, TARGETS)), probes=-1),
        r"^probes=-1",
    ),
    "unknown data set": (lambda: load_dataset("minst"), r"^dataset='minst'.*Did you mean 'mnist'"),
    "unknown network": (lambda: build_model("resnet"), r"^model='resnet'.*Did you mean .resnet\d+."),
    "unknown network in training": (
        lambda: train(TrainSpec(dataset="digits", model="fc-5")),
        r"^model='fc-5'.*Did you mean 'fc5'",
    ),
    "unknown data set in training": (
        lambda: train(TrainSpec(dataset="digit", model="fc5")),
        r"^dataset='digit'.*Did you mean 'digits'",
    ),
    "more images than there are": (
        lambda: train(TrainSpec(dataset="digits", model="fc5-quick", train_size=5000)),
        r"^size=5000",
    ),
    "unknown field": (
        lambda: TrainSpec.from_dict({"dataset": "digits", "model": "fc5", "epoch": 3}),
        r"^TrainSpec field='epoch'.*Did you mean 'epochs'",
    ),
    "unknown schedule": (
        lambda: TrainSpec(dataset="digits", model="fc5", schedule="cos"),
        r"^schedule='cos'.*Did you mean 'cosine'",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_message_names_the_argument_and_the_fix(name: str) -> None:
    call, pattern = CASES[name]
    with pytest.raises(PruneLimitError) as caught:
        call()
    message = str(caught.value)
    assert re.search(pattern, message), message
    assert "\n" not in message
    assert len(re.findall(r"\.(?:\s|$)", message)) <= 2, message
    assert message.endswith(".")


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_folder_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PruneLimitError, match=r"^folder=.*file.*permissions\.$"):
        train_in(tmp_path / place)


def test_model_is_untouched_by_a_refusal() -> None:
    model = mlp([4, 5, 3]).train()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(PruneLimitError):
        predict(model, loss=nan_loss, method="measured")
    assert model.training
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
