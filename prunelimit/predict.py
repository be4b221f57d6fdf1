"""The one call that most users need: how far can my network be pruned?"""

from __future__ import annotations

import dataclasses
import numbers
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from prunelimit.adapters import Adapted, adapt
from prunelimit.curvature import GGNOperator, HessianOperator, Spectrum, spectrum
from prunelimit.curvature.data import Batches, LossFunction, joined, map_tensors
from prunelimit.curvature.lanczos import scrambled_seed
from prunelimit.curvature.operator import CurvatureOperator
from prunelimit.curvature.reduce import reduced_operator
from prunelimit.curvature.rules import TwiceError
from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.limit import (
    FlatError,
    PruningLimit,
    check_epsilon,
    default_epsilon,
    formula_limit,
    stretch_to_population,
    tell_rounding,
)
from prunelimit.path_limits import check_tolerance, directional_limit, measured_limit, search_limit
from prunelimit.processes import is_sharded
from prunelimit.pruning.magnitude import MagnitudePath, Masks, prunable_parameters
from prunelimit.pruning.paths import MaskPath, PruningPath
from prunelimit.refit import refit_limit
from prunelimit.sight import SUBSPACES, Sight, sight_along, sight_limit
from prunelimit.threads import suited_threads

METHODS = ("formula", "cone", "cut", "directional", "refit", "measured")
SPECTRAL = ("formula", *SUBSPACES)
CURVATURES: dict[str, type[CurvatureOperator]] = {"hessian": HessianOperator, "ggn": GGNOperator}

#: Methods for networks whose parameters are sharded over processes.
SHARDED = ("formula", "directional", "measured")


def predict_limit(
    model: nn.Module,
    loss_fn: LossFunction | None,
    data: Any,
    *,
    epsilon: float | None = None,
    prunable: Sequence[str] | None = None,
    curvature: str = "hessian",
    method: str = "formula",
    steps: int = 64,
    probes: int = 1,
    seed: int = 0,
    examples: int | None = None,
    low_memory: bool = False,
    masks: Callable[[float], Masks] | MaskPath | None = None,
    tolerance: float = 0.001,
    progress: bool | None = None,
    shard_parameters: bool = False,
) -> PruningLimit:
    """Predict how far a network can be pruned.

    Args:
        model: Any torch module; left exactly as it was. A lazily initialised one is initialised by the first batch; one
            in float16 or bfloat16 is computed with in float32, on a copy.
        loss_fn: Maps the model's output and the targets of a batch to the batch's mean loss; ``None`` if the model
            returns its own. Outputs with ``logits``, and tuples, are unpacked for a loss that cannot take them. One that is
            piecewise linear, as the absolute error or a hinge, has no curvature of its own: measure there.
        data: Training data: an iterable of batches, a pair of tensors or one dictionary of them. Batches are
            ``(inputs, targets)``, ``(first, second, ..., targets)``, or dictionaries, whose labels are taken out before the rest
            become the model's keyword arguments. Batches count by the number of their examples, or of the targets that are
            not ``ignore_index``; :mod:`prunelimit.adapters` has the details.
        epsilon: Tolerated rise of the mean loss; by default its standard deviation over batches of 128, or over the batches
            as they are given where they cannot be cut: give it there.
        prunable: Names of the prunable parameters, or patterns such as ``"blocks.*.weight"``; by default the weights of linear
            and convolution layers. Weights of recurrent layers, transposed convolutions, embeddings and attention's ``in_proj_weight`` are taken by their names.
        curvature: ``"hessian"``: absolute values of the eigenvalues of the Hessian, as in the paper's released code;
            ``"ggn"``: its generalised Gauss-Newton part, positive semi-definite and cheaper.
        method: ``"formula"``, the theorem, when you want to know why and by how much; ``"cut"``, the same
            for a subspace perpendicular to the step, as that of a cut is, which knows where the sparse point lies and not
            only how far away, at a few times the price; ``"cone"``, in between, for any random subspace; ``"directional"``, the loss's
            second-order expansion along the pruning path, when you want the better prediction of one-shot pruning for
            this one network; ``"refit"``, second-order refitting of the kept weights, each step checked on
            the loss, when you want to see how far this mask gets if they move; ``"measured"``, bisection on the loss itself, when you want the truth for one-shot pruning.
        steps: Curvature products per probe, for the formula, and per line of sight, for cone and cut. More of them narrow the
            certified interval, on some spectra hardly at first; twice as many cost twice the time and memory.
        probes: Random probes, for formula, cone and cut; one is enough for a million weights. Several share one Krylov space,
            from which more is known than from one each; see :func:`~prunelimit.curvature.spectrum`.
        seed: Seed of the first probe and of the sample.
        examples: Examples behind the curvature, drawn at random, for formula, cone and cut; by default all. The limit is then
            solved for half of them too, and the interval holds where the trend leads.
        low_memory: Whether to run Lanczos without a basis, for formula, cone and cut; see
            :class:`~prunelimit.curvature.LanczosRun` for what is lost.
        masks: Another pruner in place of global magnitude: maps a sparsity to masks, as the orders of
            :mod:`prunelimit.pruning` do; or a path whose pruned points also have other weights than the trained ones, such as
            :class:`~prunelimit.pruning.sparsegpt.SparseGPTPath`.
        tolerance: Width of the bracket in sparsity at which bisection stops.
        progress: Whether to show products done, seconds left and the present interval.
        shard_parameters: Whether the processes that torchrun started share the weights and every vector of their length, for
            formula, directional and measured; see :mod:`prunelimit.curvature.sharded`, also for a network that is sharded
            already, which is noticed.

    Returns:
        The limit with its interval.

    Raises:
        PruneLimitError: If an argument cannot be used; the message names it and the fix.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> data = torch.randn(32, 4), torch.randn(32, 1)
        >>> limit = predict_limit(model, torch.nn.functional.mse_loss, data, epsilon=0.1, method="measured")
        >>> 0 < limit.sparsity < 1
        True
    """
    check_apart(loss_fn, curvature)
    if not isinstance(model, nn.Module):
        raise PruneLimitError(f"model={model!r} is no torch module: give an instance of nn.Module.")
    if prunable is not None and not isinstance(prunable, str):
        prunable = list(prunable)  # it is read more than once
    settings = Settings(
        prunable, curvature, method, steps, probes, seed, examples, low_memory, masks, tolerance, progress
    )
    with torch.inference_mode(False):
        return predict_adapted(adapt_shared(model, loss_fn, data, shard_parameters), epsilon, settings)


