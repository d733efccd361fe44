"""The service without a device: readers get the last update of every run, and only runs that began have ends."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from houses import request

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")
from tokenswift_jax.serve.channel import read
from tokenswift_jax.serve.pool import PoolSize
from tokenswift_jax.serve.run import Run, RunState
from tokenswift_jax.serve.run_store import StoredRun
from tokenswift_jax.serve.scheduler import BusyError
from tokenswift_jax.serve.service import Service

WAIT = 2  # seconds


def served(**options) -> Any:
    """A service of a pool that nothing enters, on the running loop; its scheduler has no thread."""
    layout = SimpleNamespace(config=SimpleNamespace(vocab_size=64))
    pool = SimpleNamespace(
        size=PoolSize(1, 400),
        engine=SimpleNamespace(layout=layout),
        bytes=0,
        prefixes=None,
        tenants={},
        fits=lambda request: True,
        leave=lambda run: None,
    )
    pools: Any = [pool]
    model: Any = SimpleNamespace(tokenizer=None)
    service = Service(model, pools, name="demo", state_dir=None, **options)
    service._loop = asyncio.get_running_loop()
    service._delivery.start(service._loop)
    service.scheduler.ready.set()
    return service


def kept(service, state=RunState.QUEUED):
    run = Run(request(0))
    run.state = state
    return run, service._remember(StoredRun(run, True, {}))


async def heard(channel):
    return [update.finish async for _, updates in read(channel) for update in updates]


def test_a_reader_gets_the_end_of_a_run_though_many_newer_ones_have_ended():
    """A new run begins between the end on the scheduler's thread and its delivery here."""

    async def main():
        service = served()
        run, channel = kept(service)
        reading = asyncio.ensure_future(heard(channel))
        for _ in range(40):
            kept(service, RunState.CANCELLED)
        await asyncio.sleep(0)
        service.scheduler._end(run, RunState.FINISHED, "length")
        kept(service)
        assert (await asyncio.wait_for(reading, WAIT))[-1] == "length"
        kept(service)
        assert sum(stored.run.state.ended for stored in service._stored.values()) == 32
        assert run.id not in service._channels

    asyncio.run(main())


def test_a_refused_request_counts_no_run_that_ended():
    async def main():
        service = served(max_queue=0)
        with pytest.raises(BusyError):
            async with service.runs([request(0), request(1)], "alice"):
                pass
        service.scheduler._obey()
        assert not service._channels
        assert b"finished_reason=" not in service.metrics.text

    asyncio.run(main())


def test_a_pause_is_over_when_the_run_has_paused_again():
    """The newest update of a run that was resumed is still that of the pause before."""

    async def main():
        service = served()
        run, channel = kept(service, RunState.PAUSED)
        stored = service.known(run.id)
        await asyncio.wait_for(service.paused(stored, channel), WAIT)
        await service.resumed(stored)
        pausing = asyncio.ensure_future(service.paused(stored, channel))
        await asyncio.sleep(0)
        assert not pausing.done()
        service.scheduler._obey()
        await asyncio.wait_for(pausing, WAIT)
        assert (run.state, len(service.scheduler.queue)) == (RunState.PAUSED, 0)

    asyncio.run(main())


def test_the_streams_of_paused_runs_end_when_the_server_goes_down():
    async def main():
        service = served()
        _, channel = kept(service, RunState.PAUSED)
        reading = asyncio.ensure_future(heard(channel))
        await asyncio.sleep(0)
        service.drain()
        assert (await asyncio.wait_for(reading, WAIT))[-1] == "interrupted"

    asyncio.run(main())


def test_a_run_that_goes_on_while_another_call_waits_is_not_reopened():
    """To reopen closes the journal: the scheduler's thread, and with it the server, would end at the next token."""

    async def main():
        service, reopened = served(), []
        store: Any = SimpleNamespace(save=lambda stored: None, reopen=lambda stored, most: reopened.append(most))
        service.store = store
        run, _ = kept(service, RunState.PAUSED)
        stored = service.known(run.id)
        async with service._loading:  # somebody reads another run from the folder
            waiting = asyncio.ensure_future(service.reopened(stored, 200))
            await asyncio.sleep(0)
            await service.resumed(stored)
        assert await asyncio.wait_for(waiting, WAIT) is None
        assert (reopened, run.state, service.known(run.id)) == ([], RunState.QUEUED, stored)

    asyncio.run(main())
