"""The command line. Every command prints one sentence and exits with status 2 when its input can be mended."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from prunelimit import cli_predict, cli_records, cli_regimes, cli_transformers
from prunelimit.cli_options import out, parameter_of, say
from prunelimit.errors import PruneLimitError

app = typer.Typer(
    name="prunelimit",
    help="How far can a neural network be pruned? Predict it, measure it, read the book.\n\n"
    "Start with `prunelimit predict --model fc5-quick --data digits`, which trains a small network and predicts its limit "
    "in seconds. `prunelimit status` shows which experiments are recorded.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _checkout() -> Path:
    from prunelimit.experiments.store import repository

    root = repository()
    if root is None:
        raise PruneLimitError("the book is not here: clone the repository and run `make book` in it.")
    return root


for module in (cli_predict, cli_records, cli_regimes, cli_transformers):
    module.add_commands(app)


@app.command()
def figure(
    name: Annotated[
        str, typer.Argument(help="A notebook: fig02, fig4, tab01, ...; or answer, the picture on the landing page.")
    ],
    profile: Annotated[
        str | None, typer.Option(help="Profile shown beside the best recorded one; the notebook's own if left out.")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where to put the executed notebook and its pictures.")] = Path(
        "figures"
    ),
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter",
            "-p",
            help="NAME=VALUE of the notebook's first cell, as in Python or YAML; again for another.",
        ),
    ] = None,
) -> None:
    """Execute one notebook of the book, with other parameters if you like, and keep its pictures.

    Example: `prunelimit figure fig4`, `prunelimit figure phase -p rotations=60 -p 'totals=[20, 40, 80]'`
    """
    import base64
    import re

    from prunelimit.book import Builder, NotebookFailed
    from prunelimit.files import atomic_file

    short = re.fullmatch(r"([a-z]+)(\d)", name)
    name = f"{short[1]}0{short[2]}" if short else name
    builder = Builder(_checkout())
    if name == "answer":
        with atomic_file(folder / "limit.svg") as temporary:
            temporary.write_bytes(builder.picture())
        say(f"{folder / 'limit.svg'}")
        return
    builder.executed = folder.resolve()
    values = ({} if profile is None else {"profile": profile}) | dict(map(parameter_of, parameter or []))
    try:
        builder.execute([name], values)
    except NotebookFailed as error:
        if error.mendable:
            raise PruneLimitError(str(error)) from error
        print(error, file=sys.stderr)
        raise typer.Exit(1) from error
    cells = json.loads((folder / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    pictures = [o["data"]["image/png"] for c in cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    for number, picture in enumerate(pictures, 1):
        (folder / f"{name}-{number}.png").write_bytes(base64.b64decode(picture))
    say(f"{folder / name}.ipynb and {len(pictures)} picture(s)")


@app.command()
def book() -> None:
    """Execute the notebooks that changed and build the book into _build/html.

    Example: `prunelimit book`
    """
    from prunelimit.book import Builder, NotebookFailed

    try:
        Builder(_checkout()).build()
    except NotebookFailed as error:
        print(error, file=sys.stderr)
        print("the book was not built; the last good one is untouched.", file=sys.stderr)
        raise typer.Exit(1) from error


@app.command()
def data(
    name: Annotated[str, typer.Argument(help="Data set to prepare; leave it out to list them.")] = "",
    origin: Annotated[
        Path | None, typer.Option("--from", help="Folder with the official files, in place of a download.")
    ] = None,
) -> None:
    """List the data sets, or prepare one: find or download its files, verify them, convert them once.

    Example: `prunelimit data cifar10`
    """
    from prunelimit.datasets import DATASETS, POOLED, SOURCES, load_dataset, prepare_dataset
    from prunelimit.files import data_folder

    if name:
        if origin is not None:
            if not origin.is_dir():
                raise PruneLimitError(f"--from={str(origin)!r} is not a folder: give the one with the official files.")
            prepare_dataset(POOLED.get(name, name), origin=origin)
        found = load_dataset(name)
        out.print(
            f"{name}: {len(found.labels['train']):,} training and {len(found.labels['test']):,} test images, verified"
        )
        return
    say(f"data folder: {data_folder()}")  # not a title, which is broken into the width of the table
    table = Table("data set", "state")
    for known in DATASETS:
        source = POOLED.get(known, known)
        there = (data_folder() / source / "train_images.npy").is_file()
        table.add_row(known, "part of scikit-learn" if source not in SOURCES else "ready" if there else "not here yet")
    out.print(table)


@app.command()
def doctor() -> None:
    """Check the installation: versions, device, folders, records and the tools the book needs.

    Example: `prunelimit doctor`
    """
    import importlib.util
    import platform

    import torch

    from prunelimit.experiments.catalogue import SEEDS, TASKS
    from prunelimit.experiments.runner import EXPERIMENT
    from prunelimit.experiments.store import load_record, repository
    from prunelimit.files import cache_folder, data_folder, make_folder

    problems = []

    def attempt(what: str, action: Any) -> str:
        try:
            return str(action())
        except PruneLimitError as error:
            problems.append(str(error))
            return f"problem: {what}"

    def count_records() -> str:
        specs = [task.spec(profile, seed) for task in TASKS.values() for profile in task.profiles for seed in SEEDS]
        return f"{sum(load_record(EXPERIMENT, spec) is not None for spec in specs)} of {len(specs)} cells recorded, all intact"

    table = Table("what", "found", title="prunelimit doctor")
    table.add_row("python", platform.python_version())
    cuda = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    table.add_row("torch", f"{torch.__version__}, {torch.get_num_threads()} threads, GPU: {cuda}")
    table.add_row("cache", attempt("cache", lambda: make_folder(cache_folder())))
    table.add_row("data", attempt("data", lambda: make_folder(data_folder())))
    table.add_row("records", attempt("records", count_records))
    table.add_row("checkout", str(repository() or "none: the book cannot be built from here"))
    absent = [m for m in ("papermill", "jupyter_book", "sphinx_proof") if importlib.util.find_spec(m) is None]
    table.add_row(
        "book tools", "all there" if not absent else f"missing: {', '.join(absent)} (pip install 'prunelimit[book]')"
    )
    out.print(table)
    for problem in problems:
        print(problem, file=sys.stderr)
    raise typer.Exit(2 if problems else 0)


def main() -> None:
    """Run the command line; an error that the user can mend is one sentence and exit status 2."""
    try:
        app()
    except PruneLimitError as error:
        print(f"prunelimit: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
