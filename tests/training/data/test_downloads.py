"""The folder of downloads."""

from sigmoid_attention.training.data.downloads import cache_dir


def test_the_environment_decides(monkeypatch, tmp_path):
    monkeypatch.setenv("SIGMOID_ATTENTION_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("SIGMOID_ATTENTION_CACHE")
    assert cache_dir().name == "sigmoid-attention"
