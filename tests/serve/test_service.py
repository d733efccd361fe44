"""The service without a device: readers get the last update of every run, and only runs that began have ends."""

import asyncio
import os
from types import SimpleNamespace
from typing import Any

import pytest
from houses import model, request

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")
from tokenswift_jax import checkpoint
from tokenswift_jax.errors import WriteError
from tokenswift_jax.serve.busy import BusyError
from tokenswift_jax.serve.channel import read
from tokenswift_jax.serve.openai.errors import ApiError
from tokenswift_jax.serve.openai.responses import _frames, _last
from tokenswift_jax.serve.pool import PoolSize
from tokenswift_jax.serve.run import Run, RunState
from tokenswift_jax.serve.run_store import RunStore, StoredRun
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


def test_a_response_that_nobody_keeps_is_no_answer_when_the_server_goes_down():
    async def main():
        service = served()
        asked: Any = SimpleNamespace(
            request=request(0), details={"cache_salt": ""}, background=False, store=False, stream=False
        )
        answer = asyncio.ensure_future(_last(_frames(asked, service, "alice")))
        await asyncio.sleep(0)
        service.scheduler._interrupt()
        with pytest.raises(ApiError) as refused:
            await asyncio.wait_for(answer, WAIT)
        assert (refused.value.status, refused.value.body["error"]["code"]) == (503, "interrupted")

    asyncio.run(main())


@pytest.mark.parametrize("first", ["continued", "deleted"])
def test_a_run_is_continued_and_deleted_at_once(first):
    """Whichever comes first, the run is gone at the end, and no call fails on files that another one has removed."""

    async def main():
        service, files = served(), set[str]()

        def loaded(run_id):
            assert run_id in files
            run = Run(request(0))
            run.id, run.state = run_id, RunState.QUEUED
            return StoredRun(run, True, {})

        def reopen(stored, most):
            assert stored.run.id in files
            stored.run.state = RunState.QUEUED

        service.store = SimpleNamespace(
            load=loaded,
            reopen=reopen,
            has=files.__contains__,
            save=lambda stored: None,
            delete=lambda run: files.discard(run.id),
        )
        run, _ = kept(service, RunState.FINISHED)
        files.add(run.id)
        stored = service.known(run.id)
        async with service._loading:
            calls = {"continued": service.reopened(stored, 200), "deleted": service.delete(stored)}
            order = [first, *(name for name in calls if name != first)]
            tasks = {}
            for name in order:
                tasks[name] = asyncio.ensure_future(calls[name])
                await asyncio.sleep(0)
        while not all(task.done() for task in tasks.values()):
            service.scheduler._obey()
            await asyncio.sleep(0.001)
        assert (tasks["continued"].result() is None) == (first == "deleted")
        assert tasks["deleted"].result() is None
        assert (files, service._stored, service._channels, len(service.scheduler.queue)) == (set(), {}, {}, 0)

    asyncio.run(main())


def test_a_full_disk_leaves_no_run_without_a_description(tmp_path, monkeypatch):
    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "target_fingerprint", lambda path: "0" * 64)
    store = RunStore(tmp_path / "runs", model())
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match="No space left"):
        store.create(StoredRun(Run(request(0)), True, {}), ignore_eos=False)
    assert not list(store.folder.iterdir())
