"""`clip-jax models`: the known architectures, their costs, and the weights that can be loaded."""

import argparse
import dataclasses
import difflib
import fnmatch
import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from clip_jax.cli.process import command

if TYPE_CHECKING:
    from clip_jax.pretrained.catalog import ModelRow, Published

MODELS = ("name", "parameters\n(M)", "image\nGFLOPs", "text\nGFLOPs", "image\nsize", "tokens")
WEIGHTS = ("name", "parameters\n(M)", "image\nsize")


@command
def main(argv: list[str]) -> None:
    """List the known architectures and what they cost, or the weights that can be loaded."""
    options = parser().parse_args(argv)
    from clip_jax.pretrained import catalog

    rows = {row.name: row for row in catalog.list_models()}
    if options.tags:
        known = catalog.published()
        names = [f"{name}/{tag}" for name, row in rows.items() for tag in row.tags]
        names = _matching(options.pattern, names)
        if options.json:
            return _print_json([_weights(known[name], rows[known[name].model]) for name in names])
        cells = [_weights_cells(known[name], rows[known[name].model]) for name in names]
        return _print_table(WEIGHTS, "Hugging Face hub", cells)
    names = _matching(options.pattern, rows)
    if options.json:
        return _print_json([dataclasses.asdict(rows[name]) for name in names])
    _print_table(MODELS, "known weights", [_model_cells(rows[name]) for name in names])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="clip-jax models",
        description=main.__doc__,
        epilog="clip_jax.load('NAME/WEIGHTS') loads one, as in clip_jax.load('ViT-B-32/openai').",
    )
    made.add_argument(
        "pattern", nargs="?", default="", help="part of a name, or a shell pattern: 'ViT-?-32*'"
    )
    made.add_argument("--tags", action="store_true", help="a line for each set of known weights")
    made.add_argument("--json", action="store_true", help="for programs, nothing rounded or cut")
    return made


def _matching(pattern: str, known: Iterable[str]) -> list[str]:
    """Names that hold the pattern, whether it is in capitals or not."""
    known, wanted = list(known), pattern.lower()
    if not set(wanted) & set("*?["):
        wanted = f"*{wanted}*"
    found = [name for name in known if fnmatch.fnmatchcase(name.lower(), wanted)]
    if not found:
        near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.0)
        raise ValueError(f"no name fits {pattern!r}; nearest: {', '.join(near)}")
    return found


def _model_cells(row: "ModelRow") -> list[str]:
    more = f" +{len(row.tags) - 1}" if len(row.tags) > 1 else ""
    return [
        row.name,
        f"{row.parameters / 1e6:.2f}",
        f"{row.image_gflops:.2f}",
        f"{row.text_gflops:.2f}",
        str(row.image_size),
        str(row.context_length),
        "".join(row.tags[:1]) + more,
    ]


def _weights_cells(weights: "Published", row: "ModelRow") -> list[str]:
    return [weights.name, f"{row.parameters / 1e6:.2f}", str(row.image_size), weights.hub]


def _weights(weights: "Published", row: "ModelRow") -> dict[str, str | int]:
    return {
        "name": weights.name,
        "hub": weights.hub,
        "preset": weights.preset,
        "parameters": row.parameters,
        "image_size": row.image_size,
    }


def _print_json(rows: Sequence[object]) -> None:
    print(json.dumps(rows, indent=2))


def _print_table(columns: Sequence[str], last: str, rows: Iterable[Sequence[str]]) -> None:
    """One line a row, so that `grep` gives whole ones; a narrow terminal cuts the last column.

    In a file or a pipe it is as wide as it needs, so that nothing is cut.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        side = "left" if name == "name" else "right"
        table.add_column(name, justify=side, no_wrap=True, vertical="bottom")
    table.add_column(last, vertical="bottom")
    for *cells, end in rows:
        table.add_row(*cells, Text(end, no_wrap=True, overflow="ellipsis"))
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console.width = 10_000  # A measure is never above the width of its console.
        console.width = console.measure(table).maximum
    console.print(table)
