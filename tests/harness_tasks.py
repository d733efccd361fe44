"""Local tasks for lm-evaluation-harness, of each kind of request, over tests/data/harness/documents.jsonl.

tests/data/harness/scores.json has what its `hf` model makes of them with the bundled demo in float32 (torch 2, CPU):
`python tests/harness_tasks.py`, with torch, accelerate and lm-eval installed, writes it.
"""

import copy
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "data" / "harness"
SCORES = FOLDER / "scores.json"
SHARED = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": str(FOLDER / "documents.jsonl")}},
    "test_split": "test",
    "target_delimiter": " ",
}
TASKS = [
    {
        "task": "endings",
        "output_type": "multiple_choice",
        "doc_to_text": "{{beginning}}",
        "doc_to_choice": "{{endings}}",
        "doc_to_target": "{{right}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    {
        "task": "letters",
        "output_type": "multiple_choice",
        "doc_to_text": "{{beginning}}\nA. {{endings[0]}}\nB. {{endings[1]}}\nC. {{endings[2]}}\nAnswer:",
        "doc_to_choice": ["A", "B", "C"],
        "doc_to_target": "{{right}}",
        "metric_list": [{"metric": "acc"}],
    },
    {
        "task": "perplexity",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{beginning}} {{endings[right]}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}],
    },
    {
        "task": "texts",
        "output_type": "generate_until",
        "doc_to_text": "{{beginning}}",
        "doc_to_target": "{{endings[right]}}",
        "generation_kwargs": {"until": [".", "\n\n"], "max_gen_toks": 24, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
]


def evaluated(lm: Any) -> tuple[dict[str, dict[str, float]], dict[str, list[Any]]]:
    """The metrics of each task, and the answers to each document's requests, in the order of the documents."""
    import lm_eval  # pyright: ignore[reportMissingImports]

    tasks = [task | SHARED for task in copy.deepcopy(TASKS)]
    found = lm_eval.simple_evaluate(model=lm, tasks=tasks, log_samples=True, bootstrap_iters=0, batch_size=4)
    metrics = {
        task: {name: value for name, value in values.items() if isinstance(value, float)}
        for task, values in found["results"].items()
    }
    answers = {}
    for task, samples in found["samples"].items():
        samples = sorted(samples, key=lambda sample: sample["doc_id"])
        answers[task] = [[_answer(response[0]) for response in sample["resps"]] for sample in samples]
    return metrics, answers


def _answer(response: Any) -> Any:
    return [float(response[0]), bool(response[1])] if isinstance(response, list | tuple) else response


def main() -> None:
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    demo = Path(__file__).parents[1] / "tokenswift_jax" / "demo_model"
    metrics, answers = evaluated(HFLM(str(demo), dtype="float32", device="cpu", batch_size=4))
    SCORES.write_text(json.dumps({"metrics": metrics, "answers": answers}) + "\n")


if __name__ == "__main__":
    main()
