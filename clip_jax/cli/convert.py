"""`clip-jax convert`: weights of any readable format, written in another library's."""

import argparse
from typing import get_args

from clip_jax.cli.process import command


@command
def main(argv: list[str]) -> None:
    """Rewrite a model in the format of another library, tokenizer and preprocessing included."""
    options = parser().parse_args(argv)
    from clip_jax.api import load, save

    clip = load(
        options.model,
        model=options.architecture,
        image_size=options.image_size,
        context_length=options.context_length,
    )
    written = save(clip, options.out, format=options.format)
    for path in written:
        print(f"written: {path} ({path.stat().st_size / 1e6:,.1f} MB)")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    from clip_jax.pretrained.formats import Format

    made = argparse.ArgumentParser(
        prog="clip-jax convert",
        description=main.__doc__,
        epilog="example: clip-jax convert runs/mine exported --format open_clip",
    )
    made.add_argument(
        "model",
        metavar="IN",
        help="a run, a file or folder of weights, hf-hub:org/name, or a catalogued name",
    )
    made.add_argument("out", metavar="OUT", help="a folder; it must not exist, or be empty")
    made.add_argument("--format", required=True, choices=get_args(Format), help="the target's")
    made.add_argument(
        "--architecture",
        metavar="NAME",
        help="a name that `clip-jax models` lists, where the weights do not tell it",
    )
    made.add_argument("--image-size", type=int, metavar="PIXELS", help="resample to this size")
    made.add_argument(
        "--context-length", type=int, metavar="TOKENS", help="resample to this length"
    )
    return made
