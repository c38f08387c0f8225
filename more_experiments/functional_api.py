"""Seven networks by Keras's functional API: standard, shared layers, several inputs and outputs.

Chapter 3 of "Keras in Chinese", for MNIST's 28x28 pixels and ten digits: summaries, graphs and
parameter counts; nothing is trained. Two things are kept as the chapter has them, since its counts
depend on them: the CNN has no Flatten, so that it gives ten probabilities at each of 4x4 places,
not for the picture, and the LSTM of the shared extractor has 128 units, not the 10 of its text.
"""

import argparse
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # keeps TensorFlow's start-up chatter away
try:
    import keras
    from keras import layers
except KeyboardInterrupt:  # Ctrl-C during the imports, which take seconds
    sys.exit("stopped")


def define_mlp():
    """Return the multilayer perceptron: 784 pixels in a row."""
    pixels = keras.Input((784,), name="input")
    x = layers.Dense(512, activation="relu", name="hidden1")(pixels)
    x = layers.Dense(216, activation="relu", name="hidden2")(x)
    x = layers.Dense(128, activation="relu", name="hidden3")(x)
    output = layers.Dense(10, activation="softmax", name="output")(x)
    return keras.Model(pixels, output, name="mlp")


def define_cnn():
    """Return the convolutional network: 28x28 pixels in, (n, 4, 4, 10) out."""
    picture = keras.Input((28, 28, 1), name="input")
    x = layers.Conv2D(128, 4, activation="relu", name="conv1")(picture)
    x = layers.MaxPooling2D(name="pool1")(x)
    x = layers.Conv2D(64, 4, activation="relu", name="conv2")(x)
    x = layers.MaxPooling2D(name="pool2")(x)
    x = layers.Dense(64, activation="relu", name="hidden1")(x)
    output = layers.Dense(10, activation="softmax", name="output")(x)
    return keras.Model(picture, output, name="cnn")


def define_rnn():
    """Return the recurrent network: 784 steps of one pixel."""
    pixels = keras.Input((784, 1), name="input")
    x = layers.LSTM(128, name="lstm1")(pixels)
    x = layers.Dense(128, activation="relu", name="hidden1")(x)
    output = layers.Dense(10, activation="softmax", name="output")(x)
    return keras.Model(pixels, output, name="rnn")


def define_shared_input():
    """Return the network of two convolutions, 4x4 and 8x8, on the same picture."""
    picture = keras.Input((28, 28, 1), name="input")
    branches = []
    for number, (filters, kernel) in enumerate(((32, 4), (16, 8)), start=1):
        x = layers.Conv2D(filters, kernel, activation="relu", name=f"conv{number}")(picture)
        x = layers.MaxPooling2D(name=f"pool{number}")(x)
        branches.append(layers.Flatten(name=f"flat{number}")(x))
    x = layers.Concatenate(name="merge")(branches)
    x = layers.Dense(64, activation="relu", name="hidden1")(x)
    output = layers.Dense(10, activation="softmax", name="output")(x)
    return keras.Model(picture, output, name="shared_input")


def define_shared_extractor():
    """Return the network with a shallow and a deep branch on one LSTM's features."""
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
    """Return the network of two pictures: 64x64 grey and 32x32 RGB."""
    pictures = [keras.Input((64, 64, 1), name="img_gray_bigsize"),
                keras.Input((32, 32, 3), name="img_rgb_smallsize")]
    branches = []
    for number, picture in enumerate(pictures, start=1):
        x = layers.Conv2D(32, 4, activation="relu", name=f"conv{number}1")(picture)
        x = layers.MaxPooling2D(name=f"pool{number}1")(x)
        x = layers.Conv2D(16, 4, activation="relu", name=f"conv{number}2")(x)
        x = layers.MaxPooling2D(name=f"pool{number}2")(x)
        branches.append(layers.Flatten(name=f"flat{number}")(x))
    x = layers.Concatenate(name="merge")(branches)
    x = layers.Dense(128, activation="relu", name="hidden1")(x)
    x = layers.Dense(64, activation="relu", name="hidden2")(x)
    output = layers.Dense(10, activation="softmax", name="output")(x)
    return keras.Model(pictures, output, name="two_inputs")


def define_two_outputs():
    """Return the network with two outputs: (n, 10) for all 784 pixels, (n, 784, 10) for each."""
    pixels = keras.Input((784, 1), name="input")
    features = layers.LSTM(64, return_sequences=True, name="extract")(pixels)
    x = layers.LSTM(32, name="class11")(features)
    x = layers.Dense(32, activation="relu", name="class12")(x)
    whole = layers.Dense(10, activation="softmax", name="output1")(x)
    each = layers.TimeDistributed(layers.Dense(10, activation="softmax"), name="output2")(features)
    return keras.Model(pixels, [whole, each], name="two_outputs")


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    os.makedirs("plots", exist_ok=True)
    missing = None
    for define_model in (define_mlp, define_cnn, define_rnn, define_shared_input,
                         define_shared_extractor, define_two_inputs, define_two_outputs):
        model = define_model()
        model.summary()
        print(f"{model.name}: {model.count_params():,} parameters")
        try:
            path = f"plots/functional_api_{model.name}.png"
            keras.utils.plot_model(model, path, show_shapes=True, show_layer_names=True)
            print(f"graph: {path}")
        except ImportError as error:  # of pydot, or Graphviz, which is no Python package
            missing = error
    if missing:
        print(f"no graphs: {missing} See more_experiments/requirements.txt")


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, OSError) as error:
        sys.exit(f"{sys.argv[0]}: {' '.join(str(error).split()) or 'stopped'}")
