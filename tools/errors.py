"""See how often, on which photos and how confidently a network errs on the test photos.

    python tools/errors.py                              the network that ships
    python tools/errors.py models/baseline_vgg3.keras   any other that an experiment has saved

Draws the most confident errors into plots/<model>_errors.png, and the confusion matrix beside the
reliability diagram into plots/<model>_summary.png. Run it from the repository's top.
"""

import argparse
import json
import math
import os
import sys
import warnings
import zipfile
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # keeps TensorFlow's start-up chatter away
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["MPLBACKEND"] = "agg"  # draw into files, not into windows
import h5py
import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from PIL import ImageOps

TOP = Path(__file__).resolve().parent.parent  # the repository's folder


def find_keras_version(filename):
    """Return which Keras has saved the model `filename`, as "3.15.1"; "" if it does not say."""
    try:
        if zipfile.is_zipfile(filename):  # .keras
            with zipfile.ZipFile(filename) as file:
                metadata = json.loads(file.read("metadata.json"))
            return metadata["keras_version"]
        with h5py.File(filename) as file:  # .h5
            version = file.attrs["keras_version"]
        if isinstance(version, bytes):
            version = version.decode()
        return version
    except Exception:  # noqa: BLE001, damaged, or not a model
        return ""


def is_newer(version, other):
    """Return whether `version`, as "3.15.1", is newer than `other` in its first two numbers."""
    numbers = [int(number) for number in version.split(".")[:2]]
    other_numbers = [int(number) for number in other.split(".")[:2]]
    return numbers > other_numbers


def load_model(filename):
    """Return the model in `filename`: photos (n, height, width, 3) in, P(second class) (n, 1) out.

    It may have a second output (n, 1), a score: below 0.5 it means neither class. Raises
    FileNotFoundError, and ValueError where the file is damaged, or holds another kind of model, or
    a Lambda layer: that is a piece of program, which loading would run.
    """
    if not Path(filename).exists():
        raise FileNotFoundError(f"there is no model {filename}: has the script run that saves it?")
    try:
        model = keras.models.load_model(filename, compile=False, safe_mode=True)
        takes = model.input_shape
        gives = [output.shape for output in model.outputs]
    except Exception as error:  # noqa: BLE001, Keras and HDF5 raise all sorts
        saved_by = find_keras_version(filename)
        if not saved_by:
            reason = "damaged, or not a model that Keras has saved"
        elif is_newer(saved_by, keras.__version__):
            reason = (f"saved by Keras {saved_by}, this is {keras.__version__}: "
                      "update Keras, or train it anew")
        else:
            reason = str(error).split("Exception encountered: ")[-1]  # the innermost reason
            reason = " ".join(reason.split()).split(". ")[0]  # its first sentence, in one line
        raise ValueError(f"cannot use the model {filename}: {reason}") from None
    takes_photos = len(takes) == 4 and None not in takes[1:] and takes[3] == 3
    if not takes_photos or gives not in ([(None, 1)], [(None, 1), (None, 1)]):
        raise ValueError(f"cannot use the model {filename}: it takes {takes} and gives "
                         f"{model.output_shape}, instead of (None, height, width, 3) and (None, 1)")
    return model


def find_classes(folder):
    """Return the names of the folders in `folder`, in alphabetical order, without hidden ones."""
    return sorted(path.name for path in folder.glob("[!.]*") if path.is_dir())


def find_damaged(paths):
    """Return the first of `paths` that TensorFlow cannot decode, or None."""
    for path in paths:
        try:
            tf.io.decode_image(path.read_bytes(), expand_animations=False)
        except tf.errors.InvalidArgumentError:
            return path
    return None


def predict_photos(model, directory):
    """Return the names of the two classes, the photos' paths, and three arrays of numbers (n,).

    These are the true classes, 0 or 1; P(second class); and the score for "one of the two",
    below 0.5 for neither, or None for a model without this output. `directory` holds two folders of
    photos. Raises ValueError where it does not, or where a photo is damaged.
    """
    names = find_classes(directory)
    if len(names) != 2:
        raise ValueError(f"{directory} must hold two folders of photos, one for each class: run "
                         "prepare_dataset.py first, or name another data set with --dataset")
    photos = keras.utils.image_dataset_from_directory(
        directory, label_mode="binary", image_size=model.input_shape[1:3], batch_size=64,
        shuffle=False, crop_to_aspect_ratio=True, verbose=False)  # the middle, as predict.py
    paths = [Path(path) for path in photos.file_paths]
    classes = []
    for path in paths:
        folder = path.relative_to(directory).parts[0]
        classes.append(names.index(folder))
    classes = np.array(classes)
    for number, name in enumerate(names):
        if number not in classes:
            raise ValueError(f"there are no photos in {directory / name}")
    try:
        answers = model.predict(photos)
    except tf.errors.InvalidArgumentError as error:
        damaged = find_damaged(paths)
        if damaged is None:
            raise ValueError(f"cannot predict the photos: {error.message}") from None
        raise ValueError(f"{damaged} is not a photo, or damaged: delete it, or prepare the photos "
                         "anew") from None
    if len(model.outputs) == 1:
        second = answers
        at_all = None
    else:
        second, at_all = answers
        at_all = at_all[:, 0]
    second = second[:, 0].astype(np.float64)
    return names, paths, classes, second, at_all


