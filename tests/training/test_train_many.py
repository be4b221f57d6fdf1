"""Networks trained at once are the networks trained one at a time: weights, statistics, histories, saved states, failures."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunelimit import magnitude_masks, training, training_many, training_stack
from prunelimit.checkpoints import load_checkpoint
from prunelimit.datasets import Dataset, DeviceSplit
from prunelimit.errors import PruneLimitError
from prunelimit.files import cache_folder
from prunelimit.models import build_model, mlp
from prunelimit.training import TrainSpec, fit, train
from prunelimit.training_loop import Loop
from prunelimit.training_many import DivergedError, fit_many, stack_size, train_groups, train_many

#: Settings that a stack may mix.
MIXED: tuple[dict[str, Any], ...] = (
    {"seed": 3, "lr": 0.05, "l1": 1e-3},
    {"seed": 4, "lr": 0.1, "momentum": 0.0, "l2": 1e-2, "schedule": "cosine"},
    {"seed": 5, "lr": 0.02, "schedule": "step", "milestones": (1,), "gamma": 0.5, "warmup_epochs": 1},
)


class DoubleSplit(DeviceSplit):
    """Images in float64, in which two orders of the same sum do not drift apart."""

    def normalise(self, images: Tensor) -> Tensor:
        return super().normalise(images).double()


def spec(**values: Any) -> TrainSpec:
    base = {"dataset": "digits", "model": "fc5-quick", "epochs": 3, "batch_size": 32, "lr": 0.01, "l1": 1e-4}
    return TrainSpec(**base | values)


def make(kind: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    if kind == "resnet":
        return build_model("resnet8-quick", input_shape=(1, 8, 8), seed=seed)
    if kind == "batch norm":
        last = [nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(27, 10)]
        return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), *last)
    if kind == "tanh":
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10, bias=False))
    if kind == "dropout":
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 10))
    return mlp([64, 16, 12, 10])


@pytest.fixture
def small(digits: Dataset) -> DeviceSplit:
    """Five batches of 32, the last of them short."""
    return digits.on_device("train", size=150)


@pytest.fixture
def double(small: DeviceSplit) -> DeviceSplit:
    small.__class__ = DoubleSplit
    return small


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELIMIT_CACHE", str(tmp_path / "cache"))


def close(one: nn.Module, other: nn.Module, tolerance: float) -> None:
    states = one.state_dict(), other.state_dict()
    assert set(states[0]) == set(states[1])
    for name, value in states[0].items():
        torch.testing.assert_close(
            value, states[1][name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def equal(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return set(states[0]) == set(states[1]) and all(torch.equal(v, states[1][n]) for n, v in states[0].items())


def compare(kind: str, data: DeviceSplit, specs: list[TrainSpec], tolerance: float, **options: Any) -> None:
    """Train both ways and compare networks and histories."""
    dtype = torch.float64 if isinstance(data, DoubleSplit) else torch.float32
    alone = [make(kind, one.seed).to(dtype) for one in specs]
    stacked = copy.deepcopy(alone)
    masks = options.pop("masks", None)
    histories = [
        fit(model, data, one, test=data, test_every=2, masks=None if masks is None else masks[i])
        for i, (model, one) in enumerate(zip(alone, specs, strict=True))
    ]
    trained = fit_many(stacked, data, specs, test=data, test_every=2, masks=masks)
    for model, found, expected in zip(alone, trained, histories, strict=True):
        close(found.model, model, tolerance)
        assert not found.model.training
        assert [e["lr"] for e in found.history] == pytest.approx([e["lr"] for e in expected])
        assert [set(e) - {"stacked"} for e in found.history] == [set(e) - {"stages", "runtime"} for e in expected]
        for key in ("epoch", "loss", "accuracy", "test_loss", "test_accuracy"):
            both = [[e.get(key) for e in history if key in e] for history in (found.history, expected)]
            assert both[0] == pytest.approx(both[1], abs=max(tolerance, 1e-6))  # losses are summed up in float32


@pytest.mark.parametrize("kind", ["plain", "tanh", "batch norm"])
@pytest.mark.parametrize("augment", [False, True])
def test_float64_is_the_same_to_rounding(double: DeviceSplit, kind: str, augment: bool) -> None:
    compare(kind, double, [spec(augment=augment, **own) for own in MIXED], 1e-12)


@pytest.mark.parametrize("kind", ["plain", "tanh", "batch norm", "resnet"])
def test_float32_is_the_same_to_1e4(small: DeviceSplit, kind: str) -> None:
    compare(kind, small, [spec(epochs=2, seed=seed) for seed in range(3)], 1e-4)


def test_float64_stays_the_same_for_many_epochs(double: DeviceSplit) -> None:
    # In float32 they drift apart, as networks do whose initial weights differ in the last bit.
    compare("plain", double, [spec(epochs=40, seed=seed, lr=0.05) for seed in range(2)], 1e-9)


def test_stack_of_one_and_data_of_less_than_a_batch(double: DeviceSplit) -> None:
    compare("plain", double, [spec(batch_size=1000)], 1e-12)


@given(
    widths=st.lists(st.integers(1, 9), min_size=0, max_size=4),
    count=st.integers(1, 4),
    batch=st.integers(1, 40),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=20)
def test_gradients_by_hand_are_those_of_vmap(
    double_once: DeviceSplit, widths: list[int], count: int, batch: int, seed: int
) -> None:
    torch.manual_seed(seed)
    models = [mlp([64, *widths, 10]).double() for _ in range(count)]
    loops = [Loop(model, double_once, spec()) for model in models]
    stack = training_stack.Stack([training_stack.Member(loop, {}, None) for loop in loops])
    assert isinstance(stack.backward, training_stack._MLP)
    chosen = torch.randint(len(double_once), (count, batch))
    images, labels = double_once.normalise(double_once.images[chosen]), double_once.labels[chosen]
    losses, logits = stack.backward(images, labels)
    by_hand = stack.gradient.clone()
    expected_losses, expected_logits = training_stack._Vmapped(stack)(images, labels)
    torch.testing.assert_close(losses, expected_losses)
    torch.testing.assert_close(logits, expected_logits)
    torch.testing.assert_close(by_hand, stack.gradient)


@pytest.fixture(scope="module")
def double_once(digits: Dataset) -> DeviceSplit:
    data = digits.on_device("train", size=50)
    data.__class__ = DoubleSplit
    return data


@pytest.mark.parametrize("kind", ["plain", "batch norm"])
def test_each_network_has_its_own_masks(double: DeviceSplit, kind: str) -> None:
    specs = [spec(epochs=2, **own) for own in MIXED]
    masks = [magnitude_masks(make(kind, 3), 0.5), None, magnitude_masks(make(kind, 5), 0.9)]
    compare(kind, double, specs, 1e-12, masks=masks)
    models = [make(kind, one.seed).double() for one in specs]
    fit_many(models, double, specs, masks=masks)
    for model, mask in zip(models, masks, strict=True):
        for name, kept in (mask or {}).items():
            weight = dict(model.named_parameters())[name]
            assert not weight[kept == 0].any()
            assert weight[kept == 1].all()


def test_frozen_parameters_are_masked_and_do_not_move(double: DeviceSplit) -> None:
    models = [make("plain", seed).double() for seed in (0, 1)]
    for model in models:
        model[1].weight.requires_grad_(False)
    mask = {"1.weight": (torch.rand(16, 64) < 0.5).float()}
    alone = copy.deepcopy(models)
    fit_many(models, double, [spec(seed=0), spec(seed=1)], masks=[mask, None])
    for model, other, masks in zip(models, alone, ({"1.weight": mask["1.weight"]}, None), strict=True):
        fit(other, double, spec(seed=0 if masks else 1), masks=masks)
        close(model, other, 1e-12)


def test_dropout_is_repeatable_and_leaves_the_global_generator(small: DeviceSplit) -> None:
    runs = []
    for seed in (1, 2):
        models = [make("dropout", 0), make("dropout", 0)]
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        fit_many(models, small, [spec(seed=0, lr=0.05), spec(seed=0, lr=0.0500001)])
        assert torch.equal(torch.get_rng_state(), state)
        runs.append(models)
    assert equal(runs[0][0], runs[1][0])
    assert (runs[0][0][1].weight - runs[0][1][1].weight).abs().max() > 1e-3, "each network drops other units"


# Saved states


def test_train_finds_what_was_trained_at_once(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [spec(seed=seed) for seed in range(3)]
    trained = train_many(specs, dataset=digits)
    for found, expected in zip(
        trained,
        [train(one, dataset=digits, folder=Path(f"{cache_folder()}/{i}")) for i, one in enumerate(specs)],
        strict=True,
    ):
        close(found.model, expected.model, 1e-4)
    monkeypatch.setattr(Loop, "epoch", None)
    monkeypatch.setattr(training_stack.Stack, "epoch", None)
    for one, found in zip(specs, trained, strict=True):
        loaded = train(one, dataset=digits)
        assert equal(loaded.model, found.model)
        assert loaded.history == found.history
        assert found.history[-1]["stacked"] == 3
    assert [equal(a.model, b.model) for a, b in zip(train_many(specs, dataset=digits), trained, strict=True)] == [
        True
    ] * 3


def test_finished_networks_are_left_alone(digits: Dataset) -> None:
    specs = [spec(seed=seed) for seed in range(2)]
    first = train(specs[0], dataset=digits)
    both = train_many(specs, dataset=digits)
    assert equal(both[0].model, first.model)
    assert [e["stacked"] for e in both[1].history] == [1] * 3


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that moves by one second whenever it is read, so that deadlines pass at known places."""
    now = [0.0]

    def monotonic() -> float:
        now[0] += 1
        return now[0]

    for module in (training, training_many, training_stack):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=monotonic))
    return now


