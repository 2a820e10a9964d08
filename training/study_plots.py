"""The pictures of a study: one for each claim. Colours of Okabe and Ito, which the colour-blind tell apart."""

import functools
from pathlib import Path
from typing import Any

from training.files import write_beside

LABELS = {
    "seq2seq": "LSTM, one context vector",
    "attention": "LSTM with attention",
    "transformer": "Transformer",
}
STYLES = {
    "seq2seq": {"color": "#0072B2", "marker": "o"},
    "attention": {"color": "#D55E00", "marker": "s"},
    "transformer": {"color": "#009E73", "marker": "^"},
}


def draw(results: dict[str, Any], out: Path) -> list[Path]:
    """Draws the pictures into a folder; their paths."""
    pictures = {"exact": _exact, "gradients": _gradients, "time": _time, "attention": _attention}
    paths = []
    for name, function in pictures.items():
        figure = function(results)
        path = out / f"study_{name}.png"
        write_beside(path, functools.partial(figure.savefig, dpi=100, format="png"))
        paths.append(path)
    return paths


def _figure(width: float, height: float, columns: int, **options: Any) -> tuple[Any, Any]:
    # Imported here: it takes a second. Without pyplot, which looks for a screen.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, **options)[0]
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure, axes


def _exact(results: dict[str, Any]) -> Any:
    figure, (axis,) = _figure(7, 4.5, 1)
    rows = results["exact"]
    for name, label in LABELS.items():
        axis.plot([row["words"] for row in rows], [100 * row[name] for row in rows], label=label, **STYLES[name])
    axis.set_xlabel("length of the English sentence (mean words; one more nested clause at each point)")
    axis.set_ylabel("exact translations (%)")
    axis.set_ylim(-3, 103)
    axis.set_title("One context vector holds only so much")
    axis.legend()
    return figure


def _gradients(results: dict[str, Any]) -> Any:
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(11, 4.5, 2, sharey=True)
    for axis, when in zip(axes, ("before", "after"), strict=True):
        for name, label in LABELS.items():
            norms = results["gradients"][when][name][:-1]  # the end token is no word
            places = range(1, len(norms) + 1)
            axis.semilogy(places, [one / max(norms) for one in norms], label=label, markersize=4, **STYLES[name])
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("position of the source word (1 = first)")
        axis.set_title(f"{when} training")
    axes[0].set_ylabel("gradient of the last French word's loss\n(norm, the largest = 1)")
    axes[0].legend()
    return figure


def _time(results: dict[str, Any]) -> Any:
    from matplotlib.ticker import LogFormatter, NullFormatter

    figure, axes = _figure(11, 4.5, 2)
    for axis, part, title in zip(axes, ("encoder", "whole"), ("encoder alone", "whole model"), strict=True):
        for name, label in LABELS.items():
            found = results["seconds_per_step"][part][name]
            milliseconds = [1000 * one["seconds"] for one in found]
            axis.loglog([one["length"] for one in found], milliseconds, label=label, **STYLES[name])
        lengths = results["plan"]["lengths"]
        axis.set_xticks(lengths, [str(one) for one in lengths])
        axis.xaxis.set_minor_formatter(NullFormatter())
        for formatted in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            formatted(LogFormatter(minor_thresholds=(2, 0.5)))
        axis.set_xlabel("tokens in a sentence")
        axis.set_title(f"{title}, {results['plan']['tokens_per_batch']:,} tokens a step")
    axes[0].set_ylabel("forward and backward pass (ms)")
    axes[0].legend()
    return figure


def _attention(results: dict[str, Any]) -> Any:
    maps = results["attention"]
    columns, rows = (max(len(one[part]) for one in maps.values()) for part in ("source", "target"))
    figure, axes = _figure(4 + 0.7 * columns, 1.5 + 0.3 * rows, len(maps))
    for axis, (name, one) in zip(axes, maps.items(), strict=True):
        axis.grid(False)
        image = axis.imshow(one["weights"], cmap="cividis", vmin=0, vmax=1, aspect="auto")
        axis.set_xticks(range(len(one["source"])), one["source"], rotation=90)
        axis.set_yticks(range(len(one["target"])), one["target"])
        axis.set_xlabel("read")
        axis.set_ylabel("written")
        axis.set_title(LABELS[name])
    figure.colorbar(image, ax=list(axes), label="attention weight")
    return figure
