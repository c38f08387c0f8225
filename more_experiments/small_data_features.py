"""The small data set with VGG-16's features: a new classifier on its frozen convolutions, 150x150.

The third strategy of the chapter. Nothing is augmented, so each photo passes through VGG-16 once,
and the classifier is trained on the features that came out. It is saved, with VGG-16 before it,
for small_data_fine_tuning.py.
Published validation accuracy: 90 to 93 %, with 2,000 photos to train on and 1,000 to validate
("Keras in Chinese", chapter 6, which announces it; the recipe is that of Francois Chollet, "Deep
Learning with Python", 2017, section 5.3).
"""

import argparse
import hashlib
import os
import shutil
import signal
import warnings
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
EPOCHS = 30
BATCH_SIZE = 20
WEIGHTS_URL = ("https://storage.googleapis.com/tensorflow/keras-applications/vgg16/"
               "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5")


def define_model(weights):
    """Return VGG-16 without its top, frozen, and the compiled classifier for its features.

    VGG-16: prepared photos (n, 150, 150, 3) in, features (n, 4, 4, 512) out; the classifier:
    features in, P(dog) (n, 1) out. `weights` is "imagenet" or the path of a file of weights.
    Raises OSError where they cannot be had.
    """
    warnings.simplefilter("ignore")  # Keras's, where another version saved the weights
    try:
        vgg16 = keras.applications.VGG16(
            include_top=False, weights=weights, input_shape=(150, 150, 3))
    except Exception as error:  # noqa: BLE001, no network, no such file, or another network's
        raise OSError(f"cannot load the weights {weights} ({str(error).splitlines()[0]}); get "
                      f"{WEIGHTS_URL} and give its path with --weights") from None
    vgg16.trainable = False
    model = keras.Sequential()
    model.add(keras.Input((4, 4, 512)))
    # classifier
    model.add(layers.Flatten())
    model.add(layers.Dense(256, activation="relu"))
    model.add(layers.Dropout(0.5))
    model.add(layers.Dense(1, activation="sigmoid", dtype="float32"))
    optimizer = keras.optimizers.RMSprop(learning_rate=2e-5)
    model.compile(optimizer=optimizer, loss="binary_crossentropy", metrics=["accuracy"])
    return vgg16, model


def flow_from_directory(directory):
    """Return the iterator over `directory`/cats (class 0) and `directory`/dogs (class 1).

    Yields batches of BATCH_SIZE: prepared photos, float32 (n, 150, 150, 3), and classes, float32
    (n, 1), in the order of its attribute `file_paths`.
    Raises FileNotFoundError where there are no photos.
    """
    for label in ("cats", "dogs"):
        if not any((directory / label).glob("*.jpg")):
            raise FileNotFoundError(
                f"no photos in {directory / label}: run more_experiments/prepare_small_dataset.py")
    photos = keras.utils.image_dataset_from_directory(
        directory, class_names=["cats", "dogs"], label_mode="binary",
        image_size=(150, 150), batch_size=BATCH_SIZE, shuffle=False,
    )
    prepared = photos.map(lambda photo, label: (preprocess_input(photo), label)).prefetch(2)
    prepared.file_paths = photos.file_paths
    return prepared


def extract_features(vgg16, photos):
    """Pass the iterator `photos` through `vgg16`, unless that has been done, and keep the result.

    Returns the path of a NumPy file of float32 features (n, 4, 4, 512), and float32 classes
    (n, 1). The file's name is a hash of the photos, the weights and the precision, so that the
    features of others are never taken for these.
    """
    digest = hashlib.sha256(vgg16.layers[-1].dtype_policy.name.encode())
    for path in photos.file_paths:
        digest.update(hashlib.sha256(Path(path).read_bytes()).digest())
    for weights in vgg16.get_weights():
        digest.update(weights.tobytes())
    file = Path(f"features/{digest.hexdigest()[:32]}.npy")
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        shape = (len(photos.file_paths), *vgg16.output_shape[1:])
        progress = keras.utils.Progbar(len(photos), unit_name="batch")
        with open(f"{file}.part", "wb") as part:
            np.lib.format.write_array_header_1_0(
                part, {"descr": "<f4", "fortran_order": False, "shape": shape})
            for batch, _ in photos:
                part.write(vgg16.predict_on_batch(batch).astype("<f4").tobytes())
                progress.add(1)
        os.replace(f"{file}.part", file)
    print(f"features: {file}")
    classes = [[Path(path).parent.name == "dogs"] for path in photos.file_paths]
    return file, np.array(classes, dtype=np.float32)


