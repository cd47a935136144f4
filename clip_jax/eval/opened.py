"""A data set that was found and read, whatever its layout: pictures, and what is asked of them."""

import dataclasses
import hashlib
import pathlib

from clip_jax.data.sample import Source
from clip_jax.eval.tasks import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A few pictures and texts that are to be matched with each other."""

    key: str
    pictures: tuple[int, ...]
    """Positions in the source."""
    texts: tuple[str, ...]
    right: tuple[bool, ...] = ()
    """For each picture, whether the text belongs to it, where there is one text for many."""
    category: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """All that a measure needs of a data set."""

    task: Task
    folder: pathlib.Path
    source: Source
    """Of the pictures, each once."""
    pictures: str
    """A hash that changes with the pictures and with what lies beside each of them."""
    classes: tuple[str, ...] = ()
    """In the order of the labels."""
    templates: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()
    """Of tasks that match pictures and texts in small sets."""
    train: "Opened | None" = None
    """The split that probes learn from, where they are asked for."""

    @property
    def words(self) -> str:
        """A hash that changes with names, templates and texts, but not with where they lie."""
        told = (self.task, self.classes, self.templates, self.examples)
        return hashlib.sha256(repr(told).encode("utf-8", "backslashreplace")).hexdigest()

    @property
    def digest(self) -> str:
        """A hash that changes with anything that the outcome depends on."""
        told = (self.task, self.pictures, self.classes, self.templates, self.examples)
        if self.train is not None:
            told = (*told, self.train.digest)
        return hashlib.sha256(repr(told).encode("utf-8", "backslashreplace")).hexdigest()
