"""What a chat sends while it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tailwise.app.assistant.answer import Answer, Fact


@dataclass(frozen=True)
class TextDelta:
    """More text."""

    text: str


@dataclass(frozen=True)
class ToolCall:
    """The model asks for a function."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class ToolResult:
    """What the function gave."""

    name: str
    fact: Fact


@dataclass(frozen=True)
class Answered:
    """The end, with all of the text, the facts, and the numbers that are in no fact."""

    answer: Answer


@dataclass(frozen=True)
class Failed:
    """The end without an answer."""

    message: str
    fix: str


class AnswerEndedError(Exception):
    """Why an answer was ended from here; `failures` gives it words."""


Event = TextDelta | ToolCall | ToolResult | Answered | Failed


def to_json(event: Event) -> dict[str, Any]:
    """Plain JSON types, with `kind`: text, call, result, done or failed."""
    match event:
        case TextDelta(text):
            return {"kind": "text", "text": text}
        case ToolCall(name, arguments):
            return {"kind": "call", "name": name, "arguments": arguments}
        case ToolResult(name, fact):
            return {"kind": "result", "name": name, "fact": fact}
        case Answered(answer):
            return {"kind": "done", "answer": answer.to_json()}
        case Failed(message, fix):
            return {"kind": "failed", "message": message, "fix": fix}
