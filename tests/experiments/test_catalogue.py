"""The catalogue holds the released settings and refuses what it does not know."""

import pytest

from prunelimit.errors import PruneLimitError
from prunelimit.experiments.catalogue import TASKS, find_tasks
from prunelimit.experiments.specs import LimitSpec
from prunelimit.models import MODELS


def test_fc5_has_the_released_settings():
    train = TASKS["fc5-cifar10"].spec("laptop", 2).train
    assert (train.dataset, train.model, train.seed) == ("cifar10", "fc5", 2)
    assert (train.epochs, train.batch_size, train.lr, train.momentum) == (200, 128, 0.01, 0.9)
    assert (train.l1, train.l2, train.schedule, train.warmup_epochs) == (5e-5, 0, "constant", 0)
    assert train.augment
    assert train.train_size is None


def test_every_cell_names_a_network_that_exists_and_has_its_own_hash():
    specs = [task.spec(profile, seed) for task in TASKS.values() for profile in task.profiles for seed in (0, 1)]
    assert all(spec.train.model in MODELS for spec in specs)
    assert len({spec.hash for spec in specs}) == len(specs)


def test_a_limit_spec_survives_the_way_through_json():
    spec = TASKS["resnet20-cifar10"].spec("laptop", 1)
    assert LimitSpec.from_dict(spec.to_dict()) == spec
    assert LimitSpec.from_dict(spec.to_dict()).hash == spec.hash


@pytest.mark.parametrize("call", [lambda: find_tasks("fc5-cifar"), lambda: find_tasks(["fc5-cifar10", "fc5-cifar"])])
def test_an_unknown_task_is_refused_with_the_nearest_name(call):
    with pytest.raises(PruneLimitError, match="Did you mean 'fc5-cifar10'"):
        call()


def test_an_unknown_profile_is_refused_with_the_nearest_name():
    with pytest.raises(PruneLimitError, match="Did you mean 'laptop'"):
        TASKS["fc5-cifar10"].spec("labtop", 0)