def wilson_interval(right, n):
    """Return the 95 % confidence interval (low, high), 0 to 1, of an accuracy of `right` of `n`.

    Better known is another one: the accuracy ± 1.96 standard errors. But it is wrong near 1, where
    good networks are: with 100 right of 100 it would be 1 to 1, as if no error were possible.
    Source: E. B. Wilson, Probable Inference, the Law of Succession, and Statistical Inference,
    1927.
    """
    z = 1.959964  # 95 % of a normal distribution are within so many standard deviations
    p = right / n
    middle = p + z**2 / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    return (middle - half) / scale, (middle + half) / scale


def count_confusion(classes, called):
    """Return how many photos of each class (row) were called what (column), (2, 2).

    `classes` and `called` (n,), 0 or 1, are the true classes and the network's.
    """
    confusion = np.zeros((2, 2), dtype=int)
    for true_class, answer in zip(classes, called, strict=True):
        confusion[true_class, answer] += 1
    return confusion


def print_results(names, classes, second, at_all, confusion):
    """Print the metrics; the arguments are as predict_photos and count_confusion return them."""
    width = max(len(name) for name in names) + 2
    print(f"{'':{width}} photos   right  accuracy  95 % interval (Wilson)")
    all_right = confusion.trace()  # the sum of the diagonal: cats called cat, dogs called dog
    rows = [("all", all_right, confusion.sum())]
    for number, name in enumerate(names):
        rows.append((name, confusion[number, number], confusion[number].sum()))
    for name, right, n in rows:
        low, high = wilson_interval(right, n)
        print(f"{name:{width}}{n:7}{right:8}{right / n * 100:8.2f} %  "
              f"{low * 100:.2f} to {high * 100:.2f} %")

    first_column = f"called {names[0]}"
    second_column = f"called {names[1]}"
    print(f"\n{'':{width}}  {first_column}  {second_column}")
    for name, counts in zip(names, confusion, strict=True):
        first = str(counts[0]).rjust(len(first_column))
        other = str(counts[1]).rjust(len(second_column))
        print(f"{name:{width}}  {first}  {other}")

    # The larger the probability of the right class, the smaller the log loss. It is the loss of the
    # learning curves, except where that includes label smoothing or a second part.
    loss = float(keras.losses.binary_crossentropy(classes, second))
    print(f"\nlog loss: {loss:.4f}")
    called = (second >= 0.5).astype(int)
    is_right = called == classes
    probability = np.maximum(second, 1 - second)  # of the class that is called
    sure = probability >= 0.8  # as in predict.py
    print(f"unsure, 20 to 80 %: {np.sum(~sure)} photos")
    if sure.any():
        print(f"right among the others: {is_right[sure].mean() * 100:.2f} %")
    if at_all is not None:
        print(f"called neither {names[0]} nor {names[1]}: {np.sum(at_all < 0.5)} photos")


def plot_errors(paths, names, second, filename):
    """Draw the photos at `paths` with the network's answers, and save them as PNG `filename`.

    `names` are the two classes, `second` (n,) is P(second class).
    """
    columns = min(6, len(paths))
    rows = math.ceil(len(paths) / columns)
    figure = plt.figure(figsize=(2.6 * columns, 2.7 * rows), layout="constrained")
    for number, path in enumerate(paths):
        if second[number] >= 0.5:
            called, probability = names[1], second[number]
        else:
            called, probability = names[0], 1 - second[number]
        axes = figure.add_subplot(rows, columns, number + 1)
        photo = keras.utils.load_img(path)
        side = min(photo.size)
        axes.imshow(ImageOps.fit(photo, (side, side)))  # its middle: what the network sees
        axes.axis("off")
        answer = f"{path.parent.name}, called {called} {probability * 100:.1f} %"
        axes.set_title(f"{path.name}\n{answer}", fontsize=9, parse_math=False)
    figure.savefig(filename)


