"""A residual network without pre-trained weights, trained for long, on random crops of the photos.

    python beyond/resnet_from_scratch.py --precision mixed_bfloat16

How far do 18,697 photos get a network that has seen nothing else? What each ingredient is worth is
in beyond/README.md; random crops and a learning rate that ends at 0 are worth most.
Measured: 97.83 ± 0.04 % of the test photos (2 seeds, 80 epochs), 97.97 ± 0.03 % averaged with the
mirror image. As long as the learning rate is high the test accuracy jumps, from the 25th epoch on
between 70 and 95 %; as the rate falls, it settles. To the end there is little overfitting.
The learning rate and the crops' sizes depend on --epochs: with --resume keep the number that the
run began with. It runs on any backend of Keras, too, with KERAS_BACKEND=jax before the command.

Published test accuracy: none, since no tutorial has such a network. The best from scratch that we
found has 98.267 % (attila-balogh; 20 million parameters, 3,000 test photos of its own)
https://github.com/attila-balogh/cat_or_dog_classification
"""

import argparse
import os
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # keeps TensorFlow's start-up chatter away
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ["MPLBACKEND"] = "agg"  # draw into files, not into windows
import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import layers
from PIL import Image

EPOCHS = 80  # an epoch: every training photo has been seen once more
# Crops of 96x96 pixels until 45 % of the epochs are done, then of 112x112 until 75 %, then of
# 128x128: small ones are faster, and good enough for a beginning (Howard, 2018).
SIZES = [(96, 0.45), (112, 0.75), (128, 1)]
# A crop shows an animal larger than a whole photo of its size does. So the test photos, which are
# whole, are larger (Touvron and others, 2019).
TEST_SIZE = 160


def convolve(x, filters, strides=1):
    """Return `x`, (n, height, width, any), after 3x3 convolution, normalization and ReLU.

    The result is (n, height / strides, width / strides, filters).
    """
    # no bias, since batch normalization adds one
    x = layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False)(x)
    # Over each batch every filter's numbers get the mean 0 and the deviation 1, then a learnt scale
    # and bias: so no layer's numbers grow or shrink while the others learn (Ioffe, Szegedy, 2015).
    x = layers.BatchNormalization()(x)
    return layers.ReLU()(x)


def define_model(steps):
    """Return the compiled network, which trains for `steps` batches, and the same to be saved.

    The first takes photos (n, any height, any width, 3), 0 to 255, the second those of TEST_SIZE.
    Both give P(dog) (n, 1).
    """
    photos = keras.Input((None, None, 3))
    x = layers.Rescaling(1 / 255)(photos)
    # augmentation: in training, and only there, other light and colours, and half are mirrored. For
    # Keras a saturation of 0 is grey, 0.5 as it was, and 1 full.
    x = layers.RandomColorJitter(value_range=(0, 1), brightness_factor=0.2, contrast_factor=0.2,
                                 saturation_factor=(0.4, 0.6))(x)
    x = layers.RandomFlip("horizontal")(x)
    x = layers.Rescaling(2, offset=-1)(x)  # 0 to 1 becomes -1 to 1
    # strides of 2: the filter moves by two pixels, so that height and width are halved
    x = layers.Conv2D(32, 4, strides=2, padding="same", activation="relu")(x)
    for filters, blocks in [(64, 1), (128, 2), (256, 2), (512, 1)]:
        x = convolve(x, filters, strides=2)
        for _ in range(blocks):
            # residual block: its convolution learns what to add to its input. That may be nothing,
            # so that more blocks do no harm (after He and others, 2015).
            to_add = convolve(x, filters)
            x = layers.Add()([x, to_add])
    # The mean of each of the 512 filters over the whole photo, whatever its size: no Flatten(), and
    # no dense layer of millions of weights after it.
    x = layers.GlobalAveragePooling2D()(x)
    dog = layers.Dense(1, activation="sigmoid", dtype="float32")(x)
    resnet = keras.Model(photos, dog)
    # The rate grows from 0 to 0.1 in a tenth of the steps, since an untrained network would be
    # destroyed by steps of that size, and then falls to 0 on a cosine, so that it settles.
    warmup_steps = steps // 10
    rate = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0, warmup_target=0.1, warmup_steps=warmup_steps,
        decay_steps=steps - warmup_steps)
    network = keras.Sequential([keras.Input((None, None, 3)), resnet])
    network.compile(
        # weight decay: each step makes all weights a bit smaller, so that they do not grow
        optimizer=keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=0.005),
        # label smoothing: the right answers are 0.05 and 0.95, and being surer has no reward
        # (Szegedy and others, 2015). It adds about 0.2 to the loss.
        loss=keras.losses.BinaryCrossentropy(label_smoothing=0.1),
        metrics=["accuracy"],
    )
    # What is saved has a size of its own, as predict.py wants it. It shares the layers: when the
    # network learns, this one does.
    model = keras.Sequential([keras.Input((TEST_SIZE, TEST_SIZE, 3)), resnet])
    model.compile(optimizer=network.optimizer, loss=network.loss, metrics=["accuracy"])
    return network, model


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


