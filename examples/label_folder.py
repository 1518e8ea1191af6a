"""Label every photograph of a folder; print one line of CSV per photograph.

python examples/label_folder.py PHOTOGRAPHS "a cat" "a dog" "a cup of coffee" > labels.csv
"""

import csv
import os
import sys
from pathlib import Path

import samclip

SERVER = os.environ.get("SAMCLIP_SERVER", "127.0.0.1:9000")
AT_ONCE = 16  # enough for the service to fill its batches


def main(folder: str, labels: list[str]) -> None:
    rows = csv.writer(sys.stdout)
    with samclip.Client(SERVER) as client:
        photos = client.images(folder, at_once=AT_ONCE)  # broken files are named on stderr
        for photo, scores in photos.classify(labels):
            best = scores[0]
            rows.writerow([Path(photo.name).name, best.label, f"{best.score:.3f}"])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
