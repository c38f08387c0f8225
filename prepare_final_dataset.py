"""Copy the labelled photos of two classes into finalize_dogs_vs_cats/{cats,dogs}/, unsplit.

    python prepare_final_dataset.py --download
    python prepare_final_dataset.py my_photos --output finalize_mine

SOURCE is Kaggle's or Microsoft's photos of dogs and cats, or a folder or zip file in which there
are two folders of photos: my_photos/ants/IMG_0001.JPG, my_photos/bees/Bee (1).heic. The two
folders are the classes, whatever they are called.

The final model is trained on all photos: none is kept for testing. Each photo is decoded on the
way, so that none can stop the training later.
"""

import argparse
import io
import os
import re
import sys
import tempfile
import threading
import warnings
import zipfile
from collections import Counter
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # keeps TensorFlow's start-up chatter away
# Whatever a notebook, the shell or ~/.keras/keras.json says:
os.environ["KERAS_BACKEND"] = "tensorflow"  # Keras can calculate with other libraries, too
os.environ["MPLBACKEND"] = "agg"  # draws into files
try:
    import keras
    import pillow_heif
    import tensorflow as tf
    from PIL import Image, ImageChops, ImageOps
    from rich.progress import track
except KeyboardInterrupt:  # Ctrl-C during the imports, which take seconds
    sys.exit("stopped")

# Microsoft's copy of the photos: the same as Kaggle's, numbered anew.
URL = ("https://download.microsoft.com/download/3/E/1/"
       "3E1C3F21-ECDB-4869-8368-6DEBA77B919F/kagglecatsanddogs_5340.zip")
SHA256 = "b7974bd00a84a99921f36ee4403f089853777b5ae8d151c76a86e64900334af9"
# Kaggle's train/cat.0.jpg, Microsoft's PetImages/Cat/0.jpg
NUMBERED = re.compile(r"(?:^|/)(cat|dog)(?:\.|s?/)(\d+)\.jpe?g$", re.IGNORECASE)
# any photo in a folder Cat, Dog, cats, dogs
IN_FOLDER = re.compile(r"(?:^|/)(cat|dog)s?/[^/]+$", re.IGNORECASE)
# What looks like a photo, by its name, and of these what Keras takes for one.
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".avif",
            ".heic", ".heif")
KERAS_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
# What decode_photo reads. Pillow would start a program for some other formats: Ghostscript for EPS.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "AVIF", "HEIF")
pillow_heif.register_heif_opener()  # lets Pillow read HEIC, too, as iPhones save it
Image.MAX_IMAGE_PIXELS = None  # decode_photo has a limit of its own
ONE_AT_A_TIME = threading.Lock()


def download_photos():
    """Return the path of Microsoft's zip file, downloaded to ~/.keras/datasets the first time.

    Raises OSError without a network.
    """
    try:
        return Path(keras.utils.get_file(origin=URL, file_hash=SHA256))
    except Exception as error:  # noqa: BLE001, get_file raises bare Exception
        raise OSError(f"{error}; or download it in a browser and pass it as SOURCE") from None


def is_hidden(name):
    """Return whether a file or folder called `name` is hidden, here or in macOS or Windows."""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def list_folder(folder, skip):
    """Return the paths of all files below `folder`, sorted, without the hidden ones.

    Links are followed, but not to the folders `skip`, a list of resolved paths.
    Raises OSError where a folder cannot be read.
    """
    skip = [*skip, folder.resolve()]  # a link further down may lead back here
    paths = []
    for path in sorted(folder.iterdir()):
        if is_hidden(path.name):
            continue
        if not path.is_dir():
            paths.append(path)
        elif path.resolve() not in skip:
            paths += list_folder(path, skip)
    return paths


def list_zip(file, filename):
    """Return {name: function that reads the file} of all files in a zip file but the hidden ones.

    `file` is its path or an open file. Raises ValueError where Python cannot read it.
    """
    try:
        archive = zipfile.ZipFile(file)
    except Exception as error:  # noqa: BLE001, a file can be damaged in many ways
        raise ValueError(f"{filename}: {error}") from None
    files = {}
    for entry in archive.infolist():
        known = entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED,
                                        zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
        if not known:  # Deflate64, with which Windows packs large files
            raise ValueError(f"{entry.filename} in {filename} is packed in a way that Python "
                             "cannot read: unpack it, and give the folder")
        if entry.flag_bits & 1:
            raise ValueError(f"{entry.filename} in {filename} is encrypted: unpack it, and give "
                             "the folder")
        name = entry.filename.replace("\\", "/").removeprefix("./")
        if not entry.is_dir() and not any(is_hidden(part) for part in name.split("/")):
            files[name] = partial(archive.read, entry)
    return files


