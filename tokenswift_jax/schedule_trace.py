"""The trace of the plans that ran: one entry per change, in the form of the statistics and of journals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Entry = dict[str, Any]


def trace_entry(from_token: int, mode: str, schedule: str | None, node_budget: int | None) -> Entry:
    """A plan that runs from the generated token `from_token` on."""
    return {"from_token": from_token, "mode": mode, "schedule": schedule, "node_budget": node_budget}


class ScheduleTrace:
    """The trace of one text; a resumed text continues its journal's.

    Attributes:
      entries: the changes so far.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.entries = list(entries)
        self._seen = 0

    def follow(self, run: list[Entry]) -> list[Entry]:
        """Adds the entries that a run has appended since the last call, and returns the changes among them.

        An entry with the plan of the entry before it is no change: a resumed run names its plan again.
        """
        new: list[Entry] = []
        for entry in run[self._seen :]:
            before = (self.entries + new)[-1:]
            if not before or before[0] | {"from_token": entry["from_token"]} != entry:
                new.append(entry)
        self._seen = len(run)
        self.entries += new
        return new

    def of(self, tokens: int) -> list[Entry]:
        """The trace of a text of so many tokens; a text that ended early lacks the plans that began after its end."""
        return self.entries[:1] + [entry for entry in self.entries[1:] if entry["from_token"] < tokens]
