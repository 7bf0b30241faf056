"""Measure retrieval on a folder of documents and a file of queries: every part of the pipeline, left out in turn.

    python scripts/rag_quality.py DOCS QUERIES [--cache FILE] [--rerankers] [--json]

QUERIES are JSON lines as `avyay rag eval` reads them; paths in them are relative to DOCS. Each line of the table is
nDCG@10 by document and by section, macro over the variants, with the difference to the whole pipeline and its 95 %
interval by paired bootstrap. The second table asks whether "not in the runbooks" is said at the right time.
"""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rank_bm25 import BM25Plus

from avyay.embed.registry import open_embedder
from avyay.ports import Embedder
from avyay.rag.answerability import wilson
from avyay.rag.chunk import chunk_document
from avyay.rag.confidence import assess
from avyay.rag.evaluate import EvalQuery, EvalResult, Interval, compare, evaluate, load_queries, macro
from avyay.rag.fuse import reciprocal_rank
from avyay.rag.kinds import is_rule
from avyay.rag.lexical.bm25 import BM25F, score
from avyay.rag.lexical.postings import Postings
from avyay.rag.lexical.tokenise import tokenise
from avyay.rag.parsers import SUFFIXES
from avyay.rag.query import Query, analyse, with_concepts, without_keywords
from avyay.rag.rerankers.base import rerank
from avyay.rag.rerankers.late_interaction import LateInteraction
from avyay.rag.retrieve import Weights, join_neighbours, lexical_fields, rank, search_lexical
from avyay.rag.types import Chunk, Hit

TOP = 10
POOL = 100
RERANKED = 20
OTHERS = Path(__file__).with_name("other_questions.txt")


