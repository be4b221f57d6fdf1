r"""The three regimes of pruning, from connectivity and similarity (Zhou et al. 2023).

I: poorly connected. II-A: connected and dissimilar. II-B: connected and similar. The paper publishes no numeric thresholds.
Those below are ours, chosen by a rule from the digitised values of its published phase diagrams; how much depends on them is
what :func:`sensitivity` tells.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from prunelimit.errors import PruneLimitError

REGIMES = ("I", "II-A", "II-B")

#: Connectivity, in units of training error, from which on networks count as connected. Ours: halfway, on a logarithmic
#: scale, between what cannot be told from zero in the published figure (0.003, the resolution of the digitised map) and its
#: largest barriers (0.66); that is 0.045, rounded to 0.05: five points of training error.
LMC_THRESHOLD = -0.05

#: Similarity of softmax outputs from which on connected networks count as similar. Ours: :func:`median_cka` of the digitised
#: map, the median of its connected cells, which halves them by construction. It belongs to PreResNet-20 on CIFAR-10: for
#: another task take the median of its own grid.
CKA_THRESHOLD = 0.976


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Where the regimes are parted.

    Attributes:
        lmc: Connectivity from which on networks are connected; a negative number, or zero.
        cka: Similarity from which on connected networks are similar, between 0 and 1.
    """

    lmc: float = LMC_THRESHOLD
    cka: float = CKA_THRESHOLD

    def __post_init__(self) -> None:
        """Refuse thresholds that part nothing."""
        if not self.lmc <= 0:
            raise PruneLimitError(f"lmc_threshold={self.lmc!r} must not be positive: zero is perfectly connected.")
        if not 0 <= self.cka <= 1:
            raise PruneLimitError(f"cka_threshold={self.cka!r} must lie between 0 and 1.")


def _classes(lmc: npt.ArrayLike, cka: npt.ArrayLike, thresholds: Thresholds) -> np.ndarray:
    """Classify arrays; an empty string where a value that is needed is missing."""
    try:
        connectivity, similarity = np.broadcast_arrays(np.asarray(lmc, dtype=float), np.asarray(cka, dtype=float))
    except ValueError as error:
        raise PruneLimitError(
            f"lmc has shape {np.shape(lmc)} and cka {np.shape(cka)}: give one similarity per connectivity."
        ) from error
    conditions = [
        np.isnan(connectivity),
        connectivity < thresholds.lmc,
        np.isnan(similarity),
        similarity < thresholds.cka,
    ]
    return np.select(conditions, ["", REGIMES[0], "", REGIMES[1]], REGIMES[2])


def classify_regime(
    lmc: npt.ArrayLike,
    cka: npt.ArrayLike,
    *,
    lmc_threshold: float = LMC_THRESHOLD,
    cka_threshold: float = CKA_THRESHOLD,
) -> str | np.ndarray:
    """Tell the regime of a pruned network, or of a whole grid.

    Args:
        lmc: Mode connectivity in units of training error, zero connected and negative a barrier. Positive values, of a
            path that is better than its ends, are connected.
        cka: Linear CKA of the softmax outputs, of the same shape. It is not looked at in regime I.
        lmc_threshold: Connected means ``lmc >= lmc_threshold``.
        cka_threshold: Similar means ``cka >= cka_threshold``.

    Returns:
        ``"I"``, ``"II-A"`` or ``"II-B"``; for arrays an array of these. Where a value that is needed is NaN, an empty string.

    Raises:
        PruneLimitError: If the shapes do not fit or a threshold is out of range.

    Example:
        >>> classify_regime(-0.3, 0.99)
        'I'
        >>> classify_regime([-0.01, -0.01], [0.9, 0.99]).tolist()
        ['II-A', 'II-B']
    """
    found = _classes(lmc, cka, Thresholds(lmc_threshold, cka_threshold))
    return found if found.ndim else str(found)


def median_cka(lmc: npt.ArrayLike, cka: npt.ArrayLike, lmc_threshold: float = LMC_THRESHOLD) -> float:
    """Compute the rule of the similarity's threshold: the median among the connected cells of a grid.

    Args:
        lmc: Mode connectivity.
        cka: Similarity, of the same shape.
        lmc_threshold: Connected means ``lmc >= lmc_threshold``.

    Returns:
        The threshold that parts the connected cells in halves.

    Raises:
        PruneLimitError: If no cell is connected.
    """
    connectivity, similarity = np.asarray(lmc, dtype=float), np.asarray(cka, dtype=float)
    if connectivity.shape != similarity.shape:
        raise PruneLimitError(
            f"lmc has shape {connectivity.shape} and cka {similarity.shape}: give one similarity per connectivity."
        )
    connected = similarity[(connectivity >= lmc_threshold) & ~np.isnan(similarity)]
    if not connected.size:
        raise PruneLimitError(
            f"lmc_threshold={lmc_threshold!r}: no cell is connected, so that nothing parts II-A from II-B; lower it."
        )
    return float(np.median(connected))


def sensitivity(
    lmc: npt.ArrayLike,
    cka: npt.ArrayLike,
    thresholds: Sequence[Thresholds],
    reference: Thresholds | None = None,
) -> np.ndarray:
    """Measure how much a classification depends on its thresholds.

    Args:
        lmc: Mode connectivity of all cells.
        cka: Similarity, of the same shape.
        thresholds: The other thresholds.
        reference: The thresholds to compare with; by default ours.

    Returns:
        ``(k,)``, for each of the other thresholds the share of cells that change their class. Cells without a value that
        is needed count as changed if that value is needed for one of the two only; if for both, they are left out.

    Raises:
        PruneLimitError: If there is no cell with values.
    """
    before = _classes(lmc, cka, reference or Thresholds()).reshape(-1)
    shares = []
    for other in thresholds:
        after = _classes(lmc, cka, other).reshape(-1)
        known = (before != "") | (after != "")
        if not known.any():
            raise PruneLimitError("lmc and cka have no cell with values: there is nothing to classify.")
        shares.append(float((before != after)[known].mean()))
    return np.array(shares)
