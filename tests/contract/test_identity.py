"""What the documents state of the bundled checkpoint is what is bundled."""

from samclip_core.io import checkpoint
from tests.checkout import ROOT


def test_the_policy_states_the_identity_of_the_bundled_checkpoint():
    edge = checkpoint.resolve("edge")
    stated = (ROOT / "SECURITY.md").read_text()
    assert f"`{checkpoint.digest(edge)}`" in stated
    assert f"`{checkpoint.graphs_digest(edge)}`" in stated
