"""The picture of a partition: which labels the clients hold as stacked bars, and how many examples as a histogram."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from data_partitions.partition import Partition
from launch.reports.canvas import HEIGHT, LEGEND_ROW, STYLE, WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette with its yellow, then what is farthest from all before it to normal and colour-blind readers.
COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#660000", "#5588FF", "#993300"),
    *("#AAEEAA", "#331177", "#DDDDFF", "#005566", "#00CC77", "#550044", "#BB4433", "#4433AA", "#007766", "#880033"),
)
OTHER, PLAIN = "#BFBFBF", COLOURS[0]
BARS, LEAST_BINS, MOST_BINS = 60, 8, 40
UNEVEN = 10
"""How much larger than the median client the largest may be, before bars are shares instead of counts."""
WIDE = 30
"""How much larger than the smallest client the largest may be, before the histogram's axis is logarithmic."""
NAME_CHARACTERS, LEGEND_CHARACTERS = 24, 118


def draw_partition(
    partition: Partition, labels: np.ndarray | None, names: Sequence[str], title: Sequence[str]
) -> "Figure":
    """Draws stacked bars of a sample of clients beside the histogram of the sizes of all.

    Args:
        partition: what to draw.
        labels: integers (N,), the label of each training example; None draws sizes only.
        names: of the labels 0, 1, ...; labels beyond are shown as numbers.
        title: lines above the panels.

    Returns:
        A figure that belongs to no window and no global state.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT), dpi=200, layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle("\n".join(_shortened(line, 2 * NAME_CHARACTERS + 60) for line in title), fontsize=13)
        left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
        _draw_clients(left, partition, labels, names)
        _draw_sizes(right, partition.sizes)
        _legend(figure, left)
    return figure


def drawn_clients(sizes: np.ndarray) -> tuple[np.ndarray, str]:
    """Chooses the clients that are drawn as bars.

    Args:
        sizes: how many examples each client holds (C,).

    Returns:
        Clients, and a phrase that says which: all of them by number, or an even sample of at most 60 by falling size.
    """
    clients = len(sizes)
    if clients <= BARS:
        return np.arange(clients), "all clients" if clients > 1 else "the only client"
    stride = -(-clients // BARS)
    order = np.argsort(-sizes, kind="stable")
    return order[stride // 2 :: stride], f"every {_ordinal(stride)} of {clients:,} clients, by size"


def _draw_clients(panel: "Axes", partition: Partition, labels: np.ndarray | None, names: Sequence[str]) -> None:
    """Stacks each drawn client's labels, in the order of their numbers, the rare ones beyond the palette on top."""
    clients, which = drawn_clients(partition.sizes)
    layers = _layers(partition, clients, labels, names)
    heights = partition.sizes[clients]
    held = heights[heights > 0]
    uneven = bool(labels is not None and len(held) and held.max() > UNEVEN * np.median(held))
    scale = 100 / np.maximum(heights, 1) if uneven else np.ones(len(clients))
    bottom = np.zeros(len(clients))
    for name, counts, colour in layers:
        edge: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.3}
        panel.bar(np.arange(len(clients)), counts * scale, 0.86, bottom, color=colour, label=name, **edge)
        bottom += counts * scale
    panel.set_title(_capital(which), fontsize=12, loc="left", color="#444444")
    panel.set_ylabel("Share of the client's examples (%)" if uneven else "Examples")
    panel.set_ylim(0, 100 if uneven else 1.05 * max(1, heights.max()))
    _count_axis(panel)
    _client_axis(panel, len(clients), len(partition.sizes))


