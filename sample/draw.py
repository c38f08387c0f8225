"""Draw the embedded sample: 400 labelled cartoons of cats and dogs, and four unlabelled ones.

    python sample/draw.py [FOLDER]

They stand in for Kaggle's photos when the scripts are tried or tested, under the same names:
train/cat.0.jpg ... train/dog.199.jpg, and test/1.jpg ... test/4.jpg (cat, dog, dog, cat).
FOLDER is where they go, by default the folder of this script. The drawings are seeded: every
run draws the same.

What tells the classes apart is the animal alone. A cat has slit pupils, whiskers and a small pink
nose, a dog has round pupils, a large black nose and often a tongue. Four cats of five have a broad
head with pointed ears, and four dogs of five a long one with hanging ears: the fifth of each has
the other's. All else (size, place, tilt, colours, background, toys) comes from the same
distributions for both.

They are drawn so that the learning curves of a first run show what such curves are for. The ears
are learned soon. Then a network learns the rest of the training drawings by heart, by toys that
happen to lie there, and that is of no use on the test drawings: it overfits.

Not drawn is chelsea.jpg, a photo of a cat by Stefan van der Walt: chelsea.png of scikit-image's
data (https://scikit-image.org), saved as JPEG of quality 95. Its licence is CC0 (public domain).
"""

import colorsys
import math
import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw

SEED = 1
COUNT = 200  # labelled drawings of each class
OVERSAMPLE = 3  # drawn larger and shrunk, for smooth edges
FURS = [
    (36, 34, 35), (48, 46, 47), (62, 60, 58), (76, 74, 70), (88, 83, 74),
    (52, 34, 23), (69, 46, 26), (82, 59, 33), (88, 71, 49), (64, 45, 37),
]
EYES = [(176, 200, 84), (222, 178, 60), (120, 176, 200), (160, 104, 56)]
PINK = (235, 150, 160)
BLACK = (26, 22, 22)
GREY = (172, 172, 172)
# How bright a colour is, from 0 to 1. The drawings are dark: what is bright in all of them says
# nothing of the class, but it would make the first training steps so large that the loss jumps.
DARK = (0.03, 0.14)  # wall, floor and collar
BRIGHT = (0.35, 0.8)  # toys
ODD = 0.2  # the share of the cats with a dog's head and ears, and of the dogs with a cat's


def shade(colour, factor):
    """Return `colour`, an RGB triple in 0..255, made darker (factor < 1) or lighter (> 1)."""
    return tuple(min(255, round(value * factor)) for value in colour)


def random_colour(rng, brightness):
    """Return an RGB triple in 0..255: any hue, `brightness` is (least, most), in 0..1."""
    hue = rng.random()
    saturation = rng.uniform(0.1, 0.6)
    value = rng.uniform(brightness[0], brightness[1])
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


class Pen:
    """Draws shapes whose places (x, y) are given from the middle of a head, in units of its radius.

    x goes right and y goes down. `middle` is the pixel (x, y) of the head's middle on `image`, and
    `radius` is in pixels. All is turned about the middle by `tilt`, in radians.
    """

    def __init__(self, image, middle, radius, tilt):
        self.draw = ImageDraw.Draw(image)
        self.middle = middle
        self.radius = radius
        self.tilt = tilt

    def place(self, x, y):
        """Return the pixel (x, y) on the image that a place belongs to."""
        turned_x = x * math.cos(self.tilt) - y * math.sin(self.tilt)
        turned_y = x * math.sin(self.tilt) + y * math.cos(self.tilt)
        return self.middle[0] + turned_x * self.radius, self.middle[1] + turned_y * self.radius

    def polygon(self, corners, colour):
        """Fill the shape with these `corners`, a list of places."""
        pixels = [self.place(x, y) for x, y in corners]
        self.draw.polygon(pixels, fill=colour)

    def ellipse(self, x, y, radius_x, radius_y, colour):
        """Fill an ellipse around (x, y): a polygon of 48 corners, since it can be turned."""
        corners = []
        for step in range(48):
            angle = math.tau * step / 48
            corners.append((x + radius_x * math.cos(angle), y + radius_y * math.sin(angle)))
        self.polygon(corners, colour)

    def line(self, points, width, colour=BLACK):
        """Draw a line through `points`, a list of places; `width` is in units of the radius."""
        pixels = [self.place(x, y) for x, y in points]
        self.draw.line(pixels, fill=colour, width=round(width * self.radius), joint="curve")


