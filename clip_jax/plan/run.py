"""A plan from beginning to end: compile, estimate, show, write."""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

from clip_jax.config import write_json
from clip_jax.plan.advice import alone, bytes_needed, check, smaller, with_remat
from clip_jax.plan.compile import DoesNotFitError, compile_step, on_accelerator, on_slices
from clip_jax.plan.report import Plan, show, to_json
from clip_jax.plan.roofline import estimate
from clip_jax.plan.topology import Topology
from clip_jax.sharding.rules import DATA_PARALLEL, FSDP
from clip_jax.train.config import TrainConfig

HOPELESS = 2.0
"""What by estimate needs so many times the memory that there is, a sweep does not compile."""
TABLES = {
    "data-parallel": DATA_PARALLEL,
    "FSDP, gathered once": dataclasses.replace(FSDP, regather=False),
    "FSDP": FSDP,
}
"""Those that a sweep tries."""


def plan(
    config: TrainConfig,
    topology: Topology,
    *,
    samples: int | None = None,
    price: float | None = None,
    console: Any,
    path: pathlib.Path | None = None,
) -> Plan:
    """Plan one config, show it, and write it to `path`.

    Raises:
      ValueError: config and topology do not go together.
    """
    made = rehearse(config, topology, samples=samples, price=price)
    show(made, console)
    if path:
        write_json(path, to_json(made))
    return made


def rehearse(
    config: TrainConfig,
    topology: Topology,
    *,
    samples: int | None = None,
    price: float | None = None,
) -> Plan:
    """Compile and estimate; GPUs by analysis alone.

    Raises:
      ValueError: config and topology do not go together.
    """
    config = on_slices(on_accelerator(config), topology)
    if not topology.chip.is_tpu:
        check(config, topology)
        needed = bytes_needed(config, topology)
        fault = None
        if needed > topology.chip.memory:
            fault = DoesNotFitError(needed, topology.chip.memory)
        return Plan(
            config=config,
            topology=topology,
            estimate=estimate(config, topology, alone(config, topology), samples, price),
            fault=fault,
            changes=smaller(config, topology) if fault else (),
            needed=needed,
        )
    try:
        compiled = compile_step(config, topology)
    except DoesNotFitError as fault:
        changes = smaller(config, topology)
        return Plan(config=config, topology=topology, fault=fault, changes=changes)
    sent = compiled.traffic, compiled.collectives
    found = estimate(config, topology, sent, samples, price)
    return Plan(config=config, topology=topology, compiled=compiled, estimate=found)


def sweep(
    config: TrainConfig,
    topology: Topology,
    *,
    samples: int | None = None,
    price: float | None = None,
    console: Any,
    path: pathlib.Path | None = None,
) -> list[tuple[str, Plan]]:
    """Try tables, remat and accumulation; show what fits, the fastest first.

    Of one table and one accumulation, what keeps less than a setting that fits is not tried: it
    only computes more.
    """
    plans: list[tuple[str, Plan]] = []
    for name, tried in variants(config):
        if any(_dominated(tried, done.config) for _, done in plans if not done.fault):
            continue
        needed, there = bytes_needed(tried, topology), topology.chip.memory
        if needed > HOPELESS * there:
            fault = DoesNotFitError(needed, there)
            plans.append((name, Plan(config=tried, topology=topology, fault=fault, needed=needed)))
            continue
        console.print(f"{name} ...", highlight=False)
        made = rehearse(tried, topology, samples=samples, price=price)
        plans.append((name, made))
        if path:  # What is known so far stays, if this is stopped.
            write_json(path, [{"name": name, **to_json(made)} for name, made in plans])
    plans.sort(key=lambda one: _seconds(one[1]))
    for name, made in plans:
        console.print(f"{name}: {_line(made)}", highlight=False, soft_wrap=True)
    return plans


def variants(config: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    """What a sweep tries, by name; of each table what keeps most first."""
    remats = (None, "products", "attention", "nothing")
    whole = getattr(config.model.image, "batch_statistics", False)  # Of all of a batch at once.
    parts = [1] if whole else sorted({1, config.accumulate, 4})
    for (table, rules), accumulate, remat in itertools.product(TABLES.items(), parts, remats):
        rules = dataclasses.replace(config.rules, params=rules.params, regather=rules.regather)
        tried = dataclasses.replace(config, rules=rules, accumulate=accumulate)
        yield f"{table}, accumulate {accumulate}, remat {remat}", with_remat(tried, remat)


def _dominated(tried: TrainConfig, done: TrainConfig) -> bool:
    """Whether what fits already does the same with less computed again."""
    return tried.rules == done.rules and tried.accumulate >= done.accumulate


def _seconds(made: Plan) -> float:
    """Of a step; for ever, where there is no room for it."""
    return float("inf") if made.fault or made.estimate is None else made.estimate.step_s


def _line(made: Plan) -> str:
    if made.fault or made.estimate is None:
        return f"does not fit, {made.fault}"
    size = made.compiled.memory.total if made.compiled else made.needed
    return (
        f"{made.estimate.step_s * 1e3:.0f} ms a step, {(size or 0) / 2**30:.2f} GiB, "
        f"{made.estimate.utilisation:.0%} MFU"
    )
