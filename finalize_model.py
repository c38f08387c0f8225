"""Train the final model, vgg16_transfer.py's, on all photos, and save it as final_model.h5.

The classifier learns from every photo in finalize_dogs_vs_cats/: none is kept for testing. It is
saved together with VGG-16, so that predict.py gives it photos as they are.
"""

import argparse
import hashlib
import logging
import os
import sys
import warnings
from pathlib import Path
from signal import SIGINT, signal

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # keeps TensorFlow's start-up chatter away
if __name__ == "__main__":  # Ctrl-C ends with one line, during the imports, too
    signal(SIGINT, lambda *_: os.write(2, b"stopped\n") and os._exit(1))
import keras
import numpy as np
import tensorflow as tf
from keras import layers
from rich.progress import track

EPOCHS = 10


def define_model(weights):
    """Return VGG-16 without its top, frozen, and the compiled classifier for its features.

    VGG-16: photos (n, 224, 224, 3), 0 to 255, in; features (n, 7, 7, 512) out. Classifier: P(dog)
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
    # ImageNet's channel means were subtracted from its photos, too.
    means = layers.Rescaling(1, offset=[-123.68, -116.779, -103.939], dtype="float32")
    vgg16 = keras.Sequential([keras.Input((224, 224, 3)), means, *base.layers[1:]])
    classifier = keras.Sequential([
        keras.Input((7, 7, 512)),
        layers.Flatten(),
        layers.Dense(128, activation="relu", kernel_initializer="he_uniform"),
        layers.Dense(1, activation="sigmoid", dtype="float32"),  # P(dog), in any --precision
    ])
    classifier.compile(optimizer=keras.optimizers.SGD(learning_rate=0.001, momentum=0.9),
                       loss="binary_crossentropy", metrics=["accuracy"])
    return vgg16, classifier


def flow_from_directory(directory):
    """Return the iterator over `directory`/cats (class 0) and `directory`/dogs (class 1).

    Batches of 64: float32 photos (n, 224, 224, 3), 0 to 255, and float32 classes (n, 1), in the
    order of its attribute file_paths. Raises FileNotFoundError where a class has no photos.
    """
    if not all(any(directory.glob(f"{label}/*.jpg")) for label in ("cats", "dogs")):
        raise FileNotFoundError(f"no cats or no dogs in {directory}: run prepare_final_dataset.py")
    return keras.utils.image_dataset_from_directory(
        directory, label_mode="binary", image_size=(224, 224), batch_size=64, shuffle=False)


def extract_features(vgg16, photos, shuffle):
    """Return the iterator over the features that `vgg16` extracts from `photos`.

    Batches of 64: float16 features (n, 7, 7, 512) and bool classes (n, 1). Features are cached in
    features/ under a hash of all that they depend on; an interrupted pass starts anew.
    """
    key = hashlib.sha256(vgg16.to_json().encode())
    key.update(b"".join(array.tobytes() for array in vgg16.get_weights()))
    for path in photos.file_paths:
        key.update(Path(path).read_bytes())
    file = Path(f"features/{key.hexdigest()}.float16")
    if not file.exists():
        with open(part := f"{file}.{os.getpid()}", "wb") as rows:  # all at once would take 8 GB
            for batch, _ in track(photos, "through VGG-16"):
                vgg16.predict_on_batch(batch).astype(np.float16).tofile(rows)
        os.replace(part, file)
    features = np.fromfile(file, np.float16).reshape(-1, *vgg16.output_shape[1:])
    classes = np.array([[Path(path).parent.name == "dogs"] for path in photos.file_paths])
    samples = tf.data.Dataset.from_tensor_slices((features, classes))
    samples = samples.shuffle(len(samples)) if shuffle else samples
    return samples.batch(64).prefetch(tf.data.AUTOTUNE)


def run_test_harness():
    """Train the classifier on the features of all photos, and save it together with VGG-16."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, default="finalize_dogs_vs_cats")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--precision", default="float32", help="or mixed_bfloat16, mixed_float16")
    parser.add_argument("--weights", default="imagenet", help="or a file of VGG-16 without its top")
    parser.add_argument("--seed", type=int, default=1, help="random seed")
    args = parser.parse_args()
    os.makedirs("features", exist_ok=True)
    keras.utils.set_random_seed(args.seed)
    keras.config.set_dtype_policy(args.precision)
    photos = flow_from_directory(args.dataset)
    vgg16, model = define_model(args.weights)
    # VGG-16 and classifier in one; the layers are shared, so that training `model` trains it, too.
    whole = keras.Sequential([keras.Input((224, 224, 3)), *vgg16.layers, *model.layers])
    whole.summary()
    model.fit(extract_features(vgg16, photos, shuffle=True), epochs=args.epochs)
    logging.getLogger("absl").setLevel(logging.ERROR)  # hides Keras's advice against HDF5
    whole.save("final_model.new.h5")  # a crash here leaves the old model intact
    os.replace("final_model.new.h5", "final_model.h5")
    print("final model: final_model.h5")


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Keras's, where another version saved the weights
    try:
        run_test_harness()
    except (OSError, RuntimeError, ValueError, tf.errors.OpError) as error:
        sys.exit(f"{sys.argv[0]}: {' '.join(str(error).split())}")
