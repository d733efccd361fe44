"""The evaluation of draft heads before use: their accuracy, the expected tokens, and the nodes worth a tree row."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tokenswift_jax.checkpoint.directory import read_json
from tokenswift_jax.errors import UserError
from tokenswift_jax.model import Model
from tokenswift_jax.models.expected_tokens import ExpectedTokens
from tokenswift_jax.parallel.mesh import use
from tokenswift_jax.sampling import SamplingConfig, resolve_sampling
from tokenswift_jax.speculation import SpeculationConfig
from tokenswift_jax.training.accuracy import Accuracy, measure_accuracy
from tokenswift_jax.training.node_search import Path as Node
from tokenswift_jax.training.node_search import best_nodes, expected_tokens
from tokenswift_jax.training.prediction import Continuations, Prediction, Replay, write_continuations
from tokenswift_jax.training.ranks import candidates_within, measure_ranks

TEMPERATURES = (0.0, 1.0)
SCHEDULES = ("partial", "fused")
BUDGETS = (1, 3, 7, 15, 31, 63)


@dataclass(frozen=True)
class ScheduleOutlook:
    """The predictions for one schedule.

    Attributes:
      schedule: `partial` or `fused`.
      predictions: predictions for the tree in use (n-grams included), one a temperature.
      node_set: the nodes of the draft heads in the order in which a growing budget takes them, found from all
        temperatures together.
      by_budget: (nodes, tokens per iteration at each temperature) of the best sets, without n-grams; measured on the
        same continuations from which the search found the set, so slightly too high.
    """

    schedule: str
    predictions: tuple[Prediction, ...]
    node_set: tuple[Node, ...]
    by_budget: tuple[tuple[int, tuple[float, ...]], ...]


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of draft heads on held-out text.

    Attributes:
      accuracy: losses and hits of each head.
      temperatures: temperatures of the predictions.
      schedules: `partial` and `fused`.
      continuations: the target's own continuations, one entry a temperature; valid as long as the target's weights do
        not change.
    """

    accuracy: Accuracy
    temperatures: tuple[float, ...]
    schedules: tuple[ScheduleOutlook, ...]
    continuations: tuple[Continuations, ...] = field(repr=False)

    @property
    def found(self) -> dict[str, Any]:
        """`node_set` and `expected_tokens` as config.json's "tokenswift" block has them; None for what no text tells.

        Node sets are those of the schedules where a node has a chance of acceptance. The expected tokens are those of
        `fused`, the mean over the temperatures."""
        sets = {one.schedule: [list(path) for path in one.node_set] for one in self.schedules if one.node_set}
        fused = next(one for one in self.schedules if one.schedule == "fused")
        curve = [(nodes, float(np.mean(tokens))) for nodes, tokens in fused.by_budget if np.isfinite(tokens).all()]
        expected = ExpectedTokens(tuple(curve)).to_json() if curve and fused.node_set else None
        return {"node_set": sets or None, "expected_tokens": expected}

    def metrics(self) -> dict[str, float]:
        """Numbers under flat names for `MetricsWriter` and `curves`: eval/head_1/loss, .., eval/expected/fused_t1."""
        values = {"eval/base_loss": self.accuracy.base_loss}
        for number, head in enumerate(self.accuracy.heads, 1):
            values |= {f"eval/head_{number}/loss": head.model_loss, f"eval/head_{number}/text_loss": head.text_loss}
            for name, hits in (("model", head.model_top), ("text", head.text_top)):
                values |= {f"eval/head_{number}/{name}_top_{rank}": hit for rank, hit in enumerate(hits, 1)}
        for one in self.schedules:
            for temperature, prediction in zip(self.temperatures, one.predictions, strict=True):
                values[f"eval/expected/{one.schedule}_t{temperature:g}"] = prediction.expected_tokens
        return values

    def to_json(self) -> dict[str, Any]:
        """The evaluation without the continuations, as JSON stores it; null for a number that is not finite."""
        schedules = [
            {
                "schedule": one.schedule,
                "expected_tokens": [asdict(prediction) for prediction in one.predictions],
                "best_nodes": [{"nodes": nodes, "expected_tokens": values} for nodes, values in one.by_budget],
            }
            for one in self.schedules
        ]
        report = {"accuracy": asdict(self.accuracy), "temperatures": self.temperatures, "schedules": schedules}
        return _without_nan(report | self.found)

    def table(self) -> str:
        """The table for a person: one line a head, then one line for each schedule and temperature."""
        accuracy = self.accuracy
        lines = [
            f"held out, {accuracy.positions:,} positions; the model's own loss {accuracy.base_loss:.3f} nats a token",
            "        loss against      its guess is the model's choice      the text's token",
            "        text   model      best 1    of 2    of 3               best 1    of 2    of 3",
        ]
        for number, head in enumerate(accuracy.heads, 1):
            shares = ["  ".join(f"{hit:6.1%}" for hit in hits) for hits in (head.model_top, head.text_top)]
            losses = f"{head.text_loss:6.3f}  {head.model_loss:6.3f}"
            lines.append(f"head {number} {losses}      {shares[0]}               {shares[1]}")
        budgets = [nodes for nodes, _ in self.schedules[0].by_budget]
        lines += [
            "",
            "tokens per iteration, expected    tree in use    best set of nodes, by size, without n-grams",
            " " * 34 + " " * 15 + "".join(f"{nodes:7d}" for nodes in budgets),
        ]
        for one in self.schedules:
            for index, temperature in enumerate(self.temperatures):
                sets = "".join(f"{values[index]:7.2f}" for _, values in one.by_budget)
                here = f"{one.schedule}, temperature {temperature:g}"
                lines.append(f"{here:34}{one.predictions[index].expected_tokens:11.2f}    {sets}")
        return "\n".join(lines)


