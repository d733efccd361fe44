"""The comparison of a tokenizer that transformers loaded with the rules of its tokenizer.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenswift_jax.errors import UserError, warn

# Spaces, line ends, digits, contractions, accents, scripts without spaces, and characters of several bytes: the rules
# that split text differ in these.
PROBES = (
    "Hello world, it's 12345 + 67.89!",
    "  two  spaces\n\n\tand\ttabs \r\nend ",
    "naïve café, Straße, ΑΒΓ, привет, 日本語, 한국어, 😀😀 e\u0301",
    'def f(x):\n    return {"a": x ** 2}  # 1,000,000\n',
)


def faithful(tokenizer: Any, place: Path) -> Any:
    """The tokenizer, or one that follows tokenizer.json where it does not.

    Classes of transformers may replace the rules of a tokenizer.json by their own: versions 5.0 to 5.20 drop the spaces
    of byte-level Llama tokenizers, and 5.24 gives each checkpoint of the family qwen2 the splitting rule of Qwen2.

    Raises:
      UserError: neither follows it.
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
        if _agree(tokenizer, raw):
            return tokenizer
        plain = PreTrainedTokenizerFast.from_pretrained(str(place), local_files_only=True)
        followed = _agree(plain, raw)
    except Exception as error:  # as for the first loading: any exception
        message = " ".join(str(error).split())[:300]
        raise UserError(
            f"the tokenizer in {place} cannot be loaded: transformers reports {message!r}; fetch its files again"
        ) from None
    kind = type(tokenizer).__name__
    problem = f"transformers {__version__} ({kind}) splits text by other rules than the checkpoint's tokenizer.json"
    if not followed:
        raise UserError(f"{problem}, and no class of it follows that file; install another version of transformers")
    warn(f"{problem}; this program follows the file")
    return plain


def _agree(tokenizer: Any, raw: Any) -> bool:
    for text in PROBES:
        ids = raw.encode(text, add_special_tokens=False).ids
        if tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] != ids:
            return False
        if tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) != raw.decode(ids):
            return False
    return True
