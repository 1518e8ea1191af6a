import pytest

from samclip_core.io.files import replacing


def test_a_file_is_replaced_as_a_whole(tmp_path):
    file = tmp_path / "file"
    file.write_text("old")
    with replacing(file) as partial:
        partial.write_text("ne")
        assert file.read_text() == "old"
        partial.write_text("new")
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    file = tmp_path / "file"
    file.write_text("old")

    def write() -> None:
        with replacing(file) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
