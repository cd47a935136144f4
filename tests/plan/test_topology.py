import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.plan.topology import devices, parse
from clip_jax.sharding.mesh import MeshConfig, build_mesh
from clip_jax.sharding.refine import refine, spread


@pytest.mark.parametrize(
    ("name", "shape", "chips"),
    [
        ("v5e:16x16", (16, 16), 256),
        ("v5e-256", (16, 16), 256),
        ("v5p-128", (4, 4, 4), 64),
        ("v4:2x2x4", (2, 2, 4), 16),
        ("V6E-8", (2, 4), 8),
        ("h100:64", (64,), 64),
    ],
)
def test_names_of_slices(name, shape, chips):
    found = parse(name)
    assert (found.shape, found.chips) == (shape, chips)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5", "'v5' is not of the form"),
        ("v5x:2x2", "no figures for 'v5x'; nearest 'v5p'"),
        ("v5e:4x4x4", "v5e slices have 2 sides, as 16x16"),
        ("v5p:4x4", "v5p slices have 3 sides, as 4x4x8"),
        ("v5e-7", "no slice 'v5e-7': there are v5e-1, v5e-4"),
        ("h100:0", "GPUs are given by their number alone"),
    ],
)
def test_what_is_no_slice_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        parse(name)


def test_slices_start_at_one():
    with pytest.raises(ValueError, match="slices must be at least 1"):
        parse("v5e:2x2", 0)


@pytest.mark.parametrize(
    ("name", "slices", "links"),
    [("v5e:16x16", 1, [32, 8]), ("v5p:4x4x8", 1, [32, 4]), ("v4:2x2x4", 1, [8, 2]),
     ("v5e:4x4", 2, [8, 2]), ("v5e:2x4", 1, [4, 2]), ("v5e:1x1", 1, [1])],
)  # fmt: skip
def test_the_compiler_s_devices_make_a_mesh_whose_data_axis_is_the_torus(name, slices, links):
    topology = parse(name, slices)
    found = devices(topology)
    assert len(found) == topology.chips
    assert len({device.process_index for device in found}) == topology.processes
    mesh = build_mesh(MeshConfig(replica=slices), found)
    fine = refine(mesh, ("data",))
    assert [fine.size(link) for link in fine.links["data"]] == links
    split = NamedSharding(fine.mesh, P(fine.names(("replica", "data"))))
    assert split.is_equivalent_to(NamedSharding(mesh, P(("replica", "data"))), 1)
    for replica in mesh.devices:  # No axis but `replica` leaves a slice.
        assert len({getattr(device, "slice_index", 0) for device in replica.flat}) == 1


def test_a_slice_that_the_compiler_does_not_know_is_refused():
    with pytest.raises(ValueError, match="no slice v5e:3x3"):
        devices(parse("v5e:3x3"))


@pytest.mark.parametrize(
    ("shape", "liked", "parts"),
    [
        ((1152, 4304), (2, 2), (32, 8)),  # SO400M: 256 divides neither
        ((1152, 3, 16, 72), (2, 0, 1, 1), (32, 1, 1, 8)),
        ((768, 3, 12, 64), (2, 0, 1, 1), (256, 1, 1, 1)),
        ((588, 1152), (2, 2), (4, 64)),
        ((32000, 768), (2, 2), (256, 1)),
        ((7, 9), (2, 2), (1, 1)),
    ],
)
def test_each_link_splits_what_it_divides_and_else_its_factors_do(shape, liked, parts):
    fine = refine(build_mesh(MeshConfig(), devices(parse("v5e:16x16"))), ("data",))
    spec = spread(shape, P(*[None] * len(shape)), liked, fine, ("data",))
    made = tuple(fine.size(names or ()) for names in spec)
    assert made == parts


def test_the_slowest_link_is_made_of_whole_rings_and_neighbours():
    mesh = build_mesh(MeshConfig(), devices(parse("v5e:16x16")))
    fine = refine(mesh, ("data",))
    slow, fast = fine.links["data"]
    where = np.array([device.coords[:2] for device in fine.mesh.devices.flat])
    line = where.reshape(*(2,) * 8, 2)
    strip = line[tuple(slice(None) if f"data{i}" in slow else 0 for i in range(8))].reshape(-1, 2)
    assert sorted(np.ptp(strip, axis=0)) == [1, 15] and len(np.unique(strip, axis=0)) == 32
    assert set(slow) | set(fast) == set(fine.names(("data",)))


@pytest.mark.parametrize("name", ["v5e:4x4", "v6e:4x4", "v5p:2x2x2"])
def test_slices_hold_whole_replicas_whose_tensors_lie_on_neighbours(name):
    found = devices(parse(name, 2))
    mesh = build_mesh(MeshConfig(replica=4, model=2), found[::-1])  # In no helpful order.
    assert {device.id for device in mesh.devices.flat} == {device.id for device in found}
    slices = [{device.slice_index for device in replica.flat} for replica in mesh.devices]
    assert slices == [{0}, {0}, {1}, {1}]
    for a, b in mesh.devices.reshape(-1, 2):
        assert sum(abs(i - j) for i, j in zip(a.coords, b.coords, strict=True)) == 1


@pytest.mark.parametrize(
    ("sizes", "left_out", "held"),
    [
        ({}, 0, "0: 4, 1: 4"),
        ({"replica": 1, "data": 4, "model": 2}, 0, "0: 4, 1: 4"),
        ({"replica": 2, "data": 3}, 2, "0: 4, 1: 2"),
    ],
)
def test_slices_that_cannot_hold_whole_replicas_are_named(sizes, left_out, held):
    found = devices(parse("v5e:2x2", 2))
    message = rf"does not fit 2 slices \(devices of each: {held}\): replica must be a multiple of 2"
    with pytest.raises(ValueError, match=message):
        build_mesh(MeshConfig(**sizes), found[: len(found) - left_out])
