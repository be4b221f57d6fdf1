"""The rungs of the ladder, against brute force on tiny problems; its record, its frames and its figures."""

import dataclasses
import time

import numpy as np
import pytest
import torch
from scipy.optimize import NonlinearConstraint, minimize
from torch.nn.functional import cross_entropy, mse_loss

from prunelimit import figures
from prunelimit.curvature import HessianOperator
from prunelimit.errors import PruneLimitError
from prunelimit.experiments import ladder_frames
from prunelimit.experiments.catalogue import LADDERS, TASKS, find_ladders
from prunelimit.experiments.ladder import EXPERIMENT, run_ladder
from prunelimit.experiments.rungs import Rungs, directions
from prunelimit.experiments.specs import LadderSpec
from prunelimit.experiments.store import load_record
from prunelimit.models import MODELS, mlp
from prunelimit.path_limits import directional_limit
from prunelimit.predict import predict_limit
from prunelimit.pruning.magnitude import MagnitudePath
from prunelimit.refit import refit_limit
from prunelimit.training import TrainSpec


def random_rungs(size: int, seed: int, *, signs: bool = True) -> Rungs:
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((size, size)))[0]
    values = np.exp(rng.standard_normal(size)) * (rng.choice([-0.3, 1, 1], size) if signs else 1)
    return Rungs(rng.standard_normal(size), (turn * values) @ turn.T, 0.2 * rng.standard_normal(size), 0.3)


def lowest(matrix, gradient, step, kept, radius):
    """Minimise the quadratic over the kept weights by a general optimiser, from several starts."""

    def value(z):
        v = step.copy()
        v[kept] = z
        return gradient @ v + v @ matrix @ v / 2

    rng, found = np.random.default_rng(0), []
    ball = NonlinearConstraint(lambda z: z @ z, -np.inf, radius**2)
    for _ in range(12):
        start = rng.standard_normal(len(kept))
        result = minimize(
            value, 0.9 * radius * start / np.linalg.norm(start), constraints=[ball], method="SLSQP", tol=1e-12
        )
        found.append(result.fun if result.x @ result.x <= radius**2 * (1 + 1e-6) else np.inf)
    return min(found)


@pytest.mark.parametrize("seed", [0, 1])
def test_rungs_in_the_ball_are_what_an_optimiser_finds(seed):
    rungs = random_rungs(9, seed)
    values, vectors = np.linalg.eigh(rungs.hessian)
    absolute, none = (vectors * np.abs(values)) @ vectors.T, np.zeros(9)
    for removed in (3, 6):
        step, kept, radius = rungs.step(removed), rungs.kept(removed), rungs.distance[removed]
        for found, matrix, gradient in (
            (rungs.ball(removed), absolute, none),
            (rungs.signs(removed), rungs.hessian, none),
            (rungs.slope(removed), rungs.hessian, rungs.gradient),
        ):
            rise, v = found
            assert rise == pytest.approx(lowest(matrix, gradient, step, kept, radius), abs=1e-5)
            assert rise == pytest.approx(gradient @ v + v @ matrix @ v / 2, abs=1e-10)
            gone = np.setdiff1d(np.arange(9), kept)
            np.testing.assert_array_equal(v[gone], -rungs.weights[gone])


def test_the_kept_weights_give_the_schur_complement():
    rungs = random_rungs(30, 0)
    values, vectors = np.linalg.eigh(rungs.hessian)
    absolute = (vectors * np.abs(values)) @ vectors.T
    inverse = np.linalg.inv(absolute)
    for removed in (5, 20):
        gone = np.setdiff1d(np.arange(30), rungs.kept(removed))
        expected = rungs.weights[gone] @ np.linalg.solve(inverse[np.ix_(gone, gone)], rungs.weights[gone]) / 2
        rise, v = rungs.pruned(removed)
        assert rise == pytest.approx(expected, rel=1e-4)
        assert v @ absolute @ v / 2 == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["rotated", "perpendicular", "shuffled"])
