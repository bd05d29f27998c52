"""Prompts that begin alike: planned against brute force, run against one text at a time."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from contrans_dist.engine.capture import capture_ids
from contrans_dist.engine.prefixes import (
    Group,
    Limits,
    Trunk,
    can_share,
    found_in,
    groups,
    limits_of,
    pack,
    plan_groups,
    rows_apart,
)
from contrans_dist.engine.prefixes.groups import _antichain
from contrans_dist.models import LanguageModel, wrap_model
from tests.tiny import ARCHITECTURES, tiny_model, tiny_tokenizer
from tests.truth import block_states

NO_SHARING = {"bloom", "mpt"}  # positions by ALiBi, counted from the mask
RNG = np.random.default_rng(11)


def some(n: int) -> list[int]:
    return RNG.integers(3, 290, size=n).tolist()


def alike() -> list[list[int]]:
    """Texts with a common trunk and heads of several texts below it, texts with a head alone, and others."""
    trunk, heads = some(20), [some(7) for _ in range(4)]
    texts = [trunk + heads[i % 4] + some(1 + i % 5) for i in range(24)]
    head = some(12)
    return texts + [head + some(2) for _ in range(3)] + [some(9) for _ in range(4)] + [[*some(10), 5]] * 2


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trunks and short rows already for a few short texts."""
    monkeypatch.setattr(groups, "TRUNK_TOKENS", 0)
    monkeypatch.setattr(groups, "ROW_TOKENS", 64)


def language_model(architecture: str = "llama") -> LanguageModel:
    return wrap_model(tiny_model(architecture), tiny_tokenizer())


def kinds(plan: Sequence[Group]) -> set[str]:
    used = set()
    for group in plan:
        for row in (row for batch in group.batches for row in batch):
            used.add(("trunk " if group.trunk else "") + ("row" if len(row.texts) > 1 else "alone"))
    return used


# ---------------------------------------------------------------- the plan


texts = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=12)


@settings(deadline=None, max_examples=200)
@given(texts, st.integers(1, 40), st.integers(1, 3), st.none() | st.integers(4, 12), st.integers(1, 40))
def test_every_text_runs_once_with_its_own_tokens(
    ids: list[list[int]], batch_tokens: int, wanted: int, bound: int | None, keys: int
) -> None:
    own_from = [max(len(text) - wanted, 0) for text in ids]
    logits = 3 * wanted
    plan = plan_groups(ids, own_from, Limits(batch_tokens, shared_tokens=bound, logits=logits, keys=keys))
    assert sorted(i for g in plan for b in g.batches for row in b for i in row.texts) == list(range(len(ids)))
    for group in plan:
        trunk = list(group.trunk)
        for batch in group.batches:
            assert len(batch) == 1 or len(batch) * batch[0].length <= batch_tokens
            assert len(batch) == 1 or not trunk or len(batch) * (len(trunk) + batch[0].length) <= keys
            texts_in = [i for row in batch for i in row.texts]
            assert len(batch) == 1 or sum(len(ids[i]) - own_from[i] for i in texts_in) <= logits
            assert batch[0].length == max(row.length for row in batch)
            for row in batch:
                assert all(ids[i][: len(trunk)] == trunk for i in row.texts)
                assert not trunk or all(len(trunk) <= own_from[i] for i in row.texts)
                # Whatever any two of its texts begin with in common is there once.
                beginnings = {tuple(ids[i][:end]) for i in row.texts for end in range(1, len(ids[i]) + 1)}
                assert row.length == sum(len(beginning) > len(trunk) for beginning in beginnings)
                assert bound is None or len(row.texts) == 1 or len(trunk) + row.length <= bound


@settings(deadline=None, max_examples=100)
@given(texts, st.lists(st.integers(0, 2), min_size=12, max_size=12))
def test_only_texts_that_are_alike_share_a_row(ids: list[list[int]], alike: list[int]) -> None:
    own_from, limits = [len(text) - 1 for text in ids], Limits(40)
    for group in plan_groups(ids, own_from, limits):
        for batch in group.batches:
            parts = rows_apart(group, batch, ids, own_from, alike, limits)
            rows = [row for part in parts for row in part]
            assert sorted(i for row in rows for i in row.texts) == sorted(
                i for row in batch for i in row.texts
            )
            assert all(len(part) == 1 or len(part) * part[0].length <= 40 for part in parts)
            for row in rows:
                assert len({alike[i] for i in row.texts}) == 1
                beginnings = {tuple(ids[i][:end]) for i in row.texts for end in range(1, len(ids[i]) + 1)}
                assert row.length == len(beginnings)


