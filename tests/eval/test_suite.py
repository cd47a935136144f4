import json
import pathlib

import numpy as np
import pytest

from clip_jax.eval.retrieval import Retrieval
from clip_jax.eval.suite import Evaluator, run_evals, write_figures
from clip_jax.eval.zero_shot import ZeroShot


@pytest.fixture
def dataset(toy):
    entries = [toy.sample(name, label=label) for label, name in enumerate(toy.colours)]
    return toy.dataset({"test": entries, "some": entries[:2]}, tuple(toy.colours))


EVALS = {
    "colours": ZeroShot(split="test"),
    "captions": Retrieval(split="test", ks=(1,)),
    "some": Retrieval(split="some", ks=(1,)),
}


def test_figures_have_flat_names_and_are_those_of_each_evaluation(toy, dataset):
    figures = run_evals(EVALS, dataset, toy.embedder())
    expected = {
        f"{evaluation.task}/{name}/{metric}": value
        for name, evaluation in EVALS.items()
        for metric, value in evaluation.run(dataset, toy.embedder())
    }
    assert figures == expected
    assert "zero_shot/colours/acc1" in figures
    assert "retrieval/some/text_to_image_recall@1" in figures


def test_what_several_evaluations_read_is_embedded_once(toy, dataset):
    batches = {"images": [], "texts": []}
    plain = toy.embedder()
    counting = toy.embedder(
        image_fn=lambda images: batches["images"].append(1) or plain.image_fn(images),
        text_fn=lambda tokens: batches["texts"].append(1) or plain.text_fn(tokens),
    )
    both = {**EVALS, "again": ZeroShot(split="test", templates=("something {}",))}
    run_evals(both, dataset, counting, ["colours", "captions", "again"])
    counts = {name: len(done) for name, done in batches.items()}
    assert counts["images"] == -(-len(toy.colours) // plain.batch)
    # The prompts of one are the captions of another.
    assert counts["texts"] == 2 * -(-len(toy.colours) // plain.batch)


def test_some_can_be_chosen(toy, dataset):
    figures = run_evals(EVALS, dataset, toy.embedder(), only=["some", "some"])
    assert {name.split("/")[1] for name in figures} == {"some"}
    assert run_evals(EVALS, dataset, toy.embedder(), only=[]) == {}


def test_all_unknown_names_are_reported_with_the_nearest(toy, dataset):
    with pytest.raises(ValueError) as error:
        run_evals(EVALS, dataset, toy.embedder(), only=["colors", "some", "caption"])
    known = "there are ['captions', 'colours', 'some']"
    assert str(error.value) == (
        f"no such evaluation: 'colors' (nearest: 'colours'), 'caption' (nearest: 'captions'); "
        f"{known}"
    )


def test_configs_are_evaluators():
    assert all(isinstance(evaluation, Evaluator) for evaluation in EVALS.values())
    assert not isinstance(object(), Evaluator)


def test_json_is_sorted_and_reads_back(tmp_path):
    path = tmp_path / "eval.json"
    figures = {"b/x/acc1": 1 / 3, "a/x/acc1": np.float32(0.5), "c/x/skipped": 2}
    write_figures(path, figures)
    read = json.loads(path.read_text())
    assert read == {"a/x/acc1": 0.5, "b/x/acc1": 1 / 3, "c/x/skipped": 2.0}
    assert list(read) == sorted(read)
    write_figures(str(path), {"a": 1.0})
    assert json.loads(path.read_text()) == {"a": 1.0}
    assert [file.name for file in tmp_path.iterdir()] == ["eval.json"]


def test_figures_that_are_not_finite_are_refused_by_name(tmp_path):
    path = tmp_path / "eval.json"
    write_figures(path, {"a": 1.0})
    with pytest.raises(ValueError) as error:
        write_figures(path, {"z": float("nan"), "b": 1.0, "c": float("inf")})
    assert str(error.value) == f"{path} is not written: c, z not finite"
    assert json.loads(path.read_text()) == {"a": 1.0}


def test_a_full_disk_leaves_the_earlier_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "eval.json"
    write_figures(path, {"a": 1.0})

    def full(self, text, *rest, **more):
        with pathlib.Path(self).open("w") as file:
            file.write(text[:3])
        raise OSError(28, "No space left on device")

    from etils import epath

    monkeypatch.setattr(type(epath.Path(path)), "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_figures(path, {"a": 2.0})
    assert json.loads(path.read_text()) == {"a": 1.0}
    assert [file.name for file in tmp_path.iterdir()] == ["eval.json"]
