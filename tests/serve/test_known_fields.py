"""Every field of OpenAI's and vLLM's requests is honoured, or refused by its name; its neutral value is accepted."""

import math

import numpy as np
import pytest
from live import until

from tokenswift_jax.scoring import score_tokens

PROMPT = "It was late in the autumn, and the road"
TURN = [{"role": "user", "content": PROMPT}]
BODIES = {
    "/v1/completions": {"prompt": PROMPT, "max_tokens": 1, "seed": 1},
    "/v1/chat/completions": {"messages": TURN, "max_tokens": 1, "seed": 1},
    "/v1/responses": {"input": PROMPT, "max_output_tokens": 1, "store": False},
    "/v1/runs": {"prompt": PROMPT, "max_tokens": 1},
    "/tokenize": {"messages": TURN},
}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
# Values that this server cannot honour, and values that ask for nothing.
EVERYWHERE = {
    "frequency_penalty": (0.5, 0),
    "presence_penalty": (-1, 0.0),
    "logit_bias": ({"50": 10}, {}),
    "response_format": ({"type": "json_object"}, {"type": "text"}),
    "structured_outputs": ({"regex": "a+"}, None),
    "guided_json": ({"type": "object"}, None),
    "guided_regex": ("a+", None),
    "guided_choice": (["a", "b"], None),
    "guided_grammar": ("root ::= a", None),
    "guided_decoding_backend": ("xgrammar", None),
    "guided_whitespace_pattern": (" ", None),
    "structural_tag": ("{}", None),
    "json_schema": ({"type": "object"}, None),
    "regex": ("a+", None),
    "ebnf": ("root ::= a", None),
    "grammar": ("root ::= a", None),
    "use_beam_search": (True, False),
    "length_penalty": (2.0, 1.0),
    "early_stopping": (True, False),
    "skip_special_tokens": (False, True),
    "include_stop_str_in_output": (True, False),
    "repetition_detection": ({"min_count": 3}, None),
    "logits_processors": (["a.b"], []),
    "priority": (3, 0),
    "kv_transfer_params": ({"a": 1}, None),
    "vllm_xargs": ({"a": 1}, {}),
    "mm_processor_kwargs": ({"a": 1}, None),
    "media_io_kwargs": ({"a": 1}, None),
    "prompt_embeds": ("AAAA", None),
    "thinking_token_budget": (100, None),
    "truncation_side": ("right", "left"),
    "stream_interval": (4, None),
    "service_tier": ("flex", "auto"),
    "typical_p": (0.5, 1),
    "min_p": (2, 0),
    "top_p": (1.5, 1),
    "top_k": (-2, -1),
    "temperature": (-1, 1),
    "seed": (2**63 - 1, 7),
    "stop_token_ids": ([-1], []),
    "bad_words": (["a longer phrase of words"], []),
    "truncate_prompt_tokens": (-1, None),
    "no_repeat_ngram_size": (3, 0),
    "dry_multiplier": (0.8, 0),
    "xtc_probability": (0.5, 0),
    "mirostat": (2, 0),
    "cache_salt": (5, "mine"),
}
ANSWERS = {
    "best_of": (3, 1),
    "n": (17, 1),
    "prompt_logprobs": (-1, None),
    "stream_options": ({"include_usage": True}, None),
    "logprobs": (21, None),
    "prediction": ({"type": "other"}, None),
}
TEMPLATES = {
    "tools": ([TOOL], []),
    "tool_choice": ("required", "none"),
    "functions": ([{"name": "f"}], []),
    "function_call": ({"name": "f"}, "none"),
    "chat_template": ("{{ messages }}", None),
    "chat_template_kwargs": ({"a": 1}, {}),
    "documents": ([{"text": "a"}], []),
    "continue_final_message": (True, False),
}
COMPLETIONS = {
    "n": (3, 1),
    "best_of": (3, 1),
    "suffix": ("the end", ""),
    "echo": (True, False),
    "logprobs": (2, False),
    "top_logprobs": (3, 0),
    "prompt_logprobs": (3, None),
    "prediction": ({"type": "content", "content": "a"}, None),
    "return_token_ids": (True, False),
    "max_completion_tokens": (5, None),
}
CHAT = {
    "modalities": (["text", "audio"], ["text"]),
    "audio": ({"voice": "alloy", "format": "wav"}, None),
    "web_search_options": ({}, None),
    "reasoning_effort": ("high", "none"),
    "verbosity": ("low", "medium"),
    "store": (True, False),
    "add_generation_prompt": (False, True),
    "add_special_tokens": (True, False),
    "echo": (True, False),
    "top_logprobs": (3, 0),
}
RESPONSES = {
    "reasoning": ({"effort": "high"}, {"effort": "none", "summary": None}),
    "reasoning_effort": ("high", "none"),
    "max_tokens": (5, None),
    "add_generation_prompt": (False, True),
    "conversation": ("conv_1", None),
    "include": (["message.output_text.logprobs"], []),
    "prompt": ({"id": "pmpt_1"}, None),
    "truncation": ("auto", "disabled"),
    "max_tool_calls": (3, None),
    "context_management": ([{"type": "compaction"}], []),
    "enable_response_messages": (True, False),
    "previous_input_messages": ([{"role": "user"}], None),
    "text": ({"format": SCHEMA}, {"format": {"type": "text"}, "verbosity": "medium"}),
    "background": (True, False),  # without `store`
}
FIELDS = {
    "/v1/completions": EVERYWHERE | ANSWERS | {"suffix": ("the end", "")},
    "/v1/chat/completions": EVERYWHERE | ANSWERS | TEMPLATES | CHAT | {"logprobs": (3, False)},
    "/v1/responses": EVERYWHERE | COMPLETIONS | TEMPLATES | RESPONSES,
    "/v1/runs": EVERYWHERE | COMPLETIONS | TEMPLATES | {"stream": (True, False), "store": (False, True)},
    "/tokenize": TEMPLATES | {"truncate_prompt_tokens": (5, None)},
}


