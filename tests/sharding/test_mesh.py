"""Meshes of devices that are not here; those of TPUs are in plan/test_topology.py."""

import dataclasses
import random
from collections import Counter

import numpy as np
import pytest

from clip_jax.models.axes import logical_axes
from clip_jax.plan.topology import devices, parse
from clip_jax.sharding.chips import CHIPS, peak_flops
from clip_jax.sharding.mesh import MeshConfig, build_mesh
from clip_jax.sharding.place import batch_sharding, param_shardings
from clip_jax.sharding.rules import HYBRID


@dataclasses.dataclass(frozen=True)
class Gpu:
    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "gpu"
    device_kind: str = "NVIDIA H200"


def hosts(count, each):
    made = [Gpu(id=h * each + i, slice_index=h) for h in range(count) for i in range(each)]
    return random.Random(0).sample(made, len(made))


def test_shares_of_the_batch_may_go_on_from_one_gpu_host_to_the_next():
    mesh = build_mesh(MeshConfig(model=4), hosts(3, 8))
    assert dict(mesh.shape) == {"replica": 1, "data": 6, "model": 4}
    assert [device.id for device in mesh.devices.flat] == list(range(24))


def test_replicas_lie_on_gpu_hosts_of_their_own_where_they_can():
    mesh = build_mesh(MeshConfig(replica=-1, data=4, model=2), hosts(3, 8))
    found = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert found.tolist() == [[[host] * 2] * 4 for host in range(3)]


@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_the_peak_of_a_tpu_is_found_by_what_its_own_runtime_calls_it(name):
    topology = parse(name)
    assert peak_flops(devices(topology)) == topology.chips * topology.chip.flops


def test_a_device_s_name_belongs_to_one_chip():
    kinds = [kind for chip in CHIPS.values() for kind in chip.kinds]
    assert len(kinds) == len(set(kinds)) and all(chip.kinds for chip in CHIPS.values())


def test_where_one_device_is_unknown_there_is_no_peak():
    known = hosts(1, 2)
    assert peak_flops(known) == 2 * CHIPS["h200"].flops
    for kind in ("cpu", "NVIDIA H100 PCIe"):
        assert peak_flops([*known, dataclasses.replace(known[0], device_kind=kind)]) is None


@pytest.mark.parametrize(
    "name, slices, sizes",
    [
        ("v5e:2x2", 2, {"replica": 2}),
        ("v5e:2x4", 3, {"replica": 6}),
        ("v5p:2x2x1", 2, {"replica": -1, "data": 4}),
    ],
)
def test_under_hybrid_rules_each_slice_holds_all_of_each_parameter(name, slices, sizes):
    """Shares within a slice are all different; gradients alone cross the network between slices."""
    found = devices(parse(name, slices))
    mesh = build_mesh(MeshConfig(**sizes), random.Random(1).sample(found, len(found)))
    params = {"text": {"mlp": {"up": {"kernel": np.zeros((16, 64))}}}}
    placed = param_shardings(params, logical_axes(params), HYBRID, mesh)
    held = placed["text"]["mlp"]["up"]["kernel"].devices_indices_map((16, 64))
    for replica in mesh.devices:
        assert len({device.slice_index for device in replica.flat}) == 1
        times = np.zeros((16, 64), int)
        for device in replica.flat:
            times[held[device]] += 1
        assert (times == 1).all()
    replicas = Counter(replica.flat[0].slice_index for replica in mesh.devices)
    assert set(replicas.values()) == {len(mesh.devices) // slices} and len(replicas) == slices
    rows = batch_sharding(HYBRID, mesh).devices_indices_map((len(found),))
    assert sorted(part.start for (part,) in rows.values()) == list(range(len(found)))
