"""Three VGG blocks with augmentation, on many GPUs and hosts, with photos streamed from the disk.

    python beyond/many_devices.py --batch 512

This is vgg3_augmentation.py for a million photos. Keras runs on JAX: each device (a GPU, as a rule)
of each process has a copy of the network, and trains on its part of every batch; the gradients are
averaged, so that all copies stay the same. How to start several processes: docs/gpu.md.
Measured: on CPUs, one device, two devices, and two processes give the same losses to 1e-4. What it
changes: diff vgg3_augmentation.py beyond/many_devices.py

Published test accuracy: 85.816 % after 50 epochs (Jason Brownlee, 2019), on one device
https://machinelearningmastery.com/how-to-develop-a-convolutional-neural-network-to-classify-photos-of-dogs-and-cats/
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # keeps TensorFlow's start-up chatter away
os.environ["KERAS_BACKEND"] = "jax"  # TensorFlow only reads photos: it cannot split Keras's steps
os.environ["MPLBACKEND"] = "agg"  # draw into files, not into windows
import jax
import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from keras import layers

EPOCHS = 50  # an epoch: every training photo has been seen once more


def define_model(augment):
    """Return the compiled network.

    In: n photos (n, 200, 200, 3), 0 to 255. Out: P(dog), the probability of a dog, (n, 1).
    """
    augmentation = []
    if augment:
        augmentation = [
            # in training, and only there, each photo is shifted by up to 10 % and, half of them,
            # mirrored. float32: TensorFlow cannot shift bfloat16 photos on a GPU.
            layers.RandomTranslation(0.1, 0.1, fill_mode="nearest", dtype="float32"),
            layers.RandomFlip("horizontal"),
        ]
    model = keras.Sequential([
        keras.Input((200, 200, 3)),  # height, width, and three colours: red, green, blue
        layers.Rescaling(1 / 255),  # 0 to 255 becomes 0 to 1: training is steadier on small numbers
        *augmentation,
        # block 1: 32 filters slide over the photo, and each learns to find one pattern of 3x3
        # pixels, such as an edge. ReLU turns what is negative into 0: the pattern is not there.
        # "same": height and width stay. he_uniform: how large the random first weights are.
        layers.Conv2D(32, 3, padding="same", activation="relu", kernel_initializer="he_uniform"),
        layers.MaxPooling2D(2),  # keeps the largest of each 2x2: where a pattern is, roughly
        # block 2: 64 patterns of those of block 1, perhaps corners
        layers.Conv2D(64, 3, padding="same", activation="relu", kernel_initializer="he_uniform"),
        layers.MaxPooling2D(2),
        # block 3: 128 patterns of those of block 2, perhaps fur
        layers.Conv2D(128, 3, padding="same", activation="relu", kernel_initializer="he_uniform"),
        layers.MaxPooling2D(2),
        # classifier: 128 units weigh all that the filters have found. Most weights are here.
        layers.Flatten(),  # in one row: else Dense would give an answer for each place
        layers.Dense(128, activation="relu", kernel_initializer="he_uniform"),
        layers.Dense(1, activation="sigmoid", dtype="float32"),  # 0: surely a cat, 1: surely a dog
    ])  # float32: a probability needs all its digits, also with --precision mixed_bfloat16
    model.compile(
        # The gradient says for each weight in which direction the loss grows. After each batch of
        # photos all weights move a small step against it: 0.001 times as far. Momentum: they keep
        # 90 % of the speed of the steps before.
        optimizer=keras.optimizers.SGD(learning_rate=0.001, momentum=0.9),
        loss="binary_crossentropy",  # near 0 if right and sure, large if wrong and sure
        weighted_metrics=["accuracy"],  # the share of photos on the right side of 0.5
    )
    return model


def list_photos(directory):
    """Return the paths of the photos in the two folders of `directory`, and their classes (n, 1).

    The first folder in alphabetical order is class 0 (cats), the second class 1 (dogs).
    """
    paths = []
    classes = []
    for number, name in enumerate(find_classes(directory)):
        for path in sorted((directory / name).iterdir()):
            if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".bmp", ".gif"):
                paths.append(path)
                classes.append([float(number)])
    return paths, classes


def read_photo(path, label, weight):
    """Return the photo in the file `path`, uint8 (200, 200, 3), 0 to 255, with the others."""
    photo = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
    side = tf.minimum(tf.shape(photo)[0], tf.shape(photo)[1])
    photo = tf.image.resize_with_crop_or_pad(photo, side, side)  # crops: its middle
    photo = tf.image.resize(photo, (200, 200))
    return tf.cast(tf.round(photo), tf.uint8), label, weight


def flow_from_directory(directory, shuffle, batch, cache):
    """Return the iterator over this process's share of the photos in the folders of `directory`.

    It yields uint8 photos (n, 200, 200, 3), 0 to 255, float32 classes (n, 1), as of list_photos,
    and weights (n,); n is `batch` divided by the number of processes. Decoded photos are kept in
    the folder `cache`, in memory if that is "", or not at all if it is None.
    """
    paths, classes = list_photos(directory)
    # Only whole batches can be split (keras#21167): copies of a photo, of weight 0, fill them up.
    # The rest weigh slightly more than 1, so that Keras's averages count each photo exactly once.
    padding = -len(paths) % batch
    weights = [1 + padding / len(paths)] * len(paths) + [0.0] * padding
    paths = [str(path) for path in paths + paths[:1] * padding]
    classes = classes + classes[:1] * padding
    photos = tf.data.Dataset.from_tensor_slices((paths, classes, weights))
    if shuffle:
        photos = photos.shuffle(len(paths))  # with the same seed, so the same in each process
    photos = photos.shard(jax.process_count(), jax.process_index())  # this process's share
    photos = photos.map(read_photo, tf.data.AUTOTUNE)
    if cache == "":
        photos = photos.cache()
    elif cache is not None:
        photos = photos.cache(f"{cache}/{directory.name}")
    if cache is not None and shuffle:
        photos = photos.shuffle(2000)  # what is kept is the first epoch's share, in its order
    return photos.batch(batch // jax.process_count()).prefetch(tf.data.AUTOTUNE)


def save_model(model, name):
    """Save `model` as models/`name`.keras, never half of it: a run may be stopped at any moment."""
    model.save(f"models/{name}.new.keras")
    os.replace(f"models/{name}.new.keras", f"models/{name}.keras")  # in one go


def save_alone(model, name, devices):
    """Save `model` from this process alone, as it trains on all `devices`.

    Saving makes a new variable, and for that Keras would wait for the other processes.
    """
    keras.distribution.set_distribution(None)
    save_model(model, name)
    keras.distribution.set_distribution(devices)


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
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers (%(default)s)")
    parser.add_argument("--resume", action="store_true",
                        help="go on after the last whole epoch of the run before")
    parser.add_argument("--batch", type=int, default=64,
                        help="photos in a step, on all devices together (%(default)s)")
    parser.add_argument("--cache", choices=["memory", "disk", "no"], default="no",
                        help="where to keep decoded photos, 120 kB each (%(default)s)")
    parser.add_argument("--no-augmentation", action="store_true",
                        help="to compare numbers of devices: the curves are then the same")
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error("--epochs must be at least 1")
    if args.batch < 1:
        parser.error("--batch must be at least 1")
    if args.batch % jax.device_count() != 0:
        parser.error(f"{jax.device_count()} devices cannot share --batch {args.batch}")
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
    if "KERAS_DISTRIBUTION_NUM_PROCESSES" in os.environ:
        keras.distribution.initialize()  # finds the other processes
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
    tf.config.set_visible_devices([], "GPU")  # they are JAX's
    # from here on each device of each process has a copy of every variable, and its part of a batch
    devices = keras.distribution.DataParallel(auto_shard_dataset=False)  # flow_from_directory does
    keras.distribution.set_distribution(devices)
    keras.utils.set_random_seed(args.seed)  # the same weights and order of photos in every run
    keras.config.set_dtype_policy(args.precision)  # the numbers that it calculates with
    keras.config.set_image_data_format("channels_last")  # (height, width, colours)

    cache = None
    if args.cache == "memory":
        cache = ""
    if args.cache == "disk":
        folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # gone when the run ends
        cache = folder.name
    train_it = flow_from_directory(args.dataset / "train", True, args.batch, cache)
    test_it = flow_from_directory(args.dataset / "test", False, args.batch, cache)
    model = define_model(augment=not args.no_augmentation)
    if args.resume:
        model.optimizer.build(model.trainable_variables)  # its momentum is in the file, too
        model.load_weights(f"models/{name}.keras")
    verbose = 0
    callbacks = []
    first = jax.process_index() == 0
    if first:  # it alone prints and writes
        model.summary()
        verbose = 1
        callbacks = [  # after each epoch: save the network, then add a row to the history
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: save_alone(model, name, devices)),
            keras.callbacks.CSVLogger(f"plots/{name}_history.csv", append=args.resume),
        ]
    try:
        model.fit(
            train_it, validation_data=test_it, initial_epoch=epochs_done, epochs=args.epochs,
            shuffle=False,  # train_it does that
            verbose=verbose, callbacks=callbacks)
    except KeyboardInterrupt:
        sys.exit("\nstopped: --resume goes on after the last whole epoch")
    _, accuracy = model.evaluate(test_it, verbose=0)
    if first:
        print(f"> {accuracy * 100:.3f}")
        summarize_diagnostics(name)


if __name__ == "__main__":
    run_test_harness()
