"""Searches for a good model of one of the paper's three tasks with Keras Tuner.

    python tuning/search.py --dataset sample
    python tuning/search.py --data_dir ptb --tuner bayesian --workers 2
    python tuning/search.py --units 256,640 --window 1-4 --zoneout 0.0-0.5 --layers 2
    python tuning/search.py --task sentiment --data_dir aclImdb --l2 1e-7-1e-4
    python tuning/search.py --task translation --data_dir multi30k

A hyperparameter is given as a value, as values separated by commas, or as a range. A
range includes both ends. A search can be killed at any moment: the same command resumes
it. docs/search.md has the details.
"""

import argparse
import itertools
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

try:
    import keras

    from keras_qrnn.training.command_line import (
        Parser,
        add_note,
        add_options,
        data_from,
        print_any_character,
        run_command,
    )
    from keras_qrnn.training.experiment import train_experiment
    from keras_qrnn.training.objective import Objective
    from keras_qrnn.training.options import count, named_fields, path
    from keras_qrnn.training.run_directory import check_directory, held

    try:
        import keras_tuner
    except ImportError as error:  # it imports six, on which it does not depend
        sys.exit(
            f"search.py: error: the search needs Keras Tuner, and {error}: "
            "pip install '.[tuning]' in a checkout of keras-qrnn"
        )

    from keras_tuner.errors import FatalError

    from search_directory import RECORD, check_record, prepare, refuse_foreign
    from search_oracles import TUNERS, make_oracle
    from search_results import best_table, completed, tidy_trials, write_results
    from search_space import Dimension, Hyperparameter, Space
    from search_task import (
        SIZES,
        STARTS,
        TASKS,
        USED_BY_QRNN,
        USED_WITH,
        Recipe,
        Task,
        trial_options,
    )
    from search_tuner import MAX_WAIT, TrialTuner
    from search_workers import (
        MAX_WORKERS,
        Chief,
        ask_chief_directly,
        end_with_parent,
        role,
        run_workers,
    )
except KeyboardInterrupt:  # the imports take seconds
    sys.exit(130)


def task_of(argv: Sequence[str]) -> Task:
    """The task of a command line."""
    first = Parser(prog="search.py", add_help=False)
    first.add_argument("--task", choices=tuple(TASKS), default="lm")
    return TASKS[first.parse_known_args(argv)[0].task]


def parser(task: Task) -> Parser:
    """The parser of the command lines of a task."""
    parser = Parser(
        prog="search.py",
        description="Searches for a good model with Keras Tuner. A hyperparameter is "
        "given as a value, as values separated by commas, or as a range with both its "
        f"ends: 256, 256,640 or 256-640. These are the options of task {task.name}; "
        "for those of another one give --task and --help.",
    )
    parser.add_argument(
        "--task", choices=tuple(TASKS), default="lm", help="what is learned (default "
        "lm, the language model)",
    )  # fmt: skip
    space = parser.add_argument_group(
        "the space: what has several values is searched, the rest is the same in all "
        "trials"
    )
    for name in task.searchable:
        hyperparameter = Hyperparameter(task.options, name)
        older = named_fields(task.options)[name].metadata["older_names"]
        scale = ", on a logarithmic scale" if hyperparameter.log else ""
        spellings = [f"--{each}" for each in (name, *older)]
        space.add_argument(
            *spellings, dest=name, metavar=name.upper(), default=argparse.SUPPRESS,
            help=f"{hyperparameter.help}{scale} (default {default_of(task, name)})",
        )  # fmt: skip

    def default(what: str) -> str:
        found = {name: getattr(recipe, what) for name, recipe in task.recipes.items()}
        return ", ".join(f"{value} for {name}" for name, value in found.items())

    search = parser.add_argument_group("the search")
    search.add_argument("--tuner", choices=TUNERS, default="random")
    search.add_argument(
        "--max_trials",
        type=int,
        help=f"trials at most (default {default('max_trials')}; with hyperband and "
        "grid as many as there are)",
    )
    search.add_argument(
        "--epochs",
        type=int,
        help="epochs of a trial, with hyperband of the longest (default "
        f"{default('epochs')})",
    )
    search.add_argument(
        "--executions_per_trial", type=int, default=1, help="runs of which a trial is "
        "the mean, with different seeds (default 1)",
    )  # fmt: skip
    search.add_argument(
        "--workers", type=int, default=0, help="processes on this machine that run "
        "trials at the same time (default 0: this one)",
    )  # fmt: skip
    search.add_argument(
        "--max_wait", type=int, default=MAX_WAIT, help="minutes that a trial waits for "
        f"an old worker that trains it and writes nothing (default {MAX_WAIT})",
    )  # fmt: skip
    search.add_argument(
        "--save_path", default=f"{task.name}-qrnn_search", help="directory of the "
        f"search (default {task.name}-qrnn_search)",
    )  # fmt: skip
    search.add_argument(
        "--overwrite", action="store_true", help="start anew, deleting what is there"
    )
    search.add_argument(
        "--verbose", type=int, choices=(0, 1, 2), default=2, help="0: print errors "
        "only; 1: also the trials; 2: also their epochs (default 2)",
    )  # fmt: skip
    search.add_argument("--launched", action="store_true", help=argparse.SUPPRESS)
    add_options(parser.add_argument_group("the data"), task.data)
    training = parser.add_argument_group(f"the training, as in {task.program}")
    add_options(training, task.options, task.plain)
    return parser


