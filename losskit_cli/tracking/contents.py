"""What a run is described by: flat parameters, the chosen options as tags, a hash of the config."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

OPTION_GROUPS = (
    "experiment", "data", "task", "model", "loss", "regularizer", "transform", "reweighting",
    "schedule", "optimizer", "averaging", "metrics", "callbacks", "trainer",
)  # fmt: skip
NOT_IN_HASH = ("seed", "name", "tags", "task_name", "tracking", "output_dir", "ckpt_path", "allow_targets", "hydra")
PREFIX = "losskit."


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """``{"loss": {"gamma": 3}}`` -> ``{"loss.gamma": "3"}``. Empty containers are kept; lists of plain values are one value, others are numbered."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        elif isinstance(value, Sequence) and not isinstance(value, str) and any(isinstance(v, Mapping | list | tuple) for v in value):
            flat |= flatten({str(i): v for i, v in enumerate(value)}, f"{name}.")
        elif isinstance(value, str):
            flat[name] = value
        else:
            flat[name] = json.dumps(dict(value) if isinstance(value, Mapping) else value, default=str)
    return flat


def config_hash(config: Mapping[str, Any], leave_out: Iterable[str] = NOT_IN_HASH) -> str:
    """Twelve hexadecimal digits that two runs share if they differ in nothing but seed, name and where they are kept."""
    left_out = set(leave_out)
    kept = {key: value for key, value in config.items() if key not in left_out}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:12]


def option_tags(choices: Mapping[str, Any]) -> dict[str, str]:
    """``{"loss": "focal", "regularizer": ["l1", "l2"]}`` -> ``{"losskit.loss": "focal", "losskit.regularizer": "l1,l2"}``; empty choices are left out."""
    tags: dict[str, str] = {}
    for group, choice in choices.items():
        text = ",".join(str(c) for c in choice) if isinstance(choice, list | tuple) else str(choice)
        if choice is not None and text:
            tags[PREFIX + group.replace("@", ".")] = text
    return tags


def describe_run(
    config: Mapping[str, Any],
    *,
    name: str | None = None,
    choices: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    config_yaml: str | None = None,
    data_fingerprint: str | None = None,
    tags: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The metadata of :meth:`losskit_cli.tracking.journal.Journal.start`.

    Args:
        config: the resolved config as plain containers.
        name: the run's name.
        choices: group -> chosen option, or list of options.
        overrides: what was given on the command line.
        config_yaml: the composed config; kept as ``config.yaml``.
        data_fingerprint: of the data module.
        tags: further tags.
    """
    all_tags: dict[str, Any] = {
        **option_tags(choices or {}),
        f"{PREFIX}config_hash": config_hash(config),
        f"{PREFIX}seed": config.get("seed"),
        f"{PREFIX}task_name": config.get("task_name"),
        f"{PREFIX}optimized_metric": config.get("optimized_metric"),
        f"{PREFIX}optimized_direction": config.get("optimized_direction"),
        f"{PREFIX}data_fingerprint": data_fingerprint,
        **{f"{PREFIX}label.{label}": "true" for label in config.get("tags") or []},
        **(tags or {}),
    }
    texts = {"overrides.txt": "".join(f"{o}\n" for o in overrides)}
    if config_yaml is not None:
        texts["config.yaml"] = config_yaml
    return {"name": name, "tags": {k: v for k, v in all_tags.items() if v is not None}, "params": flatten(config), "texts": texts}


__all__ = ["OPTION_GROUPS", "PREFIX", "config_hash", "describe_run", "flatten", "option_tags"]
