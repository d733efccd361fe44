"""The first minutes on a machine with a GPU: plans of at most six minutes, stages in order of worth.

    python scripts/first_contact.py --plan wheels      # with a network: collects the packages that the machine lacks
    python scripts/first_contact.py --plan first       # there: kernels, bandwidth, plain and 16-row steps, a profile
    python scripts/first_contact.py --plan second      # there: forced texts, 64 rows, a 1.5B, partial, prefill
    python scripts/first_contact.py --plan third       # there: kernels again, joined maps, texts, the 1.5B
    python scripts/first_contact.py --plan fourth      # there: long texts, a 14B, transformers, tiles of attention
    python scripts/first_contact.py --plan fifth       # there: texts, steps with the present tiles, prefill, a 14B
    python scripts/first_contact.py --plan sixth       # there: programs of attention in steps
    python scripts/first_contact.py --plan seventh     # there: texts in mode auto, its widest plans
    python scripts/first_contact.py --plan report      # anywhere: predictions and goals

The machine needs jax with its GPU, numpy, transformers and the other imports of this project; no network, and no
installed project. The stages have the folder `wheels` on their path. Every stage is a process with a time limit of its
own: one that dies costs no other anything, and its rows stay. Run again, a plan goes on with the stages that are not
done. Figures and one archive (logs, XLA's thunks, autotuned choices, compiled programs) go to --output. Without an
accelerator the same stages run on tiny shapes and measure nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from contact import wheels
from contact.archive import unpack
from contact.plans import PLAN_SECONDS, PLANS
from contact.runner import run_plan

_ROOT = Path(__file__).resolve().parents[1]
_WORK = _ROOT / "build" / "first_contact"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", choices=[*PLANS, "report", "wheels"])
    parser.add_argument("--output", type=Path, default=_WORK / "results", help="folder of the figures")
    parser.add_argument("--wheels", type=Path, default=_ROOT / "wheels", help="folder of wheels to install")
    parser.add_argument("--work", type=Path, default=_WORK, help="folder that all plans use")
    parser.add_argument("--seconds", type=float, default=PLAN_SECONDS, help="of a plan")
    parser.add_argument("--limit", nargs="+", default=[], metavar="STAGE=SECONDS", help="instead of the plan's own")
    parser.add_argument("--archive-megabytes", type=float, default=15.0, help="at most")
    parser.add_argument("--again", action="store_true", help="also run the stages that were done before")
    parser.add_argument("--unpack", type=Path, metavar="ARCHIVE", help="go on from an earlier plan's archive")
    parser.add_argument("--results", type=Path, nargs="+", help="of --plan report: JSON of plans (default: --output's)")
    parser.add_argument("--table", type=Path, metavar="PAGE", help="of --plan report: also write the steps into a page")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if (arguments.plan is None) == (arguments.stage is None):
        parser.error(f"--plan is needed: {', '.join(PLANS)}, report or wheels")
    names = {stage.name for stage in PLANS.get(arguments.plan, ())}
    arguments.limits = {}
    for limit in arguments.limit:
        name, _, seconds = limit.partition("=")
        if name not in names or not seconds.replace(".", "", 1).isdigit():
            parser.error(f"--limit {limit}: it is STAGE=SECONDS, a stage one of {', '.join(sorted(names))}")
        arguments.limits[name] = float(seconds)
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Runs a plan, reports on plans, or collects wheels; 0 if all of it was done."""
    begun = time.monotonic()
    arguments = parse_arguments(argv)
    if arguments.stage is not None:
        from contact.stage import run_stage

        plan, _, name = arguments.stage.partition("/")
        return run_stage(plan, name, arguments.rows, arguments.work)
    if arguments.plan == "wheels":
        return wheels.download(arguments.wheels)
    if arguments.plan == "report":
        return _report(arguments)
    if arguments.unpack is not None:
        unpack(arguments.unpack, arguments.work)
    site = arguments.work / "site"
    notes = [f"no wheel of {name} in {arguments.wheels}" for name in wheels.missing(arguments.wheels)]
    notes += [f"wheel not installed: {error}" for error in wheels.install(arguments.wheels, site)]
    if len(notes) == len(wheels.WHEELS):
        notes = [f"no wheels in {arguments.wheels}: the stages use this machine's packages"]
    print("\n".join(notes), flush=True)
    return run_plan(arguments.plan, arguments, notes, begun)


def _report(arguments: argparse.Namespace) -> int:
    files = arguments.results or [path for plan in PLANS if (path := arguments.output / f"{plan}.json").exists()]
    if not files:
        print(f"error: {arguments.output} holds no plan's JSON; run --plan first, or name files with --results")
        return 1
    from contact.report import write_report

    arguments.output.mkdir(parents=True, exist_ok=True)
    print("\n".join(write_report(files, arguments.output / "report.json")))
    print(f"{arguments.output / 'report.json'}: all rows")
    if arguments.table is not None:
        from contact.report import as_table

        from tokenswift_jax.hardware.page import fill_file

        rows = json.loads((arguments.output / "report.json").read_text(encoding="utf-8"))
        fill_file(arguments.table, "contact", as_table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
