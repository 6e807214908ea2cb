"""Files appear whole or not at all, and every reason not to write is one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from refold.errors import ExportError, InputError
from refold.files import atomic_path


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
        "path.write_bytes(bytes(1 << 20))",
        "torch.save(torch.zeros(1 << 18), path)",
        "safetensors.torch.save_file({'a': torch.zeros(1 << 18)}, path)",
    ],
)
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, write: str) -> None:
    # A limit on file size stops each library's own writer as a full disk does.
    script = f"""
        import resource, sys
        import safetensors.torch, torch
        from refold.errors import InputError
        from refold.files import atomic_path
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            with atomic_path({str(tmp_path / "a.pt")!r}) as path:
                {write}
        except InputError as error:
            sys.exit(str(error))
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1, run.stderr
    assert run.stderr.startswith("cannot write")
    assert len(run.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
