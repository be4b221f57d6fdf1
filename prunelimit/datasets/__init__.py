"""Data sets by name: verified uint8 arrays on disk, normalisation and augmentation on the device.

A data set is found in this order: arrays in the data folder; official files that someone put there; Debian's package,
where one exists; the official download. Whatever the way, the images and labels must have the pinned digest, or, of
Tiny-ImageNet, that of their conversion. ``digits`` needs none of this: it is part of scikit-learn.
"""

from prunelimit.datasets.device import DeviceSplit, crop_and_flip
from prunelimit.datasets.loader import Dataset, load_dataset
from prunelimit.datasets.prepare import prepare_dataset
from prunelimit.datasets.sources import DATASETS, POOLED, SOURCES, SPLITS, Source, content_digest

__all__ = [
    "DATASETS",
    "POOLED",
    "SOURCES",
    "SPLITS",
    "Dataset",
    "DeviceSplit",
    "Source",
    "content_digest",
    "crop_and_flip",
    "load_dataset",
    "prepare_dataset",
]
