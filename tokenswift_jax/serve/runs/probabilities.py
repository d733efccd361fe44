"""The probabilities of one token of a run, computed when somebody asks."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from tokenswift_jax.audit.logprobs import replayed_logprobs
from tokenswift_jax.sample.logprobs import LogprobSpec
from tokenswift_jax.serve.openai.errors import ApiError, bad
from tokenswift_jax.serve.openai.token_texts import TokenTexts
from tokenswift_jax.serve.run import Run
from tokenswift_jax.serve.runs.download import SOURCES
from tokenswift_jax.serve.runs.endpoints import found
from tokenswift_jax.serve.service import Service
from tokenswift_jax.serve.sse import until_gone
from tokenswift_jax.token_log import LogprobLog, TokenLogprob

_RUNS = 4  # whose probabilities stay in memory
_TOP = 10
_BEYOND = 256  # tokens after the one asked for that are computed with it: the next question is likely about a neighbour
_FLOOR = -9999.0  # JSON has no minus infinity


class Probabilities:
    """Log-probabilities of the tokens of runs: one replay serves every token before the one that asked for it."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._known: OrderedDict[str, LogprobLog] = OrderedDict()
        self._lock = asyncio.Lock()  # the second of two questions about one run finds the answer of the first

    async def of(self, run: Run, at: int, top: int) -> TokenLogprob:
        """The entry of token `at`, with the `top` likeliest tokens there."""
        async with self._lock:
            known = self._known.get(run.id)
            if known is None or len(known.values) <= at:
                most = min(self._service.limits.logprobs, self._service.model.config.vocab_size)
                tokens, spec = run.tokens[: at + _BEYOND], LogprobSpec(most)
                known = await self._service.score(replayed_logprobs, self._service.model, run.request, tokens, spec)
                self._known[run.id] = known
            self._known.move_to_end(run.id)
            while len(self._known) > _RUNS:
                self._known.popitem(last=False)
        (entry,) = known.at(slice(at, at + 1)).of([run.tokens[at]])
        return TokenLogprob(entry.token_id, entry.logprob, entry.top[:top])

    def forget(self, run_id: str) -> None:
        """Drops all about a run."""
        self._known.pop(run_id, None)


async def token(request: HttpRequest) -> Response:
    """One token of a run: its text, its source, and with `top=K` the K likeliest tokens at its place."""
    service: Service = request.app.state.service
    stored, _ = await found(request)
    run, number = stored.run, str(request.path_params["at"])
    if not number.isdecimal() or len(number) > 9 or int(number) >= len(run.tokens):
        raise ApiError(404, f"the run has {len(run.tokens)} tokens, and no token {number[:20]!r}", code="no_token")
    asked = request.query_params.get("top", str(_TOP))
    if not asked.isdecimal() or len(asked) > 3 or int(asked) > service.limits.logprobs:
        raise bad(f"top is {asked[:20]!r}; it must be a whole number from 0 to {service.limits.logprobs}", "top")
    at, texts = int(number), TokenTexts(service.model.tokenizer)
    entry = await until_gone(request.receive, request.app.state.probabilities.of(run, at, int(asked)))

    def shown(token_id: int, logprob: float) -> dict[str, object]:
        return {"token_id": token_id, "text": texts.text(token_id), "logprob": max(logprob, _FLOOR)}

    return JSONResponse(
        {
            "object": "run.token",
            "index": at,
            **shown(entry.token_id, entry.logprob),
            "source": SOURCES[int(run.log.sources[at])],
            "top": [shown(*pair) for pair in entry.top if pair[1] > -math.inf],
        }
    )
