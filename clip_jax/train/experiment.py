"""A whole training run: how its parts are put together and driven."""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console

from clip_jax.checkpoint.start import open_run
from clip_jax.checkpoint.store import Store
from clip_jax.config import to_data
from clip_jax.data.embeddings import EmbeddingTable
from clip_jax.data.feed import Feed
from clip_jax.data.pipeline import train_batches
from clip_jax.data.position import join
from clip_jax.data.sample import Source
from clip_jax.eval.encoders import Encoders
from clip_jax.eval.suite import evals_in_turn, open_evals, write_figures
from clip_jax.sharding.chips import peak_flops
from clip_jax.sharding.mesh import build_mesh
from clip_jax.sharding.place import batch_parts, check_batch, place_batch
from clip_jax.sharding.processes import (
    Highest,
    StoppedError,
    agree,
    gather_json,
    is_first,
    process_rows,
    require_shared,
    stop_asked,
)
from clip_jax.tokenizers import storage
from clip_jax.train.assemble import Assembled, assemble_run
from clip_jax.train.begin import begin_params, enter_stage
from clip_jax.train.config import LOCAL, MAY_DIFFER, TrainConfig, check_vocabulary
from clip_jax.train.cost import step_cost
from clip_jax.train.fingerprints import fingerprints
from clip_jax.train.hooks import EvalHook, SaveHook
from clip_jax.train.log import Figures, Line, LogHook, Stopwatch, compiled_apart, told_of_room
from clip_jax.train.loop import DivergedError, Hook, Stop, fit
from clip_jax.train.profile import Profile, profiled
from clip_jax.train.state import State


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Stage:
    """A run, or a part of one that has settings of its own."""

    config: TrainConfig
    """One of `TrainConfig.stages`."""
    parts: Assembled
    end: int
    """Updates of the run when it is over."""


def _stages(config: TrainConfig, mesh: Mesh) -> list[_Stage]:
    """What follows one another; whatever does not fit together in any of them shows now."""
    stages, begin = [], 0
    for stage in config.stages():
        parts, end = assemble_run(stage, mesh, begin), begin + stage.steps
        stages.append(_Stage(config=stage, parts=parts, end=end))
        begin = end
    return stages


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
    stages = _stages(config, mesh)
    check_batch("eval_batch", config.eval_batch, config.rules, mesh)
    check_vocabulary(config)
    source = config.data.open("train")
    embeddings = _embeddings(config)
    _agree(config, source)
    if is_first():
        # Of a run with a last stage, `steps` says where that begins.
        may_differ = [field for field in MAY_DIFFER if field != "steps" or config.last is None]
        open_run(config.run, to_data(config), may_differ=may_differ)
        storage.keep(config.tokenizer, config.run)
    require_shared(config.run)
    store = Store(pathlib.Path(config.run) / "checkpoints", config.checkpoint)
    try:
        _train(config, stages, source, embeddings, store, console, profile)
    except DivergedError as error:
        raise DivergedError(f"{error}. {_how_to_go_on(store, error)}", error.proven) from None
    finally:
        store.close()


def _agree(config: TrainConfig, source: Source) -> None:
    """Check that all processes have the same config and data.

    Raises:
      ValueError: on all processes; names everything that differs.
      ValueError, OSError: data of evaluations that cannot be opened; names them.
    """
    sources, words = open_evals(config.evals, config.data)
    agree(fingerprints(to_data(config), {"data": source, **sources}, local=LOCAL) | words)


def _how_to_go_on(store: Store, error: DivergedError) -> str:
    store.wait()
    advice = "a lower --optim.learning-rate or --optim.clip-norm, or a longer warm-up"
    proven = [step for step in store.steps() if step <= error.proven]
    if not proven:
        return f"There is no good checkpoint yet: start again, in a new --run, with {advice}"
    good = store.folder / str(proven[-1])
    return f"The last good checkpoint is {good}: use --run NEW --start-from {good} with {advice}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Course:
    """What the stages of a run share."""

    steps: int
    """Of all stages together."""
    source: Source
    embeddings: EmbeddingTable | None
    store: Store
    figures: Figures
    line: Line
    stopwatch: Stopwatch
    warn: Callable[[str], None]
    profile: Profile | None
    found: dict[int, dict[str, float]] = dataclasses.field(default_factory=dict)
    """Figures of evaluations by step."""


def _embeddings(config: TrainConfig) -> EmbeddingTable | None:
    """Raises ValueError if they are not of the model's size."""
    if config.embeddings is None:
        return None
    table, width = EmbeddingTable(config.embeddings), config.model.embed_dim
    if table.width != width:
        raise ValueError(f"{table.path} has embeddings of {table.width} numbers, the model {width}")
    return table


