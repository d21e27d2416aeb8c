"""Something that happens in the middle of a run: before a function is called for the so-manieth time."""

from collections.abc import Callable
from typing import Any


def before(owner: Any, name: str, count: int, act: Callable[[], object]) -> None:
    """Lets something happen.

    Args:
        owner: of the function: a class or a module.
        name: of the function.
        count: before which of its calls, from 1.
        act: what happens.
    """
    original: Callable[..., Any] = getattr(owner, name)
    left = [count]

    def trapped(*given: Any, **named: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            act()
        return original(*given, **named)

    setattr(owner, name, trapped)
