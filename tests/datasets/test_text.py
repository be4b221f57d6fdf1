"""Text from Python itself: windows, splits without overlap, and sentences with classes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunelimit.datasets import text
from prunelimit.datasets.text import ALPHABET, PACKAGES, Sentences, Text, decode, encode, load_sentences, load_text
from prunelimit.errors import PruneLimitError


@pytest.fixture(scope="module")
def corpus() -> Text:
    return load_text()


@pytest.fixture(scope="module")
def sentences() -> Sentences:
    return load_sentences(20, 10)


@given(st.text(alphabet=ALPHABET))
def test_what_is_encoded_is_decoded(words: str) -> None:
    assert decode(encode(words).tolist()) == words


@given(st.text())
def test_every_text_has_a_code_per_character(words: str) -> None:
    codes = encode(words)
    assert codes.dtype == torch.int64
    assert len(codes) == len(words)
    assert decode(codes.tolist()) == "".join(letter if letter in ALPHABET else "?" for letter in words)


def test_no_paragraph_is_for_training_and_for_testing(corpus: Text) -> None:
    parts = {split: set(decode(codes.tolist()).split("\n\n")) for split, codes in corpus.codes.items()}
    assert not parts["train"] & parts["test"]
    assert 0.05 < len(corpus.codes["test"]) / len(corpus.codes["train"]) < 0.2
    assert "class" in decode(corpus.codes["train"].tolist())


def test_digests_are_those_of_the_characters(corpus: Text) -> None:
    assert load_text().digests == corpus.digests
    assert corpus.digests["train"] != corpus.digests["test"]
    assert all(len(digest) == 64 for digest in corpus.digests.values())


def test_the_target_is_the_next_character(corpus: Text) -> None:
    inputs, targets = corpus.windows("test", 50)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert torch.equal(inputs[1:, 0], targets[:-1, -1])
    assert torch.equal(inputs.flatten(), corpus.codes["test"][: inputs.numel()])
    assert len(corpus.codes["test"]) - inputs.numel() <= 50


def test_drawn_windows_do_not_overlap_and_grow(corpus: Text) -> None:
    every = {tuple(row) for row in corpus.windows("test", 40)[0].tolist()}
    few, more = (corpus.windows("test", 40, count, seed=3)[0] for count in (5, 60))
    assert torch.equal(few, more[:5])
    assert {tuple(row) for row in more.tolist()} <= every
    assert not torch.equal(few, corpus.windows("test", 40, 5, seed=4)[0])


@pytest.mark.parametrize(("length", "count"), [(0, None), (10**6, None), (50, 0), (50, 10**6)])
def test_too_much_text_is_refused(corpus: Text, length: int, count: int | None) -> None:
    with pytest.raises(PruneLimitError, match=rf"^length={length}, count={count} must"):
        corpus.windows("test", length, count)


def test_an_unknown_split_is_refused(corpus: Text) -> None:
    with pytest.raises(PruneLimitError, match="Did you mean 'train'"):
        corpus.windows("trian", 10)


def test_every_class_has_as_many_sentences(sentences: Sentences) -> None:
    for split, count in (("train", 20), ("test", 10)):
        assert sentences.labels[split].bincount().tolist() == [count] * len(PACKAGES)
        assert len(sentences.texts[split]) == count * len(PACKAGES)
    assert not set(sentences.texts["train"]) & set(sentences.texts["test"])


def test_sentences_are_sentences(sentences: Sentences) -> None:
    for sentence in sentences.texts["train"] + sentences.texts["test"]:
        assert text.WORDS[0] <= len(sentence.split()) <= text.WORDS[1]
        assert sentence.endswith(".")
        assert ">>>" not in sentence


def test_a_smaller_training_set_is_part_of_a_larger_one(sentences: Sentences) -> None:
    smaller = load_sentences(7, 10)
    assert set(smaller.texts["train"]) < set(sentences.texts["train"])
    assert smaller.texts["test"] == sentences.texts["test"]
    assert smaller.digests["test"] == sentences.digests["test"]
    assert smaller.digests["train"] != sentences.digests["train"]


def test_a_sentence_of_two_packages_has_no_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "PACKAGES", {"one": "a", "two": "b"})
    own = {"a": ["Only in the first one."], "b": ["Only in the second one."]}
    monkeypatch.setattr(text, "_docstrings", lambda module: ["This one is in both of them.", *own[module]])
    monkeypatch.setattr(text, "WORDS", (3, 9))
    with pytest.raises(PruneLimitError, match="one has 1 in this Python"):
        load_sentences(1, 1)


@pytest.mark.parametrize(("train", "test"), [(0, 1), (1, 0), (5000, 1)])
def test_too_many_or_too_few_sentences_are_refused(train: int, test: int) -> None:
    with pytest.raises(PruneLimitError, match=rf"^train={train}"):
        load_sentences(train, test)


def test_a_missing_source_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "PACKAGES", {"nothing": "no_such_module_at_all"})
    with pytest.raises(PruneLimitError, match="no source of no_such_module_at_all"):
        load_sentences(1, 1)
