import jax
import jax.numpy as jnp
import pytest

from clip_jax.optim.masks import decayed, rate_multipliers


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


PARAMS = {
    "image": {
        "blocks": {
            "mlp": {"up": {"kernel": shape(3, 4, 8), "bias": shape(3, 8)}},
            "norm": {"scale": shape(3, 4), "bias": shape(3, 4)},
        },
        "class_embedding": shape(4),
        "pool": {"probe": shape(1, 4)},
    },
    "text": {"tokens": {"embedding": shape(9, 4)}},
    "logit_scale": shape(),
    "logit_bias": shape(),
}


def test_matrices_decay_and_stacked_gains_do_not():
    assert decayed(PARAMS) == {
        "image": {
            "blocks": {
                "mlp": {"up": {"kernel": True, "bias": False}},
                "norm": {"scale": False, "bias": False},
            },
            "class_embedding": False,
            "pool": {"probe": True},
        },
        "text": {"tokens": {"embedding": True}},
        "logit_scale": False,
        "logit_bias": False,
    }


def test_every_unknown_parameter_is_named():
    params = {"image": {"kernal": shape(2, 2), "kernel": shape(2, 2)}, "text": {"gamma": shape(2)}}
    with pytest.raises(ValueError, match=r"2 parameters: image/kernal, text/gamma; known names"):
        decayed(params)


def test_a_rate_applies_where_its_pattern_matches():
    rates = rate_multipliers(PARAMS, {"image/*": 0.1, "*/bias": 0.5})
    assert rates["image"]["blocks"]["mlp"]["up"] == {"kernel": 0.1, "bias": 0.5}
    assert rates["image"]["class_embedding"] == 0.1
    assert rates["text"]["tokens"]["embedding"] == rates["logit_scale"] == 1.0


def test_the_later_pattern_wins():
    one = rate_multipliers(PARAMS, {"*": 0.0, "text/*": 1.0})
    assert one["text"]["tokens"]["embedding"] == 1.0 and one["logit_scale"] == 0.0
    other = rate_multipliers(PARAMS, {"text/*": 1.0, "*": 0.0})
    assert set(jax.tree.leaves(other)) == {0.0}


def test_idle_patterns_are_all_reported_with_the_nearest_path():
    with pytest.raises(ValueError) as error:
        rate_multipliers(PARAMS, {"image/*": 0.5, "logit_scal": 0, "txt/tokens/embedding": 1})
    assert str(error.value) == (
        "rates: pattern 'logit_scal' matches no parameter (nearest: 'logit_scale'); "
        "pattern 'txt/tokens/embedding' matches no parameter (nearest: 'text/tokens/embedding')"
    )


@pytest.mark.parametrize("rate", [-0.1, float("nan"), float("inf")])
def test_a_rate_must_be_finite_and_not_negative(rate):
    with pytest.raises(ValueError, match=r"not below 0, got \{'text/\*'"):
        rate_multipliers(PARAMS, {"text/*": rate, "image/*": 1.0})
