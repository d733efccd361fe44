"""`generate --documents`: one worker of those that write the texts of a folder of prompts."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from types import FrameType
from typing import TYPE_CHECKING, Any

from tokenswift_jax.cli.command import in_flags, quiet_transformers
from tokenswift_jax.cli.flags import SAMPLING
from tokenswift_jax.documents.lease import Lease, Leases
from tokenswift_jax.documents.results import PROMPT_HASH, REPORT, Results, output_folder
from tokenswift_jax.documents.source import Document, documents_in, prompt_hashes, unused_fields
from tokenswift_jax.documents.worker import LostError, work
from tokenswift_jax.errors import UserError
from tokenswift_jax.generation_config import MAX_NEW_TOKENS, default_length
from tokenswift_jax.parallel.mesh_spec import AutoMesh

if TYPE_CHECKING:
    from tokenswift_jax.model import Model
    from tokenswift_jax.sampling import SamplingConfig
    from tokenswift_jax.speculation import SpeculationConfig
    from tokenswift_jax.stats import GenerationResult

_SHOWN = 10  # names of fields in one line
_LOOKS = 20  # at documents that others have, in the time after which they are taken over
_LONGEST_PAUSE = 5.0  # seconds between two looks


def run(options: argparse.Namespace, flags: Mapping[str, str]) -> int:
    """Works until every document is done or has failed; returns the exit status (0 all are done, 1 some have failed).

    Raises:
      UserError: the folders or the values for all documents are wrong.
      KeyboardInterrupt: Ctrl-C or SIGTERM; the document under way is open for other workers at once.
    """
    documents, others = documents_in(options.documents)
    results = Results(output_folder(options.output, options.documents))
    quiet_transformers()
    from tokenswift_jax.cli.phases import Phases
    from tokenswift_jax.cli.progress import ProgressLine
    from tokenswift_jax.model import load
    from tokenswift_jax.sampling import resolve_sampling
    from tokenswift_jax.speculation import SpeculationConfig

    resolve_sampling(options.sampling, None)  # rejects wrong values before the model is loaded
    speculation = SpeculationConfig(**options.speculation)
    talks = not options.quiet
    if others and talks:
        print(f"left out, since they are no documents: {', '.join(others)}", file=sys.stderr)
    if talks and (unused := unused_fields(documents)):
        shown = ", ".join(unused[:_SHOWN]) + (f" and {len(unused) - _SHOWN} others" if len(unused) > _SHOWN else "")
        print(f"fields of records that change no text: {shown}; flags set the values of all documents", file=sys.stderr)
    progress = ProgressLine(sys.stderr, MAX_NEW_TOKENS, enabled=talks)
    with _terminated_as_interrupted(), Phases(progress, sys.stderr, enabled=talks) as phases:
        mesh = AutoMesh(rows=1, length=options.capacity) if options.mesh == "auto" else options.mesh
        placed = {"mesh": mesh, "pipeline_depth": options.pipeline_depth}
        room = options.capacity or options.max_new_tokens
        model = load(options.model, options.dtype, options.rope_override, report=phases, length=room, **placed)
        progress.clear()
        if model.mesh_notes and talks:
            print(*model.mesh_notes, sep="\n", file=sys.stderr)
        past = results.recorded()
        kept = {name: past[name] for name in SAMPLING if name in past}
        sampling = resolve_sampling(options.sampling, model.generation_config, kept or None)
        usual = default_length(model.generation_config, 0, model.config.max_position_embeddings) or MAX_NEW_TOKENS
        length = options.max_new_tokens or past.get("max_new_tokens") or usual
        if "eos_token_ids" in past:
            model = replace(model, eos_token_ids=tuple(past["eos_token_ids"]))
        results.claim(_job(options, model, sampling, length, past), documents)
        if options.retry_failed:
            results.forget_failures(documents)
        written = 0

        def write(document: Document, prompt: str, lease: Lease) -> GenerationResult:
            progress.begin(length)
            try:
                # The usual length may depend on the prompt: `stream` knows it.
                asked = None if options.max_new_tokens is None and length == usual else length
                return _write(
                    document, prompt, lease, model, sampling, speculation, asked, options, results, progress, phases
                )
            except UserError as error:
                raise UserError(in_flags(error, flags)) from error
            finally:
                progress.clear()

        def settled(document: Document, result: GenerationResult | None, reason: str) -> None:
            nonlocal written
            written += result is not None
            if result is None:
                print(f"{document.name} failed: {reason}", file=sys.stderr)
            elif talks:
                rate = f"{result.tokens_per_second:,.1f} tokens/s"
                print(f"{document.name}: {result.generated_tokens:,} tokens, {rate}", file=sys.stderr)

        leases = Leases(results.folder, options.lease_seconds)
        pause = min(options.lease_seconds / _LOOKS, _LONGEST_PAUSE)
        try:
            work(documents, results, leases, write, recorded=_logprobs(options), pause=pause, settled=settled)
        finally:
            lines = results.report(documents)
    failed = [line["document"] for line in lines if line["status"] == "failed"]
    doubtful = [line["document"] for line in lines if line.get("audit_failed")]
    if talks:
        done = sum(line["status"] == "done" for line in lines)
        print(f"{done} of {len(lines)} documents done, {written} by this worker", file=sys.stderr)
    if failed:
        _name(failed, f"failed; {results.folder / REPORT} says why; --retry-failed tries them again")
    if doubtful:
        _name(doubtful, "did not pass the audit")
    otherwise = _name_done_otherwise(documents, results, options, flags)
    return int(bool(failed or doubtful or otherwise))


def _name_done_otherwise(
    documents: Sequence[Document], results: Results, options: argparse.Namespace, flags: Mapping[str, str]
) -> bool:
    """Names the documents done for other prompts, or without what the flags ask for; returns whether there are any."""
    hashes, logprobs = prompt_hashes(documents), _logprobs(options)
    again = "name another folder to write them with it"
    # A document of an earlier version has no hash and no settings of log-probabilities: nothing says that they differ.
    checks: list[Callable[[Document, Mapping[str, Any]], bool]] = [
        lambda document, found: found.get(PROMPT_HASH) in (None, hashes.get(document.name))
    ]
    faults = [
        f"had been done for other prompts; delete their .json and .journal in {results.folder} to write them again"
    ]
    for name, asked in (("audit", options.audit), ("logprobs", bool(logprobs))):
        if asked:
            checks.append(lambda _, found, name=name: found.get(name) is not None)
            faults.append(f"had been done without {flags[name]}; {again}")
    if logprobs:
        checks.append(lambda _, found: all(found.get(name, value) == value for name, value in logprobs.items()))
        faults.append(f"had been done with another {flags['logprobs']} or {flags['logprobs_mode']}; {again}")
    failing = results.done_otherwise(documents, checks)
    for names, fault in zip(failing, faults, strict=True):
        if names:
            _name(names, fault)
    return any(failing)


def _logprobs(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of log-probabilities, as the statistics of a document state them; empty where none are asked for."""
    if options.logprobs is None:
        return {}
    return {"logprobs_count": options.logprobs, "logprobs_mode": options.logprobs_mode}


