"""Prompts: special tokens once, templates, files, and what is refused."""

import io
import json
import re
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import processors
from tokenizers_made_here import byte_level, metaspace
from transformers import PreTrainedTokenizerFast

from tokenswift_jax.errors import TextWarning, UserError
from tokenswift_jax.prompt import encode, encode_chat, encode_rows, is_batch, read_ids, read_text, render_chat, turns_of
from tokenswift_jax.training.documents import Broken, read_documents

TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}" + (
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


CHAT = [{"role": "user", "content": "the cat"}]


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
    ids = encode_chat(CHAT, with_bos, 400)
    assert with_bos.decode(ids) == "<|end|><user>the cat<assistant>"
    assert ids.count(0) == 1


def test_a_bos_that_a_person_writes_after_the_templates_own_stays(with_bos):
    ids = encode_chat([{"role": "user", "content": "x"}], with_bos, 400)
    with_bos.chat_template = "{{ bos_token }}{{ messages[0].content }}"
    assert encode_chat([{"role": "user", "content": "<|end|>the"}], with_bos, 400)[:2] == [0, 0]
    assert ids[0] == 0


def test_parts_of_text_are_one_text_and_a_developer_is_the_system(with_bos):
    parts = [{"type": "text", "text": "the "}, {"type": "input_text", "text": "cat"}]
    turns = [{"role": "developer", "content": "x"}, {"role": "user", "content": parts}]
    assert render_chat(turns, with_bos, next_turn=False) == "<|end|><system>x<user>the cat"
    with pytest.raises(UserError, match="no text in the messages"):
        encode_chat([{"role": "user", "content": [{"type": "text", "text": ""}]}], with_bos, 400)


def test_the_server_reads_a_conversation_as_generate_does():
    pytest.importorskip("starlette")
    from tokenswift_jax.serve.openai.messages import read_messages

    thought = {"role": "assistant", "content": "y", "reasoning_content": "z", "name": "n"}
    turns = [{"role": "developer", "content": [{"type": "text", "text": "x"}]}, *CHAT, thought]
    assert read_messages(turns) == turns_of(turns)
    for read in (read_messages, turns_of):
        with pytest.raises(Exception, match="name"):
            read([thought | {"name": 5}])


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
    ("prompt", "tokenizer", "message"),
    [
        ("", byte_level(), "empty"),
        ([], None, "empty"),
        (np.zeros(0, np.int32), None, "empty"),
        ("text", None, "no tokenizer"),
        ("a\udcff", byte_level(), "the prompt is not UTF-8 text (character 1); convert it first"),
        ([5, 400], None, "token id 400 of the prompt is outside the vocabulary of 0..399"),
        ([5, -1], None, "token id -1 of the prompt is outside the vocabulary of 0..399"),
        ([1, 2.0], None, "a prompt is a string or a list of token ids, and 2.0 is no token id"),
        ([1, True], None, "a prompt is a string or a list of token ids, and True is no token id"),
        (np.zeros(0), None, "not a 1-dimensional array of float64"),
        (np.zeros((1, 2), np.int32), None, "not a 2-dimensional array of int32"),
        (None, None, "not NoneType"),
    ],
)
def test_what_is_refused(prompt, tokenizer, message):
    with pytest.raises(UserError, match=re.escape(message)):
        encode(prompt, tokenizer, 400)


def test_a_conversation_is_its_template_up_to_the_next_turn(with_bos):
    turns = [{"role": "system", "content": "be"}, *CHAT, {"role": "assistant", "content": "sat"}, *CHAT]
    text = "<|end|><system>be<user>the cat<assistant>sat<user>the cat"
    assert render_chat(turns, with_bos, next_turn=False) == text
    assert encode_chat(turns, with_bos, 400) == byte_level()(text + "<assistant>").input_ids
    assert encode_chat(tuple(turns), with_bos, 400) == encode_chat(turns, with_bos, 400)


