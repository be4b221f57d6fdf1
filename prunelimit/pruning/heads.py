"""Heads of attention as units: which weights belong to which head, found by the names that attention layers give them.

A head is its rows of the query, key and value weights and its columns of the output weight: without them attention adds what it
would add if the head gave zero. Heads of queries that share their keys and values leave together.

Attention is found by its parts: ``torch.nn.MultiheadAttention``, the networks of :mod:`prunelimit.models.gpt`, and whatever calls
its weights as transformers and timm do. The number of heads is read from the layer, its ``config``, or a module around it. In
one weight for all three, queries come first, then keys, then values, each with its heads in order. Layers that are known to
have another order are refused; check those that nobody here knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from prunelimit.errors import PruneLimitError
from prunelimit.models.parameters import output_dimension

#: Names of one weight for queries, keys and values; of three weights; and of the output's.
FUSED = ("in_proj_weight", "qkv", "c_attn", "Wqkv")
_FORMS = ("{}_proj", "{}", "{}_proj_weight", "{}_lin", "to_{}", "w{}", "linear_{}")
SEPARATE = (
    *(tuple(form.format(part) for part in "qkv") for form in _FORMS),
    ("query", "key", "value"),
    ("query_proj", "key_proj", "value_proj"),
)
OUTPUT = ("out_proj", "o_proj", "proj", "c_proj", "out", "o", "out_lin", "to_out", "wo", "linear_out")

#: Where blocks of BERT and its kin have the output's weight, seen from the module around the three others.
OUTPUT_AROUND = "output.dense"

#: Names of the number of heads.
COUNT = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")

_BY_HAND = "number the heads yourself, unit={name: integers}."


def head_units(model: nn.Module, prunable: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Number the weights of attention by head, as units for :class:`~prunelimit.pruning.UnitOrder`.

    Args:
        model: A network with attention.
        prunable: Names of the prunable parameters, all of attention; by default all of its weights that are not frozen.

    Returns:
        Parameter name to integers that broadcast to the parameter's shape; each head of each layer has its own.

    Raises:
        PruneLimitError: If no attention is found, if it does not say how many heads it has, or if a name belongs to none.

    Example:
        >>> units = head_units(torch.nn.MultiheadAttention(4, 2))
        >>> units["out_proj.weight"]
        tensor([[0, 0, 1, 1]])
        >>> units["in_proj_weight"].flatten()
        tensor([0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1])
    """
    names = {id(p): name for name, p in model.named_parameters()}
    found: dict[str, Tensor] = {}
    first = 0
    for path, weights in _attentions(model):
        # Along the outputs of what reads the input, and along the inputs of what gives the output.
        own = [names[id(weight)] for weight in weights]
        axes = [output_dimension(model, name) for name in own[:-1]] + [1 - output_dimension(model, own[-1])]
        sizes = [weight.shape[axis] for weight, axis in zip(weights, axes, strict=True)]
        numbers = _numbers(path, sizes, _count(model, path))
        for name, weight, axis, part in zip(own, weights, axes, numbers, strict=True):
            if weight.requires_grad:
                found[name] = (part + first).to(weight.device).unsqueeze(1 - axis)
        first += int(numbers[-1][-1]) + 1
    if not found:
        raise PruneLimitError(
            f"unit='head': model={type(model).__name__} has no attention whose weights are called {', '.join(FUSED)}, "
            f"{', '.join(SEPARATE[0])} or the like: {_BY_HAND}"
        )
    odd = next((name for name in prunable or () if name not in found), None)
    if odd is not None:
        raise PruneLimitError(f"prunable={odd!r} belongs to no head of attention that is not frozen: leave it out.")
    return found if prunable is None else {name: found[name] for name in prunable}


def _weight(module: object, name: str) -> nn.Parameter | None:
    """Give a weight matrix by the name of its layer, or by its own."""
    for part in name.split("."):
        module = getattr(module, part, None)
    weight = module if isinstance(module, nn.Parameter) else getattr(module, "weight", None)
    known = isinstance(weight, nn.Parameter) and not isinstance(weight, nn.parameter.UninitializedParameter)
    return weight if known and weight.ndim == 2 else None  # type: ignore[union-attr]


def _other_order(module: nn.Module) -> bool:
    """Know the layers whose one weight is in another order: of timm's MaxxViT, of GPT BigCode, cross-attention of GPT-2."""
    first, several = getattr(module, "head_first", False), getattr(module, "multi_query", None) is False
    return bool(first) or several or hasattr(module, "q_attn")


def _attentions(model: nn.Module) -> Iterator[tuple[str, list[nn.Parameter]]]:
    """Find the path of every attention, with its one or three weights that read the input and the one that gives the output."""
    for path, module in model.named_modules():
        for names in (*((name,) for name in FUSED), *SEPARATE):
            weights = [weight for weight in (_weight(module, name) for name in names) if weight is not None]
            if len(weights) == len(names):
                break
        else:
            continue
        if len(weights) == 1 and _other_order(module):
            raise PruneLimitError(
                f"unit='head': {path or 'model'} ({type(module).__name__}) keeps queries, keys and values in an order of its own: "
                f"{_BY_HAND}"
            )
        outputs = [_weight(module, name) for name in OUTPUT]
        outputs += [_weight(model.get_submodule(path.rpartition(".")[0]), OUTPUT_AROUND)] if path else []
        last = next((weight for weight in outputs if weight is not None), None)
        if last is None:
            raise PruneLimitError(
                f"unit='head': {path or 'model'} ({type(module).__name__}) has no output weight called "
                f"{', '.join(OUTPUT)}: {_BY_HAND}"
            )
        yield path, [*weights, last]


def _count(model: nn.Module, path: str) -> int:
    """Read the number of heads from a layer, its configuration, or the nearest module around it that has one."""
    around = path
    while True:
        module = model.get_submodule(around)
        for place in (module, getattr(module, "config", None)):
            for name in COUNT:
                value = getattr(place, name, None)
                if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                    return value
        if not around:
            break
        around = around.rpartition(".")[0]
    raise PruneLimitError(
        f"unit='head': {path or 'model'} ({type(model.get_submodule(path)).__name__}) does not say how many heads it has: set its "
        f"attribute {COUNT[0]}, or {_BY_HAND}"
    )


def _numbers(path: str, sizes: list[int], heads: int) -> list[Tensor]:
    """Number the entries along each weight; ``sizes`` are one or three sums of rows, and the columns of the output."""
    *rows, columns = sizes
    if len(rows) == 1:  # keys and values may have fewer heads than queries, of the same size
        shared, rest = divmod((rows[0] - columns) * heads, 2 * columns)
        rows = [columns, *[(rows[0] - columns) // 2] * 2]
    else:
        shared, rest = divmod(rows[1] * heads, rows[0])
    if (
        rest
        or shared < 1
        or heads % shared
        or columns % heads
        or rows[2] * heads != columns * shared
        or rows[0] % heads
    ):
        raise PruneLimitError(
            f"unit='head': {path or 'model'} has {heads} heads, which do not fit its weights with {' + '.join(map(str, sizes[:-1]))} "
            f"rows and {columns} columns: {_BY_HAND}"
        )
    group = torch.arange(heads) // (heads // shared)
    query, output = (group.repeat_interleave(size // heads) for size in (rows[0], columns))
    key, value = (torch.arange(shared).repeat_interleave(size // shared) for size in rows[1:])
    parts = [query, key, value]
    return [*([torch.cat(parts)] if len(sizes) == 2 else parts), output]
