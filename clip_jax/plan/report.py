"""What a plan found, as JSON and as tables."""

import dataclasses
from typing import Any

from clip_jax.plan.advice import Change
from clip_jax.plan.compile import Compiled, DoesNotFitError
from clip_jax.plan.roofline import Estimate
from clip_jax.plan.topology import Topology
from clip_jax.train.config import TrainConfig

GIB, MIB = 2**30, 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One config on one topology; either it fits, or there is what would make it fit."""

    config: TrainConfig
    topology: Topology
    compiled: Compiled | None = None
    estimate: Estimate | None = None
    fault: DoesNotFitError | None = None
    changes: tuple[Change, ...] = ()
    """Settings that would make it fit, by estimate."""
    needed: int | None = None
    """Bytes of one device, by estimate, where nothing was compiled."""


def to_json(plan: Plan) -> dict[str, Any]:
    """All of it; sizes in bytes, times in seconds."""
    chip = plan.topology.chip
    made: dict[str, Any] = {
        "topology": str(plan.topology),
        "chips": plan.topology.chips,
        "batch": plan.config.batch,
        "capacity": chip.memory,
        "fits": plan.fault is None,
        "settings": settings(plan.config),
    }
    if plan.fault:
        made["needed"], made["available"] = plan.fault.needed, plan.fault.available
        made["would_fit_with"] = [change.flag for change in plan.changes]
    if plan.needed:
        made["needed_by_estimate"] = plan.needed
    if plan.compiled:
        memory = plan.compiled.memory
        made["memory"] = {**dataclasses.asdict(memory), "total": memory.total}
        made["traffic"] = plan.compiled.traffic
        made["collectives"] = [
            {**dataclasses.asdict(one), "total": one.total, "sent": one.sent}
            for one in plan.compiled.collectives
        ]
        made["collectives_total"] = totals(plan.compiled)
    if plan.estimate:
        made["estimate"] = dataclasses.asdict(plan.estimate)
        made["source"] = chip.source
    return made


def settings(config: TrainConfig) -> dict[str, Any]:
    """What of a config decides over memory and traffic."""
    image = getattr(config.model.image, "stack", None)
    return {
        "rules": dataclasses.asdict(config.rules),
        "mesh": dataclasses.asdict(config.mesh),
        "image_remat": image and image.remat,
        "text_remat": config.model.text.stack.remat,
        "accumulate": config.accumulate,
        "loss": type(config.loss).__name__,
        "tile": config.loss.tile,
        "optimizer": type(config.optim.method).__name__,
        "moment_dtype": config.optim.method.moment_dtype,
    }


def totals(compiled: Compiled) -> dict[str, int]:
    """Bytes of one step's results by kind of collective."""
    made: dict[str, int] = {}
    for one in compiled.collectives:
        made[one.kind] = made.get(one.kind, 0) + one.total
    return made


def show(plan: Plan, console: Any) -> None:
    """Print it."""
    config, topology = plan.config, plan.topology
    console.print(f"{topology}, {topology.chips} chips, batch {config.batch:,}", highlight=False)
    if plan.fault:
        console.print(f"does not fit: {plan.fault}", highlight=False)
        if plan.changes:
            console.print("by estimate it fits with", highlight=False)
            for change in plan.changes:
                console.print(f"  {change.flag}   # {change.why}", highlight=False, soft_wrap=True)
    if plan.needed and not plan.fault:
        console.print(f"by estimate {plan.needed / GIB:.1f} GiB a device", highlight=False)
    if plan.compiled:
        console.print(_memory_table(plan.compiled, topology))
        console.print(_collective_table(plan.compiled))
    if plan.estimate:
        console.print(_estimate_table(plan.estimate))
        console.print("Assumed: " + "; ".join(plan.estimate.assumptions) + ".", highlight=False)


def _table(title: str, *columns: str) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    return table


def _memory_table(compiled: Compiled, topology: Topology) -> Any:
    table, memory = _table("Memory a chip", "", "GiB"), compiled.memory
    rows = {
        "parameters": memory.parameters,
        "optimizer": memory.optimizer,
        "batch": memory.batch,
        "temporaries": memory.temporaries,
        "outputs beside the state": memory.outputs - memory.aliased,
        "code": memory.code,
        "in all": memory.total,
        "of": topology.chip.memory,
        "in use at most": memory.peak,
    }
    for name, size in rows.items():
        table.add_row(name, f"{size / GIB:.3f}")
    return table


def _collective_table(compiled: Compiled, most: int = 12) -> Any:
    table = _table("Exchanges a step", "kind", "axis", "devices", "times", "MiB", "what")
    for one in compiled.collectives[:most]:
        what = ", ".join(one.shapes[:2]) + (", ..." if len(one.shapes) > 2 else "")
        size = f"{one.total / MIB:.1f}"
        table.add_row(one.kind, " ".join(one.axes), str(one.group), str(one.times), size, what)
    rest = compiled.collectives[most:]
    if rest:
        size = sum(one.total for one in rest) / MIB
        table.add_row(f"{len(rest)} more", "", "", "", f"{size:.1f}", "")
    for kind, size in totals(compiled).items():
        table.add_row(f"all {kind}", "", "", "", f"{size / MIB:.1f}", "")
    return table


def _estimate_table(found: Estimate) -> Any:
    table = _table("A step at best", "", "")
    rows = {
        "FLOPs, forward and backward": f"{found.flops:.3e}",
        "with what is computed again": f"{found.executed:.3e}",
        "compute": f"{found.compute_s * 1e3:.1f} ms",
        "memory": "not counted" if found.memory_s is None else f"{found.memory_s * 1e3:.1f} ms",
        "links": f"{found.links_s * 1e3:.1f} ms",
        "step": f"{found.step_s * 1e3:.1f} ms",
        "if nothing overlapped": f"{found.serial_s * 1e3:.1f} ms",
        "images a second": f"{found.images_per_s:,.0f}",
        "of that each host delivers": f"{found.images_per_s_per_host:,.0f}",
        "utilisation (MFU)": f"{found.utilisation:.1%}",
        f"{found.samples:,} pairs": f"{found.days:.2f} days",
        "chip-hours": f"{found.chip_hours:,.0f}",
    }
    if found.cost is not None:
        rows["cost"] = f"{found.cost:,.0f}"
    for name, value in rows.items():
        table.add_row(name, value)
    return table