@pytest.mark.parametrize("kind", ["plain", "batch norm"])
def test_interrupted_stack_gives_the_same_bits(
    tmp_path: Path, small: DeviceSplit, clock: list[float], kind: str
) -> None:
    specs = [spec(epochs=4, **own) for own in MIXED]
    folders = [tmp_path / f"run-{i}" for i in range(3)]
    whole = fit_many([make(kind, one.seed) for one in specs], small, specs)
    calls, epochs = 0, 0
    while epochs < 4:
        models = [make(kind, one.seed) for one in specs]
        trained = fit_many(models, small, specs, folders=folders, deadline=clock[0] + 12)
        calls, epochs = calls + 1, len(trained[0].history)
    assert 2 <= calls <= 4
    for found, expected in zip(trained, whole, strict=True):
        assert equal(found.model, expected.model)
        assert [e["loss"] for e in found.history] == [e["loss"] for e in expected.history]


def test_deadline_in_the_past_begins_nothing(tmp_path: Path, small: DeviceSplit) -> None:
    models = [make("plain", 0)]
    found = fit_many(models, small, [spec()], folders=[tmp_path / "a"], deadline=time.monotonic() - 1)
    assert found[0].history == []
    assert load_checkpoint(tmp_path / "a") is None
    assert not models[0].training


