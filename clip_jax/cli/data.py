"""`clip-jax data`: what a data set holds, before days are spent on it."""

import argparse
import inspect
import json
import sys
from pathlib import Path
from typing import Any

from clip_jax.cli.process import command


@command
def main(argv: list[str]) -> None:
    """Look through a data set: counts, sizes, caption lengths, broken samples, speed; draw a sheet.

    SOURCE is a config file (its `data` and tokenizer are taken), a folder of tar shards, images or
    ArrayRecord files, a table, or a tar file. Lengths are counted with the config's tokenizer, or
    with CLIP's. The contact sheet shows samples evenly spread, with their captions.
    """
    options = parser().parse_args(argv)
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit starts at 1, got {options.limit}")
    from rich.console import Console
    from rich.progress import Progress

    from clip_jax.data.guess import open_path
    from clip_jax.data.survey import chosen, squares, survey
    from clip_jax.eval import pictures

    moved = ["--data.root", options.root] if options.root else []
    source = open_path(options.source, moved, prog="clip-jax data").open(options.split)
    with Progress(console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task(f"reading {options.split}", total=None)
        facts, usable = survey(
            source,
            _tokenizer(options.source, moved),
            limit=options.limit,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if options.json:
        print(json.dumps(as_data(facts), ensure_ascii=True))
    else:
        show(facts, Console(file=sys.stdout, highlight=False))
    if usable:
        title = f"{options.source}, split {options.split}: {facts.samples:,} samples"
        sheet = pictures.contact_sheet(*squares(source, chosen(usable, 30)), title=title)
        pictures.save(sheet, options.sheet)
        print(f"picture: {options.sheet}", file=sys.stderr if options.json else sys.stdout)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="clip-jax data",
        description=inspect.cleandoc(main.__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: clip-jax data shards/ --limit 2000 --sheet sheet.png",
    )
    made.add_argument("source", metavar="SOURCE", help="a config file, a folder, a table, a tar")
    made.add_argument("--split", default="train", help="which part (train)")
    made.add_argument(
        "--limit", type=int, metavar="N", help="look at N samples, evenly spread (all)"
    )
    made.add_argument("--sheet", type=Path, default=Path("data.png"), help="the PNG (data.png)")
    made.add_argument("--json", action="store_true", help="figures as one JSON object")
    made.add_argument("--data.root", dest="root", metavar="PATH", help="for a config: where it is")
    return made


def _tokenizer(source: str, moved: list[str]) -> Any:
    from clip_jax.overrides import load_config, override
    from clip_jax.tokenizers import ClipBpe

    if not source.endswith(".py"):
        return ClipBpe()
    return getattr(override(load_config(source), moved, "clip-jax data"), "tokenizer", ClipBpe())


def as_data(facts: Any) -> dict[str, Any]:
    """All figures of a survey, for `--json`."""
    from clip_jax.data.survey import quantiles

    return {
        "samples": facts.samples,
        "looked_at": facts.looked_at,
        "broken": facts.broken,
        "height": quantiles(facts.sides[:, 0]),
        "width": quantiles(facts.sides[:, 1]),
        "bytes": quantiles(facts.encoded),
        "captions_a_sample": quantiles(facts.captions),
        "tokens_a_caption": quantiles(facts.tokens),
        "captions_cut": facts.cut,
        "captions": len(facts.tokens),
        "context_length": facts.context,
        "labels": {str(label): count for label, count in facts.labels.items()},
        "samples_a_second": {stage: round(rate, 1) for stage, rate in facts.rates.items()},
    }


def show(facts: Any, console: Any) -> None:
    """The same as a table, broken samples after it."""
    from rich.table import Table
    from rich.text import Text

    data = as_data(facts)
    looked = "" if facts.looked_at == facts.samples else f", {facts.looked_at:,} looked at"
    console.print(f"{facts.samples:,} samples{looked}, {len(facts.broken):,} broken")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "least", "5%", "median", "95%", "greatest"):
        table.add_column(name, justify="right" if name else "left")
    for name in ("height", "width", "bytes", "captions_a_sample", "tokens_a_caption"):
        if data[name]:
            table.add_row(name.replace("_", " "), *(f"{value:,}" for value in data[name]))
    console.print(table)
    if data["captions"]:
        share = facts.cut / data["captions"]
        length = f"{facts.context} tokens"
        console.print(
            f"{facts.cut:,} of {data['captions']:,} captions ({share:.1%}) exceed {length}"
        )
    if facts.labels:
        fewest, most = min(facts.labels.values()), max(facts.labels.values())
        console.print(f"{len(facts.labels):,} labels, {fewest:,} to {most:,} samples each")
    rates = ", ".join(f"{stage} {rate:,.0f}" for stage, rate in facts.rates.items())
    console.print(f"samples a second, each stage alone in one thread: {rates}")
    for key, why in list(facts.broken.items())[:10]:
        console.print(Text(f"broken: {key}: {why}"), soft_wrap=True)
    if len(facts.broken) > 10:
        console.print(f"... and {len(facts.broken) - 10:,} more (--json lists all)")
