"""Mined neighbors: brute force, a row that is never its own neighbor, and how near an inverted file comes to it."""

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scan_core.clustering import neighbors
from scan_core.clustering.neighbors import Mined, mine_distinct, mine_neighbors
from scan_core.errors import ScanError

EXACT = 1_000_000  # rows: more than any test has


def unit(rows):
    rows = np.asarray(rows, dtype=np.float64)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def random_rows(count, dimensions=6, seed=0):
    return unit(np.random.default_rng(seed).normal(size=(count, dimensions)))


def cosines_of_others(embeddings):
    """(N,N) in float64: of each row with every other, and below all of them with itself."""
    cosines = embeddings.astype(np.float64) @ embeddings.T.astype(np.float64)
    np.fill_diagonal(cosines, -np.inf)
    return cosines


@pytest.mark.parametrize(("count", "k"), [(30, 5), (12, 11), (2, 1), (200, 20)])
def test_neighbors_are_those_of_brute_force(count, k):
    embeddings = random_rows(count)
    mined = mine_neighbors(embeddings, k, EXACT, 0.5)
    assert mined.recall == 1.0
    assert np.array_equal(mined.nearest, np.argsort(-cosines_of_others(embeddings), axis=1)[:, :k])
    assert_others(embeddings, mined, k)


def assert_others(embeddings, mined, k):
    """No row is its own neighbor or has one twice; each cosine is that of its neighbor; the nearest come first."""
    assert mined.nearest.shape == mined.similarity.shape == (len(embeddings), k)
    assert (mined.nearest.dtype, mined.similarity.dtype) == (np.int64, np.float32)
    assert ((mined.nearest >= 0) & (mined.nearest < len(embeddings))).all()
    assert (mined.nearest != np.arange(len(embeddings))[:, None]).all()
    assert (np.diff(np.sort(mined.nearest, axis=1), axis=1) > 0).all()
    cosines = np.einsum("nkd,nd->nk", embeddings[mined.nearest], embeddings)
    np.testing.assert_allclose(mined.similarity, cosines, atol=1e-5)
    assert (np.diff(mined.similarity, axis=1) <= 0).all()


def assert_valid(embeddings, k, exact_rows=EXACT):
    """Each row has the k highest cosines among the others, whichever of equals they are."""
    mined = mine_neighbors(embeddings, k, exact_rows, 1.0)
    assert_others(embeddings, mined, k)
    np.testing.assert_allclose(mined.similarity, -np.sort(-cosines_of_others(embeddings))[:, :k], atol=1e-5)


@pytest.mark.parametrize("exact_rows", [EXACT, 50])
@pytest.mark.parametrize("copies", [2, 5, 6, 7, 20])
def test_a_row_is_not_its_own_neighbor_where_others_equal_it(copies, exact_rows):
    """Fewer, as many and more copies than the 5 neighbors, and than a cell would hold: a row may miss in its list."""
    embeddings = np.concatenate([np.repeat(random_rows(30), copies, axis=0), random_rows(100, seed=1)])
    embeddings = embeddings[np.random.default_rng(0).permutation(len(embeddings))]
    assert_valid(embeddings, 5, exact_rows)
    assert_others(embeddings, mine_neighbors(embeddings, 5, exact_rows, 0.1), 5)


@pytest.mark.parametrize(
    ("rows", "copies", "k", "exact_rows"), [(1, 12, 4, EXACT), (1, 200, 4, 100), (3, 4, 11, EXACT)]
)
def test_rows_that_are_all_equal_and_all_others_as_neighbors_are_allowed(rows, copies, k, exact_rows):
    assert_valid(np.repeat(random_rows(rows), copies, axis=0), k, exact_rows)


@settings(max_examples=40)
@given(st.lists(st.integers(0, 4), min_size=4, max_size=25), st.integers(1, 3))
def test_self_is_excluded_whatever_the_copies(pattern, k):
    assert_valid(random_rows(5)[pattern], k)


@pytest.mark.parametrize("k", [5, 6, 50])
def test_too_many_neighbors_are_an_error_that_names_the_setting(k):
    with pytest.raises(ScanError, match=rf"neighbors\.k is {k}, but there are 5 images; at most 4 is allowed"):
        mine_neighbors(random_rows(5), k, EXACT, 0.5)


