import io

import numpy as np
import pytest
from PIL import Image

from clip_jax.data.sample import BadSampleError, Sample
from clip_jax.data.survey import chosen, quantiles, squares, survey
from clip_jax.tokenizers import ClipBpe, SentencePiece, sentencepiece


def png(height, width, color="red"):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), color).save(buffer, "PNG")
    return buffer.getvalue()


class Few:
    """A source with one sample of each kind."""

    samples = (
        Sample(key="a", image=png(20, 30), texts=("a dog", "two dogs and a cat")),
        Sample(key="b", image=np.zeros((7, 9, 3), np.uint8), texts=("x " * 100,)),
        Sample(key="no picture", image=b"not a picture", texts=("lost",)),
        BadSampleError("sample 'c': no image"),
        Sample(key="d", image=png(40, 10), texts=(), label=3),
    )

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        if isinstance(sample := self.samples[index], BadSampleError):
            raise sample
        return sample


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("words") / "words.model")
    texts = ["a dog", "two dogs and a cat", "b", "x y z"] * 5
    sentencepiece.train(texts, path, vocab_size=20)
    return SentencePiece(model=path, context_length=24)


def test_it_counts_what_can_be_used_and_names_what_cannot():
    facts, usable = survey(Few(), ClipBpe(), size=8)
    assert (facts.samples, facts.looked_at, usable) == (5, 5, [0, 1, 4])
    assert facts.sides.tolist() == [[20, 30], [7, 9], [40, 10]]
    assert facts.encoded.tolist() == [len(png(20, 30)), 0, len(png(40, 10))]
    assert facts.captions.tolist() == [2, 1, 0]
    assert facts.labels == {3: 1}
    assert facts.broken.keys() == {"no picture", "3"}
    assert "cannot decode" in facts.broken["no picture"] and "no image" in facts.broken["3"]
    assert set(facts.rates) == {"read", "decode", "crop", "tokenize"}


def test_tokens_are_counted_without_padding_and_cuts_are_told():
    facts, _ = survey(Few(), ClipBpe(), size=8)
    assert facts.tokens.tolist() == [4, 7, 77]  # Start, words, end.
    assert (facts.cut, facts.context) == (1, 77)


def test_where_the_padding_is_the_end_token_one_end_is_counted(siglip):
    facts, _ = survey(Few(), siglip, size=8)
    expected = [
        min(len(siglip._encoder.encode(text)) + 1, 24)
        for text in ("a dog", "two dogs and a cat", "x " * 100)
    ]
    assert facts.tokens.tolist() == expected and facts.cut == 1


def test_a_limit_spreads_over_the_whole():
    facts, usable = survey(Few(), ClipBpe(), size=8, limit=3)
    assert (facts.looked_at, usable) == (3, [0, 4]) and facts.broken.keys() == {"no picture"}


def test_progress_ends_with_all():
    seen = []
    survey(Few(), ClipBpe(), size=8, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(k, 5) for k in range(1, 6)]


def test_a_source_of_broken_samples_only_has_no_figures():
    class Broken:
        def __len__(self):
            return 2

        def __getitem__(self, index):
            raise BadSampleError("gone")

    facts, usable = survey(Broken(), ClipBpe())
    assert usable == [] and len(facts.broken) == 2 and facts.tokens.tolist() == []
    assert quantiles(facts.tokens) == quantiles(facts.sides[:, 0]) == []


def test_samples_of_a_sheet_are_spread_and_keep_their_proportions():
    assert chosen(list(range(100)), 3) == [0, 49, 99] and chosen([5], 3) == [5]
    images, captions = squares(Few(), [0, 4], side=12)
    assert images.shape == (2, 12, 12, 3) and captions == ["a dog / two dogs and a cat", "[3] "]
    red = (images[0] == (255, 0, 0)).all(axis=-1)
    assert red.any(axis=1).sum() == 8 and red.any(axis=0).all()  # 20 x 30 in 12 x 12.
    assert (images[0][0] == 128).all()
