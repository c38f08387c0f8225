"""tools/predict_lite.py: the answers of predict.py, without TensorFlow."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pillow_heif
import pytest
from conftest import ROOT, assert_refused, run, run_several
from PIL import Image

SCRIPT = "tools/predict_lite.py"
LITE = importlib.util.find_spec("ai_edge_litert")
pillow_heif.register_heif_opener()
needs_lite = pytest.mark.skipif(not LITE, reason="pip install -r tools/requirements_lite.txt")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos as people have them: large, grey, of 16 bits, on its side, transparent, HEIC, cut."""
    folder = tmp_path_factory.mktemp("photos")
    with Image.open(ROOT / "sample/chelsea.jpg") as cat:
        cat.save(folder / "cat.jpg", quality=95)
        cat.resize((1600, 1200)).save(folder / "large.jpg", quality=95)
        cat.convert("L").save(folder / "grey.jpg", quality=95)
        deep = np.asarray(cat.convert("L")).astype(">u2") * 257
        Image.fromarray(deep.astype(">u2")).save(folder / "deep.tif")
        exif = Image.Exif()
        exif[0x0112] = 6
        cat.transpose(Image.Transpose.ROTATE_90).save(folder / "side.jpg", quality=95, exif=exif)
        cat.putalpha(Image.linear_gradient("L").resize(cat.size))
        cat.save(folder / "clear.png")
        cat.convert("RGB").save(folder / "phone.heic", quality=90)
    whole = (folder / "cat.jpg").read_bytes()
    (folder / "end.jpg").write_bytes(whole[:-2])
    return sorted(folder.iterdir())


@needs_lite
def test_same_answers(photos, tmp_path):
    """Both say the same of each photo; export_model.py names the answers by their classes."""
    import keras

    keras.utils.set_random_seed(1)
    photo = keras.Input((64, 48, 3))  # not square, so that no one exchanges height and width
    x = keras.layers.Rescaling(1 / 255)(photo)
    x = keras.layers.Conv2D(4, 5, strides=4, activation="relu")(x)
    dog = keras.layers.Dense(1, activation="sigmoid")(keras.layers.Flatten()(x))
    # an animal is what is dark: all but the photo that fades into white
    animal = keras.layers.Dense(1, "sigmoid", kernel_initializer=keras.initializers.Constant(-0.1),
                                bias_initializer=keras.initializers.Constant(45))(
        keras.layers.GlobalAveragePooling2D()(photo))
    outputs = [dog, animal]
    keras.Model(photo, outputs).save(tmp_path / "two.keras")
    keras.Model(photo, outputs[0]).save(tmp_path / "one.keras")
    bees = ("--classes", "wild ant", "蜂")
    export_one, export_two, one, two = run_several(
        ("tools/export_model.py", "one.keras"),
        ("tools/export_model.py", "two.keras", "--photo", photos[0], *bees),
        ("predict.py", *photos, "--model", "one.keras"),
        ("predict.py", *photos, "--model", "two.keras", *bees), cwd=tmp_path)
    assert export_one[0] == 0 and "P(dog) of" in export_one[1], export_one
    assert export_two[0] == 0 and "P(蜂_or_wild_ant) of" in export_two[1], export_two
    assert (one[0], one[2], two[0], two[2]) == (0, "", 0, "")
    lite = [run(SCRIPT, *photos, "--model", f"exported/{name}.tflite", *names, cwd=tmp_path)
            for name, names in (("one", ()), ("two", bees))]
    for done, expected in zip(lite, (one[1], two[1]), strict=True):
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        for line, other in zip(done.stdout.splitlines(), expected.splitlines(), strict=True):
            number, numbers = (float(re.search(r"([\d.]+) %", text)[1]) for text in (line, other))
            assert abs(number - numbers) < 0.02  # both decode with Pillow: rounding alone
            assert re.sub(r"[\d.]+ %", "", line) == re.sub(r"[\d.]+ %", "", other)
    assert "neither" not in one[1] and two[1].count("neither 蜂 nor wild ant") == 1

    (tmp_path / "text.jpg").write_text("not a photo")
    shutil.copy(photos[0], tmp_path / "猫.jpg")
    lite = ("--model", "exported/one.tflite")
    windows = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = run(SCRIPT, "text.jpg", "猫.jpg", "nowhere.jpg", photos[0], *lite, cwd=tmp_path,
               env=windows)
    assert done.returncode == 1
    assert done.stderr == "text.jpg: not a photo\nnowhere.jpg: No such file or directory\n"
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
        "\\u732b.jpg", str(photos[0])]
    for model in ("text.jpg", "nowhere.tflite", tmp_path):
        done = run(SCRIPT, photos[0], "--model", model, cwd=tmp_path)
        assert_refused((done.returncode, done.stdout, done.stderr), model)


@needs_lite
def test_file_that_ships(tmp_path):
    done = run(SCRIPT, ROOT / "sample/chelsea.jpg", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{ROOT / 'sample/chelsea.jpg'}: cat (9")


def test_crops_and_resizes_as_keras_does(photos):
    """As the networks' training does, and in float32."""
    from keras.preprocessing.image import smart_resize

    spec = importlib.util.spec_from_file_location("predict_lite", ROOT / SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for path in photos[:2]:
        for size in ((240, 240), (50, 70), (451, 300), (300, 451), (900, 1000), (500, 1)):
            photo = script.load_photo(path, size)
            pixels = np.asarray(script.decode_photo(path.read_bytes()))
            assert photo.dtype == np.float32 and photo.shape == (1, *size, 3)
            assert np.abs(photo - smart_resize(pixels, size)).max() < 0.01


def test_imports_no_tensorflow():
    code = ("import runpy, sys; sys.argv = ['predict_lite.py', '--help']\n"
            f"try: runpy.run_path({str(ROOT / SCRIPT)!r}, run_name='__main__')\n"
            "except SystemExit: assert not {'tensorflow', 'keras'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)
