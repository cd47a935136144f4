"""A batch in parts: the same numbers, in the memory of one part."""

import dataclasses
import re
from functools import partial

import jax
import numpy as np
import pytest

from clip_jax.data.packing import Packing
from clip_jax.losses import Sigmoid, Softmax
from clip_jax.models.axes import logical_axes
from clip_jax.models.clip import Output, init_params
from clip_jax.preprocess.recipe import Recipe
from clip_jax.sharding.mesh import MeshConfig, build_mesh
from clip_jax.sharding.place import batch_parts, batch_sharding, param_shardings, place_batch
from clip_jax.sharding.rules import DATA_PARALLEL, FSDP
from clip_jax.train.forward import check_accumulate, make_forward, rounded

BATCH = 32
LAYOUTS = {"data-parallel": DATA_PARALLEL, "FSDP": FSDP}


def batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 63, (BATCH, 8)).astype(np.int32)
    ends = rng.integers(2, 8, BATCH)
    tokens[np.arange(BATCH), ends] = 63
    tokens[np.arange(8) > ends[:, None]] = 0
    return {"images": rng.integers(0, 256, (BATCH, 8, 8, 3), np.uint8), "tokens": tokens}


class Towers:
    """Both towers on a mesh, compiled once: `run(cotangents) -> (output, gradients)`."""

    zeros = Output(*np.zeros((2, BATCH, 8), np.float32), *np.zeros((2, 1), np.float32)[:, 0])

    def __init__(self, model, params, mesh, rules, arrange=dict, **options):
        self.mesh, self.rules = mesh, rules
        where = param_shardings(params, logical_axes(params), rules, mesh)
        forward = make_forward(model, where, rules, mesh, recipe=Recipe(size=8), **options)
        placed = place_batch(arrange(batch()), batch_sharding(rules, mesh))

        def both(params, batch, cotangents):
            run = partial(forward, rngs={"dropout": jax.random.key(2)})
            out, pull = jax.vjp(
                lambda params: run(params, batch["images"], batch["tokens"])[0], params
            )
            return out, pull(cotangents)[0]

        self.run = partial(jax.jit(both), jax.device_put(params, where), placed)

    def gradients(self, loss):
        """Loss, accuracy and gradients of all parameters, as numpy arrays."""
        out = self.run(self.zeros)[0]
        objective = loss.on(self.mesh, self.rules.batch)
        both = jax.jit(jax.value_and_grad(lambda out: objective(*out), has_aux=True))
        value, cotangents = jax.device_get(both(out))  # Not committed: one compilation.
        return jax.tree.map(np.asarray, (*value, self.run(cotangents)[1]))


@pytest.fixture(scope="module")
def model(tiny):
    """With all that a step draws at random, and a bias."""
    image = dataclasses.replace(tiny.image, patch_dropout=0.5)
    return dataclasses.replace(tiny, image=image, bias=-3.0)


@pytest.fixture(scope="module")
def params(model):
    """Random; matrices of numbers that bfloat16 has."""
    made = jax.device_get(jax.jit(lambda: init_params(model, jax.random.key(1)))())
    return jax.tree.map(lambda a: a.astype(np.float32), rounded(made, "bfloat16"))


@pytest.fixture(scope="module")
def undivided(model, params):
    """Of the whole batch on one device, by kind of loss."""
    alone = Towers(model, params, build_mesh(MeshConfig(), jax.devices()[:1]), DATA_PARALLEL)
    return {kind: alone.gradients(kind()) for kind in (Softmax, Sigmoid)}


@pytest.fixture(scope="module", params=LAYOUTS)
def divided(request, model, params):
    """On 8 devices, each of which takes its share in two parts; captions packed in the second."""
    mesh, rules, arrange = build_mesh(MeshConfig()), LAYOUTS[request.param], dict
    if request.param == "FSDP":
        packing = Packing(row=12, tokens_per_caption=8.0)
        arrange = partial(packing, groups=2 * batch_parts(rules, mesh))
    return Towers(model, params, mesh, rules, arrange, accumulate=2)


@pytest.mark.parametrize("loss", [Softmax(), Softmax(tile=3), Sigmoid(), Sigmoid(tile=3)], ids=str)
def test_parts_give_the_loss_and_gradients_of_the_whole(divided, undivided, loss):
    value, accuracy, grads = divided.gradients(loss)
    their_value, their_accuracy, theirs = undivided[type(loss)]
    assert value == pytest.approx(their_value, rel=1e-5) and accuracy == their_accuracy
    largest = max(np.abs(g).max() for g in jax.tree.leaves(theirs["image"]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest), grads, theirs
    )


def test_matrices_in_bfloat16_change_only_the_last_bits_of_gradients(model, params, undivided):
    narrow = Towers(model, params, build_mesh(MeshConfig()), FSDP, param_dtype="bfloat16")
    value, _, grads = narrow.gradients(Softmax())
    their_value, _, theirs = undivided[Softmax]
    assert value == pytest.approx(their_value, rel=1e-5)
    rounding = 2**-8  # Of a gradient; once, and once for each of two steps of its reduction.
    for ours, exact in zip(jax.tree.leaves(grads), jax.tree.leaves(theirs), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, exact, atol=4 * rounding * np.abs(exact).max() + 1e-7)
    lowered = narrow.run.func.lower(*narrow.run.args, narrow.zeros).as_text()
    gathered = re.findall(r"all_gather.*-> tensor<\S*x(\w+)>", lowered)
    assert gathered.count("bf16") > gathered.count("f32") > 0  # Tables come as they are.


def test_memory_is_that_of_one_part(tiny):
    """By the compiler's account, remat off: images, activations and their gradients."""
    still = dataclasses.replace(tiny.image.stack, dropout=0.0)
    model = dataclasses.replace(
        tiny,
        image=dataclasses.replace(tiny.image, stack=still),
        text=dataclasses.replace(tiny.text, stack=still),
    )
    mesh = build_mesh(MeshConfig(), jax.devices()[:1])
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    where = param_shardings(shapes, logical_axes(shapes), DATA_PARALLEL, mesh)
    given = {
        "images": jax.ShapeDtypeStruct((512, 8, 8, 3), np.uint8),
        "tokens": jax.ShapeDtypeStruct((512, 8), np.int32),
    }

    def needed(accumulate):
        forward = make_forward(
            model, where, DATA_PARALLEL, mesh, recipe=Recipe(size=8), accumulate=accumulate
        )

        def similarity(params, batch):
            out, _ = forward(params, batch["images"], batch["tokens"], rngs={})
            return (out.image * out.text).sum()

        compiled = jax.jit(jax.grad(similarity)).lower(shapes, given).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert needed(8) < 0.2 * needed(1)


def test_a_number_of_parts_below_one_is_refused(experiment):
    with pytest.raises(ValueError, match="accumulate must be at least 1, got 0"):
        experiment("run", accumulate=0)


def test_the_shares_that_do_not_split_are_named():
    mesh = build_mesh(MeshConfig())
    check_accumulate(32, 4, FSDP, mesh)
    with pytest.raises(ValueError, match=r"batch 24 .* 8 devices .* accumulate 2 equal parts"):
        check_accumulate(24, 2, FSDP, mesh)
