"""See how often, on which photos and how confidently a network errs on the test split.

Draws the most confident errors into plots/<model>_errors.png, confusion matrix and reliability
diagram into plots/<model>_summary.png. Run it from the repository's top.
"""
import argparse
import math
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # keeps TensorFlow's start-up chatter away
try:
    import keras
    import numpy as np
    import tensorflow as tf
    from matplotlib.figure import Figure
except KeyboardInterrupt:  # Ctrl-C during the imports, which take seconds
    sys.exit("stopped")
CLASSES = ("cat", "dog")


def load_model(filename):
    """Return the model in `filename`: photos (n, height, width, 3) in, P(dog) (n, 1) out.

    It may have a second output, P(dog or cat) (n, 1), below 0.5 for other things.
    Raises ValueError where the file is damaged, or holds another kind of model, or a Lambda layer.
    """
    try:
        model = keras.models.load_model(filename, compile=False, safe_mode=True)
        _, *size, channels = model.input_shape
        photos = len(size) == 2 and all(size) and channels == 3
        outputs = [output.shape for output in model.outputs]
        if not (photos and outputs in ([(None, 1)], [(None, 1)] * 2)):
            raise ValueError(f"it takes {model.input_shape} and gives {model.output_shape}")
    except Exception as error:  # noqa: BLE001, HDF5 and Keras raise all sorts
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"cannot use the model {filename}: {reason}") from None
    return model


def predict_photos(model, directory):
    """Return the photos' paths, classes, P(dog) and P(dog or cat), each (n,).

    `directory` has cats/ (class 0) and dogs/ (class 1). Without a second output the last is None.
    Raises FileNotFoundError where a class has no photos, ValueError where one is damaged.
    """
    if not all(any(directory.glob(f"{label}s/*.jpg")) for label in CLASSES):
        raise FileNotFoundError(f"no cats or no dogs in {directory}: run prepare_dataset.py")
    photos = keras.utils.image_dataset_from_directory(
        directory, label_mode="binary", image_size=model.input_shape[1:3], batch_size=64,
        shuffle=False, verbose=False)
    paths = [Path(path) for path in photos.file_paths]
    classes = np.array([path.parent.name == "dogs" for path in paths], dtype=int)
    try:
        answers = tf.nest.flatten(model.predict(photos))
    except tf.errors.InvalidArgumentError:
        raise ValueError(f"a file in {directory} is not a photo: delete the folder, and prepare it "
                         "anew") from None
    answers = np.concatenate(answers, axis=1).astype(np.float64)
    return paths, classes, answers[:, 0], answers[:, 1] if len(answers.T) > 1 else None


def wilson_interval(right, n):
    """Return the 95 % confidence interval (low, high), 0 to 1, of an accuracy of `right` of `n`.

    Source: E. B. Wilson, 1927. Unlike p ± 1.96 s it holds near 0 and 1, where good networks are.
    """
    z, p = 1.959964, right / n
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return tuple((p + z**2 / (2 * n) + side) / (1 + z**2 / n) for side in (-half, half))


def print_results(classes, dog, animal, confusion):
    """Print the metrics; `classes`, `dog` and `animal` are as predict_photos returns them.

    `confusion` (2, 2) counts the photos by true and predicted class.
    """
    right = (dog >= 0.5) == classes
    print("       photos  right  accuracy  95 % interval (Wilson)")
    for name, which in (("all", classes < 2), ("cats", classes == 0), ("dogs", classes == 1)):
        n, hits = which.sum(), right[which].sum()
        low, high = wilson_interval(hits, n)
        print(f"{name:6}{n:7}{hits:7}{hits / n * 100:8.2f} %  {low * 100:.2f} to "
              f"{high * 100:.2f} %")
    print("\n        called cat  called dog")
    for label, counts in zip(CLASSES, confusion, strict=True):
        print(f"{label}s  {counts[0]:12}{counts[1]:12}")
    print(f"\nlog loss: {float(keras.losses.binary_crossentropy(classes, dog)):.4f}")
    sure = np.maximum(dog, 1 - dog) >= 0.8  # as in predict.py
    rest = f", of the others {right[sure].mean() * 100:.2f} % are right" if sure.any() else ""
    print(f"unsure, 20 to 80 %: {(~sure).sum()} photos{rest}")
    if animal is not None:
        print(f"called neither a dog nor a cat: {(animal < 0.5).sum()} photos")


