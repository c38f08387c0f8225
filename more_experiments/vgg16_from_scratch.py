"""VGG-16 from scratch, by Sequential and by functional API, compared with the one in Keras.

    python more_experiments/vgg16_from_scratch.py

The network D of Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
Recognition", 2014: 138,357,544 parameters. It came second in ImageNet's classification of 2014, not
first as the tutorial says (first in localization), and is trained with dropout of 0.5 after fc1 and
fc2, which neither the tutorial nor Keras has ("Keras in Chinese", chapter 4).
https://arxiv.org/abs/1409.1556
"""

import argparse
import os

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # keeps TensorFlow's start-up chatter away
os.environ["KERAS_BACKEND"] = "tensorflow"  # Keras can calculate with other libraries, too
import keras
from keras import layers

# (filters, convolutions) of each block. The deeper, the more patterns, and the fewer places: after
# each block width and height are halved, 224, 112, 56, 28, 14 and 7 in the end.
BLOCKS = [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]


def define_sequential():
    """Return VGG-16, layer added to layer: photos (n, 224, 224, 3) in, (n, 1000) out."""
    model = keras.Sequential(name="vgg16-sequential")
    model.add(keras.Input((224, 224, 3)))
    for block, (filters, count) in enumerate(BLOCKS, start=1):
        for conv in range(1, count + 1):
            model.add(layers.Conv2D(filters, (3, 3), padding="same", activation="relu",
                                    name=f"block{block}_conv{conv}"))
        model.add(layers.MaxPooling2D((2, 2), strides=(2, 2), name=f"block{block}_pool"))
    model.add(layers.Flatten(name="flatten"))
    model.add(layers.Dense(4096, activation="relu", name="fc1"))
    model.add(layers.Dense(4096, activation="relu", name="fc2"))
    model.add(layers.Dense(1000, activation="softmax", name="predictions"))
    return model


def define_functional():
    """Return VGG-16, each layer called on the output of the one before: shapes as above."""
    inputs = keras.Input((224, 224, 3), name="img_input")
    x = inputs
    for block, (filters, count) in enumerate(BLOCKS, start=1):
        for conv in range(1, count + 1):
            x = layers.Conv2D(filters, (3, 3), padding="same", activation="relu",
                              name=f"block{block}_conv{conv}")(x)
        x = layers.MaxPooling2D((2, 2), strides=(2, 2), name=f"block{block}_pool")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(4096, activation="relu", name="fc1")(x)
    x = layers.Dense(4096, activation="relu", name="fc2")(x)
    x = layers.Dense(1000, activation="softmax", name="predictions")(x)
    return keras.Model(inputs, x, name="vgg16-functional")


def list_layers(model):
    """Return (name, output shape, shapes of weights) of each layer but the input."""
    listed = []
    for layer in model.layers:
        if not isinstance(layer, layers.InputLayer):
            shapes = [weight.shape for weight in layer.weights]
            listed.append((layer.name, layer.output.shape, shapes))
    return listed


def compare(model, expected):
    """Print the parameters of `model`, and how many of its layers are as in `expected`."""
    listed = list_layers(model)
    same = 0
    for layer, expected_layer in zip(listed, expected, strict=True):
        if layer == expected_layer:  # name, output shape and shapes of weights
            same += 1
    print(f"{model.name}: {model.count_params():,} parameters; {same} of {len(expected)} layers as "
          "in keras.applications.VGG16\n")


def main():
    """Define VGG-16 twice, and compare both with that of Keras."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()  # there is only --help
    expected = list_layers(keras.applications.VGG16(weights=None))
    keras.utils.clear_session()  # frees the network before: each takes half a gigabyte
    model = define_sequential()
    model.summary()
    compare(model, expected)
    del model
    keras.utils.clear_session()
    model = define_functional()
    model.summary()
    compare(model, expected)


if __name__ == "__main__":
    main()
