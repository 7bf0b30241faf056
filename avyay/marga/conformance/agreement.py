"""The metamorphic check: whole or streamed, however the provider's bytes are cut, an answer is the same answer."""

from __future__ import annotations

import random
import string
from typing import Any

from avyay.marga.conformance.asking import Ask
from avyay.marga.conformance.samples import TOOLS, plain
from avyay.marga.conformance.scripted import Call, Script, Tokens
from avyay.marga.conformance.traps_avyay import cost_of_call
from avyay.marga.conformance.trial import Trial
from avyay.marga.conformance.upstream import Answer

__all__ = ["agree", "random_script"]

_LETTERS = string.ascii_letters + ' \n\t"\\{}[]:,äß漢字🌍' + "\u2028\x7f"


def _words(source: random.Random, most: int) -> str:
    return "".join(source.choice(_LETTERS) for _ in range(source.randint(0, most)))


def _value(source: random.Random, depth: int = 2) -> Any:
    kind = source.randrange(7 if depth else 5)
    if kind == 0:
        return source.choice((None, True, False))
    if kind < 3:
        return source.randint(-(2**53), 2**53) if kind == 1 else source.random()
    if kind < 5:
        return _words(source, 20)
    if kind == 5:
        return [_value(source, depth - 1) for _ in range(source.randint(0, 3))]
    return {_words(source, 8): _value(source, depth - 1) for _ in range(source.randint(0, 3))}


def random_script(source: random.Random, trial: Trial) -> Script:
    """Any answer the pair of dialects can express."""
    ollama = trial.upstream.startswith("ollama")
    tools = trial.caller != "ollama_generate"
    calls = tuple(
        Call(f"call_{number}", source.choice(TOOLS).name, {_words(source, 8): _value(source) for _ in range(2)})
        for number in range(source.randint(0, 3) if tools else 0)
    )
    output = source.randint(0, 5000)
    return Script(
        text=_words(source, 60),
        thinking=_words(source, 40) if source.random() < 0.3 else "",
        calls=calls,
        stop=source.choice(("end", "end", "max_tokens")),
        tokens=Tokens(
            source.randint(0, 9000),
            0 if ollama else source.randint(0, 900),
            source.randint(0, 900) if trial.upstream == "anthropic_messages" else 0,
            output,
        ),
        piece=source.randint(1, 9),
    )


async def agree(trial: Trial, source: random.Random) -> None:
    """One example: an answer asked for whole, and as a stream whose bytes are cut at random."""
    script = random_script(source, trial)
    ask = Ask(plain().turns, tools=TOOLS if trial.caller != "ollama_generate" else ())
    sizes = tuple(source.randint(1, 60) for _ in range(source.randint(1, 12)))
    whole_got, _ = await trial.send(ask, Answer(script), stream=False)
    stream_got, arrived = await trial.send(ask, Answer(script, sizes=sizes), stream=True)
    whole, streamed = trial.observed(whole_got, stream=False), trial.observed(stream_got, stream=True)
    if whole is None or streamed is None:
        return
    trial.same_answer(whole, script, arrived)
    trial.equal(streamed.text, whole.text, "streamed text")
    trial.equal(streamed.thinking, whole.thinking, "streamed reasoning")
    trial.equal([t[1:] for t in streamed.tools], [t[1:] for t in whole.tools], "streamed tool calls")
    trial.equal(streamed.stop, whole.stop, "streamed stop")
    trial.equal(streamed.tokens, whole.tokens, "streamed usage")
    if trial.bench.avyay:
        first, second = await cost_of_call(trial, whole_got), await cost_of_call(trial, stream_got)
        trial.equal(second, first, "streamed cost")
