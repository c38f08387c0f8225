"""Seven networks by Keras's functional API: chains, branches, several inputs and outputs.

    python more_experiments/functional_api.py

In this API a layer is called on the output of another one, so that a network can branch and merge.
Chapter 3 of "Keras in Chinese", for MNIST's 28x28 pixels and ten digits (the one of two inputs for
larger pictures): summaries, graphs and parameter counts; nothing is trained. To have the counts
that the chapter prints, two oddities of its code are kept: the CNN has no Flatten, so that it gives
ten probabilities at each of 4x4 places, not for the picture; and the LSTM of the shared extractor
has 128 units, where the chapter's text says 10.
"""

import argparse
import os

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # keeps TensorFlow's start-up chatter away
os.environ["KERAS_BACKEND"] = "tensorflow"  # Keras can calculate with other libraries, too
import keras
from keras import layers


def define_mlp():
    """Return the multilayer perceptron: 784 pixels in a row (n, 784) in, (n, 10) out."""
    pixels = keras.Input((784,), name="input")
    # A layer is made, then called on what goes into it; what comes out goes into the next one.
    hidden1 = layers.Dense(512, activation="relu", name="hidden1")
    x = hidden1(pixels)
    # the same in one line, as it is usually written: made and called at once
    x = layers.Dense(216, activation="relu", name="hidden2")(x)
    x = layers.Dense(128, activation="relu", name="hidden3")(x)
    # softmax: ten probabilities, which add up to 1
    output = layers.Dense(10, activation="softmax", name="output")(x)
    return keras.Model(pixels, output, name="mlp")  # all that lies between input and output


def define_cnn():
    """Return the convolutional network: 28x28 pixels (n, 28, 28, 1) in, (n, 4, 4, 10) out."""
    picture = keras.Input((28, 28, 1), name="input")
    # 128 filters of 4x4. They do not reach over the edge: 28x28 pixels become 25x25 places.
    x = layers.Conv2D(128, 4, activation="relu", name="conv1")(picture)
    x = layers.MaxPooling2D(name="pool1")(x)  # the largest of each 2x2: 12x12
    x = layers.Conv2D(64, 4, activation="relu", name="conv2")(x)  # 9x9
    x = layers.MaxPooling2D(name="pool2")(x)  # 4x4
    # without Flatten: the same dense layer at each of the 4x4 places by itself
    x = layers.Dense(64, activation="relu", name="hidden1")(x)
    output = layers.Dense(10, activation="softmax", name="output")(x)
    return keras.Model(picture, output, name="cnn")


def define_rnn():
    """Return the recurrent network: 784 steps of one pixel (n, 784, 1) in, (n, 10) out."""
    pixels = keras.Input((784, 1), name="input")
    # LSTM, long short-term memory: it reads one pixel after the other, and keeps twice 128 numbers,
    # its memory and its output, which each pixel changes. Out comes the output after the last one.
    x = layers.LSTM(128, name="lstm1")(pixels)
    x = layers.Dense(128, activation="relu", name="hidden1")(x)
    output = layers.Dense(10, activation="softmax", name="output")(x)
    return keras.Model(pixels, output, name="rnn")


def define_shared_input():
    """Return the network of two convolutions on one picture (n, 28, 28, 1): (n, 10) out."""
    picture = keras.Input((28, 28, 1), name="input")
    small = layers.Conv2D(32, 4, activation="relu", name="conv1")(picture)  # patterns of 4x4
    small = layers.MaxPooling2D(name="pool1")(small)
    small = layers.Flatten(name="flat1")(small)
    large = layers.Conv2D(16, 8, activation="relu", name="conv2")(picture)  # patterns of 8x8
    large = layers.MaxPooling2D(name="pool2")(large)
    large = layers.Flatten(name="flat2")(large)
    x = layers.Concatenate(name="merge")([small, large])  # one after the other, in one row
    x = layers.Dense(64, activation="relu", name="hidden1")(x)
    output = layers.Dense(10, activation="softmax", name="output")(x)
    return keras.Model(picture, output, name="shared_input")


