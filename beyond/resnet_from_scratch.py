"""A residual network from scratch, without pre-trained weights: trained longer, on random crops.

What each ingredient is worth: beyond/README.md. Runs on any backend (KERAS_BACKEND=jax)."""
import argparse
import csv
import os
import shutil
import sys
from pathlib import Path
from signal import SIGINT, signal

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # keeps TensorFlow's start-up chatter away
if __name__ == "__main__":  # Ctrl-C exits at once: a half-written backup must not look whole
    signal(SIGINT, lambda *_: os.write(2, b"stopped; add --resume to continue\n") and os._exit(1))
import keras
import numpy as np
from keras import layers
from keras.callbacks import BackupAndRestore, CSVLogger
from matplotlib.figure import Figure
from PIL import Image

EPOCHS = 80
# Crops of 96 pixels until 45 % of the epochs, and so on: small ones are faster (Howard, 2018).
SIZES = ((96, 0.45), (112, 0.75), (128, 1))
TEST_SIZE = 160  # whole photos must be larger for animals to be as large as in training's crops


def convolve(x, filters, strides=1):
    x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))  # which adds the bias


def define_model(steps):
    """Return the network, compiled: photos (n, any, any, 3), 0 to 255, in; P(dog) (n, 1) out."""
    photos = keras.Input((None, None, 3))
    x = layers.RandomColorJitter((0, 1), brightness_factor=0.2, contrast_factor=0.2,
                                 saturation_factor=(0.4, 0.6))(layers.Rescaling(1 / 255)(photos))
    x = layers.Rescaling(2, offset=-1)(layers.RandomFlip("horizontal")(x))
    x = layers.Conv2D(32, 4, 2, padding="same", activation="relu")(x)
    for filters, blocks in ((64, 1), (128, 2), (256, 2), (512, 1)):
        x = convolve(x, filters, strides=2)
        for _ in range(blocks):  # each learns what to add to its input (after He, 2015)
            x = layers.Add()([x, convolve(x, filters)])
    x = layers.GlobalAveragePooling2D()(x)  # 512 means, whatever the size of the photos
    model = keras.Model(photos, layers.Dense(1, activation="sigmoid", dtype="float32")(x))
    rate = keras.optimizers.schedules.CosineDecay(  # warm-up in a tenth of the steps, then to 0
        0.0, steps - steps // 10, warmup_target=0.1, warmup_steps=steps // 10)
    model.compile(keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=0.005),
                  # Targets of 0.05 and 0.95: no reward for being surer (Szegedy and others, 2015).
                  keras.losses.BinaryCrossentropy(label_smoothing=0.1), metrics=["accuracy"])
    return model


def flow_from_directory(directory, size):
    """Return the photos of `directory`/{cats,dogs}/, uint8 (n, size, size, 3), 0 to 255, and their
    classes (n, 1), cat 0, dog 1. Raises FileNotFoundError where a class has no photos."""
    cats, dogs = (sorted(directory.glob(f"{label}/*.jpg")) for label in ("cats", "dogs"))
    if not cats or not dogs:
        raise FileNotFoundError(f"no cats or no dogs in {directory}: run prepare_dataset.py")
    photos = np.empty((len(cats + dogs), size, size, 3), np.uint8)
    for photo, path in zip(photos, cats + dogs, strict=True):
        image = Image.open(path).convert("RGB")  # bilinear, not antialiased, as in predict.py
        photo[:] = image.transform((size, size), Image.EXTENT, (0, 0, *image.size), Image.BILINEAR)
    return photos, np.repeat([[0.0], [1.0]], [len(cats), len(dogs)], axis=0)


