"""CVAT's serverless functions: clicks or words to masks, answered by a running SAM-CLIP Serve.

Nuclio calls ``interact`` or ``detect`` with CVAT's request. The environment has SAMCLIP_URL,
SAMCLIP_API_KEY if the service requires keys, and for ``detect`` SAMCLIP_LABELS.
"""

import base64
import io
import json
import os
import urllib.error
import urllib.request

import cv2
import numpy as np

TIMEOUT_S = 50  # less than eventTimeout, after which nuclio ends the worker


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Makes redirects errors: the key must not go to another host."""

    def redirect_request(self, request, file, code, message, headers, address):
        text = f"{request.full_url} redirects to {address}: change SAMCLIP_URL"
        raise urllib.error.HTTPError(address, 502, text, headers, io.BytesIO(text.encode()))


service = urllib.request.build_opener(NoRedirect)


def interact(context, event):
    """Return the mask of the object with these points, and in this box if there is one."""
    asked = event.body
    points = [{"x": x, "y": y} for x, y in asked["pos_points"]]
    points += [{"x": x, "y": y, "negative": True} for x, y in asked["neg_points"]]
    prompt = {"points": points}
    if asked.get("obj_bbox"):
        prompt["box"] = [number for corner in asked["obj_bbox"] for number in corner]
    return _answer(context, asked["image"], [prompt], _interaction)


def detect(context, event):
    """Return the objects that the labels name, those above the threshold if there is one."""
    labels = [label.strip() for label in os.environ["SAMCLIP_LABELS"].split(",")]
    prompts = [{"text": label} for label in labels]
    threshold = event.body.get("threshold")
    more = {} if threshold is None else {"min_score": float(threshold)}
    return _answer(context, event.body["image"], prompts, _detections, **more)


def _answer(context, image, prompts, convert, **more):
    """Ask for the masks of the prompts; ``convert`` makes CVAT's answer from each prompt's."""
    body = {"image": image, "prompts": prompts, "encoding": "PNG", **more}
    headers = {"content-type": "application/json"}
    if os.environ.get("SAMCLIP_API_KEY"):
        headers["x-api-key"] = os.environ["SAMCLIP_API_KEY"]
    address = os.environ["SAMCLIP_URL"].rstrip("/") + "/segment"
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)
    kind = "text/plain"
    try:
        with service.open(request, timeout=TIMEOUT_S) as reply:
            answer = json.dumps(convert(json.load(reply)["results"]))
            kind, status = "application/json", 200
    except urllib.error.HTTPError as error:
        answer, status = error.read().decode(), error.code
    except OSError as error:
        answer, status = f"no answer from {address}: {error}", 503
    return context.Response(body=answer, headers={}, content_type=kind, status_code=status)


def _interaction(results):
    mask_HW = _unpack(results[0]["masks"][0])
    return {"points": _outline(mask_HW), "mask": mask_HW.tolist()}


def _detections(results):
    """Return the best mask of each thing."""
    found = []
    sizes = ((result["masks"], result["things"]) for result in results)
    for mask in (
        masks[things.index(one)] for masks, things in sizes for one in dict.fromkeys(things)
    ):
        mask_HW = _unpack(mask)
        outline = _outline(mask_HW)
        if len(outline) < 3:
            continue
        left, top, width, height = cv2.boundingRect(mask_HW)
        inside = mask_HW[top : top + height, left : left + width]
        shape = {"label": mask["label"], "confidence": str(mask["label_score"]), "type": "mask"}
        shape["points"] = [number for point in outline for number in point]
        # The pixels within the box, then the box with its last column and row.
        shape["mask"] = [*inside.ravel().tolist(), left, top, left + width - 1, top + height - 1]
        found.append(shape)
    return found


def _unpack(mask):
    encoded = np.frombuffer(base64.b64decode(mask["png"]), np.uint8)
    return cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE) // 255


def _outline(mask_HW):
    """Return the points of the largest part's outline."""
    found, _ = cv2.findContours(mask_HW, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return max(found, key=cv2.contourArea).reshape(-1, 2).tolist() if found else []
