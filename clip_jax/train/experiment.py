"""A whole training run: how its parts are put together and driven."""

import pathlib
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

from clip_jax.checkpoint.start import open_run
from clip_jax.checkpoint.store import Store
from clip_jax.config import to_data
from clip_jax.data.feed import Feed
from clip_jax.data.pipeline import train_batches
from clip_jax.data.sample import Source
from clip_jax.eval.encoders import Encoders
from clip_jax.eval.suite import run_evals, write_figures
from clip_jax.sharding.chips import peak_flops
from clip_jax.sharding.mesh import build_mesh
from clip_jax.sharding.place import batch_parts, check_batch, place_batch
from clip_jax.sharding.processes import agree, gather_json, is_first, process_rows, stop_asked
from clip_jax.tokenizers import storage
from clip_jax.train.assemble import Assembled, assemble_run
from clip_jax.train.begin import begin_params
from clip_jax.train.config import LOCAL, MAY_DIFFER, TrainConfig, check_vocabulary
from clip_jax.train.cost import step_cost
from clip_jax.train.fingerprints import fingerprints
from clip_jax.train.hooks import EvalHook, SaveHook
from clip_jax.train.log import Figures, Line, LogHook, Stopwatch, compiled_apart
from clip_jax.train.loop import DivergedError, Stop, fit
from clip_jax.train.profile import Profile, profiled
from clip_jax.train.state import State


def train(config: TrainConfig, console: Console, profile: Profile | None = None) -> None:
    """Train from wherever the run folder stands to `config.steps`, and evaluate.

    `profile` are steps of which a trace goes to the run folder's `profile/`.

    Raises:
      ValueError: the parts do not fit together, or not the run folder.
      CheckpointError: a checkpoint cannot be read or written.
      DivergedError: the loss is not finite; the last good checkpoint stays.
      StoppedError: SIGTERM; all is saved.
    """
    mesh = build_mesh(config.mesh)
    parts = assemble_run(config, mesh)
    check_batch("eval_batch", config.eval_batch, config.rules, mesh)
    check_vocabulary(config)
    source = config.data.open("train")
    sources = {"data": source}
    for name, evaluation in config.evals.items():  # A missing split shows now, not in an hour.
        opened = (evaluation.data or config.data).open(evaluation.split)
        sources[f"data of evals.{name}"] = opened
    agree(fingerprints(to_data(config), sources, local=LOCAL))
    if is_first():
        open_run(config.run, to_data(config), may_differ=MAY_DIFFER)
        storage.keep(config.tokenizer, config.run)
    require_shared(config.run)
    store = Store(pathlib.Path(config.run) / "checkpoints", config.checkpoint)
    try:
        _train(config, parts, source, store, console, profile)
    except DivergedError as error:
        raise DivergedError(f"{error}. {_how_to_go_on(store, error)}", error.proven) from None
    finally:
        store.close()


def _how_to_go_on(store: Store, error: DivergedError) -> str:
    store.wait()
    advice = "a lower --optim.learning-rate or --optim.clip-norm, or a longer warm-up"
    proven = [step for step in store.steps() if step <= error.proven]
    if not proven:
        return f"There is no good checkpoint yet: start again, in a new --run, with {advice}"
    good = store.folder / str(proven[-1])
    return f"The last good checkpoint is {good}: use --run NEW --start-from {good} with {advice}"


