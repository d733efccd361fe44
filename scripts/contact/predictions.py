"""Predictions from before any run, to compare with the first measurements.

A step's bytes over 0.92 of the copy bandwidth (H100 3.0 TB/s, H200 4.3 TB/s), 1.0 us a kernel of matrix products,
2.2 us any other, 9 us the attention of a layer; kernels as XLA's thunks listed them, compiled ahead of time for an H200
with jax 0.11.2 (26 November 2026). The model is optimistic: published figures of such products are 50 to 70 percent of
the copy bandwidth. Steps of several rows are predicted as so many plain ones.
"""

from __future__ import annotations

LENGTHS = (4096, 16384, 65536, 126976)
_PLAIN: dict[tuple[str, str], tuple[float, ...]] = {  # (model, GPU): milliseconds at LENGTHS
    ("Llama-3.1-8B", "H200"): (5.48, 5.88, 7.51, 9.54),
    ("Llama-3.1-8B", "H100"): (7.17, 7.76, 10.1, 13.0),
    ("Qwen2.5-14B", "H200"): (9.59, 10.2, 12.6, 15.7),
    ("Qwen2.5-1.5B", "H200"): (1.93, 2.01, 2.36, 2.81),
    ("Qwen2.5-1.5B", "H100"): (2.27, 2.40, 2.92, 3.55),
}
_OVER_PLAIN: dict[tuple[str, str, str], dict[int, float]] = {  # (step, model, GPU): length, times a plain step
    ("verify-16", "Llama-3.1-8B", "H200"): dict.fromkeys(LENGTHS, 1.05),
    ("verify-16", "Llama-3.1-8B", "H100"): dict.fromkeys(LENGTHS, 1.05),
    ("verify-16", "Qwen2.5-1.5B", "H200"): {4096: 1.15, 126976: 1.10},
    ("verify-64", "Llama-3.1-8B", "H200"): {16384: 1.15, 65536: 1.26, 126976: 1.37},
}
# Of a layer of Llama-3.1-8B on an H200, one row, the merge of its parts included.
_ATTENTION_MICROSECONDS = {4096: 13.0, 16384: 27.0, 65536: 82.0, 126976: 150.0}


def gpu_of(device: str) -> str | None:
    """The GPU that predictions are of, from the device's name; None for another."""
    return next((gpu for gpu in ("H200", "H100") if gpu in device), None)


def step_milliseconds(model: str, gpu: str, step: str, length: int) -> float | None:
    """The predicted milliseconds of an iteration; None where nothing was predicted."""
    predicted: dict[int, float] = dict(zip(LENGTHS, _PLAIN.get((model, gpu), ()), strict=False))
    plain = predicted.get(length)
    if step == "plain" or plain is None:
        return plain
    times = _OVER_PLAIN.get((step, model, gpu), {}).get(length)
    return None if times is None else plain * times


def attention_microseconds(model: str, gpu: str, rows: int, length: int) -> float | None:
    """The predicted microseconds of `tree_attention` over a layer; None where nothing was predicted."""
    if (model, gpu, rows) != ("Llama-3.1-8B", "H200", 1):
        return None
    return _ATTENTION_MICROSECONDS.get(length)
