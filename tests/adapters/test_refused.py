"""adapt: what would give a wrong number, or stop in the middle, is refused before anything is computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunelimit.adapters import adapt
from prunelimit.errors import PruneLimitError

INPUTS = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(200) % 3


class InPlace(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.mul_(2))


class Noisy(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs + torch.randn_like(inputs))


def test_target_out_of_range_is_found_in_any_row_of_any_batch() -> None:
    # Once wrong: the first 64 rows alone were tried, and torch's IndexError, on a GPU its assertion, came later.
    wrong = TARGETS.clone()
    wrong[-1] = 3
    for data in ((INPUTS, wrong), [(INPUTS[:100], wrong[:100]), (INPUTS[100:], wrong[100:])]):
        with pytest.raises(PruneLimitError, match=r"^data has in batch \d the target 3, and the model gives 3 classes"):
            adapt(nn.Linear(4, 3), functional.cross_entropy, data)


def test_ignored_targets_and_probabilities_are_in_range() -> None:
    ignored = torch.where(TARGETS == 0, -100, TARGETS)
    assert adapt(nn.Linear(4, 3), functional.cross_entropy, (INPUTS, ignored)).terms == "targets"
    adapt(nn.Linear(4, 3), functional.cross_entropy, (INPUTS, functional.one_hot(TARGETS, 3).float()))


def test_sum_is_no_mean() -> None:
    with pytest.raises(PruneLimitError, match=r"^loss_fn sums over the rows"):
        adapt(nn.Linear(4, 3), lambda o, t: functional.cross_entropy(o, t, reduction="sum"), (INPUTS, TARGETS))


def test_model_that_draws_at_random_in_evaluation_is_refused() -> None:
    with pytest.raises(PruneLimitError, match=r"^model gives another loss at every call"):
        adapt(Noisy(4, 3), functional.cross_entropy, (INPUTS, TARGETS))


def test_model_that_changes_its_inputs_is_refused_and_the_inputs_are_as_they_were() -> None:
    # Once wrong: every pass scaled the data again, and the measured limit was zero.
    inputs = INPUTS.clone()
    with pytest.raises(PruneLimitError, match=r"^model changes its inputs in place"):
        adapt(InPlace(4, 3), functional.cross_entropy, (inputs, TARGETS))
    assert torch.equal(inputs, INPUTS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_inputs_of_another_type_are_named(dtype: torch.dtype) -> None:
    with pytest.raises(PruneLimitError, match=rf"^data has inputs in {dtype} and the model is in torch.float32"):
        adapt(nn.Linear(4, 3), functional.cross_entropy, (INPUTS.to(dtype), TARGETS))


def test_weights_made_in_inference_mode_are_named() -> None:
    with torch.inference_mode():
        model = nn.Linear(4, 3)
    with pytest.raises(PruneLimitError, match=r"^model was made under torch.inference_mode"):
        adapt(model, functional.cross_entropy, (INPUTS, TARGETS))
