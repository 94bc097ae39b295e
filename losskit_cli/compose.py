"""From overrides to one composed config, by Hydra, with errors that name the nearest right thing and a record of where each value came from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository, IConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.default_element import GroupDefault, ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from components.validation import did_you_mean
from losskit_cli.catalogue import LIST_GROUPS, Catalogue, there_is
from losskit_cli.claims import ARM, Claim
from losskit_cli.errors import UsageError
from losskit_cli.paths import plugin_config_dirs, shipped_config_dir

HYDRA_HINTS = {"hydra.run.dir": " (output_dir=… says where)", "hydra.sweep.dir": " (output_dir=… says where)", "hydra.mode": " (-m runs all combinations)"}
PRESET_GROUPS = ("experiment", "debug", "local")
SINGLE_GROUPS = (
    "data", "model", "task", "loss", "optimizer", "schedule", "averaging", "reweighting", "trainer", "tracking", "sweep", "sweep/sampler", "sweep/pruner",
)  # fmt: skip
TEMPLATE_NAMES = {
    "logger": "tracking",
    "hparams_search": "sweep",
    "paths": "output_dir",
    "extras": "trainer",
    "module": "model",
    "datamodule": "data",
    "criterion": "loss",
}
TEMPLATE_KEYS = {
    "paths": "output_dir",
    "extras": "tags, --cfg job and -q",
    "logger": "tracking.…",
    "model.optimizer": "optimizer.…",
    "model.scheduler": "schedule.…",
    "model.net": "model.…",
    "model.compile": "trainer.compile",
    "data.data_dir": "data.path",
    "trainer.gpus": "trainer.devices and trainer.accelerator=gpu",
    "trainer=cpu": "trainer.accelerator=cpu",
    "trainer=gpu": "trainer.accelerator=gpu",
    "trainer=mps": "trainer.accelerator=mps",
    "trainer=ddp": "trainer.strategy=ddp trainer.devices=…",
    "callbacks=default": "callbacks=[checkpoints]",
    "callbacks=none": "callbacks=[]",
}
"""What the popular template calls by these names, in losskit's words."""


@dataclass
class Composed:
    """A composed experiment.

    Attributes:
        config: the whole config, interpolations unresolved.
        overrides: as given, plus the ``+`` that was put before parameters which an option file does not list.
        origins: dotted key -> the file or override that its value came from.
        choices: group -> chosen option (or list of options).
        config_dirs: the user's own config directories.
    """

    config: DictConfig
    overrides: list[str]
    origins: dict[str, str]
    choices: dict[str, Any]
    config_dirs: list[Path] = field(default_factory=list)

    def resolved(self) -> dict[str, Any]:
        """The config as plain containers, interpolations resolved."""
        try:
            container = OmegaConf.to_container(self.config, resolve=True)
        except OmegaConfBaseException as error:
            where = error.full_key or "the config"
            raise UsageError(f"{where} does not resolve: {error.msg or error}".splitlines()[0]) from error
        assert isinstance(container, dict)
        return {str(k): v for k, v in container.items()}