class RandomCrops(keras.utils.PyDataset):
    """Batches of 128 crops of 30 to 100 % of the area, `size` wide (Szegedy, 2014), and classes."""

    def __init__(self, photos, classes, size, seed):
        super().__init__(workers=2)
        self.photos, self.classes, self.size, self.seed = photos, classes, size, [seed, size, 0]
        self.on_epoch_end()

    def on_epoch_end(self):
        self.seed[-1] += 1
        self.order = np.random.default_rng(self.seed).permutation(len(self.photos))

    def __len__(self):
        return max(1, len(self.photos) // 128)

    def __getitem__(self, index):
        random = np.random.default_rng([index, *self.seed])
        chosen = self.order[128 * index:128 * (index + 1)]
        crops = []
        for photo in self.photos[chosen]:
            area, aspect = random.uniform(0.3, 1), random.uniform(0.75, 1.33)
            sides = np.minimum(200, 200 * np.sqrt([area * aspect, area / aspect]))
            start = random.uniform(size=2) * (200 - sides)
            crops.append(Image.fromarray(photo).transform(
                (self.size, self.size), Image.EXTENT, (*start, *(start + sides)), Image.BILINEAR))
        return np.stack(crops), self.classes[chosen]


def summarize_diagnostics(name):
    """Draw the learning curves of plots/`name`_history.csv into plots/`name`_plot.png."""
    with open(f"plots/{name}_history.csv") as file:  # an epoch redone by --resume has two rows
        rows = {int(row["epoch"]) + 1: row for row in csv.DictReader(file)}
    figure = Figure(figsize=(8, 8), layout="constrained")
    limits = {"loss": (0, 1.3), "accuracy": (0.4, 1)}  # as elsewhere; smoothing adds 0.2 to it
    for axes, (metric, ylim) in zip(figure.subplots(2), limits.items(), strict=True):
        for key, color, label in ((metric, "blue", "train"), (f"val_{metric}", "orange", "test")):
            axes.plot([*rows], [float(r[key]) for r in rows.values()], ".-", c=color, label=label)
        axes.set(title=f"{name}: {metric}", xlabel="epoch", xlim=(0, len(rows) + 1), ylim=ylim)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    figure.savefig(f"plots/{name}_plot.png")


def run_test_harness():
    """Train, print the accuracy on the test split in per cent, save learning curves and model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, default="dataset_dogs_vs_cats")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="rates, sizes depend on it")
    parser.add_argument("--precision", default="float32", help="or mixed_bfloat16, mixed_float16")
    parser.add_argument("--seed", type=int, default=1, help="random seed")
    parser.add_argument("--resume", action="store_true", help="continue after the last whole epoch")
    args = parser.parse_args()
    name = Path(__file__).stem + (f"_seed{args.seed}" if args.seed != 1 else "")
    history, backup = Path(f"plots/{name}_history.csv"), Path(f"plots/backup/{name}")
    for folder in ("plots", "models"):
        os.makedirs(folder, exist_ok=True)
    resume = args.resume and backup.exists()  # then a new seed, or shuffles would repeat
    keras.utils.set_random_seed(seed := args.seed + (history.stat().st_size if resume else 0))
    keras.config.set_dtype_policy(args.precision)
    photos, classes = flow_from_directory(args.dataset / "train", 200)
    test = flow_from_directory(args.dataset / "test", TEST_SIZE)
    model = define_model(args.epochs * max(1, len(photos) // 128))
    model.summary()
    if not resume and shutil.disk_usage("plots").free < 16 * model.count_params():  # HDF5 crashes
        raise OSError("no room on the disk for two backups of the network")
    if backup.exists() and not resume:
        shutil.rmtree(backup)
    for size, part in SIZES:  # each fit goes on from the last backup, up to that epoch
        model.fit(RandomCrops(photos, classes, size, seed), epochs=round(part * args.epochs),
                  validation_data=test, validation_batch_size=128, callbacks=[
                      CSVLogger(history, append=backup.exists()),
                      BackupAndRestore(backup, double_checkpoint=True, delete_checkpoint=False)])
    dog, mirrored = (model.predict(x, 128, verbose=0) for x in (test[0], test[0][:, :, ::-1]))
    print(f"> {np.mean((dog > 0.5) == test[1]) * 100:.3f}, "
          f"averaged with its mirror image: {np.mean((dog + mirrored > 1) == test[1]) * 100:.3f}")
    summarize_diagnostics(name)
    keras.Sequential([keras.Input((TEST_SIZE, TEST_SIZE, 3)), model]).save(f"models/{name}.keras")


if __name__ == "__main__":
    try:
        run_test_harness()
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"{sys.argv[0]}: {' '.join(str(error).split())}")
