"""Converts HF's config.json, in the spelling of transformers 4 or 5, to this package's `ModelConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from tokenswift_jax.errors import UserError, is_whole
from tokenswift_jax.models.config import DraftHeadType, ModelConfig
from tokenswift_jax.models.draft_vocab import DraftVocab, parse_draft_vocab
from tokenswift_jax.models.expected_tokens import ExpectedTokens, parse_expected_tokens
from tokenswift_jax.models.hf_fields import check_block, check_known, plain_positions
from tokenswift_jax.models.hf_rope import (
    longest_text,
    positive_number,
    rope_config,
    rope_origin,
    rope_parameters,
    unused_fields,
)
from tokenswift_jax.models.node_sets import NodeSets, parse_node_sets

# Values of fields that config.json omits: the defaults of the family's config class in transformers. A null head_dim
# means hidden_size / num_attention_heads, a null num_key_value_heads means num_attention_heads, and a null
# sliding_window means no window. Sizes of the network (_SIZES) have no default here.
_COMMON: dict[str, Any] = {
    "hidden_act": "silu",
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "sliding_window": None,
}
_QWEN: dict[str, Any] = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _COMMON
    | {"num_key_value_heads": None, "max_position_embeddings": 2048, "attention_bias": False, "mlp_bias": False},
    "mistral": _COMMON | {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
    "qwen2": _COMMON | _QWEN,
    "qwen3": _COMMON | _QWEN | {"head_dim": 128, "attention_bias": False},
}
_OF_ROPE = ("rope_scaling", "rope_theta", "rope_parameters", "original_max_position_embeddings")
_TYPES = {"rope_type", "type"}
_NULLABLE = {"head_dim", "num_key_value_heads", "sliding_window", "layer_types"}
_MOST_LAYERS = 10_000  # more are an error of config.json, which would take minutes to show
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# Of the block "tokenswift"; `checkpoint` reads the last two.
_BLOCK = ("num_heads", "head_type", "node_set", "expected_tokens", "draft_vocab", "base", "trained_for")
_HEAD_TYPES = get_args(DraftHeadType)


def model_config(config: Mapping[str, Any]) -> ModelConfig:
    """The decoder that a config.json (parsed) describes.

    Families: llama (2, 3.x, Yarn), mistral, qwen2 (2.5, QwQ, the R1 distillations), qwen3. The number of draft heads is
    `tokenswift.num_heads`, or the reference program's `medusa_heads`.

    Raises:
      UserError: unknown family, RoPE type, activation or head type; a bad node set; a missing or impossible field; a
        field that is not known and may change the text.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or family not in _DEFAULTS:
        raise UserError(f"unknown architecture: model_type {family!r} in config.json; known: {', '.join(_DEFAULTS)}")
    if config.get("quantization_config"):
        raise UserError("config.json has a quantization_config; only unquantised weights can be loaded")
    check_known(config)
    missing = [name for name in _SIZES if config.get(name) is None]
    if missing:
        raise UserError(f"config.json lacks {', '.join(missing)}")
    fields = dict(_DEFAULTS[family])
    fields |= {k: v for k, v in config.items() if v is not None or (k in fields and k in _NULLABLE)}
    if fields["hidden_act"] not in ("silu", "swish"):  # transformers' two names of one function
        raise UserError(f"hidden_act is {fields['hidden_act']!r}; only 'silu' is known")

    size, layers, heads = (
        _positive(fields, name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")
    )
    if layers > _MOST_LAYERS:
        raise UserError(f"num_hidden_layers in config.json is {layers}; no model has more than {_MOST_LAYERS:,}")
    if fields["num_key_value_heads"] is None:
        fields["num_key_value_heads"] = heads
    kv_heads = _positive(fields, "num_key_value_heads")
    if heads % kv_heads:
        raise UserError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    if fields["head_dim"] is None and size % heads:
        raise UserError(f"hidden_size {size} is not a multiple of num_attention_heads {heads}; head_dim is needed")
    if fields["head_dim"] is None:
        fields["head_dim"] = size // heads
    head_dim = _positive(fields, "head_dim")
    if head_dim % 2:
        raise UserError(f"head_dim is {head_dim}; RoPE needs an even one")

    max_positions = _positive(fields, "max_position_embeddings")
    rope = rope_config(config, max_positions)
    longest, plain = longest_text(config, max_positions), plain_positions(config)
    attention_bias = _flag(fields, "attention_bias")
    num_draft_heads, draft_head_type, node_sets, expected, draft_vocab = _draft_heads(
        config, _positive(fields, "vocab_size")
    )
    return ModelConfig(
        model_type=family,
        vocab_size=_positive(fields, "vocab_size"),
        hidden_size=size,
        intermediate_size=_positive(fields, "intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=positive_number("rms_norm_eps in config.json", fields["rms_norm_eps"]),
        rope=rope,
        max_position_embeddings=longest if plain is None else min(longest, plain),
        tie_word_embeddings=_flag(fields, "tie_word_embeddings"),
        qkv_bias=family == "qwen2" or attention_bias,
        output_bias=attention_bias and family != "qwen2",
        mlp_bias=_flag(fields, "mlp_bias") if family == "llama" else False,
        qk_norm=family == "qwen3",
        sliding_windows=_sliding_windows(family, fields, layers),
        num_draft_heads=num_draft_heads,
        draft_head_type=draft_head_type,
        node_sets=node_sets,
        expected_tokens=expected,
        draft_vocab=draft_vocab,
        limited_by="dual_chunk_attention_config" if plain is not None and plain < longest else None,
    )


def rope_override(config: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config.json with other RoPE parameters and a `max_position_embeddings` that grows with them.

    With a `rope_type` the override replaces the whole scaling (theta stays unless given, and
    `original_max_position_embeddings` defaults to the model's training length); without one it changes single fields.
    `max_position_embeddings` becomes factor times the original length, or the number given.

    Raises:
      UserError: the override is empty or not an object, or gives impossible parameters.
    """
    if not isinstance(override, Mapping) or all(value is None for value in override.values()):
        raise UserError(
            'rope_override must be a JSON object such as {"rope_type": "yarn", "factor": 4.0}',
            arguments=("rope_override",),
        )
    stretched = override.get("max_position_embeddings")
    if stretched is not None and not is_whole(stretched, 1):
        raise UserError(
            f"max_position_embeddings of rope_override is {stretched!r:.80}; it must be a positive integer",
            arguments=("rope_override",),
        )
    override = {name: value for name, value in override.items() if name not in _TYPES or value is not None}
    replaces = not _TYPES.isdisjoint(override)
    changed = {name: value for name, value in config.items() if name not in _OF_ROPE}
    # A type that this package does not know, such as dynamic, may be replaced.
    model_config(changed if replaces else config)
    positions = trained_positions(config)
    current = {"original_max_position_embeddings": positions}
    if replaces:
        current |= rope_origin(config)
    else:
        current |= rope_parameters(config, positions)
    rope = {name: value for name, value in (current | dict(override)).items() if name != "max_position_embeddings"}
    changed["rope_parameters"] = rope
    after = model_config(changed).rope
    if unused := sorted(unused_fields(after.type) & set(override)):
        raise UserError(
            f"rope_override has {', '.join(unused)}, for which RoPE type {after.type!r} has no use; leave it out, or "
            "name a rope_type that uses it",
            arguments=("rope_override",),
        )
    if stretched is None:
        original = rope["original_max_position_embeddings"]
        stretched = positions if after.factor is None else max(positions, int(after.factor * original))
    changed["max_position_embeddings"] = stretched
    model_config(changed)
    return changed


def trained_positions(config: Mapping[str, Any]) -> int:
    """`max_position_embeddings` of a config.json that `model_config` accepts, or the family's default."""
    given = config.get("max_position_embeddings")
    return _DEFAULTS[config["model_type"]]["max_position_embeddings"] if given is None else given


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise UserError(f"{name} in config.json is {value!r}; it must be true or false")
    return value


def _positive(fields: Mapping[str, Any], name: str) -> int:
    value = fields[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{name} in config.json is {value!r}; it must be a positive integer")
    return value


def _sliding_windows(family: str, fields: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    kinds = fields.get("layer_types")
    if family == "llama":
        windows: tuple[int | None, ...] = (None,) * layers
    elif family == "mistral":
        windows = (_window(fields),) * layers
    else:
        window = _window(fields) if _flag(fields, "use_sliding_window") else None
        if kinds is None:
            first = _whole(fields, "max_window_layers")
            windows = tuple(window if index >= first else None for index in range(layers))
        else:
            windows = tuple(window if kind == "sliding_attention" else None for kind in kinds)
    if kinds is not None:
        if not isinstance(kinds, list):
            raise UserError(f"layer_types in config.json is {kinds!r}; it must be a list or null")
        meant = ["full_attention" if window is None else "sliding_attention" for window in windows]
        if list(kinds) != meant or len(windows) != layers:
            raise UserError(
                f"layer_types in config.json does not fit {layers} {family} layers and the sliding window settings; "
                f"they give {meant}"
            )
    return windows


def _whole(fields: Mapping[str, Any], name: str) -> int:
    value = fields[name]
    if type(value) is not int or value < 0:
        raise UserError(f"{name} in config.json is {value!r}; it must be a whole number")
    return value


def _window(fields: Mapping[str, Any]) -> int | None:
    return None if fields["sliding_window"] is None else _positive(fields, "sliding_window")


def _draft_heads(
    config: Mapping[str, Any], vocab: int
) -> tuple[int, Any, NodeSets, ExpectedTokens | None, DraftVocab | None]:
    block = config.get("tokenswift")
    if block is None:
        block = {"num_heads": config.get("medusa_heads") or 0}
    if not isinstance(block, Mapping) or "num_heads" not in block:
        raise UserError('"tokenswift" in config.json must be an object with "num_heads"')
    check_block(block, _BLOCK)
    count = block["num_heads"]
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise UserError(f"the number of draft heads in config.json is {count!r}; it must be an integer, 0 or more")
    kind = block.get("head_type", "chained")
    if kind not in _HEAD_TYPES:
        raise UserError(f"unknown draft head type {kind!r} in config.json; known: {', '.join(_HEAD_TYPES)}")
    known = parse_draft_vocab(block.get("draft_vocab"), vocab)
    expected = parse_expected_tokens(block.get("expected_tokens"), count)
    return count, kind, parse_node_sets(block.get("node_set"), count), expected, known if count else None
