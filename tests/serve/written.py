"""A server of the page that knows one written run: no model, no compilation."""

import asyncio
import json
import threading
import time

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tokenswift_jax.serve import page_files
from tokenswift_jax.serve.security import Guard, Keys
from tokenswift_jax.serve.server import listening

RUN = f"run_{1:032x}"
CHUNK = 24  # tokens of an event


def description(tokens, **changes):
    """A run as `/v1/runs/ID` gives it."""
    return {
        "id": RUN,
        "object": "run",
        "created": 1_790_000_000,
        "name": "A written run",
        "state": "finished",
        "position": None,
        "wait_seconds": None,
        "prompt_tokens": 9,
        "tokens": tokens,
        "max_tokens": tokens,
        "tokens_per_second": 61.5,
        "finish_reason": "length",
        "error": None,
        "parent": None,
        "branched_at": None,
        "loops": [],
        "settings": {"temperature": 0.8, "seed": 7, "on_repetition": "pause"},
        **changes,
    }


def events_of(pieces, loops=(), size=CHUNK):
    """The events of a text whose tokens are `pieces`, in chunks of iterations of three tokens."""
    events, offset = [], 0
    for start in range(0, len(pieces), size):
        part = pieces[start : start + size]
        numbers = range(start, start + len(part))
        last = start + size >= len(pieces)
        events.append(
            {
                "tokens_before": start,
                "offset": offset,
                "token_ids": [hash(piece) % 50_000 for piece in part],
                "sources": [(0, 1, 2, 1)[number % 4] for number in numbers],
                "widths": [len(piece) for piece in part],
                "iterations": [[min(3, len(part) - at), 4] for at in range(0, len(part), 3)],
                "loops": [loop for loop in loops if start < loop["end"] <= start + len(part)],
                "segments": [],
                "text": "".join(part),
                "seconds": 0.4 + 0.1 * (start % 7),
                "state": "finished" if last else "running",
                "finish_reason": "length" if last else None,
                "error": None,
            }
        )
        offset += sum(map(len, part))
    return events


class Written:
    """The server.

    Attributes:
      events: of its run; `delay` seconds pass before each.
      run: the description of the run.
      asked: paths and bodies of the requests that changed something.
      joined: the number after which each reader of the events began.
    """

    def __init__(self, pieces=(), *, loops=(), delay=0.0, keys=(), **changes):
        self.events, self.delay = events_of(list(pieces), loops), delay
        self.run = description(len(pieces), loops=list(loops), **changes)
        self.asked, self.joined = [], []
        verbs = ("pause", "resume", "cancel", "branch", "continue")
        routes = [
            Route("/", page_files.index),
            Route("/page/{name}", page_files.asset),
            Route("/v1/models", self._models),
            Route("/v1/runs", self._list),
            Route("/v1/runs", self._take, methods=["POST"]),
            Route("/v1/runs/{id}", self._run),
            Route("/v1/runs/{id}/events", self._stream),
            Route("/v1/runs/{id}/tokens/{at:int}", self._token),
            Route("/v1/runs/{id}/command", self._command),
            Route("/v1/runs/{id}/text.{kind}", self._text),
            *[Route(f"/v1/runs/{{id}}/{verb}", self._take, methods=["POST"]) for verb in verbs],
        ]
        listener = listening("127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        app = Guard(Starlette(routes=routes), Keys(keys), ["127.0.0.1"])
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self):
        self._server.should_exit = True
        self._thread.join(10)

    async def _models(self, _):
        return JSONResponse({"object": "list", "data": [{"id": "a-model"}]})

    async def _list(self, _):
        return JSONResponse({"object": "list", "data": [self.run], "has_more": False})

    async def _run(self, _):
        return JSONResponse(self.run)

    async def _stream(self, request):
        after = int(request.headers.get("last-event-id", "-1"))
        self.joined.append(after)

        async def frames():
            for number, event in enumerate(self.events):
                if number > after:
                    await asyncio.sleep(self.delay)
                    yield f": ping\nid: {number}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n".encode()

        return StreamingResponse(frames(), media_type="text/event-stream")

    async def _token(self, request):
        top = [{"token_id": 5 + place, "text": f" t{place}<b>", "logprob": -0.2 - place} for place in range(10)]
        head = {"object": "run.token", "index": request.path_params["at"], "source": "head"}
        return JSONResponse({**head, **top[0], "top": top})

    async def _command(self, _):
        return JSONResponse({"command": "python -m tokenswift_jax.generate --seed 7", "note": None, "prompt": "It was"})

    async def _text(self, _):
        return Response("".join(event["text"] for event in self.events), media_type="text/plain")

    async def _take(self, request):
        self.asked.append((request.url.path.rsplit("/", 1)[1], await request.json()))
        return JSONResponse(self.run, 201)
