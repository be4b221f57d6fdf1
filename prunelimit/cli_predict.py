"""The command `prunelimit predict`: a network of the catalogue, or anyone's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from prunelimit.cli_options import Device, check_device, say
from prunelimit.errors import PruneLimitError, unknown_name

#: Losses that have a name on the command line, in torch.nn.functional; "own" stands for the model's own.
LOSSES = ("cross_entropy", "mse_loss", "binary_cross_entropy_with_logits", "own")

#: Endings of the file of a report.
REPORTS = (".html", ".json", ".txt", ".svg", ".png", ".pdf")


def add_commands(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(predict)


def predict(
    model: Annotated[
        str,
        typer.Option(
            help="A network of the catalogue (it is trained first if need be), package.module:function that makes one, "
            "or FILE with weights and --arch."
        ),
    ],
    data: Annotated[
        str,
        typer.Option(help="Data set, for example digits or cifar10, or package.module:function that gives batches."),
    ],
    arch: Annotated[str, typer.Option(help="Network that FILE belongs to, for example fc5.")] = "",
    weights: Annotated[
        Path | None, typer.Option(help="Weights for package.module:function: FILE.safetensors, or a saved state dict.")
    ] = None,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Load pickled objects from weights: that runs code in the file.")
    ] = False,
    loss: Annotated[
        str, typer.Option(help=f"{', '.join(LOSSES[:-1])}, own (the model returns it), or package.module:function.")
    ] = "cross_entropy",
    method: Annotated[
        str,
        typer.Option(
            help="formula (the theorem), cone, cut (it knows the step), directional, refit (kept weights move), or measured."
        ),
    ] = "formula",
    curvature: Annotated[str, typer.Option(help="hessian (absolute eigenvalues), or ggn.")] = "hessian",
    epsilon: Annotated[
        float | None,
        typer.Option(help="Tolerated rise of the training loss in nats. Default: its spread over batches."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Hessian products per probe; more steps narrow the interval.")] = 64,
    probes: Annotated[int, typer.Option(help="Random probes; more probes reduce noise on small networks.")] = 1,
    examples: Annotated[int, typer.Option(help="Training images behind the curvature; 0 for all.")] = 2000,
    low_memory: Annotated[bool, typer.Option("--low-memory", help="Run Lanczos without a basis.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the probes and of the training.")] = 0,
    device: Device = "cpu",
    at_least: Annotated[
        float, typer.Option(help="Exit with status 1 if the limit is lower than this sparsity, for scripts.")
    ] = 0.0,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Write a report by several methods and by layer to FILE.html, .json, .txt, .svg, .png or .pdf."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Predict how far a network can be pruned.

    Started by torchrun, the processes share the data of every curvature product, and the first one prints.
    With --report, the formula, the directional method, refitting and measuring are all used, and every layer is tried alone.
    Status 0: done; 1: the limit is below --at-least; 2: bad input, said in one sentence.

    Example: `prunelimit predict --model fc5-quick --data digits --method directional`

    Your own: `prunelimit predict --model mine:network --weights mine.safetensors --data mine:batches`
    """
    from prunelimit.curvature.distributed import joined_processes
    from prunelimit.predict import SPECTRAL, predict_limit

    check_device(device)
    if report is not None and report.suffix not in REPORTS:
        raise PruneLimitError(f"report={str(report)!r} has no known ending: choose one of {', '.join(REPORTS)}.")
    loss_fn = _loss(loss)
    with joined_processes(device) as rank:
        if ":" in data:
            batches, count, sampled = _own_data(data, model), 0, False
            network = _own_network(model, weights, trust_pickle, device)
        else:
            network, split = _catalogue(model, arch, weights, trust_pickle, data, seed, device)
            count = min(examples, len(split)) if examples else len(split)
            sampled = report is None and method in SPECTRAL and count < len(split)  # a report takes the same for all
            batches = split.tensors() if sampled else split.tensors(count)
        common: dict[str, Any] = {
            "epsilon": epsilon,
            "curvature": curvature,
            "steps": steps,
            "probes": probes,
            "seed": seed,
        }
        if report is not None:
            found = _reported(network, loss_fn, batches, method, model, common)
            if rank == 0:
                _write(found, report)
                print(json.dumps(found.to_dict())) if as_json else say(f"{found}\n\n{report}")
            raise typer.Exit(int(found.limits[method].sparsity < at_least))
        limit = predict_limit(
            network,
            loss_fn,
            batches,
            **common,
            method=method,
            examples=count if sampled else None,
            low_memory=low_memory,
            progress=not as_json and rank == 0,
        )
    if rank == 0:
        if as_json:
            print(json.dumps(limit.to_dict()))
        else:
            say(str(limit))
    if limit.sparsity < at_least:
        raise typer.Exit(1)


