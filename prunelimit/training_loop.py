"""The loop of a training: what happens in one iteration, and what has to be saved to go on from any of them."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunelimit.checkpoints import check_settings, load_checkpoint, save_checkpoint
from prunelimit.datasets import DeviceSplit
from prunelimit.errors import PruneLimitError
from prunelimit.models import match_masks
from prunelimit.precision import training_rounding
from prunelimit.processes import all_or_none
from prunelimit.sam import SharpnessAware
from prunelimit.specs import part_seed
from prunelimit.throughput import Forward, Runtime, StageClock, lay_out
from prunelimit.train_spec import TrainSpec, learning_rate
from prunelimit.training_shared import Sharing


@contextmanager
def _own_random_state(device: torch.device) -> Iterator[None]:
    """Leave the global generators as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


class Loop:
    """State of one training run: the network, the optimiser, the masks, the epochs done and the present one.

    The randomness of an epoch depends on the seed and its number alone, so that a resumed run is the same.

    Args:
        model: The network, on the device of ``data``; trained in place.
        data: Training images and labels.
        spec: Settings.
        masks: Parameter name to a 0-1 tensor of its shape.
        first: Iterations of the schedule that the network has behind it already.
        after_step: Called after each iteration with the number of iterations done.
        runtime: How the training is carried out.
        sharing: This process's part in it; by default all of it.

    Attributes:
        history: One dictionary per finished epoch.
        place: Batches of the present epoch that lie behind.
    """

    def __init__(
        self,
        model: nn.Module,
        data: DeviceSplit,
        spec: TrainSpec,
        masks: dict[str, Tensor] | None = None,
        first: int = 0,
        after_step: Callable[[int], None] | None = None,
        runtime: Runtime | None = None,
        sharing: Sharing | None = None,
    ) -> None:
        self.model, self.data, self.spec = model, data, spec
        self.per_epoch, self.first, self.after_step = -(-len(data) // spec.batch_size), first, after_step
        ahead = spec.epochs * self.per_epoch - first
        self.sharing = sharing or Sharing(model, data.device, shard=False)
        if self.sharing.sharded and spec.sam_rho:
            raise PruneLimitError(
                f"sam_rho={spec.sam_rho!r} needs whole gradients: leave out shard_parameters, or SAM."
            )
        runtime = self.sharing.settled(runtime or Runtime()).settled(model, data.device, ahead)
        if not self.sharing.sharded:
            lay_out(model, bool(runtime.channels_last))
        self.forward = Forward(model, functional.cross_entropy, spec.precision, runtime)
        self.clock = StageClock(data.device)
        self.parameters = self.sharing.parameters
        self.optimiser = torch.optim.SGD(
            self.parameters, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.l2, fused=True
        )
        pairs = [(p, mask.to(p)) for p, mask in self.sharing.masks(match_masks(model, masks or {}))]
        self._masked = [p for p, _ in pairs]
        self._masks = [mask for _, mask in pairs]
        self.sharpness = (
            SharpnessAware(self.forward, self.parameters, pairs, spec.sam_rho, adaptive=spec.sam_adaptive)
            if spec.sam_rho
            else None
        )
        self.history: list[dict[str, Any]] = []
        self.place = first % self.per_epoch
        self._random: dict[str, Tensor] = {}
        self._step, self._saved, self._told = 0, (0, self.place), False
        self._open_epoch()
        self._apply_masks()

    def _open_epoch(self) -> None:
        """Set the sums over the present epoch to zero; they stay on the device, which nobody waits for."""
        self.loss_sum = torch.zeros((), device=self.data.device)
        self.right = torch.zeros((), device=self.data.device, dtype=torch.int64)
        self.seen, self.seconds = 0, 0.0

    @torch.no_grad()
    def _apply_masks(self) -> None:
        if self._masked:
            torch._foreach_mul_(self._masked, self._masks)

    @property
    def number(self) -> int:
        """Number of the present epoch, from zero."""
        return self.first // self.per_epoch + len(self.history)

    @property
    def changed(self) -> bool:
        """Whether there is anything that was not saved."""
        return self._saved != (len(self.history), self.place)

    @property
    def bytes(self) -> int:
        """About how much a saved state takes."""
        return 2 * sum(p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad)

    def compile(self) -> None:
        """Compile the forward pass if the runtime says so; the training stays the same."""
        if self.forward.runtime.compiled:
            device = self.data.device
            with _own_random_state(device), training_rounding(self.spec.precision, device):
                self.model.train()
                images, labels, _ = self.sharing.part(*next(iter(self.data.batches(self.spec.batch_size))))
                self.forward.prepare(images, labels)

    def epoch(self, stop: Callable[[], bool] = lambda: False) -> dict[str, Any] | None:
        """Train to the end of the present epoch.

        Args:
            stop: Asked after each iteration whether to leave it at that; :meth:`save` may be called then.

        Returns:
            The epoch's entry of the history, or ``None`` if it was stopped before its end.

        Raises:
            PruneLimitError: If the loss is not finite.
        """
        spec, device, since = self.spec, self.data.device, time.monotonic()
        seed = part_seed(spec.seed, self.number)
        self.optimiser.param_groups[0]["lr"] = learning_rate(spec, self.number)
        self.model.train()
        with _own_random_state(device), training_rounding(spec.precision, device), self.sharing.statistics():
            self._seed_dropout(seed + 2)
            for images, labels in self._batches(seed):
                if self.sharing.world > 1:  # so that no process has to save the state of its generators
                    torch.manual_seed(part_seed(seed + 2, self.place * self.sharing.world + self.sharing.rank))
                self._iterate(images, labels)
                now = time.monotonic()
                self.seconds, since = self.seconds + now - since, now
                if stop():
                    return None
        mean_loss = float(self.sharing.total(self.loss_sum)) / self.seen
        if not math.isfinite(mean_loss):
            raise PruneLimitError(
                f"lr={spec.lr!r}: the loss became {mean_loss} in epoch {self.number + 1}; lower lr or add warm-up."
            )
        right = int(self.sharing.total(self.right))
        seconds = self.seconds + time.monotonic() - since
        entry: dict[str, Any] = {
            "epoch": self.number + 1,
            "lr": self.optimiser.param_groups[0]["lr"],
            "loss": mean_loss,
            "accuracy": right / self.seen,
            "seconds": seconds,
            "images_per_second": float(f"{self.seen / max(seconds, 1e-9):.4g}"),
        }
        if not self._told and (self.clock.done or self.number + 1 == spec.epochs):
            entry |= {"stages": self.clock.seconds, "runtime": self.forward.describe()}
            self._told = True
        self.history.append(entry)
        self.place = 0
        self._open_epoch()
        return entry

    def _seed_dropout(self, seed: int) -> None:
        torch.manual_seed(seed)
        if "cpu" in self._random:
            torch.set_rng_state(self._random["cpu"])
        if "device" in self._random and self.data.device.type == "cuda":
            torch.cuda.set_rng_state(self._random["device"], self.data.device)
        self._random = {}

    def _batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Give the batches of the present epoch that are still to come."""
        order = torch.Generator().manual_seed(seed)
        augment = torch.Generator(self.data.device).manual_seed(seed + 1) if self.spec.augment else None
        batches = self.data.batches(self.spec.batch_size, order, augment)
        for _ in range(self.place):
            next(batches)
        while True:
            self.clock.begin()
            batch = next(batches, None)
            if batch is None:
                return
            self.clock.mark("data")
            yield batch

    def _iterate(self, images: Tensor, labels: Tensor) -> None:
        """Make one step of SGD on the loss, with L1 as its subgradient that is zero at zero.

        With SAM, loss and accuracy are those at the weights, and the second pass counts as a part of the backward one.
        """
        rows = len(labels)
        images, labels, counted = self.sharing.part(images, labels)
        backward = functools.partial(self.sharing.backward, share=counted / rows)
        self.optimiser.zero_grad()
        loss, logits = self.forward(images, labels)
        self.clock.mark("forward")
        backward(loss)
        if self.sharpness is not None:
            self.sharpness(images, labels, backward)
        self.clock.mark("backward")
        if self.spec.l1:
            with torch.no_grad():
                moved: list[Tensor] = [p for p in self.parameters if p.grad is not None]
                gradients = [p.grad for p in moved if p.grad is not None]
                # On a CPU the sign of a real number takes several times as long as the same thing written for complex ones.
                signs = torch._foreach_sign(moved) if moved[0].is_cuda else [p.sgn() for p in moved]
                torch._foreach_add_(gradients, signs, alpha=self.spec.l1)
        self.optimiser.step()
        self._apply_masks()
        if counted:
            self.loss_sum += loss.detach() * counted
            self.right += (logits.detach().argmax(1) == labels).sum()
        self.seen += rows
        self.place += 1
        self.clock.mark("optimiser")
        if self.after_step is not None:
            self.after_step(self.number * self.per_epoch + self.place)

    def save(self, folder: Path) -> None:
        """Save everything that the next iteration depends on; the first process writes it, for any number of them.

        Args:
            folder: Folder of the run.
        """
        tensors = {f"model.{k}": v for k, v in self.sharing.state().items()}
        for i, p in enumerate(self.parameters):
            momentum = self.optimiser.state[p].get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{i}"] = self.sharing.join(i, momentum)
        metadata: dict[str, Any] = {"spec": self.spec.to_dict(), "history": self.history}
        if self.seen:
            sums = {"sum.loss": self.sharing.total(self.loss_sum), "sum.right": self.sharing.total(self.right)}
            tensors |= sums | {"random.cpu": torch.get_rng_state()}
            if self.data.device.type == "cuda":
                tensors["random.device"] = torch.cuda.get_rng_state(self.data.device)
            metadata["within"] = {"place": self.place, "seen": self.seen, "seconds": self.seconds}
        self._step += 1
        metadata["step"] = self._step

        def write() -> None:
            if self.sharing.rank == 0:
                save_checkpoint(folder, self._step, tensors, metadata)

        all_or_none(write, self.sharing.world, self.data.device)
        self._saved = (len(self.history), self.place)

    def load(self, folder: Path) -> None:
        """Go back to the saved state, if there is one.

        Args:
            folder: Folder of the run.

        Raises:
            PruneLimitError: If the folder holds another run.
        """
        found = load_checkpoint(folder)
        self.sharing.check_same(found and (found[1].get("step"), len(found[1]["history"])), folder)
        if found is None:
            return
        tensors, metadata = found
        check_settings(folder, metadata, {"spec": self.spec.to_dict()})
        self.sharing.load_state({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        for i, p in enumerate(self.parameters):
            if f"momentum.{i}" in tensors:
                # The fused optimiser walks through memory: the buffer must lie there as its parameter does.
                buffer = torch.empty_like(p, memory_format=torch.preserve_format)
                momentum = self.sharing.cut(i, tensors[f"momentum.{i}"])
                self.optimiser.state[p]["momentum_buffer"] = buffer.detach().copy_(momentum)
        self.history = metadata["history"]
        self._step = metadata.get("step", len(self.history))  # older states were counted by their epochs
        within = metadata.get("within")
        self.place = within["place"] if within else 0 if self.history else self.place
        if within:
            if self.sharing.rank == 0:  # sums over processes begin with it
                self.loss_sum.copy_(tensors["sum.loss"])
                self.right.copy_(tensors["sum.right"])
            self.seen, self.seconds = within["seen"], within["seconds"]
            self._random = {k[7:]: v for k, v in tensors.items() if k.startswith("random.")}
        self._saved = (len(self.history), self.place)
