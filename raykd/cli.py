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
from types import ModuleType
from typing import TYPE_CHECKING, Any

from raykd.errors import RaykdError, RecipeError

if TYPE_CHECKING:
    from raykd.recipe.methods import Method
    from raykd.recipe.recipe import Recipe
    from raykd.run.session import Session
    from raykd.store.store import Store

# kind of a recipe's method -> the module of its page, which is loaded when a recipe is run
METHODS = {"distill": "pipelines.distill", "mckd": "pipelines.mckd"}


def method_page(method: Method) -> ModuleType:
    """The page of a method: a module with `run`, `labels`, `teacher`, and STUDENT and ARM, its student's.

    Raises RecipeError where a page of the user's cannot be imported.
    """
    if method.kind != "own":
        return importlib.import_module(METHODS[method.kind])
    try:
        return importlib.import_module(method.page)
    except Exception as error:  # whatever the page's code raises
        first = (str(error).splitlines() or [""])[0]
        raise RecipeError(f"method.page: {method.page}: {type(error).__name__}: {first:.400}") from None


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
        sub = _command(commands, name, command, text)
        _add_recipe(sub)
        if command is not _check:
            _add_verbose(sub)
    sub = _command(
        commands, "tune", _tune, "search a space for the best recipe, or go on with it; the teacher labels once"
    )
    sub.add_argument("recipe", help="a YAML file, or the name of a shipped recipe")
    sub.add_argument("space", help="a Python file, or the name of a shipped space")
    sub.add_argument("overrides", nargs="*", metavar="section.field=value", help="values of the recipe to change")
    _add_verbose(sub)
    sub = _command(commands, "report", _report, "write the report of a run or a sweep again")
    sub.add_argument("run", help="a run folder, or a sweep's; or the URL of a run")
    text = "look after a store of pseudo-targets"
    sub = commands.add_parser("store", help=text, description=text)
    stores = sub.add_subparsers(required=True, metavar="COMMAND")
    for name, command, text in (
        ("show", _show, "say what a store holds, and how large it is"),
        ("verify", _verify, "read every byte of a store and name what is damaged"),
    ):
        sub = _command(stores, name, command, text)
        sub.add_argument("path", help="a store: a folder, or a URL that fsspec knows")
    return parser


def _command(
    commands: Any, name: str, command: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    sub = commands.add_parser(name, help=text, description=text)
    sub.set_defaults(command=command)
    return sub


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a YAML file, or the name of a shipped recipe")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="values to change")


def _add_verbose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--verbose", action="store_true", help="show what Ray and the engines print")


def _recipe(options: argparse.Namespace) -> Recipe:
    """The recipe, whose names are all there, and whose own modules this process can import."""
    from raykd.recipe.load import load_recipe
    from raykd.recipe.modules import put_on_path
    from raykd.recipe.names import require_names

    file = _file(options.recipe, "pipelines", "recipes", ".yaml")
    recipe = load_recipe(file, options.overrides)
    require_names(recipe, str(file))
    put_on_path(recipe.modules)
    return recipe


def _file(name: str, package: str, folder: str, ending: str) -> Path:
    """A file of the user's, or the one of that name that comes with raykd."""
    if os.path.exists(name) or "/" in name:
        return Path(name)
    spec = importlib.util.find_spec(package)
    places = (spec.submodule_search_locations if spec else None) or []
    files = [Path(place) / folder / f"{name.removesuffix(ending)}{ending}" for place in places]
    return next((file for file in files if file.exists()), Path(name))


def _check(options: argparse.Namespace) -> int:
    from raykd.recipe.load import dump_recipe, resolve_paths

    print(dump_recipe(resolve_paths(_recipe(options))), end="")
    return 0


def _run(options: argparse.Namespace) -> int:
    session, student = _execute(options, lambda page, session: page.run(session))
    from raykd.run import remote

    _report_on(session.path)
    session.console.say(f"student: {remote.shown(student)}")
    return _report_bad_rows(session)


def _label(options: argparse.Namespace) -> int:
    session, stored = _execute(options, lambda page, session: page.labels(session))
    from raykd.stages.preview import preview_pseudo_targets

    for line in preview_pseudo_targets(session, stored):
        session.console.say(line)
    session.console.say(f"store: {stored.store}")
    return _report_bad_rows(session)


def _report_bad_rows(session: Session) -> int:
    count, file = session.folder.left_out(), session.path / "bad_rows.jsonl"
    if count:
        session.console.say(f"{count} bad rows were left out, as data.max_bad_rows allows: {file}")
    return 0


def _execute(options: argparse.Namespace, work: Callable[[ModuleType, Session], Any]) -> tuple[Session, Any]:
    """The session of the recipe's run, over, and what `work(page of the method, session)` returned."""
    recipe = _runnable(options)  # first: an installation that only checks recipes must say so, not fail to import
    from raykd.console import Console
    from raykd.run.session import Session
    from raykd.stages.preflight import preflight

    page = method_page(recipe.method)
    console = Console(options.verbose)
    session = Session(recipe, console)
    with console.quiet(session.path / "logs" / "driver.log"), session:
        preflight(session)
        return session, work(page, session)


def _runnable(options: argparse.Namespace) -> Recipe:
    """The recipe. Raises RecipeError where it cannot run here."""
    recipe = _recipe(options)
    in_job = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
    if in_job and not os.path.isabs(recipe.output) and "://" not in recipe.output:
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
    sweep = importlib.import_module("pipelines.tune")
    results = sweep.run(recipe, searched, Console(options.verbose), method_page)
    _report_on_sweep(results, Path(recipe.output) / results["name"])
    failed = [trial for trial in results["trials"] if trial["state"] == "failed"]
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


def _report_on_sweep(results: dict[str, Any], folder: Path) -> None:
    goals = [metric for metric, _ in results["goals"]]
    for trial in results["trials"]:
        numbers = "  ".join(f"{name} {trial['metrics'][name]:.4g}" for name in goals if name in trial["metrics"])
        mark = "*" if trial["id"] in (results["front"] or [results["best"]]) else " "
        print(f"{mark} {trial['id']}  {trial['state']:>10}  {numbers}")
    if results["best"]:
        print(f"the best recipe: {folder / 'best.yaml'}")
    print(f"report: {folder / 'report.html'}")


def _report_on(folder: Path) -> None:
    from raykd.report.write import write_report
    from raykd.run import remote

    report = write_report(folder)
    remote.send(*(folder / f"report.{kind}" for kind in ("json", "md", "html")))
    for arm, scores in report["arms"].items():
        print(f"{arm:>12}  " + "  ".join(f"{name} {score:.2f}" for name, score in scores.items()))
    for warning in report["warnings"]:
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
    description = describe_store(store)
    print(f"sound: {description['rows']} rows in {description['shards']} shards")
    return 0


def _store(options: argparse.Namespace) -> Store:
    if importlib.util.find_spec("pyarrow") is None:
        raise RecipeError("this installation only checks recipes; to read stores: pip install 'raykd[run]'")
    from raykd.store.store import Store

    return Store(options.path)
