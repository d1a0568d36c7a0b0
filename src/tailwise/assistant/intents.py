"""What people ask, told from their words: an ordered table, the first that fits answers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

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


def _words(pattern: str, reply: Reply) -> Callable[[Question], Reply | None]:
    compiled = re.compile(pattern)
    return lambda question: reply if compiled.search(question.lower) else None


_WHAT_IS = re.compile(
    r"^(?:so |and |please |hey,? )*(?:what(?:'s| is| are| does| do)|what exactly is|explain|define|meaning of|tell me about|"
    r"how (?:do i|to|should i) (?:read|interpret)|what do you mean by)\s+(?:the |a |an |meant by )?(.+?)"
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
    pairs = [" ".join(pair) for pair in zip(words, words[1:], strict=False)]
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
    Intent("quantize", "can I quantize to int4?",
           _words(r"quanti[sz]|\bint ?[2348]\b|\b[2348](\.\d)?[- ]?bits?\b|\bfp[48]\b|mxfp|nvfp|\bgguf\b|\bawq\b|\bgptq\b|low[- ]precision",
                  compression.quantize)),
    Intent("prune", "which layers can I prune?",
           _words(r"\bprun|sparsi|\bcompress|\bremove (some |any )?(layers|blocks|weights)|\bsmaller\b|\bdrop (layers|blocks)|"
                  r"(can|could) (i|we) (cut|drop|spare)|\bshrink", compression.prune)),
    Intent("plan", "what does this plan do?", _words(r"\bplans?\b", compression.one_plan)),
    Intent("training", "what changed in training?",
           _words(r"\btraining run|\bin training|\bduring training|while training|\balarms?\b|\bmy run\b|this run|the run|\bloss\b|"
                  r"\bsteps?\b|checkpoints?\b.*(over time|changed)", training.training)),
    Intent("compare", "is this fine-tune worse than its base?",
           _words(r"\bcompar|\bversus\b|\bvs\.?(\s|$)|\bdiff(erence|er|erent|s)?\b|fine-? ?tun|\bits base\b|the base\b|\bbase model|"
                  r"(better|worse) than|what('s| has)? changed|\bagainst\b|(which|who) (of|one).*(better|worse)", comparing.compare)),
    Intent("remedies", "what should I do?",
           _words(r"what (should|can|could|do|must) (i|we) (do|fix|try|change)|how (do|can|should) (i|we) (fix|improve|repair|mend)|"
                  r"\bremed|\bfix\b|\badvice\b|\badvise|\brecommend|next steps?|what now", health.remedies)),
    Intent("number", "what is the stable rank of block 3 mlp up?", _number),
    Intent("layer", "why is layer 3 red?", _layer),
    Intent("worst", "which layers are worst?",
           _words(r"\bworst\b|\bbad layers?|\b(sick|ill|unhealthy|problem|broken|suspicious|red|weakest) (layers?|matri)|"
                  r"which layers?|\boutliers?\b", health.worst)),
    Intent("list", "which models are here?",
           _words(r"\b(which|what|list|show|how many)\b.*\b(models?|audits?|runs?|plans?)\b.*(here|there|have|exist|available|loaded)|"
                  r"^list\b|^(show )?(all )?(models|audits|runs|plans)\??$", concepts.listing)),
    Intent("overview", "is this model healthy?",
           _words(r"\bhealth|\bsumm|\boverview|\b(is|are|how|does)\b.*\b(good|ok|okay|fine|well|bad|wrong|sick|trained|quality|look|it|model)\b|"
                  r"what('s| is) wrong|\bproblems?\b|\bfindings?\b|\bissues?\b|\bdiagnos|^why\b|tell me about|\bparameters\b|how (big|large)",
                  health.overview)),
)  # fmt: skip


def reply_to(question: Question) -> Reply | None:
    """What answers a question, or None."""
    for intent in INTENTS:
        reply = intent.fits(question)
        if reply is not None:
            return reply
    return None
