"""Changes to the text before it is tokenized: small steps that compose, none by default."""

from abc import ABC, abstractmethod


class Preprocessing(ABC):
    """One step, from text to text; a frozen dataclass, whose fields say all that it depends on."""

    @abstractmethod
    def __call__(self, text: str) -> str:
        """Change a text."""
