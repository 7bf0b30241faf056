"""Traps on the way to the provider: turns, tools and pictures that a translation loses, moves, doubles or breaks."""

from __future__ import annotations

from avyay.marga.conformance.asking import PIXEL, Ask, Picture, Result, Turn
from avyay.marga.conformance.registry import trap
from avyay.marga.conformance.samples import CALLS, LOOP, TOOLS, plain, seen_or_refused, seen_upstream, text_of
from avyay.marga.conformance.trial import Trial


@trap(
    "system-anywhere",
    "requests",
    sent="instructions first, as a list of two blocks where the dialect has lists, and again in mid-conversation",
    arrives="every instruction, in order, where the provider accepts it",
    back="an ordinary answer",
    callers=("chat", "responses", "ollama"),
)
async def system_anywhere(trial: Trial, stream: bool) -> None:
    ask = Ask(
        (
            Turn("system", ("Be brief.", "Be kind."), blocks=True),
            Turn("user", ("First.",)),
            Turn("assistant", ("Yes?",)),
            Turn("system", ("Now be formal.",)),
            Turn("user", ("Second.",)),
        )
    )
    seen = await seen_upstream(trial, ask, stream)
    if seen is not None:
        said = text_of(seen)
        places = [said.find(text) for text in ("Be brief.", "Be kind.", "First.", "Yes?", "Second.")]
        trial.expect(-1 not in places and places == sorted(places), f"texts lost or out of order: {said!r}")
        trial.expect("Now be formal." in said, "the later instruction is lost")
        trial.expect(said.count("Be brief.") == 1, "the instruction is doubled")


@trap(
    "developer-role",
    "requests",
    sent="a developer message",
    arrives="its text, in a role the provider knows",
    back="an ordinary answer",
    callers=("chat", "responses"),
)
async def developer_role(trial: Trial, stream: bool) -> None:
    seen = await seen_upstream(trial, Ask((Turn("developer", ("Be exact.",)), Turn("user", ("Go.",)))), stream)
    if seen is not None:
        role = next((role for role, text in seen.texts if "Be exact." in text), None)
        trial.expect(role in ("system", "developer"), f"the developer message arrived as {role}")


@trap(
    "system-blocks",
    "requests",
    sent="`system` as a list of blocks",
    arrives="every block, in order",
    back="an ordinary answer",
    callers=("messages",),
)
async def system_blocks(trial: Trial, stream: bool) -> None:
    ask = Ask((Turn("system", ("Be brief.", "Be kind."), blocks=True), Turn("user", ("Go.",))))
    seen = await seen_upstream(trial, ask, stream)
    if seen is not None:
        system = "\n".join(text for role, text in seen.texts if role in ("system", "developer"))
        places = [system.find("Be brief."), system.find("Be kind.")]
        trial.expect(-1 not in places and places == sorted(places), f"instructions arrived as {seen.texts!r}")


@trap(
    "parallel-tool-results",
    "requests",
    sent="a turn with two tool calls, their two results, and more from the user",
    arrives="both calls and both results, each bound to its call, in the order and grouping the provider demands",
    back="an ordinary answer",
    callers=("chat", "responses", "messages", "ollama"),
)
async def parallel_tool_results(trial: Trial, stream: bool) -> None:
    seen = await seen_upstream(trial, Ask(LOOP, tools=TOOLS), stream)
    if seen is not None:
        trial.equal(seen.calls, [(c.name, c.arguments) for c in CALLS], "calls")
        trial.equal([(r.call, r.text) for r in seen.results], [(0, "file text"), (1, "3.5")], "results by call")
        trial.expect("Go on." in text_of(seen), "what the user said after the results is lost")


@trap(
    "tool-result-error",
    "requests",
    sent="a tool result marked as an error",
    arrives="the mark, or words that say so",
    back="an ordinary answer",
    callers=("messages",),
)
async def tool_result_error(trial: Trial, stream: bool) -> None:
    turns = (LOOP[0], Turn("assistant", calls=CALLS[:1]))
    ask = Ask((*turns, Turn("results", results=(Result(CALLS[0], "no such file", error=True),)), LOOP[3]), TOOLS)
    seen = await seen_upstream(trial, ask, stream)
    if seen is not None and trial.equal(len(seen.results), 1, "results"):
        result = seen.results[0]
        trial.expect("no such file" in result.text, "the error's text is lost")
        said = result.error or "error" in result.text.lower()
        trial.expect(said, "nothing says that the tool failed")


@trap(
    "tool-shapes",
    "requests",
    sent="three tools in the caller's shape",
    arrives="the same names, descriptions and schemas in the same order, in the provider's shape",
    back="an ordinary answer",
    callers=("chat", "responses", "messages", "ollama"),
)
async def tool_shapes(trial: Trial, stream: bool) -> None:
    seen = await seen_upstream(trial, Ask(plain().turns, tools=TOOLS), stream)
    if seen is not None:
        trial.equal(seen.tools, [(t.name, t.description, t.schema) for t in TOOLS], "tools")