def load_photos(directory, size):
    """Return the photos in the two folders of `directory`, uint8 (n, size, size, 3), 0 to 255.

    Also return their classes, float (n, 1), as of list_photos. Pillow decodes them, so that this
    works with any backend of Keras. A file that is no photo is named by Pillow's error.
    """
    paths, classes = list_photos(directory)
    photos = np.empty((len(paths), size, size, 3), np.uint8)
    for number, path in enumerate(paths):
        image = Image.open(path)
        image = image.convert("RGB")
        side = min(image.width, image.height)
        left = (image.width - side) // 2  # of a wide photo the middle, instead of squashing it
        top = (image.height - side) // 2
        middle = (left, top, left + side, top + side)
        # bilinear, not antialiased, as TensorFlow resizes in predict.py
        photos[number] = image.transform((size, size), Image.EXTENT, middle, Image.BILINEAR)
    return photos, np.array(classes)


class RandomCrops(keras.utils.PyDataset):
    """The training photos in batches of 128, of each a random crop: 30 to 100 % of its area.

    Yields uint8 crops (128, size, size, 3) and classes (128, 1) (after Szegedy and others, 2014).
    The random numbers are made from `seed`, size, epoch and batch: a run that is resumed sees the
    same batches of crops as one that was never stopped, but in another order, since fit() shuffles
    them once more. `epochs_done` counts the epochs of this size.
    """

    def __init__(self, photos, classes, size, seed, epochs_done=0):
        super().__init__(workers=2)  # two threads cut crops, while the network trains
        self.photos = photos
        self.classes = classes
        self.size = size
        self.seed = seed
        self.epoch = epochs_done
        self.on_epoch_end()

    def on_epoch_end(self):
        """Draw the order of the photos in the next epoch; Keras calls this after each one."""
        self.epoch += 1
        random = np.random.default_rng([self.seed, self.size, self.epoch])
        self.order = random.permutation(len(self.photos))

    def __len__(self):
        """Return the number of batches in an epoch; what is left over comes in another epoch."""
        return max(1, len(self.photos) // 128)

    def __getitem__(self, index):
        """Return batch `index` of this epoch."""
        random = np.random.default_rng([index, self.seed, self.size, self.epoch])
        chosen = self.order[128 * index:128 * (index + 1)]
        crops = []
        for photo in self.photos[chosen]:
            area = random.uniform(0.3, 1)  # the crop's part of the photo
            aspect = random.uniform(0.75, 1.33)  # its width divided by its height
            sides = 200 * np.sqrt([area * aspect, area / aspect])
            sides = np.minimum(sides, 200)  # not wider or higher than the photo
            width, height = sides
            left, top = random.uniform(size=2) * (200 - sides)  # anywhere within the photo
            box = (left, top, left + width, top + height)
            image = Image.fromarray(photo)
            crop = image.transform((self.size, self.size), Image.EXTENT, box, Image.BILINEAR)
            crops.append(np.asarray(crop))
        return np.stack(crops), self.classes[chosen]


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

    photos, classes = load_photos(args.dataset / "train", 200)
    test_photos, test_classes = load_photos(args.dataset / "test", TEST_SIZE)
    batches = max(1, len(photos) // 128)  # of an epoch, as RandomCrops counts them
    network, model = define_model(steps=args.epochs * batches)
    network.summary(expand_nested=True)
    if args.resume:
        model.optimizer.build(model.trainable_variables)  # its momentum is in the file, too
        model.load_weights(f"models/{name}.keras")  # and how many steps are done: hence the rate
    # after each epoch: save the network, then add a row to the history
    save = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: save_model(model, name))
    try:
        # Each size of crops has the epochs from `first` to before `last`, counted from 0.
        first = 0
        for size, part in SIZES:
            last = round(part * args.epochs)
            start = max(first, epochs_done)  # with --resume some of them may be done
            if start < last:
                crops = RandomCrops(photos, classes, size, args.seed, epochs_done=start - first)
                begun = start > 0  # the history has rows already
                log = keras.callbacks.CSVLogger(f"plots/{name}_history.csv", append=begun)
                network.fit(
                    crops, validation_data=(test_photos, test_classes), validation_batch_size=128,
                    initial_epoch=start, epochs=last, callbacks=[save, log])
            first = last
    except KeyboardInterrupt:
        sys.exit("\nstopped: --resume goes on after the last whole epoch")
    # P(dog) of each photo, of its mirror image, and the mean of both
    dogs = network.predict(test_photos, batch_size=128, verbose=0)
    mirror_images = test_photos[:, :, ::-1]  # the columns of pixels from the last to the first
    mirrored_dogs = network.predict(mirror_images, batch_size=128, verbose=0)
    mean_dogs = (dogs + mirrored_dogs) / 2
    accuracy = np.mean((dogs > 0.5) == test_classes)
    mean_accuracy = np.mean((mean_dogs > 0.5) == test_classes)
    print(f"> {accuracy * 100:.3f}, averaged with the mirror image: {mean_accuracy * 100:.3f}")
    summarize_diagnostics(name)


if __name__ == "__main__":
    run_test_harness()
