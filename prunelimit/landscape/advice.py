r"""Three decisions by regime: raise or lower a hyperparameter, choose the network to prune, tune the radius of SAM.

The three-regime paper (Zhou et al. 2023) names them as case studies. Of its rule this much is stated in the figure that gives the
regimes: from I to II-A by raising the temperature, from II-A to II-B by lowering it. The steps below are ours, written from
that rule: what is done in II-B, when a walk along an axis ends, and how candidates are ranked.

Every decision looks at retrained children of a pruned network, and counts them: a retraining is what the decisions cost.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.landscape.parents import Measurement, Parent
from prunelimit.landscape.regimes import Thresholds, classify_regime

#: What to do with the temperature in each regime. The first two are the paper's rule, the third is ours.
DIRECTIONS = {"I": "raise", "II-A": "lower", "II-B": "keep"}

#: What may be done in regime II-B.
AT_GOAL = ("keep", "lower")

#: How to walk along an axis.
STRATEGIES = ("step", "bisect")

#: Rules of :func:`choose_model`.
RULES = ("lmc+error", "lmc+cka", "lmc+dense", "error", "dense")


@dataclasses.dataclass(frozen=True)
class Direction:
    """Where to turn the temperature for a density, and why.

    Attributes:
        direction: ``"raise"``, ``"lower"`` or ``"keep"``.
        regime: ``"I"``, ``"II-A"`` or ``"II-B"``.
        density: Fraction of the prunable weights kept.
        evidence: The measurement that it rests on.
        thresholds: Those that part the regimes.
    """

    direction: str
    regime: str
    density: float
    evidence: Measurement
    thresholds: Thresholds

    @property
    def retrainings(self) -> int:
        """How many retrainings the advice took."""
        return self.evidence.retrainings

    def saved(self, values: int) -> int:
        """Count the retrainings that a sweep over so many values would take beyond those of this advice."""
        if values < 1:
            raise PruneLimitError(f"values={values!r} must be at least 1: the number of values of a full sweep.")
        return (values - 1) * self.retrainings

    def __str__(self) -> str:
        lmc, cka = f"LMC {self.evidence.lmc:.3f}", f"CKA {self.evidence.cka:.3f}"
        why = {
            "I": f"poorly connected ({lmc} < {self.thresholds.lmc:g})",
            "II-A": f"connected ({lmc}) but dissimilar ({cka} < {self.thresholds.cka:.3f})",
            "II-B": f"connected ({lmc}) and similar ({cka} ≥ {self.thresholds.cka:.3f})",
        }[self.regime]
        return (
            f"{self.direction.capitalize()} the temperature: at density {self.density:.3g} the children are {why}, "
            f"regime {self.regime}; it took {self.retrainings} retrainings."
        )


def advise(measured: Measurement, thresholds: Thresholds, at_goal: str = "keep") -> tuple[str, str]:
    """Turn a measurement into a regime and a direction.

    Args:
        measured: The measurement.
        thresholds: Those that part the regimes.
        at_goal: What to do in regime II-B, see :func:`raise_or_lower`.

    Returns:
        The regime and ``"raise"``, ``"lower"`` or ``"keep"``. Both are empty if a value that is needed is NaN, as the
        similarity of networks is that give the same for all images.

    Raises:
        PruneLimitError: If ``at_goal`` is unknown.
    """
    if at_goal not in AT_GOAL:
        raise unknown_name("at_goal", at_goal, AT_GOAL)
    regime = str(
        classify_regime(measured.lmc, measured.cka, lmc_threshold=thresholds.lmc, cka_threshold=thresholds.cka)
    )
    return regime, at_goal if regime == "II-B" else DIRECTIONS.get(regime, "")


def raise_or_lower(
    parent: Parent, density: float, *, thresholds: Thresholds | None = None, at_goal: str = "keep"
) -> Direction:
    """Advise whether to train the dense network at a higher or a lower temperature, for a target density.

    In regime I raise it, in II-A lower it: the paper's rule. II-B is where the rule leads, and it names no way on from there. By
    default we keep the temperature. The alternative, ``at_goal="lower"``, takes the rule for II as a whole:
    a lower temperature makes connected children more similar, and that may go on within II-B. Both are ours.

    Args:
        parent: The dense network: a :class:`~prunelimit.landscape.parents.TrainedParent`, or anything that measures.
        density: Fraction of the prunable weights to keep.
        thresholds: Those that part the regimes; by default ours, whose similarity belongs to PreResNet-20 on CIFAR-10.
        at_goal: ``"keep"`` or ``"lower"``, in regime II-B.

    Returns:
        The direction with its evidence. What a higher temperature is depends on the hyperparameter: fewer epochs, smaller
        batches, a larger learning rate, a larger radius of SAM.

    Raises:
        PruneLimitError: If the regime cannot be told, or an argument is out of range.
    """
    thresholds = thresholds or Thresholds()
    measured = parent.measure(density)
    regime, direction = advise(measured, thresholds, at_goal)
    if not regime:
        raise PruneLimitError(
            f"density={density!r}: LMC {measured.lmc} and CKA {measured.cka} tell no regime; the children give the same for "
            "all images, so retrain them longer or keep more weights."
        )
    return Direction(direction, regime, density, measured, thresholds)


@dataclasses.dataclass(frozen=True)
class Step:
    """One value on a walk along an axis.

    Attributes:
        value: The hyperparameter.
        measured: What the children told there.
        regime: Their regime; empty if it cannot be told.
        direction: The advice; empty if there is none.
    """

    value: float
    measured: Measurement
    regime: str
    direction: str


@dataclasses.dataclass(frozen=True)
class Walk:
    """A walk along an axis of temperature.

    Attributes:
        value: The hyperparameter that it ends with: of all values visited the one with the lowest error.
        trace: The values visited, in order.
        reason: Why it ended: ``"goal"`` (the advice is to keep), ``"turned"`` (advice from both sides, nothing between them),
            ``"edge"`` (it leads beyond the axis) or ``"unknown"`` (the regime cannot be told).
        candidates: How many values the axis has.
    """

    value: float
    trace: tuple[Step, ...]
    reason: str
    candidates: int

    @property
    def measured(self) -> Measurement:
        """The measurement at the value that the walk ends with."""
        return next(step.measured for step in self.trace if step.value == self.value)

    @property
    def retrainings(self) -> int:
        """How many retrainings the walk took."""
        return sum(step.measured.retrainings for step in self.trace)

    @property
    def saved(self) -> int:
        """How many more a full sweep would have taken, at as many per value as at the start."""
        return (self.candidates - len(self.trace)) * self.trace[0].measured.retrainings

    def __str__(self) -> str:
        steps = " -> ".join(f"{step.value:g} ({step.regime or 'no regime'})" for step in self.trace)
        return f"{self.value:g}, after {steps}: {self.reason}; {self.retrainings} retrainings, {self.saved} saved."


def _last(value: float) -> float:
    """Make a missing value the largest, so that it ranks last."""
    return math.inf if math.isnan(value) else value


def follow_advice(
    measure: Callable[[float], Measurement],
    values: Sequence[float],
    start: float,
    *,
    thresholds: Thresholds | None = None,
    at_goal: str = "keep",
    strategy: str = "step",
) -> Walk:
    """Walk along an axis of temperature as :func:`raise_or_lower` advises.

    Each advice rules out what lies on the other side, and the value itself. The walk goes on until nothing is left, the advice is
    to keep, or no regime can be told. Of the values visited that with the lowest error is taken: all of them have been
    measured. This procedure is ours.

    Args:
        measure: Gives the measurement at a value.
        values: Of the hyperparameter, coldest first.
        start: The one to begin at.
        thresholds: Those that part the regimes; by default ours.
        at_goal: ``"keep"`` or ``"lower"``, in regime II-B.
        strategy: ``"step"`` goes to the next value, ``"bisect"`` to the middle one of those that are left.

    Returns:
        The walk.

    Raises:
        PruneLimitError: If ``start`` is not among the values, or an argument is out of range.
    """
    values, thresholds = [float(value) for value in values], thresholds or Thresholds()
    if len(set(values)) < len(values):
        raise PruneLimitError(f"values={values!r} has a value twice: give each once, coldest first.")
    if float(start) not in values:
        raise PruneLimitError(f"start={start!r} is none of the values {values}: begin at one of them.")
    if strategy not in STRATEGIES:
        raise unknown_name("strategy", strategy, STRATEGIES)
    place, low, high = values.index(float(start)), 0, len(values)  # what is left is values[low:high]
    trace: list[Step] = []
    while True:
        measured = measure(values[place])
        trace.append(Step(values[place], measured, *advise(measured, thresholds, at_goal)))
        if trace[-1].direction == "raise":
            low, near = place + 1, place + 1
        elif trace[-1].direction == "lower":
            high, near = place, place - 1
        else:
            reason = "goal" if trace[-1].direction else "unknown"
            break
        if low == high:
            reason = "edge" if low in {0, len(values)} else "turned"
            break
        place = near if strategy == "step" else (low + high) // 2
    best = min(trace, key=lambda step: _last(step.measured.error))
    return Walk(best.value, tuple(trace), reason, len(values))


def tune_rho(
    measure: Callable[[float, float], Measurement],
    density: float,
    *,
    values: Sequence[float],
    default: float,
    thresholds: Thresholds | None = None,
    at_goal: str = "keep",
    strategy: str = "step",
) -> Walk:
    """Tune the radius of sharpness-aware minimisation for a target density: up in regime I, down in II-A.

    Args:
        measure: Gives, for a radius and a density, the measurement of a network trained with that radius. A new radius is a
            new dense training; make it keep its networks.
        density: Fraction of the prunable weights to keep.
        values: The radii to choose from; zero is plain SGD.
        default: The one to begin at; one of them.
        thresholds: Those that part the regimes; by default ours.
        at_goal: What to do in II-B, see :func:`raise_or_lower`.
        strategy: See :func:`follow_advice`.

    Returns:
        The walk: its value is the radius.

    Raises:
        PruneLimitError: If ``default`` is not among the values, or an argument is out of range.
    """
    return follow_advice(
        lambda rho: measure(rho, density),
        sorted(values),
        default,
        thresholds=thresholds,
        at_goal=at_goal,
        strategy=strategy,
    )


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A network of a family.

    Attributes:
        name: Its name.
        dense_error: Its test error before pruning.
        measured: What its children told; nothing if the rule did not ask.
        connected: Whether they are connected; nothing if the rule did not ask.
    """

    name: str
    dense_error: float
    measured: Measurement | None = None
    connected: bool | None = None


