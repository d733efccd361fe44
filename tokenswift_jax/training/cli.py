"""The training command: it turns flags into settings, and an error into one line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from tokenswift_jax.cli import streams
from tokenswift_jax.cli.command import Parser, exit_status, quiet_transformers, with_dashes
from tokenswift_jax.cli.converters import integer, number, path
from tokenswift_jax.cli.converters import name as name_of
from tokenswift_jax.parallel.mesh_spec import TRAINING_AXES, parse_mesh
from tokenswift_jax.training.extra import check_installed
from tokenswift_jax.training.settings import HEAD_TYPES, REMAT, SCHEDULES, WHAT, read_settings

PROGRAM = "python -m tokenswift_jax.train"
# Type (None: a flag without a value), choices, metavar and help of each setting with a flag, by the setting's name.
_WHOLE, _NUMBER, _TEXT = integer, number, str
_FLAGS: dict[str, tuple[Any, Any, str | None, str]] = {
    "what": (_TEXT, WHAT, None, "draft heads alone, or the backbone too (default: heads)"),
    "heads": (_WHOLE, None, "N", "draft heads (default: 3)"),
    "head_type": (_TEXT, HEAD_TYPES, None, "whether heads see the token above their guess (default: sequential)"),
    "draft_vocab": (_WHOLE, None, "N", "heads score the N most frequent tokens, 0: all (default: at most 16384)"),
    "max_length": (_WHOLE, None, "N", "tokens a row (default: 8192)"),
    "batch_size": (_WHOLE, None, "N", "rows a micro-batch (default: 1)"),
    "gradient_accumulation_steps": (_WHOLE, None, "N", "micro-batches a step (default: 1)"),
    "max_steps": (_WHOLE, None, "N", "end after N steps"),
    "epochs": (_WHOLE, None, "N", "end after N passes over the data (default: 1)"),
    "learning_rate": (_NUMBER, None, "R", "peak (default: 0.005)"),
    "head_learning_rate": (_NUMBER, None, "R", "the heads' own peak under --what all"),
    "warmup_steps": (_WHOLE, None, "N", "default: 50"),
    "lr_schedule": (_TEXT, SCHEDULES, None, "after the warm-up (default: cosine)"),
    "weight_decay": (_NUMBER, None, "D", "default: 0.1"),
    "head_weight_decay": (_NUMBER, None, "D", "the heads' own"),
    "clip_norm": (_NUMBER, None, "G", "gradient clipping (default: 1)"),
    "distill_weight": (_NUMBER, None, "W", "share of the target's own distribution in the heads' loss (default: 0)"),
    "distill_temperature": (_NUMBER, None, "T", "default: 1"),
    "self_distill": (_WHOLE, None, "N", "learn from N texts that the target writes itself"),
    "self_distill_prompt": (_WHOLE, None, "N", "most tokens of their prompts (default: an eighth of a row)"),
    "keep_states": (None, None, None, "keep the backbone's hidden states for later epochs in a file"),
    "head_loss_weight": (_NUMBER, None, "W", "the heads' losses beside the backbone's (default: 1)"),
    "head_stride": (_WHOLE, None, "N", "heads learn from every Nth position (default: 1)"),
    "draft_cache_prob": (_NUMBER, None, "P", "share of steps over the draft cache (default: 0)"),
    "draft_cache": (_WHOLE, None, "N", "its slots (default: 4096)"),
    "draft_sinks": (_WHOLE, None, "N", "of them fixed at the start (default: 16)"),
    "skip_share": (_NUMBER, None, "P", "share of rows whose positions jump once (default: 0)"),
    "loss_chunk": (_WHOLE, None, "N", "positions whose logits exist at one time (default: 512)"),
    "remat": (_TEXT, REMAT, None, "activations that layers recompute or move to the host (default: none)"),
    "dtype": (_TEXT, None, None, "of the passes (default: bfloat16, float32 on CPU)"),
    "seed": (_WHOLE, None, "S", "default: 0"),
    "save_steps": (_WHOLE, None, "N", "steps between checkpoints (default: 100)"),
    "evaluate_steps": (_WHOLE, None, "N", "steps between evaluations, 0: none (default: one at the end)"),
    "evaluate_prompts": (_WHOLE, None, "N", "held-out prompts of an evaluation (default: 4)"),
    "evaluate_tokens": (_WHOLE, None, "N", "tokens the target writes after each (default: 128)"),
}


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Runs the command and returns its exit status: 0, 1 a loss that is not a number, 2 bad input, 130 interrupted,
    141 the reader of a pipe has left."""
    parser = trainer_parser(program)
    words = with_dashes(sys.argv[1:] if argv is None else argv, parser)
    return exit_status(
        lambda: _run(parser.parse_args(words)),
        flags=parser.flags,
        interrupted="interrupted; --resume continues from the last checkpoint",
    )


