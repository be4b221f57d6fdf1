"""Run by two processes: trainings that they share. The test runs the same ones in one process, from this file too."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from prunelimit import magnitude_masks, training, training_loop
from prunelimit.datasets import DeviceSplit, load_dataset
from prunelimit.errors import PruneLimitError
from prunelimit.models import build_model, mlp
from prunelimit.processes import own_folder
from prunelimit.throughput import Runtime
from prunelimit.training import TrainSpec, evaluate, fit
from prunelimit.training_loop import Loop
from prunelimit.training_shared import Sharing

BASE = {"dataset": "digits", "model": "x", "epochs": 2, "batch_size": 16, "lr": 0.1, "l1": 1e-3, "l2": 1e-3}

#: Network, number of images, settings. 49 leave one image for the last batch, which cannot be shared; 50 leave one each.
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "mlp": ("mlp", 49, {"schedule": "cosine", "augment": True}),
    "masked": ("mlp", 55, {"momentum": 0.0}),
    "norm": ("norm", 50, {"schedule": "cosine", "augment": True}),
    "norm by one": ("norm", 49, {}),
    "flat norm": ("flat norm", 55, {}),
    "sam": ("norm", 50, {"sam_rho": 0.05}),
    "asam": ("mlp", 55, {"sam_rho": 0.5, "sam_adaptive": True}),
    "half": ("norm", 50, {"precision": "bfloat16", "epochs": 1}),
}

#: The same for trainings with sharded parameters, which are masked as well.
SHARDED = {"mlp": 49, "norm": 50, "uneven": 50}


class Double(DeviceSplit):
    """Images in float64, so that differences are those of the mathematics: rounding switches no ReLU."""

    def normalise(self, images: Tensor) -> Tensor:
        return super().normalise(images).double()


def digits(count: int, kind: type[DeviceSplit] = Double) -> DeviceSplit:
    split = load_dataset("digits").on_device("train", size=count)
    return kind(split.images, split.labels, (0.3,), (0.4,), 255)


class Uneven(nn.Module):
    """Blocks in a list and by themselves, a frozen bias, and layers whose rows two processes cannot share evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(64, 9)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(9, 9), nn.Tanh()), nn.BatchNorm1d(9), nn.Linear(9, 1)])
        self.leave = nn.Linear(1, 10)
        self.enter.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x.flatten(1))
        for block in self.blocks:
            x = block(x)
        return self.leave(x)


def make(kind: str) -> nn.Module:
    torch.manual_seed(7)
    if kind == "norm":
        return build_model("resnet8-quick", input_shape=(1, 8, 8), seed=0).double()
    if kind == "flat norm":
        layers = nn.Linear(64, 16), nn.BatchNorm1d(16, momentum=None), nn.ReLU()
        return nn.Sequential(nn.Flatten(), *layers, nn.BatchNorm1d(16, affine=False), nn.Linear(16, 10)).double()
    if kind == "dropout":
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 10)).double()
    return Uneven().double() if kind == "uneven" else mlp([64, 24, 16, 10]).double()


def case(name: str, **options: Any) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Train one network; give its state and its history."""
    kind, images, settings = CASES[name]
    model, data = make(kind), digits(images)
    if name == "half":
        model, data = model.float(), digits(images, DeviceSplit)
    masks = magnitude_masks(model, 0.6) if name == "masked" else None
    history = fit(model, data, TrainSpec(**BASE | settings), masks=masks, test=data, **options)
    return model.state_dict(), history


def sharded(kind: str, **options: Any) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Train a network whose parameters are cut, where the call asks for that."""
    model, data = make(kind), digits(SHARDED[kind])
    masks = magnitude_masks(model, 0.5) | ({"enter.bias": torch.zeros(9)} if kind == "uneven" else {})
    spec = TrainSpec(**BASE | {"schedule": "cosine", "augment": True})
    return model, fit(model, data, spec, masks=masks, test=data, **options)


class Killed(BaseException):
    """Ends a training as a kill would: nothing is saved any more."""


def stopped(kind: str, folder: Path, after: int, **options: Any) -> None:
    """Train to some iteration and no further; -1 is to the end."""

    def stop(done: int) -> None:
        if done == after:
            raise Killed

    with contextlib.suppress(Killed):
        ended(kind, folder, after_step=stop, **options)


