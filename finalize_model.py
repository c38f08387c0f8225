"""Train the final model, vgg16_transfer.py's, on all photos, and save it whole.

The classifier learns from the features of every photo in finalize_dogs_vs_cats/; none is kept
for testing. VGG-16 and the classifier are then put together into one model, from prepared photo
to P(dog), and saved as final_model.h5 for predict.py.
"""

import argparse
import hashlib
import logging
import os
import shutil
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # keeps TensorFlow's start-up chatter away

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from keras.applications.vgg16 import preprocess_input

EPOCHS = 10
WEIGHTS_URL = ("https://storage.googleapis.com/tensorflow/keras-applications/vgg16/"
               "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5")


def define_model(weights):
    """Return VGG-16 without its top, frozen, and the compiled classifier for its features.

    VGG-16: prepared photos (n, 224, 224, 3) in, features (n, 7, 7, 512) out; the classifier:
    features in, P(dog) (n, 1) out. `weights` is "imagenet" or the path of a file of weights.
    Raises OSError where they cannot be had.
    """
    warnings.simplefilter("ignore")  # Keras's, where another version saved the weights
    try:
        vgg16 = keras.applications.VGG16(
            include_top=False, weights=weights, input_shape=(224, 224, 3))
    except Exception as error:  # noqa: BLE001, no network, no such file, or another network's
        raise OSError(f"cannot load the weights {weights} ({str(error).splitlines()[0]}); get "
                      f"{WEIGHTS_URL} and give its path with --weights") from None
    vgg16.trainable = False
    model = keras.Sequential()
    model.add(keras.Input((7, 7, 512)))
    # classifier
    model.add(layers.Flatten())
    model.add(layers.Dense(128, activation="relu", kernel_initializer="he_uniform"))
    model.add(layers.Dense(1, activation="sigmoid", dtype="float32"))
    optimizer = keras.optimizers.SGD(learning_rate=0.001, momentum=0.9)
    model.compile(optimizer=optimizer, loss="binary_crossentropy", metrics=["accuracy"])
    return vgg16, model


def flow_from_directory(directory):
    """Return the iterator over `directory`/cats (class 0) and `directory`/dogs (class 1).

    Yields batches of up to 64: prepared photos, float32 (n, 224, 224, 3), and classes, float32
    (n, 1), in the order of its attribute `file_paths`.
    Raises FileNotFoundError where there are no photos.
    """
    for label in ("cats", "dogs"):
        if not any((directory / label).glob("*.jpg")):
            raise FileNotFoundError(
                f"no photos in {directory / label}: run prepare_final_dataset.py")
    photos = keras.utils.image_dataset_from_directory(
        directory, class_names=["cats", "dogs"], label_mode="binary",
        image_size=(224, 224), batch_size=64, shuffle=False,
    )
    prepared = photos.map(lambda photo, label: (preprocess_input(photo), label)).prefetch(2)
    prepared.file_paths = photos.file_paths
    return prepared


def extract_features(vgg16, photos):
    """Pass the iterator `photos` through `vgg16`, unless that has been done, and keep the result.

    Returns the path of a NumPy file of float32 features (n, 7, 7, 512), and float32 classes
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
        with open(f"{file}.part", "wb") as part:  # batch by batch: all at once would take 8 GB
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

    Yields batches of up to 64: float32 features (n, 7, 7, 512) and classes (n, 1). They are read
    from the disk as they are needed; with `shuffle` the order is drawn anew in every epoch.
    """
    features = np.load(file, mmap_mode="r")

    def read(rows):
        batch = tf.numpy_function(features.__getitem__, [rows], tf.float32)
        return tf.ensure_shape(batch, (None, *features.shape[1:])), tf.gather(classes, rows)

    rows = tf.data.Dataset.range(len(classes))
    if shuffle:
        rows = rows.shuffle(len(classes))
    return rows.batch(64).map(read).prefetch(tf.data.AUTOTUNE)


def run_test_harness():
    """Train the classifier on the features of all photos, and save the assembled model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")  # one line
    parser.add_argument("--dataset", type=Path, default="finalize_dogs_vs_cats",
                        help="the folder that prepare_final_dataset.py has built (%(default)s)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="(%(default)s)")
    parser.add_argument("--precision", choices=["float32", "mixed_bfloat16", "mixed_float16"],
                        default="float32", help="dtype policy; float16 needs a GPU (%(default)s)")
    parser.add_argument("--weights", default="imagenet", help="or the path of a notop file of "
                        "VGG-16's weights, .weights.h5 or the older .h5 (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of all random numbers (%(default)s)")
    args = parser.parse_args()
    if args.epochs < 1 or not 0 <= args.seed < 2**32:
        parser.error("--epochs must be 1 or more, --seed from 0 to 4294967295")
    keras.utils.set_random_seed(args.seed)
    keras.config.set_dtype_policy(args.precision)
    try:
        photos = flow_from_directory(args.dataset)
        vgg16, model = define_model(args.weights)
        train_it = flow_from_file(*extract_features(vgg16, photos), shuffle=True)
        model.fit(train_it, epochs=args.epochs, shuffle=False)
        outputs = vgg16.output
        for layer in model.layers:
            outputs = layer(outputs)
        logging.getLogger("absl").setLevel(logging.ERROR)  # HDF5 is old, but it is one file
        final_model = keras.Model(vgg16.input, outputs)
        if shutil.disk_usage(".").free < 5 * final_model.count_params():  # HDF5 would crash
            raise OSError("no room on the disk for final_model.h5")
        final_model.save("final_model.part.h5")
        os.replace("final_model.part.h5", "final_model.h5")
        print("final model: final_model.h5")
    except KeyboardInterrupt:
        parser.exit(130, f"\n{parser.prog}: stopped; finished features are kept\n")
    except tf.errors.InvalidArgumentError:
        parser.error(f"a photo in {args.dataset} is damaged: prepare_final_dataset.py mends it")
    except tf.errors.ResourceExhaustedError:
        parser.error("out of memory: a smaller batch in flow_from_directory() needs less")
    except OSError as error:
        parser.error(" ".join(str(error).split()))


if __name__ == "__main__":
    run_test_harness()
