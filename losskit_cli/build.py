"""From a resolved config to an experiment: data, facts, model, objective, task and trainer, every requirement bound before training starts."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler
from torch import nn

import components.tasks
from components.binding import Bound, bind
from components.callbacks import AtomicCheckpointIO, Interrupts
from components.data.base import DataModule
from components.losses.base import Loss
from components.objective import Objective, Term, Weight
from components.optimizers import parameter_groups
from components.quantities import FACTS
from components.schedules.base import Schedule
from components.tasks.base import Task
from components.validation import did_you_mean
from losskit_cli.check import HYDRA_KEYS, Targets, checked_arguments, checked_settings, parameters_of, target_nodes
from losskit_cli.errors import LosskitError, UsageError, said_by
from losskit_cli.threads import check_threads

Config = Mapping[str, Any]
PROFILERS: Mapping[str, Callable[..., Any]] = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
TRAINER_OWN_KEYS = ("compile", "threads")
CLASS_WEIGHTS: Mapping[str, Callable[[float, int], float]] = {
    "balanced": lambda rarity, classes: rarity / classes,
    "log": lambda rarity, classes: math.log(rarity),
}
"""``loss.weight=balanced``: n / (C n_c) for class c of C, so that all classes weigh alike; ``log``: ln(n / n_c), milder where a class is very rare, as in the
weighted cross-entropy of Li et al., "Dice Loss for Data-imbalanced NLP Tasks", ACL 2020, arXiv:1911.02855, with its K = 1."""


@dataclass
class Experiment:
    """Everything that a run needs, built and bound; ``operations`` is how much work a batch is (:mod:`losskit_cli.threads`), once that is known."""

    config: dict[str, Any]
    data: DataModule
    task: Task
    trainer: lightning.Trainer
    facts: dict[str, Any]
    operations: int | None = None


class Builder:
    """Builds one experiment from a resolved config.

    Args:
        config: plain containers, interpolations resolved.
        choices: group -> chosen option, so that errors can say ``loss=dpo``.
        teacher: loads the model of a finished run by its name, for ``task.teacher_run``.
    """

    def __init__(self, config: Config, choices: Mapping[str, Any] | None = None, load_model: Callable[[str], nn.Module] | None = None) -> None:
        self.config = checked_settings(config)
        self.choices = choices or {}
        self.load_model = load_model
        self.targets = Targets(self.config.get("allow_targets") or ())
        self.facts: dict[str, Any] = {}
        self.checkpoint: Mapping[str, Any] | None = None
        self.train_teacher = True
        self.run_dir: str | None = None
        self.made_schedule: Schedule | lightning.Callback | None = None
        for key, node in target_nodes(self.config):
            self.targets.resolve(node["_target_"], key)

    def experiment(
        self,
        *,
        run_dir: str | None = None,
        loggers: list[Any] | None = None,
        checkpoint: Mapping[str, Any] | None = None,
        load_data: bool = True,
        train_teacher: bool = True,
    ) -> Experiment:
        """Build it all.

        Args:
            run_dir: where checkpoints go; ``None``: nothing is written.
            loggers: Lightning loggers.
            checkpoint: a loaded checkpoint whose data module's fitted state (encoders, scales, facts) is taken over.
            load_data: ``False``: build from the checkpoint's facts alone, for predicting where the training data is not at hand.
            train_teacher: ``False``: leave the teacher that a distillation trains first as it is made, for looking at what would be done.
        """
        config = self.config
        lightning.seed_everything(config["seed"], workers=True, verbose=False)
        self.checkpoint, self.run_dir = checkpoint, run_dir
        self.train_teacher = train_teacher and checkpoint is None  # a resumed run's teacher is in its checkpoint
        data = self.data(load_data)
        trainer = self.trainer(run_dir, loggers or [])
        self._add_lengths(trainer, data)
        task = self.task(data)
        with user_errors(self._named("optimizer")):
            task.prepare_for(self.tried_optimizer, trainer)
        trainer.callbacks.extend(self.callbacks(task, data, run_dir is not None))  # type: ignore[attr-defined]
        if config["trainer"].get("compile"):
            task.compile_model()
        return Experiment(self.config, data, task, trainer, self.facts)

    # -- data and facts -------------------------------------------------------------------------------------------------
    def data(self, load: bool = True) -> DataModule:
        data: DataModule = self.make("data", self.config["data"])
        with user_errors(self._named("data")):
            state = fitted_state(self.checkpoint or {}, data)
            if state:
                data.load_state_dict(state)
            if load or not state:
                data.setup()
            self.facts.update(data.facts())
        return data

    def _add_lengths(self, trainer: lightning.Trainer, data: DataModule) -> None:
        """Steps of an epoch and of the whole run, as the trainer's limits and devices make them."""
        self.facts["batch_size"] = data.batch_size * trainer.world_size
        batches, rest = divmod(self.facts["num_samples"], self.facts["batch_size"])
        batches += 1 if rest and not data.drop_last else 0
        if not batches:
            raise UsageError(f"data.drop_last=true leaves nothing of {self.facts['num_samples']} samples: a batch of all devices is {self.facts['batch_size']}")
        self._at_least_one_batch(trainer, data, batches)
        limit = trainer.limit_train_batches
        batches = min(batches, int(limit)) if isinstance(limit, int) else max(1, int(batches * limit))
        overfit = self.config["trainer"]["overfit_batches"]
        if overfit:
            batches = int(overfit) if overfit >= 1 else max(1, int(batches * overfit))
        steps = math.ceil(batches / trainer.accumulate_grad_batches)
        by_epochs = steps * trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else math.inf
        by_steps = trainer.max_steps if trainer.max_steps > 0 else math.inf
        interval = trainer.val_check_interval
        if isinstance(interval, int) and trainer.check_val_every_n_epoch is not None and interval > batches and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise UsageError(
                f"trainer.val_check_interval={interval} is more than the {batches} batches of an epoch: take at most that, "
                "or count over epochs with trainer.check_val_every_n_epoch=null"
            )
        for name in ("max_epochs", "max_steps", "limit_train_batches"):
            if getattr(trainer, name) == 0 and not (name == "limit_train_batches" and overfit):
                raise UsageError(f"trainer.{name}=0 trains nothing; to only test: train=false")
        total = min(by_epochs, by_steps)
        if math.isinf(total):
            raise UsageError("training has no end: set trainer.max_epochs=… or trainer.max_steps=…")
        self.facts |= {"steps_per_epoch": steps, "total_steps": int(total)}

    @staticmethod
    def _at_least_one_batch(trainer: lightning.Trainer, data: DataModule, training: int) -> None:
        """A share of few batches (``debug=limit`` on small data) is one batch, where Lightning would give up at the first epoch."""
        sizes = {part: data.size(split) for part, split in data.splits.items() if part != "train"}
        batches = {part: math.ceil(size / (data.eval_batch_size * trainer.world_size)) for part, size in sizes.items()}
        for part, count in (batches | {"train": training}).items():
            limit = getattr(trainer, f"limit_{part}_batches")
            if isinstance(limit, float) and 0 < limit * count < 1:
                setattr(trainer, f"limit_{part}_batches", 1)

    # -- the parts ----------------------------------------------------------------------------------------------------------
    def task(self, data: DataModule) -> Task:
        config = self.config
        options = {k: v for k, v in config["task"].items() if k != "_target_"}
        task_class = self.targets.resolve(config["task"]["_target_"], "task")
        loss_class = self.targets.resolve(config["loss"]["_target_"], "loss")
        outputs, self.facts["head"] = 1, "point"
        if isinstance(loss_class, type) and issubclass(loss_class, Loss):
            outputs, self.facts["head"] = loss_class.outputs_per_target(**_without_hydra_keys(config["loss"])), loss_class.head
        with user_errors(self._named("task")):
            try:
                self.facts.update(task_class.facts(self.facts, outputs, **options))  # type: ignore[attr-defined]
            except KeyError as error:
                raise UsageError(f"{self._named('task')} does not go with {self._named('data')}: that data has no {error.args[0]!r}") from error
        model: nn.Module = self.make("model", config["model"])
        if getattr(task_class, "post_hoc", False):
            model = self.predictor(model, options, data)
        if hasattr(model, "feature_dim"):
            self.facts["feature_dim"] = model.feature_dim
        given: dict[str, Any] = {"model": model, "objective": None}
        self.made_schedule = self.schedule()
        decides = isinstance(self.made_schedule, lightning.Callback)  # while training: it sets the rate itself
        given |= {"optimizer": self.optimizer(model), "schedule": None if decides else self.made_schedule, "transforms": self.transforms()}
        given |= {"log_every": config["trainer"]["log_every_n_steps"]}
        if "teacher" in parameters_of(task_class)[0]:
            given["teacher"] = self.teacher(options, data)
        # what a task offers may depend on its options, so the task is made first and its objective and metrics are bound to it
        task: Task = self.make("task", {k: v for k, v in config["task"].items() if k != "teacher_model"}, **given)
        task.objective = self.objective(task)
        task.add_metrics(self.metrics(task))
        self._check_optimized_metric(task)
        return task

    def _check_optimized_metric(self, task: Task) -> None:
        name = str(self.config["optimized_metric"])
        known = [f"{stage}/{metric}" for stage in ("val", "train", "test") for metric in task.logged()]
        if name not in known:
            raise UsageError(f"optimized_metric={name} is not logged{did_you_mean(name, known)} (logged: {', '.join(known)})")

    def objective(self, task: Task) -> Objective:
        config = self.config
        loss = self._bound("loss", config["loss"], task)
        auxiliary = {name: self._term("auxiliary", name, node, task) for name, node in (config.get("auxiliary") or {}).items()}
        regularizers = {name: self._term("regularizer", name, node, task) for name, node in (config.get("regularizer") or {}).items()}
        reweighting = self._bound("reweighting", config["reweighting"], task) if config.get("reweighting") else None
        return Objective(loss, auxiliary, regularizers, reweighting)

    def metrics(self, task: Task) -> dict[str, Bound]:
        return {name: self._bound(f"metrics.{name}", node, task, method="update") for name, node in (self.config.get("metrics") or {}).items()}

    def optimizer(self, model: nn.Module) -> Callable[[Any], torch.optim.Optimizer]:
        """Parameters -> optimizer. An optimizer class may say with ``groups(model, parameters)`` which of them get which treatment."""
        node = dict(self.config["optimizer"])
        decay_only_matrices = node.pop("decay_only_matrices", False)
        lr = node.get("lr")
        if isinstance(lr, int | float) and not 0 <= lr < math.inf:
            raise UsageError(f"{self._named('optimizer')}: optimizer.lr must be a finite number >= 0, but got {lr!r}")
        factory = self.make("optimizer", node, _partial_=True)
        with user_errors(self._named("optimizer")):
            self.tried_optimizer = factory([nn.Parameter(torch.zeros(2, 2))])  # a wrong learning rate is an error now, not at the first step
        grouped = getattr(factory.func, "groups", lambda model, parameters: parameters)
        if not decay_only_matrices:
            return lambda parameters: factory(grouped(model, parameters))
        return lambda parameters: factory(parameter_groups(grouped(model, parameters), node.get("weight_decay", 0.0)))

    def schedule(self) -> Schedule | lightning.Callback | None:
        """A function of the step; or a callback that decides while training, and keeps what it found in the run's directory."""
        node = self.config.get("schedule")
        if not node:
            return None
        target = self.targets.resolve(node["_target_"], "schedule")
        if self.run_dir is not None and "directory" in parameters_of(target)[0]:
            node = {"directory": str(Path(self.run_dir) / "schedule"), **node}
        made: Schedule | lightning.Callback = self.make("schedule", node)
        return made

    def transforms(self) -> list[nn.Module]:
        return [self.make(f"transform.{name}", node) for name, node in (self.config.get("transform") or {}).items()]

    def teacher(self, options: Mapping[str, Any], data: DataModule) -> nn.Module:
        """The teacher of a distillation: a finished run's model, or one trained first."""
        if options.get("teacher_run"):
            return self._model_of("teacher_run", options)
        teacher: nn.Module = self.make("task.teacher_model", options.get("teacher_model") or self.config["model"])
        if not self.train_teacher:
            return teacher
        with user_errors(self._named("task")):
            return components.tasks.train_teacher(teacher, data, epochs=options["teacher_epochs"], lr=options["teacher_lr"], seed=self.config["seed"])

    def predictor(self, model: nn.Module, options: Mapping[str, Any], data: DataModule) -> nn.Module:
        """The frozen classifier of a stage that comes after it: a finished run's model, or ``model``, trained first."""
        if options.get("predictor_run"):
            return self._model_of("predictor_run", options)
        if not self.train_teacher:
            return model
        training = {"held_out": options["held_out"], "epochs": options["predictor_epochs"], "lr": options["predictor_lr"], "seed": self.config["seed"]}
        with user_errors(self._named("task")):
            return components.tasks.train_predictor(model, data, **training)

    def _model_of(self, key: str, options: Mapping[str, Any]) -> nn.Module:
        """The model of the finished run that the task's option ``key`` names."""
        if self.load_model is None:
            raise UsageError(f"task.{key} needs the run store")
        return self.load_model(str(options[key]))

    def callbacks(self, task: Task, data: DataModule, saving: bool) -> list[lightning.Callback]:
        made = []
        nodes = dict(self.config.get("callbacks") or {})
        if self.config.get("averaging"):
            nodes["averaging"] = self.config["averaging"]
        for name, node in nodes.items():
            if name == "checkpoints" and not saving:
                continue
            node = {**node, "mode": self.mode(task, str(node.get("monitor")))} if node.get("mode") == "auto" else node
            self._check_monitored(f"callbacks.{name}", node, task, data)
            made.append(self.make("averaging" if name == "averaging" else f"callbacks.{name}", node))
        if isinstance(self.made_schedule, lightning.Callback):  # first, so that a checkpoint of the same moment holds what it has found
            made.insert(0, self.made_schedule)
        # interrupts come last but for checkpoints' own saving, so that a checkpoint is taken of a finished step
        return [*made, Interrupts()]

    def _check_monitored(self, key: str, node: Config, task: Task, data: DataModule) -> None:
        """Refuse Lightning's callbacks that watch a metric which nobody logs; callbacks of the user's own may log what they like."""
        monitored = node.get("monitor")
        if not isinstance(monitored, str) or not node["_target_"].startswith("lightning."):
            return
        known = [f"{stage}/{metric}" for stage in ("val", "train") for metric in task.logged()]
        own = [str(n.get("_target_")).startswith(("lightning.", "components.")) for n in (self.config.get("callbacks") or {}).values()]
        if "/" in monitored and monitored not in known and all(own):
            raise UsageError(f"{key}.monitor={monitored} is not logged{did_you_mean(monitored, known)} (logged: {', '.join(known)})")
        if monitored.startswith("val/") and "val" in data.splits and data.size(data.splits["val"]) == 0:
            raise UsageError(f"{key} watches {monitored}, but {self._named('data')} has no validation samples (data.val_fraction)")

    def mode(self, task: Task, metric: str) -> str:
        """``min`` or ``max``: which way ``metric`` is better; ``optimized_direction`` speaks of the optimized one alone."""
        direction = self.config["optimized_direction"] if metric == self.config["optimized_metric"] else "auto"
        if direction in ("minimize", "maximize"):
            return "min" if direction == "minimize" else "max"
        if direction != "auto":
            near = did_you_mean(direction, ("minimize", "maximize", "auto"))
            raise UsageError(f"optimized_direction must be minimize, maximize or auto, but got {direction!r}{near}")
        return "max" if task.higher_is_better(metric) else "min"

    def trainer(self, run_dir: str | None, loggers: list[Any]) -> lightning.Trainer:
        options = {k: v for k, v in self.config["trainer"].items() if k not in TRAINER_OWN_KEYS}
        options = checked_arguments("trainer", lightning.Trainer, options)
        _check_trainer_options(options)
        if not isinstance(self.config["trainer"].get("compile", False), bool):
            raise UsageError(f"trainer.compile={self.config['trainer']['compile']}: it takes true or false")
        check_threads(self.config["trainer"].get("threads", "auto"))
        if options.get("devices") in (-1, "-1"):  # Lightning takes it for GPUs alone
            options["devices"] = "auto"
        options["profiler"] = _profiler(options.get("profiler"), run_dir)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time and guards against nothing we do
        asked = " ".join(f"trainer.{name}={options[name]}" for name in ("accelerator", "devices", "strategy", "precision") if name in options)
        with user_errors(asked):
            return lightning.Trainer(
                **options,
                logger=loggers or False,
                default_root_dir=run_dir,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                plugins=[AtomicCheckpointIO(), LightningEnvironment()],
            )

    # -- one component --------------------------------------------------------------------------------------------------------
    def make(self, key: str, node: Config, /, **given: Any) -> Any:
        """Instantiate ``node``; parameters that are facts are filled in, ``given`` are handed over as they are."""
        partial = given.pop("_partial_", False)
        target = self.targets.resolve(node["_target_"], key)
        named = self._named(key)
        values = self._filled(key, node, given)
        given_later = [*given, *(["params"] if partial else [])]  # an optimizer's parameters come when there is a model
        self._check_facts(key, target, {*values, *given_later})
        values = checked_arguments(key, target, values, given_later)
        with user_errors(named):
            arguments = {name: instantiate(value, _convert_="all") if list(target_nodes(value)) else value for name, value in values.items()}
            return functools.partial(target, **arguments, **given) if partial else target(**arguments, **given)

    def _check_facts(self, key: str, target: Callable[..., Any], present: set[str]) -> None:
        """A required parameter that is a fact, of data that has no such fact: the two do not go together."""
        missing = [n for n, p in parameters_of(target)[0].items() if p.default is p.empty and n in FACTS and n not in present]
        if missing:
            raise UsageError(
                f"{self._named(key)} does not go with {self._named('data')}: it needs {', '.join(missing)} ({FACTS[missing[0]]}), which that data has not"
            )

    def _filled(self, key: str, node: Config, given: Mapping[str, Any], nested: bool = False) -> dict[str, Any]:
        """``node``'s arguments, with facts filled into parameters of their name: at the top any, in nested nodes the required ones."""
        parameters, _ = parameters_of(self.targets.resolve(node["_target_"], key))
        values = {k: self._filled_value(f"{key}.{k}", v) for k, v in node.items() if k not in HYDRA_KEYS}
        for name, parameter in parameters.items():
            fact = "num_classes" if name == "num_labels" else name
            if fact in FACTS and fact in self.facts and name not in values and name not in given and (not nested or parameter.default is parameter.empty):
                values[name] = self.facts[fact]
        return values

    def _filled_value(self, key: str, value: Any) -> Any:
        if isinstance(value, dict) and "_target_" in value:
            target = self.targets.resolve(value["_target_"], key)
            values = checked_arguments(key, target, self._filled(key, value, {}, nested=True))
            return {"_target_": value["_target_"], **values}
        if isinstance(value, dict):
            return {k: self._filled_value(f"{key}.{k}", v) for k, v in value.items()}
        return [self._filled_value(f"{key}[{i}]", v) for i, v in enumerate(value)] if isinstance(value, list) else value

    def _bound(self, key: str, node: Config, task: Task, method: str = "forward") -> Bound:
        node = dict(node)
        inputs = node.pop("inputs", None)
        rule = node.get("weight")
        if isinstance(rule, str) and rule in CLASS_WEIGHTS:
            node["weight"] = self._class_weight(key, rule)
        component = self.make(key, node)
        name = next((n for n, c in components.tasks.BY_NAME.items() if isinstance(task, c)), type(task).__name__)
        with user_errors():
            return bind(component, task.offered, name=self._named(key), task=name, inputs=inputs, method=method, offered_elsewhere=components.tasks.OFFERS)

    def _term(self, group: str, name: str, node: Config, task: Task) -> Term:
        node = dict(node)
        weight = node.pop("weight", None)
        if "class_weight" in node:  # under auxiliary, `weight` is the term's
            node["weight"] = node.pop("class_weight")
        bound = self._bound(f"{group}.{name}", node, task)
        return Term(bound, 1.0 if weight is None else self._weight(f"{group}.{name}.weight", weight))

    def _weight(self, key: str, weight: Any) -> Weight:
        if isinstance(weight, dict) and "_target_" in weight:
            made = self.make(key, weight)
            return made.with_total_steps(self.facts["total_steps"]) if isinstance(made, Schedule) else made
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise UsageError(f"{key} must be a number or a schedule, but got {weight!r}")
        return float(weight)

    def _class_weight(self, key: str, rule: str) -> list[float]:
        counts = self.facts.get("class_counts")
        if counts is None:
            raise UsageError(f"{key}.weight={rule} needs data with classes, which {self._named('data')} has not")
        return [CLASS_WEIGHTS[rule](sum(counts) / max(count, 1), len(counts)) for count in counts]

    def _named(self, key: str) -> str:
        """``loss`` -> ``loss=focal``: how the user chose it."""
        choice = self.choices.get(key)
        return f"{key}={choice}" if isinstance(choice, str) else key


