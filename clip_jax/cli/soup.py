"""`clip-jax soup`: the average of the weights of several checkpoints."""

import argparse
import dataclasses
import inspect
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from clip_jax.cli import suites
from clip_jax.cli.process import command, keep_compiled

TRAINING_ONLY = (
    *("temperature", "max_scale", "bias", "dtype", "*.dropout", "*.patch_dropout", "*.unroll"),
    *("*.remat", "*.offload", "image.batch_statistics"),
)
"""Fields of a model that change nothing of what its parameters compute in use, but for rounding."""


@command
def main(argv: list[str]) -> None:
    """Average the weights of checkpoints of one architecture, as a model of its own.

    The figure of a model is the mean of the main figures of all data sets, on their test splits.
    Prints that of each checkpoint and of the soup, and what the soup gains over the best of them.
    With --greedy a checkpoint is taken in, from the best to the worst, if the soup does not get
    worse by it, as measured on the train splits: those of the test splits choose nothing.

    OUT becomes a run folder with one checkpoint, which is what all commands and clip_jax.load take.
    """
    options = parser().parse_args(argv)
    keys = suites.chosen(options)
    find = suites.finder(keys, options, train=options.greedy)
    suites.devices_for(options.batch)
    _require_empty(options.out)
    members = _members(options.models)
    keep_compiled()
    from rich.console import Console

    console = Console(file=sys.stdout)
    say = suites.sayer(console)
    measure = _Measure([find(key, say) for key in keys], suites.cache_of(options), console, say)
    params, told = _choose(options, members, measure)
    told["data_sets"] = list(keys)
    _write(options.out, params, members[0], max(member.step for member in members), told)
    console.print(_table(told))
    say(f"written: {options.out}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="clip-jax soup",
        description=inspect.cleandoc(main.__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: clip-jax soup runs/a runs/b runs/c/checkpoints/500 --suite cifar10 "
        "--root data --greedy --out soup",
    )
    made.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="a run folder (its newest checkpoint), or one checkpoints/STEP",
    )
    made.add_argument(
        "--greedy", action="store_true", help="take in only what helps on the train splits"
    )
    suites.add_places(made, required=True)
    made.add_argument(
        "--batch", type=int, metavar="N", help="images, or texts, per call (64, on CPU 16)"
    )
    made.add_argument(
        "--out",
        type=pathlib.Path,
        required=True,
        metavar="FOLDER",
        help="the soup; it must not exist, or be empty",
    )
    return made


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Member:
    folder: Any
    """Of the checkpoint."""
    config: Any
    """Plain data of its run's."""
    tokenizer: Any

    @property
    def step(self) -> int:
        return int(self.folder.name) if self.folder.name.isdigit() else 0


def _members(paths: Sequence[str]) -> list[_Member]:
    """The checkpoints, all of one architecture, tokenizer and preprocessing.

    Raises:
      ValueError: they are not, with all that differs; fewer than two; one given twice.
      FileNotFoundError: no such checkpoint.
    """
    from clip_jax.checkpoint.start import checkpoint_folder, is_run, saved_config
    from clip_jax.config import from_data
    from clip_jax.eval.identity import tokenizer_mark
    from clip_jax.tokenizers import TokenizerConfig, storage

    if strange := [path for path in paths if pathlib.Path(path).exists() and not is_run(path)]:
        raise ValueError(
            f"{', '.join(strange)}: no run or checkpoint of clip_jax; only these can be averaged"
        )
    folders = [checkpoint_folder(path) for path in paths]
    if len({folder.resolve() for folder in folders}) < max(len(folders), 2):
        raise ValueError(f"a soup needs two or more checkpoints, each once; got {', '.join(paths)}")
    members = []
    for folder in folders:
        config = saved_config(folder)
        tokenizer = from_data(TokenizerConfig, config["tokenizer"], "tokenizer")
        tokenizer = storage.found_again(tokenizer, folder.parent.parent)
        members.append(_Member(folder=folder, config=config, tokenizer=tokenizer))
    first, *others = members
    mark = tokenizer_mark(first.tokenizer)
    faults = []
    for path, other in zip(paths[1:], others, strict=True):
        odd = _differences(first.config, other.config)
        if tokenizer_mark(other.tokenizer) != mark:
            odd.append("another tokenizer")
        if odd:
            faults.append(f"{path} cannot be averaged with {paths[0]}: {', '.join(odd)}")
    if faults:
        raise ValueError("; ".join(faults))
    return members


