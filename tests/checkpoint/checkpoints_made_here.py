"""Copies of the tiny family checkpoints for tests to change, and draft heads to go with them."""

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

FAMILIES = Path(__file__).parents[1] / "data" / "families"


def copy(name, folder):
    """A family's checkpoint as (folder, tensors), to be spoiled."""
    shutil.copytree(FAMILIES / name, folder)
    return folder, load_file(folder / "model.safetensors")


def heads(size, count=2, prefix="medusa_layers."):
    rng = np.random.default_rng(7)
    return {
        f"{prefix}{head}.{part}.weight": rng.normal(size=shape).astype(np.float16)
        for head in range(count)
        for part, shape in (("linear", (size, size)), ("input_layernorm", (size,)), ("post_layernorm", (size,)))
    }


def set_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def add_tokenizer(folder, entries):
    """A word-level tokenizer of w0, end, w2, w3, ... with a chat template, as transformers saves it."""
    vocabulary = {f"w{index}": index for index in range(entries) if index != 1} | {"end": 1}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="end")
    fast.chat_template = "{{ messages[0]['content'] }}"
    fast.save_pretrained(folder)