def _profiler(name: Any, run_dir: str | None) -> Any:
    """Lightning's profiler of that name, its report a file in the run directory: as a log message nobody would see it."""
    if name is None or run_dir is None:
        return None
    if name not in PROFILERS:
        raise UsageError(f"trainer.profiler={name!r}: it takes {', '.join(PROFILERS)} or null{did_you_mean(str(name), PROFILERS)}")
    return PROFILERS[name](dirpath=run_dir, filename="profile")


def _check_trainer_options(options: Config) -> None:
    """Refuse numbers that Lightning would stumble over in the middle of a run."""
    devices, clip = options.get("devices"), options.get("gradient_clip_val")
    if devices in (0, "0", []) or (isinstance(devices, str) and not re.fullmatch(r"auto|-1|\d+(,\d+)*,?", devices)):
        raise UsageError(f"trainer.devices={devices!r}: it takes how many devices, a list of their numbers, -1 (all there are) or auto")
    for name in ("accumulate_grad_batches", "log_every_n_steps"):
        if options.get(name, 1) is None or options.get(name, 1) < 1:
            raise UsageError(f"trainer.{name}={options[name]!r}: it takes a whole number >= 1")
    if clip is not None and not clip >= 0:
        raise UsageError(f"trainer.gradient_clip_val={clip!r}: it takes a number >= 0, or null for no clipping")


