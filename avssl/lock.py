"""``python -m avssl.lock``: the exact versions behind published results, one ``name==version`` a line.

Only what this project asks for, directly or through its dependencies; whatever else the environment holds is left out.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("test", "scale", "book")  # what `make test` installs


def closure(package: str, extras: Iterable[str] = ()) -> dict[str, str]:
    """Installed versions of everything ``package[extras]`` needs on this platform, by canonical name; without itself.

    Raises:
        importlib.metadata.PackageNotFoundError: something it needs is not installed.
    """
    found: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(canonicalize_name(package), frozenset(extras))]
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        distribution = importlib.metadata.distribution(name)
        found[name] = distribution.version
        for requirement in map(Requirement, distribution.requires or []):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in wanted or {""}):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    del found[canonicalize_name(package)]
    return found


def main() -> None:
    """Print the lock."""
    print(f"# Python {platform.python_version()}, {platform.system()} {platform.machine()}; made by `make lock`.")
    for name, version in sorted(closure("avssl", EXTRAS).items()):
        print(f"{name}=={version}")


if __name__ == "__main__":
    main()
