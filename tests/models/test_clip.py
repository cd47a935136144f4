import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import tree
from clip_jax.models.clip import CLIP, ClipConfig, cap_scale, init_params, param_shapes, unit_norm

BATCH = 3


def random_params(config):
    """Any values will do where initial ones are not the point; these need no compiling."""
    rng = np.random.default_rng(0)
    shapes = param_shapes(config)
    return jax.tree.map(lambda s: jnp.float32(rng.normal(0.3, 0.3, s.shape)), shapes)


def apply(config, params, *args, **kwargs):
    """`CLIP.apply`, compiled: tens of times faster here than one operation at a time."""
    rngs = kwargs.pop("rngs", None)
    return compiled(config, **kwargs)(params, args, rngs)


@functools.cache
def compiled(config, **kwargs):
    return jax.jit(lambda p, a, r: CLIP(config).apply({"params": p}, *a, rngs=r, **kwargs))


@pytest.fixture(scope="module")
def batch():
    images = jax.random.normal(jax.random.key(1), (BATCH, 8, 8, 3))
    tokens = np.array(
        [[60, 5, 9, 63, 0, 0, 0, 0], [60, 63, 0, 0, 0, 0, 0, 0], [60, *range(1, 7), 63]]
    )
    return images, jnp.asarray(tokens, jnp.int32)


def test_embeddings_have_unit_norm_and_the_scale_starts_at_one_over_the_temperature(
    tiny, tiny_params, batch
):
    out = apply(tiny, tiny_params, *batch)
    for rows in (out.image, out.text):
        assert rows.shape == (BATCH, tiny.embed_dim) and rows.dtype == jnp.float32
        np.testing.assert_allclose(jnp.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    assert float(out.scale) == pytest.approx(1 / 0.07, rel=1e-6)
    assert out.bias is None


def test_one_tower_alone_gives_what_both_give(tiny, tiny_params, batch):
    both = apply(tiny, tiny_params, *batch)
    image = apply(tiny, tiny_params, batch[0], method="encode_image")
    text = apply(tiny, tiny_params, batch[1], method="encode_text")
    np.testing.assert_allclose(both.image, image, atol=1e-6)
    np.testing.assert_allclose(both.text, text, atol=1e-6)


def test_padding_after_the_end_of_text_changes_nothing(tiny, tiny_params, batch):
    def encode(tokens):
        return apply(tiny, tiny_params, tokens, method="encode_text")

    tokens = batch[1]
    ends = jnp.argmax(tokens, axis=1)
    after = jnp.arange(tokens.shape[1])[None] > ends[:, None]
    padded_otherwise = jnp.where(after, 17, tokens)
    np.testing.assert_allclose(encode(tokens), encode(padded_otherwise), atol=1e-6)
    before = tokens.at[0, 1].set(6)
    assert not np.allclose(encode(tokens)[0], encode(before)[0], atol=1e-4)


def test_each_row_depends_on_its_own_image_only(tiny, tiny_params, batch):
    def encode(images):
        return apply(tiny, tiny_params, images, method="encode_image")

    alone = jnp.concatenate([encode(batch[0][i : i + 1]) for i in range(BATCH)])
    np.testing.assert_allclose(encode(batch[0]), alone, atol=1e-6)


VARIANTS = {
    "mean pooling": {"image.pool": "mean"},
    "attention pooling": {"image.pool": "map"},
    "attention pooling, no projection": {
        "embed_dim": 16,
        "image.pool": "map",
        "image.project": False,
    },
    "sine positions": {"image.positions": "sincos"},
    "no pre-norm, patch bias": {"image.pre_norm": False, "image.patch_bias": True},
    "siglip text": {
        "text.pool": "last",
        "text.causal": False,
        "text.head_bias": True,
        "bias": -10.0,
    },
    "quick gelu": {"image.stack.activation": "quick_gelu", "text.stack.activation": "gelu_tanh"},
}


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_choice_runs_and_every_parameter_matters(tiny, variant, batch, fields):
    config = variant(tiny, **fields)
    params = random_params(config)

    def spread(params):
        out = CLIP(config).apply({"params": params}, *batch)
        target = jnp.arange(out.image.size, dtype=jnp.float32).reshape(out.image.shape)
        bias = 0.0 if out.bias is None else out.bias
        return jnp.sum((out.scale * out.image @ out.text.T + bias) ** 2) + jnp.sum(
            out.image * target
        )

    grads = jax.jit(jax.grad(spread))(params)
    idle = [
        p for p, g in zip(tree.paths(grads), jax.tree.leaves(grads), strict=True) if not g.any()
    ]
    assert not idle


def test_the_class_token_and_mean_pooling_do_not_agree_by_accident(tiny, variant, batch):
    out = []
    for pool in ("class", "mean", "map"):
        config = variant(tiny, **{"image.pool": pool})
        params = random_params(config)
        out.append(apply(config, params, *batch).image)
    assert not np.allclose(out[0], out[1], atol=1e-3)
    assert not np.allclose(out[1], out[2], atol=1e-3)


def test_unroll_and_remat_change_neither_value_nor_gradient_nor_dropout(
    tiny, tiny_params, batch, variant
):
    def value_and_grad(config):
        def value(params):
            out = CLIP(config).apply(
                {"params": params}, *batch, rngs={"dropout": jax.random.key(3)}
            )
            return jnp.sum(out.image @ out.text.T * jnp.arange(9.0).reshape(3, 3))

        return jax.jit(jax.value_and_grad(value))(tiny_params)

    plain = value_and_grad(tiny)
    for fields in ({"unroll": 2}, {"remat": "attention"}):
        both = {f"{tower}.stack.{f}": v for tower in ("image", "text") for f, v in fields.items()}
        other = value_and_grad(variant(tiny, **both))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-3), plain, other)


