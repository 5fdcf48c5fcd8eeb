"""Looking into a network without changing it: frozen for a while, listened to at a layer, and cut in two there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, fx, nn


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode and no gradients of parameters; both are as before afterwards, module by module."""
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        yield model
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """The submodule of that name.

    Raises:
        ValueError: if there is none, naming those beside which it was looked for.
    """
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        names = [known for known, _ in model.named_modules() if known]
        raise ValueError(f"the model has no layer {name!r}; it has {', '.join(names[:40])}") from error


@contextmanager
def listening(model: nn.Module, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """Outputs of the named layers, filled in by a forward pass within the context.

    Raises:
        ValueError: if there is no such layer.
    """
    heard: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: heard.__setitem__(name, output)

    handles = [find_layer(model, name).register_forward_hook(keep(name)) for name in names]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def split_model_at(model: nn.Module, layer: str) -> tuple[nn.Module, nn.Module]:
    """Cut a network behind a layer: ``tail(head(x))`` is exactly ``model(x)``.

    Both parts hold the model's own modules, not copies, so that its weights and its mode are theirs. Only the forward
    methods around the layer are followed (by ``torch.fx``); whatever lies beside it stays whole.

    Args:
        model: takes one tensor and returns one.
        layer: name of a submodule that is called once and that everything passes through.

    Raises:
        ValueError: for an unknown layer, one that is called several times, one that part of the input gets around, or a
            forward method that cannot be followed because it depends on values: then cut the model by hand.
    """
    find_layer(model, layer)
    try:
        graph = _PathTracer(layer).trace(model)
    except Exception as error:
        raise ValueError(
            f"cannot follow the forward method around layer {layer!r} ({error}): write the two parts by hand"
        ) from error
    cuts = [node for node in graph.nodes if node.op == "call_module" and node.target == layer]
    if len(cuts) != 1:
        raise ValueError(f"layer {layer!r} is called {len(cuts)} times; a cut needs one that is called once")
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise ValueError(f"the model takes {[node.name for node in inputs]}; a cut needs a model of one input")
    cut, begin = cuts[0], inputs[0]
    behind, touched = _reached_from(graph, cut), _reached_from(graph, begin)
    for node in behind - {cut}:
        around = [own.name for own in node.all_input_nodes if own in touched and own not in behind]
        if around:
            raise ValueError(f"{around[0]} gets around layer {layer!r} to {node.name}: choose a layer behind both")
    constant = set(graph.nodes) - touched
    return _part(model, graph, begin, cut, constant), _part(model, graph, cut, None, constant)


class _PathTracer(fx.Tracer):
    """Looks inside the ancestors of one layer only."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        parts = layer.split(".")
        self.ancestors = {".".join(parts[:i]) for i in range(1, len(parts))}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module stays whole."""
        return module_qualified_name not in self.ancestors


def _reached_from(graph: fx.Graph, start: fx.Node) -> set[fx.Node]:
    """``start`` and all that depends on it."""
    reached = {start}
    for node in graph.nodes:  # in order of execution
        if any(own in reached for own in node.all_input_nodes):
            reached.add(node)
    return reached


def _part(model: nn.Module, graph: fx.Graph, begin: fx.Node, end: fx.Node | None, constant: set[fx.Node]) -> nn.Module:
    """What leads from ``begin``, which becomes the input, to ``end``, which becomes the output."""
    part = fx.Graph()
    copies: dict[Any, fx.Node] = {begin: part.placeholder("x")}
    wanted = (_reached_from(graph, begin) | constant) - {begin}
    for node in graph.nodes:
        if node not in wanted:
            continue
        if node.op == "output":
            part.output(fx.node.map_arg(node.args[0], copies.__getitem__))
            break
        copies[node] = part.node_copy(node, copies.__getitem__)
        if node is end:
            part.output(copies[node])
            break
    return cast(nn.Module, fx.GraphModule(model, part))
