"""Names, keys, origins, sizes: what the guard refuses, and that the refusal tells nothing else."""

import socket

import pytest
from live import WAIT

pytest.importorskip("starlette")
from tokenswift_jax.errors import UserError
from tokenswift_jax.serve import cli
from tokenswift_jax.serve.security import Guard, Keys

BODY = {"prompt": "It was", "max_tokens": 2}
PATHS = ("/v1/models", "/metrics", "/tokenizer_info", "/v1/nothing", "/page/nothing")


def test_keys_are_compared_whole_and_name_their_owners():
    keys = Keys(["first", "second"])
    assert keys.owner("first") != keys.owner("second")
    assert [keys.owner(wrong) for wrong in (None, "", "firs", "first ", "FIRST", "\udcff")] == [None] * 6
    anyone = Keys()
    assert anyone.owner(None) == ""
    assert anyone.owner("a") == Keys(["a"]).owner("a")


def test_a_method_that_a_path_does_not_serve(live):
    for method in ("PUT", "OPTIONS"):
        status, headers, answer = live.send("/v1/completions", BODY, method)
        assert (status, headers["allow"]) == (405, "POST")
        assert method in answer["error"]["message"]


@pytest.fixture
def guarded(live):
    """The live server's application behind a guard with keys."""
    app = live.server.config.loaded_app
    while not isinstance(app, Guard):
        app = app.app
    keys, app._keys = app._keys, Keys(["secret", "other"])
    yield live
    app._keys = keys


def test_everything_but_health_needs_a_key(guarded):
    for path in ("/health", "/ready", "/", "/page/main.js"):
        assert guarded.send(path)[0] == 200
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}, {"x-api-key": "secre"}):
        for path in PATHS:
            status, answered, body = guarded.send(path, headers=headers)
            assert status == 401
            assert answered["www-authenticate"] == "Bearer"
            assert body["error"]["code"] == "invalid_api_key"
        assert guarded.send("/v1/completions", BODY, headers=headers)[0] == 401
    for headers in ({"authorization": "Bearer secret"}, {"x-api-key": "other"}):
        assert guarded.send("/v1/models", headers=headers)[0] == 200
        assert guarded.send("/v1/completions", BODY, headers=headers)[0] == 200
        assert guarded.send("/v1/nothing", headers=headers)[0] == 404


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "",
        "[::",
        "localhost@x.y",
        "x.y@localhost",
        "localhost/x",
    ],
)
def test_other_names_of_the_server_are_refused(live, host):
    """As a page has that rebinds its name to a loopback address."""
    for path in ("/health", *PATHS):
        assert live.send(path, headers={"host": host})[0] in (400, 403)
    assert live.send("/v1/models", headers={"host": "LOCALHOST:1"})[0] == 200


def test_pages_of_other_origins_change_nothing(live):
    for origin in ("https://evil.example", "null", "http://localhost.evil.example", "http://[::1"):
        status, _, body = live.send("/v1/completions", BODY, headers={"origin": origin})
        assert (status, body["error"]["type"]) == (403, "permission_error")
    assert live.send("/v1/completions", BODY, headers={"origin": f"http://localhost:{live.port}"})[0] == 200


def test_a_fault_of_the_program_has_the_form_of_other_errors(live, monkeypatch):
    def fault(_):
        raise ZeroDivisionError("no answer tells this")

    monkeypatch.setattr(type(live.service.metrics), "text", property(fault))
    status, headers, answer = live.send("/metrics")
    assert (status, answer["error"]["type"]) == (500, "server_error")
    assert headers["x-request-id"] in answer["error"]["message"]
    assert "division" not in answer["error"]["message"]
    assert headers["x-should-retry"] == "false"


def test_answers_have_headers_for_browsers(live):
    for path in ("/health", "/v1/models", "/v1/nothing", "/metrics"):
        headers = live.send(path)[1]
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers


def test_a_body_is_limited_before_it_is_read(live):
    limit = live.service.limits.body_bytes
    with socket.create_connection(("127.0.0.1", live.port), timeout=WAIT) as made:
        made.sendall(
            f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {limit + 1}\r\n\r\n".encode()
        )
        assert made.recv(100).startswith(b"HTTP/1.1 413")


def test_a_prompt_is_limited_before_it_is_tokenised(live, monkeypatch):
    monkeypatch.setattr(live.service, "limits", live.service.limits.__class__(prompt_bytes=1000, body_bytes=5000))
    for path, body in (
        ("/v1/completions", {"prompt": "é" * 501}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * 1001}]}),
        ("/tokenize", {"prompt": "a" * 1001}),
    ):
        status, _, answer = live.send(path, body)
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert live.send("/v1/completions", {"prompt": "a" * 5000})[0] == 413


def test_headers_are_limited(live):
    with socket.create_connection(("127.0.0.1", live.port), timeout=WAIT) as made:
        made.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 70000 + b"\r\n\r\n")
        assert made.recv(100).startswith(b"HTTP/1.1 431")


def test_a_slow_body_times_out(live, monkeypatch):
    monkeypatch.setattr(live.service, "limits", live.service.limits.__class__(body_seconds=0.2))
    with socket.create_connection(("127.0.0.1", live.port), timeout=WAIT) as made:
        made.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n{")
        assert made.recv(100).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"x"', b"1", b"\xff\xfe", b'{"prompt": "\\ud800"}', b"[" * 100_000, b'{"n": NaN}',
     b'{"max_tokens": 1e999}', b'{"max_tokens": ' + b"9" * 5000 + b"}"],
)  # fmt: skip
def test_bodies_that_are_no_objects(live, body):
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/v1/runs"):
        status, _, answer = live.send(path, body)
        assert status == 400
        assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.org"])
def test_nothing_listens_beyond_loopback_without_a_key(host, monkeypatch, capsys):
    monkeypatch.delenv(cli.KEY_VARIABLE, raising=False)
    assert cli.main(["--host", host]) == 2
    line = capsys.readouterr().err
    assert "is not loopback, and there is no key" in line
    assert "--api-key" in line


def test_keys_come_from_flags_a_file_and_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text("one\n\n two \n")
    monkeypatch.setenv(cli.KEY_VARIABLE, "three")
    options = cli._parser("serve").parse_args(["--api-key", "four", "--api-key-file", str(file)])
    assert cli._keys(options) == ["four", "three", "one", "two"]
    file.write_text("\n")
    with pytest.raises(UserError, match="has no keys"):
        cli._keys(options)


def test_a_port_that_is_taken_is_one_line(live, capsys):
    assert cli.main(["--port", str(live.port)]) == 2
    assert f"cannot listen on --host 127.0.0.1 --port {live.port}" in capsys.readouterr().err
