"""Documents of files, folders and patterns, and the count of broken lines."""

import json

import pytest
from surfaces.tokenizers_made_here import byte_level
from transformers import PreTrainedTokenizerFast

from tokenswift_jax.errors import UserError
from tokenswift_jax.training.documents import Broken, find_files, read_documents

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'robot' %}{{ raise_exception('no robots here') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}<|end|>{% endfor %}"
)


TURN = '{"role": "user", "content": "..."}'


def chatting() -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level().backend_tokenizer, eos_token="<|end|>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def read(files, tokenizer=None, strict=False):
    broken = Broken(strict)
    documents = [(document.text, document.rendered) for document in read_documents(files, tokenizer, broken)]
    return documents, broken


def write_lines(path, *records):
    lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def test_files_are_found_in_order_each_once(tmp_path):
    for name in ("b.txt", "a.jsonl", "deep/er/c.TXT", "notes.md", "z.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    names = [str(file.relative_to(tmp_path)) for file in find_files([tmp_path / "z.txt", tmp_path])]
    assert names == ["z.txt", "a.jsonl", "b.txt", "deep/er/c.TXT"]
    assert find_files([str(tmp_path / "*.*")]) == [tmp_path / "a.jsonl", tmp_path / "b.txt", tmp_path / "z.txt"]
    assert find_files([str(tmp_path / "**" / "*.TXT")]) == [tmp_path / "deep/er/c.TXT"]


def test_a_name_with_brackets_is_a_name_before_it_is_a_pattern(tmp_path):
    (tmp_path / "part[1].txt").write_text("x")
    assert find_files([tmp_path / "part[1].txt"]) == [tmp_path / "part[1].txt"]


def test_what_is_not_there_is_an_error(tmp_path):
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(UserError, match=r"notes\.md is neither \.txt .* nor \.jsonl"):
        find_files([tmp_path / "notes.md"])
    with pytest.raises(UserError, match=r"no data at .*gone: no such file"):
        find_files([tmp_path / "gone"])
    with pytest.raises(UserError, match=r"no \.txt or \.jsonl file in"):
        find_files([tmp_path])
    with pytest.raises(UserError, match="no data; name"):
        find_files([])


def test_text_and_chat(tmp_path):
    text = tmp_path / "a.txt"
    text.write_bytes("\ufeffline one\r\nline two é\n".encode())
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    lines = write_lines(tmp_path / "b.jsonl", {"text": " a\n"}, b"", {"messages": turns}, {"text": "b", "id": 3})
    documents, broken = read([text, lines], chatting())
    assert documents == [
        ("line one\r\nline two é\n", False),
        (" a\n", False),
        ("[user]hi<|end|>[assistant]yo<|end|>", True),
        ("b", False),
    ]
    assert broken.count == 0


def test_a_column_that_a_record_does_not_use_is_null_or_empty(tmp_path):
    turns = [{"role": "user", "content": "hi"}]
    records = [{"text": None, "messages": turns}, {"text": "", "messages": turns}, {"text": "b", "messages": None}]
    documents, broken = read([write_lines(tmp_path / "a.jsonl", *records)], chatting())
    assert (documents, broken.count) == ([("[user]hi<|end|>", True)] * 2 + [("b", False)], 0)


def test_no_field_is_learnt_as_python_writes_it_and_parts_of_text_are_text(tmp_path):
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    records = [
        {"messages": [{"role": "user", "content": parts}]},
        {"messages": [{"role": "user", "content": ["hi"]}]},
        {"messages": [{"role": "user", "content": "hi", "reasoning_content": ["a"]}]},
        {"messages": [{"role": "assistant", "tool_calls": "look"}]},
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": ["look"]}]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"name": "look"}]}]},
    ]
    documents, broken = read([write_lines(tmp_path / "a.jsonl", *records)], chatting())
    assert documents == [("[user]hi<|end|>", True), ("[assistant]<|end|>", True)]
    reasons = [example.partition(": ")[2] for example in broken.examples]
    assert [reason.partition(", which ")[2].partition(";")[0] for reason in reasons] == [
        "is not text",
        "is not text",
        "is not a list of objects",
        "is not a list of objects",
    ]


def test_broken_lines_are_counted_and_the_first_kept(tmp_path):
    records = [
        (b"{not json", "not JSON (Expecting property name enclosed in double quotes at column 2)"),
        ({"content": "x"}, 'neither "text" nor "messages" in it'),
        ({"text": 3}, '"text" has to be a string, not a number'),
        ([1], "an object is needed, not a list"),
        (b'{"text": "\xff"}', "not UTF-8 text (byte 10)"),
        ({"text": "  "}, "no text in it"),
        (b'{"text": "\\ud800"}', "half of a surrogate pair in the text"),
        (b"[" * 100_000, "not JSON that can be read"),
        ({"text": "a\0b"}, "not text: it has a zero byte"),
        ({"messages": []}, f"messages have to be a list of turns, at least one, such as [{TURN}]"),
        ({"messages": [{"content": "x"}]}, f'turn 1 of the messages has no "role"; a turn is {TURN}'),
        ({"messages": [{"role": "robot", "content": ""}]}, "the chat template refuses the messages (no robots here)"),
    ]
    for number, (record, reason) in enumerate(records):
        file = write_lines(tmp_path / f"{number}.jsonl", {"text": "good"}, record, {"text": "too"})
        documents, broken = read([file], chatting())
        assert documents == [("good", False), ("too", False)]
        assert (broken.count, broken.examples) == (1, [f"{file}:2: {reason}"])
    file = write_lines(tmp_path / "all.jsonl", *(record for record, _ in records))
    _, broken = read([file], chatting())
    assert broken.count == len(records)
    assert broken.examples == [f"{file}:{line}: {reason}" for line, (_, reason) in enumerate(records[:5], 1)]


def test_a_broken_text_file_names_its_line(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"one\ntwo \xff\n")
    assert read([file])[1].examples == [f"{file}:2: not UTF-8 text (byte 8)"]


def test_chat_without_a_template(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", {"messages": [{"role": "user", "content": "x"}]})
    assert read([file], byte_level())[1].examples == [
        f"{file}:1: this checkpoint's tokenizer has no chat template; give text without messages"
    ]


def test_strict_stops_at_the_first(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", {"text": "x"}, {"text": None}, b"{")
    with pytest.raises(UserError, match=r'a\.jsonl:2: "text" has to be a string, not null; mend it'):
        read([file], strict=True)
