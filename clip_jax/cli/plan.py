"""`clip-jax plan`: what a training run costs on chips that are not there."""

import os
import pathlib
import sys
from typing import Any

from clip_jax.cli.process import command

USAGE = """usage: clip-jax plan CONFIG --topology v5e:16x16 [--any.field value ...]

Compiles the step that `train.py CONFIG [--any.field value ...]` would run, with the TPU
compiler and without a TPU, and tells its memory, exchanges and time. Minutes for large models.
  --topology NAME   v4:4x4x4, v5e:16x16, v5p:4x4x8, v6e:8x8 (chips along each side), Google's
                    name of a slice (v5e-256, v5p-128), or h100:64 (a100, h200): GPUs, by
                    analysis alone
  --slices N        so many of them; each holds a replica unless --mesh.replica says otherwise
  --stage NAME      of a config with a last stage: first (the default) or last
  --samples N       pairs of the whole run, or stage (default: steps * batch)
  --price P         of a chip for an hour, in any currency
  --json FILE       write everything there
  --sweep           try tables, remat and accumulation, and rank what fits"""

OWN = ("--topology", "--slices", "--stage", "--samples", "--price", "--json")


@command
def main(argv: list[str]) -> None:
    """Plan as the config file, the topology and the overrides say."""
    if not argv or argv[0].startswith("-"):
        print(USAGE)
        raise SystemExit(0 if argv[:1] in (["-h"], ["--help"]) else 2)
    own, overrides = split(argv[1:])
    if "--topology" not in own:
        raise ValueError("which chips? Give --topology, such as v5e:16x16")
    # Compiling needs no device; a TPU of this machine stays free.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from rich.console import Console

    from clip_jax.overrides import load_config, override
    from clip_jax.plan.run import plan, sweep
    from clip_jax.plan.topology import parse

    config = override(load_config(argv[0]), overrides, prog=f"clip-jax plan {argv[0]}")
    config = stage(config, own.get("--stage"))
    topology = parse(own["--topology"], int(_number(own, "--slices", 1)))
    samples = _number(own, "--samples", None)
    about: dict[str, Any] = {
        "samples": None if samples is None else int(samples),
        "price": _number(own, "--price", None),
        "console": Console(file=sys.stdout),
    }
    path = pathlib.Path(own["--json"]) if "--json" in own else None
    if path:  # Rather now than after minutes of work.
        path.parent.mkdir(parents=True, exist_ok=True)
    work = sweep if "--sweep" in own else plan
    work(config, topology, path=path, **about)


def stage(config: Any, name: str | None) -> Any:
    """One stage of a training config, as a run of its own.

    Raises:
      ValueError: there is no such stage.
    """
    stages = dict(zip(("first", "last"), config.stages(), strict=False))
    if name is not None and name not in stages:
        raise ValueError(f"--stage {name!r}: this config has {' and '.join(stages)}")
    return stages[name or "first"]


def split(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """This command's own options, and those that override fields of the config.

    Raises:
      ValueError: an option of the command lacks its value.
    """
    own: dict[str, str] = {}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if word == "--sweep":
            own[word] = ""
        elif name in OWN:
            own[name] = value if equals else next(words, "")
            if not own[name] or own[name].startswith("--"):
                raise ValueError(f"{name} needs a value")
        else:
            rest.append(word)
    return own, rest


def _number(own: dict[str, str], name: str, default: Any) -> Any:
    if name not in own:
        return default
    try:
        value = float(own[name].replace("_", "").replace(",", ""))
    except ValueError:
        raise ValueError(f"{name} {own[name]!r} is no number") from None
    if value <= 0:
        raise ValueError(f"{name} must be above 0, got {own[name]}")
    return value
