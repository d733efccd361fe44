"""llama.cpp's server on one GGUF file, in a process of its own: beside torch's threads it takes up to twice the time.

python llama_worker.py FILE POSITIONS THREADS      a JSON request a line on stdin, a JSON answer a line on stdout
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any


def main() -> None:
    """Answers requests until stdin ends."""
    llama: Any = importlib.import_module("xllamacpp")
    asked = llama.CommonParams()
    asked.model.path, asked.n_ctx, asked.n_parallel = sys.argv[1], int(sys.argv[2]), 1
    asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = int(sys.argv[3])
    asked.verbosity, asked.warmup = -1, False
    server = llama.Server(asked)
    for line in sys.stdin:
        found = server.handle_completions(json.loads(line))
        found = json.loads(found) if isinstance(found, str) else found
        print(json.dumps({"timings": found["timings"], "tokens": found["__verbose"]["tokens"]}), flush=True)


if __name__ == "__main__":
    main()