@pytest.mark.parametrize("exact_rows", [EXACT, 3])
@pytest.mark.parametrize(("value", "length"), [(np.nan, "nan"), (np.inf, "inf"), (0.0, "0"), (2.0, "4.899")])
def test_rows_that_are_not_finite_or_not_of_unit_length_are_an_error_that_names_the_first(value, length, exact_rows):
    embeddings = random_rows(5)
    embeddings[[2, 4]] = value
    with pytest.raises(ScanError) as error:
        mine_neighbors(embeddings, 2, exact_rows, 0.5)
    message = str(error.value)
    assert message.startswith(f"2 of 5 embeddings do not have length 1, first row 2 with {length}: ")
    assert "pretext.optimizer.lr" in message and "embed.features" in message and "\n" not in message


@pytest.mark.parametrize("exact_rows", [EXACT, 1])
def test_blocks_of_queries_change_nothing(monkeypatch, exact_rows):
    """Nor do those in which rows come into the inverted file."""
    embeddings = clustered(1200, 20)
    whole = mine_neighbors(embeddings, 3, exact_rows, 0.9)
    monkeypatch.setattr(neighbors, "BLOCK", 77)
    in_blocks = mine_neighbors(embeddings, 3, exact_rows, 0.9)
    assert np.array_equal(in_blocks.nearest, whole.nearest)
    np.testing.assert_allclose(in_blocks.similarity, whole.similarity, atol=1e-6)


# --- Smoothed rows


@pytest.mark.parametrize("block", [65_536, 7])
def test_smoothed_rows_are_means_weighted_by_the_cosine_cubed(monkeypatch, block):
    monkeypatch.setattr(neighbors, "BLOCK", block)
    embeddings = random_rows(40, 3)
    mined = mine_neighbors(embeddings, 15, EXACT, 0.5)
    assert (mined.similarity < -0.1).any()  # whose weight is none, not less
    found = neighbors.smooth(embeddings, mined)
    for row, embedding in enumerate(embeddings.astype(np.float64)):
        total = embedding.copy()
        for index, cosine in zip(mined.nearest[row], mined.similarity[row], strict=True):
            total += max(float(cosine), 0.0) ** 3 * embeddings[index]
        np.testing.assert_allclose(found[row], total / np.linalg.norm(total), atol=1e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize("exact_rows", [EXACT, 100])
def test_with_smoothing_the_neighbors_are_those_of_smoothed_rows(exact_rows):
    embeddings = random_rows(300, 8)
    kept = embeddings.copy()
    found = mine_neighbors(embeddings, 6, exact_rows, 1.0, smoothing=5)
    first = mine_neighbors(embeddings, 5, exact_rows, 1.0)
    wanted = mine_neighbors(neighbors.smooth(embeddings, first), 6, exact_rows, 1.0)
    assert np.array_equal(found.nearest, wanted.nearest)
    assert np.array_equal(found.similarity, wanted.similarity)
    assert not np.array_equal(found.nearest[:, :5], first.nearest)
    assert np.array_equal(embeddings, kept)


def test_smoothing_finds_more_of_a_row_s_own_cluster():
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(5, 32))
    cluster = rng.integers(5, size=500)
    embeddings = unit(centers[cluster] + 2.0 * rng.normal(size=(500, 32)))

    def own(smoothing):
        nearest = mine_neighbors(embeddings, 20, EXACT, 0.5, smoothing=smoothing).nearest
        return float((cluster[nearest] == cluster[:, None]).mean())

    assert own(20) > own(0) + 0.1


# --- More rows than are searched exactly


def clustered(count, centers, dimensions=16, seed=0):
    rng = np.random.default_rng(seed)
    return unit(
        rng.normal(size=(centers, dimensions))[rng.integers(centers, size=count)]
        + 0.3 * rng.normal(size=(count, dimensions))
    )


