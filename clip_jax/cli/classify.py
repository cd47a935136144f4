"""`clip-jax classify`: images into classes that are named in words."""

import argparse
import dataclasses
import json
import sys
import unicodedata
from pathlib import Path
from typing import Any

from clip_jax.cli.process import add_model, command
from clip_jax.cli.progress import EmbeddingBar, ignoring

DEFAULT_TEMPLATE = "a photo of a {}."


@command
@ignoring(".*has no tokenizer")  # It is an error here, in the same words.
def main(argv: list[str]) -> None:
    """Sort images into classes named in words, with no training; prints their probabilities.

    The probabilities of an image add up to 1 over the classes, whatever it shows.
    """
    options = parser().parse_args(argv)
    classes = _classes(options)
    from rich.console import Console

    from clip_jax.api import load
    from clip_jax.data.images import find_images
    from clip_jax.eval import zero_shot

    templates = options.template or [DEFAULT_TEMPLATE]
    zero_shot.require_placeholders(templates)
    images = find_images(options.images)
    clip = load(options.model)
    said = Console(file=sys.stderr)
    with EmbeddingBar(said) as progress:
        embedder = dataclasses.replace(clip.embedder, progress=progress)
        # No larger than needed: a batch is always filled. Words first: they fail at once.
        words = dataclasses.replace(embedder, batch=min(clip.batch, len(classes) * len(templates)))
        weights = zero_shot.classifier(words.texts, classes, templates)
        embedder = dataclasses.replace(
            embedder, batch=min(options.batch or clip.batch, len(images))
        )
        found = embedder.source(images)
    for message in found.skipped:
        print(f"left out: {message}", file=sys.stderr)
    if not found.keys:
        raise ValueError("none of the images could be read")
    odds = zero_shot.classify(found.images, weights, scale=clip.scale)
    if options.json:
        for key, row in zip(found.keys, odds, strict=True):
            figures = {name: float(p) for name, p in zip(classes, row, strict=True)}
            print(json.dumps({"image": key, "probabilities": figures}))
    else:
        _print_table(found.keys, classes, odds, min(options.top, len(classes)))
    if found.skipped:
        raise SystemExit(1)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="clip-jax classify",
        description=main.__doc__,
        epilog='example: clip-jax classify photos/ --classes "cat,dog,teapot" --top 2. '
        "Images that cannot be read are named and left out, and the exit status is 1 instead of 0.",
    )
    made.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="image files, or folders with images at any depth (jpg, png, webp)",
    )
    made.add_argument(
        "--classes",
        required=True,
        metavar="NAMES",
        help='"cat,dog,...", or a text file with one name a line',
    )
    add_model(made)
    made.add_argument(
        "--template",
        action="append",
        metavar="TEXT",
        help="a prompt, {} standing for the class; given several times, their embeddings are "
        f"averaged ({DEFAULT_TEMPLATE!r})",
    )
    made.add_argument(
        "--top", type=int, default=5, metavar="N", help="classes shown for each image (5)"
    )
    made.add_argument(
        "--batch", type=int, metavar="N", help="images per call of the model (16 on CPU, else 64)"
    )
    made.add_argument(
        "--json", action="store_true", help="an object a line for each image, with all classes"
    )
    return made


def _classes(options: argparse.Namespace) -> list[str]:
    """The class names; a ValueError lists all that is wrong with the options."""
    text = options.classes
    is_file = "," not in text and Path(text).exists()
    try:
        names = Path(text).read_text("utf-8-sig").splitlines() if is_file else text.split(",")
    except UnicodeDecodeError as fault:
        raise ValueError(f"--classes: {text} is no UTF-8 text: {fault}") from fault
    names = [name.strip() for name in names if name.strip()]
    faults = []
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        faults.append(f"--classes names twice: {', '.join(twice)}")
    elif len(names) < 2:
        said = "" if is_file else " and is no file"
        faults.append(
            f"--classes {text!r} names {len(names)}{said}, but a probability is a share among at "
            "least two: write 'cat,dog'"
        )
    for name in ("top", "batch"):
        if (value := getattr(options, name)) is not None and value < 1:
            faults.append(f"--{name} starts at 1, got {value}")
    if faults:
        raise ValueError("; ".join(faults))
    return names


def _print_table(keys: tuple[str, ...], classes: list[str], odds: Any, top: int) -> None:
    """One line an image: its most probable classes, the most probable first.

    A terminal gets as many classes as fit beside the images' names, which are folded where they
    would take more than half of it; a file or a pipe gets whole lines.
    """
    from rich.cells import cell_len, set_cell_size
    from rich.console import Console

    names = [_printable(name) for name in classes]
    rows = [["image", *(text for i in range(top) for text in (f"{i + 1}.", ""))]]
    for key, row in zip(keys, odds, strict=True):
        rows.append([_printable(key)])
        for best in (-row).argsort(kind="stable")[:top]:
            rows[-1] += [names[best], f"{row[best]:6.1%}"]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        for row in rows:
            padded = (set_cell_size(text, width) for text, width in zip(row, widths, strict=True))
            print(GAP.join(padded).rstrip())
        return
    shown, beside = top, console.width - min(widths[0], console.width // 2)
    while shown > 1 and sum(width + len(GAP) for width in widths[1 : 1 + 2 * shown]) > beside:
        shown -= 1
    console.print(_table([row[: 1 + 2 * shown] for row in rows]))
    if shown < top:
        said = f"{shown} of {top} classes fit the terminal's width; in a file or pipe all do"
        print(said, file=sys.stderr)


GAP = "  "
"""Between columns."""


def _table(rows: list[list[str]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, len(GAP), 0, 0), pad_edge=False, header_style="bold")
    several = len(rows[0]) > 3
    for place, name in enumerate(rows[0]):
        is_figure = place > 0 and place % 2 == 0
        table.add_column(name, overflow="fold", no_wrap=is_figure or (several and place > 0))
    for row in rows[1:]:
        styles = ("", "bold", "bold", *["dim"] * len(row))
        table.add_row(*(Text(text, style=styles[i]) for i, text in enumerate(row)))
    return table


def _printable(text: str) -> str:
    """Control characters, and bytes that are no text, would spoil the table or the terminal."""
    return "".join("\N{REPLACEMENT CHARACTER}" if _is_control(c) else c for c in text)


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs")
