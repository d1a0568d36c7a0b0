"""Words that are no metric, rule or chart; and what people call those that are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """A word, what it means here, and where that comes from."""

    name: str
    meaning: str
    source: str


TERMS: Mapping[str, Term] = {
    term.name: term
    for term in (
        Term("tailwise", "What you use: it audits the spectra of a network's weights, says what they mean, watches "
             "training, and plans pruning and quantization that are tried on text.", "docs/index.md"),
        Term("HT-SR", "Heavy-tailed self-regularization: training correlates the weights of a layer, and the "
             "eigenvalues of WᵀW then grow a heavy tail. The tail's exponent alpha describes how far that went. Across "
             "models of one family, means of such numbers went along with test accuracy; for one layer alpha describes "
             "a spectrum and is no measure of quality.",
             "Martin, Peng & Mahoney 2021"),
        Term("ESD", "Empirical spectral density: the set of the eigenvalues λ = σ² of the smaller of WᵀW and WWᵀ, not "
             "divided by n and not centred.", "docs/definitions.md"),
        Term("tail", "The largest eigenvalues, from λ_min on, to which a power law p(λ) ∝ λ^−α is fitted. A heavy tail "
             "(small alpha) has a few very large eigenvalues: strong correlations that training made.",
             "Clauset, Shalizi & Newman 2009"),
        Term("bulk", "The eigenvalues that look like noise: those below the Marchenko–Pastur edge λ₊.",
             "Marchenko & Pastur 1967"),
        Term("bands", "The HT-SR bands of alpha: 2 to 4 well fitted, 4 to 6 weakly heavy-tailed, above 6 "
             "under-trained, below 2 over-trained or memorising. They hold for the ks estimator and a good fit "
             "(small D) only; a poor fit is no verdict.", "Martin, Peng & Mahoney 2021"),
        Term("trusted fit", "A power law that may be read: of 50 eigenvalues and a tail of ten or more, near to the "
             "fitted law, and heavier than noise of the shape. Means, verdicts and charts of alpha count these alone; "
             "the others are drawn hollow.", "docs/definitions.md"),
        Term("atlas", "Numbers of published healthy models, by role, shape, size and depth: what a layer is held "
             "against. That it is lower or higher than most is no fault by itself.", "docs/cluster.md"),
        Term("baseline", "The same estimator on Gaussian matrices of the same shape. alpha of pure noise depends on "
             "the shape, so a distance to noise (the z columns) carries from shape to shape and a fixed threshold does "
             "not.",
             "docs/definitions.md"),
        Term("sparsity", "The fraction of a tensor's parameters that pruning sets to zero or takes out.",
             "docs/prune.md"),
        Term("plan", "A file that says for every tensor how much is pruned or which number format it gets, and why. "
             "Nothing is changed until `tailwise apply` is run.", "docs/plans.md"),
        Term("auto", "The allocator that tries the other ways on calibration text, and keeps the plan that loses least "
             "on text the search had not seen.", "docs/prune.md"),
        Term("alarm", "What a rule over time noticed in a training run: code, step, layers, and when it began.",
             "docs/training.md"),
        Term("role", "What a matrix does in the network, told from its name: attn_q, mlp_up, embed … Compare numbers "
             "within a role and shape, not across.", "docs/checkpoints.md"),
        Term("finding", "A pattern that a rule saw in an audit, with its numbers, causes, remedies, and how well the "
             "rule itself is founded: theory, published, or heuristic.", "docs/rules.md"),
        Term("audit", "Every spectral number of one checkpoint, in a file; it holds no weights.", "docs/index.md"),
    )
}  # fmt: skip

#: Lower-case words of questions → name of a metric, rule, chart or term.
ALIASES: Mapping[str, str] = {
    "α": "alpha", "alpha hat": "alpha_weighted", "alpha-hat": "alpha_weighted", "α̂": "alpha_weighted",
    "weighted alpha": "alpha_weighted", "hill": "alpha_hill", "hill alpha": "alpha_hill", "alpha hill": "alpha_hill",
    "d": "ks_distance", "ks": "ks_distance", "ks distance": "ks_distance", "fit error": "ks_distance",
    "traps": "num_traps", "trap": "num_traps", "correlation trap": "num_traps", "correlation traps": "num_traps",
    "spikes": "num_spikes", "rank": "stable_rank", "entropy": "singular_entropy", "scale": "log_spectral_norm",
    "spectral norm": "log_spectral_norm", "rd": "rand_distance", "1 - rd": "one_minus_rd", "1-rd": "one_minus_rd",
    "1 − rd": "one_minus_rd", "detx": "detX_delta", "erg": "detX_delta", "criticality": "detX_delta",
    "frobenius norm": "log_norm", "xmin": "lambda_min", "htsr": "HT-SR", "ht sr": "HT-SR", "heavy tail": "tail",
    "heavy tails": "tail", "heavy-tailed": "tail", "power law": "tail", "spectrum": "ESD", "esd": "ESD",
    "marchenko-pastur": "bulk", "marchenko pastur": "bulk", "mp": "bulk", "noise baseline": "baseline",
    "trusted fits": "trusted fit",
    "band": "bands", "depth curse": "TW101", "curse of depth": "TW101", "rank collapse": "TW301",
    "under-training": "TW203", "undertrained": "TW203", "under-trained": "TW203", "over-training": "TW204",
    "overtrained": "TW204", "over-trained": "TW204", "overfitting": "TW204", "isotropy": "TW303",
    "scale jump": "TW401", "loss spike": "TW702", "memorising": "TW711", "memorizing": "TW711", "zeros": "sparsity",
    "plans": "plan", "alarms": "alarm", "roles": "role", "findings": "finding", "audits": "audit",
    "calibration": "auto", "heat map": "heatmap", "esd plot": "layer_esd",
}  # fmt: skip
