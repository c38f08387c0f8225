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

from vgg16_transfer import (
    define_model,
    extract_features,
    flow_from_directory,
    flow_from_features,
    keras,
    tf,
)

dataset = Path(sys.argv[1]).resolve()
epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 10
keras.config.set_dtype_policy(sys.argv[3] if len(sys.argv) > 3 else "float32")

vgg16, classifier, _ = define_model(weights=None)
with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)  # where the features are kept
    start = time.perf_counter()
    train_photos = flow_from_directory(dataset / "train")
    test_photos = flow_from_directory(dataset / "test")
    features, classes = extract_features(vgg16, train_photos)
    train = flow_from_features(features, classes, shuffle=True)
    features, classes = extract_features(vgg16, test_photos)
    test = flow_from_features(features, classes, shuffle=False)
    classifier.fit(train, validation_data=test, epochs=epochs, shuffle=False, verbose=2)
    ours = time.perf_counter() - start
    os.chdir(dataset)  # a temporary folder can't be deleted on Windows while one is in it

_, classifier, _ = define_model(weights=None)
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
