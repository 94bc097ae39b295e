from __future__ import annotations

from losskit_cli.merging import differences, flat, three_way


def test_a_value_that_was_saved_is_kept_when_only_the_tree_changed() -> None:
    assert three_way({"lr": 1}, {"lr": 2}, {"lr": 2}) == {"lr": 1}


def test_a_change_wins_over_what_was_saved() -> None:
    assert three_way({"a": {"lr": 1, "m": 0.9}}, {"a": {"lr": 2, "m": 0.9}}, {"a": {"lr": 5, "m": 0.9}}) == {"a": {"lr": 5, "m": 0.9}}


def test_another_component_replaces_the_whole_node() -> None:
    saved = {"loss": {"_target_": "A", "gamma": 3}}
    assert three_way(saved, {"loss": {"_target_": "A", "gamma": 2}}, {"loss": {"_target_": "B", "epsilon": 1}}) == {"loss": {"_target_": "B", "epsilon": 1}}


def test_what_a_change_deletes_is_gone_and_what_it_adds_is_there() -> None:
    assert three_way({"a": 1, "b": 2}, {"a": 1, "b": 2}, {"a": 1, "c": 3}) == {"a": 1, "c": 3}


def test_what_only_the_saved_config_has_stays() -> None:
    assert three_way({"a": 1, "old": 2}, {"a": 1}, {"a": 5}) == {"a": 5, "old": 2}


def test_flat_and_differences() -> None:
    assert flat({"a": {"b": [1, 2], "c": {}}}) == {"a.b": [1, 2], "a.c": {}}
    assert differences({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3, "d": None}}) == {"b.c": (2, 3), "b.d": (None, None)}
