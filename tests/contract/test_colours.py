"""An index has the same colour in Python, whose table the service uses, and in the browser."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from samclip import drawing

from services.gateway.app import PAGES

COLOURS = """
import {colour, heatColour} from "./colours.js";
const each = (count, of) => Array.from({length: count}, (_, index) => of(index));
console.log(JSON.stringify([each(500, colour), each(256, heatColour)]));
"""


def test_the_browser_has_the_colours_of_the_client() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node: install Node.js")
    command = [node, "--input-type=module", "-e", COLOURS]
    printed = subprocess.run(command, cwd=PAGES, capture_output=True, text=True, check=True).stdout
    colours, heat = json.loads(printed)
    np.testing.assert_array_equal(colours, [drawing.colour(index) for index in range(500)])
    np.testing.assert_allclose(heat, drawing.HEAT_256_3, atol=1)  # a half is rounded either way
