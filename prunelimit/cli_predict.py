"""The command `prunelimit predict`: a network of the catalogue, or anyone's."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from prunelimit.cli_options import Device, check_device, numbers_of, say, words_of
from prunelimit.errors import PruneLimitError, unknown_name

#: Losses that have a name on the command line, in torch.nn.functional; "own" stands for the model's own.
LOSSES = ("cross_entropy", "mse_loss", "binary_cross_entropy_with_logits", "own")

#: Kinds of units that have a name, those of prunelimit.pruning.structured; importing it would take seconds.
UNITS = ("channel", "input", "head")

#: Training images of a data set behind the curvature, unless more or fewer are asked for.
EXAMPLES = 2000

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
        Path | None,
        typer.Option(
            help="Weights for package.module:function: FILE.safetensors, also of save_sparse, or a saved state dict."
        ),
    ] = None,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Load pickled objects from weights: that runs code in the file.")
    ] = False,
    loss: Annotated[
        str, typer.Option(help=f"{', '.join(LOSSES[:-1])}, own (the model returns it), or package.module:function.")
    ] = "cross_entropy",
    prunable: Annotated[
        str,
        typer.Option(
            help="Parameters to prune: names or patterns with `*`, commas between; a pattern never means biases and "
            "normalisation. default stands for the weights of linear and convolution layers: `default,*.in_proj_weight` adds "
            "those of torch's attention."
        ),
    ] = "default",
    units: Annotated[
        str,
        typer.Option(
            help=f"What leaves together: weights (single ones), {', '.join(UNITS)} (of attention, and nothing else is pruned), or "
            "package.module:function that numbers the weights of a network by unit."
        ),
    ] = "weights",
    method: Annotated[
        str,
        typer.Option(
            help="formula (the theorem), cone, cut (it knows the step), directional, refit (kept weights move), or "
            "measured. Default: formula, or the first of --methods."
        ),
    ] = "",
    methods: Annotated[
        str,
        typer.Option(
            help="Methods of a report, commas between: formula,directional,measured leaves out refit, the dearest by far."
        ),
    ] = "",
    targets: Annotated[
        str,
        typer.Option(help="Sparsities you want to reach, commas between: the report says what has to change for each."),
    ] = "",
    curvature: Annotated[str, typer.Option(help="hessian (absolute eigenvalues), or ggn.")] = "hessian",
    epsilon: Annotated[
        float | None,
        typer.Option(help="Tolerated rise of the training loss, in its units. Default: its spread over batches."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Hessian products per probe; more steps narrow the interval.")] = 64,
    probes: Annotated[int, typer.Option(help="Random probes; more probes reduce noise on small networks.")] = 1,
    examples: Annotated[
        int | None,
        typer.Option(
            help=f"Examples behind the curvature; 0 for all. Default: {EXAMPLES:,} of a data set, all of your own data. "
            "Directional, refit and measured see only these, for the default epsilon too."
        ),
    ] = None,
    low_memory: Annotated[bool, typer.Option("--low-memory", help="Run Lanczos without a basis.")] = False,
    shard_parameters: Annotated[
        bool,
        typer.Option(
            "--shard-parameters",
            help="The processes that torchrun started share the weights, not only the data: for a network that fits on no device, "
            "by formula, directional and measured.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the probes and of the training.")] = 0,
    device: Device = "cpu",
    at_least: Annotated[
        float, typer.Option(help="Exit with status 1 if the limit by --method is lower than this sparsity.")
    ] = 0.0,
    need_resolved: Annotated[
        bool,
        typer.Option("--need-resolved", help="Exit with status 3 if its interval is wider than one point."),
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Write a report by several methods and by layer to FILE.html, .json, .txt, .svg, .png or .pdf."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Predict how far a network can be pruned.

    Started by torchrun, the processes share the data of every curvature product, and the first one prints; with
    --shard-parameters they share the weights too.
    With --report, the formula, the directional method, refitting and measuring are all used unless --methods names others, and
    every layer is tried alone.

    Status 0: done; 1: the limit is lower than --at-least; 2: the input cannot be used, and one sentence says why; 3: the limit is
    not resolved, if --need-resolved asks for that. Without these options an unresolved limit is status 0, and the output says so.

    Example: `prunelimit predict --model fc5-quick --data digits --method directional`

    Your own: `prunelimit predict --model mine:network --weights mine.safetensors --data mine:batches`
    """
    from prunelimit.processes import joined_processes

    check_device(device)
    chosen = _methods(method, methods, report)
    wanted = numbers_of(targets, "targets")
    if wanted and report is None:
        raise PruneLimitError("targets serves a report: give --report FILE.html as well.")
    if not 0 <= at_least <= 1:
        raise PruneLimitError(f"at_least={at_least!r} must lie between 0 and 1: 0.9 asks for 90 % to be removable.")
    if examples is not None and examples < 0:
        raise PruneLimitError(f"examples={examples!r} must not be negative: give 0 for all.")
    if arch and ":" in model:
        raise PruneLimitError(
            f"arch={arch!r} serves a file of weights: leave it out where a function makes the network."
        )
    loss_fn = _loss(loss)
    with joined_processes(device) as rank:
        place = "cpu" if shard_parameters else device  # which the whole network may not fit on
        if ":" in data:
            if examples and report is not None:
                raise PruneLimitError("examples with --report serves a data set: let your function give fewer batches.")
            batches, sample = _own_data(data, model), examples or None
            network = _own_network(model, weights, trust_pickle, place)
        else:
            network, split = _catalogue(model, arch, weights, trust_pickle, data, seed, device, place)
            batches, sample = _taken(split, EXAMPLES if examples is None else examples, chosen, report)
        if shard_parameters:
            network = _sharded(network, device, chosen[0])
        numbered = _units(units, network)
        common: dict[str, Any] = {
            "epsilon": epsilon,
            "prunable": _prunable(prunable, network, numbered),
            "curvature": curvature,
            "steps": steps,
            "probes": probes,
            "seed": seed,
            "low_memory": low_memory,
        }
        if report is not None:
            found = _reported(network, loss_fn, batches, chosen, numbered, wanted, model, common)
            limit, text, values = found.limits[chosen[0]], f"{found}\n\n{report}", found.to_dict()
            if rank == 0:
                _write(found, report)
        else:
            quiet = as_json or rank != 0
            limit, text, values = _predicted(network, loss_fn, batches, chosen[0], numbered, sample, quiet, common)
    if rank == 0:
        print(json.dumps(values)) if as_json else say(text)
    if limit.sparsity < at_least:
        raise typer.Exit(1)
    if need_resolved and not limit.resolved:
        raise typer.Exit(3)


