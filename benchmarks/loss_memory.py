"""Memory of the losses, obvious and in tiles, by the compilers' own analysis; nothing is run.

    python benchmarks/loss_memory.py [--tile 1024]      (the TPU rows need libtpu; no TPU)

Loss, accuracy and gradients, as a training step computes them, for 8 devices and float32
embeddings of 768 numbers: simulated CPU devices, and TPU v5e by its ahead-of-time compiler. The
first figure is what a device needs besides embeddings and gradients, the second has the gradients
in it. Prints the table and, as the last line, the largest second figure of our softmax at 262,144
pairs over the best published one, which was measured on 8 A800 (Cheng et al. 2024,
arXiv:2410.17243, Table 1; 1,048,576 did not fit).
"""

import argparse
import importlib.util
import json
import os

DEVICES, WIDTH = 8, 768
BATCHES = [65_536, 131_072, 262_144, 1_048_576]
PUBLISHED = {65_536: 0.36, 131_072: 0.72, 262_144: 1.45}


def meshes():
    """The devices to compile for, by name."""
    import jax
    from jax.experimental import topologies

    from clip_jax.sharding.mesh import MeshConfig, build_mesh

    found = {"CPU": build_mesh(MeshConfig(), jax.devices()[:DEVICES])}
    if importlib.util.find_spec("libtpu"):
        tpu = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
        found["TPU v5e"] = build_mesh(MeshConfig(), tpu.devices)
    else:
        print("no libtpu: TPU v5e is left out")
    return found


def needs(loss, mesh, batch: int) -> tuple[float, float] | None:
    """GB a device besides the embeddings, without and with gradients; None: does not fit."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    axes = ("replica", "data")
    rows, whole = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ([axes], []))
    each = jax.ShapeDtypeStruct((batch, WIDTH), jnp.float32, sharding=rows)
    one = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
    run = jax.jit(
        jax.value_and_grad(loss.on(mesh, axes), (0, 1, 2, 3), has_aux=True),
        out_shardings=((whole, whole), (rows, rows, whole, whole)),
    )
    lowered = run.lower(each, each, one, one)
    try:
        found = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None
    extra = found.temp_size_in_bytes
    return extra / 1e9, (extra + found.output_size_in_bytes) / 1e9


def main() -> None:
    """Compile everything and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tile", type=int, default=1024)
    tile = parser.parse_args().tile

    from clip_jax.losses import Sigmoid, Softmax

    print(f"{'GB a device: extra, with gradients':40}" + "".join(f"{b:>19,}" for b in BATCHES))
    figures = {}
    for device, mesh in meshes().items():
        for name, kind in (("softmax", Softmax), ("sigmoid", Sigmoid)):
            for form, loss in (("obvious", kind()), (f"tiles of {tile}", kind(tile=tile))):
                found = [needs(loss, mesh, batch) for batch in BATCHES]
                figures[device, name, form] = dict(zip(BATCHES, found, strict=True))
                cells = [f"{f[0]:.3f}, {f[1]:.3f}" if f else "does not fit" for f in found]
                print(f"{f'{device}, {name}, {form}':40}" + "".join(f"{c:>19}" for c in cells))
    print(f"{'published, softmax':40}" + "".join(f"{PUBLISHED.get(b, '-'):>19}" for b in BATCHES))
    at = 262_144
    ours = [
        found[at][1]
        for (_, name, form), found in figures.items()
        if name == "softmax" and form != "obvious"
    ]
    ratio = round(max(ours) / PUBLISHED[at], 3)
    print(json.dumps({"name": "loss_memory", "ratio": ratio, "better": "lower"}))


if __name__ == "__main__":
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}",
    }
    main()