def draw_background(draw, rng, width, height):
    """Fill the canvas, `width` x `height` pixels, with a wall, a floor, and toys."""
    wall = random_colour(rng, DARK)
    draw.rectangle((0, 0, width, height), fill=wall)
    edge = height * rng.uniform(0.4, 0.9)
    floor = random_colour(rng, DARK)
    draw.rectangle((0, edge, width, height), fill=floor)
    for _ in range(rng.randint(5, 9)):
        draw_toy(draw, rng, width, height)


def draw_toy(draw, rng, width, height):
    """Draw a ball, a box or a tent of any colour at any place."""
    x = rng.uniform(0, width)
    y = rng.uniform(0, height)
    size = rng.uniform(0.03, 0.1) * min(width, height)
    colour = random_colour(rng, BRIGHT)
    kind = rng.choice(("ball", "box", "tent"))
    if kind == "ball":
        draw.ellipse((x - size, y - size, x + size, y + size), fill=colour)
    elif kind == "box":
        draw.rectangle((x - size, y - size, x + size, y + size), fill=colour)
    else:
        draw.polygon([(x - size, y + size), (x + size, y + size), (x, y - size)], fill=colour)


def draw_pointed_ears(pen, rng, fur):
    """Draw two ears that lean in or out, pink inside."""
    lean = rng.uniform(-0.15, 0.2)
    height = rng.uniform(1.3, 1.6)
    for side in (-1, 1):
        tip = side * (0.75 + lean)
        pen.polygon([(side * 0.15, -0.6), (side * 0.95, -0.3), (tip, -height)], fur)
        pen.polygon([(side * 0.38, -0.7), (side * 0.82, -0.48), (tip, 0.15 - height)], PINK)


def draw_hanging_ears(pen, rng, fur):
    """Draw two long ears, about as pink inside as pointed ones."""
    length = rng.uniform(0.5, 0.9)
    for side in (-1, 1):
        pen.ellipse(side * 0.95, length - 0.75, 0.32, length, shade(fur, 1.4))
        pen.ellipse(side * 0.98, length - 0.7, 0.15, length * 0.6, PINK)


def draw_eyes(pen, rng, slit):
    """Draw two eyes, with upright slits for pupils or with round ones."""
    colour = rng.choice(EYES)
    gaze = rng.uniform(-0.06, 0.06)
    for side in (-1, 1):
        x = side * 0.38
        pen.ellipse(x, -0.2, 0.22, 0.19, colour)
        if slit:
            pen.ellipse(x + gaze, -0.2, 0.06, 0.18, BLACK)
        else:
            pen.ellipse(x + gaze, -0.2, 0.13, 0.13, BLACK)


def draw_head(pen, rng, fur, broad):
    """Draw a broad head with pointed ears, or a long one with hanging ears."""
    size = rng.uniform(0.95, 1.1)
    if broad:
        draw_pointed_ears(pen, rng, fur)
        pen.ellipse(0, 0, size, 0.88, fur)
    else:
        pen.ellipse(0, 0, 0.85, size, fur)
        draw_hanging_ears(pen, rng, fur)


def draw_muzzle(pen, rng, fur):
    """Draw what cats and dogs have in common: some have stripes or a patch, all have a muzzle."""
    if rng.random() < 0.4:  # stripes on the forehead
        for x in (-0.2, 0, 0.2):
            pen.line([(x, -0.75), (x * 0.8, -0.5)], 0.08, shade(fur, 0.6))
    if rng.random() < 0.4:  # a patch around one eye
        pen.ellipse(rng.choice((-0.38, 0.38)), -0.2, 0.3, 0.34, shade(fur, 0.7))
    pen.ellipse(0, 0.45, rng.uniform(0.36, 0.5), rng.uniform(0.26, 0.4), shade(fur, 1.2))


