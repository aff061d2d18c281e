"""The cache on disk: ours alone, whole or nothing, bounded; no failure of the disk is an error."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import platformdirs
import pytest

from tests.compiler.by_hand import said
from tests.house.source import fresh
from throughtime.cli import main
from throughtime.compiler.runtime import cache


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an empty cache, which is not there yet."""
    monkeypatch.setenv("THROUGHTIME_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "objects"


def refused() -> str:
    """Why the folder is not used; nothing is read or written then."""
    found = cache.show()
    assert cache.read("key") is None
    cache.write("refused", b"object")
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
    for version in (Path("~/.cache/throughtime"), RuntimeError("could not determine the home")):

        def path(name: str, version: Path | RuntimeError = version) -> Path:
            if isinstance(version, Path):
                return version
            raise version

        monkeypatch.setattr(platformdirs, "user_cache_path", path)
        cache.write("key", b"object")
        assert cache.read("key") is None
        assert cache.clear() == cache.Cleared(0, ())
        assert not list(tmp_path.iterdir())
        assert refused().startswith("this user has no home folder; name a folder in")


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("THROUGHTIME_CACHE", "~/x")
    monkeypatch.setenv("HOME", str(tmp_path))
    cache.write("key", b"object")
    assert cache.read("key") == b"object"
    assert cache.show().folder == tmp_path / "x" / "objects"
    monkeypatch.setenv("THROUGHTIME_CACHE", "~nobody-of-this-name/x")
    assert refused().startswith("this user has no home folder; name a folder in")
    monkeypatch.setenv("THROUGHTIME_CACHE", "~/x")
    monkeypatch.setenv("HOME", "relative")
    assert refused().startswith("this user has no home folder; name a folder in")
    assert not list((tmp_path / "here").iterdir())


NOBODY = """
import os, pwd, torch, throughtime
try:
    print(pwd.getpwuid(os.getuid()))
except KeyError:
    print("unknown")
net = throughtime.GRU(5, 8)
net(torch.randn(6, 2, 5))[0].sum().backward()
net.stream()(torch.randn(5))
from throughtime.cli import main
print(main(["cache"]), main(["cells"]), main(["train", "latch", "--help"]))
"""


@pytest.mark.parametrize("home", [None, "", "/nonexistent"])
def test_a_user_whom_the_system_does_not_know(tmp_path: Path, home: str | None) -> None:
    unshare = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"]).returncode:
        pytest.skip("this machine lets nobody become an unknown user")
    environment = {"PATH": os.environ["PATH"]} | ({} if home is None else {"HOME": home})
    done = subprocess.run(
        [*unshare, sys.executable, "-W", "error", "-c", NOBODY],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "unknown" and lines[-1] == "0 0 0"
    assert not list(tmp_path.iterdir())


def test_an_empty_variable_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THROUGHTIME_CACHE", "")
    assert refused() == "THROUGHTIME_CACHE is empty, so nothing is kept on disk"
    assert cache.show().folder is None


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o702, 0o701])
def test_a_folder_open_to_others_is_not_used(folder: Path, mode: int) -> None:
    cache.write("key", b"object")
    folder.chmod(mode)
    assert refused() == (
        f"its mode is {mode:o}, open to other users, who may have left code in it; empty and close "
        "it with: throughtime cache --clear; or name another folder in THROUGHTIME_CACHE"
    )
    assert len(list(folder.iterdir())) == 1
    assert cache.clear() == cache.Cleared(1, ())
    assert folder.stat().st_mode & 0o777 == mode & 0o700
    cache.write("key", b"object")
    assert cache.read("key") == b"object"


def planted(file: Path, kind: str) -> None:
    """Makes a whole object into one that another user can have left or can change."""
    content = file.read_bytes()
    if kind == "of another user":
        os.chown(file, os.getuid() + 1, -1)
    elif kind.startswith("mode"):
        file.chmod(int(kind.removeprefix("mode "), 8))
    elif kind == "a second name":
        os.link(file, file.with_suffix(".second"))
    else:
        file.unlink()
        elsewhere = file.with_suffix(".elsewhere")
        elsewhere.write_bytes(content)
        {"a link": lambda: file.symlink_to(elsewhere), "a pipe": lambda: os.mkfifo(file)}[kind]()


@pytest.mark.parametrize(
    "kind", ["of another user", "mode 620", "mode 602", "a second name", "a link", "a pipe"]
)
def test_an_object_that_another_user_can_have_written_is_not_read(folder: Path, kind: str) -> None:
    if kind == "of another user" and os.getuid():
        pytest.skip("only root can give a file away")
    cache.write("key", b"object")
    planted(folder / "key.object", kind)
    assert cache.read("key") is None
    cache.write("key", b"object")
    assert cache.read("key") == b"object"
    assert (folder / "key.object").stat().st_mode & 0o777 == 0o600


