"""Find prompt, negative prompt, seed and length in a ComfyUI graph.

A graph is {id: {"class_type": name, "inputs": {input: value or [id, output]}}}. Starting at the nodes that save, links are
followed backwards. The first node with a `positive` input is the sampler, and the text at the end of that link is the prompt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

# Largest number of nodes that are read. A large graph has some hundred.
MOST_NODES = 5_000
# Inputs of a node that hold its text, in this order; "" stands for the role itself ("positive", "positive_prompt").
TEXTS = ("text", "prompt", "populated_text", "string", "value", "t5xxl", "text_g", "clip_l", "text_l")
# Inputs of a node that makes one text of two.
JOINED = ("string_a", "string_b")
# Inputs that lead on to a node with the text: of conditionings, and of nodes that combine texts.
WAYS = ("conditioning", "conditioning_1", "conditioning_to", "cond", "text_embeds", "guider", *JOINED)
SEEDS = ("seed", "noise_seed")
FRAMES = ("length", "num_frames", "video_frames", "frames")
RATES = ("frame_rate", "fps")
SECONDS = ("total_second_length", "seconds")
# Node types that give an empty conditioning: the negative side of models without one.
EMPTY = ("ConditioningZeroOut",)
ENDS = ("save", "combine", "preview")


def is_graph(value: Any) -> TypeGuard[Mapping[str, Any]]:
    """Say whether a JSON value is a ComfyUI graph."""
    return isinstance(value, Mapping) and any(isinstance(node, Mapping) and "class_type" in node for node in value.values())


def read_graph(graph: Mapping[str, Any], rate: float = 0.0) -> dict[str, Any]:
    """Return what a graph gives of prompt, negative_prompt, seed and seconds. rate: frames per second if the graph has none."""
    nodes = {key: node for key, node in list(graph.items())[:MOST_NODES] if isinstance(node, Mapping)}
    order = list(_from_the_end(nodes))
    said = _from_sampler(nodes, order) or _without_sampler(nodes, order)
    for name, names in (("seed", SEEDS), ("seconds", SECONDS)):
        number = _first_number(nodes, order, names)
        if number is not None:
            said[name] = number
    frames, own = _first_number(nodes, order, FRAMES), _first_number(nodes, order, RATES)
    rate = own or rate
    if "seconds" not in said and frames and frames > 1 and rate and rate > 0:
        said["seconds"] = frames / rate
    return said


def _inputs(node: Mapping[str, Any]) -> Mapping[str, Any]:
    inputs = node.get("inputs")
    return inputs if isinstance(inputs, Mapping) else {}


def _linked(nodes: Mapping[str, Any], value: Any) -> str | None:
    """Return the id of the node that a link leads to, or None."""
    if isinstance(value, (list, tuple)) and len(value) == 2 and isinstance(value[0], (str, int)):
        return str(value[0]) if str(value[0]) in nodes else None
    return None


def _from_the_end(nodes: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield all nodes once each, those nearest to a saving node first."""
    used = {_linked(nodes, value) for node in nodes.values() for value in _inputs(node).values()}
    ends = [key for key in nodes if key not in used]
    saving = [key for key in ends if any(word in str(nodes[key].get("class_type")).lower() for word in ENDS)]
    seen: set[str] = set()
    # Nodes that lead to no saving node had no part in the picture; they come last.
    for start in (saving, ends, nodes):
        level = [key for key in start if key not in seen]
        while level:
            seen |= set(level)
            yield from (nodes[key] for key in level)
            links = (_linked(nodes, value) for key in level for value in _inputs(nodes[key]).values())
            level = [key for key in dict.fromkeys(links) if key is not None and key not in seen]


def _from_sampler(nodes: Mapping[str, Any], order: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return prompt and negative prompt of the first node with a positive input that leads to a text."""
    seen: set[str] = set()
    for node in order:
        if text := _text_of(nodes, _inputs(node), "positive", seen):
            negative = _text_of(nodes, _inputs(node), "negative", set())
            return {"prompt": text} | ({"negative_prompt": negative} if negative else {})
    return {}


def _text_of(nodes: Mapping[str, Any], inputs: Mapping[str, Any], role: str, seen: set[str]) -> str | None:
    """Return the text at a node's `positive` or `negative` input, or at the end of the link there or at `text_embeds`."""
    if role in inputs:
        value = inputs[role]
        return value if isinstance(value, str) else _followed(nodes, _linked(nodes, value), role, seen)
    embeds = _linked(nodes, inputs.get("text_embeds"))
    return _followed(nodes, embeds, role, seen) if embeds else None


def _followed(nodes: Mapping[str, Any], key: str | None, role: str, seen: set[str]) -> str | None:
    """Return the first text on the way back from a node, breadth first.

    seen: nodes that were visited before and gave no text. Each node is visited once, so cycles end.
    """
    waiting = deque([key])
    while waiting:
        key = waiting.popleft()
        if key is None or key in seen:
            continue
        seen.add(key)
        node = nodes[key]
        inputs = _inputs(node)
        if node.get("class_type") in EMPTY:
            return None
        if all(isinstance(inputs.get(name), str) for name in JOINED):
            return str(inputs.get("delimiter", "")).join(inputs[name] for name in JOINED if inputs[name].strip())
        for name in (f"{role}_prompt", role, *TEXTS):
            if isinstance(inputs.get(name), str) and inputs[name].strip():
                return inputs[name]
        ways = (f"{role}_prompt", role, *TEXTS, *WAYS)
        waiting += [_linked(nodes, inputs[name]) for name in ways if name in inputs]
    return None


def _without_sampler(nodes: Mapping[str, Any], order: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the prompt of a graph whose guidance has no negative side, or that sends its work to a web service."""
    seen: set[str] = set()
    for node in order:
        link = _linked(nodes, _inputs(node).get("conditioning"))
        if link and (text := _followed(nodes, link, "positive", seen)):
            return {"prompt": text}
    for node in order:
        inputs = _inputs(node)
        for name in ("positive_prompt", "prompt"):
            if isinstance(inputs.get(name), str) and inputs[name].strip():
                negative = inputs.get("negative_prompt")
                said = {"prompt": inputs[name]}
                return said | ({"negative_prompt": negative} if isinstance(negative, str) and negative else {})
    return {}


def _first_number(nodes: Mapping[str, Any], order: list[Mapping[str, Any]], names: tuple[str, ...]) -> float | None:
    """Return the first number under one of these input names, or at the end of a link there."""
    seen: set[str] = set()
    for node in order:
        inputs = _inputs(node)
        for name in names:
            value = inputs.get(name)
            while (key := _linked(nodes, value)) and key not in seen:
                seen.add(key)
                own = _inputs(nodes[key])
                value = next((own[other] for other in (*names, "value", "int", "float", "number") if other in own), None)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return value
    return None
