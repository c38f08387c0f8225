"""A small VGG on 4,000 photos that are read into memory at once, with plots and ten predictions.

The first 2,000 cats and 2,000 dogs of the folder, 150x150, are split 80/20, stratified. Their
number by class is drawn as a bar chart, and ten photos without labels in a grid with the network's
answers. The tutorial holds that division by 255 gives mean 0 and deviation 1; it gives 0..1.
Published validation accuracy: 80 to 81 % after 64 epochs, with 3,200 photos to train on and 800 to
validate (Rising Odegua, "Image detection from scratch in Keras", Towards Data Science).
"""

import argparse
import os
import shutil
import signal
import zlib
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # keeps TensorFlow's start-up chatter away

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from matplotlib.figure import Figure

NAME = Path(__file__).stem
EPOCHS = 64
BATCH_SIZE = 32


def define_model():
    """Return the compiled network: uint8 photos (n, 150, 150, 3) in, P(dog) (n, 1) out."""
    model = keras.Sequential()
    model.add(keras.Input((150, 150, 3)))
    model.add(layers.Rescaling(1 / 255))
    # augmentation; the tutorial shows its settings as a picture only, these are customary;
    # shear is a pair, since Keras saves a single number in a form that it cannot load again
    model.add(layers.RandomRotation(40 / 360, fill_mode="nearest"))
    model.add(layers.RandomTranslation(0.2, 0.2, fill_mode="nearest"))
    model.add(layers.RandomShear((0, 0.2), fill_mode="nearest"))
    model.add(layers.RandomZoom(0.2, 0.2, fill_mode="nearest"))
    model.add(layers.RandomFlip("horizontal"))
    model.add(layers.Conv2D(32, (3, 3), activation="relu"))
    model.add(layers.MaxPooling2D((2, 2)))
    model.add(layers.Conv2D(64, (3, 3), activation="relu"))
    model.add(layers.MaxPooling2D((2, 2)))
    model.add(layers.Conv2D(128, (3, 3), activation="relu"))
    model.add(layers.MaxPooling2D((2, 2)))
    model.add(layers.Conv2D(128, (3, 3), activation="relu"))
    model.add(layers.MaxPooling2D((2, 2)))
    # classifier
    model.add(layers.Flatten())
    model.add(layers.Dropout(0.5))
    model.add(layers.Dense(512, activation="relu"))
    model.add(layers.Dense(1, activation="sigmoid", dtype="float32"))
    optimizer = keras.optimizers.RMSprop(learning_rate=1e-4)
    model.compile(optimizer=optimizer, loss="binary_crossentropy", metrics=["accuracy"])
    return model


def read_photos(paths):
    """Return the photos as an array, uint8 (n, 150, 150, 3), RGB in 0..255.

    Raises OSError, which names the file, where one cannot be read.
    """
    photos = np.empty((len(paths), 150, 150, 3), dtype=np.uint8)
    for index, path in enumerate(paths):
        try:
            photos[index] = keras.utils.load_img(
                path, target_size=(150, 150), interpolation="bilinear")
        except OSError:
            raise OSError(f"cannot read {path} as a photo") from None
    return photos


def load_dataset(directory):
    """Return the photos below `directory`, at most 2,000 of each class, and their classes.

    uint8 (n, 150, 150, 3) in 0..255, and float32 (n, 1): cats 0, dogs 1. Both the tree of
    prepare_small_dataset.py and that of prepare_dataset.py will do.
    Raises FileNotFoundError where there are no photos.
    """
    paths = []
    for label in ("cats", "dogs"):
        found = sorted(directory.glob(f"*/{label}/*.jpg"), key=lambda p: (len(p.name), p.name))
        if not found:
            raise FileNotFoundError(f"no photos of {label} below {directory}: run "
                                    "more_experiments/prepare_small_dataset.py")
        paths += found[:2000]
    classes = [[float(path.parent.name == "dogs")] for path in paths]
    return read_photos(paths), np.array(classes, dtype=np.float32)


