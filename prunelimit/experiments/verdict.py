"""The verdict, claim by claim: what the records say, by rules that are stated before looking.

Every function takes frames made of records and gives a :class:`Finding`. A verdict is one of ``VERDICTS``; which one, a rule
decides that is printed beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from prunelimit.experiments import prune_frames, rounds_frames
from prunelimit.experiments.frames import Cell, beside, limits_frame, load_cells, resolution_frame
from prunelimit.experiments.ranks import spearman
from prunelimit.experiments.theory_frames import absolute_trace

VERDICTS = ("holds", "holds in part", "does not hold", "not decided")

#: Points within which a prediction counts as right.
CLOSE = 1.0

PREDICTORS = ("formula", "cut", "directional", "refit", "emp")


@dataclasses.dataclass(frozen=True)
class Finding:
    """What became of a claim.

    Attributes:
        claim: The claim, in our words.
        verdict: One of ``VERDICTS``.
        measured: What the records say, with numbers.
        rule: How the verdict follows from them.
        page: Where to look.
    """

    claim: str
    verdict: str
    measured: str
    rule: str
    page: str


def _decided(whole: bool, part: bool) -> str:
    return "holds" if whole else "holds in part" if part else "does not hold"


def prediction_errors(limits: pd.DataFrame, actual: str) -> pd.DataFrame:
    """Compare every prediction with a measured limit.

    Args:
        limits: Output of ``limits_frame``.
        actual: Its column of measured limits, for example ``"fine_tuned"``.

    Returns:
        One row per prediction: ``error``, the mean absolute difference in points, ``bias``, the mean of predicted minus
        measured, ``rank``, Spearman's correlation, and the number of networks ``count``; seeds are networks of their own.
    """
    rows = []
    for name in PREDICTORS if not limits.empty else ():
        both = limits[[name, actual]].dropna()
        if both.empty:
            continue
        gap = 100 * (both[name] - both[actual])
        rank = float(spearman(both[name], both[actual])[0]) if len(both) > 2 else np.nan
        rows.append(
            {"predictor": name, "error": gap.abs().mean(), "bias": gap.mean(), "rank": rank, "count": len(both)}
        )
    return pd.DataFrame(rows, columns=["predictor", "error", "bias", "rank", "count"]).set_index("predictor")


def limit_predicts_practice(limits: pd.DataFrame, actual: str, what: str) -> Finding:
    """Judge the first claim against one kind of practice.

    Args:
        limits: Output of ``limits_frame``.
        actual: Column of measured limits.
        what: What that column measures, in words.

    Returns:
        The finding.
    """
    claim, page = f"The limit predicts practice: {what}", "tab02"
    rule = f"holds if the formula is within {CLOSE:g} point on average and nearer than EMP; in part if nearer than EMP only"
    errors = prediction_errors(limits, actual)
    if not {"formula", "emp"} <= set(errors.index):
        return Finding(claim, "not decided", "no record", rule, page)
    found: dict[str, dict[str, float]] = errors.to_dict("index")  # type: ignore[assignment]
    formula = found["formula"]
    measured = (
        f"mean absolute error in points over {formula['count']:.0f} networks: {_in_words(errors)}; the formula's bias is "
        f"{formula['bias']:+.1f}"
    )
    if (few := errors[errors["count"] < formula["count"]].index).size:
        same = prediction_errors(limits.dropna(subset=[few[0]]), actual)
        measured += f". On the {same['count'].max():.0f} networks where {few[0]} is recorded: {_in_words(same)}"
    if actual == "fine_tuned" and "control" in limits:
        kept = limits[limits.control.abs() <= 1]
        away = int((limits.control.abs() > 1).sum())
        measured += (
            f". In {away} of {limits.control.notna().sum()} the further training moves the unpruned network itself by more than ε, so "
            f"that limit is about another sublevel set than that of w*; without these: {_in_words(prediction_errors(kept, actual))}"
        )
    if actual == "fine_tuned" and "seen" in limits:
        beyond = limits.seen > limits[["formula_high", "upper"]].max(axis=1)
        measured += f". A network within ε of w* itself was seen beyond the formula's interval and window in {beyond.sum()} of {len(limits)}"
    beats = formula["error"] < found["emp"]["error"]
    return Finding(claim, _decided(formula["error"] <= CLOSE and beats, beats), measured, rule, page)


def _in_words(errors: pd.DataFrame) -> str:
    """Say the errors of :func:`prediction_errors`, and on how many networks, where that is not as many as the formula's."""
    most = errors["count"].max()
    parts = [
        f"{name} {row.error:.1f}" + (f" (on {row['count']:.0f})" if row["count"] < most else "")
        for name, row in errors.iterrows()
    ]
    return ", ".join(parts)


