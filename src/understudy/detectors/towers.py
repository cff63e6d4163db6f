"""The two towers of a dense head: record the maps inside them, and run their ends on other maps.

A tower is a sequence of convolutions, each followed by an optional normalisation and a ReLU. Its maps have the number
of their convolution, counted from 0, and are taken before the ReLU.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count

from torch import Tensor, nn

from understudy.outputs import TowerMaps

Towers = tuple[nn.Module, nn.Module]
"""Of the classes, of the boxes."""


def tower_channels(towers: Towers) -> tuple[int, ...]:
    """Return the channels of the maps inside two towers; none if the towers are built otherwise, or differ."""
    own, other = (
        tuple(layer.out_channels for layer in layers_of(tower) if isinstance(layer, nn.Conv2d)) for tower in towers
    )
    activations = [sum(isinstance(layer, nn.ReLU) for layer in layers_of(tower)) for tower in towers]
    return own if own == other and activations == [len(own)] * 2 else ()


def layers_of(tower: nn.Module) -> list[nn.Module]:
    """Return the layers of a tower in the order in which they run, without their grouping."""
    if not isinstance(tower, nn.Sequential):
        return [tower]
    return [layer for part in tower for layer in layers_of(part)]


def halves(tower: nn.Module, place: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Split a tower at the map of a convolution: the layers up to it, and those that run on it."""
    layers = layers_of(tower)
    cut = [number for number, layer in enumerate(layers) if isinstance(layer, nn.ReLU)][place]
    # Not the layer itself, which may be one that writes over the map.
    return nn.Sequential(*layers[:cut]), nn.Sequential(nn.ReLU(), *layers[cut + 1 :])


@contextmanager
def recorded(towers: Towers, places: Sequence[int]) -> Generator[dict[int, TowerMaps]]:
    """Collect the maps that are computed inside the towers within this context, level by level."""
    maps = {place: TowerMaps([], []) for place in places}
    classes = {place: of_place.classes for place, of_place in maps.items()}
    boxes = {place: of_place.boxes for place, of_place in maps.items()}
    with _running(towers[0], _recorder(towers[0], classes)), _running(towers[1], _recorder(towers[1], boxes)):
        yield maps


@contextmanager
def entered(towers: Towers, place: int, maps: TowerMaps) -> Generator[None]:
    """Let the towers ignore their inputs within this context, and run their ends on these maps, level by level."""
    with (
        _running(towers[0], _entrance(towers[0], place, maps.classes)),
        _running(towers[1], _entrance(towers[1], place, maps.boxes)),
    ):
        yield


@contextmanager
def _running(tower: nn.Module, forward: Callable[[Tensor], Tensor]) -> Generator[None]:
    """Replace the forward of a tower within this context; the network, its parameters and their names do not change."""
    vars(tower)["forward"] = forward  # goes before the method of the class
    try:
        yield
    finally:
        del vars(tower)["forward"]


def _recorder(tower: nn.Module, maps: Mapping[int, list[Tensor]]) -> Callable[[Tensor], Tensor]:
    def forward(feature: Tensor) -> Tensor:
        places = count()
        for layer in layers_of(tower):
            if isinstance(layer, nn.ReLU) and (place := next(places)) in maps:
                maps[place].append(feature)
                feature = feature.relu()  # not by the layer itself, which may write over the map
            else:
                feature = layer(feature)
        return feature

    return forward


def _entrance(tower: nn.Module, place: int, maps: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    end, levels = halves(tower, place)[1], iter(maps)
    return lambda _: end(next(levels))
