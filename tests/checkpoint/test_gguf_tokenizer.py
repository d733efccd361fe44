"""Tokenizers and settings out of GGUF files give the ids of the tokenizer that the file was made of."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from gguf_files import random_model, write_gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

from convert.hf import convert
from tokenswift_jax.checkpoint import load_tokenizer
from tokenswift_jax.checkpoint.gguf.splits import SPLITS
from tokenswift_jax.errors import TextWarning, UserError
from tokenswift_jax.sampling import resolve_sampling

NORMAL, UNKNOWN, CONTROL, OWN, UNUSED, BYTE = range(1, 7)
LICENSE = Path(__file__).parents[2] / "LICENSE"  # a text that does not change
TEXTS = [
    "Hello, world! It's 3.14159 or 20260101.",
    "  two spaces,\ttab\n\n  and lines\r\n\r\nI'LL we'Ve don't",
    "naïve café e\u0301 — 東京タワー 🙂🙂 ÄÖÜ ß ǅ ١٢٣ ½",
    "def f(x):\n    return {'HelloWorld': x**2}  # camelCase//path",
    " leading",
    "trailing  ",
    "a",
    "\n",
]
VOCABULARY = 700
ROWS = 720  # of the embedding: llama.cpp fills the vocabulary up with padding entries
SPECIALS = ["<|endoftext|>", "<|begin|>", "<|turn|>", "<|pad|>"]


@pytest.fixture(scope="module")
def prose():
    return LICENSE.read_text(encoding="utf-8") + "".join(TEXTS)


def trained(prose, pre_tokenizer):
    """A byte-level tokenizer in the form of a tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([prose], trainer)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return tokenizer


def as_llama_cpp_stores_it(tokenizer, pre, roles, **flags):
    """The fields that convert_hf_to_gguf.py writes of a byte-level tokenizer."""

    def more(writer):
        contents = json.loads(tokenizer.to_str())
        vocabulary = {index: token for token, index in tokenizer.get_vocab(with_added_tokens=True).items()}
        added = {token["id"]: OWN - token["special"] for token in contents["added_tokens"]}
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list([vocabulary.get(index, f"[PAD{index}]") for index in range(ROWS)])
        writer.add_token_types([added.get(i, NORMAL if i in vocabulary else UNUSED) for i in range(ROWS)])
        writer.add_token_merges([" ".join(pair) for pair in contents["model"]["merges"]])
        for role, index in roles.items():
            getattr(writer, f"add_{role}_token_id")(index)
        for name, value in flags.items():
            getattr(writer, name)(value)

    return more


def read(tmp_path, more, architecture="llama", **fields):
    config, tensors = random_model(architecture, num_hidden_layers=1, vocab_size=ROWS, **fields)
    write_gguf(tmp_path / "model.gguf", config, tensors, "Q8_0", more)
    convert([str(tmp_path / "model.gguf"), str(tmp_path / "model")])
    return load_tokenizer(tmp_path / "model")


def sequence(*steps, regex=False):
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)])


# Words of a text by each way to cut, as the models' own tokenizers cut; spaces and line ends in ByteLevel's spelling.
CUTS = {
    "gpt-2": ("It's 12345 ABCdef\n\n x", ["It", "'s", "Ġ12345", "ĠABCdef", "ĊĊ", "Ġx"]),
    "smollm": ("It's 12345 ABCdef\n\n x", ["It", "'s", "Ġ", "1", "2", "3", "4", "5", "ĠABCdef", "ĊĊ", "Ġx"]),
    "llama-bpe": ("IT'S 12345 ABCdef!\n\n x", ["IT", "'S", "Ġ", "123", "45", "ĠABCdef", "!ĊĊ", "Ġx"]),
    "qwen2": ("IT'S 123 ABCdef!\n\n x", ["IT", "'S", "Ġ", "1", "2", "3", "ĠABCdef", "!ĊĊ", "Ġx"]),
    "tekken": ("It's 123 ABCdef/\n\n x", ["It", "'s", "Ġ", "1", "2", "3", "ĠABCdef", "/ĊĊ", "Ġx"]),
}


