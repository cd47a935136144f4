import dataclasses
import json
import pathlib

import numpy as np
import pytest

from clip_jax.data.sample import BadSampleError
from clip_jax.eval.groups import ByGroups
from clip_jax.eval.retrieval import Retrieval
from clip_jax.eval.suite import (
    Evaluator,
    done,
    evals_in_turn,
    open_evals,
    run_evals,
    write_figures,
)
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


class Faulty:
    """A data set whose splits raise what they are."""

    def __init__(self, dataset, **faults):
        self.dataset, self.faults = dataset, faults

    def open(self, split):
        if split in self.faults:
            raise self.faults[split]
        return self.dataset.open(split)

    def class_names(self, split):
        return self.dataset.class_names(split)


LOST = FileNotFoundError(2, "No such file or directory", "shard-00.tar")
FAILING = {
    "lost": ZeroShot(split="lost"),
    "colours": EVALS["colours"],
    "odd": Retrieval(split="odd"),
    "blank": Retrieval(split="blank"),
    "some": EVALS["some"],
}


def merged(parts):
    return {name: value for one in parts for name, value in one.items()}


def faulty(toy, dataset):
    blank = [toy.sample(name, texts=()) for name in toy.colours]
    whole = toy.dataset({**dataset.splits, "blank": blank}, dataset.names)
    return Faulty(whole, lost=LOST, odd=ConnectionError())


def test_what_fails_in_a_run_is_told_and_counted_and_the_others_are_measured(toy, dataset):
    said = []
    embedder = toy.embedder(warn=said.append)
    found = list(evals_in_turn(FAILING, faulty(toy, dataset), embedder, list(FAILING)))
    lost = [{f"{FAILING[name].task}/{name}/left_out": 1.0} for name in ("lost", "odd", "blank")]
    assert [found[0], found[2], found[3]] == lost
    good = {name: EVALS[name] for name in ("colours", "some")}
    assert merged([found[1], found[4]]) == run_evals(good, dataset, toy.embedder())
    with pytest.raises(ValueError) as fault:
        run_evals(FAILING, faulty(toy, dataset), toy.embedder(), ["lost", "blank", "odd"])
    lost, odd, blank = said
    assert lost == f"evals.lost: left out: {LOST}"
    assert odd == "evals.odd: left out: ConnectionError"
    assert blank.startswith("evals.blank: left out: split 'blank' holds no usable sample")
    assert str(fault.value) == "; ".join((lost, blank, odd))
    again = list[str]()
    told = toy.embedder(warn=again.append)
    assert run_evals(FAILING, faulty(toy, dataset), told) == merged(found)
    assert again == said
    assert done(FAILING, merged(found)) == {name: FAILING[name] for name in ("colours", "some")}
    assert done(FAILING, {}) == FAILING


def test_a_model_that_gives_no_numbers_does_not_end_a_run(toy, dataset):
    said = []
    broken = toy.embedder(image_fn=lambda x: np.full((len(x), 3), np.nan), warn=said.append)
    assert list(evals_in_turn(EVALS, dataset, broken, ["some"])) == [
        {"retrieval/some/left_out": 1.0}
    ]
    assert said == [
        "evals.some: left out: 2 of 2 embeddings of images are NaN, infinite or zero; the first is "
        "row 0"
    ]


@pytest.mark.parametrize("error", [TypeError, RuntimeError, KeyError, BadSampleError])
def test_errors_of_programs_are_raised_after_what_was_found(toy, dataset, error):
    evals = {"some": EVALS["some"], "odd": ZeroShot(split="odd"), "colours": EVALS["colours"]}
    turns = evals_in_turn(evals, Faulty(dataset, odd=error("x")), toy.embedder(), list(evals))
    assert next(turns) == run_evals({"some": EVALS["some"]}, dataset, toy.embedder())
    with pytest.raises(error):
        next(turns)


def test_what_fails_in_one_process_all_leave_out(toy, dataset, pair):
    alone = run_evals({name: EVALS[name] for name in ("colours", "some")}, dataset, toy.embedder())
    sources = [faulty(toy, dataset), faulty(toy, dataset).dataset]
    sources[1].splits |= dict.fromkeys(("lost", "odd"), dataset.splits["some"])

    def work(number, embedder):
        said = []
        own = dataclasses.replace(embedder, warn=said.append)
        return merged(evals_in_turn(FAILING, sources[number], own, list(FAILING))), said

    (first, said), second = pair(toy.embedder(), work)
    assert (first, said) == second
    lost = {f"{FAILING[name].task}/{name}/left_out": 1.0 for name in ("lost", "odd", "blank")}
    assert first == pytest.approx({**alone, **lost}, abs=1e-6)
    assert said[:2] == [f"evals.lost: left out: {LOST}", "evals.odd: left out: ConnectionError"]


def test_names_of_classes_that_one_process_cannot_read_stop_none(toy, dataset, pair):
    class Nameless(toy.dataset):
        def class_names(self, split):
            raise PermissionError(13, "Permission denied", "classnames.txt")

    sources = [dataset, Nameless(dataset.splits)]

    def work(number, embedder):
        own = dataclasses.replace(embedder, warn=[].append)
        return merged(evals_in_turn(EVALS, sources[number], own, ["colours", "some"]))

    first, second = pair(toy.embedder(), work)
    assert first == second
    assert first["zero_shot/colours/left_out"] == 1.0
    assert "retrieval/some/text_to_image_recall@1" in first


def test_an_error_that_only_one_process_can_know_of_ends_it(toy, dataset, pair):
    """The others may wait for its pictures: the run's line between processes ends these."""

    def work(number, embedder):
        def full(rows):
            raise OSError(28, "No space left on device")

        own = dataclasses.replace(embedder, image_fn=full) if number else embedder
        return list(evals_in_turn(EVALS, dataset, own, ["some"]))

    _, second = pair(toy.embedder(), work)
    assert isinstance(second, OSError)


def test_a_sample_that_fails_in_any_way_is_left_out(toy, dataset):
    class Torn(toy.entries):
        def __getitem__(self, index):
            if index == 1:
                raise OSError(5, "Input/output error")
            return super().__getitem__(index)

    class Data(toy.dataset):
        def open(self, split):
            return Torn(self.splits[split])

    said = []
    data = Data(dataset.splits, dataset.names)
    found = run_evals({"all": EVALS["colours"]}, data, toy.embedder(warn=said.append))
    assert found["zero_shot/all/skipped"] == 1
    assert said == ["split 'test': 1 left out: sample 1: [Errno 5] Input/output error"]


def test_class_names_that_are_missing_show_before_they_are_needed(toy, dataset):
    bare = toy.dataset(dataset.splits)
    needing = {"a": ZeroShot(split="test"), "b": ByGroups(split="test", groups=("x",))}
    with pytest.raises(ValueError) as error:
        open_evals({**needing, "c": Retrieval(split="test")}, bare)
    fault = "split 'test' has no class names: give them as class_names, or choose a split that has"
    assert str(error.value) == f"evals.a: {fault}; evals.b: {fault}"
    named = {n: dataclasses.replace(e, class_names=("red",)) for n, e in needing.items()}
    assert set(open_evals(named, bare)[0]) == {f"data of evals.{n}, split test" for n in "ab"}


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
