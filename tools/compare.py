"""Lay the learning curves of experiments side by side, and print their accuracies.

    python tools/compare.py                                the experiments of the top level
    python tools/compare.py baseline_vgg3 small_data_cnn   those that are named

It takes your own runs and the reference runs. Several seeds of a script become one line, their
mean, in a band from the lowest to the highest. Runs on another data set than the script's own have
a table and a picture of their own, since accuracies on different photos cannot be compared. Run it
from the repository's top.
"""

import argparse
import csv
import os
import re
import sys
from pathlib import Path

os.environ["MPLBACKEND"] = "agg"  # draw into files, not into windows
import matplotlib.pyplot as plt
import numpy as np

TOP = Path(__file__).resolve().parent.parent
SCRIPTS = ("baseline_vgg1", "baseline_vgg2", "baseline_vgg3", "vgg3_dropout", "vgg3_augmentation",
           "vgg16_transfer")


def find_scripts():
    """Return {name: path} of the experiments in all folders."""
    scripts = {}
    for folder in ("beyond", "more_experiments", "."):
        for path in TOP.glob(f"{folder}/*.py"):
            scripts[path.stem] = path
    return scripts


def split_name(run):
    """Return script and data set in the name of a run: "baseline_vgg1" and "dataset_sample" of
    baseline_vgg1_dataset_sample_seed2.

    The data set is "" where the script was started without --dataset.
    """
    run = re.sub(r"_seed\d+$", "", run)
    matching = [name for name in find_scripts() if run == name or run.startswith(f"{name}_")]
    if not matching:  # the script is no longer there
        return run, ""
    script = max(matching, key=len)  # of my_vgg and my_vgg_large the longer one
    return script, run[len(script) + 1:]


def find_histories(name):
    """Return the histories of `name`, a CSV file, a run, or a script with or without .py.

    Those of a script are of all seeds and all data sets. Raises FileNotFoundError where there are
    none.
    """
    if name.endswith(".csv"):
        found = [Path(name)]
    else:
        name = Path(name).name.removesuffix(".py")
        found = []
        for folder in ("plots", "plots/reference"):
            for path in sorted(Path(folder).glob(f"{name}*_history.csv")):
                run = path.stem.removesuffix("_history")
                run_without_seed = re.sub(r"_seed\d+$", "", run)
                script, _ = split_name(run)
                if name in (run, run_without_seed, script):
                    found.append(path)
    if not found or not found[0].exists():
        raise FileNotFoundError(f"no history of {name}: name a CSV file, or run that script first")
    return found


def read_history(path):
    """Return the accuracies, 0 to 1, and losses of a CSVLogger file, float64 (epochs, 2).

    They are those on held-out photos. Of an epoch that was redone the last row counts. Raises
    OSError or ValueError where there are none.
    """
    epochs = {}
    try:
        with open(path, encoding="utf-8") as file:
            for row in csv.DictReader(file):
                epochs[int(row["epoch"])] = float(row["val_accuracy"]), float(row["val_loss"])
    except (KeyError, TypeError, ValueError, csv.Error):
        raise ValueError("not as an experiment wrote it (did another program save it?)") from None
    if not epochs:
        raise ValueError("no epochs in it")
    return np.array([epochs[epoch] for epoch in sorted(epochs)])


def find_published(script):
    """Return the split, test or validation, and the accuracy that the docstring of `script` quotes.

    The accuracy is text, in per cent; ("test", "-") where it quotes none.
    """
    path = find_scripts().get(script)
    if path is None:
        return "test", "-"
    match = re.search(r"Published (\w+) accuracy: ([\d.]+(?: to [\d.]+)?) %",
                      path.read_text(encoding="utf-8"))
    if match is None:
        return "test", "-"
    return match[1], match[2]


def format_accuracy(accuracies):
    """Return the last of `accuracies` (seeds, epochs) in per cent: mean ± half the range."""
    final = accuracies[:, -1] * 100
    if len(final) == 1:
        return f"{final[0]:.3f} %"
    spread = np.ptp(final)
    digits = 1 if spread >= 0.1 else 2  # ± 0.0 would look like an error
    return f"{final.mean():.{digits}f} ± {spread / 2:.{digits}f} % ({len(final)} seeds)"