def _train(
    config: TrainConfig,
    parts: Assembled,
    source: Source,
    store: Store,
    console: Console,
    profile: Profile | None,
) -> None:
    start = store.latest() or 0
    agree({"the newest checkpoint": str(start)})
    if start >= config.steps:
        done = f"{start} of {config.steps} steps are done"
        console.print(f"{config.run} is finished: {done}", soft_wrap=True)
        return
    if profile:
        profile.check(start, config.steps)
    state, position = _start(config, parts, store, start)
    if start:
        console.print(f"{config.run}: going on from step {start}", soft_wrap=True)
    feed = _feed(config, parts, source, position)
    figures = Figures(pathlib.Path(config.run), start, silent=not is_first())
    line = Line(console, config.steps, start)
    stopwatch = Stopwatch()
    found: dict[int, dict[str, float]] = {}
    warn = _warner(console)
    shared = {"feed": feed, "figures": figures, "stopwatch": stopwatch}
    run = {"batch": config.batch, "steps": config.steps, "start": start}
    run |= {"flops": step_cost(config).total, "peak": peak_flops(parts.mesh.devices.flat)}
    log = LogHook(config.log_every, **run, **shared, line=line, warn=warn)
    evaluate = evaluator(config, parts, warn)
    evals = [
        EvalHook(
            e.every_steps or 0, name, evaluate, found=found, figures=figures, stopwatch=stopwatch
        )
        for name, e in config.evals.items()
    ]
    every, plain = config.checkpoint.every_steps, to_data(config)
    save = SaveHook(every, store, feed=feed, config=plain, found=found, stopwatch=stopwatch)
    step, folder = compiled_apart(parts.step, stopwatch), pathlib.Path(config.run) / "profile"
    traced = profiled(step, profile if is_first() else None, start=start, folder=folder, say=warn)
    try:  # What is saved has been seen: log, then evaluate, then save.
        with stop_asked() as asked, traced as step:
            stop = Stop(asked=asked, save=save)
            fit(state, feed, step, steps=config.steps, hooks=[log, *evals, save], stop=stop)
        if config.steps in found and is_first():
            write_figures(pathlib.Path(config.run) / "eval.json", found[config.steps])
    finally:
        line.close()
        figures.close()
        feed.close()


def _warner(console: Console) -> Callable[[str], None]:
    """Prints warnings: with all else in the first process, apart in the others."""
    if is_first():
        # A name in a message may hold square brackets: no markup.
        return partial(console.print, markup=False, highlight=False, soft_wrap=True)
    who = f"process {jax.process_index()}:"
    return lambda message: print(who, message, file=sys.stderr)


def _start(config: TrainConfig, parts: Assembled, store: Store, step: int) -> tuple[State, Any]:
    """State and data position as saved at `step`; at step 0 fresh, or with others' parameters."""
    want = parts.abstract
    if step == 0 and config.start_from:
        fresh = parts.init()
        params = begin_params(config.start_from, config.model, want.params)
        average = None if fresh.ema is None else jax.tree.map(jnp.copy, params)
        return State(fresh.step, params, fresh.opt, average), None
    if step == 0:
        return parts.init(), None
    progress = {"step": want.step, "opt": want.opt}
    params, progress, position, ema = store.restore(
        step, params=want.params, progress=progress, ema=want.ema
    )
    return State(progress["step"], params, progress["opt"], ema), position


def _feed(config: TrainConfig, parts: Assembled, source: Source, position: Any) -> Feed:
    """Batches from a saved position on, or from the beginning."""
    process_rows(parts.batch_sharding, config.batch)  # Raises if no host's rows are its own.
    batches = train_batches(
        source,
        batch=config.batch,
        seed=config.seed,
        recipe=config.recipe,
        augment=config.augment,
        tokenizer=config.tokenizer,
        pipeline=config.pipeline,
        streams=config.streams,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    groups = batch_parts(config.rules, parts.mesh) * config.accumulate // jax.process_count()
    arrange = dict if config.packing is None else partial(config.packing, groups=groups)
    return Feed(batches, parts.batch_sharding, position=position, arrange=arrange)


def evaluator(
    config: TrainConfig, parts: Assembled, warn: Callable[[str], None]
) -> Callable[[Any, str], Mapping[str, float]]:
    """`(params, name) -> figures` of one of the run's evaluations, on the run's mesh."""

    def on_mesh(rows: Any) -> jax.Array:
        return place_batch({"rows": rows}, parts.batch_sharding)["rows"]

    rows = None
    if jax.process_count() > 1:
        rows = process_rows(parts.batch_sharding, config.eval_batch)
        warn = warn if is_first() else lambda message: None  # All are told of all that is left out.
    whole = NamedSharding(parts.mesh, PartitionSpec())
    encoders = Encoders(parts.model, config.recipe, on_mesh, whole)

    def evaluate(params: Any, name: str) -> Mapping[str, float]:
        embedder = encoders.bind(params, config.tokenizer, config.eval_batch, rows=rows, warn=warn)
        return run_evals(config.evals, config.data, embedder, [name])

    return evaluate


def require_shared(run: str) -> None:
    """Check that all processes see the run folder that the first one has opened.

    Raises:
      ValueError: on all processes; names those that do not.
    """
    gather_json("opened")  # No earlier than that does anyone look.
    seen = gather_json((pathlib.Path(run) / "config.json").exists())
    if blind := [number for number, sees in enumerate(seen) if not sees]:
        raise ValueError(
            f"processes {blind} do not see the run folder {run} of process 0: it must lie on a "
            "disk that all of them share"
        )
