"""Transfer learning in three short epochs: frozen VGG-16 at 128x128 pixels, one sigmoid unit.

200 batches of 16 are an epoch, so that three epochs see half of the photos, each once. Photos are
preprocessed as for VGG-16's training (BGR minus ImageNet's means); the tutorial divides by 255.
Compare its last line, accuracy and seconds, with that of small_cnn_32.py.
Published test accuracy: 87.8 % after 3 epochs, loss 0.6551, with 19,997 photos to draw from and
5,000 test photos ("Image classification: cats and dogs, pre-trained neural network vs
constructed", Analytics Vidhya).
"""
import argparse
import csv
import os
import shutil
import sys
import time
import warnings
from pathlib import Path
from signal import SIGINT, signal

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # keeps TensorFlow's start-up chatter away
if __name__ == "__main__":  # Ctrl-C exits at once: a half-written backup must not look whole
    signal(SIGINT, lambda *_: os.write(2, b"stopped; add --resume to continue\n") and os._exit(1))
import keras
import numpy as np
import tensorflow as tf
from keras import layers
from matplotlib.figure import Figure

EPOCHS = 3
STEPS = 200  # batches in an epoch


def define_model(weights):
    """Return VGG-16 without its top, frozen, the classifier for its features, and both in one.

    VGG-16: photos (n, 128, 128, 3), 0 to 255, in; features (n, 4, 4, 512) out. Classifier: P(dog)
    (n, 1) out. `weights` is "imagenet" or a file's path; raises OSError where it can't be loaded.
    """
    try:
        base = keras.applications.VGG16(include_top=False, weights=weights)
    except Exception as error:  # noqa: BLE001, the download raises bare Exception
        raise OSError(f"no weights {weights} (--weights takes a file): {error}") from None
    # It was trained on BGR minus ImageNet's means: reversing its first kernel lets it take RGB.
    kernel, bias = base.layers[1].get_weights()
    base.layers[1].set_weights([kernel[:, :, ::-1], bias])
    means = layers.Rescaling(1, offset=[-123.68, -116.779, -103.939], dtype="float32")
    base.trainable = False
    vgg16 = keras.Sequential([keras.Input((128, 128, 3)), means, *base.layers[1:]])
    classifier = keras.Sequential([
        keras.Input((4, 4, 512)),
        layers.Flatten(),
        layers.Dense(1, activation="sigmoid", dtype="float32"),  # P(dog), in any --precision
    ])
    model = keras.Sequential([keras.Input((128, 128, 3)), *vgg16.layers, *classifier.layers])
    for network in (classifier, model):
        network.compile(optimizer="adam", loss="binary_crossentropy", metrics=["accuracy"])
    return vgg16, classifier, model


def flow_from_directory(directory, shuffle):
    """Return the iterator over `directory`/cats (class 0) and `directory`/dogs (class 1).

    Batches of 16: uint8 photos (n, 128, 128, 3), 0 to 255, decoded once and kept in memory (49 kB
    each), and float32 classes (n, 1). Raises FileNotFoundError where a class has no photos.
    """
    if not all(any(directory.glob(f"{label}/*.jpg")) for label in ("cats", "dogs")):
        raise FileNotFoundError(f"no cats or no dogs in {directory}: run prepare_dataset.py")
    photos = keras.utils.image_dataset_from_directory(
        directory, label_mode="binary", image_size=(128, 128), batch_size=None, shuffle=False)
    photos = photos.map(lambda photo, label: (tf.cast(tf.round(photo), tf.uint8), label)).cache()
    photos = photos.shuffle(len(photos)).repeat() if shuffle else photos
    return photos.batch(16).prefetch(tf.data.AUTOTUNE)


class Seconds(keras.callbacks.Callback):
    """Adds a column to the history: the seconds of training, without reading and validating."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 0:  # only now have all photos been read
            self.begin = time.perf_counter()
        self.end = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        logs["seconds"] = self.end - self.begin


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
    parser.add_argument("--steps", type=int, default=STEPS, help="batches in an epoch")
    parser.add_argument("--precision", default="float32", help="or mixed_bfloat16, mixed_float16")
    parser.add_argument("--weights", default="imagenet", help="or a file of VGG-16 without its top")
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
    vgg16, classifier, model = define_model(args.weights)
    model.summary()
    if not resume and shutil.disk_usage("plots").free < 8 * model.count_params():  # HDF5 crashes
        raise OSError("no room on the disk for two backups of the network")
    if backup.exists() and not resume:
        shutil.rmtree(backup)
    features = vgg16.predict(test_it).astype(np.float32)  # each test photo passes it only once
    classes = np.concatenate([labels for _, labels in test_it])
    validate = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(
        zip(("val_loss", "val_accuracy"), classifier.evaluate(features, classes, verbose=0),
            strict=True)))
    model.fit(train_it, epochs=args.epochs, steps_per_epoch=args.steps, callbacks=[
        Seconds(), validate, keras.callbacks.CSVLogger(history, append=resume),
        keras.callbacks.BackupAndRestore(backup, double_checkpoint=True, delete_checkpoint=False)])
    loss, accuracy = classifier.evaluate(features, classes, verbose=0)
    with open(history) as file:
        seconds = {row["epoch"]: float(row["seconds"]) for row in csv.DictReader(file)}
    print(f"> {accuracy * 100:.3f} (loss {loss:.4f}, {sum(seconds.values()):.0f} s of training)")
    summarize_diagnostics(name)
    model.save(f"models/{name}.keras")


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Keras's, e.g. about another network's backup
    try:
        run_test_harness()
    except (OSError, RuntimeError, ValueError, tf.errors.OpError) as error:
        sys.exit(f"{sys.argv[0]}: {' '.join(str(error).split())}")