def test_either_goes_on_from_what_the_other_saved(tmp_path: Path, double: DeviceSplit, monkeypatch: Any) -> None:
    """One left after an epoch, one within an epoch, one not begun."""
    specs, folders = [spec(epochs=3, seed=seed) for seed in range(3)], [tmp_path / f"run-{i}" for i in range(3)]
    expected = [make("plain", one.seed).double() for one in specs]
    for model, one in zip(expected, specs, strict=True):
        fit(model, double, one)
    for place in (0, 1):
        loop = Loop(make("plain", place).double(), double, specs[place])
        loop.epoch()
        if place == 1:
            assert loop.epoch(lambda: True) is None
        loop.save(folders[place])
    models = [make("plain", one.seed).double() for one in specs]
    with monkeypatch.context() as patch:
        patch.setattr(training_many, "SAVE_INTERVAL", 0.0)
        trained = fit_many(models, double, specs, folders=folders)
    assert [[e.get("stacked", 0) for e in one.history] for one in trained] == [[0, 1, 1], [0, 0, 0], [1, 1, 1]]
    for found, model in zip(trained, expected, strict=True):
        close(found.model, model, 1e-12)
    for one, folder, model in zip(specs, folders, expected, strict=True):
        again = make("plain", one.seed).double()
        assert len(fit(again, double, one, folder=folder)) == 3
        close(again, model, 1e-12)


