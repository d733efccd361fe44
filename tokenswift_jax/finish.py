"""The reasons why a row of a batch no longer decodes, and their names in results, journals and answers."""

from __future__ import annotations

from enum import IntEnum


class Finish(IntEnum):
    """Values of `DecodeState.finish`; every row that is not RUNNING is frozen: no step changes it.

    LENGTH: the text has its last token. EOS: its newest token is an EOS. NOT_A_NUMBER: the next position has no draw,
    since its logits contain a NaN or inf or are all -inf. VACANT: the slot has no text.
    """

    RUNNING = 0
    LENGTH = 1
    EOS = 2
    NOT_A_NUMBER = 3
    VACANT = 4


# Values of `finish_reason`. LENGTH, EOS, STOP (a stop string or token) and REPETITION end a text. INTERRUPTED (by a
# person, or because a server goes down), FAILED and CANCELLED (by a caller of a server) cut it short.
LENGTH, EOS, STOP, REPETITION = "length", "eos", "stop", "repetition"
INTERRUPTED, FAILED, CANCELLED = "interrupted", "error", "cancelled"
# The `finish_reason` of a row that a device ended.
REASONS = {Finish.LENGTH: LENGTH, Finish.EOS: EOS}
