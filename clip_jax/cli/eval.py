"""`eval.py` and `clip-jax eval`."""

import argparse
import dataclasses
import functools
import inspect
import pathlib
import sys
from typing import Any

from clip_jax.cli import eval_suite, suites
from clip_jax.cli.process import command, keep_compiled


@command
def main(argv: list[str]) -> None:
    """Evaluate a model: a run's own evaluations, or with --suite any model on public data sets.

    Prints a table and writes eval.json and pictures.
    """
    options = parser().parse_args(argv)
    _require_fitting(options)
    keep_compiled()
    if options.suite is not None:
        return eval_suite.evaluate(options)
    from rich.console import Console

    from clip_jax.api import load
    from clip_jax.checkpoint.start import checkpoint_folder, saved_config
    from clip_jax.cli.progress import EmbeddingBar
    from clip_jax.config import read_json
    from clip_jax.eval.remember import remembering
    from clip_jax.eval.report import draw_evals, table
    from clip_jax.eval.suite import done, prefix, run_evals, write_figures

    console = Console(file=sys.stdout)
    checkpoint = checkpoint_folder(options.model)
    out = options.out or _out(pathlib.Path(options.model).resolve(), checkpoint)
    config = saved_config(checkpoint)
    dataset, evals = _own(config, options)
    clip = load(str(checkpoint), batch=options.batch or config["eval_batch"])
    warn = functools.partial(console.print, markup=False, highlight=False, soft_wrap=True)
    with EmbeddingBar(console) as progress:
        told = dataclasses.replace(clip.embedder, progress=progress, warn=warn)
        embedder = remembering(told)  # Figures and pictures need the same embeddings.
        figures = run_evals(evals, dataset, embedder, options.evals)
    left_out = any(name.endswith("/left_out") for name in figures)
    out.mkdir(parents=True, exist_ok=True)
    if options.evals and (out / "eval.json").exists():
        again = tuple(prefix(name, evals[name]) for name in options.evals)
        before = read_json(out / "eval.json").items()
        figures |= {name: value for name, value in before if not name.startswith(again)}
    write_figures(out / "eval.json", figures)
    console.print(table(figures))
    chosen = {name: evals[name] for name in options.evals or evals}
    drawn = draw_evals(done(chosen, figures), dataset, embedder, out / "plots")
    for path in [out / "eval.json", *drawn]:
        console.print(f"written: {path}", highlight=False, soft_wrap=True)
    if left_out:  # What was told above must not pass for done.
        raise SystemExit(suites.LEFT_OUT)


def _own(config: dict[str, Any], options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """Data set and evaluations of a run."""
    from clip_jax.config import from_data
    from clip_jax.data import DatasetConfig
    from clip_jax.eval.suite import EvalConfig

    if "data" not in config:  # The average of weights from elsewhere.
        raise ValueError(
            f"{options.model} was not trained here, so it has no evaluations of its own: "
            "give --suite"
        )
    dataset = from_data(DatasetConfig, config["data"], "data")
    if options.data_root is not None:
        dataset = _moved(dataset, options.data_root)
    return dataset, from_data(dict[str, EvalConfig], config["evals"], "evals")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="eval.py",
        description=inspect.cleandoc(main.__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=eval_suite.EPILOG,
    )
    made.add_argument(
        "model",
        help="a run folder (its newest checkpoint), one checkpoints/STEP; with --suite "
        "anything that clip_jax.load takes",
    )
    made.add_argument(
        "--batch",
        type=int,
        help="images, or texts, per call (the run's; with --suite 16 on CPU, else 64)",
    )
    made.add_argument(
        "--out",
        type=pathlib.Path,
        metavar="FOLDER",
        help="for all that is written (the run folder; RUN/eval/STEP for a checkpoint; "
        "suites/MODEL with --suite, in the run folder if it is one)",
    )
    own = made.add_argument_group("a run's own evaluations")
    own.add_argument("--evals", nargs="+", metavar="NAME", help="only these of the run's")
    own.add_argument("--data.root", dest="data_root", metavar="PATH", help="where the data is now")
    eval_suite.add_options(made)
    return made


def _require_fitting(options: argparse.Namespace) -> None:
    """Options of the two ways to evaluate do not mix."""
    own = {"--evals": options.evals, "--data.root": options.data_root}
    wrong = {name: value for name, value in eval_suite.given(options).items() if value is not None}
    if options.suite is not None:
        wrong = {name: value for name, value in own.items() if value is not None}
    if wrong:
        without = "with" if options.suite is not None else "without"
        raise ValueError(f"{', '.join(wrong)} cannot be given {without} --suite")


def _moved(dataset: Any, root: str) -> Any:
    if not any(field.name == "root" for field in dataclasses.fields(dataset)):
        raise ValueError(f"--data.root: {type(dataset).__name__} reads no folder")
    return dataclasses.replace(dataset, root=root)


def _out(given: pathlib.Path, checkpoint: Any) -> pathlib.Path:
    if (given / "checkpoints").exists():
        return given
    if given.parent.name != "checkpoints":
        raise ValueError(f"{given} lies in no run folder: say with --out where to write")
    return given.parent.parent / "eval" / checkpoint.name
