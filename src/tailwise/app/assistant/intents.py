"""What people ask, told from their words: an ordered table, the first that fits answers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from tailwise.app.assistant.functions.explaining import codes_in, named
from tailwise.app.assistant.question_wording import Wording
from tailwise.app.assistant.readings import reading_of
from tailwise.app.assistant.replies import comparisons as comparing
from tailwise.app.assistant.replies import compression, concepts, topics, values
from tailwise.app.assistant.replies import training_runs as training
from tailwise.app.assistant.replies import verdicts as health
from tailwise.app.assistant.replies.question import Question
from tailwise.app.assistant.replies.this_page import of_page
from tailwise.spectrum.metrics.metric import METRICS

Reply = Callable[[Question], str]


@dataclass(frozen=True)
class Intent:
    """A kind of question."""

    name: str
    fits: Callable[[Question], Reply | None]


def _words(reply: Reply, *patterns: str) -> Callable[[Question], Reply | None]:
    wording = Wording(*patterns)
    return lambda question: reply if wording.fits(question.lower) else None


def _aggregate(question: Question) -> Reply | None:
    """`what is the mean alpha of attention?`, `how many layers?`; before what would explain the word."""
    if not question.has_audit():
        return None
    metric = _metric_in(question)
    if metric is not None and values.AGGREGATE.fits(question.lower) and not _is_explained(question):
        return lambda asked: values.aggregate(asked, metric)
    counts = re.search(r"^(so |and )?(how many|count|number of|what number of)\b", question.lower)
    if counts and metric is None and _COUNTED.search(question.lower):
        return values.how_many
    return None


def _is_explained(question: Question) -> bool:
    return _EXPLAINED.fits(question.lower) or re.search(r"\bmeans?$", question.lower.rstrip(" ?.!")) is not None


_EXPLAINED = Wording(r"what does .*\bmean\b", r"\bmeaning\b")
_COUNTED = re.compile(r"layer|matri|block|param|weights\b|finding|warning|error|problem|note|issue|fits?\b|head|proj|"
                      r"attn|attention|mlp|embed|conv|expert|measured|tensor")  # fmt: skip
_WHAT_IS = re.compile(
    r"(?:so |and |please |hey,? ){0,4}(?:what(?:'s| is| are| does| do)|what exactly is|explain|define|"
    r"meaning of|tell me about|how (?:do i|to|should i) (?:read|interpret)|what do you mean by)"
    r" (?:the |a |an |meant by )?"
)
_BEHIND = frozenset({"mean", "means", "measure", "say", "show", "shows", "about", "again", "chart", "metric", "please"})
_TWO_BEHIND = frozenset({("stand", "for"), ("tell", "me")})
_METRIC_WORDS = re.compile(r"[a-z_0-9]+")


def _topic_in(question: str) -> str | None:
    """`alpha` of `what does alpha mean?`; None of what does not ask so."""
    head = _WHAT_IS.match(question)
    words = question[head.end() :].rstrip(" ?.!").split() if head else []
    while len(words) > 1 and (words[-1] in _BEHIND or (len(words) > 2 and tuple(words[-2:]) in _TWO_BEHIND)):
        del words[-1 if words[-1] in _BEHIND else -2 :]
    return " ".join(words) or None


def _explains(question: Question) -> Reply | None:
    """`what is alpha?`, `explain TW101`, `stable_rank`."""
    topic = named(_topic_in(question.lower) or question.lower)
    return None if topic is None else lambda asked: concepts.explain(asked, topic)


def _reading(question: Question) -> Reply | None:
    """`what does alpha below 2 mean?`; of a layer that is named, its own numbers answer."""
    value_meaning = reading_of(question.lower)
    if value_meaning is None or codes_in(question.text) or (question.has_audit() and question.layers().rows):
        return None
    return lambda asked: concepts.reading(asked, value_meaning)


def _code(question: Question) -> Reply | None:
    codes = codes_in(question.text)
    return None if not codes else lambda asked: "\n\n---\n\n".join(concepts.explain(asked, code) for code in codes[:3])


def _chart(question: Question) -> Reply | None:
    asked = re.search(r"\b(this|the) (chart|plot|figure|graph|picture)\b|what am i (looking at|seeing)", question.lower)
    return concepts.chart if asked and question.place.screen.chart else None


def _number(question: Question) -> Reply | None:
    """A metric of a layer, its extremes, or what it is and how it is spread here."""
    metric = _metric_in(question)
    if metric is None or (question.lower.startswith("why") and question.has_audit() and question.layers().rows):
        return None  # "why is alpha 7 in block 0" asks for the findings
    if values.AGGREGATE.fits(question.lower) and question.has_audit():
        return lambda asked: values.aggregate(asked, metric)
    if values.BOUND.search(question.lower) and question.has_audit():
        return lambda asked: values.beyond(asked, metric)
    if values.HIGH.fits(question.lower) or values.LOW.fits(question.lower) or re.search(r"\bsort", question.lower):
        return lambda asked: values.extremes(asked, metric)
    if not question.has_audit():
        return lambda asked: concepts.explain(asked, metric)
    named_one = question.layers()
    wanted = values.number if named_one.rows or named_one.trouble else values.metric_here
    return lambda asked: wanted(asked, metric)


def _metric_in(question: Question) -> str | None:
    words = [word for word in _METRIC_WORDS.findall(question.lower) if word.strip("_0123456789")]
    pairs = [" ".join(pair) for pair in pairwise(words)]
    metrics = [named(part) for part in (*pairs, *(word for word in words if len(word) > 2))]
    return next((name for name in metrics if name in METRICS), None)


def _layer(question: Question) -> Reply | None:
    """Any question that names a layer."""
    if not question.has_audit():
        return health.why if re.search(r"\b(layer|block) \d", question.lower) else None  # which asks for the audit
    meant = question.layers()
    return health.why if meant.rows or meant.trouble else None


def _run(question: Question) -> Reply | None:
    """Any question that names a run."""
    return training.training if training.run_in(question) else None


def _topic(question: Question) -> Reply | None:
    """One pattern of the whole model; of a layer, `_layer` answers."""
    if not topics.topic_of(question) or (question.has_audit() and question.layers().rows):
        return None
    return topics.topic


def _difference(question: Question) -> Reply | None:
    """`the difference between alpha and alpha_hill`: both, one after the other."""
    match = re.search(r"differences? between ", question.lower)
    sides = question.lower[match.end() :].partition(" and ")[::2] if match else ()
    both = [name for name in map(named, sides) if name is not None]
    if len(both) != 2:
        return None
    return lambda asked: "\n\n---\n\n".join(concepts.explain(asked, name) for name in both)


INTENTS: tuple[Intent, ...] = (
    Intent("aggregate", _aggregate),
    Intent("reading", _reading),
    Intent("ends", _words(concepts.ends, r"\b(near|close|next|closest|nearest)\b.*\b(data|input|label|output)s?\b")),
    Intent("explain", _explains),
    Intent("code", _code),
    Intent("difference", _difference),
    Intent("help", _words(
        concepts.abilities, r"what (can|could) (you|i) (do|ask)", r"^(hi|hello|hey|help|thanks|thank you)\b[ !.?]*$",
        r"who are you|what are you\b",
    )),
    Intent("chart", _chart),
    Intent("page", of_page),
    Intent("quantize", _words(
        compression.quantize, r"quanti[sz]", r"\bint ?[2348]\b", r"\b[2348](\.\d)?[- ]?bits?\b", r"\bn?fp ?[48]\b",
        r"mxfp|nvfp", r"\b(gguf|awq|gptq)\b", r"low[- ]precision",
    )),
    Intent("prune", _words(
        compression.prune, r"\bprun", r"sparsi", r"\bcompress", r"\b(remove|drop) (some |any )?(layer|block|weight)",
        r"\bsmaller\b|\bshrink", r"(can|could) (i|we) (cut|drop|spare)",
    )),
    Intent("plan", _words(compression.one_plan, r"\bplans?\b")),
    Intent("training", _words(
        training.training, r"\btraining run|\b(in|during|while) training", r"\balarms?\b", r"\b(my|this|the) run\b",
        r"\bloss\b", r"\bsteps?\b(?! should)", r"checkpoints?\b.*(over time|changed)",
    )),
    Intent("compare", _words(
        comparing.compare, r"\bcompar", r"\bversus\b|\bvs\b", r"\bdiff(erence|er|erent|s)?\b", r"fine-? ?tun",
        r"\b(its|the) base\b|\bbase model", r"(better|worse) than", r"what('s| has)? changed", r"\bagainst\b",
        r"which .*chang",
    )),
    Intent("remedies", _words(
        health.remedies, r"what (should|can|could|do|must) (i|we) (do|fix|try|change)",
        r"how (do|can|should) (i|we) (fix|improve|repair|mend)", r"\bremed|\bfix\b", r"\badvi[cs]e|\brecommend",
        r"next steps?|what now",
    )),
    Intent("run", _run),
    Intent("topic", _topic),
    Intent("number", _number),
    Intent("layer", _layer),
    Intent("worst", _words(
        health.worst, r"\bworst\b|\bweakest\b", r"\b(bad|sick|ill|unhealthy|problem|broken|red) (layer|matri)",
        r"which layers?", r"\boutliers?\b",
    )),
    Intent("list", _words(
        concepts.listing, r"\b(which|what|list|show|how many)\b.*\b(model|audit|run|plan)s\b.*(here|there|have|exist)",
        r"^list\b", r"^(show )?(all )?(models|audits|runs|plans)\b",
    )),
    Intent("overview", _words(
        health.overview, r"\bhealth|\bsumm|\boverview|\bdiagnos",
        r"\b(is|are|how|does)\b.*\b(good|ok|okay|fine|well|bad|wrong|sick|trained|quality|look|healthy)\b",
        r"what('s| is) wrong", r"\b(problem|finding|issue|parameter)s?\b", r"^why\b|tell me about|how (big|large)",
    )),
)  # fmt: skip


def reply_to(question: Question) -> Reply | None:
    """What answers a question, or None."""
    for intent in INTENTS:
        reply = intent.fits(question)
        if reply is not None:
            return reply
    return None
