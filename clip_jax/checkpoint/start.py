"""Where a run starts: its folder, its config, and whether the two belong together."""

from collections.abc import Sequence
from typing import Any

from etils import epath

from clip_jax.config import differences, read_json, write_json

CONFIG = "config.json"


def open_run(folder: epath.PathLike, config: Any, may_differ: Sequence[str]) -> None:
    """Make the run folder, or check that it holds a run of the same config.

    A folder without checkpoints has nothing to lose: its config is replaced.

    Args:
      folder: of the run.
      config: plain data of the config (`config.to_data`).
      may_differ: patterns of fields under whose other values a run may go on.

    Raises:
      ValueError: the folder holds another run; lists all fields that differ.
    """
    folder = epath.Path(folder)
    path = folder / CONFIG
    checkpoints = folder / "checkpoints"
    begun = checkpoints.exists() and any(p.name.isdigit() for p in checkpoints.iterdir())
    if begun:
        if not path.exists():
            raise ValueError(f"{folder} has checkpoints but no {CONFIG}: choose another --run")
        if faults := differences(read_json(path), config, ignore=may_differ):
            raise ValueError(
                f"{folder} holds a run of another config; choose another --run, or take back: "
                + "; ".join(faults)
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, config)


def is_run(path: epath.PathLike) -> bool:
    """Whether a path is a run folder or a checkpoint's own, and not some other kind of weights."""
    if str(path).startswith(("http://", "https://")):
        return False
    folder = epath.Path(path)
    if (folder / "params").is_dir():
        return (folder / "config").is_dir()
    # Other trainers name a folder so, too: a run of ours has its config beside it.
    return (folder / "checkpoints").is_dir() and (
        any(p.name.isdigit() for p in (folder / "checkpoints").iterdir())
        or (folder / "metrics.jsonl").exists()
    )


def checkpoint_folder(path: epath.PathLike) -> epath.Path:
    """The checkpoint meant by a run folder (its newest) or by a checkpoint's own folder.

    Raises:
      FileNotFoundError: neither; says what was looked for.
    """
    path = epath.Path(path)
    if (path / "params").exists():
        return path
    folder = path / "checkpoints"
    steps = [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.exists() else []
    if not steps:
        what = "does not exist" if not path.exists() else "holds no complete checkpoint"
        raise FileNotFoundError(f"{path} {what}: give a run folder or one of its checkpoints/STEP")
    return folder / str(max(steps))


def saved_config(checkpoint: epath.Path) -> Any:
    """Plain data of the config that a checkpoint was trained with.

    Raises:
      FileNotFoundError: the checkpoint is not complete.
    """
    return read_json(checkpoint / "config" / "metadata")