class Vectors:
    """The embedder, with a file that remembers."""

    def __init__(self, embedder: Embedder, cache: Path | None) -> None:
        self.embedder, self.cache = embedder, cache
        # avyay: ignore[unpickling-parameter-python] the developer's own cache, written below
        self.known: dict[str, np.ndarray] = pickle.loads(cache.read_bytes()) if cache and cache.exists() else {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        missing = [text for text in dict.fromkeys(texts) if text not in self.known]
        if missing:
            self.known.update(zip(missing, self.embedder.embed(missing), strict=True))
            if self.cache:
                self.cache.write_bytes(pickle.dumps(self.known))
        return np.stack([self.known[text] for text in texts])


@dataclass
class Asked:
    """A query, ready to rank."""

    query: EvalQuery
    analysed: Query
    vector: np.ndarray
    plain_vector: np.ndarray


class Corpus:
    def __init__(self, docs: Path, queries: Path, vectors: Vectors) -> None:
        files = sorted(file for file in docs.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        self.chunks: list[Chunk] = []
        embedder = vectors.embedder
        for file in files:
            text = file.read_text(encoding="utf-8", errors="replace")
            self.chunks += chunk_document(
                file.relative_to(docs).as_posix(),
                text,
                count_tokens=embedder.count_tokens,
                max_tokens=embedder.max_tokens,
            )
        numbers = {path: number for number, path in enumerate(dict.fromkeys(chunk.path for chunk in self.chunks))}
        self.documents = np.array([numbers[chunk.path] for chunk in self.chunks], dtype=np.int32)
        self.number_of = numbers
        self.vectors = vectors([chunk.embedding_text for chunk in self.chunks])
        rules = {row for row, chunk in enumerate(self.chunks) if is_rule(chunk.path)}
        self.postings = Postings.build([lexical_fields(chunk) for chunk in self.chunks], self.documents, rules)
        self.embedder = embedder
        self.asked = []
        for query in load_queries(queries):
            analysed = analyse(query.text)
            rows = vectors(list(analysed.texts))
            analysed = with_concepts(analysed, rows[0], embedder.name)
            self.asked.append(Asked(query, analysed, rows.mean(axis=0), rows[0]))

    def results(self, hits: Sequence[Hit], *, joined: bool) -> list[EvalResult]:
        headings = [self.chunks[hit.chunk].headings or (self.chunks[hit.chunk].heading,) for hit in hits]
        if joined:
            tokens = [self.chunks[hit.chunk].tokens for hit in hits]
            groups = join_neighbours(hits, sections=headings, tokens=tokens, limit=TOP)
        else:
            groups = [(place,) for place in range(min(TOP, len(hits)))]
        return [
            EvalResult(
                self.chunks[hits[group[0]].chunk].path,
                tuple(dict.fromkeys(heading for place in group for heading in headings[place])),
            )
            for group in groups
        ]

    def by_scores(self, scores: np.ndarray) -> list[EvalResult]:
        order = np.argsort(-scores, kind="stable")[:POOL]
        hits = [Hit(int(row), int(self.documents[row]), float(scores[row]), {}) for row in order]
        return self.results(hits, joined=False)


Search = Callable[[Corpus, Asked], list[EvalResult]]


def pipeline(
    weights: Weights | None = None,
    *,
    change: Callable[[Query], Query] = lambda query: query,
    plain_vector: bool = False,
    vectors: bool = True,
    fields: BM25F | None = None,
    joined: bool = True,
) -> Search:
    def search(corpus: Corpus, asked: Asked) -> list[EvalResult]:
        query = change(asked.analysed)
        lexical = (
            score(corpus.postings, query.terms, fields, added=query.added, names=query.names)
            if fields
            else search_lexical(corpus.postings, query)
        )
        vector = asked.plain_vector if plain_vector else asked.vector
        similarities = corpus.vectors @ vector if vectors else None
        hits = rank(query, corpus.postings, lexical=lexical, similarities=similarities, limit=POOL, weights=weights)
        return corpus.results(hits, joined=joined)

    return search


class TokenVectors:
    """Token vectors, each text's computed once; halves, or they would fill the memory."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self.known: dict[str, np.ndarray] = {}

    def embed_tokens(self, texts: Sequence[str]) -> list[np.ndarray]:
        missing = [text for text in texts if text not in self.known]
        if missing:
            made = self.embedder.embed_tokens(missing)  # type: ignore[attr-defined]
            self.known.update((text, rows.astype(np.float16)) for text, rows in zip(missing, made, strict=True))
        return [self.known[text].astype(np.float32) for text in texts]


def reranked(judge: LateInteraction, weight: float) -> Search:
    def search(corpus: Corpus, asked: Asked) -> list[EvalResult]:
        query = asked.analysed
        similarities = corpus.vectors @ asked.vector
        hits = rank(
            query,
            corpus.postings,
            lexical=search_lexical(corpus.postings, query),
            similarities=similarities,
            limit=POOL,
        )
        texts = [corpus.chunks[hit.chunk].embedding_text for hit in hits[:RERANKED]]
        first, _ = rerank(judge, query.text, hits[:RERANKED], texts, seconds=1e9, monotonic=lambda: 0.0, weight=weight)
        return corpus.results([*first, *hits[RERANKED:]], joined=True)

    return search


def fused(corpus: Corpus, asked: Asked) -> list[EvalResult]:
    words = score(corpus.postings, asked.analysed.terms).chunk
    orders = [np.argsort(-scores, kind="stable")[:POOL] for scores in (words, corpus.vectors @ asked.plain_vector)]
    return corpus.by_scores(reciprocal_rank([order.tolist() for order in orders], size=len(corpus.chunks)))


def oracle(corpus: Corpus) -> Search:
    texts = [tokenise(f"{' '.join(lexical_fields(chunk)[:2])} {chunk.text}") for chunk in corpus.chunks]
    index = BM25Plus(texts)
    return lambda of, asked: of.by_scores(index.get_scores(list(asked.analysed.terms)))


def no_words_added(query: Query) -> Query:
    return replace(query, added={})


def no_kinds(query: Query) -> Query:
    return replace(query, kinds=frozenset())


def no_names(query: Query) -> Query:
    return replace(query, is_name=False)


VARIANTS: dict[str, Search] = {
    "whole pipeline": pipeline(),
    "results not joined": pipeline(joined=False),
    "no glossary": pipeline(change=no_words_added, plain_vector=True),
    "glossary: words only": pipeline(plain_vector=True),
    "glossary: vector only": pipeline(change=no_words_added),
    "no section kinds": pipeline(change=no_kinds),
    "no tier for names": pipeline(change=no_names),
    "no bonus for headings": pipeline(Weights(heading=0.0)),
    "no opening": pipeline(Weights(opening=0.0)),
    "no whole-document keywords": pipeline(Weights(best_chunk=1.0)),
    "all fields alike": pipeline(fields=BM25F(weights=(1.0, 1.0, 1.0))),
    "keywords 0.5": pipeline(Weights(keywords=0.5)),
    "keywords 1.0": pipeline(Weights(keywords=1.0)),
    "spread 0.5": pipeline(Weights(spread=0.5)),
    "spread 2.0": pipeline(Weights(spread=2.0)),
    "keywords alone": pipeline(vectors=False),
    "vectors alone": pipeline(change=without_keywords),
    "RRF of chunk BM25 and cosine": fused,
    "cosine of chunks": lambda corpus, asked: corpus.by_scores(corpus.vectors @ asked.plain_vector),
}


def show(interval: Interval, signed: bool = False) -> str:
    form = "+.3f" if signed else ".3f"
    return f"{interval.mean:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def ablation(corpus: Corpus, *, rerankers: bool) -> list[dict[str, object]]:
    queries = [asked.query for asked in corpus.asked]
    variants = {**VARIANTS, "rank-bm25 of chunks": oracle(corpus)}
    if rerankers:
        judge = LateInteraction(TokenVectors(corpus.embedder))
        for weight in (0.25, 0.5, 1.0):
            variants[f"late interaction, weight {weight}"] = reranked(judge, weight)
    found = {
        name: {asked.query.qid: search(corpus, asked) for asked in corpus.asked} for name, search in variants.items()
    }
    whole = found["whole pipeline"]
    lines: list[dict[str, object]] = []
    for name, results in found.items():
        rows, gain = evaluate(queries, results), compare(queries, whole, results)
        lines.append(
            {
                "variant": name,
                **{level: macro(rows, level) for level in ("doc", "section")},
                **{f"{level} against whole": macro(gain, level) for level in ("doc", "section")},
                "groups": {f"{row.level} {row.group}": row.metrics["nDCG@10"] for row in rows if row.group != "macro"},
            }
        )
    return lines


def answerable(corpus: Corpus, vectors: Vectors, others: Sequence[str]) -> dict[str, tuple[int, int]]:
    """How many searches are called relevant, of how many: with the documents there, with these left out, and for
    questions about other things."""
    counts: dict[str, list[bool]] = {}

    def ask(group: str, analysed: Query, vector: np.ndarray, eligible: np.ndarray | None) -> None:
        lexical = search_lexical(corpus.postings, analysed)
        similarities = corpus.vectors @ vector
        hits = rank(analysed, corpus.postings, lexical=lexical, similarities=similarities, limit=TOP, eligible=eligible)
        found = assess(analysed, corpus.postings, hits, lexical, similarities, eligible)
        counts.setdefault(group, []).append(found.relevant)

    for asked in corpus.asked:
        if asked.query.documents:
            right = [corpus.number_of[path] for path in asked.query.documents if path in corpus.number_of]
            ask(f"{asked.query.variant}, there", asked.analysed, asked.vector, None)
            ask(f"{asked.query.variant}, left out", asked.analysed, asked.vector, ~np.isin(corpus.documents, right))
    for text in others:
        analysed = analyse(text)
        rows = vectors(list(analysed.texts))
        ask("about other things", with_concepts(analysed, rows[0], corpus.embedder.name), rows.mean(axis=0), None)
    return {group: (sum(said), len(said)) for group, said in counts.items()}


def share(hits: int, total: int) -> str:
    """A share with its 95 % interval (Wilson)."""
    low, high = wilson(hits, total)
    return f"{hits / total:.3f} [{low:.3f}, {high:.3f}] of {total}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("docs", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--cache", type=Path, help="a file that keeps vectors between runs")
    parser.add_argument("--rerankers", action="store_true", help="measure them too; takes minutes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    vectors = Vectors(open_embedder("minilm"), options.cache)
    corpus = Corpus(options.docs, options.queries, vectors)
    lines = ablation(corpus, rerankers=options.rerankers)
    if options.json:
        print(json.dumps(lines, default=lambda value: [value.mean, value.low, value.high]))
        return
    print(f"{len(corpus.chunks)} chunks, {len(corpus.number_of)} documents, {len(corpus.asked)} queries; nDCG@10")
    for line in lines:
        doc, section = line["doc"], line["section"]
        doc_gain, section_gain = line["doc against whole"], line["section against whole"]
        assert isinstance(doc, Interval)
        assert isinstance(section, Interval)
        assert isinstance(doc_gain, Interval)
        assert isinstance(section_gain, Interval)
        print(
            f"{line['variant']:30} doc {show(doc)} {show(doc_gain, True)}  "
            f"section {show(section)} {show(section_gain, True)}"
        )
    groups = lines[0]["groups"]
    assert isinstance(groups, dict)
    for name, interval in groups.items():
        print(f"  {name:28} {show(interval)}")
    print("Answered:")
    for name, (said, total) in answerable(corpus, vectors, OTHERS.read_text(encoding="utf-8").splitlines()).items():
        print(f"  {name:28} {share(said, total)}")


if __name__ == "__main__":
    main()
