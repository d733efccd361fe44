"""From a prompt to text: `generate` and `stream`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import jax

from tokenswift_jax import __version__, checkpoint, stats
from tokenswift_jax.arguments import requests_for
from tokenswift_jax.engine.journal import Journal
from tokenswift_jax.engine.sequence import Row
from tokenswift_jax.engine.token_log import SAMPLED, Records, concatenate, from_committed
from tokenswift_jax.errors import UserError
from tokenswift_jax.prompt import encode, is_batch
from tokenswift_jax.request import Request
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.stats import GenerationResult
from tokenswift_jax.text.transcript import Segment

if TYPE_CHECKING:
    from tokenswift_jax.audit.replay import AuditReport
    from tokenswift_jax.engine.run import DecodingRun
    from tokenswift_jax.model import Model
    from tokenswift_jax.speculation import SpeculationConfig

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True)
class StreamEvent:
    """What one finished chunk added to one row; the row's last event carries its result.

    Attributes:
      row: index of the prompt in the batch, 0 for a single one.
      segments: pieces of text, each with the source of the token that completed it
        (0 drawn by the target, 1 accepted draft, 2 accepted draft that only the n-gram table proposed).
        Text may lag behind the tokens: unfinished characters and possible stop strings wait.
      records: the chunk's tokens.
      result: the row's result, None before its end.
    """

    row: int
    segments: tuple[Segment, ...]
    records: Records
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
        """Which of the new tokens were drafted and accepted."""
        return (self.records.sources != SAMPLED).tolist()


@dataclass(frozen=True)
class _Call:
    """The arguments of one call, checked and resolved."""

    model: Model
    requests: list[Request]
    speculation: SpeculationConfig
    ignore_eos: bool | Sequence[bool]
    audit: bool


def _with_parameters_of(source: Callable[_P, Any]) -> Callable[[Callable[..., _T]], Callable[_P, _T]]:
    """Gives a function that hands its arguments on to `source` the signature of that, for help() and type checkers."""

    def decorate(function: Callable[..., _T]) -> Callable[_P, _T]:
        own = inspect.signature(function)
        cast("Any", function).__signature__ = inspect.signature(source).replace(return_annotation=own.return_annotation)
        return function

    return decorate


def stream(
    model: Model,
    prompt: Any,
    sampling: SamplingConfig | Sequence[SamplingConfig] | None = None,
    speculation: SpeculationConfig | None = None,
    *,
    max_new_tokens: int | Sequence[int],
    min_new_tokens: int | Sequence[int] = 0,
    ignore_eos: bool | Sequence[bool] = False,
    stop: str | Sequence[str] | Sequence[Sequence[str]] = (),
    journal: str | Path | None = None,
    resume: bool = False,
    audit: bool = False,
    capacity: int | None = None,
) -> Generator[StreamEvent, None, None]:
    """`generate`, a `StreamEvent` for each chunk as it is committed; each row ends with one that carries its result.

    Arguments are checked, and a wrong one raises, when this is called. KeyboardInterrupt (raised while the next event
    is computed, or thrown in with `.throw`) ends the text; the results follow. Closing the generator abandons the run.
    """
    from tokenswift_jax.engine import run as decoding
    from tokenswift_jax.speculation import SpeculationConfig

    size = model.config.vocab_size
    prompts = [encode(one, model.tokenizer, size) for one in (prompt if is_batch(prompt) else [prompt])]
    requests = requests_for(
        model,
        prompts,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        ignore_eos=ignore_eos,
        stop=stop,
    )
    speculation = SpeculationConfig() if speculation is None else speculation
    call = _Call(model, requests, speculation, ignore_eos, audit)
    saved = _open_journal(call, journal, resume)
    try:
        rows = [Row(model.tokenizer, request) for request in requests]
        past = [rows[0].take(part) for part in saved.parts if rows[0].finish is None] if saved is not None else []
        run = None
        if rows[0].finish is None:  # only a journal can have brought the row to its end by now
            emitted = [concatenate(rows[0].parts).token_ids.tolist()] if past else None
            run = decoding.DecodingRun(model, requests, speculation, emitted=emitted, capacity=capacity)
            if saved is not None:
                saved.begin()
    except BaseException:
        if saved is not None:
            saved.close()
        raise
    return _events(call, rows, [StreamEvent(0, tuple(text), kept) for kept, text in past], run, saved)


@_with_parameters_of(stream)
def generate(model: Model, prompt: Any, *arguments: Any, **named: Any) -> Any:
    """Generates text: the same tokens for one seed whatever `speculation` says.

    KeyboardInterrupt ends the text early and is not raised again: the result's finish_reason is "interrupted".
    `max_new_tokens`, `min_new_tokens`, `ignore_eos` and `stop` take one value, or a list of one a prompt.

    Args:
      model: from `load`.
      prompt: text or token ids (one prompt), or a list of those (one batch).
      sampling: one for all prompts, of which prompt i draws with `sequence` + i, or a list of one each, used as given.
        None: the checkpoint's generation_config, neutral where it says nothing.
      speculation: how drafts are made; None: the defaults (mode "auto").
      max_new_tokens: the most tokens to generate, EOS included.
      min_new_tokens: no EOS is drawn before this many tokens.
      ignore_eos: EOS tokens do not end the text.
      stop: strings that end the text; it ends before them. A list of lists has one entry a prompt.
      journal: file for every emitted token (one prompt only).
      resume: continue the journal's run, or begin it where there is no file yet.
      audit: replay the finished text through the target and compare every draw.
      capacity: positions to reserve in the cache; None: what prompt and max_new_tokens need.

    Returns:
      A `GenerationResult`, a list of them for a batch.

    Raises:
      UserError: whatever is wrong with the arguments, before anything is generated.
      tokenswift_jax.engine.run.NumericsError: NaN logits, with the position.
    """
    results = [event.result for event in stream(model, prompt, *arguments, **named) if event.result is not None]
    return results if is_batch(prompt) else results[0]


def _events(
    call: _Call, rows: list[Row], past: list[StreamEvent], run: DecodingRun | None, journal: Journal | None
) -> Generator[StreamEvent, None, None]:
    trace = list(journal.schedule_trace) if journal is not None else []
    held = [""] * len(rows)
    try:
        yield from past
        known = 0  # entries of the run's trace that are in `trace`
        for step in run or ():
            entries = run.schedule_trace[known:] if run is not None else []
            known += len(entries)
            new_trace = _changes(trace, entries)
            trace += new_trace
            for index, (row, committed) in enumerate(zip(rows, step.rows, strict=True)):
                if row.finish is not None or not len(committed.token_ids):
                    continue
                kept, segments = row.take(from_committed(committed, step.seconds))
                if journal is not None:
                    journal.append(kept, new_trace)
                yield StreamEvent(index, tuple(segments), kept)
            if all(row.finish is not None for row in rows):
                break
    except KeyboardInterrupt:
        released = [row.text for row in rows]
        rows = [row.interrupted() for row in rows]
        held = [row.text[len(text) :] for row, text in zip(rows, released, strict=True)]
    finally:
        if run is not None:
            run.close()
        if journal is not None:
            journal.close()
    for index, (row, text) in enumerate(zip(rows, held, strict=True)):
        segments = ((text, SAMPLED),) if text else ()
        yield StreamEvent(index, segments, concatenate([]), _result(call, index, row, run, trace))


def _result(
    call: _Call, index: int, row: Row, run: DecodingRun | None, trace: list[dict[str, Any]]
) -> GenerationResult:
    records = concatenate(row.parts)
    assert row.finish is not None, "the run ended before its rows"
    request, report = call.requests[index], None
    if call.audit and row.finish != "interrupted":
        report = _audit(call.model, request, records)
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
        schedule_trace=trace[:1] + [entry for entry in trace[1:] if entry["from_token"] < len(records)],
        compile_seconds=run.compile_seconds if run is not None else 0.0,
        prefill_seconds=run.prefill_seconds if run is not None else 0.0,
        **stats.acceptance(records),
        **stats.timing(records),
        distinct_n=stats.distinct_n(records.token_ids),
        audit=None
        if report is None
        else {"positions": report.positions, "mismatches": report.mismatches, "max_margin": report.max_margin},
        audit_failed=report is not None and report.failed,
    )


def _changes(trace: list[dict[str, Any]], entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries that differ from what ran before them: a resumed run names its plan anew."""
    changes: list[dict[str, Any]] = []
    for entry in entries:
        before = (trace + changes)[-1:]
        if not before or before[0] | {"from_token": entry["from_token"]} != entry:
            changes.append(entry)
    return changes


