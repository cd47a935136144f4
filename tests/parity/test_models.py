"""Every family: the numbers of the original, forth and back."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="make parity installs it")

import clip_jax
from clip_jax.models.vit import Patches
from tests.parity import families, peers


def ours_encode(clip):
    """The same three answers of a loaded model."""

    def encode(params, images, tokens):
        variables = {"params": params}
        image = clip.model.apply(variables, images, method="encode_image")
        text = clip.model.apply(variables, tokens, method="encode_text")
        logits = jnp.exp(params["logit_scale"]) * image @ text.T
        return image, text, logits + params.get("logit_bias", 0.0)

    return encode


def as_ours(images):
    """Torch's inputs of an image tower as ours."""
    if len(images) == 1:
        return jnp.asarray(images[0].numpy().transpose(0, 2, 3, 1))
    return Patches(jnp.asarray(images[0].numpy()), jnp.asarray(images[2].numpy().astype(np.int32)))


def difference(ours, theirs):
    """Largest difference in a row, over the row's norm."""
    ours, theirs = np.asarray(ours, np.float64), theirs.detach().numpy().astype(np.float64)
    assert ours.shape == theirs.shape
    return np.max(np.abs(ours - theirs) / np.linalg.norm(theirs, axis=1, keepdims=True))


def load(folder, **options):
    """`clip_jax.load`; these models have no vocabulary, which it says."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has no tokenizer")
        return clip_jax.load(folder, **options)


FAMILIES = {
    **families.FAMILIES,
    "open_clip SigLIP": lambda _: families.open_clip(families.SIGLIP),
}


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    original = FAMILIES[request.param](3)
    original.save(folder)
    clip = load(folder)
    answers = original.encode(*original.images, original.tokens)
    return request.param, original, clip, answers, folder


def answers_of(clip, original):
    tokens = jnp.asarray(original.tokens.numpy().astype(np.int32))
    return jax.jit(ours_encode(clip))(clip.params, as_ours(original.images), tokens)


def test_embeddings_and_logits_are_those_of_the_original(pair, record_property):
    name, original, clip, theirs, _ = pair
    with torch.no_grad():
        ours = answers_of(clip, original)
    found = [difference(a, b) for a, b in zip(ours, theirs, strict=True)]
    record_property("family", name)
    record_property("difference", max(found))
    assert max(found) < 1e-5, dict(zip(("image", "text", "logits"), found, strict=True))


def test_gradients_with_respect_to_the_image_are_those_of_the_original(pair):
    _, original, clip, _, _ = pair
    pixels = original.images[0].clone().requires_grad_()
    image, text, _ = original.encode(pixels, *original.images[1:], original.tokens)
    direction = torch.linspace(-1, 1, image.shape[1])
    ((image @ direction).sum() + (image @ text.T).pow(2).sum()).backward()
    expected = pixels.grad.numpy()
    tokens = jnp.asarray(original.tokens.numpy().astype(np.int32))

    @jax.jit
    def loss(images):
        image, text, _ = ours_encode(clip)(clip.params, images, tokens)
        return (image @ jnp.asarray(direction.numpy())).sum() + ((image @ text.T) ** 2).sum()

    given = as_ours(original.images)
    if isinstance(given, Patches):
        ours = jax.grad(lambda p: loss(Patches(p, given.grid)))(given.pixels)
        valid = original.images[1].numpy().astype(bool)
        ours, expected = np.asarray(ours)[valid], expected[valid]
    else:
        ours = np.asarray(jax.grad(loss)(given)).transpose(0, 3, 1, 2)
    assert np.abs(ours - expected).max() < 1e-4 * np.abs(expected).max()


def strict_open_clip(folder, _):
    library = peers.open_clip()
    data = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    custom = data.pop("custom_text", False)
    model = (library.CustomTextCLIP if custom else library.CLIP)(**data)
    library.load_checkpoint(model, str(folder / "open_clip_model.safetensors"), strict=True)
    return model.eval()


def strict_huggingface(folder, original):
    model, report = type(original.model).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def strict_openai(folder, _):
    state = torch.load(folder / "model.pt", weights_only=True)
    return peers.openai().model.build_model(state).float().eval()


ROADS = {
    "open_clip": ("open_clip", strict_open_clip),
    "transformers": ("huggingface", strict_huggingface),
    "OpenAI": ("openai", strict_openai),
}


def test_what_is_saved_loads_strictly_there_and_gives_the_same_numbers(pair, tmp_path):
    name, original, clip, _, _ = pair
    format, strict = ROADS[name.split(" ")[0]]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(no tokenizer|tokenizer of its own)")
        clip_jax.save(clip, tmp_path / "back", format=format)
    model = strict(tmp_path / "back", original)
    state, again = original.model.state_dict(), model.state_dict()
    assert state.keys() == again.keys()
    for key in state:
        if not key.endswith("num_batches_tracked"):
            # OpenAI's own loader makes half-precision numbers of what it reads.
            close = {"rtol": 1e-3, "atol": 1e-6} if format == "openai" else {"rtol": 0, "atol": 0}
            np.testing.assert_allclose(again[key].float(), state[key].float(), **close)
    once_more = load(tmp_path / "back")
    assert once_more.model.cfg == clip.model.cfg
    jax.tree.map(np.testing.assert_array_equal, once_more.params, clip.params)


def test_an_npz_of_big_vision_is_read_by_open_clip(tmp_path):
    import dataclasses

    from clip_jax.models.clip import CLIP

    original = families.open_clip(families.SIGLIP)
    original.save(tmp_path)
    clip = load(tmp_path)

    def tanh(tower):
        stack = dataclasses.replace(tower.stack, activation="gelu_tanh")
        return dataclasses.replace(tower, stack=stack)

    cfg = clip.model.cfg
    cfg = dataclasses.replace(cfg, image=tanh(cfg.image), text=tanh(cfg.text))
    google = dataclasses.replace(clip, model=CLIP(cfg))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="no tokenizer is written")
        clip_jax.save(google, tmp_path / "google", format="big_vision")
    library = peers.open_clip()
    fields = {key: value for key, value in families.SIGLIP.items() if key != "custom_text"}
    model = library.CustomTextCLIP(**fields)
    library.load_checkpoint(model, str(tmp_path / "google" / "model.npz"))
    state = original.model.state_dict()
    for name, array in model.state_dict().items():
        torch.testing.assert_close(array, state[name], rtol=0, atol=0)
    again = load(tmp_path / "google")
    assert again.model.cfg == dataclasses.replace(cfg, temperature=0.1)
    jax.tree.map(np.testing.assert_array_equal, again.params, clip.params)