def share_of_true(embeddings, mined):
    """The share of the neighbors that are as near as brute force's, of ties either: all rows, in float64."""
    cosines, k = cosines_of_others(embeddings), mined.nearest.shape[1]
    least = -np.partition(-cosines, k - 1, axis=1)[:, k - 1 : k]
    return float((np.take_along_axis(cosines, mined.nearest, axis=1) >= least - 1e-6).mean())


@pytest.fixture
def probed(monkeypatch):
    """The inverted files that are made."""
    made, original = [], neighbors._inverted_file

    def spy(embeddings, gpu):
        made.append(original(embeddings, gpu))
        return made[-1]

    monkeypatch.setattr(neighbors, "_inverted_file", spy)
    return made


MANY = clustered(6000, 60)


@pytest.mark.parametrize("recall", [0.5, 0.8, 0.95, 0.99])
@pytest.mark.slow
def test_an_inverted_file_has_the_recall_that_is_wanted_and_reports_it(probed, recall):
    """As brute force over all rows has it, not the sample alone; the least power of 2 of cells that suffices."""
    mined = mine_neighbors(MANY, 10, 5999, recall)
    assert_others(MANY, mined, 10)
    assert mined.recall >= recall
    assert share_of_true(MANY, mined) == pytest.approx(mined.recall, abs=0.02)
    (index,) = probed
    assert (index.nlist, index.ntotal) == (256, 6000)
    assert index.nprobe < 64
    if index.nprobe > 1:
        index.nprobe //= 2
        fewer = Mined(*neighbors._others(MANY, np.arange(6000), 10, index)[::-1], 0.0)
        assert share_of_true(MANY, fewer) < recall + 0.02


def test_more_recall_takes_more_cells(probed):
    found = [mine_neighbors(MANY, 10, 5999, recall).recall for recall in (0.1, 0.9, 0.999)]
    assert found[0] < 0.8 < found[1] < 0.999 <= found[2]
    assert probed[0].nprobe < probed[1].nprobe < probed[2].nprobe


@pytest.mark.parametrize(("exact_rows", "exact"), [(300, True), (301, True), (299, False), (1, False)])
def test_only_more_rows_than_exact_rows_are_searched_by_an_inverted_file(probed, exact_rows, exact):
    embeddings = random_rows(300, 16)
    mined = mine_neighbors(embeddings, 5, exact_rows, 0.1)
    assert len(probed) == (0 if exact else 1)
    assert (mined.recall == 1.0) is exact
    assert (share_of_true(embeddings, mined) == 1.0) is exact


def test_a_recall_of_1_is_that_of_an_exact_search():
    """Points without any structure, of which no cell holds a row's neighbors."""
    assert_valid(random_rows(300, 32), 20, exact_rows=299)


def test_where_the_recall_cannot_be_had_all_cells_are_visited_and_the_search_ends(monkeypatch, probed):
    """One that never finds any, so that the doubling must end by itself; then the reported recall is that, 0."""
    original = neighbors._others

    def nothing(embeddings, rows, k, index=None, gpu=None):
        similarity, nearest = original(embeddings, rows, k, index, gpu)
        return (similarity if index is None else similarity - 2), nearest

    monkeypatch.setattr(neighbors, "_others", nothing)
    assert mine_neighbors(random_rows(200), 5, 100, 1.0).recall == 0.0
    assert probed[0].nprobe == probed[0].nlist


def test_on_a_gpu_no_more_cells_are_visited_than_faiss_allows(monkeypatch):
    def on_gpu(memory, queries, rows, k, metric, vectorsMemoryLimit):
        return faiss.knn(queries, rows, k, metric=metric)

    monkeypatch.setattr(faiss, "knn_gpu", on_gpu, raising=False)
    monkeypatch.setattr(neighbors, "GPU_PROBES", 4)
    index, embeddings = neighbors._inverted_file(MANY), MANY
    reached = neighbors._probe(index, embeddings, 10, 1.0, gpu="memory")
    assert index.nprobe == 4 and 0.5 < reached < 1
    assert neighbors._probe(index, embeddings, 10, 1.0) == 1 and index.nprobe > 4
    assert neighbors._probe(index, embeddings, 10, 0.1, gpu="memory") > 0.1 and index.nprobe == 1


