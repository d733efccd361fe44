"""scripts/sampling_cost.py: the passes counted by hand, the share from its parts, and a run on a small shape."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import sampling_cost


def test_passes_and_shares():
    def counted(few_decide):
        return [sampling_cost.passes(config, few_decide) for config in sampling_cost.CASES.values()]

    # Every sampled step finds the highest score, which min-p's threshold follows: min-p that is off is 0.
    # top-k: scores written, read for the peaks, the few picked, the draw; top-p: the weights too.
    assert counted(True) == [1, 2, 2, 4, 5, 4]
    # And every row taken out, read and written, to be searched where the cache holds it.
    assert counted(False) == [1, 2, 2, 4 + 2, 5 + 2, 4 + 2]
    costliest = sampling_cost.CASES["top-p"]
    assert sampling_cost.share_of_step("Qwen2.5-1.5B", 4096, costliest, few_decide=False) < 0.1
    one, two = (
        sampling_cost.share_of_step("Qwen2.5-7B", 4096, sampling_cost.CASES[name], few_decide=True)
        for name in ("temperature 0", "min-p, penalty")
    )
    # 39 MB of logits over 15.2 GB of weights, 7.6 billion parameters of 2 bytes less the embeddings that no row reads;
    # the cache and the heads add to the step.
    assert one == pytest.approx(64 * 152064 * 4 / 14.6e9, rel=0.1)
    assert two == 2 * one
    assert two < 0.1


def test_a_run_writes_its_figures(tmp_path, capsys):
    output = tmp_path / "cost.json"
    assert sampling_cost.main(["--shape", "2x64", "--repeats", "1", "--output", str(output)]) == 0
    document = json.loads(output.read_text())
    assert [row["case"] for row in document["measured"]] == list(sampling_cost.CASES)
    assert all(row["milliseconds"] > 0 for row in document["measured"])
    assert len(document["computed"]) == 4 * 2 * (len(sampling_cost.CASES) + 3)
    assert capsys.readouterr().out.count("\n") == len(document["measured"]) + len(document["computed"])
