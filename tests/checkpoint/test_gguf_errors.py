"""Every way a GGUF file can be wrong gets one line that says what."""

import random
import struct

import gguf
import numpy as np
import pytest
from gguf_files import close, random_model, write_gguf

from convert.hf import convert
from tokenswift_jax.checkpoint import resolve
from tokenswift_jax.checkpoint.gguf.container import read_container
from tokenswift_jax.errors import UserError


def model(file, more=lambda writer: None, spoil=lambda config, tensors: None, **fields):
    config, tensors = random_model("llama", num_hidden_layers=1, vocab_size=40, **fields)
    spoil(config, tensors)
    write_gguf(file, config, tensors, "Q8_0", more)


def with_metadata(add):
    return lambda file: model(file, add)


def with_tensor(name, values, kind=None):
    def make(file):
        model(file, lambda writer: writer.add_tensor(name, values, raw_dtype=kind))

    return make


def changed(change):
    def make(file):
        model(file)
        file.write_bytes(change(file.read_bytes()))

    return make


def foreign(architecture):
    def make(file):
        writer = gguf.GGUFWriter(file, architecture)
        writer.add_block_count(1)
        writer.add_tensor("token_embd.weight", np.ones((4, 32), np.float32))
        close(writer)

    return make


def number_of(kind):
    """The bytes of a tensor info that name a storage type, after one dimension pair of 40 rows of 256."""
    return struct.pack("<QQI", 256, 40, kind)


def without(*names):
    def spoil(config, tensors):
        for name in names:
            del tensors[name]

    return lambda file: model(file, spoil=spoil)


def text(file):
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def without_key(key):
    """The metadata key under another name of the same length, which nobody knows."""
    return changed(lambda data: data.replace(key.encode(), key[:-1].encode() + b"_"))


