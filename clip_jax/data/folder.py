"""Images as plain files: captions in text files beside them, or classes as folders."""

import dataclasses
import pathlib

from clip_jax.data.sample import BadSampleError, Fault, Sample, reason_of
from clip_jax.data.tar_index import IMAGES
from clip_jax.data.tar_shards import natural

_OTHER_SPLITS = ("test", "val", "validation")
"""Beside one of these, training images must lie in `train`: the root holds the others too."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder:
    """Every jpg, jpeg, png and webp at any depth, in natural order of their paths.

    Captions are the lines of a text file with the image's name (`dog.jpg`, `dog.txt`).
    """

    root: str
    """Holds `train/`, `test/`, ...; or images themselves (then it is the split "train").

    Hidden files and folders are left out."""
    class_folders: bool = False
    """The first folder below the split names the class; captions are then optional. Labels count
    these folders in natural order."""

    def open(self, split: str) -> "FolderSource":
        """List the files; images are read when they are asked for.

        Raises:
          FileNotFoundError: no such folder or split, or no image in it.
          ValueError: class folders that do not fit `classnames.txt`; images outside of them.
        """
        folder = self._split(split)
        paths = [p for p in folder.rglob("*") if p.suffix[1:].lower() in IMAGES and p.is_file()]
        names = [p.relative_to(folder).as_posix() for p in paths]
        names = [name for name in names if "/." not in f"/{name}"]
        if not names:
            has = sorted(path.name for path in folder.iterdir())[:10]
            raise FileNotFoundError(
                f"no image ({', '.join(IMAGES)}) in {folder} or below; it holds {has or 'nothing'}"
            )
        names.sort(key=natural)
        labels = self._labels(names, split, folder) if self.class_folders else None
        return FolderSource(folder, tuple(names), labels)

    def class_names(self, split: str) -> tuple[str, ...]:
        """Lines of the root's `classnames.txt`, or else the split's folders; empty without classes.

        Raises:
          FileNotFoundError: no such folder or split.
          ValueError: `classnames.txt` has not one line a folder.
        """
        if not self.class_folders:
            return ()
        folders = self._folders(split)
        path = pathlib.Path(self.root) / "classnames.txt"
        names = tuple(path.read_text("utf-8").splitlines()) if path.is_file() else folders
        if len(names) != len(folders):
            raise ValueError(
                f"{path} names {len(names)} classes, but {self._split(split)} has "
                f"{len(folders)} folders: {', '.join(folders[:10])}"
            )
        return names

    def _split(self, split: str) -> pathlib.Path:
        root = pathlib.Path(self.root)
        if not root.is_dir():
            raise FileNotFoundError(f"{root} is not a folder; it should hold images, or train/")
        if (root / split).is_dir():
            return root / split
        if split == "train" and not any((root / name).is_dir() for name in _OTHER_SPLITS):
            return root
        has = ", ".join(repr(p.name) for p in sorted(root.iterdir()) if p.is_dir())
        raise FileNotFoundError(f"{root} has no split {split!r}; its folders: {has or 'none'}")

    def _folders(self, split: str) -> tuple[str, ...]:
        names = (path.name for path in self._split(split).iterdir() if path.is_dir())
        return tuple(sorted((n for n in names if not n.startswith(".")), key=natural))

    def _labels(self, names: list[str], split: str, folder: pathlib.Path) -> tuple[int, ...]:
        numbers = {name: number for number, name in enumerate(self._folders(split))}
        self.class_names(split)  # Of no use here, but a fault should show before training.
        loose = [name for name in names if "/" not in name]
        if loose:
            raise ValueError(
                f"{len(loose)} images lie in {folder} itself, in no class folder: "
                f"{', '.join(loose[:5])}"
            )
        return tuple(numbers[name.partition("/")[0]] for name in names)


class FolderSource:
    """Samples of one split; a sample's key is the image's path below the split's folder."""

    def __init__(
        self, folder: pathlib.Path, names: tuple[str, ...], labels: tuple[int, ...] | None
    ):
        self.folder = folder
        self.names = names
        self.labels = labels

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int, /) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        path = self.folder / self.names[index]
        try:
            return Sample(
                key=self.names[index],
                image=path.read_bytes(),
                texts=self._texts(path.with_suffix(".txt")),
                label=None if self.labels is None else self.labels[index],
            )
        except (ValueError, OSError) as fault:
            text = f"sample {self.names[index]!r} in {self.folder}: {fault}"
            raise BadSampleError(text, reason=reason_of(fault)) from fault

    def _texts(self, path: pathlib.Path) -> tuple[str, ...]:
        if not path.is_file():
            if self.labels is None:
                raise Fault("missing caption", f"no captions: {path.name} is not there")
            return ()
        texts = tuple(line.strip() for line in path.read_text("utf-8").splitlines())
        texts = tuple(text for text in texts if text)
        if not texts and self.labels is None:
            raise Fault("empty caption", f"the captions in {path.name} are empty")
        return texts
