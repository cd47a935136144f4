"""Many data sets, one model: what is done stays done, and what fails does not stop the rest."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clip_jax.config import read_json
from clip_jax.data.sample import BadSampleError
from clip_jax.eval import outcome
from clip_jax.eval.cache import Cache
from clip_jax.eval.measures import STANDARD, Measures
from clip_jax.eval.once import Embeddings, Model, brief
from clip_jax.eval.opened import Opened
from clip_jax.eval.outcome import Outcome, file_name
from clip_jax.eval.suite import write_figures
from clip_jax.eval.tasks import Aggregate, aggregates

RESULTS = "results"
PROGRAM = "3"
"""Changed whenever a measure is, or what it keeps: results of an earlier one are then computed
anew, from embeddings that are still in the cache."""
_OF_MODEL = ("weights", "preprocessing", "tokenizer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteReport:
    """What a suite gave."""

    outcomes: Mapping[str, Outcome]
    """By key, of the data sets that were asked for and could be measured, in their order."""
    failures: Mapping[str, str]
    """By key, why a data set gave no figure."""
    aggregates: Sequence[Aggregate]


def run_suite(
    keys: Sequence[str],
    find: Callable[[str], Opened],
    model: Model,
    out: pathlib.Path,
    cache: Cache,
    say: Callable[[str], None],
    measures: Measures = STANDARD,
) -> SuiteReport:
    """Measure data sets one after the other; a data set that is done for this model is not redone.

    After each `OUT/results/` has its outcome, and `OUT/eval_results.jsonl` a line in DataComp's
    form; at the end `OUT/eval.json` has all figures. What earlier calls measured stays in them.

    Args:
      find: opens a data set by its key; what it raises is reported, and the suite goes on.
      say: told a line when a data set begins and ends, and of whatever was left out.

    Raises:
      ValueError: the folder has results of another model.
      OSError: results cannot be written.
    """
    results = out / RESULTS
    _require_same_model(results, model)
    suite = _Suite(find, Embeddings(model, cache, say), measures, results, say)
    written = _others(results)
    done: dict[str, Outcome] = {}
    failures: dict[str, str] = {}
    for number, key in enumerate(keys, 1):
        place = f"{number}/{len(keys)}"
        try:
            found, identity = suite.measure(key, place)
        except (ValueError, OSError, BadSampleError) as fault:
            failures[key] = str(fault)
            say(f"{place} {key}: left out: {fault}")
            continue
        if identity is not None:
            outcome.save(found, results, identity)
        done[key] = found
        how = "done before" if identity is None else "done"
        say(f"{place} {found.dataset}: {_shown(found)} ({how})")
        written.pop(key, None)
        _write_lines(out / "eval_results.jsonl", [*written.values(), *done.values()])
    means = aggregates(_mains(done), keys)
    if done:
        write_figures(out / "eval.json", _flat([*written.values(), *done.values()], means))
    return SuiteReport(outcomes=done, failures=failures, aggregates=means)


def identity_of(opened: Opened, model: Model, settings: str = "") -> dict[str, str]:
    """What an outcome depends on."""
    return {
        "program": PROGRAM,
        **{name: getattr(model, name) for name in _OF_MODEL},
        "data": opened.digest,
        **({"settings": settings} if settings else {}),
    }


def datacomp_line(found: Outcome) -> dict[str, object]:
    """A line of `eval_results.jsonl`; acc5 is null where there are fewer than five classes."""
    figures: dict[str, float | None] = dict(found.figures)
    if "acc1" in figures and "acc5" not in figures:
        figures["acc5"] = None
    return {
        "key": found.key,
        "dataset": found.dataset,
        "metrics": {**figures, "main_metric": found.main_figure},
    }


@dataclasses.dataclass(frozen=True)
class _Suite:
    """How one data set after the other is measured."""

    find: Callable[[str], Opened]
    embeddings: Embeddings
    measures: Measures
    results: pathlib.Path
    say: Callable[[str], None]

    def measure(self, key: str, place: str) -> tuple[Outcome, dict[str, str] | None]:
        """An outcome, and what it depends on if it is new."""
        opened = self.find(key)
        identity = identity_of(opened, self.embeddings.model, self.measures.settings)
        if (found := self._earlier(key, identity)) is not None:
            return found, None
        self.say(f"{place} {opened.task.name}: {len(opened.source):,} pictures")
        return self.measures.of(opened)(opened, self.embeddings, self.say), identity

    def _earlier(self, key: str, identity: Mapping[str, str]) -> Outcome | None:
        try:
            found = outcome.load(self.results, key, identity)
        except ValueError as fault:
            self.say(f"{key}: measured anew: {fault}")
            return None
        if found is None:
            path = self.results / f"{file_name(key)}.json"
            earlier = (_whole(path) or {}) if path.is_file() else {}
            was = _identity(earlier)
            if was and was.get("program") != PROGRAM:
                self.say(f"{key}: measured anew: this version keeps other things of a result")
        return found


def _require_same_model(results: pathlib.Path, model: Model) -> None:
    """Figures of two models in one folder would be read as one's."""
    mine = {name: getattr(model, name) for name in _OF_MODEL}
    others = []
    for path in sorted(results.glob("*.json")):
        if (data := _whole(path)) is None:
            continue  # Cut off by a crash: it is measured anew.
        identity = _identity(data)
        if any(identity.get(name) != mark for name, mark in mine.items()):
            others.append(path.name)
    if others:
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        raise ValueError(
            f"{results} holds results of another model ({', '.join(others[:5])}{more}): choose "
            "another folder with --out, or delete this one"
        )