def _differences(first: Any, other: Any) -> list[str]:
    """What keeps two runs' weights from being averaged, but for the tokenizer."""
    from clip_jax.config import differences, from_data, to_data
    from clip_jax.models.clip import ClipConfig
    from clip_jax.preprocess.recipe import RecipeConfig

    parts = {"model": (ClipConfig, TRAINING_ONLY), "recipe": (RecipeConfig, ())}
    return [
        f"{part}.{fault}"
        for part, (kind, ignore) in parts.items()
        # Read, as an older run's lacks the newest fields.
        for fault in differences(
            *(to_data(from_data(kind, run[part], part)) for run in (first, other)), ignore=ignore
        )
    ]


@dataclasses.dataclass(frozen=True)
class _Weights(Sequence):
    """Parameters of checkpoints, read whenever they are asked for."""

    folders: Sequence[Any]
    where: Any

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, index: Any) -> Any:
        from clip_jax.api import load

        return load(str(self.folders[index]), sharding=self.where).params


@dataclasses.dataclass(frozen=True)
class _Measure:
    """The figure of a model on data sets."""

    opened: Sequence[Any]
    cache: Any
    console: Any
    say: Callable[[str], None]

    def __call__(self, model: Any, split: str) -> float:
        """The mean of main figures.

        Raises:
          ValueError: a data set without one; what its measure raises.
        """
        from clip_jax.cli.progress import EmbeddingBar
        from clip_jax.eval.once import Embeddings
        from clip_jax.eval.run_suite import STANDARD

        figures = []
        with EmbeddingBar(self.console) as progress:
            shown = suites.showing(model, progress, self.say)
            for one in self.opened:
                part = one if split == "test" else one.train
                embeddings = Embeddings(shown, self.cache, self.say)
                found = STANDARD.of(one)(part, embeddings, self.say).main_figure
                if found is None:
                    raise ValueError(f"{one.task.key} has no main figure to compare models by")
                figures.append(found)
        return float(np.mean(figures))


def _choose(
    options: argparse.Namespace, members: Sequence[_Member], measure: _Measure
) -> tuple[Any, dict[str, Any]]:
    """The soup's parameters, and what is told of it."""
    from clip_jax.api import load
    from clip_jax.eval.ensemble import greedy_soup, uniform_soup

    where = suites.devices_for(options.batch)
    clip = load(str(members[0].folder), batch=where.batch, sharding=where.whole)
    model = suites.suite_models(clip, where)
    weights = _Weights([member.folder for member in members], where.whole)
    told: dict[str, Any] = {"how": "greedy" if options.greedy else "uniform"}
    if options.greedy:
        soup = greedy_soup(weights, lambda params: measure(model(params), "train"))
        alone = [measure(model(params), "test") for params in weights]
        score = measure(model(soup.params), "test")
        told["train"] = dict(zip(options.models, soup.alone, strict=True))
        told["soup_train"] = soup.score
    else:
        soup = uniform_soup(weights, lambda params: measure(model(params), "test"))
        alone, score = soup.alone, soup.score
    told["members"] = [options.models[i] for i in soup.members]
    told["test"] = dict(zip(options.models, alone, strict=True))
    return soup.params, told | {"soup": score, "gain": score - max(alone)}


def _require_empty(out: pathlib.Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not empty: choose another folder")


def _write(
    out: pathlib.Path, params: Any, first: _Member, step: int, told: Mapping[str, Any]
) -> None:
    """A run folder with one checkpoint that cannot be trained on, as it has no optimizer."""
    from clip_jax.checkpoint.store import Store
    from clip_jax.config import write_json
    from clip_jax.tokenizers import storage

    out.mkdir(parents=True, exist_ok=True)
    storage.keep(first.tokenizer, out)
    store = Store(out / "checkpoints")
    try:
        store.save(
            step,
            params=params,
            progress={"step": np.int32(step)},
            position={},
            config={**first.config, "run": str(out)},
        )
    finally:
        store.close()
    write_json(out / "soup.json", told)


def _table(told: Mapping[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    greedy = "train" in told
    drawn = Table(title=f"A {told['how']} soup of {len(told['members'])}")
    drawn.add_column("checkpoint", style="bold", overflow="fold")
    for name in ("train", "test") if greedy else ("test",):
        drawn.add_column(name, justify="right", no_wrap=True)
    drawn.add_column("in the soup", no_wrap=True)
    for path, figure in told["test"].items():
        train = [f"{told['train'][path]:.4f}"] if greedy else []
        within = "yes" if path in told["members"] else "no"
        drawn.add_row(Text(path), *train, f"{figure:.4f}", within)
    drawn.add_section()
    train = [f"{told['soup_train']:.4f}"] if greedy else []
    drawn.add_row("soup", *train, f"{told['soup']:.4f}", "")
    blank = [""] if greedy else []
    drawn.add_row("gain over the best", *blank, f"{told['gain']:+.4f}", "")
    return drawn
