"""Paths of the HTTP application."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from .. import __version__
from .answers import Error, Exchanged, Feedback, Health, Monitored, NewModel, Predictions, Ready, Repairs, Stored
from .messages import Job
from .model_slot import ServedModel
from .refusal import Refusal
from .request_images import sent_images
from .service import Service

router = APIRouter()

IMAGES = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"images": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
REFUSALS = {
    401: "The token is missing or wrong.",
    408: "The body took too long.",
    413: "The body or the number of images is too large.",
    422: "An image is damaged, or an argument can't be used.",
    429: "Too many images are waiting.",
    500: "The model failed on an image.",
    501: "This server can't do that.",
    503: "No model is loaded at present.",
}
RESPONSES = {status: {"model": Error, "description": text} for status, text in REFUSALS.items()}
Category = Annotated[str | None, Query(description="Of all images, for a model of several; without it each is recognised.")]
Name = Annotated[str, Query(description="Of an image that is the whole body.", max_length=1000)]


def service_of(request: Request) -> Service:
    return request.app.state.service


def model_of(model: ServedModel) -> dict:
    return {"digest": model.worker.info.digest, "version": model.version}


@router.post("/predict", response_model=Predictions, responses=RESPONSES, openapi_extra=IMAGES)
async def predict(
    request: Request,
    category: Category = None,
    mask: Annotated[bool, Query(description="Add masks of the defective pixels.")] = False,
    overlay: Annotated[bool, Query(description="Add the images under their heat maps.")] = False,
    name: Name = "image",
) -> Response:
    """Judges images: files of a multipart form, or one image as the body. All of them are judged, or none."""
    service = service_of(request)
    with service.batcher.places() as places:
        images = await sent_images(request, name, service.settings.capacity, service.settings.body_seconds)
        places.take(len(images) - 1)
        rows, model = await service.judge(Job(images, category, mask, overlay))
    return JSONResponse({"model": model_of(model), "images": rows})


@router.post("/repair", response_model=Repairs, responses=RESPONSES, openapi_extra=IMAGES)
async def repair(request: Request, category: Category = None, name: Name = "image") -> Response:
    """Shows what parts should have looked like. Takes seconds for each image, for which other requests wait."""
    service = service_of(request)
    service.check_repairs()
    with service.batcher.places() as places:
        images = await sent_images(request, name, service.settings.capacity, service.settings.body_seconds)
        places.take(len(images) - 1)
        rows, model = await service.repair(Job(images, category, repair=True))
    return JSONResponse({"model": model_of(model), "images": rows})


@router.post("/feedback", status_code=201, responses=RESPONSES)
async def feedback(request: Request, said: Feedback) -> Stored:
    """Keeps that a verdict was wrong, or right. The answer comes once the entry is on the disk."""
    record = await service_of(request).take_feedback(**said.model_dump())
    return Stored(time=record.time)


@router.post("/model", responses=RESPONSES | {409: {"model": Error, "description": "The new model was refused."}})
async def model(request: Request, new: NewModel) -> Exchanged:
    """Loads another model beside the present one, compares both on recent images, and lets the new one serve.

    Only on a server with a token.
    """
    if not request.app.state.has_token:
        raise Refusal(403, "only a server with a token exchanges its model: start it with --token-file FILE")
    comparison, served = await service_of(request).exchange(new.path, new.force)
    return Exchanged(
        model=model_of(served),
        compared=comparison.compared,
        agreement=comparison.agreement,
        differing=comparison.differing,
    )


@router.get("/health")
async def health() -> Health:
    """The server lives."""
    return Health(status="ok", version=__version__)


@router.get("/monitor")
async def monitor(request: Request) -> Monitored:
    """Whether production still is as the model's calibration images were."""
    service = service_of(request)
    return Monitored(model=model_of(service.slot.model), categories=service.drift.summary())


@router.get("/ready", responses={503: RESPONSES[503]})
async def ready(request: Request) -> Ready:
    """A model is loaded; 503 while there is none."""
    service = service_of(request)
    if not service.slot.is_ready:
        raise Refusal(503, "no model is loaded at present; try again", 5)
    return Ready(model=model_of(service.slot.model))


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Counts and states for Prometheus."""
    service = service_of(request)
    service.show()
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)