def _count_axis(panel: "Axes") -> None:
    """Whole numbers with commas up the side, and lines across."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    panel.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    panel.grid(True, axis="y")


def _client_axis(panel: "Axes", drawn: int, clients: int) -> None:
    panel.set_xlim(-max(0.7, (6 - drawn) / 2), drawn - 1 + max(0.7, (6 - drawn) / 2))
    panel.tick_params(color="#444444")
    if drawn == clients:
        panel.set_xlabel("Client")
        panel.set_xticks(range(0, drawn, 1 if drawn <= 20 else 5))
    else:
        panel.set_xlabel("Clients, largest to smallest")
        panel.set_xticks([])


def _layers(
    partition: Partition, clients: np.ndarray, labels: np.ndarray | None, names: Sequence[str]
) -> list[tuple[str, np.ndarray, str]]:
    """Name, counts per drawn client and colour of what is stacked."""
    if labels is None:
        return [("", partition.sizes[clients], PLAIN)]
    values, totals = np.unique(labels[partition.indices], return_counts=True)
    kept = np.sort(np.argsort(-totals, kind="stable")[: len(COLOURS)])
    held = [labels[partition.of(client)] for client in clients]
    named = [
        (_name(int(values[at]), names), np.array([np.count_nonzero(rows == values[at]) for rows in held]), colour)
        for at, colour in zip(kept, COLOURS, strict=False)
    ]
    if len(values) == len(kept):
        return named
    rest = partition.sizes[clients] - sum(counts for _, counts, _ in named)
    return [*named, (f"other ({len(values) - len(kept):,} labels)", rest, OTHER)]


def _draw_sizes(panel: "Axes", sizes: np.ndarray) -> None:
    """The histogram over all clients; a logarithmic axis has no place for empty clients, so the title counts them."""
    held = sizes[sizes > 0]
    logarithmic = bool(len(held)) and held.max() > WIDE * held.min()
    shown = held if logarithmic else sizes
    bins = int(np.clip(2 * np.sqrt(len(shown)), LEAST_BINS, MOST_BINS))
    edges = bin_edges(int(shown.min()), int(shown.max()), bins, logarithmic)
    counts, _ = np.histogram(shown, edges)
    panel.bar(edges[:-1], counts, np.diff(edges), align="edge", color=PLAIN, edgecolor="white", linewidth=0.5)
    median = float(np.median(sizes))
    if not logarithmic or median > 0:
        panel.axvline(median, color="#D55E00", linewidth=1.5, linestyle=(0, (3, 1.5)))
        above: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        text = f"median {median:,.1f}".removesuffix(".0")
        panel.annotate(text, (median, 1), (4, -2), va="top", color="#D55E00", fontsize=11, **above)
    empty = len(sizes) - len(held)
    clients = f"{len(sizes):,} client{'s' if len(sizes) > 1 else ''}"
    panel.set_title(f"{clients}, {empty:,} empty" if empty else clients, fontsize=12, loc="left", color="#444444")
    panel.set_ylabel("Clients")
    panel.set_ylim(0, 1.15 * counts.max())  # room for the word beside the line
    _count_axis(panel)
    _size_axis(panel, edges[0], edges[-1], logarithmic)


def bin_edges(smallest: int, largest: int, bins: int, logarithmic: bool) -> np.ndarray:
    """Cuts sizes into bins between whole numbers, of equal widths or equal ratios.

    Args:
        smallest: the least size, above 0 for equal ratios.
        largest: the largest size.
        bins: how many bins at most.
        logarithmic: whether the bins have equal ratios, as far as whole numbers allow.

    Returns:
        Edges, half a size beside whole numbers.
    """
    if not logarithmic:
        width = -(-(largest - smallest + 1) // bins)
        return np.arange(smallest, largest + 1 + width, width) - 0.5
    ratio = ((largest + 1) / smallest) ** (1 / bins)
    edges = [smallest]
    while edges[-1] <= largest:
        edges.append(max(edges[-1] + 1, math.ceil(edges[-1] * ratio)))
    return np.array(edges) - 0.5


def _size_axis(panel: "Axes", left: float, right: float, logarithmic: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    panel.set_xlabel("Examples per client" + (", log scale" if logarithmic else ""))
    if logarithmic:
        panel.set_xscale("log")
        panel.set_xlim(left / 1.1, right * 1.1)
        panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if right / left < 1e3 else (1.0,)))
        panel.xaxis.set_minor_formatter(NullFormatter())
    else:
        middle, half = (left + right) / 2, max(1.08 * (right - left), 8) / 2
        panel.set_xlim(middle - half, middle + half)
        panel.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, steps=[1, 2, 5, 10]))
    far = right >= 1e4  # numbers in full would touch each other
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value) if far else f"{value:,.0f}"))
    panel.tick_params(which="both", color="#444444")


def _legend(figure: "Figure", panel: "Axes") -> None:
    handles, names = panel.get_legend_handles_labels()
    if not names:
        return
    columns = max(1, min(len(names), LEGEND_CHARACTERS // (max(map(len, names)) + 5)))
    figure.set_figheight(HEIGHT + LEGEND_ROW * ((len(names) - 1) // columns + 1))
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": columns, "frameon": False, "fontsize": 11}
    figure.legend(handles, names, handlelength=1.0, handletextpad=0.5, columnspacing=1.4, **place)


def _name(label: int, names: Sequence[str]) -> str:
    # A name that begins with an underscore would be left out of the legend.
    return _shortened(names[label] if 0 <= label < len(names) else str(label), NAME_CHARACTERS).lstrip("_") or "_ "


def _shortened(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[: characters - 1]}…"


def _short(number: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:g}{unit}"
    return f"{number:g}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{ending}"
