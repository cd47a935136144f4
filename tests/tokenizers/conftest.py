"""Small vocabularies for the whole folder, made once."""

import itertools
import json
import string

import pytest

from clip_jax.tokenizers import sentencepiece

CAPTIONS = [
    f"{number} {colour} {thing} {place}"
    for number, colour, thing, place in itertools.product(
        ["a", "one", "another", "my"],
        ["red", "blue", "dark green", "yellow", "shiny purple"],
        ["dog", "bicycle", "teapot", "mountain", "elephant", "jacket"],
        ["on the beach", "under a tree", "in the snow", "near two children", "at the airport"],
    )
]


@pytest.fixture(scope="session")
def captions():
    return CAPTIONS


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Path of a `.model` file with 50 pieces."""
    path = tmp_path_factory.mktemp("vocabulary") / "captions.model"
    sentencepiece.train(CAPTIONS, path, 50)
    return str(path)


@pytest.fixture(scope="session")
def bert_words():
    """The tokens of a small WordPiece vocabulary, in order."""
    words = sorted({word for caption in CAPTIONS for word in caption.split()})
    letters = [*string.ascii_letters, *string.digits]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return [*special, *letters, *(f"##{c}" for c in letters), *(w for w in words if len(w) > 1)]


@pytest.fixture(scope="session")
def tokenizer_json(tmp_path_factory, bert_words):
    """Path of a `tokenizer.json` that ends each text with [SEP] (id 3); it lower-cases nothing."""
    import tokenizers

    ids = {token: i for i, token in enumerate(bert_words)}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A [SEP]", special_tokens=[("[SEP]", 3)]
    )
    made.enable_truncation(5)  # As some published files have them; ours overrule them.
    made.enable_padding(pad_id=4, length=7, direction="left")
    path = tmp_path_factory.mktemp("hub") / "tokenizer.json"
    path.write_text(made.to_str(), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    (path.parent / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(path)
