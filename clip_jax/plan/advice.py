"""Which settings make a run smaller, and by how much, from its configuration alone."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from clip_jax.models import flops
from clip_jax.models.resnet import ResNetConfig
from clip_jax.models.transformer import StackConfig
from clip_jax.optim.build import Adafactor
from clip_jax.plan.hlo import Collective
from clip_jax.plan.topology import Topology
from clip_jax.sharding.rules import FSDP
from clip_jax.train.config import TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """One setting that makes a run smaller."""

    flag: str
    """As the command line takes it."""
    why: str


def bytes_needed(config: TrainConfig, topology: Topology) -> int:
    """Of one device, roughly: state, gradients, kept activations, one block's work, logits.

    Within a third of what the TPU compiler needs for the models of docs/planning.md.
    """
    shares = _shares(config, topology)
    rows = config.batch // shares["batch"]
    part = rows // config.accumulate
    model = config.model
    size = flops.parameters(model).model
    state = size * _state_bytes(config) / shares["params"]
    stacks = [(model.text.stack, model.text.context_length)]
    if not isinstance(model.image, ResNetConfig):
        stacks.append((model.image.stack, model.image.grid**2 + model.image.has_class_token))
    kept = sum(part * length * _kept(stack, length) for stack, length in stacks)
    block = max(part * length * _block(stack, length) for stack, length in stacks)
    images = rows * config.recipe.size**2 * 3
    logits = 0 if config.loss.tile else 3 * 4 * rows * config.batch
    return int(state + kept + block + images + logits)


def check(config: TrainConfig, topology: Topology) -> None:
    """Raises ValueError if the chips do not make the mesh, or do not divide the batch."""
    mesh, parts = config.mesh, _shares(config, topology)["batch"]
    sizes = [mesh.replica, mesh.data, mesh.model]
    rest = math.prod(size for size in sizes if size != -1)
    if topology.chips % rest or (-1 not in sizes and rest != topology.chips):
        raise ValueError(f"mesh {dataclasses.asdict(mesh)} does not fit {topology.chips} chips")
    if config.batch % (parts * config.accumulate):
        raise ValueError(
            f"batch {config.batch} does not split over {parts} devices into accumulate "
            f"{config.accumulate} equal parts on each"
        )


def alone(config: TrainConfig, topology: Topology) -> tuple[None, list[Collective]]:
    """What a step sends besides its loss, for `roofline.estimate`.

    Split parameters are gathered in bfloat16 once or twice and their gradients scattered; whole
    ones have their gradients all-reduced, in bfloat16 too.
    """
    shares, rules = _shares(config, topology), config.rules
    size = 2 * flops.parameters(config.model).model
    again = rules.regather and _remat_rank(config) > 0
    split = shares["params"] if rules.params else 1
    rows = [
        ("all-gather", size, 2 if again else 1, split),
        ("reduce-scatter", size // split, 1, split),
    ]
    if not rules.params:
        rows = [("all-reduce", size, 1, shares["batch"])]
    return None, [
        Collective(
            kind=kind,
            shapes=(),
            bytes=amount,
            times=times * (config.accumulate if kind == "all-gather" else 1),
            group=group,
            axes=rules.params or rules.batch,
            source="parameters",
        )
        for kind, amount, times, group in rows
    ]


def smaller(config: TrainConfig, topology: Topology) -> tuple[Change, ...]:
    """Changes in order of what they cost in time, as many as it takes to fit, by estimate.

    Empty where none of them suffices.
    """
    taken: list[Change] = []
    for change, apply in _ladder(config, topology):
        made = apply(config)
        if made == config:
            continue
        if bytes_needed(made, topology) < bytes_needed(config, topology):
            config = made
            taken.append(change)
        if bytes_needed(config, topology) < 0.8 * topology.chip.memory:
            return tuple(taken)
    return ()


def with_remat(config: TrainConfig, remat: Any) -> TrainConfig:
    """Both towers keep of their blocks what `remat` says."""

    def keeping(tower: Any) -> Any:
        if isinstance(tower, ResNetConfig):
            return tower
        return dataclasses.replace(tower, stack=dataclasses.replace(tower.stack, remat=remat))

    model = config.model
    model = dataclasses.replace(model, image=keeping(model.image), text=keeping(model.text))
    return dataclasses.replace(config, model=model)


def _ladder(
    config: TrainConfig, topology: Topology
) -> Iterator[tuple[Change, Callable[[TrainConfig], TrainConfig]]]:
    replace = dataclasses.replace
    tile = Change(flag="--loss.tile 1024", why="logits a tile at a time")
    yield tile, lambda c: replace(c, loss=replace(c.loss, tile=c.loss.tile or 1024))
    if not config.rules.params:
        split = Change(flag="--rules.params data", why="parameters and optimizer state split")
        yield split, lambda c: replace(c, rules=replace(c.rules, params=FSDP.params))
    for remat in ("products", "attention", "nothing"):
        flag = " ".join(f"--model.{t}.stack.remat {remat}" for t in ("image", "text"))
        again = Change(flag=flag, why="more of each block computed again")
        if _remat_rank(config) < _RANKS.index(remat):
            yield again, lambda c, r=remat: with_remat(c, r)
    rows = config.batch // _shares(config, topology)["batch"]
    for parts in (2, 4, 8, 16, 32):
        if parts > config.accumulate and rows % parts == 0:
            turns = Change(flag=f"--accumulate {parts}", why="towers in parts, one more forward")
            yield turns, lambda c, p=parts: replace(c, accumulate=p)


_RANKS = (None, "products", "attention", "nothing")


def _remat_rank(config: TrainConfig) -> int:
    stack = getattr(config.model.image, "stack", config.model.text.stack)
    return _RANKS.index(stack.remat)


def _shares(config: TrainConfig, topology: Topology) -> dict[str, int]:
    """Into how many parts the batch and the parameters are split."""
    mesh, rules = config.mesh, config.rules
    sizes = {"replica": mesh.replica, "data": mesh.data, "model": mesh.model}
    rest = math.prod(size for size in sizes.values() if size != -1)
    sizes = {a: max(1, topology.chips // rest) if s == -1 else s for a, s in sizes.items()}
    over = {*rules.params, *rules.heads, *rules.mlp, *rules.vocab}
    return {
        "batch": math.prod(sizes[axis] for axis in rules.batch),
        "params": math.prod(sizes[axis] for axis in over),
    }


def _state_bytes(config: TrainConfig) -> int:
    """Of one parameter: itself, its gradient, its moments, its average."""
    method = config.optim.method
    first = 2 if method.moment_dtype == "bfloat16" else 4
    moments = first + (4 if type(method).__name__ == "AdamW" else 0)
    if isinstance(method, Adafactor) and method.b1 is None:
        moments = 0
    return 4 + 4 + moments + (4 if config.ema is not None else 0)


def _kept(stack: StackConfig, length: int) -> float:
    """Bytes a token that all blocks keep for the backward pass, in bfloat16."""
    width, hidden = stack.width, stack.mlp_width or 4 * stack.width
    everything = 9 * width + 2 * hidden + stack.heads * length
    kept = {
        None: everything,
        "products": 6 * width + hidden,
        "attention": 5 * width,
        "nothing": width,
    }
    return 0.0 if stack.offload else 2.0 * stack.layers * kept[stack.remat]


def _block(stack: StackConfig, length: int) -> float:
    """Bytes a token while one block is computed backward."""
    width, hidden = stack.width, stack.mlp_width or 4 * stack.width
    return 2.0 * (12 * width + 2 * hidden + 4 * stack.heads * length)
