"""A small convnet on 2,000 photos: it memorizes them.

Training accuracy nears 100 % while validation accuracy levels off early: the overfitting that
small_data_augmentation.py works on.
Published validation accuracy: 70 to 72 % in 30 epochs, with 2,000 training and 1,000
validation photos ("Keras in Chinese", chapter 6, after Francois Chollet, "Deep Learning with
Python", 2017).
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

EPOCHS = 30
STEPS = 100  # batches in an epoch
BATCH_SIZE = 20


def define_model():
    """Return the compiled network: photos (n, 150, 150, 3), 0 to 255, in; P(dog) (n, 1) out."""
    model = keras.Sequential([
        keras.Input((150, 150, 3)),
        layers.Rescaling(1 / 255),
        layers.Conv2D(32, 3, activation="relu"),
        layers.MaxPooling2D(2),
        layers.Conv2D(64, 3, activation="relu"),
        layers.MaxPooling2D(2),
        layers.Conv2D(128, 3, activation="relu"),
        layers.MaxPooling2D(2),
        layers.Conv2D(128, 3, activation="relu"),
        layers.MaxPooling2D(2),
        # classifier
        layers.Flatten(),
        layers.Dense(512, activation="relu"),
        layers.Dense(1, activation="sigmoid", dtype="float32"),  # P(dog), in any --precision
    ])
    # RMSprop divides by sqrt(v) + 1e-8 in the tutorial's Keras, by sqrt(v + epsilon) in Keras 3.
    model.compile(optimizer=keras.optimizers.RMSprop(learning_rate=1e-4, epsilon=1e-14),
                  loss="binary_crossentropy", metrics=["accuracy"])
    return model


def flow_from_directory(directory, shuffle):
    """Return the iterator over `directory`/cats (class 0) and `directory`/dogs (class 1).

    Batches of BATCH_SIZE: uint8 photos (n, 150, 150, 3), 0 to 255, decoded once and kept in memory
    (68 kB each), and float32 classes (n, 1). With `shuffle` they repeat without end, in a new
    order each time. Raises FileNotFoundError where a class has no photos.
    """
    if not all(any(directory.glob(f"{label}/*.jpg")) for label in ("cats", "dogs")):
        raise FileNotFoundError(f"no cats or no dogs in {directory}: run prepare_small_dataset.py")
    photos = keras.utils.image_dataset_from_directory(
        directory, label_mode="binary", image_size=(150, 150), batch_size=None, shuffle=False)
    photos = photos.map(lambda photo, label: (tf.cast(tf.round(photo), tf.uint8), label)).cache()
    photos = photos.shuffle(len(photos)).repeat() if shuffle else photos
    return photos.batch(BATCH_SIZE).prefetch(tf.data.AUTOTUNE)


def summarize_diagnostics(name):
    """Draw the learning curves of plots/`name`_history.csv into plots/`name`_plot.png."""
    with open(f"plots/{name}_history.csv") as file:  # an epoch redone by --resume has two rows
        rows = {int(row["epoch"]) + 1: row for row in csv.DictReader(file)}
    figure = Figure(figsize=(8, 8), layout="constrained")
    limits = {"loss": (0, 1.3), "accuracy": (0.4, 1)}  # in all scripts, to compare them by eye
    for axes, (metric, ylim) in zip(figure.subplots(2), limits.items(), strict=True):
        for key, color, label in ((metric, "blue", "train"),
                                  (f"val_{metric}", "orange", "validation")):
            axes.plot([*rows], [float(r[key]) for r in rows.values()], ".-", c=color, label=label)
        axes.set(title=f"{name}: {metric}", xlabel="epoch", xlim=(0, len(rows) + 1), ylim=ylim)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    figure.savefig(f"plots/{name}_plot.png")


def run_test_harness():
    """Train, print the accuracies in per cent, save learning curves and model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, default="cats_and_dogs_small")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--steps", type=int, default=STEPS, help="batches in an epoch")
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
    validation_it = flow_from_directory(args.dataset / "validation", shuffle=False)
    test_it = flow_from_directory(args.dataset / "test", shuffle=False)
    photos, labels = next(iter(validation_it))
    print(f"a batch of photos: {photos.shape}, of classes: {labels.shape}")
    model = define_model()
    model.summary()
    if not resume and shutil.disk_usage("plots").free < 16 * model.count_params():  # HDF5 crashes
        raise OSError("no room on the disk for two backups of the network")
    if backup.exists() and not resume:
        shutil.rmtree(backup)
    model.fit(train_it, steps_per_epoch=args.steps, validation_data=validation_it,
              epochs=args.epochs, callbacks=[
        keras.callbacks.CSVLogger(history, append=resume),
        keras.callbacks.BackupAndRestore(backup, double_checkpoint=True, delete_checkpoint=False)])
    for split, iterator in (("validation", validation_it), ("test", test_it)):
        print(f"> {model.evaluate(iterator, verbose=0)[1] * 100:.3f} ({split})")
    summarize_diagnostics(name)
    model.save(f"models/{name}.keras")


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Keras's, e.g. about another network's backup
    try:
        run_test_harness()
    except (OSError, RuntimeError, ValueError, tf.errors.OpError) as error:
        sys.exit(f"{sys.argv[0]}: {' '.join(str(error).split())}")
