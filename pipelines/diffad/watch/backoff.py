"""How long to wait before what has failed is tried again."""


class Backoff:
    """Waiting times that double with every failure in a row.

    Args:
        first, longest: seconds.
    """

    def __init__(self, first: float = 0.5, longest: float = 30.0):
        self.first, self.longest = first, longest
        self._next = first

    def next(self) -> float:
        """Seconds to wait after another failure."""
        now, self._next = self._next, min(2 * self._next, self.longest)
        return now

    def reset(self) -> None:
        """Begins anew, after a success."""
        self._next = self.first
