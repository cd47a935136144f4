import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax import tree
from clip_jax.models.axes import logical_axes
from clip_jax.sharding.mesh import MeshConfig, build_mesh
from clip_jax.sharding.place import (
    batch_sharding,
    check_batch,
    follow,
    is_matrix,
    param_shardings,
    place_batch,
)
from clip_jax.sharding.rules import DATA_PARALLEL, FSDP, HYBRID, TENSOR_PARALLEL, AxisRules


def test_each_dimension_goes_where_its_name_says():
    rules = AxisRules(width=("data",), heads=("model",))
    assert rules.spec(("layers", "width", None, "heads")) == P(None, "data", None, "model")
    assert rules.spec(("batch",)) == P(("replica", "data"))


def test_a_misspelt_axis_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="no rule for axis 'widht'; nearest 'width'"):
        DATA_PARALLEL.spec(("widht",))


def test_one_mesh_axis_cannot_split_two_dimensions():
    with pytest.raises(ValueError, match="twice"):
        AxisRules(width=("data",), mlp=("data",)).spec(("width", "mlp"))


def test_the_free_size_takes_all_devices_that_are_left():
    mesh = build_mesh(MeshConfig(replica=2, data=-1, model=2))
    assert dict(mesh.shape) == {"replica": 2, "data": 2, "model": 2}
    assert dict(build_mesh(MeshConfig(), jax.devices()[:3]).shape)["data"] == 3


@pytest.mark.parametrize("sizes", [{"data": 3}, {"data": 16}, {"replica": 3, "data": -1}])
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes):
    with pytest.raises(ValueError, match="does not fit 8 devices"):
        build_mesh(MeshConfig(**sizes))


def test_two_free_sizes_are_refused():
    with pytest.raises(ValueError, match="at most one of them -1"):
        MeshConfig(data=-1, model=-1)


def test_every_parameter_has_axes_and_stacked_ones_have_layers_first(tiny_params):
    axes = logical_axes(tiny_params)
    assert axes["image"]["stack"]["blocks"]["mlp"]["up"]["kernel"] == ("layers", "width", "mlp")
    assert axes["text"]["tokens"]["embedding"] == ("vocab", "width")
    assert axes["logit_scale"] == ()


def test_parameters_that_the_table_does_not_know_are_listed_all_at_once(tiny_params):
    strange = {**tiny_params, "extra": np.zeros(3), "image": {"head": {"kernel": np.zeros(3)}}}
    with pytest.raises(
        ValueError, match=r"2 parameters: \['extra \(3,\)', 'image/head/kernel \(3,\)'\]"
    ):
        logical_axes(strange)


def test_fsdp_splits_every_matrix_and_data_parallel_none(tiny_params):
    mesh, axes = build_mesh(MeshConfig()), logical_axes(tiny_params)
    whole = param_shardings(tiny_params, axes, DATA_PARALLEL, mesh)
    assert all(s.is_fully_replicated for s in jax.tree.leaves(whole))
    split = param_shardings(tiny_params, axes, FSDP, mesh)
    for path, sharding in zip(tree.paths(split), jax.tree.leaves(split), strict=True):
        assert sharding.is_fully_replicated != is_matrix(_axes_of(axes, path)), path


def _axes_of(axes, path):
    for part in path.split("/"):
        axes = axes[part]
    return axes


def test_dimensions_that_the_mesh_does_not_divide_are_listed_all_at_once():
    mesh = build_mesh(MeshConfig(data=2, model=4))
    odd = {"text": {"tokens": {"embedding": np.zeros((63, 12))}, "blocks": {"attend": {}}}}
    odd["text"]["blocks"]["attend"] = {"out": {"kernel": np.zeros((2, 6, 8, 48))}}
    message = (
        r"text/blocks/attend/out/kernel: heads of size 6 over 4 devices.*"
        r"text/tokens/embedding: vocab of size 63 over 4 devices"
    )
    with pytest.raises(ValueError, match=message):
        param_shardings(odd, logical_axes(odd), TENSOR_PARALLEL, mesh)


