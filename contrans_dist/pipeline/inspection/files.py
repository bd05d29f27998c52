"""Files, each by the ending of its name."""

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from contrans_dist.config.limits import JSON_BYTES
from contrans_dist.config.recipe import load_recipe
from contrans_dist.data.texts import read_texts
from contrans_dist.errors import UserError
from contrans_dist.pipeline.inspection import folders
from contrans_dist.pipeline.inspection.artefact import Artefact, made_of
from contrans_dist.pipeline.inspection.other_tools import of_array, of_gguf, of_request, of_steered
from contrans_dist.pipeline.inspection.tensors import of_tensors
from contrans_dist.store import schema
from contrans_dist.store.block_choice import CHOICE, BlockChoice
from contrans_dist.store.json_text import parse_json
from contrans_dist.store.location import Location
from contrans_dist.store.patience import patiently
from contrans_dist.store.results import METRICS, RECORD, SEARCH, SearchFile, plain, read_file
from contrans_dist.store.shard_reader import footer_of, opened
from contrans_dist.store.tables import EXAMPLES, RESULTS, TOKENS

_HEAD_BYTES = 64 << 10
_TABLES = (RESULTS, EXAMPLES, TOKENS)


def described(location: Location) -> Artefact | None:
    """What a file is; None for any that is not known."""
    for endings, describe in KINDS.items():
        if location.name.lower().endswith(endings):
            return describe(location)
    return None


def _parquet(location: Location) -> Artefact:
    if schema.is_shard(location.name):
        return _shard(location)
    metadata = footer_of(location)
    layout = metadata.schema.to_arrow_schema()
    facts = (metadata.metadata or {}).get(schema.METADATA_KEY)
    content = parse_json(facts, f"{location}: footer") if facts is not None else {}
    if not isinstance(content, dict) or "start" in content:
        return _shard(location)
    if location.name not in _TABLES and "identity" not in content and "text" in layout.names:
        return _texts(location)
    identity = content.get("identity")
    of = {name: (identity or {}).get(name) for name in ("model", "benchmark", "weights", "dtype")}
    columns = {field.name: str(field.type) for field in layout}
    return Artefact(
        "table",
        of if isinstance(identity, dict) else {},
        made_of(content),
        {"rows": metadata.num_rows, "columns": columns, "cost": content.get("cost")},
        {**content, "rows": metadata.num_rows, "columns": columns},
    )


@patiently
def _shard(location: Location) -> Artefact:
    with opened(location) as shard:
        facts, rows, layout = shard.facts, shard.file.metadata.num_rows, shard.layout
    blocks = [block for name in layout.names if (block := schema.block_of(name)) is not None]
    widths = {field.type.list_size for field in layout if schema.block_of(field.name) is not None}
    return Artefact(
        "shard",
        folders.asked_for(facts.identity) if facts.identity else {},
        made_of(plain(facts)),
        {
            "rows": f"{rows:,} from row {facts.start:,}",
            "blocks": blocks,
            "width": sorted(widths),
            "columns": [name for name in layout.names if schema.block_of(name) is None],
            "tokens": facts.tokens,
            "truncated": facts.truncated or None,
            "left out": len(facts.skipped) or None,
            "canary": facts.canary,
        },
        {**plain(facts), "rows": rows},
    )


def _texts(location: Location) -> Artefact:
    table = read_texts(location)
    columns = {field.name: str(field.type) for field in table.schema if field.name not in ("row", "text_id")}
    holds = {"texts": table.num_rows, "columns": columns, "first": table.column("text")[0].as_py()[:200]}
    return Artefact("texts", holds=holds, whole=holds)


def _recipe(location: Location) -> Artefact:
    if not location.is_local:
        raise UserError(f"{location}: expected a recipe in a local file")
    recipe = load_recipe(Path(location.path))
    content = recipe.model_dump(mode="json")
    models = {role: (content.get(role) or {}).get("id") for role in ("source", "target")}
    held = {
        "runs": list(recipe.runs),
        "blocks": recipe.blocks,
        "evaluations": {name: each.benchmark for name, each in recipe.evaluations.items()},
        "conditions": {name: each.conditions for name, each in recipe.evaluations.items()},
        "strengths": {name: each.strengths for name, each in recipe.evaluations.items()},
    }
    texts = {name: (content.get(name) or {}).get("texts") for name in ("corpus", "concepts")}
    return Artefact(
        "recipe", models | texts, {"name": recipe.name, "what": recipe.description}, held, content
    )


class _Head(HTMLParser):
    """The title of a page, and what it says of itself under `contrans`."""

    title, said, within = "", "", False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.within = tag == "title"
        given = dict(attrs)
        if tag == "meta" and given.get("name") == schema.METADATA_KEY.decode():
            self.said = given.get("content") or ""

    def handle_data(self, data: str) -> None:
        self.title += data if self.within else ""

    def handle_endtag(self, tag: str) -> None:
        self.within = False


def _page(location: Location) -> Artefact:
    with location.open() as source:
        size, data = source.size(), source.read(_HEAD_BYTES)
    head = _Head()
    head.feed(data.decode("utf-8", "replace"))
    if not head.said:
        raise UserError(f"{location}: expected a report page that contrans wrote")
    content = parse_json(head.said, f"{location}: what it says of itself")
    if not isinstance(content, dict):
        raise UserError(f"{location}: expected a JSON object in what it says of itself")
    beside = folders.kind_of(location.parent)
    of = {"folder": str(location.parent), "which is": beside}
    return Artefact(
        "report", of, made_of(content), {"title": head.title, "bytes": size}, {**content, "title": head.title}
    )


def _json(location: Location) -> Artefact:
    """Files that tell of the folder they lie in, choices, requests to servers, and texts."""
    if location.name in (schema.MANIFEST, METRICS, RECORD):
        told = folders.described(location.parent)
        assert told is not None
        return told
    if location.name == SEARCH:
        search = read_file(location, SearchFile)
        return _choice("search", search, {"chosen": search.chosen, "tried": len(search.candidates)})
    if location.name == Path(CHOICE).name:
        choice = read_file(location, BlockChoice)
        held = {
            "chosen": f"block {choice.chosen}, strength {choice.strength:g}",
            "tried": len(choice.candidates),
        }
        return _choice("block choice", choice, held)
    content = location.read_json(JSON_BYTES)
    return of_request(location, content) or _texts(location)


def _choice(kind: str, said: SearchFile | BlockChoice, held: dict[str, Any]) -> Artefact:
    made = made_of(plain(said), criterion=said.criterion, budget=said.budget)
    return Artefact(kind, {"tried on": getattr(said, "tried_on", None)}, made, held, plain(said))


KINDS: dict[tuple[str, ...], Callable[[Location], Artefact]] = {
    (".safetensors",): of_tensors,
    (".parquet",): _parquet,
    (".json",): _json,
    (".yaml", ".yml"): _recipe,
    (".html",): _page,
    (".jsonl", ".txt"): _texts,
    (".gguf",): of_gguf,
    (".pt", ".pth"): of_steered,
    (".npy",): of_array,
}
"""Who describes a file, by the endings of its name."""
