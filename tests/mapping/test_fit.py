import json

import numpy as np
import pytest

from contrans_dist.config.map_options import MapOptions
from contrans_dist.mapping import block_r2 as pairs
from contrans_dist.mapping.block_r2 import r2_table
from contrans_dist.mapping.fit import SourceRows, SourceSums, fit_rows
from contrans_dist.mapping.heldout import (
    FIT,
    TEST,
    VALIDATION,
    default_split,
    paper_split,
    shuffle_order,
    split_of,
)
from contrans_dist.mapping.library import map_vectors
from contrans_dist.mapping.linear_map import AffineMap, random_map
from contrans_dist.mapping.solver import RIDGES, SLACK, PseudoInverseOfSums
from contrans_dist.mapping.sums import Sums, merge

PARTS = (FIT, VALIDATION, TEST)
DEFAULT, PAPER, LCROSS = MapOptions(), MapOptions("paper"), MapOptions("lcross")


def rows_of_condition(n: int, d: int, condition: float, seed: int = 0, outliers: int = 2) -> np.ndarray:
    """Rows [n, d], float64, with singular values spread evenly (in logarithm) over `condition`.

    Some columns are 100 times the rest, as real residual streams have them; the spectrum is set after that.
    """
    rng = np.random.default_rng([seed, n, d])
    x = rng.standard_normal((n, d))
    x[:, rng.permutation(d)[:outliers]] *= 100.0
    u, _, vt = np.linalg.svd(x, full_matrices=False)
    return (u * np.logspace(0, -np.log10(condition), min(n, d))) @ vt * 100


