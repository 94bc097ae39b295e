"""What a trial costs that does nothing: ``python orchestration.py losskit|optuna|memory SAMPLER TRIALS``, prints JSON.

losskit     one worker of a sweep of TRIALS tickets, on the default storage, an SQLite file in the working directory
optuna      ``study.optimize`` with one sampler for all trials, on Optuna's own database storage, an SQLite file as well
memory      ``study.optimize`` in memory: what the sampler alone costs; the last twentieth of TRIALS is run, those before are put there

One float parameter, the sampler as ``conf/sweep/sampler/SAMPLER.yaml`` has it. ``ms`` is the mean over all trials that were run, ``last_ms`` over
the last twentieth of them, ``statements`` how many the database was sent for each.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import optuna
import sqlalchemy
from omegaconf import OmegaConf
from optuna.distributions import FloatDistribution

from losskit_cli.paths import shipped_config_dir
from sweeps.algorithms import build_pruner, build_sampler, read_sampler
from sweeps.settings import Plan, SweepSettings
from sweeps.storage import address_of, open_storage
from sweeps.study import Sweep
from sweeps.worker import Worker

SPACE: Any = SimpleNamespace(distributions={"x": FloatDistribution(-10, 10)}, finite=False)


def objective(trial: optuna.Trial) -> float:
    return (trial.suggest_float("x", -10, 10) - 2) ** 2


def sampler_of(config: dict[str, Any], number: int) -> optuna.samplers.BaseSampler:
    return build_sampler(config, seed=0, trial_number=number, space=SPACE, directions=["minimize"])


def losskit(config: dict[str, Any], trials: int) -> tuple[list[float], float]:
    settings = SweepSettings(sampler=config).model_dump()
    plan = Plan("bench", [], [], [], {}, settings, ["x"], ["minimize"], [], trials, {})
    storage: Any = open_storage(address_of())
    sweep, sampler, ends, sent = Sweep.create(plan, storage), read_sampler(config), [0.0], [0]
    worker = Worker(
        sweep, lambda attempt: [objective(attempt.trial)], pruner=build_pruner(None), told=lambda number, state: ends.append(time.perf_counter()),
        sampler_of=lambda number: build_sampler(sampler, seed=0, trial_number=number, space=SPACE, directions=["minimize"]),
    )  # fmt: skip
    count_statements(storage._backend.engine, sent)
    ends[0] = time.perf_counter()
    worker.work()
    status = sweep.status()
    if (status.complete, status.total) != (trials, trials):
        raise SystemExit(f"the sweep did not do what it is measured for: {status}")
    return ends, sent[0] / trials


def plain(config: dict[str, Any], trials: int) -> tuple[list[float], float]:
    storage = optuna.storages.RDBStorage(f"sqlite:///{Path.cwd() / 'optuna.db'}")
    study = optuna.create_study(storage=storage, sampler=sampler_of(config, 0))
    ends, sent = [time.perf_counter()], [0]
    count_statements(storage.engine, sent)
    study.optimize(objective, n_trials=trials, callbacks=[lambda *_: ends.append(time.perf_counter())])
    return ends, sent[0] / trials


def memory(config: dict[str, Any], trials: int) -> tuple[list[float], float]:
    study = optuna.create_study(sampler=sampler_of(config, 0))
    points = [20 * index / trials - 10 for index in range(trials - trials // 20)]
    study.add_trials([optuna.create_trial(params={"x": x}, distributions=SPACE.distributions, value=(x - 2) ** 2) for x in points])
    ends = [time.perf_counter()]
    study.optimize(objective, n_trials=trials // 20, callbacks=[lambda *_: ends.append(time.perf_counter())])
    return ends, 0.0


def count_statements(engine: sqlalchemy.Engine, sent: list[int]) -> None:
    @sqlalchemy.event.listens_for(engine, "before_cursor_execute")
    def count(*_: Any) -> None:
        sent[0] += 1


def main(way: str, sampler: str, trials: str) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    config: Any = OmegaConf.to_container(OmegaConf.load(shipped_config_dir() / "sweep" / "sampler" / f"{sampler}.yaml"))
    ends, statements = {"losskit": losskit, "optuna": plain, "memory": memory}[way](config, int(trials))
    each = [1000 * (end - before) for before, end in itertools.pairwise(ends)]
    print(json.dumps({"ms": mean(each), "last_ms": mean(each[-max(1, len(each) // 20) :]), "statements": statements}))


if __name__ == "__main__":
    main(*sys.argv[1:])
