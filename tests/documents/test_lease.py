"""Leases: one worker alone has a document; a worker that shows no life for the stated time loses it, no other does."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tokenswift_jax.documents.lease import Leases, owner_of

SECONDS = 1000.0  # no renewal within a test


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def take(folder, leases, name="book"):
    return leases.take(name, os.listdir(folder))


def elsewhere(path):
    """Makes the lease one of a worker on another machine."""
    path.write_text(json.dumps({"host": "far", "pid": 1, "system": "another", "started": "7"}))


def test_one_of_many_gets_it(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: take(tmp_path, Leases(tmp_path, SECONDS)), range(64)))
    (one,) = [lease for lease in found if lease is not None]
    assert owner_of(tmp_path, "book", os.listdir(tmp_path)).endswith(f":{os.getpid()}")
    assert take(tmp_path, Leases(tmp_path, SECONDS), "other") is not None
    one.release()
    assert take(tmp_path, Leases(tmp_path, SECONDS)) is not None


def test_a_lease_without_renewals_is_taken_over_once(tmp_path, clock):
    first = take(tmp_path, Leases(tmp_path, SECONDS))
    elsewhere(tmp_path / ".book.lease-1")
    others = [Leases(tmp_path, 60, clock) for _ in range(2)]
    for clock.now in (0, 59):
        assert [take(tmp_path, leases) for leases in others] == [None, None]
    clock.now = 60
    second, none = (take(tmp_path, leases) for leases in others)
    assert (second.number, none) == (2, None)
    first.renew()
    assert first.lost.is_set()
    first.release()  # deletes its own file alone
    assert not second.lost.is_set()
    assert sorted(os.listdir(tmp_path)) == [".book.lease-2"]
    second.renew()
    assert not second.lost.is_set()
    second.release()
    assert os.listdir(tmp_path) == []


def test_a_renewal_starts_the_time_again_wherever_clocks_point(tmp_path, clock):
    """Dates of the file server may be hours away from the watcher's: only their change counts."""
    lease, watcher = take(tmp_path, Leases(tmp_path, SECONDS)), Leases(tmp_path, 60, clock)
    elsewhere(tmp_path / ".book.lease-1")
    for clock.now, date in ((0, 5), (50, 6), (109, 4), (168, 10**9)):
        os.utime(tmp_path / ".book.lease-1", (date, date))
        assert take(tmp_path, watcher) is None
    clock.now = 227
    assert take(tmp_path, watcher) is None
    clock.now = 228
    assert take(tmp_path, watcher).number == 2
    lease.renew()
    assert lease.lost.is_set()


def test_the_thread_renews(tmp_path):
    lease = take(tmp_path, Leases(tmp_path, 0.08))
    os.utime(tmp_path / ".book.lease-1", (5, 5))
    while (tmp_path / ".book.lease-1").stat().st_mtime == 5:
        pass
    (tmp_path / ".book.lease-1").unlink()
    assert lease.lost.wait(10)


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs Linux's list of processes")
def test_a_process_of_this_machine_that_has_ended_need_not_be_waited_for(tmp_path):
    program = (
        "import os, sys; from pathlib import Path; from tokenswift_jax.documents.lease import Leases;"
        "Leases(Path(sys.argv[1]), 1000).take('book', []); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path], check=False)
    assert (tmp_path / ".book.lease-1").exists()
    assert take(tmp_path, Leases(tmp_path, SECONDS)).number == 2
    assert take(tmp_path, Leases(tmp_path, SECONDS)) is None


def test_an_unfinished_lease_file_is_only_watched(tmp_path, clock):
    (tmp_path / ".book.lease-1").touch()
    watcher = Leases(tmp_path, 60, clock)
    assert take(tmp_path, watcher) is None
    assert owner_of(tmp_path, "book", os.listdir(tmp_path)) == "unknown"
    clock.now = 60
    assert take(tmp_path, watcher).number == 2


def test_names_do_not_meet(tmp_path):
    assert take(tmp_path, Leases(tmp_path, SECONDS), "a") is not None
    assert take(tmp_path, Leases(tmp_path, SECONDS), "a.lease") is not None
    assert take(tmp_path, Leases(tmp_path, SECONDS), "a.lease-1") is not None
    assert owner_of(tmp_path, ".*", os.listdir(tmp_path)) is None
