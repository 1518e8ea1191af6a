"""FiftyOne with the service as its model: python fiftyone_client.py GRPC KEY PHOTO.

The data set is left out where FiftyOne can start no MongoDB.
"""

import os
import sys

import fiftyone as fo
import fiftyone.core.models as fom
import numpy as np
import samclip
from PIL import ExifTags, Image
from samclip.fiftyone import Model

address, key, photo = sys.argv[1:]
trained = bool(os.environ["TRAINED"])
pixels = np.asarray(Image.open(photo).convert("RGB"))
height, width = pixels.shape[:2]
client = samclip.Client(address, api_key=key)

classifier = Model(client, labels=["a photo of a rocket", "a photo of a cat"])
assert isinstance(classifier, fom.Model)
image = classifier.embed(pixels)
kind = classifier.labels[np.argmax(classifier.embed_prompts(classifier.labels) @ image)]
assert classifier.predict(pixels).label == kind
assert kind == "a photo of a cat" or not trained
assert abs(np.linalg.norm(image) - 1) < 1e-2

finder, segmenter = Model(client, texts=["a cat"]), Model(client)
found = finder.predict(pixels).detections
assert {one.label for one in found} == {"a cat"}
assert len(found) == 1 or not trained
box = fo.Detection(label="cat", bounding_box=[15 / width, 0, 370 / width, 299 / height])
click = fo.Keypoint(label="cat", points=[(200 / width, 150 / height)])
sample = fo.Sample(filepath=photo)
sample["box"], sample["click"] = fo.Detections(detections=[box]), fo.Keypoints(keypoints=[click])


def segmented(field):
    segmenter.needs_fields = {"prompt_field": field}
    (one,) = segmenter.predict(pixels, sample=sample).detections
    x, y, w, h = one.bounding_box
    left, top = round(x * width), round(y * height)
    assert one.mask.shape == (round(h * height), round(w * width))
    assert one.mask[150 - top, 200 - left] or not trained
    assert one.label == "cat"
    return one


segmented("box"), segmented("click")
try:
    dataset = fo.Dataset()
except fo.core.config.FiftyOneConfigError as error:
    print("no data set:", error)
else:
    turned = f"{photo}.turned.jpg"  # as cameras store it: on its side, with a tag that says so
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.open(photo).transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif, quality=95)
    dataset.add_samples([sample, fo.Sample(filepath=turned, click=sample["click"].copy())])
    dataset.compute_metadata()
    dataset.apply_model(classifier, label_field="kind")
    dataset.apply_model(segmenter, label_field="mask", prompt_field="click")
    assert dataset.first()["kind"].label == kind
    sizes = {(one.metadata.width, one.metadata.height) for one in dataset}
    assert sizes == {(width, height)}  # the frame in which FiftyOne shows both
    upright, other = (one["mask"].detections[0] for one in dataset)
    np.testing.assert_allclose(other.bounding_box, upright.bounding_box, atol=0.05)
    for vector in dataset.compute_embeddings(classifier):
        np.testing.assert_allclose(vector, image, atol=2e-2)
    dataset.delete()
    print("with a data set")
print("ok")
