"""The tasks that people give a model, as prompts of a given length made of a book and of a source file."""

from __future__ import annotations

from pathlib import Path

import tokenswift_jax as ts
from benchmarking.texts import Prompts
from tokenswift_jax.prompt import read_text

_SOURCE = Path(ts.__file__).parent
# Of each task: the words around the material, and the kind of material. None: the material itself is the prompt.
TASKS: dict[str, tuple[str | None, str]] = {
    "answer": ("{}\n\nWhat happens in this passage? Answer in a few paragraphs.", "book"),
    "continuation": (None, "book"),
    "edit a text": ("Correct the spelling of this text, and change nothing else:\n\n{}", "book"),
    "edit code": ("Put a type on every argument of this file, and change nothing else:\n\n```python\n{}\n```", "code"),
    "JSON list": ("{}\n\nList the animals, plants and places of this passage as JSON with name and kind.", "book"),
}


def task_prompts(model: ts.Model, files: list[Path], name: str, length: int, count: int) -> Prompts:
    """`count` prompts of a task, each of about `length` tokens; the book's passages are evenly spaced.

    Raises UserError for a checkpoint without a chat template, and for a book that is too short.
    """
    words, kind = TASKS[name]
    tokenizer = model.tokenizer
    if words is not None and not getattr(tokenizer, "chat_template", None):
        raise ts.UserError(f"the task {name!r} needs a checkpoint whose tokenizer has a chat template")
    files = files if kind == "book" else sorted(_SOURCE.rglob("*.py"))
    text = "\n".join(read_text(str(file)) for file in files)
    ids = model.encode(text)
    if len(ids) < length * (count + 1):
        raise ts.UserError(f"{', '.join(map(str, files))}: {len(ids):,} tokens are too few for {count} of {length:,}")
    spare = 0 if words is None else len(_asked(model, words.format("")))
    passages = []
    for index in range(count):
        start = (index + 1) * len(ids) // (count + 1)
        material = ids[start : start + length - spare]
        if words is None:
            passages.append(material)
        else:
            assert tokenizer is not None
            passages.append(_asked(model, words.format(tokenizer.decode(material, skip_special_tokens=True))))
    source = ", ".join(file.name for file in files) if kind == "book" else f"{_SOURCE.name}/**/*.py"
    return Prompts(source, tuple(passages))


def _asked(model: ts.Model, content: str) -> list[int]:
    return model.encode(messages=[{"role": "user", "content": content}])
