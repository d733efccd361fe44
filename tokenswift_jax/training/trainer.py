"""A training run, from a checkpoint and some text to a checkpoint with draft heads."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import jax
import jax.numpy as jnp
import numpy as np

from tokenswift_jax import checkpoint
from tokenswift_jax.checkpoint.directory import read_config
from tokenswift_jax.checkpoint.fingerprints import fingerprint
from tokenswift_jax.checkpoint.tensors import HEADS_FILE
from tokenswift_jax.errors import UserError
from tokenswift_jax.models.hf_config import model_config
from tokenswift_jax.parallel.mesh import settled, spec_of
from tokenswift_jax.parallel.mesh_spec import MeshArgument
from tokenswift_jax.paths import cache_folder, resolved
from tokenswift_jax.progress_report import Report, phase, silent
from tokenswift_jax.training.checkpoints import Checkpoints, Place, has_whole, one_run
from tokenswift_jax.training.export import TRAINING_FILE, write_checkpoint
from tokenswift_jax.training.frequent_tokens import frequent_tokens
from tokenswift_jax.training.held_out import Examiner, held_out
from tokenswift_jax.training.kept_states import KeptStates
from tokenswift_jax.training.learner import Learner, load_learner
from tokenswift_jax.training.metrics import MetricsWriter
from tokenswift_jax.training.optimizer import learning_rate, make_optimizer
from tokenswift_jax.training.run_mesh import run_mesh
from tokenswift_jax.training.settings import DRAFT_VOCAB, TrainingSettings, differing
from tokenswift_jax.training.shards import Corpus, tokenise
from tokenswift_jax.training.shares import ONE_DEVICE, Shares
from tokenswift_jax.training.state_memory import state_bytes
from tokenswift_jax.training.step import StepReport, TrainState, make_step
from tokenswift_jax.training.windows import Batch, Packing, batches, pack

STATE_FOLDER, STEPS_FOLDER = "training", "steps"  # inside the output: checkpoints, metrics, curves; the checkpoints
METRICS_FILE, CURVES_FILE = "metrics.jsonl", "curves.png"
_SAY_SECONDS = 10.0


class TrainingStoppedError(ArithmeticError):
    """The loss or its gradient is not a number; earlier checkpoints remain valid."""


@dataclass(frozen=True)
class Paths:
    """The places where a run reads and writes.

    Attributes:
      model: checkpoint directory of the target.
      data, held_out: files, folders or patterns of text; if `held_out` is empty, the run holds out documents of `data`.
      output: the checkpoint directory to write.
      cache: folder for tokenised data.
      hub_id: hub id of the target, if it comes from the hub.
    """

    model: Path
    data: tuple[str, ...]
    held_out: tuple[str, ...]
    output: Path
    cache: Path
    hub_id: str | None = None


def default_cache() -> Path:
    """The default folder for tokenised data."""
    return cache_folder("data")


def train(
    paths: Paths,
    settings: TrainingSettings,
    *,
    resume: bool,
    strict: bool,
    say: TextIO,
    mesh: MeshArgument = None,
    report: Report = silent,
) -> Path:
    """Trains, writes the checkpoint directory `paths.output`, and returns it.

    With `resume`, a killed run continues from its newest checkpoint with the same steps that it would have taken: its
    losses and final weights equal those of an uninterrupted run (same kind of device, mesh and versions). On another
    mesh, sums across devices have another order, and the weights differ in their last bits.

    Args:
      paths, settings: files and choices of the run.
      resume: whether to continue the run in `paths.output`.
      strict: whether a broken line of the data is an error.
      say: the stream for progress.
      mesh: the devices, as for `load`: those along `data` share the rows of a batch, and parameters, gradients and
        optimizer state (`shares`); those along `model` share each matrix too. None: one device.
      report: receives the phases before the first step's line: loading, tokenising, compiling.

    Raises:
      UserError: an error in model, data, settings or mesh, a place that cannot be written, a resume with other
        settings, or an output in which another run works or that is another checkpoint.
      TrainingStoppedError: the loss is not a number.
    """
    devices, lines = run_mesh(mesh, settings)
    folder = paths.output / STATE_FOLDER
    _check_output(paths)
    with ExitStack() as stack:
        stack.enter_context(one_run(paths.output, folder))
        saved = Checkpoints(folder / STEPS_FOLDER)
        stack.callback(saved.close)
        if saved.latest() is not None and not resume:
            raise UserError(
                f"output {paths.output} holds a training run; continue it with resume=True, or name another folder",
                arguments=("output", "resume"),
            )
        for line in lines:
            print(line, file=say)
        tokenizer = checkpoint.load_tokenizer(paths.model)
        if tokenizer is None:
            raise UserError(f"{paths.model} has no tokenizer; training on text needs one")
        config = model_config(read_config(paths.model))
        shares = Shares(devices, (config.num_heads, config.num_kv_heads))
        with phase(report, "loading the model"):
            learner = load_learner(paths.model, settings, shares)
        if devices is not None:
            stored = jax.tree.leaves(learner.backbone)[0].dtype
            own, whole = (state_bytes(learner.config, settings, stored, each) for each in (shares, ONE_DEVICE))
            sizes = f"{own / 1e6:,.1f} MB on each device; one alone would need {whole / 1e6:,.1f} MB"
            print(f"mesh {spec_of(devices)}: parameters, gradients and optimizer state take {sizes}", file=say)
        with phase(report, "tokenising the data"):
            corpus = tokenise(paths.data, tokenizer, paths.cache, strict=strict, vocab_size=learner.config.vocab_size)
        print(f"data: {corpus.report()}", file=say)
        documents, examined = held_out(
            corpus, paths.held_out, tokenizer, paths.cache, strict, learner.config.vocab_size
        )
        if paths.held_out and examined is not None and examined.corpus.broken:
            print(f"held-out data: {examined.corpus.report()}", file=say)
        share = f"leaves {len(documents)} of {corpus.documents} documents to train on"
        if settings.self_distill:
            from tokenswift_jax.training.self_distill import written_by_target

            corpus = written_by_target(paths.model, corpus, documents, settings, paths.cache, say, shares)
            documents = range(corpus.documents)
        learner = _with_draft_vocab(learner, corpus, documents, settings, say)
        packing = pack(corpus, length=settings.max_length, min_tokens=settings.heads + 2, documents=documents)
        facts = _facts(paths.model, settings, corpus, shares) | {"eval_data": share}
        run = _Run(learner, settings, packing, facts, shares)
        if settings.keep_states:
            run.kept = stack.enter_context(KeptStates(folder, learner, packing, shares))
            print(f"hidden states: up to {run.kept.bytes / 1e6:,.0f} MB in {folder} during the run", file=say)
        if saved.latest() is not None:
            before = saved.facts()
            changed = differing(before, facts)
            if changed:
                raise UserError(f"{folder} was started with other settings: {'; '.join(changed)}; resume with its own")
            run.restore(saved)
            then, now = before.get("mesh", "1"), facts["mesh"]
            moved = "" if then == now else f" (mesh {then} then, {now} now: the last bits of the weights may differ)"
            print(f"resumed at step {int(run.state.step)}{moved}", file=say)
        metrics = MetricsWriter(
            folder / METRICS_FILE, folder / "tensorboard", resume_at=int(run.state.step) + 1 if resume else None
        )
        stack.enter_context(metrics)
        examiner = None
        if examined is not None and settings.evaluate_steps != 0:
            examiner = Examiner(paths.model, learner, examined, settings, say, shares)
        try:
            _steps(run, saved, metrics, examiner, say, report)
        finally:
            saved.finish()
        found = examiner.found if examiner is not None else {}
        write_checkpoint(paths, learner, run.state.params, settings, found, run.recorded_facts())
    from tokenswift_jax.training.curves import draw_curves

    draw_curves(folder / METRICS_FILE, folder / CURVES_FILE)
    return paths.output


def _check_output(paths: Paths) -> None:
    """Raises UserError for an output with files of a checkpoint that no saved step continues: the run would replace
    them."""
    files = ("config.json", HEADS_FILE, TRAINING_FILE)
    there = next((name for name in files if (paths.output / name).is_file()), None)
    continues = has_whole(paths.output / STATE_FOLDER / STEPS_FOLDER) and resolved(paths.output) != resolved(
        paths.model
    )
    if there is not None and not continues:
        raise UserError(
            f"output {paths.output} is a checkpoint already, whose {there} a run would replace; name a new folder",
            arguments=("output",),
        )


def _with_draft_vocab(
    learner: Learner, corpus: Corpus, documents: range, settings: TrainingSettings, say: TextIO
) -> Learner:
    """The learner over the draft vocabulary that `settings.draft_vocab` asks for."""
    size, vocab = settings.draft_vocab, learner.config.vocab_size
    if size is None:
        if learner.continues:
            return learner
        size = DRAFT_VOCAB
    if size == 0 or size >= vocab:
        return learner.over(None)
    drafted, share = frequent_tokens(corpus, documents, size, vocab)
    print(f"draft vocabulary: {size:,} of {vocab:,} tokens, which are {share:.2%} of the data", file=say)
    return learner.over(drafted)


class _Run:
    """The parameters of a run, its data and their order."""

    def __init__(
        self, learner: Learner, settings: TrainingSettings, packing: Packing, facts: dict[str, Any], shares: Shares
    ) -> None:
        self.learner, self.settings, self.packing, self.facts = learner, settings, packing, facts
        self.shares = shares
        rows = settings.batch_size * settings.gradient_accumulation_steps
        steps = settings.max_steps
        if steps is None:
            assert settings.epochs is not None
            steps = settings.epochs * packing.steps_per_epoch(rows)
        self.steps = steps
        self.data = batches(
            packing,
            batch_size=rows,
            seed=settings.seed,
            epochs=settings.epochs,
            skip_share=settings.skip_share,
            max_positions=learner.config.max_position_embeddings,
        )
        optimizer = make_optimizer(settings, max(steps, 1))
        params: dict[str, Any] = {"heads": learner.heads}
        self.frozen: Any = learner.backbone
        if settings.what == "all":
            params["backbone"], self.frozen = learner.backbone, None
        # Without `put`, the first state is uncommitted but a step returns a committed one, so JAX compiles the second
        # step again.
        params = shares.put(params)
        self.state = TrainState(shares.put(jnp.int32(0)), params, shares.make(optimizer.init, params))
        self.step = make_step(learner.graph, settings, optimizer, learner.dtype, shares, self.state)
        self.rates = {"learning_rate": learning_rate(settings, max(steps, 1), heads=settings.what == "heads")}
        if settings.what == "all" and settings.head_learning_rate is not None:
            self.rates["head_learning_rate"] = learning_rate(settings, max(steps, 1), heads=True)
        self.kept: KeptStates | None = None
        self.tokens, self.seconds = 0, 0.0  # of this process, without the first step (compilation)

    def restore(self, saved: Checkpoints) -> None:
        """Restores the parameters and the data iterator from the newest checkpoint."""
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self.state)
        # Without this, the first state and the restored one are in memory together.
        jax.tree.map(lambda x: x.delete(), self.state)
        self.state, place = saved.restore(like)
        self.data.set_state(place.data)

    def next_batch(self) -> Batch:
        """The next batch, each array int32 [accumulation, batch, length]. Where the devices cannot share a micro-batch
        evenly, rows of padding fill it, which no loss counts."""
        settings = self.settings
        shape = (settings.gradient_accumulation_steps, settings.batch_size, settings.max_length)
        widths = ((0, 0), (0, self.shares.rows(settings.batch_size) - settings.batch_size), (0, 0))
        return Batch(*(np.pad(np.ascontiguousarray(x).reshape(shape), widths) for x in next(self.data)))

    def place(self) -> Place:
        """The run's `Place` for a checkpoint."""
        return Place(dict(self.data.get_state()), self.facts)

    def recorded_facts(self) -> dict[str, Any]:
        """The description of the training that the checkpoint directory contains."""
        speed = round(self.tokens / self.seconds) if self.seconds else None
        where = {"device": jax.devices()[0].device_kind, "mesh": self.facts["mesh"]}
        return {"steps": self.steps, "settings": self.settings.to_json(), "tokens_per_second": speed} | where