def _train(
    config: TrainConfig,
    stages: Sequence[_Stage],
    source: Source,
    embeddings: EmbeddingTable | None,
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
    # After its last step a stage's state is still its own, on disk as here.
    stage, *later = [stage for stage in stages if start <= stage.end]
    state, position = _start(stage.config, stage.parts, store, start)
    if start:
        console.print(f"{config.run}: going on from step {start}", soft_wrap=True)
    course = _Course(
        steps=config.steps,
        source=source,
        embeddings=embeddings,
        store=store,
        figures=Figures(pathlib.Path(config.run), start, silent=not is_first()),
        line=Line(console, config.steps, start),
        stopwatch=Stopwatch(),
        warn=_warner(console),
        profile=profile if is_first() else None,
    )
    try:
        with stop_asked() as asked:
            state, position = _fit(stage, course, state, position, asked)
            for after in later:
                state = enter_stage(state, stage.config, after.config, after.parts.abstract)
                state, position = _fit(after, course, state, position, asked)
                stage = after
        if config.steps in course.found and is_first():
            figures = course.found[config.steps]
            write_figures(pathlib.Path(config.run) / "eval.json", figures)
    finally:
        course.line.close()
        course.figures.close()


def _fit(
    stage: _Stage, course: _Course, state: State, position: Any, asked: Callable[[int], bool]
) -> tuple[State, Any]:
    """State and data position at the end of a stage; as they are, if it is over already.

    Raises:
      StoppedError: that was asked for before the run's last step; all is saved.
    """
    if (start := int(state.step)) >= stage.end:
        return state, position
    config, parts, stops = stage.config, stage.parts, set[int]()

    def ask(done: int) -> bool:
        if asked(done):
            stops.add(done)
        return done in stops

    step = parts.step
    if config.packing is not None and is_first():
        step = told_of_room(step, config.packing, course.warn)
    with _feed(config, parts, course, position) as feed:
        hooks, save = _hooks(stage, course, feed, start)
        stop = Stop(asked=ask, save=save)
        traced = profiled(
            compiled_apart(step, course.stopwatch),
            course.profile and course.profile.within(start, stage.end),
            start=start,
            folder=pathlib.Path(config.run) / "profile",
            say=course.warn,
        )
        with traced as step:
            state = fit(state, feed, step, steps=stage.end, hooks=hooks, stop=stop)
        if stage.end in stops and stage.end < course.steps:
            raise StoppedError(f"stopped after step {stage.end} of {course.steps}")
        return state, join(gather_json(feed.position))


def _hooks(
    stage: _Stage, course: _Course, feed: Feed, start: int
) -> tuple[Sequence[Hook], SaveHook]:
    """What is saved has been seen: log, then evaluate, then save."""
    config, stopwatch = stage.config, course.stopwatch
    log = LogHook(
        config.log_every,
        batch=config.batch,
        steps=course.steps,
        start=start,
        flops=step_cost(config).total,
        peak=peak_flops(stage.parts.mesh.devices.flat),
        feed=feed,
        figures=course.figures,
        line=course.line,
        stopwatch=stopwatch,
        warn=course.warn,
    )
    evaluate, found = evaluator(config, stage.parts, course.warn), course.found
    evals = EvalHook(
        {name: each.every_steps for name, each in config.evals.items()},
        evaluate,
        end=stage.end,
        found=found,
        figures=course.figures,
        stopwatch=stopwatch,
    )
    every, plain = config.checkpoint.every_steps, to_data(config)
    save = SaveHook(every, course.store, feed=feed, config=plain, found=found, stopwatch=stopwatch)
    return [log, evals, save], save


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


@contextlib.contextmanager
def _feed(config: TrainConfig, parts: Assembled, course: _Course, position: Any) -> Iterator[Feed]:
    """Batches from a saved position on, or from the beginning."""
    process_rows(parts.batch_sharding, config.batch)  # Raises if no host's rows are its own.
    batches = train_batches(
        course.source,
        batch=config.batch,
        seed=config.seed,
        recipe=config.recipe,
        augment=config.augment,
        tokenizer=config.tokenizer,
        pipeline=config.pipeline,
        streams=config.streams,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        embeddings=course.embeddings,
    )
    groups = batch_parts(config.rules, parts.mesh) * config.accumulate // jax.process_count()
    highest, arrange = Highest(), dict
    if config.packing is not None:
        arrange = partial(config.packing, groups=groups, agree=highest)
    feed = Feed(batches, parts.batch_sharding, position=position, arrange=arrange)
    # A feed ends when its thread does, which may be waiting for another process.
    with contextlib.closing(feed), contextlib.closing(highest):
        yield feed


def evaluator(
    config: TrainConfig, parts: Assembled, warn: Callable[[str], None]
) -> Callable[[Any, Sequence[str]], Iterator[dict[str, float]]]:
    """`(params, names) -> figures` of each of these evaluations of the run, on its mesh."""

    def on_mesh(rows: Any) -> jax.Array:
        return place_batch({"rows": rows}, parts.batch_sharding)["rows"]

    rows = None
    if jax.process_count() > 1:
        rows = process_rows(parts.batch_sharding, config.eval_batch)
        warn = warn if is_first() else lambda message: None  # All are told of all that is left out.
    whole = NamedSharding(parts.mesh, PartitionSpec())
    encoders = Encoders(parts.model, config.recipe, on_mesh, whole)

    def evaluate(params: Any, names: Sequence[str]) -> Iterator[dict[str, float]]:
        embedder = encoders.bind(params, config.tokenizer, config.eval_batch, rows=rows, warn=warn)
        return evals_in_turn(config.evals, config.data, embedder, names)

    return evaluate
