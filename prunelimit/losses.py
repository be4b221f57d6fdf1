"""Losses of other people's networks: what they take of a model's output, and what they are a mean over."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from prunelimit.curvature.data import Arguments, Counted, LossFunction, bare, map_tensors
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


class ClassWeighted:
    r"""Torch's cross-entropy with class weights, over a batch that counts by its targets.

    Torch divides the sum :math:`\sum_i w_{y_i} \ell_i` of a batch by the batch's own weights, so that the mean over batches
    is the loss of the whole data only if each counts by its weights. Divided by the number of targets and by their mean
    weight over all the data, it is that for batches that count by their targets, and can be cut anywhere.

    Args:
        function: ``cross_entropy`` or ``nll_loss`` of ``torch.nn.functional``.
        weight: ``(classes,)`` weights.
        mean: Mean weight of a target over all the data.
        ignore_index: Target that does not count.
        **settings: Further arguments of the function.
    """

    def __init__(
        self, function: Callable[..., Tensor], weight: Tensor, mean: float, ignore_index: int, **settings: Any
    ) -> None:
        self.function, self.weight, self.mean = function, weight, mean
        self.ignore_index, self.settings = ignore_index, settings

    def __call__(self, output: Tensor, targets: Tensor) -> Tensor:
        """Give the batch's part in the mean over all the data."""
        options = {"ignore_index": self.ignore_index, "reduction": "sum"} | self.settings
        total = self.function(output, targets, weight=self.weight.to(output), **options)
        return total / ((targets != self.ignore_index).sum() * self.mean)


def by_class(loss_fn: Any, targets: Sequence[Any]) -> Any:
    """Let a loss with class weights have the same mean over batches as over all the data.

    Args:
        loss_fn: Any loss.
        targets: Targets of each batch.

    Returns:
        A :class:`ClassWeighted` for torch's cross-entropy and negative log-likelihood with class weights and integer
        targets, as modules or as ``functools.partial(cross_entropy, weight=...)``; any other loss as it is.

    Raises:
        PruneLimitError: If no target has a weight that is positive.
    """
    found = _class_weights(loss_fn)
    values = [bare(target) for target in targets]
    if found is None or not all(isinstance(v, Tensor) and not v.is_floating_point() for v in values):
        return loss_fn
    function, weight, settings = found
    counted = [value[value != settings["ignore_index"]].to(weight.device) for value in values]
    # Targets out of range are refused by the loss itself, with the reason.
    each = [weight.double()[part.clamp(0, len(weight) - 1)] for part in counted]
    total, count = sum(float(part.sum()) for part in each), sum(map(len, counted))
    if count and not total > 0:
        raise PruneLimitError("loss_fn has class weights that are zero for every target: give a positive one.")
    return ClassWeighted(function, weight, total / count, **settings) if count else loss_fn


def _class_weights(loss_fn: Any) -> tuple[Callable[..., Tensor], Tensor, dict[str, Any]] | None:
    """Take a loss with class weights apart: torch's function, its weights and its other settings."""
    if isinstance(loss_fn, functools.partial) and loss_fn.func in _WITH_IGNORED and not loss_fn.args:
        settings = {"ignore_index": _IGNORED, **loss_fn.keywords}
        function, weight = loss_fn.func, settings.pop("weight", None)
        settings = {name: settings[name] for name in ("ignore_index", "label_smoothing") if name in settings}
        plain = loss_fn.keywords.get("reduction", "mean") == "mean"
        return None if weight is None or not plain else (function, weight, settings)
    if isinstance(loss_fn, (nn.CrossEntropyLoss, nn.NLLLoss)) and loss_fn.weight is not None:
        settings = {"ignore_index": loss_fn.ignore_index}
        if isinstance(loss_fn, nn.NLLLoss):
            return functional.nll_loss, loss_fn.weight, settings
        return functional.cross_entropy, loss_fn.weight, settings | {"label_smoothing": loss_fn.label_smoothing}
    return None


def is_cross_entropy(loss_fn: Any) -> bool:
    """Tell whether a loss is torch's cross-entropy, with or without settings."""
    inner = loss_fn.func if isinstance(loss_fn, functools.partial) else loss_fn
    inner = inner.function if isinstance(inner, ClassWeighted) else inner
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
    if isinstance(loss_fn, (nn.CrossEntropyLoss, nn.NLLLoss, ClassWeighted)):
        return loss_fn.ignore_index
    return _IGNORED if loss_fn in _WITH_IGNORED else None


def check_classes(pairs: Sequence[tuple[Any, Any]], classes: int, ignored: int | None) -> None:
    """Refuse targets of torch's cross-entropy that are out of range, wherever they are: they would stop a GPU for good.

    Args:
        pairs: Inputs and targets of each batch.
        classes: Number of classes that the model tells apart.
        ignored: The target that does not count; ``None`` for another loss, where nothing is refused.

    Raises:
        PruneLimitError: If one is out of range; it names the batch.
    """
    if ignored is None:
        return
    for number, (_, targets) in enumerate(pairs):
        value = bare(targets)
        if not isinstance(value, Tensor) or value.is_floating_point():
            continue
        wrong = value[((value < 0) | (value >= classes)) & (value != ignored)]
        if len(wrong):
            raise PruneLimitError(
                f"data has in batch {number} the target {int(wrong[0])}, and the model gives {classes} classes: give targets "
                f"from 0 to {classes - 1}, or {ignored} for those that do not count."
            )


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


def _leaves(value: Any) -> list[Tensor]:
    """List the tensors of inputs or targets that have rows."""
    found: list[Tensor] = []
    map_tensors(value, found.append)  # type: ignore[arg-type]
    return [leaf for leaf in found if leaf.ndim]


def _count(inputs: Any, targets: Any) -> int:
    """Count the examples of a batch whose targets may be several tensors, one of each kind or a set for each example."""
    own, given = _leaves(targets), _leaves(inputs)
    lengths = {len(leaf) for leaf in (*own, *given)}
    if own and len(lengths) == 1:
        return lengths.pop()
    first = inputs.args[0] if isinstance(inputs, Arguments) and inputs.args else inputs
    if isinstance(first, Tensor) and first.ndim and len(first) in {len(leaf) for leaf in own}:
        return len(first)
    if isinstance(targets, list) or (isinstance(targets, tuple) and not any(isinstance(t, Tensor) for t in targets)):
        return len(targets)
    return len(own[0]) if own else 0


def countable(inputs: Any, targets: Any, number: int) -> Any:
    """Give targets a length that is the number of their rows.

    Args:
        inputs: The inputs of the same batch.
        targets: One tensor, or several in any structure.
        number: Number of the batch, for messages.

    Returns:
        The targets; counted, if they are not one tensor.

    Raises:
        PruneLimitError: If they have no rows.
    """
    if isinstance(targets, (int, float)) or (isinstance(targets, Tensor) and targets.ndim == 0):
        raise PruneLimitError(
            "data gives single examples: make batches of them, for example by DataLoader(data, batch_size=128)."
        )
    size = len(targets) if isinstance(targets, Tensor) else _count(inputs, targets)
    if not size:
        raise PruneLimitError(f"data is empty in batch {number}: give every batch at least one example.")
    return targets if isinstance(targets, Tensor) else Counted(targets, size)
