"""Lay the learning curves of experiments side by side, and print their accuracies.

Without arguments: every history in plots/ and plots/reference/. Run it from the repository's top.
"""

import argparse
import csv
import os
import re
import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

TOP = Path(__file__).parent.parent


def find_histories(name):
    """Return the histories that `name`, a CSV file or a script with or without .py, stands for.

    Raises FileNotFoundError where there are none.
    """
    if name.endswith(".csv"):
        found = [Path(name)]
    else:
        file = f"{Path(name).stem}_history.csv"
        found = [Path("plots", file), Path("plots/reference", file)]
    found = [path for path in found if path.exists()]
    if not found:
        raise FileNotFoundError(f"no history of {name}: name a CSV file, or run that script first")
    return found


def read_history(path):
    """Return the test accuracies, 0..1, and the test losses of a CSVLogger file, one per epoch.

    Raises OSError or ValueError where it cannot be read or has no epochs.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        accuracy = [float(row["val_accuracy"]) for row in rows]
        loss = [float(row["val_loss"]) for row in rows]
    except (KeyError, TypeError, ValueError, csv.Error):
        raise ValueError("not a history as the experiments write it") from None
    if not rows:
        raise ValueError("no epochs in it")
    return accuracy, loss


def find_published(script):
    """Return the accuracy, in per cent, that the docstring of `script` quotes, or "-"."""
    for path in (TOP / f"{script}.py", TOP / f"more_experiments/{script}.py"):
        if path.exists():
            match = re.search(r"Published \w+ accuracy: ([\d.]+(?: to [\d.]+)?) %",
                              path.read_text(encoding="utf-8"))
            return match[1] if match else "-"
    return "-"


def plot_comparison(runs, filename):
    """Draw test accuracy over test loss of `runs`, a list of (label, script, reference or not,
    accuracies, losses), and save it as PNG `filename`."""
    figure = Figure(figsize=(10, 9), layout="constrained")
    accuracies, losses = figure.subplots(2)
    accuracies.set(title="Classification Accuracy, test split", ylim=(0.4, 1))
    losses.set(title="Cross-Entropy Loss, test split", ylim=(0, 2), xlabel="epoch")
    scripts = sorted({script for _, script, *_ in runs})
    colours = matplotlib.color_sequences["tab10" if len(scripts) <= 10 else "tab20"]
    for label, script, reference, accuracy, loss in runs:
        style = {"color": colours[scripts.index(script) % len(colours)], "marker": ".",
                 "linestyle": "--" if reference else "-"}
        epochs = range(1, len(accuracy) + 1)
        accuracies.plot(epochs, accuracy, label=label, **style)
        losses.plot(epochs, loss, **style)
    for axes in (accuracies, losses):
        axes.set_xlim(left=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(f"{filename}.part", format="png")
    os.replace(f"{filename}.part", filename)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")  # one line
    parser.add_argument("names", nargs="*", metavar="CSV or script",
                        help="histories (every one in plots/ and plots/reference/)")
    args = parser.parse_args()
    try:
        paths = [path for name in args.names for path in find_histories(name)]
        if not args.names:
            paths = [*sorted(Path("plots").glob("*_history.csv")),
                     *sorted(Path("plots/reference").glob("*_history.csv"))]
        runs = []
        for path in dict.fromkeys(paths):
            try:
                accuracy, loss = read_history(path)
            except (OSError, ValueError) as error:
                print(f"{parser.prog}: skipped {path}: {error}", file=sys.stderr)
                continue
            script = path.stem.removesuffix("_history")
            reference = path.resolve().parent.name == "reference"
            label = f"{script}{' (reference)' if reference else ''}, {accuracy[-1] * 100:.3f} %"
            runs.append((label, script, reference, accuracy, loss))
        if not runs:
            parser.error("no history to compare: run an experiment first, from this folder")
        runs.sort(key=lambda run: -run[3][-1])
        print(f"{'script':40} epochs   final    best  (epoch)  published   test accuracy in %")
        for label, script, _, accuracy, _ in runs:
            best = max(accuracy)
            print(f"{label.rsplit(',', 1)[0]:40} {len(accuracy):6} {accuracy[-1] * 100:7.3f} "
                  f"{best * 100:7.3f} {accuracy.index(best) + 1:8}  {find_published(script):>9}")
        plot_comparison(runs, "plots/comparison.png")
        print("drawn: plots/comparison.png (reference runs dashed)")
    except OSError as error:
        parser.error(" ".join(str(error).split()))


if __name__ == "__main__":
    main()
