"""`clip-jax ensemble`: several models classify together."""

import argparse
import functools
import inspect
import pathlib
import sys
from typing import Any

from clip_jax.cli import suites
from clip_jax.cli.process import command, keep_compiled


@command
def main(argv: list[str]) -> None:
    """Classify by names with several models whose answers are averaged.

    Models may differ in everything. Prints each model's accuracy beside that of all together, and
    writes what eval.py writes. Of a suite the data sets with one label a sample are taken.
    """
    options = parser().parse_args(argv)
    if len(set(options.models)) < max(len(options.models), 2):
        raise ValueError(f"an ensemble needs two or more models, each once; got {options.models}")
    keys = suites.chosen(options, whom="an ensemble")
    cache = suites.cache_of(options)
    find = suites.finder(keys, options)
    keep_compiled()
    from rich.console import Console

    from clip_jax.cli.progress import EmbeddingBar
    from clip_jax.eval import measure_ensemble
    from clip_jax.eval.once import Embeddings
    from clip_jax.eval.run_suite import Measures, run_suite

    console = Console(file=sys.stdout)
    say = suites.sayer(console)
    models = {path: suites.suite_model(path, options.batch) for path in options.models}
    suites.make_folder(options.out)
    with EmbeddingBar(console) as progress:
        models = {path: suites.showing(model, progress, say) for path, model in models.items()}
        members = {path: Embeddings(model, cache, say) for path, model in models.items()}
        measure = functools.partial(measure_ensemble.ensemble, members=members, by=options.average)
        report = run_suite(
            keys,
            lambda key: find(key, say),
            measure_ensemble.joined(models),
            options.out,
            cache,
            say,
            Measures(by_kind={"zero_shot": measure}, settings=f"the average {options.average}"),
        )
    if report.outcomes:
        console.print(_table(report))
    name = f"{' + '.join(options.models)}, the average {options.average}"
    suites.finish(report, options.out, name, console, say)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="clip-jax ensemble",
        description=inspect.cleandoc(main.__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: clip-jax ensemble ViT-B-32/openai ViT-B-16/openai --suite imagenet1k "
        "--root /data --out both",
    )
    made.add_argument("models", nargs="+", metavar="MODEL", help="anything clip_jax.load takes")
    made.add_argument(
        "--average",
        choices=("probability", "logits"),
        default="probability",
        help="what of the models is averaged, each at its own temperature (%(default)s)",
    )
    suites.add_places(made, required=True)
    made.add_argument(
        "--batch", type=int, metavar="N", help="images, or texts, per call (16 on CPU, else 64)"
    )
    made.add_argument(
        "--out", type=pathlib.Path, required=True, metavar="FOLDER", help="for all that is written"
    )
    return made


def _table(report: Any) -> Any:
    """The accuracy of each model, of all together, and what that gains."""
    from rich.table import Table
    from rich.text import Text

    from clip_jax.eval.measure_ensemble import MODELS

    drawn = Table(title="Accuracy")
    drawn.add_column("data set", style="bold", overflow="fold")
    drawn.add_column("model", overflow="fold")
    drawn.add_column("acc1", justify="right", no_wrap=True)
    for found in report.outcomes.values():
        first = found.dataset
        for name, row in found.tables[MODELS].items():
            drawn.add_row(Text(first), Text(name), f"{row['acc1']:.4f}")
            first = ""
        drawn.add_row("", "all together", f"{found.figures['acc1']:.4f}")
        drawn.add_row("", "gain over the best", f"{found.figures['acc1_gain']:+.4f}")
        drawn.add_section()
    return drawn