def test_an_object_of_root_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.getuid():
        pytest.skip("only root can make such a file")
    cache.write("key", b"object")
    os.chown(folder, 1234, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    assert cache.read("key") == b"object"


def test_a_folder_named_like_an_object_stops_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for key in "ac":
        cache.write(key, b"object")
    (folder / "b.object" / "below").mkdir(parents=True)
    (folder / "b.part").mkdir()
    assert cache.read("b") is None
    cache.write("b", b"object")
    assert cache.read("b") is None
    assert cache.show().files == 2
    assert main(["cache", "--clear"]) == 2
    said = capsys.readouterr()
    assert said.out == f"folder   {folder}\ndeleted  2\nobjects  0\nbytes    0\n"
    assert said.err == (
        f"error: {folder} has what cannot be deleted: b.object (Is a directory), "
        "b.part (Is a directory); remove it by hand\n"
    )
    assert (folder / "b.object" / "below").exists()


def test_no_descriptor_is_left_open(folder: Path) -> None:
    cache.write("key", b"object")
    (folder / "b.object").mkdir()
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        cache.read("key"), cache.read("b"), cache.read("none")
        cache.write("b", b"object")
        cache.show(), cache.clear()
        folder.chmod(0o755)
        refused(), cache.read("key")
        folder.chmod(0o700)
    assert os.listdir("/proc/self/fd") == before


def test_a_folder_of_another_user_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write("key", b"object")
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    assert cache.clear() == cache.Cleared(0, ())
    assert refused().startswith("it belongs to another user; name a folder of your own in")
    assert len(list(folder.iterdir())) == 1


def test_a_file_in_its_place_is_not_used(folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_text("mine")
    said = "it is a file or a link, and no folder; name another in THROUGHTIME_CACHE"
    assert refused() == said
    assert cache.clear() == cache.Cleared(0, ())
    assert folder.read_text() == "mine"
    folder.rename(folder.parent / "file")
    folder.symlink_to(folder.parent / "elsewhere")
    (folder.parent / "elsewhere").mkdir(0o700)
    (folder.parent / "elsewhere" / "key.object").write_text("mine")
    assert refused() == said
    assert cache.clear() == cache.Cleared(0, ())
    assert (folder.parent / "elsewhere" / "key.object").exists()


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
    assert cache.clear() == cache.Cleared(2, ())
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("call", ["replace", "fdopen"])
def test_a_full_disk_is_tolerated(folder: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    cache.write("key", b"object")

    def full(*arguments: object, **names: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    cache.write("other", b"object")
    assert [file.name for file in folder.iterdir()] == ["key.object"]
    assert cache.read("key") == b"object"


def test_a_read_only_folder_is_read(folder: Path) -> None:
    cache.write("key", b"object")
    folder.chmod(0o500)
    code = """
from throughtime.compiler.runtime import cache
# A user who may override what modes forbid gives that up first.
header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert ctypes.CDLL(None).capset(header, nothing) == 0
cache.write("other", b"object")
print(cache.read("key"), cache.read("other"))
print(*cache.clear().left)
"""
    assert said(code) == "b'object' None\nkey.object (Permission denied)\n"
    assert folder.stat().st_mode & 0o777 == 0o500
    folder.chmod(0o700)
    assert [file.name for file in folder.iterdir()] == ["key.object"]


def test_no_folder_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THROUGHTIME_CACHE", "/proc/no/such")
    cache.write("key", b"object")
    assert cache.read("key") is None
    assert cache.clear() == cache.Cleared(0, ())


def test_no_reader_ever_sees_half_an_object() -> None:
    code = """
import os, shutil
from throughtime.compiler.runtime import cache
def work(number):
    for turn in range(100):
        if turn % 8 == number:
            assert not cache.clear().left
        if turn % 32 == number:
            shutil.rmtree(cache.show().folder, ignore_errors=True)
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
    assert main(["cache"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"folder   {folder}\nnot used: its mode is 755, open to other users, ")
    assert main(["cache", "--clear"]) == 0
    said = capsys.readouterr().out
    assert said == f"folder   {folder}\ndeleted  0\nobjects  0\nbytes    0\n"


def test_the_command_needs_no_compiler() -> None:
    code = "import sys, throughtime.cli as c; c.main(['cache']); print('llvmlite' in sys.modules)"
    assert fresh(code).splitlines()[-1] == "False"