@pytest.mark.parametrize("name", CUTS)
def test_words_are_cut_as_the_models_do(name):
    text, words = CUTS[name]
    contents = json.loads(Tokenizer(models.BPE()).to_str()) | {"pre_tokenizer": SPLITS[name].pre_tokenizer()}
    cut = Tokenizer.from_str(json.dumps(contents)).pre_tokenizer.pre_tokenize_str(text)
    assert [word for word, _ in cut] == words


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_qwen(tmp_path, prose, architecture):
    pattern = json.loads(Qwen2Tokenizer()._tokenizer.to_str())["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    ours = trained(prose, sequence(pre_tokenizers.Split(Regex(pattern), behavior="isolated")))
    contents = json.loads(ours.to_str())["model"]
    original = Qwen2Tokenizer(vocab=contents["vocab"], merges=[tuple(pair) for pair in contents["merges"]])
    original.add_special_tokens({"additional_special_tokens": SPECIALS})
    original.add_tokens([AddedToken("<tool>", normalized=False)])
    roles = {"eos": 2, "pad": 0}
    tokenizer = read(tmp_path, as_llama_cpp_stores_it(ours, "qwen2", roles, add_add_bos_token=False), architecture)
    assert len(tokenizer) == VOCABULARY
    for text in [*TEXTS, "".join(TEXTS), "<|turn|>user\nhi<tool> x<|pad|>"]:
        ids = tokenizer(text).input_ids
        assert ids == original(text).input_ids
        assert tokenizer.decode(ids) == original.decode(ids)
    assert tokenizer.eos_token == "<|turn|>"
    assert tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.decode(tokenizer("<|turn|>x<tool>").input_ids, skip_special_tokens=True) == "x<tool>"


def test_llama3(tmp_path, prose):
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    original = trained(prose, sequence(pre_tokenizers.Split(Regex(pattern), behavior="isolated")))
    contents = json.loads(original.to_str())
    contents["model"]["ignore_merges"] = True
    # an entry that no merges reach, as Llama 3 has some
    rare = next(i for i, (left, right) in enumerate(contents["model"]["merges"]) if len(left + right) > 5)
    word = "".join(contents["model"]["merges"].pop(rare)).lstrip("Ġ")
    original = Tokenizer.from_str(json.dumps(contents))
    roles = {"bos": 1, "eos": 0, "eot": 2}
    tokenizer = read(tmp_path, as_llama_cpp_stores_it(original, "llama-bpe", roles))
    for text in [*TEXTS, "".join(TEXTS), word, f"x {word}"]:
        assert tokenizer(text).input_ids == [
            1,
            *original.encode(text).ids,
        ]  # BOS, as llama.cpp adds it unless told not to
    generation = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [0, 2]}


@pytest.mark.parametrize(("pre", "digits"), [("smollm", True), ("gpt-2", False), ("default", False)])
def test_gpt2_like(tmp_path, prose, pre, digits):
    steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    original = trained(prose, sequence(*steps, regex=True))
    flags = {"add_add_bos_token": True, "add_add_eos_token": True, "add_add_space_prefix": False}
    tokenizer = read(tmp_path, as_llama_cpp_stores_it(original, pre, {"bos": 1, "eos": 2, "unk": 0}, **flags))
    for text in [*TEXTS, "".join(TEXTS)]:
        ids = original.encode(text).ids
        assert tokenizer(text).input_ids == [1, *ids, 2]
        assert tokenizer(text, add_special_tokens=False).input_ids == ids
        assert tokenizer.decode(ids) == text


def sentencepiece_vocabulary(prose):
    """Entries, scores and types as SentencePiece's BPE trainer orders them: control, bytes, merges, characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator([prose], trainers.BpeTrainer(vocab_size=ROWS - 270, show_progress=False))
    contents = json.loads(tokenizer.to_str())["model"]
    merged = list(dict.fromkeys("".join(pair) for pair in contents["merges"]))
    letters = [entry for entry in contents["vocab"] if len(entry) == 1]
    control = ["<unk>", "<s>", "</s>"]
    raw = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = [*merged, *letters][: ROWS - 259 - 1]
    entries = [*control, *raw, *pieces, "<own>"]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(pieces))] + [0.0]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(pieces) + [OWN]
    return entries, scores, types


def merged_by_score(text, entries, scores, types):
    """SentencePiece's rule: of all neighbours whose joint entry exists, join the best scored, leftmost of equals."""
    known = {entry: index for index, entry in enumerate(entries) if types[index] == NORMAL}
    symbols = list("\u2581" + text.replace(" ", "\u2581"))
    while True:
        joint = [
            (-scores[known[left + right]], place)
            for place, (left, right) in enumerate(pairwise(symbols))
            if left + right in known
        ]
        if not joint:
            break
        place = min(joint)[1]
        symbols[place : place + 2] = ["".join(symbols[place : place + 2])]
    ids = []
    for symbol in symbols:
        ids += [known[symbol]] if symbol in known else [3 + byte for byte in symbol.encode()]
    return ids


def sentencepiece_writer(vocabulary, **flags):
    def more(writer):
        entries, scores, types = vocabulary
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(entries)
        writer.add_token_scores(scores)
        writer.add_token_types(types)
        writer.add_unk_token_id(0)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        for name, value in flags.items():
            getattr(writer, name)(value)

    return more


def test_sentencepiece(tmp_path, prose):
    vocabulary = sentencepiece_vocabulary(prose)
    tokenizer = read(tmp_path, sentencepiece_writer(vocabulary))
    for text in [*TEXTS, "".join(TEXTS), prose[3000:4000], "  two"]:
        ids = merged_by_score(text, *vocabulary)
        assert tokenizer(text).input_ids == [1, *ids]
        assert tokenizer.decode(ids) == text
    ids = tokenizer("a<own>b</s>", add_special_tokens=False).input_ids
    assert ids == [
        *merged_by_score("a", *vocabulary),
        vocabulary[0].index("<own>"),
        *merged_by_score("b", *vocabulary),
        2,
    ]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")