def adapt_shared(model: nn.Module, loss_fn: LossFunction | None, data: Any, shard_parameters: bool) -> Adapted:
    """Let model, loss and batches fit together, and the processes share the weights if they are to.

    Args:
        model: As for :func:`predict_limit`.
        loss_fn: As there.
        data: As there.
        shard_parameters: As there.

    Returns:
        What every method takes.
    """
    adapted = adapt(model, loss_fn, data)
    if not shard_parameters:
        return adapted
    from prunelimit.curvature import sharded  # which takes seconds to import

    return dataclasses.replace(adapted, model=sharded.shard_parameters(adapted.model))


def curvature_operator(
    adapted: Adapted, curvature: str, prunable: Sequence[str] | None, batches: Batches | None = None
) -> CurvatureOperator:
    """Make the operator that suits a network: for vectors, or for slices of them if processes share its parameters.

    Args:
        adapted: The network, its loss and its data.
        curvature: A key of ``CURVATURES``.
        prunable: Names of the prunable parameters.
        batches: Part of the data; by default all.

    Returns:
        The operator.
    """
    kind = CURVATURES[curvature]
    if is_sharded(adapted.model):
        from prunelimit.curvature import sharded

        kind = {"hessian": sharded.ShardedHessianOperator, "ggn": sharded.ShardedGGNOperator}[curvature]
    batches = adapted.batches if batches is None else batches
    return kind(adapted.model, adapted.loss_fn, batches, prunable=prunable)


def check_apart(loss_fn: LossFunction | None, curvature: str) -> None:
    """Refuse the Gauss-Newton matrix of a model that returns its own loss.

    Args:
        loss_fn: ``None`` if the model returns it.
        curvature: A key of ``CURVATURES``.

    Raises:
        PruneLimitError: If loss and model cannot be told apart.
    """
    if loss_fn is None and curvature == "ggn":
        raise PruneLimitError(
            "curvature='ggn' needs the loss apart from the model: give loss_fn, or curvature='hessian'."
        )


