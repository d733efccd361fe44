"""The examples for servers: short, of right syntax, with flags and limits that exist."""

import ast
import configparser
import importlib.util
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

pytest.importorskip("starlette")
from tokenswift_jax.serve import cli, sse
from tokenswift_jax.serve.limits import Limits

FOLDER = Path(__file__).parents[2] / "examples" / "serve"
EXAMPLES = sorted(path for path in FOLDER.iterdir() if path.is_file())


def parsed(words):
    """The options of a command with the program `tokenswift_jax.serve` in it."""
    return cli._parser("serve").parse_args(words[words.index("tokenswift_jax.serve") + 1 :])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_short_and_its_flags_exist(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 40
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    known = set(cli._parser("serve").flags.values()) | {"--no-cache-dir", "--create-home", "--factory"}
    assert set(re.findall(r"(?<![\w-])--[a-z-]+", code)) <= known
    if path.suffix == ".py":
        ast.parse(text)


def test_the_container():
    lines = (FOLDER / "Dockerfile").read_text().replace("\\\n", "").splitlines()
    steps = [line.split(" ", 1) for line in lines if line and not line.startswith("#")]
    assert steps[0][0] == "FROM"
    assert {word for word, _ in steps} <= {
        *("FROM", "ARG", "WORKDIR", "COPY", "RUN", "USER", "ENV", "VOLUME", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL"),
        "ENTRYPOINT",
    }
    given = dict(steps)
    options = parsed(json.loads(given["ENTRYPOINT"]))
    assert (options.host, options.port, str(options.state_dir)) == ("0.0.0.0", int(given["EXPOSE"]), "/state")
    assert given["USER"] != "root"
    check = shlex.split(given["HEALTHCHECK"].removeprefix("CMD "))
    assert check[:2] == ["python", "-c"]
    ast.parse(check[2])
    subprocess.run(["bash", "-n", "-c", given["RUN"]], check=True)


def test_the_unit_of_systemd():
    unit = configparser.ConfigParser(interpolation=None, delimiters=("=",), strict=False)
    unit.optionxform = str
    unit.read(FOLDER / "tokenswift.service")
    assert unit.sections() == ["Unit", "Service", "Install"]
    options = parsed(shlex.split(unit["Service"]["ExecStart"]))
    assert str(options.state_dir) == f"/var/lib/{unit['Service']['StateDirectory']}"
    assert int(unit["Service"]["TimeoutStopSec"]) > 30


def test_the_proxy():
    text = (FOLDER / "nginx.conf").read_text()
    directives = [line.split("#")[0].strip() for line in text.splitlines()]
    assert all(line.endswith((";", "{", "}")) for line in directives if line)
    assert text.count("{") == text.count("}") == 1
    assert "proxy_buffering off;" in directives
    assert int(re.search(r"proxy_read_timeout (\d+)s", text)[1]) > 2 * sse.PING_SECONDS
    assert int(re.search(r"client_max_body_size (\d+)m", text)[1]) * 2**20 == Limits().body_bytes
    assert int(re.search(r"client_body_timeout (\d+)s", text)[1]) == Limits().body_seconds


def test_the_job_of_skypilot():
    job = yaml.safe_load((FOLDER / "skypilot.yaml").read_text())
    options = parsed(shlex.split(job["run"].replace("\\\n", " ")))
    assert options.port == job["resources"]["ports"]
    assert cli.KEY_VARIABLE in job["secrets"]


def test_the_factory_builds_an_application(tmp_path, monkeypatch):
    """The demo, without its start, which compiles."""
    for name, value in {"TOKENSWIFT_API_KEY": "secret", "STATE_DIR": str(tmp_path), "MAX_LENGTH": "512"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MODEL", raising=False)
    spec = importlib.util.spec_from_file_location("asgi_example", FOLDER / "asgi.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    app = module.build()
    assert app._app.state.service.max_length == 512
    assert app._keys.owner("secret")
    assert app._keys.owner("other") is None
