"""The file that keeps what a server's monitors have seen."""

import json
import logging
from pathlib import Path

from ..monitoring.drift_monitor import without_waiting
from ..monitoring.state_digest import DamagedStateError, LaterStateError, StateError, check_content, with_digest
from ..system.aside import kept_aside
from ..system.atomic import write_text
from ..system.text import one_line
from .drift import CategoryMonitors

LOG = logging.getLogger("uvicorn.error")
FORMAT = 1


class SavedStates:
    """States of monitors by the keys of their models, in a file.

    A file that is damaged is kept aside, so that monitors begin anew and the server judges parts all the same.

    Args:
        path: of the file, which need not exist; None keeps them in memory.

    Raises:
        OSError: if the file can't be read.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self.of_models: dict[str, dict] = {}
        if path is not None:
            try:
                self.of_models = read_states(path)
            except StateError as error:
                self.begin_anew(str(error))
        self._written = dict(self.of_models)

    def begin_anew(self, damage: str, key: str | None = None) -> None:
        """Keeps the file aside as it is, and logs what is wrong with it.

        Args:
            damage: what is wrong.
            key: of the model whose state is damaged, which is forgotten; None where all are.
        """
        damaged = [key] if key is not None else list(self.of_models)
        self.of_models = {name: state for name, state in self.of_models.items() if name not in damaged}
        if self.path is None:
            LOG.error("the monitor begins anew: its state is %s", damage)
            return
        try:
            LOG.error("the monitor begins anew: %s: %s; it is kept as %s", self.path, damage, kept_aside(self.path))
        except OSError as error:  # what may be the only copy is not overwritten
            text = "the monitor begins anew, its state in memory alone: %s: %s; it can't be copied (%s)"
            LOG.error(text, self.path, damage, one_line(error))
            self.path = None

    def take(self, drift: CategoryMonitors) -> None:
        """Takes the state of the model that serves, in the thread that changes it.

        Those of other models keep no features that wait for a comparison, so that the file stays small.
        """
        for key, of_model in self.of_models.items():
            self.of_models[key] = {name: without_waiting(state) for name, state in of_model.items()}
        self.of_models[drift.key] = drift.state()

    def write(self) -> None:
        """Writes the file, whole or not at all, if a state is new; a full disk is logged."""
        path, states = self.path, dict(self.of_models)
        if path is None or states == self._written:
            return
        try:
            write_text(path, json.dumps(with_digest({"format": FORMAT, "models": states})) + "\n")
            self._written = states
        except OSError as error:
            LOG.error("the monitor's state could not be saved: %s", error)


def read_states(path: Path) -> dict[str, dict]:
    """States of each model's monitors by category; what is in them is for the monitors to check.

    Raises:
        StateError: if the file holds something else.
        OSError: if it can't be read.
    """
    if not path.exists():
        return {}
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["format"] > FORMAT:
            raise LaterStateError
        check_content(saved)
        states = [state for of_model in saved["models"].values() for state in of_model.values()]
        if not all(isinstance(state, dict) for state in states):
            raise DamagedStateError("not the state of a server")
    except StateError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedStateError(f"{type(error).__name__}: {one_line(error)}") from None
    return saved["models"]
