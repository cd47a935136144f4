"""Classification on a data set of tensorflow-datasets, with class names and templates given."""

import dataclasses
import hashlib
import pathlib

from clip_jax.data.tfds import Tfds
from clip_jax.eval.folders import read_lines
from clip_jax.eval.opened import Opened
from clip_jax.eval.tasks import Task
from clip_jax.eval.zero_shot import require_placeholders

PREFIX = "tfds:"


def open_tfds(
    key: str,
    *,
    root: str | None,
    classes: str | None,
    templates: str,
    split: str,
    train: str | None = None,
) -> Opened:
    """A prepared data set with the features `image` and `label`.

    Args:
      key: `tfds:` and the name, as `data.tfds.Tfds` takes it.
      root: folder of all prepared data sets; None: that of tensorflow-datasets.
      classes: file with a class name a line; None: the data set's own names.
      templates: file with a template a line.
      split: what tensorflow-datasets shall read: `test`, `validation[:50%]`.
      train: the same, for what probes learn from; None: nothing.

    Raises:
      FileNotFoundError, ValueError: it is not prepared, or lacks the split or a feature; files
        that are missing; templates without a placeholder.
    """
    lists = [path for path in (classes, templates) if path is not None]
    if missing := [path for path in lists if not pathlib.Path(path).is_file()]:
        raise FileNotFoundError(f"{key}: no file {' and no file '.join(missing)}")
    name = key.removeprefix(PREFIX)
    config = Tfds(name=name, data_dir=root, label="label")
    source = config.open(split)
    prompts = read_lines(pathlib.Path(templates))
    try:
        require_placeholders(prompts)
    except ValueError as fault:
        raise ValueError(f"{templates}: {fault}") from fault
    names = config.class_names(split) if classes is None else read_lines(pathlib.Path(classes))
    # A version's records never change.
    told = repr((source.name, len(source), root))
    opened = Opened(
        task=Task(key=key, name=name),
        folder=pathlib.Path(root or name),
        source=source,
        pictures=hashlib.sha256(told.encode()).hexdigest(),
        classes=names,
        templates=prompts,
    )
    if train is None:
        return opened
    learned = open_tfds(key, root=root, classes=classes, templates=templates, split=train)
    return dataclasses.replace(opened, train=learned)
