"""The methods that are compared, behind one interface: open a problem, multiply, and give nodes and weights.

All of them see the same network, data, prunable weights and start vectors. Start vectors are injected from outside, by
replacing the function that each library draws its own with for as long as it runs; no line of a library is changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from benchmarks import released
from benchmarks.problems import Problem
from prunelimit.curvature import HessianOperator, gauss_rule, lanczos, spectrum
from prunelimit.curvature.lanczos import sphere_vector
from prunelimit.curvature.reduce import reduced_operator

#: Nodes and weights of one start vector.
Rule = tuple[np.ndarray, np.ndarray]

#: Rows per batch at which a product of the methods that cut the data was fastest, tried from 25 to 2000; for FC5 and for the
#: MLPs of a few thousand weights it makes no difference above 250.
ROWS = {"resnet20": 100, "resnet-small": 250}
DEFAULT_ROWS = 1000


class Session(Protocol):
    """A method that has been given a problem."""

    def product(self, vector: Tensor) -> Tensor:
        """Multiply the Hessian by a ``(D,)`` vector."""
        ...

    def rules(self, starts: Sequence[Tensor], steps: int) -> list[Rule]:
        """Run Lanczos from each start vector."""
        ...


@dataclasses.dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        name: Its name in records.
        package: Distribution that it needs; ``None`` if it is part of this repository.
        what: What it does per product and per step.
        session: Opens a problem, with the rows per batch.
    """

    name: str
    package: str | None
    what: str
    session: Callable[[Problem, int], Session]

    @property
    def available(self) -> bool:
        """Whether its package is installed."""
        return self.version is not None or self.package is None

    @property
    def version(self) -> str | None:
        """Version of its package."""
        try:
            return None if self.package is None else importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None

    def open(self, problem: Problem) -> Session:
        """Give the method a network of its own, and the rows per batch that suit it."""
        return self.session(problem.fresh(), best_rows(problem))

    def about(self) -> dict[str, Any]:
        """Describe the method for a record."""
        return {"package": self.package, "version": self.version, "what": self.what}


def best_rows(problem: Problem) -> int:
    """Return the rows per batch at which products and gradients are fastest."""
    return ROWS.get(problem.name, DEFAULT_ROWS)


