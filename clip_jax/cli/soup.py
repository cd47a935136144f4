"""`clip-jax soup`: the average of the weights of several models."""

import argparse
import dataclasses
import inspect
import os
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
    """Average the weights of models of one architecture, as a model of its own.

    The figure of a model is the mean of the main figures of all data sets, on their test splits.
    Prints that of each model and of the soup, and what the soup gains over the best of them.
    With --greedy a model is taken in, from the best to the worst, if the soup does not get
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
    _write(options.out, params, members, told)
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
        help="anything clip_jax.load takes: a run (its newest checkpoint), one checkpoints/STEP, "
        "a file or folder of weights, hf-hub:org/name, a catalogued name",
    )
    made.add_argument(
        "--greedy", action="store_true", help="take in only what helps on the train splits"
    )
    suites.add_places(made, required=True)
    made.add_argument(
        "--batch", type=int, metavar="N", help="images, or texts, per call (16 on CPU, else 64)"
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
    path: str
    """What `clip_jax.load` takes; of a run the checkpoint."""
    model: Any
    """Its config."""
    recipe: Any
    tokenizer: Any
    run: Mapping[str, Any] | None = None
    """Plain data of the run's config, if it is of one."""

    @property
    def step(self) -> int:
        name = pathlib.PurePath(self.path).name
        return int(name) if self.run is not None and name.isdigit() else 0


def _members(paths: Sequence[str]) -> list[_Member]:
    """The models, all of one architecture, tokenizer and preprocessing.

    Raises:
      ValueError: they are not, with all that differs; fewer than two; one given twice; one
        without a tokenizer.
      FileNotFoundError, ValueError, CheckpointError: what `clip_jax.load` raises.
    """
    from clip_jax.checkpoint.start import checkpoint_folder, is_run
    from clip_jax.eval.identity import same_ids

    places = [os.path.expanduser(path) for path in paths]  # noqa: PTH111 (it may be no path)
    places = [str(checkpoint_folder(place)) if is_run(place) else place for place in places]
    resolved = {os.path.realpath(place) for place in places}
    if len(resolved) < max(len(places), 2):
        raise ValueError(f"a soup needs two or more models, each once; got {', '.join(paths)}")
    first, *others = [_of_run(p) if is_run(p) else _of_weights(p) for p in places]
    faults = []
    for path, other in zip(paths[1:], others, strict=True):
        odd = _differences(first, other)
        if not same_ids(first.tokenizer, other.tokenizer):
            odd.append("another tokenizer")
        if odd:
            faults.append(f"{path} cannot be averaged with {paths[0]}: {', '.join(odd)}")
    if faults:
        raise ValueError("; ".join(faults))
    return [first, *others]


def _of_run(path: str) -> _Member:
    """As its config says; nothing else is read."""
    from etils import epath

    from clip_jax.checkpoint.start import saved_config
    from clip_jax.config import from_data
    from clip_jax.models.clip import ClipConfig
    from clip_jax.preprocess.recipe import RecipeConfig
    from clip_jax.tokenizers import TokenizerConfig, storage

    folder = epath.Path(path)
    run = saved_config(folder)
    kinds = {"model": ClipConfig, "recipe": RecipeConfig, "tokenizer": TokenizerConfig}
    parts = {name: from_data(kind, run[name], name) for name, kind in kinds.items()}
    parts["tokenizer"] = storage.found_again(parts["tokenizer"], folder.parent.parent)
    return _Member(path=path, run=run, **parts)


def _of_weights(path: str) -> _Member:
    """Weights of any other format, which alone tell of what model they are."""
    from clip_jax.api import load
    from clip_jax.tokenizers import TokenizerConfig

    clip = load(path)
    if not isinstance(clip.tokenizer, TokenizerConfig):
        raise ValueError(f"{path} comes without its tokenizer, so there is nothing to compare")
    return _Member(
        path=path, model=clip.model.cfg, recipe=clip.preprocess, tokenizer=clip.tokenizer
    )


def _differences(first: _Member, other: _Member) -> list[str]:
    """What keeps two models' weights from being averaged, but for the tokenizer."""
    from clip_jax.config import differences, to_data

    return [
        f"{part}.{fault}"
        for part, ignore in {"model": TRAINING_ONLY, "recipe": ()}.items()
        for fault in differences(
            *(to_data(getattr(member, part)) for member in (first, other)), ignore=ignore
        )
    ]


@dataclasses.dataclass(frozen=True)
class _Weights(Sequence):
    """Parameters of models, read whenever they are asked for."""

    paths: Sequence[str]
    where: Any

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        from clip_jax.api import load

        return load(str(self.paths[index]), sharding=self.where).params


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
    clip = load(members[0].path, batch=where.batch, sharding=where.whole)
    model = suites.suite_models(clip, where)
    weights = _Weights([member.path for member in members], where.whole)
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
    out: pathlib.Path, params: Any, members: Sequence[_Member], told: Mapping[str, Any]
) -> None:
    """A run folder with one checkpoint that cannot be trained on, as it has no optimizer.

    Its config is that of the first run; of models that are none, only what they are.
    """
    from clip_jax.checkpoint.store import Store
    from clip_jax.config import to_data, write_json
    from clip_jax.tokenizers import storage

    step, first = max(member.step for member in members), members[0]
    parts = {name: to_data(getattr(first, name)) for name in ("model", "recipe", "tokenizer")}
    run = next((member.run for member in members if member.run is not None), parts)
    out.mkdir(parents=True, exist_ok=True)
    storage.keep(first.tokenizer, out)
    store = Store(out / "checkpoints")
    try:
        store.save(
            step,
            params=params,
            progress={"step": np.int32(step)},
            position={},
            config={**run, "run": str(out)},
        )
    finally:
        store.close()
    write_json(out / "soup.json", told)


def about(model: str) -> str:
    """What is in a soup, if the model is one; else nothing."""
    from clip_jax.config import read_json

    path = pathlib.Path(model) / "soup.json"
    told = read_json(path) if path.is_file() else None
    if not isinstance(told, dict) or not {"how", "members", "test"} <= told.keys():
        return ""
    members = ", ".join(map(str, told["members"]))
    return f"A {told['how']} soup of {members}; tried were {len(told['test'])}."


def _table(told: Mapping[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    greedy = "train" in told
    drawn = Table(title=f"A {told['how']} soup of {len(told['members'])}")
    drawn.add_column("model", style="bold", overflow="fold")
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
