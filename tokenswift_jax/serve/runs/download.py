"""The text of a run as a file: plain, Markdown, or one JSON object per token."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from tokenswift_jax.audit.logprobs import replayed_logprobs
from tokenswift_jax.sample.logprobs import LogprobSpec
from tokenswift_jax.serve.openai.errors import bad
from tokenswift_jax.serve.openai.token_texts import TokenTexts
from tokenswift_jax.serve.run_store import StoredRun
from tokenswift_jax.serve.runs.endpoints import found
from tokenswift_jax.serve.runs.objects import run_object
from tokenswift_jax.serve.service import Service
from tokenswift_jax.token_log import TokenLogprob

_KINDS = {"txt": "text/plain", "md": "text/markdown", "jsonl": "application/jsonl"}
SOURCES = ("target", "head", "ngram")


async def download(request: HttpRequest) -> Response:
    """The text so far, as `txt` or `md`, or its tokens as `jsonl`: ids, sources, with `logprobs=K` probabilities."""
    service: Service = request.app.state.service
    stored, channel = await found(request)
    kind = request.path_params["kind"]
    if kind not in _KINDS:
        raise bad(f"there is no format {kind[:20]!r}; known: {', '.join(_KINDS)}", "kind")
    text = "".join(update.text for update in channel.updates)
    if kind == "jsonl":
        text = "".join(await _lines(request, stored, service))
    elif kind == "md":
        text = _front(stored) + text
    return Response(
        text.encode("utf-8"),
        media_type=f"{_KINDS[kind]}; charset=utf-8",
        headers={"content-disposition": f'attachment; filename="{stored.run.id}.{kind}"'},
    )


async def _lines(request: HttpRequest, stored: StoredRun, service: Service) -> Iterator[str]:
    run, top = stored.run, request.query_params.get("logprobs")
    token_ids, sources = list(run.tokens), run.log.sources.tolist()
    entries: list[TokenLogprob] | None = None
    if top is not None:
        most = service.limits.logprobs
        if not top.isdecimal() or len(top) > 3 or int(top) > most:
            raise bad(f"logprobs is {top[:20]!r}; it must be a whole number from 0 to {most}", "logprobs")
        if token_ids:
            spec = LogprobSpec(min(int(top), service.model.config.vocab_size))
            replayed = await service.score(replayed_logprobs, service.model, run.request, token_ids, spec)
            entries = replayed.of(token_ids)
    texts = TokenTexts(service.model.tokenizer)
    first = run_object(stored, service.scheduler) | {"prompt_ids": list(run.request.prompt_ids)}
    return _written(first, token_ids, sources, entries, texts)


def _written(
    first: dict[str, Any],
    token_ids: list[int],
    sources: list[int],
    entries: list[TokenLogprob] | None,
    texts: TokenTexts,
) -> Iterator[str]:
    yield json.dumps(first, ensure_ascii=False) + "\n"
    for number, (token, source) in enumerate(zip(token_ids, sources, strict=False)):
        line: dict[str, Any] = {"token_id": token, "text": texts.text(token), "source": SOURCES[source]}
        if entries is not None:
            line["logprob"] = max(entries[number].logprob, -9999.0)
            line["top"] = [list(pair) for pair in entries[number].top if pair[1] > -math.inf]
        yield json.dumps(line, ensure_ascii=False) + "\n"


def _front(stored: StoredRun) -> str:
    """A heading with the run's name; settings as a comment that no renderer shows."""
    name = " ".join((stored.details.get("name") or stored.run.id).split())
    sampling = stored.run.request.sampling
    return f"# {name}\n\n<!-- seed {sampling.seed}, sequence {sampling.sequence} -->\n\n"
