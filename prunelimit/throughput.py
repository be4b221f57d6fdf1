"""How a training is carried out and how fast it is: memory layout, compilation, images per second, where the time goes.

Layout and compilation change the order of sums and nothing else, like the device and the number of threads. They are
therefore chosen by the machine and told in the record, and are no part of the spec.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunelimit.precision import autocast

STAGES = ("data", "forward", "backward", "optimiser")

#: Iterations of a process that are measured stage by stage, and those before that are not: caches and algorithms settle.
SAMPLED, SETTLING = 20, 5

#: Compiling takes the time of some thousand iterations: a shorter training is over before it would pay.
COMPILE_PAYS = 5_000

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclasses.dataclass(frozen=True)
class Runtime:
    """How a training is carried out on this machine.

    Attributes:
        channels_last: Whether images and convolution weights keep their channels together; ``None`` for: on CUDA, if the
            network has convolutions.
        compiled: Whether the forward pass is compiled; ``None`` for: on CUDA, if the training is long enough to pay for it.
    """

    channels_last: bool | None = None
    compiled: bool | None = None

    def settled(self, model: nn.Module, device: torch.device, iterations: int) -> Runtime:
        """Decide what was left open.

        Args:
            model: The network.
            device: Where it is trained.
            iterations: Iterations that lie ahead.

        Returns:
            The same choices, all of them made.
        """
        cuda = device.type == "cuda"
        images = any(isinstance(module, nn.Conv2d) for module in model.modules())
        return Runtime(
            cuda and images if self.channels_last is None else self.channels_last,
            cuda and iterations >= COMPILE_PAYS if self.compiled is None else self.compiled,
        )


def lay_out(model: nn.Module, channels_last: bool) -> None:
    """Put four-dimensional weights into the given memory layout, in place; their values stay."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model.to(memory_format=layout)  # type: ignore[call-overload] # torch's types do not know it


class Forward:
    """Logits and loss of a batch, compiled if that was asked for and works.

    Args:
        model: The network.
        loss: Maps logits and labels to the mean loss.
        precision: Precision of the pass.
        runtime: Choices, all of them made.

    Attributes:
        note: Why nothing was compiled although it was asked for.
    """

    def __init__(
        self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], precision: str, runtime: Runtime
    ) -> None:
        self.model, self.loss, self.precision, self.runtime = model, loss, precision, runtime
        self.note, self._size = "", 0
        self._compiled: Step | None = None

    def plain(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean loss and logits, as written."""
        if self.runtime.channels_last and images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast(self.precision, images.device):
            logits = self.model(images)
            return self.loss(logits, labels), logits

    def prepare(self, images: Tensor, labels: Tensor) -> None:
        """Compile for batches of this shape; leaves gradients, running statistics and the network alone.

        Args:
            images: Some batch.
            labels: Its labels.
        """
        if not self.runtime.compiled:
            return
        self._size = len(labels)
        kept = [buffer.clone() for buffer in self.model.buffers()]
        try:
            torch.compiler.reset()  # after some networks in one process, dynamo would give up and say nothing
            # One graph for whole batches; the short last one of an epoch is not worth a second graph.
            compiled: Step = torch.compile(self.plain, dynamic=False)
            compiled(images, labels)[0].backward()
            self._compiled = compiled
        except Exception as error:
            self.note = f"not compiled: {type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
            print(self.note, file=sys.stderr, flush=True)
        finally:
            for parameter in self.model.parameters():
                parameter.grad = None
            for buffer, before in zip(self.model.buffers(), kept, strict=True):
                buffer.copy_(before)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean loss and logits of a batch ``(B, C, H, W)`` with labels ``(B,)``."""
        if self._compiled is not None and len(labels) == self._size:
            return self._compiled(images, labels)
        return self.plain(images, labels)

    def describe(self) -> dict[str, Any]:
        """Return what was chosen, as plain JSON values."""
        found = {"precision": self.precision, "channels_last": bool(self.runtime.channels_last)}
        found["compiled"] = self._compiled is not None
        return found | ({"note": self.note} if self.note else {})


class StageClock:
    """Measure the stages of a few iterations, waiting for the device after each; the others it leaves alone.

    Args:
        device: The device that is waited for.
        skipped: Iterations before the first measured one.
        sampled: Iterations that are measured.
    """

    def __init__(self, device: torch.device, skipped: int = SETTLING, sampled: int = SAMPLED) -> None:
        self.device, self._skipped, self._left, self.iterations = device, skipped, sampled, 0
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._on, self._last = False, 0.0

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def begin(self) -> None:
        """Say that an iteration begins."""
        if self._skipped > 0:
            self._skipped -= 1
            return
        self._on = self._left > 0
        if self._on:
            self._left -= 1
            self._last = self._now()

    def mark(self, stage: str) -> None:
        """Say that a stage has ended; the last stage ends the iteration.

        Args:
            stage: One of ``STAGES``, in their order.
        """
        if not self._on:
            return
        now = self._now()
        self._seconds[stage] += now - self._last
        self._last = now
        if stage == STAGES[-1]:
            self.iterations += 1

    @property
    def done(self) -> bool:
        """Whether every iteration that was to be measured was."""
        return self._left == 0 and self.iterations > 0

    @property
    def seconds(self) -> dict[str, float]:
        """Mean seconds of each stage per measured iteration; empty before the first one."""
        if not self.iterations:
            return {}
        return {stage: float(f"{spent / self.iterations:.3g}") for stage, spent in self._seconds.items()}


def throughput(history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Summarise how fast a training was.

    Args:
        history: What :func:`~prunelimit.training.fit` returned; entries of older versions count for nothing.

    Returns:
        ``images_per_second`` (median over epochs), ``shares`` of the stages in the time of an iteration, and the choices
        of the last process; only what is known.
    """
    found: dict[str, Any] = {}
    rates = [entry["images_per_second"] for entry in history if "images_per_second" in entry]
    if rates:
        found["images_per_second"] = float(f"{statistics.median(rates):.4g}")
    for entry in history:
        found |= entry.get("runtime", {})
        if total := sum(entry.get("stages", {}).values()):
            found["shares"] = {stage: round(spent / total, 3) for stage, spent in entry["stages"].items()}
    return found
