"""Published weights by any name, and as the start of a training run."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax import tree
from clip_jax.config import differences, to_data
from clip_jax.models.clip import ClipConfig, param_shapes
from clip_jax.pretrained import catalog, formats, hub, rules
from clip_jax.pretrained.resize import resize_positions

HUB = "hf-hub:"
MAY_DIFFER = (
    *("dtype", "temperature", "max_scale", "image.image_size", "image.trim"),
    *("image.patch_dropout", "image.batch_statistics", "text.context_length", "text.train_length"),
    *("*.stack.dropout", "*.stack.unroll", "*.stack.remat", "*.stack.offload"),
)
"""Fields that a run may choose for itself; position tables are resampled for its sizes."""


def locate(
    name: str | os.PathLike[str], revision: str | None = None
) -> tuple[Path, catalog.Published | None]:
    """A local file or folder, fetched if need be, and the catalogue's row if it was named there.

    Args:
      name: a path, `hf-hub:organisation/name`, or a catalogued name.
      revision: of a hub repository.

    Raises:
      FileNotFoundError: nothing of that name; gives the nearest. What `hub.fetch` raises.
    """
    text = os.fspath(name)
    if not text:
        raise ValueError("the name of a model is empty")
    if Path(text).exists():
        return Path(text), None
    if "://" in text:
        raise ValueError(
            f"{text}: only runs of clip_jax are read from there; copy the weights to a local folder"
        )
    if text.startswith(HUB):
        return hub.fetch(text.removeprefix(HUB), revision=revision), None
    if isinstance(name, os.PathLike) or text.startswith((".", "/", "~")):
        raise FileNotFoundError(f"{text} does not exist")
    try:
        row = catalog.find(text)
    except ValueError as fault:
        raise FileNotFoundError(
            f"{text!r} is no folder or file, and no catalogued name ({HUB}{text} would be a "
            f"repository of the hub): {fault}"
        ) from fault
    return hub.fetch(row.hub, revision=revision), row


def open_named(
    name: str | os.PathLike[str], model: str | None = None, revision: str | None = None
) -> tuple[formats.Stored, catalog.Published | None]:
    """`formats.open_stored` of whatever `locate` finds."""
    path, row = locate(name, revision)
    # The catalogue knows which activation weights were trained with; a config need not.
    return formats.open_stored(path, model or (row and row.preset)), row


def read_params(stored: formats.Stored, abstract: Any) -> Any:
    """The parameters as `abstract` says: types and shardings; shapes are those of the file.

    Host memory holds one parameter at a time.

    Raises:
      WeightsError: lists all arrays that are missing, unexpected or of another shape.
    """
    leaves = dict(zip(tree.paths(abstract), jax.tree.leaves(abstract), strict=True))

    def put(path: str, array: np.ndarray) -> jax.Array:
        where = leaves[path].sharding
        return jax.make_array_from_callback(array.shape, where, lambda index: array[index])

    return rules.read(stored.rules, stored.arrays, abstract, put, str(stored.file))


def start_params(name: str, config: ClipConfig, abstract: Any) -> Any:
    """Published weights as the first parameters of a run.

    Args:
      name: as for `locate`.
      config: of the run's model; sizes of images and texts may be other than the weights'.
      abstract: the run's parameters: shapes, types, shardings.

    Raises:
      ValueError: the weights are of another architecture; lists all fields that differ.
    """
    stored, _ = open_named(name)
    return fit_params(name, stored.config, config, abstract, partial(read_params, stored))


def fit_params(
    name: str, stored: ClipConfig, config: ClipConfig, abstract: Any, read: Callable[[Any], Any]
) -> Any:
    """Parameters of one model for another one, which may differ from it in `MAY_DIFFER`.

    Args:
      name: of where they come from, for the message.
      stored, config: the model that they are of, and the one that they are for.
      abstract: of the latter: shapes, types, shardings.
      read: given the shapes of the former, with types and shardings, gives the parameters.

    Raises:
      ValueError: lists all fields that must not differ.
    """
    if faults := differences(to_data(stored), to_data(config), ignore=MAY_DIFFER):
        raise ValueError(
            f"the weights of {name} are of another model than the run's: {'; '.join(faults)}"
        )
    shapes = param_shapes(stored)
    as_stored = jax.tree.map(
        lambda shape, want: jax.ShapeDtypeStruct(shape.shape, want.dtype, sharding=want.sharding),
        shapes,
        abstract,
    )
    params = resize_positions(read(as_stored), stored, config)
    return jax.tree.map(
        lambda array, want: jax.device_put(jnp.asarray(array, want.dtype), want.sharding),
        params,
        abstract,
    )