def test_sentencepiece_without_the_space_in_front(tmp_path, prose):
    vocabulary = sentencepiece_vocabulary(prose)
    more = sentencepiece_writer(vocabulary, add_add_space_prefix=False, add_add_bos_token=False)
    tokenizer = read(tmp_path, more)
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        front = merged_by_score(text.removeprefix(" "), *vocabulary) if text[0] == " " else None
        assert front is None or ids == front
        assert tokenizer.decode(ids) == text


def test_chat_template_and_recommended_sampling(tmp_path, prose):
    def more(writer):
        as_llama_cpp_stores_it(original, "gpt-2", {"bos": 1, "eos": 2, "eom": 0})(writer)
        writer.add_chat_template("{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
        writer.add_float32("general.sampling.temp", 0.6)
        writer.add_int32("general.sampling.top_k", 20)
        writer.add_float32("general.sampling.top_p", 0.95)
        writer.add_float32("general.sampling.min_p", 0.0)

    original = trained(prose, sequence(regex=True))
    tokenizer = read(tmp_path, more)
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "<|begin|>user: hi\nassistant: ho\n"
    generation = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [0, 2]
    sampling = resolve_sampling({}, generation)
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.6, 20, 0.95, None)


def test_a_file_without_a_vocabulary_takes_ids(tmp_path):
    assert read(tmp_path, lambda writer: writer.add_tokenizer_model("none")) is None
    assert not list((tmp_path / "model").glob("*token*"))
    assert not (tmp_path / "model" / "generation_config.json").exists()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda writer: writer.add_tokenizer_pre("new-bpe"), "tokenizer.ggml.pre 'new-bpe'; known: default, gpt-2"),
        (lambda writer: writer.add_tokenizer_model("t5"), "a tokenizer of the kind 't5'; known: gpt2"),
        (lambda writer: writer.add_token_merges(["zq qz"]), "the merge 'zq qz' is not two entries"),
        (lambda writer: writer.add_array("tokenizer.ggml.tokens", [7]), "tokens is not a list of str"),
        (lambda writer: writer.add_token_list(["a"] * ROWS), "the entry 'a' twice"),
        (lambda writer: writer.add_token_list([str(i) for i in range(ROWS + 1)]), f"{ROWS + 1} entries, its embedding"),
        (lambda writer: writer.add_token_types([1, 2]), "token_type does not fit"),
        (lambda writer: writer.add_token_types([9] * ROWS), "token_type does not fit"),
        (lambda writer: writer.add_eos_token_id(ROWS), f"eos_token_id {ROWS} is not in its vocabulary"),
        (lambda writer: writer.add_string("tokenizer.ggml.new_rule", "x"), "states tokenizer.ggml.new_rule"),
        (lambda writer: writer.add_add_eos_token(True), "adds a EOS to every text and names none"),
        (lambda writer: writer.add_add_sep_token(True), "tokenizer.ggml.add_sep_token True"),
    ],
)
def test_a_wrong_tokenizer_gets_one_line(tmp_path, prose, change, part):
    def more(writer):
        as_llama_cpp_stores_it(original, "gpt-2", {})(writer)
        fields = writer.kv_data[0]
        writer.kv_data[0] = {}
        change(writer)
        writer.kv_data[0] = fields | writer.kv_data[0]

    original = trained(prose[:2000], sequence(regex=True))
    with pytest.raises(UserError, match=r"model\.gguf") as caught:
        read(tmp_path, more)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_files_with_harmless_faults_can_be_used(tmp_path):
    """Other programs read such files: ids that nothing uses, fillers with one text, arrays inside each other."""

    def more(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(["a", "b", "ab", "<pad>", "<pad>", "<pad>"])
        writer.add_token_types([NORMAL, NORMAL, NORMAL, CONTROL, CONTROL, NORMAL])
        writer.add_token_merges(["a b"])
        writer.add_bos_token_id(2**32 - 1)
        writer.add_int32("tokenizer.ggml.eos_token_id", -1)
        writer.add_unk_token_id(2**32 - 1)
        writer.add_pad_token_id(4)
        writer.add_eot_token_id(45)
        writer.add_array("general.nested", [[1, 2], [3, 4]])

    with pytest.warns(TextWarning) as warned:
        tokenizer = read(tmp_path, more)
    texts = [str(one.message) for one in warned if one.category is TextWarning]
    assert any("eot_token_id 45" in text for text in texts)
    assert any("3 ('<pad>'), 5 ('<pad>')" in text for text in texts)
    assert tokenizer("ab<pad>a").input_ids == [2, 4, 0]
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == ("<pad>", None, None)


def test_normalisation_is_qwens(tmp_path, prose):
    """Qwen's tokenizer composes accents first; the others take the text as it is."""
    original = trained(prose, sequence(regex=True))
    assert isinstance(json.loads(original.to_str())["normalizer"], type(None))
    assert normalizers.NFC().normalize_str("e\u0301") == "é"
    composed, apart = "é", "e\u0301"
    for pre, equal in (("qwen2", True), ("gpt-2", False)):
        folder = tmp_path / pre
        folder.mkdir()
        tokenizer = read(folder, as_llama_cpp_stores_it(original, pre, {}))
        assert (tokenizer(composed).input_ids == tokenizer(apart).input_ids) == equal
