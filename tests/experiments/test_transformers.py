"""Recorded limits of transformers: a tiny one from training to figure, and the records that there are."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from prunelimit import figures, predict_limit
from prunelimit.errors import PruneLimitError
from prunelimit.experiments import transformer_frames, transformer_networks, transformers
from prunelimit.experiments.store import repository
from prunelimit.experiments.transformer_frames import (
    criterion_frame,
    load_cases,
    network_frame,
    transformer_findings,
    transformer_sweeps,
)
from prunelimit.experiments.transformer_networks import GptSpec, MiniLMSpec, VitSpec, encoder_folder, prepare_network
from prunelimit.experiments.transformers import (
    CRITERIA,
    SPECS,
    TransformerSpec,
    changed_weights,
    find_transformer,
    make_criterion,
    run_transformer,
)
from prunelimit.figures.transformers import describe_transformers, plot_transformers
from prunelimit.pruning.semistructured import is_semistructured

TINY = TransformerSpec(
    network=VitSpec(width=8, heads=2, depth=1, updates=30),
    examples=96,
    steps=8,
    sweep=(0.25, 0.5, 0.75),
    tolerance=0.02,
)


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    found = run_transformer(TINY)
    assert found is not None
    return found


def test_the_record_holds_what_predict_limit_gives(record: dict[str, Any]) -> None:
    network = prepare_network(TINY.network, TINY.examples)
    options: dict[str, Any] = {"epsilon": TINY.epsilon, "prunable": network.prunable, "tolerance": TINY.tolerance}
    for method, criterion in (("measured", "magnitude"), ("directional", "magnitude")):
        expected = predict_limit(network.model, cross_entropy, network.train, method=method, **options)
        assert record["criteria"][criterion][method]["sparsity"] == expected.sparsity
    wanda = make_criterion("wanda", network)
    masks = {name: (weight != 0).float() for name, weight in wanda(0.5).items()}
    assert sum(int(mask.sum()) for mask in masks.values()) == record["total"] // 2
    formula = predict_limit(network.model, cross_entropy, network.train, steps=TINY.steps, progress=False, **options)
    assert record["spectrum"]["products"] == formula.cost["products"]


def test_every_criterion_is_measured(record: dict[str, Any]) -> None:
    assert set(record["criteria"]) == set(CRITERIA)
    for name, found in record["criteria"].items():
        semi = name.startswith("2:4")
        assert [point["sparsity"] for point in found["sweep"]] == ([0.25, 0.5] if semi else [0.25, 0.5, 0.75])
        assert all(abs(point["zeros"] - point["sparsity"]) < 0.01 for point in found["sweep"])
        assert ("directional" in found) == (name in TINY.expanded)


def test_a_second_call_reads_the_record(record: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers, "prepare_network", None)
    assert run_transformer(TINY) == record


def test_more_criteria_go_on_from_what_is_remembered(record: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers, "spectrum", None)  # would be called if it were not
    fewer = run_transformer(dataclasses.replace(TINY, criteria=("wanda", "magnitude")))
    assert fewer is not None
    assert fewer["spectrum"] == record["spectrum"]
    assert fewer["criteria"] == {name: record["criteria"][name] for name in ("magnitude", "wanda")}


def test_a_deadline_stops_before_the_next_step() -> None:
    assert run_transformer(dataclasses.replace(TINY, seed=1), deadline=0.0) is None


def test_two_of_four_weights_stay() -> None:
    network = prepare_network(TINY.network, TINY.examples)
    for name in ("2:4-magnitude", "2:4-wanda"):
        assert all(is_semistructured(weight) for weight in make_criterion(name, network)(0.5).values())


def test_sparsegpt_moves_the_kept_weights_and_the_masks_do_not() -> None:
    network = prepare_network(TINY.network, TINY.examples)
    dense = dict(network.model.named_parameters())
    for name, moved in (("sparsegpt", True), ("wanda", False)):
        new = make_criterion(name, network)(0.5)
        same = all(torch.equal(weight[weight != 0], dense[n][weight != 0]) for n, weight in new.items())
        assert same != moved


def test_weights_are_put_back() -> None:
    network = prepare_network(TINY.network, TINY.examples)
    before = [p.clone() for p in network.model.parameters()]
    new = make_criterion("magnitude", network)(0.5)

    def fail() -> None:
        with changed_weights(network, new):
            assert not all(torch.equal(a, b) for a, b in zip(before, network.model.parameters(), strict=True))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert all(torch.equal(a, b) for a, b in zip(before, network.model.parameters(), strict=True))


def test_a_gpt_learns_its_text() -> None:
    spec = GptSpec(context=16, width=16, heads=2, depth=1, updates=60, batch_size=16, lr=1e-2)
    first, again = (prepare_network(spec, 32) for _ in range(2))
    with torch.no_grad():
        losses = [float(cross_entropy(n.model(n.test[0]).flatten(0, 1), n.test[1].flatten())) for n in (first, again)]
    assert losses[0] == losses[1]  # the second time from the cache
    assert losses[0] < np.log(96) - 0.5
    assert len(first.train[0]) == 32


def test_the_sentence_encoder_embeds_and_classifies() -> None:
    pytest.importorskip("transformers")
    pytest.importorskip(transformer_networks.MINILM_PACKAGE)
    network = prepare_network(MiniLMSpec(test=3), 16)
    with torch.no_grad():
        logits = network.model(**{name: part for name, part in network.train.items() if name != "labels"})
    assert (logits.argmax(1) == network.train["labels"]).float().mean() > 0.8
    assert len(network.prunable) == 36
    assert sum(dict(network.model.named_parameters())[n].numel() for n in network.prunable) == 6 * 12 * 384**2


def test_a_missing_package_is_named() -> None:
    pytest.importorskip("transformers")
    with pytest.raises(PruneLimitError, match=r"^package='no_such_encoder'.*pip install"):
        encoder_folder("no_such_encoder")


def test_frames_and_figure_say_what_the_record_says(record: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SPECS, "vit", TINY)
    monkeypatch.setattr(transformer_frames, "SPECS", SPECS)
    cases = load_cases(["vit"])
    networks, limits, sweeps = network_frame(cases), criterion_frame(cases), transformer_sweeps(cases)
    by_name = limits.set_index("criterion")
    for name, found in record["criteria"].items():
        assert by_name.measured[CRITERIA[name]] == found["measured"]["sparsity"]
    assert by_name.error["Wanda"] == pytest.approx(by_name.directional["Wanda"] - by_name.measured["Wanda"])
    assert by_name.directional.isna().sum() == len(CRITERIA) - len(TINY.expanded)
    assert (by_name.inside == by_name.measured.between(networks.formula_low[0], networks.formula_high[0])).all()
    assert len(sweeps) == sum(len(found["sweep"]) for found in record["criteria"].values())
    (text,) = transformer_findings(cases)
    assert f"{networks.formula[0]:.1%}" in text
    assert f"{limits.measured.max():.1%}" in text
    figure = plot_transformers(sweeps, networks, limits, TINY.epsilon)
    lines = {line.get_label() for line in figure.axes[0].get_lines()}
    assert set(CRITERIA.values()) < lines
    assert "Wanda" in describe_transformers(sweeps, networks, limits)
    assert figures.as_svg(figure, "title")


def test_no_record_is_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SPECS, "vit", dataclasses.replace(TINY, seed=99))
    assert load_cases(["vit"]) == []
    assert criterion_frame([]).empty


@pytest.mark.parametrize("name", SPECS)
def test_a_spec_survives_the_way_through_json(name: str) -> None:
    spec = find_transformer(name)
    assert TransformerSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_records_are_named_by_their_specs() -> None:
    files = sorted((Path(repository()) / "results" / "transformers").glob("*.json"))
    assert len(files) == len(SPECS)
    assert {file.stem for file in files} == {spec.hash for spec in SPECS.values()}


@pytest.mark.parametrize(
    ("make", "pattern"),
    [
        (lambda: find_transformer("gtp"), "Did you mean 'gpt'"),
        (lambda: dataclasses.replace(TINY, criteria=("wandas",)), "Did you mean 'wanda'"),
        (lambda: TransformerSpec.from_dict({"network": {"kind": "rnn"}, "examples": 3}), "kind of gpt, vit, minilm"),
        (lambda: prepare_network(VitSpec(updates=1), 10**6), "^examples=1000000 must lie"),
        (lambda: prepare_network(MiniLMSpec(), 12), "^examples=12 must be a multiple of 8"),
    ],
)
def test_what_cannot_be_used_is_refused(make: Any, pattern: str) -> None:
    with pytest.raises(PruneLimitError, match=pattern):
        make()
