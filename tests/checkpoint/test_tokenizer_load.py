"""A tokenizer loads where transformers stumbles over files that it does not need, and no code of a checkpoint runs."""

import codecs
import json

import pytest

from tests.checkpoint.checkpoints_made_here import add_tokenizer, set_config
from tokenswift_jax import checkpoint
from tokenswift_jax.errors import TextWarning, UserError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 128}))
    add_tokenizer(tmp_path, 128)
    return tmp_path


def ids_of(folder):
    return checkpoint.load_tokenizer(folder)("w5 w6")["input_ids"]


@pytest.mark.parametrize("fields", [{"use_cache": None}, {"tie_word_embeddings": None}, {"pad_token_id": [1]}])
def test_config_json_is_not_the_tokenizer_s(folder, fields):
    set_config(folder, **fields)
    assert ids_of(folder) == [5, 6]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_mark_before_a_file_is_no_part_of_it(folder, name):
    template = checkpoint.load_tokenizer(folder).chat_template
    (folder / name).write_bytes(codecs.BOM_UTF8 + (folder / name).read_bytes())
    assert ids_of(folder) == [5, 6]
    assert checkpoint.load_tokenizer(folder).chat_template == template


def test_code_of_a_checkpoint_does_not_run_and_nobody_is_asked(folder, capfd, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a person was asked"))
    file = folder / "tokenizer_config.json"
    own = {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    with pytest.warns(TextWarning, match=r"this program follows tokenizer\.json"):
        assert ids_of(folder) == [5, 6]
    assert capfd.readouterr().out == ""
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    with pytest.raises(UserError, match=r"which this program does not run; add a tokenizer\.json"):
        checkpoint.load_tokenizer(folder)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [("special_tokens_map.json", b"{", "is not JSON"), ("chat_template.jinja", "x".encode("utf-16"), "of UTF-16")],
)
def test_the_file_at_fault_is_named(folder, name, data, reason):
    (folder / name).write_bytes(data)
    with pytest.raises(UserError, match=f"{name} .*{reason}"):
        checkpoint.load_tokenizer(folder)
