"""The command line: `raykd run | label | tune | check | report | store`.

Exit codes: 0 done; 1 an error in the run; 2 a recipe or command line that cannot be run; 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raykd.errors import RaykdError, RecipeError

PIPELINES = {"distill": "pipelines.distill", "mckd": "pipelines.mckd", "tune": "pipelines.tune"}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except RaykdError as error:
        print(f"raykd: {error}", file=sys.stderr)
        return 2 if isinstance(error, RecipeError) else 1
    except KeyboardInterrupt:
        print("raykd: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="raykd", description="Distil a large teacher into a small student, on Ray.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command, text in (
        ("run", _run, "run a recipe, or go on with it"),
        ("label", _label, "run a recipe up to its teacher's labels; `raykd run` goes on from there"),
        ("check", _check, "validate a recipe and print it with every default written out"),
    ):
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("recipe", help="a YAML file, or the name of a shipped recipe")
        sub.add_argument("overrides", nargs="*", metavar="section.field=value", help="values to change")
        sub.set_defaults(command=command)
        if command is not _check:
            sub.add_argument("--verbose", action="store_true", help="show what Ray and the engines say")
    text = "search a space for the best recipe, or go on with it; the teacher answers once"
    sub = commands.add_parser("tune", help=text, description=text)
    sub.add_argument("recipe", help="a YAML file, or the name of a shipped recipe")
    sub.add_argument("space", help="a Python file, or the name of a shipped space")
    sub.add_argument("overrides", nargs="*", metavar="section.field=value", help="values of the recipe to change")
    sub.add_argument("--verbose", action="store_true", help="show what Ray and the engines say")
    sub.set_defaults(command=_tune)
    text = "write the report of a run or a sweep again"
    sub = commands.add_parser("report", help=text, description=text)
    sub.add_argument("run", help="a run folder, or a sweep's; or the URL of a run")
    sub.set_defaults(command=_report)
    sub = commands.add_parser("store", help="look after a store", description="look after a store of answers")
    stores = sub.add_subparsers(required=True, metavar="COMMAND")
    for name, command, text in (
        ("show", _show, "say what a store holds, and how large it is"),
        ("verify", _verify, "read every byte of a store and name what is damaged"),
    ):
        sub = stores.add_parser(name, help=text, description=text)
        sub.add_argument("path", help="a store: a folder, or a URL that fsspec knows")
        sub.set_defaults(command=command)
    return parser


def _recipe(options: argparse.Namespace):
    from raykd.recipe.load import load_recipe

    return load_recipe(_file(options.recipe, "pipelines", "recipes", ".yaml"), options.overrides)


def _file(name: str, package: str, folder: str, ending: str) -> Path:
    """A file of the user's, or the one of that name that comes with raykd."""
    if os.path.exists(name) or "/" in name:
        return Path(name)
    found = importlib.util.find_spec(package)
    places = (found.submodule_search_locations if found else None) or []
    files = [Path(place) / folder / f"{name.removesuffix(ending)}{ending}" for place in places]
    return next((file for file in files if file.exists()), Path(name))


def _check(options: argparse.Namespace) -> int:
    from raykd.recipe.load import dump_recipe, resolve_paths

    print(dump_recipe(resolve_paths(_recipe(options))), end="")
    return 0


def _run(options: argparse.Namespace) -> int:
    from raykd.run import remote

    run, student = _execute(options, lambda pipeline, run: pipeline.run(run))
    _report_on(run.path)
    run.console.say(f"student: {remote.shown(student)}")
    return _left_out(run)


def _label(options: argparse.Namespace) -> int:
    run, labels = _execute(options, lambda pipeline, run: pipeline.labels(run))
    from raykd.stages.preview import (
        preview_pseudo_targets,  # here, so that an installation that only checks recipes has said so
    )

    for line in preview_pseudo_targets(run, labels):
        run.console.say(line)
    run.console.say(f"store: {labels.store}")
    return _left_out(run)


def _left_out(run: Any) -> int:
    count = run.folder.left_out()
    if count:
        run.console.say(f"{count} bad rows were left out, as data.max_bad_rows allows: {run.path / 'bad_rows.jsonl'}")
    return 0


