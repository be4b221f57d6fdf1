"""Stochastic Lanczos quadrature: from an operator to its :class:`Spectrum`, within memory, continued and watched."""

from __future__ import annotations

import numbers
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prunelimit.curvature.active import ActiveOperator
from prunelimit.curvature.block import BlockLanczosRun, BlockTridiagonal
from prunelimit.curvature.lanczos import (
    LanczosRun,
    SymmetricOperator,
    Tridiagonal,
    basis_bytes,
    sphere_vector,
    unit_rounding,
)
from prunelimit.curvature.operator import free_memory
from prunelimit.curvature.quadrature import Spectrum
from prunelimit.curvature.rows import zero_rows
from prunelimit.errors import PruneLimitError
from prunelimit.files import atomic_file
from prunelimit.progress import ProgressLine

#: Tells a user what is known so far: the spectrum of the finished steps in, numbers for the progress line out.
Watch = Callable[[Spectrum], dict[str, Any]]

#: Share of the free memory that the Lanczos basis may take.
BASIS_SHARE = 0.8

#: Products between two saves of a process that has a folder.
SAVE_EVERY = 16


def spectrum(
    operator: SymmetricOperator,
    *,
    steps: int = 64,
    probes: int = 1,
    seed: int = 0,
    nullity: int = 0,
    low_memory: bool = False,
    joint: bool = False,
    folder: Path | None = None,
    progress: bool | None = None,
    watch: Watch | None = None,
    each: Callable[[], None] | None = None,
) -> Spectrum:
    """Probe the spectrum of an operator with stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017).

    Rows of the operator that are exactly zero are found from the first product, and removed from probes and dimension:
    dead units and inputs that are always zero cost nothing and are known, not estimated.

    Args:
        operator: Symmetric operator with D rows, for example a :class:`HessianOperator`.
        steps: Products per probe.
        probes: Random start vectors, uniform on the sphere; as many at a time as memory allows.
        seed: Seed of the first one.
        nullity: Further eigenvalues that are known to be zero, if the operator was reduced beforehand.
        low_memory: Whether to do without the basis; see :class:`LanczosRun` for what is lost.
        joint: Whether the probes share one Krylov space: the same products, from which much more is known, because each
            outlying eigenvalue is found once and not by every probe; see :mod:`prunelimit.curvature.block`. One long process
            knows more still from as many products, but has one probe's noise.
        folder: Where the process is saved, so that a later call with more steps continues instead of repeating.
        progress: Whether to show a progress line; it begins with the memory that is needed.
        watch: Gives more numbers for that line, from what is known so far.
        each: Called after every product; what it raises ends the process, saved if there is a folder.

    Returns:
        The spectrum.

    Raises:
        PruneLimitError: If ``steps`` or ``probes`` is less than one, the basis does not fit into memory, or ``folder``
            belongs to another process.
    """
    for name, number, unit in (("probes", probes, "random start vector"), ("steps", steps, "product per probe")):
        if not isinstance(number, numbers.Integral) or number < 1:
            raise PruneLimitError(f"{name}={number!r} must be an integer, at least 1: each is one {unit}.")
    if low_memory and folder is not None:
        raise PruneLimitError("low_memory=True keeps no basis to continue from: leave folder out.")
    if joint and (low_memory or folder is not None or hasattr(operator, "add_slices")):
        raise PruneLimitError(
            "joint=True needs a whole basis in memory and is not saved: leave low_memory and folder out."
        )
    steps = min(steps, operator.dimension)
    together = _probes_at_once(operator, steps, probes, low_memory)
    size = basis_bytes(operator.dimension, 3 if low_memory else steps, together, operator.dtype)
    if progress:
        free = free_memory(operator.device) / 2**30
        print(f"Lanczos: basis of {size / 2**30:.2f} GiB, {free:.1f} GiB are free", file=sys.stderr, flush=True)
    if hasattr(operator, "reserve"):
        operator.reserve = size
    reduced, first = _without_zero_rows(operator, seed, range(min(together, probes)), folder)
    zeros = operator.dimension - reduced.dimension
    steps = min(steps, reduced.dimension)
    found: list[Tridiagonal] = []
    blocks: list[BlockTridiagonal] = []

    def known(run: LanczosRun | BlockLanczosRun | None = None) -> Spectrum:
        probes, joined = list(found), list(blocks)
        if isinstance(run, LanczosRun):
            probes += run.tridiagonals
        elif run is not None:
            joined.append(run.found)
        return Spectrum(operator.dimension + nullity, tuple(probes), seed, nullity + zeros, tuple(joined))

    for begin in range(0, probes, together):
        group = range(begin, min(begin + together, probes))
        place = None if folder is None else folder / f"seed-{seed + begin}-{len(group)}"
        about = {"seed": seed + begin, "probes": len(group)}
        run: LanczosRun | BlockLanczosRun | None = None if place is None else LanczosRun.load(place, reduced, **about)
        if run is None:
            starts, products = _starts(operator, reduced, seed, group), None if begin else first
            if joint:
                run = BlockLanczosRun(reduced, starts, first=products)
            else:
                run = LanczosRun(reduced, starts, reorthogonalise=not low_memory, first=products)
        title = f"Lanczos, probe {begin + 1}" + (f"-{begin + len(group)}" if len(group) > 1 else "") + f" of {probes}"
        with ProgressLine(title, steps, progress) as line:

            def told(
                _: int,
                run: LanczosRun | BlockLanczosRun = run,
                line: ProgressLine = line,
                place: Path | None = place,
            ) -> None:
                line.update(run.steps, (lambda: watch(known(run))) if watch else None)
                if isinstance(run, LanczosRun) and place is not None and run.steps % SAVE_EVERY == 0:
                    run.save(place, **about)  # noqa: B023 - told is used up before about changes
                if each is not None:
                    each()

            if run.steps < steps:
                try:
                    run.extend(steps - run.steps, told)
                finally:
                    if isinstance(run, LanczosRun) and place is not None and run.steps:
                        run.save(place, **about)
        if isinstance(run, LanczosRun):
            found += [t.truncated(steps) for t in run.tridiagonals]
        else:
            blocks.append(run.found)
    return known().rounded(unit_rounding(operator))


