"""The reduce driver on sets written by hand, against numpy's formulas."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contrans_dist.config.map_options import MapOptions
from contrans_dist.data.contamination import unit_hashes
from contrans_dist.data.corpus import prepare_corpus
from contrans_dist.data.texts import text_table
from contrans_dist.errors import UserError
from contrans_dist.mapping import aligned_rows as joining
from contrans_dist.mapping import distributed_sums, driver
from contrans_dist.mapping.aligned_rows import join
from contrans_dist.mapping.block_pairs import all_pairs, choose_pairs
from contrans_dist.mapping.driver import fit, fit_one_by_one
from contrans_dist.mapping.fit import fit_rows
from contrans_dist.mapping.heldout import FIT, TEST, VALIDATION
from contrans_dist.mapping.solver import RIDGES
from contrans_dist.store.activation_set import ActivationSet
from contrans_dist.vectors.from_activations import concept_rows, concepts_in, refine, select_rows
from tests.sets import make_set

N, D_SOURCE, D_TARGET = 300, 7, 5
BLOCKS_SOURCE, BLOCKS_TARGET = (0, 2), (1, 2, 3)
CONCEPTS = ["joy", "fear", "anger"]


def source_rows(n: int = N) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(0)
    return {b: (rng.normal(size=(n, D_SOURCE)) + b).astype(np.float32) for b in BLOCKS_SOURCE}


def target_rows(n: int = N) -> dict[int, np.ndarray]:
    """Block b follows the source's block 2 with noise b."""
    rng = np.random.default_rng(1)
    plan = rng.normal(size=(D_SOURCE, D_TARGET))
    clean = source_rows(n)[2] @ plan + 3
    return {b: (clean + b * rng.normal(size=(n, D_TARGET))).astype(np.float32) for b in BLOCKS_TARGET}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[ActivationSet, ActivationSet]:
    folder = tmp_path_factory.mktemp("sets")
    columns: dict[str, Any] = {
        "concept": [CONCEPTS[i % 3] for i in range(N)],
        "label": ["positive" if (i // 3) % 2 else "negative" for i in range(N)],
        "number": list(range(N)),
    }
    return (
        make_set(folder / "source", source_rows(), 4, model="org/source", shard=90, **columns),
        make_set(folder / "target", target_rows(), 5, model="org/target", shard=70, **columns),
    )


# -- refine ----------------------------------------------------------------------------------------


def test_rows_are_selected_by_columns(sets: tuple[ActivationSet, ActivationSet]) -> None:
    rows = select_rows(sets[0], "concept=fear,label=positive")
    assert rows.tolist() == [i for i in range(N) if i % 3 == 1 and (i // 3) % 2]
    assert select_rows(sets[0], "number=17").tolist() == [17]
    for condition, said in (
        ("concept", "expected column=value"),
        ("=fear", "expected column=value"),
        ("colour=red", "no column 'colour'; it holds row, "),
        ("concept=shame", "no row has concept=shame"),
    ):
        with pytest.raises(UserError, match=said):
            select_rows(sets[0], condition)


def test_refine_by_mean_is_equation_1_at_every_block(sets: tuple[ActivationSet, ActivationSet]) -> None:
    positive, negative = concept_rows(sets[0], "joy")
    assert positive.tolist() == [i for i in range(N) if i % 3 == 0 and (i // 3) % 2]
    assert negative.tolist() == [i for i in range(N) if i % 3 == 0 and not (i // 3) % 2]
    vector = refine(sets[0], positive, negative, "joy")
    assert vector.values.shape == (4, D_SOURCE)
    assert vector.blocks == list(BLOCKS_SOURCE)
    for block, rows in source_rows().items():
        expected = rows[positive].mean(axis=0, dtype=np.float64) - rows[negative].mean(
            axis=0, dtype=np.float64
        )
        np.testing.assert_allclose(vector.at(block), expected, rtol=1e-6, atol=1e-7)
        assert vector.norms[block] == pytest.approx(np.median(np.linalg.norm(rows, axis=1)))
    assert (vector.model, vector.n_positive, vector.n_negative) == ("org/source", 50, 50)
    used = [f"text number {i} of the corpus" for i in [*positive, *negative]]
    assert set(vector.text_hashes) == set(unit_hashes(used))
    assert len(used) == 100


def test_refine_by_pca_is_the_first_component_of_the_differences(
    sets: tuple[ActivationSet, ActivationSet],
) -> None:
    positive, negative = concept_rows(sets[0], "fear")
    vector = refine(sets[0], positive, negative, "fear", "pca")
    for block, rows in source_rows().items():
        differences = (rows[positive].astype(np.float64) - rows[negative]).astype(np.float64)
        first = np.linalg.svd(differences - differences.mean(axis=0))[2][0]
        first *= np.sign(first @ differences.mean(axis=0))
        np.testing.assert_allclose(vector.at(block), first, atol=1e-6)


def test_without_labels_a_concept_stands_against_the_others(tmp_path: Path) -> None:
    labels: list[str | None] = [*(CONCEPTS[i % 3] for i in range(30)), None]
    rows = make_set(tmp_path / "set", {0: np.ones((31, 2), np.float32)}, 1, concept=labels)
    assert concepts_in(rows) == CONCEPTS
    positive, negative = concept_rows(rows, "fear", seed=3)
    assert positive.tolist() == list(range(1, 30, 3))
    concepts = [labels[row] for row in negative]
    assert sorted(map(str, concepts)) == ["anger"] * 5 + ["joy"] * 5
    assert concept_rows(rows, "fear", seed=3)[1].tolist() == negative.tolist()
    short = concept_rows(rows, "fear", seed=3, limit=4)
    assert [part.tolist() for part in short] == [positive[:4].tolist(), negative[:4].tolist()]
    with pytest.raises(UserError, match="'shame'"):
        concept_rows(rows, "shame")


def test_a_concept_without_difference_says_where(tmp_path: Path) -> None:
    rows = make_set(tmp_path / "set", {0: np.ones((8, 2), np.float32)}, 1, label=["a"] * 4 + ["b"] * 4)
    with pytest.raises(UserError, match=r"set, concept flat: .*pca"):
        refine(rows, np.arange(4), np.arange(4, 8), "flat", "pca")


# -- join ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_a_time", [joining._ROWS_READ, 50])
def test_sets_over_other_texts_are_refused_by_row(
    sets: tuple[ActivationSet, ActivationSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_a_time: int
) -> None:
    monkeypatch.setattr(joining, "_ROWS_READ", at_a_time)
    texts = [f"text number {i} of the corpus" for i in range(N)]
    texts[123] = "another one"
    other = make_set(tmp_path / "other", target_rows(), 5, texts)
    with pytest.raises(UserError, match=r"source and .*other differ in row 123: "):
        fit(sets[0], other, "2:2")
    shorter = make_set(tmp_path / "shorter", target_rows(200), 5)
    with pytest.raises(UserError, match="differ in row 200: "):
        fit(sets[0], shorter, "2:2")


def test_ids_and_texts_that_are_read_in_parts_make_the_same_map(
    sets: tuple[ActivationSet, ActivationSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(*sets, "2:2")
    read: list[int] = []
    columns = ActivationSet.read_columns

    def counted(self: ActivationSet, names: list[str], start: int = 0, stop: int | None = None) -> Any:
        read.append((self.n_rows if stop is None else stop) - start)
        return columns(self, names, start, stop)

    monkeypatch.setattr(joining, "_ROWS_READ", 50)
    monkeypatch.setattr(ActivationSet, "read_columns", counted)
    parts = fit(*sets, "2:2")
    assert max(read) == 50
    np.testing.assert_array_equal(parts.maps[2, 2].weight, whole.maps[2, 2].weight)
    np.testing.assert_array_equal(parts.text_hashes, whole.text_hashes)
    texts = sets[0].read_columns(["text"]).column("text").to_pylist()
    np.testing.assert_array_equal(parts.text_hashes, unit_hashes(texts))


def test_prefixes_of_one_text_stay_together(tmp_path: Path) -> None:
    n_texts, per_text = 200, 5
    texts = [f"prefix {i} of a text" for i in range(n_texts * per_text)]
    origin = [i // per_text for i in range(len(texts))]
    rows = {0: np.random.default_rng(0).normal(size=(len(texts), 3))}
    pair = [make_set(tmp_path / name, rows, 1, texts, source_row=origin) for name in "ab"]
    split = join(pair[0], pair[1], "default").split.reshape(n_texts, per_text)
    assert (split == split[:, :1]).all()
    shares = {part: float((split == part).mean()) for part in (FIT, VALIDATION, TEST)}
    assert shares[FIT] == pytest.approx(0.8, abs=0.08)
    assert shares[VALIDATION] == pytest.approx(0.1, abs=0.06)
    assert shares[TEST] > 0.04


@pytest.mark.parametrize("cut", ["none", "end", "random"])
def test_identical_texts_of_a_corpus_stay_together(tmp_path: Path, cut: Any) -> None:
    distinct = [f"{i} is the number of a story that goes on and on" for i in range(150)]
    corpus = prepare_corpus(text_table({"text": distinct * 2}), cut, per_text=2)
    texts, origin = corpus.column("text").to_pylist(), corpus.column("source_row").to_pylist()
    rows = {0: np.random.default_rng(0).normal(size=(len(texts), 3))}
    pair = [make_set(tmp_path / name, rows, 1, texts, source_row=origin) for name in "ab"]
    parts: dict[str, set[str]] = {}
    for text, part in zip(texts, join(pair[0], pair[1], "default").split, strict=True):
        parts.setdefault(text.split()[0], set()).add(part)
    assert len(parts) == 150
    assert all(len(parts_of_text) == 1 for parts_of_text in parts.values())


def test_equal_prefixes_of_different_texts_stay_together(tmp_path: Path) -> None:
    texts = [f"{i % 10} stories begin alike and then go on to {i}" for i in range(150)]
    corpus = prepare_corpus(text_table({"text": texts}), "random", per_text=3)
    prefixes, origin = corpus.column("text").to_pylist(), corpus.column("source_row").to_pylist()
    rows = {0: np.random.default_rng(0).normal(size=(len(prefixes), 3))}
    pair = [make_set(tmp_path / name, rows, 1, prefixes, source_row=origin) for name in "ab"]
    parts: dict[str, set[str]] = {}
    for prefix, part in zip(prefixes, join(pair[0], pair[1], "default").split, strict=True):
        parts.setdefault(prefix, set()).add(part)
    assert 10 < len(parts) < len(prefixes)
    assert {len(parts_of_prefix) for parts_of_prefix in parts.values()} == {1}
    assert set.union(*parts.values()) == {FIT, VALIDATION, TEST}


def test_which_pairs_of_blocks(sets: tuple[ActivationSet, ActivationSet]) -> None:
    joined = join(*sets, "default")
    assert choose_pairs("2:3", joined)[0] == [(2, 3)]
    assert choose_pairs("0:1,2:2", joined)[0] == [(0, 1), (2, 2)]
    assert choose_pairs("depth", joined)[0] == [(3, 4)]
    assert choose_pairs("r2", joined)[0] == [(2, 1)]  # the least noise
    (best,) = choose_pairs("best", joined)[0]  # the least noise among the upper thirds, as far as harvested
    table = all_pairs(joined).only(range(2, 4), range(3, 5))
    assert best == table.best()
    assert best[0] >= 2
    assert best[1] >= 3
    for spec in ("nonsense", "1", "a:b", "9:1", "1:2:3", "all:3", "2:0:2"):
        with pytest.raises(UserError):
            choose_pairs(spec, joined)
    with pytest.raises(UserError, match="block 3 was not harvested; it holds"):
        fit(*sets, "depth")


# -- fit -------------------------------------------------------------------------------------------


def authors_map(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Equation 2 as the authors' code has it: float32, the first 80 %, V diag(1/sigma) U^T Y."""
    n = int(len(x) * 0.8)
    u, sigma, v = np.linalg.svd(x[:n].astype(np.float32), full_matrices=False)
    return v.T @ np.diag(1 / sigma) @ u.T @ y[:n].astype(np.float32)


def test_protocol_paper_is_the_authors_formula(sets: tuple[ActivationSet, ActivationSet]) -> None:
    maps = fit(*sets, "2:3", MapOptions("paper"), quiet=True)
    weight = maps.maps[2, 3].weight
    expected = authors_map(source_rows()[2], target_rows()[3])
    assert np.linalg.norm(weight - expected) < 1e-4 * np.linalg.norm(expected)
    assert not maps.maps[2, 3].bias.any()
    assert (maps.source_model, maps.target_model, maps.n_target_blocks) == ("org/source", "org/target", 5)
    assert len(maps.text_hashes) == N
    held = slice(N * 9 // 10, N)
    x, y = source_rows()[2][held].astype(np.float64), target_rows()[3][held].astype(np.float64)
    assert maps.maps[2, 3].mse_test == pytest.approx(np.mean((x @ expected - y) ** 2), rel=1e-4)


def test_protocol_default_is_centred_ridge_on_the_rows_the_split_names(
    sets: tuple[ActivationSet, ActivationSet],
) -> None:
    maps = fit(*sets, "2:2", quiet=True)
    mapping = maps.maps[2, 2]
    split = join(*sets, "default").split
    x, y = source_rows()[2].astype(np.float64), target_rows()[2].astype(np.float64)
    fitted, test = split == FIT, split == TEST
    mean_x, mean_y = x[fitted].mean(axis=0), y[fitted].mean(axis=0)
    gram = (x[fitted] - mean_x).T @ (x[fitted] - mean_x)
    assert mapping.ridge is not None
    penalty = mapping.ridge * np.linalg.eigvalsh(gram)[-1] * np.eye(D_SOURCE)
    expected = np.linalg.solve(gram + penalty, (x[fitted] - mean_x).T @ (y[fitted] - mean_y))
    np.testing.assert_allclose(mapping.weight, expected, rtol=1e-4, atol=1e-5)
    predicted = (x[test] - mean_x) @ expected + mean_y
    r2 = 1 - np.sum((predicted - y[test]) ** 2) / np.sum((y[test] - mean_y) ** 2)
    assert mapping.r2_test == pytest.approx(r2, abs=1e-5)
    control = maps.shuffled[2, 2]
    assert 0 < np.linalg.norm(control) < 0.5 * np.linalg.norm(mapping.weight)


def test_rows_fit_l_cross_as_numpys_pseudo_inverse(sets: tuple[ActivationSet, ActivationSet]) -> None:
    rows = select_rows(sets[0], "concept=anger")
    maps = fit(*sets, "0:3", MapOptions("lcross"), rows=rows, quiet=True)
    x, y = source_rows()[0][rows].astype(np.float64), target_rows()[3][rows].astype(np.float64)
    np.testing.assert_allclose(maps.maps[0, 3].weight, np.linalg.pinv(x) @ y, rtol=1e-4, atol=1e-5)
    assert maps.maps[0, 3].n_fit == len(rows) == 100
    assert not maps.maps[0, 3].held_out
    assert set(maps.text_hashes) == set(unit_hashes([f"text number {i} of the corpus" for i in rows]))
    few = fit(*sets, "0:3", MapOptions("lcross"), rows=rows[:4], quiet=True).maps[0, 3]
    expected = np.linalg.pinv(x[:4]) @ y[:4]
    np.testing.assert_allclose(few.weight, expected, rtol=1e-3, atol=1e-4)
    assert few.side == "dual"


def test_the_table_of_all_pairs_is_each_pair_fitted_alone(
    sets: tuple[ActivationSet, ActivationSet],
) -> None:
    joined = join(*sets, "default")
    table = all_pairs(joined)
    assert (table.source, table.target) == (list(BLOCKS_SOURCE), list(BLOCKS_TARGET))
    for i, s in enumerate(table.source):
        for j, t in enumerate(table.target):
            x, y = source_rows()[s], target_rows()[t]
            maps = [fit_rows(x, y, MapOptions(ridges=(ridge,)), split=joined.split) for ridge in RIDGES]
            alone = [mapping.r2_validation for mapping in maps]
            assert table.values[i][j] == pytest.approx(max(r2 for r2 in alone if r2 is not None), abs=1e-6)
    assert np.argmax(table.array) == table.source.index(2) * 3
    with pytest.raises(UserError, match="protocol lcross"):
        all_pairs(join(*sets, "lcross"))
    best = fit(*sets, "r2", quiet=True)
    assert best.r2_table is not None
    assert best.only_pair() == (2, 1)


def test_pairs_fitted_one_by_one_are_each_pair_fitted_alone(
    sets: tuple[ActivationSet, ActivationSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All pairs in one call: the texts are joined and hashed once, a source block is read once."""
    pairs = [(s, t) for t in BLOCKS_TARGET for s in BLOCKS_SOURCE]
    alone = {pair: fit(*sets, f"{pair[0]}:{pair[1]}", quiet=True) for pair in pairs}
    read: list[tuple[str, int]] = []
    read_block = ActivationSet.read_block

    def counted(self: ActivationSet, block: int, *rows: Any) -> Any:
        read.append((self.manifest.identity.model, block))
        return read_block(self, block, *rows)

    monkeypatch.setattr(ActivationSet, "read_block", counted)
    together = list(fit_one_by_one(join(*sets, "default"), pairs))
    assert [maps.only_pair() for maps in together] == sorted(pairs)
    assert read.count(("org/source", 0)) == read.count(("org/source", 2)) == 1
    for maps in together:
        pair = maps.only_pair()
        np.testing.assert_array_equal(maps.maps[pair].weight, alone[pair].maps[pair].weight)
        np.testing.assert_array_equal(maps.shuffled[pair], alone[pair].shuffled[pair])
        np.testing.assert_array_equal(maps.text_hashes, alone[pair].text_hashes)


def test_bad_protocols_and_too_few_rows(sets: tuple[ActivationSet, ActivationSet], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="protocol papre: expected one of default, paper, lcross"):
        MapOptions("papre")  # type: ignore[arg-type]
    two = [make_set(tmp_path / name, {0: np.eye(2, dtype=np.float32)}, 1) for name in "ab"]
    with pytest.raises(UserError, match="/a: "):
        fit(two[0], two[1], "0:0")


# -- sums over Ray ---------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [37, 120, 1000])
def test_sums_over_ray_give_the_map_of_the_rows(
    local: None, sets: tuple[ActivationSet, ActivationSet], monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    pairs = [(0, 3), (2, 1), (2, 3)]
    for protocol in ("default", "paper", "lcross"):
        in_memory = fit(*sets, "0:3,2:1,2:3", MapOptions(protocol), quiet=True)  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            patch.setattr(driver, "ROWS_IN_MEMORY", 10)
            patch.setattr(distributed_sums, "CHUNK_ROWS", chunk)
            patch.setattr(driver, "_FitInMemory", None)  # must not be taken
            by_sums = fit(*sets, "0:3,2:1,2:3", MapOptions(protocol), quiet=True)  # type: ignore[arg-type]
        for pair in pairs:
            a, b = in_memory.maps[pair], by_sums.maps[pair]
            scale = np.abs(a.weight).max()
            # Both are stored as float32, so a last-bit difference of rounding may be left.
            assert np.abs(a.weight - b.weight).max() <= 2e-7 * scale
            assert (a.n_fit, a.rank, a.ridge, b.side) == (b.n_fit, b.rank, b.ridge, "primal")
            for name in ("r2_validation", "r2_test", "condition_number"):
                expected = getattr(a, name)
                assert getattr(b, name) == (None if expected is None else pytest.approx(expected, rel=1e-9))
            control = by_sums.shuffled[pair]
            assert np.linalg.norm(control) > 0
            assert not np.allclose(control, b.weight, rtol=0.1)


def test_a_source_blocks_own_sums_are_made_once_for_all_its_targets(
    local: None, sets: tuple[ActivationSet, ActivationSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "ROWS_IN_MEMORY", 10)
    factored: list[int] = []
    source_sums = distributed_sums.SourceSums

    def counted(parts: Any, *options: Any) -> Any:
        factored.append(parts[FIT].n)
        return source_sums(parts, *options)

    monkeypatch.setattr(distributed_sums, "SourceSums", counted)
    joined = join(*sets, "default")
    fitted = list(fit_one_by_one(joined, [(0, 1), (0, 2), (0, 3), (2, 1)]))
    assert len(fitted) == 4
    assert factored == [(joined.split == FIT).sum()] * 2


def test_sums_over_ray_leave_the_control_out_when_it_is_not_wanted(
    local: None, sets: tuple[ActivationSet, ActivationSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "ROWS_IN_MEMORY", 10)
    assert fit(*sets, "2:1", shuffled=False, quiet=True).shuffled == {}
