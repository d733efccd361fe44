"""One row of the batch on the host: its tokens, its text and its end."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenswift_jax import finish
from tokenswift_jax.request import Request
from tokenswift_jax.text.detokenizer import Decodes
from tokenswift_jax.text.repetition import RepetitionGuard
from tokenswift_jax.text.transcript import Segment, Transcript
from tokenswift_jax.token_log import SAMPLED, TokenLog


@dataclass
class SequenceOutput:
    """The tokens and the text of one row, extended as chunks arrive.

    Attributes:
      parts: the kept records of each chunk.
      text: the text released so far.
      widths: characters of text that each token completed, those that the row still keeps back included.
      finish: "stop", "eos", "length" or "repetition" once the row has ended; "interrupted" or "error" if one of these
        ended it.
    """

    tokenizer: Decodes | None
    request: Request
    parts: list[TokenLog] = field(default_factory=list)
    text: str = ""
    widths: list[int] = field(default_factory=list)
    finish: str | None = None

    def __post_init__(self) -> None:
        self._transcript = Transcript(self.tokenizer, self.request.prompt_ids, self.request.stops)
        self._guard = RepetitionGuard() if self.request.stop_on_repetition else None
        self._count = 0

    def take(self, records: TokenLog) -> tuple[TokenLog, list[Segment]]:
        """Adds a chunk up to the token that ends the row.

        That is the end of a stop string, a stop token, an EOS, the last of `max_new_tokens` or the token that completes
        a loop; the first of them counts, and of those at one token the one named first.

        Returns the kept records and the released text.
        """
        segments: list[Segment] = []
        loop = None if self._guard is None else self._guard.scan(records.token_ids)
        taken, looping = 0, None if loop is None else loop.end - self._count
        for token, source in zip(records.token_ids.tolist(), records.sources.tolist(), strict=True):
            taken += 1
            before = self._transcript.characters
            stops = self._count + taken > self.request.stops_from
            if token in self.request.eos_token_ids:
                self.finish = finish.EOS
            elif stops and token in self.request.stop_token_ids:
                self.finish = finish.STOP
            else:
                segments += self._transcript.push(token, source, stops=stops)
                if self._transcript.stopped:
                    self.finish = finish.STOP
                elif self._count + taken == self.request.max_new_tokens:
                    self.finish = finish.LENGTH
                elif taken == looping:
                    self.finish = finish.REPETITION
            self.widths.append(self._transcript.characters - before)
            if self.finish is not None:
                break
        if self.finish is not None:
            segments += self._transcript.finish(SAMPLED)
        kept = records.cut(taken)
        self._count += taken
        self.parts.append(kept)
        self.text += "".join(text for text, _ in segments)
        return kept, segments

    def failed(self) -> list[Segment]:
        """Ends the row with an error after its last token; returns the text held back until now."""
        return self.end(finish.FAILED)

    def end(self, reason: str) -> list[Segment]:
        """Ends the row after its last token for a `reason`; returns the text held back until now."""
        self.finish = reason
        segments = self._transcript.finish(SAMPLED)
        self.text += "".join(text for text, _ in segments)
        return segments

    def interrupted(self) -> SequenceOutput:
        """The row rebuilt from its complete chunks and ended there; an interrupt may have left this one incomplete."""
        row = SequenceOutput(self.tokenizer, self.request)
        for part in self.parts:
            row.take(part)
        if row.finish is None:
            row.finish = finish.INTERRUPTED
            row.text += "".join(text for text, _ in row._transcript.finish(SAMPLED))
        return row