def plot_errors(paths, dog, filename):
    """Draw the photos at `paths` with P(dog), `dog` (n,), and save them as PNG `filename`."""
    columns = min(6, len(paths))
    rows = math.ceil(len(paths) / columns)
    figure = Figure(figsize=(2.6 * columns, 2.7 * rows), layout="constrained")
    for number, (path, p) in enumerate(zip(paths, dog, strict=True), start=1):
        axes = figure.add_subplot(rows, columns, number)
        axes.imshow(keras.utils.load_img(path))
        axes.axis("off")
        axes.set_title(f"{path.name}\n{path.parent.name[:-1]}, called {CLASSES[int(p >= 0.5)]} "
                       f"{max(p, 1 - p) * 100:.1f} %", fontsize=9)
    figure.savefig(filename)


def plot_summary(classes, dog, confusion, filename):
    """Draw the confusion matrix beside the reliability diagram; save them as PNG `filename`.

    The diagram (DeGroot and Fienberg, 1983) has a point for each of ten bins of P(dog), `dog` (n,):
    its fraction of dogs. If the network is well calibrated, the points are on the diagonal.
    """
    figure = Figure(figsize=(12, 6), layout="constrained")
    matrix, reliability = figure.subplots(1, 2)
    matrix.imshow(confusion / confusion.sum(axis=1, keepdims=True), cmap="Blues", vmin=0, vmax=1.5)
    for (row, column), count in np.ndenumerate(confusion):
        matrix.text(column, row, f"{count}\n{count / confusion[row].sum() * 100:.2f} %",
                    ha="center", va="center", fontsize=16)
    matrix.set(title="Confusion matrix", xticks=(0, 1), xticklabels=CLASSES, xlabel="predicted",
               yticks=(0, 1), yticklabels=CLASSES, ylabel="true class")
    bins = np.minimum((dog * 10).astype(int), 9)
    for number in np.unique(bins):
        inside = bins == number
        x, share, n = dog[inside].mean(), classes[inside].mean(), inside.sum()
        low, high = wilson_interval(classes[inside].sum(), n)
        reliability.plot((x, x), (low, high), color="tab:blue", lw=1)
        reliability.plot(x, share, "o", color="tab:blue")
        reliability.annotate(n, (x, share), (7, -3), textcoords="offset points")
    reliability.plot((0, 1), (0, 1), "--", color="grey", lw=1)
    reliability.set(title="Reliability: photos per bin, with 95 % intervals", xlim=(0, 1.12),
                    ylim=(-0.03, 1.03), xlabel="mean P(dog) in the bin", ylabel="fraction of dogs")
    figure.savefig(filename)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, help="(the one in models/reference/)")
    parser.add_argument("--dataset", type=Path, default="dataset_dogs_vs_cats")
    parser.add_argument("--top", type=int, default=24, help="most confident errors to draw (24)")
    args = parser.parse_args()
    if args.top < 1:
        parser.error("--top must be at least 1")
    model = args.model or next(iter(sorted(Path("models/reference").glob("*.keras"))), None)
    if not model:
        raise FileNotFoundError("no model in models/reference: name one")
    print(f"model: {model}")
    paths, classes, dog, animal = predict_photos(load_model(model), args.dataset / "test")
    confusion = tf.math.confusion_matrix(classes, dog >= 0.5, num_classes=2).numpy()
    print_results(classes, dog, animal, confusion)
    os.makedirs("plots", exist_ok=True)
    plot_summary(classes, dog, confusion, f"plots/{model.stem}_summary.png")
    print(f"drawn: plots/{model.stem}_summary.png")
    errors = np.flatnonzero((dog >= 0.5) != classes)
    if not len(errors):
        print("no errors at all, so there is no gallery of them")
        return
    top = errors[np.argsort(-np.abs(dog[errors] - 0.5), kind="stable")][:args.top]
    plot_errors([paths[error] for error in top], dog[top], f"plots/{model.stem}_errors.png")
    print(f"drawn: plots/{model.stem}_errors.png, {len(top)} of {len(errors)} errors")


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, OSError, ValueError, tf.errors.OpError) as error:
        sys.exit(f"{sys.argv[0]}: {' '.join(str(error).split()) or 'stopped'}")