def cut(vector: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Cut a ``(D,)`` vector into copies of the parameters' shapes."""
    parts = vector.split([p.numel() for p in parameters])
    return [part.reshape(p.shape).clone() for part, p in zip(parts, parameters, strict=True)]


def start_vectors(problem: Problem, probes: int, seed: int) -> list[Tensor]:
    """Draw the start vectors that prunelimit draws itself."""
    return [sphere_vector(problem.dimension, seed + p) for p in range(probes)]


def integrate(rules: Sequence[Rule], mu: np.ndarray, dimension: int) -> np.ndarray:
    """Estimate d(mu) as the sum over nodes and weights, averaged over probes."""
    each = [[weights @ (np.abs(nodes) / (np.abs(nodes) + m)) for m in np.ravel(mu)] for nodes, weights in rules]
    return dimension * np.mean(each, axis=0)


class Ours:
    """prunelimit as ``predict_limit`` calls it: of a plain MLP, without the directions that the data do not span."""

    joint = False

    def __init__(self, problem: Problem, rows: int) -> None:
        data = (problem.inputs, problem.targets)
        self.operator, self.reduced = reduced_operator(HessianOperator, problem.model, problem.loss_fn, data)

    def prepared(self, vector: Tensor) -> Tensor:
        """Bring a vector into the coordinates of the products."""
        return vector if self.reduced is None else self.reduced.restrict(vector)

    def product(self, vector: Tensor) -> Tensor:
        """Multiply by a prepared vector."""
        return self.operator @ vector

    def rules(self, starts: Sequence[Tensor], steps: int) -> list[Rule]:
        """Run Lanczos with a basis, reorthogonalised; what lies in the known null space is one node at zero."""
        rules = []
        for start in starts:
            inside = self.prepared(start)
            found = lanczos(self.operator, inside, steps)
            nodes, weights = gauss_rule(found.alpha, found.beta)
            share = float(inside.norm() / start.norm()) ** 2
            rules.append((np.append(nodes, 0.0), np.append(weights * share, 1 - share)))
        return rules

    def effective_dimension(self, mu: np.ndarray, steps: int, probes: int, seed: int) -> np.ndarray:
        """Estimate d(mu) by the public function, which draws its own start vectors."""
        nullity = 0 if self.reduced is None else self.reduced.nullity
        found = spectrum(self.operator, steps=steps, probes=probes, seed=seed, nullity=nullity, joint=self.joint)
        return found.effective_dimension(mu)[0]


class OursJoint(Ours):
    """The same with all start vectors in one Krylov space."""

    joint = True


class PyHessian:
    """PyHessian's class ``hessian`` and its ``density``."""

    def __init__(self, problem: Problem, rows: int) -> None:
        from pyhessian import hessian

        self.problem, self.parameters = problem, problem.parameters
        with _quiet():
            self.library = hessian(problem.model, problem.loss_fn, cuda=False, **self._data(problem, rows))

    def _data(self, problem: Problem, rows: int) -> dict[str, Any]:
        return {"data": (problem.inputs, problem.targets)}

    def product(self, vector: Tensor) -> Tensor:
        """Multiply by a vector."""
        from pyhessian.utils import hessian_vector_product

        parts = hessian_vector_product(self.library.gradsH, self.parameters, cut(vector, self.parameters))
        return torch.cat([part.flatten() for part in parts])

    def rules(self, starts: Sequence[Tensor], steps: int) -> list[Rule]:
        """Call ``density``, which draws random signs by ``torch.randint_like`` tensor by tensor: those are given to it.

        Version 0.1 calls ``torch.eig``, which torch no longer has; the git version calls ``torch.linalg.eig``. So does what
        stands in for it here. For ``density`` this is the only difference between the two.
        """
        given = iter([part for start in starts for part in cut(start, self.parameters)])

        def following(*_: Any, **__: Any) -> Tensor:
            return next(given)

        with (
            _quiet(),
            mock.patch.object(torch, "randint_like", following),
            mock.patch.object(torch, "eig", _eig, create=True),
        ):
            nodes, weights = self.library.density(iter=steps, n_v=len(starts))
        return [(np.real(n), np.real(w)) for n, w in zip(nodes, weights, strict=True)]


class PyHessianLoader(PyHessian):
    """PyHessian with a data loader: a new graph for each batch of each product."""

    def _data(self, problem: Problem, rows: int) -> dict[str, Any]:
        return {"dataloader": problem.batches(rows)}

    def product(self, vector: Tensor) -> Tensor:
        """Multiply by a vector."""
        with _quiet():
            _, parts = self.library.dataloader_hv_product(cut(vector, self.parameters))
        return torch.cat([part.flatten() for part in parts])


def _eig(matrix: Tensor, eigenvectors: bool = False) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eig(matrix)
    return torch.view_as_real(values), vectors


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop the warning that backward with a graph leaks; the networks are thrown away."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Curvlinops:
    """curvlinops' ``HessianLinearOperator`` and its ``fast_lanczos``."""

    def __init__(self, problem: Problem, rows: int) -> None:
        from curvlinops import HessianLinearOperator

        self.operator = HessianLinearOperator(
            problem.model,
            problem.loss_fn,
            problem.parameters,
            problem.batches(rows),
            check_deterministic=False,
            num_data=len(problem.targets),
        )

    def product(self, vector: Tensor) -> Tensor:
        """Multiply by a vector."""
        return self.operator @ vector

    def rules(self, starts: Sequence[Tensor], steps: int) -> list[Rule]:
        """Call ``fast_lanczos``, which draws by ``randn`` of its module: the start vector is given to it."""
        from curvlinops.papyan2020traces import spectrum as module

        rules = []
        for start in starts:
            with mock.patch.object(module, "randn", lambda *_, given=start, **__: given.clone()):
                nodes, vectors = module.fast_lanczos(self.operator, steps)
            rules.append((nodes.numpy(), (vectors[0] ** 2).numpy()))
        return rules


class Released:
    """The released code's routine, written anew."""

    def __init__(self, problem: Problem, rows: int) -> None:
        self.problem, self.rows = problem, rows

    def product(self, vector: Tensor) -> Tensor:
        """Multiply by a vector."""
        parts = released.product(self.problem, cut(vector, self.problem.parameters), self.rows)
        return torch.cat([part.flatten() for part in parts])

    def rules(self, starts: Sequence[Tensor], steps: int) -> list[Rule]:
        """Run it as far as the smoothed density, whose bins are its nodes."""
        rules = []
        for start in starts:
            vector = cut(start, self.problem.parameters)
            found = released.lanczos(lambda v: released.product(self.problem, v, self.rows), vector, steps)
            rules.append(released.smoothed(*found))
        return rules


METHODS = {
    method.name: method
    for method in (
        Method(
            "prunelimit",
            None,
            "HessianOperator with its own choice of rule and batch, of a plain MLP in the row space of its inputs, with oneDNN's matrix products where a CPU has 512-bit vectors; Lanczos with one blocked reorthogonalisation",
            Ours,
        ),
        Method(
            "prunelimit-joint",
            None,
            "as prunelimit, with one Krylov space for all start vectors of an estimate",
            OursJoint,
        ),
        Method(
            "pyhessian",
            "pyhessian",
            "the graph of the gradient over all data is built once and kept (data=...); a product differentiates it again; "
            "every step is orthogonalised against all earlier vectors, tensor by tensor",
            PyHessian,
        ),
        Method(
            "pyhessian-loader",
            "pyhessian",
            "forward and backward with a new graph for each batch of each product (dataloader=...), then as pyhessian",
            PyHessianLoader,
        ),
        Method(
            "curvlinops",
            "curvlinops-for-pytorch",
            "forward over reverse, torch.func.jvp of jacrev under vmap, batch by batch and from the start for each product; "
            "fast_lanczos does not reorthogonalise",
            Curvlinops,
        ),
        Method(
            "released",
            None,
            "a new graph for each batch of each product, tensor by tensor reorthogonalisation, 100,000 bins",
            Released,
        ),
    )
}


#: Methods that differ from another one only with several start vectors: compared where asked for by name.
SEVERAL = ("prunelimit-joint",)


def available(names: Sequence[str] | None = None) -> dict[str, Method]:
    """Return the methods whose packages are installed, of those named or of all but ``SEVERAL``."""
    wanted = names or [name for name in METHODS if name not in SEVERAL]
    return {name: METHODS[name] for name in wanted if METHODS[name].available}
