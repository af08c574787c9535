"""The data sets: what they hold, how they are found, and what is said when they are not right."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import os
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bilevel.datasets import (
    Dataset,
    fetch,
    load_libsvm,
    load_svm_dataset,
    quadratic_features,
    remote,
    split,
    with_noise_features,
    with_quadratic_features,
)
from bilevel.errors import DatasetError, MissingExtraError, OptionError
from bilevel.extras import require

TINY = b"+1 1:0.5 2:-1 \n-1 2:0.25 \n"
TINY_NAME = "svm/tiny.txt"


def numbered(rows: int) -> Dataset:
    """A data set whose only feature is the row's number."""
    return Dataset(
        name="numbered",
        features=np.arange(rows, dtype=np.float64)[:, None],
        labels=np.where(np.arange(rows) % 2, 1.0, -1.0),
        feature_names=("row",),
        source="this test",
    )


# What the data sets hold


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "shape", "negative", "positive"),
    [("diabetes", (768, 8), 268, 500), ("fourclass", (862, 2), 555, 307)],
)
def test_libsvm_files_have_the_documented_sizes_and_classes(
    name: str, shape: tuple[int, int], negative: int, positive: int
) -> None:
    dataset = load_svm_dataset(name)
    assert dataset.features.shape == shape
    assert dataset.features.dtype == dataset.labels.dtype == np.float64
    assert np.abs(dataset.features).max() == 1.0
    assert ((dataset.labels == -1).sum(), (dataset.labels == 1).sum()) == (negative, positive)


@pytest.mark.real_data
def test_diabetes_starts_with_the_first_row_of_the_file() -> None:
    dataset = load_svm_dataset("diabetes")
    row = [-0.294118, 0.487437, 0.180328, -0.292929, -1, 0.00149028, -0.53117, -0.0333333]
    np.testing.assert_array_equal(dataset.features[0], row)
    assert dataset.labels[0] == -1


@pytest.mark.real_data
def test_an_absent_feature_of_fourclass_is_zero_and_does_not_shift_the_next_one() -> None:
    dataset = load_svm_dataset("fourclass")
    absent = np.array([242, 401, 610, 729, 816, 827, 848]) - 1
    np.testing.assert_array_equal(np.flatnonzero(dataset.features[:, 0] == 0), absent)
    assert (dataset.features[absent, 1] != 0).all()


@pytest.mark.real_data
def test_the_source_of_a_data_set_names_no_local_folder() -> None:
    source = load_svm_dataset("fourclass").source
    assert source.endswith("/hyperparam_opt/datasets/fourclass.txt")
    assert os.environ["BILEVEL_DATA"] not in source


@pytest.mark.real_data
@pytest.mark.parametrize("name", sorted(remote.REGISTRY))
def test_every_registered_file_has_its_registered_checksum(name: str) -> None:
    assert fetch(name) == Path(os.environ["BILEVEL_DATA"], name)


def test_breast_cancer_is_bundled_and_its_positive_class_is_benign() -> None:
    dataset = load_svm_dataset("breast_cancer")
    assert dataset.features.shape == (569, 30)
    assert (dataset.labels == 1).sum() == 357
    assert dataset.features[0, 0] == 17.99
    assert dataset.labels[0] == -1  # the first row is malignant
    assert dataset.feature_names[0] == "mean radius"


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"'iris'; choose one of breast_cancer, diabetes, four"):
        load_svm_dataset("iris")
    with pytest.raises(OptionError, match=r"'svm/iris'.*svm/diabete\.txt"):
        fetch("svm/iris")


# LIBSVM's format


