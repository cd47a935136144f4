"""`clip-jax classify`: images into classes that are named in words."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from clip_jax.cli.process import command

DEFAULT_MODEL = "ViT-B-32/openai"


@command
def main(argv: list[str]) -> None:
    """Sort images into classes named in words, with no training; prints their probabilities."""
    options = parser().parse_args(argv)
    classes = _classes(options)
    from rich.console import Console

    from clip_jax.api import load
    from clip_jax.cli.progress import EmbeddingBar
    from clip_jax.data.images import find_images
    from clip_jax.eval import zero_shot

    images = find_images(options.images)
    zero_shot.require_placeholders(options.templates)
    said = Console(file=sys.stderr)
    clip = load(options.model, batch=min(options.batch, max(1, len(images))))
    with EmbeddingBar(said) as progress:
        embedder = dataclasses.replace(clip.embedder, progress=progress)
        found = embedder.source(images)
    for message in found.skipped:
        print(f"left out: {message}", file=sys.stderr)
    if not found.keys:
        raise ValueError("none of the images could be read")
    weights = zero_shot.classifier(clip.encode_text, classes, options.templates)
    odds = zero_shot.classify(found.images, weights, scale=clip.scale)
    if options.json:
        for key, row in zip(found.keys, odds, strict=True):
            figures = {name: float(p) for name, p in zip(classes, row, strict=True)}
            print(json.dumps({"image": key, "probabilities": figures}, ensure_ascii=False))
    else:
        Console(file=sys.stdout).print(_table(found.keys, classes, odds, options.top))
    if found.skipped:
        raise SystemExit(1)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="clip-jax classify",
        description=main.__doc__,
        epilog='example: clip-jax classify photos/ --classes "cat,dog,teapot" --top 2',
    )
    made.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    made.add_argument(
        "--classes",
        required=True,
        help='"cat,dog,...", or a text file with one name a line',
    )
    made.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="a run, a file or folder of weights, hf-hub:org/name, or a name that `clip-jax "
        f"models` lists ({DEFAULT_MODEL})",
    )
    made.add_argument(
        "--templates",
        nargs="+",
        default=["a photo of a {}."],
        metavar="TEXT",
        help="prompts, {} standing for the class; several are averaged ('a photo of a {}.')",
    )
    made.add_argument("--top", type=int, default=5, help="classes shown for each image (5)")
    made.add_argument("--batch", type=int, default=32, help="images per call of the model (32)")
    made.add_argument("--json", action="store_true", help="one JSON object an image, all classes")
    return made


def _classes(options: argparse.Namespace) -> list[str]:
    text = options.classes
    is_file = "," not in text and Path(text).is_file()
    names = Path(text).read_text("utf-8").splitlines() if is_file else text.split(",")
    names = [name.strip() for name in names if name.strip()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"--classes names twice: {', '.join(twice)}")
    if not names:
        raise ValueError("--classes names none; write them as --classes 'cat,dog'")
    if options.top < 1 or options.batch < 1:
        raise ValueError("--top and --batch start at 1")
    return names


def _table(keys: tuple[str, ...], classes: list[str], odds: Any, top: int) -> Any:
    """One line an image: its most probable classes, the most probable first."""
    from rich.table import Table
    from rich.text import Text

    shown = min(top, len(classes))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("image", overflow="fold")
    for place in range(shown):
        table.add_column("class" if place == 0 else f"{place + 1}.", overflow="fold")
        table.add_column("", justify="right", no_wrap=True)
    for key, row in zip(keys, odds, strict=True):
        cells = [Text(key)]
        for place, best in enumerate(row.argsort(kind="stable")[::-1][:shown]):
            style = "bold" if place == 0 else "dim"
            cells += [Text(classes[best], style=style), Text(f"{row[best]:.1%}", style=style)]
        table.add_row(*cells)
    return table
