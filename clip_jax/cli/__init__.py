"""The console command `clip-jax`; each subcommand is one small file of this room."""

import importlib
import sys

from clip_jax.cli.process import use_huge_pages

COMMANDS = {
    "train": "train or continue a run: clip-jax train configs/digits.py [--steps 100 ...]",
    "eval": "evaluate a run or checkpoint: clip-jax eval runs/digits",
    "compare": "two evaluations side by side: clip-jax compare runs/a runs/b",
    "prompts": "choose prompt templates: clip-jax prompts DATASET --model ViT-B-32/openai",
    "ensemble": "several models together: clip-jax ensemble MODEL MODEL --suite cifar10 --root DIR",
    "soup": "average weights: clip-jax soup MODEL MODEL --suite cifar10 --root DIR --out OUT",
    "classify": 'sort images into classes: clip-jax classify cat.jpg --classes "cat,dog"',
    "embed": "embed a folder of images: clip-jax embed photos/ photos.parquet",
    "models": "list architectures and known weights: clip-jax models SigLIP",
    "convert": "rewrite weights: clip-jax convert IN OUT --format huggingface",
    "plan": "what a run costs on chips not at hand: clip-jax plan CONFIG --topology v5e:16x16",
    "data": "look through a data set: clip-jax data shards/ --sheet sheet.png",
    "pack": "rewrite any data as ArrayRecord files: clip-jax pack shards/ packed/ --size 256",
    "tokenizer": "train a SentencePiece model on a config's captions",
}


def main(argv: list[str] | None = None) -> None:
    """Run a subcommand; exits with its status."""
    if argv is None:
        use_huge_pages()
        argv = sys.argv[1:]
    if not argv or argv[0] not in COMMANDS:
        known = "\n".join(f"  clip-jax {name:10s} {what}" for name, what in COMMANDS.items())
        helped = bool(argv) and argv[0] in ("-h", "--help")
        said = "" if helped or not argv else f"no command {argv[0]!r}\n"
        print(f"{said}usage:\n{known}", file=sys.stdout if helped else sys.stderr)
        raise SystemExit(0 if helped else 2)
    command = importlib.import_module(f"clip_jax.cli.{argv[0]}")
    raise SystemExit(command.main(argv[1:]))