class Composer:
    """Composes experiments from the shipped config tree, installed plug-ins' trees and the user's directories.

    Args:
        config_dirs: the user's own directories; what they hold shadows what is shipped.
        config_name: the primary config.
    """

    def __init__(self, config_dirs: Iterable[Path | str] = (), config_name: str = "train") -> None:
        self.config_dirs = [Path(d).absolute() for d in config_dirs]
        for directory in self.config_dirs:
            if not directory.is_dir():
                raise UsageError(f"--config-dir {directory}: there is no such directory")
        self.config_name = config_name
        Plugins.instance()
        path = ConfigSearchPathImpl()
        path.append("hydra", "pkg://hydra.conf")
        for directory in self.config_dirs:
            path.append("user", f"file://{directory}")
        path.append("main", f"file://{shipped_config_dir()}")
        for directory in plugin_config_dirs():
            path.append("plugin", f"file://{directory}")
        path.append("schema", "structured://")
        self.catalogue = Catalogue([*self.config_dirs, shipped_config_dir(), *plugin_config_dirs()])
        self._search_path = path

    def compose(self, overrides: Sequence[str] = ()) -> Composed:
        """Compose ``overrides``.

        Raises:
            UsageError: an override that does not parse; an unknown group, option or key (with the nearest); a missing file.
        """
        chosen = [text for text in overrides if _key_of(text) == ARM]
        others = [text for text in overrides if _key_of(text) != ARM]
        claim = self._claim_of(others)
        if claim is None:
            if chosen:
                raise UsageError(f"{chosen[-1]} is one side of a claim, and this experiment makes none (those that do: losskit reproduce --list)")
            return self._composed(others)
        arm = claim.arm(self._parse(chosen)[-1].value() if chosen else None)
        own = not_overridden(claim.arms[arm], others)
        composed = self._composed([*own, *others])
        with open_dict(composed.config):
            composed.config[ARM] = arm
        rest = iter(composed.overrides[len(own) :])
        composed.overrides = [text if text in chosen else next(rest) for text in overrides]
        source = f"experiment/{claim.name}.yaml, {ARM}={arm}"
        composed.origins = {key: source if text.removeprefix("override ") in own else text for key, text in composed.origins.items()} | {ARM: source}
        return composed

    def _claim_of(self, overrides: Sequence[str]) -> Claim | None:
        """The claim of the chosen experiment, from its file alone: what an arm sets need not be there without it."""
        given = self._parse([text for text in overrides if _key_of(text) == "experiment" and not text.startswith("~")])
        names = given[-1].value() if given else None
        for name in reversed(names) if isinstance(names, list) else [names]:
            if name in self.catalogue.option_names("experiment"):
                node = self.catalogue.option("experiment", str(name)).body.get("claim")
                if node is not None:
                    return Claim.read(str(name), node)
        return None

    def _composed(self, overrides: Sequence[str]) -> Composed:
        """:meth:`compose` without the arm of a claim."""
        given = list(overrides)
        parsed = self._parse(given)
        self._check_groups(parsed)
        for _ in range(len(given) + 1):  # each pass may turn one "key not listed in its option file" into an addition
            try:
                return self._compose(given)
            except MissingConfigException as error:
                raise UsageError(self._missing_config(error)) from error
            except ConfigCompositionException as error:
                key = _key_that_is_not_there(error)
                if key is None:
                    raise UsageError(_first_lines(error)) from error
                if key not in map(_key_of, given):
                    raise UsageError(self._wrong_default(error, key)) from error
                given = self._with_key_added(given, key)
            except (HydraException, OmegaConfBaseException) as error:
                raise UsageError(_first_lines(error)) from error
            except YAMLError as error:
                raise UsageError(_where_in_yaml(error)) from error
        raise UsageError(f"these overrides cannot be composed: {' '.join(given)}")

    def expand(self, overrides: Sequence[str]) -> list[list[str]]:
        """The jobs of a multirun: the product of every override's choices, in Hydra's sweep grammar (``a=1,2``, ``range(3)``, ``choice(…)``, ``glob(…)``)."""
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        loader = _RecordingLoader(self._search_path, {})
        try:
            parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
            jobs = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
        except (HydraException, OmegaConfBaseException) as error:
            raise UsageError(_first_lines(error)) from error
        return [list(job) for job in jobs]

    # -- steps ----------------------------------------------------------------------------------------------------------
    def _compose(self, overrides: list[str]) -> Composed:
        parsed = self._parse(overrides)
        loader = _RecordingLoader(self._search_path, _chosen_groups(parsed, self.catalogue.groups()))
        config = loader.load_configuration(self.config_name, overrides, RunMode.RUN, from_shell=False)
        choices = {k: v for k, v in OmegaConf.to_container(config.hydra.runtime.choices).items() if not str(k).startswith("hydra/")}  # type: ignore[union-attr]
        choices |= {group: [str(name) for name in names] for group, names in loader.group_lists(config).items()}
        with open_dict(config):
            del config["hydra"]
        origins = loader.origins
        for override in parsed:
            if not override.is_hydra_override() and not self.catalogue.is_group(override.key_or_group):
                note_override(origins, override)
        return Composed(config, overrides, origins, {str(k): v for k, v in choices.items()}, self.config_dirs)

    @staticmethod
    def _parse(overrides: list[str]) -> list[Override]:
        for text in overrides:
            if text.startswith("=") or ("=" not in text and not text.startswith("~")):
                raise UsageError(f"{text!r} is not an override: write key=value (or ~key to delete, +key=value to add)")
        try:
            return OverridesParser.create().parse_overrides(overrides)
        except OverrideParseException as error:
            raise UsageError(f"cannot read the override {error.override!r}: {_why_unreadable(str(error.override))}") from error

    def _check_groups(self, parsed: list[Override]) -> None:
        groups = self.catalogue.groups()
        for override in parsed:
            key, value = override.key_or_group, override.value()
            if override.is_hydra_override() and key != "hydra.searchpath":
                raise UsageError(f"{override.input_line} has no effect: losskit takes Hydra's composition, but starts runs itself{HYDRA_HINTS.get(key, '')}")
            if key in TEMPLATE_NAMES and key not in groups:
                ours = TEMPLATE_NAMES[key]
                raise UsageError(f"losskit has no {key!r}: it calls that {ours!r}" + (f" (losskit list {ours})" if ours in groups else ""))
            if key not in groups or override.is_delete() or override.is_sweep_override():
                continue
            names = self.catalogue.option_names(key)
            if isinstance(value, list) and key in SINGLE_GROUPS:
                raise UsageError(f"{key} takes one option, but got {override.input_line}: {key}={value[0] if value else 'NAME'}, or with -m one run each: a,b")
            if value is None:
                instead = f"{key}=[]" if key in LIST_GROUPS else f"{key}=none" if "none" in names else f"~{key}" if key in (*PRESET_GROUPS, "sweep") else ""
                raise UsageError(f"there is no {key}=null" + (f": to have none write {instead}" if instead else f" ({there_is(key, names)})"))
            for name in value if isinstance(value, list) else [value]:
                if f"{key}={name}" in TEMPLATE_KEYS and name not in names:
                    raise UsageError(f"there is no {key}={name}: losskit says {TEMPLATE_KEYS[f'{key}={name}']}")
                if isinstance(name, dict) or str(name) not in names:
                    raise UsageError(f"there is no {key}={_shown(name)}{did_you_mean(str(name), names)} ({there_is(key, names)})")

    def _with_key_added(self, overrides: list[str], key: str) -> list[str]:
        """Put ``+`` before the override of ``key`` if the component that it configures has such a parameter; else say what is near."""
        at = next(i for i, text in enumerate(overrides) if _key_of(text) == key)
        rest = self._composed_without(overrides, key)
        parent_key, _, name = key.rpartition(".")
        parent = OmegaConf.select(rest, parent_key) if parent_key else rest
        known = [str(k) for k in parent] if isinstance(parent, DictConfig) else []
        target = parent.get("_target_") if isinstance(parent, DictConfig) else None
        parameters = self.catalogue.parameter_names(str(target)) if target else []
        for theirs, ours in TEMPLATE_KEYS.items():
            if name not in parameters and f"{key}.".startswith(f"{theirs}."):
                raise UsageError(f"there is no {key!r}: losskit says {ours}")
        if name in parameters:
            return [*overrides[:at], f"+{overrides[at]}", *overrides[at + 1 :]]
        if isinstance(parent, DictConfig):
            names = sorted({*known, *parameters} - {"_target_"})
            where = f"{parent_key} has" if parent_key else "the config has"
            raise UsageError(f"there is no {key!r}{did_you_mean(name, names)} ({where}: {', '.join(names) or 'nothing'}; +{overrides[at]} would add it)")
        while parent_key and OmegaConf.select(rest, parent_key) is None:
            parent_key, _, name = parent_key.rpartition(".")
        names = [str(k) for k in (OmegaConf.select(rest, parent_key) if parent_key else rest)]
        raise UsageError(f"there is no {key!r}{did_you_mean(name, names)} ({parent_key or 'the config'} has: {', '.join(sorted(names))})")

    def _composed_without(self, overrides: list[str], key: str) -> DictConfig:
        """The config without the override of ``key``, nor those of other keys that are not there."""
        rest = [text for text in overrides if _key_of(text) != key and not _key_of(text).startswith(f"{key}.")]
        try:
            return self._compose(rest).config
        except ConfigCompositionException as error:
            other = _key_that_is_not_there(error)
            if other is None or other not in map(_key_of, rest):
                raise UsageError(self._wrong_default(error, other or key)) from error
            return self._composed_without(rest, other)

    def _wrong_default(self, error: ConfigCompositionException, group: str) -> str:
        """An option file that says ``override /group: …`` where it cannot."""
        found = re.search(r"In '([^']+)'", str(error))
        file = f"{found.group(1)}.yaml" if found else "an option file"
        if not self.catalogue.is_group(group):
            return f"{file} overrides {group!r}, which is no group{did_you_mean(group, self.catalogue.groups())}"
        return f"{file} overrides {group!r}, which only options of groups further down in the primary config can: task, data, experiment, debug"

    def _missing_config(self, error: MissingConfigException) -> str:
        missing = str(error.missing_cfg_file or "")
        group, _, name = missing.rpartition("/")
        if group and self.catalogue.is_group(group):
            names = self.catalogue.option_names(group)
            return f"there is no {group}={name}{did_you_mean(name, names)} ({there_is(group, names)})"
        if not group:
            return f"there is no config {missing!r} in {', '.join(map(str, [*self.config_dirs, shipped_config_dir()]))}"
        return _first_lines(error)