def _methods(method: str, methods: str, report: Path | None) -> list[str]:
    """List the methods of a report, or the one of a prediction; the first decides the status."""
    from prunelimit.predict import METHODS
    from prunelimit.report import USUAL

    if report is None:
        if methods:
            raise PruneLimitError("methods serves a report: give --report FILE.html as well, or --method for one.")
        return [method or METHODS[0]]
    if report.suffix not in REPORTS:
        raise PruneLimitError(f"report={str(report)!r} has no known ending: choose one of {', '.join(REPORTS)}.")
    listed = words_of(methods) or list(USUAL)
    first = method or listed[0]
    return [first, *(name for name in dict.fromkeys(listed) if name != first)]


def _taken(split: Any, examples: int, methods: list[str], report: Path | None) -> tuple[Any, int | None]:
    """Give the images of a data set that count, and how many of them are drawn later, if some are."""
    from prunelimit.predict import SPECTRAL

    count = min(examples, len(split)) if examples else len(split)
    if report is None and methods[0] in SPECTRAL and count < len(split):
        return split.tensors(), count
    return split.tensors(count), None  # a report takes the same for all


def _sharded(network: Any, device: str, method: str) -> Any:
    """Share the weights over the processes."""
    from prunelimit.curvature.sharded import shard_parameters
    from prunelimit.predict import SHARDED

    if method not in SHARDED:
        raise PruneLimitError(f"method={method!r} with --shard-parameters: choose one of {', '.join(SHARDED)}.")
    return shard_parameters(network, device)


def _units(units: str, network: Any) -> Any:
    """Find the units by their name, in the singular or the plural; ``None`` for single weights."""
    from prunelimit.loading import load_object

    if ":" in units:
        numbered = load_object(units, "units")(network)
        if not isinstance(numbered, Mapping):
            raise PruneLimitError(
                f"units={units!r} gave a {type(numbered).__name__}: let it map parameter names to numbers."
            )
        return numbered
    name = units.removesuffix("s")
    if name not in ("weight", *UNITS):
        raise unknown_name("units", units, ["weights", *UNITS])
    from prunelimit.pruning.structured import named_units

    return None if name == "weight" else named_units(network, name)


def _prunable(patterns: str, network: Any, numbered: Any) -> list[str] | None:
    """Name what is pruned; by default what has numbered units, or what the library takes."""
    from prunelimit.models.parameters import match_prunable

    if patterns != "default":
        return match_prunable(network, words_of(patterns))
    return list(numbered) if isinstance(numbered, Mapping) else None


def _reported(
    network: Any,
    loss_fn: Any,
    batches: Any,
    methods: list[str],
    units: Any,
    targets: list[float],
    name: str,
    common: dict[str, Any],
) -> Any:
    """Make a report."""
    from prunelimit.report import limit_report

    options: dict[str, Any] = {"methods": methods, "units": units, "targets": targets, "name": name}
    return limit_report(network, loss_fn, batches, **options, **common)


def _predicted(
    network: Any,
    loss_fn: Any,
    batches: Any,
    method: str,
    units: Any,
    sample: int | None,
    quiet: bool,
    common: dict[str, Any],
) -> tuple[Any, str, dict[str, Any]]:
    """Predict by one method; give the limit, and all that is said of it as text and as JSON values."""
    from prunelimit.layers import left_out, left_out_line, left_out_values, unit_masks
    from prunelimit.predict import predict_limit
    from prunelimit.pruning.magnitude import prunable_parameters

    @functools.cache
    def pruner() -> Any:  # not before the first batch, which a lazily initialised network needs
        return unit_masks(network, units, list(prunable_parameters(network, common["prunable"])))

    masks = None if units is None else lambda sparsity: pruner()(sparsity)
    options: dict[str, Any] = {"method": method, "masks": masks, "examples": sample, "progress": not quiet}
    limit = predict_limit(network, loss_fn, batches, **options, **common)
    aside = left_out(network, common["prunable"])
    line = left_out_line(aside, limit.total)
    text = f"{limit}\n  {line}" if line else str(limit)
    return limit, text, limit.to_dict() | {"left_out": left_out_values(aside)}


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
    model: str, arch: str, weights: Path | None, trust: bool, data: str, seed: int, device: str, place: str
) -> tuple[Any, Any]:
    """Give a network and the training split of a known data set; one's own network in its place."""
    from prunelimit.datasets import load_dataset

    dataset = load_dataset(data)
    if ":" in model:
        network = _own_network(model, weights, trust, place)
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
    if arch:
        raise PruneLimitError(f"arch={arch!r} serves a file of weights: --model FILE.safetensors; {model!r} is none.")
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
