"""Text from a prompt: `generate` and `stream`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import jax

from tokenswift_jax import __version__, checkpoint, stats
from tokenswift_jax.arguments import check_call, logprob_spec, requests_for
from tokenswift_jax.engine.journal import Journal, recorded_header
from tokenswift_jax.engine.sequence import SequenceOutput
from tokenswift_jax.errors import UserError, WriteError
from tokenswift_jax.finish import FAILED, INTERRUPTED
from tokenswift_jax.journal_header import journal_header
from tokenswift_jax.parallel.report import mesh_table
from tokenswift_jax.past_run import asked_for, recorded
from tokenswift_jax.processes.agreement import agreed, several
from tokenswift_jax.progress_report import Report, check_report, phase, silent
from tokenswift_jax.prompt import encode_rows, is_batch
from tokenswift_jax.request import Request
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.schedule_trace import ScheduleTrace
from tokenswift_jax.stats import GenerationResult
from tokenswift_jax.text.transcript import Segment
from tokenswift_jax.token_log import SAMPLED, TokenLog, TokenLogprob, concatenate

if TYPE_CHECKING:
    from tokenswift_jax.audit.replay import AuditReport
    from tokenswift_jax.engine.session import Session
    from tokenswift_jax.model import Model
    from tokenswift_jax.sample.logprobs import LogprobSpec
    from tokenswift_jax.speculation import SpeculationConfig

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True)
class StreamEvent:
    """The tokens and text that one finished chunk added to one row; the row's last event carries its result.

    Attributes:
      row: index of the prompt in the batch, 0 for a single one.
      segments: pieces of text, each with the source of the token that completed it
        (0 drawn by the target, 1 accepted draft, 2 accepted draft that only the n-gram table proposed).
        Text may lag behind the tokens: the row keeps back unfinished characters and possible stop strings.
      records: the chunk's tokens.
      result: the row's result, None before its end.
    """

    row: int
    segments: tuple[Segment, ...]
    records: TokenLog
    result: GenerationResult | None = None

    @property
    def text(self) -> str:
        """The new text."""
        return "".join(text for text, _ in self.segments)

    @property
    def token_ids(self) -> list[int]:
        """The new tokens."""
        return self.records.token_ids.tolist()

    @property
    def drafted(self) -> list[bool]:
        """For each new token, whether it was drafted and accepted."""
        return (self.records.sources != SAMPLED).tolist()


@dataclass(frozen=True)
class _Call:
    """The arguments of one call, checked and resolved."""

    model: Model
    requests: list[Request]
    batch: bool
    logprobs: LogprobSpec | None
    speculation: SpeculationConfig
    ignore_eos: bool | Sequence[bool]
    audit: bool
    report: Report


def _with_parameters_of(source: Callable[_P, Any]) -> Callable[[Callable[..., _T]], Callable[_P, _T]]:
    """Gives a function that passes its arguments to `source` the signature of it, for help() and type checkers."""

    def decorate(function: Callable[..., _T]) -> Callable[_P, _T]:
        own = inspect.signature(function)
        cast("Any", function).__signature__ = inspect.signature(source).replace(return_annotation=own.return_annotation)
        return function

    return decorate


def stream(
    model: Model,
    prompt: Any = None,
    sampling: SamplingConfig | Sequence[SamplingConfig] | None = None,
    speculation: SpeculationConfig | None = None,
    *,
    max_new_tokens: int | Sequence[int] | None,
    min_new_tokens: int | Sequence[int] | None = None,
    ignore_eos: bool | Sequence[bool] = False,
    stop: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
    stop_on_repetition: bool | Sequence[bool] = False,
    journal: str | Path | None = None,
    resume: bool = False,
    audit: bool = False,
    capacity: int | None = None,
    logprobs: int | None = None,
    logprobs_mode: str = "raw",
    messages: Any = None,
    report: Report = silent,
    mesh_report: Callable[[str], None] | None = None,
) -> Generator[StreamEvent, None, None]:
    """Generates as `generate` does, and yields a `StreamEvent` for each committed chunk.

    Each row ends with an event that carries its result. The call itself checks the arguments and raises for a wrong
    one. KeyboardInterrupt (raised while the next event is computed, or thrown in with `.throw`) ends the text; the
    results follow. Closing the generator abandons the run.
    """
    from tokenswift_jax.engine import session
    from tokenswift_jax.speculation import SpeculationConfig

    speculation = SpeculationConfig() if speculation is None else speculation
    check_call(model, speculation, capacity=capacity, audit=audit, resume=resume, journal=journal)
    check_report(report)
    if mesh_report is not None and not callable(mesh_report):
        raise UserError(f"mesh_report is {mesh_report!r:.80}; it must be a function of a text, such as print")
    size = model.config.vocab_size
    _check_processes(audit=audit, replays=logprobs is not None and resume)
    past_run = agreed(lambda: recorded(journal, prompt, messages, size)) if resume and journal is not None else None
    prompts = None
    if past_run is not None:
        prompts = None if past_run.prompt_ids is None else [past_run.prompt_ids]
        model = model if past_run.eos_token_ids is None else replace(model, eos_token_ids=past_run.eos_token_ids)
        sampling = past_run.sampling if sampling is None else sampling
        min_new_tokens = past_run.min_new_tokens if min_new_tokens is None else min_new_tokens
        stop = past_run.stops if stop is None else stop
    if prompts is None:
        tokenizer = model.tokenizer
        prompts = agreed(lambda: encode_rows(prompt, messages, tokenizer, size, report))
    requests = requests_for(
        model,
        prompts,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        ignore_eos=ignore_eos,
        stop=stop,
        stop_on_repetition=stop_on_repetition,
    )
    spec = logprob_spec(logprobs, logprobs_mode, size)
    call = _Call(model, requests, is_batch(prompt, messages), spec, speculation, ignore_eos, audit, report)
    saved: Journal | None = None

    def opened() -> tuple[list[TokenLog], list[dict[str, Any]]]:
        nonlocal saved
        saved = _open_journal(call, journal, resume, asked_for(prompt, messages))
        return ([], []) if saved is None else (saved.parts, saved.schedule_trace)

    parts, traced = agreed(opened)
    try:
        rows = [SequenceOutput(model.tokenizer, request) for request in requests]
        past = [rows[0].take(part) for part in parts if rows[0].finish is None]
        run = None
        if rows[0].finish is None:  # only a journal can have ended the row by now
            emitted = [concatenate(rows[0].parts).token_ids.tolist()] if past else None
            run = session.Session(
                model, requests, speculation, emitted=emitted, capacity=capacity, logprobs=spec, report=report
            )
            if mesh_report is not None:
                mesh_report(mesh_table(run.engine.placement.sizes, run.engine.arrays()))
            if saved is not None:
                saved.begin()
    except BaseException:
        if saved is not None:
            saved.close()
        raise
    earlier = [StreamEvent(0, tuple(text), kept) for kept, text in past]
    traces = [ScheduleTrace(traced), *(ScheduleTrace() for _ in rows[1:])]  # a journal has one row
    return _events(call, rows, earlier, run, saved, traces)


@_with_parameters_of(stream)
def generate(model: Model, prompt: Any = None, *arguments: Any, **named: Any) -> Any:
    """Generates text; a seed gives the same tokens with every `speculation`.

    KeyboardInterrupt ends the text early and is not raised again: the result's finish_reason is "interrupted".
    `max_new_tokens`, `min_new_tokens`, `ignore_eos`, `stop` and `stop_on_repetition` take one value, or a list with one
    value per prompt.

    Args:
      model: from `load`.
      prompt: text or token ids (one prompt), or a list of those (one batch).
      sampling: one configuration for all prompts, where prompt i draws with `sequence` + i; or a list with one per
        prompt, used as given. None: transformers' defaults for the checkpoint: greedy unless its generation_config says
        `do_sample`.
      speculation: how drafts are made; None: the defaults (mode "auto").
      max_new_tokens: the most tokens to generate, EOS included; None: as many as the checkpoint's generation_config
        says, else 256, or as many as the model's positions allow, if that is less.
      min_new_tokens: no EOS is drawn before this many tokens; None: the checkpoint's generation_config, else 0.
      ignore_eos: EOS tokens do not end the text.
      stop: strings that end the text; it ends before them. A special token by its name ends it too. A list of lists
        has one entry per prompt. None: the `stop_strings` of the checkpoint's generation_config, if any.
      stop_on_repetition: end the text, with finish_reason "repetition", at the token with which its newest max(3 p, 48)
        tokens have a period p of at most 128 tokens.
      journal: file for every emitted token (one prompt only).
      resume: continue the journal's run, or begin it where there is no file yet. The run goes on with the token ids of
        its prompt, the EOS ids and, where the call has none of its own, the sampling that the journal has: a template,
        tokenizer or generation_config that has changed since then does not matter, and the prompt may be left out.
      audit: replay the finished text through the target and compare every draw.
      capacity: positions to reserve in the cache; None: as many as prompt and max_new_tokens need.
      logprobs: return the log-probability of every token, and of this many likeliest tokens there (0 or more).
      logprobs_mode: "raw": those of the model's own distribution; "processed": those of the distribution that tokens
        are drawn from, after penalty, temperature and filters (a greedy row's has temperature 1).
      messages: in place of a prompt, a conversation for the tokenizer's chat template: a list of turns such as
        {"role": "user", "content": "..."}. A list of conversations is one batch.
      report: called with the progress of phases that give no text yet (`progress_report`).
      mesh_report: called with a table of every array of the run: its dimensions, its split over the mesh's axes, and
        its bytes on each device.

    Returns:
      A `GenerationResult`, or a list of them for a batch.

    Raises:
      UserError: an argument is wrong; raised before anything is generated.
      tokenswift_jax.errors.NumericsError: no token can be drawn, since logits are NaN or infinite; it names the
        position. In a batch only that row ends, with finish_reason "error" and the message in `error`.
      tokenswift_jax.errors.WriteError: the journal cannot be written; the text ends there. `stream` yields its result
        first.
    """
    results = [event.result for event in stream(model, prompt, *arguments, **named) if event.result is not None]
    return results if is_batch(prompt, named.get("messages")) else results[0]


def _events(
    call: _Call,
    rows: list[SequenceOutput],
    past: list[StreamEvent],
    run: Session | None,
    journal: Journal | None,
    traces: list[ScheduleTrace],
) -> Generator[StreamEvent, None, None]:
    withheld = [""] * len(rows)
    errors: dict[int, str] = {}
    unwritten: WriteError | None = None
    try:
        yield from past
        for step in run or ():
            for index, (row, new) in enumerate(zip(rows, step.rows, strict=True)):
                if row.finish is not None:
                    continue
                if len(new.log):
                    kept, segments = row.take(new.log)
                    new_trace = traces[index].follow(run.schedule_traces[index]) if run is not None else []
                    if journal is not None:
                        try:
                            journal.append(kept, new_trace)
                        except WriteError as error:
                            unwritten = error
                    yield StreamEvent(index, tuple(segments), kept)
                if new.error is not None and row.finish is None:
                    if not call.batch:
                        raise new.error
                    errors[index] = str(new.error)
                    yield StreamEvent(index, tuple(row.failed()), concatenate([]))
            if all(row.finish is not None for row in rows):
                break
            if unwritten is not None:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        released = [row.text for row in rows]
        rows = [row.interrupted() for row in rows]
        withheld = [row.text[len(text) :] for row, text in zip(rows, released, strict=True)]
    finally:
        if run is not None:
            run.close()
        if journal is not None:
            journal.close()
    for index, (row, text) in enumerate(zip(rows, withheld, strict=True)):
        segments = ((text, SAMPLED),) if text else ()
        result = _result(call, index, row, run, traces[index], errors.get(index))
        yield StreamEvent(index, segments, concatenate([]), result)
    if unwritten is not None:
        raise unwritten


def _result(
    call: _Call,
    index: int,
    row: SequenceOutput,
    run: Session | None,
    trace: ScheduleTrace,
    error: str | None,
) -> GenerationResult:
    records = concatenate(row.parts)
    assert row.finish is not None, "the run ended before its rows"
    request, found = call.requests[index], None
    if call.audit and row.finish not in (INTERRUPTED, FAILED):
        found = _audit(call.model, request, records, call.report)
    return GenerationResult(
        text=row.text,
        model=str(call.model.path),
        mode=call.speculation.mode,
        seed=request.sampling.seed,
        sequence=request.sampling.sequence,
        device=_device(),
        dtype=call.model.dtype,
        versions={"jax": jax.__version__, "tokenswift_jax": __version__},
        prompt_tokens=len(request.prompt_ids),
        generated_tokens=len(records),
        token_ids=records.token_ids.tolist(),
        finish_reason=row.finish,
        schedule_trace=trace.of(len(records)),
        compile_seconds=run.compile_seconds if run is not None else 0.0,
        prefill_seconds=run.prefill_seconds if run is not None else 0.0,
        **stats.acceptance(records),
        **stats.timing(records),
        distinct_n=stats.distinct_n(records.token_ids),
        logprobs=_logprobs(call, request, records),
        error=error,
        audit=None
        if found is None
        else {"positions": found.positions, "mismatches": found.mismatches, "max_margin": found.max_margin},
        audit_failed=found is not None and found.failed,
        plan_reason=run.plan_reason if run is not None else None,
        prefill_stream=run.prefill_stream if run is not None else None,
        records=records,
    )


def _audit(model: Model, request: Request, records: TokenLog, report: Report) -> AuditReport | None:
    """The replay's findings; None when it was interrupted."""
    from tokenswift_jax.audit.replay import audit

    try:
        with phase(report, "auditing the text"):
            return audit(model, request, records.token_ids.tolist())
    except KeyboardInterrupt:
        return None


def _logprobs(call: _Call, request: Request, records: TokenLog) -> list[TokenLogprob] | None:
    """One entry per token; a replay computes all those of a resumed text, since a journal contains none."""
    if call.logprobs is None:
        return None
    found, token_ids = records.logprobs, records.token_ids.tolist()
    if found is None and token_ids:
        from tokenswift_jax.audit.logprobs import replayed_logprobs

        found = replayed_logprobs(call.model, request, token_ids, call.logprobs)
    return [] if found is None else found.of(token_ids)


def _check_processes(*, audit: bool, replays: bool) -> None:
    """Raises UserError for a replay of a text that several processes write: process 0 alone knows the text's end."""
    if several() and (audit or replays):
        named = ("audit",) if audit else ("logprobs", "resume")
        raise UserError(
            f"{' and '.join(named)} replay the text, which works in one process; leave it out, or start one process",
            arguments=named,
        )


def _device() -> str:
    device = jax.devices()[0]
    return device.platform if device.device_kind == device.platform else f"{device.platform}: {device.device_kind}"


def _open_journal(call: _Call, path: str | Path | None, resume: bool, asked: str | None) -> Journal | None:
    """The journal (`journal_header`)."""
    if path is None:
        if resume:
            raise UserError("resume=True without journal: name the file to continue", arguments=("resume", "journal"))
        return None
    if len(call.requests) > 1:
        raise UserError("journal holds one prompt's tokens; leave it out for a batch", arguments=("journal",))
    model, ignored = call.model, call.ignore_eos[0] if isinstance(call.ignore_eos, list | tuple) else call.ignore_eos
    past = recorded_header(path) if resume else None
    known = checkpoint.known_fingerprint(model.path, past and past.get("checkpoint"))
    header = journal_header(model, call.requests[0], ignore_eos=bool(ignored), fingerprint=known)
    if asked is not None:
        header["asked"] = asked
    return Journal(path, header, resume, model.config.vocab_size)
