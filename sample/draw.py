"""Draw the embedded sample: 200 labelled cartoons of cats and dogs, and four unlabelled ones.

    python sample/draw.py [FOLDER]

They stand in for Kaggle's photos when the scripts are tried or tested, under the same names:
train/cat.0.jpg ... train/dog.99.jpg, and test/1.jpg ... test/4.jpg (cat, dog, dog, cat).
FOLDER is where they go, by default the folder of this script. The drawings are seeded: every
run draws the same. Size, position, scale, colours and background come from the same
distributions for both classes, so that only the animal itself tells them apart.

Not drawn is chelsea.jpg, a photo of a cat by Stefan van der Walt: chelsea.png of scikit-image's
data (https://scikit-image.org), saved as JPEG of quality 95. Its licence is CC0 (public domain).
"""

import colorsys
import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw

SEED = 1
OVERSAMPLE = 3  # drawn larger and shrunk, for smooth edges
FURS = [(60, 56, 54), (92, 84, 80), (120, 120, 126), (140, 96, 60), (150, 110, 90), (170, 120, 70)]
PINK, RED, GREEN = (235, 150, 160), (214, 60, 70), (190, 214, 90)
BLACK, WHITE = (30, 26, 26), (250, 250, 250)


def shade(colour, factor):
    """Return `colour`, an RGB triple in 0..255, made darker (factor < 1) or lighter (> 1)."""
    return tuple(min(255, round(value * factor)) for value in colour)


def draw_background(draw, rng, width, height):
    """Fill the canvas, `width` x `height` pixels, with a pale sky, ground and some balls."""
    sky, ground, *balls = (
        shade(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.25), rng.uniform(0.8, 0.95)), 255)
        for _ in range(rng.randint(2, 6))
    )
    draw.rectangle((0, 0, width, height), fill=sky)
    draw.rectangle((0, height * rng.uniform(0.4, 0.9), width, height), fill=ground)
    for ball in balls:
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        radius = rng.uniform(0.03, 0.15) * min(width, height)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ball)


def draw_animal(animal, rng):
    """Return a cartoon of `animal`, "cat" or "dog": an RGB image of 150 to 500 pixels a side."""
    width = round(150 * (500 / 150) ** rng.random())
    height = round(min(500, max(150, width * rng.uniform(0.7, 1.4))))
    image = Image.new("RGB", (width * OVERSAMPLE, height * OVERSAMPLE))
    draw = ImageDraw.Draw(image)
    draw_background(draw, rng, *image.size)

    fur = shade(rng.choice(FURS), rng.uniform(0.85, 1.1))
    gaze = rng.uniform(-0.06, 0.06)
    # All that follows is placed from the middle of the head, in units of its radius.
    radius = rng.uniform(0.24, 0.32) * min(image.size)
    middle_x = image.width * rng.uniform(0.44, 0.56)
    middle_y = image.height * rng.uniform(0.44, 0.56)

    def place(*points):
        return [(middle_x + x * radius, middle_y + y * radius) for x, y in points]

    def ellipse(x, y, radius_x, radius_y, fill):
        draw.ellipse(place((x - radius_x, y - radius_y), (x + radius_x, y + radius_y)), fill=fill)

    def polygon(*corners, fill):
        draw.polygon(place(*corners), fill=fill)

    def line(*points, width):
        draw.line(place(*points), fill=BLACK, width=round(width * radius), joint="curve")

    ellipse(0, 1.9, 0.85, 1.2, fur)  # body
    if animal == "cat":
        for side in (-1, 1):  # pointed ears
            polygon((side * 0.2, -0.7), (side * 0.95, -0.3), (side * 0.85, -1.55), fill=fur)
            polygon((side * 0.38, -0.72), (side * 0.82, -0.48), (side * 0.76, -1.25), fill=PINK)
        ellipse(0, 0, 1.05, 0.9, fur)
        for side in (-1, 1):  # slit pupils and whiskers
            ellipse(side * 0.42, -0.15, 0.24, 0.2, GREEN)
            ellipse(side * 0.42 + gaze, -0.15, 0.07, 0.19, BLACK)
            for tilt in (-0.12, 0.05, 0.22):
                line((side * 0.3, 0.36), (side * 1.35, 0.3 + tilt), width=0.03)
        polygon((-0.13, 0.18), (0.13, 0.18), (0, 0.34), fill=PINK)
        line((-0.25, 0.48), (0, 0.34), (0.25, 0.48), width=0.05)
    else:
        ellipse(0, 0, 0.85, 1.05, fur)
        for side in (-1, 1):  # hanging ears and round eyes
            ellipse(side * 0.95, 0.1, 0.32, 0.85, shade(fur, 0.7))
            ellipse(side * 0.32, -0.3, 0.17, 0.17, WHITE)
            ellipse(side * 0.32 + gaze, -0.28, 0.1, 0.1, BLACK)
        ellipse(0, 0.85, 0.2, 0.38, RED)  # tongue
        ellipse(0, 0.45, 0.52, 0.45, shade(fur, 1.35))  # muzzle
        ellipse(0, 0.22, 0.24, 0.17, BLACK)
        line((0, 0.35), (0, 0.65), width=0.05)
        line((-0.3, 0.6), (0, 0.68), (0.3, 0.6), width=0.05)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def main():
    """Draw all 204 and save them as JPEG files."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    rng = random.Random(SEED)
    names = [(f"train/{animal}.{i}.jpg", animal) for animal in ("cat", "dog") for i in range(100)]
    names += [(f"test/{i}.jpg", animal) for i, animal in enumerate(("cat", "dog", "dog", "cat"), 1)]
    for name, animal in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        draw_animal(animal, rng).save(folder / name, quality=70)
    print(f"{len(names)} cartoons in {folder}")


if __name__ == "__main__":
    main()
