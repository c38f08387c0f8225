"""Seconds from the shell to the answer for one photo: predict.py and tools/predict_lite.py.

    python tests/benchmarks/lite.py MODEL.keras MODEL.tflite [PHOTO]     (needs LiteRT)

The whole process, start to end, five times by turns; the median counts.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

TOP = Path(__file__).parents[2]
photo = sys.argv[3] if len(sys.argv) > 3 else str(TOP / "sample/chelsea.jpg")
seconds = {"predict.py": [], "tools/predict_lite.py": []}
for _ in range(5):
    for (script, times), model in zip(seconds.items(), sys.argv[1:3], strict=True):
        start = time.perf_counter()
        subprocess.run([sys.executable, str(TOP / script), photo, "--model", model], check=True)
        times.append(time.perf_counter() - start)
for script, times in seconds.items():
    print(f"{script}: {statistics.median(times):.2f} s")
whole, lite = map(statistics.median, seconds.values())
print(f"ratio: {whole / lite:.1f}")
