"""How a data set is measured, by its kind."""

import dataclasses
from collections.abc import Callable, Mapping

from clip_jax.eval import measure_pairs
from clip_jax.eval.measure_classes import multilabel, zero_shot
from clip_jax.eval.measure_faces import faces
from clip_jax.eval.once import Embeddings
from clip_jax.eval.opened import Opened
from clip_jax.eval.outcome import Outcome

Measure = Callable[[Opened, Embeddings, Callable[[str], None]], Outcome]
MEASURES: Mapping[str, Measure] = {
    "zero_shot": zero_shot,
    "multilabel": multilabel,
    "retrieval": measure_pairs.retrieval,
    "winogavil": measure_pairs.winogavil,
    "winoground": measure_pairs.winoground,
    "sugarcrepe": measure_pairs.sugarcrepe,
    "faces": faces,
}
"""By the kind of task."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measures:
    """How data sets are measured."""

    by_kind: Mapping[str, Measure]
    """Of task."""
    settings: str = ""
    """What else an outcome depends on."""

    def of(self, opened: Opened) -> Measure:
        """That of a data set; raises ValueError for a kind that has none."""
        kind = opened.task.kind
        if kind not in self.by_kind:
            raise ValueError(
                f"{opened.task.key} is a task of kind {kind!r}; this is measured only on those of "
                f"kind {', '.join(self.by_kind)}"
            )
        return self.by_kind[kind]


STANDARD = Measures(by_kind=MEASURES)
"""As the suites measure."""
