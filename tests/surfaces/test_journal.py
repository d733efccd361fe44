"""The journal survives a kill at any byte and refuses what is not its run."""

import errno
import json
import math
import os
import re
import subprocess
import sys

import pytest
from scripted import drafted, plain, timed

from tokenswift_jax.engine.journal import Journal
from tokenswift_jax.errors import UserError, WriteError
from tokenswift_jax.token_log import COLUMNS, concatenate

HEADER = {"checkpoint": "abc", "prompt_ids": [1, 2], "sampling": {"seed": 0, "temperature": 1.0}, "stop": ["x"]}
CHUNKS = [timed(drafted([5, 6, 7], [8]), 0.5), timed(plain([9, 10]), 0.25)]
TRACE = [{"from_token": 1, "mode": "ngram"}]


def write(path, chunks=CHUNKS, header=HEADER):
    journal = Journal(path, header, resume=True)
    journal.begin()
    for number, part in enumerate(chunks):
        journal.append(part, TRACE if number == 0 else [])
    journal.close()
    return journal


def columns(parts):
    whole = concatenate(parts)
    return {name: getattr(whole, name).tolist() for name in COLUMNS}


def read(path, header=HEADER):
    journal = Journal(path, header, resume=True)
    journal.close()
    return journal


def test_everything_comes_back(tmp_path):
    write(tmp_path / "j")
    journal = read(tmp_path / "j")
    assert columns(journal.parts) == columns(CHUNKS)
    assert journal.schedule_trace == TRACE


def test_a_kill_at_any_byte_costs_at_most_the_record_in_flight(tmp_path):
    whole = tmp_path / "whole"
    write(whole)
    data = whole.read_bytes()
    borders = [at + 1 for at, byte in enumerate(data) if byte == ord("\n")]
    for length in range(len(data) + 1):
        torn = tmp_path / "torn"
        torn.write_bytes(data[:length])
        kept = max(sum(border <= length for border in borders) - 1, 0)
        assert columns(read(torn).parts) == columns(CHUNKS[:kept])
        assert torn.read_bytes() == data[:length], "reading leaves the file alone"
        journal = Journal(torn, HEADER, resume=True)
        journal.begin()
        for number, part in enumerate(CHUNKS[kept:], start=kept):
            journal.append(part, TRACE if number == 0 else [])
        journal.close()
        assert torn.read_bytes() == data


def test_a_garbled_last_record_is_dropped(tmp_path):
    write(tmp_path / "j")
    lines = (tmp_path / "j").read_bytes().splitlines(keepends=True)
    (tmp_path / "j").write_bytes(b"".join(lines[:2]) + b"\0\0\0\n")
    assert columns(read(tmp_path / "j").parts) == columns(CHUNKS[:1])


@pytest.mark.parametrize("damage", [b"\0\0", b"[]", b'{"at": 99}', b'{"at": 0, "token_ids": [true]}'])
def test_damage_before_the_last_record_is_an_error(tmp_path, damage):
    write(tmp_path / "j")
    lines = (tmp_path / "j").read_bytes().splitlines()
    (tmp_path / "j").write_bytes(b"\n".join([lines[0], damage, lines[2], b""]))
    with pytest.raises(UserError, match="damaged in line 2 of 3"):
        read(tmp_path / "j")


@pytest.mark.parametrize("content", [b"a text\n", b"half a line", b"{}\n", b'{"format": "x"}\n', b"\xff\n"])
def test_another_file_is_not_taken_for_a_journal(tmp_path, content):
    (tmp_path / "j").write_bytes(content)
    with pytest.raises(UserError, match="not a journal"):
        read(tmp_path / "j")
    assert (tmp_path / "j").read_bytes() == content


def test_a_differing_header_names_the_fields(tmp_path):
    write(tmp_path / "j")
    other = {**HEADER, "prompt_ids": [1], "sampling": {"seed": 1, "temperature": 1.0}}
    with pytest.raises(UserError, match=r"differs in prompt_ids, sampling\.seed;"):
        read(tmp_path / "j", other)


def test_a_tuple_equals_the_list_it_was_written_as(tmp_path):
    write(tmp_path / "j")
    assert read(tmp_path / "j", {**HEADER, "stop": ("x",)}).parts


def test_an_existing_journal_is_never_overwritten(tmp_path):
    write(tmp_path / "j")
    before = (tmp_path / "j").read_bytes()
    with pytest.raises(UserError, match="exists; continue it with resume=True"):
        Journal(tmp_path / "j", HEADER, resume=False)
    assert (tmp_path / "j").read_bytes() == before


def test_nothing_is_written_before_begin(tmp_path):
    Journal(tmp_path / "j", HEADER, resume=False).close()
    assert list(tmp_path.iterdir()) == []


