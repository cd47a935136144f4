"""Several processes as one run: how they start, what they tell each other, and how they stop."""

import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import secrets
import signal
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from clip_jax.sharding.line import Line, Place, join

FLAGS = {
    "--coordinator": "CLIP_JAX_COORDINATOR",
    "--processes": "CLIP_JAX_PROCESSES",
    "--process": "CLIP_JAX_PROCESS",
}
"""Flags that say where a process belongs, and the environment variables in their place."""
START_S = "CLIP_JAX_START_S"
"""Environment variable: how long to wait for the other processes, in seconds (300)."""
SILENCE_S = "CLIP_JAX_SILENCE_S"
"""Environment variable: seconds after which a silent machine counts as gone (100)."""
STOPPED = 75
"""Exit status of a run that was told to stop and can go on: EX_TEMPFAIL of sysexits.h."""
CLUSTERS = ("slurm", "gketpu", "gcetpu")
"""What jax itself detects, by its names."""
_LOOK_MS = 200
"""Who waits for another process looks so often whether it still should."""


class StoppedError(Exception):
    """The machine asked for an end (SIGTERM); all is saved, and the same command goes on.

    Every process raises it after the same step.
    """


def take_flags(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The `FLAGS` among arguments (`--processes 2` or `--processes=2`), and the other arguments.

    Raises:
      ValueError: a flag without a value, or given twice.
    """
    flags: dict[str, str] = {}
    rest: list[str] = []
    waiting = iter(argv)
    for argument in waiting:
        flag, equals, value = argument.partition("=")
        if flag not in FLAGS:
            rest.append(argument)
            continue
        given = value if equals else next(waiting, "")
        if not given or given.startswith("--") or flag in flags:
            raise ValueError(f"{flag} needs one value")
        flags[flag] = given
    return flags, rest


def find_place(
    flags: Mapping[str, str] = types.MappingProxyType({}), environ: Mapping[str, str] = os.environ
) -> Place | None:
    """Where this process belongs, or None if it is alone.

    Flags win over the environment, and both over what jax detects: SLURM, a Cloud TPU slice (or
    several), GKE.

    Raises:
      ValueError: only some of the three are given, or one of them is no number.
    """
    given = {flag: flags.get(flag) or environ.get(name) for flag, name in FLAGS.items()}
    if not any(given.values()):
        return _detected(float(environ.get(START_S, 300)))
    if absent := [f"{flag} (or {FLAGS[flag]})" for flag, value in given.items() if not value]:
        raise ValueError(f"several processes need all of {', '.join(FLAGS)}; missing: {absent}")
    coordinator, processes, process = (str(given[flag]) for flag in FLAGS)
    if not (processes.isdecimal() and process.isdecimal()):
        raise ValueError(f"--processes {processes!r} and --process {process!r} must be numbers")
    place = Place(coordinator=coordinator, processes=int(processes), process=int(process))
    return place if place.processes > 1 else None


def _detected(timeout_s: float) -> Place | None:
    # jax says where a process belongs only by starting its service, which cannot say who is
    # missing; hence the private module. Its other clusters are not asked: a plain pod or shell
    # on one of them may well be alone.
    from jax._src.clusters import ClusterEnv

    known = [c for c in ClusterEnv._cluster_types if c.name in CLUSTERS]
    cluster = next((c for c in known if c.is_env_present()), None)
    if cluster is None or cluster.get_process_count() == 1:
        return None
    port = os.environ.get("JAX_COORDINATOR_PORT")
    try:
        coordinator = cluster.get_coordinator_address(int(timeout_s), port)
    except RuntimeError as error:
        raise ValueError(f"process 0 cannot be found: {error}") from error
    # As in jax: under SLURM a process takes the one device that has its local number.
    local = None if "tpu" in cluster.name else cluster.get_local_process_id()
    return Place(
        coordinator=coordinator,
        processes=cluster.get_process_count(),
        process=cluster.get_process_id(),
        local_devices=None if local is None else (local,),
    )


@contextlib.contextmanager
def together(place: Place | None, environ: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Run the block as one of several processes; in a lone one, just run it.

    To be entered before jax looks for devices. All leave together. An error in one of them ends
    all, with its message; so does the death of one (status `line.LOST`), at once where its system
    can still say so, else after `SILENCE_S` seconds, when jax's own service may be the one that
    ends them (by abort, status 134).

    Raises:
      ValueError: what `line.join` raises.
    """
    if place is None:
        yield
        return
    timeout_s, silence_s = float(environ.get(START_S, 300)), float(environ.get(SILENCE_S, 100))
    line = join(place, code=code_fingerprint(), timeout_s=timeout_s, silence_s=silence_s)
    try:
        _start_jax(place, timeout_s, silence_s)
        yield
    except StoppedError:
        line.finish()
        raise
    except BaseException as error:
        _fail(line, place, error)
        raise
    line.finish()


def _fail(line: Line, place: Place, error: BaseException) -> None:
    if isinstance(error, KeyboardInterrupt):
        status, what = 130, "interrupted"
    elif isinstance(error, SystemExit):
        status, what = int(error.code) if isinstance(error.code, int) else 1, "it ended"
    else:
        status, what = 1, str(error) or type(error).__name__
    line.fail(status, f"process {place.process}: {what}")


def _start_jax(place: Place, timeout_s: float, silence_s: float) -> None:
    jax.distributed.initialize(
        place.coordinator,
        place.processes,
        place.process,
        local_device_ids=place.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=int(timeout_s),
        heartbeat_timeout_seconds=int(silence_s),
    )


def code_fingerprint() -> str:
    """Of all files of clip_jax, and of the version of jax."""
    root = pathlib.Path(__file__).resolve().parents[1]
    digest = hashlib.sha256(jax.__version__.encode())
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def is_first() -> bool:
    """Whether this process is the one that prints and writes for all."""
    return jax.process_index() == 0


def gather_json(value: Any) -> list[Any]:
    """The JSON-able `value` of every process, in process order; all call it at the same point."""
    if jax.process_count() == 1:
        return [json.loads(json.dumps(value))]
    from jax.experimental.multihost_utils import process_allgather

    text = json.dumps(value).encode()
    longest = int(process_allgather(np.array([len(text)])).max())
    # Spaces are no part of a JSON value; few lengths compile few programs.
    text = text.ljust(1 << (longest - 1).bit_length())
    rows = process_allgather(np.frombuffer(text, np.uint8))
    return [json.loads(row.tobytes()) for row in rows]


def agree(fingerprints: Mapping[str, str]) -> None:
    """Check that what must be equal is equal on all processes.

    Args:
      fingerprints: what is compared, by the name that an error gives it.

    Raises:
      ValueError: on all processes; names everything that differs, and where it does.
    """
    everywhere = gather_json(dict(fingerprints))
    faults = []
    for name in dict.fromkeys(name for process in everywhere for name in process):
        by_value: dict[str, list[int]] = {}
        for number, process in enumerate(everywhere):
            by_value.setdefault(process.get(name, "absent"), []).append(number)
        if len(by_value) > 1:
            sides = (f"{value} on {_numbers(numbers)}" for value, numbers in by_value.items())
            faults.append(f"{name}: " + ", ".join(sides))
    if faults:
        raise ValueError("the processes of this run differ in " + "; ".join(faults))


def require_shared(folder: str) -> None:
    """Check that all processes see one folder, which the first one has made.

    Raises:
      ValueError: on all processes; names those that do not.
    """
    # A name that no folder of an older run has.
    mark = pathlib.Path(folder) / f"seen-by-all-{gather_json(secrets.token_hex(8))[0]}"
    if is_first():
        mark.touch()
    gather_json("written")  # No earlier than that does anyone look.
    seen = gather_json(mark.exists())
    if is_first():
        mark.unlink()
    if blind := [number for number, sees in enumerate(seen) if not sees]:
        raise ValueError(
            f"the run folder {folder} of process 0 is not seen by {_numbers(blind)}: it must lie "
            "on a disk that all of them share"
        )


def _numbers(processes: list[int]) -> str:
    shown = ", ".join(map(str, processes[:8])) + (", ..." if len(processes) > 8 else "")
    return f"process{'es' * (len(processes) > 1)} {shown}"


def process_rows(sharding: Any, batch: int) -> tuple[int, ...]:
    """Rows of a global batch that the devices of this process hold, in ascending order.

    Raises:
      ValueError: processes hold the same rows, or not equally many: what each of them reads could
        not be put together to one batch.
    """
    held: dict[int, set[int]] = {}
    for device, (rows, *_) in sharding.devices_indices_map((batch,)).items():
        held.setdefault(device.process_index, set()).update(range(*rows.indices(batch)))
    sizes = {len(rows) for rows in held.values()}
    if sum(map(len, held.values())) != batch or len(sizes) > 1:
        raise ValueError(
            f"{len(held)} processes cannot share the rows of a batch of {batch} equally: mesh axes "
            "that do not split the batch must lie within one process"
        )
    return tuple(sorted(held[jax.process_index()]))


class Highest:
    """The highest of a number of each process, found by jax's service, without the devices.

    So it may be asked for beside a step, in a thread of its own. All processes make one at the
    same point, and call it equally often.
    """

    def __init__(self) -> None:
        from jax._src import distributed  # jax keeps its client to itself.

        self._client: Any = distributed.global_state.client
        self._count = jax.process_count()
        # A name that no other of these has had.
        self._name = f"clip_jax/highest/{gather_json(secrets.token_hex(8))[0]}"
        self._rounds, self._closed = itertools.count(), threading.Event()

    def __call__(self, value: int) -> int:
        """Waits for all others, however long; who dies ends all (see `together`).

        Raises:
          ValueError: it was closed before they came.
        """
        if self._count == 1:
            return value
        client, number = self._client, next(self._rounds)
        here = f"{self._name}/{number}"
        client.key_value_set(f"{here}/values/{value}", str(value), allow_overwrite=True)
        if client.key_value_increment(f"{here}/came", 1) == self._count:
            values = [int(text) for _, text in client.key_value_dir_get(f"{here}/values")]
            client.key_value_delete(f"{self._name}/{number - 1}")  # All have read it.
            client.key_value_set(f"{here}/highest", str(max(values)))
        while not self._closed.is_set():
            try:
                return int(client.blocking_key_value_get(f"{here}/highest", _LOOK_MS))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
        raise ValueError("closed while it waited for the other processes")

    def close(self) -> None:
        """Let nobody wait any longer."""
        self._closed.set()


@contextlib.contextmanager
def stop_asked() -> Iterator[Callable[[int], bool]]:
    """`asked(step)`: whether to stop after this step, because of SIGTERM to any process.

    All processes call it once a step, with the same steps, and get the same answers. In a lone
    process the signal counts while the block runs, if this is its main thread.
    """
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import reached_preemption_sync_point

        yield reached_preemption_sync_point
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield lambda step: asked.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
