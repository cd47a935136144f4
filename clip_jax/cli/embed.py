"""`clip-jax embed`: a folder of images as a parquet table of embeddings."""

import argparse
import dataclasses
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from clip_jax.cli.process import command

PART = 4096
"""Images a part; an interrupted run begins again with the part it was at."""


@command
def main(argv: list[str]) -> None:
    """Embed every image of a folder; the same command again goes on where it was interrupted.

    OUT has the columns `path` (below FOLDER) and `embedding` (unit norm, float32); its schema's
    metadata names the model. Images that cannot be read are named and left out.
    """
    options = parser().parse_args(argv)
    out = Path(options.out)
    if out.suffix != ".parquet":
        raise ValueError(f"{out}: the table is parquet, so let its name end in .parquet")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent} is no folder")
    if options.batch < 1:
        raise ValueError(f"--batch starts at 1, got {options.batch}")
    from rich.console import Console

    from clip_jax.api import load
    from clip_jax.data.images import find_images

    if not Path(options.folder).is_dir():
        raise FileNotFoundError(f"{options.folder} is no folder")
    images = find_images([options.folder])
    clip = load(options.model, batch=min(options.batch, len(images)))
    parts = _Parts(out, options.folder, options.model, images)
    skipped = parts.fill(clip.embedder, Console(file=sys.stderr))
    rows, width = parts.join()
    print(f"written: {out} ({rows} images, {width} numbers each)")
    if skipped:
        raise SystemExit(1)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="clip-jax embed",
        description=main.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: clip-jax embed photos/ photos.parquet --model ViT-L-14/openai",
    )
    made.add_argument("folder", metavar="FOLDER", help="images at any depth (jpg, png, webp)")
    made.add_argument("out", metavar="OUT", help="the .parquet file to write; replaced if there")
    made.add_argument(
        "--model",
        default="ViT-B-32/openai",
        help="a run, a file or folder of weights, hf-hub:org/name, or a name that `clip-jax "
        "models` lists (ViT-B-32/openai)",
    )
    made.add_argument("--batch", type=int, default=64, help="images per call of the model (64)")
    return made


class _Parts:
    """Finished parts of the table, in a folder beside it until all are there."""

    def __init__(self, out: Path, folder: str, model: str, images: Any):
        self.out, self.images = out, images
        self.root = Path(folder)
        self.facts = {"model": model, "folder": folder, "images": len(images)}
        names = "\n".join(path.as_posix() for path in images.paths)
        sizes = "\n".join(str(path.stat().st_size) for path in images.paths)
        # Parts of other images or another model are of no use: they lie under another name.
        told = json.dumps([self.facts, names, sizes]).encode()
        mark = hashlib.sha256(told).hexdigest()[:16]
        self.folder = out.parent / f".{out.name}.{mark}"

    def fill(self, embedder: Any, console: Any) -> bool:
        """Embed what no part holds yet; whether an image was left out."""
        from clip_jax.cli.progress import EmbeddingBar
        from clip_jax.data.images import ImageFiles

        self.folder.mkdir(exist_ok=True)
        total = len(self.images)
        with EmbeddingBar(console) as show:
            for number, start in enumerate(range(0, total, PART)):
                path = self._part(number)
                if path.exists():
                    continue

                def progress(_: str, done: int, __: int | None, start: int = start) -> None:
                    show("images", start + done, total)

                source = ImageFiles(self.images.paths[start : start + PART])
                found = dataclasses.replace(embedder, progress=progress).source(source)
                for message in found.skipped:
                    console.print(f"left out: {message}", markup=False, soft_wrap=True)
                self._write(path, found)
        return any(self._table(number)[1] for number in range(self._count()))

    def join(self) -> tuple[int, int]:
        """All parts as one file, which takes its name when it is whole; rows and width."""
        import pyarrow.parquet as pq

        draft = self.folder / "whole"
        rows = 0
        tables = (self._table(number)[0] for number in range(self._count()))
        first = next(tables)
        with pq.ParquetWriter(draft, first.schema) as writer:
            for table in (first, *tables):
                writer.write_table(table)
                rows += len(table)
        draft.replace(self.out)
        shutil.rmtree(self.folder)
        return rows, first.schema.field("embedding").type.list_size

    def _count(self) -> int:
        return -(-len(self.images) // PART)

    def _part(self, number: int) -> Path:
        return self.folder / f"{number:06d}.parquet"

    def _table(self, number: int) -> tuple[Any, int]:
        """A part, and how many images were left out of it."""
        import pyarrow.parquet as pq

        table = pq.read_table(self._part(number))
        expected = min(PART, len(self.images) - number * PART)
        return table, expected - len(table)

    def _write(self, path: Path, found: Any) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = [Path(key).relative_to(self.root).as_posix() for key in found.keys]
        width = found.images.shape[1]
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(found.images.ravel()), width)
        table = pa.table({"path": pa.array(names, pa.string()), "embedding": vectors})
        told = {key: str(value) for key, value in self.facts.items()}
        draft = path.with_suffix(".draft")
        pq.write_table(table.replace_schema_metadata(told), draft)
        draft.replace(path)
