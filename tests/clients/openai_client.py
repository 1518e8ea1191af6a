"""The ``openai`` package against the service: python openai_client.py URL KEY PHOTO."""

import base64
import os
import sys
from pathlib import Path

import numpy as np
import openai

url, key, photo = sys.argv[1:]
client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
(model,) = client.models.list().data
uri = "data:image/jpeg;base64," + base64.b64encode(Path(photo).read_bytes()).decode()


def embed(*inputs: str, **options: object) -> np.ndarray:
    reply = client.embeddings.create(model=model.id, input=list(inputs), **options)
    return np.array([one.embedding for one in reply.data])


texts = embed("a photo of a cat", "a photo of a rocket")
np.testing.assert_allclose(
    texts, embed("a photo of a cat", "a photo of a rocket", encoding_format="float"), atol=1e-6
)
np.testing.assert_allclose(embed("a photo of a cat")[0], texts[0], atol=1e-6)
image = embed(uri)
np.testing.assert_allclose(embed("a photo of a cat", uri)[1], image[0], atol=1e-6)
cat, rocket = (image @ texts.T)[0]
assert cat > rocket or not os.environ["TRAINED"], (cat, rocket)


def refused(kind: type[Exception], ask=client.embeddings.create, **options: object) -> str:
    """Return the message of a request that must fail."""
    given = {"input": "a cat"} if ask == client.embeddings.create else {}
    try:
        ask(**{"model": model.id, **given, **options})
    except kind as error:
        return str(error)
    return "answered"


assert "token numbers" in refused(openai.BadRequestError, input=[[1, 2]])
assert "dimensions" in refused(openai.BadRequestError, dimensions=8)
assert "not 'ada'" in refused(openai.NotFoundError, model="ada")
assert "are not fetched" in refused(openai.BadRequestError, input="https://example.com/cat.jpg")
chat = refused(openai.NotFoundError, client.chat.completions.create, messages=[])
assert "use POST /v1/embeddings" in chat
client.api_key = "wrong"
assert "no API key" in refused(openai.AuthenticationError)
print("ok")
