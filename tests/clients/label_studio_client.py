"""Label Studio with the service as its backend.

python label_studio_client.py LABEL_STUDIO TOKEN SERVICE KEY PHOTO

Labels a photograph by clicks, a rectangle and words, through the API that its page uses.
"""

import os
import sys
import time

import numpy as np
import requests
from label_studio_sdk.converter.brush import decode_rle

url, token, service, key, photo = sys.argv[1:]
session = requests.Session()
session.headers["Authorization"] = f"Token {token}"
PAGE = """<View><Image name="photo" value="$image"/>
<KeyPointLabels name="click" toName="photo" smart="true"><Label value="cat"/></KeyPointLabels>
<RectangleLabels name="box" toName="photo" smart="true"><Label value="cat"/></RectangleLabels>
{answer}</View>"""
BRUSH = '<BrushLabels name="brush" toName="photo"><Label value="cat"/></BrushLabels>'
POLYGON = '<PolygonLabels name="ring" toName="photo"><Label value="cat"/></PolygonLabels>'
CHOICES = """<Choices name="kind" toName="photo"><Choice value="a photo of a rocket"/>
<Choice value="a photo of a cat"/></Choices>"""


def ask(method, path, **options):
    reply = session.request(method, url + path, timeout=120, **options)
    assert reply.ok, (path, reply.status_code, reply.text)
    return reply.json()


def set_up(answer):
    """Make a project with the photograph and the backend; return the ids of backend and task."""
    config = PAGE.format(answer=answer)
    project = ask("POST", "/api/projects", json={"title": "cats", "label_config": config})["id"]
    with open(photo, "rb") as file:
        ask("POST", f"/api/projects/{project}/import", files={"cat.jpg": file})
    for _ in range(60):  # the import may go on in the background
        tasks = ask("GET", f"/api/tasks?project={project}")["tasks"]
        if tasks:
            break
        time.sleep(0.5)
    made = {
        "project": project,
        "url": f"{service}/adapters/label-studio",
        "is_interactive": True,
        "auth_method": "BASIC_AUTH",
        "basic_auth_user": "any",
        "basic_auth_pass": key,
    }
    return ask("POST", "/api/ml", json=made)["id"], tasks[0]["id"]


def region(kind, positive=1, **value):
    return {
        "id": "r",
        "type": kind,
        "value": {**value, kind: ["cat"]},
        "is_positive": positive,
        "original_width": 451,
        "original_height": 300,
        "from_name": "click" if kind.startswith("key") else "box",
        "to_name": "photo",
    }


def answer(ids, *regions):
    model, task = ids
    body = {"task": task, "context": {"result": list(regions)}}
    reply = ask("POST", f"/api/ml/{model}/interactive-annotating", json=body)
    assert not reply.get("errors"), reply
    return reply["data"]["result"]


def mask_of(result):
    """Return a brush's mask, read by Label Studio's own library."""
    (one,) = result
    assert (one["type"], one["value"]["brushlabels"]) == ("brushlabels", ["cat"])
    assert (one["original_width"], one["original_height"]) == (451, 300)
    return decode_rle(one["value"]["rle"]).reshape(300, 451, 4)[..., 3] > 0


def encodings():
    """Return how many images the service found in no cache."""
    text = requests.get(f"{service}/metrics", headers={"x-api-key": key}, timeout=60).text
    lines = [line for line in text.splitlines() if line.startswith("samclip_cache_total{")]
    return sum(float(line.split()[-1]) for line in lines if 'outcome="miss"' in line)


CLICK = region("keypointlabels", x=44.3, y=50.0, width=0.5)
OUTSIDE = region("keypointlabels", positive=0, x=1.0, y=1.0, width=0.5)
BOX = region("rectanglelabels", x=3, y=0, width=82, height=99.5)
ids = set_up(BRUSH)
before = encodings()
first = mask_of(answer(ids, CLICK))
encoded = encodings()
assert encoded > before
second = mask_of(answer(ids, CLICK, OUTSIDE))
boxed = mask_of(answer(ids, BOX))
assert encodings() == encoded  # later clicks need no encoding
(choice,) = [one for one in answer(set_up(CHOICES)) if one["type"] == "choices"]
(chosen,) = choice["value"]["choices"]
assert chosen in CHOICES
if os.environ["TRAINED"]:
    assert first[150, 200]
    assert 0.05 < first.mean() < 0.9
    assert second[150, 200]
    assert not second[3, 4]
    assert boxed[150, 200]
    assert chosen == "a photo of a cat"
rings = answer(set_up(POLYGON), CLICK)
points = np.array(max((one["value"]["points"] for one in rings), key=len))
assert points.min() >= 0
assert points.max() <= 100
print("ok")
