"""Every pruner by name."""

from __future__ import annotations

from prunelimit.errors import unknown_name
from prunelimit.pruning.base import Method
from prunelimit.pruning.cbs import CbsSpec, cbs
from prunelimit.pruning.chita import ChitaSpec, chita
from prunelimit.pruning.controls import RandomSpec, UniformSpec, prune_random, prune_uniform
from prunelimit.pruning.iterative import IterativeSpec, prune_iteratively
from prunelimit.pruning.lomp import LompSpec, prune_lomp
from prunelimit.pruning.rare_gems import RareGemsSpec, prune_rare_gems
from prunelimit.pruning.smart_ratio import SmartRatioSpec, prune_smart_ratio
from prunelimit.pruning.woodfisher import WoodFisherSpec, woodfisher

#: Pruning methods, in the order of the tables.
METHODS: dict[str, Method] = {
    "lomp": Method("LOMP", LompSpec, prune_lomp),
    "iterative": Method("IMP", IterativeSpec, prune_iteratively),
    "rare-gems": Method("Rare Gems", RareGemsSpec, prune_rare_gems),
    "smart-ratio": Method("Smart-Ratio", SmartRatioSpec, prune_smart_ratio),
    "woodfisher": Method("WoodFisher", WoodFisherSpec, woodfisher),
    "cbs": Method("CBS", CbsSpec, cbs),
    "chita": Method("CHITA", ChitaSpec, chita),
    "uniform": Method("layer-wise magnitude", UniformSpec, prune_uniform),
    "random": Method("random", RandomSpec, prune_random),
}


def find_method(name: str) -> Method:
    """Look up a pruner.

    Args:
        name: A key of ``METHODS``.

    Returns:
        The method.

    Raises:
        PruneLimitError: If the name is unknown.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]
