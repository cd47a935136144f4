"""Every test sees 8 simulated devices, and rank promotion is an error."""

import os

# Tiny programs: compiling them well, or in parts side by side, takes longer than running them
# badly. XLA's older emitters of loops compile in half the time; the flag by this name would end a
# process that loads libtpu.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    " --xla_cpu_parallel_codegen_split_count=1"
    " --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
)
# No operation carries the stack of calls that traced it: a twelfth of tracing and compiling.
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
os.environ["JAX_PLATFORMS"] = "cpu"

import contextlib
import dataclasses
import functools
import gc
import inspect
import math
import pathlib
import random
import socket
import tempfile

import jax
import jax.extend
import jaxtyping
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# Two programs under way at once on 8 simulated devices can starve each other's collectives.
jax.config.update("jax_cpu_enable_async_dispatch", False)
_COMPILED = tempfile.TemporaryDirectory(prefix="clip_jax_tests_")
# Equal programs are compiled once in the whole suite, also by the processes that tests start.
os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
jax.config.update("jax_compilation_cache_dir", _COMPILED.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

# Traced programs are many small objects, most of which are still needed when they are counted.
gc.set_threshold(20_000, 20, 20)

_THOROUGH = jaxtyping.jaxtyped


def _checked(function=None, *, typechecker):
    """What the import hook puts on all of clip_jax, in half the time where types are plain.

    jaxtyping's own decorator checks arguments twice, for the sake of its messages, and opens a
    scope of dimensions also where no type has any. Here both are done once, where there are some.
    """
    if function is None:
        return functools.partial(_checked, typechecker=typechecker)
    kinds = list(getattr(function, "__annotations__", {}).values())
    # Fields; names not known yet; a dimension that is the value of an argument.
    if inspect.isclass(function) or any(isinstance(k, str) or "{" in str(k) for k in kinds):
        return _THOROUGH(function, typechecker=typechecker)
    checked = typechecker(function)
    if not any("jaxtyping" in str(kind) for kind in kinds):
        return checked

    @functools.wraps(function)
    def scoped(*args, **kwargs):
        __tracebackhide__ = True
        with _THOROUGH("context"):
            return checked(*args, **kwargs)

    return scoped


jaxtyping.jaxtyped = _checked  # Before anything of clip_jax is imported.

SHARED = pathlib.Path(__file__).resolve().parents[1].parent / "shared"


def pytest_collection_finish():
    gc.freeze()  # Modules and tests stay to the end: no collection need look at them.


@pytest.fixture(scope="session")
def shared():
    """The folder of real data and reference figures beside the checkout."""
    if not SHARED.exists():
        pytest.skip("the data folder beside the checkout is absent")
    return SHARED


@pytest.fixture(scope="session")
def tiny():
    """A CLIP of 4 patches and 8 tokens that compiles in a second; dropout is on."""
    from clip_jax.models.clip import ClipConfig
    from clip_jax.models.text import TextConfig
    from clip_jax.models.transformer import StackConfig
    from clip_jax.models.vit import ViTConfig

    stack = StackConfig(width=16, layers=2, heads=2, dropout=0.1)
    return ClipConfig(
        image=ViTConfig(image_size=8, patch_size=4, stack=stack),
        text=TextConfig(context_length=8, vocab_size=64, stack=stack),
        embed_dim=8,
    )


@pytest.fixture(scope="session")
def tiny_params(tiny):
    from clip_jax.models.clip import init_params

    return jax.jit(lambda: init_params(tiny, jax.random.key(0)))()


@pytest.fixture
def variant():
    """`variant(config, **{"image.pool": "map"})`: a nested copy with some fields changed."""

    def change(config, **fields):
        for path, value in fields.items():
            head, _, rest = path.partition(".")
            if rest:
                value = change(getattr(config, head), **{rest: value})
            config = dataclasses.replace(config, **{head: value})
        return config

    return change


@pytest.fixture(scope="session")
def products():
    """`products(function, *arguments)`: operations of all matrix products in its traced program,
    in loops as often as they run."""

    def count(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
                total += 2 * inner * math.prod(equation.outvars[0].aval.shape)
            times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
            inner = list(jax.extend.core.jaxprs_in_params(equation.params))
            if equation.primitive.name == "cond":  # One way for each platform, the same products.
                inner = inner[:1]
            total += times * sum(map(count, inner))
        return total

    return lambda function, *arguments: count(jax.make_jaxpr(function)(*arguments).jaxpr)


@pytest.fixture(scope="session")
def experiment(tmp_path_factory):
    """`experiment(run, **fields)`: a config that trains on digits in seconds, dropout on."""
    from clip_jax.checkpoint.store import CheckpointConfig
    from clip_jax.data import Digits
    from clip_jax.eval.retrieval import Retrieval
    from clip_jax.eval.zero_shot import ZeroShot
    from clip_jax.models.clip import ClipConfig
    from clip_jax.models.text import TextConfig
    from clip_jax.models.transformer import StackConfig
    from clip_jax.models.vit import ViTConfig
    from clip_jax.optim.build import OptimConfig
    from clip_jax.preprocess.recipe import Recipe
    from clip_jax.tokenizers import SentencePiece, sentencepiece
    from clip_jax.train.config import TrainConfig

    vocabulary = str(tmp_path_factory.mktemp("vocabulary") / "digits.model")
    source = Digits(colourings=1).open("train")
    captions = (text for i in range(300) for text in source[i].texts)
    sentencepiece.train(captions, vocabulary, vocab_size=60, context_length=8)
    stack = StackConfig(width=16, layers=2, heads=2, dropout=0.1)
    config = TrainConfig(
        run="unset",
        steps=10,
        batch=16,
        data=Digits(colourings=1),
        recipe=Recipe(size=16),
        tokenizer=SentencePiece(model=vocabulary, context_length=8),
        model=ClipConfig(
            image=ViTConfig(image_size=16, patch_size=8, stack=stack),
            text=TextConfig(
                context_length=8, vocab_size=64, stack=stack, pool="last", causal=False
            ),
            embed_dim=8,
        ),
        optim=OptimConfig(learning_rate=1e-2),
        checkpoint=CheckpointConfig(every_steps=5),
        evals={
            "unseen_images": ZeroShot(split="unseen_images", every_steps=5),
            "test": Retrieval(split="test", ks=(1, 5)),
        },
        log_every=2,
    )

    def change(run, **fields):
        return dataclasses.replace(config, run=str(run), **fields)

    return change


@pytest.fixture(scope="session")
def finished(experiment, tmp_path_factory):
    """The config of a run of ten steps without a break."""
    from rich.console import Console

    from clip_jax.train.experiment import train

    folder = tmp_path_factory.mktemp("finished")
    config = experiment(folder / "run")
    with (folder / "log").open("w") as log:
        train(config, Console(file=log))
    return config


@pytest.fixture(scope="session")
def ports():
    """Free ones, no two of a session equal, from below those that the system gives to others."""
    untried = random.Random(os.getpid()).sample(range(20_000, 32_000), 12_000)

    def free():
        while True:
            port = untried.pop()
            with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
                return port

    return free