def _audit(model: Model, request: Request, records: Records) -> AuditReport | None:
    """The replay's findings; None when it was interrupted."""
    from tokenswift_jax.audit.replay import audit

    try:
        return audit(model, request, records.token_ids.tolist())
    except KeyboardInterrupt:
        return None


def _device() -> str:
    device = jax.devices()[0]
    return device.platform if device.device_kind == device.platform else f"{device.platform}: {device.device_kind}"


def _open_journal(call: _Call, path: str | Path | None, resume: bool) -> Journal | None:
    """The journal, its header made of whatever the text depends on; lengths may grow on resume, so no cap."""
    if path is None:
        if resume:
            raise UserError("--resume continues a journal; name it with --journal")
        return None
    if len(call.requests) > 1:
        raise UserError("a journal holds one prompt's tokens; generate a batch without --journal")
    model, request = call.model, call.requests[0]
    header = {
        "checkpoint": checkpoint.fingerprint(model.path),
        "dtype": model.dtype,
        "rope_override": model.rope_override,
        "eos_token_ids": model.eos_token_ids,
        "prompt_ids": list(request.prompt_ids),
        "sampling": asdict(request.sampling),
        "min_new_tokens": request.min_new_tokens,
        "ignore_eos": call.ignore_eos if isinstance(call.ignore_eos, bool) else call.ignore_eos[0],
        "stop": request.stops,
    }
    return Journal(path, header, resume)
