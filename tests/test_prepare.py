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
import zlib
from pathlib import Path

import numpy as np
from conftest import ROOT, assert_refused, command, run, run_several
from PIL import Image, features


def encoded(image, kind="JPEG", **options):
    """Return `image` as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tree(folder):
    """Return {path relative to folder: contents} of the photos below `folder`."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jpg")
            if path.is_file()}


def write_zip(path, entries):
    """Write a zip file of {name: contents}."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def bomb():
    """Return a PNG file of a few hundred bytes that says it is 60,000 pixels wide and high."""
    small = encoded(Image.new("L", (8, 8)), "PNG")
    header = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + small[24:29]
    return small[:12] + header + zlib.crc32(header).to_bytes(4, "big") + small[33:]


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
        ("prepare_final_dataset.py", "dogs-vs-cats.zip"),
        ("prepare_dataset.py", "--test-ratio", "0.5", "--output", "halves"), cwd=tmp_path,
    )
    assert [result[0] for result in results] == [0] * 9, results
    expected = tree(tmp_path / "dataset_dogs_vs_cats")
    assert {Path(name).name for name in expected} == set(photos)
    for source in sources:
        assert tree(tmp_path / f"from_{source}") == expected
    assert len(tree(tmp_path / "finalize_dogs_vs_cats")) == 12
    random.seed(1)
    draws = [random.random() for _ in photos]
    for ratio, top in ((0.25, "dataset_dogs_vs_cats"), (0.5, "halves")):
        assert sum(draw < ratio for draw in draws) == sum(
            name.startswith("test/") for name in tree(tmp_path / top))


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
    shutil.rmtree(output)
    code, err = stop(signal.SIGINT)
    assert code == 1 and len(err.strip().splitlines()) == 1, err


def test_odd_photos(few, tmp_path):
    with Image.open(few / "dog.0.jpg") as photo:
        rgb = photo.convert("RGB").resize((120, 90))
    gray = rgb.convert("L")
    alpha = rgb.copy()
    alpha.putalpha(gray.point(lambda value: 255 if value > 128 else 0))
    rotated = Image.Exif()
    rotated[0x0112] = 6  # to be shown turned by a quarter
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    big_endian = Image.fromarray(np.asarray(deep).astype(">u2"))
    whole = encoded(rgb, quality=90)
    exif_only = whole[:2] + whole[20:]  # without the JFIF marker, as many of Microsoft's are
    kept = {"plain": whole, "gray": encoded(gray), "progressive": encoded(rgb, progressive=True),
            "no_jfif": exif_only, "extra": whole + b"trailing bytes",
            "odd_exif": encoded(rgb, exif=b"Exif\0\0not what it should be")}
    anew = {"png": (encoded(rgb, "PNG"), rgb), "bmp": (encoded(rgb, "BMP"), rgb),
            "cmyk": (encoded(rgb.convert("CMYK")), rgb), "webp": (encoded(rgb, "WEBP"), rgb),
            "palette": (encoded(rgb.quantize(64), "PNG"), rgb),
            "deep": (encoded(deep, "PNG"), gray), "tiff": (encoded(rgb, "TIFF"), rgb),
            "deep_tiff": (encoded(big_endian, "TIFF"), gray),
            "alpha": (encoded(alpha, "PNG"), Image.composite(
                rgb, Image.new("RGB", rgb.size, "white"), alpha.getchannel("A"))),
            "gif": (encoded(rgb, "GIF"), rgb),
            "bilevel": (encoded(gray.convert("1"), "PNG"), gray.convert("1")),
            "rotated": (encoded(rgb, exif=rotated, quality=95), rgb.rotate(-90, expand=True)),
            "no_end": (whole[:-2], rgb),
            "marker": (whole[:-200] + b"\xff\xe0" + whole[-200:], None),  # TensorFlow refuses it
            "cut": (whole[: len(whole) * 9 // 10], None)}
    if features.check("avif"):
        anew["avif"] = encoded(rgb, "AVIF", quality=90), rgb
    out = {"empty": b"", "text": b"not a photo", "cut_short": whole[: len(whole) // 4],
           "eps": encoded(rgb, "EPS"), "html": b"<!doctype html><title>404</title>",
           "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>', "bomb": bomb(),
           "png_cut": encoded(rgb, "PNG")[:200]}
    data = [*kept.values(), *(value for value, _ in anew.values()), *out.values()]
    names = [*kept, *anew, *out]
    source = tmp_path / "train"
    shutil.copytree(few, source)
    for number, content in enumerate(data, 100):
        (source / f"cat.{number}.jpg").write_bytes(content)
    (source / "cat.900.jpg").mkdir()
    (source / "cat.901.jpg").symlink_to("nowhere")
    # Ghostscript, as far as Pillow can see: it must not be started
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "bin/gs").chmod(0o755)
    env = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    results = run_several(("prepare_final_dataset.py",), ("prepare_dataset.py",), cwd=tmp_path,
                          env=env)
    assert not (tmp_path / "started").exists()
    import tensorflow as tf

    for (code, stdout, err), top in zip(results, ("finalize", "dataset"), strict=True):
        assert code == 0 and err == ""
        photos = {Path(n).name: d for n, d in tree(tmp_path / f"{top}_dogs_vs_cats").items()}
        assert len(photos) == 12 + len(kept) + len(anew)
        assert stdout.count("left out: ") == len(out) + 2
        assert "left out: cat.900.jpg (" in stdout and "left out: cat.901.jpg (" in stdout
        for number, name in enumerate(names, 100):
            file = f"cat.{number}.jpg"
            if name in out:
                assert file not in photos and f"left out: {file} (" in stdout, name
                continue
            pixels = tf.io.decode_image(photos[file], channels=3).numpy()
            assert (photos[file] == (source / file).read_bytes()) == (name in kept), name
            if name in kept:
                continue
            with Image.open(io.BytesIO(photos[file])) as image:
                assert (image.format, image.mode) == ("JPEG", "RGB"), name
                assert 0x0112 not in image.getexif()
            if name == "marker":  # its rest is as damaged as it was
                continue
            if name == "cut":  # its last rows are partly missing
                assert 70 < len(pixels) <= 90
                pixels = pixels[:60]
            expected = anew[name][1] or rgb.crop((0, 0, 120, 60))
            assert pixels.shape == np.asarray(expected.convert("RGB")).shape, name
            difference = np.abs(pixels - np.asarray(expected.convert("RGB"), dtype=int)).mean()
            assert difference < 8, (name, difference)
    reasons = [line.split("(")[1] for line in stdout.splitlines() if line.startswith("left out")]
    assert reasons[:4] == ["not an image)"] * 2 + ["more than half is missing)", "not an image)"]


def test_side_does_not_depend_on_other_photos(few, tmp_path):
    source = tmp_path / "train"
    shutil.copytree(few, source)
    (source / "cat.0.jpg").write_bytes(b"")
    # what was a photo is none any more: it does not stay in the tree
    shutil.copytree(source, tmp_path / "later")
    (tmp_path / "later/dog.3.jpg").write_bytes(b"")
    results = run_several(("prepare_dataset.py",), ("prepare_dataset.py", few, "--output", "all"),
                          ("prepare_dataset.py", "--output", "other"),
                          ("prepare_dataset.py", "later", "--output", "other"), cwd=tmp_path)
    assert [result[0] for result in results] == [0] * 4
    complete = set(tree(tmp_path / "all"))
    assert set(tree(tmp_path / "dataset_dogs_vs_cats")) == {n for n in complete if "cat.0" not in n}
    assert len(tree(tmp_path / "other")) == len(tree(tmp_path / "dataset_dogs_vs_cats")) - 1
    assert not any("dog.3" in name for name in tree(tmp_path / "other"))


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
    write_zip(tmp_path / "damaged_inner.zip", {"train.zip": b"PK"})
    with zipfile.ZipFile(tmp_path / "damaged.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train.zip", whole)
    damaged = bytearray((tmp_path / "damaged.zip").read_bytes())
    damaged[30 + len("train.zip")] = 0xff  # the first byte that is compressed: no such block
    (tmp_path / "damaged.zip").write_bytes(damaged)
    shutil.copytree(dataset, tmp_path / "sample")
    shutil.copy(few / "cat.0.jpg", tmp_path / "strange/mine.jpg")
    before = tree(tmp_path / "sample")
    cases = [
        ((), "train", "--download"),
        (("nowhere",), "nowhere"),
        (("empty",), "empty", "cats"),
        (("one_class",), "one_class", "dogs"),
        (("twice",), "cat.0", "more than once"),
        (("text.zip",), "zip file"),
        (("cut.zip",), "zip file"),
        (("damaged_inner.zip",), "zip file"),
        (("damaged.zip",), "invalid block"),
        ((few, "--output", "sample"), "sample", "--output"),
        ((few, "--output", "strange"), "strange", "--output"),
        ((few, "--output", "text.zip"), "text.zip"),
        ((few, "--download"), "--download", "not allowed"),
        ((few, "--test-ratio", "20"), "--test-ratio"),  # a share, not per cent
        (("--downlaod",), "--downlaod"),
    ]
    # a photo that someone put into the tree
    shutil.copytree(dataset, tmp_path / "mixed")
    shutil.copy(few / "cat.0.jpg", tmp_path / "mixed/train/cats/mine.JPG")
    cases.append(((ROOT / "sample/train", "--output", "mixed"), "mixed"))
    scripts = ("prepare_dataset.py", "prepare_final_dataset.py")
    results = run_several(*((script, *case[0]) for script in scripts for case in cases),
                          cwd=tmp_path)
    for result, case in zip(results, cases * 2, strict=True):
        assert_refused(result, *case[1:])
    assert tree(tmp_path / "sample") == before
    assert [path.name for path in (tmp_path / "strange").iterdir()] == ["mine.jpg"]
    assert (tmp_path / "mixed/train/cats/mine.JPG").exists()


def test_no_room(few, tmp_path):
    # A limit on the size of files stands in for a full disk: writing fails in the same way.
    done = run("prepare_dataset.py", few, cwd=tmp_path,
               preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)))
    assert_refused((done.returncode, done.stdout, done.stderr), "large")
    assert run("prepare_dataset.py", few, cwd=tmp_path).returncode == 0
    assert len(tree(tmp_path / "dataset_dogs_vs_cats")) == 12


def test_damaged_photo_in_a_zip_file(few, tmp_path):
    """A photo that fails its checksum is left out and named; the others are copied."""
    photos = {f"train/{path.name}": path.read_bytes() for path in few.iterdir()}
    photos["train/cat.1.jpg"] = b"X" * 999
    whole = write_zip(tmp_path / "whole.zip", photos).read_bytes()
    (tmp_path / "crc.zip").write_bytes(whole.replace(b"X" * 999, b"X" * 998 + b"Y"))
    done = run("prepare_dataset.py", "crc.zip", cwd=tmp_path)
    assert done.returncode == 0 and "left out: cat.1.jpg (Bad CRC-32" in done.stdout
    assert len(tree(tmp_path / "dataset_dogs_vs_cats")) == 11


def test_download_without_network(tmp_path):
    env = {"https_proxy": "http://127.0.0.1:9", "KERAS_HOME": str(tmp_path)}
    for result in run_several(("prepare_dataset.py", "--download"),
                              ("prepare_final_dataset.py", "--download"), cwd=tmp_path, env=env):
        assert_refused(result, "download.microsoft.com")
