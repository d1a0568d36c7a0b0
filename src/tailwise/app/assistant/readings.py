"""How values are read, as the help page of WeightWatcher has it and with what tailwise adds: one text for all uses.

The offline answers, the language model's prompt and the tests take it from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tailwise.app.assistant.question_wording import Wording

_HELP = "WeightWatcher's help page"
_HTSR = "Martin, Peng & Mahoney 2021"


@dataclass(frozen=True)
class ValueMeaning:
    """What some value of a number is said to mean."""

    title: str
    meaning: str
    source: str
    asked: Wording  # of a question in lower case, with single spaces
    see: tuple[str, ...] = ()  # rules, charts and metrics


_ALPHA = r"(?:\balpha\b|α|\bexponent\b)"
_ASKS = Wording(r"mean|good|bad|why|what|say|tell|read|\bis\b|should|worry|how")
_WHICH_LAYERS = Wording(
    r"\b(which|what|how many|list|show)\b.*\b(layers?|matrix|matrices|blocks?|roles?)\b.*\b(have|has|with|are|is)\b"
)

READINGS: Mapping[str, ValueMeaning] = {
    item.title: item
    for item in (
        ValueMeaning(
            "alpha below 2",
            "Over-trained or memorising, by the bands: the few largest directions have taken over. Single layers "
            "below 2 "
            "occur in healthy models; many at once are a warning, and correlation traps beside them make it likelier. "
            "Only where D is small; where the fit has most of the spectrum it describes the bulk.",
            f"{_HTSR}; {_HELP}",
            Wording(rf"{_ALPHA}.*(?:below|under|less than|smaller than|<) ?2\b", rf"low {_ALPHA}"),
            ("TW204", "TW205", "alpha_hist"),
        ),
        ValueMeaning(
            "alpha above 6",
            "Under-trained, by the bands: no heavy tail has grown, as in a layer near its initialisation. Where D is "
            "large there is no power law, which is no verdict; `alpha_hill` beside its noise tells untrained layers "
            "better. Between 4 and 6 the tail is weakly heavy.",
            f"{_HTSR}; {_HELP}",
            Wording(rf"{_ALPHA}.*(?:above|over|greater than|more than|larger than|>) ?(?:6|5|4)\b", rf"high {_ALPHA}"),
            ("TW203", "TW202", "hill_by_layer"),
        ),
        ValueMeaning(
            "high 1 − RD",
            "Near 1 the spectrum is that of W's own entries in random order: the layer's correlations are few, as if "
            f"untrained. {_HELP} calls a high 1 − RD good, the library's README calls a high RD good; nothing is "
            "ranked "
            "by it alone.",
            f"{_HELP}; docs/definitions.md",
            Wording(
                r"high|large|low|small|near 1|close to 1.*1 ?[-−–] ?rd|one_minus_rd|\brd\b",
                r"1 ?[-−–] ?rd|one_minus_rd.*high|large|low|small|near|close|good|bad|\bof ?(?:0?\.\d|1\b)",
            ),
            ("one_minus_rd", "rd_vs_alpha"),
        ),
        ValueMeaning(
            "low effective rank",
            "The layer uses few of its directions. Against an untrained layer of its shape a lower rank is a sign of "
            "learning, and of two models with one accuracy the lower is preferred; a sharp loss against its "
            "neighbours, or a rank near 1, is collapse or saturation.",
            f"{_HELP}; the HT-SR singular-entropy manual",
            Wording(
                r"low|small|falling|dropping|high.*effective.?rank", r"effective.?rank.*low|small|near|fall|drop|high"
            ),
            ("TW301", "TW302", "effective_rank_by_layer"),
        ),
        ValueMeaning(
            "detX near 0",
            "The fitted tail is the one whose volume is conserved: critical balance, the ideal of the trace-log (ERG) "
            "condition. Far below 0 the fitted tail is shorter, far above longer; read α of such layers with reserve.",
            "Martin & Hinrichs 2025, SETOL",
            Wording(r"det ?x.*0|zero|near|negative|positive|high|low", r"erg|critical.*near|0|zero"),
            ("TW402", "detX_by_layer"),
        ),
        ValueMeaning(
            "many correlation traps",
            "Eigenvalues that stick out even after the entries are shuffled: single very large weights make them. "
            "A sign "
            "of over-fitting or too large a learning rate, the more so beside α below 2; 0 is good. Layers with "
            "outlier features by design have them too.",
            f"{_HELP}; rule TW205",
            Wording(r"many|more|several|few|any|high|number of.*\btraps?\b", r"\btraps?\b.*many|mean|good|bad"),
            ("TW205", "traps_by_layer"),
        ),
        ValueMeaning(
            "a jump of scale",
            "log10 λmax, the scale, should run smoothly along depth within a role. A jump is a blow-up: a wrong "
            "initialisation, a learning rate too high for that layer, or a merge; it hurts stability, quantization "
            "and merging.",
            f"{_HELP}; rule TW401",
            Wording(r"what|why|mean|high|large|jump.*\bscale\b", r"\bscale\b.*mean|high|large|jump"),
            ("TW401", "scale_by_layer"),
        ),
        ValueMeaning(
            "softmax bottleneck",
            "The output layer is wider than the hidden state can express: its spectrum saturates onto few directions "
            "while the vocabulary wants many. It is looked for where a layer feeds a softmax: the head, or an "
            "embedding that is tied to it. Remedies: a larger hidden size, a curriculum, a penalty on the spectrum.",
            "Yang et al. 2018, arXiv:1711.03953; Godey et al. 2024, arXiv:2404.07647",
            Wording(r"softmax.?bottleneck", r"head .*saturat", r"saturat.*head"),
            ("TW302", "entropy_by_layer"),
        ),
        ValueMeaning(
            "AlphaPruning",
            "Pruning that takes more of blocks with high α: shares linear in the mean α of a block, within [1 − τ, "
            "1 + τ]. "
            "Here `tailwise plan prune --allocator alpha`. On two small models it did not reliably beat the same "
            "amount everywhere; `auto` tries it beside the others, `tailwise predict` measures whether α predicts it.",
            "Lu et al. 2024, arXiv:2410.10912; docs/evidence.md",
            Wording(r"alpha.?pruning"),
            ("auto", "sparsity"),
        ),
        ValueMeaning(
            "τ",
            "How far AlphaPruning lets amounts spread: shares lie in [1 − τ, 1 + τ], 0 is uniform, published 0.3. "
            "`auto` tries 0.05 to 0.5; `tailwise plan tau MODEL --calibration TEXT --chart x.png` draws the loss "
            "over τ.",
            "Lu et al. 2024, arXiv:2410.10912",
            Wording(r"\btau\b|τ"),
            ("auto",),
        ),
        ValueMeaning(
            "how often to audit",
            "Cheap norms at every step cost next to nothing; a full audit every 500 to 2,000 steps, or at every "
            "checkpoint "
            "that is kept, shows what changes. `tw.Monitor(model, every=1000)` holds a share of the time and skips "
            "audits that do not fit. After training: once for each model that is kept, and again after fine-tuning, "
            "pruning or merging.",
            "docs/training.md",
            Wording(r"how often.*audit|measure|look|check|monitor|run", r"audit|monitor.*how often", r"every how many"),
            ("audit", "alarm"),
        ),
    )
}


def reading_of(question: str) -> ValueMeaning | None:
    """The reading that a question in lower case asks for; None where it asks which layers are so."""
    if "softmax" not in question and any(_WHICH_LAYERS.fits(sentence) for sentence in question.split("?")):
        return None
    if not (_ASKS.fits(question) or len(question.strip(" ?.!").split()) == 1):
        return None
    return next((item for item in READINGS.values() if item.asked.fits(question)), None)
