"""The command `generate`: it writes text to stdout, and progress and a closing report to stderr."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import stat
import sys
from collections.abc import Generator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, TextIO

from tokenswift_jax.cli import streams
from tokenswift_jax.cli.command import exit_status, quiet_transformers
from tokenswift_jax.cli.flags import PROGRAM, flag_parser, parse
from tokenswift_jax.cli.settings_line import settings_line
from tokenswift_jax.errors import UserError, WriteError, writing
from tokenswift_jax.finish import INTERRUPTED
from tokenswift_jax.generation_config import MAX_NEW_TOKENS, default_length
from tokenswift_jax.parallel.mesh_spec import AutoMesh, MeshArgument
from tokenswift_jax.paths import write_text

if TYPE_CHECKING:
    from tokenswift_jax.api import StreamEvent
    from tokenswift_jax.cli.phases import Phases
    from tokenswift_jax.cli.progress import ProgressLine
    from tokenswift_jax.model import Model
    from tokenswift_jax.stats import GenerationResult

DEMO_PROMPT = "It was late in the autumn, and the road that led down to the village"
_COLOURS = {0: "", 1: "\x1b[32m", 2: "\x1b[36m"}  # by source: the target, draft heads, n-grams
_PLAIN = "\x1b[0m"


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Runs the command; returns its exit status (0, 1 failed audit or documents, 2 bad input, 130 interrupted, 141 no
    reader)."""
    parser = flag_parser(program)
    # The command takes the messages of a chat as a prompt and this flag.
    flags = parser.flags | {"messages": "--chat"}

    def run() -> int:
        options = parse(sys.argv[1:] if argv is None else argv, parser)
        if options.documents is None:
            return _run(options, flags)
        from tokenswift_jax.cli import documents

        return documents.run(options, flags)

    return exit_status(run, flags=flags)


def _run(options: argparse.Namespace, flags: Mapping[str, str]) -> int:
    if options.cluster is None:
        return _write(options, _read_prompt(options))
    from tokenswift_jax.cli.processes import joined
    from tokenswift_jax.processes.agreement import agreed

    leads = options.cluster.number == 0
    with joined(options, flags):
        status = _write(options, agreed(lambda: _read_prompt(options)))
    return status if leads else 0  # process 0 alone has the text's end