def _steps(
    run: _Run, saved: Checkpoints, metrics: MetricsWriter, examiner: Examiner | None, say: TextIO, phases: Report
) -> None:
    """Runs all remaining steps; the host reads the report of each step while the next one runs."""
    settings, begun = run.settings, int(run.state.step)
    clock = printed = time.perf_counter()
    pending: tuple[int, StepReport, Batch] | None = None
    for number in range(begun + 1, run.steps + 1):
        batch = run.next_batch()
        states = None if run.kept is None else run.kept.of(batch)
        with phase(phases if number == begun + 1 else silent, "compiling the first step"):
            run.state, report = run.step(run.state, run.frozen, *run.shares.put_rows((batch, states)))
            settled(run.shares.mesh, report)
        if pending is not None:
            _read(run, metrics, *pending)
        pending = (number, report, batch)
        if number == begun + 1:
            jax.block_until_ready(report)
            clock = time.perf_counter()
        else:
            run.tokens += int(np.count_nonzero(batch.segments))
        last = number == run.steps
        due = bool(settings.evaluate_steps) and number % settings.evaluate_steps == 0
        if number % settings.save_steps == 0 or last or due:
            _read(run, metrics, *pending)  # save no state before its loss is known to be a number
            pending = None
            run.seconds += time.perf_counter() - clock
            loss = None
            if examiner is not None and (due or last):
                loss = examiner.examine(run.state.params, number, metrics)
            saved.save(run.state, run.place(), loss)
            clock = time.perf_counter()
        if time.perf_counter() - printed > _SAY_SECONDS or last:
            printed = time.perf_counter()
            print(_progress(run, number, report, printed - clock), file=say, flush=True)