def evaluate(
    model: Model,
    windows: np.ndarray,
    speculation: SpeculationConfig | None = None,
    *,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
    prompts: int = 4,
    prompt_tokens: int = 256,
    continuation: int = 128,
    budgets: Sequence[int] = BUDGETS,
    continuations: Sequence[Continuations] | None = None,
) -> Evaluation:
    """Evaluates draft heads on held-out text, at temperatures 0 and 1.

    JAX compiles each program once for parameters of the same shapes, if the caller passes models that differ by
    `dataclasses.replace`.

    Args:
      model: a model with draft heads.
      windows: int32 [windows, length] of held-out text. The accuracies are over all windows; the target continues
        `prompts` of them, evenly chosen.
      speculation: tree, node budget and n-grams in use; this function sets mode and schedule. None: the defaults.
      sampling: sampling settings except the temperature; None: the checkpoint's generation_config with `seed`.
      seed: seed where `sampling` is None; ignored otherwise.
      prompts: how many windows the target continues, at most all of them.
      prompt_tokens: tokens at the start of a window that are its prompt.
      continuation: tokens that the target writes after each prompt, unless it ends the text before.
      budgets: sizes of node sets to predict.
      continuations: those of an earlier evaluation of the same target and windows; None writes them.

    Raises:
      UserError: no heads, too little text, or a text longer than the draft cache or the model's positions.
    """
    limit = model.config.max_position_embeddings
    if prompt_tokens + continuation > limit:
        raise UserError(
            f"prompt_tokens {prompt_tokens} and continuation {continuation} are more than the {limit} positions of the "
            "model; lower one",
            arguments=("prompt_tokens", "continuation"),
        )
    if not len(windows) or windows.shape[1] < prompt_tokens:
        longest = windows.shape[1] if len(windows) else 0
        raise UserError(f"held-out text of {prompt_tokens} tokens a prompt is needed, the longest has {longest}")
    with use(model.mesh):
        accuracy = measure_accuracy(model, windows)
        if sampling is None:
            sampling = resolve_sampling({"seed": seed}, model.generation_config)
        if continuations is None:
            chosen = np.linspace(0, len(windows) - 1, min(prompts, len(windows))).astype(int)
            texts = [windows[index, :prompt_tokens].tolist() for index in chosen]
            continuations = [
                write_continuations(model, texts, replace(sampling, temperature=temperature), continuation)
                for temperature in TEMPERATURES
            ]
        if max(len(tokens) for written in continuations for tokens in written.tokens) < 2:
            raise UserError("the model ends every text at once; give other prompts to predict anything from")
        replays = [Replay(model, written) for written in continuations]
        base = SpeculationConfig() if speculation is None else speculation
        outlooks = []
        for schedule in SCHEDULES:
            asked = base.with_mode("tokenswift", schedule)
            predictions = tuple(replay.predict(asked) for replay in replays)
            ranks = [measure_ranks(model, replay, schedule) for replay in replays]
            outlooks.append(_outlook(schedule, predictions, ranks, candidates_within(model.config), budgets))
        return Evaluation(accuracy, TEMPERATURES, tuple(outlooks), tuple(continuations))


def _outlook(
    schedule: str,
    predictions: tuple[Prediction, ...],
    ranks: Sequence[list[np.ndarray]],
    width: int,
    budgets: Sequence[int],
) -> ScheduleOutlook:
    texts = [text for replayed in ranks for text in replayed]
    depth = texts[0].shape[1]
    # Without this cut, roots near the end of a text, where the token of the deepest draft is unknown, count that draft
    # as wrong.
    roots = np.concatenate([text[: max(len(text) - depth + 1, 0)] for text in texts])
    nodes = tuple(path for path, _ in best_nodes(roots, width)) if len(roots) else ()
    by_budget = tuple(
        (budget, tuple(expected_tokens(replayed, nodes[:budget]) for replayed in ranks)) for budget in budgets
    )
    return ScheduleOutlook(schedule, predictions, nodes, by_budget)


def store(directory: Path, found: dict[str, Any]) -> None:
    """Writes `Evaluation.found` over what a checkpoint's config.json has, and changes nothing else there.

    Raises:
      UserError: config.json is missing, has no "tokenswift" block, or cannot be written.
    """
    place = directory / "config.json"
    config = read_json(place)
    if not isinstance(config.get("tokenswift"), dict):
        raise UserError(f'{place} has no "tokenswift" block to keep the figures in; convert the checkpoint first')
    config["tokenswift"] |= found
    draft = place.with_name("config.json.part")
    try:
        draft.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        os.replace(draft, place)
    except OSError as error:
        raise UserError(f"cannot write {place}: {error.strerror}") from error


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
