"""The loader of a tokenizer through transformers, from a copy where transformers cannot read the files as they are."""

from __future__ import annotations

import codecs
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenswift_jax.checkpoint.tokenizer_check import faithful
from tokenswift_jax.errors import UserError, warn
from tokenswift_jax.text.reading import NotTextError, decode, read_json

MORE_TEMPLATES = "additional_chat_templates"  # the folder of named chat templates, NAME.jinja
_CONFIG, _FILE = "config.json", "tokenizer.json"


def loaded(place: Path, names: Sequence[str]) -> Any:
    """The transformers tokenizer of a folder.

    transformers also reads the whole config.json, although a tokenizer needs its `model_type` alone, and takes a
    byte-order mark for text. Where either is in its way, it gets a copy without them. No code of a checkpoint runs: a
    tokenizer with a class of its own is what its tokenizer.json says, and a warning says so.

    Args:
      place: the folder.
      names: the files that a tokenizer may consist of.

    Raises:
      UserError: the tokenizer cannot be loaded, or does not follow its tokenizer.json.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # transformers advises installing torch
    there = [name for name in names if (place / name).is_file()]
    reason = None
    if not any(_is_marked(place / name) for name in there):
        try:
            return faithful(_of_its_class(place), place)
        except UserError:
            raise
        except Exception as error:  # transformers and tokenizers may raise any exception, even bare Exception
            reason = error
    with TemporaryDirectory() as folder:
        copy = Path(folder)
        try:
            _copy(place, there, copy)
        except OSError as error:
            raise UserError(f"cannot read the tokenizer in {place}: {error.filename}: {error.strerror}") from None
        try:
            return faithful(_of_its_class(copy), copy, origin=place)
        except UserError:
            raise
        except Exception as error:
            reason = error if reason is None or _is_marked(place / _CONFIG) else reason
        if (copy / _FILE).is_file():
            try:
                plain = _plain(copy)
            except Exception:
                plain = None
            if plain is not None:
                warn(f"transformers cannot load the class of the tokenizer in {place}; this program follows {_FILE}")
                return faithful(plain, copy, origin=place)
    raise UserError(f"the tokenizer in {place} cannot be loaded: {_fault(place, there, reason)}")


def _of_its_class(folder: Path) -> Any:
    from transformers import AutoTokenizer
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # it reads config.json too, and comments on fields that this package checks itself
    try:
        # Without False, transformers asks on the terminal, on stdout, whether to run a checkpoint's code.
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    finally:
        logging.set_verbosity(before)


def _plain(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)


def _is_marked(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8
    except OSError:
        return False


def _copy(place: Path, names: Sequence[str], copy: Path) -> None:
    for name in names:
        data = (place / name).read_bytes()
        (copy / name).write_bytes(data.removeprefix(codecs.BOM_UTF8))
    if (place / MORE_TEMPLATES).is_dir():
        shutil.copytree(place / MORE_TEMPLATES, copy / MORE_TEMPLATES)
    family = read_json(place / _CONFIG).get("model_type") if (place / _CONFIG).is_file() else None
    if isinstance(family, str):
        (copy / _CONFIG).write_text(json.dumps({"model_type": family}), encoding="utf-8")


def _fault(place: Path, names: Sequence[str], error: Exception) -> str:
    """The file that is at fault, else the words of the library."""
    for name in names:
        try:
            if name.endswith(".json"):
                read_json(place / name)
            elif name.endswith((".jinja", ".txt")):
                decode((place / name).read_bytes())
        except NotTextError as fault:
            return f"{place / name} is {fault}"
        except UserError as fault:
            return str(fault)
    if "custom code" in str(error):
        return f"its class is code of the checkpoint, which this program does not run; add a {_FILE}"
    return f"transformers reports {' '.join(str(error).split())[:300]!r}; fetch the tokenizer's files again"