def default_of(task: Task, name: str) -> str:
    """The default of an option in each recipe, or the one that all have."""
    default = named_fields(task.options)[name].default
    found = {
        dataset: str(recipe.space.get(name, recipe.options.get(name, default)))
        for dataset, recipe in task.recipes.items()
        # Its sizes are those of the run that it starts from.
        if dataset != "pretrained" or name not in SIZES
    }
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return ", ".join(f"{values} for {dataset}" for dataset, values in found.items())


def check(arguments: argparse.Namespace) -> None:
    """Raises a ValueError for an option of the search that is out of its range."""
    for name in ("max_trials", "epochs", "executions_per_trial", "max_wait"):
        value = getattr(arguments, name)
        if value is not None:
            count(name, value)
    if not 0 <= arguments.workers <= MAX_WORKERS:
        raise ValueError(
            f"Option `workers` must not be negative or above {MAX_WORKERS}. "
            f"Received: workers={arguments.workers}"
        )
    path("save_path", arguments.save_path)


def check_role(part: str, arguments: argparse.Namespace) -> None:
    """Raises a ValueError for an option that does not go with the process's role."""
    if part != "single" and arguments.workers and not arguments.launched:
        raise ValueError(
            "Option `workers` starts a chief of its own: it does not go with the "
            "environment variables of Keras Tuner's chief and workers"
        )
    if part == "worker" and arguments.overwrite and not arguments.launched:
        raise ValueError("Option `overwrite` is for the chief, not for a worker")


def space_from(
    task: Task, recipe: Recipe, arguments: argparse.Namespace
) -> tuple[Space, dict[str, Any]]:
    """The space of the command line, and the options that have one value in it.

    The hyperparameters of the recipe are in the space, also with one value.
    """
    space, values = {}, {}
    for name in task.searchable:
        text = getattr(arguments, name, recipe.space.get(name))
        if text is None:
            continue
        dimension = Dimension.parse(Hyperparameter(task.options, name), text)
        if name in recipe.space or len(dimension.values) > 1:
            space[name] = dimension
        else:
            values[name] = dimension.values[0]
    return space, values


def options_from(
    task: Task,
    recipe: Recipe,
    arguments: argparse.Namespace,
    values: dict[str, Any],
) -> Any:
    """The options of all trainings, without the hyperparameters.

    Args:
        task: what is searched.
        recipe: that of the search.
        arguments: of the command line.
        values: options that the command line gives one value: see `space_from`.
    """
    plain = {n: getattr(arguments, n) for n in task.plain if n in arguments}
    epochs = arguments.epochs or recipe.epochs
    return task.options(**{**recipe.options, **plain, **values, "epochs": epochs})


def largest(space: Space, options: Any, executions: int) -> Any:
    """The options of the largest model of a search, with its last seed.

    No check reads more than three options. So all trials are valid if the trials are
    in which three hyperparameters have any values and the others have their first. A
    number is refused at an end of its values if it is refused at all.

    Raises:
        ValueError: if a trial could have options that do not go together.
    """
    options = options.changed(seed=options.seed + executions - 1)
    ends = {name: ends_of(dimension) for name, dimension in space.items()}
    first = {name: values[0] for name, values in ends.items()}
    several = [name for name, values in ends.items() if len(values) > 1]
    for names in itertools.combinations(several, min(3, len(several))):
        for values in itertools.product(*(ends[name] for name in names)):
            trial_options(options, first | dict(zip(names, values, strict=True)))
    return trial_options(options, {n: max(d.values) for n, d in space.items()})


