"""Values of a chapter's parameters, checked before anything is read or trained: what can be said of one field alone.

How two parameters must fit each other is the chapter's own to say.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from avssl_core.reporting.names import unknown_name


def check_fields(
    config: object,
    *,
    choices: Mapping[str, Collection[object]] | None = None,
    positive: Iterable[str] = (),
    not_negative: Iterable[str] = (),
    shares: Iterable[str] = (),
    lists: Mapping[str, Collection[str]] | None = None,
) -> None:
    """Raise on the first field of ``config`` that does not hold what its kind takes, naming what would do.

    Args:
        config: any object with the fields as attributes.
        choices: fields that hold one of a few values.
        positive: fields that hold a number above 0.
        not_negative: fields that hold a number from 0 on.
        shares: fields that hold a number from 0 to 1.
        lists: fields that hold names, separated by commas, and the names there are; a field is named in the plural.

    Raises:
        ValueError: a value that is none of these; numbers that are not a number are refused, too.
    """
    for name, known in (choices or {}).items():
        if (value := getattr(config, name)) not in known:
            raise ValueError(f"{name}={value!r}: use one of {', '.join(map(str, known))}")
    _check_numbers(config, positive, lambda value: value > 0, "must be positive")
    _check_numbers(config, not_negative, lambda value: value >= 0, "must be 0 or more")
    _check_numbers(config, shares, lambda value: 0 <= value <= 1, "it is a share, between 0 and 1")
    for name, valid in (lists or {}).items():
        for part in (held := getattr(config, name)).split(","):
            if part not in valid:
                raise ValueError(f"{name}={held!r}: {unknown_name(name.removesuffix('s'), part, valid)}")


def _check_numbers(config: object, names: Iterable[str], holds: Callable[[float], bool], demand: str) -> None:
    for name in names:
        if not holds(value := getattr(config, name)):
            raise ValueError(f"{name}={value}: {demand}")
