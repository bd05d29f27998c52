"""YAML by others: plain data alone, within limits that hold while it is read."""

from collections import Counter
from typing import Any

import yaml

from contrans_dist.config.characters import check_whole
from contrans_dist.config.limits import RECIPE_BYTES, RECIPE_NODES, check_size
from contrans_dist.errors import UserError, one_line

_DEEPEST = 64
_TOO_DEEP = f"more than {_DEEPEST} levels"
_MERGE = "tag:yaml.org,2002:merge"
_TEXT = "tag:yaml.org,2002:str"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _Loader(yaml.SafeLoader):
    """The safe loader, no deeper than any settings go; `24:30` is text, as in YAML 1.2, not a number."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.YAMLError(_TOO_DEEP)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        return _TEXT if tag in _NUMBERS and ":" in value else tag


def parse_yaml(data: bytes, where: str, expected: str = "YAML") -> Any:
    """Plain data from YAML.

    Args:
        data: In UTF-8.
        where: What a message begins with.
        expected: What it says should have been there.

    Raises:
        UserError: For anything else: other types, a key that is there twice, half a character, an anchor that
            holds itself, or anchors that unfold to too much.
    """
    check_size(where, len(data), RECIPE_BYTES)
    try:
        loader = _Loader(data.decode("utf-8-sig"))
        node = loader.get_single_node()
        if node is None:
            return None
        check_size(where, _nodes(node, where, {})[0], RECIPE_NODES, "keys and values")
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:
        # Not only its own errors: what is no date or no number makes the library raise whatever comes.
        raise UserError(f"{where}: expected {expected} ({one_line(error)})") from error


def _nodes(node: yaml.Node, where: str, counted: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many keys and values a node has in it, each as often as an anchor repeats it, and its depth."""
    if id(node) in counted:
        if not counted[id(node)][0]:
            raise yaml.YAMLError("an anchor that holds itself")
        return counted[id(node)]
    counted[id(node)] = 0, 0
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.ScalarNode):
        check_whole(node.value, where)
    elif isinstance(node, yaml.MappingNode):
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for (tag, key), count in Counter(keys).items():
            if count > 1 and tag != _MERGE:
                raise yaml.YAMLError(f"the key {key!r} is there twice, line {node.start_mark.line + 1} on")
        inner = [key_or_value for pair in node.value for key_or_value in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    below = [_nodes(child, where, counted) for child in inner]
    depth = 1 + max((child_depth for _, child_depth in below), default=0)
    if depth > _DEEPEST:
        raise yaml.YAMLError(_TOO_DEEP)
    counted[id(node)] = 1 + sum(count for count, _ in below), depth
    return counted[id(node)]
