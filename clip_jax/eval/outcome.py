"""What one data set gave: figures for tables, and arrays for pictures and comparisons."""

import dataclasses
import io
import json
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from clip_jax.config import write_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result on one data set; on disk `NAME.json` and `NAME.npz` side by side.

    Arrays by name, each there only where the task has it (n pictures, m captions, K classes):

    * `keys` (n,) str: the samples. `credit/METRIC` (n,) or (m,) float: the share of each sample in
      a metric that is their mean, NaN for those that do not count; what `compare` resamples.
    * classification: `class_names` (K,) str, `labels` (n,) int, `top` (n, up to 5) int: the classes
      with the highest scores, best first, `confidence` (n,) float: probability of `top[:, 0]`.
    * several labels: `class_names` (K,) str, `targets` (n, K) bool, `ranks` (n, K) unsigned: the
      place of each score among those of its class, 0 for the highest; the last two only of data
      sets that are not huge.
    * retrieval: `captions` (m,) str, `image_of_text` (m,) int; `rank/image_retrieval` (m,) and
      `rank/text_retrieval` (n,) unsigned: the wrong candidates before the first match;
      `to_image/queries` (q,) rows of captions, `to_image/found` (q, 5) of pictures, best first;
      `to_text/queries` (q,) rows of pictures, `to_text/found` (q, 5) rows of captions.
    * groups: `group/ATTRIBUTE` (n,) int, `group_names/ATTRIBUTE` (groups,) str; of faces also
      `predicted/gender` (n,) int, which with `group/gender` gives equalised odds.
    * `pictures` (p, S, S, 3) uint8 with `picture_rows` (p,) int: thumbnails of the samples that the
      report shows (most confident mistakes, retrieval grids).
    """

    key: str
    """Name of the task in its suite, e.g. `vtab/cifar10`."""
    dataset: str
    """The readable name, e.g. `CIFAR-10`."""
    task: str
    """`zero_shot`, `multilabel`, `retrieval`, `winogavil`, `winoground`, `sugarcrepe`, `faces`;
    of probes `linear_probe`, `few_shot`, `knn`."""
    main: str | None
    """The metric that stands for the data set; None: it does not count in averages."""
    figures: Mapping[str, float]
    """By metric, in the order in which they are shown."""
    tables: Mapping[str, Mapping[str, Mapping[str, float]]] = dataclasses.field(
        default_factory=dict
    )
    """Title -> row -> column -> number: accuracy by group and the like."""
    skipped: tuple[str, ...] = ()
    """One message for each sample left out."""
    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def counted(self) -> dict[str, float]:
        """The figures, and `skipped`, the number of samples left out, where there are any."""
        skipped = {"skipped": float(len(self.skipped))} if self.skipped else {}
        return {**self.figures, **skipped}

    @property
    def main_figure(self) -> float | None:
        """The figure that `main` names."""
        return None if self.main is None else float(self.figures[self.main])


def file_name(key: str) -> str:
    """The key as it stands in file names: `vtab/cifar10` -> `vtab-cifar10`."""
    return key.replace("/", "-")


def save(outcome: Outcome, folder: str | os.PathLike[str], identity: Mapping[str, str]) -> None:
    """Write both files, the JSON last: where it stands, the outcome is whole.

    Args:
      identity: what the outcome depends on (weights, preprocessing, data); see `load`.

    Raises:
      OSError: a file cannot be written; an earlier outcome may be gone, but is never half.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name = file_name(outcome.key)
    plain = {
        field.name: getattr(outcome, field.name)
        for field in dataclasses.fields(outcome)
        if field.name != "arrays"
    }
    target = folder / f"{name}.json"
    target.unlink(missing_ok=True)
    buffer, arrays = io.BytesIO(), dict[str, Any](outcome.arrays)
    np.savez_compressed(buffer, **arrays)
    partial = folder / f".{name}.npz.partial"
    partial.write_bytes(buffer.getvalue())
    partial.replace(folder / f"{name}.npz")
    write_json(target, {**plain, "identity": dict(identity)})


def load(
    folder: str | os.PathLike[str], key: str, identity: Mapping[str, str] | None = None
) -> Outcome | None:
    """An outcome as saved; None where there is none, or where it is of another identity.

    Raises:
      ValueError: files that no `save` wrote, by name.
    """
    name = file_name(key)
    path, arrays = (pathlib.Path(folder) / f"{name}.{kind}" for kind in ("json", "npz"))
    if not path.is_file() or not arrays.is_file():
        return None
    try:
        plain = json.loads(path.read_text())
        if plain.pop("identity") != identity and identity is not None:
            return None
        plain["skipped"] = tuple(plain["skipped"])
        return Outcome(**plain, arrays=_arrays(arrays))
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise ValueError(f"{path}: not an outcome as this program writes it: {fault}") from fault


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except (ValueError, EOFError, AttributeError, zipfile.BadZipFile) as fault:
        # NumPy takes what it does not know for a pickle, and says so.
        raise ValueError(f"{path.name} beside it is damaged") from fault
