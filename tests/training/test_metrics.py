"""The metrics file: what it holds, and that resuming leaves the file of a run nobody interrupted."""

import json
import sys

import jax.numpy as jnp
import pytest

from tokenswift_jax.errors import UserError
from tokenswift_jax.training.metrics import MetricsWriter, read_metrics


def _write(path, steps, resume_at=None, tensorboard=None):
    with MetricsWriter(path, tensorboard, resume_at) as writer:
        for step in steps:
            writer.write(step, {"train/loss": jnp.float32(1 / (step + 1)), "train/tokens": 1000 * step})
            if step % 3 == 0:
                writer.write(step, {"eval/head_1/loss": 2.5 + step})


def test_rows_are_flushed_one_object_a_line(tmp_path):
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    writer.write(4, {"train/loss": 0.5, "train/tokens": 7, "train/norm": float("nan")})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()  # before close
    assert lines == ['{"step": 4, "train/loss": 0.5, "train/tokens": 7, "train/norm": null}']
    writer.close()
    writer.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [json.loads(lines[0])]


@pytest.mark.parametrize("torn", [b"", b'{"step": 9, "train/l'])
@pytest.mark.parametrize("resume_at", [0, 3, 5, 9])
def test_a_resumed_file_equals_an_uninterrupted_one(tmp_path, resume_at, torn):
    _write(tmp_path / "whole.jsonl", range(12))
    _write(tmp_path / "resumed.jsonl", range(9))
    with (tmp_path / "resumed.jsonl").open("ab") as file:
        file.write(torn)
    _write(tmp_path / "resumed.jsonl", range(resume_at, 12), resume_at)
    assert (tmp_path / "resumed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_new_run_begins_a_new_file(tmp_path):
    _write(tmp_path / "metrics.jsonl", range(5))
    _write(tmp_path / "metrics.jsonl", range(2))
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0, 0, 1]


def test_resuming_where_there_is_no_file_begins_one(tmp_path):
    _write(tmp_path / "metrics.jsonl", [4], resume_at=4)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [4]


def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX import event_file_writer  # noqa: F401  (its protobuf module registers the record types)
    from tensorboardX.proto import event_pb2

    _write(tmp_path / "metrics.jsonl", [0, 1], tensorboard=tmp_path / "events")
    (file,) = (tmp_path / "events").iterdir()
    data, scalars, at = file.read_bytes(), [], 0
    while at < len(data):  # a record: length (8 bytes), checksum (4), payload, checksum (4)
        size = int.from_bytes(data[at : at + 8], "little")
        event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
        scalars += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        at += size + 16
    assert scalars == [
        (0, "train/loss", 1.0),
        (0, "train/tokens", 0.0),
        (0, "eval/head_1/loss", 2.5),
        (1, "train/loss", 0.5),
        (1, "train/tokens", 1000.0),
    ]


def test_a_missing_package_and_bad_files_are_one_line_errors(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "tensorboardX", None)
        with pytest.raises(UserError, match=r"tokenswift_jax\[train\]"):
            MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "events")
    with pytest.raises(UserError, match="metrics file"):
        MetricsWriter(tmp_path / "nowhere" / "metrics.jsonl")
    with pytest.raises(UserError, match="No such file"):
        read_metrics(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n[2]\n')
    with pytest.raises(UserError, match="line 2 is not a row"):
        read_metrics(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match="line 2 is not a row"):
        MetricsWriter(tmp_path / "metrics.jsonl", resume_at=1)
