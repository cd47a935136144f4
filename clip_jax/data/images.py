"""Pictures without words: files given by name, or all below folders."""

import dataclasses
import os
import pathlib
import stat
from collections.abc import Sequence

from clip_jax.data.sample import BadSampleError, Sample
from clip_jax.data.tar_index import IMAGES
from clip_jax.data.tar_shards import natural


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """Random-access samples whose keys are the paths as they were given or found."""

    paths: tuple[pathlib.Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        path = self.paths[index]
        try:
            return Sample(key=path.as_posix(), image=path.read_bytes())
        except OSError as fault:
            reason = fault.strerror or fault
            raise BadSampleError(f"sample {path.as_posix()!r}: {reason}") from fault


def find_images(places: Sequence[str | pathlib.Path]) -> ImageFiles:
    """Files as given, whatever their suffix, and images at any depth of the folders given.

    Hidden files and folders below a folder are left out, as are links to folders; within one, the
    order is natural: 2 before 10. What cannot be read is there, so that reading it says why: a
    link to nothing, a folder that may not be opened.

    Raises:
      FileNotFoundError: places that do not exist, all of them; or there is no image at all.
    """
    found: list[pathlib.Path] = []
    missing: list[str] = []
    for place in map(pathlib.Path, places):
        if place.is_dir():
            found += [place / name for name in sorted(_names_below(place), key=natural)]
        elif place.exists():
            found.append(place)
        else:
            missing.append(str(place))
    if missing:
        raise FileNotFoundError(f"no such file or folder: {', '.join(missing)}")
    if not found:
        raise FileNotFoundError(
            f"no image ({', '.join(IMAGES)}) in {', '.join(map(str, places))} or below"
        )
    return ImageFiles(tuple(found))


def _names_below(place: pathlib.Path) -> list[str]:
    """Paths relative to a folder: its images, and folders that may not be opened."""
    found: list[pathlib.Path] = []
    closed: list[OSError] = []
    for folder, folders, files in os.walk(place, onerror=closed.append):
        folders[:] = (name for name in folders if not name.startswith("."))
        shown = (pathlib.Path(folder, name) for name in files if not name.startswith("."))
        found += (p for p in shown if p.suffix[1:].lower() in IMAGES and _is_file(p))
    found += (pathlib.Path(fault.filename) for fault in closed)
    return [path.relative_to(place).as_posix() for path in found]


def _is_file(path: pathlib.Path) -> bool:
    """Not a pipe, for whose end one would wait for ever; True where only reading can tell."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True
