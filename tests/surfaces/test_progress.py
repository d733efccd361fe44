"""The progress line on a small terminal: it stands below the text and never touches it."""

import io
import re

import numpy as np
from scripted import drafted, timed

from tokenswift_jax.cli.progress import ProgressLine

_STYLE = re.compile(r"\x1b\[[\d;]*m")
_CODE = re.compile(r"\x1b(?:7|8|D|\[\d*[A-Z])|\r|\n|[^\x1b]")


class Screen(io.StringIO):
    """A terminal of a few lines that understands what the progress line sends."""

    def __init__(self, height, width=200):
        super().__init__()
        self.cells = np.full((height, width), " ")
        self.row = self.column = 0
        self.saved = (0, 0)

    def isatty(self):
        return True

    def write(self, text):
        for code in _CODE.findall(_STYLE.sub("", text)):
            match code:
                case "\x1b7":
                    self.saved = (self.row, self.column)
                case "\x1b8":
                    self.row, self.column = self.saved
                case "\x1bD":
                    self.down()
                case "\n":
                    self.down()
                    self.column = 0
                case "\x1b[A":
                    self.row -= 1
                case "\x1b[B":
                    self.row = min(self.row + 1, len(self.cells) - 1)
                case "\r":
                    self.column = 0
                case "\x1b[2K":
                    self.cells[self.row] = " "
                case _:
                    assert len(code) == 1, f"an unknown code {code!r}"
                    self.cells[self.row, self.column] = code
                    self.column += 1
        return len(text)

    def down(self):
        self.row += 1
        if self.row == len(self.cells):
            self.cells = np.concatenate([self.cells[1:], np.full_like(self.cells[:1], " ")])
            self.row -= 1

    def lines(self):
        return ["".join(line).rstrip() for line in self.cells]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_the_line_is_below_the_text_and_goes_away():
    screen, clock = Screen(4), Clock()
    progress = ProgressLine(screen, total=100, clock=clock)
    progress.draw("loading the model")
    assert screen.lines()[1] == "loading the model"
    pieces = ["It was ", "late", ".\nAnd ", "then\n", "\nthe ", "end"]
    for piece in pieces:
        progress.clear()
        assert not any("loading" in line or "tokens" in line for line in screen.lines())
        screen.write(piece)
        clock.now += 1.0
        progress.add(timed(drafted([1, 2, 3]), 0.5))
        progress.draw()
        assert "tokens/s" in screen.lines()[screen.row + 1] or clock.now == 1.0
    progress.clear()
    assert screen.lines() == ["And then", "", "the end", ""]


def test_what_the_line_says():
    screen, clock = Screen(3), Clock()
    progress = ProgressLine(screen, total=1000, clock=clock)
    for _ in range(5):
        progress.add(timed(drafted([1, 2, 3], offered=4), 0.5))
        clock.now += 0.5
    progress.draw()
    # 12 tokens in the 2 s since the first chunk; 10 of 20 drafted accepted.
    assert screen.lines()[1].endswith("15/1,000 tokens  6.0 tokens/s  2:44 left  50% accepted")


def test_a_narrow_terminal_cuts_the_line(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    screen = Screen(3, width=20)
    progress = ProgressLine(screen, total=1000)
    progress.add(timed(drafted([1, 2, 3]), 0.5))
    progress.draw()
    assert screen.lines()[1].endswith("…")
    assert screen.lines()[2] == ""


def test_nothing_is_drawn_where_nobody_looks():
    for stream, enabled in ((io.StringIO(), True), (Screen(3), False)):
        progress = ProgressLine(stream, total=5, enabled=enabled)
        progress.add(timed(drafted([1, 2]), 0.1))
        progress.draw()
        progress.clear()
        assert stream.getvalue() == ""
        assert not isinstance(stream, Screen) or stream.lines() == ["", "", ""]
