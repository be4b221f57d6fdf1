"""A network comes back from its sparse file to the bit, and a file that is not whole is refused."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from prunelimit.errors import PruneLimitError
from prunelimit.models import build_model, mlp
from prunelimit.pruning.export import load_sparse, save_sparse
from prunelimit.pruning.magnitude import MagnitudePath, apply_masks, magnitude_masks


class Tied(nn.Module):
    """Two layers with one weight, a buffer, a scalar and an empty tensor."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(5, 5), nn.Linear(5, 5)
        self.two.weight = self.one.weight
        self.register_buffer("seen", torch.tensor(7))
        self.register_buffer("nothing", torch.empty(0, 3))
        self.thin = nn.Parameter(torch.randn(3).bfloat16())


def same(model, other):
    one, two = model.state_dict(), other.state_dict()
    return set(one) == set(two) and all(torch.equal(one[n], two[n]) and one[n].dtype == two[n].dtype for n in one)


def scrambled(model):
    """A copy with other numbers everywhere."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for value in other.state_dict().values():
            value.copy_(torch.randint(2, 9, value.shape).to(value))
    return other


NETWORKS = {
    "mlp": lambda: mlp([30, 20, 5]),
    "convolutions": lambda: build_model("resnet8-quick", input_shape=(1, 8, 8), seed=0),
    "tied": Tied,
    "double": lambda: mlp([7, 3, 2]).double(),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.98])
def test_everything_comes_back_exactly(name, sparsity, tmp_path):
    torch.manual_seed(0)
    model = NETWORKS[name]()
    masks = magnitude_masks(model, sparsity)
    apply_masks(model, masks)
    path = save_sparse(tmp_path / "net.safetensors", model, masks)
    other = scrambled(model)
    found = load_sparse(path, other)
    assert same(model, other)
    assert set(found) == set(masks)
    assert all(torch.equal(found[n], masks[n]) and found[n].dtype == masks[n].dtype for n in masks)


@settings(max_examples=30)
@given(width=st.integers(1, 40), density=st.floats(0, 1), seed=st.integers(0, 100))
def test_any_mask_comes_back(width, density, seed, tmp_path_factory):
    torch.manual_seed(seed)
    model = mlp([width, 3])
    masks = {"1.weight": (torch.rand(3, width) < density).float()}
    path = save_sparse(tmp_path_factory.mktemp("net") / "net.safetensors", model, masks)
    other = scrambled(model)
    assert torch.equal(load_sparse(path, other)["1.weight"], masks["1.weight"])
    assert torch.equal(other[1].weight, model[1].weight * masks["1.weight"])


def test_a_kept_zero_stays_kept_and_shared_weights_stay_shared(tmp_path):
    model = Tied()
    with torch.no_grad():
        model.one.weight[0, 0] = 0.0
    masks = {"one.weight": torch.ones(5, 5)}
    other = Tied()
    assert load_sparse(save_sparse(tmp_path / "a", model, masks), other)["one.weight"].all()
    assert other.two.weight is other.one.weight
    assert torch.equal(other.two.weight, model.one.weight)


@pytest.mark.parametrize(("sparsity", "share", "kind"), [(0.95, 0.09, "mask"), (0.99, 0.025, "places")])
def test_the_file_is_as_small_as_it_can_be(sparsity, share, kind, tmp_path):
    model = mlp([784, 300, 10])
    masks = magnitude_masks(model, sparsity, ["1.weight"])
    apply_masks(model, masks)
    path = save_sparse(tmp_path / "sparse", model, masks)
    save_file(model.state_dict(), tmp_path / "dense")
    dense = (tmp_path / "dense").stat().st_size
    rest = 4 * (300 + 3000 + 10)
    assert (path.stat().st_size - rest) / dense < share
    with safe_open(path, "pt") as file:
        assert f"{kind}:1.weight" in file.keys()  # noqa: SIM118
        assert float(file.metadata()["sparsity"]) == pytest.approx(sparsity, abs=1e-5)


def test_the_layout_is_the_documented_one(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3))
    mask = torch.tensor([[1.0, 0, 1], [0, 0, 1], [0, 0, 1]])
    path = save_sparse(tmp_path / "net", model, {"0.weight": mask})
    with safe_open(path, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    assert set(tensors) == {"values:0.weight", "mask:0.weight", "dense:0.bias"}
    assert tensors["mask:0.weight"].tolist() == [0b10100100, 0b10000000]
    assert torch.equal(tensors["values:0.weight"], model[0].weight[mask == 1])
    assert (metadata["format"], metadata["version"]) == ("prunelimit-sparse", "1")
    assert json.loads(metadata["shapes"]) == {"0.weight": [3, 3]}


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = mlp([30, 20, 5])
    return model, save_sparse(tmp_path / "net", model, MagnitudePath(model).masks(0.9))


@pytest.mark.parametrize("place", [2, 100, 700, -300, -1])
def test_one_changed_byte_is_noticed_and_the_model_is_left_alone(saved, place):
    model, path = saved
    raw = bytearray(path.read_bytes())
    raw[place] ^= 0x10
    path.write_bytes(raw)
    before = copy.deepcopy(model)
    with pytest.raises(PruneLimitError, match="path="):
        load_sparse(path, model)
    assert same(model, before)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x00" * 100])
def test_a_file_of_another_kind_is_refused(saved, content):
    model, path = saved
    path.write_bytes(content)
    with pytest.raises(PruneLimitError, match="damaged"):
        load_sparse(path, model)


def test_a_cut_file_is_refused(saved):
    model, path = saved
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(PruneLimitError, match="damaged"):
        load_sparse(path, model)


def test_a_missing_a_plain_and_a_newer_file_are_refused(saved, tmp_path):
    model, _ = saved
    with pytest.raises(PruneLimitError, match="not a file"):
        load_sparse(tmp_path / "missing", model)
    save_file(model.state_dict(), tmp_path / "plain")
    with pytest.raises(PruneLimitError, match="not a sparse network"):
        load_sparse(tmp_path / "plain", model)
    save_file({"a": torch.ones(1)}, tmp_path / "newer", {"format": "prunelimit-sparse", "version": "2"})
    with pytest.raises(PruneLimitError, match="version '2'"):
        load_sparse(tmp_path / "newer", model)


@pytest.mark.parametrize("widths", [[30, 21, 5], [30, 20, 5, 2]])
def test_another_network_is_refused_and_left_alone(saved, widths):
    other = mlp(widths)
    before = copy.deepcopy(other)
    with pytest.raises(PruneLimitError, match=r"another network|build the network"):
        load_sparse(saved[1], other)
    assert same(other, before)


def test_another_type_is_refused(saved):
    with pytest.raises(PruneLimitError, match="float64"):
        load_sparse(saved[1], mlp([30, 20, 5]).double())


def test_masks_that_do_not_fit_are_refused(tmp_path):
    model = mlp([4, 2])
    with pytest.raises(PruneLimitError, match="other than 0 and 1"):
        save_sparse(tmp_path / "net", model, {"1.weight": torch.full((2, 4), 0.5)})
    with pytest.raises(PruneLimitError, match="shape"):
        save_sparse(tmp_path / "net", model, {"1.weight": torch.ones(2)})
    with pytest.raises(PruneLimitError, match="unknown"):
        save_sparse(tmp_path / "net", model, {"weight": torch.ones(2, 4)})
    assert not list(tmp_path.iterdir())
