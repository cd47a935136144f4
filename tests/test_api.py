import io
import pathlib
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import clip_jax
from clip_jax.checkpoint.store import CheckpointError
from clip_jax.config import read_json, write_json
from clip_jax.data import Digits
from clip_jax.eval.encoders import Encoders


@pytest.fixture(scope="module")
def clip(finished):
    return clip_jax.load(finished.run, batch=4)


@pytest.fixture(scope="module")
def pictures():
    source = Digits().open("test")
    return [source[i].image for i in range(6)]


def test_a_run_folder_and_its_newest_checkpoint_are_the_same_model(finished, clip):
    other = clip_jax.load(str(pathlib.Path(finished.run) / "checkpoints" / "10"))
    jax.tree.map(np.testing.assert_array_equal, clip.params, other.params)
    older = clip_jax.load(str(pathlib.Path(finished.run) / "checkpoints" / "5"))
    assert not np.array_equal(older.params["logit_scale"], clip.params["logit_scale"])
    assert clip.model.cfg == finished.model
    assert clip.tokenizer == finished.tokenizer and clip.preprocess == finished.recipe


def test_a_lone_cpu_has_blocks_apart_two_batches_at_once_and_few_pictures_in_each(
    finished, monkeypatch
):
    bound, bind = [], Encoders.bind
    monkeypatch.setattr(Encoders, "bind", lambda *given: bound.append(given[1]) or bind(*given))
    loaded = clip_jax.load(finished.run)
    assert loaded.batch == loaded.embedder.batch == 16
    assert loaded.embedder.at_once == 2
    assert isinstance(bound[0]["image"]["stack"]["blocks"], tuple)
    assert isinstance(loaded.params["image"]["stack"]["blocks"], dict)


def test_paths_bytes_pictures_and_arrays_are_encoded_alike(clip, pictures, tmp_path):
    path = tmp_path / "digit.png"
    image = PIL.Image.fromarray(pictures[0])
    image.save(path)
    rows = clip.encode_image([path, str(path), path.read_bytes(), image, pictures[0]])
    assert rows.shape == (5, finished_dim(clip)) and rows.dtype == np.float32
    np.testing.assert_allclose(rows, np.broadcast_to(rows[:1], rows.shape), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)


def finished_dim(clip):
    return clip.model.cfg.embed_dim


def test_the_pure_function_gives_what_the_methods_give(clip, pictures):
    from clip_jax.preprocess.recipe import normalize

    images = np.stack([clip.preprocess(p) for p in pictures])
    tokens = clip.tokenizer(["a red 7", "the digit four"])

    @jax.jit
    def embed(params, images, tokens):
        variables = {"params": params}
        image = clip.model.apply(
            variables, normalize(images, clip.preprocess), method="encode_image"
        )
        return image, clip.model.apply(variables, tokens, method="encode_text")

    image, text = embed(clip.params, jnp.asarray(images), jnp.asarray(tokens))
    np.testing.assert_allclose(clip.encode_image(pictures), image, atol=1e-5)
    np.testing.assert_allclose(clip.encode_text(["a red 7", "the digit four"]), text, atol=1e-5)


def test_classify_gives_the_softmax_of_scaled_similarities(clip, pictures):
    names = ["zero", "one", "two"]
    found = clip.classify(pictures, names, templates=("the digit {}",))
    text = clip.encode_text([f"the digit {name}" for name in names])
    logits = np.exp(clip.params["logit_scale"]) * clip.encode_image(pictures) @ text.T
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


def test_templates_are_averaged_as_unit_vectors(clip, pictures):
    both = clip.classify(pictures, ["one", "two"], templates=("the digit {}", "a red {}"))
    weights = []
    for name in ("one", "two"):
        mean = clip.encode_text([f"the digit {name}", f"a red {name}"]).mean(axis=0)
        weights.append(mean / np.linalg.norm(mean))
    logits = np.exp(clip.params["logit_scale"]) * clip.encode_image(pictures) @ np.array(weights).T
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(both, expected, rtol=1e-4)


def test_what_cannot_be_encoded_is_named(clip, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.png"):
        clip.encode_image([tmp_path / "nothing.png"])
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(ValueError, match=r"broken\.png"):
        clip.encode_image([tmp_path / "broken.png"])
    with pytest.raises(ValueError, match="image 1: cannot decode"):
        clip.encode_image([np.zeros((9, 9, 3), np.uint8), b"no picture"])
    with pytest.raises(TypeError, match="takes a list of images"):
        clip.encode_image(str(tmp_path / "one.png"))
    with pytest.raises(TypeError, match="takes a list of texts"):
        clip.encode_text("a red 7")


def test_a_checkpoint_of_another_architecture_is_refused(finished, tmp_path):
    import shutil

    shutil.copytree(pathlib.Path(finished.run) / "checkpoints" / "10", tmp_path / "10")
    path = tmp_path / "10" / "config" / "metadata"
    config = read_json(path)
    config["model"]["embed_dim"] = 12
    write_json(path, config)
    with pytest.raises(CheckpointError, match=r"image/head/kernel: \(16, 8\) in the checkpoint"):
        clip_jax.load(str(tmp_path / "10"))


def test_no_code_in_a_saved_config_is_run(finished, tmp_path):
    import shutil

    shutil.copytree(pathlib.Path(finished.run) / "checkpoints" / "10", tmp_path / "10")
    path = tmp_path / "10" / "config" / "metadata"
    config = read_json(path)
    config["tokenizer"]["type"] = "os.system"
    write_json(path, config)
    with pytest.raises(ValueError, match=r"tokenizer: 'type' is 'os\.system', not one of"):
        clip_jax.load(str(tmp_path / "10"))


def test_a_name_that_the_package_does_not_have_is_an_error():
    with pytest.raises(AttributeError, match="no attribute 'laod'; it has"):
        clip_jax.laod  # noqa: B018
    assert {"load", "preset", "Clip"} <= set(dir(clip_jax))
    assert clip_jax.preset("ViT-B-32").embed_dim == 512


def test_grayscale_and_transparent_pictures_end_as_rgb(clip):
    buffer = io.BytesIO()
    PIL.Image.new("LA", (20, 30), (120, 90)).save(buffer, "PNG")
    assert clip.encode_image([buffer.getvalue()]).shape == (1, finished_dim(clip))
    assert pickle.loads(pickle.dumps(clip.preprocess)) == clip.preprocess


def test_a_run_that_was_moved_brings_its_vocabulary(finished, clip, tmp_path):
    import shutil

    run = tmp_path / "moved"
    shutil.copytree(finished.run, run)
    path = run / "checkpoints" / "10" / "config" / "metadata"
    config = read_json(path)
    config["tokenizer"]["model"] = str(tmp_path / "gone.model")  # As on another machine.
    write_json(path, config)
    texts = ["a red 7", "the digit four"]
    for place in (run, run / "checkpoints" / "10"):
        there = clip_jax.load(place)
        np.testing.assert_array_equal(there.tokenizer(texts), clip.tokenizer(texts))


def test_a_run_tells_its_own_model(finished):
    with pytest.raises(ValueError, match="is a run, which tells its own model: no model="):
        clip_jax.load(finished.run, model="RN50")
