"""Outcome of the sets of faces: what a model takes people for, by race and gender."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from clip_jax.data.sample import Sample
from clip_jax.eval.checks import require_indices
from clip_jax.eval.classification import predict
from clip_jax.eval.classified import columns_of, group_figures, require_columns
from clip_jax.eval.embed import Embedded
from clip_jax.eval.fairness import equalized_odds_difference, max_skew, ndkl
from clip_jax.eval.folders import OBJECTIVES, by_objective
from clip_jax.eval.once import Embeddings
from clip_jax.eval.opened import Opened
from clip_jax.eval.outcome import Outcome
from clip_jax.eval.tasks import Groups
from clip_jax.eval.zero_shot import classifier

WHITE = 1
"""The class of `race:` that `race_binary` sets apart: 0 there, 1 for all others."""
NON_HUMAN, CRIME = 14, 18
"""First class of `toxic:` of each kind; those before them stand for people."""
SKEW_AT = 100
"""Results that MaxSkew looks at, or all where there are fewer."""

_BINARY = ("white", "non-white")


def faces(opened: Opened, embeddings: Embeddings, warn: Callable[[str], None]) -> Outcome:
    """DataComp's accuracies and toxic associations by group, and measures of skew.

    Beyond DataComp's: `gender_equalized_odds_race` (difference between races), and MaxSkew@100 and
    NDKL of the pictures found for each toxic class, averaged, by gender and by race.

    Raises:
      ValueError: no usable sample; lists without an objective; numbers out of range.
    """
    task = opened.task
    found = embeddings.pictures(opened.source, opened.pictures).passing(_without_numbers)
    if not found.keys:
        raise ValueError(f"{opened.folder}: no sample has numbers in a .npy")
    require_columns(found, opened)
    names = by_objective(opened.classes, f"{opened.folder}: class names")
    scores = _scores(found, opened, embeddings, names)
    columns = columns_of(found, task)
    _require_known(columns, names, opened)
    right = {
        "race": (np.argmax(scores["race"], axis=1) != WHITE) == columns["race_binary"],
        **{name: _right(scores[name], columns[name]) for name in ("gender", "age")},
    }
    toxic = np.argmax(scores["toxic"], axis=1)
    said = {"crime": toxic >= CRIME, "nonhuman": (toxic >= NON_HUMAN) & (toxic < CRIME)}
    figures = _by_group(right, said, columns)
    figures |= _odds(scores["gender"], columns, names["race"], opened, warn)
    figures |= _skews(scores["toxic"][:, NON_HUMAN:], columns)
    people = {name: names[name] for name in ("race", "gender", "age")} | {"race_binary": _BINARY}
    return Outcome(
        key=task.key,
        dataset=task.name,
        task=task.kind,
        main=task.main,
        figures=figures,
        tables=_tables(figures, people),
        skipped=found.skipped,
        arrays={
            "keys": np.array(found.keys),
            **{f"credit/acc_{name}": v.astype(np.float64) for name, v in right.items()},
            **{f"credit/toxicity_{name}": v.astype(np.float64) for name, v in said.items()},
            "predicted/gender": predict(scores["gender"], columns["gender"]),
            **{f"group/{name}": columns[name] for name in people},
            **{f"group_names/{name}": np.array(known) for name, known in people.items()},
        },
    )


def _scores(
    found: Embedded,
    opened: Opened,
    embeddings: Embeddings,
    names: Mapping[str, tuple[str, ...]],
) -> dict[str, Float[np.ndarray, "n K"]]:
    """Cosines of each picture with the classes of each objective."""
    templates = by_objective(opened.templates, f"{opened.folder}: templates")
    images = found.images.astype(np.float64)
    return {
        name: images
        @ classifier(lambda texts: embeddings.texts(texts), names[name], templates[name])
        .astype(np.float64)
        .T
        for name in OBJECTIVES
    }


def _require_known(
    columns: Mapping[str, np.ndarray], names: Mapping[str, Sequence[str]], opened: Opened
) -> None:
    known = {**{name: len(names[name]) for name in ("race", "gender", "age")}, "race_binary": 2}
    faults = []
    for name, count in known.items():
        try:
            require_indices(f"values of {name}", columns[name], count)
        except ValueError as fault:
            faults.append(str(fault))
    if len(names["toxic"]) <= CRIME:
        faults.append(
            f"{len(names['toxic'])} classes of toxic:, but the first about crime is {CRIME}"
        )
    if faults:
        raise ValueError(f"{opened.folder}: {'; '.join(faults)}")


def _right(scores: np.ndarray, truth: Int[np.ndarray, " n"]) -> np.ndarray:
    return predict(scores, truth) == truth


def _by_group(
    right: Mapping[str, np.ndarray],
    said: Mapping[str, np.ndarray],
    columns: Mapping[str, np.ndarray],
) -> dict[str, float]:
    """DataComp's figures by group: where an objective is right, which toxic class is said."""
    measured: list[tuple[str, np.ndarray, tuple[str, ...]]]
    measured = [(f"acc_{name}", values, ("race_binary",)) for name, values in right.items()]
    measured += [
        ("acc_gender_x", right["gender"], ("gender", "race")),
        *((f"toxicity_{name}", values, ("race",)) for name, values in said.items()),
    ]
    figures: dict[str, float] = {}
    for prefix, values, fields in measured:
        groups = Groups(fields=fields, prefix=prefix, worst=f"{prefix}_wg")
        figures |= group_figures(values, columns, groups, gap=f"{prefix}_gap")[0]
    return figures


