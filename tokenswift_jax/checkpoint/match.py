"""The comparison of a checkpoint's tensors with the decoder that its configuration describes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from flax import nnx

from tokenswift_jax.checkpoint import names
from tokenswift_jax.checkpoint.tensors import Tensor, same_values
from tokenswift_jax.errors import UserError
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.models.stacked import Groups, stacked
from tokenswift_jax.processes.agreement import agreed

_LISTED = 8  # tensors named in one message


def abstract_decoder(config: ModelConfig, dtype: Any, groups: Groups | None = None) -> Decoder:
    """A decoder with shapes in place of parameters, its layers stacked if there are groups of them."""

    def made() -> Decoder:
        decoder = Decoder(config, dtype=dtype, rngs=nnx.Rngs(0))
        return decoder if groups is None else stacked(decoder, groups)

    return nnx.eval_shape(made)


def match_tensors(
    config: ModelConfig, stored: dict[str, Tensor], origin: str, described_by: str = "its config.json"
) -> dict[names.ParameterPath, Tensor]:
    """The decoder's tensors by parameter path; leaves out buffers and the copy of a tied embedding.

    Args:
      config: the decoder.
      stored: tensors by (canonical) HF name.
      origin: the checkpoint, for messages.
      described_by: the part of the checkpoint that gave the configuration, for messages.

    Raises:
      UserError: tensors are missing, extra or mis-shaped (listed).
    """
    state = nnx.split(abstract_decoder(replace(config, draft_vocab=None), jnp.float32))[1]
    expected = {names.hf_name(path): (path, param) for path, param in nnx.to_flat_state(state)}
    stored = {name: tensor for name, tensor in stored.items() if not names.is_harmless(name)}
    head, table = stored.get("lm_head.weight"), stored.get("model.embed_tokens.weight")
    if config.tie_word_embeddings and head is not None and table is not None:
        if head.shape != table.shape or head.dtype != table.dtype or not agreed(lambda: same_values(head, table)):
            raise UserError(
                f"{origin} ties its embeddings (tie_word_embeddings) but has an lm_head.weight of its own values"
            )
        del stored["lm_head.weight"]

    problems = []
    missing = sorted(set(expected) - set(stored))
    extra = sorted(set(stored) - set(expected))
    if missing:
        problems.append("missing: " + _listing(missing))
    if extra:
        known = any(name.startswith(names.HEAD_PREFIX) for name in extra)
        hint = f" ({described_by.removeprefix('its ')} names {config.num_draft_heads} draft heads)" if known else ""
        problems.append("extra: " + _listing(extra) + hint)
    shapes = []
    for name in sorted(set(expected) & set(stored)):
        path, param = expected[name]
        shape = tuple(reversed(param.shape)) if names.is_transposed(path) else tuple(param.shape)
        if stored[name].shape != shape:
            shapes.append(f"{name} {list(stored[name].shape)} instead of {list(shape)}")
    if shapes:
        foreign = all(entry.startswith(names.HEAD_PREFIX) for entry in shapes)
        what = f"draft heads made for another hidden size than {config.hidden_size}: " if foreign else "mis-shaped: "
        problems.append(what + _listing(shapes))
    if problems:
        raise UserError(f"the tensors of {origin} do not fit {described_by}; " + "; ".join(problems))
    return {path: replace(stored[name], name=name) for name, (path, _) in expected.items()}


def _listing(entries: list[str]) -> str:
    rest = len(entries) - _LISTED
    return ", ".join(entries[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