def test_a_journal_in_use_is_refused(tmp_path):
    pytest.importorskip("fcntl")
    journal = Journal(tmp_path / "j", HEADER, resume=False)
    journal.begin()
    with pytest.raises(UserError, match="in use"):
        Journal(tmp_path / "j", HEADER, resume=True)
    journal.close()


def without_checksums(data):
    """The lines as versions before the checksum wrote them."""
    return re.sub(rb', "crc32": "[0-9a-f]{8}"}\n', b"}\n", data)


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path):
    write(tmp_path / "j")
    data = (tmp_path / "j").read_bytes()
    header, first = (len(line) + 1 for line in data.splitlines()[:2])
    for at in range(len(data)):
        if data[at : at + 1] == b"\n":
            continue  # a line that ends elsewhere is another test's
        flipped = bytearray(data)
        flipped[at] ^= 1
        if flipped[at] == ord("\n"):
            continue
        (tmp_path / "j").write_bytes(flipped)
        if at < header + first:
            with pytest.raises(UserError, match=r"damaged in line|differs in|not a journal|is of another run"):
                read(tmp_path / "j")
        else:  # the last record is written again
            assert columns(read(tmp_path / "j").parts) == columns(CHUNKS[:1])


def test_a_journal_without_checksums_is_continued(tmp_path):
    write(tmp_path / "j", CHUNKS[:1])
    old = without_checksums((tmp_path / "j").read_bytes())
    assert b"crc32" not in old
    (tmp_path / "j").write_bytes(old)
    journal = Journal(tmp_path / "j", HEADER, resume=True)
    journal.begin()
    journal.append(CHUNKS[1], [])
    journal.close()
    assert (tmp_path / "j").read_bytes().startswith(old)
    assert columns(read(tmp_path / "j").parts) == columns(CHUNKS)


def test_line_ends_of_another_system_are_no_damage(tmp_path):
    write(tmp_path / "j", CHUNKS[:1])
    (tmp_path / "j").write_bytes((tmp_path / "j").read_bytes().replace(b"\n", b"\r\n"))
    journal = Journal(tmp_path / "j", HEADER, resume=True)
    journal.begin()
    journal.append(CHUNKS[1], [])
    journal.close()
    assert columns(read(tmp_path / "j").parts) == columns(CHUNKS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("token_ids", [5, -1, 7, 8]),
        ("token_ids", [5, 100, 7, 8]),
        ("sources", [0, 1, 3, 0]),
        ("offsets", [0, 1, -2, 0]),
        ("offered", [3, 3, 3, -1]),
        ("seconds", -1.0),
        ("seconds", math.inf),
        ("schedule_trace", [3]),
    ],
)
def test_values_out_of_range_are_damage(tmp_path, name, value):
    """In a journal without checksums; with one, the values are those that were written."""
    write(tmp_path / "j")
    lines = without_checksums((tmp_path / "j").read_bytes()).splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | {name: value}).encode()
    (tmp_path / "j").write_bytes(b"\n".join([*lines, b""]))
    with pytest.raises(UserError, match="damaged in line 2 of 3; delete the lines from there on to continue"):
        Journal(tmp_path / "j", HEADER, resume=True, vocab=100)
    (tmp_path / "j").write_bytes(lines[0] + b"\n")  # as the message says
    assert read(tmp_path / "j").parts == []


def test_two_runs_that_begin_one_journal_at_once(tmp_path):
    one, other = (Journal(tmp_path / "j", HEADER, resume=True) for _ in range(2))
    one.begin()
    with pytest.raises(UserError, match="was started by another run in the meantime; wait for it or name another file"):
        other.begin()
    other.close()
    one.append(CHUNKS[0], [])
    one.close()
    assert columns(read(tmp_path / "j").parts) == columns(CHUNKS[:1])


def test_a_full_disk_names_the_journal_and_leaves_no_empty_file(tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    journal = Journal(tmp_path / "j", HEADER, resume=False)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda *_: (_ for _ in ()).throw(full))
        with pytest.raises(WriteError, match=f"cannot write the journal {tmp_path / 'j'}: No space left on device"):
            journal.begin()
    assert list(tmp_path.iterdir()) == []


def test_a_record_is_on_disk_when_append_returns(tmp_path):
    """A process that is killed right after `append`, without any cleanup, leaves the whole record."""
    program = (
        "import os; from test_journal import *; journal = Journal('j', HEADER, resume=False); journal.begin();"
        "journal.append(CHUNKS[0], TRACE); os._exit(9)"
    )
    here = os.path.dirname(__file__)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, os.path.dirname(os.path.dirname(here))])}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 9
    assert columns(read(tmp_path / "j").parts) == columns(CHUNKS[:1])
    assert json.loads((tmp_path / "j").read_text().splitlines()[0])["checkpoint"] == "abc"
