"""The small data set with VGG-16's features: a new classifier on its frozen convolutions, 150x150.

Nothing is augmented: each photo passes VGG-16 once. Published validation accuracy: 90 to 93 %,
announced by "Keras in Chinese", chapter 6; recipe: Chollet, "Deep Learning with Python", 2017, 5.3.
"""
import argparse
import csv
import hashlib
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
import numpy as np
import tensorflow as tf
from keras import layers
from matplotlib.figure import Figure

EPOCHS = 30


def define_model(weights):
    """Return VGG-16 without its top, frozen, and the compiled classifier for its features.

    VGG-16: photos (n, 150, 150, 3), 0 to 255, in; features (n, 4, 4, 512) out. Classifier: P(dog)
    (n, 1) out. `weights` is "imagenet" or a file's path; raises OSError where it can't be loaded.
    """
    try:
        base = keras.applications.VGG16(include_top=False, weights=weights)
    except Exception as error:  # noqa: BLE001, the download raises bare Exception
        raise OSError(f"no weights {weights} (--weights takes a file): {error}") from None
    base.trainable = False
    # VGG-16 was trained on BGR photos: with its first kernel's channels reversed it takes RGB.
    kernel, bias = base.layers[1].get_weights()
    base.layers[1].set_weights([kernel[:, :, ::-1], bias])
    # ImageNet's channel means were subtracted from its photos, too; the book only divides by 255.
    means = layers.Rescaling(1, offset=[-123.68, -116.779, -103.939], dtype="float32")
    vgg16 = keras.Sequential([keras.Input((150, 150, 3)), means, *base.layers[1:]])
    classifier = keras.Sequential([
        keras.Input((4, 4, 512)),
        layers.Flatten(),
        layers.Dense(256, activation="relu"),
        layers.Dropout(0.5),
        layers.Dense(1, activation="sigmoid", dtype="float32"),  # P(dog), in any --precision
    ])
    # RMSprop divides by sqrt(v) + 1e-8 in the tutorial's Keras, by sqrt(v + epsilon) in Keras 3.
    classifier.compile(optimizer=keras.optimizers.RMSprop(learning_rate=2e-5, epsilon=1e-14),
                       loss="binary_crossentropy", metrics=["accuracy"])
    return vgg16, classifier


def flow_from_directory(directory):
    """Return the iterator over `directory`/cats (class 0) and `directory`/dogs (class 1).

    Batches of 20: float32 photos (n, 150, 150, 3), 0 to 255, and float32 classes (n, 1), in the
    order of its attribute file_paths. Raises FileNotFoundError where a class has no photos.
    """
    if not all(any(directory.glob(f"{label}/*.jpg")) for label in ("cats", "dogs")):
        raise FileNotFoundError(f"no cats or no dogs in {directory}: run prepare_small_dataset.py")
    return keras.utils.image_dataset_from_directory(
        directory, label_mode="binary", image_size=(150, 150), batch_size=20, shuffle=False)


def extract_features(vgg16, photos, shuffle):
    """Return the iterator over the features that `vgg16` extracts from `photos`.

    Batches of 20: float32 features (n, 4, 4, 512), kept in features/ under a hash of all that they
    depend on, and bool classes (n, 1). A pass that is interrupted starts anew.
    """
    key = hashlib.sha256(vgg16.to_json().encode())
    key.update(b"".join(array.tobytes() for array in vgg16.get_weights()))
    for path in photos.file_paths:
        key.update(Path(path).read_bytes())
    file = Path(f"features/{key.hexdigest()}.npy")
    if not file.exists():
        np.save(part := f"{file}.{os.getpid()}.npy", vgg16.predict(photos).astype(np.float32))
        os.replace(part, file)  # never half of it under that name
    classes = np.array([[Path(path).parent.name == "dogs"] for path in photos.file_paths])
    samples = tf.data.Dataset.from_tensor_slices((np.load(file), classes))
    samples = samples.shuffle(len(samples)) if shuffle else samples
    return samples.batch(20).prefetch(tf.data.AUTOTUNE)


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
    parser.add_argument("--precision", default="float32", help="or mixed_bfloat16, mixed_float16")
    parser.add_argument("--weights", default="imagenet", help="or a file of VGG-16 without its top")
    parser.add_argument("--seed", type=int, default=1, help="random seed")
    parser.add_argument("--resume", action="store_true", help="continue after the last whole epoch")
    args = parser.parse_args()
    name = Path(__file__).stem + (f"_seed{args.seed}" if args.seed != 1 else "")
    history, backup = Path(f"plots/{name}_history.csv"), Path(f"plots/backup/{name}")
    for folder in ("plots", "models", "features"):
        os.makedirs(folder, exist_ok=True)
    resume = args.resume and backup.exists()  # then a new seed, or shuffles would repeat
    keras.utils.set_random_seed(args.seed + (history.stat().st_size if resume else 0))
    keras.config.set_dtype_policy(args.precision)
    train_photos, validation_photos, test_photos = (
        flow_from_directory(args.dataset / split) for split in ("train", "validation", "test"))
    vgg16, model = define_model(args.weights)
    # VGG-16 and classifier in one; the layers are shared, so that training `model` trains it, too.
    whole = keras.Sequential([keras.Input((150, 150, 3)), *vgg16.layers, *model.layers])
    whole.summary()
    train_it = extract_features(vgg16, train_photos, shuffle=True)
    validation_it = extract_features(vgg16, validation_photos, shuffle=False)
    test_it = extract_features(vgg16, test_photos, shuffle=False)
    if not resume and shutil.disk_usage("plots").free < 16 * model.count_params():  # HDF5 crashes
        raise OSError("no room on the disk for two backups of the network")
    if backup.exists() and not resume:
        shutil.rmtree(backup)
    model.fit(train_it, validation_data=validation_it, epochs=args.epochs, callbacks=[
        keras.callbacks.CSVLogger(history, append=resume),
        keras.callbacks.BackupAndRestore(backup, double_checkpoint=True, delete_checkpoint=False)])
    for split, iterator in (("validation", validation_it), ("test", test_it)):
        print(f"> {model.evaluate(iterator, verbose=0)[1] * 100:.3f} ({split})")
    summarize_diagnostics(name)
    whole.save(f"models/{name}.keras")


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Keras's, where another version saved the weights
    try:
        run_test_harness()
    except (OSError, RuntimeError, ValueError, tf.errors.OpError) as error:
        sys.exit(f"{sys.argv[0]}: {' '.join(str(error).split())}")
