"""Answer malformed gradio events, which no page of this program sends, with a sentence and a line of the log."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from locales import Translator

logger = logging.getLogger(__name__)


class RefusedEvent(Exception):
    """Report an event that no page of this program sends. key: the end of a sentence's key such as "page.door.word"."""

    def __init__(self, status: int, key: str):
        super().__init__(key)
        self.status, self.key = status, key


def answers_to_errors(t: Translator) -> dict[str, Any]:
    """Return FastAPI settings for a page's application: handlers that answer malformed events with a sentence and log them.

    Without them FastAPI's answer would repeat the whole body of a request that fails its validation.
    """

    async def refused(request: Request, error: RefusedEvent) -> Response:
        return said(request, error.status, t(f"page.door.{error.key}"))

    async def unreadable(request: Request, error: Exception) -> Response:
        return said(request, HTTPStatus.UNPROCESSABLE_ENTITY, t("problem.page_value"))

    def said(request: Request, status: int, sentence: str) -> Response:
        logger.warning("an event was refused: %s %s: %s", request.method, request.url.path[-100:], sentence)
        return JSONResponse({"detail": sentence, "error": sentence}, status)

    return {"exception_handlers": {RefusedEvent: refused, RequestValidationError: unreadable}}
