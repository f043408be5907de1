"""A detector in one word of a command line: ``grood``, ``grood:k=5,ood_prototype=noise``."""

import json
from typing import Any


def parse_spec(text: str) -> tuple[str, dict[str, Any]]:
    """Reads ``name`` or ``name:option=value,option=value``.

    Values are JSON (``5``, ``0.3``, ``true``, ``[0,1]`` or ``(0,1)``), or ``True``,
    ``False``, ``None`` or words, or words in brackets (``[mixup,noise]``), which make a list.

    Args:
      text: the detector's name and options.

    Returns:
      The name and the options, for `grood_jax.detectors.create`.

    Raises:
      TypeError: ``text`` is no string.
      ValueError: an option without a value, or given twice.
    """
    if not isinstance(text, str):
        raise TypeError(f"detector is {text!r}; expected a string")
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for item in _items(rest) if rest else []:
        option, equals, value = item.partition("=")
        if not (option and equals and value):
            raise ValueError(
                f"detector is {text!r}; expected name or name:option=value,option=value"
            )
        if option in options:
            raise ValueError(f"detector is {text!r}; expected {option!r} once")
        options[option] = _value(value)
    return name, options


def _items(text: str) -> list[str]:
    """The parts between commas; those inside brackets belong to a value."""
    items: list[str] = []
    start, depth = 0, 0
    for place, letter in enumerate(text):
        if letter in "[(":
            depth += 1
        elif letter in "])":
            depth -= 1
        elif letter == "," and depth <= 0:
            items.append(text[start:place])
            start = place + 1
    return [*items, text[start:]]


def _value(text: str) -> Any:
    if text.startswith("(") and text.endswith(")"):
        text = f"[{text[1:-1]}]"
    words = {"True": True, "False": False, "None": None}
    if text in words:
        return words[text]
    try:
        return json.loads(text)
    # ValueError also for numbers of thousands of digits; RecursionError for [[[[…
    except (ValueError, RecursionError):
        return _words(text)


def _words(text: str) -> Any:
    """A list of the words between brackets, or else the text."""
    inner = text[1:-1]
    if not (text.startswith("[") and text.endswith("]")) or set(inner) & set("[](){}\"'"):
        return text
    words = [word.strip() for word in inner.split(",")]
    return words if all(words) else text