class user_errors:
    """Turns what a component raises into a usage error that names the option."""

    def __init__(self, key: str = "") -> None:
        self.key = key

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, InstantiationException) and error.__cause__ is not None:
            error = error.__cause__
        if isinstance(error, LosskitError) or not isinstance(error, Exception):
            return
        told = isinstance(error, ValueError | FileNotFoundError | ImportError | lightning.fabric.utilities.exceptions.MisconfigurationException)
        told |= isinstance(error, TypeError) and re.search(r"missing \d+ required|unexpected keyword|multiple values for", str(error)) is not None
        message = str(error) if told else said_by(error)
        raise UsageError(message if message.startswith(self.key) else f"{self.key}: {message}") from error


def fitted_state(checkpoint: Mapping[str, Any], data: DataModule) -> dict[str, Any] | None:
    """What the checkpoint's data module fitted on its training split; of another class too, if it prepares inputs in the same way (CSV, Parquet).

    Raises:
        ValueError: it prepares them in another way, so that ``data`` would feed the model what it was never trained on.
    """
    own: dict[str, Any] | None = checkpoint.get(type(data).__qualname__)
    encoder = getattr(data, "encoder", None)
    if own is not None or encoder is None:
        return own
    saved = {name: state for name, state in checkpoint.items() if isinstance(state, dict) and isinstance(state.get("encoder"), dict)}
    for name, state in saved.items():
        if state["encoder"].keys() != encoder.state_dict().keys():
            raise ValueError(f"{type(data).__name__} prepares its inputs otherwise than {name}, which the run was trained on")
        return state
    return None


def _without_hydra_keys(node: Config) -> dict[str, Any]:
    return {k: v for k, v in node.items() if k not in HYDRA_KEYS}
