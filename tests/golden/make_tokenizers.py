# ruff: noqa: RUF001 (look-alike letters are what is tested here)
"""The ids that the original tokenizers give 2,400 odd strings; writes tokenizers.json.gz beside it.

Needs torch, open_clip, OpenAI's clip and transformers: `python -m tests.golden.make_tokenizers`
from the root of the repository. The published vocabularies of SigLIP, SigLIP 2 and BERT are not
here: small ones of the same kinds stand for them, made into files as the originals' are.
"""

import base64
import collections
import gzip
import io
import itertools
import json
import pathlib
import random
import shutil
import tempfile
import unicodedata

OUT = pathlib.Path(__file__).with_name("tokenizers.json.gz")
COUNT = 2400
CHARSMAP = "@charsmap@"
"""Stands for SentencePiece's table of normalisation, which several files have."""

NUMBERS = ["a", "one", "two", "The", "my", "another", "some", "no"]
ADJECTIVES = ["red", "blue", "dark green", "yellow", "shiny", "purple", "old", "tiny", "Norwegian"]
THINGS = ["dog", "bicycles", "teapot", "mountain", "elephant", "jacket", "child's toy", "café"]
THINGS += ["snow-man", "naïve girl", "piñata", "woman", "猫", "собака", "T-shirt", "e-mail"]
PLACES = ["on the beach", "under a tree", "in the snow", "near two children", "at the airport"]
PLACES += ["(by night)", "in Zürich", "&amp; a cat", "which isn't his", "http://a.org/b?c=d_e#f"]
ENDS = ["", ".", "!", " :-)", "…", " ©2021", " 4K", " ❤️", ", 3.14 m", " #nofilter @home"]

NASTY = [
    "",
    " ",
    " \t\r\n ",
    "A_Red,  DOG's “Ball”! É",
    "I'D SAY WE'VE SEEN IT'S THEY'RE, I'M SURE; DON'T, HE'LL",
    "'s's 's '' 'd'dd 'lll ' s 'ſ and maſs",
    "a😀b 👩\u200d👩\u200d👧\u200d👦 🇩🇪 ☃\ufe0f 👍🏽",
    "Café cafe\u0301 naïve Ångström A\u030angstro\u0308m",
    "Tom &amp; Jerry &lt;3 &amp;lt;b&amp;gt; &amp;amp;amp; &nbsp; &#39; &#x1F600; &bogus; & &",
    "âœ” donâ€™t schÃ¶n Ã©tÃ© \u201cquoted\u201d \u2018single\u2019",
    "a\x00b\x01c\x02d\x03e\x0bf\x0cg\x1bh\x7fi\x80j\x9fk\x85l\xa0m\xadn",
    "&#0; &#2; &#3; &#11; &#28; &#127; &#x85; &#xD83D;",
    "\x1b[31mred\x1b[0m \ufeffmark \u200bzero\u200dwidth \u2028line \u3000wide \u2060 \u180e",
    "一只猫坐在垫子上。猫は可愛い！고양이 고양이",
    "ﾊﾝｶｸ ｆｕｌｌｗｉｄｔｈ １２３ ﬁne ﬄuff",
    "İstanbul ISPARTA ıİiI i\u0307 ΟΔΥΣΣΕΥΣ ΑΣ ẞ ß ǅ K Å",
    "x² ½ Ⅷ ⅷ ③ ٣٤ ४२ 一二 1234567890 1,000",
    "supercalifragilisticexpialidocious" * 20,
    "a" * 300,
    "!" * 200,
    "é" * 150,
    "dog " * 120,
    "dog_" * 90,
    "snake_case __dunder__ _ a_1_b",
    "<|endoftext|> <|STARTOFTEXT|><|EndOfText|> a<|endoftext|>b !<|endoftext|>",
    "<end_of_text> <START_OF_TEXT><End_Of_Text> a<end_of_text>b !<end_of_text> _<end_of_text>",
    "a </s> dog <unk> x</s>y <pad> z <s>",
    "<eos> <bos> <EOS> <mask> <table> <TABLE> <start_of_turn> <0x41>",
    "[CLS] [SEP] [PAD] [UNK] [MASK] [sep] x[SEP]y",
    "▁ ▁▁ a▁b ##dog dog##",
    "\ud83d\ude00 lone \ud83d and \ude00",
    "C:\\path user@mail.org $5 100% ~x^2 `code` {json: [1]} a|b",
    "क्षत्रिय ไทย עברית العربية تُشكيل тест ኢትዮጵያ ﷺ",
    "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!",
]
PIECES = [
    *("<|startoftext|>", "<|endoftext|>", "<start_of_text>", "<end_of_text>", "<|", "|>", "<eos>"),
    *("'S", "'ll", "'ſ", "'", "_", "!", "...", " ", "  ", "\n", "\t", "\xa0", "\u200b", "&amp;"),
    *("&amp;lt;", "&#x3c;", "&", ";", "a", "The", "dog", "ſ", "İ", "ß", "é", "e\u0301", "Ã©"),
    *("â€™", "²", "Ⅷ", "7", "٣", "猫", "😀", "\u0307", "\x02", "\x03", "\x1b[1m", "ﬁ", "ｗ", "Σ"),
    *("\u3000", "▁", "</s>", "[SEP]", "<unk>", "¡", "“", "”", "—", "ا", "ü", "ж", "ᄒ", "ี", "red"),
]


