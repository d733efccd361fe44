"""A server's pools on a mesh of virtual devices: where their arrays are, and each run's tokens, those of one device."""

import random
import signal
import threading
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoded import assert_same, decode_requests
from flax import nnx
from houses import COUNT, Guests, model, request
from process import Process
from speculations import SPECULATIONS

import tokenswift_jax as ts
from tokenswift_jax.errors import UserError
from tokenswift_jax.kv.dense import BLOCK, cache_bytes
from tokenswift_jax.parallel import mesh as meshes
from tokenswift_jax.parallel.mesh import make_mesh, use
from tokenswift_jax.parallel.mesh_spec import AutoMesh, parse_mesh
from tokenswift_jax.parallel.rules import parameter_sharding
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.serve.cli import make_pools
from tokenswift_jax.serve.plan_set import PlanSet
from tokenswift_jax.serve.pool import Pool, PoolSize
from tokenswift_jax.serve.prefix_store import PrefixStore
from tokenswift_jax.serve.run import Run, RunState
from tokenswift_jax.serve.server_mesh import mesh_lines, server_mesh, server_table


def on(spec):
    """The model of `houses` on a mesh that divides all its sizes."""
    mesh = make_mesh(parse_mesh(spec))
    flat = [
        (path, param.replace(jax.device_put(param[...], parameter_sharding(mesh, path, param.shape))))
        for path, param in nnx.to_flat_state(model().params)
    ]
    return replace(model(), mesh=mesh, params=nnx.from_flat_state(flat))


def pool_on(spec, mode):
    plans = PlanSet(model().config, SPECULATIONS[mode], (SamplingFeatures.FILTERED,))
    return Pool(on(spec), PoolSize(2, 400), plans, prefixes=PrefixStore(2**30, 1))


def visited(guests, pool):
    """Runs that arrive, leave, pause and come back, then one that begins as an earlier one, and a branch."""
    pausing = guests.arrive(6, "a")
    pausing.family = "family"
    cancelled = guests.arrive(3, "b")
    while not (pausing.tokens and cancelled.tokens):
        guests.scheduler.turn()
    guests.scheduler.pause(pausing)
    guests.scheduler.cancel(cancelled)
    other = guests.arrive(1, "b")
    guests.finish()
    pool.prefixes.settle()
    branch = Run(pausing.request, owner="a", family="family")
    branch.add(pausing.log.cut(5))
    guests.heard[branch], guests.runs[99] = [], branch
    guests.scheduler.submit(branch)
    guests.finish()
    guests.emptied()
    assert (pausing.cached, branch.cached) == (BLOCK, BLOCK)
    assert_same(branch.tokens, pausing.tokens)
    assert cancelled.state is RunState.CANCELLED
    alone = decode_requests(model(), [pausing.request, cancelled.request, other.request], SPECULATIONS["plain"])
    for run, text in zip((pausing, cancelled, other), alone, strict=True):
        assert_same(run.tokens, text.tokens[: len(run.tokens)])
    assert [pausing.finish, other.finish] == [alone[0].finish, alone[2].finish]


@pytest.mark.parametrize(
    ("spec", "mode"),
    [("data=2,context=2", "plain"), pytest.param("context=3", "selfspec blocks", marks=pytest.mark.long)],
)
def test_runs_on_a_mesh_have_the_tokens_of_one_device(spec, mode):
    pool = pool_on(spec, mode)
    visited(Guests(mode, made=[pool]), pool)
    pool.engine.close()


@pytest.mark.long
@pytest.mark.parametrize(("spec", "mode"), [("model=2,context=2", "fused"), ("data=2,model=2", "partial blocks")])
def test_a_schedule_on_a_mesh_gives_every_run_the_tokens_of_one_device(spec, mode):
    pool, chance = pool_on(spec, mode), random.Random(0)
    guests = Guests(mode, made=[pool])
    for _ in range(120):
        index = chance.randrange(COUNT)
        run = guests.runs.get(index)
        if run is None:
            guests.arrive(index, "ab"[index % 2])
        elif run.state is RunState.PAUSED:
            guests.scheduler.submit(run)
        else:
            chance.choice([guests.scheduler.turn] * 4 + [lambda run=run: guests.scheduler.pause(run)])()
    guests.scheduler.cancel(guests.runs[9])
    guests.finish()
    guests.emptied()
    expected = decode_requests(model(), [request(index) for index in range(COUNT)], SPECULATIONS["plain"])
    assert len(guests.runs) == COUNT
    for index, run in guests.runs.items():
        assert run.finish in (expected[index].finish, "cancelled")
        assert_same(run.tokens, expected[index].tokens[: len(run.tokens)])
    assert sum(run.state is RunState.FINISHED for run in guests.runs.values()) >= COUNT - 1
    pool.engine.close()


