"""The object and the events of one response, as functions of its description and the updates of its run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenswift_jax.finish import INTERRUPTED, LENGTH
from tokenswift_jax.serve.run import Run, RunState, Update

Event = dict[str, Any]


def status_of(run: Run) -> str:
    """The status of a run in the terms of responses."""
    if run.state is RunState.FINISHED:
        return "incomplete" if run.finish == LENGTH else "completed"
    if run.state is RunState.CANCELLED:
        return "failed" if run.finish == INTERRUPTED else "cancelled"
    waiting = run.state in (RunState.QUEUED, RunState.PREFILL) and not run.tokens
    return "failed" if run.state is RunState.FAILED else "queued" if waiting else "in_progress"


class ResponseEvents:
    """The events of a response, numbered from 0 without gaps.

    They depend on the description and on the updates alone. An update is a record of the journal, so that a restarted
    server gives the same events the same numbers.

    Attributes:
      text: the text so far.
    """

    def __init__(self, run: Run, details: Mapping[str, Any], *, background: bool, store: bool) -> None:
        """`details` are those of `responses.described`."""
        self._run, self._details, self._background, self._store = run, details, background, store
        self._next, self._began, self.text = 0, False, ""
        self._place = {"item_id": f"msg_{run.id.partition('_')[2]}", "output_index": 0, "content_index": 0}
        self._tokens = 0

    def begin(self) -> list[Event]:
        """The events before any token."""
        first = "queued" if self._background else "in_progress"
        events = [self._event("response.created", response=self.object(first))]
        if self._background:
            events.append(self._event("response.queued", response=self.object("queued")))
        return events

    def take(self, update: Update) -> list[Event]:
        """The events of an update; a pause has none."""
        events: list[Event] = []
        ended = update.state.ended
        if not self._began and (len(update.log) or ended):
            self._began = True
            events += [
                self._event("response.in_progress", response=self.object("in_progress")),
                self._event("response.output_item.added", output_index=0, item=self._item("in_progress", ())),
                self._event("response.content_part.added", **self._place, part=_part("")),
            ]
        self.text += update.text
        self._tokens += len(update.log)
        if update.text:
            events.append(self._event("response.output_text.delta", **self._place, delta=update.text, logprobs=[]))
        return events + (self._end() if ended else [])

    def object(self, status: str) -> dict[str, Any]:
        """The response; its output is complete from the end on."""
        details, ended = self._details, status not in ("queued", "in_progress")
        prompt = len(self._run.request.prompt_ids)
        usage = {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": self._run.cached},
            "output_tokens": self._tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + self._tokens,
        }
        error = None
        if status == "failed":
            error = {"code": "server_error", "message": self._run.error or "the server went down in the middle"}
        finished = "completed" if status == "completed" else "incomplete"
        return {
            "id": self._run.id,
            "object": "response",
            "created_at": int(self._run.created),
            "status": status,
            "background": self._background,
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": [self._item(finished, (_part(self.text),))] if ended or self.text else [],
            "usage": usage if ended else None,
            "store": self._store,
            "parallel_tool_calls": False,
            "tool_choice": "none",
            "tools": [],
            "text": {"format": {"type": "text"}},
            "truncation": "disabled",
            "reasoning": {"effort": None, "summary": None},
            **{name: value for name, value in details.items() if name in SHOWN},
        }

    def _end(self) -> list[Event]:
        status = status_of(self._run)
        part = _part(self.text)
        item = self._item("completed" if status == "completed" else "incomplete", (part,))
        kind = {"completed": "completed", "failed": "failed"}.get(status, "incomplete")
        return [
            self._event("response.output_text.done", **self._place, text=self.text, logprobs=[]),
            self._event("response.content_part.done", **self._place, part=part),
            self._event("response.output_item.done", output_index=0, item=item),
            self._event(f"response.{kind}", response=self.object(status)),
        ]

    def _item(self, status: str, content: Sequence[dict[str, Any]]) -> dict[str, Any]:
        item_id = self._place["item_id"]
        return {"id": item_id, "type": "message", "status": status, "role": "assistant", "content": list(content)}

    def _event(self, kind: str, **fields: Any) -> Event:
        event = {"type": kind, "sequence_number": self._next, **fields}
        self._next += 1
        return event


# The fields of a description that the object repeats.
SHOWN = (
    *("model", "instructions", "max_output_tokens", "metadata", "previous_response_id", "temperature", "top_p"),
    *("seed", "user"),
)


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
