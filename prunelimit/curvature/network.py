"""A network made ready to be differentiated twice: in the wanted type, on its device, without fused kernels."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunelimit.curvature.data import LossFunction, call_model, map_tensors, scalar_loss, unchanged
from prunelimit.curvature.layers import CheapSecondDerivatives
from prunelimit.errors import PruneLimitError

#: Types in which products can be computed.
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def unwrapped(model: nn.Module) -> nn.Module:
    """Look behind wrappers that cannot be differentiated twice: compiled and data-parallel modules.

    Args:
        model: Any torch module.

    Returns:
        The module inside, or the module itself.
    """
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = cast(nn.Module, model._orig_mod)
        else:
            return model


@contextmanager
def _plain_kernels(module: nn.Module) -> Iterator[None]:
    """Switch off compiled parts, fused attention and recurrent kernels, and sparse gradients: they have no second derivative."""
    fast = torch.backends.mha.get_fastpath_enabled()
    sparse = [m for m in module.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) and m.sparse]
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # it takes seconds to import, and nothing was compiled without it
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(part, nn.RNNBase) for part in module.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        torch.backends.mha.set_fastpath_enabled(False)
        for embedding in sparse:
            embedding.sparse = False
        try:
            yield
        finally:
            for embedding in sparse:
                embedding.sparse = True
            torch.backends.mha.set_fastpath_enabled(fast)


def _functional_call(module: nn.Module, values: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    return functional_call(module, values, args, kwargs)


class Network:
    """A model, its loss, and the parameters to differentiate by.

    Args:
        model: The user's module, which is only read.
        loss_fn: Maps the output and the targets of a batch to the batch's mean loss.
        names: Names of the parameters, as the model calls them.
        dtype: ``None`` computes with the model itself; ``torch.bfloat16`` with it under autocast; another type than the
            parameters' own with a converted copy.

    Attributes:
        parameters: The parameters to differentiate by: the model's own, or the copy's.
        dtype: Type of the vectors.
        device: Where they live.
    """

    def __init__(
        self, model: nn.Module, loss_fn: LossFunction, names: Sequence[str], dtype: torch.dtype | None
    ) -> None:
        if dtype is not None and dtype not in DTYPES:
            raise PruneLimitError(
                f"dtype={dtype} is not supported: choose torch.float32, torch.float64 or torch.bfloat16."
            )
        self.model, self.names = model, list(names)
        own = dict(model.named_parameters())[self.names[0]]  # TorchScript has no get_parameter
        self.device = own.device
        self.half = dtype == torch.bfloat16 and own.dtype != torch.bfloat16
        self._convert = None if self.half or dtype in {None, own.dtype} else dtype
        self.dtype = own.dtype if self._convert is None else self._convert
        self._user_loss_fn = loss_fn
        self.refresh()

    def refresh(self) -> None:
        """Read the model's parameters again, and convert a new copy if one is needed."""
        places = {name: place for place, (name, _) in enumerate(self.model.named_parameters())}
        self.module, self.loss_fn = unwrapped(self.model), self._user_loss_fn
        if self._convert is not None:
            try:
                self.module = copy.deepcopy(self.module).to(self._convert)
            except RuntimeError as error:
                raise PruneLimitError(
                    f"dtype={self._convert} needs a copy of the model, which failed ({error}): convert the model yourself."
                ) from error
            if isinstance(self.loss_fn, nn.Module):  # it may hold class weights
                self.loss_fn = copy.deepcopy(self.loss_fn).to(self._convert)
        named = list(self.module.named_parameters())
        chosen = [named[places[name]] for name in self.names]
        self.own_names, self.parameters = [name for name, _ in chosen], [p for _, p in chosen]
        for name, p in zip(self.names, self.parameters, strict=True):
            if not p.requires_grad:
                raise PruneLimitError(f"prunable={name!r} is frozen: set requires_grad=True or leave it out.")

    def versions(self) -> list[tuple[int, int]]:
        """Fingerprint the model's weights and buffers: memory address and number of in-place changes."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        return [(t.data_ptr() if t.layout == torch.strided else 0, t._version) for t in tensors]

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Allow passes: evaluation mode, gradients, no fused kernels; all as before afterwards."""
        with ExitStack() as stack:
            for setting in (torch.inference_mode(False), torch.enable_grad(), _plain_kernels(self.module)):
                stack.enter_context(setting)
            stack.enter_context(unchanged(self.module))
            yield

    def place(self, inputs: Any, targets: Tensor) -> tuple[Any, Tensor]:
        """Bring a batch to the network's device, and to its type if that is not the model's own."""

        def change(tensor: Tensor) -> Tensor:
            dtype = self._convert if self._convert is not None and tensor.is_floating_point() else tensor.dtype
            return tensor.to(self.device, dtype, non_blocking=True)

        return map_tensors(inputs, change), map_tensors(targets, change)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.half else nullcontext()

    def _widened(self, output: Any) -> Any:
        return map_tensors(output, lambda t: t.to(self.dtype) if t.is_floating_point() else t) if self.half else output

    def output(self, inputs: Any) -> Any:
        """Run the network on a batch's inputs, which are in place."""
        with self._autocast() if self.half else CheapSecondDerivatives():  # the mode would bypass autocast
            return self._widened(call_model(self.module, inputs))

    def loss(self, output: Any, targets: Tensor) -> Tensor:
        """Give the mean loss of a batch."""
        with self._autocast():
            return scalar_loss(self.loss_fn, output, targets)

    def pushed(self, inputs: Any, column: Sequence[Tensor]) -> Tensor | None:
        """Move the parameters and give the first-order change of the output, by forward-mode differentiation.

        Args:
            inputs: A batch's inputs, in place.
            column: The movement, cut like the parameters.

        Returns:
            The change, or ``None`` if the output does not depend on the parameters in forward mode.
        """
        with torch.no_grad(), forward_ad.dual_level(), self._autocast():
            moving = {
                name: forward_ad.make_dual(p, part)
                for name, p, part in zip(self.own_names, self.parameters, column, strict=True)
            }
            run = partial(_functional_call, self.module, moving)
            output = self._widened(call_model(run, inputs))
            return forward_ad.unpack_dual(output).tangent