def assigned(character):
    """Whether it is a character of Unicode 14: libraries differ in what else is a letter."""
    return unicodedata.category(character) not in ("Cn", "Cs", "Co")


def texts(seed=0, count=COUNT):
    """Captions, mixtures of awkward pieces, single characters, and the strings of `NASTY`."""
    draw = random.Random(seed)
    made = list(NASTY)
    while len(made) < count:
        words = [draw.choice(part) for part in (NUMBERS, ADJECTIVES, THINGS, PLACES)]
        caption = " ".join(words) + draw.choice(ENDS)
        mixture = "".join(draw.choices(PIECES, k=draw.randrange(1, 9)))
        limits = [draw.choice((0x250, 0x3000, 0x10000, 0x20000)) for _ in range(6)]
        strange = "".join(filter(assigned, map(chr, map(draw.randrange, limits))))
        shouted = caption.upper() if draw.random() < 0.2 else caption
        made += [caption, mixture, shouted + mixture, draw.choice(["", "a ", "the"]) + strange]
    return made[:count]


def captions():
    """What the small vocabularies are trained on."""
    draw = random.Random(1)
    parts = list(itertools.product(NUMBERS, ADJECTIVES, THINGS, PLACES))
    return [" ".join(words) + draw.choice(ENDS) for words in draw.sample(parts, 4000)] + NASTY[:40]


def train_sentencepiece(path, **options):
    """A SentencePiece vocabulary; ids 0 padding, 1 end."""
    import sentencepiece

    clean = [text.encode("utf-8", "replace").decode().replace("\x00", "") for text in captions()]
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(clean),
            model_writer=file,
            pad_id=0,
            eos_id=1,
            minloglevel=2,
            hard_vocab_limit=False,
            **options,
        )


def train_unigram(folder, *, byte_fallback):
    """As c4_en (no byte pieces) and mc4 (byte pieces), of SigLIP: folder/spiece.model."""
    folder.mkdir()
    train_sentencepiece(
        folder / "spiece.model",
        vocab_size=600 + 256 * byte_fallback,
        byte_fallback=byte_fallback,
        unk_id=2,
        bos_id=-1,
        character_coverage=0.98,
    )


