"""The fields of config.json that this package reads or may ignore; every other field may change the text."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from tokenswift_jax.errors import UserError, shortened

# Fields that the readers of `models` and `checkpoint` use.
_READ = {
    *("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "tie_word_embeddings", "attention_bias"),
    *("mlp_bias", "sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
    *("max_position_embeddings", "original_max_position_embeddings", "rope_theta", "rope_scaling", "rope_parameters"),
    *("quantization_config", "dual_chunk_attention_config", "tokenswift", "medusa_heads", "eos_token_id"),
}
_NOT_OF_THE_TARGET = {"tokenswift", "medusa_heads", "eos_token_id"}
# Fields about training, files, labels, other tasks and the way in which a library computes.
_HARMLESS = {
    *("_name_or_path", "_commit_hash", "architectures", "auto_map", "transformers_version", "torch_dtype", "dtype"),
    *("bos_token_id", "pad_token_id", "sep_token_id", "unk_token_id", "cls_token_id", "decoder_start_token_id"),
    *("bos_token", "eos_token", "pad_token", "unk_token", "tokenizer_class", "model_max_length", "max_sequence_length"),
    *("initializer_range", "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout"),
    *("attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout", "resid_dropout", "embed_dropout"),
    *("use_cache", "pretraining_tp", "gradient_checkpointing", "chunk_size_feed_forward", "use_bfloat16"),
    *("output_attentions", "output_hidden_states", "output_router_logits", "router_aux_loss_coef", "return_dict"),
    *("return_dict_in_generate", "output_scores", "torchscript", "tf_legacy_loss", "is_decoder", "keys_to_ignore"),
    *("problem_type", "id2label", "label2id", "num_labels", "finetuning_task", "task_specific_params", "prefix"),
    *("_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal", "attn_implementation"),
    *("_flash_attn_2_enabled", "use_flash_attention", "use_flash_attn", "_experts_implementation", "torch_compile"),
    *("unsloth_version", "unsloth_fixed", "is_llama_config", "transformers.js_config", "license", "name", "neuron"),
    *("dataset", "languages", "model_name", "save_pretrained", "library_name", "tie_encoder_decoder"),
}
# Settings of `generate` that transformers 4 wrote here; they apply where there is no generation_config.json.
OF_GENERATION = {
    *("do_sample", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "num_beams"),
    *("num_beam_groups", "diversity_penalty", "early_stopping", "max_length", "min_length", "max_new_tokens"),
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences"),
    *("forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty"),
    *("suppress_tokens", "begin_suppress_tokens"),
}
# Fields that change nothing at these values.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "clip_qkv": (),
    "embedding_multiplier": (1,),
    "is_causal": (True,),
    "is_encoder_decoder": (False,),
    "lm_head_bias": (False,),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "partial_rotary_factor": (1,),
    "residual_multiplier": (1,),
    "rope_interleaved": (False,),
    "tie_last_hidden_states": (False,),
    "use_mrope": (False,),
    "use_qk_norm": (False,),
    "use_rope": (True,),
}
_DUAL_CHUNK = {"chunk_size", "local_size", "original_max_position_embeddings"}  # `plain_positions` reads them
_DUAL_CHUNK_NEUTRAL: dict[str, tuple[Any, ...]] = {"sparse_attention_enabled": (False,)}
_EMPTY: tuple[Any, ...] = (None, {}, [], "")


def check_known(config: Mapping[str, Any]) -> None:
    """Refuses fields that this package does not know and that may change the text; empty ones ask for nothing.

    Raises:
      UserError: there are such fields; the message names them all.
    """
    unknown = _unknown(config, _READ | _HARMLESS | OF_GENERATION, _NEUTRAL)
    block = config.get("dual_chunk_attention_config")
    if isinstance(block, Mapping):
        inside = _unknown(block, _DUAL_CHUNK, _DUAL_CHUNK_NEUTRAL)
        unknown |= {f"dual_chunk_attention_config.{name}": value for name, value in inside.items()}
    if unknown:
        listed = ", ".join(f"{name} {shortened(value)}" for name, value in unknown.items())
        raise UserError(
            f"config.json has fields that are not known here and may change the text: {listed}; where the model "
            f"computes the same without them as {config.get('model_type')} does, remove them from the file"
        )


def of_the_target(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields on which the target's logits depend: none about drafting, the ends of a text, or other programs."""
    others = _HARMLESS | OF_GENERATION | _NOT_OF_THE_TARGET
    return {name: value for name, value in config.items() if name not in others and value is not None}


def check_block(block: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuses unknown fields of the block "tokenswift", a misspelt name for example; empty ones ask for nothing.

    Raises:
      UserError: there are such fields; the message names them all, and the known ones.
    """
    unknown = _unknown(block, known, {})
    if unknown:
        listed = ", ".join(f"{name} {shortened(value)}" for name, value in unknown.items())
        raise UserError(f'"tokenswift" in config.json has unknown fields: {listed}; known: {", ".join(known)}')


def _unknown(
    given: Mapping[str, Any], known: Collection[str], neutral: Mapping[str, tuple[Any, ...]]
) -> dict[str, Any]:
    return {
        name: value
        for name, value in given.items()
        if name not in known and value not in _EMPTY and not _is_neutral(value, neutral.get(name, ()))
    }


def plain_positions(config: Mapping[str, Any]) -> int | None:
    """The number of positions within which dual chunk attention equals plain attention; None: the file asks for none.

    Positions within one chunk keep their distances, and its successor begins with distances as in plain attention:
    they differ from `chunk_size` on (An et al. 2024, "Training-Free Long-Context Scaling of Large Language Models").
    Beyond its own `original_max_position_embeddings` the attention is scaled, too.

    Raises:
      UserError: `dual_chunk_attention_config` is not an object with a `chunk_size`.
    """
    block = config.get("dual_chunk_attention_config")
    if block is None:
        return None
    names = ("chunk_size", "original_max_position_embeddings")
    given = [block[name] for name in names if block.get(name) is not None] if isinstance(block, Mapping) else []
    if not given or block.get("chunk_size") is None or any(type(size) is not int or size < 1 for size in given):
        raise UserError(
            f"dual_chunk_attention_config in config.json is {shortened(block)}; it must be an object with a chunk_size"
        )
    return min(given)


def _is_neutral(value: Any, neutral: tuple[Any, ...]) -> bool:
    same_kind = (one for one in neutral if isinstance(value, bool) == isinstance(one, bool))
    return any(value == one for one in same_kind)
