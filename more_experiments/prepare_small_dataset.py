"""Copy 2,000 photos of each class into cats_and_dogs_small/{train,validation,test}/{cats,dogs}/.

    python more_experiments/prepare_small_dataset.py

Of each class, photos 0 to 999 are for training, 1000 to 1499 for validation, 1500 to 1999 for test:
the split of "Keras in Chinese", chapter 6. (Its text says 100 training photos in one place; its
code and its output say 1,000.) Kaggle's photos have numbers in their names, cat.0.jpg; others are
counted in the order of their names. The photos come from what prepare_dataset.py has built, which
mends or leaves out those that Keras cannot read; here they are only copied. The classes are its two
folders, whatever they are called.
"""

import argparse
import filecmp
import os
import re
import shutil
import sys
from pathlib import Path

KERAS_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")  # what Keras takes for a photo


def find_classes(folder):
    """Return the names of the folders in `folder`, in alphabetical order, without hidden ones."""
    return sorted(path.name for path in folder.glob("[!.]*") if path.is_dir())


def find_photos(source, name):
    """Return {file name: path} of the photos of the class `name` in all splits of `source`.

    They are in the order of their names. Raises ValueError where two have the same name.
    """
    photos = {}
    for path in sorted(source.glob(f"*/{name}/[!.]*"), key=lambda path: path.name):
        if path.suffix.lower() in KERAS_SUFFIXES:
            if path.name in photos:
                raise ValueError(f"{source} holds a photo twice: {photos[path.name]} and {path}")
            photos[path.name] = path
    return photos


def number_photos(photos):
    """Return {number: path} of `photos`, {file name: path}.

    If all are named as Kaggle's, cat.0.jpg or dog.0.jpg, these are their numbers, not all of which
    need be there. Otherwise they are counted from 0.
    """
    kaggle = {}
    for file_name, path in photos.items():
        match = re.fullmatch(r"(cat|dog)\.(\d+)\.jpg", file_name)
        if match:
            kaggle[int(match[2])] = path
    if len(kaggle) == len(photos):
        return kaggle
    return dict(enumerate(photos.values()))


def split_photos(source, counts, output):
    """Return {path in `output`: path in `source`} of the photos to copy.

    Each class is split by the numbers of its photos: `counts` is how many numbers train, validation
    and test take; where one is not there, a photo less is copied. Raises
    ValueError where a class would have none.
    """
    classes = find_classes(source / "train")
    if len(classes) != 2:
        raise ValueError(f"{source} must hold the folder train, and in it two folders of photos, "
                         "one for each class: run prepare_dataset.py first")
    copies = {}
    for name in classes:
        photos = number_photos(find_photos(source, name))
        first = 0
        for split, count in zip(("train", "validation", "test"), counts, strict=True):
            chosen = [photos[n] for n in range(first, first + count) if n in photos]
            if not chosen:
                raise ValueError(f"no {name} {first} to {first + count - 1}, for {split}: run "
                                 "prepare_dataset.py, or set how many with --counts")
            for photo in chosen:
                copies[output / split / name / photo.name] = photo
            first += count
    return copies


def check_output(output, copies):
    """Raise ValueError where `output` holds a photo that is not one of `copies`.

    Photos of another selection would mix in, and test photos end up in the training split.
    """
    for path in sorted(output.rglob("*")):
        if path.suffix.lower() not in KERAS_SUFFIXES:
            continue
        if path not in copies or not filecmp.cmp(path, copies[path], shallow=False):
            raise ValueError(f"{path} is not one of these photos: name another folder with "
                             f"--output, or delete {output}")


def main():
    """Copy the photos, and print how many are in each folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", type=Path, default="dataset_dogs_vs_cats",
                        metavar="SOURCE", help="what prepare_dataset.py has built (%(default)s)")
    parser.add_argument("--output", type=Path, default="cats_and_dogs_small",
                        help="the folder to build (%(default)s)")
    parser.add_argument("--counts", type=int, nargs=3, default=(1000, 500, 500),
                        metavar=("TRAIN", "VALIDATION", "TEST"),
                        help="photos of each class (1000 500 500)")
    args = parser.parse_args()
    copies = split_photos(args.source, args.counts, args.output)
    check_output(args.output, copies)
    counts = {}
    for path, photo in copies.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            part = path.with_suffix(".part")
            shutil.copyfile(photo, part)
            os.replace(part, path)  # whole, should the copy be interrupted
        counts[path.parent] = counts.get(path.parent, 0) + 1
    for folder, count in counts.items():
        print(f"{folder}: {count} photos")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(f"{sys.argv[0]}: stopped; the same command completes it")
    except (OSError, ValueError) as error:
        sys.exit(f"{sys.argv[0]}: {error}")
