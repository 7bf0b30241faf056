"""The service behind `avyay ask`, `avyay rag`, the daemon and MCP: search, ask, index, keep house.

with open_services() as services:
    services.rag.index("docs/runbooks")
    print(services.rag.ask("why is etcd slow?").text)
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.errors import AuthError, AvyayError, PolicyError, UnreachableError, UsageError
from avyay.ports import Completer, Completion, CompletionReply, Embedder, Passage, Tier
from avyay.rag.answer import (
    Answer,
    Turn,
    build_messages,
    check_answer,
    follow_up_query,
    says_not_found,
)
from avyay.rag.answerability import Answerability
from avyay.rag.interactions import Interactions, Verdicts
from avyay.rag.passages import Expansion, JoinedPassage, expand, gather, lay_out, without_repeats
from avyay.rag.searcher import Mode, Ranking, Searcher, SearchResult
from avyay.rag.shadow import Shadow, ShadowReport, compare_results, summarise

if TYPE_CHECKING:
    from avyay.ports import Progress
    from avyay.rag.catalog import SourceRow, State
    from avyay.rag.drift import Drift
    from avyay.rag.evaluate import EvalQuery
    from avyay.rag.index import Indexer
    from avyay.rag.places import IndexPlaces
    from avyay.rag.plan import SyncReport
    from avyay.rag.reconcile import ReconcileReport
    from avyay.rag.stores.base import VectorStore

__all__ = ["AskOptions", "Prepared", "RagService", "Retrieved"]

OVERSEARCH = 10  # chunks ranked for each passage wanted: neighbours are joined
MOST_RANKED = 2_000
NO_MODEL = "No model is configured: these are the best passages, not an answer."


@dataclass(frozen=True, slots=True)
class AskOptions:
    """How to answer. `model` and `tier` are passed on to the router; `extractive` asks for passages even with one."""

    limit: int | None = None
    session: str | None = None
    sources: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    model: str = "auto"
    tier: Tier | None = None
    extractive: bool = False
    expand: Expansion = "none"


@dataclass(frozen=True, slots=True)
class Retrieved:
    """Passages for a query, best first, and the search they come from."""

    result: SearchResult
    passages: tuple[JoinedPassage, ...]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A question with its passages, before any model has been asked."""

    answer: Answer
    request: Completion | None  # None: there is nothing to ask a model, `answer` is final
    chunks: tuple[str, ...]
    confidence: float