def _write(
    document: Document,
    prompt: str,
    lease: Lease,
    model: Model,
    sampling: SamplingConfig,
    speculation: SpeculationConfig,
    max_new_tokens: int | None,
    options: argparse.Namespace,
    results: Results,
    progress: Any,
    phases: Any,
) -> GenerationResult:
    """Writes one document's text, from the end of its journal on if there is one."""
    from tokenswift_jax.api import stream

    result = None
    events = stream(
        model,
        None if options.chat else prompt,
        replace(sampling, sequence=document.sequence),
        speculation,
        max_new_tokens=max_new_tokens,
        min_new_tokens=options.min_new_tokens,
        ignore_eos=options.ignore_eos,
        stop=options.stop,
        stop_on_repetition=options.stop_on_repetition,
        journal=results.journal(document),
        resume=True,
        audit=options.audit,
        capacity=options.capacity,
        logprobs=options.logprobs,
        logprobs_mode=options.logprobs_mode,
        messages=[{"role": "user", "content": prompt}] if options.chat else None,
        report=phases,
    )
    try:
        for event in events:
            result = event.result or result
            if lease.lost.is_set():
                raise LostError
            if len(event.records):
                progress.add(event.records)
                progress.draw()
                phases.printed()
    finally:
        events.close()
    assert result is not None, "the last event carries the result"
    if result.finish_reason == "interrupted" or (options.audit and result.audit is None):
        raise KeyboardInterrupt
    return result


def _job(
    options: argparse.Namespace, model: Model, sampling: SamplingConfig, length: int, past: dict[str, Any]
) -> dict:
    """Everything that the texts depend on besides the documents, and the form of the results."""
    from tokenswift_jax import checkpoint

    own = {name: value for name, value in asdict(sampling).items() if name != "sequence"}
    return {
        "checkpoint": checkpoint.known_fingerprint(model.path, past.get("checkpoint")),
        "dtype": model.dtype,
        "rope_override": model.rope_override,
        "eos_token_ids": model.eos_token_ids,
        **own,
        "max_new_tokens": length,
        "min_new_tokens": options.min_new_tokens,
        "ignore_eos": options.ignore_eos,
        "stop": options.stop,
        "stop_on_repetition": options.stop_on_repetition or None,  # earlier versions ignored the flag and wrote nothing
        "chat": options.chat,
    }


def _name(documents: list[str], what: str) -> None:
    shown = ", ".join(documents[:5]) + (f" and {len(documents) - 5} others" if len(documents) > 5 else "")
    print(f"error: {shown} {what}", file=sys.stderr)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Lets SIGTERM, by which clusters announce that they take a machine away, end the block as Ctrl-C does.

    Without it, Python ends at once, and other workers find out only when the lease has not been renewed.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # no other thread may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