def split_dataset(photos, classes, seed):
    """Return (photos, classes) to train on and to validate, 80 and 20 % of each class, shuffled."""
    generator = np.random.default_rng(seed)
    train, validation = [], []
    for value in (0, 1):
        rows = generator.permutation(np.flatnonzero(classes == value))
        validation.extend(rows[: len(rows) // 5])
        train.extend(rows[len(rows) // 5 :])
    return (photos[train], classes[train]), (photos[validation], classes[validation])


def save_figure(figure, name):
    """Write `figure` to plots/<script>_`name`.png, whole before it takes the name."""
    figure.savefig(f"plots/{NAME}_{name}.new.png")
    os.replace(f"plots/{NAME}_{name}.new.png", f"plots/{NAME}_{name}.png")


def plot_classes(classes):
    """Draw the number of photos of each class as a bar chart."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    axes.bar_label(axes.bar(["cats (0)", "dogs (1)"], [(classes == 0).sum(), (classes == 1).sum()]))
    axes.set(title="photos of each class", ylabel="photos")
    save_figure(figure, "classes")
    print(f"classes: plots/{NAME}_classes.png")


def summarize_diagnostics(history):
    """Draw the learning curves of `history`, a CSVLogger file, into plots/<script>_plot.png."""
    rows = np.atleast_1d(np.genfromtxt(history, delimiter=",", names=True))
    figure = Figure(figsize=(8, 8), layout="constrained")
    loss, accuracy = figure.subplots(2)
    # The limits are the same in every script, so that two pictures can be compared by eye.
    loss.set(title="Cross-Entropy Loss", ylim=(0, 2))
    accuracy.set(title="Classification Accuracy", ylim=(0.4, 1))
    epochs = rows["epoch"] + 1
    for axes, metric in ((loss, "loss"), (accuracy, "accuracy")):
        axes.plot(epochs, rows[metric], ".-", color="blue", label="train")
        axes.plot(epochs, rows[f"val_{metric}"], ".-", color="orange", label="validation")
        axes.set(xlabel="epoch", xlim=(0, max(50, len(rows))))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(NAME)
    save_figure(figure, "plot")
    print(f"learning curves: plots/{NAME}_plot.png, drawn from {history}")


def plot_predictions(model, paths, photos):
    """Draw `photos`, read from `paths`, in a grid titled with class and probability."""
    figure = Figure(figsize=(12, 6), layout="constrained")
    grid = figure.subplots(2, 5).flat
    for axes in grid:
        axes.set_axis_off()
    predicted = model.predict(photos, verbose=0)[:, 0]
    for axes, path, photo, dog in zip(figure.axes, paths, photos, predicted, strict=False):
        label, probability = ("dog", dog) if dog >= 0.5 else ("cat", 1 - dog)
        axes.imshow(photo)
        axes.set_title(f"{path.name}: {label} ({probability * 100:.1f} %)")
    save_figure(figure, "predictions")
    print(f"predictions: plots/{NAME}_predictions.png")


def run_test_harness():
    """Train, print the validation accuracy in per cent, save plots, weights and model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")  # one line
    parser.add_argument("--dataset", type=Path, default="cats_and_dogs_small",
                        help="the folder of prepare_small_dataset.py (%(default)s)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="(%(default)s)")
    parser.add_argument("--photos", type=Path, metavar="FOLDER",
                        help="photos without labels, the first ten are predicted (test1, Kaggle's, "
                             "if it is there)")
    parser.add_argument("--precision", choices=["float32", "mixed_bfloat16", "mixed_float16"],
                        default="float32", help="dtype policy; float16 needs a GPU (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of all random numbers (%(default)s)")
    args = parser.parse_args()
    if args.epochs < 1 or not 0 <= args.seed < 2**32:
        parser.error("--epochs must be 1 or more, --seed from 0 to 4294967295")

    def stop(*_):  # at once, since HDF5's clean-up would swallow a KeyboardInterrupt
        os.write(2, f"\n{parser.prog}: stopped; the same command continues this run\n".encode())
        os._exit(130)

    signal.signal(signal.SIGINT, stop)
    keras.utils.set_random_seed(args.seed)
    keras.config.set_dtype_policy(args.precision)
    try:
        folder = args.photos or Path("test1")
        unlabelled = sorted(folder.glob("*.jpg"), key=lambda p: (len(p.name), p.name))[:10]
        if args.photos and not unlabelled:
            parser.error(f"no photos (*.jpg) in {folder}")
        unlabelled_photos = read_photos(unlabelled)
        photos, classes = load_dataset(args.dataset)
        train, validation = split_dataset(photos, classes, args.seed)
        print(f"photos: {photos.shape}, to train on: {len(train[0])}, to validate: "
              f"{len(validation[0])}")
        model = define_model()
        # A run that was stopped goes on with the same command, network and photos, no others.
        key = zlib.crc32(f"{args} {model.to_json()} {zlib.crc32(photos)}".encode())
        backup = Path(f"plots/backup/{NAME}_{key:08x}")
        backup.mkdir(parents=True, exist_ok=True)
        history = Path(f"plots/{NAME}_history.csv")
        plot_classes(classes)

        def save_whole(filepath, **options):  # a kill in the middle leaves the backup before
            if shutil.disk_usage(backup).free < 9 * model.count_params():  # HDF5 would crash
                raise OSError(f"no room on the disk for the backup in {backup}")
            keras.Sequential.save_weights(model, f"{backup}/new.weights.h5", **options)
            os.replace(f"{backup}/new.weights.h5", filepath)
            shutil.copy(history, backup)

        def drop_other_rows(epoch, logs):  # of an earlier run, or of an epoch that is redone
            lines = history.read_text().splitlines(keepends=True)
            history.write_text("".join(lines[: epoch + 1]))

        if (backup / history.name).exists():
            shutil.copy(backup / history.name, history)
            # Else the random numbers of the first epochs would come once more.
            keras.utils.set_random_seed(zlib.crc32(history.read_bytes()))
            model = define_model()
        model.save_weights = save_whole
        model.fit(
            *train, batch_size=BATCH_SIZE, validation_data=validation, epochs=args.epochs,
            callbacks=[
                keras.callbacks.LambdaCallback(on_epoch_begin=drop_other_rows),
                keras.callbacks.CSVLogger(history, append=True),
                keras.callbacks.BackupAndRestore(backup),
            ])
        _, accuracy = model.evaluate(*validation, verbose=0)
        print(f"> {accuracy * 100:.3f}")
        summarize_diagnostics(history)
        if unlabelled:
            plot_predictions(model, unlabelled, unlabelled_photos)
        else:
            print("no predictions: there is no test1 here, and no --photos FOLDER was given")
        if shutil.disk_usage(".").free < 5 * model.count_params():  # HDF5 would crash
            raise OSError(f"no room on the disk for {NAME}.weights.h5")
        keras.Sequential.save_weights(model, f"{NAME}.part.weights.h5")
        os.replace(f"{NAME}.part.weights.h5", f"{NAME}.weights.h5")
        model.save(f"{NAME}.part.keras")
        os.replace(f"{NAME}.part.keras", f"{NAME}.keras")
        print(f"weights: {NAME}.weights.h5, model: {NAME}.keras")
    except tf.errors.ResourceExhaustedError:
        parser.error("out of memory: a smaller BATCH_SIZE needs less")
    except OSError as error:
        parser.error(" ".join(str(error).split()))


if __name__ == "__main__":
    run_test_harness()
