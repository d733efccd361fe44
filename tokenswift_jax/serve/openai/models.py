"""Small endpoints: the list of models, tokenisation, health."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tokenswift_jax.errors import UserError
from tokenswift_jax.prompt import encode, render_chat
from tokenswift_jax.serve.body import read_json
from tokenswift_jax.serve.openai import generation
from tokenswift_jax.serve.openai.errors import ApiError, bad
from tokenswift_jax.serve.openai.fields import Fields
from tokenswift_jax.serve.openai.known_fields import OF_TEMPLATES
from tokenswift_jax.serve.openai.messages import read_messages
from tokenswift_jax.serve.openai.token_texts import TokenTexts
from tokenswift_jax.serve.service import Service


def _model(service: Service) -> dict[str, Any]:
    longest = service.max_length
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "tokenswift_jax",
        "max_model_len": longest,  # vLLM's name
        "meta": {"n_ctx_train": service.model.config.max_position_embeddings, "n_ctx": longest},  # llama.cpp's
    }


async def models(request: Request) -> Response:
    """The one model of this server."""
    return JSONResponse({"object": "list", "data": [_model(request.app.state.service)]})


async def model(request: Request) -> Response:
    """The model of a name."""
    service: Service = request.app.state.service
    if request.path_params["name"] != service.name:
        raise ApiError(404, f"this server has {service.name} alone", "model", "model_not_found")
    return JSONResponse(_model(service))


async def health(request: Request) -> Response:
    """Whether the process works; it does not say whether it is ready."""
    service: Service = request.app.state.service
    return JSONResponse(
        {"status": "ok"} if service.scheduler.error is None else {"status": "the engine has stopped"},
        200 if service.scheduler.error is None else 500,
    )


async def ready(request: Request) -> Response:
    """Whether requests are admitted: weights loaded, programs compiled, not going down."""
    green = request.app.state.service.ready
    return JSONResponse({"ready": green}, 200 if green else 503, None if green else {"retry-after": "5"})


async def metrics(request: Request) -> Response:
    """Metrics for Prometheus."""
    text = request.app.state.service.metrics.text
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def tokenize(request: Request) -> Response:
    """The token ids of text (`prompt`, or `content`) or of a conversation (`messages`)."""
    service: Service = request.app.state.service
    fields = Fields(await read_json(request, service.limits))
    generation.check_model(fields, service)
    text = fields.text("prompt")
    text = fields.text("content") if text is None else text
    special = fields.flag("add_special_tokens", fields.flag("add_special", True))
    next_turn = fields.flag("add_generation_prompt", True)
    strings = fields.flag("return_token_strs", fields.flag("with_pieces"))
    fields.refuse({**OF_TEMPLATES, "truncate_prompt_tokens": ()})
    tokenizer = _tokenizer(service)
    if text is None:
        if fields.get("messages") is None:
            raise bad("prompt is missing; give text, or a conversation as messages", "prompt")
        turns = read_messages(fields.get("messages"))
        generation.check_prompt_bytes("".join(turn["content"] for turn in turns), service, "messages")
        try:
            text, special = render_chat(turns, tokenizer, next_turn=next_turn), False
        except UserError as error:
            raise bad(str(error), "messages") from None
    generation.check_prompt_bytes(text, service, "prompt")
    ids = await service.work(lambda: tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
    answer = {"tokens": ids, "count": len(ids), "max_model_len": service.max_length}
    if strings:
        texts = TokenTexts(tokenizer)
        answer["token_strs"] = [texts.text(token) for token in ids]
    return JSONResponse(answer, headers=fields.notice)


async def detokenize(request: Request) -> Response:
    """The text of token ids."""
    service: Service = request.app.state.service
    fields = Fields(await read_json(request, service.limits))
    generation.check_model(fields, service)
    value, tokenizer = fields.get("tokens"), _tokenizer(service)
    if value is None:
        raise bad("tokens is missing; give a list of token ids", "tokens")
    if not isinstance(value, list):
        raise bad("tokens must be a list of token ids", "tokens")
    try:
        ids = encode(value, None, service.model.config.vocab_size, name="list of tokens") if value else []
    except UserError as error:
        raise bad(str(error), "tokens") from None
    text = await service.work(lambda: tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    return JSONResponse({"prompt": text, "content": text}, headers=fields.notice)


async def tokenizer_info(request: Request) -> Response:
    """The special tokens and the chat template, as lm-evaluation-harness reads them."""
    tokenizer = _tokenizer(request.app.state.service)
    names = ("bos_token", "eos_token", "pad_token", "unk_token", "chat_template")
    return JSONResponse({name: getattr(tokenizer, name, None) for name in names})


def _tokenizer(service: Service) -> Any:
    if service.model.tokenizer is None:
        raise bad("this checkpoint has no tokenizer; it reads and writes token ids")
    return service.model.tokenizer