def _probes_at_once(operator: SymmetricOperator, steps: int, probes: int, low_memory: bool) -> int:
    """Find how many probes may run side by side, or say that not even one does."""
    kept = 3 if low_memory else steps
    one = basis_bytes(operator.dimension, kept, 1, operator.dtype)
    room = BASIS_SHARE * free_memory(operator.device)
    if one > room:
        raise PruneLimitError(
            f"steps={steps} needs {one / 2**30:.1f} GiB for the Lanczos basis of {operator.dimension:,} rows, and "
            f"{room / 2**30:.1f} GiB may be used: take fewer steps, or low_memory=True."
        )
    return max(1, min(probes, int(room // one)))


def _starts(operator: SymmetricOperator, reduced: SymmetricOperator, seed: int, group: range) -> torch.Tensor:
    """Draw the start vectors of a group of probes, ``(p, D)``, without the rows that are zero."""
    vectors = torch.stack([sphere_vector(operator.dimension, seed + p, operator.device) for p in group])
    return vectors if reduced is operator else reduced.restrict(vectors)  # type: ignore[attr-defined]


def _without_zero_rows(
    operator: SymmetricOperator, seed: int, group: range, folder: Path | None
) -> tuple[SymmetricOperator, torch.Tensor | None]:
    """Find the rows that are zero from the first products; give what is left of the operator, and those products."""
    kept = None if folder is None else folder / "active.npy"
    products = None
    if kept is not None and kept.is_file():
        active = torch.from_numpy(np.load(kept))
    else:
        starts = _starts(operator, operator, seed, group).to(operator.dtype)
        products = (operator @ starts[0])[None] if len(starts) == 1 else (operator @ starts.T).T
        active = ~zero_rows(operator, products.T).cpu()
        if kept is not None:
            with atomic_file(kept) as path, open(path, "wb") as file:
                np.save(file, active.numpy())
    if bool(active.all()) or not bool(active.any()):
        return operator, products
    reduced = ActiveOperator(operator, active)
    return reduced, None if products is None else reduced.restrict(products)
