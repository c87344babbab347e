"""Images out of a request's body, within limits."""

import asyncio

from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..system.text import printable
from .messages import SentImage
from .refusal import Refusal
from .refusal_response import refusal_response


async def sent_images(request: Request, name: str, most: int, seconds: float) -> tuple[SentImage, ...]:
    """Images of a body: each file of a multipart form, or the whole body as one image.

    Args:
        name: of the one image.
        most: images that a form may hold.
        seconds: that the client may take.

    Raises:
        Refusal: 408 if the body takes longer; 413 if there are more images; 422 if there is none.
        HTTPException: 400 if a form is damaged.
    """
    try:
        images = await asyncio.wait_for(_read(request, name, most), seconds)
    except asyncio.TimeoutError:  # noqa: UP041 - in Python 3.10 it is not the built-in one
        raise Refusal(408, f"the body took more than {seconds:g} seconds; send it faster, or smaller images", 1) from None
    except ClientDisconnect:
        raise Refusal(400, "the connection was closed before the body was complete") from None
    if not images:
        raise Refusal(422, "no image in the request: send files of a multipart form, or an image as the body")
    for image in images:
        if not image.data:
            raise Refusal(422, f"{image.name}: empty file")
    return images


async def _read(request: Request, name: str, most: int) -> tuple[SentImage, ...]:
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        data = await request.body()
        return (SentImage(printable(name), data),) if data else ()
    async with request.form(max_files=10 * most) as form:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if len(files) > most:
            raise Refusal(413, f"{len(files)} images in one request; send at most {most}")
        return tuple([SentImage(printable(file.filename or name), await file.read()) for file in files])


class BodyLimit:
    """ASGI middleware that answers requests with larger bodies with 413, those that hide their size as soon as it shows.

    Args:
        app: to protect.
        most: bytes of a body.
    """

    def __init__(self, app: ASGIApp, most: int):
        self.app, self.most = app, most
        sentence = f"the body has more than {most / 1e6:g} MB; send fewer or smaller images, or start with --max-megabytes"
        self.refusal = Refusal(413, sentence)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal() and int(length) > self.most:
            return await refusal_response(self.refusal)(scope, receive, send)
        received = 0

        async def counting() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.most:
                raise HTTPException(413, self.refusal.error)  # which FastAPI passes on while it reads JSON
            return message

        return await self.app(scope, counting, send)
