"""Files appear whole or not at all, and every reason not to write is one sentence."""

from __future__ import annotations

import errno
import os
import platform
import resource
import signal
import stat
import subprocess
import sys
import textwrap
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from refold import files
from refold.errors import ExportError, InputError
from refold.files import atomic_path, discard_staged, require_place, staged_paths


def fail_half_way(target: Path, error: BaseException) -> None:
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error


def test_a_file_and_its_companions_appear_together(tmp_path: Path) -> None:
    target = tmp_path / "model.xml"
    with atomic_path(target) as temporary:
        assert temporary.name == "model.xml"
        temporary.write_text("graph")
        temporary.with_suffix(".bin").write_text("weights")
        assert not target.exists()
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "model.xml": "graph",
        "model.bin": "weights",
    }


def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError):
        fail_half_way(target, ZeroDivisionError())
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fail_half_way(tmp_path / "a", KeyboardInterrupt())
    assert not list(tmp_path.iterdir())


def test_our_own_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^off$"):
        fail_half_way(tmp_path / "a", ExportError("off"))


def test_one_missing_folder_is_made_and_removed_again_on_failure(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    with pytest.raises(InputError, match=r"left no a\.txt"), atomic_path(target):
        pass  # a writer that writes nothing
    assert not list(tmp_path.iterdir())
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
    assert target.read_text() == "whole"


def test_two_missing_folders_are_a_mistake(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match="there is no folder"),
        atomic_path(tmp_path / "a" / "b" / "c"),
    ):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["", "/dev/null", "a\0b", "x" * 300, "file/inside"])
def test_impossible_places_are_refused_in_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as caught, atomic_path(tmp_path / place) as temporary:
        temporary.write_text("")
    assert "\n" not in str(caught.value)
    assert "choose" in str(caught.value)
    assert Path("/dev/null").is_char_device()
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="permission denied"), atomic_path(tmp_path / "a"):
        pass


