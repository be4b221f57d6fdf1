"""What the commands of the command line share: their options, and how they speak."""

from __future__ import annotations

import ast
import time
from typing import Annotated, Any

import typer
from rich.console import Console

from prunelimit.errors import PruneLimitError

out = Console()

OUT_OF_TIME = "out of time; call again to go on"


def say(text: str) -> None:
    """Print text without wrapping it: commands in it are there to be copied."""
    out.print(text, soft_wrap=True, highlight=False)


Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda or cuda:N.")]
Experiment = Annotated[str, typer.Argument(help="A task of the catalogue (see `status`), or all.")]
Comparison = Annotated[str, typer.Argument(help="A network of tables T3 to T5 or T9, for example fc5-cifar10, or all.")]
Profile = Annotated[str, typer.Option(help="quick, laptop or paper.")]
Seeds = Annotated[int, typer.Option(help="How many seeds, from 0.")]
Budget = Annotated[float | None, typer.Option(help="Seconds after which nothing new is begun; call again to go on.")]
Threads = Annotated[int, typer.Option(help="Threads for torch; 0 leaves its choice.")]


def words_of(text: str) -> list[str]:
    """Cut a list with commas into its words."""
    return [word.strip() for word in text.split(",") if word.strip()]


def numbers_of(text: str, what: str) -> list[float]:
    """Cut a list with commas into numbers, or name the word that is none."""
    numbers = []
    for word in words_of(text):
        try:
            numbers.append(float(word))
        except ValueError:
            raise PruneLimitError(f"{what} has {word!r}, which is no number: give a list such as 0.9,0.95.") from None
    return numbers


def parameter_of(text: str) -> tuple[str, Any]:
    """Cut NAME=VALUE in two; the value is what Python, or else YAML, reads in it."""
    name, separator, value = text.partition("=")
    if not separator:
        raise PruneLimitError(f"parameter={text!r} has no value: give -p NAME=VALUE.")
    try:
        return name.strip(), ast.literal_eval(value.strip())
    except (SyntaxError, ValueError):
        pass
    import yaml

    try:
        return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise PruneLimitError(f"parameter={text!r} cannot be read: quote a list as '{name}=[1, 2]'.") from None


def check_device(device: str) -> str:
    """Return the device, or say that this machine does not have it."""
    import torch

    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise PruneLimitError(f"device={device!r} is not available on this machine: use --device cpu.")
    return device


def deadline_of(time_budget: float | None) -> float | None:
    """Turn a time budget into a value of the monotonic clock."""
    if time_budget is None:
        return None
    if time_budget <= 0:
        raise PruneLimitError(f"time_budget={time_budget!r} must be positive: it is a number of seconds.")
    return time.monotonic() + time_budget


def use_threads(count: int) -> None:
    """Set the threads of torch; zero leaves its choice."""
    import torch

    if count < 0:
        raise PruneLimitError(f"threads={count} must be positive, or 0 for torch's choice.")
    if count:
        torch.set_num_threads(count)
