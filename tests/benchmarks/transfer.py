"""Seconds for vgg16_transfer.py's way, each photo through VGG-16 once, and for the tutorial's.

    python tests/benchmarks/transfer.py DATASET [EPOCHS] [PRECISION]     (needs SciPy)

DATASET is a folder that prepare_dataset.py has built; a few hundred photos are enough. Both
train the same classifier on the same frozen network, with random weights, for EPOCHS (10),
tested after each epoch; the tutorial's way passes every photo through VGG-16 in every epoch.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import vgg16_transfer
from vgg16_transfer import keras, tf

dataset = Path(sys.argv[1]).resolve()
epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 10
keras.config.set_dtype_policy(sys.argv[3] if len(sys.argv) > 3 else "float32")

vgg16, classifier = vgg16_transfer.define_model(weights=None)
with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)  # where the features are kept
    os.mkdir("features")
    start = time.perf_counter()
    train, test = (vgg16_transfer.extract_features(
        vgg16, vgg16_transfer.flow_from_directory(dataset / split), shuffle=split == "train")
        for split in ("train", "test"))
    classifier.fit(train, validation_data=test, epochs=epochs, shuffle=False, verbose=2)
    ours = time.perf_counter() - start
    os.chdir("/")

_, classifier = vgg16_transfer.define_model(weights=None)
# The tutorial prepares photos on the way in: its network has no such layer.
whole = keras.Sequential([keras.Input((224, 224, 3)), *vgg16.layers[1:], *classifier.layers])
whole.compile(optimizer=keras.optimizers.SGD(0.001, momentum=0.9),
              loss="binary_crossentropy", metrics=["accuracy"])
start = time.perf_counter()
generator = tf.keras.preprocessing.image.ImageDataGenerator(featurewise_center=True)
generator.mean = [123.68, 116.779, 103.939]
train_it, test_it = (
    generator.flow_from_directory(dataset / split, class_mode="binary", batch_size=64,
                                  target_size=(224, 224)) for split in ("train", "test"))
whole.fit(train_it, epochs=epochs, validation_data=test_it, verbose=2)
tutorial = time.perf_counter() - start
print(f"{epochs} epochs: each photo once {ours:.1f} s, tutorial's way {tutorial:.1f} s, "
      f"ratio {tutorial / ours:.1f}")