@dataclasses.dataclass(frozen=True)
class Choice:
    """A network chosen from a family.

    Attributes:
        rule: How it was chosen.
        density: Fraction of the prunable weights kept.
        ranking: All candidates with their evidence, best first.
    """

    rule: str
    density: float
    ranking: tuple[Candidate, ...]

    @property
    def name(self) -> str:
        """Name of the network that was chosen."""
        return self.ranking[0].name

    @property
    def retrainings(self) -> int:
        """How many retrainings the choice took."""
        return sum(c.measured.retrainings for c in self.ranking if c.measured)

    def __str__(self) -> str:
        connected = [c.connected for c in self.ranking if c.connected is not None]
        among = f", {sum(connected)} of {len(connected)} connected" if connected else ""
        return f"{self.name}, by {self.rule} at density {self.density:.3g}{among}; {self.retrainings} retrainings."


def _rank(candidate: Candidate, rule: str) -> tuple[float, ...]:
    """Return what candidates are sorted by, smallest first."""
    first, _, second = rule.rpartition("+")
    found = candidate.measured
    if found is None:
        return (_last(candidate.dense_error),)
    values = {"error": found.error, "cka": -found.cka, "dense": candidate.dense_error}
    if first and not candidate.connected:
        return 1.0, _last(-found.lmc)
    return 0.0, _last(values[second])


