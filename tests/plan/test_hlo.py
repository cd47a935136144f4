import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.plan import hlo
from clip_jax.plan.traffic import traffic


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))


def compiled(work, mesh, out=None, size=64):
    """Text of a function of one float32 array of (size, size) that is split by rows over both."""
    split = jax.shard_map(
        work, mesh=mesh, in_specs=P(("a", "b")), out_specs=out or P(("a", "b")), check_vma=False
    )
    array = jax.ShapeDtypeStruct((size, size), jnp.float32)
    where = NamedSharding(mesh, P(("a", "b")))
    return jax.jit(split, in_shardings=where).lower(array).compile().as_text()


@pytest.mark.parametrize(
    ("kind", "axes", "work", "rows"),
    [
        ("all-gather", ("a",), lambda x: lax.all_gather(x, "a", tiled=True)[:8], 16),
        ("all-gather", ("b",), lambda x: lax.all_gather(x, "b", tiled=True)[:8], 32),
        ("all-gather", ("a", "b"), lambda x: lax.all_gather(x, ("a", "b"), tiled=True)[:8], 64),
        ("all-reduce", ("a", "b"), lambda x: lax.psum(x, ("a", "b")), 8),
        ("all-reduce", ("b",), lambda x: lax.psum(x, "b"), 8),
        ("reduce-scatter", ("b",), lambda x: lax.psum_scatter(x, "b", tiled=True), 2),
        ("all-to-all", ("b",), lambda x: lax.all_to_all(x, "b", 0, 1, tiled=True), 8),
        (
            "collective-permute",
            ("b",),
            lambda x: lax.ppermute(x, "b", [(i, (i + 1) % 4) for i in range(4)]),
            8,
        ),
    ],
)
def test_each_kind_is_found_with_its_bytes_and_axes(mesh, kind, axes, work, rows):
    (found,) = hlo.collectives(compiled(work, mesh), mesh)
    assert (found.kind, found.axes, found.times) == (kind, axes, 1)
    assert found.bytes == found.total == rows * 64 * 4
    if kind != "collective-permute":
        assert found.group == np.prod([mesh.shape[axis] for axis in axes])


def test_loops_count_as_often_as_they_run_and_so_do_loops_in_loops(mesh):
    def inner(_, x):
        return lax.psum(x * 2, "a")

    def outer(_, x):
        return lax.fori_loop(0, 3, inner, lax.all_gather(x, "b", tiled=True)[:8])

    found = hlo.collectives(compiled(lambda x: lax.fori_loop(0, 5, outer, x), mesh), mesh)
    assert {one.kind: one.times for one in found} == {"all-gather": 5, "all-reduce": 15}


def test_what_a_device_sends_around_a_ring(mesh):
    works = {
        "all-gather": lambda x: lax.all_gather(x, "b", tiled=True)[:8],
        "reduce-scatter": lambda x: lax.psum_scatter(x, "b", tiled=True),
        "all-reduce": lambda x: lax.psum(x, "b"),
    }
    sent = {}
    for kind, work in works.items():
        (found,) = hlo.collectives(compiled(work, mesh), mesh)
        sent[kind] = found.sent
    share = 8 * 64 * 4
    assert sent == {
        "all-gather": 3 * share,
        "reduce-scatter": 3 * share / 4,
        "all-reduce": 2 * share * 3 / 4,
    }


def test_a_loop_without_a_known_end_is_refused(mesh):
    text = compiled(lambda x: lax.while_loop(lambda y: y.sum() > 0, lambda y: y - 1, x), mesh)
    with pytest.raises(ValueError, match="trip count"):
        hlo.collectives(text, mesh)


