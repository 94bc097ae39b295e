"""The static index: options, and classes read from their source without importing anything."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from losskit_cli import paths
from losskit_cli.catalogue import Catalogue, as_text, split_source
from losskit_cli.errors import UsageError
from losskit_cli.signatures import arguments_of, signature_of

HEAVY = ("torch", "lightning", "mlflow", "optuna", "hydra", "omegaconf", "typer", "rich", "pydantic", "dataclasses")


@pytest.fixture
def shipped() -> Catalogue:
    return Catalogue.default()


def write(root: Path, path: str, text: str) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


class TestImports:
    @pytest.mark.parametrize("module", ["catalogue", "signatures", "listing", "completion", "plot", "doctor", "init_project", "mathtext", "paths"])
    def test_importing_loads_nothing_heavy(self, module: str) -> None:
        code = f"import sys, losskit_cli.{module}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
        loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        allowed = {"dataclasses"} if module in ("plot",) else set()
        assert set(loaded).isdisjoint(set(HEAVY) - allowed)

    def test_using_the_catalogue_loads_nothing_heavy(self) -> None:
        code = (
            "import sys; from losskit_cli.catalogue import Catalogue; c = Catalogue.default()\n"
            "[(o.description, o.source, o.target) for g in c.groups() for o in c.options(g)]; c.tasks_for(c.option('loss', 'focal'))\n"
            "c.option('loss', 'focal').needs(), c.option('loss', 'focal').parameters\n"
            "print(*sorted({m.split('.')[0] for m in sys.modules}))"
        )
        loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        assert set(loaded).isdisjoint(HEAVY)


class TestOptions:
    def test_every_shipped_option_says_what_it_is_and_where_it_is_from(self, shipped: Catalogue) -> None:
        for group in shipped.groups():
            for option in shipped.options(group):
                assert option.description, option.path
                if group in ("data", "model", "loss", "regularizer", "transform", "schedule", "optimizer"):
                    first = next(line for line in option.header if not line.startswith("@package"))
                    assert "(" in first, f"{option.path}: its description names no source in parentheses"

    def test_every_shipped_target_is_found_in_its_source(self, shipped: Catalogue) -> None:
        lost = [o.path.name for g in shipped.groups() for o in shipped.options(g) if o.target and o.info is None]
        assert lost == []

    def test_header(self, tmp_path: Path) -> None:
        write(tmp_path, "regularizer/mine.yaml", "# @package regularizer.mine\n# Pulls (hard) on weights (Me (and you), 2026)\n_target_: a.B\nstrength: 1\n")
        option = Catalogue([tmp_path]).option("regularizer", "mine")
        assert (option.description, option.source, option.package) == ("Pulls (hard) on weights", "Me (and you), 2026", "regularizer.mine")

    def test_package_of_presets_and_templates(self, tmp_path: Path) -> None:
        write(tmp_path, "experiment/x.yaml", "# What\n# @package _global_\nseed: 1\n")
        write(tmp_path, "loss/x.yaml", "# What\nseed: 1\n")
        catalogue = Catalogue([tmp_path])
        assert catalogue.option("experiment", "x").package == ""
        assert catalogue.option("loss", "x").package == "loss"

    def test_earlier_tree_shadows_later_one(self, tmp_path: Path, shipped: Catalogue) -> None:
        file = write(tmp_path, "loss/focal.yaml", "# Mine (me)\n_target_: a.B\n")
        write(tmp_path, "loss/extra.yaml", "# Another (me)\n_target_: a.B\n")
        catalogue = Catalogue.default([tmp_path])
        assert catalogue.option("loss", "focal").path == file
        assert set(catalogue.option_names("loss")) == {*shipped.option_names("loss"), "extra"}

    def test_unknown_names_get_the_nearest(self, shipped: Catalogue) -> None:
        with pytest.raises(UsageError, match="no loss=focall; did you mean 'focal'"):
            shipped.option("loss", "focall")
        with pytest.raises(UsageError, match="no group 'los'; did you mean 'loss'"):
            shipped.option("los", "focal")

    def test_broken_yaml_is_named_with_its_line(self, tmp_path: Path) -> None:
        file = write(tmp_path, "loss/bad.yaml", "# Bad (me)\n_target_: a.B\nx: [1, 2\ny: 3\n")
        with pytest.raises(UsageError, match=rf"{file.name}:4"):
            _ = Catalogue([tmp_path]).option("loss", "bad").body

    def test_numbers_are_read_as_omegaconf_reads_them(self, tmp_path: Path) -> None:
        write(tmp_path, "loss/n.yaml", "# N (me)\na: 3e-4\nb: 1e4\nc: 5\nd: 1-sqrt\ne: .5\nf: on\n")
        from omegaconf import OmegaConf

        option = Catalogue([tmp_path]).option("loss", "n")
        ours, theirs = option.body, OmegaConf.to_container(OmegaConf.load(option.path))
        assert isinstance(theirs, dict)
        assert {k: ours[k] for k in "abcde"} == {k: theirs[k] for k in "abcde"}

    def test_several_hundred_files_are_listed(self, tmp_path: Path) -> None:
        for i in range(500):
            write(tmp_path, f"loss/option_{i}.yaml", f"# Option number {i} (Somebody, 2026)\n_target_: torch.nn.MSELoss\nx: 1\n")
        rows = [(o.name, o.description, o.source) for o in Catalogue([tmp_path]).options("loss")]
        assert len(rows) == 500
        assert rows[0] == ("option_0", "Option number 0", "Somebody, 2026")

    def test_as_text_is_what_an_override_takes(self) -> None:
        from hydra.core.override_parser.overrides_parser import OverridesParser

        for value in (None, True, 3, 0.5, "cosine", [1, 2], ["a", "b"], {"a": 1, "b": [2]}):
            parsed = OverridesParser.create().parse_override(f"k={as_text(value)}").value()
            assert parsed == value

    def test_split_source(self) -> None:
        assert split_source("No source") == ("No source", "")
        assert split_source("A (b), c (d (e))") == ("A (b), c", "d (e)")


class TestSignatures:
    @pytest.mark.parametrize(
        "target",
        [
            "components.losses.FocalLoss",
            "components.losses.BCEWithLogitsLoss",
            "components.losses.NextTokenCrossEntropyLoss",
            "components.schedules.WSD",
            "components.tasks.classification.ClassificationTask",
            "torch.nn.CrossEntropyLoss",
            "torch.optim.SGD",
            "torch.optim.Muon",
            "lightning.pytorch.callbacks.EarlyStopping",
            "components.binding.bind",
        ],
    )
    def test_agrees_with_inspect(self, target: str) -> None:
        module, _, name = target.rpartition(".")
        found = getattr(importlib.import_module(module), name)
        signature = inspect.signature(found)
        info = signature_of(target)
        assert info is not None
        ours = {p.name: p.required for p in info.parameters}
        for parameter in signature.parameters.values():
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                assert ours[parameter.name] == (parameter.default is parameter.empty), parameter.name
        if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
            assert set(ours) == set(signature.parameters) - {"args"}

    def test_keywords_are_followed_into_bases(self) -> None:
        info = signature_of("components.tasks.classification.ClassificationTask")
        assert info is not None
        assert {"kind", "model", "objective", "log_every"} <= set(info.parameter_names)
        assert not info.open_ended
        assert info.parameter("kind").choices == ("auto", "multiclass", "binary", "multilabel")  # type: ignore[union-attr]

    def test_inherited_forward_and_descriptions(self) -> None:
        info = signature_of("components.losses.MSELoss")
        assert info is not None
        assert [p.name for p in info.method("forward") or []] == ["prediction", "target"]
        focal = signature_of("components.losses.FocalLoss")
        assert focal is not None
        assert focal.descriptions["gamma"]

    def test_users_module_is_read_and_never_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        package = tmp_path / "user_pkg_static"
        write(package, "__init__.py", "from .inner import Mine as Renamed, make\nOther = Renamed\n")
        write(
            package,
            "inner.py",
            "raise SystemExit('imported')\nfrom dataclasses import dataclass, field\nLIMIT = 7\n"
            "class Base:\n    def __init__(self, shared, gone=1, *, fixed=2, limit=LIMIT): ...\n    def forward(self, logits, target, index=None): ...\n"
            "class Mine(Base):\n    '''One.\n\n    Args:\n        own: what it is,\n            in two lines.\n    '''\n"
            "    def __init__(self, own: float = 0.5, **kwargs):\n        super().__init__(fixed=3, **kwargs)\n"
            "def make(a, *, b=1, **more): ...\n"
            "@dataclass(frozen=True, kw_only=True)\nclass Data:\n    x: int\n    y: list = field(default_factory=list)\n"
            "    z: int = field(default=3, init=False)\n",
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        info = signature_of("user_pkg_static.Other")
        assert info is not None
        assert [(p.name, p.default) for p in info.parameters] == [("own", "0.5"), ("shared", None), ("gone", "1"), ("limit", "7")]
        assert info.parameters[0].description == "what it is, in two lines."
        assert [(p.name, p.required) for p in info.method("forward") or []] == [("logits", True), ("target", True), ("index", False)]
        data = signature_of("user_pkg_static.inner.Data")
        assert data is not None
        assert [(p.name, p.default) for p in data.parameters] == [("x", None), ("y", "list()")]
        function = signature_of("user_pkg_static.make")
        assert function is not None
        assert function.open_ended
        assert function.parameter_names == ["a", "b"]
        assert "user_pkg_static" not in sys.modules

    def test_what_is_not_there(self) -> None:
        for target in ("nowhere.at.All", "components.losses.NoSuchLoss", "torch", "components.losses", ""):
            assert signature_of(target) is None

    def test_arguments_of(self) -> None:
        text = "What.\n\nArgs:\n    a: first,\n        goes on.\n    b, c (int): both.\n\nRaises:\n    ValueError: d.\n"
        assert arguments_of(text) == {"a": "first, goes on.", "b": "both.", "c": "both."}


class TestTasks:
    def test_offers_agree_with_the_classes(self, shipped: Catalogue) -> None:
        from components.tasks.base import COMMON_OFFERS

        for option in shipped.options("task"):
            module, _, name = str(option.target).rpartition(".")
            task = getattr(importlib.import_module(module), name)
            assert shipped.task_offers[option.name] == task.offers | COMMON_OFFERS, option.name

    def test_tasks_that_offer(self, shipped: Catalogue) -> None:
        assert {"classification", "segmentation", "language_modelling"} <= set(shipped.tasks_for(shipped.option("loss", "cross_entropy")))
        assert "regression" not in shipped.tasks_for(shipped.option("loss", "cross_entropy"))
        assert {"classification"} <= set(shipped.tasks_for(shipped.option("loss", "decoupled_softmax"))) and "segmentation" not in shipped.tasks_for(
            shipped.option("loss", "decoupled_softmax")
        ), "it takes (N, C) alone"

    def test_needs_agree_with_binding(self, shipped: Catalogue) -> None:
        from components.binding import requirements

        for option in shipped.options("loss"):
            module, _, name = str(option.target).rpartition(".")
            required, optional = requirements(getattr(importlib.import_module(module), name).forward)
            inputs = option.body.get("inputs") or {}
            assert option.needs() == [inputs.get(p, p) for p in required if p != "self"], option
            assert option.needs(optional=True) == [inputs.get(p, p) for p in optional], option

    def test_inputs_rename(self, tmp_path: Path) -> None:
        write(tmp_path, "loss/theirs.yaml", "# Theirs (torch)\n_target_: torch.nn.MSELoss\ninputs: {input: prediction}\n")
        assert Catalogue([tmp_path]).option("loss", "theirs").needs() == ["prediction", "target"]


class TestPlugins:
    def install(self, root: Path, package: str, value: str | None = None) -> None:
        write(root, f"{package}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        write(root, f"{package}-1.0.dist-info/entry_points.txt", f"[console_scripts]\nx = y:z\n\n[losskit.config]\n{package} = {value or package}\n")

    def test_installed_packages_join(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.install(tmp_path, "plug_a")
        write(tmp_path, "plug_a/__init__.py", "raise SystemExit('imported')\n")
        write(tmp_path, "plug_a/conf/loss/from_plugin.yaml", "# From a plug-in (plug_a)\n_target_: plug_a.Loss\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        assert "plug_a" in paths.plugin_packages()
        assert tmp_path / "plug_a" / "conf" in paths.plugin_config_dirs()
        assert "from_plugin" in Catalogue.default().option_names("loss")
        assert "plug_a" not in sys.modules

    def test_agrees_with_importlib_metadata(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from importlib.metadata import entry_points

        self.install(tmp_path, "plug_b", "plug_b.sub:thing")
        monkeypatch.syspath_prepend(str(tmp_path))
        for group in ("losskit.config", "console_scripts", "pytest11", "optuna.no_such_group"):
            assert set(paths.entry_points(group)) == {(e.name, e.value) for e in entry_points(group=group)}

    def test_a_plugin_without_a_package_is_left_out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.install(tmp_path, "plug_gone")
        monkeypatch.syspath_prepend(str(tmp_path))
        assert paths.plugin_config_dirs() == [d for d in paths.plugin_config_dirs() if d.is_dir()]
        assert "plug_gone" in paths.plugin_packages()
