"""The monitor of an inspection without the inspection: parts are given by their scores."""

from diffad.watch.drift import DriftSettings, JournaledMonitor
from diffad.watch.journal import PartJournal
from diffad.watch.sources.part import PartKey
from stub_model import stub_features
from watch_stub import StubModel

DEFAULTS, STUB = DriftSettings(), StubModel()


class Line:
    """Judges parts of given scores as the inspection does, and can be killed after any."""

    def __init__(self, path, settings=DEFAULTS, pipe=STUB, category=None):
        self.journal, self.lines = PartJournal(path, "camera"), []
        self.drift = JournaledMonitor(self.journal, pipe, settings, category, report=self.lines.append)

    def judge(self, scores: list[float], label: str | None = None, images=None) -> list[str]:
        said = []
        for i, score in enumerate(scores):
            number, image = self.journal.next_number, images and images[i]
            features = image and stub_features(image)
            row = {"path": "x", "score": score, "label": label or ("defective" if score > 100 else "good")}
            said.append(self.drift.update(row, features, image))
            row |= {"number": number, "monitor": said[-1]}
            self.journal.append(PartKey(f"{number}", 1, number), row, features if self.drift.tests_embeddings else None)
            self.drift.keep(number)
            if self.drift.tests_embeddings:
                self.drift.monitor.test_embeddings()  # or waits for the thread that does
        self.drift.finish()
        return said

    def killed(self) -> None:
        self.journal._connection.close()
