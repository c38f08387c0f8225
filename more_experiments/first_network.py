"""The smallest network: two dense layers, and every step of Keras once, on random numbers.

    python more_experiments/first_network.py

Chapter 1 of "Keras in Chinese", whose x_train, y_train, x_batch, x_test are left to the reader.
The data here are random numbers: the classes, ten of them, are drawn without a look at the inputs.
So there is nothing to learn, and of new samples the network gets one in ten right, as chance would.
What it gets right beyond that in training it has memorized.
"""

import argparse
import os

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # keeps TensorFlow's start-up chatter away
os.environ["KERAS_BACKEND"] = "tensorflow"  # Keras can calculate with other libraries, too
import keras
import numpy as np
from keras import layers


def main():
    """Define, compile, train, evaluate and use the network; print what each step gives."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()  # there is only --help
    keras.utils.set_random_seed(1)  # of the data, the weights and the order of the samples
    x_train = np.random.random((1000, 100))  # 1,000 samples of 100 numbers, 0 to 1
    x_test = np.random.random((10_000, 100))
    train_classes = np.random.randint(10, size=1000)  # one of 0 to 9 for each sample
    test_classes = np.random.randint(10, size=10_000)
    # one-hot, as categorical_crossentropy wants them: class 3 is 0 0 0 1 0 0 0 0 0 0
    y_train = keras.utils.to_categorical(train_classes, 10)
    y_test = keras.utils.to_categorical(test_classes, 10)

    model = keras.Sequential()
    model.add(keras.Input((100,)))
    model.add(layers.Dense(64, activation="relu"))
    model.add(layers.Dense(10, activation="softmax"))  # a probability for each class
    model.summary()  # 100 * 64 + 64 and 64 * 10 + 10 weights

    # by their names, with the settings that Keras chooses ...
    model.compile(loss="categorical_crossentropy", optimizer="sgd", metrics=["accuracy"])
    # ... or as objects, with one's own
    model.compile(
        loss=keras.losses.CategoricalCrossentropy(),
        optimizer=keras.optimizers.SGD(learning_rate=0.01, momentum=0.9, nesterov=True),
        metrics=["accuracy"],
    )

    print("\nfit: five passes over 1,000 samples, a step after each 32 of them")
    model.fit(x_train, y_train, epochs=5, batch_size=32)

    model.reset_metrics()  # Keras 3.12 would go on from those of the last epoch
    loss, accuracy = model.train_on_batch(x_train[:32], y_train[:32])
    print(f"\ntrain_on_batch: one step by hand, on 32 samples: loss {loss:.3f}")

    loss, accuracy = model.evaluate(x_test, y_test, batch_size=128, verbose=0)
    print(f"evaluate, on 10,000 other samples: loss {loss:.3f} (ln 10 = 2.303 for a guess), "
          f"accuracy {accuracy * 100:.1f} % (10 % for a guess)")

    probabilities = model.predict(x_test, batch_size=128, verbose=0)
    first = probabilities[0]
    print(f"predict: probabilities {probabilities.shape}, of the first sample\n"
          f"{first.round(3)}, so class {first.argmax()}")


if __name__ == "__main__":
    main()
