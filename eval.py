"""Evaluate a run or a checkpoint: `python eval.py runs/digits [--evals NAME ...]`."""

from clip_jax.cli.eval import main

if __name__ == "__main__":
    raise SystemExit(main())
