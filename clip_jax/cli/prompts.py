"""`clip-jax prompts`: which prompt templates serve a data set best, alone and together."""

import argparse
import dataclasses
import inspect
import string
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clip_jax.cli.process import add_model, command
from clip_jax.cli.progress import EmbeddingBar

TEMPLATES = "zeroshot_classification_templates.txt"
WIDE = 160
"""Columns of a table that goes to no terminal."""
MEASURES = ("acc1", "mean_per_class_recall")


@command
def main(argv: list[str]) -> None:
    """Choose prompt templates on a validation split.

    Prints the figure of each template alone, and of the ensemble as it grows greedily by the
    template that helps it most. Writes the best set as a file of templates, a line each, and a
    drawing of the growth beside it. The figure of the best set is of the pictures it was chosen
    on; those of the test split, with all templates and with the best set, are printed last.
    """
    options = parser().parse_args(argv)
    task = _task(options)
    _require_place(options.out)
    found = _embed(task, options)
    from rich.console import Console

    from clip_jax.eval import page_parts, pictures, prompts

    measure = _measure(options.measure)
    data = found.words, *found.validation
    alone = prompts.score_each(*data, measure=measure)
    chosen = prompts.greedy(*data, limit=options.most, measure=measure)
    console = Console(file=sys.stdout, highlight=False, markup=False)
    console.width = console.width if console.is_terminal else WIDE
    console.print(_table(task.templates, alone.tolist(), chosen))
    title = (
        f"{options.measure} on {task.validation}, {len(data[2]):,} pictures: "
        f"{_percent(max(chosen.curve))} with the best {len(chosen.best)} templates"
    )
    before = _figure(found.words, range(len(task.templates)), found.validation, measure)
    console.print(f"{title}, {_percent(before)} with all {len(task.templates)}", soft_wrap=True)
    console.print(_on_test(task, found, chosen.best, options.measure), soft_wrap=True)
    lines = [_with_c(task.templates[p]) for p in chosen.best]
    written = page_parts.write(options.out, "".join(f"{line}\n" for line in lines))
    names = [task.templates[p] for p in chosen.order]
    each = [float(alone[p]) for p in chosen.order]
    drawing = written.with_suffix(".png")
    pictures.save(pictures.growth(chosen.curve, names, each, title), drawing)
    console.print(f"written: {written}, {drawing}", soft_wrap=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="clip-jax prompts",
        description=inspect.cleandoc(main.__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: clip-jax prompts wds_cifar10/ --model ViT-B-32/openai --out best.txt",
    )
    made.add_argument(
        "data",
        nargs="?",
        metavar="DATASET",
        help=f"a folder with classnames.txt, {TEMPLATES} and a folder of shards for each split; "
        "the run's own data if not given",
    )
    add_model(made)
    made.add_argument("--split", default="train", help="the validation split (%(default)s)")
    made.add_argument("--test", help="a split to check the result on (test, where there is one)")
    made.add_argument(
        "--templates",
        type=Path,
        metavar="FILE",
        help="templates to choose from, one a line, {c} standing for the class (the data set's)",
    )
    made.add_argument("--measure", choices=MEASURES, default="acc1", help="(%(default)s)")
    made.add_argument("--most", type=int, metavar="N", help="templates in the set at most (all)")
    made.add_argument(
        "--batch", type=int, metavar="N", help="images, or texts, per call (16 on CPU, else 64)"
    )
    made.add_argument(
        "--out",
        type=Path,
        default=Path("templates.txt"),
        metavar="FILE",
        help="the file of templates to write; the drawing ends in .png instead (%(default)s)",
    )
    return made


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Task:
    dataset: Any
    names: tuple[str, ...]
    templates: tuple[str, ...]
    validation: str
    test: str | None


@dataclasses.dataclass
class _Warn:
    """Says each thing once, though each split says it."""

    console: Any
    said: set[str] = dataclasses.field(default_factory=set)

    def __call__(self, message: str) -> None:
        if message not in self.said:
            self.console.print(f"warning: {message}", soft_wrap=True)
        self.said.add(message)


def _task(options: argparse.Namespace) -> _Task:
    """What is asked for; a ValueError lists all that is wrong with the options."""
    from clip_jax.eval import zero_shot

    dataset, names, own = _folder(options) if options.data is not None else _run(options)
    templates = own if options.templates is None else _lines(options.templates)
    zero_shot.require_placeholders(templates)
    faults = []
    if twice := [t for t in dict.fromkeys(templates) if templates.count(t) > 1]:
        faults.append(f"templates that stand twice: {twice}")
    if options.most is not None and not 1 <= options.most <= len(templates):
        faults.append(f"--most is 1 to {len(templates)}, the templates there are: {options.most}")
    if options.batch is not None and options.batch < 1:
        faults.append(f"--batch starts at 1, got {options.batch}")
    if options.split == options.test:
        faults.append(f"--test {options.test} is the split that the templates are chosen on")
    if not names:
        faults.append(f"split {options.split!r} has no class names (classnames.txt)")
    if faults:
        raise ValueError("; ".join(faults))
    dataset.open(options.split)  # A wrong name is told before anything is embedded.
    test = options.test
    if test is None and options.split != "test" and _opens(dataset, "test"):
        test = "test"
    elif test is not None:
        dataset.open(test)
    return _Task(
        dataset=dataset, names=names, templates=templates, validation=options.split, test=test
    )


def _opens(dataset: Any, split: str) -> bool:
    try:
        dataset.open(split)
    except (ValueError, FileNotFoundError):
        return False
    return True


def _folder(options: argparse.Namespace) -> tuple[Any, tuple[str, ...], tuple[str, ...]]:
    """Data set, class names and templates of a folder in CLIP_benchmark's layout."""
    from clip_jax.data import TarShards

    folder = Path(options.data)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder")
    needed = ["classnames.txt", *([TEMPLATES] if options.templates is None else [])]
    if missing := [name for name in needed if not (folder / name).is_file()]:
        more = "; templates may come from --templates FILE" if TEMPLATES in missing else ""
        raise FileNotFoundError(f"{folder} has no {' and no '.join(missing)}{more}")
    dataset = TarShards(root=str(folder))
    templates = () if options.templates is not None else _lines(folder / TEMPLATES)
    return dataset, dataset.class_names(options.split), templates


def _run(options: argparse.Namespace) -> tuple[Any, tuple[str, ...], tuple[str, ...]]:
    """Data set, class names and templates of the zero-shot evaluation that a run has."""
    from clip_jax.checkpoint.start import checkpoint_folder, is_run, saved_config
    from clip_jax.config import from_data
    from clip_jax.data import DatasetConfig
    from clip_jax.eval.suite import EvalConfig
    from clip_jax.eval.zero_shot import ZeroShot

    config = saved_config(checkpoint_folder(options.model)) if is_run(options.model) else {}
    if "data" not in config:
        raise ValueError(f"{options.model} is no run with data of its own: give DATASET")
    evals = from_data(dict[str, EvalConfig], config["evals"], "evals").values()
    known = [one for one in evals if isinstance(one, ZeroShot)]
    one = next((e for e in known if e.split == options.split), known[0] if known else None)
    if one is None:
        one = ZeroShot(split=options.split)
    dataset = one.data or from_data(DatasetConfig, config["data"], "data")
    names = one.class_names or dataset.class_names(options.split)
    return dataset, tuple(names), one.templates


def _lines(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise ValueError(f"{path} is no UTF-8 text: {fault}") from fault
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _require_place(out: Path) -> None:
    """What is found only after all the work otherwise."""
    if out.suffix == ".png":
        raise ValueError(f"--out {out} is the file of templates; the drawing ends in .png")
    if out.is_dir() or not out.parent.is_dir():
        raise FileNotFoundError(f"--out {out}: give the name of a file in a folder that exists")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Found:
    words: Any
    """Unit-norm embedding of each class's name in each template, (K, P, D)."""
    validation: tuple[Any, Any]
    """Embedded pictures, and their classes."""
    test: tuple[Any, Any] | None


def _embed(task: _Task, options: argparse.Namespace) -> _Found:
    from rich.console import Console

    from clip_jax.api import load

    said = Console(file=sys.stderr, highlight=False, markup=False)
    clip = load(options.model, batch=options.batch)
    with EmbeddingBar(said) as progress:
        embedder = dataclasses.replace(clip.embedder, progress=progress, warn=_Warn(said))
        # Words first: they fail at once.
        texts = [t.format(name, c=name) for name in task.names for t in task.templates]
        words = embedder.texts(texts)
        return _Found(
            words=words.reshape(len(task.names), len(task.templates), -1),
            validation=_embed_split(task, task.validation, embedder),
            test=None if task.test is None else _embed_split(task, task.test, embedder),
        )


def _embed_split(task: _Task, split: str, embedder: Any) -> tuple[Any, Any]:
    """Pictures and their classes."""
    from clip_jax.eval.zero_shot import ZeroShot

    # One template: only the pictures are wanted, and all checks of labels and names.
    one = ZeroShot(split=split, class_names=task.names, templates=task.templates[:1])
    found, _, labels = one.embed(task.dataset, embedder)
    return found.images, labels


def _measure(name: str) -> Any:
    from clip_jax.eval import metrics, prompts

    return prompts.top1 if name == "acc1" else metrics.mean_per_class_recall


def _ranks(words: Any, chosen: Iterable[int], images: Any, labels: Any) -> Any:
    from clip_jax.eval import metrics, prompts

    return metrics.class_ranks(images, prompts.ensemble(words, tuple(chosen)), labels)


def _figure(words: Any, chosen: Iterable[int], data: tuple[Any, Any], measure: Any) -> float:
    return measure(_ranks(words, chosen, *data), data[1])


def _on_test(task: _Task, found: _Found, best: tuple[int, ...], measure: str) -> str:
    """Old and new set on pictures that nothing was chosen on."""
    from clip_jax.eval.bootstrap import paired_difference

    if found.test is None:
        return "no test split, so no figure of pictures that the set was not chosen on"
    labels = found.test[1]
    sets = range(len(task.templates)), best
    ranks = [_ranks(found.words, one, *found.test) for one in sets]
    old, new = (_measure(measure)(one, labels) for one in ranks)
    told = (
        f"{measure} on {task.test}, {len(labels):,} pictures: {_percent(new)} with the best set, "
        f"{_percent(old)} with all {len(task.templates)}"
    )
    if measure == "acc1":
        gap = paired_difference(ranks[1] < 1, ranks[0] < 1)
        low, high = 100 * gap.low, 100 * gap.high
        told += f" ({100 * gap.difference:+.1f} points, 95% interval {low:+.1f} to {high:+.1f})"
    return told


def _table(templates: tuple[str, ...], alone: list[float], chosen: Any) -> Any:
    """Templates in the order in which they were taken; the rest after them, best first."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title="Prompt templates, in the order in which the set grows")
    for name in ("", "template", "alone", "together so far"):
        drawn.add_column(name, justify="left" if name == "template" else "right", overflow="fold")
    for place, (p, figure) in enumerate(zip(chosen.order, chosen.curve, strict=True), 1):
        style = "bold" if place <= len(chosen.best) else ""
        cells = (str(place), templates[p], _percent(alone[p]), _percent(figure))
        drawn.add_row(*(Text(cell, style) for cell in cells))
    for p in sorted(set(range(len(templates))) - set(chosen.order), key=lambda p: -alone[p]):
        drawn.add_row("", Text(templates[p]), _percent(alone[p]), "")
    return drawn


def _with_c(template: str) -> str:
    """The template with `{c}` for its placeholder, as files of templates have it."""
    parts = []
    for literal, field, _, _ in string.Formatter().parse(template):
        parts.append(literal.replace("{", "{{").replace("}", "}}"))
        parts.append("{c}" if field is not None else "")
    return "".join(parts)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