class _Repository(ConfigRepository):
    """Hydra's repository, in which ``override /task: x`` means the group ``task`` wherever it stands.

    Hydra itself takes it for ``task`` inside the package of the file that says so, which an option file of another group never means.
    """

    def load_config(self, config_path: str) -> ConfigResult | None:
        result = super().load_config(config_path)
        for default in (result.defaults_list if result else None) or []:
            if isinstance(default, GroupDefault) and default.override and default.group and default.group.startswith("/") and default.package is None:
                default.package = f"_global_.{default.group[1:].replace('/', '.')}"
        return result


class _RecordingLoader(ConfigLoaderImpl):
    """Hydra's loader, which also notes where each value came from and keeps presets from leaking.

    A preset (``experiment=big``) may set values of the options that it chooses. When the command line chooses another option
    of such a group, those values were meant for something else, so they are left out.
    """

    def __init__(self, search_path: ConfigSearchPathImpl, chosen: Mapping[str, Any]) -> None:
        super().__init__(search_path)
        self.repository = _Repository(search_path)
        self.chosen = chosen
        self.origins: dict[str, str] = {}
        self._lists: dict[str, list[str]] = {}

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        result = super()._load_single_config(default, repo)
        path = default.config_path or ""
        if path.startswith("hydra/"):
            return result
        group, _, name = path.rpartition("/")
        if isinstance(result.config, DictConfig):
            if group in PRESET_GROUPS:
                loaded = repo.load_config(path)
                named = {str(d.group).lstrip("/"): d.value for d in (loaded.defaults_list or []) if isinstance(d, GroupDefault)} if loaded else {}
                result = _without_values_for_other_options(result, self.chosen, named)
            for key in _leaf_keys(result.config):
                _note_origin(self.origins, key, f"{path}.yaml")
        if group:
            self._lists.setdefault(group, []).append(name)
        return result

    def group_lists(self, config: DictConfig) -> dict[str, list[str]]:
        """Groups chosen as lists, which ``hydra.runtime.choices`` leaves out."""
        known = set(config.hydra.runtime.choices)
        return {group: names for group, names in self._lists.items() if group not in known and "@" not in group}