def _read(run: _Run, metrics: MetricsWriter, number: int, report: StepReport, batch: Batch) -> None:
    values: dict[str, float] = {}
    if run.settings.what == "all":
        values["train/base_loss"] = float(report.base)
    for head, loss in enumerate(np.asarray(report.heads).tolist(), 1):
        values[f"train/head_{head}/loss"] = loss
    values["train/gradient_norm"] = float(report.gradient_norm)
    for name, rate in run.rates.items():
        values[f"train/{name}"] = float(np.asarray(rate(number - 1)))
    metrics.write(number, values)
    if not np.isfinite(list(values.values())).all():
        raise TrainingStoppedError(
            f"step {number}: the loss or its gradient is not a number; its batch begins "
            f"{_beginnings(batch)}; the earlier checkpoints are valid, a smaller learning rate or clip_norm may help"
        )


def _beginnings(batch: Batch) -> str:
    rows = batch.tokens.reshape(-1, batch.tokens.shape[-1])
    return ", ".join(str(row[:6].tolist()) for row in rows[:4]) + (" and more" if len(rows) > 4 else "")


def _progress(run: _Run, number: int, report: StepReport, since: float) -> str:
    losses = " ".join(f"{loss:.3f}" for loss in np.asarray(report.heads).tolist())
    base = f"backbone {float(report.base):.3f}, " if run.settings.what == "all" else ""
    seconds = run.seconds + since
    speed = f", {run.tokens / seconds:,.0f} tokens/s" if run.tokens and seconds > 0 else ""
    return f"step {number}/{run.steps}: {base}heads {losses}{speed}"


def _facts(model: Path, settings: TrainingSettings, corpus: Corpus, shares: Shares) -> dict[str, Any]:
    versions = {"jax_version": jax.__version__, "device_kind": jax.devices()[0].device_kind}
    data = {"model": fingerprint(model), "data": corpus.digest, "mesh": str(spec_of(shares.mesh))}
    return settings.to_json() | data | versions
