import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.sharding.gather import gather, stages
from clip_jax.sharding.mesh import AXES, MeshConfig, build_mesh
from clip_jax.sharding.refine import refine, rings, spread


def torus(*sides, slices=1):
    """Stand-ins for the chips of some slices, the last side fastest."""
    places = np.stack(np.meshgrid(*map(np.arange, sides), indexing="ij"), -1).reshape(
        -1, len(sides)
    )
    return [
        types.SimpleNamespace(slice_index=s, coords=[int(c) for c in place], core_on_chip=0)
        for s in range(slices)
        for place in places
    ]


@pytest.mark.parametrize(
    ("devices", "links"),
    [
        (torus(16, 16), [16, 16]),
        (torus(2, 4), [2, 4]),
        (torus(4, 4, 8), [4, 4, 8]),
        (torus(2, 2, 1), [2, 2]),
        (torus(4, 4, slices=2), [2, 4, 4]),
        ([types.SimpleNamespace(process_index=i // 4, id=i) for i in range(12)], [3, 4]),
        ([types.SimpleNamespace(process_index=0, id=i) for i in range(6)], [6]),
    ],
)
def test_an_axis_falls_into_the_rings_of_a_torus_or_into_hosts(devices, links):
    assert rings(devices) == links


def test_a_fine_mesh_has_the_same_devices_in_the_same_order():
    mesh = build_mesh(MeshConfig(replica=2, data=4))
    fine = refine(mesh, ("data",))
    assert fine.mesh.axis_names == ("replica", "data0", "data1", "model")
    assert (fine.mesh.devices.reshape(-1) == mesh.devices.reshape(-1)).all()
    assert fine.names(("replica", "data")) == ("replica", "data0", "data1")
    assert {fine.whole(name) for name in ("data0", "data1")} == {"data"}
    array = np.arange(16)
    split = NamedSharding(fine.mesh, P(fine.names(("replica", "data"))))
    assert split.is_equivalent_to(NamedSharding(mesh, P(("replica", "data"))), array.ndim)


def test_links_of_machines_stay_apart(monkeypatch):
    """A machine's network is slower than what joins its devices."""
    monkeypatch.setattr("clip_jax.sharding.refine._place", lambda device: divmod(device.id, 4))
    fine = refine(build_mesh(MeshConfig()), ("data",))
    assert fine.links["data"] == (("data0",), ("data1", "data2"))


def test_rings_of_one_torus_do_not(monkeypatch):
    place = "clip_jax.sharding.refine._place"
    monkeypatch.setattr(place, lambda device: (0, *divmod(device.id, 4)))
    fine = refine(build_mesh(MeshConfig()), ("data",))
    assert fine.links["data"] == (("data0", "data2"), ("data1",)) == TWO
    assert fine.names(("data",)) == ("data0", "data1", "data2")


def test_nothing_to_take_apart_leaves_the_mesh_itself():
    mesh = build_mesh(MeshConfig())
    assert refine(mesh, ()).mesh is mesh


ONE, TWO = (("data0", "data1", "data2"),), (("data0", "data2"), ("data1",))
"""Links of eight devices: one ring; rings of two and of four, as those of a torus are joined."""


@pytest.mark.parametrize("shape", [(16, 24), (12, 10), (24, 3, 2, 5), (8, 7)])
@pytest.mark.parametrize(("links", "exact"), [(ONE, False), (TWO, False), (TWO, True)])
def test_gathered_shares_are_the_whole_and_gradients_come_back_as_shares_of_the_sum(
    shape, links, exact
):
    mesh = Mesh(np.array(jax.devices()).reshape(1, 8, 1), AXES)
    fine = dataclasses.replace(refine(mesh, ("data",)), links={"data": links})
    spec = spread(shape, P(*[None] * len(shape)), (2,) * len(shape), fine, ("data",))
    plan, over = stages(spec, fine, ("data",)), fine.names(("data",))
    rng = np.random.default_rng(0)
    whole, weights = rng.normal(size=shape), rng.normal(size=(8, *shape))

    def value(share, weights):
        made = gather(share, plan, "float32", exact=exact)
        return jnp.sum(jnp.sin(made) * weights[0]).reshape(1)

    def total(whole, weights):
        split = jax.shard_map(
            value, mesh=fine.mesh, in_specs=(spec, P(over)), out_specs=P(over), check_vma=False
        )
        return jnp.sum(split(whole, weights))

    whole, weights = whole.astype(np.float32), weights.astype(np.float32)
    found, slope = jax.jit(jax.value_and_grad(total))(whole, weights)
    np.testing.assert_allclose(found, np.sum(np.sin(whole) * weights.sum(0)), rtol=1e-4)
    np.testing.assert_allclose(slope, np.cos(whole) * weights.sum(0), atol=1e-5)


def test_values_are_rounded_before_they_are_sent_and_exact_gradients_are_not():
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(1, 4, 1), AXES)
    fine = refine(mesh, ("data",))
    plan = stages(P(fine.names(("data",))), fine, ("data",))

    def both(share):
        rounded = gather(share, plan, "bfloat16")
        exact = gather(share, plan, "bfloat16", exact=True)
        return rounded, exact

    split = jax.shard_map(
        both,
        mesh=fine.mesh,
        in_specs=P(fine.names(("data",))),
        out_specs=P(),
        check_vma=False,
    )
    values = jnp.linspace(0.1, 1.0, 8)
    rounded, exact = jax.jit(split)(values)
    assert rounded.dtype == jnp.bfloat16 and exact.dtype == jnp.float32
    np.testing.assert_array_equal(rounded.astype(jnp.float32), exact)
    np.testing.assert_array_equal(exact, values.astype(jnp.bfloat16).astype(jnp.float32))
    text = jax.jit(split).lower(values).as_text()
    assert "all_gather" in text and not [
        line for line in text.splitlines() if "all_gather" in line and "f32" in line
    ]