def define_shared_extractor():
    """Return the network with a shallow and a deep branch on one LSTM's features.

    784 steps of one pixel (n, 784, 1) in, (n, 10) out.
    """
    pixels = keras.Input((784, 1), name="input")
    features = layers.LSTM(128, name="lstm1")(pixels)
    shallow = layers.Dense(10, activation="relu", name="interp1")(features)
    deep = layers.Dense(64, activation="relu", name="interp21")(features)
    deep = layers.Dense(32, activation="relu", name="interp22")(deep)
    deep = layers.Dense(16, activation="relu", name="interp23")(deep)
    x = layers.Concatenate(name="merge")([shallow, deep])
    output = layers.Dense(10, activation="softmax", name="output")(x)
    return keras.Model(pixels, output, name="shared_extractor")


def define_two_inputs():
    """Return the network of grey (n, 64, 64, 1) and RGB pictures (n, 32, 32, 3): (n, 10) out."""
    grey = keras.Input((64, 64, 1), name="img_gray_bigsize")
    x = layers.Conv2D(32, 4, activation="relu", name="conv11")(grey)
    x = layers.MaxPooling2D(name="pool11")(x)
    x = layers.Conv2D(16, 4, activation="relu", name="conv12")(x)
    x = layers.MaxPooling2D(name="pool12")(x)
    grey_features = layers.Flatten(name="flat1")(x)

    rgb = keras.Input((32, 32, 3), name="img_rgb_smallsize")
    x = layers.Conv2D(32, 4, activation="relu", name="conv21")(rgb)
    x = layers.MaxPooling2D(name="pool21")(x)
    x = layers.Conv2D(16, 4, activation="relu", name="conv22")(x)
    x = layers.MaxPooling2D(name="pool22")(x)
    rgb_features = layers.Flatten(name="flat2")(x)

    x = layers.Concatenate(name="merge")([grey_features, rgb_features])
    x = layers.Dense(128, activation="relu", name="hidden1")(x)
    x = layers.Dense(64, activation="relu", name="hidden2")(x)
    output = layers.Dense(10, activation="softmax", name="output")(x)
    return keras.Model([grey, rgb], output, name="two_inputs")


def define_two_outputs():
    """Return the network with two outputs: (n, 10) for all 784 pixels, (n, 784, 10) for each."""
    pixels = keras.Input((784, 1), name="input")
    # return_sequences: the output after each pixel (n, 784, 64), not only that after the last
    features = layers.LSTM(64, return_sequences=True, name="extract")(pixels)
    x = layers.LSTM(32, name="class11")(features)
    x = layers.Dense(32, activation="relu", name="class12")(x)
    whole = layers.Dense(10, activation="softmax", name="output1")(x)
    # TimeDistributed: the same layer for each of the 784 steps
    classifier = layers.Dense(10, activation="softmax")
    each = layers.TimeDistributed(classifier, name="output2")(features)
    return keras.Model(pixels, [whole, each], name="two_outputs")


def main():
    """Print each network's summary and number of parameters, and draw its graph into plots/."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()  # there is only --help
    os.makedirs("plots", exist_ok=True)
    models = [define_mlp(), define_cnn(), define_rnn(), define_shared_input(),
              define_shared_extractor(), define_two_inputs(), define_two_outputs()]
    for model in models:
        model.summary()
        print(f"{model.name}: {model.count_params():,} parameters")
    for model in models:
        file = f"plots/functional_api_{model.name}.png"
        try:
            keras.utils.plot_model(model, file, show_shapes=True, show_layer_names=True)
        except ImportError as error:  # of pydot, or Graphviz, which is no Python package
            print(f"no graphs: {error} See more_experiments/requirements.txt")
            break
        print(f"graph: {file}")


if __name__ == "__main__":
    main()
