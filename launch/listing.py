"""`fedsim list`: what there is to choose from, a line each. It reads the files and imports none of them."""

from collections.abc import Sequence

from fedsim.errors import unknown_name
from launch.arguments import Arguments
from launch.registry import choices

KINDS = ("methods", "datasets", "partitioners", "presets", "sweeps")


def main(argv: Sequence[str]) -> int:
    """Prints name, one phrase and source of everything of a kind, or of every kind."""
    parser = Arguments("list", "Lists what there is.")
    parser.add_argument("kind", nargs="?", help=f"one of {', '.join(KINDS)}; all of them without it")
    kind = parser.parse_args(argv).kind
    if kind is not None and kind not in KINDS:
        raise unknown_name("kind", kind, KINDS)
    for each in KINDS if kind is None else (kind,):
        if kind is None:
            print(f"{each}:")
        found = choices(each)
        width = max(len(choice.name) for choice in found)
        for choice in found:
            source = f"  [{choice.source}]" if choice.source else ""
            print(f"{'  ' if kind is None else ''}{choice.name:<{width}}  {choice.phrase}{source}")
    return 0
