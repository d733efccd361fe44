"""The lines that a stage prints on the terminal: few, with the figures that decide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
_SHARE = "{of_copy_bandwidth:.0%} of the copy bandwidth"
# A row that lacks a field of its section's form has no line.
_FORMS = {
    "environment": "{device}: {versions}",
    "machine": "nvidia-smi: {driver}",
    "copy": "copy {bytes_a_second:.3g} bytes/s, products {operations_a_second:.3g} FLOP/s",
    "kernels": "{kernel}, {rows} rows after {length:,}: {microseconds:.1f} us, " + _SHARE,
    "attention": "{rows} rows, {variant}, after {length:,}: {microseconds:.1f} us, " + _SHARE,
    "steps": "{model} {step} after {length:,}: {milliseconds:.3f} ms (floor {floor_milliseconds:.3f}), " + _SHARE,
    "joined": "{step}, {variant}, after {length:,}: {milliseconds:.3f} ms, " + _SHARE,
    "profile": "{step}: {milliseconds:.3f} ms, of which busy {busy_milliseconds:.3f}",
    "demo": "{text_dtype} {mode}: {tokens_a_pass:.2f} tokens a pass, {leading_tokens_of_the_first} of {tokens} as "
    "plain; audit failed: {audit_failed}, {audit}",
    "random_texts": "{rows} x {mode}, temperature {temperature}: {tokens:,} tokens, {tokens_a_second:.1f} a second, "
    "{tokens_a_pass:.2f} a pass; compiled {compile_seconds:.1f} s, prompt {prefill_seconds:.2f} s, in all "
    "{wall_seconds:.1f} s",
    "transformers": "{library} {version} after {length:,}: {milliseconds:.2f} ms a token, prompt "
    "{prompt_seconds:.2f} s",
}
_FORMS["profile_graphs"] = _FORMS["profile"]


def line_of(section: str, row: Row) -> str | None:
    """One row as a line; None where it has none."""
    for trouble in ("error", "refused", "missing"):
        if trouble in row:
            case = ", ".join(str(row[key]) for key in ("step", "kernel", "mode", "rows", "variant") if key in row)
            return f"{section}{case and f' ({case})'}: {trouble.upper()} {row[trouble].splitlines()[0][:300]}"
    if row.get("good") is False:
        return f"{section}: WRONG: {row['kernel']} of {row['rows']} rows is off by {row['relative_error']:.1e}"
    try:
        return _FORMS[section].format_map(row)
    except (KeyError, TypeError, ValueError):
        return None


def lines_of_section(section: str, rows: Sequence[Row]) -> list[str]:
    """The lines about all rows of a section: how many kernels are right, models that do not fit, slowest operations."""
    lines, checked = [], [row for row in rows if "relative_error" in row]
    if checked:
        right, worst = sum(row["good"] for row in checked), max(row["relative_error"] for row in checked)
        lines.append(f"{right} of {len(checked)} kernels as defined in float64, the worst off by {worst:.1e}")
    for row in rows:
        if row.get("fits_here") is False:
            lines.append(f"{row['shapes']} ({row['needed_bytes'] / 1e9:.0f} GB) does not fit here; {row['fits']}")
    operations = [row for row in rows if "operation" in row]
    for variant in dict.fromkeys(row.get("variant", "") for row in operations):
        slowest = [row for row in operations if row.get("variant", "") == variant][:6]
        lines += [f"{variant} {row['microseconds_a_pass']:8.1f} us {row['operation'][:60]}" for row in slowest]
    return lines
