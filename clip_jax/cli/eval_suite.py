"""`eval.py MODEL --suite NAME`: public data sets in the layouts of CLIP_benchmark and DataComp."""

import argparse
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

CACHE = "~/.cache/clip_jax/embeddings"
CACHE_GB = 10.0
BATCH = {"cpu": 16}
"""Pictures, or texts, a call, by kind of device; on others 64. On CPU, fewer stay in its caches."""
LEFT_OUT = 3
"""Exit status where all that could be measured was, but some data sets could not."""
EPILOG = """\
suites: datacomp, clip_benchmark, imagenet_shifts, retrieval, fairness, compositional, quick
exit status with --suite: 0 all data sets are measured; 3 some are left out, and named at the end;
1 nothing could be done
example: python eval.py ViT-B-32/openai --suite imagenet1k,vtab/pets --root /data"""


def add_options(made: argparse.ArgumentParser) -> None:
    """The options that go with `--suite`."""
    group = made.add_argument_group("suites of public data sets")
    group.add_argument(
        "--suite",
        metavar="NAMES",
        help="suites and data sets with commas between them, or tfds:NAME (prepared by "
        "tensorflow-datasets)",
    )
    group.add_argument(
        "--root", metavar="DIR", help="folder of the data sets; `hub`: fetched from Hugging Face"
    )
    group.add_argument("--cache", metavar="FOLDER", help=f"for embeddings ({CACHE})")
    group.add_argument(
        "--cache-gb", type=float, metavar="N", help=f"size of the cache ({CACHE_GB:g}; 0: none)"
    )
    group.add_argument("--classes", metavar="FILE", help="tfds: a class name a line (its own)")
    group.add_argument("--templates", metavar="FILE", help="tfds: a template with {c} a line")
    group.add_argument("--split", metavar="NAME", help="tfds: what to read of it (test)")


def given(options: argparse.Namespace) -> dict[str, Any]:
    """Options of this group by their flag; None where they were not given."""
    names = ("root", "cache", "cache_gb", "classes", "templates", "split")
    return {f"--{name.replace('_', '-')}": getattr(options, name) for name in names}


def evaluate(options: argparse.Namespace) -> None:
    """Measure the data sets, print the table, write what `run_suite` says.

    Raises:
      SystemExit: status 3 where data sets were left out.
      ValueError, OSError: options that do not fit; no such model.
    """
    from clip_jax.eval.tasks import select

    keys = select(options.suite)
    size = CACHE_GB if options.cache_gb is None else options.cache_gb
    if not size >= 0:
        raise ValueError(f"--cache-gb starts at 0, got {size:g}")
    finder = _finder(keys, options)  # Before the model: loading one takes a while.
    from rich.console import Console

    from clip_jax.cli.progress import EmbeddingBar
    from clip_jax.eval.cache import Cache
    from clip_jax.eval.page import write_report
    from clip_jax.eval.run_suite import run_suite

    console = Console(file=sys.stdout)
    out = options.out or _out(options.model)
    show = functools.partial(console.print, markup=False, highlight=False, soft_wrap=True)

    def say(line: str) -> None:
        """Keys are names of files, which need not be text."""
        show(line.encode("utf-8", "backslashreplace").decode())

    folder = pathlib.Path(options.cache or CACHE).expanduser()
    cache = Cache(folder=folder, limit=int(size * 1e9))
    model = suite_model(options.model, options.batch)
    out.mkdir(parents=True, exist_ok=True)
    with EmbeddingBar(console) as progress:
        embedder = dataclasses.replace(model.embedder, progress=progress, warn=say)
        model = dataclasses.replace(model, embedder=embedder)
        report = run_suite(keys, lambda key: finder(key, say), model, out, cache, say)
    console.print(table(report))
    if report.outcomes:
        write_report(
            out,
            options.model,
            keys=list(report.outcomes),
            averages={_part(mean): mean.mean for mean in report.aggregates},
            absent=report.failures,
        )
    for name in ("eval.json", "eval_results.jsonl", "results", "report.html", "plots"):
        if (out / name).exists():
            say(f"written: {out / name}")
    if report.failures:
        say(f"{len(report.failures)} of {len(keys)} data sets are left out:")
        for key, why in report.failures.items():
            say(f"  {key}: {why}")
        raise SystemExit(LEFT_OUT)


def _part(mean: Any) -> str:
    """The name of a mean, with its share where some of its data sets are absent."""
    return mean.name if mean.whole else f"{mean.name} ({mean.there} of {mean.wanted} sets)"


