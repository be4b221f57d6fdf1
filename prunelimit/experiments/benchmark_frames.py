"""Recorded comparisons with other libraries, as tables."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from prunelimit.errors import PruneLimitError
from prunelimit.experiments.store import results_folder, trace

#: Kind to the names of its records, which ``make benchmark`` writes.
COMPARISONS = {
    "same-work": ("same-work-fc5", "same-work-resnet20"),
    "memory": ("memory-fc5", "memory-resnet20"),
    "memory-time": ("memory-time-resnet20",),
    "same-accuracy": ("same-accuracy-mlp-small", "same-accuracy-resnet-small"),
    "growth": ("growth",),
    "many": ("many",),
    "size": ("size",),
    "workers": ("workers",),
}

#: Kinds whose one record is of all networks.
_SINGLE = ("growth", "many", "size", "workers")


def load_benchmark(name: str) -> dict[str, Any] | None:
    """Load one recorded comparison.

    Args:
        name: Of its file.

    Returns:
        The record; ``None`` if there is none, or it did not run to its end.
    """
    path = results_folder() / "benchmarks" / f"{name}.json"
    trace(path)
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"complete": False}
    return record if record["complete"] else None


def load_benchmarks(kind: str) -> list[dict[str, Any]]:
    """Load the recorded comparisons of one kind that ran to their end.

    Args:
        kind: A key of ``COMPARISONS``.

    Returns:
        The records, by name.
    """
    return [record for name in COMPARISONS[kind] if (record := load_benchmark(name))]


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


def memory_frame() -> pd.DataFrame:
    """Tabulate the peak memory of every method, each in a process of its own.

    Returns:
        One row per network and method: peak above what the process held before, in MiB and in sizes of the Lanczos basis; a
        method that did not come to its end has no numbers.
    """
    rows = []
    for record in load_benchmarks("memory"):
        for name, found in record["bytes"].items():
            ours = name == "prunelimit"
            rows.append(
                {
                    "network": record["problem"]["network"],
                    "N": record["problem"]["examples"],
                    "steps": record["steps"],
                    "method": name,
                    "peak, MiB": found["peak"] / 2**20 if "peak" in found else None,
                    "basis, MiB": found["basis"] / 2**20 if "basis" in found else None,
                    "peak / basis": found.get("ratio"),
                    "aim": record["target"] if ours else None,
                }
            )
    names = ["network", "N", "steps", "method", "peak, MiB", "basis, MiB", "peak / basis", "aim"]
    return pd.DataFrame(rows, columns=names)


def trade_frame() -> pd.DataFrame:
    """Tabulate what fewer rows per pass save in memory and cost in time, each choice in a process of its own.

    Returns:
        One row per network and choice: which graph is kept, rows per pass, peak of a product above what the process held
        before, in MiB; that and the Lanczos basis in sizes of the basis, gradients per product, and what is aimed at.
    """
    rows = [
        {
            "network": record["problem"]["network"],
            "N": record["problem"]["examples"],
            "graph": "kept between products" if found["rule"] == "retained" else "built anew",
            "rows per pass": found["rows_per_pass"],
            "peak of a product, MiB": found["peak"] / 2**20,
            "with the basis / basis": found["ratio"],
            "at most": record["targets"]["ratio"],
            "gradients per product": found["gradients"],
            "aim": record["targets"]["gradients"],
        }
        for record in load_benchmarks("memory-time")
        for found in record["choices"]
    ]
    names = ["network", "N", "graph", "rows per pass", "peak of a product, MiB", "with the basis / basis", "at most"]
    return pd.DataFrame(rows, columns=[*names, "gradients per product", "aim"])


def error_frame() -> pd.DataFrame:
    """Tabulate how far every method's d(mu) is from the truth after how many CPU seconds.

    Returns:
        One row per network, method, number of steps and mu: ``scale`` is mu over the largest eigenvalue, ``error`` the
        relative root mean square over groups of start vectors, ``noise`` what the start vectors alone must leave.
    """
    rows = []
    for record in load_benchmarks("same-accuracy"):
        for name, curve in record["curves"].items():
            for steps, errors, seconds in zip(curve["steps"], curve["errors"], curve["cpu"], strict=True):
                for scale, error, noise in zip(record["scales"], errors, record["probe_noise"], strict=True):
                    network, dimension = record["problem"]["network"], record["problem"]["dimension"]
                    rows.append((network, dimension, name, steps, seconds, scale, error, noise))
    names = ["network", "dimension", "method", "steps", "CPU seconds", "scale", "error", "noise"]
    return pd.DataFrame(rows, columns=names)


def accuracy_frame(tolerance: float = 0.1) -> pd.DataFrame:
    """Tabulate the CPU seconds until d(mu) stays within a tolerance of the truth.

    Args:
        tolerance: Relative; one of those recorded, 0.05 and 0.1.

    Returns:
        One row per network, mu and method. ``reached`` says whether the method arrived; if not, its seconds are what it had
        spent when it was stopped, and ``times ours`` is a lower bound.

    Raises:
        PruneLimitError: If nothing is recorded at that tolerance.
    """
    rows = []
    records = load_benchmarks("same-accuracy")
    recorded = sorted({entry["tolerance"] for record in records for entry in record["table"]})
    if recorded and tolerance not in recorded:
        raise PruneLimitError(f"tolerance={tolerance!r} is not recorded: choose {' or '.join(map(str, recorded))}.")
    for record in records:
        for entry in record["table"]:
            if entry["tolerance"] != tolerance:
                continue
            for name in record["methods"]:
                found = entry[name]
                rows.append(
                    {
                        "network": record["problem"]["network"],
                        "µ / largest": entry["scale"],
                        "method": name,
                        "reached": found["cpu"] is not None,
                        "steps": found["steps"],
                        "CPU seconds": found["cpu"] if found["cpu"] is not None else found["at_least"],
                        "times ours": found.get("times_ours"),
                        "aim": record["target"] if name == "pyhessian" else None,
                    }
                )
    names = ["network", "µ / largest", "method", "reached", "steps", "CPU seconds", "times ours", "aim"]
    return pd.DataFrame(rows, columns=names)


#: Sweeps of the record "growth": where they are in it, what varies, and what is timed.
_SWEEPS = (
    (("examples",), "training images N", "one product"),
    (("parameters", "product"), "weights D", "one product"),
    (("parameters", "process"), "weights D", "16 steps, from opening"),
    (("steps",), "Lanczos steps", "the whole process"),
)


def growth_frame() -> pd.DataFrame:
    """Tabulate how our CPU seconds grow.

    Returns:
        One row per measurement: ``sweep`` (what varies), ``timed`` (what is timed), ``size``, ``CPU seconds`` (median) and
        the ``exponent`` fitted to its sweep.
    """
    rows = []
    for record in load_benchmarks("growth"):
        for path, sweep, timed in _SWEEPS:
            found: Any = record["parts"]
            for key in path:
                found = found.get(key, {})
            for size, clock in zip(found.get("sizes", []), found.get("clocks", []), strict=True):
                rows.append((sweep, timed, size, clock["cpu_median"], found["exponent"]))
    return pd.DataFrame(rows, columns=["sweep", "timed", "size", "CPU seconds", "exponent"])


def shortcut_frame() -> pd.DataFrame:
    """Tabulate two things that are had all at once against having them one at a time.

    Returns:
        One row each for the norms of all rows of the Hessian and for the distances R(s) at many sparsities. The time for
        all rows one at a time is extrapolated from those measured.
    """
    rows = []
    for record in load_benchmarks("growth"):
        if found := record["parts"].get("rows"):
            rows.append(
                {
                    "what": f"norms of all {found['dimension']:,} rows of the Hessian, from {found['probes']} products",
                    "at once, s": found["estimated"]["cpu_median"],
                    "instead of": "one backward pass per row",
                    "one at a time, s": found["all_rows_extrapolated"],
                    "times": found["times"],
                    "how known": f"extrapolated from {found['rows_measured']} rows",
                    "difference": found["relative_error"]["root_mean_square"],
                }
            )
        if found := record["parts"].get("curve"):
            rows.append(
                {
                    "what": f"distances R(s) at {found['points']:,} sparsities, from one sort",
                    "at once, s": found["one_sort"]["cpu_median"],
                    "instead of": "a pruned copy of the network for each",
                    "one at a time, s": found["copies"]["cpu_median"],
                    "times": found["times"],
                    "how known": "measured",
                    "difference": found["largest_difference"],
                }
            )
    names = ["what", "at once, s", "instead of", "one at a time, s", "times", "how known", "difference"]
    return pd.DataFrame(rows, columns=names)


def many_frame() -> pd.DataFrame:
    """Tabulate training several networks at once against one at a time.

    Returns:
        One row per network and number of networks: CPU seconds per epoch of all of them one at a time, by ``torch.func.vmap``
        and as :func:`prunelimit.training_many.fit_many` does it, and how many times faster the latter is than one at a time.
        The MLPs on 28 x 28 random pixels are called by their widths.
    """
    rows = []
    for record in load_benchmarks("many"):
        sizes = [(f"MLP 784-{'-'.join(map(str, found['hidden']))}-10", found) for found in record["sizes"]]
        for name, found in [(n, f) for n, every in record["speed"].items() for f in every] + sizes:
            each = found["per_epoch"]
            vmap = each.get("vmap", each["stacked"])  # networks other than plain MLPs are stacked by vmap
            rows.append(
                (
                    name,
                    found["parameters"],
                    found["networks"],
                    each["one at a time"],
                    vmap,
                    each["stacked"],
                    found["times"],
                )
            )
    names = ["network", "parameters", "at once", "one at a time, s", "vmap, s", "stacked, s", "times faster"]
    return pd.DataFrame(rows, columns=names)


def drift_frame() -> pd.DataFrame:
    """Tabulate how far weights trained at once are from those trained one at a time.

    Returns:
        One row per network, precision and number of epochs: the largest difference of any weight over all networks, and the
        same for networks trained one at a time from initial weights that were changed in their last bit.
    """
    rows = [
        (name, found["precision"], found["epochs"], max(found["stacked"]), max(found["nudged"]))
        for record in load_benchmarks("many")
        for name, every in record["drift"].items()
        for found in every
    ]
    return pd.DataFrame(rows, columns=["network", "precision", "epochs", "at once", "last bit changed"])


def size_frame() -> pd.DataFrame:
    """Tabulate the limit of large networks, without a Lanczos basis, in units of a gradient of the same loss.

    Returns:
        One row per network: prunable weights ``D``, images ``N``, ``steps``, CPU seconds of one gradient, what the whole
        prediction took in gradients, what one more product takes, what 64 steps would by these two (extrapolated), the
        ``peak`` of the process in GiB and what it may be.
    """
    rows = [
        (
            network,
            found["problem"]["dimension"],
            found["problem"]["examples"],
            found["steps"][-1],
            found["seconds"]["gradient"]["cpu_median"],
            found["gradients"],
            found["gradients_per_product"],
            found["gradients_besides"] + 64 * found["gradients_per_product"],
            found["peak"] / 2**30,
            record["largest"] / 2**30,
        )
        for record in load_benchmarks("size")
        for network, found in record["networks"].items()
    ]
    names = ["network", "D", "N", "steps", "gradient, s", "gradients", "per product", "64 steps", "peak", "at most"]
    return pd.DataFrame(rows, columns=names)


def workers_frame() -> pd.DataFrame:
    """Tabulate curvature products by two processes against one.

    Returns:
        One row per network: ``efficiency``, CPU seconds of one process over those of both; ``balanced``, the same over twice
        those of the busier one; ``speedup`` on the wall, with ``load``, how many processes the machine was busy with.
    """
    rows = [
        (
            network,
            found["problem"]["dimension"],
            found["problem"]["examples"],
            found["products"],
            *(found[name] for name in ("efficiency", "balanced", "speedup", "load")),
        )
        for record in load_benchmarks("workers")
        for network, found in record["networks"].items()
    ]
    return pd.DataFrame(rows, columns=["network", "D", "N", "products", "efficiency", "balanced", "speedup", "load"])


def benchmark_origin() -> pd.DataFrame:
    """List the recorded comparisons with the machine, the commit and the command that makes each again."""
    rows = []
    for kind, wanted in COMPARISONS.items():
        found = {record["name"]: record for record in load_benchmarks(kind)}
        for name in wanted:
            record = found.get(name)
            about = {} if record is None else record["provenance"]
            rows.append(
                {
                    "comparison": name,
                    "processor": "not recorded"
                    if record is None
                    else f"{about['processor']}, {about['threads']} thread",
                    "torch": about.get("torch", "—"),
                    "commit": about.get("commit", "—")[:10],
                    "command": f"python -m benchmarks {kind}"
                    + ("" if kind in _SINGLE else f" --network {name.removeprefix(kind + '-')}")
                    if record is None
                    else record["command"],
                }
            )
    return pd.DataFrame(rows)