PROGRAM = """HloModule jit_f

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  ROOT %add.1 = f32[]{:T(128)} add(%x, %y)
}

%all-reduce-scatter (input: f32[16,128]) -> f32[4,128] {
  %input = f32[16,128]{1,0:T(8,128)} parameter(0)
  %all-reduce.1 = f32[16,128]{1,0:T(8,128)} all-reduce(%input), channel_id=1, GROUPS, to_apply=%add
  ROOT %dynamic-slice.1 = f32[4,128]{1,0:T(8,128)} dynamic-slice(%all-reduce.1, %i, %j)
}

%start (p: bf16[2,128]) -> (bf16[2,128], bf16[8,128]) {
  %all-gather.1 = bf16[8,128]{1,0} all-gather(%p), GROUPS, frontend_attributes={chain_id="7"}
}

%end (p: bf16[2,128]) -> bf16[8,128] {
  ROOT %all-gather.2 = bf16[8,128]{1,0} all-gather(%p), GROUPS, frontend_attributes={chain_id="7"}
}

%condition (s: (s32[], f32[16,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  %s = (s32[], f32[16,128]) parameter(0)
  %now = s32[]{:T(128)} get-tuple-element(%s), index=0
  ROOT %lt = pred[]{:T(512)} compare(%now, %limit), direction=LT
}

%body (s: (s32[], f32[16,128])) -> (s32[], f32[16,128]) {
  %f = f32[4,128]{1,0} fusion(%v), kind=kCustom, calls=%all-reduce-scatter
  %async-start = (bf16[2,128], bf16[8,128]) fusion(%w), kind=kCustom, calls=%start
  %async-done = bf16[8,128]{1,0} fusion(%async-start), kind=kCustom, calls=%end
  %permute = (f32[2]{0}, f32[2]{0}, u32[]{:S(2)}, u32[]) collective-permute-start(%u), PAIRS
  %send = (f32[3,128]{1,0}, u32[], token[]) send(%u, %after-all), is_host_transfer=true
  %ags = (f32[2]{0}, f32[8]{0}) all-gather-start(%u), GROUPS, dimensions={0}
}

ENTRY %main (a: f32[16,128]) -> f32[16,128] {
  %t = (s32[], /*index=1*/f32[16,128]{1,0:T(8,128)}) tuple(%c, %a)
  %while = (s32[], f32[16,128]{1,0}) while(%t), condition=%condition, body=%body
}
"""
PAIRS = "source_target_pairs={{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}"


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", ("b",)),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", ("a",)),
        ("replica_groups=[2,4]<=[8]", ("b",)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", ("a",)),
        ("replica_groups=mesh['x'=2,'y'=4] {'y'}", ("b",)),
        ("replica_groups=mesh['x'=8] {'x':(1)2}", ("a",)),
        ("replica_groups=mesh['x'=8] {'x':(2)4}", ("b",)),
        ("replica_groups=mesh['x'=4,'y'=2], device_ids=([2,4]T(1,0)) {'x'}", ("b",)),
        ("replica_groups={}", ("a", "b")),
    ],
)
def test_the_text_of_a_tpu_program_is_understood(mesh, groups, axes):
    text = PROGRAM.replace("GROUPS", groups).replace("PAIRS", PAIRS)
    found = {(one.kind, one.bytes): one for one in hlo.collectives(text, mesh)}
    assert set(found) == {
        ("reduce-scatter", 4 * 128 * 4),  # An all-reduce of which a slice is kept.
        ("all-gather", 8 * 128 * 2),  # One, in two fusions.
        ("collective-permute", 2 * 4),
        ("all-gather", 8 * 4),
        ("send", 3 * 128 * 4),
    }
    assert all(one.times == 12 for one in found.values())
    assert found["reduce-scatter", 2048].axes == axes
    assert found["collective-permute", 8].axes == ("b",)
    assert found["send", 1536].axes == ("a",)  # Slices lie along the first axis.


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("bf16[2,3]{1,0:T(8,128)(2,1)S(1)}", 12),
        ("(f32[4]{0}, /*index=1*/u8[3], pred[2])", 21),
        ("s4[3]", 2),
        ("f8e4m3fn[5]", 5),
        ("c64[2]", 16),
        ("f32[]", 4),
        ("token[]", 0),
    ],
)
def test_sizes_of_shapes(shape, size):
    assert sum(count for _, count in hlo.shapes(shape)) == size


def test_traffic_counts_a_slice_of_a_stack_as_a_slice_and_loops_as_often_as_they_run():
    def scan(stack, x):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]

    def moved(layers):
        stack = jax.ShapeDtypeStruct((layers, 128, 128), jnp.float32)
        x = jax.ShapeDtypeStruct((8, 128), jnp.float32)
        return traffic(jax.jit(scan).lower(stack, x).compile().as_text())

    assert moved(32) - moved(16) == pytest.approx(moved(16) - moved(8) + moved(16) - moved(8))
    assert 128 * 128 * 4 < (moved(32) - moved(16)) / 16 < 4 * 128 * 128 * 4
