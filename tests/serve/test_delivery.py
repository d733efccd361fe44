"""Updates on their way to readers: the first one and an end go at once, nothing is lost or out of order."""

import asyncio
import itertools
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tokenswift_jax.serve import delivery
from tokenswift_jax.serve.channel import Channel, read
from tokenswift_jax.serve.run import RunState, Update
from tokenswift_jax.token_log import from_columns

RUNS: list[Any] = [SimpleNamespace(id=str(number)) for number in range(2)]


def update(number, **fields):
    return Update(from_columns([number], [0], [0], [0], [0.0]), **fields)


def delivered(feed):
    """Times and contents of what the event loop gets while `feed` puts updates from a thread."""
    got = []

    async def main():
        made = delivery.Delivery(lambda entries: got.append((time.perf_counter(), entries)))
        made.start(asyncio.get_running_loop())
        await asyncio.to_thread(feed, made.put)
        await asyncio.sleep(2 * delivery.BEAT)

    asyncio.run(main())
    return got


def test_a_fast_text_wakes_the_loop_for_every_beat_and_loses_nothing():
    """500 updates of two runs within 0.25 s, the last one an end: at most two deliveries a beat."""

    def feed(put):
        for number in range(500):
            put(RUNS[number % 2], update(number, finish="length" if number == 499 else None))
            time.sleep(0.0005)

    begun = time.perf_counter()
    got = delivered(feed)
    most = (got[-1][0] - begun) / delivery.BEAT + 3
    assert len(got) <= most < 100
    numbers = [int(each.log.token_ids[0]) for _, entries in got for _, each in entries]
    assert numbers == list(range(500))


@pytest.mark.parametrize("last", [{"finish": "length"}, {"state": RunState.PAUSED}])
def test_the_first_update_and_an_end_wait_for_no_beat(monkeypatch, last):
    monkeypatch.setattr(delivery, "BEAT", 0.3)
    put_at = []

    def feed(put):
        for fields in ({}, {}, last):
            time.sleep(0.05)
            put_at.append(time.perf_counter())
            put(RUNS[0], update(len(put_at), **fields))

    got = delivered(feed)
    assert [[int(each.log.token_ids[0]) for _, each in entries] for _, entries in got] == [[1], [2, 3]]
    assert got[0][0] - put_at[0] < 0.04
    assert got[1][0] - put_at[2] < 0.1


def test_the_first_token_of_a_run_waits_for_no_beat_of_another(monkeypatch):
    monkeypatch.setattr(delivery, "BEAT", 0.3)
    put_at = []

    def feed(put):
        put(RUNS[0], update(0))
        time.sleep(0.05)
        put(RUNS[0], update(1))
        put_at.append(time.perf_counter())
        put(RUNS[1], update(2), first=True)

    got = delivered(feed)
    assert [[int(each.log.token_ids[0]) for _, each in entries] for _, entries in got] == [[0], [1, 2]]
    assert got[1][0] - put_at[0] < 0.1


def test_readers_of_two_channels_get_everything_in_order_however_slow_they_are():
    async def main():
        channels = [Channel(run) for run in RUNS]
        seen = [[], []]

        async def reader():
            async for number, updates in read(*channels):
                seen[number] += [int(each.log.token_ids[0]) for each in updates]
                await asyncio.sleep(0.001 * (len(seen[0]) % 3))

        reading = asyncio.ensure_future(reader())
        for first, channel in itertools.product(range(0, 300, 10), channels):
            ends = {"finish": "length"} if first == 290 else {}
            channel.push([update(first + place, **(ends if place == 9 else {})) for place in range(10)])
            if first % 50 == 0:
                await asyncio.sleep(0)
        await asyncio.wait_for(reading, 10)
        assert seen == [list(range(300))] * 2
        assert not any(channel._listeners for channel in channels)

    asyncio.run(main())


def test_a_reader_that_comes_late_gets_the_whole_text_in_pieces():
    """Between two pieces others have the loop: a book of many chunks would hold them up."""

    async def main():
        channel = Channel(RUNS[0], [update(number) for number in range(199)] + [update(199, finish="eos")])
        turns = []

        async def other():
            while True:
                turns.append(1)
                await asyncio.sleep(0)

        beside = asyncio.ensure_future(other())
        pieces = [updates async for _, updates in read(channel)]
        beside.cancel()
        assert sum(map(len, pieces)) == 200
        assert len(pieces) > 2
        assert len(turns) >= len(pieces) - 1
        np.testing.assert_array_equal([each.log.token_ids[0] for piece in pieces for each in piece], range(200))

    asyncio.run(main())


def test_two_threads_may_end_runs_at_once():
    def feed(put):
        threads = [
            threading.Thread(target=lambda run=run: [put(run, update(number)) for number in range(200)]) for run in RUNS
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    got = delivered(feed)
    for run in RUNS:
        numbers = [int(each.log.token_ids[0]) for _, entries in got for of, each in entries if of is run]
        assert numbers == list(range(200))
