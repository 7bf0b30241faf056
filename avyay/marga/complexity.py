"""How hard a request is: request -> (score 0..1, reasons). Pure, and well under a millisecond.

Two parts: what the newest user turn says, weighed by a small model learned from public outcomes (how much a strong
model gained over a weak one on such a prompt, not how hard it is), and what the request around it signals. It is the
first word, not the last: on public data no reading of a prompt is far better than its length, so what is learned from
the user's own traffic comes on top of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import orjson

from avyay.marga.prompt import FEATURES, FUNCTION_WORDS, READ, Family, Prompt, read
from avyay.marga.view import RequestView
from avyay.marga.wording import Wording, phrase, word_set

__all__ = ["Complexity", "FamilyModel", "ScorerModel", "bundled_model", "load_model", "rate", "score"]

_REASONING = word_set(
    "prove derive design compare evaluate debug refactor implement algorithm distributed strategy theorem analyse"
    " analyze optimise optimize tradeoff tradeoffs"
)
# By the word they begin with, which is looked up for less; then those that begin with part of a word.
_REASONING_PHRASES = {
    "explain": phrase("explain", r" why\b"),
    "race": phrase("race", r" condition\b"),
    "root": phrase("root", r" cause\b"),
    "step": phrase("step", r"[ -]by[ -]step\b"),
    "threat": phrase("threat", r" model\b"),
    "trade": phrase("trade", r"-offs?\b"),
}
_REASONING_STEMS = (
    phrase("architect", r"\w*"),
    phrase("concurren", r"\w+"),
    phrase("diagnos", r"\w+"),
    phrase("formal", r"\w*"),
    phrase("migrat", r"\w+"),
)
_SIMPLE = re.compile(
    r"\b(?:classify|extract|translate|rephrase|summari[sz]e in one|yes or no|true or false|format (?:this|it|as)"
    r"|convert|fix the (?:typo|spelling)|spell|define|capital of|what is the (?:name|date)|one word|list the)\b",
    re.IGNORECASE,
)
_SIMPLE_WORDS = word_set("classify extract translate rephrase convert spell define")
_SIMPLE_FIRST = word_set("summarise summarize yes true format fix capital what one list")
_SIMPLE_PHRASES = (
    *("summarise in one", "summarize in one", "yes or no", "true or false", "format this", "format it", "format as"),
    *("fix the typo", "fix the spelling", "capital of", "what is the name", "what is the date", "one word", "list the"),
)
_WRITING = word_set(
    "write draft compose summarise summarize summary explain describe outline generate rewrite review recommend"
)
_CONSTRAINTS = word_set("must should ensure without exactly only never")
_CONSTRAINT_PHRASES = {"at": phrase("at", r" (?:least|most)\b"), "no": phrase("no", r" more than\b")}
_ITEM = re.compile(r"\n[ \t]{0,40}(?:[-*]|\d{1,3}[.)])(?=\s)")  # of a list, in `Wording.lines`
_SHORT = 40  # characters of a follow-up ("and the second one?") that says nothing of itself
_FEW = 8  # words; a text of fewer is drawn towards its family's mean
_CLIP = 3.0  # standard deviations beyond which a feature counts no further
_FOREIGN = 0.5  # of `foreign_letters`: one letter in ten is outside ASCII
_FLOOR = 0.3  # an unsure score is pressed into what lies above this: never cheaper than the default middle tier

_DESIGN = 3  # words of reasoning that make a request for code one for a design; fewer leave its length to speak

_FAMILY_WORDS: Mapping[Family, str] = {
    "choice": "one of given options",
    "quantity": "a number out of a story",
    "formula": "mathematics in notation",
    "code": "code",
    "open": "an open question",
}
_FEATURE_WORDS = {
    "length": "length",
    "words": "number of words",
    "stem_length": "length of the question",
    "sentence_length": "sentence length",
    "sentences": "number of sentences",
    "numbers": "numbers",
    "number_share": "numbers",
    "large_numbers": "large numbers",
    "operators": "operators",
    "notation": "mathematical notation",
    "option_length": "length of the options",
    "negation": "a negation",
    "stressed_negation": "a negation",
    "long_words": "long words",
    "word_length": "long words",
}
_SHOWN = tuple(_FEATURE_WORDS.get(feature, "") for feature in FEATURES)


@dataclass(frozen=True, slots=True)
class Complexity:
    """The score, 0 (any model will do) to 1 (as hard as they come), and what made it, strongest first.

    `unsure`: nothing like this was met in learning, and the score was raised for it.
    """

    score: float
    reasons: tuple[str, ...]
    unsure: bool = False


@dataclass(frozen=True, slots=True)
class FamilyModel:
    """A ridge regression on standardised features and on words, as the training script writes it.

    The score is logistic(shift + spread * prediction): spread brings families to one scale, shift says how much this
    family gains from a stronger model on the whole.
    """

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    words: Mapping[str, float]
    bias: float
    spread: float
    shift: float
    rows: int


@dataclass(frozen=True, slots=True)
class ScorerModel:
    """What was learned, by family. A family without a model was absent from the data."""

    families: Mapping[Family, FamilyModel]
    trained: str = ""


def load_model(text: bytes | str) -> ScorerModel:
    """Read a model as the training script and `calibrate` write it."""
    data = orjson.loads(text)
    if data["features"] != list(FEATURES):
        raise ValueError("the model was trained on other features")
    families: dict[Family, FamilyModel] = {}
    for name, fields in data["families"].items():
        vectors = {key: tuple(fields[key]) for key in ("mean", "scale", "weights")}
        families[name] = FamilyModel(**(fields | vectors))
    return ScorerModel(families, data["trained"])


@cache
def bundled_model() -> ScorerModel:
    """The model in the package."""
    return load_model((files("avyay.marga") / "data" / "complexity.json").read_bytes())


def predict(prompt: Prompt, model: FamilyModel) -> tuple[float, list[tuple[float, str]]]:
    """The gain expected of a stronger model, centred, and what it is made of."""
    parts: list[tuple[float, str]] = []
    total = model.bias
    for value, mean, scale, weight, name in zip(
        prompt.values, model.mean, model.scale, model.weights, _SHOWN, strict=True
    ):
        if weight:
            deviation = (value - mean) / scale
            if deviation > _CLIP:
                deviation = _CLIP
            elif deviation < -_CLIP:
                deviation = -_CLIP
            amount = weight * deviation
            total += amount
            if name:
                parts.append((amount, name))
    known = model.words
    if known and prompt.words:
        norm = 1 / math.sqrt(len(prompt.words))
        for word in prompt.words & known.keys():
            weight = known[word]
            if weight:
                total += weight * norm
                if word not in FUNCTION_WORDS:
                    parts.append((weight * norm, f"“{word}”"))
    return total, parts


def rate(prompt: Prompt, model: ScorerModel) -> tuple[float, str, bool]:
    """(score, main reason, unsure) of a prompt alone."""
    learned = model.families.get(prompt.family)
    what = _FAMILY_WORDS[prompt.family]
    if learned is None:
        # No outcomes of this kind were learned from: length, which is hard to beat, on the expensive side.
        return _FLOOR + (1 - _FLOOR) * _logistic(0.9 * (prompt.values[0] - 6.0)), f"{what}, judged by length", True
    total, parts = predict(prompt, learned)
    count = math.expm1(prompt.value("words"))
    if count < _FEW:
        total *= count / _FEW  # averages over so few words say nothing
    value = _logistic(learned.shift + learned.spread * total)
    by_name: dict[str, float] = {}
    for amount, name in parts:
        by_name[name] = by_name.get(name, 0.0) + amount
    named = sorted(by_name.items(), key=lambda part: -abs(part[1]))[:2]
    why = ", ".join(f"{name} {'+' if amount > 0 else '-'}" for name, amount in named)
    reason = f"{what} ({why})" if why else what
    if prompt.value("foreign_letters") > _FOREIGN:
        return _FLOOR + (1 - _FLOOR) * value, f"{reason}, in a language that was not learned", True
    return value, reason, False


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, x))))


def score(view: RequestView, model: ScorerModel | None = None) -> Complexity:
    """How complex a request is.

    Args:
        model: By default the one in the package.
    """
    parts: list[tuple[float, str]] = []

    def add(amount: float, reason: str) -> None:
        if abs(amount) >= 0.005:
            parts.append((amount, f"{reason} {amount:+.2f}"))

    text = view.last_user
    wording = Wording(text[:READ])
    prompt = read(text, wording)
    base, reason, unsure = rate(prompt, model or bundled_model())
    if len(text) < _SHORT and view.messages > 2:
        unsure, reason = True, "a short follow-up, which says little of what it asks"
    add(base, reason)
    if prompt.family == "open":
        _weigh_wording(wording, add)
    elif prompt.family == "code" and len(words := _asks_reasoning(wording)) >= _DESIGN:
        add(min(0.36, 0.12 * len(words)), f"asks for reasoning ({', '.join(sorted(words)[:3])})")
    if view.system_chars > 2000:
        add(0.3, f"system prompt of {view.system_chars} characters")
    if view.messages > 1:
        add(min(0.05 * (view.messages - 1), 0.3), f"{view.messages} messages")
    if view.temperature is not None and view.temperature > 0.7:
        add(0.2, f"temperature {view.temperature:g}")
    if view.structured:
        add(-0.15, "structured output")
    if view.tools:
        add(0.15, f"{view.tools} tools offered")
    if view.images:
        add(0.1, f"{view.images} images")
    if view.reasoning:
        add(0.3, "reasoning asked for")
    total = sum(amount for amount, _ in parts)
    if unsure and total < _FLOOR:
        total = _FLOOR
    parts.sort(key=lambda part: -abs(part[0]))
    reasons = [reason for _, reason in parts]
    if unsure:
        reasons.insert(0, "unsure: raised, as nothing like it was learned from")
    # Six digits: requests that differ must not tie, or their order is lost.
    return Complexity(round(max(0.0, min(1.0, total)), 6), tuple(reasons), unsure)


def _asks_reasoning(wording: Wording) -> set[str]:
    """The words and phrases, in lower case, that ask for more than looking something up."""
    distinct, folded = wording.distinct, wording.folded
    found = distinct & _REASONING
    for first in distinct & _REASONING_PHRASES.keys():
        found.update(_REASONING_PHRASES[first].findall(folded))
    for stem in _REASONING_STEMS:
        found.update(stem.findall(folded))
    return found


def _count_constraints(wording: Wording) -> int:
    constraints = wording.count(wording.distinct & _CONSTRAINTS) + len(_ITEM.findall(wording.lines))
    for first in wording.distinct & _CONSTRAINT_PHRASES.keys():
        constraints += len(_CONSTRAINT_PHRASES[first].findall(wording.folded))
    return constraints


def _simple_task(wording: Wording) -> str | None:
    """The first word or phrase, in lower case, that asks for something any model can do."""
    if wording.distinct.isdisjoint(_SIMPLE_WORDS) and (
        wording.distinct.isdisjoint(_SIMPLE_FIRST) or not any(words in wording.spaced for words in _SIMPLE_PHRASES)
    ):
        return None
    found = _SIMPLE.search(wording.text)
    return found[0].lower() if found is not None else None


def _weigh_wording(wording: Wording, add: Callable[[float, str], None]) -> None:
    """What an open request says of itself."""
    if words := _asks_reasoning(wording):
        add(min(0.48, 0.12 * len(words)), f"asks for reasoning ({', '.join(sorted(words)[:3])})")
    if writing := wording.distinct & _WRITING:
        add(0.1, f"asks for writing ({wording.first(writing)})")
    if (constraints := _count_constraints(wording)) > 2:
        add(min(0.15, 0.03 * constraints), f"{constraints} constraints")
    if len(wording.text) < 2000 and (simple := _simple_task(wording)):
        add(-0.1, f"simple task ({simple})")
