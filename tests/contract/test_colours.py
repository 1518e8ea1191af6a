"""An index has the same colour in Python, whose table the service uses, and in the browser."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from samclip import drawing

from services.gateway.app import PAGES

COLOURS = """
import {HEAT_256, colour} from "./colours.js";
console.log(JSON.stringify([Array.from({length: 500}, (_, index) => colour(index)), HEAT_256]));
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
