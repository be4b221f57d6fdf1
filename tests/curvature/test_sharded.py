"""Networks whose parameters are sharded over two processes, against the same network in one process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, nn
from torch.nn import functional

from prunelimit import predict_limit
from prunelimit.curvature import GGNOperator, HessianOperator, spectrum
from prunelimit.curvature.sharded import ShardedHessianOperator, shard_parameters
from prunelimit.errors import PruneLimitError
from prunelimit.pruning.magnitude import MagnitudePath

#: Imported by the test for its networks and data, and run by two processes; the first one writes what they found.
SCRIPT = '''
import sys
import torch
from torch import distributed, nn
from torch.nn import functional

loss_fn = functional.cross_entropy
PROBES = {"mlp": 2, "conv": 1, "tied": 1, "dictionaries": 1}
METHODS = {"mlp": ("formula", "directional"), "conv": ("formula",), "tied": ("formula",), "dictionaries": ()}


class Tied(nn.Module):
    """A small language model: attention and a linear layer, the embedding shared with the head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.scale = nn.Parameter(torch.tensor(0.8))
        self.block = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, activation="gelu")
        self.head = nn.Linear(8, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.block(self.embed(tokens) * self.scale).mean(1))


def cases():
    """Give networks and data by name, always the same; float64, so that differences are those of the mathematics."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    x, y = torch.randn(11, 6), torch.arange(11) % 3
    x[:, 0] = 0
    conv = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 1), nn.Linear(1, 3))
    conv[1].running_mean.normal_()
    images, tokens = torch.randn(11, 2, 4, 4), torch.randint(0, 7, (11, 5))
    found = {
        "mlp": (nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), (x, y), {}),
        "conv": (conv, list(zip(images.split([3, 3, 5]), y.split([3, 3, 5]))), {"batch_size": 2}),
        "tied": (Tied(), (tokens, torch.arange(11) % 7), {}),
        "dictionaries": (Call(), [({"x": a}, b) for a, b in zip(x.split(4), y.split(4))], {"rule": "retained"}),
    }
    torch.set_default_dtype(torch.float32)
    return found


class Call(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, inputs):
        output = inputs["x"] @ self.layer.weight.t()
        output += self.layer.weight.sum(1)
        output += self.layer.bias
        return output.pow(2)


def column(dimension, columns=2):
    return torch.randn(dimension, columns, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


class Peak(torch.utils._python_dispatch.TorchDispatchMode):
    """Measure the most bytes that are alive at once, of all tensors made meanwhile."""

    def __init__(self):
        super().__init__()
        self.alive, self.most = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        from torch.multiprocessing.reductions import StorageWeakRef

        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and type(tensor) is torch.Tensor:
                storage = tensor.untyped_storage()
                self.alive[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {place: entry for place, entry in self.alive.items() if not entry[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return result


def deep(width=64, layers=12):
    """A network whose weights take far more memory than its activations, and each layer a small part of it."""
    torch.manual_seed(1)
    return nn.Sequential(*[part for _ in range(layers) for part in (nn.Linear(width, width), nn.Tanh())])


def whole(operator, part):
    """Put slices together into the vectors that one process has."""
    vector = torch.zeros(operator.dimension, *part.shape[1:], dtype=part.dtype)
    offset = 0
    for start, stop in operator._layout.ranges:
        vector[start:stop] = part[offset : offset + stop - start]
        offset += stop - start
    distributed.all_reduce(vector)
    return vector


def slices(operator, vector):
    return torch.cat([vector[start:stop] for start, stop in operator._layout.ranges])


def main(place):
    from prunelimit import predict_limit
    from prunelimit.curvature.lanczos import sphere_vector
    from prunelimit.curvature.gathering import GATHERED
    from prunelimit.curvature.sharded import (
        ShardedGGNOperator,
        ShardedHessianOperator,
        ShardedMagnitudePath,
        shard_parameters,
        sharded_spectrum,
    )
    from prunelimit.errors import PruneLimitError
    from prunelimit.pruning.magnitude import apply_masks

    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    found = {}
    for name, (model, data, options) in cases().items():
        sharded = shard_parameters(model)
        assert type(sharded).__name__ == type(model).__name__
        with torch.no_grad():
            first = data[0] if isinstance(data, tuple) else data[0][0]
            assert torch.allclose(sharded.eval()(first), model.eval()(first))
        assert not any(hasattr(p, "placements") for p in model.parameters())
        for kind in (ShardedHessianOperator, ShardedGGNOperator):
            operator = kind(sharded, loss_fn, data, **options)
            key = f"{kind.__name__.removeprefix('Sharded')} {name}"
            block = slices(operator, column(operator.dimension))
            found[f"{key} block"] = whole(operator, operator @ block)
            found[f"{key} vector"] = whole(operator, operator @ block[:, 1])
            found[f"{key} gradient"] = whole(operator, operator.gradient)
            found[f"{key} loss"] = torch.tensor(operator.loss, dtype=torch.float64)
            found[f"{key} expansion"] = torch.tensor(operator.expansion(block[:, 0]), dtype=torch.float64)
            assert operator.products == 4
            assert operator.width < operator.dimension
        operator = ShardedHessianOperator(sharded, loss_fn, data, **options)
        found[f"lanczos {name}"] = sharded_spectrum(operator, steps=5, probes=PROBES[name], low_memory=name == "conv")
        for method in METHODS[name]:
            limit = predict_limit(
                model, loss_fn, data, epsilon=0.05, steps=5, method=method, tolerance=0.02, shard_parameters=True
            )
            found[f"limit {name} {method}"] = limit.sparsity, limit.interval, limit.radius
        if name == "mlp":
            found["default epsilon"] = predict_limit(
                sharded, loss_fn, (data[0].repeat(24, 1), data[1].repeat(24)), steps=8, examples=200
            ).interval
            drawn = whole(operator, operator.normal(5)).float()
            assert torch.allclose(drawn / drawn.norm(), sphere_vector(operator.dimension, 5), atol=1e-6)
            with torch.no_grad():  # weights that change
                operator = ShardedHessianOperator(sharded, loss_fn, data)
                before = operator.loss
                sharded[0].weight.mul_(2)
                assert operator.loss != before
                found["changed"] = whole(operator, operator @ slices(operator, column(operator.dimension)))
        # Many equal magnitudes, which leave in the order of the model.
        with torch.no_grad():
            for p in (*model.parameters(), *sharded.parameters()):
                p.mul_(4).round_()
        path = ShardedMagnitudePath(sharded)
        found[f"distance {name}"] = path.distance
        for sparsity in (0.0, 0.1, 0.5, 0.77):
            masks = path.masks(sparsity)
            found[f"masks {name} {sparsity}"] = {key: mask.full_tensor() for key, mask in masks.items()}
            found[f"step {name} {sparsity}"] = whole(operator, path.displacement(sparsity))
        apply_masks(sharded, masks)
        assert sum(int((mask == 0).sum()) for mask in found[f"masks {name} 0.77"].values()) <= sum(
            int((p.full_tensor() == 0).sum()) for p in sharded.parameters() if hasattr(p, "placements")
        )

    # A network that no process could hold: built without weights, sharded, loaded, never whole.
    state = shard_parameters(deep()).state_dict()
    with torch.device("meta"):
        empty = deep()
    loaded = shard_parameters(empty, "cpu")
    loaded.load_state_dict(state, assign=True)
    data = torch.randn(2, 64), torch.randn(2, 64)
    operator = ShardedHessianOperator(loaded, functional.mse_loss, data)
    largest = max(p.numel() * p.element_size() for p in loaded.parameters())
    direction = operator.normal(0)
    operator @ direction
    # gloo's own thread may hold a gathered tensor a moment longer than its receiver, now and then: what the code needs is the
    # least of a few products, and what it kept by mistake would be in all of them.
    tries = []
    for _ in range(10):
        GATHERED.peak, GATHERED.numbers = 0, 0
        with Peak() as peak:
            operator @ direction
        tries.append((GATHERED.peak, GATHERED.live(), GATHERED.numbers, peak.most))
    gathered, left, numbers, most = map(min, zip(*tries))
    found["memory"] = {
        "shards": sum(p.to_local().untyped_storage().nbytes() for p in loaded.parameters()),
        "vector": direction.nbytes,
        "largest": largest,
        "gathered at once": gathered,
        "left": left,
        "numbers": numbers,
        "peak": most,
        "whole": sum(p.numel() * p.element_size() for p in loaded.parameters()),
    }

    found["errors"] = []
    fsdp = nn.Sequential(nn.Linear(3, 2))
    from torch.distributed.fsdp import fully_shard

    mesh = operator.parameters[0].device_mesh
    fully_shard(fsdp, mesh=mesh)
    with torch.device("meta"):
        bare = shard_parameters(nn.Sequential(nn.Linear(3, 2)), "cpu")
    bare.load_state_dict(fsdp.state_dict(), assign=True)  # what the message about FSDP2 says
    found["from FSDP2"] = bare(torch.eye(3)).detach(), fsdp(torch.eye(3)).detach()
    plain = nn.Linear(3, 2)
    pair = torch.zeros(4, 3), torch.zeros(4, 2)
    small = shard_parameters(plain)
    from prunelimit.curvature.operator import HessianOperator

    for attempt in (
        lambda: shard_parameters(fsdp),
        lambda: shard_parameters(nn.LazyLinear(2)),
        lambda: ShardedHessianOperator(plain, functional.mse_loss, pair),
        lambda: HessianOperator(small, functional.mse_loss, pair),
        lambda: ShardedHessianOperator(small, functional.mse_loss, pair, rule="mlp"),
        lambda: ShardedHessianOperator(shard_parameters(Tied()), functional.mse_loss, pair, prunable=["scale"]),
        lambda: sharded_spectrum(ShardedHessianOperator(small, functional.mse_loss, pair), steps=0),
        lambda: predict_limit(small, functional.mse_loss, pair, epsilon=0.1, method="refit"),
        lambda: ShardedHessianOperator(small, functional.mse_loss, pair) @ torch.full((3,), torch.inf),
    ):
        try:
            attempt()
            found["errors"].append("none")
        except PruneLimitError as error:
            found["errors"].append(str(error))
    if rank == 0:
        torch.save(found, place)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
'''


CASES = ("mlp", "conv", "tied", "dictionaries")


@pytest.mark.parametrize("kind", [HessianOperator, GGNOperator])
@pytest.mark.parametrize("case", CASES)
def test_products_are_those_of_one_process(found: dict[str, Any], names: dict[str, Any], case: str, kind: Any) -> None:
    model, data, _ = names["cases"]()[case]
    operator = kind(model, functional.cross_entropy, data)
    block = names["column"](operator.dimension)
    dense, key = operator.dense(), f"{kind.__name__} {case}"
    for name, expected in {
        "block": dense @ block,
        "vector": dense @ block[:, 1],
        "gradient": operator.gradient,
        "loss": torch.tensor(operator.loss, dtype=torch.float64),
        "expansion": operator.gradient @ block[:, 0] + block[:, 0] @ dense @ block[:, 0] / 2,
    }.items():
        assert (found[f"{key} {name}"] - expected).norm() <= 1e-9 * expected.norm(), name


def test_products_follow_the_weights(found: dict[str, Any], names: dict[str, Any]) -> None:
    model, data, _ = names["cases"]()["mlp"]
    with torch.no_grad():
        model[0].weight.mul_(2)
    operator = HessianOperator(model, functional.cross_entropy, data)
    expected = operator @ names["column"](operator.dimension)
    torch.testing.assert_close(found["changed"], expected)


@pytest.mark.parametrize("case", CASES)
def test_lanczos_takes_the_same_steps(found: dict[str, Any], names: dict[str, Any], case: str) -> None:
    model, data, _ = names["cases"]()[case]
    operator = HessianOperator(model, functional.cross_entropy, data)
    one = spectrum(operator, steps=5, probes=names["PROBES"][case], low_memory=case == "conv")
    two = found[f"lanczos {case}"]
    assert (one.dimension, one.nullity, one.seed) == (two.dimension, two.nullity, two.seed)
    for a, b in zip(one.probes, two.probes, strict=True):
        scale = np.abs(a.alpha).max()
        np.testing.assert_allclose(b.alpha, a.alpha, rtol=1e-5, atol=1e-8 * scale)
        np.testing.assert_allclose(b.beta, a.beta, rtol=1e-5, atol=1e-8 * scale)


@pytest.mark.parametrize(
    ("case", "method"), [("mlp", "formula"), ("mlp", "directional"), ("conv", "formula"), ("tied", "formula")]
)
def test_limit_is_that_of_one_process(found: dict[str, Any], names: dict[str, Any], case: str, method: str) -> None:
    model, data, _ = names["cases"]()[case]
    limit = predict_limit(model, functional.cross_entropy, data, epsilon=0.05, steps=5, method=method, tolerance=0.02)
    sparsity, interval, radius = found[f"limit {case} {method}"]
    assert sparsity == pytest.approx(limit.sparsity, abs=1e-5)
    assert interval == pytest.approx(limit.interval, abs=1e-5)
    assert radius == pytest.approx(limit.radius, rel=1e-5)


def test_default_epsilon_and_a_sample(found: dict[str, Any], names: dict[str, Any]) -> None:
    model, (x, y), _ = names["cases"]()["mlp"]
    limit = predict_limit(model, functional.cross_entropy, (x.repeat(24, 1), y.repeat(24)), steps=8, examples=200)
    assert found["default epsilon"] == pytest.approx(limit.interval, abs=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_magnitudes_and_masks_are_those_of_one_process(found: dict[str, Any], names: dict[str, Any], case: str) -> None:
    model, _, _ = names["cases"]()[case]
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8 if case == "mlp" and p is model[0].weight else 4).round_()
    path = MagnitudePath(model)
    np.testing.assert_allclose(found[f"distance {case}"], path.distance, rtol=1e-12)
    for sparsity in (0.0, 0.1, 0.5, 0.77):
        masks = path.masks(sparsity)
        assert set(masks) == set(found[f"masks {case} {sparsity}"])
        assert all(torch.equal(mask, found[f"masks {case} {sparsity}"][name]) for name, mask in masks.items())
        torch.testing.assert_close(found[f"step {case} {sparsity}"], path.displacement(sparsity), rtol=0, atol=0)


def test_a_process_never_holds_more_than_its_shard_and_a_layer(found: dict[str, Any], names: dict[str, Any]) -> None:
    memory = found["memory"]
    assert memory["shards"] == memory["whole"] / 2
    assert memory["largest"] <= memory["gathered at once"] < 1.1 * memory["largest"]
    assert memory["left"] == 0
    # Of all tensors that a product makes: four slices (the direction's view, the result and both parts that are added to it),
    # and the weight, its gradient and the direction in one layer.
    assert memory["peak"] < 4 * memory["vector"] + 3 * memory["largest"]
    model, data = names["deep"](), (torch.randn(2, 64), torch.randn(2, 64))
    operator = HessianOperator(model, functional.mse_loss, data, rule="fresh")
    direction = torch.randn(operator.dimension)
    operator @ direction
    with names["Peak"]() as alone:
        operator @ direction
    assert memory["peak"] < alone.most / 2


def test_weights_are_gathered_four_times_for_a_product(found: dict[str, Any]) -> None:
    memory = found["memory"]
    numbers = memory["whole"] / 4  # of four bytes
    # The first layer's input needs no gradient, which saves a few.
    assert 3.5 * numbers < memory["numbers"] <= 4 * numbers


def test_bad_calls_are_explained(found: dict[str, Any]) -> None:
    words = (
        "model has the hooks of FSDP2",
        "model has no weights yet in 'weight'",
        "model has no sharded parameters",
        "model has sharded parameters",
        "rule='mlp' and dtype=torch.bfloat16",
        "prunable='scale' is not sharded",
        "steps=0",
        "method='refit'",
        "the curvature product is NaN",
    )
    assert [error[: len(word)] for error, word in zip(found["errors"], words, strict=True)] == list(words)


def test_state_of_fsdp2_is_taken_over(found: dict[str, Any]) -> None:
    torch.testing.assert_close(*found["from FSDP2"])


def test_sharding_without_processes_is_refused() -> None:
    with pytest.raises(PruneLimitError, match=r"^shard_parameters needs processes.*torchrun"):
        shard_parameters(nn.Linear(2, 2))
    with pytest.raises(PruneLimitError, match=r"^model has no sharded parameters"):
        ShardedHessianOperator(nn.Linear(2, 2), functional.mse_loss, (torch.zeros(2, 2), torch.zeros(2, 2)))


def test_one_process_is_a_group_too(names: dict[str, Any]) -> None:
    model, data, _ = names["cases"]()["mlp"]
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        operator = ShardedHessianOperator(shard_parameters(model), functional.cross_entropy, data)
        direction = operator.normal(0).double()
        assert operator.width == operator.dimension
        expected = HessianOperator(model, functional.cross_entropy, data) @ direction
        torch.testing.assert_close(operator @ direction, expected)
    finally:
        distributed.destroy_process_group()
