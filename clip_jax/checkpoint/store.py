"""Checkpoints on disk: asynchronous, atomic, and restored onto any mesh (orbax)."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from clip_jax import tree


class CheckpointError(Exception):
    """A checkpoint cannot be written or read; the message names it and what to do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """How often to save, and what to keep."""

    every_steps: int = 500
    """The last step is always saved."""
    keep: int = 2
    """Newest checkpoints to keep."""
    best: str | None = None
    """Also keep the best by this evaluation figure, e.g. `zero_shot/imagenet1k/acc1`."""
    best_is: Literal["max", "min"] = "max"

    def __post_init__(self) -> None:
        if self.keep < 1 or self.every_steps < 1:
            raise ValueError(f"keep ({self.keep}) and every_steps ({self.every_steps}) start at 1")


class Restored(NamedTuple):
    """What a run goes on from."""

    params: Any
    progress: Any
    position: Any
    ema: Any


class Store:
    """The checkpoints of one run folder, one sub-folder a step.

    Each holds `params`, `progress` (step and optimizer state), `position` (of the data
    iterator) and `config`, so that a checkpoint can be used without its run folder; and `ema`,
    the moving average of the parameters, where a run keeps one.
    """

    def __init__(self, folder: epath.PathLike, config: CheckpointConfig | None = None):
        self.folder = epath.Path(folder).absolute()
        config = config or CheckpointConfig()
        self._best = config.best
        keep: list[Any] = [policies.LatestN(config.keep)]
        if config.best:
            keep.append(
                policies.BestN(
                    get_metric_fn=self._best_figure,
                    reverse=config.best_is == "min",
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            # Without it orbax neither writes nor reads the figures that the policy compares.
            best_fn=self._best_figure if config.best else None,
            best_mode=config.best_is,
            cleanup_tmp_directories=True,
        )
        self._manager = _Manager(self.folder, options=options)

    def _best_figure(self, figures: Mapping[str, float]) -> float:
        return figures[self._best or ""]

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        *,
        params: Any,
        progress: Any,
        position: Any,
        config: Any,
        ema: Any = None,
        figures: Mapping[str, float] | None = None,
    ) -> None:
        """Begin writing a checkpoint; training may go on at once.

        Args:
          params, progress: trees of arrays.
          position, config: JSON-able data.
          ema: a tree like `params`, or None.
          figures: evaluation figures of this checkpoint, for keeping the best.

        Raises:
          CheckpointError: this save, or an earlier one still under way, failed.
        """
        if step in self._manager.all_steps():
            return
        figures = dict(figures) if figures and self._best in figures else None
        average = {} if ema is None else {"ema": ocp.args.StandardSave(ema)}
        with self._explained(f"saving step {step}"):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **average,
                    params=ocp.args.StandardSave(params),
                    progress=ocp.args.StandardSave(progress),
                    position=ocp.args.JsonSave(position),
                    config=ocp.args.JsonSave(config),
                ),
                metrics=figures,
            )

    def restore(self, step: int, *, params: Any, progress: Any, ema: Any = None) -> Restored:
        """All as saved, placed as the given abstract trees say; no average where none is given.

        Raises:
          CheckpointError: the arrays on disk are not those asked for.
        """
        average = {} if ema is None else {"ema": ocp.args.StandardRestore(ema)}
        with self._explained(f"reading step {step}"):
            require_same_arrays(self.folder / str(step) / "params", params)
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    **average,
                    params=ocp.args.StandardRestore(params),
                    progress=ocp.args.StandardRestore(progress),
                    position=ocp.args.JsonRestore(),
                ),
            )
        return Restored(
            params=restored["params"],
            progress=restored["progress"],
            position=restored["position"],
            ema=restored["ema"] if average else None,
        )

    def wait(self) -> None:
        """Return when everything is on disk.

        Raises:
          CheckpointError: a save failed.
        """
        with self._explained("saving"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish pending writes and stop."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _explained(self, doing: str) -> "_Explained":
        return _Explained(self, doing)


class _Manager(ocp.CheckpointManager):
    """orbax's own, but for one thing."""

    def reached_preemption(self, step: int) -> bool:
        """No: training asks jax itself, once a step and in their order.

        orbax would ask again while a save ends, with a step long past; the processes could then
        agree on a step that one of them has behind it.
        """
        return False


class _Explained:
    """Turns any failure inside orbax into one message that says how to go on."""

    def __init__(self, store: Store, doing: str):
        self.store, self.doing = store, doing

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, CheckpointError):
            good = self.store.steps()
            advice = f"the newest complete checkpoint is step {good[-1]}" if good else "none yet"
            raise CheckpointError(
                f"{self.doing} failed in {self.store.folder}: {error} "
                f"({advice}; free or repair the disk and run the same command again)"
            ) from error


def load_params(folder: epath.PathLike, abstract: Any) -> Any:
    """Only the parameters of one checkpoint folder, placed as `abstract` says.

    Where the run keeps a moving average of them, that.

    Raises:
      CheckpointError: the arrays on disk are not those asked for.
    """
    folder = epath.Path(folder).absolute()
    folder = folder / ("ema" if (folder / "ema").exists() else "params")
    require_same_arrays(folder, abstract)
    return ocp.StandardCheckpointHandler().restore(folder, args=ocp.args.StandardRestore(abstract))


def require_same_arrays(folder: epath.Path, wanted: Any) -> None:
    """Check names and shapes of the arrays in `folder` before any of them is read.

    Raises:
      CheckpointError: lists all arrays that are missing, unexpected or of another shape.
    """
    stored = ocp.StandardCheckpointHandler().metadata(folder)
    have = dict(zip(tree.paths(stored), map(_shape, jax.tree.leaves(stored)), strict=True))
    want = dict(zip(tree.paths(wanted), map(_shape, jax.tree.leaves(wanted)), strict=True))
    faults = [
        f"{name}: {shape} in the checkpoint, {want[name]} in this model"
        for name, shape in have.items()
        if name in want and want[name] != shape
    ]
    for name in sorted(want.keys() - have.keys()):
        near = difflib.get_close_matches(name, have, n=1)
        faults.append(f"{name}: missing" + (f" (nearest: {near[0]})" if near else ""))
    faults += [f"{name}: not in this model" for name in sorted(have.keys() - want.keys())]
    if faults:
        raise CheckpointError(f"{folder} holds another architecture: " + "; ".join(faults))


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(leaf.shape)
