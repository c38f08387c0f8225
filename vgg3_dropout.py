"""Three VGG blocks with dropout: a remedy for overfitting.

    python vgg3_dropout.py

In training, Dropout sets a random part of what it gets to 0, and enlarges the rest to make up for
it: no unit can rely on one other, and single photos are harder to memorize. In testing it does
nothing.
Measured: 80.5 ± 0.7 % of the test photos (3 seeds, 50 epochs), as without it; but it learns more
slowly, and its test loss ends below the lowest of the plain network.
What it changes: diff baseline_vgg3.py vgg3_dropout.py

Published test accuracy: 81.279 % after 50 epochs (Jason Brownlee, 2019)
https://machinelearningmastery.com/how-to-develop-a-convolutional-neural-network-to-classify-photos-of-dogs-and-cats/
"""

import argparse
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

EPOCHS = 50  # an epoch: every training photo has been seen once more


def define_model():
    """Return the compiled network.

    In: n photos (n, 200, 200, 3), 0 to 255. Out: P(dog), the probability of a dog, (n, 1).
    """
    model = keras.Sequential([
        keras.Input((200, 200, 3)),  # height, width, and three colours: red, green, blue
        layers.Rescaling(1 / 255),  # 0 to 255 becomes 0 to 1: training is steadier on small numbers
        # block 1: 32 filters slide over the photo, and each learns to find one pattern of 3x3
        # pixels, such as an edge. ReLU turns what is negative into 0: the pattern is not there.
        # "same": height and width stay. he_uniform: how large the random first weights are.
        layers.Conv2D(32, 3, padding="same", activation="relu", kernel_initializer="he_uniform"),
        layers.MaxPooling2D(2),  # keeps the largest of each 2x2: where a pattern is, roughly
        layers.Dropout(0.2),  # sets a random fifth of the answers to 0
        # block 2: 64 patterns of those of block 1, perhaps corners
        layers.Conv2D(64, 3, padding="same", activation="relu", kernel_initializer="he_uniform"),
        layers.MaxPooling2D(2),
        layers.Dropout(0.2),
        # block 3: 128 patterns of those of block 2, perhaps fur
        layers.Conv2D(128, 3, padding="same", activation="relu", kernel_initializer="he_uniform"),
        layers.MaxPooling2D(2),
        layers.Dropout(0.2),
        # classifier: 128 units weigh all that the filters have found. Most weights are here.
        layers.Flatten(),  # in one row: else Dense would give an answer for each place
        layers.Dense(128, activation="relu", kernel_initializer="he_uniform"),
        layers.Dropout(0.5),
        layers.Dense(1, activation="sigmoid", dtype="float32"),  # 0: surely a cat, 1: surely a dog
    ])  # float32: a probability needs all its digits, also with --precision mixed_bfloat16
    model.compile(
        # The gradient says for each weight in which direction the loss grows. After each batch of
        # photos all weights move a small step against it: 0.001 times as far. Momentum: they keep
        # 90 % of the speed of the steps before.
        optimizer=keras.optimizers.SGD(learning_rate=0.001, momentum=0.9),
        loss="binary_crossentropy",  # near 0 if right and sure, large if wrong and sure
        metrics=["accuracy"],  # the share of photos on the right side of 0.5
    )
    return model


def flow_from_directory(directory, shuffle):
    """Return the iterator over the photos in the two folders of `directory`, one for each class.

    The first folder in alphabetical order is class 0 (cats), the second class 1 (dogs). It yields
    batches of 64 uint8 photos (n, 200, 200, 3), 0 to 255, and float32 classes (n, 1).
    """
    # one by one, in order; below they are shuffled and put into batches
    photos = keras.utils.image_dataset_from_directory(
        directory, label_mode="binary", image_size=(200, 200), batch_size=None, shuffle=False,
        crop_to_aspect_ratio=True)  # of a wide photo the middle, instead of squashing it
    # Resizing gives fractions. As whole numbers, a byte each, all photos fit into memory, 120 kB a
    # photo: they are read once, and later epochs read no files.
    photos = photos.map(lambda photo, label: (tf.cast(tf.round(photo), tf.uint8), label))
    photos = photos.cache()
    if shuffle:
        photos = photos.shuffle(len(photos))  # another order in every epoch
    return photos.batch(64).prefetch(tf.data.AUTOTUNE)  # gets some ready while one trains


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
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers (%(default)s)")
    parser.add_argument("--resume", action="store_true",
                        help="go on after the last whole epoch of the run before")
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error("--epochs must be at least 1")
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

    train_it = flow_from_directory(args.dataset / "train", shuffle=True)
    test_it = flow_from_directory(args.dataset / "test", shuffle=False)
    model = define_model()
    model.summary()
    if model.output_shape != (None, 1):  # None: any number of photos
        raise ValueError(f"the network must give one number for each photo, (None, 1), and gives "
                         f"{model.output_shape}: are Flatten() and the last Dense(1) in place?")
    if args.resume:
        model.optimizer.build(model.trainable_variables)  # its momentum is in the file, too
        model.load_weights(f"models/{name}.keras")
    # after each epoch: save the network, then add a row to the history
    save = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: save_model(model, name))
    log = keras.callbacks.CSVLogger(f"plots/{name}_history.csv", append=args.resume)
    try:
        model.fit(
            train_it, validation_data=test_it, initial_epoch=epochs_done, epochs=args.epochs,
            shuffle=False,  # train_it does that
            callbacks=[save, log])
    except KeyboardInterrupt:
        sys.exit("\nstopped: --resume goes on after the last whole epoch")
    _, accuracy = model.evaluate(test_it, verbose=0)
    print(f"> {accuracy * 100:.3f}")
    summarize_diagnostics(name)


if __name__ == "__main__":
    run_test_harness()
