"""The English of docstrings, comments, printed strings, names and pages: no archaic words, no unfinished sentences.

CONTRIBUTING.md has the rules and the glossary; this lint checks the parts of them that a machine can check.
"""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("tokenswift_jax", "pallas_kernels", "convert", "scripts", "tests")
SOURCES = sorted(
    path for folder in FOLDERS for path in ROOT.glob(f"{folder}/**/*.py") if path.name != "test_english.py"
)
PRINTING = [path for path in SOURCES if path.relative_to(ROOT).parts[0] != "tests"]  # a test's strings are data
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

FORBIDDEN = re.compile(
    r"\b(anew|whatever|laid|lays|bears|borne|dearer|affair|lest|hither|whereof|thereby|nought)\b", re.IGNORECASE
)
# Forms of printed text: a relative clause in place of a noun, a program that hears, and verbs of another age.
FORMS = re.compile(
    r"\b(what (is|are|was|it|that|this|layers|transformers|comes|follows)|told|goes with|stands?|lies)\b"
)
NAMES = {"anew", "dear", "told", "said", "held", "laid", "lay", "trust", "stands", "whatever"}
"""Words that no identifier contains; `held_out` is the field's term, and `when` is none alone (`pl.when` is JAX's)."""
SUPERSEDED = {"DraftKind", "RowInputs", "TextInputs", "Walk", "closing_report", "looked_up", "over_heads", "to_expand"}
"""Names that gave way to a term of the glossary or of the field; no identifier is one of them."""
OPENING = re.compile(r"\s*(Or|And|Of|But|What|Whatever|Whose|Which|Another|None)\b")
# The beginning of a comment, below a line that is none.
COMMENT_OPENING = re.compile(r"^(?!\s*#).*\n\s*# (What|Whatever|Whose|Which)\b", re.MULTILINE)
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


def printed(source):
    """The strings of `source` with a blank, docstrings excepted; of a formatted string its parts: line and text."""
    tree = ast.parse(source)
    documented = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if " " in text and id(node) not in documented:
                yield node.lineno, text


def of_strings(source):
    """Offences in the printed strings of Python source, `line: offence`."""
    found = [
        (line, f"string with {match[0]!r}")
        for line, text in printed(source)
        for pattern in (FORBIDDEN, FORMS)
        for match in pattern.finditer(QUOTED.sub("", text))
    ]
    return [f"{line}: {offence}" for line, offence in sorted(found)]


def of_names(source):
    """Offences in the identifiers of Python source, `line: offence`, each name once."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                words = set(name.lower().replace("held_out", "").split("_"))
                if words & NAMES or name in {"when", *SUPERSEDED}:
                    found.setdefault(name, node.lineno)
    return [f"{line}: name {name!r}" for name, line in found.items()]


def of_source(source):
    """Offences of Python source, `line: offence`, in the order of the lines."""
    documented = list(docstrings(source))
    found = [
        (line, f"docstring begins with {begun[1]!r}") for line, text in documented if (begun := OPENING.match(text))
    ]
    found += [
        (source.count("\n", 0, begun.start(1)) + 1, f"comment begins with {begun[1]!r}")
        for begun in COMMENT_OPENING.finditer(source)
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


def test_printed_strings_keep_the_rules():
    assert not (found := of_files(PRINTING, of_strings)), "\n".join(found)


def test_names_keep_the_rules():
    assert not (found := of_files(SOURCES, of_names)), "\n".join(found)


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


def test_the_lint_sees_how_a_comment_begins():
    assert of_source("x = 1\n# What is known\ny = 2\n") == ["2: comment begins with 'What'"]
    assert of_source("# The facts.\n# What follows is one sentence's end.\n") == []  # inside a comment


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


@pytest.mark.parametrize(
    "text", ["compiled anew", "leave out what it does", "{x} goes with it", "the kernel is told so"]
)
def test_the_lint_sees_what_is_printed(text):
    assert of_strings(f'raise ValueError("{text}")\n')
    assert of_strings(f'raise ValueError(f"{{x}} {text}")\n')
    assert of_strings(f'parser.add_argument("--x", help="{text}")\n')
    assert of_strings(f'def f():\n    """{text}"""\n') == []  # a docstring, which the other test reads


@pytest.mark.parametrize("name", ["anew", "said_at", "_told", "held", "when"])
def test_the_lint_sees_names(name):
    assert of_names(f"{name} = 1\n") == [f"1: name {name!r}"]
    assert of_names(f"def f({name}): ...\n") == [f"1: name {name!r}"]
    assert of_names(f"class A:\n    def {name}(self): ...\n") == [f"2: name {name!r}"]
    assert of_names("held_out = held_out_loss = test_it_ends_when_told_so_not = 1\n") != []
    assert of_names("held_out = when_due = layer = 1\npl.when(x)\n") == []


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
