"""Shares of parameters on a mesh of which the compiler splits another axis."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from clip_jax.sharding.gather import gather, stages
from clip_jax.sharding.mesh import MeshConfig, build_mesh
from clip_jax.sharding.refine import refine


def test_bfloat16_gradients_are_summed_beside_an_axis_that_is_the_compiler_s():
    fine = refine(build_mesh(MeshConfig(data=4, model=2)), ("data",))
    over = fine.names(("data",))
    plan = stages(P(over), fine, ("data",))

    def value(share, inputs):
        made = gather(share, plan, "bfloat16")
        assert made.dtype == jnp.bfloat16
        return jnp.sum(inputs @ made, keepdims=True)

    def total(whole, inputs):
        split = jax.shard_map(
            value,
            mesh=fine.mesh,
            in_specs=(P(over), P(over)),
            out_specs=P(over),
            axis_names=set(over) | {"replica"},
            check_vma=False,
        )
        return jnp.sum(split(whole, inputs))

    columns = jax.NamedSharding(fine.mesh, P(over, "model"))
    whole = jax.device_put(jnp.ones((8, 6)), columns)
    inputs = np.random.default_rng(0).integers(-8, 8, (12, 8)).astype(np.float32)
    slope = jax.jit(jax.grad(total))(whole, inputs.astype(jnp.bfloat16))
    wanted = np.broadcast_to(inputs.sum(0)[:, None], (8, 6))
    np.testing.assert_array_equal(slope, wanted)  # Small whole numbers: nothing is rounded.
