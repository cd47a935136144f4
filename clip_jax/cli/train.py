"""`train.py` and `clip-jax train`."""

import pathlib
import sys
from typing import Any

from clip_jax.cli.process import command, keep_compiled

USAGE = """usage: train.py CONFIG [--any.field value ...]

Trains the experiment of a config file and evaluates it; the same command again goes on
from the last checkpoint. `train.py CONFIG --help` lists every field; the common ones:
  --run FOLDER                where everything is written
  --steps N                   updates in all
  --batch N                   pairs per update
  --seed N                    of all random numbers
  --data.root PATH            where the data is
  --checkpoint.every-steps N  how often to save
  --packing None              without that object, as without any that may be absent
  --profile 10:13             not a field: record steps 10 to 13 with JAX's profiler (RUN/profile)

Several processes train one run; SLURM and Cloud TPU slices say themselves which is which
(docs/launch.md). Elsewhere start each with these, or with the variables beside them:
  --coordinator HOST:PORT     of process 0, a free port    CLIP_JAX_COORDINATOR
  --processes N               how many there are           CLIP_JAX_PROCESSES
  --process I                 which this is, from 0 on     CLIP_JAX_PROCESS

Compiled programs are kept in ~/.cache/clip_jax/compiled ($XDG_CACHE_HOME) for the next start, on
TPU and GPU; JAX_COMPILATION_CACHE_DIR=FOLDER keeps them there, on CPU too, and
JAX_ENABLE_COMPILATION_CACHE=0 keeps none.

Exit status: 0 done; 1 an error that a restart does not mend; 2 wrong usage; 75 stopped by
SIGTERM after saving, 76 (or 134) another process is gone or did not come: the same
command goes on; 130 interrupted."""


@command
def main(argv: list[str]) -> None:
    """Train as the config file and the overrides say."""
    if not argv or argv[0].startswith("-"):
        print(USAGE)
        raise SystemExit(0 if argv[:1] in (["-h"], ["--help"]) else 2)
    from rich.console import Console

    from clip_jax.overrides import load_config, override
    from clip_jax.sharding import processes

    path, *overrides = argv
    flags, overrides = processes.take_flags(overrides)
    profile, overrides = take_profile(overrides)
    config = override(load_config(path), overrides, prog=f"train.py {path}")
    with processes.together(processes.find_place(flags)):
        from clip_jax.train.experiment import train

        keep_compiled()
        console = Console(file=sys.stdout, quiet=not processes.is_first())
        try:
            train(config, console, profile)
        except KeyboardInterrupt:
            print("the same command goes on from the last checkpoint", file=sys.stderr)
            raise
        if processes.is_first():
            _show(config, console)


def take_profile(argv: list[str]) -> tuple[Any, list[str]]:
    """The steps that `--profile` names, if it is among the arguments, and the other arguments.

    Raises:
      ValueError: it lacks its value, is given twice, or names no steps.
    """
    from clip_jax.train.profile import parse_profile

    given: list[str] = []
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name == "--profile":
            given.append(value if equals else next(words, ""))
        else:
            rest.append(word)
    if len(given) > 1:
        raise ValueError(f"--profile is given {len(given)} times: {', '.join(given)}")
    return (parse_profile(given[0]) if given else None), rest


def _show(config: Any, console: Any) -> None:
    """Figures and pictures of a finished run."""
    from clip_jax.api import load
    from clip_jax.config import read_json
    from clip_jax.eval.report import draw_evals, table
    from clip_jax.eval.suite import done
    from clip_jax.train.plots import plot_run

    folder = pathlib.Path(config.run)
    pictures = plot_run(folder / "metrics.jsonl", folder / "plots")
    figures = dict[str, float]()
    if (folder / "eval.json").exists():  # Absent if killed right after the last checkpoint.
        figures = read_json(folder / "eval.json")
        console.print(table(figures))
    if measured := done(config.evals, figures):
        embedder = load(config.run, batch=config.eval_batch).embedder
        pictures += draw_evals(measured, config.data, embedder, folder / "plots")
    for picture in pictures:
        console.print(f"picture: {picture}", highlight=False, soft_wrap=True)