def test_one_at_a_time_goes_on_from_a_stack(tmp_path: Path, double: DeviceSplit, clock: list[float]) -> None:
    specs, folders = [spec(epochs=3, seed=seed) for seed in range(2)], [tmp_path / "a", tmp_path / "b"]
    half = fit_many([make("plain", s).double() for s in (0, 1)], double, specs, folders=folders, deadline=clock[0] + 6)
    assert 0 < len(half[0].history) < 3
    for one, folder in zip(specs, folders, strict=True):
        model, whole = make("plain", one.seed).double(), make("plain", one.seed).double()
        history = fit(model, double, one, folder=folder)
        fit(whole, double, one)
        assert "stacked" in history[0]
        assert "stacked" not in history[-1]
        close(model, whole, 1e-12)


# Divergence


def test_one_that_diverges_does_not_take_the_others_down(digits: Dataset) -> None:
    specs = [spec(seed=0), spec(seed=1, lr=1e20), spec(seed=2)]
    with pytest.raises(DivergedError, match=r"^specs\[1\]: lr=1e\+20: the loss became .* in epoch \d") as caught:
        train_many(specs, dataset=digits)
    assert "The other 2 of 3 are trained." in str(caught.value)
    first, lost, last = caught.value.trained
    assert lost is None
    for one, found in ((specs[0], first), (specs[2], last)):
        assert len(found.history) == one.epochs
        close(train(one, dataset=digits, folder=cache_folder() / f"alone-{one.hash}").model, found.model, 1e-4)
        assert equal(train(one, dataset=digits).model, found.model), "it is saved"
    assert load_checkpoint(cache_folder() / "checkpoints" / specs[1].hash) is None


def test_all_of_them_may_diverge(small: DeviceSplit) -> None:
    specs = [spec(seed=seed, lr=1e20) for seed in range(2)]
    with pytest.raises(DivergedError, match="The other 0 of 2"):
        fit_many([make("plain", 0), make("plain", 1)], small, specs)


# Groups


