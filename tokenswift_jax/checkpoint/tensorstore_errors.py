"""Errors of the system inside those that tensorstore raises."""

from __future__ import annotations

import os
import re


def system_error(error: Exception) -> OSError | None:
    """The system's error that tensorstore reports within the text of a `ValueError`; None if there is none."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return None if code is None else OSError(int(code[1]), os.strerror(int(code[1])))
