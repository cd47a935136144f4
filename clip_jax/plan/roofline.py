"""How long a step takes at best, and what that means for a run."""

import dataclasses
from collections.abc import Sequence

from clip_jax.models.resnet import ResNetConfig
from clip_jax.models.transformer import StackConfig
from clip_jax.plan.hlo import Collective
from clip_jax.plan.topology import Topology
from clip_jax.train.config import TrainConfig
from clip_jax.train.cost import step_cost

ASSUMPTIONS = (
    "matrix products run at the chip's peak rate in bfloat16",
    "memory and links run at the rates that the chip's maker gives",
    "arithmetic, memory and links work at the same time: the slowest decides",
    "an exchange along a closed ring uses both of its directions, else one",
    "hosts deliver batches in time",
)
ALONE = (
    "nothing was compiled: bytes and exchanges follow from the config alone",
    "time for memory, and for the loss's exchanges, is not counted",
    *ASSUMPTIONS[:1],
    "links and hosts' networks run at the rates that their maker gives, beside the arithmetic",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds of one step by cause, and what follows from them."""

    flops: float
    """Of one step on all chips, forward and backward once: what utilisation counts."""
    executed: float
    """With all that is computed again."""
    compute_s: float
    memory_s: float | None
    """None where nothing was compiled."""
    links_s: float
    step_s: float
    """The largest of the three: a bound that no run beats."""
    serial_s: float
    """Their sum: where nothing overlaps."""
    images_per_s: float
    utilisation: float
    """Model FLOPs over what the chips could do in that time (MFU)."""
    images_per_s_per_host: float
    days: float
    chip_hours: float
    samples: int
    cost: float | None
    """At the price that was given."""
    assumptions: tuple[str, ...]


def estimate(
    config: TrainConfig,
    topology: Topology,
    moved: tuple[int | None, Sequence[Collective]],
    samples: int | None = None,
    price: float | None = None,
) -> Estimate:
    """A roofline of one step.

    Args:
      moved: bytes between memory and cores, None if nobody knows; and exchanges.
      samples: pairs of the whole run; None: as the config says.
      price: of a chip for an hour.

    Source: Williams et al. 2009, CACM 52(4).
    """
    chip, chips = topology.chip, topology.chips
    needed, executed = step_flops(config)
    compute = executed / (chip.flops * chips)
    traffic, exchanges = moved
    memory = None if traffic is None else traffic / chip.bandwidth
    links = float(sum(seconds(one, topology) for one in exchanges))
    step = max(compute, memory or 0.0, links)
    samples = samples or config.steps * config.batch
    rate = config.batch / step
    hours = samples / rate / 3600
    return Estimate(
        flops=needed,
        executed=executed,
        compute_s=compute,
        memory_s=memory,
        links_s=links,
        step_s=step,
        serial_s=compute + (memory or 0.0) + links,
        images_per_s=rate,
        utilisation=needed / (step * chip.flops * chips),
        images_per_s_per_host=rate / topology.processes,
        days=hours / 24,
        chip_hours=hours * chips,
        samples=samples,
        cost=None if price is None else price * hours * chips,
        assumptions=ASSUMPTIONS if traffic is not None else ALONE,
    )


def step_flops(config: TrainConfig) -> tuple[float, float]:
    """Of one step on all chips: forward and backward once, and with what is computed again.

    `remat` computes parts of each block again, and `accumulate` all of the forward pass once
    more, of towers that are trained.
    """
    model, cost = config.model, step_cost(config)
    again, image = 0.0, model.image
    if "text" in cost.trained:
        again += cost.text * repeated(model.text.stack, model.text.context_length)
    if "image" in cost.trained and not isinstance(image, ResNetConfig):
        again += cost.image * repeated(image.stack, image.grid**2)
    if config.accumulate > 1:
        again += sum(getattr(cost, tower) for tower in cost.trained)
    return cost.total, cost.total + again


def repeated(stack: StackConfig, length: int) -> float:
    """The share of a tower's forward pass that its `remat` computes again."""
    width, hidden = stack.width, stack.mlp_width or 4 * stack.width
    qkv, out, mlp, scores = 3 * width**2, width**2, 2 * width * hidden, length * width
    whole = qkv + out + mlp + 2 * scores
    again = {
        None: 0,
        "nothing": whole,
        "attention": out + mlp + scores,
        "products": scores,
    }
    return again[stack.remat] / whole


def seconds(one: Collective, topology: Topology) -> float:
    """One step's exchanges of one kind over the links that its axes use."""
    chip = topology.chip
    crosses = topology.slices > 1 and "replica" in one.axes
    if crosses or (not chip.is_tpu and one.group > chip.host):
        return one.sent / (chip.network / chip.host)
    closed = bool(chip.rings) and one.group % chip.rings == 0
    return one.sent / (chip.link * (2 if closed else 1))