@settings(deadline=None, max_examples=100)
@given(texts, st.lists(st.integers(0, 2), min_size=12, max_size=12), st.integers(0, 3))
def test_tokens_of_rows_apart_are_found_where_they_ran(
    ids: list[list[int]], alike: list[int], trunk: int
) -> None:
    ids = [[9] * trunk + text for text in ids]
    own_from, limits = [len(text) - 1 for text in ids], Limits(60)
    places = [range(start, len(text)) for start, text in zip(own_from, ids, strict=True)]
    for group in plan_groups(ids, own_from, limits):
        for rows in group.batches:
            batch = pack(rows, ids, places, len(group.trunk))
            known = torch.cat([torch.tensor(group.trunk, dtype=torch.int64), batch.ids.flatten()])
            for part in rows_apart(group, rows, ids, own_from, alike, limits):
                whole = pack(part, ids, places)
                found = known[found_in(batch, whole)].flatten()
                real = sorted({place for of_text in whole.tokens.values() for place in of_text})
                assert len(real) == sum(row.length for row in part)
                assert torch.equal(found[real], whole.ids.flatten()[real])


@settings(deadline=None, max_examples=200)
@given(texts, st.integers(0, 4))
def test_the_chosen_prefixes_save_the_most(ids: list[list[int]], cost: int) -> None:
    def saved(depth: int, count: int, tokens: int, shared: int) -> float:
        return (count - 1) * depth - cost - tokens / 20 + shared / 7

    def best(prefix: tuple[int, ...]) -> float:
        """By hand: a prefix is shared by all texts that have it, or its continuations are looked at."""
        having = [tuple(text) for text in ids if tuple(text[: len(prefix)]) == prefix]
        tokens, distinct = sum(map(len, having)), {text[:end] for text in having for end in range(1, 10)}
        shared = tokens - len(distinct - {()})
        here = saved(len(prefix), len(having), tokens, shared) if prefix and len(having) > 1 else 0.0
        following = {tuple(text[: len(prefix) + 1]) for text in having if len(text) > len(prefix)}
        return max(here, 0.0, sum(best(longer) for longer in following))

    chosen = _antichain([tuple(text) for text in ids], [len(text) for text in ids], saved)
    total = 0.0
    for depth, members_of in chosen:
        same = [groups.common(ids[a], ids[b]) for a, b in pairwise(members_of)]
        total += saved(depth, len(members_of), sum(len(ids[i]) for i in members_of), sum(same))
    assert total == pytest.approx(best(()))
    members = [i for _, members_of in chosen for i in members_of]
    assert len(members) == len(set(members))


def test_the_trunk_before_each_row_counts_where_memory_is_planned() -> None:
    """Each block copies its keys and values for every row of a batch."""
    large = AutoConfig.for_model("llama", hidden_size=5120, num_attention_heads=40, vocab_size=9)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(large, dtype=torch.bfloat16)
    lm = wrap_model(model, tiny_tokenizer())
    limits, trunk = limits_of(lm, 4096, head=True), list(range(1500))
    ids = [[*trunk, *some(19), i] for i in range(300)]
    (group,) = plan_groups(ids, [len(text) - 1 for text in ids], limits)
    rows = max(map(len, group.batches))
    assert len(group.trunk) == 1500
    # Keys and values of 40 heads of 128 numbers, of two bytes each.
    assert 2**29 < rows * (1500 + group.batches[0][0].length) * 2 * 40 * 128 * 2 <= 2**30
    (plain,) = plan_groups(ids, [len(text) - 1 for text in ids], limits, share=False)
    assert len(plain.batches[0]) == 2  # where no trunk is copied, tokens alone count


