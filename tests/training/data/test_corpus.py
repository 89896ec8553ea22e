"""Corpora: the files read, the held-out part, and one error message for unusable files."""

import hashlib
import os
import socket
from dataclasses import asdict

import pytest

from sigmoid_attention.training.data import corpus as corpora
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
    corpus = load_corpus(tmp_path / "data.bin", binaries=True)
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


PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
RANDOM = hashlib.shake_256(b"no zero byte").digest(5000).replace(b"\0", b"\1")


@pytest.mark.parametrize("binary", [PNG, RANDOM, b"\x7fELF\2\1\1\0"], ids=["png", "random", "elf"])
def test_binary_files_of_a_folder_are_skipped_and_counted(tmp_path, binary):
    texts = {f"{i}.py": b"line\n" for i in range(9)}
    write(tmp_path, {**texts, "img/x.png": binary, "__pycache__/a.pyc": binary})
    corpus = load_corpus(tmp_path)
    assert set(names(corpus.train + corpus.heldout)) == set(texts)
    assert corpus.binaries == 2 and corpus.provenance.files == 9
    assert corpus.described().endswith("; 2 files skipped as binary")
    assert load_corpus(tmp_path, binaries=True).provenance.files == 11
    del texts["0.py"]
    assert load_corpus(write(tmp_path / "alone", texts)).described().count("skipped") == 0


@pytest.mark.parametrize("binary", [PNG, RANDOM], ids=["png", "random"])
def test_a_single_binary_file_is_refused_without_its_option(tmp_path, binary):
    write(tmp_path, {"a.bin": binary * 100, "only/b.bin": binary, "only/c.bin": binary})
    with pytest.raises(ValueError, match=r"a\.bin' is no text.* train --binaries reads its bytes"):
        load_corpus(tmp_path / "a.bin")
    with pytest.raises(ValueError, match=r"no text: all of the 2 files in .*only' are binary"):
        load_corpus(tmp_path / "only")
    assert load_corpus(tmp_path / "a.bin", binaries=True).provenance.files == 1


@pytest.mark.parametrize(
    "text",
    ["naïve café\n".encode("latin-1"), "日本語\t".encode(), b"\x1b[1mbold\x1b[0m\f\r\n"],
    ids=["latin-1", "utf-8", "escapes"],
)
def test_text_of_any_encoding_is_text(tmp_path, text):
    (tmp_path / "a").write_bytes(text * 20)
    assert load_corpus(tmp_path / "a").provenance.bytes == 20 * len(text)


def test_the_description_warns_of_a_small_held_out_part(tmp_path):
    few = load_corpus(write(tmp_path / "few", {f"{i}.txt": b"a" * 100 for i in range(3)}))
    assert few.described() == "text: 3 files, 300 bytes; 1 file held out, 100 bytes (33%)"
    assert few.warning().startswith("only 1 file held out and 33% of the bytes held out")
    many = load_corpus(write(tmp_path / "many", {f"{i}.txt": b"a" * 9000 for i in range(200)}))
    assert "text: 200 files, 1.8 MB; " in many.described() and many.warning() == ""
    single = load_corpus(tmp_path / "few" / "0.txt")
    assert single.described() == "text: 1 file, 100 bytes; its end held out, 10 bytes (10%)"
    assert single.warning() == ""
    lopsided = {f"{i}.txt": b"a" for i in range(200)} | {
        document.name: b"a" * 5000 for document in many.heldout
    }
    assert "of the bytes held out" in load_corpus(write(tmp_path / "l", lopsided)).warning()


def test_special_files_and_no_name_are_refused_for_what_they_are(tmp_path, monkeypatch):
    # The name of a socket may not be long.
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"got an empty name"):
        load_corpus("")
    with pytest.raises(ValueError, match=r"'/dev/zero' is a device"):
        load_corpus("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"pipe' is a pipe"):
        load_corpus(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("s")
        with pytest.raises(ValueError, match=r"s' is a socket"):
            load_corpus(tmp_path / "s")
    corpus = load_corpus(write(tmp_path, {"a": b"1", "b": b"2"}))
    assert corpus.provenance.files == 2


def test_too_much_is_refused_soon(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"'/' is the whole machine"):
        load_corpus("/")
    write(tmp_path, {f"{i}": b"text" * 10 for i in range(5)})
    read = []
    monkeypatch.setattr(type(tmp_path), "read_bytes", read.append)
    monkeypatch.setattr(corpora, "MOST_FILES", 4)
    with pytest.raises(ValueError, match=r"holds more than 4 files or .* name a folder inside"):
        load_corpus(tmp_path)
    monkeypatch.setattr(corpora, "MOST_FILES", 5)
    monkeypatch.setattr(corpora, "MOST_BYTES", 199)
    with pytest.raises(ValueError, match=r"or 199 bytes of text, which is too much"):
        load_corpus(tmp_path)
    monkeypatch.setattr(corpora, "MOST_BYTES", 39)
    with pytest.raises(ValueError, match=r"0' has more than 39 bytes: name a part"):
        load_corpus(tmp_path / "0")
    assert not read


def test_published_corpora_are_split_as_they_were():
    """The standard library's is told by its hash for one Python; its rule has no binaries."""
    corpus = load_corpus("stdlib")
    assert corpus.binaries == 0
    if corpus.provenance.version == "CPython 3.11.7":
        assert corpus.provenance.sha256.startswith("22464c00132e0816")
        assert corpus.provenance.heldout_files == 69


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
    with pytest.raises(ValueError, match=r"data cannot be read:? .*secret \(Permission denied\)"):
        load_corpus(tmp_path)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    write(tmp_path, {"a": b"1", "locked/b": b"2"})
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"data cannot be read:? .*locked \(Permission denied\)"):
        load_corpus(tmp_path)


def test_the_split_is_by_the_hash_of_the_name(tmp_path):
    files = {f"{i}.txt": b"text" for i in range(60)}
    corpus = load_corpus(write(tmp_path, files))
    lowest = {
        name for name in files if hashlib.sha256(name.encode()).digest()[0] / 256 < 0.1 - 1 / 256
    }
    assert lowest <= set(names(corpus.heldout)), "the first byte of the hash all but decides"
