"""tools/web_page.py in a real browser (Debian: apt install chromium; pip install playwright)."""

import base64
import importlib.util
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit
from urllib.request import urlopen

import keras
import numpy as np
import pytest
from conftest import ROOT, assert_refused, command, run_several
from PIL import Image

PAGE, CHELSEA = "tools/web_page.py", ROOT / "sample/chelsea.jpg"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not importlib.util.find_spec("gradio"),
                                reason="pip install -r tools/requirements.txt")
needs_browser = pytest.mark.skipif(
    not BROWSER or not importlib.util.find_spec("playwright"),
    reason="apt install chromium, and pip install playwright")


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def wait_until(condition, seconds):
    """Return whether `condition()` becomes true within so many seconds."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


def is_up(url):
    try:
        return urlopen(url, timeout=5).status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model for which dark photos are cats, bright ones dogs, and black ones neither."""
    photo = keras.Input((8, 8, 3))
    grey = keras.layers.Conv2D(1, 1, kernel_initializer=keras.initializers.Constant(1 / 765))
    brightness = keras.layers.GlobalAveragePooling2D()(grey(photo))
    outputs = [keras.layers.Dense(
        1, "sigmoid", kernel_initializer=keras.initializers.Constant(slope),
        bias_initializer=keras.initializers.Constant(-slope * middle))(brightness)
        for slope, middle in ((30, 0.7), (100, 0.1))]
    path = tmp_path_factory.mktemp("model") / "brightness.keras"
    keras.Model(photo, outputs).save(path)
    return path