def _reported(network: Any, loss_fn: Any, batches: Any, method: str, name: str, options: dict[str, Any]) -> Any:
    """Make a report by the usual methods and the one that was asked for."""
    from prunelimit.report import USUAL, limit_report

    methods = [method, *(usual for usual in USUAL if usual != method)]
    return limit_report(network, loss_fn, batches, methods=methods, name=name, **options)


def _write(found: Any, path: Path) -> None:
    """Write a report in the form that the file's ending asks for."""
    from prunelimit.files import atomic_file

    texts = {
        ".html": found.to_html,
        ".json": lambda: json.dumps(found.to_dict(), indent=1),
        ".txt": lambda: f"{found}\n",
    }
    with atomic_file(path) as temporary:
        if path.suffix in texts:
            temporary.write_text(texts[path.suffix](), encoding="utf-8")
        else:
            found.plot().savefig(temporary, format=path.suffix[1:])


def _loss(name: str) -> Any:
    """Find a loss by its name."""
    from torch.nn import functional

    from prunelimit.loading import load_object

    if ":" in name:
        return load_object(name, "loss")
    if name not in LOSSES:
        raise unknown_name("loss", name, LOSSES)
    return None if name == "own" else getattr(functional, name)


def _own_data(data: str, model: str) -> Any:
    from prunelimit.loading import load_made

    if ":" not in model:
        raise PruneLimitError(f"data={data!r} needs a network of your own: give --model package.module:function.")
    return load_made(data, "data")


def _own_network(model: str, weights: Path | None, trust: bool, device: str) -> Any:
    """Make a network by the user's function, and give it its weights."""
    from torch import nn

    from prunelimit.loading import load_made, load_weights

    network = load_made(model, "model")
    if not isinstance(network, nn.Module):
        raise PruneLimitError(f"model={model!r} made a {type(network).__name__}: let it return a torch module.")
    if weights is not None:
        load_weights(network, weights, trust=trust)
    return network.to(device)


def _catalogue(
    model: str, arch: str, weights: Path | None, trust: bool, data: str, seed: int, device: str
) -> tuple[Any, Any]:
    """Give a network and the training split of a known data set."""
    from prunelimit.datasets import load_dataset

    dataset = load_dataset(data)
    if ":" in model:
        network = _own_network(model, weights, trust, device)
    elif weights is not None:
        raise PruneLimitError("weights needs --model package.module:function; a file for --arch goes into --model.")
    else:
        network = _known_network(model, arch, dataset, seed, device, trust)
    return network, dataset.on_device("train", device)


def _known_network(model: str, arch: str, dataset: Any, seed: int, device: str, trust: bool) -> Any:
    """Give the trained network that a name or a file stands for."""
    from prunelimit.experiments.catalogue import PROFILES, TASKS
    from prunelimit.loading import load_weights
    from prunelimit.models import MODELS, build_model
    from prunelimit.training import train

    if Path(model).suffix in {".safetensors", ".pt", ".pth", ".bin"}:
        if not Path(model).is_file():
            raise PruneLimitError(f"model={model!r} is not a file: give the path of a file with weights.")
        if not arch:
            raise PruneLimitError(
                f"arch is missing: say which network {Path(model).name} belongs to, for example --arch fc5."
            )
        network = build_model(arch, input_shape=dataset.image_shape, num_classes=dataset.num_classes)
        return load_weights(network, model, trust=trust).to(device)
    if model not in MODELS:
        raise unknown_name("model", model, MODELS)
    for task in TASKS.values():
        for profile in reversed(PROFILES):
            if profile in task.profiles:
                spec = task.spec(profile, seed).train
                if (spec.model, spec.dataset) == (model, dataset.name):
                    return train(spec, device=device, dataset=dataset, progress=True).model.eval()
    raise PruneLimitError(
        f"model={model!r} has no recipe for {dataset.name}: give trained weights, --model FILE.safetensors --arch {model}."
    )