def test_put_together_no_trunk_is_there_twice() -> None:
    parts = [Trunk([None, (torch.rand(n, 2, 5, 3), torch.rand(n, 2, 5, 3))]) for n in (2, 1)]
    expected = [torch.cat([part.layers[1][i] for part in parts]) for i in (0, 1)]  # type: ignore[index]
    whole = Trunk.of_all(parts)
    assert whole.layers[0] is None
    assert whole.layers[1] is not None
    assert all(torch.equal(a, b) for a, b in zip(whole.layers[1], expected, strict=True))
    assert [part.layers for part in parts] == [[None, None]] * 2


def test_texts_that_share_nothing_run_as_they_would_without() -> None:
    ids = [[i, *some(5 + i % 7)] for i in range(40)]
    own_from = [len(text) - 1 for text in ids]
    assert plan_groups(ids, own_from, Limits(60)) == plan_groups(ids, own_from, Limits(60), share=False)
    assert kinds(plan_groups(ids, own_from, Limits(60))) == {"alone"}


def test_a_beginning_token_alone_is_not_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    ids = [[0, *some(30)] for _ in range(500)]
    assert not any(group.shares for group in plan_groups(ids, [30] * 500, Limits(4096)))


def test_a_mask_shows_a_text_its_trunk_and_its_own_tokens() -> None:
    ids = [[1, 2, 3, 4, 5], [1, 2, 3, 6], [1, 2, 7]]
    plan = pack([groups.Row((0, 1), 4), groups.Row((2,), 1)], ids, [[2, 4], [2, 3], [2]], trunk=2)
    assert plan.ids.tolist() == [[3, 4, 5, 6], [7, 0, 0, 0]]
    assert plan.positions is not None
    assert plan.positions[0].tolist() == [2, 3, 4, 3]
    assert (plan.rows.tolist(), plan.columns.tolist(), plan.texts) == ([0, 0, 0, 1], [0, 2, 3, 0], [0, 1, 2])
    assert plan.index.tolist() == [0, 1, 0, 2, 3]
    mask = plan.mask(torch.float32)
    assert mask is not None
    seen = (mask[0, 0] == 0).int().tolist()
    assert seen == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 1]]
    assert (mask[1, 0] == 0).any(dim=-1).all()


@settings(deadline=None, max_examples=200)
@given(texts, st.integers(1, 3))
def test_each_token_sees_its_text_up_to_itself(ids: list[list[int]], trunk: int) -> None:
    ids = [[9] * trunk + text for text in sorted(ids)]
    length = len({tuple(text[:end]) for text in ids for end in range(trunk + 1, len(text) + 1)})
    wanted = [range(trunk, len(text)) for text in ids]
    plan = pack([groups.Row(tuple(range(len(ids))), length)], ids, wanted, trunk)
    mask = plan.mask(torch.float32)
    assert mask is not None
    assert plan.ids.shape == (1, length)
    ends = np.cumsum([len(places) for places in wanted])[:-1]
    for text, index in zip(ids, np.split(plan.index.numpy(), ends), strict=True):
        columns = plan.columns.numpy()[index]
        for place, column in enumerate(columns, trunk):
            seen = np.flatnonzero(mask[0, 0, column].numpy() == 0)
            assert seen.tolist() == [*range(trunk), *(trunk + columns[: place - trunk + 1])]
            assert plan.ids[0, columns[: place - trunk + 1]].tolist() == text[trunk : place + 1]


# ---------------------------------------------------------------- harvesting


