"""Changes of bytes and of JSON, as hypothesis draws them."""

import json
from typing import Any

from hypothesis import strategies as st

PLACES = st.floats(0, 1, exclude_max=True)
BYTES = st.sampled_from([b"\0", b"\xff", b"\n", b"\r", b'"', b"{", b"]", b",", b"9", b"-", b"e9", b"[" * 5000])
WAYS = st.sampled_from(["replace", "insert", "cut", "remove", "repeat", "flip"])
EDITS = st.lists(st.tuples(WAYS, PLACES, BYTES | st.binary(max_size=3)), min_size=1, max_size=3)

DEEP: Any = 0
for _ in range(100):
    DEEP = [DEEP]

ODD = st.sampled_from(
    [
        *(
            None,
            True,
            False,
            0,
            1,
            -1,
            3,
            10**6,
            10**30,
            0.5,
            float("nan"),
            float("inf"),
            1e308,
            "",
            "x",
            "\ud800",
            "0",
        ),
        *("../../canary", "/etc/passwd", [], [0], [[]], {}, {"x": 1}, {"$": "tensor"}, {"$": "tensor", "of": "0"}),
        *({"$": "tensor", "of": "99"}, {"$": "__import__", "of": "os"}, {"$": "NeuronSet", "of": {}}),
        *(
            {"$": "path", "of": "x"},
            {"$": "float", "of": "x"},
            {"$": "float", "of": "nan"},
            {"$": "dtype", "of": "load"},
        ),
        *({"$": "range", "of": [0, 10**18, 1]}, {"$": "mapping", "of": [[[], 1]]}, {"$": "set", "of": [[1]]}, DEEP),
        *({"$": "NeuronSpace", "of": {"model": 1}}, {"$": "texts", "of": ["a", 1]}, {"$": ["x"], "of": 1}),
    ]
)


def edited(content: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    """The content after some changes."""
    for kind, share, new in edits:
        place = int(share * len(content))
        if kind == "flip" and content:
            new = bytes([content[place] ^ (new[0] if new and new[0] else 1)])
        content = {
            "replace": content[:place] + new + content[place + len(new) :],
            "flip": content[:place] + new + content[place + 1 :],
            "insert": content[:place] + new + content[place:],
            "cut": content[:place],
            "remove": content[:place] + content[place + 9 :],
            "repeat": content[: place + 40] + content[place:],
        }[kind]
    return content


def replaced(tree: Any, share: float, value: Any, remove: bool) -> Any:
    """A copy of JSON with one of its nodes, by its share of all, replaced or removed."""
    tree = json.loads(json.dumps(tree))
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, part in list(items):
            places.append((node, key))
            visit(part)

    visit(tree)
    if not places:
        return value
    node, key = places[int(share * len(places))]
    if remove:
        del node[key]
    else:
        node[key] = value
    return tree
