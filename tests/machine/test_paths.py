"""Paths in settings."""

from __future__ import annotations

import errno
import pwd
from pathlib import Path

import pytest

from stasc.machine import paths


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert paths.path_of("store.dir", "~/a") == Path("/home/me/a")
    assert paths.path_of("store.dir", "a/~") == Path("a/~")


def test_without_a_home_folder_the_setting_and_its_variable_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(user: int) -> None:
        raise KeyError(user)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(ValueError, match=r"^store\.dir=~/a: .*no home folder.* set HOME, or store\.dir or STASC_STORE"):
        paths.path_of("store.dir", "~/a")
    with pytest.raises(ValueError, match=r"^dataset\.path=~/a: .* set HOME, or dataset\.path to a folder without ~"):
        paths.path_of("dataset.path", "~/a")
    assert paths.path_of("store.dir", "/a") == Path("/a")


def test_a_relative_path_begins_where_the_command_was_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    monkeypatch.setattr(paths, "_started", [])
    monkeypatch.chdir(tmp_path)
    paths.begin()
    assert paths.path_of("store.dir", "a") == Path("a")
    monkeypatch.chdir("job")
    assert paths.path_of("store.dir", "a") == tmp_path / "a"
    assert paths.path_of("store.dir", "/a") == Path("/a")


def test_a_working_folder_that_was_deleted_is_said_to_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ValueError, match="the working folder has been deleted"):
        paths.begin()
    monkeypatch.chdir(tmp_path)


def test_an_error_of_writing_names_the_setting() -> None:
    expected = r"model\.cache_dir=/a: No space.*; set model\.cache_dir or STASC_CACHE"
    with pytest.raises(OSError, match=expected) as told, paths.naming_setting("model.cache_dir", Path("/a")):
        raise OSError(errno.ENOSPC, "No space left on device", "/a/b")
    assert told.value.errno == errno.ENOSPC