def ended(kind: str, folder: Path | None, **options: Any) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Train to the end, from what the folder has; of four batches per epoch the last one is short."""
    model, spec = make(kind), TrainSpec(**BASE | {"augment": True})
    history = fit(model, digits(55), spec, folder=folder, **options)
    return whole(model.state_dict()), history


def whole(state: dict[str, Any]) -> dict[str, Tensor]:
    return {k: (v.full_tensor() if hasattr(v, "placements") else v).clone() for k, v in state.items()}


def same_everywhere(state: dict[str, Tensor]) -> bool:
    """Whether both processes have the same bits."""
    for value in state.values():
        copies = [torch.empty_like(value) for _ in range(2)]
        distributed.all_gather(copies, value.contiguous())
        if not torch.equal(*copies):
            return False
    return True


def message(call: Callable[[], object]) -> str:
    """What an error says."""
    try:
        call()
    except (OSError, PruneLimitError) as error:
        return str(error)
    return ""


def trained(found: dict[str, Any]) -> None:
    """Train everything once, sharing rows alone and sharing parameters too."""
    for name in CASES:
        found[name] = case(name)
        found[f"same {name}"] = same_everywhere(found[name][0])
    found["alone"] = case("mlp", shard=False)
    for kind in SHARDED:
        model, history = sharded(kind, shard_parameters=True)
        found[f"sharded {kind}"] = whole(model.state_dict()), history
        found[f"few images {kind}"] = evaluate(model, digits(1))  # every process has to make a pass
    model, data = make("mlp"), digits(64)
    everything = sum(p.nbytes for p in model.parameters())
    loop = Loop(model, data, TrainSpec(**BASE), sharing=Sharing(model, data.device, shard_parameters=True))
    loop.epoch()
    shards = sum(p.to_local().untyped_storage().nbytes() for p in model.parameters())
    momentum = sum(state["momentum_buffer"].untyped_storage().nbytes() for state in loop.optimiser.state.values())
    found["bytes"] = everything, shards, momentum, [p.grad for p in model.parameters()]


def resumed(found: dict[str, Any], place: Path) -> None:
    """Stop trainings and go on with them."""
    training.SAVE_INTERVAL = 0.0
    kinds = {
        "plain": ("mlp", {}),
        "norm": ("norm", {}),
        "dropout": ("dropout", {}),
        "cut": ("mlp", {"shard_parameters": True}),
    }
    for name, (kind, options) in kinds.items():
        found[f"whole {name}"] = ended(kind, None, **options)
        stopped(kind, place / name, 6, **options)
        found[f"resumed {name}"] = ended(kind, place / name, **options)
    # Within an epoch: both processes save when the first one's clock says so.
    training.LONG_INTERVAL = training.SAVE_SHARE = training.LOOK_INTERVAL = 0.0
    stopped("norm", place / "within", 6)
    found["resumed within"] = ended("norm", place / "within")
    stopped("norm", place / "two", 6)  # the test goes on with it alone
    stopped("mlp", place / "two cut", 6, shard_parameters=True)
    found["taken over"] = ended("norm", place / "one")  # begun by the test alone


def refused(found: dict[str, Any], place: Path, rank: int) -> None:
    """Ask for what cannot be."""
    data, spec = digits(64), TrainSpec(**BASE)
    found["no sam"] = message(lambda: fit(make("mlp"), data, TrainSpec(**BASE, sam_rho=0.1), shard_parameters=True))
    found["compiled"] = message(lambda: fit(make("norm"), data, spec, runtime=Runtime(compiled=True)))
    found["alone, cut"] = message(lambda: fit(make("mlp"), data, spec, shard=False, shard_parameters=True))
    found["folders"] = message(lambda: ended("norm", place / ("two" if rank else "nothing")))

    def full(*_: object) -> None:
        raise OSError("disk full")

    training_loop.save_checkpoint = full
    messages: list[Any] = [None, None]
    distributed.all_gather_object(messages, message(lambda: ended("mlp", place / "full")))
    found["full"] = messages


def folders(found: dict[str, Any], place: Path, rank: int) -> None:
    """Keep states of one's own, at the same point and then at different ones."""
    own = own_folder(place / "own")
    own.mkdir(parents=True)
    for name, state in (("same", "1"), ("different", str(rank))):
        (own / "state.json").write_text(state, encoding="utf-8")
        distributed.barrier()
        assert own_folder(place / "own") == own
        found[f"{name} states"] = (own / "state.json").exists()


def main(place: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    found: dict[str, Any] = {}
    trained(found)
    resumed(found, place)
    refused(found, place, distributed.get_rank())
    folders(found, place, distributed.get_rank())
    if distributed.get_rank() == 0:
        torch.save(found, place / "found.pt")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