def list_files(source, output):
    """Return {name: function that reads the file} of all files in `source`, a folder or zip file.

    If there is a train.zip in it, as in what Kaggle gives, these are the files in train.zip.
    The folder `output`, which this script writes, is not searched.
    Raises ValueError or OSError where it cannot be read.
    """
    if source.is_dir():
        files = {}
        for path in list_folder(source, [output.resolve()]):
            files[path.relative_to(source).as_posix()] = path.read_bytes
    else:
        files = list_zip(source, source)
    for name, read in files.items():
        if name.split("/")[-1] == "train.zip":
            try:
                data = read()
            except Exception as error:  # noqa: BLE001, a zip file can be damaged in many ways
                raise ValueError(f"{name} in {source}: {error}") from None
            return list_zip(io.BytesIO(data), f"{name} in {source}")
    return files


def sort_numbered(names):
    """Return [(class, file to write, name)] of photos named by Kaggle or Microsoft, by number.

    Returns [] if `names` are not theirs: if such cats or dogs are missing, or if there are other
    photos in folders of cats or dogs. Raises ValueError where there are two of the same number.
    """
    numbered = {}
    twice = None
    for name in names:
        match = NUMBERED.search(name)
        if match:
            key = (match[1].lower(), int(match[2]))
            if key in numbered:
                twice = f"{key[0]}.{key[1]} is there more than once: {numbered[key]}, {name}"
            numbered[key] = name
        elif IN_FOLDER.search(name):
            return []
    if {label for label, _ in numbered} != {"cat", "dog"}:
        return []
    if twice:
        raise ValueError(twice)
    photos = []
    for label, number in sorted(numbered):
        photos.append((f"{label}s", f"{label}.{number}.jpg", numbered[label, number]))
    return photos


def sort_folders(names):
    """Return [(class, file to write, name)] of the photos in two folders, sorted by their names.

    The folders' names are the classes. Raises ValueError if there are not two such folders.
    """
    labelled = []
    for name in names:
        if "/" in name:
            label = name.split("/")[-2]
            labelled.append((label, name))
    labelled.sort()
    classes = sorted({label for label, _ in labelled})
    if len(classes) != 2:
        found = ", ".join(classes[:5]) or "none"
        raise ValueError(f"expected two folders of photos, found {len(classes)} ({found}); or cats "
                         "and dogs as Kaggle and Microsoft name them, cat.0.jpg or Cat/0.jpg")
    photos = []
    written = set()
    for label, name in labelled:
        stem = re.sub(r'[<>:"|?*]', "_", Path(name).stem)  # Windows allows none of these
        file = f"{stem}.jpg"
        number = 2
        while (label, file.lower()) in written:  # a.jpg and a.png, or a.jpg and A.JPG
            file = f"{stem}_{number}.jpg"
            number += 1
        written.add((label, file.lower()))
        photos.append((label, file, name))
    return photos


def list_photos(source, output):
    """Return [(class, file to write, name in `source`, function that reads it)], sorted.

    `source`, a folder or a zip file, is read as Kaggle's or Microsoft's if it has cats and dogs
    under their names (and none under others in folders of cats or dogs); or else as two folders
    of photos. Prints what is not taken. Raises ValueError where `source` is neither.
    """
    files = list_files(source, output)
    names = [name for name in files if name.lower().endswith(SUFFIXES)]
    try:
        photos = sort_numbered(names)
        reason = "not named like cat.0.jpg or Cat/0.jpg"
        if not photos:
            photos = sort_folders(names)
            reason = "not a photo in one of the two folders"
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    taken = {name for _, _, name in photos}
    folders = {name.rpartition("/")[0] for name in taken}
    not_taken = []
    for name in files:
        in_same_folder = name.rpartition("/")[0] in folders
        if name not in taken and (in_same_folder or name.lower().endswith(SUFFIXES)):
            not_taken.append(name)
    if not_taken:
        count = f"{len(not_taken)} of {len(files)} files"
        print(f"not taken: {count}, such as {not_taken[0]} ({reason})")
    return [(label, file, name, files[name]) for label, file, name in photos]


