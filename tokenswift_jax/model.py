"""A checkpoint ready to run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pallas_kernels import cpu
from tokenswift_jax import checkpoint
from tokenswift_jax.checkpoint.directory import read_config
from tokenswift_jax.errors import UserError, check_whole
from tokenswift_jax.generation_config import ids_within, usable, warn_of_unknown
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.parallel.mesh import give_threads, make_mesh, notes_on
from tokenswift_jax.parallel.mesh_choice import chosen_mesh
from tokenswift_jax.parallel.mesh_spec import AutoMesh, MeshArgument, parse_mesh, prompt_chunks
from tokenswift_jax.paths import cache_folder
from tokenswift_jax.processes.agreement import agreed
from tokenswift_jax.progress_report import Report, check_report, silent
from tokenswift_jax.prompt import encode_rows, is_batch
from tokenswift_jax.sampling import SamplingConfig, resolve_sampling
from tokenswift_jax.step.loop import compiled

_Value = TypeVar("_Value")
DEMO_MODEL = Path(__file__).parent / "demo_model"
# A compilation below this is cheaper than its cache file; most of a decoder's small programs are above it.
_MIN_COMPILE_SECONDS = 0.1


@dataclass(frozen=True)
class Model:
    """One loaded checkpoint.

    Attributes:
      path: its directory.
      config: static description of the decoder.
      tokenizer: transformers' tokenizer; None: prompts are token ids.
      generation_config: the fields of generation_config.json; without one, those of config.json of the same kind.
      graphdef: the decoder's structure (`flax.nnx`).
      params: its parameters, a pytree of arrays.
      dtype: name of the type of weights and activations.
      eos_token_ids: tokens that end a text: those of the checkpoint's files and the tokenizer's.
      rope_override: the argument of `load`.
      mesh: the devices that store the parameters and run the programs; None: one device. On a mesh, `config` has the
        sizes that fit it (`parallel.fit`).
      mesh_notes: for a person, lines about the mesh: why it was chosen, sizes that changed, devices left over.
      prompt_chunks: the chunks in which a prompt goes through the stages of the mesh; None: it has none.
    """

    path: Path
    config: ModelConfig
    tokenizer: Any
    generation_config: dict[str, Any]
    graphdef: Any
    params: Any
    dtype: str
    eos_token_ids: tuple[int, ...]
    rope_override: dict[str, Any] | None
    mesh: Mesh | None = None
    mesh_notes: tuple[str, ...] = ()
    prompt_chunks: int | None = None
    _kept: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def fingerprint(self) -> str:
        """A hash (64 hex digits) of the checkpoint's configuration and weights; copies of a checkpoint share it."""
        return self.once("fingerprint", lambda: checkpoint.fingerprint(self.path))

    def encode(self, prompt: Any = None, *, messages: Any = None) -> Any:
        """The token ids that `generate` begins with: a list of them, or a list of such lists for a batch.

        Args:
          prompt: text or token ids, or a list of those, which is a batch. The tokenizer's own special tokens enter.
          messages: in place of a prompt, a conversation for the tokenizer's chat template, or a list of those.

        Raises:
          UserError: the prompt is empty or wrong, or the checkpoint has no tokenizer or chat template for it.
        """
        rows = encode_rows(prompt, messages, self.tokenizer, self.config.vocab_size)
        return rows if is_batch(prompt, messages) else rows[0]

    def sampling_config(self, **given: Any) -> SamplingConfig:
        """The checkpoint's own sampling, which `generate` uses without `sampling`, with the `given` fields changed.

        Raises:
          UserError: a value is out of range, or the checkpoint's generation_config asks for an unsupported setting.
        """
        return resolve_sampling(given, self.generation_config)

    def once(self, name: Hashable, make: Callable[[], _Value]) -> _Value:
        """The value that `make` gives, which it makes once for each name."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def program(self, kind: str, *static: Hashable) -> Callable:
        """The jitted function `step.loop.compiled(kind, graphdef, *static)`, without hashing the graph for every text
        (cost: about a millisecond each time)."""
        return self.once((kind, *static), lambda: compiled(kind, self.graphdef, *static))


def load(
    path: str | Path | None = None,
    dtype: Any = None,
    rope_override: dict[str, Any] | None = None,
    report: Report = silent,
    mesh: MeshArgument = None,
    pipeline_depth: int | None = None,
    length: int | None = None,
) -> Model:
    """Loads a checkpoint, the bundled demo by default.

    Args:
      path: directory, GGUF file, hub id, or "smollm2" (SmolLM2-135M-Instruct from its Python package,
        with this project's draft heads).
      dtype: type of weights and activations; None: the checkpoint's own, float32 on CPU.
      rope_override: fields that replace those of the configuration's RoPE, such as
        {"rope_type": "yarn", "factor": 4.0}.
      report: called with the progress of loading (`progress_report`).
      mesh: the devices to use: "data=2,model=4" or {"data": 2, "model": 4}, 4 for model=4, or "auto" (or
        `parallel.mesh_spec.AutoMesh` with the rows and the length to expect); None: one device.
        Devices along `model` share weights, heads and vocabulary; those along `context` share the positions of the
        full cache, the MLPs and the vocabulary; those along `data` share the rows of a batch; those along `stage` have
        different layers.
      pipeline_depth: the chunks in which a prompt goes through the stages of the mesh, at least two for each; None: 8
        for each.
      length: positions of a text to expect, whose cache has to fit a mesh beside the weights: else there is an error
        before loading. None: unknown.

    Raises:
      UserError: the checkpoint or the mesh cannot be used; the message says why.
    """
    check_report(report)
    if length is not None:
        check_whole("length", length, 1)
    if isinstance(rope_override, Mapping):  # journals contain it, and JSON no numbers of NumPy
        rope_override = {
            name: value.item() if isinstance(value, np.generic) else value for name, value in rope_override.items()
        }
    asked = parse_mesh(mesh)
    prompt_chunks(asked, pipeline_depth)  # refuses a wrong one before anything is read
    give_threads()  # for a later mesh too: JAX looks for devices once
    use_compilation_cache()
    folder = checkpoint.resolve(DEMO_MODEL if path is None else path, report)
    opened = checkpoint.open_checkpoint(folder, rope_override)
    chosen = checkpoint.chosen_dtype(opened, dtype)
    if isinstance(asked, AutoMesh):
        auto = asked
        spec, why = agreed(lambda: chosen_mesh(opened.config, chosen.itemsize, auto))
    else:
        spec, why = asked, ()
    devices = make_mesh(spec, opened.config.num_layers)
    if devices is None and chosen == jnp.float32:
        cpu.load_ahead()
    config, graphdef, params = checkpoint.load_decoder(opened, chosen, mesh=devices, report=report, length=length)
    tokenizer = checkpoint.load_tokenizer(folder)
    generation_config = usable(checkpoint.load_generation_config(folder), config.vocab_size, tokenizer)
    warn_of_unknown(generation_config)
    return Model(
        path=folder,
        config=config,
        tokenizer=tokenizer,
        generation_config=generation_config,
        graphdef=graphdef,
        params=params,
        dtype=chosen.name,
        eos_token_ids=_eos_token_ids(folder, generation_config, config.vocab_size, tokenizer),
        rope_override=rope_override,
        mesh=devices,
        mesh_notes=(*why, *notes_on(devices, opened.config)),
        prompt_chunks=prompt_chunks(spec, pipeline_depth),
    )


def use_compilation_cache() -> None:
    """Stores compiled programs on disk between runs, unless the user chose a folder or switched the cache off, or no
    folder is writable."""
    settings: Any = jax.config  # its flags are attributes that no type declares
    if settings.jax_compilation_cache_dir is not None or not settings.jax_enable_compilation_cache:
        return
    with contextlib.suppress(OSError, UserError):  # UserError: there is no home
        folder = cache_folder("xla")
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS)


def _eos_token_ids(
    folder: Path, generation_config: dict[str, Any], vocab_size: int, tokenizer: Any = None
) -> tuple[int, ...]:
    """The ids of generation_config.json, else of config.json, and the tokenizer's EOS.

    Either file may give a single id as an int. A warning names ids outside the vocabulary, which are left out. A model
    that never draws the tokenizer's EOS loses nothing by it.
    """
    found = generation_config.get("eos_token_id")
    if found is None:
        found = read_config(folder).get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(token) is int for token in ids):
        raise UserError(f"{folder}: eos_token_id is {found!r}; it must be a token id or a list of them")
    ids = ids_within(ids, vocab_size, f"eos_token_id of {folder}")
    own = getattr(tokenizer, "eos_token_id", None)
    return tuple(dict.fromkeys([*ids, *([own] if type(own) is int and 0 <= own < vocab_size else [])]))
