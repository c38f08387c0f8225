"""tools/errors.py and tools/grad_cam.py: where a network errs, and where it looks."""

import importlib.util
import json
import math
import re
import shutil
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
from conftest import ROOT, assert_refused, run_several
from keras import layers
from PIL import Image

ERRORS, GRAD_CAM, CHELSEA = "tools/errors.py", "tools/grad_cam.py", ROOT / "sample/chelsea.jpg"
# Of a photo that is evenly 128 + 32 k the grey network says that a dog is 3 ** k to 1.
CATS = {1: -3, 2: -3, 3: -3, 4: -1, 5: 2}
DOGS = {1: 3, 2: 3, 3: 3, 4: 2, 5: 1, 6: -3}


def load_script(path):
    spec = importlib.util.spec_from_file_location("script", ROOT / path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def write_photos(folder, **classes):
    """Write folder/test/{class}/, evenly grey photos, 128 + 32 k, of class={number: k}."""
    for name, photos in classes.items():
        (folder / "test" / name).mkdir(parents=True)
        for number, k in photos.items():
            Image.new("RGB", (40, 30), (128 + 32 * k,) * 3).save(
                folder / f"test/{name}/{name}.{number}.jpg", quality=100)
    return folder


def save_grey_network(path, outputs):
    """Save a network of one or two outputs; the second, P(dog or cat), is below 0.5 for k = -3."""
    photo = keras.Input((8, 8, 3))
    mean = layers.GlobalAveragePooling2D()(photo)
    answers = [layers.Dense(1, activation="sigmoid")(mean) for _ in range(outputs)]
    model = keras.Model(photo, answers)
    for answer, bias in zip(model.layers[2:], (-128, -40), strict=False):
        answer.set_weights([np.full((3, 1), math.log(3) / 32 / 3),
                            np.array([bias * math.log(3) / 32])])
    model.save(path)


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    """A folder with one.keras, two.keras and the photos of CATS and DOGS."""
    folder = tmp_path_factory.mktemp("grey")
    for outputs, name in enumerate(("one", "two"), start=1):
        save_grey_network(folder / f"{name}.keras", outputs)
    write_photos(folder / "dataset_dogs_vs_cats", cats=CATS, dogs=DOGS)
    return folder


def test_errors(grey):
    """The figures are right, whatever the classes are called, and whatever the shell says."""
    bees = write_photos(grey / "dataset_bees", ants={1: -3, 2: -1}, bees_of_mine={1: 2, 2: 1})
    hidden = bees / "test/.ipynb_checkpoints"
    hidden.mkdir()
    (grey / "keras").mkdir()
    (grey / "keras/keras.json").write_text('{"image_data_format": "channels_first"}')
    settings = {"KERAS_HOME": str(grey / "keras"), "KERAS_BACKEND": "torch",
                "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    one, two, none, shipped = run_several(
        (ERRORS, "one.keras"), (ERRORS, "two.keras", "--top", "1"),
        (ERRORS, "two.keras", "--dataset", bees), (ERRORS, "--dataset", bees), cwd=grey,
        env=settings)
    for code, _, err in (one, two, none, shipped):
        assert (code, err) == (0, ""), err
    for name, count, hits in (("all", 11, 9), ("cats", 5, 4), ("dogs", 6, 5)):
        (row,) = re.findall(rf"^{name} +(\d+) +(\d+) +([\d.]+) %  ([\d.]+) to ([\d.]+) %$", one[1],
                            re.MULTILINE)
        assert row[:3] == (str(count), str(hits), f"{hits / count * 100:.2f}")
        for bound in row[3:]:  # Wilson's: what is as far from the share as 1.96 of its own s
            p = float(bound) / 100
            s = math.sqrt(p * (1 - p) / count)
            assert abs(abs(hits / count - p) - 1.959964 * s) < 2e-4
    assert re.search(r"called cats +called dogs\ncats +4 +1\ndogs +1 +5\n", one[1])
    # cats 1 to 3 and 4; dogs 1 to 3, 4 and 5; the errors: a cat, 9 to 1 a dog, and 1 to 27
    loss = -sum(map(math.log, [*[27 / 28] * 3, 3 / 4, *[27 / 28] * 3, 9 / 10, 3 / 4,
                               1 / 10, 1 / 28])) / 11
    assert f"\nlog loss: {loss:.4f}\n" in one[1]
    assert "unsure, 20 to 80 %: 2 photos\nright among the others: 77.78 %\n" in one[1]  # 7 of 9
    assert "2 of 2 errors" in one[1] and "neither" not in one[1]
    assert "called neither cats nor dogs: 4 photos\n" in two[1]
    assert "1 of 2 errors" in two[1]
    assert "no errors at all" in none[1] and re.search("all +4 +4 +100.00 %", none[1])
    assert re.search(r"called ants +called bees_of_mine\nants +2 +0\nbees_of_mine +0 +2\n", none[1])
    assert "called neither ants nor bees_of_mine: 1 photos\n" in none[1]
    assert f"model: {ROOT / 'models/reference'}" in shipped[1]  # which is not in this folder
    for name in ("one_errors", "one_summary", "two_errors", "two_summary"):
        with Image.open(grey / f"plots/{name}.png") as plot:
            assert plot.format == "PNG" and min(plot.size) > 200


def test_the_surest_errors_come_first(grey, monkeypatch):
    script, drawn = load_script(ERRORS), []
    monkeypatch.setattr(script, "plot_errors", lambda *arguments: drawn.append(arguments))
    monkeypatch.setattr(sys, "argv", [ERRORS, "one.keras"])
    monkeypatch.chdir(grey)
    script.main()
    ((paths, names, second, _),) = drawn
    assert names == ["cats", "dogs"]
    assert [path.name for path in paths] == ["dogs.6.jpg", "cats.5.jpg"]
    assert np.allclose(second, [1 / 28, 9 / 10], atol=1e-4)


def build_network(kind):
    """Return a network with a map of 8x8: redness and blueness; red speaks for a dog.

    It is so sure that P(dog) is 1 in float32, and where there is more blue it says cat.
    """
    photo = keras.Input((32, 32, 3))
    x = layers.Rescaling(1 / 255)(photo)
    if kind == "residual":  # the last convolution in the list of layers sees nothing
        x = layers.Add()([layers.BatchNormalization(epsilon=0)(layers.Conv2D(2, 4, 4)(x)),
                          layers.Conv2D(2, 4, 4, kernel_initializer="zeros")(x)])
    else:
        x = layers.Conv2D(2, 4, 4)(x)
    if kind == "nested":
        network = keras.Model(photo, layers.GlobalAveragePooling2D()(x))
        x = keras.Sequential([network])(photo)
    else:
        x = layers.GlobalAveragePooling2D()(layers.MaxPooling2D(2)(x) if kind == "pooled" else x)
    outputs = [layers.Dense(1, activation="sigmoid", dtype="float32", name="dog")(x)]
    if kind == "two":  # all others are Functional with one output, or Sequential
        outputs.append(layers.Dense(1, activation="sigmoid", bias_initializer="ones")(x))
    model = keras.Model(photo, outputs)
    if kind == "sequential":
        model = keras.Sequential([photo, *model.layers[1:]])
    parts = [model]
    for layer in parts:
        parts += getattr(layer, "layers", [])
    convolution = next(layer for layer in parts if isinstance(layer, layers.Conv2D))
    kernel = np.zeros((4, 4, 3, 2))
    kernel[..., 0, 0] = kernel[..., 2, 1] = 1 / 16
    convolution.set_weights([kernel, np.zeros(2)])
    model.get_layer("dog").set_weights([np.array([[1000], [-1000]]), np.zeros(1)])
    return model


@pytest.mark.parametrize("kind", ["sequential", "nested", "two", "residual", "pooled",
                                  "mixed_bfloat16"])
def test_heat_map(kind, tmp_path):
    """The heat is where the colour is that decides, as much as there is of it."""
    script = load_script(GRAD_CAM)
    keras.config.set_dtype_policy(kind if kind == "mixed_bfloat16" else "float32")
    build_network(kind).save(tmp_path / "model.keras")
    keras.config.set_dtype_policy("float32")
    model = script.load_model(tmp_path / "model.keras")
    last_map = script.watch_last_map(model)
    for channel, answer in ((0, 1), (2, 0)):
        photo = np.zeros((1, 32, 32, 3), dtype=np.float32)
        photo[0, :8, :12, channel] = 255  # upper left: 2 by 3 of the map's places
        photo[0, 8:12, :4, channel] = 51  # a fifth of that
        photo[0, 28:, 28:, 2 - channel] = 255  # lower right: speaks for the other
        probabilities, heat = script.grad_cam(model, last_map, photo)
        assert abs(probabilities[0] - answer) < 1e-6
        assert len(probabilities) == (2 if kind == "two" else 1)
        expected = np.zeros((8, 8))
        expected[:2, :3], expected[2, 0] = 1, 0.2
        if kind == "pooled":  # of each 2x2 the largest is seen, but the map is the convolution's
            assert heat.shape == (8, 8)
        assert np.allclose(heat, expected, atol=1e-2), heat


def test_heat_map_of_nothing(tmp_path):
    script = load_script(GRAD_CAM)
    build_network("sequential").save(tmp_path / "model.keras")
    model = script.load_model(tmp_path / "model.keras")
    last_map = script.watch_last_map(model)
    _, heat = script.grad_cam(model, last_map, np.zeros((1, 32, 32, 3), dtype=np.float32))
    assert np.array_equal(heat, np.zeros((8, 8)))


def save_as_newer_keras(path, target):
    """Copy the model `path`, .keras or .h5, as if a Keras of the future had saved it."""
    def change(config):
        return config.replace('"units": 1', '"units": 1, "invented_in_2030": 1')

    if path.suffix == ".h5":
        shutil.copy(path, target)
        with h5py.File(target, "a") as file:
            file.attrs["keras_version"] = "9.8.7"
            file.attrs["model_config"] = change(file.attrs["model_config"])
        return
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "metadata.json":
                data = json.dumps({"keras_version": "9.8.7"})
            elif name == "config.json":
                data = change(data.decode())
            new.writestr(name, data)


def test_commands_and_what_they_refuse(grey, tmp_path):
    build_network("sequential").save(tmp_path / "network.keras")
    build_network("two").save(tmp_path / "two.keras")
    photo = keras.Input((8, 8, 3))
    x = layers.Flatten()(photo)
    keras.Model(photo, layers.Dense(10, activation="softmax")(x)).save(tmp_path / "ten.keras")
    keras.Model(photo, layers.Activation("sigmoid")(layers.Dense(1)(layers.Flatten()(
        layers.Conv2D(1, 3)(photo))))).save(tmp_path / "other_end.keras")
    keras.Sequential([photo, layers.Lambda(lambda x: x), layers.Flatten(),
                      layers.Dense(1, activation="sigmoid")]).save(tmp_path / "lambda.keras")
    one = grey / "one.keras"
    keras.models.load_model(one).save(tmp_path / "one.h5")
    save_as_newer_keras(one, tmp_path / "newer.keras")
    save_as_newer_keras(tmp_path / "one.h5", tmp_path / "newer.h5")
    (tmp_path / "cut.keras").write_bytes(one.read_bytes()[:-1000])
    (tmp_path / "text.jpg").write_text("hello")
    for name in ("alone", "empty", "broken", "three"):
        write_photos(tmp_path / name, cats={1: 0}, dogs={} if name == "empty" else {1: 0})
    shutil.rmtree(tmp_path / "alone/test/dogs")
    (tmp_path / "broken/test/dogs/dogs.2.jpg").write_text("hello")
    (tmp_path / "three/test/birds").mkdir()
    update = (f"saved by Keras 9.8.7, this is {keras.__version__}: update Keras, or train it anew")
    refused = [
        ((ERRORS, "no.keras"), "there is no model no.keras"),
        ((ERRORS, "ten.keras"), "it takes (None, 8, 8, 3) and gives (None, 10)"),
        ((ERRORS, "lambda.keras"), "Lambda"),
        ((ERRORS, "newer.keras"), update), ((ERRORS, "newer.h5"), update),
        ((ERRORS, "cut.keras"), "cut.keras: damaged"),
        ((ERRORS, "text.jpg"), "text.jpg: damaged, or not a model"),
        ((ERRORS, one), "prepare_dataset.py"),
        ((ERRORS, one, "--dataset", "alone"), "two folders"),
        ((ERRORS, one, "--dataset", "three"), "two folders"),
        ((ERRORS, one, "--dataset", "empty"), "there are no photos in empty/test/dogs"),
        ((ERRORS, one, "--dataset", "broken"), "broken/test/dogs/dogs.2.jpg is not a photo"),
        ((ERRORS, one, "--top", "0"), "--top"),
        ((GRAD_CAM, CHELSEA, "--model", one), "convolution"),
        ((GRAD_CAM, CHELSEA, "--model", "other_end.keras"), "sigmoid"),
        ((GRAD_CAM, "empty/test/dogs", "--model", "network.keras"), "no photos in empty/test/dogs"),
        ((GRAD_CAM, CHELSEA, "chelsea.png", "--model", "network.keras"), "overwrite"),
    ]
    classes = ("--model", "network.keras", "--classes", "ant", "bee")
    predicted, drawn, shipped, some, *results = run_several(
        ("predict.py", CHELSEA, *classes),
        (GRAD_CAM, CHELSEA, ROOT / "sample/test", "--output", "heat", *classes),
        (GRAD_CAM, CHELSEA),
        (GRAD_CAM, "text.jpg", "no.jpg", ROOT / "sample/test/1.jpg", "--model", "two.keras"),
        *(line for line, _ in refused), cwd=tmp_path)
    for result, (_, word) in zip(results, refused, strict=True):
        assert_refused(result, word)
    assert (drawn[0], drawn[2]) == (0, ""), drawn
    answer = predicted[1].strip()
    assert answer.startswith(f"{CHELSEA}: bee (100.00 %)"), predicted
    assert drawn[1].startswith(f"{answer}, drawn: heat/chelsea_grad_cam.png\n")
    assert len(drawn[1].splitlines()) == 5
    assert shipped[0] == 0 and shipped[1].startswith(f"{CHELSEA}: cat (9"), shipped
    assert some[0] == 1 and some[1].startswith(f"{ROOT / 'sample/test/1.jpg'}: ")
    assert some[2] == "text.jpg: not a photo\nno.jpg: No such file or directory\n"
    for name in ("heat/chelsea", "heat/4", "plots/chelsea", "plots/1"):
        with Image.open(tmp_path / f"{name}_grad_cam.png") as plot:
            assert plot.format == "PNG" and min(plot.size) >= 500
