"""The very step that training would run, compiled for chips that are not there."""

import dataclasses
import math
import pathlib
import re
import tempfile
from typing import Any

import jax
import jax.numpy as jnp

from clip_jax.data.packing import Packing
from clip_jax.models.text import PackedTokens
from clip_jax.plan.hlo import Collective, collectives
from clip_jax.plan.topology import Topology, devices
from clip_jax.plan.traffic import traffic
from clip_jax.sharding.mesh import build_mesh
from clip_jax.sharding.place import batch_parts
from clip_jax.sharding.refine import refine
from clip_jax.train.assemble import Assembled, assemble_run
from clip_jax.train.config import TrainConfig


class DoesNotFitError(ValueError):
    """The compiler found no room; both figures are bytes of one device."""

    def __init__(self, needed: int, available: int):
        super().__init__(f"{needed / 2**30:.2f} GiB needed, {available / 2**30:.2f} there")
        self.needed, self.available = needed, available


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one device while a step runs."""

    parameters: int
    optimizer: int
    """Its state, the step's number and an average of the parameters included."""
    batch: int
    arguments: int
    """All three, as the compiler lays them out."""
    outputs: int
    aliased: int
    """Of the outputs, what lies where arguments lay."""
    temporaries: int
    """Activations, gradients, gathered parameters; gaps between them included."""
    code: int
    peak: int
    """The most that is in use at any time, gaps left out."""

    @property
    def total(self) -> int:
        """What the program takes of the device's memory."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """What the compiler says of a step."""

    memory: Memory
    collectives: tuple[Collective, ...]
    """By bytes, the largest first; axes are those of the mesh."""
    traffic: int
    """Bytes that one step moves between memory and cores, as its text has it."""


def on_accelerator(config: TrainConfig) -> TrainConfig:
    """The config with everything that depends on the backend as an accelerator would have it."""
    if config.model.dtype != "auto":
        return config
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="bfloat16"))


def on_slices(config: TrainConfig, topology: Topology) -> TrainConfig:
    """The config with a replica a slice, unless it says how replicas lie."""
    if topology.slices == 1 or config.mesh.replica != 1:
        return config
    return dataclasses.replace(
        config, mesh=dataclasses.replace(config.mesh, replica=topology.slices)
    )


def assembled(config: TrainConfig, topology: Topology) -> Assembled:
    """The parts of a run on such chips, nothing compiled yet.

    Raises:
      ValueError: mesh, batch, model and topology do not fit together.
    """
    mesh = build_mesh(config.mesh, devices(topology))
    return assemble_run(config, mesh)


def compile_step(config: TrainConfig, topology: Topology) -> Compiled:
    """Compile the training step and read what the compiler made of it.

    Args:
      config: as `on_accelerator` and `on_slices` return it.

    Raises:
      DoesNotFitError: it needs more memory than a device has.
      ValueError: see `assembled`.
    """
    parts = assembled(config, topology)
    batch = abstract_batch(config, parts)
    lowered = parts.step.lower(parts.abstract, batch)  # pyright: ignore
    folder = tempfile.TemporaryDirectory(prefix="clip_jax_plan_")
    try:
        compiled = lowered.compile(compiler_options={"xla_dump_to": folder.name})
        text = _text(compiled, pathlib.Path(folder.name))
    except jax.errors.JaxRuntimeError as error:
        fault = _no_room(str(error))
        if fault is None:
            raise
        raise fault from None
    finally:
        folder.cleanup()
    stats = compiled.memory_analysis()
    fine = refine(parts.mesh, config.rules.params)
    found = []
    for one in collectives(text, fine.mesh):
        axes = tuple(dict.fromkeys(fine.whole(axis) for axis in one.axes))
        found.append(dataclasses.replace(one, axes=axes))
    memory = Memory(
        parameters=_bytes(parts.abstract.params),
        optimizer=_bytes((parts.abstract.opt, parts.abstract.step, parts.abstract.ema)),
        batch=_bytes(batch),
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
        peak=stats.peak_memory_in_bytes,
    )
    found.sort(key=lambda one: -one.total)
    return Compiled(memory=memory, collectives=tuple(found), traffic=traffic(text))


def _text(compiled: Any, folder: pathlib.Path) -> str:
    """The program as the compiler left it."""
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError:
        # jaxlib does not understand all instructions of a newer libtpu (on v5p).
        (path,) = folder.glob("*jit_step*.after_optimizations_after_buffer_assignment.txt")
        return path.read_text()


def abstract_batch(config: TrainConfig, parts: Assembled) -> dict[str, Any]:
    """Shapes of the batches that a run's feed hands out."""

    def rows(shape: tuple[int, ...], kind: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, kind, sharding=parts.batch_sharding)

    batch, size = config.batch, config.recipe.size
    tokens: Any = rows((batch, config.model.text.context_length), jnp.int32)
    if config.packing is not None:
        groups = batch_parts(config.rules, parts.mesh) * config.accumulate
        shapes = _packed_shapes(config.packing, batch // groups)
        made: list[Any] = [rows((groups, *shape), jnp.int32) for shape in shapes]
        tokens = PackedTokens(*made)
    images = rows((batch, size, size, 3), jnp.uint8)
    if config.embeddings is not None:
        images = rows((batch, config.model.embed_dim), jnp.float32)
    return {"images": images, "tokens": tokens}


def _packed_shapes(packing: Packing, captions: int) -> list[tuple[int, ...]]:
    """Of one group, with the room that the config gives."""
    room = (packing.rows(captions), packing.row)
    return [room, room, room, (captions,)]


def _bytes(tree: Any) -> int:
    """Of one device's shares."""
    return sum(
        leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(tree)
    )


def _no_room(error: str) -> DoesNotFitError | None:
    """What the compiler says of memory, as figures; None: it complains of something else."""
    said = re.search(r"\(([\d.]+)([KMG])\) exceeds available HBM \(([\d.]+)([KMG])\)", error)
    said = said or re.search(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm", error)
    if not said:
        return None
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    needed, unit, available, other = said.groups()
    return DoesNotFitError(int(float(needed) * units[unit]), int(float(available) * units[other]))
