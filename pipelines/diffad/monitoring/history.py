"""The course of evidence over any number of parts in bounded memory."""

from .saved_values import number, whole

MOST_POINTS = 1000


class History:
    """Points of a curve, evenly spaced over the parts: once there are too many, every second one is dropped.

    Args:
        stride: parts from one point to the next.
        points: number of parts, and values after them.
    """

    def __init__(self, stride: int = 1, points: list[tuple[float, ...]] | None = None):
        self.stride, self.points = stride, points or []

    def add(self, parts: int, *values: float) -> None:
        """Takes the values after so many parts, which count up one by one."""
        if parts % self.stride:
            return
        self.points.append((parts, *values))
        if len(self.points) > MOST_POINTS:
            self.stride *= 2
            self.points = [point for point in self.points if point[0] % self.stride == 0]

    def state(self) -> dict:
        """The history in values that JSON can hold."""
        return {"stride": self.stride, "points": [list(point) for point in self.points]}

    @classmethod
    def restored(cls, state: dict) -> "History":
        """The history that [`History.state`] gave.

        Raises:
            ValueError, TypeError, KeyError: if it is damaged.
        """
        points = [(whole(parts), *map(number, values)) for parts, *values in state["points"]]
        if whole(state["stride"]) < 1 or len({len(point) for point in points}) > 1:
            raise ValueError("the history is no curve")
        return cls(whole(state["stride"]), points)
