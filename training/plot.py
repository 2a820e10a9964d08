"""history.csv as a picture: loss and learning rate over the epochs."""

import csv
from pathlib import Path

from training.files import write_beside

FILE = "history.png"


def draw(folder: str | Path) -> Path | None:
    """Draws a run's history.csv into its history.png; the path, or None where no epoch has ended."""
    folder = Path(folder)
    if not (folder / "history.csv").exists():
        return None
    with open(folder / "history.csv", encoding="utf-8") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    # Imported here: it takes a second. Without pyplot, which looks for a screen.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 5), layout="constrained")
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    epochs = [row["epoch"] + 1 for row in rows]
    for name, label, style in (("loss", "training", "-"), ("val_loss", "validation", "--")):
        if name in rows[0]:
            losses.plot(epochs, [row[name] for row in rows], style, marker=".", label=label)
    losses.set_ylabel("loss (nats)")
    losses.set_title(folder.name)
    losses.grid(alpha=0.3)
    losses.legend()
    rates.plot(epochs, [row["learning_rate"] for row in rows], color="tab:green", marker=".")
    rates.set_ylabel("learning rate")
    rates.set_ylim(bottom=0)
    rates.set_xlabel("epoch")
    rates.grid(alpha=0.3)
    rates.xaxis.set_major_locator(MaxNLocator(integer=True))
    write_beside(folder / FILE, lambda beside: figure.savefig(beside, dpi=120))
    return folder / FILE