def read_runs(paths):
    """Return {data set: {(script, folder): histories (seeds, epochs, 2)}} of the files `paths`.

    Data set and folder are "" for the usual ones; " (reference)" is a folder, too. What cannot be
    read is skipped, and said.
    """
    found = {}
    seen = set()
    for path in paths:
        path = Path(os.path.relpath(path))
        if path in seen:  # named twice
            continue
        seen.add(path)
        try:
            history = read_history(path)
        except (OSError, ValueError) as error:
            print(f"compare.py: skipped {path}: {error}", file=sys.stderr)
            continue
        script, dataset = split_name(path.stem.removesuffix("_history"))
        folder = path.parent.as_posix()
        if folder == "plots":
            folder = ""
        elif folder == "plots/reference":
            folder = " (reference)"
        else:
            folder = f" ({folder})"
        found.setdefault(dataset, {}).setdefault((script, folder), []).append(history)

    runs = {}
    for dataset in sorted(found):  # "" comes first
        runs[dataset] = {}
        for key, histories in found[dataset].items():
            # Where some seeds have fewer epochs than others, keep only those that all have.
            epochs = min(len(history) for history in histories)
            runs[dataset][key] = np.stack([history[:epochs] for history in histories])
    return runs


def get_final_accuracy(histories):
    """Return the mean accuracy of `histories` (seeds, epochs, 2) after the last epoch, 0 to 1."""
    return histories[:, -1, 0].mean()


def plot_comparison(groups, title, filename):
    """Draw the accuracies of `groups` above their losses, and save this as PNG `filename`.

    `groups` is {(script, folder): histories (seeds, epochs, 2)}, see read_runs.
    """
    figure, (accuracy, loss) = plt.subplots(2, figsize=(10, 9), layout="constrained")
    accuracy.set(title=f"Classification Accuracy on {title}", ylim=(0.4, 1))
    loss.set(title=f"Cross-Entropy Loss on {title}", ylim=(0, 1.3), xlabel="epoch")
    scripts = sorted({script for script, _ in groups})  # each has one colour
    colours = plt.get_cmap("tab10" if len(scripts) <= 10 else "tab20").colors
    for (script, folder), histories in groups.items():
        split, _ = find_published(script)
        label = f"{script}{folder}: {split} {format_accuracy(histories[..., 0])}"
        colour = colours[scripts.index(script) % len(colours)]
        style = ".--" if folder else ".-"
        epochs = range(1, histories.shape[1] + 1)
        for axes, values in ((accuracy, histories[..., 0]), (loss, histories[..., 1])):
            axes.plot(epochs, values.mean(axis=0), style, color=colour, label=label)
            axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=colour,
                              alpha=0.25, lw=0)
    for axes in (accuracy, loss):
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    handles, labels = loss.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(filename)
    plt.close(figure)


def format_table(groups, dataset):
    """Return the lines of the table of `groups`, see read_runs; "" is the usual `dataset`."""
    lines = [f"{'script':40} {'split':10} epochs  {'final':24} best, % (epoch)  published"]
    for (script, folder), histories in groups.items():
        split, published = find_published(script)
        if dataset:
            published = "-"  # it was on other photos
        mean = histories[..., 0].mean(axis=0)
        best = f"{mean.max() * 100:7.3f}"
        epoch = f"({mean.argmax() + 1})"
        lines.append(f"{script + folder:40} {split:10} {len(mean):6}  "
                     f"{format_accuracy(histories[..., 0]):24} {best} {epoch:>7}  {published:>9}")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="CSV or script",
                        help="the runs to compare (the experiments of the top level)")
    args = parser.parse_args()
    paths = []
    for name in args.names:
        paths += find_histories(name)
    if not args.names:
        for script in SCRIPTS:
            try:
                paths += find_histories(script)
            except FileNotFoundError:  # not run yet
                continue
    runs = read_runs(paths)
    if not runs:
        raise FileNotFoundError("no history to compare: run an experiment first, from this folder")

    os.makedirs("plots", exist_ok=True)
    lines = []
    for dataset, groups in runs.items():
        ranking = sorted(groups, key=lambda key: get_final_accuracy(groups[key]), reverse=True)
        groups = {key: groups[key] for key in ranking}
        if dataset:
            title, filename = f"{dataset}'s held-out photos", f"plots/comparison_{dataset}.png"
            lines += ["", f"other photos: {dataset}"]
        else:
            title, filename = "held-out photos", "plots/comparison.png"
        plot_comparison(groups, title, filename)
        lines += format_table(groups, dataset)
        lines.append(f"drawn: {filename} (runs of other folders than plots/ dashed)")
    print("\n".join(lines).lstrip(), flush=True)


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # for names that the console cannot print
    try:
        main()
    except BrokenPipeError:  # `compare.py | head -4` has read enough: the rest goes nowhere
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit("stopped")
    except (OSError, ValueError) as error:
        sys.exit(f"compare.py: {error}")