def decode_photo(data):
    """Return the photo in `data`, the bytes of an image file, as a Pillow image in mode RGB.

    It is upright, has 8 bits a colour, and is white where it was transparent. Of an animation it
    is the first frame. Raises ValueError, with a short reason, where this is not possible.
    """
    try:
        photo = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception:  # noqa: BLE001, decoders raise all sorts on what is no photo
        if data.startswith(b"version https://git-lfs"):
            raise ValueError("a Git LFS pointer, not the photo itself") from None
        raise ValueError("not a photo") from None
    kind = photo.format.replace("MPO", "JPEG")  # MPO: a JPEG with further photos behind the first
    million_pixels = photo.width * photo.height / 1e6
    if million_pixels > 100:
        photo.draft(None, (2000, 2000))  # a JPEG can be decoded at 1/2, 1/4 or 1/8 of its size
    if photo.width * photo.height > 178e6:
        raise ValueError(f"too large ({million_pixels:.0f} million pixels, limit 178)")
    try:
        photo.load()
        try:
            orientation = photo.getexif().get(0x0112, 1)  # how the camera was held
        except Exception:  # noqa: BLE001, a photo with damaged EXIF data is still a photo
            orientation = 1
        if photo.mode.startswith("I"):  # 16 bits, grey
            photo = photo.convert("I").point(lambda value: value / 256).convert("L")
        if photo.has_transparency_data:
            photo = photo.convert("RGBA")
            white = Image.new("RGBA", photo.size, "white")
            photo = Image.alpha_composite(white, photo)
        photo = photo.convert("RGB")
    except MemoryError:
        raise ValueError(f"too large ({million_pixels:.0f} million pixels) for memory") from None
    except Exception:  # noqa: BLE001
        end = b"\xff\xd9"  # the last two bytes of a whole JPEG
        if kind != "JPEG" or data.endswith(end):
            raise ValueError(f"damaged {kind}") from None
        # Cut off. With an end, what is there can be decoded, and what is missing becomes grey.
        photo = decode_photo(data + end)
        grey = Image.new("RGB", photo.size, (128, 128, 128))
        box = ImageChops.difference(photo, grey).getbbox()
        left, top, right, bottom = box or (0, 0, 0, 0)  # no box: all is grey
        if (right - left) * (bottom - top) < photo.width * photo.height / 2:
            raise ValueError("damaged JPEG, more than half is missing") from None
        return photo.crop(box)
    # Of all EXIF data only the orientation is carried over: Pillow cannot rewrite some of it.
    photo.info = {}
    photo.getexif()[0x0112] = orientation
    return ImageOps.exif_transpose(photo)


def tensorflow_reads(data):
    """Return whether TensorFlow, with which the experiments read, decodes the JPEG `data`.

    It must do so without a warning: libjpeg, inside TensorFlow, writes "Corrupt JPEG data" straight
    to standard error and does not say which photo it means. copy_photos sends that to a file.
    """
    with ONE_AT_A_TIME:
        size_before = os.fstat(2).st_size  # 2 is standard error
        try:
            tf.io.decode_jpeg(data)
        except tf.errors.InvalidArgumentError:
            return False
        return os.fstat(2).st_size == size_before


def prepare_photo(data):
    """Return `data`, an image file, if it is an upright RGB or grey JPEG, or else as an RGB JPEG.

    Raises ValueError, with a short reason, where it cannot be decoded.
    """
    photo = decode_photo(data)
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    jpeg = image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")
    try:
        upright = image.getexif().get(0x0112, 1) == 1
    except Exception:  # noqa: BLE001, damaged EXIF data: saved anew, without them
        upright = False
    whole = image.size == photo.size  # neither cut off nor decoded at a fraction
    if jpeg and upright and whole and tensorflow_reads(data):
        return data
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=95)
    return file.getvalue()


def save_photo(job):
    """Prepare one photo and write it. Returns None or, where it cannot be decoded, why not.

    `job` is the path to write and the function that reads the photo.
    """
    target, read = job
    try:
        data = prepare_photo(read())
    except Exception as error:  # noqa: BLE001, a file or a zip file can fail in many ways
        target.unlink(missing_ok=True)
        return str(error) or type(error).__name__
    if not target.exists() or target.read_bytes() != data:
        target.write_bytes(data)
    return None