class RagService:
    """Everything rag offers.

    Args:
        places: Where the index lives.
        embedder: Embeds queries and documents.
        open_store: Opens the vector store; called only when something is written.
        completer: What answers in words, or None; asked for when a question is answered.
        ranking: How results are ranked.
        shadow: Another configuration to try on some questions, out of sight.
    """

    def __init__(
        self,
        places: IndexPlaces,
        embedder: Embedder,
        *,
        open_store: Callable[[], VectorStore],
        completer: Callable[[], Completer | None] = lambda: None,
        passages: int = 5,
        include: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
        ranking: Ranking | None = None,
        shadow: Shadow | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.places = places
        self.embedder = embedder
        self.clock = clock
        self._open_store = open_store
        self._completer = completer
        self._passages = passages
        self._include, self._exclude = include, exclude
        self._shadow = shadow
        self._not_renewed: str | None = None
        self._searcher = Searcher(places.database, places.generations, embedder, ranking=ranking, clock=clock)
        self.interactions = Interactions(places.root / "interactions.db", clock=clock)

    def close(self) -> None:
        """Let go of the files."""
        self._searcher.close()
        self.interactions.close()

    # ------------------------------------------------------------ reading

    def retrieve(
        self,
        query: str,
        *,
        limit: int = 10,
        mode: Mode | None = None,
        sources: Sequence[str] = (),
        paths: Sequence[str] = (),
        without: Collection[str] = (),
        ranking: Ranking | None = None,
    ) -> SearchResult:
        """The chunks that answer `query`, with scores and signals; see `Searcher.search`.

        An index whose terms another version of avyay made is brought up to date first.
        """
        notes = self._renewed() if query.strip() else ()
        result = self._searcher.search(
            query, limit=limit, mode=mode, sources=sources, paths=paths, without=without, ranking=ranking
        )
        return replace(result, notes=(*notes, *result.notes)) if notes else result

    def _renewed(self) -> tuple[str, ...]:
        """What to say of an index of another version: made again, or why not."""
        if not self._searcher.outdated():
            return ()
        if self._not_renewed is None:
            try:
                if self.indexer(lock_wait=0.0).renew():
                    return ("The index was of another version of avyay and has been made again.",)
                self._not_renewed = ""  # of another embedder: the search says what to do
            except UnreachableError as error:  # somebody else is at it; the next question may find it done
                return (_outdated(error),)
            except AvyayError as error:
                self._not_renewed = _outdated(error)
        return (self._not_renewed,) if self._not_renewed else ()

    def find(
        self,
        query: str,
        *,
        limit: int = 5,
        mode: Mode | None = None,
        sources: Sequence[str] = (),
        paths: Sequence[str] = (),
        expand: Expansion = "none",
        across: bool = True,
        ranking: Ranking | None = None,
    ) -> Retrieved:
        """The best passages for `query`: what stands side by side in one document is joined.

        Args:
            across: Join neighbouring sections too, not only the parts of one.
            expand: `section` shows the whole section of each, `parents` also what stands above it; see `passages`.
        """
        wanted = max(limit, min(limit * OVERSEARCH, MOST_RANKED))
        result = self.retrieve(query, limit=wanted, mode=mode, sources=sources, paths=paths, ranking=ranking)
        return Retrieved(result, self._passages_of(result, limit, expand, across=across))

    def search(self, query: str, *, limit: int = 5) -> Sequence[Passage]:
        """The port `Retriever`: the best passages."""
        return [one.passage for one in self.find(query, limit=limit, across=False).passages]

    def batch(
        self, queries: Sequence[tuple[str, str]], *, limit: int = 10, mode: Mode | None = None
    ) -> Iterator[dict[str, Any]]:
        """Answer (qid, query) pairs in the form retrieval scorers read."""
        for qid, query in queries:
            yield {
                "qid": qid,
                "results": [
                    {
                        "path": one.passage.path,
                        "heading": one.passage.heading,
                        "headings": list(one.headings),
                        "lines": [one.passage.first_line, one.passage.last_line],
                        "commit": one.passage.commit,
                        "source": one.passage.source,
                        "score": round(one.passage.score, 6),
                    }
                    for one in self.find(query, limit=limit, mode=mode).passages
                ],
            }

    def answerability(self, queries: Sequence[EvalQuery]) -> Answerability:
        """Whether "not in the runbooks" is said when it should be: queries as they are, and without their documents."""
        judged: list[tuple[bool, bool, float]] = []
        for query in queries:
            for present in (True, False):
                result = self.retrieve(query.text, without=() if present else query.documents)
                judged.append((present, result.confidence.relevant, result.confidence.value))
        return Answerability.of(judged)

    def state(self) -> State:
        """Which generation is visible, and how much is in it."""
        return self._searcher.state()

    def sources(self) -> list[SourceRow]:
        """What is indexed."""
        return self._searcher.sources()

    def documents(self, source: str) -> list[str]:
        """The paths of a source's documents."""
        return self._searcher.documents(source)

    def document(self, source: str, path: str) -> str:
        """The text of a document as indexed."""
        return self._searcher.document(source, path)

    # ------------------------------------------------------------ asking

    def ask(self, question: str, options: AskOptions | None = None) -> Answer:
        """Answer a question; `answer_stream` shows it as it is written.

        Raises:
            UsageError: nothing is indexed, or the question is empty.
        """
        prepared = self.prepare(question, options)
        if prepared.request is None:
            return self.finish(prepared)
        import asyncio

        return asyncio.run(self.complete(prepared))

    async def complete(self, prepared: Prepared) -> Answer:
        """The finished answer, without showing it as it is written."""
        answer: Answer | None = None
        async for piece in self.answer_stream(prepared):
            if isinstance(piece, Answer):
                answer = piece
        assert answer is not None  # the stream ends with it
        return answer

    def prepare(self, question: str, options: AskOptions | None = None) -> Prepared:
        """Search, and decide whether a model can be asked. Touches no network."""
        chosen = options or AskOptions()
        limit = chosen.limit or self._passages
        history = self.interactions.history(chosen.session) if chosen.session else []
        query = follow_up_query(question, history) if question.strip() else question
        search = partial(self.retrieve, limit=limit * OVERSEARCH, sources=chosen.sources, paths=chosen.paths)
        result = search(query)
        relevant = result.confidence.relevant
        if query != question and not relevant:
            # Its few own words dilute it; what it leans on says what it is about.
            relevant = search(history[-1].question).confidence.relevant
        joined = self._passages_of(result, limit, chosen.expand, across=False)
        confidence = result.confidence.value
        passages = tuple(one.passage for one in joined)
        relevant = relevant and bool(passages)
        answer = Answer(
            id=secrets.token_hex(6),
            question=question,
            mode="extractive" if relevant else "none",
            text="",
            passages=passages,
            cited=tuple(range(1, len(passages) + 1)) if relevant else (),
            notes=result.notes,
            generation=result.generation,
            session=chosen.session,
        )
        chunks = tuple(identity for one in joined for identity in one.chunk_ids)
        if self._shadow is not None and self._shadow.wanted():
            other = search(query, ranking=self._shadow.ranking)
            self.interactions.add_shadow(answer.id, compare_results(result, other, limit))
        completer = None if chosen.extractive or not relevant else self._completer()
        if completer is None or not completer.available():
            return Prepared(answer, None, chunks, confidence)
        request = Completion(
            messages=build_messages(question, passages, mark=f"q{secrets.token_hex(8)}", history=history),
            model=chosen.model,
            tier=chosen.tier,
            request_class="ask",
            temperature=0.0,
            service="rag",
            session=chosen.session,
        )
        return Prepared(answer, request, chunks, confidence)

    async def answer_stream(self, prepared: Prepared) -> AsyncIterator[str | Answer]:
        """The model's words as they arrive, then the finished `Answer`.

        When no model answers, or the router refuses, the passages are the answer and a note says why.
        """
        completer = self._completer()
        if prepared.request is None or completer is None:
            yield self.finish(prepared)
            return
        parts: list[str] = []
        reply: CompletionReply | None = None
        try:
            async for delta in completer.stream(prepared.request):
                if delta.text:
                    parts.append(delta.text)
                    yield delta.text
                reply = delta.reply or reply
        except (AuthError, PolicyError, UnreachableError) as error:
            note = f"No model answered ({error.message.rstrip('.')}): these are the best passages, not an answer."
            if parts:
                note = f"The model stopped in the middle of its answer ({error.message.rstrip('.')})."
            yield self.finish(prepared, note=note)
            return
        yield self.finish(prepared, text="".join(parts) or (reply.text if reply else ""), reply=reply)

    def finish(
        self, prepared: Prepared, *, text: str = "", reply: CompletionReply | None = None, note: str | None = None
    ) -> Answer:
        """The answer made of a model's words, checked against the passages, and remembered."""
        answer = prepared.answer
        if not text.strip():
            why = note or (NO_MODEL if answer.mode == "extractive" and prepared.request is None else None)
            answer = replace(answer, notes=(*answer.notes, *((why,) if why else ())))
        elif says_not_found(text):
            answer = replace(answer, mode="none", text="", cited=(), reply=reply)
        else:
            cited, notes = check_answer(text, answer.passages)
            answer = replace(
                answer, mode="generated", text=text.strip(), cited=cited, notes=(*answer.notes, *notes), reply=reply
            )
        self.interactions.add_answer(
            answer.id,
            mode=answer.mode,
            chunks=prepared.chunks,
            confidence=prepared.confidence,
            generation=answer.generation,
        )
        if answer.session:
            said = answer.text or "\n".join(passage.citation for passage in answer.passages if answer.found)
            self.interactions.add_turn(answer.session, Turn(answer.question, said))
        return answer

    def _passages_of(
        self, result: SearchResult, limit: int, how: Expansion, *, across: bool
    ) -> tuple[JoinedPassage, ...]:
        if how == "none":
            return tuple(gather(result.found, limit, across=across))
        expanded = []  # of more than are wanted: a whole section may be found by several of its parts
        for one in gather(result.found, limit * 3, across=across):
            sections, chunks = self._searcher.outline(one.best.row.document.id)
            expanded.append(expand(one, how, sections, lay_out(chunks)))
        return tuple(without_repeats(expanded, limit))

    # ------------------------------------------------------------ feedback

    def feedback(self, answer_id: str, verdict: Literal["up", "down"], comment: str = "") -> None:
        """Record what somebody thought of an answer."""
        if verdict not in ("up", "down"):
            raise UsageError(f"A verdict is up or down, not {verdict!r}.")
        self.interactions.add_verdict(answer_id, verdict, comment)

    def verdicts(self) -> Verdicts:
        """How answers were received."""
        return self.interactions.verdicts()

    def shadow(self) -> ShadowReport:
        """How the shadow configuration's results differ from those that were shown."""
        return summarise(self.interactions.shadows())

    def drift(self) -> Drift:
        """Whether answers have become worse of late."""
        from avyay.rag.drift import detect_drift

        return detect_drift(self.interactions.observations())

    # ------------------------------------------------------------ writing

    def index(
        self,
        location: str,
        *,
        name: str | None = None,
        branch: str | None = None,
        include: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
        worktree: bool = False,
        rebuild: bool = False,
        progress: Progress | None = None,
        waiting: Callable[[], None] | None = None,
    ) -> SyncReport:
        """Index a source, or bring it to its present state.

        Raises:
            AvyayError: it cannot be read, or the index cannot be written; the index is as it was.
        """
        from avyay.rag.sources import resolve_source

        spec = resolve_source(
            location,
            name=name,
            branch=branch,
            include=include or self._include,
            exclude=exclude or self._exclude,
            worktree=worktree,
        )
        reports = self.indexer(waiting).sync([spec], rebuild=rebuild, progress=progress)
        return next(report for report in reports if report.source == spec.name)

    def sync(
        self,
        names: Sequence[str] = (),
        *,
        rebuild: bool = False,
        progress: Progress | None = None,
        waiting: Callable[[], None] | None = None,
    ) -> list[SyncReport]:
        """Bring sources (by default all) to their present state, in one step."""
        from avyay.rag.searcher import no_source

        known = {row.spec.name: row.spec for row in self.sources()}
        for name in names:
            if name not in known:
                raise no_source(name, sorted(known))
        specs = [spec for name, spec in known.items() if not names or name in names]
        return self.indexer(waiting).sync(specs, rebuild=rebuild, progress=progress)

    def remove(self, name: str) -> int:
        """Forget a source; says how many documents it had."""
        return self.indexer().remove(name)

    def reconcile(self, *, progress: Progress | None = None) -> ReconcileReport:
        """Compare index and sources, files and catalog, store and files; mend what differs."""
        from avyay.rag.reconcile import reconcile

        return reconcile(self.indexer(), progress=progress or (lambda done, total, what: None))

    def indexer(self, waiting: Callable[[], None] | None = None, *, lock_wait: float | None = None) -> Indexer:
        """The writer of this index; `waiting` is called when another is at work, for `lock_wait` seconds."""
        from avyay.rag.index import LOCK_WAIT, Indexer

        wait = LOCK_WAIT if lock_wait is None else lock_wait
        return Indexer(self.places, self.embedder, self._open_store, clock=self.clock, lock_wait=wait, waiting=waiting)


def _outdated(error: AvyayError) -> str:
    return (
        "The index is of another version of avyay, and words may be missed:"
        f" {error.message} Make it again: avyay rag index"
    )
