"""`answer()`: an answer without any language model, from the guidance, the findings and the numbers at hand."""

from __future__ import annotations

from tailwise.app.assistant.answer import Answer, Link
from tailwise.app.assistant.functions.function import Place
from tailwise.app.assistant.intents import reply_to
from tailwise.app.assistant.markdown import links_in, prose
from tailwise.app.assistant.numbers import unverified
from tailwise.app.assistant.question_wording import Wording
from tailwise.app.assistant.replies.concepts import EXAMPLES, abilities
from tailwise.app.assistant.replies.question import CannotAnswerError, Question
from tailwise.app.assistant.screen import ShownPage
from tailwise.app.workspace.workspace import Workspace
from tailwise.core.errors import TailwiseError

__all__ = ["EXAMPLES", "Answer", "Link", "answer"]

_LONGEST = 2000  # signs of a question
_MOST_LINKS = 24


def answer(question: str, workspace: Workspace, screen: ShownPage) -> Answer:
    """Answer from what is in the workspace, as far as the words are understood; the same for the same files.

    What cannot be answered is an answer that says so, with examples of what can. Every number in it is in its facts.
    """
    asked = Question(question[:_LONGEST], Place(workspace, screen))
    try:
        reply = reply_to(asked)
        text = f"I cannot answer that.{_command(asked)} {abilities(asked)}" if reply is None else reply(asked)
    except CannotAnswerError as trouble:
        text = _trouble(trouble.what, trouble.fix)
        asked.facts.append({"error": trouble.what, "fix": trouble.fix})
    except TailwiseError as error:
        text = _trouble(error.what, error.fix or "")
        asked.facts.append({"error": error.what, "fix": error.fix or ""})
    looked_up = tuple(asked.facts)
    pages = [page for page in links_in(looked_up) if f"]({page.href})" in text]
    return Answer(text, tuple(pages[:_MOST_LINKS]), looked_up, unverified(text, looked_up))


#: What no audit can tell, and the command that does.
_COMMANDS = (
    (
        Wording(r"accura|perplex|benchmark|mmlu|score|answers? (right|correct)|hallucinat"),
        "tailwise evaluate MODEL --text FILE",
    ),
    (Wording(r"\bfast|\bspeed|latency|tokens? (per|a) second|throughput"), "tailwise evaluate MODEL --speed"),
    (Wording(r"how long .*(audit|take)", r"how much memory|\bcost"), "tailwise audit MODEL --dry-run"),
    (Wording(r"download|install|version|depend"), "tailwise doctor"),
)


def _command(asked: Question) -> str:
    suggested = next((command for wording, command in _COMMANDS if wording.fits(asked.lower)), "")
    return f" `{suggested}` answers it." if suggested else ""


def _trouble(what: str, fix: str) -> str:
    stop = "" if what.endswith((".", "?", "!")) else "."
    message = f"{prose(what[:1].upper() + what[1:])}{stop}"
    return (
        f"{message} {prose(fix[:1].upper() + fix[1:])}."
        if fix and not fix.endswith((".", "?"))
        else f"{message} {prose(fix)}".strip()
    )
