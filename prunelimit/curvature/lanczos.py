"""The Lanczos process: several probes at once, one pass of reorthogonalisation, continued rather than repeated."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from prunelimit.errors import PruneLimitError
from prunelimit.files import write_json

#: A second pass of Gram-Schmidt is made where less than this is left of a product (Daniel et al. 1976): the digits that
#: cancelled are missing from what remains. One digit is allowed to.
SECOND_PASS = 0.1

#: What is left of a product is taken for rounding, and the Krylov space for complete, below so many roundings of the largest one.
END = 10

#: Entries of a vector that are converted to float64 at a time.
_PIECE = 2**18

_STATE, _BASIS = "lanczos.json", "basis.bin"


class SymmetricOperator(Protocol):
    """Anything with a dimension that multiplies vectors."""

    dimension: int
    dtype: torch.dtype
    device: torch.device

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Multiply by a ``(D,)`` vector or a ``(D, p)`` block."""
        ...


@dataclasses.dataclass(frozen=True)
class Tridiagonal:
    """The matrix that Lanczos leaves of an operator and a start vector.

    Attributes:
        alpha: ``(k,)`` diagonal.
        beta: ``(k,)`` off-diagonal; the last entry is the norm of the residual, zero if the Krylov space is complete.
    """

    alpha: np.ndarray
    beta: np.ndarray

    #: Number of start vectors it stands for.
    vectors: ClassVar[int] = 1

    @property
    def complete(self) -> bool:
        """Whether the Krylov space is complete, so that the Gauss rule is exact."""
        return bool(self.beta[-1] == 0)

    @property
    def rows(self) -> int:
        """Dimension of the Krylov space so far."""
        return len(self.alpha)

    @property
    def mean(self) -> float:
        """Rayleigh quotient of the start vector."""
        return float(self.alpha[0])

    def truncated(self, steps: int) -> Tridiagonal:
        """Return what the first so many steps left."""
        return Tridiagonal(self.alpha[:steps], self.beta[:steps])


def scrambled_seed(seed: int, purpose: str = "probe") -> int:
    """Turn a small seed into one that no network was initialised from.

    A network is often initialised from the same small seed, and normal draws from the same generator would make the
    probe a copy of its first weights, which know about the curvature.

    Args:
        seed: Any integer.
        purpose: Draws for other purposes are independent.

    Returns:
        A seed for ``torch.Generator.manual_seed``.
    """
    return int.from_bytes(hashlib.sha256(f"{purpose} {seed}".encode()).digest()[:7])