def _whole(path: pathlib.Path) -> dict[str, Any] | None:
    """An outcome's JSON; None where the file is damaged."""
    with contextlib.suppress(ValueError):
        if isinstance(data := read_json(path), dict):
            return data
    return None


def _others(results: pathlib.Path) -> dict[str, Outcome]:
    """What earlier calls left, by key; a damaged outcome is none."""
    found: dict[str, Outcome] = {}
    for path in sorted(results.glob("*.json")):
        key = (_whole(path) or {}).get("key")
        if not isinstance(key, str):
            continue
        with contextlib.suppress(ValueError):
            if (one := outcome.load(results, key)) is not None:
                found[key] = dataclasses.replace(one, arrays={})
    return found


def _identity(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a saved outcome depends on; nothing where it does not say."""
    found = saved.get("identity")
    return found if isinstance(found, dict) else {}


def _write_lines(path: pathlib.Path, done: Sequence[Outcome]) -> None:
    """All lines anew: a file that breaks off in the middle of one could not be read."""
    lines = [json.dumps(datacomp_line(found)) + "\n" for found in done]
    part = path.with_name(f"{path.name}.part")
    part.write_text("".join(lines))
    part.replace(path)


def _mains(done: Mapping[str, Outcome]) -> dict[str, float]:
    figures = {key: found.main_figure for key, found in done.items()}
    return {key: figure for key, figure in figures.items() if figure is not None}


def _flat(done: Sequence[Outcome], means: Sequence[Aggregate]) -> dict[str, float]:
    """Flat names; a mean only where none of its data sets is missing."""
    figures: dict[str, float] = {}
    for found in done:
        for metric, value in found.counted.items():
            figures[f"{found.task}/{file_name(found.key)}/{metric}"] = float(value)
    whole = {f"aggregate/{a.name}/mean": a.mean for a in means if a.whole}
    return {**figures, **whole}


def _shown(found: Outcome) -> str:
    left = f"; {brief(found.skipped)}" if found.skipped else ""
    if found.main is None:
        return f"{len(found.figures)} figures{left}"
    return f"{found.main} {found.figures[found.main]:.4f}{left}"
