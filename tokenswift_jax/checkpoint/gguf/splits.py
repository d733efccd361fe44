"""How text is cut into words before byte-level BPE, by the name in `tokenizer.ggml.pre`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Split:
    """One way to cut, and the habits of the tokenizers that use it.

    Attributes:
      pattern: regular expression of a word; None: GPT-2's, built into `tokenizers`.
      single_digits: whether each digit is cut off first.
      whole_words: whether a word that is an entry of the vocabulary is a token, although no merges lead to it.
      begins: whether a text begins with BOS unless the file says otherwise.
      normalises: whether the text is brought to Unicode's form NFC first.
    """

    pattern: str | None = None
    single_digits: bool = False
    whole_words: bool = False
    begins: bool = False
    normalises: bool = False

    def pre_tokenizer(self) -> dict[str, Any]:
        """The `pre_tokenizer` of tokenizer.json."""
        steps: list[dict[str, Any]] = []
        if self.single_digits:
            steps.append({"type": "Digits", "individual_digits": True})
        if self.pattern is not None:
            pattern = {"Regex": self.pattern}
            steps.append({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False})
        own = self.pattern is None
        steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": own})
        return {"type": "Sequence", "pretokenizers": steps}


_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_GPT2 = Split()
_DIGITS = Split(single_digits=True)
_LLAMA3 = Split(_ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST, whole_words=True, begins=True)
_QWEN2 = Split(_ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST, normalises=True)
_TEKKEN = Split(
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    whole_words=True,
    begins=True,
)
# llama.cpp's names (src/llama-vocab.cpp) of the tokenizers that Llama, Mistral and Qwen models have.
SPLITS = {
    "gpt-2": _GPT2,
    "smollm": _DIGITS,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "falcon3": _LLAMA3,
    "pixtral": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": _TEKKEN,
}
# Files that name none: every Qwen2 and Qwen3 model has the same tokenizer.
UNNAMED = {"llama": "gpt-2", "qwen2": "qwen2", "qwen3": "qwen2"}