def two_factors(cells: Sequence[Cell], limits: pd.DataFrame) -> Finding:
    """Judge whether flatness and small weights go with a high measured limit, across networks.

    Args:
        cells: Recorded cells.
        limits: Output of ``limits_frame`` of the same cells.

    Returns:
        The finding.
    """
    claim, page = "Two factors set the limit: sharpness and the magnitude of the weights", "fig07"
    rule = (
        "holds if the product of both has a rank correlation below -0.5 with the measured limit, and each alone, and 1/ε alone, a weaker "
        "one; in part if the product's is below -0.5"
    )
    if len(cells) < 4:
        return Finding(claim, "not decided", "fewer than four networks are recorded", rule, page)
    sharp = np.array([absolute_trace(c.limit.spectrum)[0] / c.record["total"] for c in cells if c.limit.spectrum])
    length = np.array([c.record["radius"][-1] ** 2 for c in cells])
    strict = 1 / np.array([c.record["epsilon"] for c in cells])
    actual = limits.measured.to_numpy()

    def rank(values: np.ndarray) -> float:
        return float(spearman(values, actual)[0])

    both, one, two, third = rank(sharp * length * strict), rank(sharp), rank(length * strict), rank(strict)
    measured = (
        f"over {len(cells)} networks the one-shot limit has rank correlation {one:+.2f} with Tr|H|/D, {two:+.2f} with ‖w‖²/ε, and "
        f"{both:+.2f} with their product. Much of it is ε, which differs from network to network: 1/ε alone has {third:+.2f}, ‖w‖² alone "
        f"{rank(length):+.2f}, and the product without ε {rank(sharp * length):+.2f}"
    )
    return Finding(claim, _decided(both < -0.5 and both < min(one, two, third), both < -0.5), measured, rule, page)


def bounds_meet(limits: pd.DataFrame) -> Finding:
    """Judge how near the lower and the upper bound are.

    Args:
        limits: Output of ``limits_frame``.

    Returns:
        The finding.
    """
    claim, page = "The lower and the upper bound nearly meet", "tab01"
    rule = f"holds for a network if the bounds are within {CLOSE:g} point of each other; in part if for some only"
    if limits.empty:
        return Finding(claim, "not decided", "no record", rule, page)
    width = 100 * (limits.upper - limits.lower)
    largest = int(limits.total.to_numpy().argmax())
    measured = (
        f"{int((width <= CLOSE).sum())} of {len(width)} networks; {width.iloc[largest]:.2f} points at D = {limits.total.iloc[largest]:,}, "
        f"{width.max():.1f} at most. The upper one does not bound the true threshold: that takes the confocal distance in place of R"
    )
    return Finding(claim, _decided(bool((width <= CLOSE).all()), bool((width <= CLOSE).any())), measured, rule, page)


def lomp_reaches_the_limit(limits: pd.DataFrame) -> Finding:
    """Judge whether one cut comes up to the predicted limit.

    Args:
        limits: Output of ``limits_frame``.

    Returns:
        The finding.
    """
    claim, page = "One cut of an L1-trained network reaches the limit (LOMP)", "tab02"
    rule = f"holds if the one-shot limit is no more than {CLOSE:g} point below the formula's on average; in part if that is so for some"
    if limits.empty:
        return Finding(claim, "not decided", "no record", rule, page)
    short = 100 * (limits.formula - limits.measured)
    near = int((short <= CLOSE).sum())
    measured = f"the cut stops {short.mean():.1f} points short on average, {near} of {len(short)} networks come within {CLOSE:g}"
    return Finding(claim, _decided(bool(short.mean() <= CLOSE), near > 0), measured, rule, page)


