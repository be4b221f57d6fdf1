"""load_weights: every kind of file, and none that runs code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from prunelimit import PruneLimitError, apply_masks, magnitude_masks
from prunelimit.loading import is_sparse, load_weights, read_weights
from prunelimit.pruning import save_sparse


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


class Tied(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight


def equal(model: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "args": {"lr": 0.1}},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"model_state_dict": {f"_orig_mod.{name}": value for name, value in state.items()}},
    ],
)
def test_state_dicts_however_they_are_wrapped(tmp_path: Path, wrap: Any) -> None:
    state = network(1).state_dict()
    torch.save(wrap(state), tmp_path / "w.pt")
    model = load_weights(network().train(), tmp_path / "w.pt")
    assert equal(model, state)
    assert not model.training


def test_safetensors(tmp_path: Path) -> None:
    state = network(1).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    assert equal(load_weights(network(), tmp_path / "w.safetensors"), state)


def test_tied_weights_may_be_stored_once(tmp_path: Path) -> None:
    save_model(Tied(1), str(tmp_path / "w.safetensors"))
    assert len(read_weights(tmp_path / "w.safetensors")) == 1
    model = load_weights(Tied(), tmp_path / "w.safetensors")
    assert equal(model, Tied(1).state_dict())
    assert model.head.weight is model.embed.weight


def test_lazy_network_takes_its_shapes_from_the_file(tmp_path: Path) -> None:
    state = network(1).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    lazy = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.LazyLinear(2))
    assert equal(load_weights(lazy, tmp_path / "w.safetensors"), state)


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("archive", [True, False])
def test_code_in_a_file_is_not_run(tmp_path: Path, archive: bool) -> None:
    trap, path = tmp_path / "trap", tmp_path / "w.pt"
    if archive:
        torch.save({"state_dict": Malicious(trap)}, path)
    else:
        path.write_bytes(pickle.dumps(Malicious(trap), protocol=2))
    with pytest.raises(PruneLimitError, match=r"which can run code when loaded: save model\.state_dict") as caught:
        read_weights(path)
    assert not trap.exists()
    assert "\n" not in str(caught.value)
    torch.save({"state_dict": Malicious(trap)}, path)
    with pytest.raises(PruneLimitError):
        read_weights(path, trust=True)
    assert trap.exists()  # the trap was a trap


def test_whole_module_is_read_if_it_is_trusted(tmp_path: Path) -> None:
    torch.save(network(1), tmp_path / "w.pt")
    with pytest.raises(PruneLimitError, match="--trust-pickle"):
        read_weights(tmp_path / "w.pt")
    assert equal(load_weights(network(), tmp_path / "w.pt", trust=True), network(1).state_dict())


BAD: dict[str, tuple[Any, str]] = {
    "a missing tensor": (
        {k: v for k, v in network().state_dict().items() if k != "2.bias"},
        r"'2.bias' is in the model",
    ),
    "an odd tensor": ({**network().state_dict(), "3.bias": torch.ones(2)}, r"'3.bias' is in the file"),
    "another shape": ({**network().state_dict(), "2.bias": torch.ones(3)}, r"does not fit the model: .*2.bias"),
    "no tensors": ({"epoch": 3}, r"holds no state dict"),
    "a tensor": (torch.ones(3), r"holds no state dict"),
}


@pytest.mark.parametrize("name", BAD)
def test_weights_of_another_network(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    torch.save(content, tmp_path / "w.pt")
    model = network()
    with pytest.raises(PruneLimitError, match=message) as caught:
        load_weights(model, tmp_path / "w.pt")
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
    if "shape" not in name:
        assert equal(model, network().state_dict())


@pytest.mark.parametrize(("name", "content"), [("w.pt", b""), ("w.safetensors", b"abc"), ("w.safetensors", b"")])
def test_damaged_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PruneLimitError, match="cannot be read"):
        read_weights(tmp_path / name)


# Files of save_sparse


def pruned_file(folder: Path, model: nn.Module) -> tuple[Path, nn.Module]:
    masks = magnitude_masks(model, 0.6)
    return save_sparse(folder / "w.safetensors", apply_masks(model, masks), masks), model


def test_pruned_network_becomes_dense_again(tmp_path: Path) -> None:
    path, pruned = pruned_file(tmp_path, network(1))
    model = load_weights(network().train(), path)
    assert equal(model, pruned.state_dict())
    assert int((model[0].weight == 0).sum()) + int((model[2].weight == 0).sum()) == 12
    assert not model.training


def test_tied_pruned_network_stays_tied(tmp_path: Path) -> None:
    path, pruned = pruned_file(tmp_path, Tied(1))
    model = load_weights(Tied(), path)
    assert equal(model, pruned.state_dict())
    assert model.head.weight is model.embed.weight


def test_pruned_network_needs_its_model(tmp_path: Path) -> None:
    path, _ = pruned_file(tmp_path, network(1))
    assert is_sparse(path)
    with pytest.raises(PruneLimitError, match=r"was written by save_sparse: read it into its model"):
        read_weights(path)
    with pytest.raises(PruneLimitError, match=r"is of another network"):
        load_weights(Tied(), path)
    with pytest.raises(PruneLimitError, match=r"no shapes for a lazy model"):
        load_weights(nn.Sequential(nn.LazyLinear(4), nn.BatchNorm1d(4), nn.Linear(4, 2)), path)


def test_damaged_pruned_network_is_refused(tmp_path: Path) -> None:
    path, _ = pruned_file(tmp_path, network(1))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(PruneLimitError, match="is damaged"):
        load_weights(network(), path)


@pytest.mark.parametrize("content", [b"", b"abc", None])
def test_other_files_are_not_sparse(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "w.safetensors"
    if content is not None:
        path.write_bytes(content)
    assert not is_sparse(path)
    save_file(network().state_dict(), path)
    assert not is_sparse(path)
