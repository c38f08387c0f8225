"""Seconds per epoch of vgg3_augmentation.py, the tutorial's way, and of the arithmetic alone.

    python tests/benchmarks/augmentation.py DATASET [PRECISION]     (needs SciPy)

DATASET is a folder that prepare_dataset.py has built. The three train the same network on as
many batches: of the script's iterator (a first epoch and a later one), of ImageDataGenerator
with the tutorial's augmentation, and of one batch that is held in memory.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import vgg3_augmentation
from vgg3_augmentation import keras, tf

directory = Path(sys.argv[1]) / "train"
keras.config.set_dtype_policy(sys.argv[2] if len(sys.argv) > 2 else "float32")


def seconds(model, batches):
    """Return how long `model` takes to train on `batches` once."""
    start = time.perf_counter()
    model.fit(batches, epochs=1, verbose=0, shuffle=False)
    return time.perf_counter() - start


model = vgg3_augmentation.define_model()
iterator = vgg3_augmentation.flow_from_directory(directory, shuffle=True)
batch = next(iter(iterator))
held = tf.data.Dataset.from_tensors(batch).repeat(len(iterator))
seconds(model, held.take(3))  # builds the graph
first = seconds(model, iterator)

# The tutorial augments on the way in: its network has no such layers.
plain = keras.Sequential([keras.Input((200, 200, 3)), *model.layers[3:]])
plain.compile(optimizer=keras.optimizers.SGD(0.001, momentum=0.9),
              loss="binary_crossentropy", metrics=["accuracy"])
generator = tf.keras.preprocessing.image.ImageDataGenerator(
    rescale=1 / 255, width_shift_range=0.1, height_shift_range=0.1, horizontal_flip=True,
).flow_from_directory(directory, class_mode="binary", batch_size=64, target_size=(200, 200))
seconds(plain, held.take(3))
# in turns, twice, so that a busy moment of the machine does not fall on one side alone
runs = [(seconds(model, iterator), seconds(plain, generator), seconds(model, held))
        for _ in range(2)]
later, tutorial, compute = map(min, zip(*runs, strict=True))
print(f"{len(iterator)} batches: first epoch {first:.1f} s, later {later:.1f} s")
print(f"tutorial's way {tutorial:.1f} s, ratio to ours {tutorial / later:.2f}")
print(f"one batch held in memory {compute:.1f} s, ratio of ours to it {later / compute:.2f}")
