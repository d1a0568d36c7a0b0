"""What people ask, told from their words: an ordered table, the first that fits answers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from tailwise.app.assistant.functions.explaining import codes_in, named
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
    compiled = [re.compile(pattern) for pattern in patterns]
    return lambda question: reply if any(one.search(question.lower) for one in compiled) else None


def _aggregate(question: Question) -> Reply | None:
    """`what is the mean alpha of attention?`, `how many layers?`; before what would explain the word."""
    if not question.has_audit():
        return None
    metric = _metric_in(question)
    if metric is not None and re.search(values.AGGREGATE, question.lower) and not _EXPLAINED.search(question.lower):
        return lambda asked: values.aggregate(asked, metric)
    counts = re.search(r"^(so |and )?(how many|count|number of|what number of)\b", question.lower)
    if counts and metric is None and _COUNTED.search(question.lower):
        return values.how_many
    return None


_EXPLAINED = re.compile(r"what does .*\bmean\b|\bmeans?\s*[?.!]*$|\bmeaning\b")
_COUNTED = re.compile(r"layer|matri|block|param|weights\b|finding|warning|error|problem|note|issue|fits?\b|head|proj|"
                      r"attn|attention|mlp|embed|conv|expert|measured|tensor")  # fmt: skip
_WHAT_IS = re.compile(
    r"^(?:so |and |please |hey,? )*(?:what(?:'s| is| are| does| do)|what exactly is|explain|define|"
    r"meaning of|tell me about|how (?:do i|to|should i) (?:read|interpret)|what do you mean by)"
    r"\s+(?:the |a |an |meant by )?(.+?)"
    r"(?:\s+(?:mean|means|stand for|measure|say|show|shows|tell me|about|again|chart|metric|please))*\s*[?.!]*$"
)
_METRIC_WORDS = re.compile(r"[a-z_0-9]*[a-z][a-z_0-9]*")


def _explains(question: Question) -> Reply | None:
    """`what is alpha?`, `explain TW101`, `stable_rank`."""
    match = _WHAT_IS.match(question.lower)
    topic = named(match[1]) if match else named(question.lower)
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
    if re.search(values.AGGREGATE, question.lower) and question.has_audit():
        return lambda asked: values.aggregate(asked, metric)
    if values.BOUND.search(question.lower) and question.has_audit():
        return lambda asked: values.beyond(asked, metric)
    if re.search(f"{values.HIGH}|{values.LOW}|\\bsort", question.lower):
        return lambda asked: values.extremes(asked, metric)
    if not question.has_audit():
        return lambda asked: concepts.explain(asked, metric)
    named_one = question.layers()
    wanted = values.number if named_one.rows or named_one.trouble else values.metric_here
    return lambda asked: wanted(asked, metric)


def _metric_in(question: Question) -> str | None:
    words = _METRIC_WORDS.findall(question.lower)
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
    match = re.search(r"differences? between (.+?) and (.+?)\s*[?.!]*$", question.lower)
    topics_named = [named(part) for part in match.groups()] if match else []
    both = [name for name in topics_named if name is not None]
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
