import pytest

from clip_jax.eval.retrieval import Retrieval


def test_a_model_that_sees_colours_finds_everything(toy):
    entries = [toy.sample(name, texts=(f"a {name} thing", f"{name}!")) for name in toy.colours]
    figures = dict(Retrieval(split="test").run(toy.dataset({"test": entries}), toy.embedder()))
    assert figures == {
        "image_to_text_recall@1": 1.0,
        "image_to_text_recall@5": 1.0,
        "image_to_text_recall@10": 1.0,
        "image_to_text_median_rank": 1.0,
        "text_to_image_recall@1": 1.0,
        "text_to_image_recall@5": 1.0,  # No recall@10: there are but 6 pictures.
        "text_to_image_median_rank": 1.0,
    }


def test_equal_captions_are_right_for_each_picture_that_carries_them(toy):
    entries = [
        toy.sample("red", "first", texts=("red",)),
        toy.sample("red", "second", texts=("red",)),
        toy.sample("blue", texts=("blue",)),
    ]
    figures = dict(
        Retrieval(split="test", ks=(1,)).run(toy.dataset({"test": entries}), toy.embedder())
    )
    assert figures["image_to_text_recall@1"] == 1.0
    assert figures["text_to_image_recall@1"] == 1.0


def test_captions_that_only_mean_the_same_are_not_equal(toy):
    entries = [
        toy.sample("red", "first", texts=("red",)),
        toy.sample("red", "second", texts=("red ",)),
        toy.sample("blue", texts=("blue",)),
    ]
    figures = dict(
        Retrieval(split="test", ks=(1, 2)).run(toy.dataset({"test": entries}), toy.embedder())
    )
    # Both red pictures look the same to the model: a tie, so neither is found first.
    assert figures["image_to_text_recall@1"] == pytest.approx(1 / 3)
    assert figures["text_to_image_recall@1"] == pytest.approx(1 / 3)
    assert figures["text_to_image_recall@2"] == 1.0


def test_a_caption_shared_with_a_wrong_picture_is_a_hit_there_too(toy):
    entries = [
        toy.sample("red", texts=("a red thing", "a thing")),
        toy.sample("blue", texts=("a blue thing", "a red thing")),
        toy.sample("green", texts=("a blue thing",)),
    ]
    figures = dict(
        Retrieval(split="test", ks=(1,)).run(toy.dataset({"test": entries}), toy.embedder())
    )
    # red -> "a red thing" and blue -> "a blue thing" are right, and green -> neither.
    assert figures["image_to_text_recall@1"] == pytest.approx(2 / 3)
    # Twice "a red thing" -> red and twice "a blue thing" -> blue are right; grey is nearest green.
    assert figures["text_to_image_recall@1"] == pytest.approx(4 / 5)


def test_pictures_without_a_caption_are_left_out_and_counted(toy):
    told = []
    entries = [
        toy.sample("red", texts=("", "red", "  ")),
        toy.sample("green", texts=()),
        toy.sample("blue", texts=(" ", "\t")),
        "sample 'bad': broken",
    ]
    evaluation, dataset = Retrieval(split="test"), toy.dataset({"test": entries})
    embedder = toy.embedder(warn=told.append)
    assert evaluation.embed(dataset, embedder).captions == ("red",)
    assert dict(evaluation.run(dataset, embedder)) == {
        "image_to_text_recall@1": 1.0,
        "image_to_text_median_rank": 1.0,
        "text_to_image_recall@1": 1.0,
        "text_to_image_median_rank": 1.0,
        "skipped": 3.0,
    }
    assert told == 2 * [
        "split 'test': 3 left out: sample 'green': it has no caption; "
        "sample 'blue': it has no caption; sample 'bad': broken"
    ]


def test_an_empty_split_is_an_error(toy):
    with pytest.raises(ValueError, match=r"^split 'test' holds no usable sample$"):
        dict(Retrieval(split="test").run(toy.dataset({"test": []}), toy.embedder()))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"ks": ()}, "ks must be one or more numbers from 1 on, got ()"),
        ({"ks": (1, 0)}, "ks must be one or more numbers from 1 on, got (1, 0)"),
        ({"every_steps": -3}, "every_steps must be at least 1, got -3"),
    ],
)
def test_a_config_checks_itself(changes, message):
    with pytest.raises(ValueError) as error:
        Retrieval(split="test", **changes)
    assert str(error.value) == message
