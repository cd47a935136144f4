import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.losses import Sigmoid, Softmax
from clip_jax.losses.sigmoid import sigmoid_loss
from clip_jax.losses.softmax import batch_accuracy, softmax_loss


def unit(key, *shape):
    x = jax.random.normal(jax.random.key(key), shape)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def test_softmax_is_the_mean_cross_entropy_both_ways():
    image, text, scale = map(np.float64, (unit(0, 5, 3), unit(1, 5, 3), 7.0))
    logits = scale * image @ text.T
    rows = [-np.log(np.exp(logits[i, i]) / np.exp(logits[i]).sum()) for i in range(5)]
    columns = [-np.log(np.exp(logits[i, i]) / np.exp(logits[:, i]).sum()) for i in range(5)]
    value = softmax_loss(unit(0, 5, 3), unit(1, 5, 3), jnp.float32(7.0))
    assert float(value) == pytest.approx((np.mean(rows) + np.mean(columns)) / 2, rel=1e-5)


def test_sigmoid_asks_every_pair():
    image, text = np.float64(unit(0, 4, 3)), np.float64(unit(1, 4, 3))
    total = 0.0
    for i, j in np.ndindex(4, 4):
        logit = 7.0 * image[i] @ text[j] - 2.0
        p = 1 / (1 + np.exp(-logit))
        total -= np.log(p if i == j else 1 - p)
    value = sigmoid_loss(unit(0, 4, 3), unit(1, 4, 3), jnp.float32(7.0), jnp.float32(-2.0))
    assert float(value) == pytest.approx(total / 4, rel=1e-5)


def test_uninformative_embeddings_cost_log_batch():
    same = jnp.ones((64, 4)) / 2.0
    assert float(softmax_loss(same, same, jnp.float32(100.0))) == pytest.approx(
        np.log(64), abs=1e-5
    )


@pytest.mark.parametrize("loss", [Softmax(), Sigmoid()])
def test_losses_do_not_depend_on_the_order_of_pairs(loss):
    image, text = unit(0, 6, 3), unit(1, 6, 3)
    order = jnp.array([3, 1, 5, 0, 4, 2])
    scale, bias = jnp.float32(5.0), jnp.float32(-1.0)
    value = loss(image, text, scale, bias)
    assert float(loss(image[order], text[order], scale, bias)) == pytest.approx(
        float(value), rel=1e-5
    )
    assert float(loss(image[order], text, scale, bias)) != pytest.approx(float(value), rel=1e-3)


@pytest.mark.parametrize("loss", [Softmax(), Sigmoid()])
def test_the_highest_scale_overflows_nothing(loss):
    image = unit(0, 8, 3)
    value, grads = jax.value_and_grad(loss, argnums=(0, 1, 2))(
        image, -image, jnp.float32(100.0), jnp.float32(-10.0)
    )
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in grads)


def test_the_sigmoid_needs_a_bias():
    with pytest.raises(ValueError, match=r"needs a learned bias: set model\.bias"):
        Sigmoid()(unit(0, 2, 3), unit(1, 2, 3), jnp.float32(1.0), None)


def test_pairs_must_match_in_number():
    with pytest.raises(Exception, match="B"):
        softmax_loss(unit(0, 8, 4), unit(1, 9, 4), jnp.float32(1.0))


def test_accuracy_counts_own_texts_that_are_strictly_nearest():
    image = jnp.eye(4)
    assert float(batch_accuracy(image, image)) == 1.0
    assert float(batch_accuracy(image, image[jnp.array([0, 1, 3, 2])])) == 0.5
    assert float(batch_accuracy(jnp.ones((4, 4)) / 2, jnp.ones((4, 4)) / 2)) == 0.0