async def _choice(trial: Trial, stream: bool, choice: str, accepted: tuple[str | None, ...]) -> None:
    seen = await seen_or_refused(trial, Ask(plain().turns, tools=TOOLS, choice=choice), stream)
    if seen is None:
        return
    if choice == "none" and not seen.tools:
        return  # nothing can be called that is not offered
    trial.expect(seen.choice in accepted, f"tool choice {seen.choice!r} instead of {choice!r}")


@trap(
    "tool-choice-auto",
    "requests",
    sent="tool_choice auto",
    arrives="auto, or nothing where that is the default",
    back="an ordinary answer",
    callers=("chat", "responses", "messages"),
    modes=(False,),
)
async def tool_choice_auto(trial: Trial, stream: bool) -> None:
    await _choice(trial, stream, "auto", ("auto", None))


@trap(
    "tool-choice-none",
    "requests",
    sent="tool_choice none",
    arrives="none, or no tools at all",
    back="an ordinary answer",
    callers=("chat", "responses", "messages"),
    modes=(False,),
)
async def tool_choice_none(trial: Trial, stream: bool) -> None:
    await _choice(trial, stream, "none", ("none",))


@trap(
    "tool-choice-required",
    "requests",
    sent="tool_choice required (any)",
    arrives="the provider's word for it; where it has none, a clear refusal instead",
    back="an ordinary answer, or the dialect's 4xx error",
    callers=("chat", "responses", "messages"),
    modes=(False,),
)
async def tool_choice_required(trial: Trial, stream: bool) -> None:
    await _choice(trial, stream, "required", ("required",))


@trap(
    "tool-choice-named",
    "requests",
    sent="tool_choice naming a tool",
    arrives="that name in the provider's shape; where it cannot be forced, a clear refusal instead",
    back="an ordinary answer, or the dialect's 4xx error",
    callers=("chat", "responses", "messages"),
    modes=(False,),
)
async def tool_choice_named(trial: Trial, stream: bool) -> None:
    await _choice(trial, stream, "tool:add", ("tool:add",))


@trap(
    "tool-choice-serial",
    "requests",
    sent="at most one tool call a turn",
    arrives="parallel_tool_calls false, or disable_parallel_tool_use true",
    back="an ordinary answer",
    callers=("chat", "responses", "messages"),
    upstreams=("chat", "responses", "messages"),
    modes=(False,),
)
async def tool_choice_serial(trial: Trial, stream: bool) -> None:
    seen = await seen_upstream(trial, Ask(plain().turns, tools=TOOLS, parallel=False), stream)
    if seen is not None:
        trial.equal(seen.parallel, False, "parallel tool calls")


@trap(
    "image-data",
    "requests",
    sent="a picture as base64 data beside text",
    arrives="the same data in the provider's shape",
    back="an ordinary answer",
)
async def image_data(trial: Trial, stream: bool) -> None:
    seen = await seen_upstream(trial, Ask((Turn("user", ("What is this?",), pictures=(Picture(PIXEL),)),)), stream)
    if seen is not None:
        trial.equal(seen.pictures, [PIXEL], "pictures")
        trial.expect("What is this?" in text_of(seen), "the text beside the picture is lost")


@trap(
    "image-url",
    "requests",
    sent="a picture by URL",
    arrives="the URL; where the provider takes none, a clear refusal instead. The gateway never fetches it",
    back="an ordinary answer, or the dialect's 4xx error",
    callers=("chat", "responses", "messages"),
    modes=(False,),
)
async def image_url(trial: Trial, stream: bool) -> None:
    upstream = trial.bench.upstream
    url = f"{upstream.url}/picture-{id(trial):x}.png"
    seen = await seen_or_refused(trial, Ask((Turn("user", ("What is this?",), pictures=(Picture(url=url),)),)), stream)
    if seen is not None:
        trial.equal(seen.pictures, [url], "pictures")
    fetched = [request.path for request in upstream.others if request.path in url]
    trial.expect(not fetched, "the gateway fetched the URL")


@trap(
    "image-in-tool-result",
    "requests",
    sent="a tool result with text and a picture",
    arrives="both; where results hold only text, the picture follows as user content",
    back="an ordinary answer",
    callers=("responses", "messages"),
    modes=(False,),
)
async def image_in_tool_result(trial: Trial, stream: bool) -> None:
    call = CALLS[0]
    result = Result(call, "the screen", Picture(PIXEL))
    turns = (LOOP[0], Turn("assistant", calls=(call,)), Turn("results", results=(result,)), LOOP[3])
    seen = await seen_upstream(trial, Ask(turns, tools=TOOLS), stream)
    if seen is not None and trial.equal(len(seen.results), 1, "results"):
        trial.expect("the screen" in seen.results[0].text, "the result's text is lost")
        trial.equal(seen.results[0].pictures + seen.pictures, [PIXEL], "pictures")
