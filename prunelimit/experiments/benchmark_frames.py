"""Recorded comparisons with other libraries, as tables."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from prunelimit.experiments.store import results_folder, trace

#: Kind to the names of its records, which ``make benchmark`` writes.
COMPARISONS = {
    "same-work": ("same-work-fc5", "same-work-resnet20"),
    "memory": ("memory-fc5", "memory-resnet20"),
    "same-accuracy": ("same-accuracy-mlp-small", "same-accuracy-resnet-small"),
    "growth": ("growth",),
}


def load_benchmarks(kind: str) -> list[dict[str, Any]]:
    """Load the recorded comparisons of one kind that ran to their end.

    Args:
        kind: A key of ``COMPARISONS``.

    Returns:
        The records, by name.
    """
    records = []
    for name in COMPARISONS[kind]:
        path = results_folder() / "benchmarks" / f"{name}.json"
        trace(path)
        if path.is_file():
            records.append(json.loads(path.read_text(encoding="utf-8")))
    return [record for record in records if record["complete"]]


def same_work_frame() -> pd.DataFrame:
    """Tabulate the same number of Lanczos steps by every method.

    Returns:
        One row per network and method: CPU seconds (median over rounds), our share of it and the share aimed at.
    """
    rows = []
    for record in load_benchmarks("same-work"):
        for name, clock in record["seconds"].items():
            share = record["shares"].get(name, {})
            rows.append(
                {
                    "network": record["problem"]["network"],
                    "N": record["problem"]["examples"],
                    "steps": record["steps"],
                    "rounds": record["rounds"],
                    "method": name,
                    "CPU seconds": clock["cpu_median"],
                    "ours / it": share.get("share"),
                    "aim": share.get("target"),
                    "what it does": record["methods"][name]["what"],
                }
            )
    names = ["network", "N", "steps", "rounds", "method", "CPU seconds", "ours / it", "aim", "what it does"]
    return pd.DataFrame(rows, columns=names)


def product_frame() -> pd.DataFrame:
    """Tabulate what one of our products costs, in gradients of the same loss.

    Returns:
        One row per network.
    """
    names = ["network", "N", "rule", "rows per pass", "gradients per product", "aim"]
    return pd.DataFrame(
        [
            {
                "network": record["problem"]["network"],
                "N": record["problem"]["examples"],
                "rule": record["product"]["rule"],
                "rows per pass": record["product"]["rows_per_pass"],
                "gradients per product": record["product"]["gradients"],
                "aim": record["product"]["target"],
            }
            for record in load_benchmarks("same-work")
        ],
        columns=names,
    )
