"""A split of a data set on a device, and its augmentation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from prunelimit.checks import integer
from prunelimit.errors import PruneLimitError


class DeviceSplit:
    """One split of a data set on a device, as bytes; normalised, and augmented if asked, batch by batch.

    Args:
        images: ``(N, C, H, W)`` uint8.
        labels: ``(N,)`` int64.
        mean: ``(C,)`` in units of the scale.
        std: ``(C,)`` in units of the scale.
        scale: Largest value of a pixel.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, mean: tuple[float, ...], std: tuple[float, ...], scale: int
    ) -> None:
        if len(images) == 0:
            raise PruneLimitError("data has no images: give at least one batch with at least one image.")
        if len(images) != len(labels):
            raise PruneLimitError(f"data has {len(images)} images and {len(labels)} labels: give one label per image.")
        self.images, self.labels, self.device = images, labels, images.device
        # One multiply-add per pixel: (x / scale - mean) / std.
        gain = 1 / (scale * torch.tensor(std, device=self.device))
        self._gain = gain.reshape(1, -1, 1, 1)
        self._shift = (-torch.tensor(mean, device=self.device) / torch.tensor(std, device=self.device)).reshape(
            1, -1, 1, 1
        )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def normalise(self, images: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` bytes to float32 with mean zero and variance one per channel."""
        return torch.addcmul(self._shift, images.float(), self._gain)

    def tensors(self, count: int | None = None, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return normalised images and labels, the first ``count`` of them or, with a generator, a random sample."""
        if count is not None:
            integer("count", count)
        if generator is None:
            chosen = torch.arange(min(count or len(self), len(self)), device=self.device)
        else:
            chosen = torch.randperm(len(self), generator=generator)[: count or len(self)].to(self.device)
        return self.normalise(self.images[chosen]), self.labels[chosen]

    def batches(
        self,
        batch_size: int,
        order: torch.Generator | None = None,
        augment: torch.Generator | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through the split once.

        Args:
            batch_size: Images per batch; the last one may be shorter.
            order: Generator of a random order; ``None`` keeps the order of the files.
            augment: Generator, on this device, of crops and flips; ``None`` leaves the images alone.

        Yields:
            Normalised images ``(B, C, H, W)`` and labels ``(B,)``.
        """
        permutation = None if order is None else torch.randperm(len(self), generator=order).to(self.device)
        for start in range(0, len(self), batch_size):
            chosen = (
                slice(start, start + batch_size) if permutation is None else permutation[start : start + batch_size]
            )
            images = self.images[chosen]
            if augment is not None:
                images = crop_and_flip(images, augment)
            yield self.normalise(images), self.labels[chosen]


def crop_and_flip(images: Tensor, generator: torch.Generator, border: int = 4) -> Tensor:
    """Shift each image at random inside a zero border, and mirror half of them.

    Args:
        images: ``(N, C, H, W)`` of any type.
        generator: Source of randomness, on the device of the images.
        border: Largest shift in pixels.

    Returns:
        A new tensor of the same shape and type.
    """
    count, channels, height, width = images.shape
    padded = torch.nn.functional.pad(images, (border, border, border, border))
    shift = torch.randint(0, 2 * border + 1, (2, count, 1), generator=generator, device=images.device)
    flip = torch.rand((count, 1), generator=generator, device=images.device) < 0.5
    rows = shift[0] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = shift[1] + torch.where(flip, width - 1 - columns, columns)
    image = torch.arange(count, device=images.device).reshape(-1, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).reshape(1, -1, 1, 1)
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
