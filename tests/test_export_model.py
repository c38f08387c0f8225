"""tools/export_model.py: what servers and phones get answers as the model does."""

import re
import shutil

import keras
import numpy as np
import tensorflow as tf
from conftest import ROOT, assert_refused, run_several

SCRIPT = "tools/export_model.py"


def define_models():
    """Return {name: model}: one that augments; one in mixed precision, with the second output."""
    layers, mixed = keras.layers, {"dtype": "mixed_bfloat16"}
    augmented = keras.Sequential([
        keras.Input((60, 80, 3)),
        layers.Rescaling(1 / 255),
        layers.RandomRotation(0.1, fill_mode="nearest"),
        layers.RandomShear((0, 0.2), fill_mode="nearest"),
        layers.RandomFlip("horizontal"),
        layers.Conv2D(4, 3, activation="relu"),
        layers.Flatten(),
        layers.Dropout(0.5),
        layers.Dense(1, activation="sigmoid"),
    ])
    photo = keras.Input((64, 64, 3))
    features = keras.Sequential([  # a network in the network
        keras.Input((64, 64, 3)),
        layers.Rescaling(1 / 64, offset=[-2, -1.8, -1.6], dtype="float32"),
        layers.Conv2D(4, 3, activation="relu", **mixed),
        layers.BatchNormalization(**mixed),
        layers.GlobalAveragePooling2D(**mixed),
    ])(photo)
    answers = [layers.Dense(1, activation="sigmoid", dtype="float32")(features) for _ in range(2)]
    return {"augmented": augmented, "two_answers": keras.Model(photo, answers)}


def test_export_model(tmp_path):
    """Both forms answer as the model does, in float32, and augment nothing."""
    keras.utils.set_random_seed(1)
    models = define_models()
    for name, model in models.items():
        model.save(tmp_path / f"{name}.keras")
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]).save(tmp_path / "flat.keras")
    (tmp_path / "text.keras").write_text("not a model")
    (tmp_path / "file").write_text("not a folder")
    few = tmp_path / "few/test"  # of two classes, and a file that is no photo
    for name, photo in (("ants", "cat.3.jpg"), ("honey bees", "dog.0.jpg")):
        (few / name).mkdir(parents=True)
        shutil.copy(ROOT / "sample/train" / photo, few / name / "Photo.JPG")
    (few / "ants/Thumbs.db").write_text("not a photo")
    (few / ".ipynb_checkpoints").mkdir()
    bees = ("--classes", "ants", "honey bees", "--dataset", "few")
    model = SCRIPT, "augmented.keras"
    refused = [
        ((SCRIPT,), "models/five_conv_300.keras"), ((SCRIPT, "text.keras"), "text.keras: damaged"),
        ((SCRIPT, "flat.keras"), "it takes (None, 4) and gives (None, 1)"),
        ((*model, "--photo", "text.keras"), "text.keras: not a photo"),
        ((*model, "--photo", "nowhere.jpg"), "nowhere.jpg"),
        ((*model, "--output", "file"), "file"),
        ((*model, "--dataset", tmp_path), "two folders of photos"),
    ]
    results = run_several((SCRIPT, "augmented.keras"), (SCRIPT, "two_answers.keras", *bees),
                          *(line for line, _ in refused), cwd=tmp_path)
    names = {"augmented": ["dog"], "two_answers": ["honey_bees", "honey_bees_or_ants"]}
    for (name, model), (code, out, err) in zip(models.items(), results, strict=False):
        assert (code, err) == (0, ""), err
        values = np.array(re.findall(r": (\d\.\d{6})$", out, re.MULTILINE), dtype=float)
        assert len(values) == 3 * len(model.outputs)
        assert np.ptp(values.reshape(-1, 3), axis=1).max() < 1e-4
        assert re.findall(r"^P\((\w+)\) of", out, re.MULTILINE) == names[name]
        assert f":8501/v1/models/{name}:predict" in out
        assert (tmp_path / f"exported/{name}.tflite").stat().st_size > 1000
        accuracies = re.findall(r"\d MB, accuracy on the test photos ([\d.]+) %", out)
        assert len(accuracies) == (2 if name == "two_answers" else 0)
        assert set(accuracies) <= {"0.000", "50.000", "100.000"}  # of two photos
        photos = np.random.default_rng(1).uniform(0, 255, (2, *model.input_shape[1:]))
        photos = photos.astype(np.float32)
        server = tf.saved_model.load(tmp_path / f"exported/{name}/1")
        answers = server.serve(photos)
        outputs = keras.tree.flatten(model.predict_on_batch(photos))
        for answer, expected in zip(names[name], outputs, strict=True):
            far = 1e-5 if name == "augmented" else 0.05  # bfloat16 has three digits
            assert np.abs(answers[answer] - expected).max() < far
    for result, (_, word) in zip(results[len(models):], refused, strict=True):
        assert_refused(result, word)
    assert len(list((tmp_path / "exported").iterdir())) == 3 * len(models)
