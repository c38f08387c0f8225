"""The small data set, fine-tuning: VGG-16's last block is trained along with the new classifier.

Starts from the model that small_data_features.py has saved: with an untrained classifier, the first
large gradients would spoil what the block has learnt. The learning rate is very low for the same
reason. Photos are augmented as in small_data_augmentation.py.
Published validation accuracy: 95 %, with 2,000 photos to train on and 1,000 to validate ("Keras in
Chinese", chapter 6, which announces it; the recipe is that of Francois Chollet, "Deep Learning with
Python", 2017, section 5.3).
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
from keras.applications.vgg16 import preprocess_input
from matplotlib.figure import Figure

NAME = Path(__file__).stem
EPOCHS = 100
STEPS = 100
BATCH_SIZE = 20


def define_model(file):
    """Return the compiled network of small_data_features.py, its first four blocks frozen.

    Prepared photos (n, 150, 150, 3) in, P(dog) (n, 1) out. Raises FileNotFoundError where there is
    no `file`, and OSError where it holds something else.
    """
    if not Path(file).exists():
        raise FileNotFoundError(
            f"there is no {file}: run more_experiments/small_data_features.py first")
    try:
        model = keras.models.load_model(file, compile=False, safe_mode=True)
        model.get_layer("block5_conv1")
    except Exception as error:  # noqa: BLE001, every sort, from zip files to Keras
        reason = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
        raise OSError(f"{file} is not the model of small_data_features.py: {reason}") from None
    for layer in model.layers:
        layer.trainable = not layer.name.startswith(("block1", "block2", "block3", "block4"))
    optimizer = keras.optimizers.RMSprop(learning_rate=1e-5)
    model.compile(optimizer=optimizer, loss="binary_crossentropy", metrics=["accuracy"])
    return model


def flow_from_directory(directory, shuffle=False):
    """Return the iterator over `directory`/cats (class 0) and `directory`/dogs (class 1).

    Yields batches of BATCH_SIZE: prepared photos, float32 (n, 150, 150, 3), and classes (n, 1).
    Each photo is read and decoded once, then kept in memory (68 kB apiece); with `shuffle`
    they come without end, augmented, in an order drawn anew each time.
    Raises FileNotFoundError where there are no photos.
    """
    for label in ("cats", "dogs"):
        if not any((directory / label).glob("*.jpg")):
            raise FileNotFoundError(
                f"no photos in {directory / label}: run more_experiments/prepare_small_dataset.py")
    photos = keras.utils.image_dataset_from_directory(
        directory, class_names=["cats", "dogs"], label_mode="binary",
        image_size=(150, 150), batch_size=None, shuffle=False,
    )
    count = len(photos)
    photos = photos.map(lambda photo, label: (tf.cast(tf.round(photo), tf.uint8), label)).cache()
    if shuffle:
        augment = keras.Sequential([
            layers.RandomRotation(40 / 360, fill_mode="nearest", dtype="float32"),
            layers.RandomTranslation(0.2, 0.2, fill_mode="nearest", dtype="float32"),
            layers.RandomShear((0, 0.2), fill_mode="nearest", dtype="float32"),
            layers.RandomZoom(0.2, 0.2, fill_mode="nearest", dtype="float32"),
            layers.RandomFlip("horizontal", dtype="float32"),
        ])
        photos = photos.shuffle(count).repeat().batch(BATCH_SIZE)
        photos = photos.map(lambda x, label: (augment(x, training=True), label))
    else:
        photos = photos.batch(BATCH_SIZE)
    photos = photos.map(lambda x, label: (preprocess_input(tf.cast(x, tf.float32)), label))
    return photos.prefetch(tf.data.AUTOTUNE)


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
    figure.savefig(f"plots/{NAME}_plot.new.png")  # written whole before it takes the name
    os.replace(f"plots/{NAME}_plot.new.png", f"plots/{NAME}_plot.png")
    print(f"learning curves: plots/{NAME}_plot.png, drawn from {history}")


def run_test_harness():
    """Train, print the accuracy on the test split in per cent, save curves and model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")  # one line
    parser.add_argument("--dataset", type=Path, default="cats_and_dogs_small",
                        help="the folder of prepare_small_dataset.py (%(default)s)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS,
                        help="batches in an epoch (%(default)s)")
    parser.add_argument("--precision", choices=["float32", "mixed_bfloat16", "mixed_float16"],
                        default="float32", help="dtype policy; float16 needs a GPU (%(default)s)")
    parser.add_argument("--model", type=Path, default="small_data_features.keras",
                        help="what small_data_features.py has saved (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of all random numbers (%(default)s)")
    args = parser.parse_args()
    if min(args.epochs, args.steps) < 1 or not 0 <= args.seed < 2**32:
        parser.error("--epochs and --steps must be 1 or more, --seed from 0 to 4294967295")

    def stop(*_):  # at once, since HDF5's clean-up would swallow a KeyboardInterrupt
        os.write(2, f"\n{parser.prog}: stopped; the same command continues this run\n".encode())
        os._exit(130)

    signal.signal(signal.SIGINT, stop)
    keras.utils.set_random_seed(args.seed)
    keras.config.set_dtype_policy(args.precision)
    try:
        train_it = flow_from_directory(args.dataset / "train", shuffle=True)
        validation_it = flow_from_directory(args.dataset / "validation")
        test_it = flow_from_directory(args.dataset / "test")
        model = define_model(args.model)
        # A run that was stopped goes on with the same command, network and photos, no others.
        photos = sorted((str(p), p.stat().st_size) for p in args.dataset.glob("*/*/*.jpg"))
        key = zlib.crc32(f"{args} {model.to_json()} {photos}".encode())
        backup = Path(f"plots/backup/{NAME}_{key:08x}")
        backup.mkdir(parents=True, exist_ok=True)
        history = Path(f"plots/{NAME}_history.csv")

        def save_whole(filepath, **options):  # a kill in the middle leaves the backup before
            if shutil.disk_usage(backup).free < 9 * model.count_params():  # HDF5 would crash
                raise OSError(f"no room on the disk for the backup in {backup}")
            keras.Model.save_weights(model, f"{backup}/new.weights.h5", **options)
            os.replace(f"{backup}/new.weights.h5", filepath)
            shutil.copy(history, backup)

        def drop_other_rows(epoch, logs):  # of an earlier run, or of an epoch that is redone
            lines = history.read_text().splitlines(keepends=True)
            history.write_text("".join(lines[: epoch + 1]))

        if (backup / history.name).exists():
            shutil.copy(backup / history.name, history)
            # Else the random numbers of the first epochs would come once more.
            keras.utils.set_random_seed(zlib.crc32(history.read_bytes()))
            model = define_model(args.model)
            train_it = flow_from_directory(args.dataset / "train", shuffle=True)
        model.save_weights = save_whole
        model.fit(
            train_it, validation_data=validation_it, epochs=args.epochs, steps_per_epoch=args.steps,
            shuffle=False, callbacks=[
                keras.callbacks.LambdaCallback(on_epoch_begin=drop_other_rows),
                keras.callbacks.CSVLogger(history, append=True),
                keras.callbacks.BackupAndRestore(backup),
            ])
        _, accuracy = model.evaluate(test_it, verbose=0)
        print(f"> {accuracy * 100:.3f}")
        summarize_diagnostics(history)
        model.save(f"{NAME}.part.keras")
        os.replace(f"{NAME}.part.keras", f"{NAME}.keras")
        print(f"model: {NAME}.keras")
    except tf.errors.InvalidArgumentError:
        parser.error(f"a photo in {args.dataset} is damaged: prepare_small_dataset.py mends it")
    except tf.errors.ResourceExhaustedError:
        parser.error("out of memory: a smaller BATCH_SIZE needs less")
    except OSError as error:
        parser.error(" ".join(str(error).split()))


if __name__ == "__main__":
    run_test_harness()