def test_random_subspaces_have_the_rise_of_a_direct_solve(kind):
    rungs, removed = random_rungs(20, 3), 12
    values, vectors = np.linalg.eigh(rungs.hessian)
    root = (vectors * np.sqrt(np.abs(values))) @ vectors.T
    step = rungs.step(removed)
    if kind == "shuffled":
        basis = np.eye(20)[:, np.random.default_rng(7).permutation(20)[:8]]
    else:
        basis = rungs._eigenpairs[1] @ np.random.default_rng(7).standard_normal((8, 20)).T
    if kind == "perpendicular":
        basis -= np.outer(step, step @ basis) / (step @ step)
        assert np.abs(step @ basis).max() < 1e-12
    z = np.linalg.lstsq(root @ basis, -root @ step, rcond=None)[0]
    expected = np.sum((root @ (step + basis @ z)) ** 2) / 2
    assert getattr(rungs, kind)(removed, 7) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["rotated", "perpendicular", "shuffled"])
def test_subspaces_of_one_seed_are_nested(kind):
    rungs = random_rungs(25, 0)
    whole = rungs.step(10)
    rungs.step = lambda removed: whole  # one point for all
    rungs.distance = np.full(26, 1.0)
    rises = [getattr(rungs, kind)(removed, 3) for removed in range(5, 25)]
    assert (np.diff(rises) > -1e-9).all()


def test_random_coordinates_are_random_subspaces_if_the_eigenvectors_are_random():
    rungs = random_rungs(150, 0, signs=False)
    rises = {k: [getattr(rungs, k)(100, s) for s in range(40)] for k in ("rotated", "perpendicular", "shuffled")}
    errors = {k: np.std(v) / np.sqrt(40) for k, v in rises.items()}
    gap = abs(np.mean(rises["rotated"]) - np.mean(rises["shuffled"]))
    assert gap < 4 * np.hypot(errors["rotated"], errors["shuffled"])
    assert np.mean(rises["perpendicular"]) > np.mean(rises["rotated"]) + 2 * errors["perpendicular"]


def test_zero_rows_are_flat_directions():
    rungs = random_rungs(12, 0)
    padded = np.zeros((15, 15))
    padded[:12, :12] = rungs.hessian
    weights = np.concatenate([rungs.weights, [5.0, 6.0, 7.0]])
    wider = Rungs(weights, padded, np.concatenate([rungs.gradient, np.zeros(3)]), rungs.epsilon)
    np.testing.assert_allclose(np.sort(np.abs(wider.eigenvalues))[3:], np.sort(np.abs(rungs.eigenvalues)))
    for name in ("pruned", "signs"):
        assert getattr(wider, name)(6)[0] == pytest.approx(getattr(rungs, name)(6)[0], rel=1e-5)


@pytest.mark.parametrize("guess", [0.0, 0.3, 0.62, 1.0])
def test_the_search_finds_the_one_crossing(guess):
    rungs = random_rungs(400, 0)
    low, high = rungs.bracket(lambda removed: removed / 400, guess, 0.003)
    assert low <= rungs.epsilon <= high
    assert high - low <= 0.003


def test_directions_are_as_long_as_the_cut():
    rungs = random_rungs(300, 0)
    found = directions(rungs, 200, 5, 0)
    cut = found["cut"][0]
    gone = cut != 0
    for kind, steps in found.items():
        lengths = [np.linalg.norm(step) / rungs.distance[200] for step in steps]
        assert len(steps) == (1 if kind in ("cut", "opposite") else 5)
        assert max(lengths) <= 1 + 1e-12
        assert min(lengths) > (0.99 if kind == "others" else 1 - 1e-12)
        if kind in ("opposite", "flipped", "support"):
            assert all(not step[~gone].any() for step in steps)
    np.testing.assert_array_equal(found["opposite"][0], -cut)
    assert all(np.array_equal(np.abs(step), np.abs(cut)) for step in found["flipped"])
    assert all(np.isin(step, [0.0, *-rungs.weights]).all() for step in found["others"])


# A quadratic loss: every rung that gives back what a quadratic does not need must stay where it is