def ends_of(dimension: Dimension) -> list:
    """The smallest and the largest of numbers, or all values of another type."""
    values = dimension.values
    if dimension.hyperparameter.type is str:
        return list(values)
    return sorted({min(values), max(values)})


def check_space(task: Task, space: Space, options: Any) -> None:
    """Raises a ValueError for a hyperparameter that the trials do not use.

    Those are pooling, window and others with another cell than the QRNN, the sizes if
    the trials start from the weights of a run, and what another optimizer or schedule
    uses.
    """
    unused: dict[str, tuple[str, ...]] = {}
    for name, other, users in USED_WITH:
        found = space[other].values if other in space else [getattr(options, other)]
        if users.isdisjoint(found):
            why = f"{other} {' or '.join(found)}, which does not use them"
            unused[why] = (*unused.get(why, ()), name)
    if options.cell != "qrnn":
        unused[f"cell {options.cell}, which does not use them"] = USED_BY_QRNN
    for start in task.experiment.paths:
        if getattr(options, start) is not None:
            unused[f"`{start}`, whose sizes are those of all trials"] = STARTS[start]
    for why, options_of_it in unused.items():
        found = [n for n in options_of_it if n in space and len(space[n].values) > 1]
        if found:
            names = "`, `".join(found)
            received = ", ".join(f"{name}={str(space[name])!r}" for name in found)
            raise ValueError(
                f"Options `{names}` must have one value each with {why}. "
                f"Received: {received}"
            )


def check_tuner(tuner: str, space: Space, options: Any) -> None:
    """Raises a ValueError if the tuner cannot run such trials."""
    schedules = space["schedule"].values if "schedule" in space else [options.schedule]
    if tuner == "hyperband" and "one_cycle" in schedules:
        raise ValueError(
            "Option `schedule` must be decay with tuner hyperband. It trains good "
            "trials for more epochs, and the rates of one cycle depend on the number "
            "of epochs. Received: schedule='one_cycle'"
        )


def record(
    task: Task,
    arguments: argparse.Namespace,
    space: Space,
    options: Any,
    fingerprint: str,
) -> dict[str, Any]:
    """The record of a search. Trials of searches with equal records are comparable."""
    # The space holds the hyperparameters. How often checkpoints are written may change.
    free = {"save_every", *space}
    fixed = {name: v for name, v in asdict(options).items() if name not in free}
    for name in task.experiment.paths:
        if fixed[name] is not None:
            fixed[name] = str(Path(fixed[name]).resolve())
    return {
        "task": task.name,
        "backend": keras.config.backend(),  # each draws other random numbers
        **{name: str(dimension) for name, dimension in space.items()},
        "tuner": arguments.tuner,
        "executions_per_trial": arguments.executions_per_trial,
        **fixed,
        "data": fingerprint,
    }


