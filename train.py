"""Train a CLIP: `python train.py configs/digits.py [--any.field value]`."""

from clip_jax.cli.train import main

if __name__ == "__main__":
    raise SystemExit(main())
