"""How long until something happens: importing clip_jax, and the first step of a large model.

    python benchmarks/startup.py [--model ViT-L-14] [--batch 2] [--rounds 5]

Each is a fresh Python process, timed by the real clock from its start on, with nothing kept from
earlier compilations, on this machine's CPU. The import is the median of some rounds. The first
step is the one that train.py runs (towers, softmax loss, AdamW, float32, layers in a scan): it
ends when parameters are made, the step is compiled, and its loss is there. Prints where the time
goes and, as the last line, the larger of the two times over its goal (2 s and 60 s); `cpu_s` are
the seconds that processors worked on the first step, which other work of the machine changes less.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

IMPORT_GOAL_S, STEP_GOAL_S = 2.0, 60.0


def first_step(name: str, batch: int) -> None:
    """Make a model and train it for one step; print the seconds of each part."""
    start = time.perf_counter()

    def passed(what: str) -> None:
        nonlocal start
        now = time.perf_counter()
        print(f"  {now - start:6.2f} s {what}", flush=True)
        start = now

    import jax
    import numpy as np

    from clip_jax.losses import Softmax
    from clip_jax.models.presets import PRESETS
    from clip_jax.optim.build import OptimConfig
    from clip_jax.preprocess.recipe import Recipe
    from clip_jax.sharding.mesh import MeshConfig, build_mesh
    from clip_jax.sharding.place import place_batch
    from clip_jax.sharding.rules import DATA_PARALLEL
    from clip_jax.train.assemble import assemble

    passed("importing")
    model = PRESETS[name]
    size, length = model.image.image_size, model.text.context_length
    parts = assemble(
        model=model,
        loss=Softmax(),
        optim=OptimConfig(learning_rate=1e-3),
        recipe=Recipe(size=size),
        rules=DATA_PARALLEL,
        mesh=build_mesh(MeshConfig(), jax.devices()[:1]),
        seed=0,
        steps=1000,
    )
    passed("putting the step together")
    state = jax.block_until_ready(parts.init())
    passed("making parameters")
    pairs = {
        "images": np.zeros((batch, size, size, 3), np.uint8),
        "tokens": np.ones((batch, length), np.int32),
    }
    placed = place_batch(pairs, parts.batch_sharding)
    step = parts.step.lower(state, placed).compile()
    passed("compiling")
    _, metrics = step(state, placed)
    float(metrics["loss"])
    passed(f"the first step of {name}")


def seconds(*arguments: str) -> float:
    """Of a Python process from its start to its end."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "0"}
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, env=env)
    return time.perf_counter() - start


def cpu_seconds() -> float:
    """Of all processes that were started and have ended, the system's work for them included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Time both in processes of their own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="ViT-L-14")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--first-step", action="store_true", help="only that, in this process")
    args = parser.parse_args()
    if args.first_step:
        first_step(args.model, args.batch)
        return
    imports = statistics.median(seconds("-c", "import clip_jax") for _ in range(args.rounds))
    print(f"importing clip_jax: {imports:.2f} s")
    print("the first step:", flush=True)
    before = cpu_seconds()
    step = seconds(__file__, "--first-step", "--model", args.model, "--batch", str(args.batch))
    print(f"  {step:6.2f} s in all")
    result = {
        "name": "startup",
        "ratio": round(max(imports / IMPORT_GOAL_S, step / STEP_GOAL_S), 3),
        "better": "lower",
        "import_s": round(imports, 2),
        "first_step_s": round(step, 1),
        "cpu_s": round(cpu_seconds() - before, 1),
        "model": args.model,
        "batch": args.batch,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
