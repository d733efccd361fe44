"""The rows: fields that several sections have, and the file that keeps them and that a later run reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenswift_jax as ts
from benchmarking.runs import Results, paired_ratios, rounded, spread
from benchmarking.texts import Prompts
from tokenswift_jax.hardware.environment import load_average

Row = dict[str, Any]
_DRAFTING = ("mode", "schedule", "tree", "node_budget", "ngram_k", "draft_cache", "refresh_interval", "draft_block")
_DRAFTING += ("draft_cache_dtype", "shared_noise", "draft_weights")
PLAIN, TRANSFORMERS, LLAMA = "autoregressive", "transformers", "llama.cpp"
_OF_A_RUN = ("date", "load_average", "load_average_at_start")  # fields that two runs of one measurement do not share


def setting(section: str, prompts: Prompts, temperature: float, seed: int) -> Row:
    """The fields of a row for the setting."""
    about = {"section": section, "prefix": len(prompts.passages[0]), "temperature": temperature, "seed": seed}
    return about | {"prompt": prompts.describe()}


def labels_of(speculation: ts.SpeculationConfig) -> Row:
    """The fields of a row that say how drafts were made; None where the mode has no such thing."""
    used = {"mode", "tree", "node_budget", *speculation.used}
    chosen = {name: getattr(speculation, name) if name in used else None for name in _DRAFTING}
    return {"implementation": "tokenswift_jax"} | chosen


def measures(results: Results, name: str) -> Row:
    """The fields of a contender's row that its own runs give."""
    runs = results.runs[name]
    compiled = results.warm_up_compile_seconds[name] + sum(run.compile_seconds for run in runs)
    spreads = ("ms_per_token", "wall_ms_per_token", "tokens_per_iteration", "prefill_seconds")
    return {
        "runs": len(runs),
        "new_tokens": len(runs[0].token_ids),
        **{field: spread(getattr(run, field) for run in runs) for field in spreads},
        "tokens_per_second": spread(1e3 / run.ms_per_token for run in runs),
        "compile_seconds_excluded": rounded(compiled),
    }


def comparison(results: Results, name: str, *, greedy: bool) -> Row:
    """How many times faster than the baselines of the same rounds, and how many leading tokens are plain decoding's.

    Sampled texts of other programs draw from other generators, so only greedy ones can be equal.
    """
    fields: Row = {}
    own = [run.ms_per_token for run in results.runs[name]]
    for other in (PLAIN, TRANSFORMERS, *(other for other in results.runs if other.startswith(LLAMA))):
        if other in results.runs and other != name:
            fields[f"speed_vs_{other}"] = paired_ratios([run.ms_per_token for run in results.runs[other]], own)
    if PLAIN in results.runs and name != PLAIN and (greedy or not name.startswith((TRANSFORMERS, LLAMA))):
        fields["leading_tokens_equal_to_autoregressive"] = same_leading_tokens(results, name, PLAIN)
    return fields


def same_leading_tokens(results: Results, name: str, other: str) -> int:
    """How many leading tokens two contenders share in every round."""
    return min(
        next((i for i, (x, y) in enumerate(zip(a.token_ids, b.token_ids, strict=True)) if x != y), len(a.token_ids))
        for a, b in zip(results.runs[name], results.runs[other], strict=True)
    )


class RowFile:
    """JSON lines of one output file; calling it with a row's fields appends them.

    Attributes:
      rows: the rows that this run measured or found, in order.
    """

    def __init__(self, path: Path, common: Row) -> None:
        """`common`: fields of every row of this run.

        Raises:
          UserError: a line of the file is not JSON; a torn last one is taken away.
        """
        self.rows: list[Row] = []
        self._path, self._common = path, common
        self._earlier = read_rows(path, torn=True) if path.exists() else []
        if path.exists():
            with path.open("r+b") as file:
                file.truncate(file.read().rfind(b"\n") + 1)

    def __call__(self, fields: Row) -> None:
        self.rows.append(self._common | {"load_average": load_average()} | fields)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.rows[-1], allow_nan=False) + "\n")

    def find(self, fields: Row) -> Row | None:
        """The newest row of an earlier run with these fields: on this machine, with these versions and weights."""
        asked = {name: value for name, value in self._common.items() if name not in _OF_A_RUN} | fields
        asked = json.loads(json.dumps(asked))  # tuples are lists in a file
        fitting = (row for row in reversed(self._earlier) if all(row.get(name) == asked[name] for name in asked))
        return next(fitting, None)


def read_rows(path: Path, *, torn: bool = False) -> list[Row]:
    """The rows of a file of JSON lines; `torn`: a last line without its end is none.

    Raises:
      UserError: the file cannot be read or has something else.
    """
    try:
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1] if torn else content
        rows = [json.loads(line) for line in whole.decode("utf-8").splitlines()]
    except OSError as error:
        raise ts.UserError(f"{path} cannot be read ({error.strerror}); name rows of the benchmark") from error
    except ValueError:
        raise ts.UserError(f"{path} does not hold JSON lines; name rows of the benchmark, or another file") from None
    if not all(isinstance(row, dict) for row in rows):
        raise ts.UserError(f"{path} holds something else than objects; name rows of the benchmark")
    return rows
