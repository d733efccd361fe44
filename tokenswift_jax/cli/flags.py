"""The flags of `generate`, parsed and checked before the heavy imports."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields

from tokenswift_jax.cli.command import Parser, with_dashes
from tokenswift_jax.cli.converters import json_object, name, number, path, stop_text, whole, whole_list
from tokenswift_jax.errors import UserError
from tokenswift_jax.generation_config import MAX_NEW_TOKENS
from tokenswift_jax.modes import MODES, SCHEDULES, check_used
from tokenswift_jax.parallel.mesh_spec import parse_mesh, prompt_chunks
from tokenswift_jax.paths import check_writable, resolved
from tokenswift_jax.processes.cluster import find_cluster
from tokenswift_jax.speculation import DRAFT_WEIGHTS, SpeculationConfig

PROGRAM = "python -m tokenswift_jax.generate"
STUCK_SECONDS = 1800
"""Seconds without progress in several processes; the largest programs compile for several minutes."""
LEASE_SECONDS = 180
"""Seconds without a renewal after which a document's worker is taken for dead. NFS may show a date a minute late."""
SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p", "eta_cutoff", "repetition_penalty", "penalty_window"),
    *("min_tokens_to_keep", "suppress_tokens", "seed", "sequence"),
)
SPECULATION = tuple(field.name for field in fields(SpeculationConfig))


def parse(argv: Sequence[str], parser: Parser | None = None) -> argparse.Namespace:
    """The checked flags; `sampling` and `speculation` contain the fields that were given.

    Raises:
      UserError: an unknown, malformed, contradictory or ineffective flag, or a file that cannot be written.
    """
    parser = flag_parser() if parser is None else parser
    options = parser.parse_args(with_dashes(argv, parser))
    options.sampling = {name: value for name in SAMPLING if (value := getattr(options, name)) is not None}
    options.speculation = {name: value for name in SPECULATION if (value := getattr(options, name)) is not None}
    cluster = find_cluster(options.coordinator, options.num_processes, options.process_id)
    options.cluster = None if options.documents is not None else cluster  # documents: each process is a worker
    if options.cluster is not None and options.cluster.number:
        return options  # process 0 reads and writes the files
    if options.documents is not None:
        _check_documents(options, parser.flags)
    elif options.lease_seconds is not None or options.retry_failed:
        raise UserError("--lease-seconds and --retry-failed belong to --documents; leave them out or give a folder")
    _check(options, parser.flags)
    return options


def _check_documents(options: argparse.Namespace, flags: Mapping[str, str]) -> None:
    """Refuses flags for one text, and gives those for many their defaults."""
    names = "prompt", "prompt_file", "prompt_ids", "stats", "journal", "sequence", "coordinator", "stuck_seconds"
    given = [name for name in names if getattr(options, name) is not None]
    given += [name for name in ("resume", "show_acceptance", "mesh_report") if getattr(options, name)]
    if given:
        listed = ", ".join(flags[name] for name in given)
        raise UserError(f"--documents has a prompt, a journal and statistics for each document; leave out {listed}")
    if options.output is None:
        raise UserError("--documents needs a folder for the texts; name it with --output")
    if options.lease_seconds is None:
        options.lease_seconds = LEASE_SECONDS


def _check(options: argparse.Namespace, flags: Mapping[str, str]) -> None:
    def named(arguments: Sequence[str]) -> str:
        return ", ".join(flags[argument] for argument in arguments)

    prompts = [name for name in ("prompt", "prompt_file", "prompt_ids") if getattr(options, name) is not None]
    if len(prompts) > 1:
        raise UserError(f"{named(prompts)} contradict each other; give one of them")
    continues = options.resume and options.journal is not None and os.path.exists(options.journal)  # it has the prompt
    many = options.documents is not None
    if not prompts and options.model is not None and not continues and not many:
        raise UserError("a prompt is missing; give --prompt, --prompt-file or --prompt-ids")
    if options.chat and not many and prompts not in (["prompt"], ["prompt_file"], *([[]] if continues else [])):
        raise UserError("--chat needs a prompt of text; give --prompt or --prompt-file")
    prompt_chunks(parse_mesh(options.mesh), options.pipeline_depth)
    if options.resume and options.journal is None:
        raise UserError("--resume continues a journal; name it with --journal")
    least, most = options.min_new_tokens, options.max_new_tokens
    if least is not None and most is not None and least > most:
        raise UserError(f"--min-new-tokens {least} is above --max-new-tokens {most}; lower one")
    check_used(options.speculation, options.mode or "auto", options.schedule or "auto")
    if options.stuck_seconds is not None and options.cluster is None and (many or options.num_processes is None):
        raise UserError("--stuck-seconds needs several processes that write one text; leave it out, or start them")
    if options.logprobs is not None and options.stats is None and not many:
        raise UserError("--logprobs goes into the statistics; name a file with --stats FILE.json")
    if options.logprobs is None and options.logprobs_mode != "raw":
        raise UserError("--logprobs-mode has no use without --logprobs K; leave out one or give the other")
    written = [kind for kind in ("output", "stats", "journal") if getattr(options, kind) is not None and not many]
    files = [resolved(getattr(options, kind)) for kind in written]
    files = [place for place in files if str(place) != os.devnull]  # it takes all of them
    if len(set(files)) < len(files):
        raise UserError(f"{named(written)} name one file twice; give each its own")
    for kind in written:
        check_writable(getattr(options, kind), kind)
    read = [kind for kind in ("prompt_file", "prompt_ids") if getattr(options, kind) not in (None, "-")]
    for kind in read:
        if (source := resolved(getattr(options, kind))) in files and source.is_file():
            over = next(one for one in written if resolved(getattr(options, one)) == source)
            raise UserError(f"{named([over])} would replace the file of {named([kind])}; name another file")