def _write(options: argparse.Namespace, given: str | list[int] | None) -> int:
    quiet_transformers()
    from tokenswift_jax import checkpoint
    from tokenswift_jax.api import stream
    from tokenswift_jax.checkpoint.packaged import is_shipped
    from tokenswift_jax.cli.phases import Phases
    from tokenswift_jax.cli.progress import ProgressLine
    from tokenswift_jax.errors import NumericsError
    from tokenswift_jax.model import load
    from tokenswift_jax.past_run import recorded_sampling
    from tokenswift_jax.processes.agreement import agreed, compare
    from tokenswift_jax.sampling import resolve_sampling
    from tokenswift_jax.speculation import SpeculationConfig

    resolve_sampling(options.sampling, None)  # rejects wrong values before the model is loaded
    speculation = SpeculationConfig(**options.speculation)
    progress = ProgressLine(sys.stderr, options.max_new_tokens or MAX_NEW_TOKENS, enabled=not options.quiet)
    with contextlib.ExitStack() as stack:
        stack.callback(progress.clear)
        phases = stack.enter_context(Phases(progress, sys.stderr, enabled=not options.quiet))
        placed = {"mesh": _mesh(options, given), "pipeline_depth": options.pipeline_depth}
        room = options.capacity or options.max_new_tokens  # the prompt's tokens are not known yet
        model = load(options.model, options.dtype, options.rope_override, report=phases, length=room, **placed)
        for kind in ("output", "stats"):
            if (file := getattr(options, kind)) is not None:
                checkpoint.check_apart(file, kind, model.path)
        if options.cluster is not None:
            compare("checkpoint", {"checkpoint": checkpoint.fingerprint(model.path)})
        if model.mesh_notes and not options.quiet:
            progress.clear()
            print(*model.mesh_notes, sep="\n", file=sys.stderr)
        if is_shipped(model.path) and not options.quiet:
            progress.clear()
            print(f"draft heads: {model.config.num_draft_heads}, from {model.path}", file=sys.stderr)
        past = agreed(lambda: recorded_sampling(options.journal)) if options.resume else None
        sampling = resolve_sampling(options.sampling, model.generation_config, past)
        most = default_length(model.generation_config, 0, model.config.max_position_embeddings)
        progress.expect(options.max_new_tokens or most or MAX_NEW_TOKENS)
        events = stream(
            model,
            None if options.chat else given,
            sampling,
            speculation,
            max_new_tokens=options.max_new_tokens,
            min_new_tokens=options.min_new_tokens,
            ignore_eos=options.ignore_eos,
            stop=options.stop,
            stop_on_repetition=options.stop_on_repetition,
            journal=options.journal,
            resume=options.resume,
            audit=options.audit,
            capacity=options.capacity,
            logprobs=options.logprobs,
            logprobs_mode=options.logprobs_mode,
            messages=[{"role": "user", "content": given}] if options.chat and given is not None else None,
            report=phases,
            mesh_report=partial(print, file=sys.stderr) if options.mesh_report else None,
        )
        file = None
        if options.output is not None:
            with writing(options.output):
                file = stack.enter_context(options.output.open("w", encoding="utf-8", newline=""))
        writer = _Writer(file, options.show_acceptance, model.tokenizer is None, progress, phases)
        try:
            result, unwritten = _consume(events, writer)
        except NumericsError as error:
            writer.end(stderr_follows=True)
            raise UserError(str(error)) from error
    writer.end(stderr_follows=not options.quiet)
    if options.stats is not None:
        try:
            write_text(options.stats, result.to_json() + "\n")
        except WriteError as error:
            unwritten = unwritten or error
    if not options.quiet:
        _report(result, model, settings_line(options, model.generation_config, sampling, past is not None))
    if unwritten is not None:
        raise unwritten
    return streams.READER_LEFT if writer.reader_left else _status(result, options.audit)


class _Writer:
    """Writes text to stdout and --output as it arrives, or token ids if there is no tokenizer."""

    def __init__(self, file: TextIO | None, colours: bool, ids_only: bool, progress: ProgressLine, phases: Phases):
        self._file, self._colours, self._ids_only, self._progress = file, colours, ids_only, progress
        self._phases, phases.begin_line = phases, self._before_message
        self._written, self._last = 0, "\n"
        self.reader_left = False  # whether a reader of stdout or stderr has left
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # else a character that the terminal lacks stops the command

    def show(self, event: StreamEvent) -> None:
        """Writes one event's text, and from its result any text that an interrupt lost."""
        pieces = event.segments
        if self._ids_only:
            pieces = tuple(zip((f"{token} " for token in event.token_ids), event.records.sources.tolist(), strict=True))
        self._write(pieces)
        if event.result is not None and not self._ids_only:
            self._write(((event.result.text[self._written :], 0),))
        if len(event.records):
            self._progress.add(event.records)
            self._progress.draw()
            self._phases.printed()

    def drop_left(self) -> bool:
        """Whether a reader of stdout or stderr has left; from now on its stream writes to the null device."""
        self.reader_left = streams.silence_left()
        return self.reader_left

    def end(self, *, stderr_follows: bool) -> None:
        """Leaves a terminal on a fresh line. A file or a pipe gets the text and nothing else; if stderr goes there too
        and a message follows, stderr ends the text's line first."""
        self._progress.clear()
        if self._last != "\n" and sys.stdout.isatty():
            print(flush=True)
        elif stderr_follows:
            self._before_message()

    def _before_message(self) -> None:
        """Ends the text's line before a message on stderr, if both streams go to one place."""
        if self._last != "\n" and not sys.stdout.isatty() and _may_meet(sys.stdout, sys.stderr):
            print(file=sys.stderr, flush=True)
            self._last = "\n"

    def _write(self, pieces: Sequence[tuple[str, int]]) -> None:
        plain = "".join(text for text, _ in pieces)
        if not plain:
            return
        self._written, self._last = self._written + len(plain), plain[-1]
        if self._file is not None:
            self._write_file(plain)
        self._progress.clear()
        try:
            with writing("standard output"):
                sys.stdout.write("".join(map(_coloured, pieces)) if self._colours else plain)
                sys.stdout.flush()
        except WriteError:
            streams.silence(sys.stdout)
            raise

    def _write_file(self, text: str) -> None:
        assert self._file is not None
        file, self._file = self._file, None  # after an error, nothing more goes there
        try:
            with writing(file.name):
                file.write(text)
                file.flush()
        except WriteError:
            with contextlib.suppress(OSError):
                file.close()
            raise
        self._file = file


