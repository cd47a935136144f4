"""Ways of cleaning, each against its original written another way."""

import html
import random
import re
import string
import typing

import ftfy
import pytest

from clip_jax.tokenizers import clean

TEXTS = ["A_Red,  DOG's “Ball”! É", " &amp;lt;B&gt;\tx ", "ΟΔΥΣΣΕΥΣ İ", "a▁▁B_", "Ã©tÃ©"]
EXPECTED = {
    "none": ["A_Red,  DOG's “Ball”! É", " &amp;lt;B&gt;\tx ", "ΟΔΥΣΣΕΥΣ İ", "a▁▁B_", "Ã©tÃ©"],
    "lower": ["a_red,  dog's “ball”! é", " &amp;lt;b&gt;\tx ", "οδυσσευσ i̇", "a▁▁b_", "ã©tã©"],
    "lower_ascii": [
        "a_red,  dog's “ball”! É",
        " &amp;lt;b&gt;\tx ",
        "ΟΔΥΣΣΕΥΣ İ",
        "a▁▁b_",
        "Ã©tÃ©",
    ],
    "canonicalize": ["a red dogs “ball” é", "ampltbgt x", "οδυσσευς i̇", "a▁▁b", "ã©tã©"],
    "siglip": ["ared dogs “ball” é", "ampltbgt x", "οδυσσευς i̇", "a b", "ã©tã©"],
    "open_clip_whitespace": ['A_Red, DOG\'s "Ball"! É', "<B> x", "ΟΔΥΣΣΕΥΣ İ", "a▁▁B_", "été"],
    "open_clip_lower": ['a_red, dog\'s "ball"! é', "<b> x", "οδυσσευς i̇", "a▁▁b_", "été"],
    "open_clip_canonicalize": ["a red dogs ball é", "b x", "οδυσσευς i̇", "a▁▁b", "été"],
}


def test_every_way_has_its_expectations():
    assert list(EXPECTED) == list(typing.get_args(clean.Clean))


@pytest.mark.parametrize("how", EXPECTED)
def test_cleaning(how):
    assert [clean.clean_text(text, how) for text in TEXTS] == EXPECTED[how]


def canonical(text):
    """big_vision's order of steps, in regular expressions."""
    kept = re.sub(f"[{re.escape(string.punctuation)}]", "", text.replace("_", " "))
    return re.sub(r"\s+", " ", kept.lower()).strip()


def repaired(text):
    return html.unescape(html.unescape(ftfy.fix_text(text)))


SLOW = {
    "canonicalize": canonical,
    # Lower case first: whether a sigma ends a word is seen with the punctuation.
    "siglip": lambda text: canonical(text.replace("▁", " ").lower().replace("_", "")),
    "open_clip_whitespace": lambda text: re.sub(r"\s+", " ", repaired(text)).strip(),
    "open_clip_lower": lambda text: re.sub(r"\s+", " ", repaired(text)).strip().lower(),
    "open_clip_canonicalize": lambda text: canonical(repaired(text)),
}
PIECES = [*string.printable, "&amp;", "&lt;", "É", "▁", "\u3000", "\x1c", "\x85", "â€™", "“", "Σ "]


@pytest.mark.parametrize("how", SLOW)
def test_cleaning_is_that_of_a_slow_twin(how):
    draw = random.Random(how)
    for _ in range(500):
        text = "".join(draw.choices(PIECES, k=draw.randrange(12)))
        assert clean.clean_text(text, how) == SLOW[how](text), ascii(text)


@pytest.mark.parametrize("how", EXPECTED)
def test_half_surrogate_pairs_are_replaced_and_whole_ones_joined(how):
    assert clean.clean_text("a\ud83d b\ud83d\ude00", how) == "a\ufffd b😀"


@pytest.mark.parametrize("how", EXPECTED)
def test_a_clean_text_stays_as_it_is(how):
    once = [clean.clean_text(text, how) for text in TEXTS]
    assert [clean.clean_text(text, how) for text in once] == once
