"""One small wrong change, and how it is made in a copy of the tree.

Knows nothing about which changes there are (`catalog/`) or how they are tried (`run.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """A change such as a developer makes by mistake.

    Attributes:
        what: what is wrong then, in a few words; names the mutant.
        file: path in the checkout.
        before: text that stands there exactly once.
        after: what is written in its place.
        tests: what must fail, as pytest takes it: files, or files and a test's name.
    """

    what: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]

    def text(self, root: Path) -> str:
        """The changed file's content.

        Raises:
            ValueError: the text to be changed is not there exactly once: the code has moved, and the mutant with it.
        """
        content = (root / self.file).read_text(encoding="utf-8")
        found = content.count(self.before)
        if found != 1 or self.before == self.after:
            raise ValueError(f"{self.what}: {self.before!r} stands {found} times in {self.file}, wanted is once")
        return content.replace(self.before, self.after)
