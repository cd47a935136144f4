"""`clip-jax compare`: two evaluations side by side, with what chance alone might explain."""

import argparse
import inspect
import pathlib
import sys

from clip_jax.cli.process import command

WIDE = 160
"""Columns of a table that goes to no terminal."""


@command
def main(argv: list[str]) -> None:
    """Compare two evaluations of the same data sets.

    Prints each data set's main figure for both, the difference B - A, its paired bootstrap 95%
    interval, and which is higher where the interval leaves 0 out; writes a page that also has all
    other metrics.
    """
    options = parser().parse_args(argv)
    from rich.console import Console

    from clip_jax.eval import page_compare as page
    from clip_jax.eval.compare import compare
    from clip_jax.eval.page_data import read_all

    options.a, options.b = _evaluation(options.a), _evaluation(options.b)
    sides = [read_all(folder) for folder in (options.a, options.b)]
    pairings = compare(*sides)
    lonely = page.unpaired(*([one.key for one in side] for side in sides))
    console = Console(file=sys.stdout, markup=False, highlight=False)
    console.width = console.width if console.is_terminal else WIDE
    console.print(page.terminal_table(pairings))
    for line in (f"A: {options.a}", f"B: {options.b}", *lonely, *page.notes(pairings)):
        console.print(line, soft_wrap=True)
    names = str(options.a), str(options.b)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    written = page.write_comparison(options.out, pairings, names, lonely)
    console.print(f"written: {written}", soft_wrap=True)


def _evaluation(given: pathlib.Path) -> pathlib.Path:
    """The folder with results: that itself, or of a run the one of the last step evaluated.

    Raises:
      FileNotFoundError: there is none; names those below.
    """
    if (given / "results").is_dir():
        return given
    steps = [path.parent for path in given.glob("suites/*/results") if path.parent.name.isdecimal()]
    if steps:
        return max(steps, key=lambda path: int(path.name))
    nearby = ("*/results", "*/*/results", "*/*/*/results")
    below = [str(path.parent) for depth in nearby for path in sorted(given.glob(depth))]
    more = f"; below it {', '.join(below)} have them" if below else ""
    raise FileNotFoundError(
        f"no evaluation in {given}: it has no results/, as eval.py MODEL --suite writes them{more}"
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="clip-jax compare",
        description=inspect.cleandoc(main.__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: clip-jax compare runs/small runs/large/suites/5000 --out compare.html",
    )
    for name in ("a", "b"):
        made.add_argument(
            name,
            metavar=f"RUN_{name.upper()}",
            type=pathlib.Path,
            help="the folder that an evaluation wrote, with results/ in it; or a run, for what "
            "its suites/STEP says of the last step evaluated",
        )
    made.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("compare.html"),
        metavar="FILE",
        help="the page to write (%(default)s)",
    )
    return made