def flow_from_file(file, classes, shuffle=False):
    """Return the iterator over the features in NumPy `file` and their `classes`.

    Yields batches of BATCH_SIZE: float32 features (n, 4, 4, 512) and classes (n, 1). They are read
    from the disk as they are needed; with `shuffle` the order is drawn anew in every epoch.
    """
    features = np.load(file, mmap_mode="r")

    def read(rows):
        batch = tf.numpy_function(features.__getitem__, [rows], tf.float32)
        return tf.ensure_shape(batch, (None, *features.shape[1:])), tf.gather(classes, rows)

    rows = tf.data.Dataset.range(len(classes))
    if shuffle:
        rows = rows.shuffle(len(classes))
    return rows.batch(BATCH_SIZE).map(read).prefetch(tf.data.AUTOTUNE)


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
    parser.add_argument("--precision", choices=["float32", "mixed_bfloat16", "mixed_float16"],
                        default="float32", help="dtype policy; float16 needs a GPU (%(default)s)")
    parser.add_argument("--weights", default="imagenet", help="or the path of a notop file of "
                        "VGG-16's weights, .weights.h5 or the older .h5 (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of all random numbers (%(default)s)")
    args = parser.parse_args()
    if args.epochs < 1 or not 0 <= args.seed < 2**32:
        parser.error("--epochs must be 1 or more, --seed from 0 to 4294967295")

    def stop(*_):  # at once, since HDF5's clean-up would swallow a KeyboardInterrupt
        os.write(2, f"\n{parser.prog}: stopped; the same command keeps what is done\n".encode())
        os._exit(130)

    signal.signal(signal.SIGINT, stop)
    keras.utils.set_random_seed(args.seed)
    keras.config.set_dtype_policy(args.precision)
    try:
        # The photos are looked for before the weights, which may have to be downloaded.
        train_photos = flow_from_directory(args.dataset / "train")
        validation_photos = flow_from_directory(args.dataset / "validation")
        test_photos = flow_from_directory(args.dataset / "test")
        vgg16, model = define_model(args.weights)
        train = extract_features(vgg16, train_photos)
        validation = extract_features(vgg16, validation_photos)
        test = extract_features(vgg16, test_photos)
        train_it, validation_it = flow_from_file(*train, shuffle=True), flow_from_file(*validation)
        # A run that was stopped goes on with the same command, network and photos, no others.
        key = zlib.crc32(f"{args} {model.to_json()} {train[0]} {validation[0]}".encode())
        backup = Path(f"plots/backup/{NAME}_{key:08x}")
        backup.mkdir(parents=True, exist_ok=True)
        history = Path(f"plots/{NAME}_history.csv")

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
            _, model = define_model(args.weights)
            train_it = flow_from_file(*train, shuffle=True)
        model.save_weights = save_whole
        model.fit(
            train_it, validation_data=validation_it, epochs=args.epochs, shuffle=False, callbacks=[
                keras.callbacks.LambdaCallback(on_epoch_begin=drop_other_rows),
                keras.callbacks.CSVLogger(history, append=True),
                keras.callbacks.BackupAndRestore(backup),
            ])
        _, accuracy = model.evaluate(flow_from_file(*test), verbose=0)
        print(f"> {accuracy * 100:.3f}")
        summarize_diagnostics(history)
        outputs = vgg16.output
        for layer in model.layers:
            outputs = layer(outputs)
        keras.Model(vgg16.input, outputs).save(f"{NAME}.part.keras")
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
