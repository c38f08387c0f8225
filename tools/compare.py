"""Lay the learning curves of experiments side by side, and print their accuracies.

Without arguments: the experiments of the top level, your own runs and the reference runs.
Several seeds of a script become one line, their mean, in a band from the lowest to the highest.
Run it from the repository's top.
"""

import argparse
import csv
import os
import re
import sys
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

TOP = Path(__file__).parent.parent
SCRIPTS = ("baseline_vgg1", "baseline_vgg2", "baseline_vgg3", "vgg3_dropout", "vgg3_augmentation",
           "vgg16_transfer")


def find_histories(name):
    """Return the histories of `name`, a CSV file or a script with or without .py, all its seeds.

    Raises FileNotFoundError where there are none.
    """
    script = Path(name).stem
    found = [Path(name)] if name.endswith(".csv") else [
        path for folder in ("plots", "plots/reference")
        for path in sorted(Path(folder).glob(f"{script}*_history.csv"))
        if re.fullmatch(rf"{re.escape(script)}(_seed\d+)?_history", path.stem)]
    if not found or not found[0].exists():
        raise FileNotFoundError(f"no history of {name}: name a CSV file, or run that script first")
    return found


def read_history(path):
    """Return the accuracies, 0 to 1, and losses of a CSVLogger file, float64 (epochs, 2).

    They are those on held-out photos. Of an epoch that was redone the last
    row counts. Raises OSError or ValueError where there are none.
    """
    try:
        with open(path, encoding="utf-8") as file:
            rows = {int(row["epoch"]): (float(row["val_accuracy"]), float(row["val_loss"]))
                    for row in csv.DictReader(file)}
    except (KeyError, TypeError, ValueError, csv.Error):
        raise ValueError("not a history as the experiments write it") from None
    if not rows:
        raise ValueError("no epochs in it")
    return np.array([rows[epoch] for epoch in sorted(rows)])


def find_published(script):
    """Return the split, test or validation, and the accuracy that the docstring of `script` quotes.

    The accuracy is in per cent; ("test", "-") where it quotes none.
    """
    for path in (TOP / f"{script}.py", TOP / f"more_experiments/{script}.py"):
        if path.exists():
            match = re.search(r"Published (\w+) accuracy: ([\d.]+(?: to [\d.]+)?) %",
                              path.read_text(encoding="utf-8"))
            return match.groups() if match else ("test", "-")
    return "test", "-"


def describe(accuracies):
    """Return the last of `accuracies` (seeds, epochs) in per cent: mean ± half the range."""
    final = accuracies[:, -1] * 100
    if len(final) == 1:
        return f"{final[0]:.3f} %"
    return f"{final.mean():.1f} ± {np.ptp(final) / 2:.1f} % ({len(final)} seeds)"


def plot_comparison(groups, filename):
    """Draw the accuracies of `groups` above their losses, and save this as PNG `filename`.

    `groups` is {(script, "" or " (folder)"): histories (seeds, epochs, 2)}.
    """
    figure = Figure(figsize=(10, 9), layout="constrained")
    accuracies, losses = figure.subplots(2)
    accuracies.set(title="Classification Accuracy on held-out photos", ylim=(0.4, 1))
    losses.set(title="Cross-Entropy Loss on held-out photos", ylim=(0, 1.3), xlabel="epoch")
    scripts = sorted({script for script, _ in groups})
    colours = matplotlib.color_sequences["tab10" if len(scripts) <= 10 else "tab20"]
    for (script, folder), histories in groups.items():
        label = f"{script}{folder}: {find_published(script)[0]} {describe(histories[..., 0])}"
        colour = colours[scripts.index(script) % len(colours)]
        epochs = range(1, histories.shape[1] + 1)
        for column, axes in enumerate((accuracies, losses)):
            values = histories[..., column]
            style = ".--" if folder else ".-"
            axes.plot(epochs, values.mean(0), style, color=colour, label=label)
            axes.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.25, lw=0)
    for axes in (accuracies, losses):
        axes.set_xlim(left=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    figure.legend(*losses.get_legend_handles_labels(), loc="outside lower center", ncols=2,
                  fontsize="small")
    figure.savefig(filename)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="CSV or script",
                        help="the runs to compare (the experiments of the top level)")
    args = parser.parse_args()
    paths = [path for name in args.names for path in find_histories(name)]
    for script in () if args.names else SCRIPTS:
        try:
            paths += find_histories(script)
        except FileNotFoundError:  # not run yet
            continue
    runs = {}
    for path in map(Path, dict.fromkeys(map(os.path.relpath, paths))):
        folder = path.parent.as_posix()
        key = (re.sub(r"(_seed\d+)?(_history)?$", "", path.stem),
               {"plots": "", "plots/reference": " (reference)"}.get(folder, f" ({folder})"))
        try:
            runs.setdefault(key, []).append(read_history(path))
        except (OSError, ValueError) as error:
            print(f"{sys.argv[0]}: skipped {path}: {error}", file=sys.stderr)
    # Where some seeds have fewer epochs than others, keep only those that all have.
    groups = {key: np.stack([history[:min(map(len, histories))] for history in histories])
              for key, histories in runs.items() if histories}
    if not groups:
        raise FileNotFoundError("no history to compare: run an experiment first, from this folder")
    groups = dict(sorted(groups.items(), key=lambda group: -group[1][:, -1, 0].mean()))
    plot_comparison(groups, "plots/comparison.png")
    lines = [f"{'script':40} {'split':10} epochs  {'final':24} best, % (epoch)  published"]
    for (script, folder), histories in groups.items():
        split, published = find_published(script)
        mean = histories[..., 0].mean(0)
        lines.append(f"{script + folder:40} {split:10} "
                     f"{len(mean):6}  {describe(histories[..., 0]):24} {mean.max() * 100:7.3f} "
                     f"{f'({mean.argmax() + 1})':>7}  {published:>9}")
    lines.append("drawn: plots/comparison.png (runs of other folders than plots/ dashed)")
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # `compare.py | head -4` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (KeyboardInterrupt, OSError, ValueError) as error:
        sys.exit(f"{sys.argv[0]}: {str(error) or 'stopped'}")
