"""Weights beside their moving average (EMA), told by names: the weights are what is read unless one asks otherwise."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable

_AVERAGE = re.compile(
    r"(?:\w+_)?ema(?:_\w+)?|(?:model|module|params|weights|net|state_dict)?_?averaged?(?:_(?:model|weights|params))?"
    r"|swa_(?:model|state_dict)|shadow(?:_params)?"
)
#: Networks that are trained, and the moving average of each where both are there.
_FOLLOWERS = {"teacher": "student", "target_encoder": "encoder", "key_encoder": "query_encoder"}
_ALIKE = 0.5  # of an average's names that the weights must match before the flat prefix of another word counts


def is_average(key: str, beside: Collection[str]) -> bool:
    """Whether `key` names averaged weights (`model_ema`, `g_ema`, `params_ema`), given the keys beside it."""
    return _AVERAGE.fullmatch(key) is not None or _FOLLOWERS.get(key) in beside


def averaged_prefixes(names: Iterable[str]) -> list[str]:
    """First segments of flat names that hold averaged weights of what stands beside them.

    `model_ema.…` of CompVis' diffusion models is one, beside `model.…`.
    """
    names = list(names)
    sizes = Counter(name.partition(".")[0] for name in names if "." in name)
    prefixes = [key for key in sizes if key and _AVERAGE.fullmatch(key)]
    prefixes += [key for key, of in _FOLLOWERS.items() if key in sizes and _alike(names, key, of)]
    plain = len(names) - sum(sizes[key] for key in prefixes)
    return [key for key in prefixes if plain >= _ALIKE * sizes[key]]


def _alike(names: Iterable[str], average: str, weights: str) -> bool:
    """Whether the names below one prefix are, half of them or more, those below the other."""
    below: dict[str, set[str]] = {average: set(), weights: set()}
    for name in names:
        first, _, rest = name.partition(".")
        if first in below:
            below[first].add(rest)
    return len(below[average] & below[weights]) >= _ALIKE * len(below[average])