def test_dropout_acts_only_with_its_key_and_follows_it(tiny, tiny_params, batch):
    def encode(**rngs):
        return apply(tiny, tiny_params, *batch, rngs=rngs).image

    np.testing.assert_array_equal(encode(), encode())
    one, again, other = (encode(dropout=jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)
    assert not np.allclose(one, encode())


def test_initial_scales_are_those_of_openais_text_tower_and_of_its_image_stem(tiny, variant):
    width, layers = 64, 4
    config = variant(
        tiny,
        **{
            f"{t}.stack.{f}": v
            for t in ("image", "text")
            for f, v in (("width", width), ("layers", layers))
        },
    )
    params = jax.jit(lambda: init_params(config, jax.random.key(0)))()
    block, text = params["text"]["stack"]["blocks"], params["text"]
    expected = [
        (block["attend"]["qkv"]["kernel"], width**-0.5),
        (block["attend"]["out"]["kernel"], width**-0.5 * (2 * layers) ** -0.5),
        (block["mlp"]["up"]["kernel"], (2 * width) ** -0.5),
        (block["mlp"]["down"]["kernel"], width**-0.5 * (2 * layers) ** -0.5),
        (text["tokens"]["embedding"], 0.02),
        (text["positions"]["embedding"], 0.01),
        (text["head"]["kernel"], width**-0.5),
        (params["image"]["positions"]["embedding"], width**-0.5),
        (params["image"]["patch"]["kernel"], (3 * 48) ** -0.5),
    ]
    for array, std in expected:
        assert float(jnp.std(array)) == pytest.approx(std, rel=0.12)
        assert abs(float(jnp.mean(array))) < std / 4


def test_shapes_are_those_of_fresh_parameters(tiny, tiny_params):
    made = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tiny_params)
    assert param_shapes(tiny) == made


def test_layers_do_not_start_equal(tiny_params):
    kernel = tiny_params["image"]["stack"]["blocks"]["mlp"]["up"]["kernel"]
    assert not np.allclose(kernel[0], kernel[1])


