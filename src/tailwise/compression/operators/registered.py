"""All operators, built in and of third parties: a row each. Imports no torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from tailwise.compression.operators.operator import Does, Operator, Work
from tailwise.core.errors import unknown_name
from tailwise.core.registry import Registry
from tailwise.models.activations import Need

_HERE = "tailwise.compression.operators."
_ALPHA_PRUNING = "Lu et al. 2024, AlphaPruning, arXiv:2410.10912: its code"
_OF_RANK = "the same, its figure on low rank: heavy tails hold few directions"
_ALPHA_QUANT = "AlphaQuant's and AlphaQ's code: fewer bits where α is high"

_BUILT_IN = (
    Operator(
        "magnitude", "prune", "none", "the entries of smallest magnitude, without data",
        "Han et al. 2015, arXiv:1506.02626; one threshold per tensor", f"{_HERE}masks:magnitude",
        of_direction=_ALPHA_PRUNING,
    ),
    Operator(
        "wanda", "prune", "norms", "the entries of smallest |W|·‖X‖",
        "Sun et al. 2024, arXiv:2306.11695, and its code", f"{_HERE}wanda:wanda",
        of_direction=_ALPHA_PRUNING, blind="magnitude",
    ),
    Operator(
        "sparsegpt", "prune", "hessian", "entries whose loss can be made good by the others",
        "Frantar & Alistarh 2023, arXiv:2301.00774, and its code", f"{_HERE}sparsegpt:sparsegpt",
        of_direction=_ALPHA_PRUNING, blind="magnitude", lighter="wanda",
    ),
    Operator(
        "structured", "prune", "none", "whole neurons and heads", "through all tensors that hold them", None,
        of_direction=_ALPHA_PRUNING, same_shape=False, patterns=False,
    ),
    Operator(
        "low_rank", "prune", "none", "W ≈ A·B",
        "Eckart & Young 1936: the nearest matrix of that rank in ‖W − A·B‖_F", f"{_HERE}low_rank:low_rank",
        direction=-1, of_direction=_OF_RANK, same_shape=False, patterns=False, ranks=True,
        with_text="low_rank_whitened",
    ),
    Operator(
        "low_rank_whitened", "prune", "hessian", "W ≈ A·B as its inputs see it",
        "Wang et al. 2024, SVD-LLM, arXiv:2403.07378", f"{_HERE}low_rank:low_rank_whitened",
        direction=-1, of_direction=_OF_RANK, same_shape=False, patterns=False, ranks=True, blind="low_rank",
        planned=False,
    ),
    Operator(
        "rtn", "quantize", "none", "every entry to the nearest value of the format",
        "the number formats themselves", f"{_HERE}rtn:rtn", of_direction=_ALPHA_QUANT,
    ),
    Operator(
        "gptq", "quantize", "hessian", "columns one by one, what rounding loses taken up by those that are left",
        "Frantar et al. 2022, arXiv:2210.17323", f"{_HERE}gptq:gptq",
        of_direction=_ALPHA_QUANT, blind="rtn", lighter="rtn",
    ),
    Operator(
        "imatrix", "quantize", "norms", "llama.cpp's types, errors weighed by the mean squared input of each column",
        "llama.cpp: its importance matrix, and ggml_quantize_chunk", f"{_HERE}rtn:imatrix",
        of_direction=_ALPHA_QUANT, blind="rtn", anywhere=True,
    ),
)  # fmt: skip
#: The operators that need no data: they stand in where no input reaches a layer.
WITHOUT_DATA: Mapping[Does, str] = {"prune": "magnitude", "quantize": "rtn"}


def _load_built_ins() -> None:
    for item in _BUILT_IN:
        OPERATORS.add(item.name, item, by=__name__)


OPERATORS: Registry[Operator] = Registry("operator", "tailwise.operators", _load_built_ins)


def operators_that(does: Does) -> dict[str, Operator]:
    """Those that plans of one kind can name."""
    return {name: item for name, item in OPERATORS.items() if item.does == does and item.planned}


def operator_of(name: str, does: Does = "prune") -> Operator:
    """The operator of that name; `UsageError` where plans of this kind can name none."""
    known = operators_that(does)
    if name not in known:
        raise unknown_name("operator", name, known)
    return known[name]


def direction_in_words(name: str) -> str:
    """For the notes of a plan."""
    return f"{name} compresses more where α is {'high' if OPERATORS[name].direction > 0 else 'low'}"


def pruner(name: str, *, needs: Need, source: str, direction: int = +1) -> Callable[[Work], Work]:
    """Register the decorated function, which sets entries of one matrix to zero: (W, `Amount`, `Activations`) → `Done`.

    The first line of its docstring is the summary. Plans, trials, `apply` and the command line know it from then on.
    """
    return _registered(name, "prune", needs, source, direction)


def quantizer(name: str, *, needs: Need, source: str, direction: int = +1) -> Callable[[Work], Work]:
    """Register the decorated function, which rounds one matrix: (W, `Target`, `Activations`) → `Done`.

    It gives the grid that its values lie on, where the format has scales.
    """
    return _registered(name, "quantize", needs, source, direction)


def _registered(name: str, does: Does, needs: Need, source: str, direction: int) -> Callable[[Work], Work]:
    def register(function: Work) -> Work:
        summary = (inspect.getdoc(function) or "").split("\n", 1)[0]
        blind = "" if needs == "none" else WITHOUT_DATA[does]
        OPERATORS.add(name, Operator(name, does, needs, summary, source, function, direction, blind=blind,
                                     lighter=blind if needs == "hessian" else ""),
                      by=function.__module__)  # fmt: skip
        return function

    return register
