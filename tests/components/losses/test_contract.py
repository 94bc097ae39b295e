"""Every option of conf/loss goes through the contract kit: adding an option file is enough to be tried."""

import inspect
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch import nn

from components import losses
from components.quantities import QUANTITIES
from components.testing import LossContract, example_facts, example_quantities

CONF = Path(__file__).parents[3] / "conf" / "loss"
OPTIONS = sorted(path.stem for path in CONF.glob("*.yaml"))


def build(option: str) -> nn.Module:
    config = OmegaConf.load(CONF / f"{option}.yaml")
    facts = {name: value for name, value in example_facts().items() if name in inspect.signature(get_class(config._target_)).parameters and name not in config}
    return instantiate(config, **facts, _convert_="all")


class TestOptions(LossContract):
    @pytest.fixture(params=OPTIONS)
    def loss(self, request: pytest.FixtureRequest) -> nn.Module:
        return build(request.param)


class TestOptionsWithOtherSettings(LossContract):
    """The same trials where settings switch other code on."""

    SETTINGS: ClassVar[dict[str, dict[str, Any]]] = {
        "cross_entropy": {"label_smoothing": 0.1},
        "bce": {"label_smoothing": 0.1, "pos_weight": [1.0, 2.0, 0.5, 3.0, 1.0]},
        "focal": {"gamma": 0.5},
        "poly1": {"epsilon": -1.0, "label_smoothing": 0.2},
        "gaussian_nll": {"full": True},
        "quantile": {"levels": [0.25]},
        "dice": {"square": True, "smooth": 0.1},
        "triplet": {"distance": "euclidean", "normalize": False, "margin": 1.0},
        "next_token": {"z_loss": 0.01},
        "linear_cross_entropy": {"chunk_size": 3},
    }

    @pytest.fixture(params=sorted(SETTINGS))
    def loss(self, request: pytest.FixtureRequest) -> nn.Module:
        loss = instantiate(OmegaConf.load(CONF / f"{request.param}.yaml"), **self.SETTINGS[request.param], _convert_="all")
        if request.param == "cross_entropy":
            loss.exempt = {"class_weight": "with label smoothing torch's class weights also act inside the smoothed sum, and this loss equals torch's"}
        return loss


NAMED_CASES: dict[str, dict[str, Any]] = {}
"""Options that are a class with other values than its defaults: the name that the field has for that case."""


@pytest.mark.parametrize("option", OPTIONS)
def test_option_file_shows_its_source_and_every_parameter(option: str) -> None:
    text = (CONF / f"{option}.yaml").read_text()
    first = text.splitlines()[0]
    assert first.startswith("# ") and "(" in first, "the first line is a comment: what it is (source)"
    config = OmegaConf.create(text)
    parameters = inspect.signature(get_class(config._target_)).parameters
    shown = {name: value for name, value in OmegaConf.to_container(config).items() if name != "_target_"}
    assert set(shown) == set(parameters) - set(example_facts())
    defaults = {name: list(p.default) if isinstance(p.default, tuple) else p.default for name, p in parameters.items()}
    assert shown == {**defaults, **NAMED_CASES.get(option, {})}


def test_every_loss_has_an_option() -> None:
    classes = {c for c in vars(losses).values() if inspect.isclass(c) and issubclass(c, losses.Loss)} - {losses.Loss}
    assert classes == {get_class(OmegaConf.load(CONF / f"{option}.yaml")._target_) for option in OPTIONS}


def test_every_quantity_of_the_vocabulary_has_an_example() -> None:
    made = example_quantities(QUANTITIES, batch=4)
    assert set(made) == set(QUANTITIES)
    with pytest.raises(ValueError, match="logit"):
        example_quantities(["logit"])
