"""The questions of the synthesis: what the limit of a dense network tells about its children, beside what is known for nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from prunelimit.checks import integer, positives
from prunelimit.experiments import ranks
from prunelimit.experiments.synthesis_frames import LIMITS, POOLED, RIVALS, parents_frame
from prunelimit.experiments.verdict import VERDICTS, Finding


@dataclasses.dataclass(frozen=True)
class Relation:
    """A question put to a grid.

    Attributes:
        words: What tables call it.
        outcome: Column that is to be told.
        kind: ``"parents"``: Spearman's correlation over dense parents. ``"fixed"``: the same at each density, averaged over
            densities. ``"regime"``: how often the better score belongs to the cell with the outcome, over all pairs of a cell
            with it and one without. ``"regime, fixed"``: over pairs of one density only.
        expected: 1 if a higher limit is expected to go with a higher outcome, -1 with a lower one.
    """

    words: str
    outcome: str
    kind: str
    expected: int = 1

    @property
    def neutral(self) -> float:
        """The value of a score that knows nothing."""
        return 0.5 if self.kind.startswith("regime") else 0.0


#: The questions, in the order of the tables.
RELATIONS = {
    "boundary": Relation("parents: where regime I begins", "connected_limit", "parents"),
    "mean_error": Relation("parents: error, mean over densities", "mean_error", "parents", -1),
    "lmc": Relation("one density: connectivity", "lmc", "fixed"),
    "error": Relation("one density: test error", "error", "fixed", -1),
    "cells": Relation("all cells: connected or regime I", "connected", "regime"),
    "column": Relation("one density: connected or regime I", "connected", "regime, fixed"),
    "similar": Relation("one density, connected cells: II-B or II-A", "similar", "regime, fixed"),
}


def _score(cells: pd.DataFrame, predictor: str, relation: Relation) -> pd.Series:
    """Return the values by which a predictor orders parents or cells; limits enter cells by their margin."""
    if predictor in LIMITS and relation.kind != "parents":
        return cells[predictor] - (1 - cells.density)
    return cells[predictor]


def _rows(cells: pd.DataFrame, relation: Relation) -> pd.DataFrame:
    """Choose the rows that a question is put to."""
    table = parents_frame(cells) if relation.kind == "parents" else cells
    return table[table[relation.outcome].notna()]


def evaluate_relation(
    table: pd.DataFrame, predictor: str, relation: Relation, counts: np.ndarray | None = None
) -> np.ndarray:
    """Compute the statistic of a question.

    Args:
        table: Cells, or one row per parent for a question about parents.
        predictor: One of :data:`LIMITS` or :data:`RIVALS`.
        relation: The question.
        counts: ``(draws, n)``, how often each row counts.

    Returns:
        ``(draws,)``, NaN where it is not defined.
    """
    score, outcome = _score(table, predictor, relation).to_numpy(float), table[relation.outcome].to_numpy(float)
    if np.isnan(score).any():
        return np.full(1 if counts is None else len(counts), np.nan)
    if relation.kind == "parents":
        return ranks.spearman(score, outcome, counts)
    if relation.kind == "fixed":
        return ranks.grouped_spearman(score, outcome, table.density, counts)
    groups = table.density if relation.kind == "regime, fixed" else None
    return ranks.concordance(score, outcome > 0.5, counts, groups)


#: What a limit has to beat: what is known for nothing, and the limit that looks at magnitudes alone.
CURVATURE_FREE = (*RIVALS, "emp")

#: Columns of :func:`relation_frame`.
_COLUMNS = (
    *("relation", "predictor", "value", "low", "high", "kendall", "rows", "rarer", "expected", "neutral"),
    *("rival", "gain", "gain_low", "gain_high"),
)


def relation_frame(cells: pd.DataFrame, draws: int = ranks.DRAWS, seed: int = 0) -> pd.DataFrame:
    """Put all questions to the cells of a grid, with intervals from resampling values and dense seeds.

    A rival, EMP among them, counts with the better of its two signs, chosen after looking; a limit only with the sign that is
    expected of it.

    Args:
        cells: Output of :func:`synthesis_frame`.
        draws: Draws of the bootstrap.
        seed: Of the draws.

    Returns:
        One row per question and predictor: the statistic with its interval, Kendall's tau for parents, the number of ``rows``
        and, of a question with two answers, how many have the ``rarer`` one; for limits with curvature the best ``rival`` and the
        ``gain`` over it in the direction that is expected, with its interval.

    Raises:
        PruneLimitError: If there are fewer than two draws.
    """
    integer("draws", draws, least=2)
    rows = []
    for name, relation in RELATIONS.items() if len(cells) else ():
        table = _rows(cells, relation)
        if table.empty:
            continue
        positive = int((table[relation.outcome] > 0.5).sum())
        rarer = min(positive, len(table) - positive) if relation.kind.startswith("regime") else len(table)
        counts = ranks.cluster_counts([table.cluster, table.seed], draws, seed)
        own = {p: float(evaluate_relation(table, p, relation)[0]) for p in (*LIMITS, *RIVALS)}
        drawn = {p: evaluate_relation(table, p, relation, counts) for p in own if not np.isnan(own[p])}
        rivals = {p: abs(own[p] - relation.neutral) for p in CURVATURE_FREE if p in drawn}
        best = max(rivals, key=lambda p: rivals[p]) if rivals else None
        for predictor, value in own.items():
            low, high = ranks.interval(drawn[predictor]) if predictor in drawn else (np.nan, np.nan)
            row = {"relation": name, "predictor": predictor, "value": value, "low": low, "high": high}
            row |= {"rows": len(table), "rarer": rarer, "expected": relation.expected, "neutral": relation.neutral}
            if relation.kind == "parents":
                row["kendall"] = float(stats.kendalltau(table[predictor], table[relation.outcome]).statistic)
            if predictor not in CURVATURE_FREE and predictor in drawn and best is not None:
                sign = np.sign(own[best] - relation.neutral)
                gains = relation.expected * (drawn[predictor] - relation.neutral)
                gains = gains - sign * (drawn[best] - relation.neutral)
                ends = ranks.interval(gains)
                gain = relation.expected * (value - relation.neutral) - rivals[best]
                row |= {"rival": best, "gain": gain, "gain_low": ends[0], "gain_high": ends[1]}
            rows.append(row)
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def able_relations(
    found: Mapping[str, pd.DataFrame], worst: float | Sequence[float], draws: int = ranks.DRAWS, seed: int = 0
) -> dict[str, pd.DataFrame]:
    """Put the questions to all grids together again, without the dense networks that have learnt too little.

    Args:
        found: Output of :func:`~prunelimit.experiments.synthesis_frames.all_cells`.
        worst: The largest dense test error that is let in; one bound, or several.
        draws: Draws of the bootstrap.
        seed: Of the draws.

    Returns:
        Title, with the bound and the number of networks left, to output of :func:`relation_frame`.

    Raises:
        PruneLimitError: If a bound is no positive number.
    """
    bounds, tables = positives("worst", worst), {}
    for title, cells in found.items():
        for bound in bounds if title.startswith(POOLED) else ():
            kept = cells[cells.dense_error <= bound]
            left, count = (len(parents_frame(part)) for part in (kept, cells))
            name = f"{title}, dense error up to {bound:.0%}: {left} of {count} networks"
            tables[name] = relation_frame(kept, draws, seed)
    return tables


def density_frame(cells: pd.DataFrame, draws: int = ranks.DRAWS, seed: int = 0) -> pd.DataFrame:
    """Correlate the predictors with connectivity and error of the children at each density by itself.

    Args:
        cells: Output of :func:`synthesis_frame`.
        draws: Draws of the bootstrap.
        seed: Of the draws.

    Returns:
        One row per ``outcome`` (``"lmc"``, ``"error"``), ``density`` and ``predictor``: Spearman's correlation ``value`` over the
        parents, with its interval ``low`` to ``high``; NaN where something does not vary.
    """
    rows = []
    for outcome in ("lmc", "error") if len(cells) else ():
        for density, part in cells[cells[outcome].notna()].groupby("density"):
            counts = ranks.cluster_counts([part.cluster, part.seed], draws, seed)
            for predictor in (p for p in (*LIMITS, *RIVALS) if p != "density"):
                score = part[predictor].to_numpy(float)
                if np.isnan(score).any():
                    continue
                low, high = ranks.interval(ranks.spearman(score, part[outcome], counts))
                value = float(ranks.spearman(score, part[outcome])[0])
                keys = {"outcome": outcome, "density": density, "predictor": predictor}
                rows.append(keys | {"value": value, "low": low, "high": high, "parents": len(part)})
    return pd.DataFrame(rows, columns=["outcome", "density", "predictor", "value", "low", "high", "parents"])


#: Mark of a limit whose gain over the best rival has an interval above zero.
AHEAD = " ▲"

#: A grid with fewer cells of the rarer regime does not decide anything.
RARER = 5


def question_table(relations: Mapping[str, pd.DataFrame], name: str) -> pd.DataFrame:
    """Lay out one question for all grids.

    Args:
        relations: Grid to output of :func:`relation_frame`.
        name: One of :data:`RELATIONS`.

    Returns:
        A line per predictor, limits first, then one with the number of ``rows`` and how many of them have the rarer answer, and a
        column per grid: the statistic with its interval, with :data:`AHEAD` if a limit beats the best rival on a grid with at
        least :data:`RARER` of the rarer answer. A dash where nothing varies.
    """
    lines: dict[str, dict[str, str]] = {}
    for title, table in relations.items():
        own = table[table.relation == name]
        for row in own.to_dict("records"):
            ahead = row["gain_low"] > 0 and row["rarer"] >= RARER
            cell = _with_interval(row["value"], row["low"], row["high"]) + (AHEAD if ahead else "")
            lines.setdefault({**LIMITS, **RIVALS}[row["predictor"]], {})[title] = cell
        if len(own):
            count, rarer = int(own.rows.iloc[0]), int(own.rarer.iloc[0])
            lines.setdefault("rows", {})[title] = f"{count}" + (f", {rarer} of the rarer" if rarer < count else "")
    rows = [
        {"known before retraining": words} | lines[words]
        for words in [*LIMITS.values(), *RIVALS.values(), "rows"]
        if words in lines
    ]
    return pd.DataFrame(rows, columns=["known before retraining", *relations]).fillna("—")


def _with_interval(value: Any, low: Any, high: Any) -> str:
    if np.isnan(value):
        return "—"
    return f"{value:.2f}" + ("" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]")


def proxies_frame(cells: pd.DataFrame) -> pd.DataFrame:
    """Ask what the limits themselves follow.

    Args:
        cells: Output of ``synthesis_frame``.

    Returns:
        One row per limit: Spearman's correlation over dense parents with ``temperature``, ``dense_train_loss``, ``dense_error`` and
        ``epsilon``; NaN where one of the two is missing or does not vary.
    """
    parents, names = parents_frame(cells), ("temperature", "dense_train_loss", "dense_error", "epsilon")
    rows = []
    for predictor in LIMITS if len(parents) else ():
        score = parents[predictor]
        known = {name: not (score.isna() | parents[name].isna()).any() for name in names}
        found = {name: float(ranks.spearman(score, parents[name])[0]) if known[name] else np.nan for name in names}
        rows.append({"predictor": predictor} | found)
    return pd.DataFrame(rows, columns=["predictor", *names])


#: Limits that are judged, and the questions on which they are: of the regime, and of the error.
JUDGED = {
    "formula": "the formula's limit",
    "directional": "the directional limit",
    "refit": "the refitted limit",
    "refit_free": "the refitted limit without a control",
}
CLAIMS = {
    "column": "At one density, {} of a dense network tells whether its children will be connected",
    "error": "At one density, {} of a dense network orders its children by their test error",
    "lmc": "Over all grids together, at one density, {} orders networks by the connectivity of their children",
}

#: The claims about all grids together. They were added when the quick grids had been seen; the others were written before.
TOGETHER = ("lmc",)

RULE = (
    "holds if on every grid the interval lies on the expected side of chance and the gain over the best rival is above 0; in part "
    f"if the interval does on at least half of them; grids with less than {RARER} cells of the rarer answer do not count"
)


def findings(tables: Mapping[str, pd.DataFrame]) -> list[Finding]:
    """Answer the question of the synthesis, by one rule.

    Args:
        tables: Grid to output of :func:`relation_frame`; all grids together serve the claims in :data:`TOGETHER`, and no other.

    Returns:
        A finding per question and predicted limit.
    """
    found = []
    parts = [table.assign(grid=name) for name, table in tables.items()]
    stacked = pd.concat([relation_frame(pd.DataFrame()).assign(grid=""), *parts])
    decided = stacked[stacked.low.notna() & (stacked.rarer >= RARER)]
    for relation, claim in CLAIMS.items():
        asked = decided[decided.grid.str.startswith(POOLED) == (relation in TOGETHER)]
        for predictor, words in JUDGED.items():
            own = asked[(asked.relation == relation) & (asked.predictor == predictor)]
            above = own.low.where(own.expected > 0, -own.high) > own.neutral * own.expected
            ahead = own.gain_low > 0
            verdict = VERDICTS[0] if (above & ahead).all() else VERDICTS[1] if above.mean() >= 0.5 else VERDICTS[2]
            text = "; ".join(f"{row.grid}: {_with_interval(row.value, row.low, row.high)}" for row in own.itertuples())
            text = (
                f"{text}. Beats the best rival on {int(ahead.sum())} of {len(own)}." if text else "no grid decides it"
            )
            found.append(Finding(claim.format(words), verdict if len(own) else VERDICTS[3], text, RULE, "synthesis"))
    return found