def _may_meet(text: TextIO, messages: TextIO) -> bool:
    """Whether both streams may reach one place: one file or pipe, or a pipe beside a terminal (`... | tee`)."""
    try:
        here, there = os.fstat(text.fileno()), os.fstat(messages.fileno())
    except (OSError, ValueError):  # not a stream of the operating system
        return False
    same = (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
    return same or (stat.S_ISFIFO(here.st_mode) and messages.isatty())


def _coloured(piece: tuple[str, int]) -> str:
    text, source = piece
    return f"{_COLOURS[source]}{text}{_PLAIN}" if _COLOURS[source] and text else text


def _consume(events: Generator[StreamEvent, None, None], writer: _Writer) -> tuple[GenerationResult, WriteError | None]:
    """Shows every event; an interrupt, a reader that has left, or a file that cannot be written ends the text but keeps
    the result. Returns the result and the last of these errors."""
    result, unwritten = None, None
    try:
        for event in events:
            result = event.result or result
            writer.show(event)
    except (KeyboardInterrupt, BrokenPipeError, WriteError) as reason:
        if isinstance(reason, BrokenPipeError) and not writer.drop_left():
            raise
        unwritten = reason if isinstance(reason, WriteError) else None
        if result is None:
            last = events.throw(KeyboardInterrupt())
            result = last.result
            with contextlib.suppress(WriteError):
                writer.show(last)
    assert result is not None, "the last event carries the result"
    return result, unwritten


def _mesh(options: argparse.Namespace, given: str | list[int] | None) -> MeshArgument:
    """The mesh of `load`; the choice of `auto` reads the length to expect from the flags: a token is a byte or more."""
    if options.mesh != "auto":
        return options.mesh
    prompt = len(given.encode()) if isinstance(given, str) else len(given or ())
    return AutoMesh(rows=1, length=options.capacity or prompt + (options.max_new_tokens or MAX_NEW_TOKENS))


def _read_prompt(options: argparse.Namespace) -> str | list[int] | None:
    """The prompt as flags give it; None for a run whose journal has it."""
    from tokenswift_jax.prompt import read_ids, read_text

    if options.prompt_file is not None:
        return read_text(options.prompt_file)
    if options.prompt_ids is not None:
        return read_ids(options.prompt_ids)
    if options.prompt is None and options.resume and options.journal.exists():
        return None
    return DEMO_PROMPT if options.prompt is None else options.prompt


def _report(result: GenerationResult, model: Model, settings: str) -> None:
    import jax.numpy as jnp

    from tokenswift_jax.cli.summary import closing_summary

    print(closing_summary(result, model.config, jnp.dtype(model.dtype).itemsize, settings), file=sys.stderr)


def _status(result: GenerationResult, audit: bool) -> int:
    if result.finish_reason == INTERRUPTED or (audit and result.audit is None):
        return 130
    return 1 if result.audit_failed else 0
