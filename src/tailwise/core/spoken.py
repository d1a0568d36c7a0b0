"""Messages are written with the options of the command line; who calls Python reads them as arguments."""

from __future__ import annotations

import re

#: Options that are switches, which in Python are true or false.
SWITCHES = frozenset({
    "act-order", "all-checkpoints", "all-experts", "basic", "dequantize", "equal-widths", "factored", "force", "merge",
    "no-cache", "no-clamp", "per-expert", "relative", "resume", "save-masks", "speed", "unmeasured", "weights-only",
})  # fmt: skip
#: Options whose argument in Python has another name.
ARGUMENTS = {
    "budget": "seconds", "perplexity-rise": "rise", "no-cache": "use_cache", "precisions": "formats",
    "adapter": "adapter_mode",
}  # fmt: skip
#: Words after an option that are no value of it.
_NO_VALUE = frozenset({
    "a", "above", "alone", "already", "an", "and", "apart", "as", "at", "away", "by", "does", "each", "first", "for",
    "from", "given", "has", "in", "instead", "is", "it", "makes", "measured", "names", "of", "on", "or", "out", "per",
    "reaches", "reads", "take", "takes", "tells", "than", "that", "the", "then", "there", "to", "too", "twice", "which",
    "with", "without",
})  # fmt: skip
#: A command as a whole stays one: it is to be typed into a terminal.
_COMMAND = re.compile(r"\b(?:tailwise|pip|python|uv|hf|ulimit|llama-quantize)\s(?:[^`,;()\n]|(?<=\w),(?=\w))*")
_OPTION = re.compile(
    r"(?<![\w-])--(?P<name>[a-z][a-z0-9-]*+)(?!_)"
    r"(?:[ =](?P<value>[\w'](?:[\w.:%|'×+=-]*\w)?(?:,\w(?:[\w.:%=-]*\w)?)*+))?"
)


def in_python(message: str) -> str:
    """The message with arguments in place of options.

    >>> in_python("give --base AUDIT, or leave --no-clamp out")
    'give base=AUDIT, or leave clamp=False out'
    >>> in_python("use --operator rtn --window 512; `tailwise audit --bootstrap 200` makes one")
    "use operator='rtn' window=512; `tailwise audit --bootstrap 200` makes one"
    """
    parts, last = [], 0
    for command in _COMMAND.finditer(message):
        parts += [_OPTION.sub(_argument, message[last : command.start()]), command.group()]
        last = command.end()
    return "".join([*parts, _OPTION.sub(_argument, message[last:])])


def _argument(found: re.Match[str]) -> str:
    option, value = found["name"].strip("-"), found["value"]
    name = ARGUMENTS.get(option, option.removeprefix("no-") if option in SWITCHES else option).replace("-", "_")
    rest = "" if value is None else f" {value}"
    if option in SWITCHES:
        return f"{name}={not option.startswith('no-')}{rest}"
    if value is None or value.lower().rstrip(".:") in _NO_VALUE:
        return f"{name}{rest}"
    literal = value.isupper() or (value[0].isdigit() and value.replace(".", "").isdigit()) or value.startswith("'")
    return f"{name}={value if literal else repr(value)}"
