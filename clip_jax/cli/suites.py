"""What the commands that measure public data sets share: where these are, the model, the table."""

import argparse
import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Callable, Collection
from typing import Any, Literal

CACHE = "~/.cache/clip_jax/embeddings"
CACHE_GB = 10.0
LEFT_OUT = 3
"""Exit status where all that could be measured was, but some data sets could not."""


def add_places(group: Any, *, required: bool = False) -> None:
    """The options that say which data sets, where they are, and where embeddings are kept.

    Args:
      required: whether `--suite` must be given.
    """
    group.add_argument(
        "--suite",
        metavar="NAMES",
        required=required,
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
    group.add_argument(
        "--train-split", metavar="NAME", help="tfds: what is learned or chosen from (train)"
    )


def cache_of(options: argparse.Namespace) -> Any:
    """The cache of embeddings.

    Raises:
      ValueError: a negative size.
    """
    from clip_jax.eval.cache import Cache

    size = CACHE_GB if options.cache_gb is None else options.cache_gb
    if not size >= 0:
        raise ValueError(f"--cache-gb starts at 0, got {size:g}")
    folder = pathlib.Path(options.cache or CACHE).expanduser()
    return Cache(folder=folder, limit=int(size * 1e9))


def make_folder(path: pathlib.Path) -> pathlib.Path:
    """The folder for results, made if it is not there, before hours go into them.

    Raises:
      OSError: nothing can be written there; names it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as fault:
        what = "there is a file of that name" if path.is_file() else fault.strerror or fault
        raise OSError(fault.errno, f"cannot write to --out {path}: {what}") from fault
    return path


def sayer(console: Any) -> Callable[[str], None]:
    """Prints lines as they are."""
    show = functools.partial(console.print, markup=False, highlight=False, soft_wrap=True)
    # Keys are names of files, which need not be text.
    return lambda line: show(line.encode("utf-8", "backslashreplace").decode())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Devices:
    """How a model lies on all local devices: parameters on each, batches divided among them."""

    batch: int
    """Images, or texts, per call."""
    whole: Any
    split: Any
    """Shardings."""


def devices_for(batch: int | None) -> Devices:
    """All local devices.

    Args:
      batch: images, or texts, per call; None: the usual number, or a few more where the
        devices want that.

    Raises:
      ValueError: a batch that the devices do not divide.
    """
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from clip_jax.eval.encoders import usual_batch

    devices = jax.local_devices()
    if batch is None:
        batch = -(-usual_batch() // len(devices)) * len(devices)
    if batch < 1 or batch % len(devices):
        raise ValueError(f"--batch {batch} is no multiple of the {len(devices)} devices")
    mesh = Mesh(np.array(devices), ("data",))
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    return Devices(batch=batch, whole=whole, split=split)


def suite_models(clip: Any, where: Devices) -> Callable[[Any], Any]:
    """`params -> Model` for parameters of one architecture, whose towers are compiled once.

    Args:
      clip: what `clip_jax.load` gave; its own parameters are the first choice.
    """
    import jax

    from clip_jax.eval.encoders import Encoders, apart, inverse_temperature
    from clip_jax.eval.identity import recipe_mark, tokenizer_mark, weights_mark
    from clip_jax.eval.once import Model
    from clip_jax.models.clip import activation_dtype

    # As it computes here: "auto" would be the same on a machine that rounds otherwise.
    computed = dataclasses.replace(clip.model.cfg, dtype=activation_dtype(clip.model.cfg.dtype))
    place = functools.partial(jax.device_put, device=where.split)
    encoders = Encoders(clip.model, clip.preprocess, place, where.whole)
    told = {
        "preprocessing": recipe_mark(clip.preprocess),
        "tokenizer": tokenizer_mark(clip.tokenizer),
    }

    def model(params: Any) -> Model:
        return Model(
            embedder=encoders.bind(apart(params), clip.tokenizer, where.batch),
            scale=inverse_temperature(params),
            projects=clip.model.cfg.projects_images,
            weights=weights_mark(computed, params),
            **told,
        )

    return model


def suite_model(
    path: str, batch: int | None, dtype: Literal["float32", "bfloat16"] | None = None
) -> Any:
    """A model from anywhere on all local devices.

    Args:
      dtype: as `clip_jax.load`'s.

    Raises:
      ValueError: as `devices_for`; what `clip_jax.load` raises.
    """
    from clip_jax.api import load

    where = devices_for(batch)
    clip = load(path, batch=where.batch, dtype=dtype, sharding=where.whole)
    return suite_models(clip, where)(clip.params)


def showing(model: Any, progress: Any, say: Callable[[str], None]) -> Any:
    """The same model, which shows its progress and says what it leaves out."""
    embedder = dataclasses.replace(model.embedder, progress=progress, warn=say)
    return dataclasses.replace(model, embedder=embedder)


def chosen(
    options: argparse.Namespace, *, whom: str = "", kinds: Collection[str] = ("zero_shot",)
) -> tuple[str, ...]:
    """The data sets that are meant.

    Args:
      whom: for what, if not for every kind of task; those of a suite that are of another are
        left out.
      kinds: of task that fit.

    Raises:
      ValueError: a data set that does not fit is asked for by name; none is left.
    """
    from clip_jax.eval.tasks import TASKS, select

    keys = select(options.suite)
    if not whom:
        return keys
    unfit = [key for key in keys if key in TASKS and TASKS[key].kind not in kinds]
    if named := set(unfit) & {name.strip() for name in options.suite.split(",")}:
        listed = ", ".join(sorted(named))
        which = "one label a sample, or several" if "multilabel" in kinds else "one label a sample"
        raise ValueError(f"{whom} needs data sets with {which}, unlike {listed}")
    if len(unfit) == len(keys):
        raise ValueError(f"--suite {options.suite} holds no data set for {whom}")
    return tuple(key for key in keys if key not in unfit)


def finder(
    keys: tuple[str, ...], options: argparse.Namespace, *, train: bool = False
) -> Callable[..., Any]:
    """What opens a data set by its key, and is given whom to warn.

    Args:
      train: open the train split, too.

    Raises:
      ValueError: names that are no data set, all of them; options that lack.
    """
    from clip_jax.eval.by_key import first_layout, open_by_key, require_known
    from clip_jax.eval.tfds_set import PREFIX, open_tfds

    prepared = [key for key in keys if key.startswith(PREFIX)]
    if prepared and options.templates is None:
        raise ValueError(f"{prepared[0]} needs --templates FILE (and may have --classes FILE)")
    if len(prepared) < len(keys) and options.root is None:
        raise ValueError("--suite needs --root DIR with the data sets, or --root hub")
    _require_there(options)
    require_known([key for key in keys if key not in prepared], options.root)
    # DataComp has no train splits.
    first = first_layout(() if train else options.suite.split(","))

    def opened(key: str, warn: Callable[[str], None]) -> Any:
        if key in prepared:
            return open_tfds(
                key,
                root=options.root,
                classes=options.classes,
                templates=options.templates,
                split=options.split or "test",
                train=(options.train_split or "train") if train else None,
            )
        return open_by_key(key, options.root, warn, first=first, train=train)

    return opened


def _require_there(options: argparse.Namespace) -> None:
    """Check what the options name, before a model is loaded; raises FileNotFoundError for all."""
    faults = []
    if options.root not in (None, "hub") and not pathlib.Path(options.root).is_dir():
        faults.append(f"--root: no folder {options.root}")
    for option in ("classes", "templates"):
        path = getattr(options, option)
        if path is not None and not pathlib.Path(path).is_file():
            faults.append(f"--{option}: no file {path}")
    if faults:
        raise FileNotFoundError("; ".join(faults))


def finish(
    report: Any,
    out: pathlib.Path,
    name: str,
    console: Any,
    say: Callable[[str], None],
    about: str = "",
) -> None:
    """Print the table, write the report page, and say what is written and what is left out.

    Args:
      name: of the model, for the page.
      about: what else the page says of it.

    Raises:
      SystemExit: status 3 where data sets were left out.
    """
    from clip_jax.eval.page import write_report

    console.print(table(report))
    if report.outcomes:
        write_report(
            out,
            name,
            keys=list(report.outcomes),
            averages={_part(mean): mean.mean for mean in report.aggregates},
            absent=report.failures,
            about=about,
        )
        for file in ("eval.json", "eval_results.jsonl", "results", "report.html", "plots"):
            say(f"written: {out / file}")
    if report.failures:
        asked = len(report.failures) + len(report.outcomes)
        say(f"{len(report.failures)} of {asked} data sets are left out:")
        for key, why in report.failures.items():
            named = why.startswith((f"{key} ", f"{key}: "))
            say(f"  {why}" if named else f"  {key}: {why}")
        raise SystemExit(LEFT_OUT)


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


def _part(mean: Any) -> str:
    """The name of a mean, with its share where some of its data sets are absent."""
    return mean.name if mean.whole else f"{mean.name} ({mean.there} of {mean.wanted} sets)"
