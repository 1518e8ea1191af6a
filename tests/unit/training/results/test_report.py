from pathlib import Path

from matplotlib.figure import Figure

from samclip_core.io.folder import Folder
from training.results import report

LOSSES = "step\tclip\tname\tgradient_norm\n"
LOSSES += "".join(f"{i}\t0.5\t{3 - i}\t90\n" for i in range(3))
VALIDATION = "step\tloss\n2\t0.75000\n3\t0.50000\n"


def test_curves_are_drawn_of_the_stages_that_there_are(tmp_path: Path, monkeypatch) -> None:
    for stage in ("head-probing", "joint"):
        (tmp_path / f"{stage}.losses.tsv").write_text(LOSSES)
    (tmp_path / "joint.validation.tsv").write_text(VALIDATION)
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    report.curves(Folder(tmp_path), tmp_path / "curves.png")
    probing, joint = drawn[0].axes
    assert (probing.get_title(), joint.get_title()) == ("head-probing", "joint")
    assert [line.get_label() for line in probing.lines] == ["clip", "name"]
    clip, name, validation = joint.lines
    assert name.get_xydata().tolist() == [[0, 3], [1, 2], [2, 1]]
    assert clip.get_ydata().tolist() == [0.5, 0.5, 0.5]
    assert validation.get_xydata().tolist() == [[2, 0.75], [3, 0.5]]