def listen_to_ctrl_c():
    """For the child: who runs the tests in the background has Ctrl-C ignored, and children, too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    """The page as a user behind a proxy starts it: (its address, the folder where it puts files).

    The proxies do not answer, and for the second the library that speaks to it is not installed.
    """
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with open(folder.parent / "server.log", "w") as log:
        process = subprocess.Popen(
            command(PAGE, "--model", model, "--port", port), cwd=folder, stdout=log, stderr=log,
            preexec_fn=listen_to_ctrl_c, env={  # noqa: PLW1509
                **os.environ, "TMPDIR": str(folder), "TMP": str(folder), "NO_PROXY": "example.org",
                "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9",
                "ALL_PROXY": "socks5://127.0.0.1:9", "KERAS_BACKEND": "torch",
                "MPLBACKEND": "module://matplotlib_inline.backend_inline"})
    try:
        assert wait_until(lambda: process.poll() is not None or is_up(url), 60)
        assert process.poll() is None, (folder.parent / "server.log").read_text()
        yield url, folder
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert not list(folder.iterdir())
    finally:
        process.kill()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER)
        yield chromium
        chromium.close()


def drop(page, name, content, kind="image/jpeg", times=1):
    """Drop a file on the page as the mouse does, with `content` so many times."""
    file = page.evaluate_handle("""([name, content, kind, times]) => {
        const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File(Array(times).fill(bytes), name, {type: kind}));
        return data;
    }""", [name, base64.b64encode(content).decode(), kind, times])
    page.dispatch_event("[aria-label='Drop an image file here to upload']", "drop",
                        {"dataTransfer": file})


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_in_browser(server, browser, scheme, width, tmp_path):
    url, _ = server
    hosts = set()
    page = browser.new_page(viewport={"width": width, "height": 850}, color_scheme=scheme)
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    page.goto(url)
    drop(page, "cat.jpg", CHELSEA.read_bytes())
    page.get_by_text("cat (99.").wait_for()
    page.screenshot(path=tmp_path / f"cat_{width}_{scheme}.png", full_page=True)
    red = int(page.evaluate("getComputedStyle(document.body).backgroundColor")[4:].split(",")[0])
    assert (red < 50) if scheme == "dark" else (red > 200)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_label("Remove Image").click()
    page.get_by_text("cat (99.").wait_for(state="detached")

    drop(page, "text.jpg", b"This is text.")
    page.get_by_text("This is not a photo").wait_for()
    page.get_by_text("Click to Upload").wait_for()  # ready for the next one
    page.screenshot(path=tmp_path / f"text_{width}_{scheme}.png", full_page=True)

    page.locator(".gallery-item").nth(0).click()  # an example: the same cat
    page.get_by_text("cat (99.").wait_for()
    assert page.get_by_text("This is not a photo").count() == 0
    if width == 1280 and scheme == "light":
        page.get_by_label("Remove Image").click()
        drop(page, "text.txt", b"This is text.", "text/plain")
        page.get_by_text("Only image/* allowed").wait_for()
        drop(page, "big.jpg", CHELSEA.read_bytes(), times=2100)  # 105 MB
        page.get_by_text("exceed the maximum").wait_for()
    page.close()
    assert hosts == {urlsplit(url).netloc}


def test_simultaneous(server, tmp_path):
    """20 requests at once, with photos of all three sorts: all answered, none mixed up."""
    from gradio_client import Client, handle_file

    url, _ = server
    photos = {"cat": CHELSEA, "dog": tmp_path / "bright.png", "neither": tmp_path / "black.png"}
    Image.new("RGB", (60, 40), "white").save(photos["dog"])
    Image.new("RGB", (60, 40), "black").save(photos["neither"])
    client = Client(url, verbose=False, analytics_enabled=False)
    wanted = list(photos) * 7
    with ThreadPoolExecutor(len(wanted)) as pool:
        answers = list(pool.map(lambda label: client.predict(
            handle_file(photos[label]), api_name="/answer"), wanted))
    for label, (_, words, probabilities, heat) in zip(wanted, answers, strict=True):
        assert words.startswith(f"## {label}"), (label, words)
        assert len(probabilities["confidences"]) == 3
        png = base64.b64decode(re.search(r'base64,([^"]+)"', heat)[1])
        with Image.open(io.BytesIO(png)) as image:
            assert image.size == (8, 8)
            red, _, blue = np.asarray(image.convert("RGB"), int).mean(axis=(0, 1))
        # white under red, black under blue; the cat's map speaks against brightness
        assert (red > blue) == (label == "dog"), (label, red, blue)


def test_refused_by_server(server, tmp_path):
    """Who goes round the page: with too large a file, and for a photo that was not sent."""
    import httpx

    url, _ = server
    with pytest.raises(OSError):  # it listens on 127.0.0.1 alone
        socket.create_connection(("127.0.0.2", urlsplit(url).port), timeout=5)
    big = httpx.post(f"{url}/gradio_api/upload", files={"files": ("big.jpg", bytes(106_000_000))})
    assert big.status_code == 413
    shutil.copy(CHELSEA, tmp_path)
    upload = {"path": str(tmp_path / CHELSEA.name)}
    for meta in ({}, {"meta": {"_type": "gradio.FileData"}}):
        call = httpx.post(f"{url}/gradio_api/call/answer", json={"data": [upload | meta]})
        answer = httpx.get(f"{url}/gradio_api/call/answer/{call.json()['event_id']}").text
        assert "event: error" in answer or "no file of this page" in answer
        assert "cat (" not in answer


def test_words_for_what_it_cannot_read(server, tmp_path):
    """The page says why: what decode_photo says, and what a photo may be."""
    from gradio_client import Client, handle_file

    client = Client(server[0], verbose=False, analytics_enabled=False)
    Image.new("L", (20000, 10000)).save(tmp_path / "large.png")
    (tmp_path / "text.jpg").write_text("This is text.")
    (tmp_path / "cut.jpg").write_bytes(CHELSEA.read_bytes()[:5000])
    for name, words in (("large.png", "too large (200 million pixels, limit 178)"),
                        ("text.jpg", "not a photo. I read JPEG, PNG"),
                        ("cut.jpg", "damaged JPEG, more than half is missing")):
        _, said, *_ = client.predict(handle_file(tmp_path / name), api_name="/answer")
        assert words in said, said


def test_errors(server, model, tmp_path):
    url, _ = server
    taken = urlsplit(url).port
    for result, word in zip(run_several(
            (PAGE, "--model", "nowhere.h5"), (PAGE, "--model", CHELSEA),
            (PAGE, "--model", model, "--port", taken), (PAGE, "--port", "99999"), cwd=tmp_path),
            ("nowhere.h5", "chelsea.jpg", f"port {taken} is in use", "--port"), strict=True):
        assert_refused(result, word)


def test_answer_names_the_classes(model):
    """The answer for other classes than dogs and cats, with and without a second output."""
    spec = importlib.util.spec_from_file_location("web_page", ROOT / PAGE)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    network = script.load_model(model)
    alone = keras.Model(network.inputs, network.outputs[0])
    upload = {"path": str(CHELSEA)}
    for model_of, count in ((network, 3), (alone, 2)):
        last_map = script.watch_last_map(model_of)
        _, words, probabilities, _ = script.answer(model_of, last_map, ["ant", "bee"], upload)
        assert words.startswith("## ant (9")
        assert list(probabilities) == ["bee", "ant", "bee or ant at all"][:count]
        for layer in network.layers:  # watch_last_map takes the sigmoids away
            if isinstance(layer, keras.layers.Dense):
                layer.activation = keras.activations.sigmoid


def test_nothing_is_left(server):
    """No file is left some seconds after the last answer, and the examples are still there."""
    _, folder = server
    assert wait_until(lambda: not files(folder), 20), files(folder)
    assert len(list((ROOT / "sample").glob("*.jpg"))) == 1
    assert len(list((ROOT / "sample/test").glob("*.jpg"))) == 4