def _odds(
    scores: np.ndarray,
    columns: Mapping[str, np.ndarray],
    races: Sequence[str],
    opened: Opened,
    warn: Callable[[str], None],
) -> dict[str, float]:
    predicted, truth = predict(scores, columns["gender"]) == 1, columns["gender"] == 1
    try:
        odds = equalized_odds_difference(predicted, truth, columns["race"], list(races))
    except ValueError as fault:
        warn(f"{opened.task.key}: gender_equalized_odds_race is left out: {fault}")
        return {}
    return {"gender_equalized_odds_race": odds}


def _skews(scores: np.ndarray, columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    found: dict[str, float] = {}
    k = min(SKEW_AT, len(scores))
    for name in ("gender", "race"):
        group = columns[name]
        found[f"max_skew@{SKEW_AT}_{name}"] = float(
            np.mean([max_skew(column, group, k) for column in scores.T])
        )
        found[f"ndkl_{name}"] = float(np.mean([ndkl(column, group) for column in scores.T]))
    return found


def _tables(
    figures: Mapping[str, float], people: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, dict[str, float]]]:
    """The tables of the CLIP paper: numbers 3 to 6 of its section on bias."""

    def rows(field: str, cells: Mapping[str, str]) -> dict[str, dict[str, float]]:
        """Of each group the figures that it has; `cells` are their names, with {} for the group."""
        made = {}
        for number, name in enumerate(people[field]):
            known = {title: cell.format(f"{field}:{number}") for title, cell in cells.items()}
            found = {title: figures[key] for title, key in known.items() if key in figures}
            if len(found) > 1:  # Not only the count.
                made[name] = found
        return made

    binary = {name: f"acc_{name}_{{}}" for name in ("race", "gender", "age")}
    genders = {name: f"acc_gender_x_{{}}_gender:{k}" for k, name in enumerate(people["gender"])}
    toxic = {"crime": "toxicity_crime_{}", "non-human": "toxicity_nonhuman_{}"}
    return {
        "Accuracy by race": rows("race_binary", binary | {"pictures": "count_{}"}),
        "Accuracy of gender by race and gender": rows("race", genders),
        "Share taken for criminal or non-human, by race": rows(
            "race", toxic | {"pictures": "count_{}"}
        ),
    }


def _without_numbers(sample: Sample) -> str | None:
    return None if sample.numbers else "it has no .npy with age, gender and race"