def _run(options: argparse.Namespace) -> int:
    given = {name: value for name in _FLAGS if (value := getattr(options, name)) is not None}
    settings = read_settings(options.config, given)
    parse_mesh(options.mesh, TRAINING_AXES)
    check_installed()
    # Without this flag, XLA for GPU may use operations that do not repeat bit for bit. XLA reads it when it starts.
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_gpu_deterministic_ops" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    quiet_transformers()
    from tokenswift_jax import checkpoint
    from tokenswift_jax.cli.phases import Phases
    from tokenswift_jax.cli.progress import ProgressLine
    from tokenswift_jax.model import DEMO_MODEL, use_compilation_cache
    from tokenswift_jax.training.trainer import Paths, TrainingStoppedError, default_cache, train

    use_compilation_cache()
    named = DEMO_MODEL if options.model is None else options.model
    with Phases(ProgressLine(sys.stderr, total=0), sys.stderr, enabled=True, alone=True) as phases:
        paths = Paths(
            model=checkpoint.resolve(named, phases),
            data=tuple(options.data),
            held_out=tuple(options.eval_data or ()),
            output=options.output,
            cache=options.data_cache or default_cache(),
            hub_id=checkpoint.named_on_hub(named),
        )
        chosen = {"resume": options.resume, "strict": options.strict, "mesh": options.mesh}
        try:
            written = train(paths, settings, **chosen, say=sys.stderr, report=phases)
        except TrainingStoppedError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    streams.show(written)
    return 0


def trainer_parser(program: str) -> Parser:
    """The parser of the command's flags; errors call the command `program`."""
    parser = Parser(
        prog=program,
        allow_abbrev=False,
        description="Train draft heads for a checkpoint on text. The output is a checkpoint directory that "
        "`generate --model` loads; its path goes to stdout, progress to stderr.",
        epilog="Exit status: 0; 1 the loss is not a number (earlier checkpoints remain valid); 2 bad input; "
        "130 interrupted, 141 the reader of a pipe has left (--resume continues).",
    )
    add = parser.add_argument_group("input and output").add_argument
    add("--model", type=name_of, metavar="DIR|HUB_ID", help="the target (default: the bundled demo)")
    add(
        "--data",
        type=name_of,
        nargs="+",
        required=True,
        metavar="PATH",
        help=".txt and .jsonl files, folders, patterns",
    )
    add(
        "--eval-data",
        type=name_of,
        nargs="+",
        metavar="PATH",
        help="held-out text (default: a hundredth of the documents)",
    )
    add("--strict", action="store_true", help="a broken line or file is an error")
    add("--output", type=path, required=True, metavar="DIR", help="checkpoint directory to write")
    add("--data-cache", type=path, metavar="DIR", help="folder of tokenised data")
    add("--resume", action="store_true", help="continue the run in --output (or begin it)")
    add(
        "--mesh",
        metavar="data=8|data=2,model=4|auto",
        help="devices that share rows and state, and those that share each matrix (default: 1)",
    )
    add("--config", type=path, metavar="FILE.json", help="settings; a flag overrides its field")
    add = parser.add_argument_group("settings").add_argument
    for name, (kind, choices, metavar, text) in _FLAGS.items():
        flag = "--" + name.replace("_", "-")
        if kind is None:
            add(flag, action="store_true", default=None, help=text)
        else:
            add(flag, type=kind, choices=choices, metavar=metavar, help=text)
    return parser
