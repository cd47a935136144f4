"""`eval.py MODEL --suite NAME`: public data sets in the layouts of CLIP_benchmark and DataComp."""

import argparse
import functools
import pathlib
import sys
from typing import Any

from clip_jax.cli import soup, suites

PROBES = ("linear", "few_shot", "knn")
"""The names of `measure_probe.PROBES`, which is slow to import."""
MULTILABEL = ("linear",)
"""Those of `measure_probe.MULTILABEL`."""
EPILOG = """\
suites: datacomp, clip_benchmark, imagenet_shifts, retrieval, fairness, compositional, quick
exit status with --suite: 0 all data sets are measured; 3 some or all are left out, and named at the
end; 1 none could be tried
with --probe results go to a folder of their own, probe_NAME, in that of the suite
example: python eval.py ViT-B-32/openai --suite imagenet1k,vtab/pets --root /data"""


def add_options(made: argparse.ArgumentParser) -> None:
    """The options that go with `--suite`."""
    group = made.add_argument_group("suites of public data sets")
    suites.add_places(group)
    group.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="of parameters and activations (parameters float32, activations float32 on CPU and "
        "bfloat16 elsewhere); float32 gives the figures of papers most exactly, bfloat16 is faster",
    )
    group.add_argument(
        "--probe",
        choices=PROBES,
        help="instead of classification by names, a classifier that learns from the train splits",
    )
    group.add_argument(
        "--projected",
        action="store_true",
        default=None,
        help="probe the embeddings, not the image tower's features before its projection",
    )


def given(options: argparse.Namespace) -> dict[str, Any]:
    """Options of this group by their flag; None where they were not given."""
    names = ("root", "cache", "cache_gb", "classes", "templates", "split")
    names += ("dtype", "probe", "projected", "train_split")
    return {f"--{name.replace('_', '-')}": getattr(options, name) for name in names}


def evaluate(options: argparse.Namespace) -> None:
    """Measure the data sets, print the table, write what `run_suite` says.

    Raises:
      SystemExit: status 3 where data sets were left out.
      ValueError, OSError: options that do not fit; no such model.
    """
    probing = options.probe is not None
    if not probing and (options.projected or options.train_split):
        raise ValueError("--projected and --train-split go with --probe")
    kinds = ("zero_shot", *(["multilabel"] if options.probe in MULTILABEL else []))
    keys = suites.chosen(options, whom=f"--probe {options.probe}" if probing else "", kinds=kinds)
    cache = suites.cache_of(options)
    find = suites.finder(keys, options, train=probing)  # Before the model, which takes a while.
    import jax
    from rich.console import Console

    from clip_jax.cli.progress import EmbeddingBar
    from clip_jax.eval.run_suite import STANDARD, run_suite

    console = Console(file=sys.stdout)
    say = suites.sayer(console)
    out, name, measures = options.out or _out(options.model), options.model, STANDARD
    if probing:
        out, name, measures = _probe(options, out)
    model = suites.suite_model(options.model, options.batch, options.dtype)
    if probing and not (options.projected or model.projects):
        say(
            "the image tower has no projection of its own: its features are the embeddings, but "
            "not scaled to length 1"
        )
    suites.make_folder(out)
    # Unless told so TPUs, and GPUs by TF32, round the factors of products in float32.
    exact = "highest" if options.dtype == "float32" else None
    with jax.default_matmul_precision(exact), EmbeddingBar(console) as progress:
        model = suites.showing(model, progress, say)
        report = run_suite(keys, lambda key: find(key, say), model, out, cache, say, measures)
    suites.finish(report, out, name, console, say, soup.about(options.model))


def _probe(options: argparse.Namespace, out: pathlib.Path) -> tuple[pathlib.Path, str, Any]:
    """Where results of the probe go, what they are of, and the `Measures` of them."""
    import jax
    import numpy as np
    from jax.sharding import Mesh

    from clip_jax.eval import measure_probe
    from clip_jax.eval.run_suite import Measures

    projected = bool(options.projected)
    name = measure_probe.folder_of(options.probe, projected=projected)
    mesh = Mesh(np.array(jax.local_devices()), ("data",))
    kinds = {"zero_shot": measure_probe.PROBES, "multilabel": measure_probe.MULTILABEL}
    measures = {
        kind: functools.partial(known[options.probe], projected=projected, mesh=mesh)
        for kind, known in kinds.items()
        if options.probe in known
    }
    # No figure in print for the model itself is one of a probe of it.
    title = f"{options.model}, {name.replace('_', ' ')}"
    return out / name, title, Measures(by_kind=measures, settings=name)


def _out(model: str) -> pathlib.Path:
    from clip_jax.checkpoint.start import checkpoint_folder, is_run

    if not is_run(model):
        return pathlib.Path("suites") / model.strip("/").replace("/", "-").replace(":", "-")
    given = pathlib.Path(model).resolve()
    if (given / "checkpoints").is_dir():
        return given / "suites" / checkpoint_folder(given).name
    return given.parent.parent / "suites" / given.name
