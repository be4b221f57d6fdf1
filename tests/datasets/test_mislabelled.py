"""A data set with wrong training labels."""

import numpy as np

from prunelimit import load_dataset


def test_a_fifth_of_the_training_labels_is_wrong_and_no_test_label():
    right, wrong = load_dataset("digits"), load_dataset("digits-noisy")
    changed = right.labels["train"] != wrong.labels["train"]
    assert changed.sum() == round(0.2 * len(changed))
    assert wrong.labels["train"].max() <= 9
    np.testing.assert_array_equal(right.labels["test"], wrong.labels["test"])
    for split in ("train", "test"):
        np.testing.assert_array_equal(right.images[split], wrong.images[split])


def test_wrong_labels_are_spread_over_the_classes():
    right, wrong = load_dataset("digits"), load_dataset("digits-noisy")
    changed = right.labels["train"] != wrong.labels["train"]
    assert np.bincount(wrong.labels["train"][changed], minlength=10).min() >= 10


def test_they_are_the_same_each_time_and_have_a_digest_of_their_own():
    one, other = load_dataset("digits-noisy"), load_dataset("digits-noisy")
    np.testing.assert_array_equal(one.labels["train"], other.labels["train"])
    assert one.digests == other.digests
    assert one.digests["train"] != load_dataset("digits").digests["train"]
    assert one.digests["test"] == load_dataset("digits").digests["test"]
