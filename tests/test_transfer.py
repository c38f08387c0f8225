"""vgg16_transfer.py, finalize_model.py and predict.py, with random weights in a file.

ImageNet's weights are 58 MB to download and not needed to show that the scripts are right.
"""

import csv
import importlib
import os
import shutil

import h5py
import keras
import numpy as np
import pytest
from conftest import ROOT, assert_refused, run, run_several
from PIL import Image


@pytest.fixture(scope="module")
def final(few, weights, tmp_path_factory):
    """A folder in which the chain prepare_final_dataset.py, finalize_model.py has run."""
    folder = tmp_path_factory.mktemp("final")
    assert run("prepare_final_dataset.py", few, cwd=folder).returncode == 0
    done = run("finalize_model.py", "--weights", weights[1], "--epochs", "2", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "Found 12 files" in done.stdout and "final_model.h5" in done.stdout
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

    def transfer(*arguments):
        return run("vgg16_transfer.py", *arguments, cwd=tmp_path)

    done = transfer("--weights", weights[1], "--epochs", "2")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    with open(tmp_path / "plots/vgg16_transfer_history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert f"> {float(rows[-1]['val_accuracy']) * 100:.3f}\n" in done.stdout
    with Image.open(tmp_path / "plots/vgg16_transfer_plot.png") as plot:
        assert min(plot.size) >= 600
    first = features()
    assert len(first) == 2 and all(name.endswith(".npy") for name in first)

    # More epochs, and the same weights in the other layout: the features are there already.
    done = transfer("--weights", weights[0], "--epochs", "3")
    assert done.returncode == 0, done.stderr
    assert "Epoch 3/3" in done.stdout and features() == first

    # Another precision, other weights, another photo: features of their own.
    assert transfer("--weights", weights[0], "--epochs", "1",
                    "--precision", "mixed_bfloat16").returncode == 0
    assert len(features()) == 4
    with h5py.File(weights[1]) as old, h5py.File(tmp_path / "other_notop.h5", "w") as new:
        for name in old:
            old.copy(name, new)
        new.attrs["layer_names"] = old.attrs["layer_names"]
        new["block5_conv3/block5_conv3_b_1:0"][:] += 1
    assert transfer("--weights", "other_notop.h5", "--epochs", "1").returncode == 0
    assert len(features()) == 6
    shutil.copy(few / "cat.0.jpg", tmp_path / "dataset_dogs_vs_cats/test/cats/cat.5.jpg")
    assert transfer("--weights", weights[0], "--epochs", "1").returncode == 0
    assert len(features()) == 7  # the training photos are the same
    assert {name: time for name, time in features().items() if name in first} == first


def test_bad_weights(final, weights, tmp_path):
    (tmp_path / "text.weights.h5").write_text("not HDF5")
    shutil.copy(weights[0], tmp_path / "cut.weights.h5")
    os.truncate(tmp_path / "cut.weights.h5", 10_000_000)
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save_weights(
        tmp_path / "other.weights.h5")
    dataset = final / "finalize_dogs_vs_cats"
    (tmp_path / "split").mkdir()
    for split in ("train", "test"):
        (tmp_path / "split" / split).symlink_to(dataset)
    cases = [("--weights", name) for name in
             ("nowhere.h5", "text.weights.h5", "cut.weights.h5", "other.weights.h5")]
    offline = {"https_proxy": "http://127.0.0.1:9", "KERAS_HOME": str(tmp_path / "keras")}
    for script, tree in (("vgg16_transfer.py", "split"), ("finalize_model.py", dataset)):
        results = run_several(*((script, "--dataset", tree, *case) for case in [(), *cases]),
                              (script,), (script, "--dataset", tree, "--epochs", "0"),
                              cwd=tmp_path, env=offline)
        for result, case in zip(results, [("--weights", "imagenet"), *cases], strict=False):
            assert_refused(result, *case, "tf_kernels_notop.h5")
        assert_refused(results[-2], "dogs_vs_cats", "prepare_")
        assert_refused(results[-1], "--epochs")
    assert not (tmp_path / "final_model.h5").exists()


def test_final_model(final):
    """The assembled model, loaded as anyone would, does what its parts do."""
    model = keras.models.load_model(final / "final_model.h5")
    assert model.input_shape == (None, 224, 224, 3) and model.output_shape == (None, 1)
    photos = importlib.import_module("vgg16_transfer").flow_from_directory(
        final / "finalize_dogs_vs_cats")
    assembled = model.predict(photos, verbose=0)
    (file,) = (final / "features").iterdir()
    probabilities = np.load(file)
    for layer in model.layers[-3:]:
        probabilities = layer(probabilities)
    assert np.abs(assembled - np.asarray(probabilities)).max() < 1e-5
    assert assembled.std() > 1e-3  # they differ from photo to photo
    assert not any(weight.path.startswith("block") for weight in model.trainable_weights)


def test_predict(final, few, tmp_path):
    shutil.copytree(few, tmp_path / "photos/deeper")
    (tmp_path / "photos/notes.txt").write_text("not a photo, and not meant as one")
    (tmp_path / "photos/2.jpg").write_text("not a photo")
    (tmp_path / "photos/10.jpg").write_bytes(b"")
    (tmp_path / "none").mkdir()
    done = run("predict.py", "--model", final / "final_model.h5", ROOT / "sample/test",
               ROOT / "sample/test/1.jpg", "photos", "none", "nowhere.jpg", "photos/notes.txt",
               cwd=tmp_path)
    assert done.returncode == 1
    errors = done.stderr.splitlines()
    assert [error.split(":")[1].strip() for error in errors] == [
        "photos/2.jpg", "photos/10.jpg", "none", "nowhere.jpg", "photos/notes.txt"]
    lines = done.stdout.splitlines()
    assert len(lines) == 4 + 1 + 12 and lines[0] == lines[4]
    model = keras.models.load_model(final / "final_model.h5")
    load_image = importlib.import_module("predict").load_image
    for line in lines:
        path, result = line.split(": ")
        dog = float(model.predict_on_batch(load_image(tmp_path / path))[0, 0])
        label, probability = ("dog", dog) if dog >= 0.5 else ("cat", 1 - dog)
        assert result.startswith(f"{label} (") and result.endswith(" %)")
        assert abs(float(result.split("(")[1][:-3]) - probability * 100) < 0.02
    good = run("predict.py", "--model", final / "final_model.h5", ROOT / "sample/test/1.jpg",
               cwd=tmp_path)
    assert good.returncode == 0 and good.stderr == "" and good.stdout.count("\n") == 1


def test_load_image_is_what_training_sees(few, tmp_path):
    """predict.py's array against the training iterator's, also for photos of odd formats."""
    source = tmp_path / "train"
    shutil.copytree(few, source)
    with Image.open(few / "dog.1.jpg") as photo:
        exif = Image.Exif()
        exif[0x0112] = 8
        photo.save(source / "dog.90.jpg", exif=exif)
        photo.convert("CMYK").save(source / "dog.91.jpg")
        photo.save(source / "dog.92.jpg", "WEBP")
        photo.quantize(32).save(source / "dog.93.jpg", "PNG")
    assert run("prepare_final_dataset.py", cwd=tmp_path).returncode == 0
    photos = importlib.import_module("finalize_model").flow_from_directory(
        tmp_path / "finalize_dogs_vs_cats")
    seen = np.concatenate([batch for batch, _ in photos])
    assert len(seen) == 16
    load_image = importlib.import_module("predict").load_image
    for path, array in zip(photos.file_paths, seen, strict=True):
        for file in (path, source / os.path.basename(path)):
            sample = load_image(file)
            assert sample.shape == (1, 224, 224, 3) and sample.dtype == np.float32
            assert np.array_equal(sample[0], array), file
    # as VGG-16 was trained: BGR, centred on ImageNet's means
    with Image.open(few / "cat.0.jpg") as photo:
        red = Image.new("RGB", photo.size, (255, 0, 0))
    red.save(tmp_path / "red.png")
    assert np.allclose(load_image(tmp_path / "red.png")[0, 100, 100], [-103.939, -116.779, 131.32])


def test_bad_models(final, few, tmp_path):
    (tmp_path / "text.h5").write_text("not HDF5")
    shutil.copy(final / "final_model.h5", tmp_path / "cut.h5")
    os.truncate(tmp_path / "cut.h5", 1_000_000)
    keras.Sequential([keras.Input((200, 200, 3)), keras.layers.Flatten(),
                      keras.layers.Dense(1)]).save(tmp_path / "shape.keras")
    marker = tmp_path / "executed"
    code = keras.Sequential([
        keras.Input((224, 224, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(1),
        keras.layers.Lambda(eval(f"lambda x: (open({str(marker)!r}, 'w').close(), x)[1]"))])
    code.save(tmp_path / "code.h5")
    code.save(tmp_path / "code.keras")
    assert marker.exists()  # by building it; loading must not make it again
    marker.unlink()
    photo = few / "cat.0.jpg"
    names = ["text.h5", "cut.h5", "shape.keras", "code.h5", "code.keras", "final_model.h5"]
    results = run_several(*(("predict.py", photo, "--model", name) for name in names),
                          ("predict.py",), cwd=tmp_path)
    for result, name in zip(results, names, strict=False):
        assert_refused(result, name)
        assert result[1] == ""
    assert "finalize_model.py" in results[-2][2]
    assert_refused(results[-1], "PHOTO")
    assert not marker.exists()
