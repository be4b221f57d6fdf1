"""Small transformers of ours: a GPT that predicts the next character, and a vision transformer, of one kind of block.

Blocks normalise first (Xiong et al. 2020), as GPT-2 and ViT do. Every weight matrix is that of an ``nn.Linear``, queries, keys
and values in one, so that nothing needs ``prunable=``; :func:`block_names` names those of the blocks alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunelimit.errors import PruneLimitError

#: Standard deviation of the initial weights of a GPT, as in GPT-2.
GPT_STD = 0.02


class Block(nn.Module):
    """Attention and a two-layer perceptron four times as wide, each added to its input.

    Args:
        width: Features per position.
        heads: Heads of attention.
        causal: Whether a position sees only itself and those before it.
    """

    def __init__(self, width: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise PruneLimitError(f"heads={heads} must divide width={width}.")
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, T, width)`` to the same shape."""
        # (3, N, heads, T, width / heads)
        query, key, value = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """A language model over a small alphabet, its head tied to its embedding.

    Source: the architecture of GPT-2 (Radford et al. 2019), without dropout.

    Args:
        vocabulary: Number of symbols.
        context: The most symbols of a sequence, T.
        width: Features per position.
        heads: Heads of attention.
        depth: Number of blocks.
        seed: Seed of the initial weights; ``None`` draws from torch's global generator.

    Example:
        >>> model = GPT(vocabulary=96, context=8, width=16, heads=2, depth=1, seed=0)
        >>> model(torch.zeros(3, 8, dtype=torch.int64)).shape
        torch.Size([3, 8, 96])
    """

    def __init__(
        self, vocabulary: int, context: int, width: int = 64, heads: int = 4, depth: int = 4, seed: int | None = None
    ) -> None:
        super().__init__()
        _check_sizes(vocabulary=vocabulary, context=context, width=width, depth=depth)
        self.embed, self.place = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, causal=True) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                # What blocks add up must not grow with their number.
                scale = math.sqrt(2 * depth) if name.endswith(("out.weight", "down.weight")) else 1.0
                nn.init.normal_(p, std=GPT_STD / scale, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, codes: Tensor) -> Tensor:
        """Map ``(N, T)`` symbols to ``(N, T, vocabulary)`` scores of each one's successor."""
        if codes.shape[1] > self.place.num_embeddings:
            raise PruneLimitError(
                f"codes has {codes.shape[1]} symbols a row: the model's context is {self.place.num_embeddings}."
            )
        x = self.embed(codes) + self.place.weight[: codes.shape[1]]
        return self.head(self.norm(self.blocks(x)))


class ViT(nn.Module):
    """A vision transformer without a class token: the mean over patches is classified.

    Source: Dosovitskiy et al. (2021); the mean in place of the token as in Beyer, Zhai and Kolesnikov (2022).

    Args:
        input_shape: Channels, height and width of one image.
        num_classes: Number of logits.
        patch: Height and width of a patch.
        width: Features per patch.
        heads: Heads of attention.
        depth: Number of blocks.
        seed: Seed of the initial weights; ``None`` draws from torch's global generator.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        patch: int = 2,
        width: int = 24,
        heads: int = 4,
        depth: int = 2,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(num_classes=num_classes, patch=patch, width=width, depth=depth)
        channels, *sides = input_shape
        if any(side % patch for side in sides):
            raise PruneLimitError(f"patch={patch} must divide the height and the width of input_shape={input_shape}.")
        places = (sides[0] // patch) * (sides[1] // patch)
        self.embed, self.place = (
            nn.Conv2d(channels, width, patch, stride=patch),
            nn.Parameter(torch.zeros(places, width)),
        )
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_classes)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.flatten(1), generator=generator)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, pixels: Tensor) -> Tensor:
        """Map ``(N, channels, height, width)`` to ``(N, num_classes)`` logits."""
        x = self.embed(pixels).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.blocks(x)).mean(1))


def block_names(model: nn.Module) -> list[str]:
    """Name the weight matrices of the blocks: all linear layers but what reads the input and what gives the output.

    That is the usual choice when language models are pruned. It holds for the networks of this module and for encoders of
    transformers, whose blocks lie in a list called ``layer``, ``layers`` or ``h``.

    Args:
        model: A transformer.

    Returns:
        Parameter names, in the model's order.

    Raises:
        PruneLimitError: If it has no such block.
    """
    from prunelimit.models.parameters import prunable_names

    lists = {"blocks", "layer", "layers", "h"}
    names = [
        name
        for name in prunable_names(model)
        if any(a in lists and b.isdigit() for a, b in zip(name.split("."), name.split(".")[1:], strict=False))
    ]
    if not names:
        raise PruneLimitError(
            f"model={type(model).__name__} keeps no blocks in a list called {', '.join(sorted(lists))}: name the "
            "parameters with prunable=[...]."
        )
    return names


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise PruneLimitError(f"{name}={size!r} must be at least 1.")
