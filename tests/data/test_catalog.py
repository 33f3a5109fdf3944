import pytest

from iso_d2.data.catalog import cache_json, cache_root, cached, dataset_root


def test_dataset_root_follows_the_variable_after_the_import(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert dataset_root() == tmp_path
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert str(dataset_root()) == "datasets"


def test_cache_that_cannot_be_made_says_which_variable_moves_it(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ISO_D2_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OSError, match="set ISO_D2_CACHE to a writable folder"):
        cache_root()


def test_cached_json_depends_on_its_content(monkeypatch, tmp_path):
    monkeypatch.setenv("ISO_D2_CACHE", str(tmp_path))
    first, again, other = cache_json("x", {"a": 1}), cache_json("x", {"a": 1}), cache_json("x", {"a": 2})
    assert first == again != other
    assert first.read_text() == '{"a": 1}'
    assert len(list(tmp_path.iterdir())) == 2


def test_a_cached_folder_is_filled_once(monkeypatch, tmp_path):
    monkeypatch.setenv("ISO_D2_CACHE", str(tmp_path))
    for content in ("first", "second"):
        folder = cached("set", lambda new, content=content: (new / "a").write_text(content))
        assert folder == tmp_path / "set" and (folder / "a").read_text() == "first"