def lomp_beats(
    frame: pd.DataFrame, rivals: str, page: str, without: Sequence[str] = (), absent: Sequence[str] = ()
) -> Finding:
    """Judge LOMP against other pruners, at the same sparsity and seed.

    Args:
        frame: Output of ``prune_frame``.
        rivals: Who they are, in words.
        page: Where to look.
        without: Rows that are not rivals.
        absent: Rivals of which a record is missing beside one of LOMP.

    Returns:
        The finding.
    """
    claim = f"LOMP is as good as {rivals}, at the same sparsity"
    rule = (
        f"holds if its test accuracy is within {CLOSE:g} point of the best rival's, or above, in nine of ten comparisons, and no rival is "
        "without a record; in part if in half"
    )
    keys = ["title", "sparsity", "seed"]
    own = frame[frame.row == "LOMP"].set_index(keys).test_accuracy
    others = frame[~frame.row.isin(["LOMP", "random", "layer-wise magnitude", *without])]
    best = others.groupby(keys).test_accuracy.max()
    gap = (100 * (own - best)).dropna()
    if gap.empty:
        return Finding(claim, "not decided", "no record", rule, page)
    share = float((gap >= -CLOSE).mean())
    by_sparsity = gap.groupby(level="sparsity").mean()
    words = ", ".join(f"{value:+.1f} at {sparsity:.4g}" for sparsity, value in by_sparsity.items())
    runs = gap.groupby(level=["title", "seed"]).ngroups
    measured = f"{share:.0%} of {len(gap)} comparisons (trained networks: {runs}); mean difference to the best rival in points, by fraction removed: {words}"
    measured += f"; without a record: {', '.join(absent)}" if absent else ""
    return Finding(claim, _decided(share >= 0.9 and not absent, share >= 0.5), measured, rule, page)


def iterative_raises(frame: pd.DataFrame) -> Finding:
    """Judge whether iterative pruning raises the limit of what is left.

    Args:
        frame: Output of ``rounds_frame``.

    Returns:
        The finding.
    """
    claim, page = "Iterative pruning raises the limit from round to round", "fig03"
    rule = (
        "holds if predicted and measured limit both have rank correlation above 0.9 with the round, and above 0 as shares of the weights "
        "left, in every run; in part if the first on average. The first alone says little: a limit cannot lie below what is removed. "
        "Rounds whose network has lost more than half of the dense test accuracy do not count"
    )
    if frame.empty:
        return Finding(claim, "not decided", "no record", rule, page)
    here = frame[frame.alive]
    runs = [run for _, run in here.groupby(["title", "seed"])]
    names = ("formula", "measured")
    ranks = np.array([[spearman(run["round"], run[name])[0] for name in names] for run in runs])
    left = {name: rounds_frames.share_of_left(here, name) for name in names}
    shares = np.array([[spearman(run["round"], left[name][run.index])[0] for name in names] for run in runs])
    first, last = rounds_frames.ends(here)
    means, rising = ranks.mean(axis=0), (shares > 0).sum(axis=0)
    measured = (
        f"{len(runs)} runs, {len(frame) - len(here)} of {len(frame)} networks dead and left out: rank correlation {means[0]:+.2f} (formula), {means[1]:+.2f} "
        f"(one-shot); one-shot limit {first.measured.mean():.1%} before, {last.measured.mean():.1%} after. As a share of the weights left "
        f"it goes from {left['measured'][first.index].mean():.1%} to {left['measured'][last.index].mean():.1%}, and rises in {rising[1]} of "
        f"{len(runs)} runs, the formula's in {rising[0]}"
    )
    whole = bool((ranks > 0.9).all() and (shares > 0).all())
    return Finding(claim, _decided(whole, bool((means > 0.9).all())), measured, rule, page)


def penalty_helps_gems(frame: pd.DataFrame) -> Finding:
    """Judge whether L2 on its scores helps Rare Gems.

    Args:
        frame: Output of ``prune_frame``.

    Returns:
        The finding.
    """
    claim, page = "An L2 penalty on the scores helps Rare Gems", "fig03"
    rule = (
        "holds if the mean gain is positive with a 95 % interval above zero; in part if only the mean is positive. A search is one network and "
        "seed, its gain the mean over the fractions removed; two tasks that share a search count once"
    )
    keys = ["title", "seed"]
    names = {"Rare Gems": "own", "Rare Gems, no L2": "plain"}
    gems = frame[frame.row.isin(names)].drop_duplicates(["record", "sparsity"]).replace({"row": names})
    both = gems.pivot_table(values="test_accuracy", index=[*keys, "sparsity"], columns="row").reindex(
        columns=list(names.values())
    )
    gain = (100 * (both.own - both.plain)).dropna().groupby(level=keys).mean()
    if len(gain) < 2:
        return Finding(claim, "not decided", "no record", rule, page)
    half = float(stats.t.ppf(0.975, len(gain) - 1)) * gain.std(ddof=1) / np.sqrt(len(gain))
    mean = float(gain.mean())
    measured = f"{mean:+.2f} points ({mean - half:+.2f} to {mean + half:+.2f}) over {len(gain)} searches"
    return Finding(claim, _decided(mean - half > 0, mean > 0), measured, rule, page)