def suite_model(path: str, batch: int | None) -> Any:
    """A model from anywhere, its parameters on every local device, batches divided among them.

    Args:
      batch: images, or texts, per call; None: see `BATCH`, or a few more where the devices want
        that.

    Raises:
      ValueError: a batch that the devices do not divide; what `clip_jax.load` raises.
    """
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from clip_jax.api import load
    from clip_jax.eval.encoders import Encoders
    from clip_jax.eval.identity import recipe_mark, tokenizer_mark, weights_mark
    from clip_jax.eval.once import Model

    devices = jax.local_devices()
    if batch is None:
        batch = BATCH.get(devices[0].platform, 64)
        batch = -(-batch // len(devices)) * len(devices)
    if batch < 1 or batch % len(devices):
        raise ValueError(f"--batch {batch} is no multiple of the {len(devices)} devices")
    mesh = Mesh(np.array(devices), ("data",))
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    clip = load(path, batch=batch, sharding=whole)
    place = functools.partial(jax.device_put, device=split)
    encoders = Encoders(clip.model, clip.preprocess, place, whole)
    return Model(
        embedder=encoders.bind(clip.params, clip.tokenizer, batch),
        scale=clip.scale,
        weights=weights_mark(clip.model.cfg, clip.params),
        preprocessing=recipe_mark(clip.preprocess),
        tokenizer=tokenizer_mark(clip.tokenizer),
    )


def table(report: Any) -> Any:
    """The main figure of each data set, and below them the means."""
    from rich.table import Table
    from rich.text import Text

    from clip_jax.eval.tasks import TASKS

    drawn = Table(title="Evaluation")
    drawn.add_column("data set", style="bold", overflow="fold")
    drawn.add_column("figure", overflow="fold")
    drawn.add_column("value", justify="right", no_wrap=True)
    drawn.add_column("samples", justify="right", no_wrap=True)
    for key, found in report.outcomes.items():
        names = list(found.figures)[:1] if found.main is None else [found.main]
        value = f"{found.figures[names[0]]:.4f}"
        count, whole = len(found.arrays["keys"]), TASKS[key].size if key in TASKS else None
        samples = f"{count:,}" if whole in (None, count) else f"{count:,} of {whole:,}"
        drawn.add_row(Text(found.dataset), Text(names[0]), value, samples)
    for key in report.failures:
        drawn.add_row(Text(key), Text("left out"), "-", "-")
    drawn.add_section()
    for mean in report.aggregates:
        part = "" if mean.whole else f", not all {mean.wanted}"
        drawn.add_row(Text(mean.name), Text("mean"), f"{mean.mean:.4f}", f"of {mean.there}{part}")
    return drawn


def _finder(keys: tuple[str, ...], options: argparse.Namespace) -> Callable[..., Any]:
    """What opens a data set by its key.

    Raises:
      ValueError: names that are no data set, all of them; options that lack.
    """
    from clip_jax.eval.example_sets import open_folder
    from clip_jax.eval.fetch import fetch
    from clip_jax.eval.folders import find, unlisted
    from clip_jax.eval.tasks import TASKS
    from clip_jax.eval.tfds_set import PREFIX, open_tfds

    prepared = [key for key in keys if key.startswith(PREFIX)]
    if prepared and options.templates is None:
        raise ValueError(f"{prepared[0]} needs --templates FILE (and may have --classes FILE)")
    if len(prepared) < len(keys) and options.root is None:
        raise ValueError("--suite needs --root DIR with the data sets, or --root hub")
    hub = options.root == "hub"
    own, faults = {}, []
    for key in [key for key in keys if key not in TASKS and key not in prepared]:
        try:
            own[key] = unlisted(key, None if hub else options.root)
        except ValueError as fault:
            faults.append(str(fault))
    if faults:
        raise ValueError("; ".join(faults))
    first = "datacomp" if "datacomp" in options.suite.split(",") else "benchmark"

    def opened(key: str, warn: Callable[[str], None]) -> Any:
        if key in prepared:
            return open_tfds(
                key,
                root=options.root,
                classes=options.classes,
                templates=options.templates,
                split=options.split or "test",
            )
        if key in own:
            return open_folder(own[key], pathlib.Path(options.root) / key, warn)
        task = TASKS[key]
        return open_folder(
            task, fetch(task, first) if hub else find(task, options.root, first), warn
        )

    return opened


def _out(model: str) -> pathlib.Path:
    from clip_jax.checkpoint.start import checkpoint_folder, is_run

    if not is_run(model):
        return pathlib.Path("suites") / model.strip("/").replace("/", "-").replace(":", "-")
    given = pathlib.Path(model).resolve()
    if (given / "checkpoints").is_dir():
        return given / "suites" / checkpoint_folder(given).name
    return given.parent.parent / "suites" / given.name
