"""Pictures without words: files given by name, or all below folders."""

import dataclasses
import pathlib
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
            raise BadSampleError(f"{path}: {fault.strerror or fault}") from fault


def find_images(places: Sequence[str | pathlib.Path]) -> ImageFiles:
    """Files as given, whatever their suffix, and images at any depth of the folders given.

    Hidden files and folders below a folder are left out; within one, the order is natural.

    Raises:
      FileNotFoundError: places that do not exist, all of them; or there is no image at all.
    """
    found: list[pathlib.Path] = []
    missing: list[str] = []
    for place in map(pathlib.Path, places):
        if place.is_dir():
            below = (p for p in place.rglob("*") if p.suffix[1:].lower() in IMAGES)
            names = [p.relative_to(place).as_posix() for p in below if p.is_file()]
            names = sorted((n for n in names if "/." not in f"/{n}"), key=natural)
            found += [place / name for name in names]
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
