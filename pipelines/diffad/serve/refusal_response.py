"""A refusal as an answer of HTTP."""

from starlette.responses import JSONResponse

from .refusal import Refusal

RETRYABLE = frozenset({408, 429, 503})


def refusal_response(refusal: Refusal) -> JSONResponse:
    """JSON with `error` and `retryable`; where known, the header Retry-After."""
    headers = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    return JSONResponse({"error": refusal.error, "retryable": refusal.status in RETRYABLE}, refusal.status, headers)