@dataclasses.dataclass(frozen=True)
class Settings:
    """Arguments of :func:`predict_limit` beside the network, the data and epsilon; checked when they are made."""

    prunable: Sequence[str] | None = None
    curvature: str = "hessian"
    method: str = "formula"
    steps: int = 64
    probes: int = 1
    seed: int = 0
    examples: int | None = None
    low_memory: bool = False
    masks: Callable[[float], Masks] | MaskPath | None = None
    tolerance: float = 0.001
    progress: bool | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown_name("method", self.method, METHODS)
        if self.curvature not in CURVATURES:
            raise unknown_name("curvature", self.curvature, CURVATURES)
        check_tolerance(self.tolerance)
        if not isinstance(self.seed, numbers.Integral):
            raise PruneLimitError(f"seed={self.seed!r} must be an integer.")


def predict_adapted(adapted: Adapted, epsilon: float | None, settings: Settings) -> PruningLimit:
    """Predict how far a network can be pruned whose model, loss and batches fit together already.

    Args:
        adapted: What :func:`~prunelimit.adapters.adapt` gives.
        epsilon: Tolerated rise of the mean loss; by default its standard deviation over batches of 128.
        settings: The other arguments of :func:`predict_limit`.

    Returns:
        The limit with its interval.

    Raises:
        PruneLimitError: If an argument cannot be used; the message names it and the fix.
    """
    try:
        return _predicted(adapted, epsilon, settings)
    except TwiceError as error:
        if "attention" in str(error) and hasattr(getattr(adapted.model, "config", None), "_attn_implementation"):
            raise PruneLimitError(f"{error} Here, load the model with attn_implementation='eager'.") from error
        raise


def _predicted(adapted: Adapted, epsilon: float | None, settings: Settings) -> PruningLimit:
    """Predict by the method of the settings."""
    start = time.monotonic()
    model, loss_fn, batches = adapted.model, adapted.loss_fn, adapted.batches
    with suited_threads(model):
        parameters = prunable_parameters(model, settings.prunable)
        total, examples = sum(len(targets) for _, targets in batches), settings.examples
        if examples is not None and (settings.method not in SPECTRAL or not 2 <= examples <= total):
            raise PruneLimitError(
                f"examples={examples!r} must lie between 2 and the {total} {adapted.terms} given, and serves the methods "
                f"{', '.join(SPECTRAL)}."
            )
        if epsilon is None:
            epsilon = default_epsilon(model, loss_fn, batches)
        epsilon = check_epsilon(epsilon)
        if is_sharded(model):
            limit = _sharded_limit(adapted, epsilon, settings)
            limit.cost["seconds"] = time.monotonic() - start
            return dataclasses.replace(limit, terms=adapted.terms)
        path: PruningPath = MagnitudePath(model, settings.prunable)
        if isinstance(settings.masks, MaskPath):
            path = settings.masks
        elif settings.masks is not None:
            path = MaskPath(list(parameters), list(parameters.values()), settings.masks)
        if settings.method == "measured":
            limit = measured_limit(model, loss_fn, batches, path, parameters, epsilon, tolerance=settings.tolerance)
        elif settings.method in SPECTRAL:
            limit = _spectral_limit(adapted, list(parameters), path, epsilon, settings)
            limit.cost["seconds"] = time.monotonic() - start
        else:
            operator = curvature_operator(adapted, settings.curvature, list(parameters))
            solve = directional_limit if settings.method == "directional" else refit_limit
            limit = solve(operator, path, epsilon, tolerance=settings.tolerance)
    return dataclasses.replace(limit, terms=adapted.terms)


