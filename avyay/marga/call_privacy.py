"""The personal data of one call: what its providers may see of the request, and its caller of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orjson import dumps

from avyay.errors import PolicyError
from avyay.marga.clearance import clear
from avyay.marga.compliance import PiiPolicy
from avyay.marga.masking import AnswerMasker, Masker
from avyay.marga.pii import PiiKind
from avyay.marga.restore import StreamRestorer
from avyay.marga.types import Dialect, Ranked
from avyay.marga.wire import Failure, load_body

__all__ = ["CallPrivacy"]


class CallPrivacy:
    """Made for calls that rules on personal data hold for.

    Attributes:
        permitted: The candidates that may see the request.
        restorer: What a stream goes through on its way to the caller; None for whole answers, and where nothing was
            masked and nothing may be.
    """

    __slots__ = ("_guard", "_masker", "_maskers", "permitted", "restorer")

    def __init__(self) -> None:
        self.permitted: tuple[Ranked, ...] = ()
        self.restorer: StreamRestorer | None = None
        self._maskers: Mapping[str, Masker] = {}
        self._masker: Masker | None = None  # of the provider that answered
        self._guard: AnswerMasker | None = None

    def clear(self, policy: PiiPolicy, body: dict[str, Any], ranked: Sequence[Ranked], key: str | None) -> str | None:
        """Leave out the providers that may not see this request, and note what to mask for the others.

        Returns:
            Why nobody is left, where nobody is.
        """
        found = clear(policy, body, ranked, key)
        self.permitted, self._maskers = found.ranked, found.maskers
        if found.ranked:
            return None
        return f"Personal data keeps this request from every provider: {'; '.join(found.reasons)}."

    def masks(self, provider: str) -> bool:
        """Whether personal data is masked for a provider."""
        return provider in self._maskers

    def mask(self, provider: str, body: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
        """The request as a provider that it is masked for may see it.

        Raises:
            PolicyError: it cannot be masked.
        """
        masked = self._maskers[provider].mask_body(body)
        try:
            return dumps(masked), masked
        except TypeError as error:  # nested deeper than can be written again
            raise PolicyError("The request is nested too deeply to be masked.", code="pii_refused") from error

    def answered(
        self,
        provider: str,
        body: dict[str, Any],
        rules: tuple[frozenset[PiiKind], frozenset[PiiKind]] | None,
        *,
        stream: Dialect | None,
    ) -> None:
        """A provider answers.

        Args:
            rules: What is masked in answers, and what no answer may hold.
            stream: The dialect of a stream; None: the answer is whole.
        """
        self._masker = self._maskers.get(provider)
        if rules is not None:
            self._guard = AnswerMasker(*rules, body)
        if stream is not None and (self._masker is not None or self._guard is not None):
            self.restorer = StreamRestorer(stream, self._masker, self._guard)

    def restore(self, shown: bytes) -> bytes:
        """A whole answer with what was masked put back, and what it must not say masked."""
        if self._masker is None and self._guard is None:
            return shown
        body = before = load_body(shown)
        if self._masker is not None:
            body = self._masker.unmask_body(body)
        if self._guard is not None:
            body = self._guard.mask_body(body)
        return shown if body is before else dumps(body)

    @property
    def blocked(self) -> Failure | None:
        """Why the answer, as far as it came, may not be shown."""
        if self._guard is None or self._guard.blocked is None:
            return None
        message = f"The answer held personal data that may not be shown ({self._guard.blocked}). See marga.pii.answers."
        return Failure("policy", message, code="pii_in_answer")
