"""Every option of conf/averaging goes through the public trials."""

import functools
import inspect
from pathlib import Path

import pytest
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from components.testing.averaging import STEPS, AveragingContract, MakeCallbacks

CONF = Path(__file__).parents[3] / "conf" / "averaging"
OPTIONS = sorted(p.stem for p in CONF.glob("*.yaml"))
FACTS = {"total_steps": STEPS, "steps_per_epoch": 6, "batch_size": 8, "num_classes": 2}
SWITCHING = ["switch_ema"]
PECULIAR = ["checkfree", "neon", "none", "plasticity_stability_ema", "tail", "workers", *SWITCHING]


def callbacks(name: str, **options) -> list:
    """What the builder makes of the option: its file, the given options, and the facts that its signature names."""
    node = OmegaConf.load(CONF / f"{name}.yaml")
    if not node:
        return []
    named = inspect.signature(get_class(node._target_)).parameters
    return [instantiate(node, _convert_="all", **{k: v for k, v in FACTS.items() if k in named} | options)]


class OptionContract(AveragingContract):
    @pytest.fixture
    def make(self, name: str) -> MakeCallbacks:
        return functools.partial(callbacks, name)

    def test_option_file_lists_every_option(self, name):
        assert (CONF / f"{name}.yaml").read_text().startswith("# ")
        node = OmegaConf.load(CONF / f"{name}.yaml")
        if node:
            assert set(node) - {"_target_"} == set(inspect.signature(get_class(node._target_)).parameters) - set(FACTS)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in PECULIAR])
class TestOption(OptionContract):
    pass


@pytest.mark.parametrize("name", ["tail"])
class TestTail(OptionContract):
    off = {"last": 1}  # noqa: RUF012


@pytest.mark.parametrize("name", ["neon"])
class TestNeon(OptionContract):
    off = {"weight": -1.0}  # noqa: RUF012


@pytest.mark.parametrize("name", ["plasticity_stability_ema"])
class TestPlasticity(OptionContract):
    most_operations = 30  # two norms and what goes into them


@pytest.mark.parametrize("name", ["checkfree"])
class TestCheckFree(OptionContract):
    averages = False
    changes_training = True
    stages = 5
    off = {"probability": 0.0}  # noqa: RUF012
    most_operations = 12  # the gradients' norms
    price = {"probability": 0.0, "rollback_every": 1000}  # noqa: RUF012

    @pytest.fixture(params=["checkfree", "random"])
    def make(self, name: str, request) -> MakeCallbacks:
        return lambda **options: callbacks(name, **{"probability": 0.2, "recovery": request.param, "rollback_every": 5, "seed": 1} | options)


class TestRollback(TestCheckFree):
    rewinds = True

    @pytest.fixture
    def make(self, name: str) -> MakeCallbacks:
        return lambda **options: callbacks(name, **{"probability": 0.2, "recovery": "rollback", "rollback_every": 5, "seed": 1} | options)


class TestCheckFreePlus(TestCheckFree):
    off = {"probability": 0.0, "recovery": "checkfree"}  # noqa: RUF012

    @pytest.fixture
    def make(self, name: str) -> MakeCallbacks:
        return lambda **options: callbacks(name, **{"probability": 0.2, "recovery": "checkfree_plus", "seed": 1} | options)


@pytest.mark.parametrize("name", ["workers"])
class TestWorkers(OptionContract):
    averages = False
    changes_training = True
    accumulates = 4
    off = {"rule": "mean", "byzantine": 0, "momentum": 0.0}  # noqa: RUF012
    most_operations = 60  # four workers' gradients put in a row, and their sorting

    @pytest.fixture(params=["sign_flip", "random"])
    def make(self, name: str, request) -> MakeCallbacks:
        return lambda **options: callbacks(name, **{"byzantine": 1, "attack": request.param, "momentum": 0.5, "seed": 0} | options)


@pytest.mark.parametrize("name", ["none"])
class TestNone(OptionContract):
    averages = False
    off = {}  # noqa: RUF012


@pytest.mark.parametrize("name", SWITCHING)
class TestSwitching(OptionContract):
    changes_training = True