def test_rows_in_cells_with_fewer_rows_than_neighbors_get_the_nearest_of_all(probed):
    """A recall so low that one cell is enough, and that holds about 5 rows."""
    embeddings, k = random_rows(400, 16), 30
    mined = mine_neighbors(embeddings, k, 399, 1e-6)
    assert_others(embeddings, mined, k)
    (index,) = probed
    assert index.nprobe == 1
    short = (index.search(embeddings, k + 1)[1] < 0).any(axis=1)
    assert short.mean() > 0.5
    exact = mine_neighbors(embeddings, k, EXACT, 1.0)
    assert np.array_equal(mined.nearest[short], exact.nearest[short])
    np.testing.assert_allclose(mined.similarity[short], exact.similarity[short], atol=1e-6)


@pytest.mark.parametrize("count", [2, 3, 5, 8, 12, 20, 33, 64])
def test_an_inverted_file_of_few_rows_has_no_more_cells_than_rows(probed, count):
    embeddings = random_rows(count)
    assert_valid(embeddings, 1, exact_rows=1)
    assert_others(embeddings, mine_neighbors(embeddings, count - 1, 1, 0.5), count - 1)
    assert all(index.nlist <= count for index in probed)


@pytest.mark.parametrize("recall", [0.5, 0.95])
def test_the_same_embeddings_give_the_same_bytes_and_stay_as_they_are(recall):
    embeddings = MANY.copy()
    first, second = (mine_neighbors(each, 10, 1000, recall) for each in (embeddings, MANY.copy()))
    assert first.nearest.tobytes() == second.nearest.tobytes()
    assert first.similarity.tobytes() == second.similarity.tobytes()
    assert first.recall == second.recall
    assert np.array_equal(embeddings, MANY)


@pytest.mark.parametrize(("device", "there", "used"), [
    ("auto", 1, True), ("cuda", 1, True), ("cpu", 1, False), ("auto", 0, False), ("cpu", 0, False),
])  # fmt: skip
def test_a_gpu_is_used_where_there_is_one_and_it_is_wanted(monkeypatch, device, there, used):
    calls = []

    def on_gpu(memory, queries, rows, k, metric, vectorsMemoryLimit):
        assert memory == "memory" and vectorsMemoryLimit > 0
        calls.append(len(queries))
        return faiss.knn(queries, rows, k, metric=metric)

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: there)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "memory", raising=False)
    monkeypatch.setattr(faiss, "knn_gpu", on_gpu, raising=False)
    embeddings = random_rows(40)
    assert_others(embeddings, mine_neighbors(embeddings, 5, EXACT, 0.5, device), 5)
    assert calls == [40] * used


# --- copies


def test_copies_are_one_neighbor_and_have_those_of_their_first():
    rows = random_rows(40)
    copied = np.array([3, 3, 3, 7, 39])
    first = np.concatenate([np.arange(40), copied])
    mined = mine_distinct(np.concatenate([rows, rows[copied]]), first, 6, EXACT, 1.0)
    alone = mine_neighbors(rows, 6, EXACT, 1.0)
    assert np.array_equal(mined.nearest, alone.nearest[first])
    assert np.array_equal(mined.similarity, alone.similarity[first])
    assert mined.nearest.max() < 40


def test_the_first_of_copies_may_be_anywhere():
    rows = random_rows(5)
    first = np.array([0, 3, 2, 3, 0])
    mined = mine_distinct(rows, first, 2, EXACT, 1.0)
    assert {int(each) for each in mined.nearest.ravel()} == {0, 2, 3}
    assert mined.nearest[1].tolist() == mined.nearest[3].tolist()


def test_without_copies_nothing_changes():
    rows = random_rows(30)
    one, other = mine_distinct(rows, np.arange(30), 4, EXACT, 1.0), mine_neighbors(rows, 4, EXACT, 1.0)
    assert np.array_equal(one.nearest, other.nearest) and np.array_equal(one.similarity, other.similarity)


def test_images_that_are_all_copies_of_one_are_an_error():
    with pytest.raises(ScanError, match="all 6 images are copies of one; add others"):
        mine_distinct(np.repeat(random_rows(1), 6, axis=0), np.zeros(6, np.int64), 1, EXACT, 1.0)
