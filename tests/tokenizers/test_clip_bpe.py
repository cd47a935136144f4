# ruff: noqa: RUF001 (look-alike letters are what is tested here)
"""CLIP's encoding against published ids and against a slow twin written from its description."""

import functools
import gzip
import html
import itertools
import os
import pathlib
import random
import re
import string
import subprocess
import sys
import unicodedata

import ftfy
import numpy as np
import pytest

from clip_jax.tokenizers import ClipBpe, clean, clip_bpe

ROOT = pathlib.Path(__file__).parents[2]
ASSET = ROOT / "clip_jax" / "tokenizers" / "assets" / "bpe_simple_vocab_16e6.txt.gz"
SPECIAL = {"<|startoftext|>": 49406, "<|endoftext|>": 49407}


# The slow twin: one character at a time, one merge at a time, no Rust and no regular expression.


@functools.cache
def twin_tables():
    """Letter of each byte, id of each token, rank of each merge."""
    hidden = [b for b in range(256) if unicodedata.category(chr(b)) in ("Cc", "Cf", "Zs")]
    letter = {b: chr(256 + hidden.index(b)) if b in hidden else chr(b) for b in range(256)}
    order = [letter[b] for b in range(256) if b not in hidden] + [letter[b] for b in hidden]
    lines = gzip.decompress(ASSET.read_bytes()).decode().splitlines()[1 : 49152 - 256 - 2 + 1]
    tokens = order + [c + "</w>" for c in order] + [line.replace(" ", "") for line in lines]
    ids = {token: i for i, token in enumerate(tokens)}
    return letter, ids, {tuple(line.split()): rank for rank, line in enumerate(lines)}


def twin_words(text):
    """Cut a cleaned text where CLIP's pattern does."""

    def kind(character):
        return "space" if character.isspace() else unicodedata.category(character)[0]

    position = 0
    while position < len(text):
        # CLIP's pattern ignores case, and the long s is an s in another case.
        rest = text[position:].replace("ſ", "s")
        fixed = [*SPECIAL, "'s", "'t", "'re", "'ve", "'m", "'ll", "'d"]
        length = next((len(f) for f in fixed if rest.startswith(f)), 1)
        first = kind(text[position])
        if length == 1 and first not in ("space", "N"):
            same = {"L": lambda k: k == "L"}.get(first, lambda k: k not in ("space", "L", "N"))
            while position + length < len(text) and same(kind(text[position + length])):
                length += 1
        if first != "space":
            yield text[position : position + length]
        position += length


def twin_word_ids(word):
    if word in SPECIAL:
        return [SPECIAL[word]]
    letter, ids, ranks = twin_tables()
    parts = [letter[byte] for byte in word.encode()]
    parts[-1] += "</w>"
    while True:
        pairs = [
            (ranks.get(pair, len(ranks)), i) for i, pair in enumerate(itertools.pairwise(parts))
        ]
        rank, i = min(pairs, default=(len(ranks), 0))
        if rank == len(ranks):
            return [ids[part] for part in parts]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def twin_clean(text):
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text.strip()).lower()


def twin(text):
    return [i for word in twin_words(twin_clean(text)) for i in twin_word_ids(word)]


def ids_of(text, length=2000):
    row = ClipBpe(context_length=length)([text])[0]
    end = int(np.flatnonzero(row)[-1])
    assert row[0] == 49406 and row[end] == 49407
    return row[1:end].tolist()


