"""What a run begins with that goes on from another, and a stage that follows one."""

from functools import partial
from typing import Any

import jax

from clip_jax.checkpoint.start import checkpoint_folder, is_run, saved_config
from clip_jax.checkpoint.store import load_params
from clip_jax.config import from_data
from clip_jax.models.clip import ClipConfig
from clip_jax.optim.build import build
from clip_jax.pretrained.resize import resize_positions
from clip_jax.pretrained.start import fit_params, start_params
from clip_jax.train.config import TrainConfig
from clip_jax.train.state import State


def begin_params(name: str, config: ClipConfig, abstract: Any) -> Any:
    """Parameters of a run or checkpoint, or published weights, for another run.

    Position tables are resampled where images or texts have another size.

    Args:
      name: as `TrainConfig.start_from`.
      config: of the run's model.
      abstract: its parameters: shapes, types, shardings.

    Raises:
      ValueError: they are of another architecture; lists all fields that differ.
      FileNotFoundError, CheckpointError: there is nothing there, or not what its config says.
    """
    if not is_run(name):
        return start_params(name, config, abstract)
    folder = checkpoint_folder(name)
    stored = from_data(ClipConfig, saved_config(folder)["model"], "model")
    return fit_params(name, stored, config, abstract, partial(load_params, folder))


def enter_stage(state: State, before: TrainConfig, after: TrainConfig, abstract: State) -> State:
    """The state with which a stage begins: a pure function of that at the end of another.

    Parameters and their average go on, position tables resampled; the optimizer begins anew.

    Args:
      state: used up.
      before, after: two of `TrainConfig.stages`.
      abstract: of the second one's state: shapes, types, shardings.
    """
    optimizer, _ = build(after.optim, abstract.params, after.steps)

    def enter(step: Any, params: Any, ema: Any) -> State:
        params = resize_positions(params, before.model, after.model)
        if ema is not None:
            ema = resize_positions(ema, before.model, after.model)
        return State(step, params, optimizer.init(params), ema)

    jax.tree.map(lambda moment: moment.delete(), state.opt)  # Two at once may be too large.
    where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(enter, out_shardings=where)(state.step, state.params, state.ema)
