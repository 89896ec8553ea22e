"""Corpora: what is read, what is held out, and one clear sentence for what cannot be."""

import hashlib
import os
from dataclasses import asdict

import pytest

from sigmoid_attention.training.data.corpus import load_corpus


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    return folder


def names(documents):
    return [document.name for document in documents]


def test_the_standard_library_is_real_source_split_by_file():
    corpus = load_corpus("stdlib")
    train, heldout = names(corpus.train), names(corpus.heldout)
    assert not set(train) & set(heldout)
    assert "argparse.py" in train + heldout
    for name in train + heldout:
        assert name.endswith(".py")
        assert not {"test", "tests", "site-packages", "encodings"} & set(name.split("/"))
    share = corpus.provenance.heldout_bytes / corpus.provenance.bytes
    assert 0.03 < share < 0.25 and corpus.provenance.bytes > 5_000_000


def test_provenance_counts_what_is_there():
    corpus = load_corpus("stdlib")
    everything = corpus.train + corpus.heldout
    record = asdict(corpus.provenance)
    assert record["source"] == "stdlib" and record["version"].split()[1].startswith("3.")
    assert record["files"] == len(everything)
    assert record["heldout_files"] == len(corpus.heldout)
    assert record["bytes"] == sum(len(document.text) for document in everything)
    assert record["heldout_bytes"] == sum(len(document.text) for document in corpus.heldout)
    assert load_corpus("stdlib").provenance == corpus.provenance


@pytest.mark.parametrize("count", [2, 3, 40], ids="{} files".format)
def test_a_folder_is_split_by_whole_files(tmp_path, count):
    files = {f"part{i:03d}.txt": b"line %d\n" % i for i in range(count)}
    corpus = load_corpus(write(tmp_path, files))
    assert corpus.train and corpus.heldout
    together = {document.name: document.text for document in corpus.train + corpus.heldout}
    assert together == files
    assert "name" in corpus.provenance.split


def test_the_split_stays_when_files_come(tmp_path):
    write(tmp_path, {f"{i}.txt": b"text" for i in range(200)})
    before = load_corpus(tmp_path)
    write(tmp_path, {f"later{i}.txt": b"text" for i in range(50)})
    after = load_corpus(tmp_path)
    assert set(names(before.heldout)) <= set(names(after.heldout))
    assert set(names(before.train)) <= set(names(after.train))


def test_a_single_file_keeps_its_end_back(tmp_path):
    text = bytes(range(256)) * 10
    (tmp_path / "data.bin").write_bytes(text)
    corpus = load_corpus(tmp_path / "data.bin")
    assert corpus.train[0].text == text[:2304]
    assert corpus.heldout[0].text == text[2304:]
    assert corpus.provenance.files == 1


def test_hidden_and_empty_files_are_no_text(tmp_path):
    write(
        tmp_path, {".git/config": b"x", ".env": b"y", "none.txt": b"", "a/one": b"1", "two": b"2"}
    )
    corpus = load_corpus(str(tmp_path))
    assert sorted(names(corpus.train + corpus.heldout)) == ["a/one", "two"]


@pytest.mark.parametrize("change", ["byte", "name", "moved"])
def test_the_fingerprint_sees_every_change(tmp_path, change):
    def fingerprint(folder, files):
        return load_corpus(write(tmp_path / folder, files)).provenance.sha256

    first = fingerprint("a", {"x": b"one", "y": b"two"})
    other = {
        "byte": {"x": b"one", "y": b"twp"},
        "name": {"x": b"one", "z": b"two"},
        "moved": {"x": b"onet", "y": b"wo"},
    }[change]
    assert fingerprint("b", other) != first
    assert fingerprint("c", {"x": b"one", "y": b"two"}) == first


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"data must be .*there is none at .*nowhere"):
        load_corpus(tmp_path / "nowhere")


@pytest.mark.parametrize("files", [{}, {"a.txt": b"", "b.txt": b""}], ids=["no file", "no bytes"])
def test_an_empty_folder_holds_no_text(tmp_path, files):
    with pytest.raises(ValueError, match="data holds no text"):
        load_corpus(write(tmp_path, files))


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    write(tmp_path, {"good": b"1", "secret": b"2"})
    read = type(tmp_path).read_bytes

    def refuse(path):
        if path.name == "secret":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(type(tmp_path), "read_bytes", refuse)
    with pytest.raises(ValueError, match=r"data cannot be read: .*secret \(Permission denied\)"):
        load_corpus(tmp_path)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    write(tmp_path, {"a": b"1", "locked/b": b"2"})
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"data cannot be read: .*locked \(Permission denied\)"):
        load_corpus(tmp_path)


def test_the_split_is_by_the_hash_of_the_name(tmp_path):
    files = {f"{i}.txt": b"text" for i in range(60)}
    corpus = load_corpus(write(tmp_path, files))
    lowest = {
        name for name in files if hashlib.sha256(name.encode()).digest()[0] / 256 < 0.1 - 1 / 256
    }
    assert lowest <= set(names(corpus.heldout)), "the first byte of the hash all but decides"
