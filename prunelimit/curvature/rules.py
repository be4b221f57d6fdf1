"""Rules for the curvature product of one batch: by the graph of its gradient, or of its output.

Each rule has two halves: ``state`` runs a batch forwards and backwards at the present weights, ``product`` multiplies by one
vector. A state may be kept between products.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import Node

from prunelimit.curvature.memory import is_out_of_memory
from prunelimit.curvature.network import Network
from prunelimit.errors import PruneLimitError

Parts = Sequence[Tensor | None]


class TwiceError(PruneLimitError):
    """An operation of the model or the loss has no second derivative."""

    def __init__(self, what: object) -> None:
        first = str(what).strip().splitlines()[0].rstrip(".")
        if "double backward" in first and "compile" in first:
            first = "torch.compile"
        super().__init__(
            f"model or loss_fn uses an operation that cannot be differentiated twice ({first}): replace it, for example by its "
            "plain math version, or choose method='measured'."
        )


class State(Protocol):
    """What one batch leaves for products: its mean loss and the gradient, cut like the parameters."""

    @property
    def loss(self) -> Tensor:
        """Mean loss of the batch, without dimensions."""
        ...

    @property
    def gradients(self) -> Parts:
        """Gradient of it; ``None`` where the loss does not depend on a parameter."""
        ...


class Rule(Protocol):
    """How to multiply the curvature of one batch's mean loss by a vector."""

    def state(self, inputs: Any, targets: Tensor) -> State:
        """Run one batch, in place on the device, forwards and backwards."""
        ...

    def product(self, state: Any, column: Sequence[Tensor], *, last: bool) -> Parts:
        """Multiply by one vector, cut like the parameters; after the ``last`` one the state is of no use."""
        ...

    def check(self, state: Any) -> None:
        """Refuse a state whose derivatives would be silently wrong."""
        ...


@contextmanager
def explained() -> Iterator[None]:
    """Turn torch's complaints about missing derivatives into one that names the operation and the fix."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        words = ("derivative for", "differentiate twice", "double backward", "Double backward", "is not implemented")
        if is_out_of_memory(error) or not any(word in str(error) for word in words):
            raise
        raise TwiceError(error) from error


def _once_only(node: Node) -> str | None:
    """Name a node's function if it is one of Python whose backward pass is marked with ``once_differentiable``."""
    function = getattr(node, "_forward_cls", None)
    backward = getattr(function, "backward", None)
    code = getattr(backward, "__code__", None)
    marked = hasattr(backward, "__wrapped__") and code is not None and code.co_filename.endswith("function.py")
    return getattr(function, "__name__", None) if marked else None


def _complaint(node: Any) -> str:
    """Ask a node that raises for its message, which names the operation."""
    try:
        node(*(torch.zeros(()) for _ in node._input_metadata))
    except RuntimeError as error:
        return str(error)
    except (AttributeError, TypeError):
        pass
    return node.name()


def refuse_once_differentiable(tensors: Sequence[Tensor | None]) -> None:
    """Look through a graph for a node that would raise, if only ``autograd.grad`` ever came to it.

    Args:
        tensors: Differentiable gradients, and the values that they are gradients of.

    Raises:
        TwiceError: If there is one; it names the function where the graph tells.
    """
    stack = [t.grad_fn for t in tensors if t is not None and t.grad_fn is not None]
    seen, broken, marked = set(stack), "", ""
    while stack:
        node = stack.pop()
        marked = marked or _once_only(node) or ""
        if any(word in node.name() for word in ("DelayedError", "NotImplemented", "autograd::Error")):
            broken = _complaint(node)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    if broken:
        raise TwiceError(marked or broken)


@dataclasses.dataclass
class GradientState:
    """The differentiable gradient of one batch."""

    loss: Tensor
    gradients: tuple[Tensor | None, ...]
    value: Tensor | None


class HessianRule:
    """Hessian products by differentiating the gradient: double backward.

    Args:
        network: The network and its loss.
    """

    def __init__(self, network: Network) -> None:
        self.network = network

    def state(self, inputs: Any, targets: Tensor) -> GradientState:
        """Build the graph of the gradient."""
        parameters = self.network.parameters
        with explained():
            loss = self.network.loss(self.network.output(inputs), targets)
            if not loss.requires_grad:
                return GradientState(loss.detach(), (None,) * len(parameters), None)
            gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        return GradientState(loss.detach(), gradients, loss)

    def product(self, state: GradientState, column: Sequence[Tensor], *, last: bool) -> Parts:
        """Differentiate the gradient's product with the vector."""
        used = [i for i, g in enumerate(state.gradients) if g is not None and g.requires_grad]
        if not used:  # the loss is linear in the weights
            return [None] * len(column)
        with explained():
            return torch.autograd.grad(
                [state.gradients[i] for i in used],  # type: ignore[arg-type]
                self.network.parameters,
                [column[i] for i in used],
                retain_graph=not last,
                allow_unused=True,
            )

    def check(self, state: GradientState) -> None:
        """Refuse a gradient that lacks terms."""
        refuse_once_differentiable([*state.gradients, state.value])


