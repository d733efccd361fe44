"""The lines that a stage prints on the terminal: few, with the figures that decide."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]


def line_of(section: str, row: Row) -> str | None:
    """One row as a line; None where its section says it in another way or not at all."""
    if "error" in row:
        return f"{section}: ERROR {row['error'].splitlines()[0][:300]}"
    if "refused" in row:
        what = row.get("step") or f"{row['kernel']} of {_rows(row['rows'])}"
        return f"{what}, {row['variant']}: REFUSED {row['refused'].splitlines()[0][:200]}"
    if "missing" in row:
        return f"{section}: {row['missing']}"
    say = _LINES.get(section)
    return None if say is None else say(row)


def lines_of_section(section: str, rows: Sequence[Row]) -> list[str]:
    """The lines about all rows of a section."""
    if section in ("kernels", "attention"):
        checked = [row for row in rows if "relative_error" in row]
        if checked:
            right = sum(row["good"] for row in checked)
            worst = max(row["relative_error"] for row in checked)
            return [f"{right} of {len(checked)} kernels as defined in float64, the worst off by {worst:.1e}"]
    if section == "machine":
        shapes = [row for row in rows if "shapes" in row and row["shapes"] != "tiny"]
        sizes = ", ".join(f"{row['shapes']} {row['needed_bytes'] / 1e9:.0f} GB" for row in shapes)
        absent = [row for row in shapes if row.get("fits_here") is False]
        lines = [f"memory for 127,000 tokens in bfloat16: {sizes}"] if shapes else []
        return lines + [f"{row['shapes']} does not fit here; it fits {row['fits']}" for row in absent]
    if section == "joined":
        operations = [row for row in rows if "operation" in row]
        slowest = [[row for row in operations if row["variant"] == kind][:9] for kind in ("joined", "apart")]
        return [
            f"{row['variant']}: {row['microseconds_a_pass']:7.1f} us in {row['calls_a_pass']:.0f} calls of "
            f"{row['operation'][:50]}"
            for row in itertools.chain(*slowest)
        ]
    if section in ("profile", "profile_graphs"):
        slowest = [row for row in rows if "operation" in row][:4]
        return [f"{row['microseconds_a_pass']:8.1f} us {row['operation'][:60]}" for row in slowest]
    return []


def _environment(row: Row) -> str:
    versions = row["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("python", "jax", "flax", "numpy") if name in versions)
    return f"  {row['device']}: {named}"


def _machine(row: Row) -> str | None:
    if "driver" not in row:
        return f"tokamax {row['version']}" if "library" in row else None
    return f"nvidia-smi: {row['driver']}" if row["driver"] else None


def _copy(row: Row) -> str:
    return f"copy {row['bytes_a_second'] / 1e12:.3f} TB/s, products {row['operations_a_second'] / 1e12:.1f} TFLOP/s"


def _kernels(row: Row) -> str | None:
    if "relative_error" in row:
        if row["good"]:
            return None
        which = f"{_rows(row['rows'])}, group {row['group']}, head_dim {row['head_dim']}"
        return f"WRONG: {row['kernel']} of {which} is off by {row['relative_error']:.1e}"
    by = f" by {row['by']}" if "by" in row else ""
    share = f"{row['of_copy_bandwidth']:.0%} of the copy bandwidth"
    return f"{row['kernel']}{by}, {_rows(row['rows'])} after {row['length']:,}: {row['microseconds']:.1f} us, {share}"


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _steps(row: Row) -> str:
    share, floor = row["of_copy_bandwidth"], row["floor_milliseconds"]
    return (
        f"{row['model']} {row['step']} after {row['length']:,}: {row['milliseconds']:.3f} ms (floor {floor:.3f}), "
        f"{share:.0%} of the copy bandwidth"
    )


def _joined(row: Row) -> str | None:
    if "operation" in row:
        return None
    if "busy_milliseconds" in row:
        return f"{row['variant']}, {_profile(row)}"
    share = f"{row['of_copy_bandwidth']:.0%} of the copy bandwidth"
    return f"{row['step']}, {row['variant']}, after {row['length']:,}: {row['milliseconds']:.3f} ms, {share}"


def _attention(row: Row) -> str | None:
    what = f"{_rows(row['rows'])}, {row['variant']}, after {row['length']:,}"
    if "relative_error" in row:
        return None if row["good"] else f"WRONG: {what} is off by {row['relative_error']:.1e}"
    share, rate = row["of_copy_bandwidth"], row["operations_a_second"] / 1e12
    return f"{what}: {row['microseconds']:.1f} us, {share:.0%} of the copy bandwidth, {rate:.0f} TFLOP/s"


def _profile(row: Row) -> str | None:
    if "operation" in row:
        return None
    return f"{row['step']}: {row['milliseconds']:.3f} ms, of which busy {row['busy_milliseconds']:.3f}"


def _options(row: Row) -> str:
    times = f"{row['milliseconds']:.4f} -> {row['milliseconds_with']:.4f} ms"
    return f"{row['option']}, round {row['round']}: {times}, {row['saved_microseconds']:.1f} us saved"


def _demo(row: Row) -> str:
    audit = row["audit"] or {}
    verdict = "AUDIT FAILED" if row["audit_failed"] else "audit passed"
    return (
        f"{row['text_dtype']} {row['mode']}: {row['tokens_a_pass']:.2f} tokens a pass, "
        f"{row['leading_tokens_of_the_first']} of {row['tokens']} as plain; {verdict}, "
        f"{audit.get('mismatches')} ties, margin {audit.get('max_margin')}"
    )


_LINES: dict[str, Callable[[Row], str | None]] = {
    "environment": _environment,
    "machine": _machine,
    "copy": _copy,
    "kernels": _kernels,
    "steps": _steps,
    "profile": _profile,
    "profile_graphs": _profile,
    "options": _options,
    "demo": _demo,
    "joined": _joined,
    "attention": _attention,
}