@pytest.mark.parametrize(
    ("shape", "parts"), [((16, 64), 8), ((12, 6), 8), ((12, 9), 4), ((7, 9), 1), ((63, 40), 8)]
)
def test_fsdp_splits_what_a_power_of_two_divides_over_both_dimensions(shape, parts):
    mesh, params = build_mesh(MeshConfig()), {"text": {"mlp": {"up": {"kernel": np.zeros(shape)}}}}
    placed = param_shardings(params, logical_axes(params), FSDP, mesh)
    sharding = placed["text"]["mlp"]["up"]["kernel"]
    assert np.prod(shape) // np.prod(sharding.shard_shape(shape)) == parts
    array = jax.device_put(np.arange(np.prod(shape)).reshape(shape), sharding)
    np.testing.assert_array_equal(array, np.arange(np.prod(shape)).reshape(shape))


def test_tensor_parallel_and_fsdp_split_the_same_matrix():
    mesh = build_mesh(MeshConfig(data=4, model=2))
    both = dataclasses.replace(TENSOR_PARALLEL, params=("data",))
    params = {"text": {"blocks": {"mlp": {"up": {"kernel": np.zeros((3, 8, 32))}}}}}
    placed = param_shardings(params, logical_axes(params), both, mesh)
    sharding = placed["text"]["blocks"]["mlp"]["up"]["kernel"]
    assert np.prod(sharding.shard_shape((3, 8, 32))) == 3 * 8 * 32 // 8
    assert sharding.shard_shape((3, 8, 32))[0] == 3


def test_hybrid_keeps_a_copy_in_each_replica():
    mesh = build_mesh(MeshConfig(replica=2))
    params = {"text": {"mlp": {"up": {"kernel": np.zeros((16, 64))}}}}
    for table, parts in ((HYBRID, 4), (AxisRules(params=("replica", "data")), 8)):
        placed = param_shardings(params, logical_axes(params), table, mesh)
        sharding = placed["text"]["mlp"]["up"]["kernel"]
        assert 1024 // np.prod(sharding.shard_shape((16, 64))) == parts


def test_parameters_are_split_only_over_what_splits_the_batch():
    with pytest.raises(ValueError, match=r"params over \['model'\], which do not split the batch"):
        AxisRules(params=("model",))


def test_moments_lie_where_their_parameters_lie():
    mesh = build_mesh(MeshConfig())
    params = {"a": {"kernel": np.zeros((8, 2))}, "kernel": np.zeros((4, 2))}
    shardings = {
        "a": {"kernel": NamedSharding(mesh, P("data"))},
        "kernel": NamedSharding(mesh, P()),
    }
    state = {"mu": params, "count": np.zeros(()), "row": {"a": {"kernel": np.zeros(8)}}}
    placed = follow(state, params, shardings, mesh)
    assert placed["mu"]["a"]["kernel"].spec == P("data")
    assert placed["mu"]["kernel"].is_fully_replicated
    assert placed["count"].is_fully_replicated
    assert placed["row"]["a"]["kernel"].spec == P("data")  # a factored moment


def test_a_batch_keeps_its_order_across_devices():
    mesh = build_mesh(MeshConfig(replica=2, data=4))
    rows = np.arange(16 * 3).reshape(16, 3)
    placed = place_batch({"rows": rows}, batch_sharding(DATA_PARALLEL, mesh))["rows"]
    np.testing.assert_array_equal(placed, rows)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}


def test_a_batch_that_the_mesh_does_not_divide_is_refused():
    mesh = build_mesh(MeshConfig(replica=2, data=4))
    check_batch("batch", 16, DATA_PARALLEL, mesh)
    with pytest.raises(ValueError, match="eval_batch 12 does not split over 8 devices"):
        check_batch("eval_batch", 12, DATA_PARALLEL, mesh)