def of_one_run(config: Mapping[str, Any]) -> dict[str, Any]:
    """A composed config without what is no run's: how the experiment is searched, and what is claimed of it."""
    return {key: value for key, value in config.items() if key not in ("sweep", "claim")}


def not_overridden(arm: Sequence[str], given: Sequence[str]) -> list[str]:
    """What is left of an arm's overrides beside the user's: not those of the same key, nor those below what the user chooses or sets otherwise."""
    keys = {text.partition("=")[0].lstrip("+~") for text in given}
    return [text for text in arm if not any(f"{text.partition('=')[0].lstrip('+~')}.".startswith(f"{key}.") for key in keys)]


def _chosen_groups(parsed: list[Override], groups: Iterable[str]) -> dict[str, Any]:
    names = set(groups)
    return {o.key_or_group: o.value() for o in parsed if o.key_or_group in names and o.package is None and not o.is_delete()}


def _without_values_for_other_options(result: ConfigResult, chosen: Mapping[str, Any], named: Mapping[str, Any]) -> ConfigResult:
    config = result.config
    for group, choice in chosen.items():
        if group not in config or choice == named.get(group):
            continue
        with open_dict(config):
            if isinstance(choice, list):
                for name in [n for n in config[group] if n not in choice]:
                    del config[group][name]
            else:
                del config[group]
    return result