def test_a_turn_that_calls_tools_needs_no_content(with_bos):
    called = {"role": "assistant", "content": None, "tool_calls": [{"name": "look"}]}
    assert render_chat([*CHAT, called], with_bos, next_turn=False).endswith("the cat<assistant>")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages have to be a list of turns, at least one, such as [{"),
        ("the cat", "messages have to be a list of turns"),
        (CHAT[0], "messages have to be a list of turns"),
        (["the cat"], "turn 1 of the messages is 'the cat'; a turn is {"),
        ([*CHAT, {"role": "user"}], 'turn 2 of the messages has no "content"'),
        ([{"content": "x"}], 'turn 1 of the messages has no "role"'),
        ([{"role": "user", "content": None}], 'turn 1 of the messages has no "content"'),
        ([{"role": 3, "content": "x"}], 'turn 1 of the messages has the "role" 3, which is not text'),
        ([{"role": "user", "content": ["x"]}], """turn 1 of the messages has the "content" ['x'], which is not text"""),
        ([{"role": "user", "content": ""}], "there is no text in the messages"),
        ([{"role": "user", "content": "\udcff"}], "the conversation is not UTF-8 text"),
        ([CHAT], "turn 1 of the messages is [{"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "turn 1 of the messages has a part of type image_url"),
        ([{"role": "user", "content": []}], 'turn 1 of the messages has no "content"'),
        ([CHAT[0] | {"reasoning_content": ["a"]}], """has the "reasoning_content" ['a'], which is not text"""),
        ([CHAT[0] | {"name": None, "tool_call_id": 5}], 'has the "tool_call_id" 5, which is not text'),
    ],
)
def test_messages_of_a_wrong_shape(with_bos, messages, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        encode_chat(messages, with_bos, 400)
    assert "\n" not in str(caught.value)


def test_messages_without_a_tokenizer_or_a_template_or_against_it(with_bos):
    with pytest.raises(UserError, match="messages need a tokenizer, and this checkpoint has none"):
        encode_chat(CHAT, None, 400)
    with pytest.raises(UserError, match="no chat template; give text without messages"):
        encode_chat(CHAT, metaspace(), 400)
    with_bos.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UserError, match=r"the chat template refuses the messages \(roles must alternate\)"):
        encode_chat(CHAT, with_bos, 400)


@pytest.mark.parametrize(("messages", "batch"), [(CHAT, False), ([CHAT, CHAT], True), ([CHAT], True), ([], False)])
def test_what_a_batch_of_conversations_is(messages, batch):
    assert is_batch(None, messages) is batch


def test_rows_are_prompts_or_conversations_and_never_both(with_bos):
    chat = encode_chat(CHAT, with_bos, 400)
    assert encode_rows(None, CHAT, with_bos, 400) == [chat]
    assert encode_rows(None, [CHAT, CHAT], with_bos, 400) == [chat, chat]
    assert encode_rows([[4], "the cat"], None, with_bos, 400) == [[4], encode("the cat", with_bos, 400)]
    with pytest.raises(UserError, match="a prompt is missing; give one of prompt and messages"):
        encode_rows(None, None, with_bos, 400)
    with pytest.raises(UserError, match="prompt and messages exclude each other; give one of"):
        encode_rows("x", CHAT, with_bos, 400)


def test_text_is_tokenised_in_a_phase_and_ids_in_none(with_bos):
    reports = []
    for prompt, messages in (("x", None), ([1, 2], None), (None, CHAT)):
        encode_rows(prompt, messages, with_bos, 400, lambda *report: reports.append(report[:2]))
    assert reports == [("tokenising the prompt", 0), ("tokenising the prompt", 1)] * 2


def test_a_text_file_is_taken_exactly(tmp_path, monkeypatch):
    (tmp_path / "p").write_bytes("naïve 😀\r\n\n".encode())
    assert read_text(str(tmp_path / "p")) == "naïve 😀\r\n\n"
    for piped in (b"from a pipe", b"\xef\xbb\xbffrom a pipe"):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(piped)))
        assert read_text("-") == "from a pipe"


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    """As in training data, whose reader it is; one inside the text stays."""
    file = tmp_path / "p.txt"
    file.write_bytes("\ufeffa \ufeffb".encode())
    assert read_text(str(file)) == "a \ufeffb"
    assert [document.text for document in read_documents([file], None, Broken())] == ["a \ufeffb"]
    file.write_bytes(b"\xef\xbb\xbfab\xff")
    with pytest.raises(UserError, match=r"not UTF-8 text \(byte 5\); save it as UTF-8 text"):
        read_text(str(file))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_text_of_another_encoding_is_named(tmp_path, encoding):
    (tmp_path / "p").write_bytes("text".encode(encoding))
    named = encoding.upper()
    with pytest.raises(UserError, match=f"it begins with the byte-order mark of {named}; save it as UTF-8 text"):
        read_text(str(tmp_path / "p"))


def test_a_template_that_fails_does_not_refuse(with_bos):
    with_bos.chat_template = "{{ messages[0].content.missing.field }}"
    with pytest.raises(
        UserError, match=r"chat template fails on the messages \(UndefinedError: .*correct the template"
    ):
        encode_chat(CHAT, with_bos, 400)
    with_bos.chat_template = {"rag": "x", "tool_use": "y"}
    with pytest.raises(UserError, match="chat templates are named rag, tool_use; name one of them default"):
        encode_chat(CHAT, with_bos, 400)


def test_an_eos_that_the_tokenizer_appends_is_warned_of(with_bos):
    backend = with_bos.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(single="$A <|end|>", special_tokens=[("<|end|>", 0)])
    ending = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", chat_template=TEMPLATE)
    with pytest.warns(
        TextWarning, match=r"ends the prompt with its EOS \(id 0\), after which a model begins another text"
    ):
        assert encode("the cat", ending, 400)[-1] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_chat(CHAT, ending, 400)
        encode("the cat", byte_level(), 400)
        encode("the cat<|end|>", byte_level(), 400)


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