def test_groups_are_sorted_and_come_back_in_order(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [
        spec(seed=0, epochs=2),
        spec(model="resnet8-quick", train_size=64, epochs=1),
        spec(seed=1, epochs=2),
        spec(seed=2, epochs=1),
        spec(seed=1, lr=1e20, epochs=2),
        spec(seed=2, lr=1e20, epochs=1, batch_size=8),
        spec(seed=3, lr=0.05, epochs=2),
    ]
    sizes: list[int] = []
    inner = training_many.fit_many
    monkeypatch.setattr(training_many, "fit_many", lambda m, *a, **k: (sizes.append(len(m)), inner(m, *a, **k))[1])
    with pytest.raises(DivergedError, match=r"^specs\[4\]: .* specs\[5\]: .* The other 5 of 7") as caught:
        train_groups(specs)
    assert sizes == [4]
    trained = caught.value.trained
    assert [found is None for found in trained] == [False] * 4 + [True, True, False]
    assert all(found.spec == one for one, found in zip(specs, trained, strict=True) if found is not None)
    good = [one for one, found in zip(specs, trained, strict=True) if found is not None]
    again = train_groups(good)
    assert [equal(a.model, b.model) for a, b in zip(again, [t for t in trained if t is not None], strict=True)] == [
        True
    ] * 5


def test_stacks_are_bounded(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    inner = training_many.fit_many
    monkeypatch.setattr(training_many, "MOST_PARAMETERS", 13_000)  # fc5-quick has 6,050 of them
    monkeypatch.setattr(training_many, "fit_many", lambda m, *a, **k: (sizes.append(len(m)), inner(m, *a, **k))[1])
    found = train_groups([spec(seed=seed, epochs=1, train_size=64) for seed in range(5)])
    assert sizes == [2, 2]
    assert [one.spec.seed for one in found] == list(range(5))


def test_masks_and_initial_states_are_used_and_not_kept(digits: Dataset) -> None:
    specs = [spec(seed=7, epochs=1), spec(seed=7, epochs=1)]
    states = [build_model("fc5-quick", input_shape=(1, 8, 8), seed=seed).state_dict() for seed in (1, 2)]
    masks = [magnitude_masks(build_model("fc5-quick", input_shape=(1, 8, 8), seed=seed), 0.5) for seed in (1, 2)]
    found = train_groups(specs, masks=masks, initial=states)
    for trained, state, mask in zip(found, states, masks, strict=True):
        alone = build_model("fc5-quick", input_shape=(1, 8, 8))
        alone.load_state_dict(state)
        fit(alone, digits.on_device("train"), specs[0], masks=mask)
        close(trained.model, alone, 1e-4)
    assert load_checkpoint(cache_folder() / "checkpoints" / specs[0].hash) is None


def test_stacking_is_for_small_mlps_and_for_small_networks_elsewhere(digits: Dataset) -> None:
    assert stack_size(spec(model="fc5-quick"), digits) > 100
    assert stack_size(spec(model="fc5"), digits) == 1
    assert stack_size(spec(model="resnet8-quick"), digits) == 1
    assert stack_size(spec(model="resnet8-quick"), digits, "cuda") > 100
    assert stack_size(spec(precision="bfloat16"), digits, "cuda") == 1


# Refusals


def test_nothing_is_no_work() -> None:
    assert train_many([]) == train_groups([]) == []


@pytest.mark.parametrize(
    ("specs", "options", "message"),
    [
        ([spec(), spec(seed=1, epochs=5)], {}, "^specs have the epochs 3 and 5"),
        ([spec(), spec(seed=1, model="fc3")], {}, "^specs have the model"),
        ([spec(), spec(seed=1, augment=True)], {}, "^specs have the augment"),
        ([spec(precision="bfloat16")], {}, "^precision='bfloat16' is not possible"),
        ([spec(), spec()], {}, "^folders has the same folder twice"),
        ([spec()], {"masks": [None, None]}, "^masks has 2 entries"),
        ([spec()], {"initial": []}, "^initial has 0 entries"),
        ([spec()], {"masks": [{"1.weigth": torch.ones(48, 64)}]}, "masks"),
    ],
)
def test_networks_that_do_not_fit_together_are_refused(
    digits: Dataset, specs: list[TrainSpec], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(PruneLimitError, match=message):
        train_many(specs, dataset=digits, **options)


def test_other_architectures_are_refused(small: DeviceSplit) -> None:
    with pytest.raises(PruneLimitError, match=r"^models differ"):
        fit_many([make("plain", 0), make("tanh", 0)], small, [spec(), spec(seed=1)])


def test_folder_of_another_run_is_refused(tmp_path: Path, small: DeviceSplit) -> None:
    fit(make("plain", 0), small, spec(epochs=1), folder=tmp_path)
    with pytest.raises(PruneLimitError, match="other settings"):
        fit_many([make("plain", 0)], small, [spec(epochs=1, seed=1)], folders=[tmp_path])
