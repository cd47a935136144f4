"""Several evaluations of one model, as one flat mapping of figures."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, Protocol, runtime_checkable

from clip_jax.config import nearest, write_json
from clip_jax.data.sample import Dataset, Source
from clip_jax.eval.embed import Embedder, message
from clip_jax.eval.groups import ByGroups
from clip_jax.eval.learned import LinearProbe, NearestNeighbours
from clip_jax.eval.public_sets import PublicSets
from clip_jax.eval.remember import remembering
from clip_jax.eval.retrieval import Retrieval
from clip_jax.eval.zero_shot import ZeroShot

OnSplits = ZeroShot | Retrieval | LinearProbe | NearestNeighbours | ByGroups
"""What is measured on splits of any data set."""
EvalConfig = OnSplits | PublicSets


@runtime_checkable
class Evaluator(Protocol):
    """A frozen config that can measure a model: a member of `EvalConfig`."""

    task: ClassVar[str]

    @property
    def every_steps(self) -> int | None: ...

    def run(self, dataset: Dataset, embedder: Embedder) -> Iterator[tuple[str, float]]:
        """Yield (metric, value), the metric's name without any prefix."""
        ...


def splits_of(evaluation: OnSplits) -> tuple[str, ...]:
    """The splits that an evaluation reads, the one that it is measured on first."""
    if isinstance(evaluation, LinearProbe | NearestNeighbours):
        return evaluation.split, evaluation.learn_from
    return (evaluation.split,)


def opened_by(evaluation: EvalConfig, dataset: Dataset) -> Iterator[tuple[str, Source, str | None]]:
    """Open all that an evaluation reads: what is missing shows now, and not in an hour.

    Args:
      dataset: of evaluations that name no data set themselves.

    Yields:
      What a message calls it; the source; a hash of the names and texts that lie beside its
      samples, or None where none do.

    Raises:
      ValueError, OSError: what opening raises.
    """
    if isinstance(evaluation, PublicSets):
        yield from ((one.task.key, one.source, one.words) for one in evaluation.open())
        return
    dataset = evaluation.data or dataset
    for split in splits_of(evaluation):
        yield f"split {split}", dataset.open(split), None
    if isinstance(evaluation, ZeroShot | ByGroups):
        evaluation.names(dataset)


def open_evals(
    evals: Mapping[str, EvalConfig], dataset: Dataset
) -> tuple[dict[str, Source], dict[str, str]]:
    """Open all that evaluations read, as `opened_by` of each.

    Returns:
      Sources, and hashes of names and texts, by what a message calls them.

    Raises:
      ValueError, OSError: what opening raises, after `evals.NAME: `; of several, a ValueError with
        all messages.
    """
    sources, words = dict[str, Source](), dict[str, str]()
    faults = []
    for name, evaluation in evals.items():
        try:
            for part, opened, beside in opened_by(evaluation, dataset):
                sources[f"data of evals.{name}, {part}"] = opened
                if beside is not None:
                    words[f"names and texts of evals.{name}, {part}"] = beside
        except (ValueError, OSError) as fault:
            faults.append((f"evals.{name}: {fault}", fault))
    if len(faults) == 1:
        message, fault = faults[0]
        kinds = (FileNotFoundError, OSError, ValueError)
        raise next(kind for kind in kinds if isinstance(fault, kind))(message) from fault
    if faults:
        raise ValueError("; ".join(message for message, _ in faults))
    return sources, words


def run_evals(
    evals: Mapping[str, Evaluator],
    dataset: Dataset,
    embedder: Embedder,
    only: Sequence[str] | None = None,
) -> dict[str, float]:
    """Figures under flat names, `<task>/<name>/<metric>`.

    What several of them read is embedded once. An evaluation that its data or the model's numbers
    do not let end is told to the embedder's `warn`, and `left_out` is its only figure.

    Args:
      evals: by the name they get in the figures.
      dataset: of those that name no data set themselves.
      embedder: the model.
      only: names of the evaluations to run, in this order; all if None.

    Raises:
      ValueError: names in `only` that are not in `evals`; no evaluation could be done.
      Exception: an error of the program.
    """
    names = list(evals if only is None else dict.fromkeys(only))
    if unknown := [name for name in names if name not in evals]:
        wrong = ", ".join(f"{name!r}{nearest(name, evals)}" for name in unknown)
        raise ValueError(f"no such evaluation: {wrong}; there are {sorted(evals)}")
    faults = list[str]()
    turns = evals_in_turn(evals, dataset, embedder, names, faults.append)
    found = {name: value for figures in turns for name, value in figures.items()}
    if names and len(faults) == len(names):
        raise ValueError("; ".join(faults))
    for fault in faults:
        embedder.warn(fault)
    return found


def evals_in_turn(
    evals: Mapping[str, Evaluator],
    dataset: Dataset,
    embedder: Embedder,
    names: Sequence[str],
    warn: Callable[[str], None] | None = None,
) -> Iterator[dict[str, float]]:
    """As `run_evals`, but the figures of each as soon as it is done, and even if none can be.

    Args:
      warn: in place of the embedder's.
    """
    embedder, warn = remembering(embedder), warn or embedder.warn
    for name in names:
        try:
            found = _figures(name, evals[name], dataset, embedder)
        except embedder.common_faults as fault:
            warn(f"evals.{name}: left out: {message(fault)}")
            found = {_left_out(name, evals[name]): 1.0}
        yield found


def done(evals: Mapping[str, EvalConfig], figures: Mapping[str, float]) -> dict[str, EvalConfig]:
    """The evaluations that are not left out of these figures."""
    found = dict[str, EvalConfig]()
    for name, one in evals.items():
        own = {figure for figure in figures if figure.startswith(prefix(name, one))}
        if own != {_left_out(name, one)}:
            found[name] = one
    return found


def write_figures(path: str | os.PathLike[str], figures: Mapping[str, float]) -> None:
    """Write figures as one JSON object with sorted keys: the whole file, or nothing of it.

    Raises:
      ValueError: names all figures that are NaN or infinite.
      OSError: the file cannot be written; an earlier one is still whole.
    """
    if bad := sorted(name for name, value in figures.items() if not math.isfinite(value)):
        raise ValueError(f"{path} is not written: {', '.join(bad)} not finite")
    write_json(path, {name: float(figures[name]) for name in sorted(figures)})


def prefix(name: str, evaluation: Evaluator) -> str:
    """How the names of an evaluation's figures begin."""
    return f"{evaluation.task}/{name}/"


def _left_out(name: str, evaluation: Evaluator) -> str:
    return f"{prefix(name, evaluation)}left_out"


def _figures(
    name: str, evaluation: Evaluator, dataset: Dataset, embedder: Embedder
) -> dict[str, float]:
    found = evaluation.run(dataset, embedder)
    return {f"{prefix(name, evaluation)}{metric}": float(value) for metric, value in found}
