"""Layer-wise criteria: scores from the inputs that each layer reads on the training data; Wanda.

A linear or convolution layer is a matrix W that multiplies the vectors X which it reads. Removing W_ij alone changes the
layer's output by W_ij X_j, whose norm over all that was read is |W_ij| ||X_j||_2: Wanda's score (Sun et al. 2024). For a
convolution j runs over input channels and places in the kernel, and every position of the output counts; a convolution in
groups is one matrix per group. A weight that several layers share counts what all of them read. What an embedding does with a
weight that it shares with a layer is not counted.

Everything is read off by hooks, so the network has to call its layers as modules. ``nn.MultiheadAttention`` computes with its
weights itself, and those are refused, by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunelimit.adapters import HALF, adapt
from prunelimit.curvature.data import LossFunction, call_model, map_tensors, unchanged
from prunelimit.curvature.network import unwrapped
from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.models.parameters import LINEAR_ELSEWHERE, output_dimension
from prunelimit.pruning.controls import split_masks
from prunelimit.pruning.magnitude import Masks, flatten, prunable_parameters, removed_count
from prunelimit.threads import suited_threads

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

#: Which weights a score is compared with: those of one output, of one layer, or all.
COMPARE = ("output", "layer", "global")

#: Most numbers of unfolded inputs that are multiplied at once: 64 MB in float32.
PIECE = 2**24


class Calibration:
    """A network on its data, with the prunable weights as matrices and what these multiply.

    Args:
        model: Any torch module.
        loss_fn: As for :func:`~prunelimit.predict_limit`; it tells how the model is called.
        data: As there.
        prunable: Names of the prunable parameters; by default the weights of linear and convolution layers.

    Attributes:
        parameters: The prunable parameters by name, of the model or, in half precision, of its copy in float32.

    Raises:
        PruneLimitError: If a parameter belongs to no linear or convolution layer, or an argument cannot be used.
    """

    def __init__(
        self, model: nn.Module, loss_fn: LossFunction | None, data: Any, prunable: Sequence[str] | None = None
    ) -> None:
        adapted = adapt(model, loss_fn, data)
        self._model, self._inputs = adapted.model, [inputs for inputs, _ in adapted.batches]
        self.parameters = prunable_parameters(adapted.model, prunable)
        self._layers = {name: _layers_with(adapted.model, p) for name, p in self.parameters.items()}
        for name, layers in self._layers.items():
            if not layers:
                raise PruneLimitError(
                    f"prunable={name!r} belongs to no linear or convolution layer, whose inputs could be read: leave it out."
                )
        self._transposed = {name: output_dimension(adapted.model, name) == 1 for name in self.parameters}

    def matrix(self, name: str, values: Tensor | None = None) -> Tensor:
        """Return a weight, or values of its shape, as ``(groups, outputs, inputs)``: one matrix, or one per group of a convolution."""
        weight = self.parameters[name].detach() if values is None else values
        weight = weight.T if self._transposed[name] else weight
        groups = int(getattr(self._layers[name][0], "groups", 1))
        return weight.reshape(groups, len(weight) // groups, -1)

    def shaped(self, name: str, matrix: Tensor) -> Tensor:
        """Bring numbers in the form of :meth:`matrix` into the parameter's shape."""
        shape = self.parameters[name].shape
        return matrix.reshape(shape[::-1]).T.contiguous() if self._transposed[name] else matrix.reshape(shape)

    def call_order(self) -> list[str]:
        """Return the names in the order in which the layers are first called."""
        order: dict[str, None] = {}
        self._watch(list(self.parameters), lambda name, layer, inputs: order.setdefault(name))
        return list(order)

    def input_norms(self) -> dict[str, Tensor]:
        """Return the norm of each input of each layer, over all that the layer reads on the data.

        Returns:
            Parameter name to ``(groups, inputs)`` float64.
        """
        sums: dict[str, Tensor] = {}

        def see(name: str, layer: nn.Module, inputs: Tensor) -> None:
            # Summed over the examples first: unfolding, which only picks and repeats, is then of one example.
            read = _patches(layer, _batched(layer, inputs).square().sum(0, keepdim=True, dtype=torch.float64))
            squares = read.sum(tuple(range(1, read.ndim - _kept(layer)))).flatten(1)
            sums[name] = squares if name not in sums else sums[name] + squares

        self._watch(list(self.parameters), see)
        return {name: self._finite(name, sums[name].sqrt()) for name in self.parameters}

    def gram(self, name: str) -> Tensor:
        """Return X'X of what one weight multiplies, with the network's present weights.

        Args:
            name: The parameter.

        Returns:
            ``(groups, inputs, inputs)`` float64.
        """
        groups, _, width = self.matrix(name).shape
        found = torch.zeros(groups, width, width, dtype=torch.float64, device=self.parameters[name].device)

        def see(_: str, layer: nn.Module, inputs: Tensor) -> None:
            nonlocal found
            read = _patches(layer, _batched(layer, inputs))
            positions = max(1, math.prod(read.shape[2 : read.ndim - _kept(layer)]))
            for part in read.split(max(1, PIECE // (groups * positions * width)), dim=1):
                rows = part.reshape(groups, -1, width)
                found += (rows.mT @ rows).double()

        self._watch([name], see)
        return self._finite(name, found)

    def _watch(self, names: Sequence[str], see: Callable[[str, nn.Module, Tensor], object]) -> None:
        """Run the network, and show what every layer with one of some weights reads."""
        seen, handles = set(), []
        device = next(self._model.parameters()).device
        fast = torch.backends.mha.get_fastpath_enabled()

        def hook(name: str) -> Callable[..., None]:
            def tell(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                seen.add(name)
                see(name, layer, (args[0] if args else next(iter(kwargs.values()))).detach())

            return tell

        for name in names:
            handles += [m.register_forward_pre_hook(hook(name), with_kwargs=True) for m in self._layers[name]]
        # The fast path of torch's transformer layers goes past the modules inside.
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with suited_threads(self._model), unchanged(self._model), torch.no_grad():
                for inputs in self._inputs:
                    call_model(unwrapped(self._model), map_tensors(inputs, lambda tensor: tensor.to(device)))
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for handle in handles:
                handle.remove()
        for name in names:
            if name not in seen:
                raise PruneLimitError(
                    f"prunable={name!r} is in a layer that the model does not call on these data (nn.MultiheadAttention "
                    "never calls its out_proj): leave it out."
                )

    def _finite(self, name: str, found: Tensor) -> Tensor:
        if not bool(torch.isfinite(found).all()):
            raise PruneLimitError(f"data lead to inputs of {name!r} that are not finite: check them and the weights.")
        return found


class ScoreOrder:
    """Prunable weights in the order in which they leave; :meth:`masks` is a pruner for ``predict_limit``.

    Args:
        parameters: The prunable parameters by name, in the model's order.
        scores: Parameter name to scores of its shape; the smallest leave first.
        ranks: Parameter name to :func:`relative_ranks`, if not all scores are compared with each other: the smallest rank leaves
            first, and the smallest score of equal ranks.

    Attributes:
        total: Number of prunable weights, D.
        scores: The scores.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        scores: Mapping[str, Tensor],
        ranks: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.scores = {name: scores[name] for name in parameters}
        self._like = {name: p.detach() for name, p in parameters.items()}
        # Stable, so that equal weights leave in the order of the model.
        self._order = torch.argsort(flatten(list(self.scores.values())), stable=True)
        if ranks is not None:
            by_score = flatten([ranks[name] for name in parameters])[self._order]
            self._order = self._order[torch.argsort(by_score, stable=True)]
        self.total = len(self._order)

    def masks(self, sparsity: float) -> Masks:
        """Return the masks that remove exactly ``ceil(s D)`` weights; those of a higher sparsity remove these and more.

        Args:
            sparsity: Fraction of the prunable weights to remove, in ``[0, 1)``.

        Returns:
            Parameter name to a tensor of its shape and type, 1 where a weight is kept and 0 where it is removed.
        """
        keep = torch.ones(self.total, dtype=torch.bool, device=self._order.device)
        keep[self._order[: removed_count(sparsity, self.total)]] = False
        return split_masks(self._like, keep)


class WandaOrder(ScoreOrder):
    """Weights in the order of Wanda's score, magnitude times the norm of the input; one pass over the data.

    Use it where inputs differ much in size, as in transformers: magnitude alone does not see that. The published comparison is
    within each output, which loses the smallest scores, ``floor(s n)`` of its n weights. Those leave here as well; the few that
    are missing to ``ceil(s D)`` are what the rule takes next as s grows, smallest scores first, so that masks are nested and exact.
    Source: Sun, Liu, Bair and Kolter (2024), "A Simple and Effective Pruning Approach for Large Language Models". Unlike there,
    all inputs are those of the dense network.

    Args:
        model: Any torch module; left as it was.
        loss_fn: As for :func:`~prunelimit.predict_limit`; it only tells how the model is called.
        data: As there; a few hundred examples are enough for the norms. Padding that a layer reads counts.
        compare: ``"output"`` as published; ``"layer"``: all weights of a layer; ``"global"``: all weights.
        prunable: Names of the prunable parameters; by default the weights of linear and convolution layers.

    Attributes:
        total: Number of prunable weights, D.
        scores: Parameter name to scores of its shape, float64.

    Raises:
        PruneLimitError: If an argument cannot be used, or a weight is in no linear or convolution layer that is called.

    Example:
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.constant_(layer.weight, 1.0)
        >>> data = torch.tensor([[0.1, 5.0]]), torch.zeros(1, 1)
        >>> WandaOrder(layer, torch.nn.functional.mse_loss, data).masks(0.5)["weight"]
        tensor([[0., 1.]])
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction | None,
        data: Any,
        *,
        compare: str = "output",
        prunable: Sequence[str] | None = None,
    ) -> None:
        if compare not in COMPARE:
            raise unknown_name("compare", compare, COMPARE)
        calibration = Calibration(model, loss_fn, data, prunable)
        norms = calibration.input_norms()
        found, ranks = {}, {}
        for name in calibration.parameters:
            score = calibration.matrix(name).abs().double() * norms[name].unsqueeze(1)
            rows = score.flatten(0, 1) if compare == "output" else score.reshape(1, -1)
            found[name] = calibration.shaped(name, score)
            ranks[name] = calibration.shaped(name, relative_ranks(rows))
        super().__init__(calibration.parameters, found, None if compare == "global" else ranks)


def relative_ranks(scores: Tensor) -> Tensor:
    """Rank scores within their group: the r-th smallest of n gets ``r / n``.

    Whatever the sizes of the groups, all ranks up to t are then the ``floor(t n)`` smallest of each group.

    Args:
        scores: ``(groups, n)``, a row per group.

    Returns:
        ``(groups, n)`` float64, between 0 and 1; the earlier one of two equal scores has the smaller rank.

    Example:
        >>> relative_ranks(torch.tensor([[3.0, 1.0]])).tolist()
        [[1.0, 0.5]]
    """
    order = scores.argsort(dim=1, stable=True)
    steps = torch.arange(1, scores.shape[1] + 1, device=scores.device, dtype=torch.float64) / scores.shape[1]
    return torch.empty_like(order, dtype=torch.float64).scatter_(1, order, steps.expand(scores.shape).contiguous())


def _layers_with(model: nn.Module, parameter: nn.Parameter) -> list[nn.Module]:
    """List the linear and convolution layers that have a weight."""

    def fits(module: nn.Module) -> bool:
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        return isinstance(module, (nn.Linear, *CONVOLUTIONS)) or kind in LINEAR_ELSEWHERE

    return [module for module in model.modules() if fits(module) and module.weight is parameter]


def _batched(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Give what a layer reads a first dimension of examples or, for a linear layer, of positions; at least in float32."""
    inputs = inputs.float() if inputs.dtype in HALF else inputs
    if not isinstance(layer, CONVOLUTIONS):
        return inputs.reshape(-1, inputs.shape[-1])
    return inputs.unsqueeze(0) if inputs.ndim == len(layer.kernel_size) + 1 else inputs


def _kept(layer: nn.Module) -> int:
    """Return how many of the last dimensions of :func:`_patches` are the inputs."""
    return 1 + len(layer.kernel_size) if isinstance(layer, CONVOLUTIONS) else 1


def _patches(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Unfold what a layer reads, without a copy: ``(groups, N, *positions, inputs)``, for convolutions ``(..., channels, *kernel)``."""
    if not isinstance(layer, CONVOLUTIONS):
        return inputs.unsqueeze(0)
    count = len(layer.kernel_size)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    found = functional.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
    for axis, (size, stride, gap) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)):
        found = found.unfold(2 + axis, gap * (size - 1) + 1, stride)[..., ::gap]
    found = found.unflatten(1, (layer.groups, -1))  # (N, groups, channels, *positions, *kernel)
    return found.transpose(0, 1).movedim(2, 2 + count)