def deviation(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shared_rows_are_the_rows_of_each_text_alone(architecture: str) -> None:
    lm, ids = language_model(architecture), alike()
    plan = plan_groups(ids, [len(text) - 1 for text in ids], Limits(300))
    assert kinds(plan) == {"trunk row", "row", "alone"}
    rows = capture_ids(lm, ids, batch_tokens=300)
    for i, text in enumerate(ids):
        alone = block_states(lm, text)
        for block in rows:
            assert deviation(rows[block][i], alone[block][-1]) < 1e-5
    assert lm.shares == {} or lm.shares == {False: architecture not in NO_SHARING}


@pytest.mark.parametrize("position", ["last", -2, 3, 0, "mean"])
def test_a_position_inside_what_is_shared_is_not_shared(position: str | int) -> None:
    lm = language_model()
    ids = [text for text in alike() if len(text) > 3]
    shared = capture_ids(lm, ids, [1, 3], position, 300)
    plain = capture_ids(lm, ids, [1, 3], position, 300, share_prefixes=False)
    assert all(deviation(shared[block], plain[block]) < 1e-5 for block in plain)
    np.testing.assert_array_equal(shared.token_ids, plain.token_ids)


def test_what_is_shared_runs_once() -> None:
    lm, ids = language_model(), alike()
    assert can_share(lm, head=False)
    capture_ids(lm, ids, batch_tokens=100)  # what else the model can do is tried with its first texts
    tokens: list[int] = []

    def count(share: bool) -> int:
        tokens.clear()
        capture_ids(lm, ids, batch_tokens=100, share_prefixes=share)
        return sum(tokens)

    handle = lm.blocks[0].register_forward_pre_hook(
        lambda _m, args, named: tokens.append((args[0] if args else named["hidden_states"])[..., 0].numel()),
        with_kwargs=True,
    )
    distinct = len({tuple(text[:end]) for text in ids for end in range(1, len(text))}) + len(ids)
    assert count(True) <= 1.15 * distinct  # and some padding
    assert count(False) > 2 * distinct
    handle.remove()


def test_windows_and_contexts_bound_what_is_shared() -> None:
    """A block that looks back through a window counts places in the row, not in one of its texts."""
    for architecture in ("mistral", "gemma2", "gemma3_text", "gpt_neo"):
        lm = language_model(architecture)
        short = [[5, 6, 7, *some(1)] for _ in range(6)]
        for ids in (short, [[*some(1), *text] for text in alike()]):
            shared = capture_ids(lm, ids)
            plain = capture_ids(lm, ids, share_prefixes=False)
            assert all(deviation(shared[block], plain[block]) < 1e-5 for block in plain)


def test_a_trunk_that_does_not_fit_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    lm, ids = language_model(), alike()
    expected = capture_ids(lm, ids, share_prefixes=False)
    trunks: list[int] = []

    def full(_module: object, args: tuple, named: dict) -> None:
        hidden = args[0] if args else named["hidden_states"]
        if hidden.shape[:2] == (1, 20):
            trunks.append(1)
            raise RuntimeError("CUDA error: out of memory")

    handle = lm.blocks[1].register_forward_pre_hook(full, with_kwargs=True)
    rows = capture_ids(lm, ids, batch_tokens=60)
    handle.remove()
    assert trunks == [1]
    assert len(caplog.records) == 1
    assert all(deviation(rows[block], expected[block]) < 1e-5 for block in expected)


def test_a_text_longer_than_a_window_does_not_keep_the_others_from_sharing() -> None:
    ids = [*alike(), some(60)]
    plan = plan_groups(ids, [len(text) - 1 for text in ids], Limits(300, shared_tokens=50))
    assert kinds(plan) == {"trunk row", "row", "alone"}
    (row,) = [row for group in plan for batch in group.batches for row in batch if len(ids) - 1 in row.texts]
    assert (row.texts, row.length) == ((len(ids) - 1,), 60)


def test_attention_that_takes_no_masks_of_its_own_is_left_alone() -> None:
    lm = language_model()
    lm.config._attn_implementation = "flash_attention_2"
    assert not can_share(lm, head=False)


def test_out_of_memory_cuts_shared_rows_too() -> None:
    lm, ids = language_model(), alike()
    expected = capture_ids(lm, ids, share_prefixes=False)

    def full(limit: int, _module: object, args: tuple, named: dict) -> None:
        hidden = args[0] if args else named["hidden_states"]
        if hidden.shape[0] * hidden.shape[1] > limit:
            raise torch.OutOfMemoryError("pretended")

    for limit in (100, 25):
        handle = lm.blocks[1].register_forward_pre_hook(partial(full, limit), with_kwargs=True)
        rows = capture_ids(lm, ids, batch_tokens=1000)
        handle.remove()
        assert all(deviation(rows[block], expected[block]) < 1e-5 for block in expected)
