"""Shared fixtures: isolated folders, a small network trained on digits, and its dense Hessian by an independent route."""

from __future__ import annotations

import copy
import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.nn import functional

from prunelimit.datasets import Dataset, load_dataset
from prunelimit.models import mlp, prunable_names
from prunelimit.training import TrainSpec, fit

# The matrices here are so small that a second thread only costs, and sums in another order would not be repeatable.
torch.set_num_threads(1)

hypothesis.settings.register_profile("prunelimit", deadline=None, max_examples=30, derandomize=True)
hypothesis.settings.load_profile("prunelimit")

#: Training images behind the curvature: five batches of 128, so that the default epsilon exists.
EXAMPLES = 640


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes longer than a few seconds")


@pytest.fixture(scope="session", autouse=True)
def isolated_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Point every folder of the library into a temporary one, so that no test reads or writes the user's files."""
    home = tmp_path_factory.mktemp("prunelimit")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CACHE", "DATA", "RESULTS"):
            patch.setenv(f"PRUNELIMIT_{name}", str(home / name.lower()))
        yield home


@pytest.fixture(scope="session")
def run_processes() -> Callable[..., None]:
    """Run a script in processes that torchrun starts, with one thread each, in the folder of the script."""

    def run(script: Path, *words: object, world: int = 2, timeout: float = 600) -> None:
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"] if world > 1 else []
        command = [sys.executable, *start, str(script), *map(str, words)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout, check=False, cwd=script.parent
        )
        assert done.returncode == 0, done.stderr[-4000:]

    return run


@pytest.fixture(scope="module")
def script(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The module's ``SCRIPT`` in a file."""
    place = tmp_path_factory.mktemp("script") / "script.py"
    place.write_text(request.module.SCRIPT)
    return place


@pytest.fixture(scope="module")
def names(script: Path) -> dict[str, Any]:
    """What the module's ``SCRIPT`` defines: networks, data, options."""
    return runpy.run_path(str(script))


@pytest.fixture(scope="module")
def found(script: Path, run_processes: Callable[..., None]) -> dict[str, Any]:
    """What two processes that ran the module's ``SCRIPT`` wrote."""
    run_processes(script, script.with_suffix(".pt"))
    return torch.load(script.with_suffix(".pt"), weights_only=False)


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="session")
def trained_digits(digits: Dataset) -> nn.Module:
    """The trained network itself: read it, never change it."""
    torch.manual_seed(0)
    model = mlp([64, 32, 24, 10])
    spec = TrainSpec(dataset="digits", model="mlp", epochs=80, batch_size=128, lr=0.05, l1=1e-3)
    fit(model, digits.on_device("train"), spec)
    return model


@pytest.fixture
def digits_model(trained_digits: nn.Module) -> nn.Module:
    """A copy of the trained network with 3,056 prunable weights, in evaluation mode."""
    return copy.deepcopy(trained_digits)


@pytest.fixture(scope="session")
def digits_data(digits: Dataset) -> tuple[Tensor, Tensor]:
    """Normalised inputs and targets of the first training images."""
    return digits.on_device("train", size=EXAMPLES).tensors()


def _flat_loss(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    data: tuple[Tensor, Tensor],
    names: Sequence[str] | None,
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Write the mean loss as a float64 function of the flat prunable weights, and give those weights."""
    model = copy.deepcopy(model).double().eval()
    inputs, targets = (part.double() if part.is_floating_point() else part for part in data)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    chosen = list(prunable_names(model) if names is None else names)
    sizes = [parameters[name].numel() for name in chosen]

    def loss(weights: Tensor) -> Tensor:
        parts = {n: part.reshape(parameters[n].shape) for n, part in zip(chosen, weights.split(sizes), strict=True)}
        return loss_fn(functional_call(model, {**parameters, **parts}, (inputs,)), targets)

    return loss, torch.cat([parameters[name].reshape(-1) for name in chosen])


ReferenceHessian = Callable[..., Tensor]


@pytest.fixture(scope="session")
def reference_hessian() -> ReferenceHessian:
    """Dense float64 Hessian of a tiny model by torch.func.hessian: no code in common with the library's products."""

    def compute(
        model: nn.Module,
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        data: tuple[Tensor, Tensor],
        names: Sequence[str] | None = None,
    ) -> Tensor:
        loss, weights = _flat_loss(model, loss_fn, data, names)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, from its forward mode
            return hessian(loss)(weights)

    return compute


@pytest.fixture(scope="session")
def digits_loss(trained_digits: nn.Module, digits_data: tuple[Tensor, Tensor]) -> Callable[[Tensor], Tensor]:
    """The float64 mean loss of the trained network as a function of its flat prunable weights."""
    return _flat_loss(trained_digits, functional.cross_entropy, digits_data, None)[0]


@pytest.fixture(scope="session")
def digits_weights(trained_digits: nn.Module, digits_data: tuple[Tensor, Tensor]) -> Tensor:
    """The flat prunable weights of the trained network, float64."""
    return _flat_loss(trained_digits, functional.cross_entropy, digits_data, None)[1]


@pytest.fixture(scope="session")
def digits_hessian(digits_loss: Callable[[Tensor], Tensor], digits_weights: Tensor) -> Tensor:
    """The dense (3056, 3056) Hessian, forward over reverse in float64; the library goes reverse over reverse in float32."""
    gradient = grad(digits_loss)
    rows = vmap(lambda v: jvp(gradient, (digits_weights,), (v,))[1])
    unit = torch.eye(len(digits_weights), dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, from its forward mode
        matrix = torch.cat([rows(part) for part in unit.split(64)])
    return (matrix + matrix.T) / 2


@pytest.fixture(scope="session")
def digits_eigenvalues(digits_hessian: Tensor) -> np.ndarray:
    return torch.linalg.eigvalsh(digits_hessian).numpy()


class MatrixOperator:
    """A dense symmetric matrix that multiplies vectors and remembers them."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.dimension = matrix, len(matrix)
        self.dtype, self.device = matrix.dtype, matrix.device
        self.seen: list[Tensor] = []

    def __matmul__(self, vectors: Tensor) -> Tensor:
        self.seen.append(vectors.clone())
        return self.matrix @ vectors


@pytest.fixture(scope="session")
def matrix_operator() -> type[MatrixOperator]:
    return MatrixOperator
