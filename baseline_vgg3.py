"""Baseline: three VGG blocks of 32, 64 and 128 filters, for photos at 200x200 pixels.

The best of the baselines, but it overfits as they do: the next two experiments work on that.
Published test accuracy: 80.184 % after 20 epochs (Jason Brownlee, 2019; README has the link).
"""
import argparse
import csv
import os
import shutil
import sys
import warnings
from pathlib import Path
from signal import SIGINT, signal

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # keeps TensorFlow's start-up chatter away
if __name__ == "__main__":  # Ctrl-C exits at once: a half-written backup must not look whole
    signal(SIGINT, lambda *_: os.write(2, b"stopped; add --resume to continue\n") and os._exit(1))
import keras
import tensorflow as tf
from keras import layers
from matplotlib.figure import Figure

EPOCHS = 20


def define_model():
    """Return the compiled network: photos (n, 200, 200, 3), 0 to 255, in; P(dog) (n, 1) out."""
    model = keras.Sequential([
        keras.Input((200, 200, 3)),
        layers.Rescaling(1 / 255),
        # block 1
        layers.Conv2D(32, 3, padding="same", activation="relu", kernel_initializer="he_uniform"),
        layers.MaxPooling2D(2),
        # block 2
        layers.Conv2D(64, 3, padding="same", activation="relu", kernel_initializer="he_uniform"),
        layers.MaxPooling2D(2),
        # block 3
        layers.Conv2D(128, 3, padding="same", activation="relu", kernel_initializer="he_uniform"),
        layers.MaxPooling2D(2),
        # classifier
        layers.Flatten(),
        layers.Dense(128, activation="relu", kernel_initializer="he_uniform"),
        layers.Dense(1, activation="sigmoid", dtype="float32"),  # P(dog), in any --precision
    ])
    model.compile(optimizer=keras.optimizers.SGD(learning_rate=0.001, momentum=0.9),
                  loss="binary_crossentropy", metrics=["accuracy"])
    return model


def flow_from_directory(directory, shuffle):
    """Return the iterator over `directory`/cats (class 0) and `directory`/dogs (class 1).

    Batches of 64: uint8 photos (n, 200, 200, 3), 0 to 255, decoded once and kept in memory (120 kB
    each), and float32 classes (n, 1). Raises FileNotFoundError where a class has no photos.
    """
    if not all(any(directory.glob(f"{label}/*.jpg")) for label in ("cats", "dogs")):
        raise FileNotFoundError(f"no cats or no dogs in {directory}: run prepare_dataset.py")
    photos = keras.utils.image_dataset_from_directory(
        directory, label_mode="binary", image_size=(200, 200), batch_size=None, shuffle=False)
    photos = photos.map(lambda photo, label: (tf.cast(tf.round(photo), tf.uint8), label)).cache()
    photos = photos.shuffle(len(photos)) if shuffle else photos
    return photos.batch(64).prefetch(tf.data.AUTOTUNE)


def summarize_diagnostics(name):
    """Draw the learning curves of plots/`name`_history.csv into plots/`name`_plot.png."""
    with open(f"plots/{name}_history.csv") as file:  # an epoch redone by --resume has two rows
        rows = {int(row["epoch"]) + 1: row for row in csv.DictReader(file)}
    figure = Figure(figsize=(8, 8), layout="constrained")
    limits = {"loss": (0, 1.3), "accuracy": (0.4, 1)}  # in all scripts, to compare them by eye
    for axes, (metric, ylim) in zip(figure.subplots(2), limits.items(), strict=True):
        for key, color, label in ((metric, "blue", "train"), (f"val_{metric}", "orange", "test")):
            axes.plot([*rows], [float(r[key]) for r in rows.values()], ".-", c=color, label=label)
        axes.set(title=f"{name}: {metric}", xlabel="epoch", xlim=(0, len(rows) + 1), ylim=ylim)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    figure.savefig(f"plots/{name}_plot.png")


def run_test_harness():
    """Train, print the accuracy on the test split in per cent, save learning curves and model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, default="dataset_dogs_vs_cats")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--precision", default="float32", help="or mixed_bfloat16, mixed_float16")
    parser.add_argument("--seed", type=int, default=1, help="random seed")
    parser.add_argument("--resume", action="store_true", help="continue after the last whole epoch")
    args = parser.parse_args()
    name = Path(__file__).stem + (f"_seed{args.seed}" if args.seed != 1 else "")
    history, backup = Path(f"plots/{name}_history.csv"), Path(f"plots/backup/{name}")
    for folder in ("plots", "models"):
        os.makedirs(folder, exist_ok=True)
    resume = args.resume and backup.exists()  # then a new seed, or shuffles would repeat
    keras.utils.set_random_seed(args.seed + (history.stat().st_size if resume else 0))
    keras.config.set_dtype_policy(args.precision)
    train_it = flow_from_directory(args.dataset / "train", shuffle=True)
    test_it = flow_from_directory(args.dataset / "test", shuffle=False)
    model = define_model()
    model.summary()
    if not resume and shutil.disk_usage("plots").free < 16 * model.count_params():  # HDF5 crashes
        raise OSError("no room on the disk for two backups of the network")
    if backup.exists() and not resume:
        shutil.rmtree(backup)
    model.fit(train_it, validation_data=test_it, epochs=args.epochs, callbacks=[
        keras.callbacks.CSVLogger(history, append=resume),
        keras.callbacks.BackupAndRestore(backup, double_checkpoint=True, delete_checkpoint=False)])
    print(f"> {model.evaluate(test_it, verbose=0, return_dict=True)['accuracy'] * 100:.3f}")
    summarize_diagnostics(name)
    model.save(f"models/{name}.keras")


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Keras's, e.g. about another network's backup
    try:
        run_test_harness()
    except (OSError, RuntimeError, ValueError, tf.errors.OpError) as error:
        sys.exit(f"{sys.argv[0]}: {' '.join(str(error).split())}")