def sphere_vector(dimension: int, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Draw a float32 vector uniformly from the unit sphere; drawn on the CPU, so that devices agree.

    Args:
        dimension: Number of entries.
        seed: Seed of the draw; scrambled first, see :func:`scrambled_seed`.
        device: Where the vector goes.

    Returns:
        ``(D,)`` of Euclidean norm one.
    """
    vector = torch.randn(dimension, generator=torch.Generator().manual_seed(scrambled_seed(seed)))
    return (vector / vector.norm()).to(device)


def start_norms(starts: Tensor, add_slices: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Compute the norms of start vectors.

    Args:
        starts: ``(p, n)`` vectors, or slices of them.
        add_slices: Adds up over the processes what is summed over slices.

    Returns:
        ``(p, 1)`` float64 norms.

    Raises:
        PruneLimitError: If a vector is zero or not a number.
    """
    norms = starts.double().norm(dim=1, keepdim=True)
    norms = norms if add_slices is None else add_slices(norms.square()).sqrt()
    if not bool((norms > 0).all()):
        raise PruneLimitError("start is the zero vector (or NaN): draw a random one.")
    return norms


def unit_rounding(operator: SymmetricOperator) -> float:
    """Return the relative rounding of an operator's products: its own ``rounding``, or that of its type."""
    return float(getattr(operator, "rounding", torch.finfo(operator.dtype).eps))


def basis_bytes(dimension: int, steps: int, probes: int = 1, dtype: torch.dtype = torch.float32) -> int:
    """Return the memory that a basis takes, in bytes; without one (low memory) it is that of three steps.

    Args:
        dimension: Number of rows, D.
        steps: Products per probe.
        probes: Probes at once.
        dtype: Type of the vectors.

    Returns:
        Bytes.
    """
    return dimension * steps * probes * dtype.itemsize


def inner(one: Tensor, other: Tensor) -> Tensor:
    """Add up an inner product in float64, in pieces, because whole copies of long vectors would cost their memory.

    Args:
        one: ``(n,)``.
        other: ``(n,)``.

    Returns:
        The product, without dimensions.
    """
    pieces = zip(one.split(_PIECE), other.split(_PIECE), strict=True)
    return torch.as_tensor(sum(a.double() @ b.double() for a, b in pieces))


class LanczosRun:
    """A Lanczos process for a block of start vectors, each with a Krylov space of its own.

    The new vectors are orthogonalised against all earlier ones by one blocked pass of classical Gram-Schmidt, and by a
    second one where that took much away. Without a basis (``reorthogonalise=False``) three vectors are kept instead of
    all, and eigenvalues that have converged come back as copies: nodes and weights still integrate (Greenbaum 1989),
    but more steps are needed for the same accuracy and a Ritz value's weight is spread over its copies.

    Args:
        operator: Symmetric operator with D rows.
        starts: ``(D,)`` or ``(p, D)`` start vectors; they need not have norm one.
        reorthogonalise: Whether to keep the basis.
        first: Products of the start vectors, of their shape, if they are at hand.

    Raises:
        PruneLimitError: If a start vector is zero.
    """

    def __init__(
        self, operator: SymmetricOperator, starts: Tensor, *, reorthogonalise: bool = True, first: Tensor | None = None
    ) -> None:
        self.operator, self.reorthogonalise = operator, reorthogonalise
        # Of an operator whose vectors are sharded this process holds slices, and what it sums is a part.
        self._width: int = getattr(operator, "width", operator.dimension)
        self._add_slices: Callable[[Tensor], Tensor] | None = getattr(operator, "add_slices", None)
        rows = starts.reshape(-1, self._width).to(operator.device, operator.dtype)
        norms = start_norms(rows, self._add_slices)
        self.current = rows / norms.to(rows)
        self._first = None if first is None else first.reshape(rows.shape).to(rows) / norms.to(rows)
        self.previous: Tensor | None = None
        self._spare: Tensor | None = None
        self._blocks: list[Tensor] = []
        self._filled: list[int] = []
        self.alpha: list[list[float]] = [[] for _ in rows]
        self.beta: list[list[float]] = [[] for _ in rows]
        self._scale, self._saved = [0.0] * len(rows), 0

    @property
    def steps(self) -> int:
        """Products made so far per probe; the most, if one has come to an end."""
        return max(len(alpha) for alpha in self.alpha)

    @property
    def tridiagonals(self) -> tuple[Tridiagonal, ...]:
        """What is known so far, one matrix per probe."""
        return tuple(Tridiagonal(np.array(a), np.array(b)) for a, b in zip(self.alpha, self.beta, strict=True))

    @property
    def complete(self) -> list[bool]:
        """Which Krylov spaces are complete: no further step is possible."""
        return [bool(beta) and beta[-1] == 0 for beta in self.beta]

    def extend(self, steps: int, told: Callable[[int], None] | None = None) -> Self:
        """Make more steps.

        Args:
            steps: Products per probe, at least one; fewer are made where the Krylov space is complete.
            told: Called after each with the number of products per probe made in this call.

        Returns:
            The run itself.

        Raises:
            PruneLimitError: If ``steps`` is less than one.
        """
        if steps < 1:
            raise PruneLimitError(f"steps={steps!r} must be at least 1: each step is one product per probe.")
        steps = min(steps, self.operator.dimension - self.steps)
        if self.reorthogonalise and steps and not all(self.complete):
            shape = (len(self.current), steps, self._width)
            self._blocks.append(torch.empty(shape, dtype=self.current.dtype, device=self.current.device))
            self._filled.append(0)
        for number in range(steps):
            if all(self.complete):
                break
            self._step()
            if told is not None:
                told(number + 1)
        return self

    def _step(self) -> None:
        """Make one product per open probe."""
        open_probes = [p for p, done in enumerate(self.complete) if not done]
        if self._first is not None:
            products, self._first = self._first, None
        elif len(self.current) == 1:
            products = (self.operator @ self.current[0])[None]
        else:
            products = torch.zeros_like(self.current)
            products[open_probes] = (self.operator @ self.current[open_probes].T).T.contiguous()
        # Only now: a product that was interrupted must leave no trace.
        if self.reorthogonalise:
            self._blocks[-1][:, self._filled[-1]] = self.current
            self._filled[-1] += 1
        # Three vectors take turns: memory that is new to the process costs as much time as what is done with it.
        following = torch.empty_like(self.current) if self._spare is None else self._spare
        for p, vector in enumerate(following):
            if p in open_probes:
                self._orthogonalise(p, products[p], vector)
            else:
                vector.zero_()
        self._spare, self.previous, self.current = self.previous, self.current, following

    def _summed(self, part: Tensor) -> Tensor:
        return part if self._add_slices is None else self._add_slices(part)

    def _inner(self, one: Tensor, other: Tensor) -> float:
        return float(self._summed(inner(one, other)))

    def _orthogonalise(self, p: int, product: Tensor, vector: Tensor) -> None:
        """Take the known directions out of one product, note the coefficients, write the next basis vector."""
        current = self.current[p]
        whole = math.sqrt(self._inner(product, product))
        alpha = self._inner(product, current)
        torch.sub(product, current, alpha=alpha, out=vector)
        if self.previous is not None:
            vector.sub_(self.previous[p], alpha=self.beta[p][-1])
        for _ in range(2):
            if self.reorthogonalise:
                self._remove_known(p, vector)
            size = math.sqrt(self._inner(vector, vector))
            if not self.reorthogonalise or size > SECOND_PASS * whole:
                break
        self._scale[p] = max(self._scale[p], abs(alpha), size)
        # What is left after a complete Krylov space is rounding: it must not become a direction.
        floor = END * torch.finfo(vector.dtype).eps * self._scale[p]
        ended = size <= floor or len(self.alpha[p]) + 1 == self.operator.dimension
        self.alpha[p].append(alpha)
        self.beta[p].append(0.0 if ended else size)
        if ended:
            vector.zero_()
        else:
            vector.div_(size)

    def _remove_known(self, p: int, vector: Tensor) -> None:
        """Make one pass of classical Gram-Schmidt against the basis, in place."""
        for block, filled in zip(self._blocks, self._filled, strict=True):
            known = block[p, :filled]
            vector.addmv_(known.T, self._summed(known @ vector), alpha=-1)

    def save(self, folder: Path, **about: Any) -> None:
        """Write the process to disk, so that it can be continued by another one; only new vectors are written.

        Args:
            folder: Where; made if it is missing.
            **about: Plain JSON values that say what was probed; :meth:`load` compares them.

        Raises:
            PruneLimitError: If the process keeps no basis, or slices of it.
        """
        if self._add_slices is not None:
            raise PruneLimitError("folder cannot hold the slices of sharded parameters: leave it out.")
        if not self.reorthogonalise:
            raise PruneLimitError("reorthogonalise=False keeps no basis to save: run with the basis to continue later.")
        folder.mkdir(parents=True, exist_ok=True)
        size = len(self.current) * self.operator.dimension * self.current.dtype.itemsize
        with open(folder / _BASIS, "r+b" if (folder / _BASIS).exists() else "w+b") as file:
            file.truncate(self._saved * size)  # an earlier save may have been cut off after its vectors
            file.seek(self._saved * size)
            done = 0
            for block, filled in zip(self._blocks, self._filled, strict=True):
                for k in range(filled):
                    if done >= self._saved:
                        file.write(block[:, k].contiguous().cpu().numpy().tobytes())
                    done += 1
            file.write(self.current.contiguous().cpu().numpy().tobytes())
            file.flush()
        self._saved = self.steps
        state = {"alpha": self.alpha, "beta": self.beta, "scale": self._scale, "dtype": str(self.current.dtype)}
        write_json(folder / _STATE, state | {"dimension": self.operator.dimension, "about": about})

    @classmethod
    def load(cls, folder: Path, operator: SymmetricOperator, **about: Any) -> Self | None:
        """Read a process that :meth:`save` wrote.

        Args:
            folder: Where it was written.
            operator: The operator it ran with.
            **about: What was probed.

        Returns:
            The process, ready to be extended, or ``None`` if there is none.

        Raises:
            PruneLimitError: If what was saved belongs to another operator, type or start vector.
        """
        try:
            state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        wanted = {"dimension": operator.dimension, "dtype": str(operator.dtype), "about": about}
        for name, value in wanted.items():
            if state[name] != value:
                raise PruneLimitError(
                    f"folder={str(folder)!r} holds a Lanczos process with {name} {state[name]}, not {value}: "
                    "choose another folder or delete it."
                )
        probes, steps = len(state["alpha"]), max(len(a) for a in state["alpha"])
        kind = torch.empty(0, dtype=operator.dtype).numpy().dtype
        stored = np.fromfile(folder / _BASIS, dtype=kind, count=(steps + 1) * probes * operator.dimension)
        vectors = torch.from_numpy(stored).reshape(steps + 1, probes, operator.dimension).to(operator.device)
        run = cls(operator, torch.ones(probes, operator.dimension))
        run.alpha, run.beta, run._scale, run._saved = state["alpha"], state["beta"], state["scale"], steps
        run.previous, run.current = vectors[-2].clone(), vectors[-1].clone()
        run._blocks, run._filled = [vectors[:-1].transpose(0, 1)], [steps]
        return run


def lanczos(operator: SymmetricOperator, start: Tensor, steps: int, *, reorthogonalise: bool = True) -> Tridiagonal:
    """Run Lanczos for one start vector.

    Use it for the quadrature of one vector of your own; :class:`LanczosRun` continues and saves, and
    :func:`prunelimit.curvature.spectrum` draws the vectors. The basis takes ``steps * D`` numbers of memory.

    Args:
        operator: Symmetric operator with D rows.
        start: ``(D,)`` start vector; it need not have norm one.
        steps: Number of products, at least one.
        reorthogonalise: Whether to keep the basis; see :class:`LanczosRun` for what is lost without it.

    Returns:
        The tridiagonal matrix; shorter than ``steps`` if the Krylov space was complete earlier.

    Raises:
        PruneLimitError: If ``steps`` is less than one or the start vector is zero.
    """
    return LanczosRun(operator, start, reorthogonalise=reorthogonalise).extend(steps).tridiagonals[0]