def _execute(options: argparse.Namespace, work: Callable[[Any, Any], Any]) -> tuple[Any, Any]:
    """A run of the recipe, and what `work(pipeline, run)` made of it."""
    recipe = _runnable(options)
    from raykd.console import Console
    from raykd.run.session import Session

    pipeline = importlib.import_module(PIPELINES[recipe.method.kind])
    console = Console(options.verbose)
    run = Session(recipe, console)
    with console.quiet(run.path / "logs" / "driver.log"), run:
        return run, work(pipeline, run)


def _runnable(options: argparse.Namespace):
    """The recipe. Raises RecipeError where it cannot run here."""
    recipe = _recipe(options)
    if (
        os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
        and not os.path.isabs(recipe.output)
        and "://" not in recipe.output
    ):
        raise RecipeError(
            f"output: {recipe.output!r} is relative, and a Ray job's folder vanishes with it: give an absolute path"
        )
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("torch") is None:
        raise RecipeError(
            "this installation only checks recipes; to run them: pip install 'raykd[cpu]' or 'raykd[vllm]'"
        )
    return recipe


def _tune(options: argparse.Namespace) -> int:
    recipe = _runnable(options)
    from raykd.console import Console
    from raykd.recipe import space

    searched = space.load_space(_file(options.space, "tune_spaces", "", ".py"))
    pipeline = importlib.import_module(PIPELINES["tune"])
    found = pipeline.run(recipe, searched, Console(options.verbose))
    _report_on_sweep(found, Path(recipe.output) / found["name"])
    failed = [trial for trial in found["trials"] if trial["state"] == "failed"]
    for trial in failed:
        print(f"raykd: trial {trial['id']}: {trial['error']}", file=sys.stderr)
    return 1 if failed else 0


def _report(options: argparse.Namespace) -> int:
    from raykd.report.sweep import SEARCHED, write_sweep_report
    from raykd.run import remote
    from raykd.run.folder import fetch_run

    folder = remote.folder(options.run)
    if remote.url(folder):
        fetch_run(folder)
    if (folder / SEARCHED).exists():
        _report_on_sweep(write_sweep_report(folder), folder)
    else:
        _report_on(folder)
    return 0


def _report_on_sweep(found: dict[str, Any], folder: Path) -> None:
    goals = [metric for metric, _ in found["goals"]]
    for trial in found["trials"]:
        numbers = "  ".join(f"{name} {trial['metrics'][name]:.4g}" for name in goals if name in trial["metrics"])
        mark = "*" if trial["id"] in (found["front"] or [found["best"]]) else " "
        print(f"{mark} {trial['id']}  {trial['state']:>10}  {numbers}")
    if found["best"]:
        print(f"the best recipe: {folder / 'best.yaml'}")
    print(f"report: {folder / 'report.html'}")


def _report_on(folder: Path) -> None:
    from raykd.report.write import write_report
    from raykd.run import remote

    found = write_report(folder)
    remote.send(*(folder / f"report.{kind}" for kind in ("json", "md", "html")))
    for arm, values in found["arms"].items():
        print(f"{arm:>12}  " + "  ".join(f"{name} {value:.2f}" for name, value in values.items()))
    for warning in found["warnings"]:
        print(f"warning: {warning}")
    print(f"report: {remote.shown(folder / 'report.html')}")


def _show(options: argparse.Namespace) -> int:
    import yaml

    store = _store(options)
    from raykd.store.verify import describe_store

    print(yaml.safe_dump(describe_store(store), sort_keys=False, allow_unicode=True), end="")
    return 0


def _verify(options: argparse.Namespace) -> int:
    store = _store(options)
    from raykd.store.verify import describe_store, verify_store

    lines = verify_store(store)
    if lines:
        print("\n".join(lines))
        return 1
    found = describe_store(store)
    print(f"sound: {found['rows']} rows in {found['shards']} shards")
    return 0


def _store(options: argparse.Namespace):
    if importlib.util.find_spec("pyarrow") is None:
        raise RecipeError("this installation only checks recipes; to read stores: pip install 'raykd[run]'")
    from raykd.store.store import Store

    return Store(options.path)