def _note_origin(origins: dict[str, str], key: str, source: str) -> None:
    """Where the value at ``key`` came from; what was an empty mapping until now (``callbacks: {}`` of train.yaml) came from nowhere else."""
    for parent in accumulate(key.split("."), "{}.{}".format):
        origins.pop(parent, None)
    origins[key] = source


def note_override(origins: dict[str, str], override: Override) -> None:
    """An override's value came from it, and nothing below its key from anywhere else."""
    for key in [k for k in origins if k.startswith(f"{override.key_or_group}.")]:
        del origins[key]
    _note_origin(origins, override.key_or_group, f"override {override.input_line}")


def _leaf_keys(node: Any, prefix: str = "") -> Iterable[str]:
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing() and len(node):
        for key in node:
            if not prefix and key in ("hydra", "defaults"):
                continue
            yield from _leaf_keys(node._get_node(key), f"{prefix}.{key!s}" if prefix else str(key))
    elif prefix:
        yield prefix


def _key_of(override: str) -> str:
    return override.split("=", 1)[0].lstrip("+~").split("@")[0]


def _key_that_is_not_there(error: BaseException) -> str | None:
    match = re.search(r"Could not override '([^']+)'", str(error))
    return match.group(1) if match else None


def _first_lines(error: BaseException) -> str:
    """Hydra's and OmegaConf's messages without the trailing search path, full_key and object_type lines."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = []
    for line in lines:
        if line.startswith(("Search path", "full_key", "object_type", "reference_type", "Config search path", "See https://hydra.cc")):
            break
        if line:
            kept.append(line)
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and cause.msg and "Error merging override" in " ".join(kept):
        kept.append(str(cause.msg).splitlines()[0])
    return " ".join(kept) or type(error).__name__


def _why_unreadable(override: str) -> str:
    """What is wrong with an override that Hydra's grammar does not take."""
    key, _, value = override.partition("=")
    if any(value.count(opening) != value.count(closing) for opening, closing in ("[]", "{}", "()")):
        return "a bracket is not closed"
    if value.count("'") % 2 or value.count('"') % 2:
        return "a quote is not closed"
    return f"a value with special characters goes into quotes, and those into the shell's: '{key}=\"{value}\"'"


def _where_in_yaml(error: YAMLError) -> str:
    """``conf/loss/mine.yaml:3: did not find expected ',' or ']'``."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None:
        return " ".join(str(error).split())
    path = Path(mark.name)
    return f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}:{mark.line + 1}: {problem or error}"


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def to_yaml(config: DictConfig | ListConfig | Mapping[str, Any], *, resolve: bool = False) -> str:
    return OmegaConf.to_yaml(config if isinstance(config, DictConfig | ListConfig) else OmegaConf.create(dict(config)), resolve=resolve)


__all__ = ["Composed", "Composer", "not_overridden", "of_one_run", "to_yaml"]
