"""The closing report of a run, which a person reads on stderr when the text is complete."""

from __future__ import annotations

import jax
import numpy as np

from pallas_kernels import cpu
from tokenswift_jax import finish
from tokenswift_jax.engine.prompt_stream import PromptStream
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.stats import GenerationResult
from tokenswift_jax.text.repetition import first_loop


def closing_summary(result: GenerationResult, config: ModelConfig, bytes_per_value: int, settings: str) -> str:
    """Lines on rate, acceptance, memory traffic, compilation and prefill, on the settings with their sources
    (`settings_line`), and on the audit if there was one."""
    depth = f"{result.accepted_tokens:,} of {result.draft_depth:,} drafted tokens accepted"
    lines = [
        f"{result.generated_tokens:,} tokens in {result.decode_seconds:.2f} s, "
        f"{result.tokens_per_second:,.1f} tokens/s; ended by {_end(result)}",
        f"{result.mean_accepted_length:.2f} tokens an iteration over {result.iterations:,} iterations",
        f"{depth} ({result.acceptance_rate:.1%}), {result.ngram_accepted_tokens:,} by n-grams alone"
        if result.draft_depth
        else "nothing was drafted",
        *([] if result.plan_reason is None else [f"{result.mode} chose: {result.plan_reason}"]),
        f"the target's own passes read {_target_bytes(result, config, bytes_per_value):,.2f} GB/s "
        "of weights and live cache (estimate; drafting not counted)",
        f"compiled in {result.compile_seconds:.2f} s, "
        f"prefilled {result.prompt_tokens:,} tokens in {result.prefill_seconds:.2f} s",
        *([] if result.prefill_stream is None else [_stream(result.prefill_stream)]),
        settings,
    ]
    if jax.default_backend() == "cpu" and bytes_per_value == 4 and not cpu.installed():
        lines.append("pip install numba: with it, this program reads weights faster on a CPU")
    if result.audit is not None:
        verdict = "FAILED" if result.audit_failed else "passed"
        lines.append(
            f"audit {verdict}: {result.audit['mismatches']:,} of {result.audit['positions']:,} tokens are not the "
            f"target's draw, largest margin {result.audit['max_margin']:.3g}"
        )
    return "\n".join(lines)


def _stream(stream: PromptStream) -> str:
    return (
        f"{stream.stages} stages prefilled a stream of {stream.chunks} chunks, idle for {stream.idle:.1%} of the time "
        f"by its schedule; with equal chunks: (stages - 1) / (chunks + stages - 1) = {stream.equal_idle:.1%}"
    )


def _end(result: GenerationResult) -> str:
    loop = first_loop(result.token_ids) if result.finish_reason == finish.REPETITION else None
    if loop is None:
        return _ENDS[result.finish_reason]
    return f"a repetition: {loop.period:,} tokens, again and again from token {loop.start + 1:,} on"


_ENDS = {
    finish.LENGTH: "the length asked for",
    finish.EOS: "an EOS",
    finish.STOP: "a stop string",
    finish.INTERRUPTED: "an interrupt",
}


def _target_bytes(result: GenerationResult, config: ModelConfig, bytes_per_value: int) -> float:
    """Estimated GB/s: every iteration reads each matrix of the decoder once and the K/V that its layers can see."""
    if not result.decode_seconds:
        return 0.0
    attention = 2 * config.hidden_size * config.head_dim * (config.num_heads + config.num_kv_heads)
    layer = attention + 3 * config.hidden_size * config.intermediate_size
    weights = config.num_layers * layer + config.vocab_size * config.hidden_size
    length = result.prompt_tokens + result.generated_tokens / 2  # the mean over the run
    seen = np.sum([length if window is None else min(window, length) for window in config.sliding_windows])
    cache = 2 * config.num_kv_heads * config.head_dim * float(seen)
    return result.iterations * (weights + cache) * bytes_per_value / result.decode_seconds / 1e9
