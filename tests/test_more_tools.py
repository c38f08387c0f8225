"""The scripts of more_experiments/ that train no cats and dogs: tools, pictures, small networks."""

import importlib
import inspect
import re
import shutil

import numpy as np
import pytest
from conftest import ROOT, assert_refused, run_several
from PIL import Image, ImageOps


@pytest.fixture(scope="module")
def keras():
    """Keras, in this process."""
    return importlib.import_module("keras")


def read_tree(folder):
    """Return {path below `folder`: bytes} of its files."""
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}


def check_picture(path):
    """Check that `path` is a PNG of some size with something in it that no edge cuts off."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"), dtype=int)
        assert picture.format == "PNG" and min(picture.size) >= 300
    assert len(np.unique(pixels @ (65536, 256, 1))) > 100, path
    edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (edges == 255).all(), f"{path}: something is cut off"


def test_prepare_small_dataset(dataset, small, tmp_path):
    for split, first, count in (("train", 0, 20), ("validation", 20, 10), ("test", 30, 10)):
        for label in ("cat", "dog"):
            assert read_tree(small / split / f"{label}s") == {
                f"{label}.{n}.jpg": (ROOT / f"sample/train/{label}.{n}.jpg").read_bytes()
                for n in range(first, first + count)}
    assert len(list(small.rglob("*.jpg"))) == 80
    text = (ROOT / "more_experiments/prepare_small_dataset.py").read_text()
    assert "keras." not in text and "tensorflow" not in text  # so that it starts at once

    shutil.copytree(small, tmp_path / "half")  # a copy that was killed
    (tmp_path / "half/test/dogs/dog.39.jpg").unlink()
    (tmp_path / "half/test/dogs/dog.39.part").write_text("half a photo")
    shutil.copytree(small, tmp_path / "other")  # the photos of another source
    shutil.copy(small / "train/cats/cat.1.jpg", tmp_path / "other/train/cats/cat.0.jpg")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/holiday.JPG").write_text("the user's")
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (tmp_path / f"twice/{split}/{label}s").mkdir(parents=True)
            shutil.copy(ROOT / f"sample/train/{label}.0.jpg",
                        tmp_path / f"twice/{split}/{label}s")
    # numbers that the source lacks are left out
    gaps = tmp_path / "gaps"
    shutil.copytree(dataset, gaps, ignore=shutil.ignore_patterns("cat.0.jpg", "dog.21.jpg"))
    before = {name: read_tree(tmp_path / name) for name in ("other", "mine")}
    counts = "--counts", "20", "10", "10"
    script = "more_experiments/prepare_small_dataset.py"
    complete, same, left_out, *refused = run_several(
        (script, dataset, *counts, "--output", "half"),
        (script, dataset, *counts, "--output", "half"),
        (script, gaps, *counts, "--output", "fewer"),
        (script, dataset, "--counts", "10", "10", "10", "--output", "half"),
        (script, dataset, *counts, "--output", "other"),
        (script, dataset, *counts, "--output", "mine"),
        (script,), (script, "nowhere"), (script, "twice"), (script, tmp_path / "mine"),
        (script, dataset), (script, dataset, "--counts", "20", "0", "10"), cwd=tmp_path)
    for code, out, err in (complete, same):
        assert (code, err) == (0, "") and "half/validation/cats: 10 photos" in out, err
    assert read_tree(tmp_path / "half") == read_tree(small)
    assert left_out[0] == 0 and "fewer/train/cats: 19 photos" in left_out[1]
    assert len(list((tmp_path / "fewer").rglob("*.jpg"))) == 78
    for result, words in zip(refused, (
        ("delete half",), ("other/train/cats/cat.0.jpg", "delete other"), ("mine/holiday.JPG",),
        ("dataset_dogs_vs_cats", "run prepare_dataset.py"), ("nowhere", "run prepare_dataset.py"),
        ("train/cats/cat.0.jpg", "test/cats/cat.0.jpg"), ("run prepare_dataset.py", "two folders"),
        ("cats 1000 to 1499", "--counts"), ("cats 20 to 19", "--counts"),
    ), strict=True):
        assert_refused(result, *words)
    assert before == {name: read_tree(tmp_path / name) for name in before}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "fewer", "gaps", "half", "mine", "other", "twice"]


def test_networks(tmp_path):
    """first_network.py, functional_api.py, vgg16_from_scratch.py: what they print."""
    first, functional, vgg16 = run_several(*(
        (f"more_experiments/{name}.py",)
        for name in ("first_network", "functional_api", "vgg16_from_scratch")), cwd=tmp_path)
    for code, _, err in (first, functional, vgg16):
        assert (code, err) == (0, ""), err

    assert "Epoch 5/5" in first[1] and "7,114" in first[1] and "(10000, 10)" in first[1]
    (accuracy,) = re.findall(r"accuracy ([\d.]+) % ", first[1])
    assert abs(float(accuracy) - 10) < 1.5  # of 10,000: five standard deviations

    counts = dict(re.findall(r"^(\w+): ([\d,]+) parameters$", functional[1], re.MULTILINE))
    assert counts == {"mlp": "541,794", "cnn": "138,122", "rnn": "84,362",
                      "shared_input": "399,610", "shared_extractor": "78,984",
                      "two_inputs": "424,874", "two_outputs": "31,348"}
    assert functional[1].count("Total params") == 7
    graphs = sorted(path.stem for path in tmp_path.glob("plots/*.png"))
    if "no graphs: " in functional[1]:
        last = functional[1].splitlines()[-1]
        assert "requirements.txt" in last and ("pydot" in last or "graphviz" in last)
        assert not graphs
    else:
        assert graphs == sorted(f"functional_api_{name}" for name in counts)

    for name in ("vgg16-sequential", "vgg16-functional"):
        assert (f"{name}: 138,357,544 parameters; 22 of 22 layers as in "
                "keras.applications.VGG16") in vgg16[1]


def test_classify_photo(keras, few, tmp_path):
    script, home = "more_experiments/classify_photo.py", tmp_path / "keras"
    (home / "models").mkdir(parents=True)
    shutil.copy(ROOT / "tests/imagenet_class_index.json", home / "models")
    keras.utils.set_random_seed(1)
    network = keras.applications.MobileNet(weights=None)
    network.save_weights(tmp_path / "mobilenet.weights.h5")
    (tmp_path / "text.jpg").write_text("not a photo")
    (tmp_path / "empty").mkdir()
    offline = {"https_proxy": "http://127.0.0.1:9", "KERAS_HOME": str(home)}
    mobilenet = (script, "--model", "mobilenet", "--weights", "mobilenet.weights.h5")
    photos = [few / f"cat.{number}.jpg" for number in range(3)]
    answered, mistyped, empty, *refused = run_several(
        (*mobilenet, photos[0], "text.jpg", *photos[1:]), (script, "nowhere.jpg"),
        (script, "empty"), (script, few, "--model", "mobilenet"),
        (script, few, "--model", "xception", *mobilenet[3:]),
        (script, few, "--model", "alexnet"), cwd=tmp_path, env=offline)
    code, out, err = answered
    assert code == 1 and err == "text.jpg: not a photo\n", err
    assert len(err.splitlines()) == 1
    lines = out.splitlines()
    assert len(lines) == 3 * 6 and lines[::6] == [f"{path}:" for path in photos]
    photo = keras.utils.load_img(photos[0], target_size=(224, 224), interpolation="bilinear")
    prepared = keras.applications.mobilenet.preprocess_input(np.asarray(photo, dtype=np.float32))
    expected = np.sort(network.predict_on_batch(prepared[None])[0])[::-1][:5] * 100
    printed = [float(line.split(" %  ")[0]) for line in lines[1:6]]
    assert np.allclose(printed, expected, atol=0.02)
    names = (ROOT / "tests/imagenet_class_index.json").read_text()
    assert all(f'"{line.split(" %  ")[1]}"' in names for line in lines[1:6])
    # Photos are looked at before the weights are fetched, which would fail here.
    assert_refused(mistyped, "nowhere.jpg: No such file")
    assert_refused(empty, "no photos in empty")
    for result, words in zip(refused, (("imagenet", "mobilenet", "--weights"),
                                       ("mobilenet.weights.h5", "xception"),
                                       ("alexnet", "inception_resnet_v2")), strict=True):
        assert_refused(result, *words)


def test_classify_photo_networks(keras):
    """Each network's own photo size is the one that Keras gives it; copies are predict.py's."""
    script = importlib.import_module("more_experiments.classify_photo")
    assert list(script.NETWORKS) == ["vgg16", "vgg19", "resnet50", "inception_v3",
                                     "inception_resnet_v2", "xception", "mobilenet"]
    for name, (module, define_model, size) in script.NETWORKS.items():
        assert module.__name__.endswith(f".applications.{name}")
        assert module.preprocess_input and module.decode_predictions
        if name in ("xception", "mobilenet"):  # the others take seconds to build
            assert define_model(weights=None).input_shape == (None, *size, 3)
    predict = importlib.import_module("predict")
    for function in ("load_image", "find_photos"):
        assert inspect.getsource(getattr(script, function)) == inspect.getsource(
            getattr(predict, function))


def test_augmentation_gallery(tmp_path):
    script, sample = "more_experiments/augmentation_gallery.py", ROOT / "sample/train"
    (tmp_path / "few").mkdir()
    shutil.copy(sample / "cat.0.jpg", tmp_path / "few")
    shutil.copytree(sample, tmp_path / "damaged")
    (tmp_path / "damaged/cat.1.jpg").write_text("not a photo")
    (tmp_path / "file").write_text("not a folder")
    results = run_several(
        (script, sample / "dog.5.jpg", "--save-to", "out/augmented", "--limit", "40"),
        (script,), (script, "few/cat.0.jpg"), (script, "damaged/cat.0.jpg"),
        (script, sample / "dog.5.jpg", "--limit", "3"),
        (script, sample / "dog.5.jpg", "--save-to", "file"), cwd=tmp_path)
    code, out, err = results[0]
    assert (code, err) == (0, ""), err
    variants = {"rotation": 9, "shifts": 9, "shear": 9, "flips": 9, "zoom": 9, "combined": 4}
    names = sorted([*variants, "photos", "standardization", "zca"])
    assert sorted(path.stem for path in tmp_path.glob("plots/*.png")) == [
        f"augmentation_{name}" for name in names]
    for name in names:
        assert f"plots/augmentation_{name}.png: " in out
        check_picture(tmp_path / f"plots/augmentation_{name}.png")
    photo = ImageOps.fit(Image.open(sample / "dog.5.jpg"), (150, 150), Image.Resampling.BILINEAR)
    first = np.asarray(photo, dtype=int)
    mirrored = [first, first[:, ::-1], first[::-1], first[::-1, ::-1]]
    for name, count in variants.items():
        saved = [np.asarray(Image.open(tmp_path / f"out/augmented/aug_{name}_{n}.png"), dtype=int)
                 for n in range(1, count + 1)]
        assert all(photo.shape == (150, 150, 3) for photo in saved)
        if name == "flips":
            ways = [[np.abs(photo - way).mean() < 4 for way in mirrored] for photo in saved]
            assert all(sum(way) == 1 for way in ways)
            assert np.any(ways, axis=0).sum() > 2  # not just both ways at once
            continue
        assert len({photo.tobytes() for photo in saved}) == count, name
        # changed, but still the same photo
        assert all(np.abs(photo.mean((0, 1)) - first.mean((0, 1))).max() < 60 for photo in saved)
    assert len(list((tmp_path / "out/augmented").iterdir())) == 49
    for result, words in zip(results[1:], (("sample/train",), ("few", "1"), ("cat.1.jpg",),
                                           ("3",), ("file",)), strict=True):
        assert_refused(result, *words)


def test_whitening():
    """Whitened values are uncorrelated, of the deviation 1, and close to the centred ones."""
    script = importlib.import_module("more_experiments.augmentation_gallery")
    photos = np.random.default_rng(1).uniform(0, 255, (60, 150, 150, 3)).astype(np.float32)
    photos[:30] *= 0.5  # something for the components to find
    values = script.whiten(photos, epsilon=1e-9).reshape(60, -1)
    _, deviations, _ = np.linalg.svd(values / np.sqrt(60), full_matrices=False)
    assert np.allclose(deviations[:-1], 1, atol=1e-2)  # 60 centred photos span 59 dimensions
    standard = script.standardize(photos)
    assert np.abs(standard.mean((0, 1, 2))).max() < 1e-3
    assert np.abs(standard.std((0, 1, 2)) - 1).max() < 1e-3
