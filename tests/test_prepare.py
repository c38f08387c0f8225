"""prepare_dataset.py and prepare_final_dataset.py, on the sample and on photos made here."""

import io
import os
import random
import resource
import shutil
import signal
import subprocess
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, assert_refused, command, run, run_several
from PIL import Image


def encoded(image, kind="JPEG", **options):
    """Return `image` as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tree(folder):
    """Return {path relative to folder: contents} of the photos below `folder`."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jpg")}


def write_zip(path, entries):
    """Write a zip file of {name: contents}."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def test_sample(dataset):
    photos = tree(dataset)
    assert len(photos) == 200
    for name, data in photos.items():
        assert data == (ROOT / "sample/train" / Path(name).name).read_bytes()
        assert Path(name).parts[1] == Path(name).name[:3] + "s"
    # the split, drawn here as the issue and the tutorial describe it
    random.seed(1)
    for label in ("cat", "dog"):
        for number in range(100):
            split = "test" if random.random() < 0.25 else "train"
            assert f"{split}/{label}s/{label}.{number}.jpg" in photos
    for label in ("dogs", "cats"):
        with Image.open(dataset.parent / f"plots/{label}.png") as plot:
            assert min(plot.size) >= 600
            assert np.asarray(plot.convert("L")).std() > 20


def test_same_command_twice_and_final(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "dataset_dogs_vs_cats")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.jpg")}
    first, final, again = run_several(
        ("prepare_dataset.py", ROOT / "sample/train"),
        ("prepare_final_dataset.py", ROOT / "sample/train"),
        ("prepare_final_dataset.py", ROOT / "sample/train"),
        cwd=tmp_path,
    )
    assert first[0] == final[0] == again[0] == 0
    for line in ("test/cats: 24", "test/dogs: 30", "train/cats: 76", "train/dogs: 70"):
        assert f"dataset_dogs_vs_cats/{line} photos\n" in first[1]
    assert "finalize_dogs_vs_cats/dogs: 100 photos\n" in final[1]
    assert {p: p.stat().st_mtime_ns for p in before} == before
    photos = tree(tmp_path / "finalize_dogs_vs_cats")
    assert len(photos) == 200
    assert photos["cats/cat.7.jpg"] == (ROOT / "sample/train/cat.7.jpg").read_bytes()


def test_every_form_of_the_photos(few, tmp_path):
    photos = {path.name: path.read_bytes() for path in few.iterdir()}
    kaggle = {f"train/{name}": data for name, data in photos.items()}
    kaggle["__MACOSX/train/._cat.0.jpg"] = b"not a photo"
    microsoft = {f"PetImages/{name[:3].title()}/{name[4:]}": photos[name] for name in photos}
    microsoft["PetImages/Cat/Thumbs.db"] = b"not a photo"
    write_zip(tmp_path / "train.zip", kaggle)
    write_zip(tmp_path / "windows.zip", {n.replace("/", "\\"): d for n, d in kaggle.items()})
    write_zip(tmp_path / "dogs-vs-cats.zip", {
        "test1.zip": b"", "sampleSubmission.csv": b"id,label\n",
        "train.zip": (tmp_path / "train.zip").read_bytes(),
    })
    write_zip(tmp_path / "kagglecatsanddogs_5340.zip", microsoft)
    for name, data in microsoft.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    shutil.copytree(few, tmp_path / "train")
    sources = ["train", "train.zip", "windows.zip", "dogs-vs-cats.zip",
               "kagglecatsanddogs_5340.zip", "PetImages"]
    results = run_several(
        ("prepare_dataset.py",),
        *(("prepare_dataset.py", source, "--output", f"from_{source}") for source in sources),
        ("prepare_final_dataset.py", "dogs-vs-cats.zip"), cwd=tmp_path,
    )
    assert [result[0] for result in results] == [0] * 8, results
    expected = tree(tmp_path / "dataset_dogs_vs_cats")
    assert {Path(name).name for name in expected} == set(photos)
    for source in sources:
        assert tree(tmp_path / f"from_{source}") == expected
    assert len(tree(tmp_path / "finalize_dogs_vs_cats")) == 12


def test_split_of_25000_killed_and_completed(tmp_path):
    (tmp_path / "train").mkdir()
    tiny = encoded(Image.new("RGB", (8, 8), "tan"))
    for label in ("cat", "dog"):
        for number in range(12500):
            (tmp_path / f"train/{label}.{number}.jpg").write_bytes(tiny)
    output = tmp_path / "dataset_dogs_vs_cats"

    def stop(sign):
        process = subprocess.Popen(command("prepare_dataset.py"), cwd=tmp_path, text=True,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        count = len(tree(output)) if output.exists() else 0
        while process.poll() is None and not len(list(output.rglob("*.jpg"))) > count:
            time.sleep(0.1)
        process.send_signal(sign)
        err = process.communicate(timeout=60)[1]
        return process.returncode, err

    assert stop(signal.SIGKILL)[0] == -signal.SIGKILL
    assert 0 < len(tree(output)) < 25000
    (output / "test/cats/cat.0.jpg").write_bytes(tiny[:50])  # as power loss can leave it
    done = run("prepare_dataset.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    count = {split: len(list((output / split).rglob("*.jpg"))) for split in ("train", "test")}
    assert count == {"train": 18697, "test": 6303}
    assert all(path.read_bytes() == tiny for path in output.rglob("*.jpg"))
    assert not list(output.rglob("*.part"))
    shutil.rmtree(output)
    code, err = stop(signal.SIGINT)
    assert code == 130 and len(err.strip().splitlines()) == 1, err


def test_odd_photos(few, tmp_path):
    with Image.open(few / "dog.0.jpg") as photo:
        rgb = photo.convert("RGB").resize((120, 90))
    gray = rgb.convert("L")
    alpha = rgb.copy()
    alpha.putalpha(gray.point(lambda value: 255 if value > 128 else 0))
    rotated = Image.Exif()
    rotated[0x0112] = 6  # to be shown turned by a quarter
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    whole = encoded(rgb, quality=90)
    exif_only = whole[:2] + whole[20:]  # without the JFIF marker, as many of Microsoft's are
    kept = {"plain": whole, "gray": encoded(gray), "progressive": encoded(rgb, progressive=True),
            "png": encoded(rgb, "PNG"), "bmp": encoded(rgb, "BMP"), "no_jfif": exif_only,
            "extra": whole + b"trailing bytes"}
    anew = {"cmyk": (encoded(rgb.convert("CMYK")), rgb), "webp": (encoded(rgb, "WEBP"), rgb),
            "palette": (encoded(rgb.quantize(64), "PNG"), rgb),
            "deep": (encoded(deep, "PNG"), gray), "tiff": (encoded(rgb, "TIFF"), rgb),
            "alpha": (encoded(alpha, "PNG"), Image.composite(
                rgb, Image.new("RGB", rgb.size, "white"), alpha.getchannel("A"))),
            "gif": (encoded(rgb, "GIF"), rgb),
            "bilevel": (encoded(gray.convert("1"), "PNG"), gray.convert("1")),
            "rotated": (encoded(rgb, exif=rotated, quality=95), rgb.rotate(-90, expand=True)),
            "no_end": (whole[:-2], rgb),
            "cut": (whole[: len(whole) * 9 // 10], None)}
    out = {"empty": b"", "text": b"not a photo", "cut_short": whole[: len(whole) // 4],
           "png_cut": encoded(rgb, "PNG")[:200]}
    data = [*kept.values(), *(value for value, _ in anew.values()), *out.values()]
    names = [*kept, *anew, *out]
    source = tmp_path / "train"
    shutil.copytree(few, source)
    for number, content in enumerate(data, 100):
        (source / f"cat.{number}.jpg").write_bytes(content)
    results = run_several(("prepare_final_dataset.py",), ("prepare_dataset.py",), cwd=tmp_path)
    import tensorflow as tf

    for (code, stdout, err), top in zip(results, ("finalize", "dataset"), strict=True):
        assert code == 0 and err == ""
        photos = {Path(n).name: d for n, d in tree(tmp_path / f"{top}_dogs_vs_cats").items()}
        assert len(photos) == 12 + len(kept) + len(anew)
        assert stdout.count("left out: ") == len(out)
        for number, name in enumerate(names, 100):
            file = f"cat.{number}.jpg"
            if name in out:
                assert file not in photos and f"left out: {file} (" in stdout, name
                continue
            pixels = tf.io.decode_image(photos[file], channels=3).numpy()
            if name in kept:
                assert photos[file] == kept[name], name
            else:
                with Image.open(io.BytesIO(photos[file])) as image:
                    assert (image.format, image.mode) == ("JPEG", "RGB"), name
                    assert 0x0112 not in image.getexif()
                if name == "cut":  # its last rows are partly missing
                    assert 70 < len(pixels) <= 90
                    pixels = pixels[:60]
                expected = anew[name][1] or rgb.crop((0, 0, 120, 60))
                assert pixels.shape == np.asarray(expected.convert("RGB")).shape, name
                difference = np.abs(pixels - np.asarray(expected.convert("RGB"), dtype=int)).mean()
                assert difference < 8, (name, difference)
    reasons = [line.split("(")[1] for line in stdout.splitlines() if line.startswith("left out")]
    assert reasons[:3] == ["empty)", "not an image)", "more than half is missing)"]


def test_side_does_not_depend_on_other_photos(few, tmp_path):
    source = tmp_path / "train"
    shutil.copytree(few, source)
    (source / "cat.0.jpg").write_bytes(b"")
    results = run_several(("prepare_dataset.py",), ("prepare_dataset.py", few, "--output", "all"),
                          cwd=tmp_path)
    assert [result[0] for result in results] == [0, 0]
    complete = set(tree(tmp_path / "all"))
    assert set(tree(tmp_path / "dataset_dogs_vs_cats")) == {n for n in complete if "cat.0" not in n}


def test_bad_input(few, dataset, tmp_path):
    photos = {f"train/{path.name}": path.read_bytes() for path in few.iterdir()}
    for name in ("empty", "one_class", "twice/a", "twice/b", "strange"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(few / "cat.0.jpg", tmp_path / "one_class")
    shutil.copy(few / "cat.0.jpg", tmp_path / "twice/a")
    shutil.copy(few / "cat.0.jpg", tmp_path / "twice/b")
    (tmp_path / "text.zip").write_text("not a zip file")
    whole = write_zip(tmp_path / "whole.zip", photos).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:-100])
    (tmp_path / "crc.zip").write_bytes(whole[:3000] + bytes(20) + whole[3020:])
    flag = whole.rindex(b"PK\x01\x02") + 8
    (tmp_path / "locked.zip").write_bytes(whole[:flag] + b"\x01" + whole[flag + 1:])
    write_zip(tmp_path / "outside.zip", {**photos, "../../cat.9.jpg": b""})
    write_zip(tmp_path / "damaged_inner.zip", {"train.zip": b"PK"})
    shutil.copytree(dataset, tmp_path / "sample")
    shutil.copy(few / "cat.0.jpg", tmp_path / "strange/mine.jpg")
    before = tree(tmp_path / "sample")
    cases = [
        ((), "train", "--download"),
        (("nowhere",), "nowhere"),
        (("empty",), "empty", "cats"),
        (("one_class",), "one_class", "dogs"),
        (("twice",), "cat.0", "more than once"),
        (("text.zip",), "text.zip", "zip"),
        (("cut.zip",), "cut.zip"),
        (("crc.zip",), "crc.zip", "CRC"),
        (("locked.zip",), "locked.zip", "encrypted"),
        (("outside.zip",), "outside.zip", "../../cat.9.jpg"),
        (("damaged_inner.zip",), "damaged_inner.zip"),
        ((few, "--output", "sample"), "sample", "--output"),
        ((few, "--output", "strange"), "strange", "--output"),
        ((few, "--output", "text.zip"), "text.zip"),
        ((few, "--download"), "--download"),
        (("--downlaod",), "--downlaod"),
    ]
    for script in ("prepare_dataset.py", "prepare_final_dataset.py"):
        results = run_several(*((script, *case[0]) for case in cases), cwd=tmp_path)
        for result, case in zip(results, cases, strict=True):
            assert_refused(result, *case[1:])
    assert tree(tmp_path / "sample") == before
    assert [path.name for path in (tmp_path / "strange").iterdir()] == ["mine.jpg"]
    # a photo that someone put into the tree
    shutil.copy(few / "cat.0.jpg", tmp_path / "sample/train/cats/mine.jpg")
    done = run("prepare_dataset.py", ROOT / "sample/train", "--output", "sample", cwd=tmp_path)
    assert_refused((done.returncode, done.stdout, done.stderr), "mine.jpg")
    assert (tmp_path / "sample/train/cats/mine.jpg").exists()


def test_no_room(few, tmp_path):
    # A limit on the size of files stands in for a full disk: writing fails in the same way.
    done = run("prepare_dataset.py", few, cwd=tmp_path,
               preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)))
    assert_refused((done.returncode, done.stdout, done.stderr), "large")
    assert not list(tmp_path.rglob("*.jpg"))
    assert run("prepare_dataset.py", few, cwd=tmp_path).returncode == 0
    assert len(tree(tmp_path / "dataset_dogs_vs_cats")) == 12


@pytest.mark.parametrize("script", ["prepare_dataset.py", "prepare_final_dataset.py"])
def test_download_without_network(script, tmp_path):
    env = {**os.environ, "https_proxy": "http://127.0.0.1:9", "KERAS_HOME": str(tmp_path)}
    done = run(script, "--download", cwd=tmp_path, env=env)
    assert_refused((done.returncode, done.stdout, done.stderr), "download.microsoft.com")
