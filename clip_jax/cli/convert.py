"""`clip-jax convert`: weights of any readable format, written in another library's."""

import argparse
from pathlib import Path

from clip_jax.cli.process import command
from clip_jax.cli.progress import ignoring

FORMATS = {
    "openai": "OpenAI's clip",
    "open_clip": "open_clip",
    "huggingface": "transformers",
    "big_vision": "big_vision",
}
"""Whose library reads it; the names are those of `pretrained.formats`, which is slow to import."""


@command
@ignoring("(?!no tokenizer is written).*has no tokenizer")  # Writing says so, too.
def main(argv: list[str]) -> None:
    """Rewrite a model in the format of another library.

    Tokenizer and preprocessing go along where the format has a place for them. OUT appears whole
    or not at all.
    """
    options = parser().parse_args(argv)
    _require(options)
    from clip_jax.api import load, save

    clip = load(
        options.model,
        model=options.architecture,
        image_size=options.image_size,
        context_length=options.context_length,
    )
    for path in save(clip, options.out, format=options.format):
        print(f"written: {path} ({_size(path.stat().st_size)})")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="clip-jax convert",
        description=main.__doc__,
        epilog="example: clip-jax convert runs/mine exported --format open_clip",
    )
    made.add_argument(
        "model",
        metavar="IN",
        help="a run, a file or folder of weights, hf-hub:org/name, or a name that `clip-jax "
        "models --tags` lists",
    )
    made.add_argument("out", metavar="OUT", help="a folder; it must not exist, or be empty")
    made.add_argument(
        "--format",
        required=True,
        choices=tuple(FORMATS),
        help="the library that is to read it: "
        + ", ".join(
            name if name == whose else f"{name} ({whose})" for name, whose in FORMATS.items()
        ),
    )
    made.add_argument(
        "--architecture",
        metavar="NAME",
        help="a name that `clip-jax models` lists, where the weights do not tell it",
    )
    made.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="resample the positions to this size"
    )
    made.add_argument(
        "--context-length", type=int, metavar="TOKENS", help="resample those of texts to so many"
    )
    return made


def _require(options: argparse.Namespace) -> None:
    """What would else be found only when the weights have been read, perhaps over the network."""
    faults = []
    for name in ("image_size", "context_length"):
        if (value := getattr(options, name)) is not None and value < 1:
            faults.append(f"--{name.replace('_', '-')} starts at 1, got {value}")
    if faults:
        raise ValueError("; ".join(faults))
    out = Path(options.out)
    there = next(path for path in (out, *out.parents) if path.exists())
    if not there.is_dir():
        raise FileExistsError(f"{there} is a file; OUT is a folder")
    if there == out and any(out.iterdir()):
        raise FileExistsError(f"{out} exists and is not empty: choose another folder")


def _size(count: int) -> str:
    """Bytes in the unit that reads best."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"