def run(task: Task, arguments: argparse.Namespace, argv: list[str]) -> None:
    """The search, in the role that this process has in it.

    Every option is checked before the data are loaded, and against the data before
    the directory is made.
    """
    check(arguments)
    part, directory = role(), Path(arguments.save_path).absolute()
    check_role(part, arguments)
    check_directory("save_path", directory)
    data = data_from(arguments, task.data)
    recipe = task.recipe(data.dataset, getattr(arguments, "pretrained", None))
    space, values = space_from(task, recipe, arguments)
    options = options_from(task, recipe, arguments, values)
    check_space(task, space, options)
    model = largest(space, options, arguments.executions_per_trial)
    check_tuner(arguments.tuner, space, options)
    max_trials = arguments.max_trials
    if max_trials is None and arguments.tuner not in ("hyperband", "grid"):
        max_trials = recipe.max_trials
    oracle = make_oracle(
        arguments.tuner, space, task.objective, max_trials, options.epochs, options.seed
    )
    experiment_of = task.load(data)
    experiment = experiment_of(model)
    experiment.prepare(goes_on=False)
    if any(getattr(model, name) is not None for name in experiment.paths):
        # Refuses weights of other sizes.
        experiment.start(experiment.model(len(experiment.batches())))
    print(experiment.summary, flush=True)
    expected = record(task, arguments, space, options, task.fingerprint(experiment))
    # A vocabulary depends on no hyperparameter.
    vocabulary = experiment.vocabulary
    del experiment  # what the runs start from may be large

    def train(
        options: Any, path: Path, callbacks: Sequence[keras.callbacks.Callback]
    ) -> list[dict]:
        return train_experiment(
            experiment_of(options), path, resume=True, callbacks=callbacks, verbose=0
        )

    def make_tuner() -> TrialTuner:
        return TrialTuner(
            oracle, directory, task, train, options, arguments.executions_per_trial,
            arguments.verbose, arguments.max_wait,
        )  # fmt: skip

    def results() -> list[dict]:
        return write_results(
            oracle, directory, space, task.objective, options, recipe, vocabulary
        )

    if part == "worker":
        ask_chief_directly()
        tuner = make_tuner()
        tuner.oracle.get_space()  # waits for the chief
        if not (directory / RECORD).exists():
            raise FileNotFoundError(
                f"Option `save_path`: the chief's search is not in {directory}. All "
                "machines must share that directory"
            )
        check_record(directory / RECORD, expected, task.options)
        tuner.search()
        return
    refuse_foreign(directory)  # before the lock's file is made there
    with held(directory, "searched"):
        if prepare(directory, expected, task.options, arguments.overwrite):
            print(f"Goes on with the search in {directory}", flush=True)
        tuner = make_tuner()
        try:
            if part == "chief":
                serve(oracle)
            elif arguments.workers:
                command = [sys.executable, str(Path(__file__).absolute())]
                command += ["--launched", *argv]
                run_workers(oracle, arguments.workers, command, directory)
            else:
                tuner.search()
            if oracle.failure:
                raise RuntimeError(str(oracle.failure))
        except KeyboardInterrupt:
            rows = results()
            raise KeyboardInterrupt(
                f"Trials that have ended: {len(rows)}. Start it again and it goes on."
            ) from None
        except Exception as error:
            try:
                results()  # of the trials that have ended
            except OSError as failed:
                add_note(error, f"The results were not written: {failed}")
            raise
        tidy_trials(oracle, directory, task.objective)
        rows = results()
    words = data.command_line(task.search_only)
    words = ["python", task.program, *words, "--config", str(directory / "best.json")]
    print_results(rows, space, task.objective, directory, words)


def serve(oracle: keras_tuner.Oracle) -> None:
    """Serves the oracle to workers, where keras-tuner's variables say."""
    address = os.environ["KERASTUNER_ORACLE_IP"]
    port = os.environ["KERASTUNER_ORACLE_PORT"]
    with Chief(oracle, address, port) as chief:
        print(f"The chief waits for workers at {address}:{port}", flush=True)
        chief.wait()


def print_results(
    rows: list[dict],
    space: Space,
    objective: Objective,
    directory: Path,
    train: Sequence[str],
) -> None:
    """Prints the best trials and how to go on from them.

    Args:
        rows: those of the table of the trials.
        space: what was searched.
        objective: the metric that ranks the trials.
        directory: the directory of the search.
        train: the command that trains the best in full.

    Raises:
        RuntimeError: if no trial came to an end.
    """
    ended = len(completed(rows))
    if not ended:
        raise RuntimeError(
            f"None of {len(rows)} trials came to an end; see {directory / 'trials.csv'}"
        )
    print(f"\n{ended} of {len(rows)} trials completed. The best:\n")
    print(best_table(rows, space, objective))
    print(
        f"\nIn {directory}: trials.csv, best.json, best_model.keras, objective.png, "
        "hyperparameters.png, parallel.png\n"
        f"Train the best in full: {shlex.join(train)}\n"
        f"TensorBoard: {shlex.join(['tensorboard', '--logdir', str(directory)])}",
        flush=True,
    )


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    task = task_of(argv)
    commands = parser(task)
    arguments, unknown = commands.parse_known_args(argv)
    if unknown:
        commands.error(
            f"task {task.name} has no option {unknown[0]}: see --task {task.name} "
            "--help"
        )
    if arguments.launched:
        end_with_parent()
    print_any_character()

    def command() -> None:
        if arguments.verbose:
            run(task, arguments, argv)
            return
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            run(task, arguments, argv)

    return run_command(
        "search.py",
        command,
        (RuntimeError, FatalError),
        "Start it again and it goes on.",
    )


if __name__ == "__main__":
    sys.exit(main())
