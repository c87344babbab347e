"""The project's documents: their text, and the commands and code blocks in them."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Step:
    """One thing that a reader does.

    Args:
        document: name of the document that says so.
        kind: `bash` or `python`.
        text: one command, or a whole block of Python.
    """

    document: str
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}: {self.text.partition(chr(10))[0]}"


@dataclass(frozen=True)
class Document:
    """One Markdown file, named by its path in the repository."""

    name: str

    @property
    def path(self) -> Path:
        return ROOT / self.name

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def blocks(self) -> list[tuple[str, str]]:
        """`(language, content)` of every fenced block; the language may be empty."""
        return re.findall(r"^```(\w*)\n(.*?)^```", self.text, re.DOTALL | re.MULTILINE)

    @cached_property
    def prose(self) -> str:
        """The text without its fenced blocks."""
        return re.sub(r"^```.*?^```", "", self.text, flags=re.DOTALL | re.MULTILINE)

    @property
    def steps(self) -> list[Step]:
        """Commands, those joined by && one by one, and blocks of Python, in their order."""
        steps = []
        for kind, block in self.blocks:
            if kind == "python":
                steps.append(Step(self.name, kind, block))
            elif kind == "bash":
                steps += [Step(self.name, kind, command) for command in re.split(r" && |\n", block.strip())]
        return steps

    @property
    def inline_commands(self) -> list[str]:
        """Commands of diffad with arguments in the prose."""
        return re.findall(r"`(diffad [^`]*)`", self.prose)


CARDS = tuple(Document(path.relative_to(ROOT).as_posix()) for path in sorted((ROOT / "model_cards").glob("*.md")))
README, GUIDE, TRAINING = (Document(name) for name in ("README.md", "pipelines/README.md", "training/README.md"))
# In the order in which they are read: later ones use what earlier ones have made.
DOCUMENTS = (README, GUIDE, TRAINING, *CARDS)
