"""The model files inside the package, checked against their recorded sums before anything is made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from avyay.errors import CorruptError

__all__ = ["BUNDLED", "Bundle"]

BUNDLED = Path(__file__).parent / "model"


class Bundle:
    """A directory with model.json and the files it lists.

    Every file is hashed each time it is opened, 20 ms for all of them. A note of an earlier check would save that and
    miss the case that matters: an installation damaged after it once worked.
    """

    def __init__(self, directory: Path = BUNDLED) -> None:
        self.directory = directory
        self._card: Mapping[str, object] | None = None

    @property
    def card(self) -> Mapping[str, object]:
        """The contents of model.json: source, version, dimensions, files."""
        if self._card is None:
            try:
                card = json.loads((self.directory / "model.json").read_bytes())
            except (OSError, ValueError) as error:
                raise self._damaged("model.json", "cannot be read") from error
            if not isinstance(card, dict):
                raise self._damaged("model.json", "is no model description")
            self._card = card
        return self._card

    def open(self, name: str) -> Path:
        """The path of a file that is what it should be.

        Raises:
            CorruptError: it is missing, or its SHA-256 is not the recorded one.
        """
        path = self.directory / name
        files = self.card.get("files")
        entry = files.get(name) if isinstance(files, dict) else None
        if not isinstance(entry, dict):
            raise self._damaged(name, "is not listed in model.json")
        try:
            with path.open("rb") as file:
                actual = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise self._damaged(name, "cannot be read") from error
        if actual != entry.get("sha256"):
            raise self._damaged(name, "is damaged: its SHA-256 is not the recorded one")
        return path

    def _damaged(self, name: str, what: str) -> CorruptError:
        return CorruptError(
            f"The embedding model's file {self.directory / name} {what}.",
            hint="Reinstall: python -m pip install --force-reinstall --no-deps avyay",
        )
