"""Three VGG blocks with augmentation, on many GPUs and hosts, photos streamed from the disk.

Keras on JAX: each device of each process has a copy of the network, and a part of every batch."""
import argparse
import csv
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from signal import SIGINT, signal

os.environ["KERAS_BACKEND"] = "jax"  # TensorFlow reads photos, but cannot split steps (keras#20585)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # keeps TensorFlow's start-up chatter away
if __name__ == "__main__":  # Ctrl-C exits at once: a half-written backup must not look whole
    signal(SIGINT, lambda *_: os.write(2, b"stopped; add --resume to continue\n") and os._exit(1))
import jax
import keras
import tensorflow as tf
from keras import layers
from matplotlib.figure import Figure

EPOCHS = 50


def define_model(augmentation):
    """Return the compiled network: photos (n, 200, 200, 3), 0 to 255, in; P(dog) (n, 1) out."""
    model = keras.Sequential([
        keras.Input((200, 200, 3)),
        layers.Rescaling(1 / 255),
        # augmentation; shifts in float32: on GPUs TensorFlow can't do them in bfloat16
        *([layers.RandomTranslation(0.1, 0.1, fill_mode="nearest", dtype="float32"),
           layers.RandomFlip("horizontal")] if augmentation else []),
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
                  loss="binary_crossentropy", weighted_metrics=["accuracy"])
    return model


def flow_from_directory(directory, shuffle, batch, cache):
    """Return this process's share of `directory`/cats (class 0) and `directory`/dogs (class 1):
    uint8 photos (n, 200, 200, 3), 0 to 255, classes (n, 1), weights (n,); n is `batch` over
    the number of processes. `cache` is a folder, "" (memory) or None. Raises FileNotFoundError."""
    paths = sorted([*directory.glob("cats/*.jpg"), *directory.glob("dogs/*.jpg")])
    if len({path.parent for path in paths}) < 2:
        raise FileNotFoundError(f"no cats or no dogs in {directory}: run prepare_dataset.py")
    # Only whole batches can be split (keras#21167): copies of a photo, of weight 0, fill them up.
    # The rest weigh slightly more than 1, so that Keras's averages count each photo exactly once.
    padding = -len(paths) % batch
    weights = [1 + padding / len(paths)] * len(paths) + [0.0] * padding
    paths += paths[:1] * padding
    labels = [[float(path.parent.name == "dogs")] for path in paths]
    photos = tf.data.Dataset.from_tensor_slices(([*map(str, paths)], labels, weights))
    photos = photos.shuffle(len(paths)) if shuffle else photos  # same order everywhere: same seed
    photos = photos.shard(jax.process_count(), jax.process_index()).map(
        lambda path, label, weight: (tf.cast(tf.round(tf.image.resize(tf.io.decode_jpeg(
            tf.io.read_file(path), 3), (200, 200))), tf.uint8), label, weight), tf.data.AUTOTUNE)
    if cache is not None:  # the first epoch's share, reshuffled in a buffer of 240 MB
        photos = photos.cache(cache and f"{cache}/{directory.name}").shuffle(2000 if shuffle else 1)
    return photos.batch(batch // jax.process_count()).prefetch(tf.data.AUTOTUNE)


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


def run_test_harness(decoded):
    """Train, print the accuracy on the test split in per cent, save learning curves and model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, default="dataset_dogs_vs_cats")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--precision", default="float32", help="or mixed_bfloat16, mixed_float16")
    parser.add_argument("--seed", type=int, default=1, help="random seed")
    parser.add_argument("--resume", action="store_true", help="continue after the last whole epoch")
    parser.add_argument("--batch", type=int, default=64, help="global batch size, over all devices")
    parser.add_argument("--cache", choices=("memory", "disk", "no"), default="no")
    parser.add_argument("--no-augmentation", action="store_true", help="to compare runs")
    args = parser.parse_args()
    name = Path(__file__).stem + (f"_seed{args.seed}" if args.seed != 1 else "")
    history, backup = Path(f"plots/{name}_history.csv"), Path(f"plots/backup/{name}")
    if "KERAS_DISTRIBUTION_NUM_PROCESSES" in os.environ:
        keras.distribution.initialize()
    tf.config.set_visible_devices([], "GPU")  # they are JAX's
    if args.batch < 1 or args.batch % jax.device_count():
        raise ValueError(f"{jax.device_count()} devices cannot share --batch {args.batch}")
    devices = keras.distribution.DataParallel(auto_shard_dataset=False)  # done above
    keras.distribution.set_distribution(devices)
    first = jax.process_index() == 0  # it alone prints and writes
    for folder in ("plots", "models"):
        os.makedirs(folder, exist_ok=True)
    resume = args.resume and backup.exists()  # then a new seed, or shuffles would repeat
    keras.utils.set_random_seed(args.seed + (history.stat().st_size if resume else 0))
    keras.config.set_dtype_policy(args.precision)
    cache = {"memory": "", "disk": decoded}.get(args.cache)
    train_it = flow_from_directory(args.dataset / "train", True, args.batch, cache)
    test_it = flow_from_directory(args.dataset / "test", False, args.batch, cache)
    model = define_model(not args.no_augmentation)
    if first:
        model.summary()
    if first and backup.exists() and not resume:
        shutil.rmtree(backup)
    # Saving creates a variable, for which Keras waits for all processes, but not while `alone`.
    alone, together = (keras.callbacks.LambdaCallback(on_epoch_end=lambda *_, to=to:
                       keras.distribution.set_distribution(to)) for to in (None, devices))
    restore = keras.callbacks.BackupAndRestore(  # which the others only read
        backup, "epoch" if first else 2 ** 60, double_checkpoint=True, delete_checkpoint=False)
    model.fit(train_it, validation_data=test_it, epochs=args.epochs, verbose=int(first), callbacks=[
        keras.callbacks.CSVLogger(history, append=resume), alone, restore, together
    ] if first else [restore] * resume)
    accuracy = model.evaluate(test_it, verbose=0, return_dict=True)["accuracy"]
    if first:
        print(f"> {accuracy * 100:.3f}")
        summarize_diagnostics(name)
        keras.distribution.set_distribution(None)
        model.save(f"models/{name}.keras")


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Keras's, e.g. about another network's backup
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as decoded:
            run_test_harness(decoded)
    except (AssertionError, OSError, RuntimeError, ValueError, tf.errors.OpError) as error:
        print(f"{sys.argv[0]}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        os._exit(1)  # sys.exit would wait for the other processes, even for one that is gone