def test_an_absent_feature_is_zero(tmp_path: Path) -> None:
    path = tmp_path / "tiny.txt"
    path.write_bytes(TINY)
    dataset = load_libsvm(path)
    np.testing.assert_array_equal(dataset.features, [[0.5, -1.0], [0.0, 0.25]])
    np.testing.assert_array_equal(dataset.labels, [1.0, -1.0])
    assert (dataset.name, dataset.feature_names) == ("tiny", ("x1", "x2"))
    assert load_libsvm(path, features=3).features.shape == (2, 3)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"+1 1:abc\n-1 1:2\n", "abc"),
        (b"yes 1:1\n-1 1:2\n", "yes"),
        (b"+1 1 2\n-1 1:2\n", "LIBSVM's format"),
        (b"+1 1:2\n-1 1:", "LIBSVM's format"),
        (b"+1 0:3 1:2\n-1 1:4\n", "index 0"),
        (b"+1 2:3 1:2\n-1 1:4\n", "sorted"),
        (b"+1 4:3\n-1 1:1\n", "4 features"),
        (b"+1 99999999999999999999:3\n-1 1:1\n", "too large"),
        (b"", "no rows"),
        (b"# a comment alone\n\n", "no rows"),
        (b"+1 1:2\n+1 1:3\n", r"one class only: each of its 2 labels is \+1"),
        (b"+1 1:2\n+3 1:3\n", "a label is 3.0"),
        (b"nan 1:2\n+1 1:3\n", "a label is nan"),
        (b"+1 1:2\n-1 1:1 2:nan\n", "row 2, feature 2: nan"),
        (b"+1 1:inf\n-1 1:1\n", "row 1, feature 1: inf"),
    ],
)
def test_a_malformed_file_is_named_with_what_is_wrong(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    path = tmp_path / "broken.txt"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=complaint) as caught:
        load_libsvm(path, features=2)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"absent\.txt cannot be read"):
        load_libsvm(tmp_path / "absent.txt")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"features": np.zeros(4)}, r"features have shape \(4,\)"),
        ({"features": np.zeros((0, 1))}, r"features have shape \(0, 1\)"),
        ({"labels": np.ones(3)}, r"labels have shape \(3,\) for 4 rows"),
        ({"feature_names": ("a", "b")}, "2 feature names for 1 columns"),
    ],
)
def test_a_data_set_of_inconsistent_shapes_is_refused(
    change: dict[str, object], complaint: str
) -> None:
    with pytest.raises(DatasetError, match=f"'numbered' from this test: .*{complaint}"):
        dataclasses.replace(numbered(4), **change)


# Where files are found


