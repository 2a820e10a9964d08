"""The ratios of the last runs as a picture.

python -m benchmarks.plot        -> benchmarks/ratios.png
"""

import json
import re

import matplotlib

from benchmarks.turns import FLOOR, RESULTS

matplotlib.use("Agg")
from matplotlib import pyplot


def _in_order(path):
    """By name, the numbers in it by size."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.stem)]


def main():
    runs = [json.loads(path.read_text("utf-8")) for path in sorted(RESULTS.glob("*.json"), key=_in_order)]
    rivals = [
        [one for one in run["programs"][1:] if one["program"] != FLOOR and not one["program"].startswith("ours")]
        for run in runs
    ]
    figure, axes = pyplot.subplots(figsize=(11, 0.28 * sum(map(len, rivals)) + 0.42 * len(runs) + 1.2))
    height, ticks, names = 0.0, [], []
    for run, drawn in zip(runs, rivals):
        height -= 1.3
        axes.text(0.012, height, run["title"], transform=axes.get_yaxis_transform(), weight="bold", va="center", size=9)
        for program in drawn:
            height -= 1
            low, high = program["range"]
            color = "tab:blue" if program["ratio"] >= 1 else "tab:red"
            axes.plot([low, high], [height, height], color=color, linewidth=5, alpha=0.35, solid_capstyle="butt")
            axes.plot(program["ratio"], height, "o", color=color, markersize=5)
            axes.annotate(
                f"{program['ratio']:.2f}", (high, height), (5, 0), textcoords="offset points", va="center", size=8
            )
            ticks.append(height)
            names.append(program["program"])
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_yticks(ticks, names, size=8)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(height - 1, 0)
    axes.set_xlabel(
        "their time over ours: to the right of 1, ours is faster (median; the bar is the range of the rounds)"
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(RESULTS.parent / "ratios.png", dpi=130)


if __name__ == "__main__":
    main()