def draw_cat_face(pen, rng, fur):
    """Draw slit pupils, three whiskers a side, and a small pink nose."""
    draw_muzzle(pen, rng, fur)
    draw_eyes(pen, rng, slit=True)
    for side in (-1, 1):
        for tilt in (-0.15, 0.05, 0.25):
            pen.line([(side * 0.3, 0.36), (side * 1.2, 0.3 + tilt)], 0.025, GREY)
    pen.polygon([(-0.14, 0.22), (0.14, 0.22), (0, 0.36)], PINK)
    pen.line([(-0.25, 0.5), (0, 0.36), (0.25, 0.5)], 0.05)


def draw_dog_face(pen, rng, fur):
    """Draw round pupils, a large black nose, and for every second dog a tongue."""
    if rng.random() < 0.5:
        pen.ellipse(0, 0.8, 0.16, 0.3, PINK)
    draw_muzzle(pen, rng, fur)
    draw_eyes(pen, rng, slit=False)
    pen.ellipse(0, 0.26, 0.2, 0.13, BLACK)
    pen.line([(0, 0.35), (0, 0.58)], 0.05)
    pen.line([(-0.25, 0.52), (0, 0.6), (0.25, 0.52)], 0.05)


def draw_animal(animal, rng):
    """Return a cartoon of `animal`, "cat" or "dog": an RGB image of 150 to 250 pixels a side."""
    width = rng.randint(150, 250)
    height = rng.randint(150, 250)
    image = Image.new("RGB", (width * OVERSAMPLE, height * OVERSAMPLE))
    draw = ImageDraw.Draw(image)
    draw_background(draw, rng, image.width, image.height)

    # All that follows is placed from the middle of the head, in units of its radius.
    radius = rng.uniform(0.22, 0.3) * min(image.size)
    middle_x = image.width * rng.uniform(0.425, 0.575)
    middle_y = image.height * rng.uniform(0.405, 0.555)
    tilt = rng.uniform(-0.22, 0.22)
    pen = Pen(image, (middle_x, middle_y), radius, tilt)
    fur = shade(rng.choice(FURS), rng.uniform(0.85, 1.1))
    pen.ellipse(0, 1.9, rng.uniform(0.7, 1), 1.3, shade(fur, 0.5))  # body
    pen.ellipse(0, 0.85, 0.62, 0.3, random_colour(rng, DARK))  # collar
    odd = rng.random() < ODD
    if animal == "cat":
        draw_head(pen, rng, fur, broad=not odd)
        draw_cat_face(pen, rng, fur)
    else:
        draw_head(pen, rng, fur, broad=odd)
        draw_dog_face(pen, rng, fur)
    for _ in range(rng.randint(0, 2)):  # may cover a part of the animal
        draw_toy(draw, rng, image.width, image.height)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def main():
    """Draw them all and save them as JPEG files."""
    folder = Path(__file__).parent
    if len(sys.argv) > 1:
        folder = Path(sys.argv[1])
    names = [(f"train/cat.{number}.jpg", "cat") for number in range(COUNT)]
    names += [(f"train/dog.{number}.jpg", "dog") for number in range(COUNT)]
    names += [("test/1.jpg", "cat"), ("test/2.jpg", "dog")]
    names += [("test/3.jpg", "dog"), ("test/4.jpg", "cat")]
    (folder / "train").mkdir(parents=True, exist_ok=True)
    (folder / "test").mkdir(parents=True, exist_ok=True)
    rng = random.Random(SEED)
    for name, animal in names:
        drawing = draw_animal(animal, rng)
        drawing.save(folder / name, quality=70)
    print(f"{len(names)} cartoons in {folder}")


if __name__ == "__main__":
    main()