def choose_model(
    family: Mapping[str, Parent], density: float, *, rule: str = "lmc+error", thresholds: Thresholds | None = None
) -> Choice:
    """Choose the network of a family that is best pruned to a density.

    The paper chooses by connectivity together with test error, or with CKA. The ranking is ours, written from the
    regimes. Rules that begin with ``lmc`` prefer connected children, and rank networks without them by connectivity alone:

    - ``"lmc+error"``: connected, then the lowest test error of the children;
    - ``"lmc+cka"``: connected, then the highest similarity, which needs no test data;
    - ``"lmc+dense"``: connected, then the lowest test error of the dense network;
    - ``"error"``: the lowest test error of the children, without a look at the regime;
    - ``"dense"``: the lowest test error of the dense network, without any retraining.

    Args:
        family: Name to network.
        density: Fraction of the prunable weights to keep.
        rule: One of these.
        thresholds: The connectivity that counts as connected; by default ours.

    Returns:
        The choice with the ranking. Equals keep the order of the family, missing values come last.

    Raises:
        PruneLimitError: If the rule is unknown or the family empty.
    """
    if rule not in RULES:
        raise unknown_name("rule", rule, RULES)
    if not family:
        raise PruneLimitError("family is empty: give at least one network by name.")
    least = (thresholds or Thresholds()).lmc
    candidates = []
    for name, parent in family.items():
        measured = None if rule == "dense" else parent.measure(density)
        connected = measured.lmc >= least if measured and rule.startswith("lmc") else None
        candidates.append(Candidate(name, parent.dense_error, measured, connected))
    return Choice(rule, density, tuple(sorted(candidates, key=lambda c: _rank(c, rule))))
