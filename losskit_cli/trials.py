"""Composing a sweep's trials in milliseconds: the groups once per combination of options, a trial's values on a copy."""

from __future__ import annotations

import copy
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import NamedTuple

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from components.validation import did_you_mean
from losskit_cli.claims import ARM
from losskit_cli.compose import Composed, Composer, note_override
from losskit_cli.errors import UsageError
from losskit_cli.merging import flat

COMBINATIONS_KEPT = 256
TEXTS_KEPT = 4096
NUMBER = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)=([+-]?(?:0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?)", re.ASCII)


class _Kept(NamedTuple):
    """The fixed overrides under one combination of options; pickled as well, as that is the fastest way to copy a config (0.7 ms, deepcopy 4)."""

    composed: Composed
    pickled: bytes


class TrialComposer:
    """Composes ``[*fixed_overrides, *a trial's]``, with the result and the errors of :meth:`Composer.compose`.

    Hydra's composition is two steps: the defaults list picks and merges option files, which takes 50 ms, then value overrides
    are applied one after the other, which takes a fraction of one. The first depends on the group choices alone, so its outcome (with
    the fixed overrides applied) is kept for each combination of them. Whatever goes wrong on the short way, and whatever does
    not fit it (deletions, sweeps), goes the long way and gets its result or its error there.

    It is also what a search space asks about the configuration (:class:`sweeps.space.Resolver`).

    Args:
        composer: composes in full.
        fixed_overrides: those of every trial; a trial's own come after them.
        config_name: the primary config, if it is another than the composer's.
    """

    def __init__(self, composer: Composer, fixed_overrides: Sequence[str] = (), config_name: str | None = None) -> None:
        other = config_name is not None and config_name != composer.config_name
        self.composer = Composer(composer.config_dirs, str(config_name)) if other else composer
        self.fixed = list(fixed_overrides)
        self._groups = frozenset(self.composer.catalogue.groups())
        self._kept: OrderedDict[tuple[str, ...], _Kept] = OrderedDict()  # by the group overrides
        self._parsed: dict[str, Override] = {}
        self._added: set[tuple[tuple[str, ...], str]] = set()  # (group overrides, key): an option file does not list it, its component takes it
        self._has: dict[tuple[str, tuple[str, ...]], bool] = {}

    def compose(self, overrides: Sequence[str] = ()) -> Composed:
        """A trial's config.

        Raises:
            UsageError: as :meth:`Composer.compose`.
        """
        given = list(overrides)
        composed = self._quickly(given)
        if composed is None:
            composed = self.composer.compose([*self.fixed, *given])
            self._learn(given, composed)
        return composed

    @property
    def config_loader(self) -> ConfigLoader:
        """Hydra's loader over the same config trees: it knows the options that ``glob()`` goes over."""
        return ConfigLoaderImpl(self.composer._search_path)

    # -- sweeps.space.Resolver -----------------------------------------------------------------------------------------------
    def is_group(self, key: str) -> bool:
        """Whether ``key`` names a config group."""
        return key in self._groups

    def has(self, key: str, chosen: Mapping[str, str]) -> bool:
        """Whether ``key`` can be set without ``+`` when these options are chosen: it is in the config, or its component takes it.

        Raises:
            UsageError: the options do not compose.
        """
        groups = tuple(f"{group}={option}" for group, option in chosen.items())
        if (key, groups) not in self._has:
            config = self._base(groups).composed.config
            self._has[key, groups] = self.is_group(key.partition("@")[0]) or self._can_be_set(key, config)
        return self._has[key, groups]

    def nearest(self, key: str) -> str:
        """The nearest key of all configs composed so far (every option of the space's groups, once the space was checked)."""
        known: dict[str, None] = {}
        for kept in list(self._kept.values()) or [self._base(())]:
            known |= dict.fromkeys(self._keys(kept.composed.config))
        parent, dot, name = key.rpartition(".")
        siblings = sorted({k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == parent} - {"_target_"})
        if not dot or not siblings:
            return did_you_mean(key, known)
        near = get_close_matches(name, siblings, n=1)
        return f"; did you mean '{parent}.{near[0]}'?" if near else f" ({parent} has: {', '.join(siblings)})"

    def _can_be_set(self, key: str, config: DictConfig) -> bool:
        parent_key, _, name = key.rpartition(".")
        try:
            parent = OmegaConf.select(config, parent_key) if parent_key else config
        except OmegaConfBaseException:
            return False
        if isinstance(parent, ListConfig):
            return name.isdigit() and int(name) < len(parent)
        if not isinstance(parent, DictConfig):
            return False
        target = parent.get("_target_")
        return name in parent.keys() or (target is not None and name in self.composer.catalogue.parameter_names(str(target)))  # noqa: SIM118  keys() has the missing ones too

    def _keys(self, config: DictConfig) -> Iterable[str]:
        """Dotted keys of values, of the mappings that hold them, and of what components take beside them."""
        values = flat(OmegaConf.to_container(config, resolve=False))  # type: ignore[arg-type]
        for key, value in values.items():
            parts = key.split(".")
            yield from (".".join(parts[:i]) for i in range(1, len(parts) + 1))
            if parts[-1] == "_target_":
                yield from (".".join([*parts[:-1], name]) for name in self.composer.catalogue.parameter_names(str(value)))

    # -- steps -----------------------------------------------------------------------------------------------------------------
    def _quickly(self, given: list[str]) -> Composed | None:
        """The result, if the short way leads there; ``None``: take the long one."""
        try:
            parsed = [self._parse(text) for text in given]
        except UsageError:
            return None
        if any(o.is_delete() or o.is_sweep_override() or o.is_hydra_override() for o in parsed):
            return None
        groups = tuple(text for text, o in zip(given, parsed, strict=True) if self._is_choice(o))
        try:
            base = self._base(groups)
            self.composer._check_groups([o for o in parsed if not self._is_choice(o)])
        except UsageError:
            return None
        config, origins = pickle.loads(base.pickled), dict(base.composed.origins)
        texts = base.composed.overrides[: len(self.fixed)]
        own_targets = any("_target_" in text for text in given)  # then a kept "its component takes it" may be another component's
        for text, override in zip(given, parsed, strict=True):
            if self._is_choice(override):
                texts.append(text)
                continue
            try:
                ConfigLoaderImpl._apply_overrides_to_config([override], config)
            except ConfigCompositionException:
                if own_targets or (groups, override.key_or_group) not in self._added:
                    return None
                text = f"+{text}"
                override = self._parse(text)
                try:
                    ConfigLoaderImpl._apply_overrides_to_config([override], config)
                except (HydraException, OmegaConfBaseException):
                    return None
            except (HydraException, OmegaConfBaseException):
                return None
            texts.append(text)
            note_override(origins, override)
        return replace(base.composed, config=config, overrides=texts, origins=origins, choices=copy.deepcopy(base.composed.choices))

    def _base(self, groups: tuple[str, ...]) -> _Kept:
        """The fixed overrides under these group choices; not to be changed by whoever gets it."""
        if groups in self._kept:
            self._kept.move_to_end(groups)
        else:
            composed = self.composer.compose([*self.fixed, *groups])
            self._kept[groups] = _Kept(composed, pickle.dumps(composed.config, pickle.HIGHEST_PROTOCOL))
            if len(self._kept) > COMBINATIONS_KEPT:
                self._kept.popitem(last=False)
        return self._kept[groups]

    def _learn(self, given: list[str], composed: Composed) -> None:
        """Note which keys needed a ``+``, so that the next trial of the same options goes the short way."""
        try:
            parsed = [self._parse(text) for text in given]
        except UsageError:
            return
        if any("_target_" in text for text in given):
            return
        groups = tuple(text for text, o in zip(given, parsed, strict=True) if self._is_choice(o))
        for text, override, taken in zip(given, parsed, composed.overrides[len(self.fixed) :], strict=True):
            if taken == f"+{text}":
                self._added.add((groups, override.key_or_group))

    def _is_choice(self, override: Override) -> bool:
        """Whether an override chooses options, anywhere in the config: it belongs to the first step."""
        return override.package is not None or override.key_or_group in self._groups or override.key_or_group == ARM

    def _parse(self, text: str) -> Override:
        """Hydra's parser takes a third of a millisecond an override: numbers are read here, and other texts only once, as choices come again."""
        number = NUMBER.fullmatch(text)
        if number is not None:
            key, digits, fraction, exponent = number.groups()
            value = float(digits) if fraction or exponent else int(digits)
            return Override(OverrideType.CHANGE, key, ValueType.ELEMENT, value, input_line=text)
        if text not in self._parsed:
            if len(self._parsed) >= TEXTS_KEPT:
                self._parsed.clear()
            self._parsed[text] = self.composer._parse([text])[0]
        return self._parsed[text]


__all__ = ["TrialComposer"]
