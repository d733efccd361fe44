"""Writes the README's figures from the files that hold them; no figure is typed by hand.

    python scripts/readme_table.py benchmarks/2026-11-25-cpu.jsonl     fills the section that the rows are for
    python scripts/readme_table.py                                     fills all sections again from the same files
    python scripts/readme_table.py --check                             fails where the README differs

The tasks and the benchmark come from rows of `scripts/benchmark.py`, the demo section from the demo model's
training.json and its model card.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a checkout runs where it is not installed

from tokenswift_jax.hardware.page import fill, table  # noqa: E402

DEMO = ROOT / "tokenswift_jax" / "demo_model"
NOT_MEASURED = "Not measured yet."
_PLAIN, _OTHER, _LOOKUP = "autoregressive", "transformers", "transformers, prompt lookup"
_OTHERS = (_OTHER, "llama.cpp")
_FROM_ROWS = ("tasks", "benchmark")  # sections of the README with rows of scripts/benchmark.py

_SETTING = ("section", "prefix", "temperature", "contender", "text", "capacity", "new_tokens")

Row = dict[str, Any]


def benchmark_section(rows: list[Row]) -> str:
    """The table of speeds and a line for each of the other sections of the benchmark, from its rows.

    Rows of `--quick` measure nothing and are passed over; of two rows of one setting the later one counts.
    """
    latest = {tuple(row.get(name) for name in _SETTING): row for row in rows if not row["quick"]}
    counted, parts = list(latest.values()), []
    for section in ("tasks", "speed"):
        if rows_of_it := [row for row in counted if row["section"] == section]:
            parts += [_speed_table(rows_of_it), _conditions(rows_of_it)]
    listed = "\n".join(f"* {note}" for note in (*_equality(counted), *_notes(counted)))
    return "\n\n".join(part for part in (*parts, listed) if part) or NOT_MEASURED


def demo_section(training: Row, config: Row, card: str) -> str:
    """The demo model, the length of its training, and its bits per character where the card states them."""
    total = training["in_all"]
    minutes = "" if total["minutes"] is None else f", in {total['minutes']:.0f} minutes"
    text = (
        f"{config['model_type'].capitalize()}, {training['parameters']:,} parameters, "
        f"{config['num_hidden_layers']} layers, {config['num_attention_heads']} query and "
        f"{config['num_key_value_heads']} key/value heads, {config['vocab_size']:,} byte-level BPE entries, "
        f"{config['tokenswift']['num_heads']} draft heads. Trained on {total['backbone_tokens'] / 1e6:.1f} million "
        f"tokens of public-domain prose, the heads on {total['head_tokens'] / 1e6:.1f} million more{minutes} "
        f"({training['machine']}). **Training length: {_range([total['shortest'], total['longest']])} tokens**; "
        f"`max_position_embeddings` is {config['max_position_embeddings']:,}, so longer text runs, but the model never "
        "learnt to use text further back."
    )
    bits = re.search(r"^\| all \| ([\d.]+) \| ([\d.]+) \|$", card, re.MULTILINE)
    if bits:
        text += (
            f" Held-out books: **{float(bits[1]):.2f} bits per character** "
            f"({float(bits[2]):.2f} with the files' hard-wrapped lines; [card](tokenswift_jax/demo_model/README.md))."
        )
    return text


def _speed_table(rows: list[Row]) -> str:
    contenders = list(dict.fromkeys(row["contender"] for row in rows))
    others = [name for name in contenders if name.startswith(_OTHERS)]
    ours = [name for name in contenders if name not in others]
    tasks = list(dict.fromkeys(row.get("text") for row in rows))
    cells = {(row["prefix"], row["temperature"], row.get("text"), row["contender"]): _cell(row) for row in rows}
    settings = sorted({key[:3] for key in cells}, key=lambda key: (*key[:2], tasks.index(key[2])))
    names = [*(name.replace(_LOOKUP, "its prompt lookup") for name in others), *(f"`{name}`" for name in ours)]
    lines = [
        (
            *([] if task is None else [task]),
            f"{prefix:,}",
            f"{temperature:g}",
            *(cells.get((prefix, temperature, task, name), "") for name in (*others, *ours)),
        )
        for prefix, temperature, task in settings
    ]
    return table((*([] if tasks == [None] else ["task"]), "prompt", "temperature", *names), lines)


def _cell(row: Row) -> str:
    ratio = row.get("speed_vs_transformers") if row["contender"] == _PLAIN else row.get("speed_vs_autoregressive")
    shown = f" ({ratio['median']:.2f}x)" if ratio and not row["contender"].startswith(_OTHERS) else ""
    return f"{row['tokens_per_second']['median']:,.0f}{shown}"


def _conditions(rows: list[Row]) -> str:
    row = rows[0]
    versions = row["versions"]
    shown = ("jax", "numba", _OTHER, "torch", "xllamacpp")
    libraries = [f"{name} {versions[name]}" for name in shown if name in versions]
    compared = "transformers' `generate` (`autoregressive`) or of `autoregressive` (the rest)"
    if _OTHER not in {row["contender"] for row in rows}:
        compared = "`autoregressive`"
    runs = _range([row["runs"] for row in rows])
    runs = "one run each, in turn" if runs == "1" else f"median of {runs} interleaved runs"
    passes = [row["tokens_per_iteration"]["median"] for row in rows if row["contender"] == "tokenswift"]
    lengths = {f"{one['new_tokens']} new tokens after {one['prefix']:,}": None for one in rows}
    drafted = f" `tokenswift`: {_range(passes, '.2f')} tokens a pass." if passes else ""
    return (
        f"Tokens a second after prefill, {' and '.join(lengths)}, {runs}; in "
        f"brackets the speed as a multiple of {compared}.{drafted} Model: {row['model']} in {row['dtype']}, prompts: "
        f"{row['prompt']['source']}. {row['cpu']}, {row['cores']} cores, {row['device']} backend, load "
        f"{row['load_average_at_start'][0] if row['load_average_at_start'] else 'unknown'} at the start; "
        f"{', '.join(libraries)}; {row['date'][:10]}."
    )


def _equality(rows: list[Row]) -> list[str]:
    counted = [row for row in rows if "leading_tokens_equal_to_autoregressive" in row]
    own = [row for row in counted if not row["contender"].startswith(_OTHERS)]
    if not own:
        return []
    equal = [row for row in own if row["leading_tokens_equal_to_autoregressive"] == row["new_tokens"]]
    if len(equal) == len(own):
        return [f"Every text in these runs is `autoregressive`'s token for token ({len(own)} settings)."]
    return [f"{len(own) - len(equal)} of {len(own)} settings gave a text that is NOT `autoregressive`'s."]


def _notes(rows: list[Row]) -> list[str]:
    """The notes of the sections beside `speed`, and of the compilation."""
    notes = [
        f"`auto` over {row['new_tokens']:,} tokens, trials included, {row['text']} text (temperature "
        f"{row['temperature']:g}): {row['wall_speed_vs_autoregressive']['median']:.2f}x `autoregressive`."
        for row in rows
        if row["section"] == "auto-long" and "wall_speed_vs_autoregressive" in row
    ]
    for row in rows:
        for name in (name for name in row if name.startswith("time_vs_capacity_")):
            small, used = int(name.rsplit("_", 1)[1]), row["prefix"] + row["new_tokens"]
            notes.append(
                f"`{row['mode']}`: capacity {row['capacity']:,} with {used:,} positions in use takes "
                f"{row[name]['median']:.2f} times the time of capacity {small:,}."
            )
    shares = [f"{row['host_share']['median']:.1%} (`{row['mode']}`)" for row in rows if row["section"] == "host"]
    notes += [f"Host work, of the decode time, by profiling: {', '.join(shares)}."] if shares else []
    ours = [row for row in rows if row["section"] == "speed" and row["implementation"] == "tokenswift_jax"]
    if ours:
        spent = _range([row["compile_seconds_excluded"] for row in ours], ".0f")
        notes.append(f"Compilation, excluded above: {spent} s a setting, the disk cache's hits included.")
    return notes


def _range(values: list[Any], form: str = ",") -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def fill_readme(readme: str, source: str | None) -> str:
    """The README with its sections filled again. `source` has the rows of one section; the others keep their files."""
    for name in _FROM_ROWS:
        named = re.search(rf"<!-- {name}:begin (\S+) -->", readme)
        own = "" if named is None else str(named[1])
        if source is not None and name == _place_of(_rows(source)):
            own = source
        if own or name == "benchmark":
            readme = fill(readme, name, benchmark_section(_rows(own)), own)
    card = DEMO / "README.md"
    files = [json.loads((DEMO / name).read_text(encoding="utf-8")) for name in ("training.json", "config.json")]
    demo = demo_section(files[0], files[1], card.read_text("utf-8") if card.exists() else "")
    return fill(readme, "demo", demo)


def _rows(source: str) -> list[Row]:
    return [json.loads(line) for line in (ROOT / source).read_text(encoding="utf-8").splitlines()] if source else []


def _place_of(rows: list[Row]) -> str:
    """The section of the README for rows."""
    return "tasks" if any(row["section"] == "tasks" for row in rows) else "benchmark"


def main(argv: list[str] | None = None) -> int:
    """Writes or checks the README; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="?", help="JSON lines of scripts/benchmark.py, below the project's folder")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the README differs")
    arguments = parser.parse_args(argv)
    source = None
    if arguments.rows:
        source = str(Path(arguments.rows).resolve().relative_to(ROOT))
    path = ROOT / "README.md"
    readme = path.read_text(encoding="utf-8")
    filled = fill_readme(readme, source)
    if arguments.check:
        if filled != readme:
            print("README.md differs from its sources; run python scripts/readme_table.py", file=sys.stderr)
        return int(filled != readme)
    path.write_text(filled, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