@pytest.mark.parametrize("path", FIELDS)
def test_a_value_that_cannot_be_honoured_is_refused_by_name(live, path):
    accepted = []
    for name, (wrong, _) in FIELDS[path].items():
        status, headers, answer = live.send(path, BODIES[path] | {name: wrong})
        error = answer["error"] if status == 400 else {"param": None, "message": ""}
        if (error["param"] or "").split(".")[0] == name and name in error["message"]:
            assert headers["x-should-retry"] == "false"
        else:
            accepted.append((name, status, answer))
    assert accepted == []


@pytest.mark.parametrize("path", [path for path in FIELDS if path.startswith("/v1")])
def test_a_number_that_no_float_holds_is_refused_by_name(live, path):
    for name in ("temperature", "top_p", "min_p", "eta_cutoff", "repetition_penalty", "seed", "frequency_penalty"):
        status, _, answer = live.send(path, BODIES[path] | {name: 10**400})
        assert (status, answer["error"]["param"]) == (400, name)


@pytest.mark.parametrize("path", FIELDS)
def test_a_value_that_asks_for_nothing_is_accepted(live, path):
    neutral = {name: value for name, (_, value) in FIELDS[path].items()}
    status, headers, answer = live.send(path, BODIES[path] | neutral)
    assert status < 300, answer
    assert headers["x-ignored-fields"] is None
    _, headers, _ = live.send(path, BODIES[path] | {"nobody_knows_this": 1})
    assert headers["x-ignored-fields"] == "nobody_knows_this"


def test_a_run_that_goes_on_and_a_branch_refuse_what_they_cannot_honour(live):
    run = live.send("/v1/runs", {"prompt": PROMPT, "max_tokens": 6, "seed": 1, "ignore_eos": True})[2]["id"]
    until(lambda: live.send(f"/v1/runs/{run}")[2]["state"] == "finished", "it does not end")
    of_parent = {"stop": ["x"], "stop_token_ids": [5], "min_tokens": 3, "ignore_eos": True, "messages": TURN}
    refused = {"logit_bias": {"1": 1}, "response_format": {"type": "json_object"}, "n": 3, **of_parent}
    for path, more in (("branch", {"at": 2}), ("continue", {"max_tokens": 9})):
        own = {"seed": 5, "top_k": 3, "bad_words": ["the"]} if path == "continue" else {"seed": 1.5, "top_k": -2}
        for name, value in (refused | own).items():
            status, _, answer = live.send(f"/v1/runs/{run}/{path}", more | {name: value})
            assert (status, answer["error"]["param"]) == (400, name)
            assert name in answer["error"]["message"]
        status, _, answer = live.send(f"/v1/runs/{run}/{path}", more | {"model": "another"})
        assert (status, answer["error"]["code"]) == (404, "model_not_found")
    changed = {"at": 2, "seed": 7.0, "top_k": -1, "allowed_token_ids": [40, 41, 42]}
    _, _, branch = live.send(f"/v1/runs/{run}/branch", changed)
    assert (branch["settings"]["seed"], branch["settings"]["top_k"]) == (7, None)
    assert len(branch["settings"]["suppress_tokens"]) == live.model.config.vocab_size - 3


@pytest.mark.parametrize("top", [0, 3])
def test_log_probabilities_of_the_prompt_have_vllms_form(live, top):
    """One object for each token but the first: the token itself and the likeliest ones, with rank and text."""
    ids = live.model.tokenizer(PROMPT)["input_ids"]
    (scored,) = score_tokens(live.model, [ids], live.model.config.vocab_size)
    body = {"max_tokens": 2, "seed": 1, "prompt_logprobs": top}
    whole = live.post("/v1/completions", prompt=[PROMPT, PROMPT], n=2, **body)
    found = whole["choices"][0]["prompt_logprobs"]
    assert all(choice["prompt_logprobs"] == found for choice in whole["choices"])
    assert live.post("/v1/chat/completions", messages=TURN, **body)["prompt_logprobs"] == found
    assert (len(found), found[0]) == (len(ids), None)
    for place, (token, shown) in enumerate(zip(ids[1:], found[1:], strict=True)):
        order = scored.top_ids[place].tolist()
        assert [int(each) for each in shown] == list(dict.fromkeys([token, *order[:top]]))
        for each, entry in shown.items():
            rank = order.index(int(each)) + 1
            assert entry["rank"] == rank
            assert math.isclose(entry["logprob"], scored.top_logprobs[place, rank - 1], rel_tol=1e-5, abs_tol=1e-5)
            assert entry["decoded_token"] == live.model.tokenizer.decode([int(each)])
    np.testing.assert_array_equal(scored.greedy, scored.ranks == 1)


def test_log_probabilities_of_the_prompt_are_in_no_stream(live):
    for path in ("/v1/completions", "/v1/chat/completions"):
        status, _, answer = live.send(path, BODIES[path] | {"prompt_logprobs": 1, "stream": True})
        assert (status, answer["error"]["param"]) == (400, "prompt_logprobs")
