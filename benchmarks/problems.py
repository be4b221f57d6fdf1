"""The networks and data of the comparisons: trained for a stated number of iterations, so that none is an initialisation."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp
from torch.nn import functional

from prunelimit.datasets import load_dataset
from prunelimit.files import atomic_file, cache_folder, make_folder
from prunelimit.models import build_model, cifar_resnet, mlp, prunable_names

BATCH, MOMENTUM = 128, 0.9

#: Rows of a dense Hessian that are computed and saved at once.
DENSE_PART = 128


@dataclasses.dataclass(frozen=True)
class Setting:
    """What determines a problem.

    Attributes:
        dataset: Name of the data set; the training images are used.
        network: A name of ``build_model``, which the number of logits may follow, ``"mlp a-b-c"`` or
            ``"resnet depth-width"``.
        examples: Images behind the curvature, N.
        iterations: Training iterations of SGD with momentum 0.9, batches of 128 and no augmentation.
        lr: Learning rate.
        pool: Images are averaged over squares of this width.
        seed: Seed of the weights, of the order of batches and of the choice of images.
    """

    dataset: str
    network: str
    examples: int
    iterations: int
    lr: float
    pool: int = 1
    seed: int = 0

    @property
    def key(self) -> str:
        """Name of what is cached for this setting."""
        parts = {k: v for k, v in dataclasses.asdict(self).items() if k != "examples"}
        return hashlib.sha256(f"{parts} {BATCH} {MOMENTUM} {torch.__version__}".encode()).hexdigest()[:16]


PROBLEMS = {
    "fc5": Setting("cifar10", "fc5", 2000, 200, 0.01),
    "resnet20": Setting("cifar10", "resnet20", 2000, 200, 0.1),
    "resnet18": Setting("cifar10", "resnet18", 128, 10, 0.05),
    "resnet50": Setting("cifar10", "resnet50 1000", 128, 10, 0.05),
    "mlp-small": Setting("digits", "mlp 64-64-32-10", 1000, 1000, 0.05),
    "resnet-small": Setting("cifar10", "resnet 8-5", 500, 400, 0.1, pool=4),
    "quick-mlp": Setting("digits", "mlp 64-16-10", 200, 40, 0.05),
    "quick-resnet": Setting("digits", "resnet 8-2", 100, 10, 0.05),
}


@dataclasses.dataclass
class Problem:
    """A trained network with the data of its loss.

    Attributes:
        name: Its name in ``PROBLEMS``.
        model: The network, in evaluation mode; only the prunable weights require gradients.
        loss_fn: Mean cross entropy.
        inputs: ``(N, C, H, W)`` normalised images.
        targets: ``(N,)`` labels.
        setting: What determined it.
    """

    name: str
    model: nn.Module
    loss_fn: nn.Module
    inputs: Tensor
    targets: Tensor
    setting: Setting

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The prunable weights, the same for every method."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def dimension(self) -> int:
        """Number of prunable weights, D."""
        return sum(p.numel() for p in self.parameters)

    def fresh(self) -> Problem:
        """Give a method a network of its own, which it may leave in any state."""
        return dataclasses.replace(self, model=copy.deepcopy(self.model))

    def first(self, examples: int) -> Problem:
        """Keep the first so many images."""
        return dataclasses.replace(self, inputs=self.inputs[:examples], targets=self.targets[:examples])

    def batches(self, rows: int) -> list[tuple[Tensor, Tensor]]:
        """Cut the data into batches."""
        return list(zip(self.inputs.split(rows), self.targets.split(rows), strict=True))

    def about(self) -> dict[str, Any]:
        """Describe the problem for a record."""
        with torch.no_grad():
            outputs = torch.cat([self.model(inputs) for inputs, _ in self.batches(500)])
        return {
            **dataclasses.asdict(self.setting),
            "examples": len(self.targets),
            "dimension": self.dimension,
            "loss": float(self.loss_fn(outputs, self.targets)),
            "accuracy": float((outputs.argmax(1) == self.targets).double().mean()),
            "training": f"{self.setting.iterations} iterations of SGD, momentum {MOMENTUM}, batches of {BATCH}",
        }


def images(setting: Setting) -> tuple[Tensor, Tensor]:
    """Load all training images of a setting, normalised and pooled."""
    inputs, targets = load_dataset(setting.dataset).on_device("train").tensors()
    return (functional.avg_pool2d(inputs, setting.pool) if setting.pool > 1 else inputs), targets


def _network(setting: Setting, shape: tuple[int, int, int]) -> nn.Module:
    kind, _, sizes = setting.network.partition(" ")
    numbers = [int(size) for size in sizes.split("-") if size]
    torch.manual_seed(setting.seed)
    if kind == "mlp":
        return mlp(numbers)
    if kind == "resnet":
        return cifar_resnet(numbers[0], numbers[1], shape[0], 10)
    return build_model(kind, input_shape=shape, num_classes=numbers[0] if numbers else 10, seed=setting.seed)


def _train(model: nn.Module, setting: Setting, inputs: Tensor, targets: Tensor) -> None:
    generator = torch.Generator().manual_seed(setting.seed)
    optimiser = torch.optim.SGD(model.parameters(), setting.lr, MOMENTUM)
    model.train()
    for _ in range(setting.iterations):
        chosen = torch.randint(len(targets), (BATCH,), generator=generator)
        optimiser.zero_grad()
        functional.cross_entropy(model(inputs[chosen]), targets[chosen]).backward()
        optimiser.step()
    optimiser.zero_grad()


def load_problem(name: str) -> Problem:
    """Make a problem; its network is trained the first time and cached.

    Args:
        name: A key of ``PROBLEMS``.

    Returns:
        The problem.
    """
    setting = PROBLEMS[name]
    inputs, targets = images(setting)
    model = _network(setting, (inputs.shape[1], inputs.shape[2], inputs.shape[3]))
    path = make_folder(cache_folder() / "benchmarks") / f"{setting.key}.safetensors"
    if path.is_file():
        model.load_state_dict(safetensors.torch.load_file(path))
    else:
        _train(model, setting, inputs, targets)
        with atomic_file(path) as temporary:
            safetensors.torch.save_file(model.state_dict(), temporary)
    chosen = torch.randperm(len(targets), generator=torch.Generator().manual_seed(setting.seed))[: setting.examples]
    return frozen(Problem(name, model, nn.CrossEntropyLoss(), inputs[chosen].clone(), targets[chosen].clone(), setting))


def frozen(problem: Problem) -> Problem:
    """Leave only the prunable weights to differentiate by, so that every method multiplies by the same matrix."""
    names = set(prunable_names(problem.model))
    for name, p in problem.model.named_parameters():
        p.requires_grad_(name in names)
    problem.model.eval()
    return problem


def wide_mlp(parameters: float, examples: int, dataset: str) -> Problem:
    """Make an MLP with two equal hidden layers and about so many prunable weights, trained for 10 iterations.

    Args:
        parameters: Prunable weights, more than the inputs and outputs have together.
        examples: Images, N.
        dataset: Name of the data set.

    Returns:
        The problem.
    """
    base = Setting(dataset, "", examples, 10, 0.01)
    inputs, targets = images(base)
    ends = inputs[0].numel() + 10
    width = int((np.sqrt(ends**2 + 4 * parameters) - ends) / 2)
    setting = dataclasses.replace(base, network=f"mlp {ends - 10}-{width}-{width}-10")
    model = _network(setting, (inputs.shape[1], inputs.shape[2], inputs.shape[3]))
    _train(model, setting, inputs, targets)
    rows = slice(examples)
    chosen = inputs[rows].clone(), targets[rows].clone()
    return frozen(Problem(setting.network, model, nn.CrossEntropyLoss(), *chosen, setting))


def dense_eigenvalues(problem: Problem) -> np.ndarray:
    """Compute all eigenvalues of the Hessian in float64, by products with all unit vectors; cached, in parts on the way.

    The products are forward-mode derivatives of the gradient, written out here, so that the truth does not come from what is
    measured.
    """
    about = f"{problem.setting.key} {len(problem.targets)}"
    folder = make_folder(cache_folder() / "benchmarks")
    path = folder / f"{hashlib.sha256(about.encode()).hexdigest()[:16]}.npy"
    if path.is_file():
        return np.load(path)
    parts = make_folder(folder / path.stem)
    for start in range(0, problem.dimension, DENSE_PART):
        part = parts / f"{start:06d}.npy"
        if not part.is_file():
            _save(part, _hessian_rows(problem, range(start, min(start + DENSE_PART, problem.dimension))))
    matrix = np.concatenate([np.load(part) for part in sorted(parts.glob("*.npy"))])
    eigenvalues = np.linalg.eigvalsh((matrix + matrix.T) / 2)
    _save(path, eigenvalues)
    shutil.rmtree(parts)
    return eigenvalues


def _save(path: Path, array: np.ndarray) -> None:
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array)


def _hessian_rows(problem: Problem, rows: range) -> np.ndarray:
    """Multiply the Hessian by unit vectors, ``(rows, D)`` float64."""
    model, inputs = copy.deepcopy(problem.model).double(), problem.inputs.double()
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in weights.values()]

    def loss(values: dict[str, Tensor]) -> Tensor:
        return problem.loss_fn(functional_call(model, values, (inputs,)), problem.targets)

    found = []
    for row in rows:
        unit = torch.zeros(sum(sizes), dtype=torch.float64)
        unit[row] = 1
        cut = zip(weights.items(), unit.split(sizes), strict=True)
        _, product = jvp(grad(loss), (weights,), ({name: part.view(p.shape) for (name, p), part in cut},))
        found.append(torch.cat([part.flatten() for part in product.values()]).numpy())
    return np.stack(found)
