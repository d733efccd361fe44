"""Stop strings: where the text ends does not depend on how it arrives."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tokenswift_jax.text.stops import StopScanner

LETTERS = st.text("ab ", max_size=24)
STOPS = st.lists(st.text("ab ", min_size=1, max_size=5), max_size=3)


def run(stops, chunks):
    scanner = StopScanner(stops)
    out = [scanner.push(chunk) for chunk in chunks]
    return "".join([*out, scanner.flush()]), scanner.stopped


def expected(stops, text):
    """Plain str.find on the whole: the stop that ends first, of those the one that begins first."""
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return (text[: min(ends)[1]], True) if ends else (text, False)


@given(text=LETTERS, stops=STOPS, cuts=st.lists(st.integers(0, 24)))
def test_chunking_never_matters(text, stops, cuts):
    borders = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    chunks = [text[start:end] for start, end in pairwise(borders)]
    assert run(stops, chunks) == expected(stops, text)


@given(text=LETTERS, stops=STOPS, free=st.integers(0, 24), cuts=st.lists(st.integers(0, 24)))
def test_text_in_which_no_stop_counts(text, stops, free, cuts):
    """A stop ends the text if it ends after the first `free` characters, wherever it begins."""
    free = min(free, len(text))
    scanner, out = StopScanner(stops), ""
    borders = sorted({min(cut, len(text)) for cut in cuts} | {0, free, len(text)})
    for start, end in pairwise(borders):
        out += scanner.push(text[start:end], stops=end > free)
    places = [(stop, text.find(stop, max(free - len(stop) + 1, 0))) for stop in stops]
    ends = [(place + len(stop), place) for stop, place in places if place >= 0]
    assert (out + scanner.flush(), scanner.stopped) == ((text[: min(ends)[1]], True) if ends else (text, False))


@given(text=LETTERS, stops=STOPS)
def test_pending_text_could_still_become_a_stop(text, stops):
    scanner = StopScanner(stops)
    out = ""
    for count, letter in enumerate(text, start=1):
        out += scanner.push(letter)
        if scanner.stopped:
            break
        pending = text[len(out) : count]
        assert text.startswith(out)
        assert not pending or any(len(pending) < len(stop) and stop.startswith(pending) for stop in stops)


def test_a_stop_across_two_chunks_leaves_no_trace():
    scanner = StopScanner(["\n\nEND"])
    assert [scanner.push("one\n"), scanner.push("\nEN"), scanner.push("D two")] == ["one", "", ""]
    assert scanner.stopped
    assert scanner.push("more") == ""
    assert scanner.flush() == ""


def test_an_almost_stop_is_given_out_in_order():
    scanner = StopScanner(["abac"])
    assert scanner.push("aba") == ""
    assert scanner.push("b") == "ab"
    assert scanner.push("x") == "abx"


def test_without_stops_text_passes():
    assert run([], ["a", "", "b"]) == ("ab", False)
