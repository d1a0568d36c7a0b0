"""What people ask, told from their words: an ordered table, the first that fits answers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from tailwise.assistant.functions.explaining import codes_in, named
from tailwise.assistant.replies import comparing, compression, concepts, health, training
from tailwise.assistant.replies.question import Question
from tailwise.metrics.metric import METRICS

Reply = Callable[[Question], str]


@dataclass(frozen=True)
class Intent:
    """A kind of question."""

    name: str
    example: str  # shown where nothing fits
    fits: Callable[[Question], Reply | None]


def _words(reply: Reply, *patterns: str) -> Callable[[Question], Reply | None]:
    compiled = [re.compile(pattern) for pattern in patterns]
    return lambda question: reply if any(one.search(question.lower) for one in compiled) else None


_WHAT_IS = re.compile(
    r"^(?:so |and |please |hey,? )*(?:what(?:'s| is| are| does| do)|what exactly is|explain|define|meaning of|"
    r"tell me about|how (?:do i|to|should i) (?:read|interpret)|what do you mean by)\s+(?:the |a |an |meant by )?(.+?)"
    r"(?:\s+(?:mean|means|stand for|measure|say|about|again|chart|metric|please))*\s*[?.!]*$"
)
_METRIC_WORDS = re.compile(r"[a-z_0-9]*[a-z][a-z_0-9]*")


def _explains(question: Question) -> Reply | None:
    """`what is alpha?`, `explain TW101`, `stable_rank`."""
    match = _WHAT_IS.match(question.lower)
    topic = named(match[1]) if match else named(question.lower)
    return None if topic is None else lambda asked: concepts.explain(asked, topic)


def _code(question: Question) -> Reply | None:
    codes = codes_in(question.text)
    return None if not codes else lambda asked: "\n\n---\n\n".join(concepts.explain(asked, code) for code in codes[:3])


def _chart(question: Question) -> Reply | None:
    asked = re.search(r"\b(this|the) (chart|plot|figure|graph|picture)\b|what am i (looking at|seeing)", question.lower)
    return concepts.chart if asked and question.place.screen.chart else None


def _number(question: Question) -> Reply | None:
    """A metric beside a layer, or its extremes."""
    metric = _metric_in(question)
    if metric is None:
        return None
    wanted = re.search(
        r"\b(highest|lowest|largest|smallest|biggest|max(imum)?|min(imum)?|most|least|top|sort)\b", question.lower
    )
    if wanted:
        return lambda asked: health.extremes(asked, metric)
    if not question.place.workspace.entries("audit"):
        return None
    return (lambda asked: health.number(asked, metric)) if question.layers().words else None


def _metric_in(question: Question) -> str | None:
    words = _METRIC_WORDS.findall(question.lower)
    pairs = [" ".join(pair) for pair in pairwise(words)]
    found = [named(part) for part in (*pairs, *(word for word in words if len(word) > 2))]
    return next((name for name in found if name in METRICS), None)


def _layer(question: Question) -> Reply | None:
    """Any question that names a layer."""
    if not question.place.workspace.entries("audit"):
        return None
    meant = question.layers()
    return health.why if meant.rows or meant.trouble else None


INTENTS: tuple[Intent, ...] = (
    Intent("explain", "what is alpha?", _explains),
    Intent("code", "what does TW101 mean?", _code),
    Intent("chart", "how do I read this chart?", _chart),
    Intent("quantize", "can I quantize to int4?", _words(
        compression.quantize, r"quanti[sz]", r"\bint ?[2348]\b", r"\b[2348](\.\d)?[- ]?bits?\b", r"\bn?fp ?[48]\b",
        r"mxfp|nvfp", r"\b(gguf|awq|gptq)\b", r"low[- ]precision",
    )),
    Intent("prune", "which layers can I prune?", _words(
        compression.prune, r"\bprun", r"sparsi", r"\bcompress", r"\b(remove|drop) (some |any )?(layer|block|weight)",
        r"\bsmaller\b|\bshrink", r"(can|could) (i|we) (cut|drop|spare)",
    )),
    Intent("plan", "what does this plan do?", _words(compression.one_plan, r"\bplans?\b")),
    Intent("training", "what changed in training?", _words(
        training.training, r"\btraining run|\b(in|during|while) training", r"\balarms?\b", r"\b(my|this|the) run\b",
        r"\bloss\b", r"\bsteps?\b(?! should)", r"checkpoints?\b.*(over time|changed)",
    )),
    Intent("compare", "is this fine-tune worse than its base?", _words(
        comparing.compare, r"\bcompar", r"\bversus\b|\bvs\b", r"\bdiff(erence|er|erent|s)?\b", r"fine-? ?tun",
        r"\b(its|the) base\b|\bbase model", r"(better|worse) than", r"what('s| has)? changed", r"\bagainst\b",
    )),
    Intent("remedies", "what should I do?", _words(
        health.remedies, r"what (should|can|could|do|must) (i|we) (do|fix|try|change)",
        r"how (do|can|should) (i|we) (fix|improve|repair|mend)", r"\bremed|\bfix\b", r"\badvi[cs]e|\brecommend",
        r"next steps?|what now",
    )),
    Intent("number", "what is the stable rank of block 3 mlp up?", _number),
    Intent("layer", "why is layer 3 red?", _layer),
    Intent("worst", "which layers are worst?", _words(
        health.worst, r"\bworst\b|\bweakest\b", r"\b(bad|sick|ill|unhealthy|problem|broken|red) (layer|matri)",
        r"which layers?", r"\boutliers?\b",
    )),
    Intent("list", "which models are here?", _words(
        concepts.listing, r"\b(which|what|list|show|how many)\b.*\b(model|audit|run|plan)s\b.*(here|there|have|exist)",
        r"^list\b", r"^(show )?(all )?(models|audits|runs|plans)\b",
    )),
    Intent("overview", "is this model healthy?", _words(
        health.overview, r"\bhealth|\bsumm|\boverview|\bdiagnos",
        r"\b(is|are|how|does)\b.*\b(good|ok|okay|fine|well|bad|wrong|sick|trained|quality|look|it|model)\b",
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
