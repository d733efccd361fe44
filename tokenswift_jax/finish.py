"""Why a row of a batch no longer decodes."""

from __future__ import annotations

from enum import IntEnum


class Finish(IntEnum):
    """Values of `DecodeState.finish`; every row but a RUNNING one is frozen: no step changes it.

    LENGTH: the text has its last token. EOS: its newest token ends texts. NOT_A_NUMBER: the logits of the next position
    hold a NaN. VACANT: the slot has no text.
    """

    RUNNING = 0
    LENGTH = 1
    EOS = 2
    NOT_A_NUMBER = 3
    VACANT = 4


# What `finish_reason` says of a row that a device ended.
REASONS = {Finish.LENGTH: "length", Finish.EOS: "eos"}
