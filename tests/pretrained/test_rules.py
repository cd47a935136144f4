import jax
import numpy as np
import pytest

from clip_jax.pretrained import rules as r
from clip_jax.pretrained.arrays import StoredArray


def stored(arrays):
    return {n: StoredArray(a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()}


def numbers(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


RULES = [
    r.rule("conv", "w c p q -> (p q c) w", "patch/kernel", p=2, q=2),
    *r.norm("blocks.{i}.ln", "blocks/norm"),
    r.rule(("blocks.{i}.q", "blocks.{i}.k"), "s (n h) w -> w s n h", "blocks/pair", n=2),
    *r.fused_pool("pool", "pool", 2),
    r.rule("scale", "1 ->", "scale"),
]
THEIRS = {
    "conv": numbers(5, 3, 2, 2),
    **{
        f"blocks.{i}.ln.{leaf}": numbers(i + 1, 5)[0]
        for i in range(3)
        for leaf in ("weight", "bias")
    },
    **{f"blocks.{i}.{name}": numbers(6, 5) + i for i in range(3) for name in "qk"},
    "pool.in_proj_weight": numbers(18, 6),
    "pool.in_proj_bias": numbers(18),
    "scale": numbers(1),
}
SHAPES = {
    "patch": {"kernel": (12, 5)},
    "blocks": {"norm": {"scale": (3, 5), "bias": (3, 5)}, "pair": (3, 5, 2, 2, 3)},
    "pool": {
        "query": {"kernel": (6, 2, 3), "bias": (2, 3)},
        "key_value": {"kernel": (6, 2, 2, 3), "bias": (2, 2, 3)},
    },
    "scale": (),
}


def abstract(dtype=np.float32):
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, dtype),
        SHAPES,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


def read(theirs, rules=RULES, dtype=np.float32):
    return r.read(rules, stored(theirs), abstract(dtype), lambda _, a: a, "file.pt")


def test_every_layout_holds_the_same_numbers():
    ours = read(THEIRS)
    theirs = THEIRS["conv"]  # Row, column, channel: read off one by one.
    for p, q, c in np.ndindex(2, 2, 3):
        np.testing.assert_array_equal(
            ours["patch"]["kernel"][p * 6 + q * 3 + c], theirs[:, c, p, q]
        )
    for i in range(3):
        np.testing.assert_array_equal(
            ours["blocks"]["norm"]["scale"][i], THEIRS[f"blocks.{i}.ln.weight"]
        )
        for s, name in enumerate("qk"):
            matrix = THEIRS[f"blocks.{i}.{name}"].T.reshape(5, 2, 3)
            np.testing.assert_array_equal(ours["blocks"]["pair"][i, :, s], matrix)
    query, key, value = np.split(THEIRS["pool.in_proj_weight"], 3)
    np.testing.assert_array_equal(ours["pool"]["query"]["kernel"].reshape(6, 6), query.T)
    np.testing.assert_array_equal(ours["pool"]["key_value"]["kernel"][:, 0].reshape(6, 6), key.T)
    np.testing.assert_array_equal(ours["pool"]["key_value"]["kernel"][:, 1].reshape(6, 6), value.T)
    np.testing.assert_array_equal(ours["scale"], THEIRS["scale"][0])


def test_there_and_back_is_the_identity():
    back = dict(r.write(RULES, read(THEIRS)))
    assert back.keys() == THEIRS.keys()
    for name, array in THEIRS.items():
        assert back[name].flags.c_contiguous
        np.testing.assert_array_equal(back[name], array, strict=True)


def test_arrays_take_the_type_asked_for():
    import ml_dtypes

    ours = read({n: a.astype(np.float16) for n, a in THEIRS.items()}, dtype=ml_dtypes.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {np.dtype(ml_dtypes.bfloat16)}


def test_a_scalar_may_be_stored_with_one_dimension_or_none():
    without = {**THEIRS, "scale": THEIRS["scale"][0]}
    np.testing.assert_array_equal(read(without)["scale"], read(THEIRS)["scale"])


def test_all_that_differs_is_listed_at_once_with_the_nearest_names():
    wrong = {**THEIRS, "conv": numbers(5, 3, 4, 4), "blocks.1.ln.wieght": numbers(5)}
    del wrong["blocks.1.ln.weight"], wrong["scale"]
    with pytest.raises(r.WeightsError) as found:
        read(wrong)
    text = str(found.value)
    assert text.startswith("file.pt holds another architecture:\n")
    assert "conv: shape (5, 3, 4, 4) in the file, (5, 3, 2, 2) in this model" in text
    assert "blocks.1.ln.weight: missing (nearest: blocks.1.ln.wieght)" in text
    assert "blocks.1.ln.wieght: unexpected (nearest: blocks.1.ln.weight)" in text
    assert "scale: missing" in text


def test_nothing_is_read_before_all_names_and_shapes_are_right():
    def explode():
        raise AssertionError("read too early")

    arrays = {n: StoredArray(a.shape, a.dtype, explode) for n, a in THEIRS.items() if n != "scale"}
    with pytest.raises(r.WeightsError, match="scale: missing"):
        r.read(RULES, arrays, abstract(), lambda _, a: a, "file.pt")


def test_whole_numbers_are_no_weights():
    with pytest.raises(r.WeightsError, match=r"no floating-point numbers: conv: int64"):
        read({**THEIRS, "conv": np.ones((5, 3, 2, 2), np.int64)})


@pytest.mark.parametrize(
    ("rules", "fault"),
    [
        (RULES[1:], "patch/kernel: no rule"),
        ([*RULES, r.rule("more", "w -> w", "more")], "more: not in this model"),
        ([*RULES, r.rule("conv2", "w c -> w c", "patch/kernel")], "patch/kernel: two rules"),
    ],
)
def test_a_table_that_does_not_fit_the_model_is_an_error(rules, fault):
    with pytest.raises(r.WeightsError, match=fault):
        read(THEIRS, rules)


def test_a_parameter_is_placed_before_the_next_is_read():
    events = []

    def recorded(name, array):
        return StoredArray(array.shape, array.dtype, lambda: events.append(("read", name)) or array)

    arrays = {name: recorded(name, array) for name, array in THEIRS.items()}
    r.read(RULES, arrays, abstract(), lambda path, _: events.append(("place", path)), "file.pt")
    places = [k for k, (what, _) in enumerate(events) if what == "place"]
    assert len(places) == len(jax.tree.leaves(abstract()))
    assert events[0] == ("read", "conv") and events[1] == ("place", "patch/kernel")
    blocks = [name for what, name in events[2 : places[1]] if what == "read"]
    assert blocks == [f"blocks.{i}.ln.weight" for i in range(3)]
