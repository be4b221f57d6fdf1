"""Losses of other people's networks: what they take of a model's output, and what they are a mean over."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from prunelimit.curvature.data import LossFunction
from prunelimit.errors import PruneLimitError

_WITH_IGNORED = (functional.cross_entropy, functional.nll_loss)
_IGNORED = -100


def logits_of(output: Any) -> Any:
    """Take the scores out of what a model returns.

    Args:
        output: A tensor, an object or dictionary with ``logits``, or a sequence.

    Returns:
        The logits, or the first entry of a sequence; anything else as it is.
    """
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    if hasattr(output, "logits"):
        return output.logits
    return output[0] if isinstance(output, (list, tuple)) and output else output


def own_loss(output: Any) -> Tensor:
    """Take the loss out of what a model returns.

    Args:
        output: An object or dictionary with ``loss``, or a tuple that starts with it.

    Returns:
        The loss, without dimensions.

    Raises:
        PruneLimitError: If there is none.
    """
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if loss is None and isinstance(output, tuple) and output:
        loss = output[0]
    if not isinstance(loss, Tensor) or loss.ndim:
        raise PruneLimitError(
            f"loss_fn=None needs a model that returns its mean loss, and {type(output).__name__} holds none: give loss_fn."
        )
    return loss


def given_loss(output: Tensor, targets: Any) -> Tensor:
    """Stand for the loss function of a model that computes its own.

    Args:
        output: The loss.
        targets: Not used.

    Returns:
        The loss.
    """
    del targets
    return output


class TokenLoss:
    """Torch's cross-entropy on one score per token and class, the classes last.

    Args:
        loss_fn: The cross-entropy, over ``(tokens, classes)`` and ``(tokens,)``.
    """

    def __init__(self, loss_fn: LossFunction) -> None:
        self.loss_fn = loss_fn

    def __call__(self, output: Tensor, targets: Tensor) -> Tensor:
        """Give the mean loss over tokens."""
        return self.loss_fn(output.flatten(0, -2), targets.flatten())


def is_cross_entropy(loss_fn: Any) -> bool:
    """Tell whether a loss is torch's cross-entropy, with or without settings."""
    inner = loss_fn.func if isinstance(loss_fn, functools.partial) else loss_fn
    return inner is functional.cross_entropy or isinstance(inner, nn.CrossEntropyLoss)


def ignore_index(loss_fn: Any) -> int | None:
    """Return the target that a loss leaves out of its mean.

    Args:
        loss_fn: Any loss; ``None`` for a model's own.

    Returns:
        The target; ``None`` if the loss is not known to leave any out.
    """
    if loss_fn is None:
        return _IGNORED
    if isinstance(loss_fn, functools.partial) and loss_fn.func in _WITH_IGNORED:
        return int(loss_fn.keywords.get("ignore_index", _IGNORED))
    if isinstance(loss_fn, (nn.CrossEntropyLoss, nn.NLLLoss)):
        return loss_fn.ignore_index
    return _IGNORED if loss_fn in _WITH_IGNORED else None


def classes_last(logits: Any, targets: Any, *, raw: bool) -> bool:
    """Tell whether scores are ``(..., classes)`` for integer targets ``(...)``, and not torch's ``(N, classes, ...)``.

    Args:
        logits: What the model gave.
        targets: The targets.
        raw: Whether the model returned the scores alone, for which torch's convention comes first.

    Returns:
        Whether the classes are last.

    Raises:
        PruneLimitError: If both conventions fit and nothing decides.
    """
    if (
        not isinstance(logits, Tensor)
        or not isinstance(targets, Tensor)
        or logits.ndim < 3
        or targets.is_floating_point()
    ):
        return False
    last, second = (shape == targets.shape for shape in (logits.shape[:-1], logits.shape[:1] + logits.shape[2:]))
    if last and second and not raw:
        raise PruneLimitError(
            f"model returned logits of shape {tuple(logits.shape)} for targets {tuple(targets.shape)}, whose classes may be "
            "second or last: give a loss_fn that says which."
        )
    return last and not second


def predicts_next_token(loss: float, output: Any, targets: Any) -> bool:
    """Tell whether a model's own loss leaves out the first label of each row, as that of a next token does.

    Args:
        loss: The loss that the model returned.
        output: All that it returned.
        targets: The labels.

    Returns:
        Whether the loss is closer to the cross-entropy with shifted labels than to the one with labels in place.
    """
    logits = logits_of(output)
    if not isinstance(logits, Tensor) or not isinstance(targets, Tensor) or targets.ndim != 2:
        return False
    if targets.is_floating_point() or logits.shape[:-1] != targets.shape or targets.shape[1] < 2:
        return False
    targets = targets.to(logits.device)
    in_place, shifted = (
        abs(float(functional.cross_entropy(scores.flatten(0, 1), labels.flatten())) - loss)
        for scores, labels in ((logits, targets), (logits[:, :-1], targets[:, 1:]))
    )
    return shifted < in_place
