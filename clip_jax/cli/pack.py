"""`clip-jax pack`: any source as ArrayRecord files."""

import argparse
import inspect
import pathlib
import sys
from typing import Any

from clip_jax.cli.process import command


@command
def main(argv: list[str]) -> None:
    """Rewrite a data set as ArrayRecord files, with smaller pictures if asked.

    SOURCE is a config file (its `data` is taken), a folder of tar shards, of images, or packed
    before, a table, or a tar file. OUT gets SPLIT-00000-of-00008.array_record, ... and SPLIT.json,
    which has counts, checksums, and what was left out and why: samples that cannot be read, and
    pictures that cannot be decoded. Train on it with data=ArrayRecords(root="OUT").

    The same command again goes on where it was interrupted; finished files are kept. In the end,
    all files are read and compared with their checksums; --verify does that alone.
    """
    options = parser().parse_args(argv)
    from rich.console import Console

    console = Console(file=sys.stderr, highlight=False)
    if options.verify:
        _verify(options, console)
        return
    if options.out is None:
        parser().error("OUT is missing: the folder to write to")
    from clip_jax.data.guess import open_path
    from clip_jax.data.manifest import manifest_path
    from clip_jax.data.pack import pack
    from clip_jax.data.resize import Resize

    moved = ["--data.root", options.root] if options.root else []
    data = open_path(options.source, moved, prog="clip-jax pack")
    resize = None
    if options.size is not None:
        resize = Resize(size=options.size, encoding=options.encoding, quality=options.quality)
    split = options.split or "train"
    with _Bar(console) as show:
        manifest = pack(
            data,
            options.out,
            split=split,
            resize=resize,
            shards=options.shards,
            threads=options.threads,
            max_bad=options.max_bad,
            progress=show,
        )
    print(f"written and verified: {_said(options.out, split, manifest)}")
    if manifest.left_out:
        print(
            f"left out: {len(manifest.left_out)}, for example {manifest.left_out[0]} "
            f"(all are in {manifest_path(pathlib.Path(options.out), split)})"
        )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="clip-jax pack",
        usage="%(prog)s SOURCE OUT [options]\n       %(prog)s OUT --verify [--split SPLIT]",
        description=inspect.cleandoc(main.__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: clip-jax pack shards/ packed/ --size 256",
    )
    made.add_argument("source", metavar="SOURCE", help="a config file, a folder, a table, a tar")
    made.add_argument("out", metavar="OUT", nargs="?", help="the folder to write to")
    made.add_argument("--split", help="which part of the source (train); with --verify: all")
    made.add_argument(
        "--size",
        type=int,
        metavar="PIXELS",
        help="reduce pictures whose shorter side is longer, and encode them anew; without it all "
        "stay as they are",
    )
    made.add_argument("--encoding", choices=("jpeg", "webp"), default="jpeg", help="(jpeg)")
    made.add_argument("--quality", type=int, default=95, help="of the encoding, to 100 (95)")
    made.add_argument("--shards", type=int, metavar="N", help="files (one a 20,000 samples)")
    made.add_argument("--threads", type=int, metavar="N", help="that decode (one a core)")
    made.add_argument(
        "--max-bad",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="stop where a larger share of a file's samples is bad (0.5)",
    )
    made.add_argument("--data.root", dest="root", metavar="PATH", help="where a config's data is")
    made.add_argument("--verify", action="store_true", help="only compare OUT with its checksums")
    return made


def _verify(options: argparse.Namespace, console: Any) -> None:
    """Check one split, or all that are packed.

    Raises:
      FileNotFoundError: nothing is packed there.
      ValueError: lists the faults of all splits.
    """
    from clip_jax.data.pack import packed_splits, verify

    out = options.out or options.source
    splits = [options.split] if options.split else packed_splits(out)
    if not splits:
        raise FileNotFoundError(f"{out} holds nothing that clip-jax pack wrote")
    faults = []
    for split in splits:
        try:
            with _Bar(console) as show:
                manifest = verify(out, split, progress=show)
        except ValueError as fault:
            faults.append(str(fault))
        else:
            print(f"verified: {_said(out, split, manifest)}")
    if faults:
        raise ValueError("\n".join(faults))


def _said(out: str, split: str, manifest: Any) -> str:
    shards = manifest.shards
    size = sum(shard.size for shard in shards) / 1e6
    files = f"{len(shards)} files" if len(shards) > 1 else "1 file"
    return f"{out} (split {split}: {manifest.samples:,} samples in {files}, {size:,.1f} MB)"


class _Bar:
    """A context whose value is what `pack` wants for its progress; shown on terminals only."""

    def __init__(self, console: Any):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        silent = not console.is_terminal
        self._bar = Progress(*columns, Remaining(), console=console, transient=True, disable=silent)
        self._task = self._bar.add_task("packing", total=None)

    def __enter__(self):
        self._bar.start()
        return self._show

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _show(self, what: str, done: int, total: int) -> None:
        self._bar.update(self._task, description=what, completed=done, total=total)