def plot_summary(names, classes, second, confusion, filename):
    """Draw the confusion matrix beside the reliability diagram; save them as PNG `filename`.

    The diagram (DeGroot and Fienberg, 1983) divides the photos by P(second class), `second` (n,),
    into ten bins. Each has a point: to the right its mean P, upwards the part of its photos that
    are of the second class. If the network is well calibrated, four fifths of the photos with P =
    80 % are of the second class, and the points lie on the diagonal.
    """
    figure, (matrix, reliability) = plt.subplots(1, 2, figsize=(12, 6), layout="constrained")
    shares = confusion / confusion.sum(axis=1, keepdims=True)
    # 1.5: then a share of 1 is a medium blue, and black is readable on it
    matrix.imshow(shares, cmap="Blues", vmin=0, vmax=1.5)
    for row in (0, 1):
        for column in (0, 1):
            text = f"{confusion[row, column]}\n{shares[row, column] * 100:.2f} %"
            matrix.text(column, row, text, ha="center", va="center", fontsize=16)
    matrix.set(title="Confusion matrix", xlabel="predicted", ylabel="true class")
    matrix.set_xticks((0, 1), names)
    matrix.set_yticks((0, 1), names)

    reliability.plot((0, 1), (0, 1), "--", color="grey", lw=1)
    bins = np.minimum((second * 10).astype(int), 9)  # 0 to 9; 1.0 is in the last one, too
    for number in np.unique(bins):
        inside = bins == number
        n = inside.sum()
        low, high = wilson_interval(classes[inside].sum(), n)
        x = second[inside].mean()
        y = classes[inside].mean()
        reliability.plot((x, x), (low, high), color="tab:blue", lw=1)  # the 95 % interval
        reliability.plot(x, y, "o", color="tab:blue")
        reliability.annotate(n, (x, y), (7, -3), textcoords="offset points")  # n, beside it
    reliability.set(title="Reliability: photos per bin, with 95 % intervals",
                    xlim=(0, 1.12), xlabel=f"mean P({names[1]}) in the bin",
                    ylim=(-0.03, 1.03), ylabel=f"fraction of {names[1]}")
    figure.savefig(filename)


def parse_args():
    """Return the options of the command line; end with status 2 if one cannot be right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, help="(the one in models/reference/)")
    parser.add_argument("--dataset", type=Path, default="dataset_dogs_vs_cats",
                        help="a folder that prepare_dataset.py has built (%(default)s)")
    parser.add_argument("--top", type=int, default=24,
                        help="how many of the most confident errors to draw (%(default)s)")
    args = parser.parse_args()
    if args.top < 1:
        parser.error("--top must be at least 1")
    if args.model is None:
        # predict.py prefers final_model.h5. Not here: it has been trained on the test photos, too.
        reference = sorted(TOP.glob("models/reference/*.keras"))
        if not reference:
            parser.error(f"there is no model in {TOP / 'models/reference'}: name one")
        args.model = reference[0]
    return args


def main():
    args = parse_args()
    keras.config.set_image_data_format("channels_last")  # (height, width, colours)
    model = load_model(args.model)
    print(f"model: {args.model}")
    names, paths, classes, second, at_all = predict_photos(model, args.dataset / "test")
    called = (second >= 0.5).astype(int)
    confusion = count_confusion(classes, called)
    print_results(names, classes, second, at_all, confusion)

    os.makedirs("plots", exist_ok=True)
    summary = f"plots/{args.model.stem}_summary.png"
    plot_summary(names, classes, second, confusion, summary)
    print(f"drawn: {summary}")
    errors = np.flatnonzero(called != classes)  # their numbers among the photos
    if len(errors) == 0:
        print("no errors at all, so there is no gallery of them")
        return
    confidence = np.abs(second[errors] - 0.5)
    order = np.argsort(-confidence, kind="stable")  # the most confident first
    top = errors[order][:args.top]
    top_paths = [paths[number] for number in top]
    gallery = f"plots/{args.model.stem}_errors.png"
    plot_errors(top_paths, names, second[top], gallery)
    print(f"drawn: {gallery}, {len(top)} of {len(errors)} errors")


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of matplotlib, on names whose letters its font lacks
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # for names that the console cannot print
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped")
    except (OSError, ValueError, tf.errors.OpError) as error:
        reason = " ".join(str(error).split())  # in one line
        sys.exit(f"errors.py: {reason}")
