"""Draft heads in the layout of Medusa (Cai et al. 2024): a directory of heads alone, beside the model they belong to.

Medusa's heads are independent of each other. Head i's logits are L_i (x + SiLU(W_i x + b_i)); x is the last layer's
output after the final norm, and L_i is an LM head of its own. Two files contain the same heads, for two families of
loaders:

* `medusa_lm_head.safetensors`, with the names of Medusa's own program: `{i}.0.linear.weight|bias`, `{i}.1.weight`;
* `model.safetensors`, with vLLM's names: `blocks.{i}.layers.0.weight|bias`, and one `lm_head.weight` for all heads.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenswift_jax.checkpoint.counted import counted
from tokenswift_jax.checkpoint.directory import read_json
from tokenswift_jax.checkpoint.load import Checkpoint
from tokenswift_jax.checkpoint.tensors import WHOLE_FILE, write_file
from tokenswift_jax.errors import UserError
from tokenswift_jax.progress_report import Report, silent

MEDUSA_FILE = "medusa_lm_head.safetensors"
_WHY_NOT = {
    "chained": "each head reads the head before it and norms its input, and Medusa's heads do neither",
    "sequential": "each head reads the drafted token above its guess, which Medusa's heads never see",
}


def write_medusa(checkpoint: Checkpoint, folder: Path, report: Report = silent) -> str:
    """Writes the heads of a checkpoint, bit for bit, with the LM head they share; returns a summary for a person.

    `report` receives the number of bytes written so far.

    Raises:
      UserError: the checkpoint has no draft heads, or heads that this layout cannot express.
    """
    config = checkpoint.config
    heads, kind = config.num_draft_heads, str(config.draft_head_type)
    if not heads:
        raise UserError(f"{checkpoint.directory} has no draft heads to export")
    if kind in _WHY_NOT:
        raise UserError(f"{kind} draft heads have no Medusa layout: {_WHY_NOT[kind]}; heads of type medusa have one")
    tensors = checkpoint.tensors
    lm_head = tensors[("embed_tokens",) if config.tie_word_embeddings else ("lm_head", "kernel")]
    medusa, vllm = [], [replace(lm_head, name="lm_head.weight")]
    for head in range(heads):
        for part, stored in (("weight", "kernel"), ("bias", "bias")):
            tensor = tensors[("draft_heads", "heads", head, "linear", stored)]
            medusa.append(replace(tensor, name=f"{head}.0.linear.{part}"))
            vllm.append(replace(tensor, name=f"blocks.{head}.layers.0.{part}"))
        medusa.append(replace(lm_head, name=f"{head}.1.weight"))
    with counted([*medusa, *vllm], "writing the heads", report) as announced:
        write_file(folder / MEDUSA_FILE, announced[: len(medusa)])
        write_file(folder / WHOLE_FILE, announced[len(medusa) :])
    (folder / "config.json").write_text(json.dumps(_config(checkpoint), indent=2) + "\n", encoding="utf-8")
    return f"{heads} heads in Medusa's layout, {sum(tensor.nbytes for tensor in medusa) / 1e9:.3g} GB"


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    config = checkpoint.config
    block = read_json(checkpoint.directory / "config.json").get("tokenswift") or {}
    return {
        "model_type": "medusa",
        "architectures": ["MedusaModel"],
        "base_model_name_or_path": block.get("base") or str(checkpoint.directory.resolve()),
        "medusa_num_heads": config.num_draft_heads,
        "medusa_num_layers": 1,
        # vLLM reads the fields below.
        "num_heads": config.num_draft_heads,
        "num_hidden_layers": 1,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "truncated_vocab_size": config.vocab_size,
        "original_lm_head": True,
        "medusa_fc_bias": True,
        "torch_dtype": str(checkpoint.dtype),
    }