@pytest.fixture(scope="module")
def linear():
    """Linear regression at its minimum, with correlated inputs."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((200, 40)) @ (np.eye(40) + 0.08 * rng.standard_normal((40, 40)))
    targets = inputs @ rng.laplace(size=40) + 0.1 * rng.standard_normal(200)
    model = torch.nn.Linear(40, 1, bias=False).double()
    best = np.linalg.lstsq(inputs, targets, rcond=None)[0]
    model.weight.data = torch.from_numpy(best[None])
    data = torch.from_numpy(inputs), torch.from_numpy(targets[:, None])
    operator = HessianOperator(model, mse_loss, data)
    hessian = operator.dense().numpy()
    rungs = Rungs(best, hessian, operator.gradient.numpy(), 0.4)
    return model, data, operator, rungs


def test_on_a_quadratic_loss_the_rungs_agree(linear):
    model, _, operator, rungs = linear
    limits = {
        k: rungs.bracket(lambda m, k=k: getattr(rungs, k)(m)[0], 0.5, 1e-3)
        for k in ("pruned", "ball", "signs", "slope")
    }
    assert len(set(limits.values())) == 1
    low = limits["pruned"][0]
    assert 0.2 < low < 0.9
    for control in ("none", "stationary"):
        refit = refit_limit(operator, MagnitudePath(model), rungs.epsilon, control=control, accuracy=1e-8)
        assert refit.sparsity == pytest.approx(low, abs=1 / 40)


def test_on_a_quadratic_loss_the_cut_is_its_expansion(linear):
    model, data, operator, rungs = linear
    limits = {
        k: rungs.bracket(lambda m, k=k: rungs.expanded(rungs.step(m))[k], 0.5, 1e-3)[0]
        for k in ("absolute", "signed", "sloped")
    }
    measured = predict_limit(model, mse_loss, data, epsilon=rungs.epsilon, method="measured").sparsity
    directional = directional_limit(operator, MagnitudePath(model), rungs.epsilon).sparsity
    for limit in limits.values():
        assert limit == pytest.approx(measured, abs=1 / 40)
        assert limit == pytest.approx(directional, abs=1 / 40)


# The record


@pytest.fixture(scope="module")
def spec():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "tiny", lambda shape, classes: mlp([64, 5, classes]))
        train = TrainSpec(dataset="digits", model="tiny", epochs=8, batch_size=64, lr=0.05, l1=1e-3, schedule="cosine")
        yield LadderSpec(
            train=train, rotations=2, draws=3, tolerance=0.01, tune_epochs=2, tune_tolerance=0.1, accuracy_step=0.02
        )


@pytest.fixture(scope="module")
def record(spec):
    found = run_ladder(spec, label={"task": "test", "profile": "quick"})
    assert found is not None
    return found


@pytest.fixture
def cells(record, spec):
    return [ladder_frames.LadderCell(LADDERS["fc3-weak-l1"], "quick", 0, spec, record)]


def test_the_record_holds_every_rung(record):
    rungs = set(ladder_frames.SUBSPACE) | set(ladder_frames.ONE_SHOT)
    assert set(record["limits"]) == rungs
    assert all(0 <= found["sparsity"] < 1 for found in record["limits"].values())
    assert record["total"] == 64 * 5 + 50
    for rung in ("pruned", "ball", "signs", "slope"):
        assert record["limits"][rung]["promised"] <= record["epsilon"]
    assert record["limits"]["ball"]["length"] <= 1 + 1e-9


def test_its_one_shot_limits_are_those_of_the_library(record, spec):
    from prunelimit.experiments.prepare import prepare

    ready = prepare(spec, "cpu", None, None)
    arguments = (ready.model, cross_entropy, ready.sample)
    for rung, method in (("measured", "measured"), ("sloped", "directional")):
        limit = predict_limit(*arguments, epsilon=record["epsilon"], method=method)
        assert record["limits"][rung]["sparsity"] == pytest.approx(limit.sparsity, abs=0.012)


def test_the_record_is_found_again_and_parts_of_it_are_kept(record, spec):
    assert run_ladder(spec) == load_record(EXPERIMENT, spec)
    begun = time.monotonic()
    other = dataclasses.replace(spec, draws=2)
    assert run_ladder(other, deadline=begun - 1) is None
    assert load_record(EXPERIMENT, other) is None


def test_the_gradient_is_split_as_the_page_says(record):
    found = record["gradient"]
    assert found["penalty_norm"] <= 1e-3 * np.sqrt(record["total"]) * (1 + 1e-6)
    assert found["cuts"]["measured"]["stationary"] > 0
    assert -1 <= found["cosine"] <= 1


# Frames and figures


def test_tables_say_what_the_record_says(cells, record):
    frame = ladder_frames.rungs_frame(cells)
    assert len(frame) == len(ladder_frames.SUBSPACE) + len(ladder_frames.ONE_SHOT)
    table = ladder_frames.rungs_table(frame, "one-shot")
    assert table.iloc[-1, -1] == f"{100 * record['limits']['accuracy']['sparsity']:.1f}"
    landings = ladder_frames.landings_frame(cells)
    assert landings.promised.tolist() == pytest.approx(
        [record["limits"][k]["promised"] / record["epsilon"] for k in ("pruned", "ball", "signs", "slope")]
    )
    steps = ladder_frames.directions_frame(cells)
    assert (steps.kind == "sphere").sum() == 6
    shown = ladder_frames.directions_table(steps, "formula")
    assert shown.kind.tolist() == list(ladder_frames.KINDS.values())
    domain = ladder_frames.domain_frame(cells).iloc[0]
    assert domain.whole == pytest.approx(record["line"]["rise"][-1] / record["line"]["sloped"][-1])
    assert ladder_frames.gradient_frame(cells).norm[0] == record["gradient"]["norm"]
    assert ladder_frames.networks_frame(cells).total[0] == 370
    assert ladder_frames.ladder_origin(cells).command[0] == "prunelimit ladder fc3-weak-l1 --profile quick --seeds 1"


def test_the_figures_show_every_network(cells):
    frame = ladder_frames.rungs_frame(cells)
    figure = figures.plot_ladder(frame, {"subspace": "a", "one-shot": "b"})
    assert [tick.get_text() for tick in figure.axes[1].get_yticklabels()] == [
        n for n, _ in ladder_frames.ONE_SHOT.values()
    ]
    dots = next(line for line in figure.axes[1].lines if line.get_marker() == "o")
    assert dots.get_xdata().tolist() == frame[frame.branch == "one-shot"].sparsity.tolist()
    steps = ladder_frames.directions_frame(cells)
    part = steps[steps.place == "formula"]
    assert len(figures.plot_directions(part, ladder_frames.KINDS).axes[0].lines) == 2 * len(ladder_frames.KINDS) + 1
    lines = figures.plot_expansions(ladder_frames.path_frame(cells)).axes[0].lines
    assert [line.get_label() for line in lines[1:4]] == ["|H| alone", "H alone", "H and gradient"]
    words = figures.describe_ladder(frame, "one-shot")
    assert f"the loss itself {cells[0].record['limits']['measured']['sparsity']:.1%}" in words
    assert f"the cut {part[part.kind == 'cut'].rise.iloc[0]:.2g}" in figures.describe_directions(
        part, ladder_frames.KINDS
    )


def test_what_is_missing_is_named_with_its_command(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(tmp_path))
    missing = ladder_frames.missing_ladders()
    assert len(missing) == sum(len(task.profiles) for task in LADDERS.values())
    assert missing.command[0] == "prunelimit ladder fc3-weak-l1 --profile quick --seeds 3"
    with pytest.raises(PruneLimitError, match="make them with `prunelimit ladder`"):
        ladder_frames.load_ladders()


def test_the_catalogue_of_ladders():
    assert not set(LADDERS) & set(TASKS)
    specs = [
        s
        for task in LADDERS.values()
        for profile in task.profiles
        for seed in (0, 1)
        for s in task.specs(profile, seed)
    ]
    assert len({spec.hash for spec in specs}) == len(specs) == 8
    assert all(spec.train.model in MODELS for spec in specs)
    assert LADDERS["fc3-weak-l1"].specs("paper", 0) == []
    assert LadderSpec.from_dict(specs[0].to_dict()) == specs[0]
    with pytest.raises(PruneLimitError, match="Did you mean 'fc3-weak-l1'"):
        find_ladders("fc3-weak-l2")
