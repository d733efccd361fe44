"""No request makes the server fail: generated bodies, queries and paths over every route of the OpenAPI document."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

pytest.importorskip("starlette")
from tokenswift_jax.serve.app import ROUTES
from tokenswift_jax.serve.openapi import BODIES

TURN = {"role": "user", "content": "It"}
# Bodies that are served, from which wrong ones are made.
GOOD = {
    "/v1/completions": {"prompt": "It", "max_tokens": 1},
    "/v1/chat/completions": {"messages": [TURN], "max_tokens": 1},
    "/v1/responses": {"input": "It", "max_output_tokens": 1},
    "/v1/runs": {"prompt": "It", "max_tokens": 1},
    "/v1/runs/{id}/branch": {"at": 1, "append": [5], "max_tokens": 3},
    "/v1/runs/{id}/continue": {"max_tokens": 5},
    "/tokenize": {"prompt": "It"},
    "/detokenize": {"tokens": [5]},
}
FIELDS = sorted({name for body in BODIES.values() for name in body["properties"]})
REFUSED = ("tools", "logit_bias", "response_format", "suffix", "best_of", "reasoning", "text", "prompt_logprobs")
# Values near the borders of what is allowed, of every kind of JSON.
NUMBERS = (0, 1, 2, -1, 20, 21, 240, 2**31, 2**32, 2**63, -(2**70), 10**400, 0.5, -0.0, 1.0, 1e308, 1e-320)
TEXTS = ("", " ", "It", "\x00", "\ud7ff", "é" * 300, "<|endoftext|>", "null", "pause", "end", "demo")
LISTS = ([], [[]], [0], [5, 6], [-1], [2**40], [True], [None], ["a", 5], [[5], "a"], ["a"] * 200, [TURN], [TURN] * 50)
PART = {"type": "text", "text": "a"}
OBJECTS = ({}, {"type": "content", "content": "It"}, {"type": "content", "content": [PART, 5]}, {"type": "text"})
OTHERS = (True, False, None, [{"role": "user"}], [{"role": 5, "content": 5}], {"include_usage": True}, {"a": [{}]})
ODD = st.sampled_from([*NUMBERS, *TEXTS, *LISTS, *OBJECTS, *OTHERS])
ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
CHANGES = st.dictionaries(st.sampled_from([*FIELDS, *REFUSED]), ODD | ODD | ANY, min_size=1, max_size=3)
METHODS = [(route.path.replace(":path", ""), method) for route in ROUTES for method in sorted(route.methods or ())]
ARABIC = "%D9%A3"  # a decimal digit to Python
PIECES = st.sampled_from(["1", "-1", "9" * 12, ARABIC, "..", "%2e%2e", "a%00b", "%ff", "txt", "md", "jsonl", "x" * 300])
AFTER = (
    "",
    "?after=-1",
    "?after=%ff",
    f"?after={ARABIC}",
    "?starting_after=9&stream=true",
    "?starting_after=x&stream=true",
)
QUERIES = st.sampled_from([*AFTER, "?logprobs=21", "?logprobs=2", "?top=x", "?top=3"])
VERBS = [pair for pair in METHODS if pair[0] not in GOOD or pair[1] != "POST"]


def seen(live, method, path, body=None):
    """The status of an answer that has the right form."""
    status, _, answer = live.send(path, body, method)
    assert status < 500, (method, path, body, answer)
    if isinstance(answer, bytes):
        assert b"Traceback" not in answer
        assert b'"server_error"' not in answer, (method, path, body, answer)
    elif status >= 400:
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        assert "\n" not in answer["error"]["message"]
        assert "Traceback" not in answer["error"]["message"]
    return status


@pytest.fixture(scope="module")
def ended(live):
    """A stored run and a stored response, both with tokens."""
    run = live.send("/v1/runs", {"prompt": "It", "max_tokens": 4, "seed": 1})[2]["id"]
    response = live.post("/v1/responses", input="It", max_output_tokens=2)["id"]
    live.emptied()
    return {"runs": run, "responses": response}


@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.long)])
def test_no_body_makes_the_server_fail(live, ended, count):
    statuses = []

    @settings(max_examples=count, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(path=st.sampled_from(sorted(GOOD)), changes=CHANGES, dropped=st.sets(st.sampled_from(FIELDS), max_size=2))
    def one(path, changes, dropped):
        kept = {name: value for name, value in GOOD[path].items() if name not in dropped}
        body = {**kept, **changes}
        statuses.append(seen(live, "POST", path.replace("{id}", ended["runs"]), body))

    one()
    assert len(statuses) >= count
    assert sum(status >= 400 for status in statuses) >= count / 3
    assert any(status < 300 for status in statuses)
    left_alone(live)


@pytest.mark.parametrize("count", [30, pytest.param(500, marks=pytest.mark.long)])
def test_no_path_or_query_makes_the_server_fail(live, ended, count):
    @settings(max_examples=count, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(pair=st.sampled_from(VERBS), piece=PIECES, query=QUERIES, known=st.booleans(), body=st.none() | ODD)
    def one(pair, piece, query, known, body):
        path, method = pair
        kind = path.split("/")[2] if path.startswith("/v1/") else ""
        known = known and method != "DELETE"  # the next request asks for it again
        path = path.replace("{id}", ended.get(kind, piece) if known else piece)
        for name in ("{name}", "{kind}", "{at}", "{id}"):
            path = path.replace(name, piece)
        given = json.dumps(body).encode() if method == "POST" else None
        if method == "HEAD":
            assert live.send(path + query, None, method)[0] < 500 or path == "/ready"
        else:
            seen(live, method, path + query, given)

    one()
    left_alone(live)


def left_alone(live):
    """Nothing runs, waits or takes a slot, the gauges say so, and the engine works."""
    live.emptied()
    text = live.send("/metrics")[2].decode()
    for gauge in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert f'tokenswift:{gauge}{{model_name="demo"}} 0.0' in text
    assert live.service.scheduler.error is None
    assert live.post("/v1/completions", prompt="It", max_tokens=1)["choices"]


def test_the_document_names_every_route_and_the_fields_are_known(live, ended):
    document = live.send("/openapi.json")[2]
    listed = {(path, method) for path, item in document["paths"].items() for method in item}
    routed = {(path, method.lower()) for path, method in METHODS if method != "HEAD"}
    assert listed == {(path, method) for path, method in routed if path != "/" and not path.startswith("/page/")}
    assert set(BODIES) == set(GOOD)
    for path, schema in BODIES.items():
        for name in schema["properties"]:
            if name not in GOOD[path]:
                value = "It" if name == "prompt" else ["no", 5]
                body = {name: value} if name in ("content", "messages") else {**GOOD[path], name: value}
                status, headers, answer = live.send(path.replace("{id}", ended["runs"]), body)
                # A field that nobody reads would have no effect, and the answer would be a success.
                assert status >= 400 or "x-ignored-fields" not in headers, (path, name, answer)


@pytest.mark.long
def test_requests_that_schemathesis_makes_of_the_document(live):
    """`pip install schemathesis`: right and wrong requests of every operation; answers are those of the document."""
    schemathesis = pytest.importorskip("schemathesis")
    checks = pytest.importorskip("schemathesis.specs.openapi.checks")
    wanted = [schemathesis.checks.not_a_server_error, checks.status_code_conformance]
    wanted += [checks.content_type_conformance, checks.response_schema_conformance]
    document, counted = schemathesis.openapi.from_url(f"http://127.0.0.1:{live.port}/openapi.json"), 0
    modes = list(schemathesis.GenerationMode)
    for found in document.get_all_operations():
        operation = found.ok()
        for mode in modes:

            @settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy(generation_mode=mode))
            def one(case):
                nonlocal counted
                counted += 1
                case.call_and_validate(checks=wanted)

            try:
                one()
            except Unsatisfiable:  # an operation without parameters has no wrong requests
                assert mode is not schemathesis.GenerationMode.POSITIVE
    assert counted > 500
    left_alone(live)
