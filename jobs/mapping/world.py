"""Two models, their texts, the rows captured on them, and a vector's score on unseen scenarios."""

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

import contrans_dist as ct
from contrans_dist import demo
from contrans_dist.benchmarks.contrast import ContrastBenchmark, ContrastEvaluation
from contrans_dist.benchmarks.emotions import EmotionBenchmark, EmotionEvaluation
from contrans_dist.benchmarks.scenarios import Item
from contrans_dist.config import CaptureSettings
from contrans_dist.config.parts import Cut
from contrans_dist.data.contamination import leak_report, unit_hashes
from contrans_dist.data.corpus import prepare_corpus
from contrans_dist.data.texts import read_texts
from contrans_dist.engine.scoring import Intervention, cues, next_token
from contrans_dist.evaluation.steering import Steering
from contrans_dist.vectors.concept_vector import ConceptVector
from contrans_dist.vectors.extract import concept_vector, one_vs_rest


@dataclass(frozen=True)
class Files:
    """Models and texts of a pair, and the prompts around them."""

    source: str
    target: str
    contrast: str
    validation: str
    evaluation: str
    corpus: str
    template: str
    source_template: str
    corpus_source_template: str = "{text}"
    words: tuple[str, ...] = ()
    limit: int | None = None
    other: str | None = None
    """Texts of another world than the models'."""

    @classmethod
    def bundled(cls) -> "Files":
        """The bundled models and the texts of their world."""
        folder = Path(tempfile.mkdtemp())
        demo.write_texts(folder)
        return cls(
            source="demo:source",
            target="demo:target",
            contrast=str(folder / "contrast.jsonl"),
            validation=str(folder / "validation.jsonl"),
            evaluation=str(folder / "evaluation.jsonl"),
            corpus=str(folder / "corpus.jsonl"),
            template=demo.TEMPLATE,
            source_template=demo.TEMPLATE,
            limit=4000,
            other=str(folder / "family-corpus.jsonl"),
        )


@dataclass(frozen=True)
class Corpus:
    """Rows of both models on one corpus, by block; texts, the texts they were cut from, and last tokens."""

    texts: list[str]
    origins: list[str]
    source: dict[int, np.ndarray]
    target: dict[int, np.ndarray]
    tokens: np.ndarray


@dataclass(frozen=True)
class Trial:
    """Each concept's row times a strength, or a random direction of its norm for every item."""

    rows: dict[str, np.ndarray]
    strength: float
    random: bool = False

    def added(self, items: Sequence[Item]) -> np.ndarray:
        """What is added to each item's last token: [items, d]."""
        rows = [self.rows[item.concept] for item in items]
        if self.random:
            rows = [_random(row, item) for row, item in zip(rows, items, strict=True)]
        return np.stack(rows)


