"""What happened in a training run."""

from __future__ import annotations

from tailwise.app.assistant.answer import Fact
from tailwise.app.assistant.markdown import escape, link, prose
from tailwise.app.assistant.replies.question import Question
from tailwise.app.assistant.words import count, listed, num
from tailwise.app.workspace import links
from tailwise.core.errors import TailwiseError

_MOST = 5


def training(question: Question) -> str:
    """Alarms, loss, and how the spectra moved."""
    fact = question.ask("training", run=run_in(question))
    head = (
        f"{link(fact['run'], links.run(fact['run']))}: {count(fact['points'], 'point')}, "
        f"{count(fact['audits'], 'audit')}; steps {num(fact['first_step'])} to {num(fact['last_step'])}; "
        f"{fact['state']}."
    )
    lines = [_alarm(item) for item in fact["alarms"][:_MOST]]
    alarms = (f"{count(fact['alarms_in_all'], 'alarm')}, the latest first:\n\n" + "\n".join(lines) if lines
              else fact["no_alarm"])  # fmt: skip
    moved = [f"- {escape(name)}: {_ends(item)}, lowest {num(item['lowest'])}"
             for name, item in fact["scalars"].items()]  # fmt: skip
    moved += [f"- mean {escape(name)} over {count(item['last_layers'], 'layer')}{_left_out(item)}: {_ends(item)}"
              for name, item in fact["means"].items()]  # fmt: skip
    parts = [head, alarms]
    if moved:
        parts.append("What moved:\n\n" + "\n".join(moved))
    parts.append("Spectra drift in healthy runs too; an alarm is a change that stands out of the run's own.")
    return "\n\n".join(parts)


def _left_out(item: Fact) -> str:
    """Of an exponent, how many fits of the whole run are not trusted."""
    return f" ({item['fits_left_out']} of {count(item['fits'], 'fit')} not trusted, left out)" if "fits" in item else ""


def run_in(question: Question) -> str:
    """The run that a question names, or ""."""
    try:
        runs = [item.name for item in question.place.workspace.history.runs()]
    except TailwiseError:
        return ""  # the function says why
    named_runs = [name for name in runs if len(name) > 1 and name.lower() in question.lower]
    return max(named_runs, key=len, default="")


def _alarm(item: Fact) -> str:
    since = f", since step {num(item['since'])}" if item["since"] is not None else ""
    layers = (
        f" in {listed([escape(one) for one in item['layers']], 3, item['layers_in_all'])}" if item["layers"] else ""
    )
    code = f" In code: {listed([escape(one) for one in item['in_code']])}." if item["in_code"] else ""
    return (f"- {link(item['code'], links.explain(item['code']))} {prose(item['title'])} ({item['severity']}) at step "
            f"{num(item['step'])}{since}{layers}.{code}")  # fmt: skip


def _ends(item: Fact) -> str:
    first, last = num(item["first_step"]), num(item["last_step"])
    return f"{num(item['first'])} at step {first}, {num(item['last'])} at step {last}"