@dataclasses.dataclass
class OutputState:
    """The graph of one batch's output, and the derivative of the loss by the output as a leaf.

    Attributes:
        network: The network.
        inputs: The batch's inputs.
        loss: Its mean loss.
        output: The output with its graph.
        leaf: The output without.
        upper: Derivative of the loss by the leaf, differentiable.
        weight: Zeros like the output, by which ``pulled`` is linear.
        pulled: The transposed Jacobian times ``weight``, differentiable; ``None`` if forward mode moves the output.
    """

    network: Network
    inputs: Any
    loss: Tensor
    output: Tensor
    leaf: Tensor
    upper: Tensor
    weight: Tensor | None = None
    pulled: Parts | None = None

    @property
    def gradients(self) -> Parts:
        """Gradient of the mean loss, cut like the parameters."""
        return self.pull(self.upper.detach(), last=False)

    def pull(self, change: Tensor, *, last: bool) -> Parts:
        """Multiply by the transposed Jacobian."""
        if not self.output.requires_grad:
            return [None] * len(self.network.parameters)
        return torch.autograd.grad(
            self.output, self.network.parameters, change, retain_graph=not last, allow_unused=True
        )


class GaussNewtonRule:
    """Products of the generalised Gauss-Newton matrix: Jacobian, Hessian of the loss by the output, transposed Jacobian.

    Args:
        network: The network and its loss.
        double: Whether the Jacobian's product is made from the graph of the transposed one, which can be kept; else by
            forward mode, with a forward pass for each product, or by that graph where an operation has no forward mode.
    """

    def __init__(self, network: Network, double: bool) -> None:
        # Forward mode mixes types under autocast.
        self.network, self.double = network, double or network.half

    def state(self, inputs: Any, targets: Tensor) -> OutputState:
        """Build the graph of the output, and the derivative of the loss by it."""
        with explained():
            output = self.network.output(inputs)
            if not isinstance(output, Tensor):
                raise PruneLimitError(
                    f"model returned {type(output).__name__}: the Gauss-Newton matrix needs one tensor; return one, or use "
                    "curvature='hessian' (HessianOperator)."
                )
            leaf = output.detach().requires_grad_()
            loss = self.network.loss(leaf, targets)
            upper = torch.zeros_like(leaf)
            if loss.requires_grad:
                upper = torch.autograd.grad(loss, leaf, create_graph=True)[0]
            state = OutputState(self.network, inputs, loss.detach(), output, leaf, upper)
            if self.double:
                self._differentiate_pull(state)
        return state

    @staticmethod
    def _differentiate_pull(state: OutputState) -> None:
        state.weight = torch.zeros_like(state.output, requires_grad=True)
        state.pulled = [None] * len(state.network.parameters)
        if state.output.requires_grad:
            state.pulled = torch.autograd.grad(
                state.output, state.network.parameters, state.weight, create_graph=True, allow_unused=True
            )

    def _push(self, state: OutputState, column: Sequence[Tensor]) -> Tensor | None:
        """Multiply the Jacobian by a vector."""
        if not self.double:
            try:
                return self.network.pushed(state.inputs, column)
            except (RuntimeError, NotImplementedError) as error:
                if is_out_of_memory(error) or "forward" not in str(error).lower():
                    raise
                self.double = True
        if state.pulled is None:
            self._differentiate_pull(state)
            self.check(state)
        assert state.pulled is not None
        used = [i for i, g in enumerate(state.pulled) if g is not None and g.requires_grad]
        if not used:
            return None
        pulled, vectors = [state.pulled[i] for i in used], [column[i] for i in used]
        return torch.autograd.grad(pulled, state.weight, vectors, retain_graph=True, allow_unused=True)[0]  # type: ignore[arg-type]

    def product(self, state: OutputState, column: Sequence[Tensor], *, last: bool) -> Parts:
        """Push the vector to the output, curve it there, and pull it back."""
        with explained():
            moved = self._push(state, column) if state.upper.requires_grad else None
            if moved is None:  # no dependence, or a loss that is linear in the output
                return [None] * len(column)
            (curved,) = torch.autograd.grad(
                state.upper, state.leaf, moved, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            return state.pull(curved, last=last)

    def check(self, state: OutputState) -> None:
        """Refuse a loss, or with a kept graph a network, whose derivatives lack terms."""
        refuse_once_differentiable([state.upper])
        if state.pulled is not None:
            refuse_once_differentiable([*state.pulled, state.output])


class AnalyticRule:
    """The rule for plain MLPs, see :mod:`prunelimit.curvature.mlp`.

    Args:
        rule: The analytic rule of the network.
        hessian: Whether products are those of the Hessian, else of the Gauss-Newton matrix.
    """

    def __init__(self, rule: Any, hessian: bool) -> None:
        self.rule, self.hessian = rule, hessian
        self.row_bytes: int = rule.row_bytes

    def state(self, inputs: Any, targets: Tensor) -> Any:
        """Run one batch forwards and backwards."""
        with explained():
            return self.rule.state(inputs, targets)

    def product(self, state: Any, column: Sequence[Tensor], *, last: bool) -> Parts:
        """Multiply by one vector."""
        with explained():
            return self.rule.product(state, column, hessian=self.hessian)

    def check(self, state: Any) -> None:
        """Refuse a loss whose derivative lacks terms."""
        refuse_once_differentiable([state.output_gradient])
