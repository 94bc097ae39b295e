"""The command line: every command with its flags and help. What a command does stands in its own module, imported when it runs."""

from __future__ import annotations

import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from losskit_cli.errors import LosskitError, UsageError, said_by

app = typer.Typer(
    name="losskit",
    help="Train with one thing changed at a time: loss, regularizer, schedule, optimizer, model, data.\n\n"
    "Every KEY=VALUE is a Hydra override. Start with: losskit train",
    epilog="--traceback anywhere shows the full traceback of an error. Completion: eval \"$(losskit completion bash)\"",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Hydra overrides: loss=focal loss.gamma=3 regularizer=[l1] +key=… ~key")]
ConfigDir = Annotated[list[Path] | None, typer.Option("-cd", "--config-dir", help="A config directory of your own; its options join, and shadow, losskit's.")]
ConfigName = Annotated[str, typer.Option("-cn", "--config-name", help="The primary config.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, all else on stderr.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no summary.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's id or its beginning, its name or its end (brave-owl), or its directory.")]


@app.command()
def train(
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    config_name: ConfigName = "train",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compose, check, build, one batch forward and backward; record nothing.")] = False,
    multirun: Annotated[bool, typer.Option("-m", "--multirun", help="Run every combination of the overrides' choices (a=1,2 b=range(3)).")] = False,
    cfg: Annotated[str | None, typer.Option("--cfg", metavar="job", help="Print the composed config instead of training (as Hydra's --cfg job).")] = None,
    resolve: Annotated[bool, typer.Option("--resolve", help="With --cfg: resolve interpolations.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train, test and track one experiment.

    \b
    losskit train
    losskit train loss=focal loss.gamma=3 schedule=wsd optimizer=adamw regularizer=[l1,confidence_penalty] seed=3
    losskit train data=csv data.path=churn.csv data.target=churned
    losskit train experiment=byte_lm trainer.max_steps=500
    losskit train --dry-run loss=triplet task=embedding
    """
    if cfg is not None:
        from losskit_cli.commands import show_config

        show_config(overrides or [], config_dir or [], config_name, cfg=cfg, resolve=resolve, json=json)
        return
    from losskit_cli.commands import train as command

    command(overrides or [], config_dir or [], config_name, dry_run=dry_run, multirun=multirun, json=json, quiet=quiet)


app.command("fit", hidden=True, help="The same as train.")(train)


@app.command()
def config(
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    config_name: ConfigName = "train",
    origins: Annotated[bool, typer.Option("--origins", help="Say for each value which file or override it came from.")] = False,
    resolve: Annotated[bool, typer.Option("--resolve", help="Resolve interpolations.")] = False,
    json: Json = False,
) -> None:
    """Print the composed config.

    \b
    losskit config loss=focal
    losskit config experiment=byte_lm --origins
    """
    from losskit_cli.commands import show_config

    show_config(overrides or [], config_dir or [], config_name, resolve=resolve, origins=origins, json=json)


@app.command("list")
def list_(
    group: Annotated[str | None, typer.Argument(metavar="[GROUP]", help="loss, model, data … ; without it: the groups.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="Only what this task can feed.")] = None,
    search: Annotated[str | None, typer.Option("--search", help="Only what has this word in its name, description, source or parameters.")] = None,
    config_dir: ConfigDir = None,
    json: Json = False,
) -> None:
    """List what can be selected.

    \b
    losskit list
    losskit list loss --task classification --search margin
    """
    from losskit_cli.listing import run_list

    run_list(group, task=task, search=search, config_dirs=config_dir or [], json=json)


@app.command()
def show(
    option: Annotated[list[str], typer.Argument(metavar="GROUP=OPTION", help="loss=focal (also: loss/focal, loss focal)")],
    config_dir: ConfigDir = None,
    json: Json = False,
) -> None:
    """Explain one option: formula, parameters, needs, source.

    \b
    losskit show loss=focal
    losskit show schedule wsd
    losskit show task=classification --json
    """
    from losskit_cli.listing import run_show

    run_show(option, config_dirs=config_dir or [], json=json)


@app.command()
def plot(
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The PNG file; default: <group>-<option>.png")] = None,
    steps: Annotated[int, typer.Option("--steps", help="For a schedule: the steps of the run.")] = 1000,
    config_dir: ConfigDir = None,
    json: Json = False,
) -> None:
    """Draw a schedule, or a loss and its gradient.

    \b
    losskit plot schedule=wsd schedule.warmup=0.1
    losskit plot loss=focal loss.gamma=3
    """
    from losskit_cli.plot import run_plot

    run_plot(overrides or [], output=output, steps=steps, config_dirs=config_dir or [], json=json)


@app.command("lr-range")
def lr_range(
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option("--steps", help="How many, from the lowest to the highest rate.")] = 200,
    min: Annotated[float, typer.Option("--min", help="The lowest rate.")] = 1e-7,
    max: Annotated[float, typer.Option("--max", help="The highest rate.")] = 10.0,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The PNG file; default: lr-range.png")] = None,
    config_dir: ConfigDir = None,
    config_name: ConfigName = "train",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Which learning rates an experiment bears.

    Trains for a few steps with the rate rising until the loss diverges, and suggests a range. Nothing of it is recorded.

    \b
    losskit lr-range data=digits model=convnet
    losskit lr-range optimizer=adamw --min 1e-6 --max 1 --steps 400
    """
    from losskit_cli.lr_range import run_lr_range

    run_lr_range(
        overrides or [], config_dir or [], config_name, steps=steps, low=min, high=max, output=output, json=json, quiet=quiet
    )  # fmt: skip


@app.command("predict-loss")
def predict_loss(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="RUN... [KEY=VALUE]...", help="Runs to learn from; schedule=…, schedule.…, optimizer.lr=… to predict.")
    ] = None,
    law: Annotated[str | None, typer.Option("--law", help="multi_power, annealing or power; default: what the runs can bear.")] = None,
    metric: Annotated[str | None, typer.Option("--metric", help="train/loss or val/loss; default: val/loss where every run logged it 20 times.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Steps of what is predicted, as schedule.total_steps.")] = None,
    skip: Annotated[float, typer.Option("--skip", help="Share of every run's beginning to leave out, beside its warm-up.")] = 0.05,
    level: Annotated[float, typer.Option("--level", help="Of the intervals.")] = 0.9,
    optimise: Annotated[bool, typer.Option("--optimise", help="Find the schedule of least predicted final loss.")] = False,
    save_schedule: Annotated[Path | None, typer.Option("--save-schedule", metavar="FILE.yaml", help="With --optimise: write it as an option file.")] = None,
    save: Annotated[Path | None, typer.Option("--save", metavar="FILE.json", help="Write the fitted law.")] = None,
    load: Annotated[Path | None, typer.Option("--load", metavar="FILE.json", help="Take a law that was saved; RUNs are then only compared with it.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The PNG file; default: predict-loss.png")] = None,
    config_dir: ConfigDir = None,
    json: Json = False,
) -> None:
    """The loss a schedule would give, from runs with others.

    Fits a law of the loss under a learning rate to what the runs logged. Says how well it fits, and where not to believe it.

    \b
    losskit predict-loss brave-owl schedule=cosine schedule.total_steps=20000
    losskit predict-loss brave-owl calm-fox schedule=cosine,wsd,linear --save law.json
    losskit predict-loss --load law.json --steps 5000 --optimise --save-schedule conf/schedule/mine.yaml
    """
    from losskit_cli.predict_loss import run_predict_loss

    run_predict_loss(
        words or [], config_dir or [], law=law, metric=metric, skip=skip, level=level, steps=steps, optimise=optimise,
        save_schedule=save_schedule, save=save, load=load, output=output, json=json,
    )  # fmt: skip


@app.command()
def sweep(
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    config_name: ConfigName = "train",
    resume: Annotated[str | None, typer.Option("--resume", metavar="NAME", help="Go on with a sweep, to its total or a new one (sweep.n_trials=…).")] = None,
    status: Annotated[str | None, typer.Option("--status", metavar="NAME", help="How far a sweep is.")] = None,
    stop: Annotated[str | None, typer.Option("--stop", metavar="NAME", help="Checkpoint what a sweep runs and end it, wherever its workers are.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="With --status: until it is finished.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Go on with a sweep also where its configuration has changed; both are recorded.")] = False,
    storage: Annotated[str | None, typer.Option("--storage", help="With --resume, --status, --stop: where the sweep is; default: ./sweeps.db.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the space and show what would be searched.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search: overrides with choices are the space.

    All others are fixed.

    Workers run side by side; a killed one's trial goes on from its checkpoint, a killed sweep with --resume.

    \b
    losskit sweep 'optimizer.lr=tag(log,interval(1e-4,1))' loss=poly1,focal 'loss.epsilon=interval(-1,5)' sweep.n_trials=50
    losskit sweep sweep=quick_tpe 'model.dropout=interval(0,0.5)' sweep.workers=4 sweep.pruner=hyperband
    losskit sweep --resume brave-owl sweep.n_trials=100
    losskit sweep --status brave-owl --watch
    """
    if sum(value is not None for value in (resume, status, stop)) > 1:
        raise UsageError("--resume, --status and --stop are three different things: give one of them")
    from losskit_cli.workers import importing_ahead

    looking = status is not None or stop is not None or dry_run
    with nullcontext() if looking else importing_ahead(overrides or []):
        from losskit_cli import sweep as commands

        if status is not None:
            commands.status(status, storage=storage, watch=watch, json=json)
            return
        if stop is not None:
            commands.stop(stop, storage=storage)
            return
        if resume is not None:
            commands.resume(resume, overrides or [], storage=storage, force=force, json=json, quiet=quiet)
            return
        from losskit_cli.compose import Composer

        commands.start(Composer(config_dir or [], config_name), overrides or [], dry_run=dry_run, force=force, json=json, quiet=quiet)


@app.command()
def reproduce(
    words: Annotated[list[str] | None, typer.Argument(metavar="[NAME...] [KEY=VALUE]...", help="Claims by the names of their experiments; overrides.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All claims, and a Markdown table of them.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="What there is.")] = False,
    seeds: Annotated[int | None, typer.Option("--seeds", help="How many, instead of what the claim says.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Run anew what has been run before.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE.md", help="With --all: where the table goes; default: claims.md")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compose and check every run, and show what there would be.")] = False,
    config_dir: ConfigDir = None,
    config_name: ConfigName = "train",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run what a paper claims, and see whether it holds here.

    Baseline and method over the same seeds: the paired difference with its 95 % interval, and a verdict. Stopped or killed, the same command
    goes on; finished, it shows the outcome again. A claim is a block of an experiment's file: docs/reproduce.md.

    \b
    losskit reproduce --list
    losskit reproduce poly1
    losskit reproduce poly1 data.label_noise=0.2 --seeds 10 sweep.workers=4
    losskit reproduce --all --output docs/claims.md
    """
    from losskit_cli.workers import importing_ahead

    with nullcontext() if listed or dry_run else importing_ahead(words or []):
        from losskit_cli.reproduce import run_reproduce

        run_reproduce(
            words or [], config_dir or [], config_name,
            every=every, listed=listed, seeds=seeds, anew=again, output=output, dry_run=dry_run, json=json, quiet=quiet,
        )  # fmt: skip


@app.command()
def worker(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The sweep.")],
    storage: Annotated[str | None, typer.Option("--storage", help="Where the sweep is; default: ./sweeps.db.")] = None,
) -> None:
    """One more worker for a running sweep.

    From any shell, or any machine that reaches the sweep's storage.

    \b
    losskit worker brave-owl
    losskit worker brave-owl --storage grpc://head:13000
    """
    from losskit_cli.sweep import worker as command

    command(name, storage=storage)


@app.command()
def resume(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run's id or its beginning, its name or its end (brave-owl), or its directory.")] = None,
    overrides: Overrides = None,
    last: Annotated[bool, typer.Option("--last", help="The run that was started last.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Go on with a stopped run from its last whole checkpoint.

    It stays the same MLflow run. A finished run goes on with trainer.max_epochs=… or trainer.max_steps=…; other overrides than trainer.…,
    callbacks.… and tracking.… would make another experiment: see rerun.

    \b
    losskit resume --last
    losskit resume focal-digits-s3-brave-owl
    losskit resume brave-owl trainer.max_epochs=30
    """
    from losskit_cli.commands import resume as command

    command(run, overrides or [], last=last, json=json, quiet=quiet)


@app.command()
def rerun(
    run: Run,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what differs.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run again from what a run saved, with changes; shows them.

    What is not overridden is as it was saved, also where the config tree has changed since (which is said).

    \b
    losskit rerun focal-digits-s3-brave-owl
    losskit rerun brave-owl loss.gamma=1 seed=4
    losskit rerun 3f2a loss=poly1 --dry-run
    """
    from losskit_cli.commands import rerun as command

    command(run, overrides or [], dry_run=dry_run, json=json, quiet=quiet)


@app.command()
def diff(run: Run, other: Annotated[str, typer.Argument(metavar="RUN", help="The other run.")], json: Json = False) -> None:
    """What differs between two runs: config, code, data, metrics.

    \b
    losskit diff brave-owl calm-fox
    losskit diff 3f2a 91c0 --json
    """
    from losskit_cli.diff import run_diff

    run_diff(run, other, json=json)


@app.command("eval")
def eval_(
    run: Run,
    overrides: Overrides = None,
    checkpoint: Annotated[str, typer.Option("--checkpoint", help="best, last or a file.")] = "best",
    split: Annotated[str, typer.Option("--split", help="test, val, train or all: which samples.")] = "test",
    json: Json = False,
) -> None:
    """Test a run's weights on its test split, or on other data.

    Other data is prepared with what was fitted in training (scales, categories, class numbers).

    \b
    losskit eval focal-digits-s3-brave-owl
    losskit eval brave-owl --split val --checkpoint last
    losskit eval brave-owl data.path=next_month.csv --split all --json
    """
    from losskit_cli.commands import evaluate

    evaluate(run, overrides or [], checkpoint=checkpoint, split=split, json=json)


@app.command()
def predict(
    run: Run,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to: .csv, .parquet, .json or .npz.")],
    input: Annotated[
        Path | None,
        typer.Option("--input", "-i", help="New data of the kind that the run was trained on (CSV, Parquet, NPZ, image folder); default: its test split."),
    ] = None,
    checkpoint: Annotated[str, typer.Option("--checkpoint", help="best, last or a file.")] = "best",
    json: Json = False,
) -> None:
    """Predict new data with a run's weights.

    One row a sample, in the order of the input; classes by name, values in their own units. Without --input: the run's own test split, beside
    its targets.

    \b
    losskit predict brave-owl --input new.csv --output predictions.csv
    losskit predict brave-owl --input pictures/ --output predictions.parquet
    losskit predict brave-owl --output test.csv
    """
    from losskit_cli.commands import predict as command

    command(run, input=input, output=output, checkpoint=checkpoint, json=json)


@app.command()
def compare(
    metric: Annotated[list[str] | None, typer.Option("--metric", help="A metric to show and sort by; may be given several times.")] = None,
    sweep: Annotated[list[str] | None, typer.Option("--sweep", metavar="NAME", help="Only the trials of this sweep; may be given several times.")] = None,
    group_by: Annotated[str | None, typer.Option("--group-by", help="Groups or keys, comma-separated: loss,schedule")] = None,
    over: Annotated[str | None, typer.Option("--over", help="What a group's values are paired by: seed. Gives intervals and tests.")] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", metavar="KEY=VALUE", help="The group that others are compared with; default: the one started first.")
    ] = None,
    filter: Annotated[str | None, typer.Option("--filter", help="\"params.loss.gamma > 1 and metrics.val/loss < 0.5\"")] = None,
    limit: Annotated[int, typer.Option("--limit", help="At most so many runs or groups.")] = 50,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw the groups: every value, mean and interval.")] = None,
    json: Json = False,
    csv: Annotated[bool, typer.Option("--csv", help="CSV on stdout.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="A Markdown table on stdout.")] = False,
) -> None:
    """The runs of the store as a table, best first.

    A terminal shows what differs and as much else as fits; a pipe, --csv and --json show more. Groups over seeds have a 95 % interval, and
    each has its difference to the reference group with interval, p-value (paired t-test, Holm-corrected) and effect size (Hedges' g).

    \b
    losskit compare --metric test/acc
    losskit compare --sweep NAME --group-by loss --over seed
    losskit compare --group-by loss,schedule --over seed --plot groups.png
    losskit compare --group-by loss --reference loss=cross_entropy --markdown
    losskit compare --filter "status = FINISHED and params.data = digits" --csv
    """
    from losskit_cli.compare import run_compare

    run_compare(
        metric or [],
        sweeps=sweep or [],
        group_by=group_by,
        over=over,
        reference=reference,
        filter=filter,
        limit=limit,
        plot=plot,
        json=json,
        csv=csv,
        markdown=markdown,
    )


@app.command()
def report(
    sweep: Annotated[str, typer.Argument(metavar="NAME", help="The sweep.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The HTML file; default: NAME.html")] = None,
    storage: Annotated[str | None, typer.Option("--storage", help="Where the sweep is kept; default: sweeps.db here.")] = None,
) -> None:
    """A sweep as one HTML page.

    History, importances, slices, parallel coordinates, learning curves, all trials, and the command that trains the best trial again. The page
    needs no network and no other file: it can be mailed, archived and printed.

    \b
    losskit report byte-lm-tpe
    losskit report byte-lm-tpe -o reports/byte_lm.html
    losskit report byte-lm-tpe --storage postgresql://host/sweeps
    """
    from losskit_cli.report import run_report

    run_report(sweep, storage=storage, output=output)


@app.command()
def ui(
    port: Annotated[int, typer.Option("--port", help="Where the page is on 127.0.0.1.")] = 5000,
    sweep: Annotated[str | None, typer.Option("--sweep", metavar="NAME", help="Optuna's dashboard on this sweep instead of MLflow's UI.")] = None,
    storage: Annotated[str | None, typer.Option("--storage", help="With --sweep: where it is kept; default: sweeps.db here.")] = None,
) -> None:
    """MLflow's UI on this directory's store, on this machine only.

    \b
    losskit ui
    losskit ui --port 5050
    losskit ui --sweep byte-lm-tpe
    """
    if sweep is not None:
        from losskit_cli.dashboard import run_dashboard

        run_dashboard(sweep, storage=storage, port=port)
        return
    if storage is not None:
        raise UsageError("--storage is about a sweep: losskit ui --sweep NAME --storage ADDRESS")
    from losskit_cli.compare import run_ui

    run_ui(port=port)


@app.command()
def sync(
    runs: Annotated[list[str] | None, typer.Argument(metavar="[RUN]...", help="Which; without any: every run that has something unsent.")] = None,
    uri: Annotated[str | None, typer.Option("--uri", help="The store to send to, for runs that are in none yet.")] = None,
) -> None:
    """Send what runs kept while the tracking server was away.

    \b
    losskit sync
    losskit sync outputs/2026-01-31/14-05-09-focal-digits-s3-brave-owl
    losskit sync --uri http://127.0.0.1:5000
    """
    from losskit_cli.commands import sync as command

    command(runs or [], uri=uri)


STORAGE = "Where sweeps are kept, for machines that share one.\n\n\b\nlosskit storage serve"
storage = typer.Typer(help=STORAGE, rich_markup_mode=None, no_args_is_help=True)
app.add_typer(storage, name="storage")


@storage.command()
def serve(
    address: Annotated[str | None, typer.Option("--storage", metavar="ADDRESS", help="sqlite:///file, postgresql://…, journal:file; else sweeps.db")] = None,
    host: Annotated[str, typer.Option("--host", help="The interface to listen on; 0.0.0.0: all. There is no login.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="0: a free one.")] = 13000,
) -> None:
    """Serve a storage to workers that cannot reach it themselves.

    Runs until Ctrl-C. Prints the grpc:// address that they use as sweep.storage.

    \b
    losskit storage serve
    losskit storage serve --storage postgresql://user:password@db/sweeps --host 0.0.0.0
    """
    from losskit_cli.errors import UsageError
    from sweeps.storage import StorageError
    from sweeps.storage import serve as until_stopped

    def announce(reached: str) -> None:
        write_out(f"serving, until Ctrl-C, at {reached}")
        sys.stdout.flush()

    try:
        until_stopped(address, host, port, announce=announce)
    except StorageError as error:
        raise UsageError(str(error)) from error


@app.command()
def doctor(json: Json = False) -> None:
    """Versions, devices, store, what is wrong and how to mend it.

    \b
    losskit doctor
    losskit doctor --json
    """
    from losskit_cli.doctor import run_doctor

    run_doctor(json=json)


@app.command()
def init(name: Annotated[str, typer.Argument(help="The project's name; a folder of that name is made.")]) -> None:
    """Start a project of your own: a loss, its option, a test.

    \b
    losskit init my_project
    """
    from losskit_cli.init_project import run_init

    run_init(name)


@app.command()
def completion(shell: Annotated[str, typer.Argument(help="bash, zsh or fish")]) -> None:
    """Print the shell's completion script.

    \b
    eval "$(losskit completion bash)"           # in ~/.bashrc
    eval "$(losskit completion zsh)"            # in ~/.zshrc
    losskit completion fish | source            # in ~/.config/fish/config.fish
    """
    from losskit_cli.completion import run_completion

    run_completion(shell)


@app.command()
def version(json: Json = False) -> None:
    """Print losskit's version.

    \b
    losskit version
    losskit version --json
    """
    from importlib.metadata import version as of

    write_out(f'{{"losskit": "{of("losskit")}"}}' if json else f"losskit {of('losskit')}")


def write_out(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def run(arguments: list[str]) -> int:
    """Run the command line and give its exit code: 0, 1 a failed run, 2 wrong usage, 130 Ctrl-C."""
    show_traceback = "--traceback" in arguments
    arguments = [a for a in arguments if a != "--traceback"]
    try:
        app(args=arguments, prog_name="losskit")
    except SystemExit as done:
        return int(done.code or 0)
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped\n")
        return 128 + signal.SIGINT
    except BrokenPipeError:  # `losskit list | head`
        sys.stderr.close()
        return 0
    except Exception as error:  # noqa: BLE001  the user reads one message, whatever happened
        if show_traceback:
            import traceback

            traceback.print_exception(error)
        sys.stderr.write(f"Error: {error if isinstance(error, LosskitError) else said_by(error)}\n")
        return error.exit_code if isinstance(error, LosskitError) else 1
    return 0
