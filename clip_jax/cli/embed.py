"""`clip-jax embed`: a folder of images as a parquet table of embeddings."""

import argparse
import contextlib
import dataclasses
import hashlib
import inspect
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_jax.cli.process import add_model, command
from clip_jax.cli.progress import EmbeddingBar, ignoring

PART = 4096
"""Images a part; an interrupted run begins again with the part it was at."""


@command
@ignoring(".*has no tokenizer")  # Images need none.
def main(argv: list[str]) -> None:
    """Embed every image of a folder, at any depth.

    OUT has the columns `path` (below FOLDER) and `embedding` (unit norm, float32), in natural
    order; its schema's metadata has `model`, `folder` and `left_out`, the number of images that
    could not be read. These are named, and the exit status is then 1.

    The same command again goes on where it was interrupted: finished parts lie in `.OUT.parts`
    beside OUT, and go when OUT is there. OUT appears, or is replaced, only when it is whole.
    """
    options = parser().parse_args(argv)
    folder, out = Path(options.folder), Path(options.out)
    _require_places(folder, out)
    if options.batch is not None and options.batch < 1:
        raise ValueError(f"--batch starts at 1, got {options.batch}")
    from rich.console import Console

    from clip_jax.api import load
    from clip_jax.data.images import find_images
    from clip_jax.eval.encoders import usual_batch

    images = find_images([folder]).paths
    clip = load(options.model, batch=min(options.batch or usual_batch(), len(images)))
    drafts = out.with_name(f".{out.name}.parts")
    drafts.mkdir(exist_ok=True)
    parts = _plan(images, folder, _mark(clip), drafts)
    left_out = _embed(parts, folder, clip.embedder, Console(file=sys.stderr, highlight=False))
    if left_out == len(images):
        shutil.rmtree(drafts)
        raise ValueError(f"none of the images could be read; {out} is not written")
    facts = {"model": options.model, "folder": options.folder, "left_out": str(left_out)}
    width = _join([part.file for part in parts], out, facts)
    shutil.rmtree(drafts)
    said = f", {left_out} left out" if left_out else ""
    print(f"written: {out} ({len(images) - left_out} images{said}, {width} numbers each)")
    if left_out:
        raise SystemExit(1)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="clip-jax embed",
        description=inspect.cleandoc(main.__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: clip-jax embed photos/ photos.parquet --model ViT-L-14/openai",
    )
    made.add_argument("folder", metavar="FOLDER", help="images at any depth (jpg, png, webp)")
    made.add_argument("out", metavar="OUT", help="the .parquet file to write; replaced if there")
    add_model(made)
    made.add_argument(
        "--batch", type=int, metavar="N", help="images per call of the model (16 on CPU, else 64)"
    )
    return made


def _require_places(folder: Path, out: Path) -> None:
    """What is found only after hours of work otherwise."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder")
    if out.suffix != ".parquet":
        raise ValueError(f"{out}: the table is parquet, so let its name end in .parquet")
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder; give the name of a file")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent} is no folder")


@dataclasses.dataclass(frozen=True)
class _Part:
    """Some of the images, and the file that has their rows when they are done."""

    paths: tuple[Path, ...]
    file: Path


def _plan(images: Sequence[Path], folder: Path, mark: str, drafts: Path) -> list[_Part]:
    """Parts whose files are named after all that they depend on: images and model."""
    parts = []
    for start in range(0, len(images), PART):
        paths = tuple(images[start : start + PART])
        told = json.dumps([mark, [(_name(path, folder), *_state(path)) for path in paths]])
        parts.append(_Part(paths, drafts / f"{hashlib.sha256(told.encode()).hexdigest()}.parquet"))
    return parts


def _name(path: Path, folder: Path) -> str:
    """A path below the folder; bytes that are no UTF-8, which parquet cannot hold, as \\xNN."""
    name = bytes(path.relative_to(folder).as_posix(), "utf-8", "surrogateescape")
    return name.decode("utf-8", "backslashreplace")


def _state(path: Path) -> tuple[int, ...]:
    """Size and time of change; nothing for a file that is there no more."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns


def _mark(clip: Any) -> str:
    """A number that changes with whatever an image's embedding depends on."""
    import jax
    import numpy as np

    cfg = clip.model.cfg
    mark = hashlib.sha256(repr((cfg.image, cfg.embed_dim, cfg.dtype, clip.preprocess)).encode())
    for leaf in jax.tree.leaves(clip.params["image"]):
        mark.update(np.asarray(leaf).reshape(-1).view(np.uint8).data)
    return mark.hexdigest()


def _embed(parts: Sequence[_Part], folder: Path, embedder: Any, console: Any) -> int:
    """Embed the parts that are not done yet; the number of images left out of any."""
    from clip_jax.data.images import ImageFiles

    total = sum(len(part.paths) for part in parts)
    kept = {part for part in parts if _is_done(part.file)}
    if kept:
        count = sum(len(part.paths) for part in kept)
        console.print(f"{count} of {total} images were done before")
    done = left_out = 0
    with EmbeddingBar(console) as show:
        for part in parts:
            if part not in kept:

                def progress(_: str, count: int, __: int | None, before: int = done) -> None:
                    show("images", before + count, total)

                one = dataclasses.replace(embedder, progress=progress)
                _write(one.source(ImageFiles(part.paths)), folder, part.file)
            messages = json.loads(_metadata(part.file)[b"left_out"])
            for message in messages:
                console.print(f"left out: {message}", markup=False, soft_wrap=True)
            left_out += len(messages)
            done += len(part.paths)
    return left_out


def _is_done(file: Path) -> bool:
    """False also for a file that a power failure left without content."""
    try:
        return b"left_out" in _metadata(file)
    except (OSError, ValueError):
        return False


def _metadata(file: Path) -> Mapping[bytes, bytes]:
    import pyarrow.parquet as pq

    return pq.read_schema(file).metadata or {}


def _write(found: Any, folder: Path, file: Path) -> None:
    """A part: its rows, and in the metadata what was left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [_name(Path(key), folder) for key in found.keys]
    vectors = pa.FixedSizeListArray.from_arrays(
        pa.array(found.images.ravel()), found.images.shape[1]
    )
    table = pa.table({"path": pa.array(names, pa.string()), "embedding": vectors})
    with _whole(file) as draft:
        told = {"left_out": json.dumps(found.skipped)}
        pq.write_table(table.replace_schema_metadata(told), draft)


def _join(files: Sequence[Path], out: Path, facts: Mapping[str, str]) -> int:
    """All parts as one file; the length of an embedding."""
    import pyarrow.parquet as pq

    schema = pq.read_schema(files[0]).with_metadata(dict(facts))
    with _whole(out, files[0].parent) as draft, pq.ParquetWriter(draft, schema) as writer:
        for file in files:
            with pq.ParquetFile(file) as part:
                writer.write_table(part.read())
    return schema.field("embedding").type.list_size


@contextlib.contextmanager
def _whole(file: Path, folder: Path | None = None) -> Iterator[Path]:
    """A name to write to, from which the file is moved to its own when all went well."""
    draft = (folder or file.parent) / f"{file.name}.draft"
    try:
        yield draft
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
