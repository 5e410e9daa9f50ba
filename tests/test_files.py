"""A file that is written atomically is the old one or the whole new one; .npz files are read or refused."""

import os
import stat

import numpy as np
import pytest

from wsod_jax.errors import DataError
from wsod_jax.files import atomic_write, read_npz


@pytest.mark.parametrize(("mode", "content"), [("w", "é\r\nb\n"), ("wb", b"\x00\xff")])
def test_a_finished_file_is_there_whole_and_alone(tmp_path, mode, content):
    path = tmp_path / "deep" / "er" / "file"
    for _ in range(2):  # the second time over the first
        with atomic_write(path, mode) as file:
            file.write(content)
            assert path.parent.is_dir()
    expected = content if mode == "wb" else content.encode()
    assert path.read_bytes() == expected
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("old", [None, "old"])
def test_a_failure_in_the_middle_leaves_what_was_there(tmp_path, error, old):
    path = tmp_path / "file"
    if old is not None:
        path.write_text(old)
    before = set(tmp_path.iterdir())
    with pytest.raises(type(error)), atomic_write(path) as file:
        file.write("half of the ne")
        file.flush()
        assert len(list(tmp_path.iterdir())) == len(before) + 1
        raise error
    assert set(tmp_path.iterdir()) == before
    assert old is None or path.read_text() == old


def test_a_disk_that_is_full_when_the_file_is_closed_counts_as_failure(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("moved a file that failed to close"))
    with pytest.raises(OSError), atomic_write(path) as file:  # noqa: PT011
        file.write("buffered")
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, file.fileno())
        os.close(full)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_two_writers_do_not_mix(tmp_path):
    path = tmp_path / "file"
    with atomic_write(path) as first:
        first.write("first")
        with atomic_write(path) as second:
            second.write("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"


def test_permissions_are_those_of_an_ordinary_file(tmp_path):
    with atomic_write(tmp_path / "a") as file:
        file.write("x")
    (tmp_path / "b").write_text("x")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"}
    assert len(modes) == 1


def test_npz_files_are_read_or_refused_with_the_way_out(tmp_path):
    path, array = tmp_path / "x.npz", np.arange(5)
    np.savez_compressed(path, a=array)
    np.testing.assert_array_equal(read_npz(path, advice="")["a"], array)
    whole = path.read_bytes()
    middle = len(whole) // 3  # within the compressed array
    broken = [b"", b"text", whole[:40], whole[:-40]]
    broken.append(
        whole[:middle] + bytes(255 - x for x in whole[middle : middle + 40]) + whole[middle + 40 :]
    )
    for save, value in ((np.save, array), (np.savez, np.array([{}], object))):
        with path.open("wb") as file:
            save(file, value)
        broken.append(path.read_bytes())
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"x\.npz .*Make it anew"):
            read_npz(path, advice="Make it anew.")
    with pytest.raises(DataError, match="none.npz"):
        read_npz(tmp_path / "none.npz", advice="")
