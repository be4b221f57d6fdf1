"""The one call that most users need: how far can my network be pruned?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunelimit.curvature import GGNOperator, HessianOperator, Spectrum, spectrum
from prunelimit.curvature.lanczos import scrambled_seed
from prunelimit.curvature.operator import Batches, CurvatureOperator, LossFunction, as_batches
from prunelimit.curvature.reduce import reduced_operator
from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.limit import PruningLimit, check_epsilon, default_epsilon, formula_limit, stretch_to_population
from prunelimit.path_limits import check_tolerance, directional_limit, measured_limit
from prunelimit.pruning.magnitude import MagnitudePath, Masks, prunable_parameters
from prunelimit.pruning.paths import MaskPath, PruningPath
from prunelimit.refit import refit_limit
from prunelimit.sight import SUBSPACES, Sight, sight_along, sight_limit
from prunelimit.threads import suited_threads

METHODS = ("formula", "cone", "cut", "directional", "refit", "measured")
SPECTRAL = ("formula", *SUBSPACES)
CURVATURES: dict[str, type[CurvatureOperator]] = {"hessian": HessianOperator, "ggn": GGNOperator}


def predict_limit(
    model: nn.Module,
    loss_fn: LossFunction,
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
    masks: Callable[[float], Masks] | None = None,
    tolerance: float = 0.001,
    progress: bool | None = None,
) -> PruningLimit:
    """Predict how far a network can be pruned.

    Args:
        model: Any torch module; left exactly as it was.
        loss_fn: Maps the model's output and the targets of a batch to the batch's mean loss.
        data: Training data: an iterable of ``(inputs, targets)`` batches, or a pair of tensors.
        epsilon: Tolerated rise of the mean loss; by default its standard deviation over batches of 128.
        prunable: Names of the prunable parameters; by default the weights of linear and convolution layers.
        curvature: ``"hessian"``: absolute values of the eigenvalues of the Hessian, as in the paper's released code;
            ``"ggn"``: its generalised Gauss-Newton part, positive semi-definite and cheaper.
        method: ``"formula"``, the theorem, when you want to know why and by how much; ``"cut"``, the same
            for a subspace perpendicular to the step, as that of a cut is, which knows where the sparse point lies and not
            only how far away, at a few times the price; ``"cone"``, in between, for any random subspace; ``"directional"``, the loss's
            second-order expansion along the pruning path, when you want the better prediction of one-shot pruning for
            this one network; ``"refit"``, second-order refitting of the kept weights, when you want to predict the
            fine-tuned limit; ``"measured"``, bisection on the loss itself, when you want the truth for one-shot pruning.
        steps: Curvature products per probe, for the formula, and per line of sight, for cone and cut. The certified interval shrinks faster than they grow
            and slower than their square; twice as many cost twice the time and memory.
        probes: Random probes, for formula, cone and cut; one is enough for a million weights.
        seed: Seed of the first probe and of the sample.
        examples: Examples behind the curvature, drawn at random, for formula, cone and cut; by default all. The limit is then
            solved for half of them too, and the interval holds where the trend leads.
        low_memory: Whether to run Lanczos without a basis, for formula, cone and cut; see
            :class:`~prunelimit.curvature.LanczosRun` for what is lost.
        masks: Another pruner in place of global magnitude: maps a sparsity to masks.
        tolerance: Width of the bracket in sparsity at which bisection stops.
        progress: Whether to show products done, seconds left and the present interval.

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
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if curvature not in CURVATURES:
        raise unknown_name("curvature", curvature, CURVATURES)
    check_tolerance(tolerance)
    start = time.monotonic()
    with suited_threads(model):
        parameters = prunable_parameters(model, prunable)
        batches = as_batches(data)
        total = sum(len(targets) for _, targets in batches)
        if examples is not None and (method not in SPECTRAL or not 2 <= examples <= total):
            raise PruneLimitError(
                f"examples={examples!r} must lie between 2 and the {total} examples given, and serves the methods "
                f"{', '.join(SPECTRAL)}."
            )
        if epsilon is None:
            epsilon = default_epsilon(model, loss_fn, batches)
        check_epsilon(epsilon)
        path: PruningPath = MagnitudePath(model, prunable)
        if masks is not None:
            path = MaskPath(list(parameters), list(parameters.values()), masks)
        if method == "measured":
            return measured_limit(model, loss_fn, batches, path, parameters, epsilon, tolerance=tolerance)
        operator_type = CURVATURES[curvature]
        if method in SPECTRAL:

            def solve(part: Any) -> PruningLimit:
                operator, reduced = reduced_operator(operator_type, model, loss_fn, part, list(parameters))

                def watch(known: Spectrum) -> dict[str, str]:
                    low, high = formula_limit(known, path.distance, epsilon).interval
                    return {"limit": f"{low:.2%} to {high:.2%}"}

                found = spectrum(
                    operator,
                    steps=steps,
                    probes=probes,
                    seed=seed,
                    nullity=0 if reduced is None else reduced.nullity,
                    low_memory=low_memory,
                    progress=progress,
                    watch=watch,
                )
                if method != "formula":

                    def look(sparsity: float) -> Sight:
                        step = path.displacement(sparsity)
                        restrict = None if reduced is None else reduced.restrict
                        return sight_along(operator, step, steps, restrict, low_memory)

                    limit = sight_limit(
                        look, found, path, epsilon, method, tolerance=tolerance, examples=operator.examples
                    )
                else:
                    limit = formula_limit(found, path.distance, epsilon, examples=operator.examples)
                limit.cost["products"] = float(operator.products)
                return limit

            if examples is None or examples == total:
                limit = solve(batches)
            else:
                half, whole = (solve(_sample(batches, count, seed)) for count in (examples // 2, examples))
                whole.cost["products"] += half.cost["products"]
                limit = stretch_to_population(whole, half, total)
            limit.cost["seconds"] = time.monotonic() - start
            return limit
        operator = operator_type(model, loss_fn, batches, prunable=list(parameters))
        if method == "directional":
            return directional_limit(operator, path, epsilon, tolerance=tolerance)
        return refit_limit(operator, path, epsilon, tolerance=tolerance)


def _sample(batches: Batches, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw examples at random; a smaller sample with the same seed is part of a larger one."""
    if not all(isinstance(inputs, Tensor) for inputs, _ in batches):
        raise PruneLimitError("examples= needs inputs that are tensors: leave it out, or give fewer batches as data.")
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(scrambled_seed(seed, "sample")))
    chosen = order[:count].to(inputs.device)
    return inputs[chosen], targets[chosen.to(targets.device)]