def copy_photos(photos):
    """Prepare `photos`, [(path to write, name, function that reads)]; return the paths written.

    What cannot be decoded is left out and named. Uses all cores: decoding releases the GIL.
    """
    for folder in {target.parent for target, _, _ in photos}:
        folder.mkdir(parents=True, exist_ok=True)
    jobs = [(target, read) for target, _, read in photos]
    tf.zeros(1)  # TensorFlow starts here, with what it has to say about this machine
    standard_error = os.dup(2)
    with tempfile.TemporaryFile() as messages, ThreadPool() as pool:
        os.dup2(messages.fileno(), 2)  # see tensorflow_reads
        try:
            reasons = list(track(pool.imap(save_photo, jobs), "photos", len(jobs)))
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)
    copied = []
    for (target, name, _), reason in zip(photos, reasons, strict=True):
        if reason:
            print(f"left out: {name} ({reason})")
        else:
            copied.append(target)
    return copied


def check_folders(folders, paths, needed):
    """Raise ValueError if one of `folders` has none of the photos `paths`.

    `needed` is how many photos of each class are enough, to say so.
    """
    for folder in folders:
        if not any(path.parent == folder for path in paths):
            raise ValueError(f"no photo that can be read for {folder}: give at least {needed} of "
                             "each class")


def remove_photos(folders, paths):
    """Delete the photos `paths`, and `folders` where nothing else is in them."""
    for path in paths:
        path.unlink()
    for folder in folders:
        for path in (folder, folder.parent):
            if path.exists() and not any(path.iterdir()):
                path.rmdir()


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument("source", nargs="?", type=Path, default=Path("train"), metavar="SOURCE",
                        help="a folder or zip file with two folders of photos, or Kaggle's train/, "
                             "train.zip or dogs-vs-cats.zip, or Microsoft's PetImages/ or "
                             "kagglecatsanddogs_5340.zip (train)")
    origin.add_argument("--download", action="store_true", help="get Microsoft's copy, 825 MB")
    parser.add_argument("--output", type=Path, default="finalize_dogs_vs_cats",
                        help="the folder to build (%(default)s)")
    args = parser.parse_args()
    if args.download:
        return args
    if not args.source.exists():
        parser.error(f"there is no {args.source}: give the path of Kaggle's train folder or "
                     "train.zip, or of two folders of photos, or let --download get the photos")
    if args.source.resolve().is_relative_to(args.output.resolve()):
        parser.error(f"SOURCE is in --output {args.output}: name another folder")
    return args


def main():
    args = parse_args()
    if args.download:
        args.source = download_photos()
    photos = []
    for label, file, name, read in list_photos(args.source, args.output):
        photos.append((args.output / label / file, name, read))
    paths = {path for path, _, _ in photos}
    classes = sorted({path.parent.name for path in paths})
    if classes != ["cats", "dogs"] and args.output.name == "finalize_dogs_vs_cats":
        raise ValueError(f"these are photos of {classes[0]} and {classes[1]}: name with "
                         "--output the folder to build")
    folders = [args.output / label for label in classes]
    needed = 1
    check_folders(folders, paths, needed)
    # A photo of another source would mix with these.
    strangers = [path for path in args.output.rglob("*")
                 if path.suffix.lower() in KERAS_SUFFIXES and path not in paths]
    if strangers:
        raise ValueError(f"{min(strangers)} is not one of these photos: name another folder with "
                         f"--output, or delete {args.output} if an earlier run has written it")
    copied = copy_photos(photos)
    try:
        check_folders(folders, copied, needed)
    except ValueError:
        remove_photos(folders, copied)  # half a dataset would be of no use
        raise
    for folder, count in sorted(Counter(path.parent for path in copied).items()):
        print(f"{folder}: {count} photos")


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Pillow's, about photos that it can still read
    if isinstance(sys.stdout, io.TextIOWrapper):  # for names that the console cannot print
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(f"{sys.argv[0]}: stopped; the same command completes it")
    except (OSError, ValueError) as error:
        sys.exit(f"{sys.argv[0]}: {error}")
