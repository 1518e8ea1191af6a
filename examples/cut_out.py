"""Cut the object in a box out of a photograph, with a transparent background.

python examples/cut_out.py cat.jpg 15 0 385 299 cat.png
"""

import os
import sys

import samclip

SERVER = os.environ.get("SAMCLIP_SERVER", "127.0.0.1:9000")


def main(source: str, box: tuple[float, float, float, float], target: str) -> None:
    with samclip.Client(SERVER) as client:
        (mask,) = client.image(source).segment(box=box)
    mask.cutout().save(target)
    print(f"{target}: {mask.area} pixels, predicted IoU {mask.predicted_iou:.2f}")


if __name__ == "__main__":
    x_min, y_min, x_max, y_max = map(float, sys.argv[2:6])
    main(sys.argv[1], (x_min, y_min, x_max, y_max), sys.argv[6])