def _sharded_limit(adapted: Adapted, epsilon: float, settings: Settings) -> PruningLimit:
    """Solve where processes share the weights; no process sees all of them."""
    if settings.method not in SHARDED or settings.masks is not None:
        raise PruneLimitError(
            f"method={settings.method!r} with sharded parameters: choose one of {', '.join(SHARDED)}, and leave masks= out."
        )
    from prunelimit.curvature import sharded

    # The path has what the searches ask of one: total, distance and displacement.
    path: Any = sharded.ShardedMagnitudePath(adapted.model, settings.prunable)

    def solve(part: Batches) -> PruningLimit:
        operator = curvature_operator(adapted, settings.curvature, settings.prunable, part)
        found = sharded.sharded_spectrum(
            operator,  # type: ignore[arg-type]
            steps=settings.steps,
            probes=settings.probes,
            seed=settings.seed,
            low_memory=settings.low_memory,
            progress=settings.progress,
        )
        _check_curved(found)
        limit = formula_limit(found, path.distance, epsilon, examples=operator.examples)
        limit.cost["products"] = float(operator.products)
        return limit

    if settings.method == "formula":
        return _from_sample(solve, adapted.batches, settings)
    if settings.method == "measured":
        parameters = prunable_parameters(adapted.model, settings.prunable)
        model, loss_fn, batches = adapted.model, adapted.loss_fn, adapted.batches
        return measured_limit(model, loss_fn, batches, path, parameters, epsilon, tolerance=settings.tolerance)
    operator: Any = curvature_operator(adapted, settings.curvature, settings.prunable)

    def rise(sparsity: float) -> float:
        return operator.expansion(path.displacement(sparsity))

    limit = search_limit("directional", rise, path, epsilon, settings.tolerance, operator.examples)
    limit.cost["products"] = float(operator.products)
    return limit


def _spectral_limit(
    adapted: Adapted, names: list[str], path: PruningPath, epsilon: float, settings: Settings
) -> PruningLimit:
    """Solve for formula, cone or cut."""
    kind, low_memory = CURVATURES[settings.curvature], settings.low_memory

    def solve(part: Batches) -> PruningLimit:
        operator, reduced = reduced_operator(kind, adapted.model, adapted.loss_fn, part, names)

        def watch(known: Spectrum) -> dict[str, str]:
            low, high = formula_limit(known, path.distance, epsilon).interval
            return {"limit": f"{low:.2%} to {high:.2%}"}

        found = spectrum(
            operator,
            steps=settings.steps,
            probes=settings.probes,
            seed=settings.seed,
            nullity=0 if reduced is None else reduced.nullity,
            low_memory=low_memory,
            joint=settings.probes > 1 and not low_memory,
            progress=settings.progress,
            watch=watch,
        )
        _check_curved(found)
        if settings.method == "formula":
            limit = formula_limit(found, path.distance, epsilon, examples=operator.examples)
        else:
            restrict = None if reduced is None else reduced.restrict

            step = path.displacement
            if settings.method == "cut" and isinstance(path, MaskPath):
                step = path.perpendicular  # the theorem's subspace is perpendicular to the step

            def look(sparsity: float) -> Sight:
                return sight_along(operator, step(sparsity), settings.steps, restrict, low_memory)

            limit = sight_limit(
                look, found, path, epsilon, settings.method, tolerance=settings.tolerance, examples=operator.examples
            )
        limit.cost["products"] = float(operator.products)
        return limit

    limit = _from_sample(solve, adapted.batches, settings)
    tell_rounding(limit)
    return limit


def _check_curved(found: Spectrum) -> None:
    if not found.largest > 0:
        raise FlatError


def _from_sample(solve: Callable[[Batches], PruningLimit], batches: Batches, settings: Settings) -> PruningLimit:
    """Solve for a limit with all examples, or from a sample, twice."""
    total, examples = sum(len(targets) for _, targets in batches), settings.examples
    if examples is None or examples == total:
        return solve(batches)
    half, whole = (solve(_sample(batches, count, settings.seed)) for count in (examples // 2, examples))
    whole.cost["products"] += half.cost["products"]
    return stretch_to_population(whole, half, total)


def _sample(batches: Batches, count: int, seed: int) -> Batches:
    """Draw examples at random; a smaller sample with the same seed is part of a larger one."""
    together = joined(batches)
    if together is None:
        raise PruneLimitError(
            "examples= needs batches of one shape, cut by examples: leave it out, or give fewer batches as data."
        )
    order = torch.randperm(len(together[1]), generator=torch.Generator().manual_seed(scrambled_seed(seed, "sample")))
    return [tuple(map_tensors(part, lambda tensor: tensor[order[:count].to(tensor.device)]) for part in together)]
