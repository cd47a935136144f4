from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.data.packing import Packing, pack
from clip_jax.losses import Softmax
from clip_jax.models.clip import CLIP, init_params
from clip_jax.optim import masks
from clip_jax.optim.build import OptimConfig
from clip_jax.tokenizers import ClipBpe
from clip_jax.train.cost import step_cost
from clip_jax.train.step import hold

LOCKED = {
    "both trained": {},
    "image locked": {"image/*": 0.0, "logit_scale": 0.0},
    "text locked": {"text/*": 0.0, "logit_scale": 0.0},
    "slow, not locked": {"image/*": 0.1, "*bias": 0.0},
}


@pytest.fixture(scope="module")
def config(experiment):
    return experiment("unused", batch=6)


@pytest.mark.parametrize("rates", LOCKED.values(), ids=LOCKED)
@pytest.mark.parametrize("shorter", [False, True])
def test_it_is_what_the_traced_step_multiplies(config, products, variant, rates, shorter):
    short = {"model.image.patch_dropout": 0.5, "model.text.train_length": 5} if shorter else {}
    config = variant(config, **short, optim=OptimConfig(learning_rate=1.0, rates=rates))
    model, batch, key = config.model, config.batch, jax.random.key(0)
    params = jax.eval_shape(lambda: init_params(model, key))
    frozen = masks.frozen(params, rates)
    images = jnp.zeros((batch, config.recipe.size, config.recipe.size, 3))
    tokens = jnp.ones((batch, model.text.context_length), int)

    def loss(params):
        given = {"params": hold(params, frozen)}
        return Softmax()(*CLIP(model).apply(given, images, tokens, rngs={"dropout": key}))

    # Nothing is differentiated by pictures: the first product has one gradient, not two.
    image = model.image
    stem = 2 * batch * image.kept_patches * 3 * image.patch_size**2 * image.stack.width
    spared = stem if "image" in step_cost(config).trained else 0
    counted = step_cost(config).total
    assert products(jax.value_and_grad(loss), params) == counted - spared


def test_packed_captions_cost_the_rows_that_they_lie_in(config, products, variant):
    config = variant(config, tokenizer=ClipBpe(context_length=8))
    plain = variant(config, **{"model.text.causal": True, "model.text.pool": "eot"})
    packing = Packing(row=8, tokens_per_caption=4.0)
    packed = variant(plain, packing=packing)
    tokens = np.full((config.batch, 8), 5, np.int32)
    tokens[:, 3], tokens[:, 4:] = 63, 0  # Four tokens each.
    laid = pack(tokens, 1, packing)
    assert laid.tokens.shape == (1, config.batch // 2, 8)
    params = jax.eval_shape(lambda: init_params(packed.model, jax.random.key(0)))
    encode = partial(CLIP(packed.model).apply, method="encode_text")
    assert step_cost(packed).text == products(encode, {"params": params}, laid)
    assert step_cost(packed).image == step_cost(plain).image
