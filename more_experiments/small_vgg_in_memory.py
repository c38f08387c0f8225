"""A small VGG on 4,000 photos that are read into one array, with pictures of every step.

    python more_experiments/prepare_small_dataset.py
    python more_experiments/small_vgg_in_memory.py

Measured: 79.6 ± 1.3 % of the validation photos (2 seeds, 64 epochs). It does not overfit: over the
last ten epochs it is right on 78 % of the training photos and on 76 and 79 % of the others. The
pictures beside the learning curves: photos as they are and as the network sees them, how many of
each class there are, and ten answers.

The network is that of small_data_augmentation.py; the augmentation is that of the notebook which
the tutorial links. Its shear of 0.2 was one of 0.2 degrees in that Keras: it is left out. All three
splits of the data set are taken together, and split anew.

Published validation accuracy: 80 to 81 % after 64 epochs (Rising Odegua, "Image detection from
scratch in Keras", Towards Data Science)
https://towardsdatascience.com/image-detection-from-scratch-in-keras-f314872006c9
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
from keras import layers
from PIL import Image, ImageOps

EPOCHS = 64  # an epoch: every training photo has been seen once more
KERAS_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")  # what Keras takes for a photo


def define_model():
    """Return the compiled network: photos (n, 150, 150, 3), 0 to 255, in; P(dog) (n, 1) out."""
    model = keras.Sequential([
        keras.Input((150, 150, 3)),  # height, width, and three colours: red, green, blue
        layers.Rescaling(1 / 255),  # 0 to 255 becomes 0 to 1: training is steadier on small numbers
        # augmentation: in training, and only there, each photo is turned by up to 40 degrees,
        # shifted and zoomed by up to 20 %, and, half of them, mirrored. Where the photo has moved
        # away, its edge is repeated. float32: TensorFlow can't do it in bfloat16 on GPUs.
        layers.RandomRotation(40 / 360, fill_mode="nearest", dtype="float32"),
        layers.RandomTranslation(0.2, 0.2, fill_mode="nearest", dtype="float32"),
        layers.RandomZoom(0.2, 0.2, fill_mode="nearest", dtype="float32"),
        layers.RandomFlip("horizontal"),
        # 32 filters slide over the photo, and each learns to find one pattern of 3x3 pixels. Where
        # it would reach over the edge there is no answer, so that 150x150 become 148x148.
        layers.Conv2D(32, 3, activation="relu"),
        layers.MaxPooling2D(2),  # keeps the largest of each 2x2: where a pattern is, roughly
        # each further convolution finds larger patterns, made of those of the one before, in maps
        # of half the size: 74x74, 36x36, 17x17, and 7x7 in the end
        layers.Conv2D(64, 3, activation="relu"),
        layers.MaxPooling2D(2),
        layers.Conv2D(128, 3, activation="relu"),
        layers.MaxPooling2D(2),
        layers.Conv2D(128, 3, activation="relu"),
        layers.MaxPooling2D(2),
        # classifier: all that the filters have found, in one row, is weighed by 512 units
        layers.Flatten(),
        layers.Dropout(0.5),  # in training, half of these numbers, others in each batch, become 0
        layers.Dense(512, activation="relu"),
        layers.Dense(1, activation="sigmoid", dtype="float32"),  # 0: surely a cat, 1: surely a dog
    ])  # float32: a probability needs all its digits, also with --precision mixed_bfloat16
    model.compile(
        # RMSprop gives each weight steps of its own: the gradient, divided by the root of v, its
        # mean square in the batches before. The tutorial's Keras divided by sqrt(v) + 1e-7, Keras 3
        # by sqrt(v + epsilon): this epsilon gives nearly the same steps.
        optimizer=keras.optimizers.RMSprop(learning_rate=1e-4, epsilon=1e-14),
        loss="binary_crossentropy",  # near 0 if right and sure, large if wrong and sure
        metrics=["accuracy"],  # the share of photos on the right side of 0.5
    )
    return model


def find_photos(directory, name):
    """Return the paths of the photos of the class `name` in all splits of `directory`."""
    paths = []
    for path in sorted(directory.glob(f"*/{name}/[!.]*")):
        if path.suffix.lower() in KERAS_SUFFIXES:
            paths.append(path)
    return paths


def load_dataset(directory, seed):
    """Return paths, photos, uint8 (n, 150, 150, 3), 0 to 255, and classes (n, 1).

    At most 2,000 photos of each class, in random order. The classes take turns, so that any part of
    the arrays is half cats (class 0), half dogs (class 1).
    """
    shuffled = []
    for name in find_classes(directory / "train"):
        first = find_photos(directory, name)[:2000]
        shuffled.append(np.random.default_rng(seed).permutation(first))
    paths = []
    classes = []
    for cat, dog in zip(shuffled[0], shuffled[1], strict=False):  # as many as there are of both
        paths += [cat, dog]
        classes += [[0], [1]]
    photos = []
    for path in paths:
        photo = ImageOps.fit(Image.open(path).convert("RGB"), (150, 150))  # its middle
        photos.append(np.array(photo))
    return paths, np.array(photos), np.array(classes)


def plot_photos(photos, titles, filename):
    """Draw ten `photos`, of any size, under their `titles`, and save them as PNG `filename`."""
    figure, axes = plt.subplots(2, 5, figsize=(14, 6), layout="constrained")
    axes = axes.flat  # the ten places, row by row
    for number in range(10):
        axes[number].imshow(photos[number])
        axes[number].set_title(titles[number])
    figure.savefig(filename)


def plot_dataset(paths, photos, classes, names, name):
    """Draw five photos before and after they were shrunk, and how many of each class there are.

    They are saved as plots/`name`_photos.png and plots/`name`_classes.png. `paths`, `photos` and
    `classes` are those of load_dataset, `names` are the names of the classes.
    """
    shown = []
    titles = []
    for path in paths[:5]:
        photo = Image.open(path).convert("RGB")
        shown.append(photo)
        titles.append(f"{photo.width}x{photo.height}")
    for number in range(5):
        shown.append(photos[number])
        titles.append(f"150x150, class {classes[number, 0]}")
    plot_photos(shown, titles, f"plots/{name}_photos.png")
    figure, axes = plt.subplots(layout="constrained")
    counts = np.bincount(classes[:, 0])  # how many zeros, how many ones
    bars = axes.bar([f"{names[0]} (0)", f"{names[1]} (1)"], counts)
    axes.bar_label(bars, fmt="%d photos")
    figure.savefig(f"plots/{name}_classes.png")


def plot_predictions(model, photos, names, name):
    """Draw the answers of `model` to ten `photos` into plots/`name`_predictions.png."""
    titles = []
    for probability in model.predict(photos, verbose=0)[:, 0]:
        if probability > 0.5:
            answer = names[1]
        else:
            answer = names[0]
        titles.append(f"{answer}: P({names[1]}) {probability:.2f}")
    plot_photos(photos, titles, f"plots/{name}_predictions.png")


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
    upper.plot(epochs, history["val_loss"], ".-", color="orange", label="validation")
    upper.set(title=f"{name}: loss", xlabel="epoch", ylim=(0, 1.3))  # the same in all scripts
    lower.plot(epochs, history["accuracy"], ".-", color="blue", label="train")
    lower.plot(epochs, history["val_accuracy"], ".-", color="orange", label="validation")
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
    parser.add_argument("--dataset", type=Path, default="cats_and_dogs_small",
                        help="a folder that prepare_small_dataset.py has built (%(default)s)")
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
    for split in ("train", "validation", "test"):
        if len(classes) != 2 or find_classes(args.dataset / split) != classes:
            parser.error(f"{args.dataset} must hold the folders train, validation and test, and in "
                         "each the same two folders of photos, one for each class: run "
                         "prepare_small_dataset.py first")
        for name in classes:
            if not any((args.dataset / split / name).iterdir()):
                parser.error(f"there are no photos in {args.dataset / split / name}")
    for name in classes:
        if len(find_photos(args.dataset, name)) < 5:
            parser.error(f"{args.dataset} must hold at least five photos of {name}")
    return args


def run_test_harness():
    """Train, print the accuracies in per cent, save learning curves and model."""
    args = parse_args()
    name = Path(__file__).stem
    if args.dataset.absolute().name != "cats_and_dogs_small":
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

    paths, photos, classes = load_dataset(args.dataset, args.seed)
    names = find_classes(args.dataset / "train")
    split = len(paths) // 10 * 8  # the first 80 % are for training, the rest for validation
    train_photos, validation_photos = photos[:split], photos[split:]
    train_classes, validation_classes = classes[:split], classes[split:]
    print(f"training photos: {train_photos.shape}, validation: {validation_photos.shape}")
    plot_dataset(paths, photos, classes, names, name)
    model = define_model()
    model.summary()
    if model.output_shape != (None, 1):  # None: any number of photos
        raise ValueError(f"the network must give one number for each photo, (None, 1), and gives "
                         f"{model.output_shape}: are Flatten() and the last Dense(1) in place?")
    if args.resume:
        model.optimizer.build(model.trainable_variables)  # its running means are in the file, too
        model.load_weights(f"models/{name}.keras")
    # after each epoch: save the network, then add a row to the history
    save = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: save_model(model, name))
    log = keras.callbacks.CSVLogger(f"plots/{name}_history.csv", append=args.resume)
    try:
        model.fit(
            train_photos, train_classes, batch_size=32,
            validation_data=(validation_photos, validation_classes),
            initial_epoch=epochs_done, epochs=args.epochs,
            callbacks=[save, log])
    except KeyboardInterrupt:
        sys.exit("\nstopped: --resume goes on after the last whole epoch")
    _, accuracy = model.evaluate(validation_photos, validation_classes, verbose=0)
    print(f"> {accuracy * 100:.3f} (validation)")
    summarize_diagnostics(name)
    plot_predictions(model, validation_photos[-10:], names, name)
    model.save_weights(f"models/{name}.weights.h5")  # the weights alone, without the network


if __name__ == "__main__":
    run_test_harness()