def test_the_slots_and_their_bytes_are_divided(monkeypatch):
    """Every device gets its part of the K/V by the rules; the groups of devices share the slots evenly."""
    placed = on("data=2,model=2,context=2")
    pools = make_pools(placed, SPECULATIONS["ngram"], 400, [1, 3], 0, 64)
    assert [pool.size.slots for pool in pools] == [2, 4]
    for pool in pools:
        whole = cache_bytes(model().config, pool.size.slots, 512, jnp.dtype(jnp.float32))
        prompts = cache_bytes(model().config, 2, 512, jnp.dtype(jnp.float32))
        layout = pool.engine.layout
        drafts = layout.drafter_bytes(pool.size.slots) // 2 + 2 * layout.drafter_bytes(1)
        numbers = 3 * 4 * model().config.num_layers  # int32: each cache has the layers' indices, on a CPU
        assert pool.bytes == whole // 8 + prompts // 4 + drafts + numbers
    rounded, last = mesh_lines(placed, pools, [1, 3])
    assert "1,3 slots are rounded up to 2,4, which 2 groups of devices share evenly" in rounded
    assert last == "mesh data=2,model=2,context=2: each of 8 devices has 0.00 GB of weights and 0.00 GB of caches"
    keys = [line.split() for line in server_table(placed, pools).splitlines() if "4 x 400 state.cache.keys" in line]
    assert keys[0][-4:-1] == ["data,", "model,", "context"]
    assert int(keys[0][-1].replace(",", "")) == cache_bytes(model().config, 4, 512, jnp.dtype(jnp.float32)) // 16
    monkeypatch.setattr("tokenswift_jax.engine.capacity.least_free", lambda devices: (pools[1].bytes, "a device"))
    with pytest.raises(UserError, match=r"on each of 8 devices, .* free on a device: .* are missing; lower max_length"):
        make_pools(placed, SPECULATIONS["ngram"], 400, [1, 3], 0, 64)


def test_a_server_has_no_stages():
    assert server_mesh("auto", 4, 8192) == AutoMesh(rows=4, length=8192, stages=False)
    with pytest.raises(UserError, match="mesh stage=2: a server has no stages: the program that sends a prompt"):
        server_mesh("stage=2", 1, 100)


def test_one_thread_at_a_time_sends_a_program(monkeypatch):
    """The server's threads decode, read prompts and score; programs that overlap could wait for each other."""
    mesh, present, most = make_mesh(parse_mesh("model=2")), [], []

    def settled(mesh, results):
        present.append(threading.get_ident())
        most.append(len(present))
        time.sleep(0.01)
        present.pop()
        return results

    monkeypatch.setattr(meshes, "settled", settled)
    double = jax.jit(lambda x: x * 2)

    def send():
        with use(mesh):
            for _ in range(5):
                np.testing.assert_array_equal(meshes.run(double, np.ones(2, np.float32)), [2, 2])

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(most), max(most)) == (20, 1)


@pytest.mark.long
def test_a_ready_pool_compiles_nothing_more():
    compiled = []
    pools = make_pools(
        on("data=2,model=2"),
        SPECULATIONS["fused"],
        400,
        [2],
        0,
        64,
        report=lambda phase, done, *_: compiled.append(phase),
    )
    for pool in pools:
        pool.warm_up()
    compiled = [phase for phase in compiled if phase.startswith("compiling")]
    before = list(compiled)
    visited(Guests("fused", made=pools), pools[0])
    assert before
    assert compiled == before
    pools[0].engine.close()


@pytest.mark.long
def test_a_killed_server_goes_on_on_another_mesh(tmp_path):
    """A run of a server on a mesh is killed, and its text ends on another mesh: that of `generate` on the first."""
    text = {"prompt": "It was late", "max_tokens": 150, "temperature": 0.9, "seed": 4, "ignore_eos": True}
    flags = ["--port", "0", "--max-length", "240", "--slots", "2", "--mode", "autoregressive", "--mesh"]
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    server = Process(tmp_path, [*flags, "data=2,model=2"], devices)
    run = server.get("/v1/runs", text)["id"]
    probabilities = server.get("/v1/completions", {**text, "max_tokens": 1, "echo": True, "logprobs": 0})
    assert len(probabilities["choices"][0]["logprobs"]["token_logprobs"]) > 2
    while server.get(f"/v1/runs/{run}")["tokens"] < 20:
        time.sleep(0.05)
    server.kill(signal.SIGKILL)
    server = Process(tmp_path, [*flags, "model=2,context=2"], devices)
    while server.get(f"/v1/runs/{run}")["state"] not in ("finished", "failed"):
        time.sleep(0.2)
    connection, answer = server.open(f"/v1/runs/{run}/text.txt")
    found = answer.read().decode()
    connection.close()
    assert " --mesh model=2,context=2 " in server.get(f"/v1/runs/{run}/command")["command"]
    server.kill(signal.SIGTERM)
    placed = ts.load(mesh="data=2,model=2")
    sampling = placed.sampling_config(temperature=0.9, seed=4)
    expected = ts.generate(placed, text["prompt"], sampling, max_new_tokens=150, ignore_eos=True)
    assert found == expected.text
