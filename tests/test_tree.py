import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_jax import tree

PARAMS = {
    "text": {"blocks": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}},
    "image": {"blocks": {"kernel": np.zeros((4, 3))}},
    "logit_scale": np.zeros(()),
}


def test_paths_come_in_the_order_of_the_leaves():
    assert tree.paths(PARAMS) == [
        "image/blocks/kernel",
        "logit_scale",
        "text/blocks/bias",
        "text/blocks/kernel",
    ]
    sizes = [leaf.size for leaf in jax.tree.leaves(PARAMS)]
    assert sizes == [12, 1, 3, 6]


def test_sequences_and_named_tuples_have_plain_names_too():
    state = optax.ScaleByAdamState(np.zeros(()), {"a": np.zeros(1)}, {"a": np.zeros(1)})
    assert tree.paths((state, [np.zeros(2)])) == ["0/count", "0/mu/a", "0/nu/a", "1/0"]


def test_a_lone_leaf_has_an_empty_path_and_an_empty_tree_has_none():
    assert tree.paths(np.zeros(2)) == [""]
    assert tree.paths({"a": {}, "b": None}) == []


def test_map_with_path_gives_the_path_and_the_leaves_of_all_trees():
    doubled = jax.tree.map(lambda x: x.size * 2, PARAMS)
    seen = tree.map_with_path(lambda path, a, b: (path, a.size, b), PARAMS, doubled)
    assert seen["text"]["blocks"]["kernel"] == ("text/blocks/kernel", 6, 12)
    assert seen["logit_scale"] == ("logit_scale", 1, 2)


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("image/*", "image/blocks/mlp/kernel", True),
        ("image/*", "image", False),
        ("image", "image/kernel", False),
        ("*/kernel", "image/kernel", True),
        ("*/kernel", "kernel", False),
        ("*kernel", "kernel", True),
        ("*/bias", "image/bias/scale", False),
        ("IMAGE/*", "image/kernel", False),
        ("text/blocks/[qk]/*", "text/blocks/q/kernel", True),
        ("text/blocks/[qk]/*", "text/blocks/v/kernel", False),
        ("logit_?ias", "logit_bias", True),
    ],
)
def test_patterns(pattern, path, expected):
    assert tree.matches(pattern, path) is expected


def test_patterns_that_select_something_pass():
    tree.require_matches(iter(["*", "image/*", "logit_scale"]), PARAMS, "frozen")
    tree.require_matches([], PARAMS, "frozen")


def test_all_idle_patterns_are_reported_with_the_nearest_path():
    with pytest.raises(ValueError) as error:
        tree.require_matches(["text/*", "logit_scal", "image/block/kernel"], PARAMS, "frozen")
    assert str(error.value) == (
        "frozen: pattern 'logit_scal' matches no parameter (nearest: 'logit_scale'); "
        "pattern 'image/block/kernel' matches no parameter (nearest: 'image/blocks/kernel')"
    )


def test_an_empty_tree_has_no_nearest_path():
    with pytest.raises(ValueError, match=r"^rates: pattern 'a' matches no parameter$"):
        tree.require_matches(["a"], {}, "rates")


def test_count_is_the_number_of_scalars_in_arrays_and_shapes_alike():
    assert tree.count(PARAMS) == 12 + 1 + 3 + 6
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, PARAMS))
    assert tree.count(shapes) == tree.count(PARAMS)
    assert tree.count({"a": np.zeros((0, 5)), "b": None}) == 0
