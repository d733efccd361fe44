"""A tokenizer follows its tokenizer.json, or the file's own rules are used and said to be."""

import json
import shutil
import warnings

import pytest
from surfaces.tokenizers_made_here import END, byte_level, metaspace
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import tokenswift_jax as ts
from tokenswift_jax import checkpoint
from tokenswift_jax.checkpoint.tokenizer_check import PROBES
from tokenswift_jax.errors import TextWarning
from tokenswift_jax.model import DEMO_MODEL

TEXTS = [*PROBES, "Call 555 1234 at 10:30", "    indented"]


@pytest.fixture
def folder(tmp_path):
    """The demo's tokenizer, in a checkpoint of the family qwen2 (transformers 5.24 gives it Qwen2's splitting rule)."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_MODEL / name, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "vocab_size": 2048}))
    return tmp_path


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_class_with_rules_of_its_own_does_not_garble_the_text(folder):
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    assert any(ids_of(theirs, text) != raw.encode(text).ids for text in TEXTS), "nothing to be mended here"
    with pytest.warns(TextWarning, match=r"splits text by other rules than .*tokenizer.json; this program follows"):
        tokenizer = checkpoint.load_tokenizer(folder)
    for text in TEXTS:
        assert ids_of(tokenizer, text) == raw.encode(text).ids
        assert tokenizer.decode(ids_of(tokenizer, text)) == text
    assert tokenizer.eos_token_id == 0


@pytest.mark.parametrize("made", [byte_level, metaspace])
def test_a_tokenizer_that_loses_its_spaces(tmp_path, monkeypatch, made):
    """As transformers 5.0 to 5.20 load byte-level Llama tokenizers."""
    made().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 400}))

    class Garbling(PreTrainedTokenizerFast):
        def __call__(self, text, **options):
            return super().__call__(text.replace(" ", ""), **options)

    garbling = Garbling.from_pretrained(str(tmp_path))
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *arguments, **options: garbling)
    with pytest.warns(TextWarning, match="Garbling"):
        tokenizer = checkpoint.load_tokenizer(tmp_path)
    assert ids_of(tokenizer, "the cat") == ids_of(made(), "the cat")
    monkeypatch.setattr(PreTrainedTokenizerFast, "from_pretrained", lambda *arguments, **options: garbling)
    with pytest.raises(ts.UserError, match="no class of it follows that file; install another version of transformers"):
        checkpoint.load_tokenizer(tmp_path)


def with_bos():
    """A tokenizer that begins each text with its special token."""
    tokenizer = Tokenizer.from_str(byte_level().backend_tokenizer.to_str())
    tokenizer.post_processor = TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


class WithoutBos(PreTrainedTokenizerFast):
    def __call__(self, text, **options):
        return super().__call__(text, **options | {"add_special_tokens": False})


class CutsSpecials(PreTrainedTokenizerFast):
    def __call__(self, text, **options):
        return super().__call__(text.replace(END, "<| end|>"), **options)


@pytest.mark.parametrize(
    ("wrong", "fault", "states_borders"),
    [
        (WithoutBos, "puts other tokens around a text than", False),
        (WithoutBos, None, True),
        (CutsSpecials, r"reads the token '<\|end\|>' differently from", False),
    ],
)
def test_a_tokenizer_that_loses_special_tokens(tmp_path, monkeypatch, wrong, fault, states_borders):
    with_bos().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 400}))
    loaded = wrong.from_pretrained(str(tmp_path))
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *arguments, **options: loaded)
    if states_borders:
        file = tmp_path / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"add_bos_token": False}))
    if fault is None:
        assert checkpoint.load_tokenizer(tmp_path) is loaded
        return
    with pytest.warns(TextWarning, match=f"{fault} .*tokenizer.json; this program follows the file"):
        tokenizer = checkpoint.load_tokenizer(tmp_path)
    assert tokenizer(f"the{END}").input_ids == with_bos()(f"the{END}").input_ids
    monkeypatch.setattr(PreTrainedTokenizerFast, "from_pretrained", lambda *arguments, **options: loaded)
    with pytest.warns(TextWarning, match="so does every other class of it"):
        assert checkpoint.load_tokenizer(tmp_path) is loaded


def test_the_demo_s_tokenizer_is_as_its_file_has_it():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(checkpoint.load_tokenizer(DEMO_MODEL)) == 2048
