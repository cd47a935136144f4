"""Outcomes of probes: what simple classifiers learn from a model's features of a train split."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from clip_jax.eval import probe
from clip_jax.eval.classified import classified, labelled, report_classes
from clip_jax.eval.embed import Embedded, unit
from clip_jax.eval.measure_classes import labelled_with_several, with_targets
from clip_jax.eval.neighbours import neighbour_votes
from clip_jax.eval.once import Embeddings, brief
from clip_jax.eval.one_vs_rest import one_versus_rest
from clip_jax.eval.opened import Opened
from clip_jax.eval.outcome import Outcome
from clip_jax.eval.probe import Labelled

SHOTS = (1, 2, 4, 8, 16)
"""Pictures a class, as in the CLIP paper's figure 6."""
SEEDS = (0, 1, 2)
"""Of the draws of these pictures."""
NEIGHBOURS = 20
TEMPERATURE = 0.07
"""Of their votes, as in Wu et al. 2018, arXiv:1805.01978."""


def linear(
    opened: Opened,
    embeddings: Embeddings,
    warn: Callable[[str], None],
    *,
    projected: bool = False,
    mesh: Mesh | None = None,
) -> Outcome:
    """A linear probe as in the CLIP paper: the penalty's strength is swept, then it is refitted.

    A fifth of each class of the train split serves as validation split. The figures are those of
    zero-shot classification, then `strength` and `validation_acc1`.

    Args:
      opened: with a train split.
      projected: learn from unit embeddings; else from the tower's features before the projection.
      mesh: of the devices that share the samples; the default device alone if None.

    Raises:
      ValueError: a split without a usable sample; labels that name no class; a train split of
        one class, or without two samples of any.

    Source: Radford et al. 2021, arXiv:2103.00020, appendix A.3.
    """
    task = _task(opened, embeddings, warn, projected)
    swept = probe.linear_probe(*task.held_out(), len(opened.classes), mesh=mesh)

    def score(rows: slice) -> tuple[np.ndarray, np.ndarray]:
        features = task.test.features[rows]
        return swept.probe.logits(features), swept.probe.probabilities(features)

    found = classified(opened, task.found, task.test.labels, score, task="linear_probe")
    title = "Validation accuracy by strength of the penalty"
    return _with_sweep(found, "acc1", swept.probe.strength, swept.tried, title)


def linear_multilabel(
    opened: Opened,
    embeddings: Embeddings,
    warn: Callable[[str], None],
    *,
    projected: bool = False,
    mesh: Mesh | None = None,
) -> Outcome:
    """`linear` where samples carry several labels: a regression for each, all of one strength.

    The figure is `mean_average_precision`, on the validation split, too, which is a fifth of the
    train split whatever its labels. Arguments as `linear`.

    Raises:
      ValueError: a split without a usable sample; vectors that are not a 0 or 1 for each class; a
        train split in which no class has both; a validation split without a label.
    """
    learned, train = _tagged(_train(opened), embeddings, projected)
    if learned.skipped:
        warn(f"{opened.task.key}: of the train split, {brief(learned.skipped)}")
    found, test = _tagged(opened, embeddings, projected)
    if unseen := [opened.classes[k] for k in np.flatnonzero(~train.labels.any(axis=0))]:
        _say_unseen(opened, unseen, warn)
    kept, held = probe.hold_out(np.zeros(len(train), np.int64))
    swept = one_versus_rest(train.rows(kept), train.rows(held), mesh=mesh)
    scores, task = swept.scores(test.features), "linear_probe"
    one = labelled_with_several(opened, found, test.labels, scores, warn, task=task)
    title = "Mean average precision on the validation split by strength"
    return _with_sweep(one, "mean_average_precision", swept.strength, swept.tried, title)


def _with_sweep(
    found: Outcome, metric: str, strength: float, tried: Mapping[float, float], title: str
) -> Outcome:
    """The outcome, and how the strength was chosen: the metric on the validation split by it."""
    more = {"strength": strength, f"validation_{metric}": max(tried.values())}
    rows = {f"{each:.3g}": {metric: value} for each, value in tried.items()}
    return dataclasses.replace(
        found, figures={**found.figures, **more}, tables={**found.tables, title: rows}
    )


