"""Label every photograph of a folder; print one line of CSV per photograph.

python examples/label_folder.py PHOTOGRAPHS "a cat" "a dog" "a cup of coffee" > labels.csv
"""

import asyncio
import csv
import os
import sys
from pathlib import Path

import samclip

SERVER = os.environ.get("SAMCLIP_SERVER", "127.0.0.1:9000")
AT_ONCE = 16  # enough for the service to fill its batches


async def main(folder: Path, labels: list[str]) -> None:
    gate, rows = asyncio.Semaphore(AT_ONCE), csv.writer(sys.stdout)

    async def label(client: samclip.AsyncClient, file: Path) -> None:
        async with gate:
            try:
                best = (await client.image(file).classify(labels))[0]
            except samclip.InvalidArgument as error:
                print(f"{file}: {error}", file=sys.stderr)
                return
        rows.writerow([file.name, best.label, f"{best.score:.3f}"])

    async with samclip.AsyncClient(SERVER) as client:
        await asyncio.gather(*(label(client, file) for file in sorted(folder.iterdir())))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2:]))