def train_gemma(folder):
    """As Gemma's, of SigLIP 2: folder/tokenizer.model."""
    folder.mkdir()
    train_sentencepiece(
        folder / "tokenizer.model",
        model_type="bpe",
        vocab_size=900,
        byte_fallback=True,
        bos_id=2,
        unk_id=3,
        eos_piece="<eos>",
        bos_piece="<bos>",
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=["<mask>", "\n", "\n\n", "▁▁", "▁▁▁", "<table>"],
        character_coverage=0.99,
    )
    settings = {
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": False,
        "add_eos_token": True,
        "padding_side": "right",
        "model_max_length": 64,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def train_bert(folder):
    """As bert-base-uncased, of CLIPA: vocab.txt with its ids of special tokens."""
    folder.mkdir()
    text = " ".join(captions()[:4000])
    plain = unicodedata.normalize("NFD", text.lower())
    words = collections.Counter("".join(c if c.isalnum() else " " for c in plain).split())
    letters = sorted({c for c in plain if not c.isspace() and unicodedata.category(c) != "Mn"})
    tokens = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens += [*letters, *(f"##{letter}" for letter in letters), "##s", "##ing", "##le", "##om"]
    # Half of the words, so that others come in pieces.
    tokens += sorted(words)[::2]
    lines = "\n".join(dict.fromkeys(tokens))
    (folder / "vocab.txt").write_text(lines + "\n", encoding="utf-8")


def make_folders(root):
    """Folders of files as the hub has them, saved by transformers; root/siglip, ..."""
    from tests.parity import peers

    transformers = peers.transformers()
    for name, byte_fallback in (("siglip", False), ("siglip_bytes", True)):
        train_unigram(root / name, byte_fallback=byte_fallback)
        transformers.SiglipTokenizer.from_pretrained(root / name).save_pretrained(root / name)
    # As open_clip made the files of timm/ViT-B-16-SigLIP and -SigLIP2 (its SigLipTokenizer).
    (root / "t5").mkdir()
    shutil.copy(root / "siglip" / "spiece.model", root / "t5")
    t5 = transformers.T5Tokenizer.from_pretrained(root / "t5", extra_ids=0, legacy=False)
    t5.pad_token_id = t5.eos_token_id = 1
    (root / "t5" / "spiece.model").unlink()
    t5.save_pretrained(root / "t5")
    train_gemma(root / "gemma_source")
    transformers.GemmaTokenizer.from_pretrained(root / "gemma_source").save_pretrained(
        root / "gemma"
    )
    train_bert(root / "bert_source")
    transformers.BertTokenizer.from_pretrained(root / "bert_source").save_pretrained(root / "bert")


def originals(root):
    """Each original by name: a function from a list of texts to rows of ids."""
    from tests.parity import peers

    open_clip, transformers = peers.open_clip(), peers.transformers()

    def of_hub(folder, kind, length, **options):
        tokenizer = getattr(transformers, kind).from_pretrained(root / folder, **options)
        fixed = {"padding": "max_length", "truncation": True, "max_length": length}
        return lambda given: tokenizer(given, **fixed).input_ids

    def of_open_clip(folder, length, **options):
        tokenizer = open_clip.tokenizer.HFTokenizer(
            str(root / folder), context_length=length, **options
        )
        return lambda given: tokenizer(given).tolist()

    clip, simple = peers.openai(), open_clip.tokenizer.SimpleTokenizer()
    return {
        "openai": lambda given: clip.tokenize(given, truncate=True).tolist(),
        "open_clip": lambda given: simple(given).tolist(),
        "siglip": of_hub("siglip", "SiglipTokenizer", 64, split_special_tokens=True),
        "siglip_bytes": of_hub("siglip_bytes", "SiglipTokenizer", 64, split_special_tokens=True),
        "open_clip_siglip": of_open_clip("t5", 16, clean="canonicalize"),
        "siglip2": of_hub("gemma", "Siglip2Tokenizer", 64),
        "siglip2_unlowered": of_hub("gemma", "GemmaTokenizer", 64),
        "open_clip_siglip2": of_open_clip("gemma", 64, clean="canonicalize"),
        "clipa": of_open_clip("bert", 32, strip_sep_token=True),
    }


def rows_of(tokenize, given):
    """Rows of ids without what repeats at the end; None where the original takes no such text."""
    made = []
    for text in given:
        try:
            row = list(tokenize([text])[0])
        except (UnicodeError, TypeError, RuntimeError):
            if text.isprintable():  # Half a surrogate pair is not.
                raise
            made.append(None)
            continue
        while len(row) > 1 and row[-1] == row[-2]:
            row.pop()
        made.append(row)
    return made


def files_of(root):
    """The vocabularies as text, with their tables of normalisation apart."""
    import sentencepiece.sentencepiece_model_pb2 as schema

    made, charsmaps = {}, set()
    for name in ("siglip", "siglip_bytes", "gemma_source"):
        (path,) = (root / name).glob("*.model")
        model = schema.ModelProto.FromString(path.read_bytes())
        charsmaps.add(model.normalizer_spec.precompiled_charsmap)
        model.normalizer_spec.ClearField("precompiled_charsmap")
        packed = base64.b64encode(model.SerializeToString()).decode()
        made[f"{name.removesuffix('_source')}.model"] = packed
    (charsmap,) = charsmaps - {b""}
    charsmap = base64.b64encode(charsmap).decode()
    for name in ("t5", "gemma", "bert"):
        text = (root / name / "tokenizer.json").read_text(encoding="utf-8")
        made[f"{name}.json"] = text.replace(charsmap, CHARSMAP)
    made["vocab.txt"] = (root / "bert_source" / "vocab.txt").read_text(encoding="utf-8")
    return made | {CHARSMAP: charsmap}


def main():
    """Write the file."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        make_folders(root)
        given = texts()
        ids = {name: rows_of(original, given) for name, original in originals(root).items()}
        data = {"texts": given, "ids": ids, "files": files_of(root)}
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as file:
        file.write(json.dumps(data, separators=(",", ":")).encode())
    OUT.write_bytes(packed.getvalue())
    print(f"{len(given)} texts, {len(ids)} originals, {len(packed.getvalue()):,} bytes")


if __name__ == "__main__":
    main()
