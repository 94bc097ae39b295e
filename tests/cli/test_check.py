"""What a config may name, and how parameters are checked before anything is built."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch

from losskit_cli.check import Targets, checked_arguments, missing_values, parameters_of, target_nodes
from losskit_cli.errors import UsageError


class Base:
    def __init__(self, size: int, rate: float = 0.1) -> None: ...


class Component(Base):
    def __init__(self, mode: Literal["a", "b"] = "a", names: list[str] | None = None, weight: torch.Tensor | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class TestTargets:
    @pytest.mark.parametrize(
        "target", ["torch.optim.SGD", "torch.nn.CrossEntropyLoss", "components.losses.CrossEntropyLoss", "torchmetrics.classification.MulticlassAccuracy"]
    )
    def test_ours_and_the_trusted_packages_classes_are_allowed(self, target: str) -> None:
        assert Targets().resolve(target, "x") is not None

    @pytest.mark.parametrize(
        "target",
        ["os.system", "subprocess.Popen", "builtins.eval", "torch.load", "torch.hub.load", "torch.os.system", "torch.utils.collect_env.subprocess.Popen",
         "components.callbacks.checkpoints.os.system", "losskit_cli.ranks.subprocess.Popen"],
    )  # fmt: skip
    def test_everything_else_is_refused(self, target: str) -> None:
        with pytest.raises(UsageError, match="refused"):
            Targets().resolve(target, "loss")

    def test_the_user_may_allow_a_package_by_name(self) -> None:
        with pytest.raises(UsageError, match=r"allow_targets=\[json\]"):
            Targets().resolve("json.JSONEncoder", "loss")
        assert Targets(["json"]).resolve("json.JSONEncoder", "loss").__name__ == "JSONEncoder"

    def test_a_name_that_is_not_there(self) -> None:
        with pytest.raises(UsageError, match="did you mean 'FocalLoss'"):
            Targets().resolve("components.losses.FocalLos", "loss")

    def test_a_module_that_is_not_there(self) -> None:
        with pytest.raises(UsageError, match="no module 'my_package'"):
            Targets(["my_package"]).resolve("my_package.MyLoss", "loss")

    def test_nested_nodes_are_found(self) -> None:
        config = {"a": {"_target_": "X", "b": [{"_target_": "Y"}]}}
        assert [key for key, _ in target_nodes(config)] == ["a", "a.b[0]"]


class TestArguments:
    def test_parameters_of_base_classes_count(self) -> None:
        parameters, open_ended = parameters_of(Component)
        assert {"mode", "names", "weight", "size", "rate"} == set(parameters)
        assert not open_ended

    def test_values_are_coerced_where_nothing_is_lost(self) -> None:
        assert checked_arguments("c", Component, {"size": 1e3, "rate": 1}) == {"size": 1000, "rate": 1.0}

    @pytest.mark.parametrize(
        ("values", "says"),
        [
            ({"size": 3, "rat": 1}, "no parameter 'rat'; did you mean 'rate'"),
            ({"size": "many"}, "c.size='many'"),
            ({"size": 1.5}, "c.size=1.5"),
            ({"size": 3, "mode": "c"}, "'a' or 'b'"),
            ({"size": 3, "names": "ab"}, "c.names='ab'"),
        ],
    )
    def test_errors_name_the_key(self, values: dict[str, Any], says: str) -> None:
        with pytest.raises(UsageError) as caught:
            checked_arguments("c", Component, values)
        assert says in str(caught.value)

    def test_a_required_parameter(self) -> None:
        with pytest.raises(UsageError, match=r"c\.size is required"):
            checked_arguments("c", Base, {"rate": 1.0})

    def test_lists_for_tensors_are_left_to_the_component(self) -> None:
        assert checked_arguments("c", Component, {"size": 1, "weight": [1.0, 2.0]})["weight"] == [1.0, 2.0]

    def test_missing_values_are_listed(self) -> None:
        assert missing_values({"data": {"path": "???", "a": [1, "???"]}}) == ["data.path", "data.a[1]"]