class World:
    """A pair of models, with everything that does not depend on how the map is fitted."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.source, self.target = ct.load_model(files.source), ct.load_model(files.target)
        self.table = read_texts(files.contrast)
        self.contrast = self.table.to_pylist()
        labels = [row["concept"] for row in self.contrast]
        self.concepts = list(dict.fromkeys(labels))
        self.vectors = self._vectors(self.source, files.source_template, labels)
        self.own = self._vectors(self.target, files.template, labels)
        self.validation, self.evaluation = (
            self._negatives(path) for path in (files.validation, files.evaluation)
        )

    def _vectors(self, lm: ct.LanguageModel, template: str, labels: list[str]) -> dict[str, ConceptVector]:
        rows = ct.capture(lm, [template.format(**row) for row in self.contrast])
        vectors = {}
        for concept in self.concepts:
            positive, negative = one_vs_rest(labels, concept)
            values = np.stack([concept_vector(rows[b][positive], rows[b][negative]) for b in sorted(rows)])
            vectors[concept] = ConceptVector(
                values=values, concept=concept, model="", method="mean", n_positive=len(positive),
                n_negative=len(negative), norms={},
            )  # fmt: skip
        return vectors

    def _negatives(self, path: str) -> list[Item]:
        items = EmotionBenchmark.load(EmotionEvaluation(texts=path, template=self.files.template)).items()
        return [item for item in items if item.kind == "negative"]

    def every_negative(self, path: str) -> list[Item]:
        """Every scenario with every concept that it is not about; the evaluation draws one of each."""
        return [
            Item(f"{concept}/negative/{row}", concept, "negative", scenario["text"], self._prompt(scenario))
            for row, scenario in enumerate(read_texts(path).to_pylist())
            for concept in self.concepts
            if concept != scenario["concept"]
        ]

    def _prompt(self, scenario: dict[str, str]) -> str:
        return self.files.template.format(**scenario)

    def corpus(self, cut: Cut, per_text: int = 1, seed: int = 42, limit: int | None = None) -> Corpus:
        """The corpus, cut and captured at every block of both models."""
        files = self.files
        limit = limit or files.limit
        table = prepare_corpus(read_texts(files.corpus), cut, per_text, seed, limit, files.words)
        texts, origins = (table.column(name).to_pylist() for name in ("text", "source_row"))
        return self.captured(texts, [str(origin) for origin in origins])

    def captured(
        self,
        texts: list[str],
        origins: list[str],
        source_blocks: Sequence[int] | None = None,
        target_blocks: Sequence[int] | None = None,
    ) -> Corpus:
        """The rows of texts as they are, of these blocks or all."""
        told = [self.files.corpus_source_template.format(text=text) for text in texts]
        x = ct.capture(self.source, told, source_blocks)
        y = ct.capture(self.target, texts, target_blocks)
        return Corpus(texts, origins, dict(x), dict(y), y.token_ids)

    def leave_out_seen(self, texts: Iterable[str]) -> tuple[int, int]:
        """Score no scenario that shares a sentence with a text behind the vectors, the choices or the maps.

        Returns how many scenarios there were, and how many of them are left out.
        """
        made = unit_hashes(
            [row["text"] for row in self.contrast] + [item.scenario for item in self.validation]
        )
        corpus = unit_hashes(texts)
        scenarios = list(dict.fromkeys(item.scenario for item in self.evaluation))
        leaks = {scenario: leak_report([scenario], made, corpus) for scenario in scenarios}
        seen = {s for s, leak in leaks.items() if leak["overlap_vector"] or leak["overlap_map"]}
        self.evaluation = [item for item in self.evaluation if item.scenario not in seen]
        return len(scenarios), len(seen)

    @cached_property
    def _cues(self) -> dict[int, tuple[list[list[int]], np.ndarray]]:
        return {}

    def accuracy(
        self,
        items: list[Item],
        rows: dict[str, np.ndarray],
        block: int,
        strengths: Sequence[float],
        random: bool,
    ) -> np.ndarray:
        """Token Acc [strengths] over negative items, each steered to its concept by that concept's row.

        random: by a direction of the row's norm that is drawn anew for every item.
        """
        return self.accuracies(items, block, [Trial(rows, strength, random) for strength in strengths])

    def accuracies(self, items: list[Item], block: int, trials: Sequence[Trial]) -> np.ndarray:
        """Token Acc [trials]; the blocks below the steered one are run once for all of them."""
        if id(items) not in self._cues:
            per_item = cues(self.target, [item.prompt for item in items], self.concepts)
            names = [
                cue.tokens[self.concepts.index(i.concept)] for cue, i in zip(per_item, items, strict=True)
            ]
            self._cues[id(items)] = [cue.context for cue in per_item], np.array(names)
        contexts, wanted = self._cues[id(items)]
        steered = [
            Intervention("vector", {block: trial.added(items)}, float(trial.strength)) for trial in trials
        ]
        got = next_token(self.target, contexts, steered, watch=wanted[:, None])
        return np.asarray((got.argmax == wanted).mean(axis=1))

    @cached_property
    def _trial(self) -> ContrastBenchmark:
        """The contrast prompts of the target, each concept against the others as its vector is."""
        names = [name for name in self.table.column_names if name != "label"]
        return ContrastBenchmark.of(
            ContrastEvaluation(texts=self.files.contrast),
            self.table.select(names),
            CaptureSettings(template=self.files.template),
            self.files.contrast,
        )

    def contrast_gain(
        self, rows: dict[str, np.ndarray], block: int, strengths: Sequence[float]
    ) -> np.ndarray:
        """What the contrast prompts alone tell of rows, one a concept: their gain [strengths], in nats."""
        items = self._trial.items()
        tables = [
            self._trial.score(
                self.target,
                [item for item in items if item.concept == concept],
                [Intervention("vector", {block: row}, float(strength)) for strength in strengths],
            )
            for concept, row in rows.items()
        ]
        # [concepts, strengths, prompts, 2]
        gains = np.array([[table[name] for name in ("towards", "away")] for table in tables])
        by_strength = gains.reshape(len(rows), 2, len(strengths), -1).transpose(2, 0, 3, 1)
        (metric,) = self._trial.metrics
        return np.array([metric.estimate(of.reshape(-1, 2))["value"] for of in by_strength])


def _random(row: np.ndarray, item: Item) -> np.ndarray:
    """The direction that an evaluation's control `random` takes for this item."""
    steering = Steering({item.concept: {"random": {0: row}}})
    return np.asarray(steering.interventions(item.concept, [1.0], [item.id])[1].vectors[0][0])
