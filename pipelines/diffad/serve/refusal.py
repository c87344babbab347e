"""How a server says no."""


class Refusal(Exception):
    """A request that is not served.

    Args:
        status: of HTTP; 408, 429 and 503 say that the same request may succeed later.
        error: one sentence that names what is wrong, and the remedy.
        retry_after: seconds after which to try again.
    """

    def __init__(self, status: int, error: str, retry_after: int | None = None):
        super().__init__(status, error, retry_after)  # what pickling, between the processes, takes
        self.status, self.error, self.retry_after = status, error, retry_after

    def __str__(self) -> str:
        return self.error
