"""The error of a server that takes no more runs."""

from __future__ import annotations


class BusyError(Exception):
    """The queue is full, or the server takes no runs now.

    Attributes:
      retry_after: seconds after which it is worth another try.
      unavailable: whether the server takes no runs at all, rather than no more.
    """

    def __init__(self, message: str, retry_after: int, *, unavailable: bool = False) -> None:
        super().__init__(message)
        self.retry_after, self.unavailable = retry_after, unavailable
