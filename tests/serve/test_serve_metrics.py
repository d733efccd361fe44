"""Metrics count what was served, by names that dashboards know."""

import time

import pytest
from live import PROMPT, RUNS, begin, ended, state, until
from prometheus_client.parser import text_string_to_metric_families

pytest.importorskip("starlette")
from tokenswift_jax.serve.metrics import Metrics


def read(live):
    """The samples of `/metrics`: name and labels to value."""
    content = live.send("/metrics")[2].decode()
    return {
        (sample.name.removeprefix("tokenswift:"), *sorted(set(sample.labels.values()) - {"demo"})): sample.value
        for family in text_string_to_metric_families(content)
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def test_counts_of_known_requests(live):
    live.emptied()
    before = read(live)
    text = live.alone(PROMPT, 20, seed=1).text
    # A predicted text is drafted at any cost; what else is drafted depends on the times that were measured here.
    predicted = {"type": "content", "content": text}
    live.post("/v1/completions", prompt=PROMPT, max_tokens=20, seed=1, n=2, prediction=predicted)
    live.post("/v1/completions", prompt=PROMPT, max_tokens=20, seed=1, stop=[text[5:8]])
    live.emptied()
    after = read(live)

    def more(*name):
        return after.get(name, 0) - before.get(name, 0)

    assert more("request_success_total", "length") == 2
    assert more("request_success_total", "stop") == 1
    for histogram in ("time_to_first_token_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds"):
        assert more(f"{histogram}_count") == 3
    assert more("request_prompt_tokens_sum") == 3 * len(live.model.tokenizer(PROMPT)["input_ids"])
    assert more("generation_tokens_total") >= more("request_generation_tokens_sum") >= 40
    sources = sum(more("emitted_tokens_by_source_total", source) for source in ("target", "head", "ngram"))
    assert sources == more("generation_tokens_total")
    depths = [name for name in after if name[0] == "spec_decode_num_accepted_tokens_per_pos_total"]
    assert sum(more(*name) for name in depths) == more("spec_decode_num_accepted_tokens_total") > 0
    assert after["num_requests_running",] == after["num_requests_waiting",] == after["kv_cache_usage_perc",] == 0
    assert after["cache_bytes",] > 0
    assert after["host_bytes_available",] > 0


def test_the_names_of_vllm_on_request():
    assert b"vllm:num_requests_running" in Metrics("demo", "vllm").text


def test_runs_that_go_on_count_their_own_tokens_and_no_pauses(live):
    live.emptied()
    parent = begin(live, 60, seed=4)
    ended(live, parent)
    before, begun = read(live), time.perf_counter()
    branch = live.send(f"{RUNS}/{parent}/branch", {"at": 55})[2]["id"]
    ended(live, branch)
    live.post(f"{RUNS}/{parent}/continue", max_tokens=70)
    ended(live, parent)
    slow = begin(live, 200, seed=5)
    until(lambda: state(live, slow)["tokens"], "it does not begin")
    live.post(f"{RUNS}/{slow}/pause")
    written = state(live, slow)["tokens"]
    time.sleep(1)
    live.post(f"{RUNS}/{slow}/resume")
    ended(live, slow)
    live.emptied()
    unpaused = time.perf_counter() - begun - 1
    after = read(live)

    def more(name):
        return after.get((name,), 0) - before.get((name,), 0)

    assert 0 < written < 200
    assert more("request_generation_tokens_sum") == 5 + 10 + 200
    assert more("request_prompt_tokens_count") == more("request_generation_tokens_count") == 3
    assert more("time_to_first_token_seconds_count") == 1
    assert more("request_decode_time_seconds_sum") <= more("e2e_request_latency_seconds_sum") < unpaused
