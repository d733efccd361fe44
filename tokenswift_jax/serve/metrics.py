"""The metrics of a server, by vLLM's names with a prefix of its own."""

from __future__ import annotations

import functools
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tokenswift_jax.engine.host_memory import available_bytes
from tokenswift_jax.finish import FAILED
from tokenswift_jax.serve.observer import Observer
from tokenswift_jax.token_log import DRAFTED, NGRAM, SAMPLED

if TYPE_CHECKING:
    from tokenswift_jax.serve.run import Run
    from tokenswift_jax.serve.scheduler import Scheduler
    from tokenswift_jax.serve.tenancy import Flight

_HOUR = 3600.0
# A text of 100,000 tokens on a CPU takes hours: the buckets reach two days.
_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, _HOUR, 4 * _HOUR, 12 * _HOUR, 48 * _HOUR)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_TOKENS = tuple(float(2**power) for power in range(0, 21))
_GATHERED = 64  # chunks whose records are counted together: for one, NumPy and the counters take as long as for all
_SOURCES = {SAMPLED: "target", DRAFTED: "head", NGRAM: "ngram"}


class Metrics(Observer):
    """Counts events of the scheduler; `text` gives them to Prometheus."""

    def __init__(self, model: str, prefix: str = "tokenswift") -> None:
        """Every metric has the label `model_name`, and a name with the `prefix`."""
        self.registry = CollectorRegistry()
        self._names = {"model_name": model}

        def counter(name: str, text: str, *labels: str) -> Any:
            made = Counter(f"{prefix}:{name}", text, ["model_name", *labels], registry=self.registry)
            return made if labels else made.labels(model)

        def gauge(name: str, text: str, *labels: str) -> Any:
            made = Gauge(f"{prefix}:{name}", text, ["model_name", *labels], registry=self.registry)
            return made if labels else made.labels(model)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Any:
            made = Histogram(f"{prefix}:{name}", text, ["model_name"], registry=self.registry, buckets=buckets)
            return made.labels(model)

        self._model = model
        self._records: list[np.ndarray] = []  # not yet counted
        self._counting = threading.Lock()
        self.registry.register(self)  # pyright: ignore[reportArgumentType]
        self._prompt = counter("prompt_tokens", "Prompt positions computed")
        self._asked = counter("prefix_cache_queries", "Prompt tokens looked up among earlier texts")
        self._hits = counter("prefix_cache_hits", "Prompt tokens whose K/V came from an earlier text")
        self._generated = counter("generation_tokens", "Tokens emitted")
        self._success = counter("request_success", "Runs that ended", "finished_reason")
        sources = counter("emitted_tokens_by_source", "Tokens emitted, by who proposed them", "source")
        self._drafts = counter("spec_decode_num_drafts", "Iterations that verified drafts")
        self._accepted = counter("spec_decode_num_accepted_tokens", "Drafted tokens accepted")
        depths = counter("spec_decode_num_accepted_tokens_per_pos", "Accepted by depth", "position")
        # Once for each label: to look one up costs as much as to count.
        self._of_source = functools.cache(lambda source: sources.labels(model, _SOURCES[source]))
        self._of_depth = functools.cache(lambda depth: depths.labels(model, str(depth)))
        self._ttft = histogram(
            "time_to_first_token_seconds", "From the request to its first token, pauses left out", _SECONDS
        )
        self._queued = histogram("request_queue_time_seconds", "From a place in the queue to a prefill", _SECONDS)
        self._whole = histogram("e2e_request_latency_seconds", "From the request to its end, pauses left out", _SECONDS)
        self._decode = histogram(
            "request_decode_time_seconds", "From the first token to the end, pauses left out", _SECONDS
        )
        self._each = histogram("time_per_output_token_seconds", "Decode time of a run by its tokens", _PER_TOKEN)
        self._prompts = histogram("request_prompt_tokens", "Tokens of a prompt", _TOKENS)
        self._tokens = histogram(
            "request_generation_tokens", "Tokens of a run, without those of its parent or of an earlier server", _TOKENS
        )
        self._disconnects = counter("disconnects", "Clients that left before the end of their answer")
        self._running = gauge("num_requests_running", "Runs in slots or on their way there")
        self._waiting = gauge("num_requests_waiting", "Runs in the queue")
        self._usage = gauge("kv_cache_usage_perc", "Share of the slots in use, from 0 to 1")
        self._bytes = gauge("cache_bytes", "Bytes of all caches on each device, reserved at the start")
        self._prefixes = gauge("prefix_cache_bytes", "Bytes of K/V of earlier texts in the host's memory")
        self._device = gauge("device_bytes_in_use", "Bytes in use on the first device, where it says so")
        self._host = gauge("host_bytes_available", "Bytes of host memory that can still be allocated")
        self._pace = gauge("tokens_per_second", "Running average over all runs")

    def watch(self, scheduler: Scheduler) -> None:
        """Takes the gauges from a scheduler whenever they are read."""
        self._running.set_function(lambda: scheduler.counts["running"] + scheduler.counts["prefill"])
        self._waiting.set_function(lambda: scheduler.counts["waiting"])
        self._usage.set_function(lambda: scheduler.counts["running"] / scheduler.slots)
        self._bytes.set(sum(pool.bytes for pool in scheduler.pools))
        prefixes = scheduler.pools[0].prefixes
        if prefixes is not None:
            self._prefixes.set_function(lambda: prefixes.bytes)
        self._device.set_function(_device_bytes)
        self._host.set_function(lambda: available_bytes() or 0)
        self._pace.set_function(lambda: scheduler.pace.tokens_per_second or 0.0)

    @property
    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)

    def disconnected(self) -> None:
        """A client left early."""
        self._disconnects.inc()

    def admitted(self, run: Run) -> None:
        """As `Observer.admitted`."""
        self._queued.observe(time.perf_counter() - run.submitted)

    def entering(self, run: Run) -> None:
        """As `Observer.entering`."""
        self._asked.inc(len(run.request.prompt_ids))
        self._hits.inc(run.cached)

    def prefilled(self, positions: int) -> None:
        """As `Observer.prefilled`."""
        self._prompt.inc(max(positions, 0))

    def first_token(self, run: Run) -> None:
        """As `Observer.first_token`."""
        if not run.given:
            self._ttft.observe(run.clock.seconds)

    def stepped(self, flight: Flight, result: Any) -> None:
        """As `Observer.stepped`; tokens of runs that left in the meantime count too: the device computed them."""
        kept = [result.records[row, :count] for row, count in enumerate(result.counts.tolist()) if count]
        with self._counting:
            self._records += kept
            if len(self._records) >= _GATHERED:
                self._count()

    def collect(self) -> list[Any]:
        """Counts what was gathered, before the registry reads the counters; as a collector of its own, it has none."""
        with self._counting:
            self._count()
        return []

    def _count(self) -> None:
        """Counts the gathered records, for a thread that has the lock."""
        kept, self._records = self._records, []
        if not kept:
            return
        records = np.concatenate(kept)
        sources, offsets, offered = records[:, 1], records[:, 2], records[:, 3]
        self._generated.inc(len(records))
        for source, count in enumerate(np.bincount(sources).tolist()):
            if count:
                self._of_source(source).inc(count)
        self._drafts.inc(int(np.count_nonzero((offsets == 0) & (offered > 0))))
        drafted = offsets[sources != SAMPLED]
        self._accepted.inc(len(drafted))
        for depth, count in enumerate(np.bincount(drafted).tolist()):
            if count:
                self._of_depth(depth).inc(count)

    def ended(self, run: Run) -> None:
        """As `Observer.ended`."""
        whole, tokens = run.clock.seconds, len(run.tokens) - run.given
        self._success.labels(self._model, run.finish or FAILED).inc()
        self._prompts.observe(len(run.request.prompt_ids))
        self._tokens.observe(tokens)
        self._whole.observe(whole)
        if run.first_token is not None:
            self._decode.observe(whole - run.first_token)
            if tokens > 1:
                self._each.observe((whole - run.first_token) / (tokens - 1))


def _device_bytes() -> float:
    import jax

    stats = jax.local_devices()[0].memory_stats()
    return float(stats.get("bytes_in_use", 0)) if stats else 0.0