def flag_parser(program: str = PROGRAM) -> Parser:
    """The parser of all flags; `program` is the command that a person types before them."""
    parser = Parser(
        prog=program,
        allow_abbrev=False,
        description="Generate text from a checkpoint: several tokens a pass, exactly the text that plain "
        "autoregressive decoding gives for the same seed. Text goes to stdout, progress to stderr.",
        epilog="Sampling: a flag, else the checkpoint's generation_config.json, else neutral. Exit status: 0; "
        "1 a failed audit or document; 2 bad input; 130 interrupted, 141 the reader of a pipe has left (text, journal "
        "and stats are kept).",
    )
    add = parser.add_argument_group("model and prompt").add_argument
    add("--model", type=name, metavar="DIR|FILE.gguf|HUB_ID", help="checkpoint, or smollm2 (default: the bundled demo)")
    add("--prompt", metavar="TEXT", help="default, with the bundled demo: a built-in opening")
    add("--prompt-file", type=name, metavar="FILE|-", help="UTF-8 text; - reads standard input")
    add("--prompt-ids", type=name, metavar="FILE.json|-", help="one list of token ids; - reads standard input")
    add(
        "--documents",
        type=path,
        metavar="DIR",
        help="a folder of prompts (.txt, .md, .jsonl); --output is the folder of their texts; any number of processes "
        "on a shared disk may run this command together",
    )
    add("--chat", action="store_true", help="put the prompt into the tokenizer's chat template")
    add("--dtype", help="float32, bfloat16, ... (default: the checkpoint's; float32 on CPU)")
    add("--rope-override", type=json_object, metavar="JSON", help="RoPE fields for longer text than the checkpoint's")
    add("--capacity", type=whole(1), metavar="N", help="cache positions to reserve (default: as many as needed)")
    add(
        "--mesh",
        metavar="data=2,model=4,context=2,stage=2|N|auto",
        help="devices: groups for rows, devices that share a model, that share a text's cache, and parts with other "
        "layers (default: 1)",
    )
    add(
        "--pipeline-depth",
        type=whole(1),
        metavar="N",
        help="chunks in which a prompt goes through the stages of a mesh, at least 2 a stage (default: 8 a stage)",
    )
    add("--mesh-report", action="store_true", help="print every array's split and bytes on each device, on stderr")

    add = parser.add_argument_group("several processes (default: the variables of JAX, SLURM, Open MPI)").add_argument
    add("--coordinator", type=name, metavar="HOST:PORT", help="where process 0 listens")
    add("--num-processes", type=whole(1), metavar="N", help="processes that share the mesh")
    add("--process-id", type=whole(0), metavar="I", help="this process's number, from 0; 0 reads and writes all files")
    add(
        "--stuck-seconds",
        type=whole(1),
        metavar="N",
        help=f"end with each thread's place after so long without progress (default: {STUCK_SECONDS})",
    )

    add = parser.add_argument_group("length and end").add_argument
    add("--max-new-tokens", type=whole(1), metavar="N", help=f"default: the checkpoint's, else {MAX_NEW_TOKENS}")
    add(
        "--min-new-tokens",
        type=whole(0),
        metavar="N",
        help="no EOS before N tokens (default: the checkpoint's, else 0)",
    )
    add("--ignore-eos", action="store_true", help="continue after an EOS")
    add(
        "--stop",
        type=stop_text,
        action="append",
        metavar="TEXT",
        help="end before this text; repeatable (default: the checkpoint's)",
    )
    add(
        "--stop-on-repetition",
        action="store_true",
        help="end once the text repeats itself: 3 copies of at most 128 tokens, 48 tokens or more",
    )

    add = parser.add_argument_group("sampling").add_argument
    add("--temperature", type=number, metavar="T", help="0 is greedy")
    add("--top-k", type=whole(0), metavar="K", help="the K likeliest tokens; 0 is off")
    add("--top-p", type=number, metavar="P", help="the likeliest tokens that make up P; 1 is off")
    add("--min-p", type=number, metavar="P", help="tokens at least P times as likely as the likeliest; 0 is off")
    add("--eta-cutoff", type=number, metavar="E", help="entropy-dependent cutoff; 0 is off")
    add("--repetition-penalty", type=number, metavar="THETA", help="for tokens in the window; 1 is off")
    add("--penalty-window", type=whole(1), metavar="W", help="newest positions that are penalised")
    add("--min-tokens-to-keep", type=whole(1), metavar="N", help="fewest tokens that a filter leaves")
    add("--suppress-tokens", type=whole_list("5,17"), metavar="IDS", help="never drawn, such as 5,17")
    add("--seed", type=whole(0), metavar="S", help="below 2**32 (default: 0)")
    add("--sequence", type=whole(0), metavar="N", help="which text of that seed (default: 0)")

    add = parser.add_argument_group("speculation (never changes the text)").add_argument
    add("--mode", choices=sorted(MODES), help="default: auto")
    add("--schedule", choices=SCHEDULES, help="of tokenswift: where its drafts come from")
    add(
        "--tree",
        type=whole_list("1,3,3,3"),
        metavar="1,3,3,3",
        help="candidates a depth (default: the checkpoint's node set)",
    )
    add(
        "--node-budget",
        type=whole(1),
        metavar="N",
        help="nodes verified an iteration, best first (default: all; 3 on a CPU unless --tree or --ngram-k is given)",
    )
    add("--ngram-k", type=whole(0), metavar="K", help="n-gram chains a key (default: 20)")
    add("--ngram-slots", type=whole(1), metavar="N", help="continuations kept a token (default: 32)")
    add("--draft-cache", type=whole(1), metavar="N", help="positions the draft forward sees (default: 4096)")
    add("--draft-sinks", type=whole(0), metavar="N", help="positions of them that stay at the start (default: 16)")
    add(
        "--draft-block",
        type=whole(1),
        metavar="N",
        help="blocks of N positions, none copied (default: single positions, copied)",
    )
    add("--refresh-interval", type=whole(1), metavar="N", help="tokens between selections (default: when used up)")
    add("--draft-cache-dtype", choices=("int8",), help="dtype of its keys and values (default: the full cache's)")
    add("--draft-weights", choices=DRAFT_WEIGHTS, help="bits of the weights that draft (default: the target's own)")
    add(
        "--no-shared-noise",
        dest="shared_noise",
        action="store_const",
        const=False,
        help="draft the likeliest tokens and ignore the target's noise: fewer are accepted; for comparison",
    )

    add = parser.add_argument_group("output").add_argument
    add("--output", type=path, metavar="FILE|DIR", help="write the text there too, as it is committed")
    add("--stats", type=path, metavar="FILE.json", help="write the statistics and token ids")
    add(
        "--logprobs", type=whole(0), metavar="K", help="log-probabilities of each token and the K likeliest, in --stats"
    )
    add(
        "--logprobs-mode",
        choices=("raw", "processed"),
        default="raw",
        help="the model's own, or those of the processed scores",
    )
    add("--journal", type=path, metavar="FILE", help="keep every emitted token on disk")
    add("--resume", action="store_true", help="continue the journal's run (or begin it)")
    add(
        "--lease-seconds",
        type=whole(1),
        metavar="N",
        help="with --documents: a process that shows no life for so long loses its document to another (default: "
        f"{LEASE_SECONDS})",
    )
    add("--retry-failed", action="store_true", help="with --documents: try documents again that have failed")
    add("--audit", action="store_true", help="replay the text through the target and compare every draw")
    add(
        "--show-acceptance",
        action="store_true",
        help="colour drafted text: green by heads, cyan by n-grams; in pipes too, never in --output",
    )
    add("--quiet", action="store_true", help="no progress and no closing report on stderr")
    return parser