def countermeasure_resolves(cells: Sequence[Cell], limits: pd.DataFrame) -> Finding:
    """Judge whether Lanczos quadrature gives the formula's number, where the truth is known and where it is not.

    Args:
        cells: Recorded cells of every profile.
        limits: Output of ``limits_frame`` of the same cells.

    Returns:
        The finding.
    """
    claim, page = "The spectrum can be had by Lanczos quadrature, for millions of weights", "slq"
    rule = (
        "holds if every interval holds the dense truth where that is known, and a network of more than a million weights is resolved to one "
        "point with all its training images; in part if one of both"
    )
    known = limits if limits.empty else limits.dropna(subset=["exact"])
    if known.empty:
        return Finding(claim, "not decided", "no record", rule, page)
    inside = (known.formula_low <= known.exact + 5e-5) & (known.exact <= known.formula_high + 5e-5)
    error = 100 * (known.formula - known.exact).abs()
    resolved = resolution_frame([c for c in cells if c.record["total"] > 1_000_000])
    words, large = "no large network is recorded", False
    if not resolved.empty:
        best = resolved.sort_values(["examples", "steps"]).iloc[-1]
        large = bool(best.resolved)
        words = f"{best.title}, {best.examples:,.0f} images, {best.steps:.0f} products: {best.sparsity:.2%}, certified within {best.low:.2%} to {best.high:.2%}"
    measured = f"{int(inside.sum())} of {len(inside)} intervals hold the dense truth, the values are off by {error.mean():.2f} points on average; {words}"
    return Finding(claim, _decided(bool(inside.all()) and large, bool(inside.all()) or large), measured, rule, page)


def findings(seeds: int | Sequence[int] = (0, 1, 2)) -> list[Finding]:
    """Judge every claim of the fundamental-limit paper by the records that there are.

    Args:
        seeds: Training seeds.

    Returns:
        One finding per claim, in the order of the book.
    """
    every = beside(None, "quick", seeds, run_missing=False)
    limits = limits_frame(every)
    frame, rounds = prune_frames.prune_frame(None, "best", seeds), rounds_frames.rounds_frame(None, "best", seeds)
    tables = {one.name for number in ("T3", "T4", "T5") for one in prune_frames.table_comparisons(number)}
    trained, one_shot = frame[frame.comparison.isin(tables)], frame[~frame.comparison.isin(tables)]
    return [
        limit_predicts_practice(limits, "fine_tuned", "after fine-tuning"),
        limit_predicts_practice(limits, "measured", "one cut, nothing retrained"),
        two_factors(every, limits),
        bounds_meet(limits),
        lomp_reaches_the_limit(limits),
        lomp_beats(trained, "pruners that train the sparse network", "tab03", absent=prune_frames.absent_rows(trained)),
        lomp_beats(one_shot, "second-order pruners", "tab09", ["magnitude, no L1"], prune_frames.absent_rows(one_shot)),
        iterative_raises(rounds),
        penalty_helps_gems(frame),
        countermeasure_resolves(every, limits),
    ]


def verdict_table(found: Sequence[Finding]) -> pd.DataFrame:
    """Lay out findings as the table of the verdict page; the last column links to the page with the evidence."""
    rows = [
        {
            "claim": one.claim,
            "verdict": one.verdict,
            "what was measured": one.measured,
            "rule": one.rule,
            "page": f'<a href="{one.page}.html">{one.page}</a>',
        }
        for one in found
    ]
    return pd.DataFrame(rows)


def error_table(seeds: int | Sequence[int] = (0, 1, 2)) -> pd.DataFrame:
    """Lay out :func:`prediction_errors` for every profile and kind of practice.

    Args:
        seeds: Training seeds.

    Returns:
        One line per profile, practice and prediction.
    """
    rows = []
    for profile in ("quick", "laptop", "paper"):
        limits = limits_frame(load_cells(None, profile, seeds))
        if limits.empty:
            continue
        for actual, words in (("fine_tuned", "fine-tuned"), ("measured", "one-shot")):
            for name, row in prediction_errors(limits, actual).iterrows():
                rows.append(
                    {
                        "profile": profile,
                        "practice": words,
                        "prediction": name,
                        "error (points)": f"{row.error:.1f}",
                        "bias": f"{row.bias:+.1f}",
                        "rank correlation": "—" if np.isnan(row["rank"]) else f"{row['rank']:+.2f}",
                        "networks": int(row["count"]),
                    }
                )
    return pd.DataFrame(rows)
