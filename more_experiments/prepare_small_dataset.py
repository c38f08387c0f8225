"""Copy 2,000 cats and 2,000 dogs into cats_and_dogs_small/{train,validation,test}/{cats,dogs}/.

Of each class, photos 0 to 999 are for training, 1000 to 1499 for validation, 1500 to 1999 for test:
the split of "Keras in Chinese", chapter 6. Its text says 100 training photos in one place;
its code and its output say 1,000. The photos must be prepared: prepare_dataset.py mends or leaves
out those that Keras cannot read; here they are only copied.
"""

import argparse
import filecmp
import os
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")  # what Keras takes for a photo


def find_photos(source):
    """Return {(class, number): path} of the photos cat.N.jpg and dog.N.jpg anywhere in `source`.

    Raises FileNotFoundError where there is no such folder, ValueError where it has a photo twice.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"there is no folder {source}: run prepare_dataset.py first")
    photos = {}
    for path in source.rglob("*.jpg"):
        match = re.fullmatch(r"(cat|dog)\.(\d+)\.jpg", path.name)
        if match and (other := photos.setdefault((match[1], int(match[2])), path)) != path:
            raise ValueError(f"{source} holds a photo twice: {other} and {path}")
    return photos


def split_photos(photos, counts, output):
    """Return {path in `output`: path in SOURCE}: each class is split by the numbers of its photos.

    `counts` is how many numbers train, validation and test take; where one is not in `photos`, a
    photo less is copied. Raises ValueError where a class would have none.
    """
    copies, first = {}, 0
    for split, count in zip(("train", "validation", "test"), counts, strict=True):
        for label in ("cat", "dog"):
            numbers = [n for n in range(first, first + count) if (label, n) in photos]
            if not numbers:
                raise ValueError(f"no {label}s {first} to {first + count - 1}, for {split}: run "
                                 "prepare_dataset.py, or set how many with --counts")
            copies.update({output / split / f"{label}s" / f"{label}.{n}.jpg": photos[label, n]
                           for n in numbers})
        first += count
    return copies


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", type=Path, default="dataset_dogs_vs_cats",
                        metavar="SOURCE", help="what prepare_dataset.py has built (%(default)s)")
    parser.add_argument("--output", type=Path, default="cats_and_dogs_small",
                        help="the folder to build (%(default)s)")
    parser.add_argument("--counts", type=int, nargs=3, default=(1000, 500, 500),
                        metavar=("TRAIN", "VALIDATION", "TEST"),
                        help="photos of each class (1000 500 500)")
    args = parser.parse_args()
    copies = split_photos(find_photos(args.source), args.counts, args.output)
    # Photos of another selection would mix in, and test photos end up in the training split.
    for path in sorted(args.output.rglob("*")):
        if path.suffix.lower() in SUFFIXES and not (
                path in copies and filecmp.cmp(path, copies[path], shallow=False)):
            raise ValueError(f"{path} is not one of these photos: name another folder with "
                             f"--output, or delete {args.output}")
    for path, photo in copies.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            shutil.copyfile(photo, path.with_suffix(".part"))
            os.replace(path.with_suffix(".part"), path)  # whole, should the copy be interrupted
    for folder, count in Counter(path.parent for path in copies).items():
        print(f"{folder}: {count} photos")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(f"{sys.argv[0]}: stopped; the same command completes it")
    except (OSError, ValueError) as error:
        sys.exit(f"{sys.argv[0]}: {error}")
