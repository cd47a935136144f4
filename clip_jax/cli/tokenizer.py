"""`clip-jax tokenizer`: a SentencePiece vocabulary from the captions of any source."""

import argparse
import itertools

from clip_jax.cli.process import command


@command
def main(argv: list[str]) -> None:
    """Train a SentencePiece model on the captions of a config's training split."""
    made = argparse.ArgumentParser(prog="clip-jax tokenizer", description=main.__doc__)
    made.add_argument("config", help="a config file, e.g. configs/flickr8k.py")
    made.add_argument("out", help="the .model file to write")
    made.add_argument("--vocab-size", type=int, default=8000, help="tokens in all (8000)")
    made.add_argument("--data.root", dest="root", metavar="PATH", help="where the data is")
    options = made.parse_args(argv)
    from clip_jax.data.pipeline import iterate
    from clip_jax.data.sample import Sample
    from clip_jax.overrides import load_config, override
    from clip_jax.tokenizers import sentencepiece

    moved = ["--data.root", options.root] if options.root else []
    config = override(load_config(options.config), moved, prog="clip-jax tokenizer")
    samples = (s for s in iterate(config.data.open("train")) if isinstance(s, Sample))
    captions = itertools.chain.from_iterable(sample.texts for sample in samples)
    given = config.tokenizer
    clean = given.clean if isinstance(given, sentencepiece.SentencePiece) else "none"
    length = config.tokenizer.context_length
    sentencepiece.train(
        captions, options.out, options.vocab_size, context_length=length, clean=clean
    )
    print(f"written: {options.out} (use tokenizer=SentencePiece(model={options.out!r}))")
