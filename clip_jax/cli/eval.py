"""`eval.py` and `clip-jax eval`."""

import argparse
import dataclasses
import functools
import pathlib
import sys
from typing import Any

from clip_jax.cli.process import command


@command
def main(argv: list[str]) -> None:
    """Evaluate a run or checkpoint: prints a table, writes eval.json and pictures."""
    options = parser().parse_args(argv)
    from rich.console import Console

    from clip_jax.api import load
    from clip_jax.checkpoint.start import checkpoint_folder, saved_config
    from clip_jax.cli.progress import EmbeddingBar
    from clip_jax.config import from_data, read_json
    from clip_jax.data import DatasetConfig
    from clip_jax.eval.report import draw_evals, table
    from clip_jax.eval.suite import EvalConfig, run_evals, write_figures

    console = Console(file=sys.stdout)
    checkpoint = checkpoint_folder(options.model)
    out = options.out or _out(pathlib.Path(options.model).resolve(), checkpoint)
    config = saved_config(checkpoint)
    dataset = from_data(DatasetConfig, config["data"], "data")
    if options.root is not None:
        dataset = _moved(dataset, options.root)
    evals = from_data(dict[str, EvalConfig], config["evals"], "evals")
    clip = load(str(checkpoint), batch=options.batch or config["eval_batch"])
    warn = functools.partial(console.print, markup=False, highlight=False, soft_wrap=True)
    with EmbeddingBar(console) as progress:
        embedder = dataclasses.replace(clip.embedder, progress=progress, warn=warn)
        figures = run_evals(evals, dataset, embedder, options.evals)
    out.mkdir(parents=True, exist_ok=True)
    if options.evals and (out / "eval.json").exists():
        figures = {**read_json(out / "eval.json"), **figures}  # The others stay as they were.
    write_figures(out / "eval.json", figures)
    console.print(table(figures))
    chosen = {name: evals[name] for name in options.evals or evals}
    drawn = draw_evals(chosen, dataset, embedder, out / "plots")
    for path in [out / "eval.json", *drawn]:
        console.print(f"written: {path}", highlight=False, soft_wrap=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="eval.py", description=main.__doc__)
    made.add_argument("model", help="a run folder (its newest checkpoint), or one checkpoints/STEP")
    made.add_argument("--evals", nargs="+", metavar="NAME", help="only these of the run's")
    made.add_argument("--data.root", dest="root", metavar="PATH", help="where the data is now")
    made.add_argument("--batch", type=int, help="images, or texts, per call (the run's eval_batch)")
    made.add_argument(
        "--out",
        type=pathlib.Path,
        metavar="FOLDER",
        help="for eval.json and plots/ (the run folder; RUN/eval/STEP for a checkpoint)",
    )
    return made


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
