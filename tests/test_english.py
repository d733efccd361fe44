"""The English of docstrings, comments and pages: no archaic words, no docstring that begins in mid-sentence.

CONTRIBUTING.md has the rules and the glossary; this lint holds the parts of them that a machine can check.
"""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    path for folder in ("tokenswift_jax", "pallas_kernels", "convert") for path in ROOT.glob(f"{folder}/**/*.py")
)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

FORBIDDEN = re.compile(
    r"\b(anew|whatever|laid|lays|bears|borne|dearer|affair|lest|hither|whereof|thereby|nought)\b", re.IGNORECASE
)
OPENING = re.compile(r"\s*(Or|And|Of|But|What|Whatever|Whose|Which|Another|None)\b")
QUOTED = re.compile(r"(`+)[^`\n]+?\1")  # code in prose is no prose


def words(prose):
    """The forbidden words of `prose`, each with its line, counted from 0."""
    lines = QUOTED.sub("", prose).split("\n")
    return [(number, found[0]) for number, line in enumerate(lines) for found in FORBIDDEN.finditer(line)]


def docstrings(source):
    """The docstrings of `source`, those below fields and constants included: line and text of each."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield node.lineno, text


def comments(source):
    """The comments of `source`: line and text of each."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")


def of_source(source):
    """Offences of Python source, `line: offence`, in the order of the lines."""
    documented = list(docstrings(source))
    found = [
        (line, f"docstring begins with {begun[1]!r}") for line, text in documented if (begun := OPENING.match(text))
    ]
    commented = comments(source) if FORBIDDEN.search(source) else ()  # tokens cost most of the lint's time
    for line, text in [*documented, *commented]:
        found += [(line + offset, f"word {word!r}") for offset, word in words(text)]
    return [f"{line}: {offence}" for line, offence in sorted(found)]


def of_page(text):
    """Offences of a page, `line: offence`."""
    return [f"{line + 1}: word {word!r}" for line, word in words(text)]


def of_files(paths, check):
    """Offences of files, `path:line: offence`."""
    return [f"{path.relative_to(ROOT)}:{found}" for path in paths for found in check(path.read_text(encoding="utf-8"))]


def test_docstrings_and_comments_keep_the_rules():
    assert len(SOURCES) > 100
    assert not (found := of_files(SOURCES, of_source)), "\n".join(found)


def test_pages_keep_the_rules():
    assert len(PAGES) > 4
    assert not (found := of_files(PAGES, of_page)), "\n".join(found)


@pytest.mark.parametrize("word", ["Or", "And", "Of", "But", "What", "Whatever", "Whose", "Which", "Another", "None"])
def test_the_lint_sees_how_a_docstring_begins(word):
    offence = f"2: docstring begins with {word!r}"
    assert offence in of_source(f'def f():\n    """{word} is drawn."""\n')
    assert offence in of_source(f'class C:\n    """\n    {word} is drawn.\n    """\n')
    assert offence in of_source(f'SIZE = 3\n"""{word} is drawn."""\n')
    assert of_source(f'def f():\n    """The draw. {word.lower()}s"""\n') == []  # elsewhere, or as part of a word


@pytest.mark.parametrize(
    "word",
    [
        "anew",
        "whatever",
        "laid",
        "lays",
        "bears",
        "borne",
        "dearer",
        "affair",
        "lest",
        "hither",
        "whereof",
        "thereby",
        "nought",
    ],
)
def test_the_lint_sees_the_words(word):
    assert of_source(f"x = 1\ny = 2  # compiled {word}\n") == [f"2: word {word!r}"]
    assert of_source(f'def f():\n    """Compiles.\n\n    {word.title()}, a program.\n    """\n') == [
        f"4: word {word.title()!r}"
    ]
    assert of_page(f"# A page\n\nCompiled {word}.\n") == [f"3: word {word!r}"]


def test_the_lint_leaves_code_and_other_words_alone():
    assert of_source('def f():\n    """Another_name, Orders, Nonempty: relaid, player, `anew`."""\n') == []
    assert of_source('text = "whatever"  # a value, not prose\n') == []
    assert of_source('def f():\n    return """None of it is a docstring: anew."""\n') == []
    assert of_page("Run `program --anew`, or ``whatever``.") == []


def test_the_glossary_has_each_term_once_in_order():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = page.split("## Glossary")[1].split("\n## ")[0]
    terms = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")][2:]
    assert terms == sorted(set(terms))
    known = {term for entry in terms for term in entry.split(", ")}
    needed = (
        "acceptance, audit, draft cache, draft head, draw, engine, features, full cache, journal, n-gram table, node"
    )
    needed += ", plan, root, row, schedule, session, settings, slot, target, token ids, tree, tree row"
    assert set(needed.split(", ")) <= known