NASTY = [
    "",
    " \t\r\n ",
    "Hello World!",
    "I'D SAY WE'VE SEEN IT'S THEY'RE, I'M SURE; DON'T, HE'LL",
    "'s's 's '' 'd'dd 'lll ' s",
    "'ſ and 'S and maſs",
    "a😀b 👩\u200d👩\u200d👧\u200d👦 🇩🇪 ☃\ufe0f 👍🏽",
    "Café cafe\u0301 naïve Ångström A\u030angstro\u0308m",
    "Tom &amp; Jerry &lt;3 &amp;lt;b&amp;gt; &amp;amp;amp; &nbsp; &#39; &#x1F600; &bogus; & &",
    "âœ” donâ€™t schÃ¶n Ã©tÃ© \u201cquoted\u201d \u2018single\u2019",
    "a\x00b\x01c\x02d\x03e\x0bf\x0cg\x1bh\x7fi\x80j\x9fk\x85l\xa0m\xadn",
    "&#0; &#2; &#3; &#11; &#28; &#127; &#x85;",
    "\x1b[31mred\x1b[0m \ufeffmark \u200bzero\u200dwidth \u2028line \u3000wide",
    "一只猫坐在垫子上。猫は可愛い！고양이",
    "ﾊﾝｶｸ ｆｕｌｌｗｉｄｔｈ １２３ ﬁne ﬄuff",
    "İstanbul ISPARTA ıİiI i\u0307",
    "ΟΔΥΣΣΕΥΣ ẞ ß ǅ K Å",
    "x² ½ Ⅷ ⅷ ③ ٣٤ ४२ 一二 1234567890 3.14 1,000",
    "supercalifragilisticexpialidocious" * 20,
    "a" * 1500,
    "!" * 700,
    "é" * 300,
    "snake_case __dunder__ _ a_1_b",
    "<|endoftext|>",
    "<|STARTOFTEXT|><|EndOfText|>",
    "a<|endoftext|>b 1<|endoftext|>2 _<|endoftext|>_ .<|endoftext|>. <|endoftext|>",
    "<|endoftext|><|endoftext|>!<|startoftext|> <|startoftext|>'s",
    "|><|endoftext|> '<|endoftext|> 's<|endoftext|> <|ſtartoftext|><|endoftext|>",
    "&lt;|endoftext|&gt; <|endoftext <| |> <|endof text|> <\u200b|endoftext|>",
    "\ud83d\ude00 lone \ud83d and \ude00",
    "http://example.com/a?b=c&amp;d=e#f user@mail.org C:\\path",
    "क्षत्रिय ไทย עברית العربية тест ኢትዮጵያ",
]
PIECES = [
    *SPECIAL, "<|", "|>", "'S", "'ll", "'ſ", "'", "_", "!", "...", " ", "\n", "\t", "\xa0",
    "\u200b", "&amp;", "&amp;lt;", "&#x3c;", "&", ";", "a", "The", "dog", "ſ", "İ", "ß", "é",
    "e\u0301", "Ã©", "â€™", "²", "Ⅷ", "7", "٣", "猫", "😀", "\u0307", "\x02", "\x03",
    "\x1b[1m", "ﬁ", "ｗ", "\ud83d",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello World!", [3306, 1002, 256]),
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("  A\n\tPhoto  ", [320, 1125]),
        ("", []),
    ],
)
def test_published_ids(text, ids):
    row = ClipBpe()([text])[0]
    assert row.tolist() == [49406, *ids, 49407] + [0] * (75 - len(ids))


@pytest.mark.parametrize("text", NASTY)
def test_ids_are_those_of_the_slow_twin(text):
    assert ids_of(text) == twin(text)


@pytest.mark.parametrize("seed", range(8))
def test_ids_of_random_mixtures_are_those_of_the_slow_twin(seed):
    draw = random.Random(seed)
    texts = ["".join(draw.choices(PIECES, k=draw.randrange(1, 12))) for _ in range(60)]
    rows = ClipBpe(context_length=200)(texts)
    for text, row in zip(texts, rows, strict=True):
        expected = [49406, *twin(text), 49407]
        assert row.tolist() == expected + [0] * (200 - len(expected)), ascii(text)


def test_an_end_token_written_in_a_text_counts_only_where_a_word_begins():
    assert ids_of("x<|endoftext|>").count(49407) == 1
    assert ids_of("!<|endoftext|>").count(49407) == 0


def test_skipping_the_repair_of_plain_text_changes_nothing():
    ascii_only = [chr(code) for code in range(128)]
    texts = [a + b for a in ascii_only for b in ascii_only] + [f"X{a}{a}y" for a in ascii_only]
    draw = random.Random(0)
    texts += ["".join(draw.choices(string.printable, k=20)) for _ in range(1000)]
    texts += ["<b>&lt;</b>", "a\r\nb", "\x1b[0m", "\\u00e9 \\x41 %20 =E9", "``quoted''", "&ltamp;"]
    assert [clean.clean_text(text, "open_clip_lower") for text in texts] == [
        twin_clean(text) for text in texts
    ]


