"""The first parameters of a run that begins with those of another."""

from functools import partial
from typing import Any

from clip_jax.checkpoint.start import checkpoint_folder, is_run, saved_config
from clip_jax.checkpoint.store import load_params
from clip_jax.config import from_data
from clip_jax.models.clip import ClipConfig
from clip_jax.pretrained.start import fit_params, start_params


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
