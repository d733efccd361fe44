"""Fields of OpenAI's and vLLM's requests that this server does not honour, with the values that ask for nothing."""

from __future__ import annotations

from typing import Any

# Fields that ask for a text that this server does not write, with the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": (),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "structural_tag": (),
    "grammar": (),
    "json_schema": (),
    "regex": (),
    "ebnf": (),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "typical_p": (1,),
    "top_a": (0,),
    "top_n_sigma": (0, -1),
    "tfs": (1,),
    "tfs_z": (1,),
    "epsilon_cutoff": (0,),
    "no_repeat_ngram_size": (0,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
    "mirostat": (0,),
    "mirostat_mode": (0,),
    "dynatemp_range": (0,),
    "smoothing_factor": (0,),
    "banned_strings": (),
    "banned_phrases": (),
    "banned_tokens": (),
    "skip_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "repetition_detection": (),
    "logits_processors": (),
    "priority": (0,),
    "lora_request": (),
    "kv_transfer_params": (),
    "vllm_xargs": (),
    "mm_processor_kwargs": (),
    "media_io_kwargs": (),
    "prompt_embeds": (),
    "thinking_token_budget": (),
    "include_reasoning": (True, False),
    "truncation_side": ("left",),
    "cache_prompt": (True,),
    "stream_interval": (),
    "service_tier": ("auto", "default"),
}
# Fields that name the caller or hint at a cache; no text depends on them.
HARMLESS = (
    *("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "request_id"),
    *("spaces_between_special_tokens", "metadata"),
)
# Fields that change how a conversation becomes a prompt.
OF_TEMPLATES: dict[str, tuple[Any, ...]] = {
    "tools": (),
    "tool_choice": ("none", "auto"),
    "functions": (),
    "function_call": ("none", "auto"),
    "chat_template": (),
    "chat_template_kwargs": (),
    "documents": (),
    "continue_final_message": (False,),
}
# Fields of OpenAI's answers to a conversation.
OF_ANSWERS: dict[str, tuple[Any, ...]] = {
    "modalities": (["text"],),
    "audio": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
}
# Fields of completions and chat completions, for surfaces whose objects have no place for what they ask for.
OF_COMPLETIONS: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "suffix": (),
    "echo": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "prompt_logprobs": (),
    "prediction": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "max_completion_tokens": (),
}
