"""Prompts: special tokens once, templates, files, and what is refused."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import processors
from tokenizers_made_here import byte_level, metaspace
from transformers import PreTrainedTokenizerFast

from tokenswift_jax.errors import UserError
from tokenswift_jax.prompt import encode, is_batch, read_ids, read_text

TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}" + (
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def with_bos():
    """A tokenizer that puts BOS (id 0) before every text."""
    backend = type(byte_level().backend_tokenizer).from_str(byte_level().backend_tokenizer.to_str())
    backend.post_processor = processors.TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|end|>", chat_template=TEMPLATE)


def test_bos_comes_once(with_bos):
    plain = byte_level()("the cat").input_ids
    assert encode("the cat", byte_level(), 400) == plain
    assert encode("the cat", with_bos, 400) == [0, *plain]
    assert encode("<|end|>the cat", with_bos, 400) == [0, *plain]


def test_a_chat_template_brings_its_own_bos(with_bos):
    ids = encode("the cat", with_bos, 400, chat=True)
    assert with_bos.decode(ids) == "<|end|><user>the cat<assistant>"
    assert ids.count(0) == 1


def test_ids_pass_as_they_are():
    assert encode([3, 0, 399], None, 400) == [3, 0, 399]
    assert encode((3, 4), byte_level(), 400) == [3, 4]
    assert encode(np.asarray([3, 4], np.int64), None, 400) == [3, 4]


@pytest.mark.parametrize(
    ("prompt", "batch"),
    [("text", False), ([1, 2], False), (np.asarray([1]), False), (["a"], True), ([[1], "b"], True), ([], False)],
)
def test_what_a_batch_is(prompt, batch):
    assert is_batch(prompt) is batch


@pytest.mark.parametrize(
    ("prompt", "tokenizer", "chat", "message"),
    [
        ("", byte_level(), False, "empty"),
        ([], None, False, "empty"),
        ("text", None, False, "no tokenizer"),
        ("text", metaspace(), True, "no chat template"),
        ([1], byte_level(), True, "--chat needs a prompt of text"),
        ([5, 400], None, False, "token id 400 of the prompt is outside the vocabulary of 0..399"),
        ([1, 2.0], None, False, "a prompt is a string or a list of token ids, and 2.0 is no token id"),
        (np.zeros(0), None, False, "not a 1-dimensional array of float64"),
        (np.zeros((1, 2), np.int32), None, False, "not a 2-dimensional array of int32"),
        (None, None, False, "not NoneType"),
    ],
)
def test_what_is_refused(prompt, tokenizer, chat, message):
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        encode(prompt, tokenizer, 400, chat)


def test_a_text_file_is_taken_exactly(tmp_path, monkeypatch):
    (tmp_path / "p").write_bytes("naïve 😀\r\n\n".encode())
    assert read_text(str(tmp_path / "p")) == "naïve 😀\r\n\n"
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"from a pipe")))
    assert read_text("-") == "from a pipe"


@pytest.mark.parametrize(
    ("data", "message"), [(b"a\xff", "not UTF-8 text .byte 1"), (b"a\0b", "zero byte"), (None, "No such file")]
)
def test_a_file_that_is_not_text(tmp_path, data, message):
    if data is not None:
        (tmp_path / "p").write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_text(str(tmp_path / "p"))


@pytest.mark.parametrize("data", ["", "{", '"text"', "[[1]]", "[1.5]", "[true]", "[" * 100_000])
def test_a_file_that_is_not_ids(tmp_path, data):
    (tmp_path / "p").write_text(data)
    with pytest.raises(UserError, match="one list of token ids"):
        read_ids(str(tmp_path / "p"))


def test_a_file_of_ids(tmp_path):
    (tmp_path / "p").write_text(json.dumps([5, 6]))
    assert read_ids(str(tmp_path / "p")) == [5, 6]
