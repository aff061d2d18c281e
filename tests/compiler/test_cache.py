"""The cache on disk: ours alone, whole or nothing, bounded; no failure of the disk is an error."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import platformdirs
import pytest

from tests.compiler.by_hand import said
from tests.house.source import fresh
from throughtime.cli import main
from throughtime.compiler.llvm import cache


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an empty cache, which is not there yet."""
    monkeypatch.setenv("THROUGHTIME_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "objects"


def refused() -> str:
    """Why the folder is not used; nothing is read, written or deleted then."""
    found = cache.show()
    assert cache.read("key") is None
    cache.write("refused", b"object")
    assert cache.clear() == 0
    assert (found.files, found.bytes) == (0, 0)
    assert found.refused is not None
    return found.refused


def test_what_was_kept_is_found() -> None:
    assert cache.read("key") is None
    cache.write("key", b"object")
    cache.write("other", b"")
    assert cache.read("key") == b"object"
    assert cache.read("other") == b""
    cache.write("key", b"another")
    assert cache.read("key") == b"another"


def test_the_folder_is_made_for_its_user_alone(folder: Path) -> None:
    before = os.umask(0)
    try:
        cache.write("key", b"object")
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder.stat().st_uid == os.getuid()
    assert [file.stat().st_mode & 0o777 for file in folder.iterdir()] == [0o600]


def test_without_a_variable_it_is_the_platforms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("THROUGHTIME_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.show().folder == platformdirs.user_cache_path("throughtime") / "objects"
    cache.write("key", b"object")
    assert cache.read("key") == b"object"


def test_a_user_without_a_home_goes_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("THROUGHTIME_CACHE")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: Path("~/.cache") / name)
    cache.write("key", b"object")
    assert cache.read("key") is None
    assert not list(tmp_path.iterdir())
    assert refused().startswith("this user has no home folder; name a folder in")


def test_an_empty_variable_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THROUGHTIME_CACHE", "")
    assert refused() == "THROUGHTIME_CACHE is empty, so nothing is kept on disk"
    assert cache.show().folder is None


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o702, 0o701])
def test_a_folder_open_to_others_is_not_used(folder: Path, mode: int) -> None:
    cache.write("key", b"object")
    folder.chmod(mode)
    assert (
        refused() == f"its mode is {mode:o}, open to other users; close it with: chmod 700 {folder}"
    )
    folder.chmod(0o700)
    assert cache.read("key") == b"object"
    assert len(list(folder.iterdir())) == 1


def test_a_folder_of_another_user_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write("key", b"object")
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    assert refused().startswith("it belongs to another user; name a folder of your own in")
    assert len(list(folder.iterdir())) == 1


def test_a_file_in_its_place_is_not_used(folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_text("mine")
    assert refused() == "it is not a folder; name another in THROUGHTIME_CACHE"
    assert folder.read_text() == "mine"


def test_a_folder_below_a_file_is_not_used(folder: Path) -> None:
    folder.parent.write_text("mine")
    assert refused().startswith("it cannot be read (Not a directory); name another folder in")


@pytest.mark.parametrize("length", [0, 1, 20, 40, 52, 53, 60])
def test_a_truncated_object_is_deleted(folder: Path, length: int) -> None:
    cache.write("key", b"the object")
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:length])
    assert cache.read("key") is None
    assert list(folder.iterdir()) == []


def test_an_object_with_any_byte_changed_is_deleted(folder: Path) -> None:
    cache.write("key", b"the object")
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert cache.read("key") is None
        assert not file.exists()
    file.write_bytes(whole + b"\0")
    assert cache.read("key") is None


def test_an_object_under_another_name_is_deleted(folder: Path) -> None:
    cache.write("key", b"the object")
    (file,) = folder.iterdir()
    file.rename(folder / "other.object")
    assert cache.read("other") is None
    assert list(folder.iterdir()) == []


def test_what_was_used_longest_ago_goes_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for age, key in enumerate("cba"):
        cache.write(key, bytes(100))
        os.utime(folder / f"{key}.object", ns=(0, 10**18 - age))
    each = cache.show().bytes // 3
    assert cache.read("a") is not None  # the oldest, and now used last
    monkeypatch.setattr(cache, "LIMIT_BYTES", 3 * each)
    cache.write("d", bytes(100))
    assert [key for key in "abcd" if cache.read(key) is not None] == ["a", "c", "d"]
    assert cache.show().bytes == 3 * each


def test_what_a_killed_process_left_is_deleted_in_time(folder: Path) -> None:
    cache.write("key", b"object")
    old, new = folder / "old.part", folder / "new.part"
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - 3700,) * 2)
    cache.write("other", b"object")
    assert not old.exists()
    assert new.exists()
    assert cache.show().files == 2
    assert cache.clear() == 2
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("call", ["replace", "fdopen"])
def test_a_full_disk_is_tolerated(folder: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    cache.write("key", b"object")

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    cache.write("other", b"object")
    assert [file.name for file in folder.iterdir()] == ["key.object"]
    assert cache.read("key") == b"object"


def test_a_read_only_folder_is_read(folder: Path) -> None:
    cache.write("key", b"object")
    folder.chmod(0o500)
    code = """
from throughtime.compiler.llvm import cache
# A user who may override what modes forbid gives that up first.
header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert ctypes.CDLL(None).capset(header, nothing) == 0
cache.write("other", b"object")
print(cache.read("key"), cache.read("other"))
try: cache.clear()
except PermissionError as error: print("refused")
"""
    assert said(code).split() == ["b'object'", "None", "refused"]
    folder.chmod(0o700)
    assert [file.name for file in folder.iterdir()] == ["key.object"]


def test_no_folder_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THROUGHTIME_CACHE", "/proc/no/such")
    cache.write("key", b"object")
    assert cache.read("key") is None
    assert cache.clear() == 0


def test_no_reader_ever_sees_half_an_object() -> None:
    code = """
import os
from throughtime.compiler.llvm import cache
def work(number):
    for turn in range(100):
        if turn % 8 == number:
            cache.clear()
        cache.write("key", bytes([number]) * 30000)
        found = cache.read("key")
        assert found is None or found == found[:1] * 30000
children = []
for number in range(8):
    child = os.fork()
    if not child:
        try: work(number)
        except BaseException: os._exit(1)
        os._exit(0)
    children.append(child)
print(*(os.waitpid(child, 0)[1] for child in children))
"""
    assert said(code).split() == ["0"] * 8


def test_the_command_shows_and_clears(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache.write("key", b"object")
    bytes_ = (folder / "key.object").stat().st_size
    assert main(["cache"]) == 0
    assert capsys.readouterr().out == f"folder   {folder}\nobjects  1\nbytes    {bytes_}\n"
    assert main(["cache", "--clear"]) == 0
    said = capsys.readouterr().out
    assert said == f"folder   {folder}\ndeleted  1\nobjects  0\nbytes    0\n"


def test_the_command_says_why_a_folder_is_not_used(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    assert main(["cache", "--clear"]) == 0
    assert capsys.readouterr().out == (
        f"folder   {folder}\n"
        f"not used: its mode is 755, open to other users; close it with: chmod 700 {folder}\n"
    )


def test_the_command_needs_no_compiler() -> None:
    code = "import sys, throughtime.cli as c; c.main(['cache']); print('llvmlite' in sys.modules)"
    assert fresh(code).splitlines()[-1] == "False"
