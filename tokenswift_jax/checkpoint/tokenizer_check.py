"""The comparison of a tokenizer that transformers loaded with the rules of its tokenizer.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenswift_jax.errors import UserError, warn
from tokenswift_jax.text.reading import read_json

# Spaces, line ends, digits, contractions, accents, scripts without spaces, and characters of several bytes: the rules
# that split text differ in these.
PROBES = (
    "Hello world, it's 12345 + 67.89!",
    "  two  spaces\n\n\tand\ttabs \r\nend ",
    "naïve café, Straße, ΑΒΓ, привет, 日本語, 한국어, 😀😀 e\u0301",
    'def f(x):\n    return {"a": x ** 2}  # 1,000,000\n',
)
_TEXT = "splits text by other rules than the checkpoint's tokenizer.json"


def faithful(tokenizer: Any, place: Path, origin: Path | None = None) -> Any:
    """The tokenizer, or one that follows tokenizer.json where it does not.

    `origin` is the folder for messages where `place` has a copy of it.

    Classes of transformers may replace the rules of a tokenizer.json by their own: versions 5.0 to 5.20 drop the spaces
    of byte-level Llama tokenizers, and 5.24 gives each checkpoint of the family qwen2 the splitting rule of Qwen2.

    A fault of special tokens alone, which every class of transformers has, is a warning: other programs have it too.

    Raises:
      UserError: no class splits text as the file does.
    """
    file = place / "tokenizer.json"
    if not file.is_file():
        return tokenizer
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast, __version__

    try:
        raw = Tokenizer.from_file(str(file))
        raw.no_truncation()
        raw.no_padding()
        fault = _fault(tokenizer, raw, place)
        if fault is None:
            return tokenizer
        plain = PreTrainedTokenizerFast.from_pretrained(str(place), local_files_only=True)
        rest = _fault(plain, raw, place)
    except Exception as error:  # as for the first loading: any exception
        message = " ".join(str(error).split())[:300]
        raise UserError(
            f"the tokenizer in {origin or place} cannot be loaded: transformers reports {message!r}; fetch its files "
            "again"
        ) from None
    kind = type(tokenizer).__name__
    problem = f"transformers {__version__} ({kind}) {fault}"
    if rest == _TEXT:
        raise UserError(f"{problem}, and no class of it follows that file; install another version of transformers")
    if rest is None:
        warn(f"{problem}; this program follows the file")
        return plain
    warn(f"{problem}, and so does every other class of it; this program follows transformers there")
    return plain if fault == _TEXT else tokenizer


def _fault(tokenizer: Any, raw: Any, place: Path) -> str | None:
    """The first way in which a tokenizer does not follow its tokenizer.json; None if it does."""

    def ids_of(text: str, special: bool) -> list[int]:
        return tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]

    for text in PROBES:
        ids = raw.encode(text, add_special_tokens=False).ids
        if ids_of(text, special=False) != ids:
            return _TEXT
        if tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) != raw.decode(ids):
            return _TEXT
    for added in raw.get_added_tokens_decoder().values():
        text = f"a{added.content}b"
        if ids_of(text, special=False) != raw.encode(text, add_special_tokens=False).ids:
            return f"reads the token {added.content!r:.80} differently from the checkpoint's tokenizer.json"
    if not _states_borders(place):
        for text in PROBES:
            if ids_of(text, special=True) != raw.encode(text, add_special_tokens=True).ids:
                return "puts other tokens around a text than the checkpoint's tokenizer.json"
    return None


def _states_borders(place: Path) -> bool:
    """Whether tokenizer_config.json says itself which tokens come before and after a text."""
    try:
        settings = read_json(place / "tokenizer_config.json")
    except UserError:
        return False
    return any(settings.get(name) is not None for name in ("add_bos_token", "add_eos_token"))