def few_shot(
    opened: Opened,
    embeddings: Embeddings,
    warn: Callable[[str], None],
    *,
    projected: bool = False,
    mesh: Mesh | None = None,
) -> Outcome:
    """`acc1_K_shot` of linear probes that learn from K pictures a class, the mean of three draws.

    And `acc1_K_shot_std`, their standard deviation. A K for which a class lacks pictures is left
    out, and told. The strength is chosen on a fifth of the train split, from which none learns.
    Arguments and errors as `linear`.
    """
    task = _task(opened, embeddings, warn, projected)
    train, validation = task.held_out()
    fewest = int(np.unique(train.labels, return_counts=True)[1].min())
    if lacking := [str(k) for k in SHOTS if k > fewest]:
        warn(
            f"{opened.task.key}: no probes of {', '.join(lacking)} pictures a class: beside the "
            f"validation split there is a class with {fewest}"
        )
    found = {
        k: probe.few_shot(
            train, validation, task.test, len(opened.classes), k=k, seeds=SEEDS, mesh=mesh
        )
        for k in SHOTS
        if k <= fewest
    }
    figures: dict[str, float] = {}
    for k, spread in found.items():
        figures |= {f"acc1_{k}_shot": spread.mean, f"acc1_{k}_shot_std": spread.std}
    rows = {str(k): {"acc1": s.mean, "standard deviation": s.std} for k, s in found.items()}
    return Outcome(
        key=opened.task.key,
        dataset=opened.task.name,
        task="few_shot",
        main=f"acc1_{max(found)}_shot",
        figures=figures,
        tables={"Accuracy by pictures a class": rows},
        skipped=task.found.skipped,
        arrays={"keys": np.array(task.found.keys)},
    )


def knn(
    opened: Opened,
    embeddings: Embeddings,
    warn: Callable[[str], None],
    *,
    projected: bool = False,
    mesh: Mesh | None = None,
) -> Outcome:
    """The 20 nearest pictures of the train split vote, each with exp(cosine / 0.07).

    The figures are those of zero-shot classification. Arguments and errors as `linear`.
    """
    task = _task(opened, embeddings, warn, projected)
    train, test = (unit(part.features, "pictures") for part in (task.train, task.test))

    def score(rows: slice) -> tuple[np.ndarray, np.ndarray]:
        votes = neighbour_votes(
            train,
            task.train.labels,
            test[rows],
            len(opened.classes),
            k=min(NEIGHBOURS, len(train)),
            temperature=TEMPERATURE,
        )
        return votes, votes / votes.sum(axis=1, keepdims=True)

    return classified(opened, task.found, task.test.labels, score, task="knn")


PROBES: Mapping[str, Callable[..., Outcome]] = {"linear": linear, "few_shot": few_shot, "knn": knn}
"""By the name that the command line gives them; for one label a sample."""
MULTILABEL: Mapping[str, Callable[..., Outcome]] = {"linear": linear_multilabel}
"""The same for several."""


def folder_of(name: str, *, projected: bool) -> str:
    """Where results of a probe lie, apart from those of others on the same data sets."""
    return f"probe_{name}{'_projected' if projected else ''}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Task:
    train: Labelled
    test: Labelled
    found: Embedded
    """Of the test split."""

    def held_out(self) -> tuple[Labelled, Labelled]:
        """The train split in two, the second for validation."""
        kept, held = probe.hold_out(self.train.labels)
        return self.train.rows(kept), self.train.rows(held)


def _train(opened: Opened) -> Opened:
    """The train split."""
    if opened.train is None:
        raise ValueError(f"{opened.folder}: a probe needs a train split")
    # What is told of the groups of a test sample, nobody asks of those to learn from.
    plain = dataclasses.replace(opened.task, groups=(), macro=False)
    return dataclasses.replace(opened.train, task=plain)


def _tagged(part: Opened, embeddings: Embeddings, projected: bool) -> tuple[Embedded, Labelled]:
    pictures = embeddings.pictures(part.source, part.pictures, features=not projected)
    found, targets = with_targets(part, pictures)
    return found, Labelled(features=found.images, labels=targets)


def _task(
    opened: Opened, embeddings: Embeddings, warn: Callable[[str], None], projected: bool
) -> _Task:
    embed = functools.partial(embeddings.pictures, features=not projected)
    source = _train(opened)
    learned, labels = labelled(source, embed(source.source, source.pictures))
    if learned.skipped:
        warn(f"{opened.task.key}: of the train split, {brief(learned.skipped)}")
    _report_unseen(opened, labels, warn)
    found, own = labelled(opened, embed(opened.source, opened.pictures))
    report_classes(opened, own, warn)
    return _Task(
        train=Labelled(features=learned.images, labels=labels),
        test=Labelled(features=found.images, labels=own),
        found=found,
    )


def _report_unseen(
    opened: Opened, labels: Int[np.ndarray, " n"], warn: Callable[[str], None]
) -> None:
    counts = np.bincount(labels, minlength=len(opened.classes))
    if unseen := [opened.classes[k] for k in np.flatnonzero(counts == 0)]:
        _say_unseen(opened, unseen, warn)


def _say_unseen(opened: Opened, unseen: list[str], warn: Callable[[str], None]) -> None:
    more = f" and {len(unseen) - 5} more" if len(unseen) > 5 else ""
    warn(
        f"{opened.task.key}: no probe can name classes without a picture in the train split: "
        f"{', '.join(unseen[:5])}{more}"
    )
