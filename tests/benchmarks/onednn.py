"""Photos per second with TensorFlow's oneDNN on and off.

    python tests/benchmarks/onednn.py

TensorFlow reads the setting as it starts, so that each side is a process of its own. They run by
turns, three times; the fastest counts. The photos are random numbers, VGG-16's weights, too.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

TOP = Path(__file__).parents[2]


def photos_per_second(step, photos):
    """Return how many photos a second `step`, a method of a model, gets through."""
    step(*photos)  # builds the graph
    start = time.perf_counter()
    for _ in range(4):
        step(*photos)
    return 4 * len(photos[0]) / (time.perf_counter() - start)


def measure():
    """Print the three rates of this process."""
    sys.path.insert(0, str(TOP))
    import baseline_vgg3
    from baseline_vgg3 import keras

    random = np.random.default_rng(1)
    photos = random.uniform(0, 255, (64, 240, 240, 3)).astype("float32")
    labels = np.ones((64, 1), "float32")
    vgg16 = keras.applications.VGG16(weights=None, include_top=False, input_shape=(224, 224, 3))
    lite = keras.models.load_model(TOP / "models/reference/efficientnet_lite_halfway.keras")
    print(photos_per_second(
        baseline_vgg3.define_model().train_on_batch, (photos[:, :200, :200], labels)))
    print(photos_per_second(vgg16.predict_on_batch, (photos[:8, :224, :224],)))
    print(photos_per_second(lite.predict_on_batch, (photos,)))


if "TF_ENABLE_ONEDNN_OPTS" in os.environ:
    measure()
    sys.exit()
rates = {"0": [], "1": []}
for _ in range(3):
    for setting, runs in rates.items():
        done = subprocess.run(
            [sys.executable, __file__], env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": setting},
            stdout=subprocess.PIPE, text=True, check=True)
        runs.append([float(line) for line in done.stdout.split()])
off = np.max(rates["0"], axis=0)
on = np.max(rates["1"], axis=0)
for number, name in enumerate(("baseline_vgg3.py, training", "VGG-16", "the model that ships")):
    print(f"{name}: {off[number]:.1f} photos/s, with oneDNN {on[number]:.1f}, "
          f"ratio {on[number] / off[number]:.2f}")