def planted(
    n: int, d_s: int, d_t: int, noise: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(source, target, F): target = source F + 7 + noise, the source's mean far from zero."""
    rng = np.random.default_rng(1)
    truth = rng.standard_normal((d_s, d_t))
    source = rng.standard_normal((n, d_s)) * rng.uniform(0.3, 3.0, d_s) + rng.standard_normal(d_s) * 5
    return source, source @ truth + 7 + noise * rng.standard_normal((n, d_t)), truth


def error(actual: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(actual - truth) / np.linalg.norm(truth))


def control_of(
    source: np.ndarray,
    target: np.ndarray,
    mapping: AffineMap,
    options: MapOptions = DEFAULT,
    seed: int = 0,
    tokens: np.ndarray | None = None,
) -> AffineMap:
    return SourceRows(source, options, tokens=tokens).control(target, mapping, seed)


def fit_sums(parts: dict[str, Sums], options: MapOptions, centre: bool) -> AffineMap:
    return SourceSums(parts, options, centre).fit(parts, options.ridges)


def sums_of(x: np.ndarray, y: np.ndarray, parts: np.ndarray) -> dict[str, Sums]:
    return {part: Sums.of(x[parts == part], y[parts == part]) for part in PARTS}


# ---------------------------------------------------------------- protocol: paper


@pytest.mark.parametrize(("n", "d_s", "d_t"), [(300, 20, 30), (60, 90, 40), (125, 100, 10)])
def test_paper_is_the_authors_formula(n: int, d_s: int, d_t: int) -> None:
    source, target, _ = (a.astype(np.float32) for a in planted(n, d_s, d_t, noise=0.5))
    mapping = fit_rows(source, target, PAPER)
    used = int(0.8 * n)
    u, sigma, vt = np.linalg.svd(source[:used], full_matrices=False)
    assert u.dtype == np.float32
    formula = vt.T @ np.diag(1 / sigma) @ u.T @ target[:used]
    exact = np.linalg.pinv(source[:used].astype(np.float64)) @ target[:used]
    assert error(mapping.weight, formula) < 1e-4
    assert error(mapping.weight, exact) < 1e-6
    assert not mapping.bias.any()
    assert mapping.side == ("dual" if used < d_s else "primal")
    assert (mapping.n_fit, mapping.rank) == (used, min(used, d_s))
    # sigma[-1] of a nearly square matrix is what power iteration finds last: a few per cent are promised.
    assert mapping.condition_number == pytest.approx(sigma[0] / sigma[-1], rel=0.1)
    assert mapping.warnings == [] or "R2" in mapping.warnings[0]


def test_paper_reports_on_the_last_tenth_and_never_fits_on_it() -> None:
    source, target, _ = planted(200, 12, 8, noise=1.0)
    mapping = fit_rows(source, target, PAPER)
    residual = target[180:] - source[180:] @ mapping.weight
    spread = target[180:] - target[:160].mean(axis=0)
    assert mapping.mse_test == pytest.approx(np.mean(residual**2), rel=1e-5)
    assert mapping.r2_test == pytest.approx(1 - (residual**2).sum() / (spread**2).sum(), rel=1e-5)
    target[160:] = 1e6
    np.testing.assert_array_equal(fit_rows(source, target, PAPER).weight, mapping.weight)


@pytest.mark.parametrize("n", [120, 40])
def test_lcross_is_the_pseudo_inverse_of_all_rows_and_says_in_sample(n: int) -> None:
    source, target, _ = planted(n, 60, 11, noise=1.0)
    mapping = fit_rows(source, target, LCROSS)
    assert error(mapping.weight, np.linalg.pinv(source) @ target) < 1e-6
    assert mapping.n_fit == n
    assert not mapping.held_out
    assert mapping.r2_validation is None
    assert any("in-sample" in line for line in mapping.warnings)
    if n < 60:
        assert mapping.r2_test == pytest.approx(1.0)


@pytest.mark.parametrize("n", [90, 40])
def test_rank_lost_to_repeated_texts_is_cut_off_and_told(n: int) -> None:
    source, target, _ = planted(n, 60, 11, noise=1.0)
    source[n // 2 :], target[n // 2 :] = source[: n - n // 2], target[: n - n // 2]
    mapping = fit_rows(source, target, LCROSS)
    assert mapping.rank == min(n // 2, 60)
    assert error(mapping.weight, np.linalg.pinv(source, rcond=1e-12) @ target) < 1e-5
    assert any(f"rank {mapping.rank} of {min(n, 60)}" in line for line in mapping.warnings)
    sums = fit_sums({FIT: Sums.of(source, target)}, LCROSS, False)
    assert sums.rank == mapping.rank
    assert error(sums.weight, mapping.weight) < 1e-4
    assert any("rank" in line for line in sums.warnings)


@pytest.mark.parametrize(("n", "d_s"), [(250, 400), (500, 250)])
def test_rows_keep_a_condition_of_1e6_with_outlier_columns(n: int, d_s: int) -> None:
    source = rows_of_condition(n, d_s, 1e6)
    rng = np.random.default_rng(3)
    target, vector = rng.standard_normal((n, 60)), rng.standard_normal(d_s)
    u, sigma, vt = np.linalg.svd(source, full_matrices=False)
    truth = vector @ vt.T / sigma @ u.T @ target
    mapping = fit_rows(source, target, LCROSS)
    assert error(vector @ mapping.weight, truth) < 1e-4
    assert mapping.condition_number == pytest.approx(1e6, rel=0.1)
    assert not any("condition" in line for line in mapping.warnings)
    moved, warnings = map_vectors(vector[None], source, target)
    assert error(moved[0], truth) < 1e-8
    assert warnings == []


@pytest.mark.parametrize(("n", "d_s"), [(250, 400), (500, 250)])
def test_rows_warn_at_1e10_and_are_still_right(n: int, d_s: int) -> None:
    source = rows_of_condition(n, d_s, 1e10)
    rng = np.random.default_rng(4)
    target, vector = rng.standard_normal((n, 60)), rng.standard_normal(d_s)
    mapping = fit_rows(source, target, LCROSS)
    moved, warnings = map_vectors(vector[None], source, target)
    assert any("condition number 1.0e+10" in line for line in mapping.warnings)
    assert any("condition number 1.0e+10" in line for line in warnings)
    u, sigma, vt = np.linalg.svd(source, full_matrices=False)
    assert error(moved[0], vector @ vt.T / sigma @ u.T @ target) < 1e-4


@pytest.mark.parametrize("n", [600, 120])
@pytest.mark.parametrize("exponent", [0, 2, 4, 5, 6, 6.2, 6.4, 6.6, 6.8, 7, 7.5, 8, 9, 10, 12, 14])
def test_sums_are_right_or_warn(exponent: float, n: int) -> None:
    source = rows_of_condition(n, 200, 10**exponent)
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((5, 200))
    # A target of pure noise lets the weak directions rule the map: the hardest case for the sums.
    target = rng.standard_normal((n, 50))
    u, sigma, vt = np.linalg.svd(source, full_matrices=False)
    truth = vectors @ vt.T / sigma @ u.T @ target
    halves = merge(Sums.of(source[:50], target[:50]), Sums.of(source[50:], target[50:]))
    mapping = fit_sums({FIT: halves}, LCROSS, False)
    lost = error(vectors @ mapping.weight, truth)
    trusted = [line for line in mapping.warnings if "in-sample" not in line] == []
    assert lost < 1e-4 or not trusted
    if exponent <= 6.2:
        # A cut-off meant for X (1e-12 of the largest eigenvalue) drops directions here, and a quarter of v F.
        assert lost < (1e-4 if exponent <= 6 else 1e-3)
        assert mapping.rank == min(n, 200)
        assert mapping.condition_number == pytest.approx(10**exponent, rel=0.1)
    if exponent <= 5:
        assert trusted
    if exponent >= 10:
        assert not trusted


def test_sums_never_show_more_rank_than_rows() -> None:
    full = np.diag([5.0, 4.0, 3.0, 2.0, 1.0])
    solution = PseudoInverseOfSums(full, n=3).solve(np.ones((5, 2)))
    assert solution.rank == 3
    np.testing.assert_allclose(solution.weight[:, 0], [1 / 5, 1 / 4, 1 / 3, 0, 0], atol=1e-12)


def test_sums_do_not_mind_columns_of_very_different_size() -> None:
    source, target, _ = planted(400, 50, 9, noise=0.1)
    size = np.logspace(-6, 6, 50)
    plain = fit_sums({FIT: Sums.of(source, target)}, LCROSS, False)
    scaled = fit_sums({FIT: Sums.of(source * size, target)}, LCROSS, False)
    assert error(scaled.weight * size[:, None], plain.weight) < 1e-5


def test_paper_from_sums_is_paper_from_rows() -> None:
    source, target, _ = planted(300, 20, 15, noise=0.5)
    rows = fit_rows(source, target, PAPER)
    sums = fit_sums(sums_of(source, target, paper_split(300)), PAPER, False)
    assert error(sums.weight, rows.weight) < 1e-6
    for name in ("r2_validation", "r2_test", "r2_test_column", "mse_test"):
        assert getattr(sums, name) == pytest.approx(getattr(rows, name), rel=1e-6)
    assert (sums.n_fit, sums.rank, sums.side) == (240, 20, "primal")


# ---------------------------------------------------------------- protocol: default


@pytest.mark.parametrize(("n", "side"), [(1500, "primal"), (140, "dual")])
def test_a_planted_map_and_its_bias_come_back(n: int, side: str) -> None:
    rng = np.random.default_rng(6)
    truth = rng.standard_normal((200, 30))
    # A source of rank 40, so that 112 rows see all of it and the dual side has a map to find.
    factors = rng.standard_normal((40, 200))
    source = rng.standard_normal((n, 40)) @ factors + 3
    target = source @ truth - 2
    mapping = fit_rows(source.astype(np.float32), target.astype(np.float32))
    assert mapping.side == side
    assert mapping.r2_test is not None
    assert mapping.r2_test > 0.9999
    assert (mapping.weight.dtype, mapping.bias.dtype) == (np.float32, np.float32)
    vector = rng.standard_normal(40) @ factors
    assert error(vector @ mapping.weight, vector @ truth) < 1e-3
    fresh = rng.standard_normal((5, 40)) @ factors + 3
    assert error(fresh @ mapping.weight + mapping.bias, fresh @ truth - 2) < 1e-3


@pytest.mark.parametrize(("n", "d_s", "noise"), [(300, 60, 30.0), (70, 90, 4.0)])
def test_default_is_the_brute_force_over_ridges(n: int, d_s: int, noise: float) -> None:
    source, target, _ = planted(n, d_s, 12, noise=noise)
    parts = default_split(n)
    fit, validation, test = (parts == name for name in ("fit", "validation", "test"))
    mean_x, mean_y = source[fit].mean(axis=0), target[fit].mean(axis=0)
    x, y = source[fit] - mean_x, target[fit] - mean_y
    top = np.linalg.svd(x, compute_uv=False)[0] ** 2
    spread_validation = np.sum((target[validation] - mean_y) ** 2)
    tried = []
    for ridge in RIDGES:
        # Ridge as ordinary least squares on the rows with sqrt(ridge) I appended: another way to the same F.
        stacked_x = np.vstack([x, np.sqrt(ridge * top) * np.eye(d_s)])
        weight = np.linalg.lstsq(stacked_x, np.vstack([y, np.zeros((d_s, 12))]), rcond=None)[0]
        missed = np.sum((target[validation] - mean_y - (source[validation] - mean_x) @ weight) ** 2)
        tried.append((1 - missed / spread_validation, ridge, weight))
    highest = max(r2 for r2, _, _ in tried)
    _, best_ridge, best_weight = next(ridge for ridge in tried if ridge[0] >= highest - 0.02)
    assert RIDGES[0] < best_ridge < RIDGES[-1]
    mapping = fit_rows(source, target)
    assert mapping.ridge == pytest.approx(best_ridge)
    assert error(mapping.weight, best_weight) < 1e-5
    np.testing.assert_allclose(mapping.bias, mean_y - mean_x @ best_weight, rtol=1e-4, atol=1e-4)
    for part, value in ((validation, mapping.r2_validation), (test, mapping.r2_test)):
        residual = target[part] - mean_y - (source[part] - mean_x) @ best_weight
        spread = target[part] - mean_y
        assert value == pytest.approx(1 - (residual**2).sum() / (spread**2).sum(), abs=1e-6)
        if part is test:
            columns = 1 - (residual**2).sum(axis=0) / (spread**2).sum(axis=0)
            assert mapping.r2_test_column == pytest.approx(np.median(columns), abs=1e-6)
            assert mapping.mse_test == pytest.approx(np.mean(residual**2), rel=1e-6)


@pytest.mark.parametrize(("n", "d_s"), [(300, 25), (70, 90)])
def test_both_sides_give_one_map(n: int, d_s: int) -> None:
    source, target, _ = planted(n, d_s, 12, noise=4.0)
    rows = fit_rows(source, target)
    sums = fit_sums(sums_of(source, target, default_split(n)), MapOptions(), True)
    assert (rows.side, sums.side) == ("primal" if n > d_s else "dual", "primal")
    assert rows.ridge == sums.ridge
    assert rows.rank == sums.rank
    assert error(rows.weight, sums.weight) < 1e-5
    assert rows.r2_test == pytest.approx(sums.r2_test, abs=1e-7)


def test_the_map_moves_with_the_data_not_with_the_origin() -> None:
    source, target, _ = planted(300, 20, 10, noise=1.0)
    moved = fit_rows(source + 40, target - 90)
    assert error(moved.weight, fit_rows(source, target).weight) < 1e-5


def test_a_map_that_predicts_nothing_is_told() -> None:
    source, target, _ = planted(300, 20, 10, noise=0.0)
    assert fit_rows(source, target).warnings == []
    contrary = np.where(
        (default_split(300) == "validation")[:, None], 2 * target.mean(axis=0) - target, target
    )
    assert any("largest ridge" in line for line in fit_rows(source, contrary).warnings)


def test_of_ridges_that_predict_alike_the_smallest_is_taken() -> None:
    source, target, _ = planted(300, 20, 10, noise=0.0)
    taken = [
        fit_rows(
            rows,
            target,
            MapOptions(
                ridges=(
                    1e-12,
                    1e-11,
                    1e-10,
                    1e-1,
                )
            ),
        ).ridge
        for rows in (source, source * 3)
    ]
    assert taken == [1e-12, 1e-12]


def test_worse_than_the_mean_is_told() -> None:
    rng = np.random.default_rng(8)
    mapping = fit_rows(
        rng.standard_normal((100, 60)), rng.standard_normal((100, 9)), MapOptions(ridges=(1e-6,))
    )
    assert mapping.r2_test is not None
    assert mapping.r2_test < 0
    assert any("worse than predicting the mean" in line for line in mapping.warnings)


def test_a_given_split_decides_who_is_fitted_on() -> None:
    source, target, _ = planted(300, 20, 10, noise=1.0)
    parts = split_of([f"text {i}" for i in range(300)])
    mapping = fit_rows(source, target, split=parts)
    assert mapping.n_fit == (parts == "fit").sum()
    target[parts == "test"] = np.random.default_rng(0).standard_normal((int((parts == "test").sum()), 10))
    changed = fit_rows(source, target, split=parts)
    np.testing.assert_array_equal(changed.weight, mapping.weight)
    assert changed.r2_test != mapping.r2_test


def test_what_cannot_be_fitted_is_refused() -> None:
    x, y = np.ones((20, 3)), np.ones((20, 2))
    noise = np.random.default_rng(0).standard_normal((20, 3))
    with pytest.raises(ValueError, match="all the same"):
        fit_rows(x, y)
    with pytest.raises(ValueError, match="source has 20 rows, target 19"):
        fit_rows(noise, y[1:])
    with pytest.raises(ValueError, match="at least 10"):
        fit_rows(noise[:9], y[:9])
    with pytest.raises(ValueError, match="no validation rows"):
        fit_rows(noise, y, split=np.array(["fit"] * 20))
    with pytest.raises(ValueError, match="no validation rows"):
        fit_rows(np.ones((20, 30)) * noise[:, :1], y, split=np.array(["fit"] * 20))
    with pytest.raises(ValueError, match="no rows to fit on"):
        fit_rows(noise, y, split=np.array(["test"] * 20))
    with pytest.raises(ValueError, match="one part for each of 20 rows"):
        fit_rows(noise, y, split=np.array(["fit"] * 19))
    with pytest.raises(ValueError, match="has no split"):
        fit_rows(noise, y, PAPER, split=default_split(20))
    with pytest.raises(ValueError, match="has no ridge"):
        fit_rows(noise, y, MapOptions("paper", ridges=(1.0,)))
    with pytest.raises(ValueError, match="best: expected one of default, paper, lcross"):
        fit_rows(noise, y, MapOptions("best"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positive numbers"):
        fit_rows(noise, y, MapOptions(ridges=(0.0,)))
    noise[3, 1] = np.nan
    with pytest.raises(ValueError, match="source: row 3"):
        fit_rows(noise, y)


# ---------------------------------------------------------------- splits, controls, storage


def test_split_of_is_stable_even_and_by_text() -> None:
    ids = [f"id-{i}" for i in range(5000)]
    parts = split_of(ids)
    shares = [np.mean(parts == name) for name in ("fit", "validation", "test")]
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.02)
    np.testing.assert_array_equal(split_of(ids[::-1]), parts[::-1])
    assert len({*split_of(["the same text"] * 9).tolist()}) == 1


def test_the_other_splits() -> None:
    assert paper_split(20).tolist() == ["fit"] * 16 + ["validation"] * 2 + ["test"] * 2
    parts = default_split(57).tolist()
    assert [parts.count(name) for name in ("fit", "validation", "test")] == [47, 5, 5]


def test_shuffled_rows_all_leave_their_place_and_only_fit_rows_move() -> None:
    fit = np.array([True, False] * 20)
    order = shuffle_order(fit, seed=1)
    assert sorted(order.tolist()) == list(range(40))
    assert (order[fit] != np.arange(40)[fit]).all()
    assert (order[~fit] == np.arange(40)[~fit]).all()
    assert (shuffle_order(fit, seed=2) != order).any()


@pytest.mark.parametrize(("options", "n"), [(PAPER, 1), (LCROSS, 0)])
def test_without_a_row_to_fit_on_there_is_no_map(options: MapOptions, n: int) -> None:
    with pytest.raises(ValueError, match="no rows to fit on"):
        fit_rows(np.ones((n, 4)), np.ones((n, 3)), options)


@pytest.mark.parametrize("protocol", ["default", "paper", "lcross"])
@pytest.mark.parametrize("n", [400, 60])
def test_the_shuffled_map_knows_nothing(protocol: str, n: int) -> None:
    source, target, _ = planted(n, 80, 20, noise=0.5)
    source -= source.mean(axis=0)
    target -= target.mean(axis=0)
    options = MapOptions(protocol)  # type: ignore[arg-type]
    mapping = fit_rows(source, target, options)
    control = control_of(source, target, mapping, options, seed=1)
    assert (control.protocol, control.side, control.ridge) == (protocol, mapping.side, mapping.ridge)
    flat = np.corrcoef(mapping.weight.ravel(), control.weight.ravel())[0, 1]
    assert abs(flat) < 0.15
    if protocol != "lcross":
        assert control.r2_test is not None
        assert mapping.r2_test is not None
        assert control.r2_test < 0.05 < mapping.r2_test
    assert np.any(control_of(source, target, mapping, options, seed=2).weight != control.weight)


def test_the_random_map_has_the_size_and_nothing_else() -> None:
    source, target, _ = planted(200, 20, 30, noise=0.5)
    mapping = fit_rows(source, target)
    control = random_map(mapping)
    assert control.weight.dtype == np.float32
    assert np.linalg.norm(control.weight) == pytest.approx(np.linalg.norm(mapping.weight), rel=1e-6)
    assert not control.bias.any()
    assert abs(np.corrcoef(control.weight.ravel(), mapping.weight.ravel())[0, 1]) < 0.15
    np.testing.assert_array_equal(random_map(mapping).weight, control.weight)


def test_a_map_survives_its_header() -> None:
    source, target, _ = planted(60, 80, 20, noise=0.5)
    fitted = fit_rows(source, target, PAPER)
    for mapping in (fitted, random_map(fitted)):
        header = json.loads(json.dumps(mapping.header(), allow_nan=False))
        again = AffineMap.from_header(mapping.weight, mapping.bias, {**header, "unknown": 1})
        assert again.header() == mapping.header()
        assert again.condition_number == mapping.condition_number


# ---------------------------------------------------------------- block pairs


@pytest.mark.parametrize("narrow", [0, 256])
def test_the_table_is_every_pair_fitted_alone_at_its_best_ridge(
    monkeypatch: pytest.MonkeyPatch, narrow: int
) -> None:
    monkeypatch.setattr(pairs, "NARROW", narrow)
    rng = np.random.default_rng(9)
    shared = rng.standard_normal((150, 12))

    def block(d: int, share: float) -> np.ndarray:
        rows = share * shared @ rng.standard_normal((12, d)) + rng.standard_normal((150, d)) * 2 + 5
        return rows.astype(np.float32)

    sources = {1: block(30, 0.3), 4: block(30, 2.0), 7: block(200, 1.0)}
    targets = {0: block(20, 1.5), 9: block(25, 0.5)}
    parts = split_of([str(i) for i in range(150)])
    table = r2_table(sources, targets, parts, width=200)
    assert table.shape == (3, 2)
    best = set()
    for i, source in enumerate(sources.values()):
        for j, target in enumerate(targets.values()):
            maps = [fit_rows(source, target, MapOptions(ridges=(ridge,)), split=parts) for ridge in RIDGES]
            alone = [mapping.r2_validation for mapping in maps if mapping.r2_validation is not None]
            best.add(int(np.argmax(alone)) % 2)
            assert table[i, j] == pytest.approx(max(alone), abs=1e-8)
            fitted = fit_rows(source, target, split=parts).r2_validation
            assert fitted is not None
            assert fitted <= table[i, j] + 1e-8 <= fitted + SLACK + 1e-7
    assert best == {0, 1}  # ridges between two steps of the coarser grid are found too
    assert np.unravel_index(table.argmax(), table.shape) == (1, 0)


def test_the_table_takes_fewer_rows_when_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "NARROW", 0)
    source, target, _ = planted(600, 10, 8, noise=1.0)
    parts = default_split(600)
    kept = np.flatnonzero(parts == "fit")[np.linspace(0, 479, 100).astype(int)]
    thinned = np.where(np.isin(np.arange(600), kept) | (parts != "fit"), parts, "")
    with monkeypatch.context() as patch:
        patch.setattr(pairs, "MAX_FIT_ROWS", 100)
        few = r2_table({0: source}, {0: target}, parts, width=10)
    np.testing.assert_allclose(few, r2_table({0: source}, {0: target}, thinned, width=10))
    assert few[0, 0] != r2_table({0: source}, {0: target}, parts, width=10)[0, 0]


def test_the_table_refuses_what_does_not_match() -> None:
    source, target, _ = planted(50, 10, 8, noise=1.0)
    with pytest.raises(ValueError, match="source block 3 has 49 rows, the split 50"):
        r2_table({3: source[:49]}, {0: target}, default_split(50), width=10)
    with pytest.raises(ValueError, match="0 validation rows"):
        r2_table({3: source}, {0: target}, np.array(["fit"] * 50), width=10)