def test_words_that_are_kept_change_no_ids_and_stay_few(monkeypatch):
    expected = ClipBpe(context_length=40)(NASTY)
    monkeypatch.setattr(clip_bpe, "_KEPT_WORDS", 7)
    monkeypatch.setattr(clip_bpe, "_KEPT_LENGTH", 5)
    tokenizer = ClipBpe(context_length=40)
    for texts in (NASTY, NASTY[::-1], *([text] for text in NASTY)):
        ids = dict(zip(texts, tokenizer(texts), strict=True))
        for text, row in zip(NASTY, expected, strict=True):
            if text in ids:
                np.testing.assert_array_equal(ids[text], row)
        assert len(tokenizer._kept) <= 7 and max(map(len, tokenizer._kept), default=0) <= 5


def test_the_special_tokens_are_spelled_as_asked():
    texts = ["<|endoftext|>", "<END_OF_TEXT>", "<start_of_text>s", ".<end_of_text>"]
    counts = {}
    for spelling in ("openai", "open_clip"):
        ids = ClipBpe(spelling=spelling)(texts)
        counts[spelling] = [int(np.isin(row[1:], (49406, 49407)).sum()) - 1 for row in ids]
    assert counts == {"openai": [1, 0, 0, 0], "open_clip": [0, 1, 1, 0]}


def test_capitals_may_be_kept_and_punctuation_removed():
    kept = ClipBpe(clean="open_clip_whitespace")(["A  DOG's"])[0]
    # Capitals have bytes of their own: A, then the possessive ending in small letters.
    assert kept[1] == clip_bpe.vocabulary(clip_bpe.read_merges(), ())["A</w>"]
    bare = ClipBpe(clean="open_clip_canonicalize")(["A_dog's!"])
    np.testing.assert_array_equal(bare, ClipBpe()(["a dogs"]))


def test_the_end_token_is_the_largest_of_a_row():
    texts = ["a red dog", "", "dog " * 200]
    ids = ClipBpe(context_length=20)(texts)
    assert ids.argmax(axis=1).tolist() == [4, 1, 19]


def test_every_byte_has_its_token():
    assert clip_bpe._byte_letters()[:2] == ["!", '"']
    assert len(set(clip_bpe._byte_letters())) == 256
    assert ClipBpe()._encoder.get_vocab_size() == ClipBpe().vocab_size == 49408


def test_a_damaged_table_is_refused():
    packed = bytearray(ASSET.read_bytes())
    packed[1000] ^= 1
    with pytest.raises(ValueError, match=r"bpe_simple_vocab_16e6.txt.gz is damaged \(sha256 "):
        clip_bpe._parse_merges(bytes(packed))


def test_the_table_beside_the_code_says_where_it_comes_from():
    notice = (ASSET.parent / "README.md").read_text()
    for fact in (ASSET.name, clip_bpe._TABLE_SHA256, "github.com/openai/CLIP", "MIT", "OpenAI"):
        assert fact in notice


FORK = """
import os
from clip_jax.tokenizers import ClipBpe
tokenizer = ClipBpe()
tokenizer._encoder  # Loaded, but not used.
threads = len(os.listdir("/proc/self/task"))
texts = [f"a photo of {i} dogs" for i in range(500)]
before = tokenizer(texts)
print(len(os.listdir("/proc/self/task")) - threads)
child = os.fork()
if child == 0:
    os._exit(0 if (tokenizer(texts) == before).all() else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/task").is_dir(), reason="counts Linux threads")
def test_encoding_starts_no_threads_and_a_forked_process_goes_on_without_a_complaint():
    env = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK],  # Newer Pythons warn of threads not ours.
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout.split(), done.stderr) == (["0", "0"], "")


def test_the_users_choice_of_parallelism_is_kept(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    assert ClipBpe()(["a dog"])[0, 1] == 320
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
