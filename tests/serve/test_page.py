"""The page's files: their headers, and that they ask nobody else and make no markup of text."""

import re
from pathlib import Path

import pytest

pytest.importorskip("starlette")
from starlette.applications import Starlette
from starlette.testclient import TestClient

from tokenswift_jax.serve import page_files
from tokenswift_jax.serve.app import ROUTES
from tokenswift_jax.serve.security import PUBLIC, Guard, Keys

SOURCES = {name: (page_files.FOLDER / name).read_text(encoding="utf-8") for name in sorted(page_files.names())}
SCRIPTS = {name: text for name, text in SOURCES.items() if name.endswith(".js")}
MARKUP = re.compile(
    r"innerHTML|outerHTML|insertAdjacent|document\.write|createContextualFragment|DOMParser|eval\(|setHTML"
)


@pytest.fixture(scope="module")
def client():
    """The page's routes behind a guard that asks for a key."""
    app = Starlette(routes=[route for route in ROUTES if route.path in ("/", "/page/{name}", "/health")])
    return TestClient(Guard(app, Keys(["secret"]), ["localhost"]), "http://localhost")


@pytest.mark.parametrize("path", sorted({"/"} | {f"/page/{name}" for name in SOURCES}))
def test_the_files_need_no_key_and_forbid_everything_but_themselves(client, path):
    answer = client.get(path)
    assert answer.status_code == 200
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
    assert policy["require-trusted-types-for"] == "'script'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    suffix = Path(path).suffix or ".html"
    assert answer.headers["content-type"] == page_files.KINDS[suffix]
    assert path in PUBLIC
    assert client.get(path, headers={"host": "evil.example"}).status_code == 403


def test_there_is_nothing_else(client):
    with_key = {"authorization": "Bearer secret"}
    for name in ("nothing.js", "..%2fapp.py", "%2e%2e/app.py", "../app.py", ".", ""):
        assert client.get(f"/page/{name}", headers=with_key).status_code == 404 if name else True
    assert client.get("/page/nothing.js").status_code == 401


def test_no_file_asks_another_server():
    for name, text in SOURCES.items():
        found = set(re.findall(r"""(?:https?:)?//[\w.-]+\.\w+[^\s"']*""", text)) - {"http://www.w3.org/2000/svg"}
        assert not {url for url in found if url.startswith(("http", "//"))}, name
        assert "@import" not in text


def test_text_never_becomes_markup():
    for name, text in SCRIPTS.items():
        assert not MARKUP.search(text), name
    page = SOURCES["index.html"]
    assert not re.search(r"\son\w+=|\sstyle=|<style", page)
    assert re.findall(r"<script[^>]*>([^<]*)</script>", page) == [""]


def test_every_file_and_element_that_the_scripts_name_is_there():
    page = SOURCES["index.html"]
    ids = set(re.findall(r'\sid="([\w-]+)"', page))
    assert len(ids) == len(re.findall(r'\sid="', page))
    for name, text in SCRIPTS.items():
        assert set(re.findall(r'\$\("([\w-]+)"\)', text)) <= ids, name
        assert {Path(path).name for path in re.findall(r'from "(/page/[\w.]+)"', text)} <= set(SOURCES)
    assert set(re.findall(r'(?:for|aria-labelledby)="([\w-]+)"', page)) <= ids
    assert {Path(path).name for path in re.findall(r'(?:src|href)="(/page/[\w.]+)"', page)} <= set(SOURCES)
    package = (page_files.FOLDER.parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert '"serve/page/*"' in package


def test_every_field_has_a_label_and_every_button_a_name():
    page = SOURCES["index.html"]
    for field in re.finditer(r"<(?:input|textarea|select)\b", page):
        before = page[: field.start()]
        assert before.count("<label") > before.count("</label>"), page[field.start() : field.start() + 80]
    for attributes, content in re.findall(r"<button([^>]*)>(.*?)</button>", page):
        assert "aria-label" in attributes or re.search(r"\w", content)
        assert 'type="' in attributes