def test_a_link_is_followed(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    with atomic_path(link) as temporary:
        temporary.write_text("whole")
    assert link.is_symlink()
    assert (tmp_path / "real").read_text() == "whole"


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(bytes(1 << 20)),
        lambda path: torch.save(torch.zeros(1 << 18), path),
        lambda path: safetensors.torch.save_file({"a": torch.zeros(1 << 18)}, path),
    ],
    ids=["python", "torch", "safetensors"],
)
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, write: Callable[[Path], object]
) -> None:
    # A limit on file size stops each library's own writer as a full disk does.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(InputError) as caught, atomic_path(tmp_path / "a.pt") as path:
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    message = str(caught.value)
    assert message.startswith("cannot write")
    assert len(message.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def write_privately(path: Path) -> None:
    path.touch(mode=0o600)


def write_safely(path: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)


@pytest.mark.parametrize("write", [write_privately, write_safely, Path.touch])
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_a_new_file_has_the_mode_that_the_umask_gives(
    tmp_path: Path, write: Callable[[Path], None], umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        with atomic_path(tmp_path / "a") as temporary:
            write(temporary)
            write(temporary.with_name("b"))
    finally:
        os.umask(before)
    assert {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {
        "a": mode,
        "b": mode,
    }


@pytest.mark.parametrize("mode", [0o640, 0o444, 0o600, 0o755])
def test_a_replaced_file_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    target = tmp_path / "a"
    target.write_text("old")
    target.chmod(mode)
    (tmp_path / "link").symlink_to("a")
    for place in (target, tmp_path / "link"):
        with atomic_path(place) as temporary:
            write_safely(temporary)
        assert target.stat().st_mode & 0o777 == mode
    assert (tmp_path / "link").is_symlink()


def test_a_chain_of_links_stays_and_a_loop_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("real/file")
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "a").is_symlink()
    assert (tmp_path / "b").is_symlink()
    assert (tmp_path / "real" / "file").read_text() == "whole"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="too many levels"), atomic_path(tmp_path / "loop"):
        pass
    assert (tmp_path / "loop").is_symlink()


def test_what_is_being_written_is_known_and_can_be_removed(tmp_path: Path) -> None:
    def write_without_a_place() -> None:
        with atomic_path(tmp_path / "a") as temporary:
            temporary.write_text("half")
            assert staged_paths() == (temporary.parent,)
            discard_staged()
            assert not list(tmp_path.iterdir())

    with pytest.raises(InputError, match="no such file"):
        write_without_a_place()
    assert staged_paths() == ()


def test_a_forked_process_leaves_the_writes_of_its_parent(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("whole")
        child = os.fork()
        if child == 0:
            discard_staged()
            os._exit(len(staged_paths()))
        assert os.waitpid(child, 0)[1] == 0
    assert (tmp_path / "a").read_text() == "whole"


@pytest.mark.parametrize("end", ["sys.exit(3)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_process_that_ends_leaves_nothing_for_long(tmp_path: Path, end: str) -> None:
    script = f"""
        import os, signal, sys, types
        package = types.ModuleType("refold")  # the whole one takes seconds to import
        package.__path__ = [{str(Path(files.__file__).parent)!r}]
        sys.modules["refold"] = package
        from refold.files import atomic_path
        writing = atomic_path({str(tmp_path / "a")!r})
        path = writing.__enter__()
        path.write_text("half")
        {end}
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert run.returncode in (3, -signal.SIGKILL)
    assert len(list(tmp_path.iterdir())) == (run.returncode != 3)
    with atomic_path(tmp_path / "b") as temporary:
        temporary.write_text("whole")
    assert [file.name for file in tmp_path.iterdir()] == ["b"]


def test_only_what_we_abandoned_is_swept(tmp_path: Path) -> None:
    here = f"{zlib.crc32(platform.node().encode()):08x}"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    parent = os.getppid()
    old = time.time() - 2 * 24 * 3600
    stays = [
        f".refold-{here}-{parent}-aaaaaaaa",  # its process lives
        f".refold-00000000-{dead.pid}-aaaaaaaa",  # of another machine
        ".refold-aaaaaaaa",  # young
        ".refold-notes",
        ".refold-cache-1-aaaaaaaa",
        "refold-aaaaaaaa",
    ]
    goes = [
        f".refold-{here}-{dead.pid}-aaaaaaaa",
        f".refold-{here}-{os.getpid()}-aaaaaaaa",  # of this process, which writes nothing there
        f".refold-{here}-{parent}-bbbbbbbb",  # old, all below too
        ".refold-00000000-1-cccccccc",
        ".refold-bbbbbbbb",
    ]
    for name in (*stays, *goes):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
        if name.endswith(("bbbbbbbb", "cccccccc", "notes")):
            os.utime(tmp_path / name / "half", (old, old))
            os.utime(tmp_path / name, (old, old))
    (tmp_path / ".refold-dddddddd").touch()  # a file
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (tmp_path / f".refold-{here}-{dead.pid}-eeeeeeee").symlink_to(elsewhere)
    with atomic_path(tmp_path / "a") as temporary:
        temporary.touch()
    left = {file.name for file in tmp_path.iterdir()}
    assert not left & set(goes)
    assert left > set(stays) | {"a", ".refold-dddddddd", "elsewhere"}
    assert (elsewhere / "kept").exists()


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("n" * 300, "file name too long"),
        ("d/" * 3000 + "a", "file name too long"),
        ("no/such/a", "there is no folder"),
        ("file/a", "not a directory"),
        ("folder", "is a folder; choose the name of a file"),
        ("", "is a folder"),
        ("/dev/null", "not a regular file"),
        ("/proc/a", "/proc is not writable"),
    ],
)
def test_a_place_is_looked_at_before_the_work(tmp_path: Path, place: str, reason: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=reason) as caught:
        require_place(tmp_path / place)
    assert "\n" not in str(caught.value)
    require_place(tmp_path / "new" / "a")
    require_place(tmp_path / "file")
    assert {file.name for file in tmp_path.iterdir()} == {"file", "folder"}


def test_a_long_name_is_written(tmp_path: Path) -> None:
    target = tmp_path / ("n" * 255)
    require_place(target)
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
    assert target.read_text() == "whole"


def pair(folder: Path, name: str = "net.onnx", companion: str | None = "net.onnx.data") -> Path:
    """Write a file with a companion, or without one."""
    with atomic_path(folder / name, ["net.onnx.data"]) as path:
        path.write_text(f"names {companion}")
        if companion:
            path.with_name(companion).write_text("numbers")
    return folder / name


def test_a_companion_that_the_new_file_lacks_goes(tmp_path: Path) -> None:
    (tmp_path / "other.data").write_text("somebody's")
    pair(tmp_path)
    pair(tmp_path, companion=None)
    assert {file.name for file in tmp_path.iterdir()} == {"net.onnx", "other.data"}


@pytest.mark.parametrize("failing", ["net.onnx", "net.onnx.data"])
@pytest.mark.parametrize("has_links", [True, False])
@pytest.mark.parametrize("is_smaller", [True, False])
def test_files_that_belong_together_are_replaced_together_or_not_at_all(
    tmp_path: Path, failing: str, has_links: bool, is_smaller: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("net.onnx", "net.onnx.data"):
        (tmp_path / name).write_text(f"old {name}")
    real = Path.replace

    def replace(self: Path, place: Path) -> Path:
        if place == tmp_path / failing and self.parent.name != ".old":
            raise OSError(errno.EIO, "no such luck")
        return real(self, place)

    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "no links")

    def unlink(self: Path, **_: object) -> None:
        if self.name == failing:
            raise OSError(errno.EIO, "no such luck")

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(Path, "unlink", unlink)
    if not has_links:
        monkeypatch.setattr(os, "link", link)
    with pytest.raises(InputError, match="no such luck"):
        pair(tmp_path, companion=None if is_smaller else "net.onnx.data")
    for name in ("net.onnx", "net.onnx.data"):
        assert (tmp_path / name).read_text() == f"old {name}"


def test_a_new_companion_is_as_private_as_its_file(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_text("old")
    (tmp_path / "net.onnx").chmod(0o600)
    pair(tmp_path)
    for name in ("net.onnx", "net.onnx.data"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