class Upstream(ThreadingHTTPServer):
    """A server on the loopback address that answers with ``files``, and counts its requests."""

    files: dict[str, bytes]
    requests: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.requests += 1
        content = self.server.files.get(self.path)
        self.send_response(200 if content is not None else 404)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache folder, no BILEVEL_DATA, and one small registered file."""
    monkeypatch.delenv("BILEVEL_DATA", raising=False)
    monkeypatch.setenv("BILEVEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    checksum = hashlib.sha256(TINY).hexdigest()
    monkeypatch.setitem(remote.REGISTRY, TINY_NAME, remote.RemoteFile("data/tiny.txt", checksum))
    return tmp_path / "cache"


@pytest.fixture
def upstream(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Upstream]:
    with Upstream(("127.0.0.1", 0), _Handler) as server:
        server.files = {"/data/tiny.txt": TINY}
        monkeypatch.setattr(remote, "UPSTREAM", server.url)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setattr(remote, "UPSTREAM", f"http://127.0.0.1:{port}")


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_file_is_downloaded_once(upstream: Upstream, cache: Path) -> None:
    assert fetch(TINY_NAME) == fetch(TINY_NAME) == cache / TINY_NAME
    assert (cache / TINY_NAME).read_bytes() == TINY
    assert upstream.requests == 1
    assert files_in(cache) == [cache / TINY_NAME]


@pytest.mark.real_data
def test_a_downloaded_data_set_equals_the_local_one(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = load_svm_dataset("fourclass")
    content = fetch("svm/fourclass.txt").read_bytes()
    upstream = request.getfixturevalue("upstream")  # from here on there is no BILEVEL_DATA
    upstream.files["/hyperparam_opt/datasets/fourclass.txt"] = content
    downloaded = load_svm_dataset("fourclass")
    assert upstream.requests == 1
    np.testing.assert_array_equal(downloaded.features, local.features)
    np.testing.assert_array_equal(downloaded.labels, local.labels)


def test_the_local_folder_comes_before_cache_and_network(
    upstream: Upstream, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    local = tmp_path / "data" / TINY_NAME
    local.parent.mkdir(parents=True)
    local.write_bytes(TINY)
    monkeypatch.setenv("BILEVEL_DATA", str(tmp_path / "data"))
    assert fetch(TINY_NAME) == local
    assert upstream.requests == 0


def test_a_file_absent_from_the_local_folder_is_downloaded(
    upstream: Upstream, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BILEVEL_DATA", str(tmp_path))
    assert fetch(TINY_NAME) == cache / TINY_NAME


def test_a_local_folder_that_does_not_exist_is_an_error_not_a_download(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BILEVEL_DATA", str(tmp_path / "misspelt"))
    with pytest.raises(DatasetError, match=r"BILEVEL_DATA=.*misspelt is not a folder"):
        fetch(TINY_NAME)
    assert upstream.requests == 0


def test_a_damaged_local_file_is_an_error_not_a_download(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    local = tmp_path / "data" / TINY_NAME
    local.parent.mkdir(parents=True)
    local.write_bytes(b"damaged")
    monkeypatch.setenv("BILEVEL_DATA", str(tmp_path / "data"))
    found, expected = (hashlib.sha256(content).hexdigest() for content in (b"damaged", TINY))
    with pytest.raises(DatasetError, match=f"tiny.txt has the SHA-256 sum {found} .* {expected}"):
        fetch(TINY_NAME)
    assert local.read_bytes() == b"damaged"
    assert upstream.requests == 0


def test_a_download_with_another_checksum_is_refused_and_not_kept(
    upstream: Upstream, cache: Path
) -> None:
    upstream.files["/data/tiny.txt"] = b"tampered"
    found = hashlib.sha256(b"tampered").hexdigest()
    with pytest.raises(DatasetError, match=f"{upstream.url}/data/tiny.txt is not .*{found}"):
        fetch(TINY_NAME)
    assert files_in(cache) == []


def test_a_damaged_file_in_the_cache_is_downloaded_anew(upstream: Upstream, cache: Path) -> None:
    (cache / TINY_NAME).parent.mkdir(parents=True)
    (cache / TINY_NAME).write_bytes(b"damaged")
    assert fetch(TINY_NAME).read_bytes() == TINY


@pytest.mark.usefixtures("no_network")
def test_a_damaged_file_in_the_cache_does_not_outlive_a_failed_download(cache: Path) -> None:
    (cache / TINY_NAME).parent.mkdir(parents=True)
    (cache / TINY_NAME).write_bytes(b"damaged")
    with pytest.raises(DatasetError):
        fetch(TINY_NAME)
    assert files_in(cache) == []


def test_a_file_that_upstream_does_not_have_is_named(upstream: Upstream, cache: Path) -> None:
    upstream.files.clear()
    with pytest.raises(DatasetError, match=r"/data/tiny.txt could not be downloaded \(404"):
        fetch(TINY_NAME)
    assert files_in(cache) == []


@pytest.mark.usefixtures("no_network")
def test_without_a_network_the_message_says_where_to_put_the_file(cache: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"could not be downloaded .*svm/tiny.txt in a folder .*BILEVEL_DATA"
    ):
        fetch(TINY_NAME)
    assert files_in(cache) == []


def test_without_a_named_cache_downloads_go_to_the_systems(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("BILEVEL_CACHE")
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "system" / project)
    assert fetch(TINY_NAME) == tmp_path / "system" / "bilevel" / TINY_NAME


def test_a_cache_that_cannot_be_written_is_named(upstream: Upstream, cache: Path) -> None:
    cache.write_bytes(b"a file where the folder should be")
    with pytest.raises(DatasetError, match=r"cache folder .*cache cannot be used .*BILEVEL_CACHE"):
        fetch(TINY_NAME)


# Optional dependencies


def test_a_missing_package_names_the_extra_that_installs_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(MissingExtraError, match=r"'pooch'.*pip install 'bilevel\[sklearn\]'"):
        fetch(TINY_NAME)


def test_an_installed_package_that_fails_to_import_shows_its_own_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "half_installed.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package") as caught:
        require("half_installed", "plot")
    assert not isinstance(caught.value, MissingExtraError)


# Splits


@given(st.integers(3, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 2))))
def test_the_parts_of_a_split_are_disjoint_and_cover_all_rows(sizes: tuple[int, int]) -> None:
    rows, train = sizes
    parts = split(numbered(rows), seed=rows, train=train, validation=1)
    assert [len(part.labels) for part in parts] == [train, 1, rows - train - 1]
    together = np.concatenate([part.features[:, 0] for part in parts])
    np.testing.assert_array_equal(np.sort(together), np.arange(rows))


def test_rows_keep_their_labels() -> None:
    for part in split(numbered(30), seed=0, train=10, validation=10):
        np.testing.assert_array_equal(part.labels, np.where(part.features[:, 0] % 2, 1.0, -1.0))


def test_a_split_is_the_seeds_permutation_whatever_was_drawn_before() -> None:
    dataset = numbered(768)
    split(dataset, seed=0)
    np.random.seed(17)  # noqa: NPY002 - the global generator must not matter
    train, validation, test = split(dataset, seed=1)
    order = np.random.RandomState(1).permutation(768)
    np.testing.assert_array_equal(train.features[:, 0], order[:500])
    np.testing.assert_array_equal(validation.features[:, 0], order[500:650])
    np.testing.assert_array_equal(test.features[:, 0], order[650:])
    assert list(order[:5]) == [285, 101, 581, 352, 726]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, r"has 569 rows, .*train=500, validation=150.*<= 568"),
        ({"train": 400, "validation": 169}, "train=400, validation=169"),
        ({"train": 0}, "train=0"),
        ({"train": 100, "validation": -1}, "validation=-1"),
        ({"train": 100, "seed": -1}, "seed=-1"),
        ({"train": 100, "seed": 2**32}, "seed=4294967296"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused(options: dict[str, int], complaint: str) -> None:
    with pytest.raises(OptionError, match=complaint):
        split(numbered(569), **{"seed": 0, **options})


# More columns


def test_quadratic_features_stand_in_the_documented_order() -> None:
    expanded = quadratic_features(np.array([[2.0, 3.0, 5.0]]))
    np.testing.assert_array_equal(expanded, [[1, 2, 3, 5, 4, 9, 25, 6, 10, 15]])


def test_eight_features_become_forty_five() -> None:
    assert quadratic_features(np.zeros((3, 8))).shape == (3, 45)


@given(arrays(np.float64, (3, 4), elements=st.floats(-10, 10)))
def test_quadratic_features_span_the_square_of_any_affine_function(rows: np.ndarray) -> None:
    weights, bias = np.array([1.0, -2.0, 0.5, 3.0]), -1.5
    i, j = np.triu_indices(4, k=1)
    coefficients = np.concatenate(
        [[bias**2], 2 * bias * weights, weights**2, 2 * weights[i] * weights[j]]
    )
    np.testing.assert_allclose(
        quadratic_features(rows) @ coefficients, (rows @ weights + bias) ** 2, atol=1e-9
    )


def test_expanded_columns_are_named_after_their_factors() -> None:
    dataset = load_svm_dataset("breast_cancer")
    pair = dataclasses.replace(dataset, features=dataset.features[:, :2], feature_names=("a", "b"))
    expanded = with_quadratic_features(pair)
    assert expanded.feature_names == ("1", "a", "b", "a^2", "b^2", "a*b")
    np.testing.assert_array_equal(expanded.features, quadratic_features(pair.features))


def test_noise_features_are_standard_normal_reproducible_and_appended() -> None:
    dataset = load_svm_dataset("breast_cancer")
    noisy = with_noise_features(dataset, count=60, seed=3)
    assert noisy.feature_names[-1] == "noise60"
    np.testing.assert_array_equal(noisy.features[:, :30], dataset.features)
    noise = noisy.features[:, 30:]
    assert noise.shape == (569, 60)
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    again = with_noise_features(dataset, count=60, seed=3).features
    np.testing.assert_array_equal(again, noisy.features)
    assert (with_noise_features(dataset, count=60, seed=4).features[:, 30:] != noise).all()


def test_no_noise_features_is_refused() -> None:
    with pytest.raises(OptionError, match="count=0"):
        with_noise_features(numbered(4), count=0, seed=0)


def test_a_compressed_file_that_was_cut_off_is_named(tmp_path):
    whole = gzip.compress(b"+1 1:0.5 2:1\n-1 1:0.25\n" * 50)
    for name, content in (("cut.gz", whole[:-12]), ("bad.gz", whole[:20] + b"????" + whole[24:])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DatasetError, match=f"{name} cannot be read"):
            load_libsvm(tmp_path / name)


def test_a_file_in_a_named_cache_needs_no_download(tmp_path, monkeypatch):
    content = b"+1 1:1\n-1 1:2\n"
    name = next(iter(remote.REGISTRY))
    digest = hashlib.sha256(content).hexdigest()
    entry = dataclasses.replace(remote.REGISTRY[name], sha256=digest)
    monkeypatch.setitem(remote.REGISTRY, name, entry)
    monkeypatch.setenv("BILEVEL_CACHE", str(tmp_path))
    monkeypatch.delenv("BILEVEL_DATA", raising=False)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(content)

    def missing(*args):
        raise MissingExtraError("pooch")

    monkeypatch.setattr(remote, "require", missing)
    assert remote.fetch(name).read_bytes() == content


def test_noise_features_check_their_seed():
    dataset = load_svm_dataset("breast_cancer")
    with pytest.raises(OptionError, match="seed=-1"):
        with_noise_features(dataset, 2, seed=-1)
