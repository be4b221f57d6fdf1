"""Which parameters can be pruned, and which mask is for which."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from prunelimit.errors import PruneLimitError, unknown_name

#: Linear layers of other libraries that are no ``nn.Linear``; known by name, so that nothing has to be imported.
LINEAR_ELSEWHERE = ("transformers.pytorch_utils.Conv1D",)

#: Convolutions that keep their weight as ``(in, out / groups, *kernel)``. They count as prunable by their names only.
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _full_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def prunable_names(model: nn.Module) -> list[str]:
    """Name the prunable parameters: weights of linear and convolution layers, in the model's order.

    Linear layers by another name count as well, those in ``LINEAR_ELSEWHERE``.

    Args:
        model: Any torch module.

    Returns:
        Parameter names as in ``model.named_parameters()``; a shared weight appears
        once, a frozen one not at all.

    Raises:
        PruneLimitError: If the model has none, or computes a layer's weight from other parameters, as masks of
            ``torch.nn.utils.prune`` and parametrisations do: left out in silence, it would be missing from the total.
    """
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    weights = set()
    for name, module in model.named_modules():
        if isinstance(module, kinds) or _full_name(module) in LINEAR_ELSEWHERE:
            own = module._parameters.get("weight")  # module.weight would compute it, and move spectral norm's buffers
            if own is not None:
                weights.add(id(own))
            elif any(p.requires_grad for part, p in module.named_parameters() if part != "bias"):
                raise PruneLimitError(
                    f"model computes the weight of {name or type(module).__name__!r} from other parameters: make it one again, by "
                    "prune.remove, parametrize.remove_parametrizations, remove_weight_norm or remove_spectral_norm of "
                    "torch.nn.utils, or name others with prunable=[...]."
                )
    names = [name for name, p in model.named_parameters() if id(p) in weights and p.requires_grad]
    if not names:
        if isinstance(model, torch.jit.ScriptModule):
            raise PruneLimitError(
                "model is TorchScript, which hides its layers: give the module that it was made from."
            )
        raise PruneLimitError(
            f"model={type(model).__name__} has no prunable weights: it needs a linear or convolution layer whose weight "
            "has requires_grad=True, or name the parameters with prunable=[...]."
        )
    return names


def match_prunable(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Name the parameters that patterns stand for.

    Args:
        model: Any torch module.
        patterns: Names of parameters or patterns as for files, with ``*``, ``?`` and ``[]``; frozen parameters, biases and
            those of normalisation are taken only by their name, lest ``*.weight`` means them as well. ``"default"`` stands
            for the weights of linear and convolution layers.

    Returns:
        Names, in the model's order.

    Raises:
        PruneLimitError: If a pattern fits no parameter.
    """
    named = dict(model.named_parameters())
    usual = [n for n, p in named.items() if p.requires_grad and (isinstance(p, UninitializedParameter) or p.ndim > 1)]
    chosen: set[str] = set()
    for pattern in patterns:
        fitting = prunable_names(model) if pattern == "default" else [pattern] if pattern in named else []
        fitting = fitting or fnmatch.filter(usual, pattern)
        if not fitting:
            raise unknown_name("prunable", pattern, ["default", *named])
        chosen.update(fitting)
    return [name for name in named if name in chosen]


def output_dimension(model: nn.Module, name: str) -> int:
    """Say along which dimension of a layer's weight its outputs lie.

    Args:
        model: Any torch module.
        name: Name of the parameter.

    Returns:
        0, except for layers that keep their weight as ``(in, out)``, as transposed convolutions do.
    """
    layer = model.get_submodule(name.rpartition(".")[0])
    return int(_full_name(layer) in LINEAR_ELSEWHERE or isinstance(layer, TRANSPOSED))


def match_masks(model: nn.Module, masks: dict[str, Tensor]) -> list[tuple[nn.Parameter, Tensor]]:
    """Pair masks with the parameters that they are for.

    Args:
        model: Any torch module.
        masks: Parameter name to a tensor of its shape.

    Returns:
        Parameters with their masks.

    Raises:
        PruneLimitError: If a mask names no parameter or has another shape.
    """
    named = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in named:
            raise unknown_name("masks", name, named)
        if mask.shape != named[name].shape:
            raise PruneLimitError(
                f"masks[{name!r}] has shape {tuple(mask.shape)}: give it the parameter's, {tuple(named[name].shape)}."
            )
    return [(named[name], mask) for name, mask in masks.items()]