def test_the_scale_is_capped_after_the_update_and_nothing_else_changes(tiny_params):
    hot = {**tiny_params, "logit_scale": jnp.float32(9.0)}
    capped = cap_scale(hot, 100.0)
    assert float(jnp.exp(capped["logit_scale"])) == pytest.approx(100.0, rel=1e-5)
    assert cap_scale(tiny_params, 100.0)["logit_scale"] == tiny_params["logit_scale"]
    assert capped["image"] is tiny_params["image"]


def test_zero_vectors_have_finite_gradients():
    assert np.isfinite(jax.grad(lambda x: unit_norm(x).sum())(jnp.zeros((2, 4)))).all()


def test_model_is_differentiable_in_images_and_vmaps(tiny, tiny_params, batch):
    def score(image, tokens):
        out = apply(tiny, tiny_params, image[None], tokens[None])
        return jnp.sum(out.image * out.text)

    grads = jax.vmap(jax.grad(score))(*batch)
    assert grads.shape == batch[0].shape and np.all(np.abs(grads).max(axis=(1, 2, 3)) > 0)


def test_bfloat16_activations_keep_float32_embeddings_and_come_near(
    tiny, tiny_params, batch, variant
):
    low = apply(variant(tiny, dtype="bfloat16"), tiny_params, *batch)
    full = apply(tiny, tiny_params, *batch)
    assert low.image.dtype == jnp.float32
    np.testing.assert_allclose(low.image, full.image, atol=0.05)
    assert not np.array_equal(low.image, full.image)


def test_wrong_sizes_are_named(tiny, tiny_params, batch, variant):
    model, variables = CLIP(tiny), {"params": tiny_params}
    with pytest.raises(ValueError, match=r"images are \(12, 12\), the tower takes 8"):
        model.apply(variables, jnp.zeros((1, 12, 12, 3)), batch[1][:1])
    with pytest.raises(ValueError, match="9 tokens a text, the tower takes 8"):
        model.apply(variables, batch[0][:1], jnp.zeros((1, 9), jnp.int32))
    with pytest.raises(ValueError, match="width 30 does not split into 4 heads"):
        variant(tiny, **{"image.stack": dict_to_stack(width=30, layers=1, heads=4)})
    with pytest.raises(ValueError, match="image_size 9 is no multiple of patch_size 4"):
        variant(tiny, **{"image.image_size": 9})
    with pytest.raises(ValueError, match="pool 'eot' needs causal attention"):
        variant(tiny, **{"text.causal": False})
    with pytest.raises(ValueError, match="width 16, but embed_dim is 8"):
        variant(tiny, **{"image.project": False})
    with pytest.raises(ValueError, match=r"temperature 0\.001 must be at least"):
        variant(tiny, temperature=0.001)


def dict_to_stack(**fields):
    from clip_jax.models.transformer import StackConfig

    return StackConfig(**fields)


def test_configs_are_plain_values(tiny):
    assert isinstance(hash(tiny), int)
    assert tiny == ClipConfig(image=tiny.image, text=tiny.text, embed_dim=8)


@pytest.mark.parametrize("project", [True, False])
def test_features_times_the_projection_are_the_embeddings(
    tiny, tiny_params, variant, batch, project
):
    width = tiny.image.stack.width
    cfg = tiny if project else variant(tiny, **{"embed_dim": width, "image.project": False})
    assert cfg.projects_images == project
    params = tiny_params
    if not project:
        image = {name: leaf for name, leaf in params["image"].items() if name != "head"}
        params = {**params, "image": image}
    features = apply(cfg, params, batch[0], method="image_features")
    assert features.shape == (len(batch[0]), width)
    # What the last layer norm gives, not scaled to 1.
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), width**0.5, rtol=1e-3)
    head = np.asarray(params["image"]["head"]["kernel"]) if project else np.eye(width)
    made = np.asarray(features) @ head
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    image = apply(cfg, params, batch[0], method="encode_image")
    np.testing.assert_allclose(made, image, atol=1e-5)
