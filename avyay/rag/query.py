"""What a query is: an identifier to look up, or words; and all that is searched for because of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from avyay.rag.kinds import SectionKind, asked_for
from avyay.rag.lexical import glossary
from avyay.rag.lexical.function_words import function_words
from avyay.rag.lexical.tokenise import STOP_WORDS, identifiers, tokenise

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Query", "analyse", "query_terms", "with_concepts", "without_keywords"]

NAME_WORDS = 2  # a query of so few words is a name, not a sentence
PHRASE_WEIGHT = 0.5  # of a word that the glossary gives for a phrase; a word of the query counts 1


@dataclass(frozen=True, slots=True)
class Query:
    """A query, taken apart.

    `terms` are its own words with their counts, `added` what the glossary adds with smaller weights. `names` are the
    identifiers in it; `is_name` says that it is little else, `compound` that it is nothing else. `texts` are what to
    embed, the query itself first: the mean of their vectors is the query's. `kinds` are the kinds of section it asks
    for. `foreign` says that it is put in another language than English.
    """

    text: str
    terms: Mapping[str, float]
    added: Mapping[str, float]
    names: tuple[str, ...]
    is_name: bool
    texts: tuple[str, ...]
    kinds: frozenset[SectionKind]
    compound: bool = False
    foreign: bool = False


def analyse(text: str) -> Query:
    """Take a query apart. Identifiers are looked up as they are; words are joined by what else could be said."""
    terms = query_terms(text)
    names = identifiers(text)
    empty = function_words(text)
    words = [word for word in text.split() if word.lower() not in empty]
    # "How do I run the tests?" has few words that say something, and is a sentence all the same.
    if len(words) <= NAME_WORDS and (names or len(text.split()) <= NAME_WORDS):
        compound = len(names) == len(words)
        names = list(dict.fromkeys([*names, *(term for word in words for term in tokenise(word)[:1])]))
        return Query(text, terms, {}, tuple(names), True, (text,), frozenset(), compound)
    others = glossary.phrases(text)
    added = {term: PHRASE_WEIGHT for other in others for term in tokenise(other)}
    texts = (text, f"{text} ({', '.join(others)})") if others else (text,)
    foreign = empty is not STOP_WORDS
    return Query(text, terms, _new(added, terms), tuple(names), False, texts, asked_for(text), foreign=foreign)


def with_concepts(query: Query, vector: NDArray[np.float32], embedder: str) -> Query:
    """The query with the terms of glossary entries near to it in meaning.

    Args:
        vector: Of `query.text`, by the embedder of that name; an embedder without shipped vectors adds nothing.
    """
    if query.is_name or embedder != glossary.VECTORS_BY:
        return query
    added = dict(query.added)
    for name, cosine in glossary.near(vector):
        for term in tokenise(name):
            added[term] = max(added.get(term, 0.0), cosine)
    return replace(query, added=_new(added, query.terms))


def without_keywords(query: Query) -> Query:
    """The query for vectors alone."""
    return replace(query, terms={}, added={}, names=(), is_name=False)


def query_terms(query: str) -> dict[str, float]:
    """The terms of a query and how often each stands in it; function words only when there is nothing else."""
    empty = function_words(query)
    terms = Counter(term for term in tokenise(query) if term not in empty)
    return {term: float(count) for term, count in (terms or Counter(tokenise(query))).items()}


def _new(added: Mapping[str, float], terms: Mapping[str, float]) -> dict[str, float]:
    return {term: weight for term, weight in added.items() if term not in terms and term not in STOP_WORDS}
