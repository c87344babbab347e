"""The HTTP application around a service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import swagger_ui_bundle
from fastapi import FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, Response
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from .. import __version__
from .auth import BearerToken, OwnNames
from .metrics import MetricsMiddleware
from .refusal import Refusal
from .refusal_response import refusal_response
from .request_images import BodyLimit
from .routes import router
from .service import Service

DESCRIPTION = "Judges images of parts. Errors are JSON: `error`, a sentence, and `retryable`."


def build_app(service: Service, token: str | None = None) -> FastAPI:
    """The application; serving it begins and ends what the service does in the background.

    Args:
        service: opened.
        token: that requests must carry; None lets everybody in who reaches it, by a name of this machine.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.run()
        yield
        await service.close()

    documented = [] if token is None else [Security(HTTPBearer(auto_error=False, description="The server's token."))]
    app = FastAPI(
        title="diffad", version=__version__, description=DESCRIPTION, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.service, app.state.has_token = service, token is not None
    app.include_router(router, dependencies=documented)
    _add_docs(app)
    _add_errors(app)
    app.add_middleware(BodyLimit, most=service.settings.max_bytes)
    if token is None:
        app.add_middleware(OwnNames)
    else:
        app.add_middleware(BearerToken, token=token)
    app.add_middleware(MetricsMiddleware, metrics=service.metrics)  # the last one that is added is the first one to be asked
    return app


def _add_docs(app: FastAPI) -> None:
    """The OpenAPI page, with all that it needs: factories' networks seldom reach what it is usually loaded from."""
    app.mount("/docs/files", StaticFiles(directory=swagger_ui_bundle.swagger_ui_path), name="docs")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        files = "docs/files"  # relative: a reverse proxy may serve below another path
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title="diffad",
            swagger_js_url=f"{files}/swagger-ui-bundle.js",
            swagger_css_url=f"{files}/swagger-ui.css",
            swagger_favicon_url=f"{files}/favicon-32x32.png",
        )


def _add_errors(app: FastAPI) -> None:
    """One form for all errors."""

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> Response:
        return refusal_response(error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return refusal_response(Refusal(error.status_code, str(error.detail)))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        said = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        return refusal_response(Refusal(422, "; ".join(said)))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return refusal_response(Refusal(500, f"the server failed ({type(error).__name__}); its log says more"))