MIXTURE = with_metadata(lambda writer: writer.add_expert_count(8))
# how the file is made -> what the one line must say
WRONG = {
    "not GGUF": (text, ["is not a GGUF file", "b'vers'"]),
    "empty": (lambda file: file.write_bytes(b""), ["is not a GGUF file"]),
    "not there": (lambda file: None, ["cannot read", "No such file"]),
    "version 1": (changed(lambda data: data[:4] + b"\1" + data[5:]), ["GGUF version 1", "known: 2, 3"]),
    "big-endian": (
        lambda file: close(gguf.GGUFWriter(file, "llama", endianess=gguf.GGUFEndian.BIG)),
        ["big-endian"],
    ),
    "truncated header": (changed(lambda data: data[:300]), ["is truncated", "it has 300"]),
    "truncated weights": (changed(lambda data: data[:-1000]), ["is truncated", "output_norm.weight", "ends at byte"]),
    "long count": (changed(lambda data: data[:16] + b"\xff" * 8 + data[24:]), ["is truncated"]),
    "values that are not finite": (
        lambda file: model(file, spoil=lambda config, tensors: tensors["model.norm.weight"].fill(np.nan)),
        ["is damaged: output_norm.weight", "not finite"],
    ),
    "other architecture": (foreign("gemma3"), ["the architecture 'gemma3'", "known: llama, qwen2, qwen3"]),
    "mixture of another name": (foreign("qwen3moe"), ["the architecture 'qwen3moe'"]),
    "mixture": (MIXTURE, ["a mixture of 8 experts"]),
    "adapter": (with_metadata(lambda writer: writer.add_type("adapter")), ["a LoRA adapter, not a model"]),
    "projector": (with_metadata(lambda writer: writer.add_type("mmproj")), ["a multimodal projector, not a model"]),
    "other type": (with_metadata(lambda writer: writer.add_type("new")), ["of the type 'new', not a model"]),
    "part": (
        with_metadata(lambda writer: writer.add_uint16("split.count", 3)),
        ["one of 3 parts", "llama-gguf-split"],
    ),
    "arrays without end": (
        changed(
            lambda data: data.replace(
                struct.pack("<Q", 20) + b"general.architecture" + struct.pack("<I", 8),
                struct.pack("<Q", 20)
                + b"general.architecture"
                + struct.pack("<I", 9)
                + struct.pack("<IQ", 9, 1) * 2000,
            )
        ),
        ["is damaged: type 9"],
    ),
    "list of types": (
        with_metadata(lambda writer: writer.add_array("general.type", ["model"])),
        ["general.type is ['model']"],
    ),
    "list of architectures": (
        changed(
            lambda data: data.replace(
                b"general.architecture" + struct.pack("<IQ", 8, 5) + b"llama",
                b"general.architecture" + struct.pack("<IIQQ", 9, 8, 1, 5) + b"llama",
            )
        ),
        ["general.architecture is ['llama']"],
    ),
    "list of counts": (
        with_metadata(lambda writer: writer.add_array("split.count", ["llama"])),
        ["split.count is ['llama']"],
    ),
    "list of experts": (
        with_metadata(lambda writer: writer.add_array("llama.expert_count", ["llama"])),
        ["llama.expert_count is ['llama']"],
    ),
    "unknown storage type": (
        changed(lambda data: data.replace(number_of(8), number_of(99), 1)),
        ["has the storage type 99", "known: F32, F16, BF16, Q4_0"],
    ),
    "storage type without a reader": (
        changed(lambda data: data.replace(number_of(8), number_of(18), 1)),
        ["is stored as IQ3_XXS", "known: F32"],
    ),
    "integers": (
        with_tensor("blk.0.order", np.ones(40, np.int32)),
        ["blk.0.order", "is stored as I32"],
    ),
    "unknown key": (
        with_metadata(lambda writer: writer.add_float32("llama.logit_scale", 0.5)),
        ["states llama.logit_scale", "does not know"],
    ),
    "key with an effect": (
        with_metadata(lambda writer: writer.add_causal_attention(False)),
        ["states llama.attention.causal False", "only 1"],
    ),
    "missing key": (without_key("llama.block_count"), ["lacks llama.block_count"]),
    "missing norm constant": (
        without_key("llama.attention.layer_norm_rms_epsilon"),
        ["lacks llama.attention.layer_norm_rms_epsilon"],
    ),
    "layers that differ": (
        lambda file: model(file, spoil=lambda config, tensors: config.update(intermediate_size=[512, 256])),
        ["llama.feed_forward_length differs by layer"],
    ),
    "rotation of part of a head": (
        with_metadata(lambda writer: writer.add_key_length(128)),
        ["rotates 64 of 128 values a head"],
    ),
    "long scaling": (
        with_metadata(lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)),
        ["rope.scaling.type 'longrope'", "known: none, linear, yarn"],
    ),
    "odd frequencies": (
        with_tensor("rope_freqs.weight", np.linspace(1, 9, 32, dtype=np.float32)),
        ["rope_freqs.weight that no RoPE of type llama3 gives"],
    ),
    "frequencies of another head": (
        with_tensor("rope_freqs.weight", np.ones(16, np.float32)),
        ["rope_freqs.weight of shape [16] instead of [32]"],
    ),
    "no embedding": (without("model.embed_tokens.weight"), ["lacks the tensor token_embd.weight"]),
    "missing tensors": (
        without("model.norm.weight", "model.layers.0.mlp.up_proj.weight"),
        ["do not fit its metadata", "missing: model.layers.0.mlp.up_proj.weight, model.norm.weight"],
    ),
    "extra tensors": (
        with_tensor("blk.0.attn_sinks.weight", np.ones(4, np.float32)),
        ["extra: blk.0.attn_sinks.weight"],
    ),
    "mis-shaped": (
        with_tensor("blk.0.attn_q.bias", np.ones(4, np.float32)),
        ["mis-shaped: model.layers.0.self_attn.q_proj.bias [4] instead of [256]"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_gets_one_line_and_nothing_is_written(tmp_path, monkeypatch, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make, parts = WRONG[name]
    file = tmp_path / "model.gguf"
    make(file)
    for read in (resolve, lambda source: convert([str(source), str(tmp_path / "model")])):
        with pytest.raises(UserError) as caught:
            read(file)
        message = str(caught.value)
        assert "\n" not in message
        assert str(file) in message
        assert all(part in message for part in parts), message
    assert not list(tmp_path.glob("cache/*/*/*"))
    assert not (tmp_path / "model").exists()


def test_every_beginning_of_a_file_is_truncated(tmp_path):
    model(tmp_path / "model.gguf")
    data = (tmp_path / "model.gguf").read_bytes()
    end = max(entry.offset for entry in read_container(tmp_path / "model.gguf").tensors.values())
    for length in [*range(4, 1000, 3), end]:
        (tmp_path / "short.gguf").write_bytes(data[:length])
        with pytest.raises(UserError, match="is truncated"):
            convert([str(tmp_path / "short.gguf"), str(tmp_path / "model")])


def refusal(source, destination):
    try:
        convert([str(source), str(destination)])
    except UserError as error:
        return str(error)
    return ""


def test_flipped_bits_never_end_in_a_traceback(tmp_path):
    """Each flip in the header gives the one line or a file that still makes sense, at once."""

    def more(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(["a", "b", "ab", "<s>"])
        writer.add_token_types([1, 1, 1, 3])
        writer.add_token_merges(["a b"])
        writer.add_bos_token_id(3)
        writer.add_chat_template("{{ messages }}")

    model(tmp_path / "model.gguf", more)
    data = (tmp_path / "model.gguf").read_bytes()
    header = min(entry.offset for entry in read_container(tmp_path / "model.gguf").tensors.values())
    rng, refused = random.Random(5), 0
    for number in range(400):
        spoiled = bytearray(data)
        spoiled[rng.randrange(header)] ^= 1 << rng.randrange(8)
        (tmp_path / "spoiled.gguf").write_bytes(spoiled)
        message = refusal(tmp_path / "spoiled.gguf", tmp_path / f"model-{number}")
        assert "\n" not in message
        refused += bool(message)
    assert 150 < refused < 400
