"""Host memory of loading: each of two processes takes little more than the bytes of its own part of the weights."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints_made_here import copy, set_config

from convert.hf import convert
from tokenswift_jax.checkpoint.tensors import Tensor, write_file

SIZE, INNER, LAYERS, VOCAB = 1024, 4096, 8, 4096
# One process of two. RssAnon is the memory that the process itself allocates; pages of the file do not count, since the
# kernel drops them at need. On a CPU the devices' memory is the host's.
CHILD = r"""
import gc, json, re, sys, threading, time
import jax
tiny, folder, port, process = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", 2, int(process))
from tokenswift_jax.checkpoint import load_decoder
from tokenswift_jax.parallel.mesh import make_mesh
from tokenswift_jax.parallel.mesh_spec import MeshSpec

def allocated():
    with open("/proc/self/status") as file:
        return 1024 * int(re.search(r"RssAnon:\s+(\d+)", file.read())[1])

def watch():
    while not done:
        seen.append(allocated())
        time.sleep(0.001)

mesh = make_mesh(MeshSpec(model=2))
load_decoder(tiny, mesh=mesh)  # imports are not what is measured
gc.collect()
seen, done = [allocated()], []
before, thread = seen[0], threading.Thread(target=watch)
thread.start()
_, _, params = load_decoder(folder, mesh=mesh)
done.append(True)
thread.join()
share = sum(shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards)
total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print(json.dumps({"peak": max(seen) - before, "share": share, "total": total, "samples": len(seen)}))
"""


def large_checkpoint(folder):
    """A float32 checkpoint of 570 MB, tensor by tensor; tensorstore's threads keep 40 MB for a small one too."""
    copy("llama2", folder)
    sizes = {"hidden_size": SIZE, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "vocab_size": VOCAB}
    set_config(folder, **sizes, num_attention_heads=8, num_key_value_heads=8, head_dim=SIZE // 8)
    shapes = {"model.embed_tokens.weight": (VOCAB, SIZE), "lm_head.weight": (VOCAB, SIZE), "model.norm.weight": (SIZE,)}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        shapes |= {f"{name}self_attn.{part}_proj.weight": (SIZE, SIZE) for part in "qkvo"}
        shapes |= {f"{name}mlp.{part}_proj.weight": (INNER, SIZE) for part in ("gate", "up")}
        shapes |= {f"{name}mlp.down_proj.weight": (SIZE, INNER)}
        shapes |= {f"{name}{part}_layernorm.weight": (SIZE,) for part in ("input", "post_attention")}
    noise = np.random.default_rng(0).normal(size=INNER * SIZE).astype(np.float32)

    def values(shape):
        return lambda index: noise[: np.prod(shape)].reshape(shape)[index]

    tensors = [Tensor(name, shape, np.dtype(np.float32), values(shape), "noise") for name, shape in shapes.items()]
    write_file(folder / "model.safetensors", tensors)
    return folder


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("form", ["safetensors", "orbax"])
def test_each_process_takes_little_more_than_its_share(tmp_path, form):
    tiny, folder = tmp_path / "tiny", large_checkpoint(tmp_path / "large")
    copy("llama2", tiny)
    if form == "orbax":
        for name in ("tiny", "large"):
            convert([str(tmp_path / name), str(tmp_path / f"{name}-orbax"), "--orbax"])
        tiny, folder = tmp_path / "tiny-orbax", tmp_path / "large-orbax"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(Path(__file__).parents[2])}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, *map(str, (tiny, folder, port, process))],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    for process in started:
        printed = process.communicate(timeout=300)[0]
        assert process.returncode == 0
        found = json.loads(printed.splitlines()[-1])
        print(form, found)
        assert found["total"] > 500e6
        assert 0.5 * found["total"] <= found["share"] < 0.51 * found["total"]
        assert found["samples"] > 20
        assert found["share"] < found["peak"] < 1.2 * found["share"]
