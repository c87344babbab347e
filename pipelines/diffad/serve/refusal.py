"""How a server says no: a status, one sentence, and whether the same request may succeed later."""

from starlette.responses import JSONResponse

RETRYABLE = frozenset({408, 429, 503})


class Refusal(Exception):
    """A request that is not served.

    Args:
        status: of HTTP.
        error: one sentence that names what is wrong, and the remedy.
        retry_after: seconds after which the same request is worth trying again; only of a status in `RETRYABLE`.
    """

    def __init__(self, status: int, error: str, retry_after: int | None = None):
        super().__init__(status, error, retry_after)  # what pickling, between the processes, takes
        self.status, self.error, self.retry_after = status, error, retry_after

    def __str__(self) -> str:
        return self.error


def refusal_response(status: int, error: str, retry_after: int | None = None) -> JSONResponse:
    """A refusal as JSON: `error`, and `retryable`."""
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return JSONResponse({"error": error, "retryable": status in RETRYABLE}, status, headers)
