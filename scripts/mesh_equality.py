"""Token equality over meshes: one text for each way to decode on each mesh, compared with the text of one device.

python scripts/mesh_equality.py [--model smollm2] [--tokens 64] [--meshes 1 model=2 ...] [--runs fused selfspec ...]
python scripts/mesh_equality.py --dtype float64 --tokens 1024      # long texts: rounding is 1e9 times as far from a tie

On a CPU it makes 8 virtual devices. It prints a table: for each text the smallest lead of a draw over the runner-up, in
processed logits on one device, and for each mesh whether the text has the tokens of one device, or the first token that
differs with the lead of that draw. It exits with status 1 if any text differs.
"""

from __future__ import annotations

import argparse
import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if os.environ["JAX_PLATFORMS"] == "cpu":
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

MESHES = ("data=2", "model=2", "model=4", "context=2", "context=4", "model=2,context=2", "stage=2", "data=2,model=2")
PROMPTS = ("It was late in the autumn, and the road", "In the morning the old woman went down to the river", "Once")


def main() -> int:
    """Runs the matrix; 0 if all texts are those of one device."""
    import jax

    import tokenswift_jax as ts
    from tokenswift_jax.audit.lead import leads_of
    from tokenswift_jax.engine.compile_cache import forget
    from tokenswift_jax.request import batch_of

    runs = {
        "autoregressive": ts.SpeculationConfig(mode="autoregressive"),
        "fused": ts.SpeculationConfig(mode="tokenswift", schedule="fused", node_budget=7),
        "partial": ts.SpeculationConfig(mode="tokenswift", schedule="partial", node_budget=7, draft_cache=64),
        "selfspec": ts.SpeculationConfig(mode="selfspec", draft_cache=64),
        "ngram": ts.SpeculationConfig(mode="ngram"),
    }
    samplings = {
        "greedy": ts.SamplingConfig(temperature=0.0),
        "sampled": ts.SamplingConfig(temperature=0.9, min_p=0.05, repetition_penalty=1.1, penalty_window=64, seed=5),
        "top-k, top-p": ts.SamplingConfig(temperature=1.0, top_k=50, top_p=0.9, repetition_penalty=1.1, seed=6),
    }
    parser = argparse.ArgumentParser(description="token equality over meshes")
    parser.add_argument("--model", help="default: the bundled demo")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--meshes", nargs="+", default=MESHES)
    parser.add_argument("--runs", nargs="+", default=list(runs), choices=runs)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", options.dtype == "float64")
    texts, leads = {}, {}
    for mesh in dict.fromkeys(("1", *options.meshes)):
        model = ts.load(options.model, options.dtype, mesh=mesh)
        prompts = [model.tokenizer(prompt).input_ids for prompt in PROMPTS]
        for run in options.runs:
            for name, sampling in samplings.items():
                print(f"mesh {mesh}: {run}, {name}", file=sys.stderr)  # compilation takes most of the time
                limits = {"max_new_tokens": options.tokens, "ignore_eos": True}
                results = ts.generate(model, prompts, sampling, runs[run], **limits)
                requests = batch_of(prompts, sampling, max_new_tokens=options.tokens)
                for number, (request, result) in enumerate(zip(requests, results, strict=True)):
                    texts[run, name, number, mesh] = result.token_ids
                    if mesh == "1":
                        leads[run, name, number] = leads_of(model, request, result.token_ids)
        forget()  # without it, the programs of all meshes exceed the memory maps that Linux allows a process
    print(f"{'run':16}{'sampling':14}{'text':6}{'least lead':12}" + "".join(f"{mesh:18}" for mesh in options.meshes))
    for (run, name, number), lead in leads.items():
        cells = []
        for mesh in options.meshes:
            pairs = zip(texts[run, name, number, mesh], texts[run, name, number, "1"], strict=True)
            at = next((place for place, (one, other) in enumerate(pairs) if one != other), None)
            cells.append("same" if at is None else f"at {at}: {lead[at]:.1g}")
        print(f"{run:16}{name:14}{number:<6}{lead.min():<12.2g}" + "".join(f"{cell:18}" for cell in cells))
    return int(any(found != texts[*key, "1"] for (*key, _), found in texts.items()))


if __name__ == "__main__":
    sys.exit(main())
