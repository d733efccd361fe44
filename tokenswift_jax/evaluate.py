"""`python -m tokenswift_jax.evaluate`: the quality of a checkpoint's draft heads, before they are used.

The Python function is `tokenswift_jax.training.evaluation.evaluate`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence

from tokenswift_jax.cli import streams
from tokenswift_jax.cli.command import Parser, exit_status, leave, quiet_transformers, with_dashes
from tokenswift_jax.cli.converters import name, path, whole, whole_list
from tokenswift_jax.errors import UserError
from tokenswift_jax.paths import check_writable, resolved, write_text
from tokenswift_jax.training.extra import check_installed

PROGRAM = "python -m tokenswift_jax.evaluate"
_WINDOWS = 16  # windows of held-out text, for the accuracies


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Runs the command; returns its exit status (0, 2 bad input, 130 interrupted, 141 no reader)."""
    parser = _parser(program)
    words = with_dashes(sys.argv[1:] if argv is None else argv, parser)
    return exit_status(lambda: _run(parser.parse_args(words)), flags=parser.flags)


def _check_json(options: argparse.Namespace) -> None:
    from tokenswift_jax.training.documents import find_files

    if options.json.exists() and resolved(options.json) in map(resolved, find_files(options.data)):
        raise UserError(f"json {options.json} would replace a file of the data; name another file", arguments=("json",))


def _run(options: argparse.Namespace) -> int:
    if options.json is not None:
        check_writable(options.json, "json")
        _check_json(options)
    check_installed("evaluating", ("grain",))
    quiet_transformers()
    from tokenswift_jax.checkpoint import check_apart
    from tokenswift_jax.cli.phases import Phases
    from tokenswift_jax.cli.progress import ProgressLine
    from tokenswift_jax.model import load
    from tokenswift_jax.progress_report import phase
    from tokenswift_jax.speculation import SpeculationConfig
    from tokenswift_jax.training.evaluation import evaluate, store
    from tokenswift_jax.training.held_out import HeldOut, windows
    from tokenswift_jax.training.shards import tokenise
    from tokenswift_jax.training.trainer import default_cache

    chosen = {"tree": options.tree, "node_budget": options.node_budget, "ngram_k": options.ngram_k}
    speculation = SpeculationConfig(**{field: value for field, value in chosen.items() if value is not None})
    progress = ProgressLine(sys.stderr, total=0, enabled=not options.quiet)
    with contextlib.ExitStack() as stack:
        stack.callback(progress.clear)
        report = stack.enter_context(Phases(progress, sys.stderr, enabled=not options.quiet))
        model = load(options.model, options.dtype, report=report)
        if not model.config.num_draft_heads:
            raise UserError(f"{model.path} has no draft heads; train some, or name another checkpoint")
        if options.json is not None:
            check_apart(options.json, "json", model.path)
        if options.store:
            check_writable(model.path / "config.json", "store")
        cache = options.data_cache or default_cache()
        with phase(report, "tokenising the data"):
            corpus = tokenise(options.data, model.tokenizer, cache, strict=False, vocab_size=model.config.vocab_size)
        if corpus.broken:
            progress.clear()
            print(f"data: {corpus.report()}", file=sys.stderr)
        length = options.prompt_tokens + options.continuation
        with phase(report, "examining the draft heads"):
            result = evaluate(
                model,
                windows(HeldOut(corpus, range(corpus.documents)), length, max(_WINDOWS, options.prompts)),
                speculation,
                seed=options.seed,
                prompts=options.prompts,
                prompt_tokens=options.prompt_tokens,
                continuation=options.continuation,
            )
    try:  # the files come first: a reader of the table may have left, or its disk may be full
        if options.json is not None:
            write_text(options.json, json.dumps(result.to_json(), allow_nan=False) + "\n")
        if options.store:
            store(model.path, result.found)
            print(f"node sets and expected tokens stored in {model.path / 'config.json'}", file=sys.stderr)
    finally:
        streams.show(result.table())
    return 0


def _parser(program: str) -> Parser:
    parser = Parser(
        prog=program,
        allow_abbrev=False,
        description="Loss and accuracy of each draft head on held-out text, the tokens per iteration to expect at "
        "temperatures 0 and 1, and the best nodes for a given number of rows. The rest of sampling is the "
        "checkpoint's own (generation_config.json).",
    )
    add = parser.add_argument
    add("--model", type=name, metavar="DIR|HUB_ID", help="checkpoint with draft heads (default: the bundled demo)")
    add("--data", type=name, nargs="+", required=True, metavar="PATH", help=".txt and .jsonl files, folders, patterns")
    add("--dtype", help="float32, bfloat16, ... (default: the checkpoint's; float32 on CPU)")
    add("--prompts", type=whole(1), default=4, metavar="N", help="prompts that the target continues (default: 4)")
    add("--prompt-tokens", type=whole(1), default=256, metavar="N", help="tokens of each (default: 256)")
    add("--continuation", type=whole(2), default=128, metavar="N", help="tokens written after each (default: 128)")
    add(
        "--tree",
        type=whole_list("1,3,3,3"),
        metavar="1,3,3,3",
        help="candidates a depth (default: the checkpoint's node set)",
    )
    add("--node-budget", type=whole(1), metavar="N", help="nodes verified an iteration (default: all)")
    add("--ngram-k", type=whole(0), metavar="K", help="n-gram chains a key (default: 20)")
    add("--seed", type=whole(0), default=0, metavar="S", help="of the continuations (default: 0)")
    add("--json", type=path, metavar="FILE", help="write all figures there")
    add(
        "--store",
        action="store_true",
        help="write the node sets and the expected tokens into the checkpoint's config.json",
    )
    add("--data-cache", type=path, metavar="DIR", help="folder of tokenised data")
    add("--quiet", action="store_true", help="no progress on stderr")
    return parser


if __name__ == "__main__":
    leave(main())
