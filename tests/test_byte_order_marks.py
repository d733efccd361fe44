"""A byte-order mark before UTF-8 is no part of any file or body, and UTF-16 is named wherever it comes in."""

import codecs
import json

import pytest

from tests.checkpoint.checkpoints_made_here import FAMILIES
from tokenswift_jax.checkpoint.tensors import INDEX_FILE, WHOLE_FILE, read_model_files
from tokenswift_jax.errors import UserError
from tokenswift_jax.prompt import read_ids


def index_in(folder, data):
    (folder / "one.safetensors").write_bytes((FAMILIES / "llama2" / WHOLE_FILE).read_bytes())
    (folder / INDEX_FILE).write_bytes(data)
    return lambda: read_model_files(folder)


def ids_in(folder, data):
    (folder / "ids.json").write_bytes(data)
    return lambda: read_ids(str(folder / "ids.json"))


def keys_in(folder, data):
    pytest.importorskip("starlette")
    from tokenswift_jax.serve import cli

    (folder / "keys").write_bytes(data)
    options = cli._parser("serve").parse_args(["--api-key-file", str(folder / "keys")])
    return lambda: cli._keys(options)


def body_of(folder, data):
    pytest.importorskip("starlette")
    from tokenswift_jax.serve.openai.fields import parsed

    return lambda: parsed(data)


DOORS = {
    "index": (index_in, json.dumps({"weight_map": {"model.norm.weight": "one.safetensors"}})),
    "ids": (ids_in, "[1, 2]"),
    "keys": (keys_in, "one\ntwo"),
    "body": (body_of, '{"prompt": "x"}'),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_mark_before_the_text_is_no_part_of_it(tmp_path, monkeypatch, door):
    monkeypatch.delenv("TOKENSWIFT_API_KEY", raising=False)
    made, text = DOORS[door]
    plain, marked = made(tmp_path, text.encode())(), made(tmp_path, codecs.BOM_UTF8 + text.encode())()
    names = [[getattr(one, "name", one) for one in found] for found in (plain, marked)]
    assert names[0] == names[1]


@pytest.mark.parametrize("door", DOORS)
def test_another_encoding_is_named(tmp_path, door):
    made, text = DOORS[door]
    with pytest.raises(Exception, match=r"not UTF-8 text: it begins with the byte-order mark of UTF-16"):
        made(tmp_path, text.encode("utf-16"))()


def test_a_deep_index_is_one_line(tmp_path):
    with pytest.raises(UserError, match="is not an index: "):
        index_in(tmp_path, b"[" * 200_000)()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[" * 200_000, "inside each other too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "too many digits"),
    ],
)
@pytest.mark.parametrize("door", ["index", "body"])
def test_the_words_of_python_s_limits_do_not_pass(tmp_path, door, data, reason):
    with pytest.raises(Exception, match=reason):
        DOORS[door][0](tmp_path, data)()
