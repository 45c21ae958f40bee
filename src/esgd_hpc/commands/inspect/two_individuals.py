"""How two individuals differ: training, descent, and weights, tensor by tensor."""

from typing import Any

from esgd_hpc.commands.inspect.view import NOT_KEPT, View, asked_uid
from esgd_hpc.commands.inspect.words import SHOWN, Answer, number, optimizer_object, table, uids
from esgd_hpc.distance import Distance, TensorDistance, parameter_distance, tensor_distances
from esgd_hpc.errors import InputError
from esgd_hpc.population import Individual


def compare(view: View, asked: list[str]) -> Answer:
    """Compare two individuals of the generation that is looked at, or that it remembers.

    generation
    individuals         [{uid, fitness, born, origin, parents, in_population, optimizer}] of both,
                        as they are, or were at last
    differences         {setting of the optimizer, or hyperparameters.NAME: [first, second]}, null
                        where one does not have it
    common_ancestors    uids; each counts among its own ancestors
    nearest_common_ancestors    those of them that are no ancestors of others of them
    distance            {absolute, relative (to the norm of the first), equal (bit by bit)} of the
                        parameters; null where weights are no longer kept
    tensors             [{name, kind, absolute, relative, equal}], or null; only `equal` is known of
                        integer buffers

    Raises InputError for uids that nobody ever selected had, and where weights are damaged.
    """
    first, second = (_individual(view, text) for text in asked)
    if first.uid == second.uid and (first is view.champion) == (second is view.champion):
        raise InputError(
            f"--compare {' '.join(asked)}: both are individual {first.uid}; name two individuals"
        )
    common, nearest = view.lineage.common_ancestors(first.uid, second.uid)
    here, there = view.weights_of(first), view.weights_of(second)
    tensors = None
    if here is not None and there is not None:
        tensors = tensor_distances(view.checkpoint.layout, here, there)
    lost = [i.uid for i, pieces in ((first, here), (second, there)) if pieces is None]
    settings = _settings(first), _settings(second)
    described = {
        "generation": view.generation,
        "individuals": [_described(view, individual) for individual in (first, second)],
        "differences": {
            name: [of_one.get(name) for of_one in settings]
            for name in {**settings[0], **settings[1]}
            if settings[0].get(name) != settings[1].get(name)
        },
        "common_ancestors": common,
        "nearest_common_ancestors": nearest,
        "distance": None if tensors is None else distance_object(parameter_distance(tensors)),
        "tensors": None if tensors is None else [_tensor_object(tensor) for tensor in tensors],
    }
    return Answer(described, _lines(described, tensors, lost))


def _individual(view: View, asked: str) -> Individual:
    if asked == "best":
        return view.best()
    uid = asked_uid(view, "--compare", asked)
    return next((i for i in view.individuals if i.uid == uid), view.lineage.last_known(uid))


def _settings(individual: Individual) -> dict[str, Any]:
    """Return the optimizer and all its hyper-parameters on one level."""
    fields = optimizer_object(individual.draw) or {}
    own = fields.pop("hyperparameters", {})
    if fields:
        fields = {"optimizer": fields.pop("name"), **fields}
    return {**fields, **{f"hyperparameters.{name}": value for name, value in own.items()}}


def _described(view: View, individual: Individual) -> dict[str, Any]:
    return {
        "uid": individual.uid,
        "fitness": individual.fitness,
        "born": individual.born,
        "origin": individual.origin,
        "parents": list(individual.parents),
        "in_population": any(i is individual for i in view.individuals),
        "optimizer": optimizer_object(individual.draw),
    }


def distance_object(distance: Distance) -> dict[str, Any]:
    """Return {absolute, relative, equal}."""
    return {
        "absolute": distance.absolute,
        "relative": distance.relative,
        "equal": distance.equal,
    }


def _tensor_object(tensor: TensorDistance) -> dict[str, Any]:
    return {"name": tensor.entry.name, "kind": tensor.entry.kind, **distance_object(tensor)}


# For people ---------------------------------------------------------------------------------------


def _lines(
    described: dict[str, Any], tensors: list[TensorDistance] | None, lost: list[int]
) -> list[str]:
    both = described["individuals"]
    names = [f"individual {one['uid']}" for one in both]
    rows = [
        ("fitness", *(number(one["fitness"]) for one in both)),
        ("born", *(str(one["born"]) for one in both)),
        ("origin", *(one["origin"] for one in both)),
        ("parents", *(" ".join(map(str, one["parents"])) or "-" for one in both)),
        ("in population", *("yes" if one["in_population"] else "no" for one in both)),
        ("trained by", *((one["optimizer"] or {"name": "-"})["name"] for one in both)),
        *(
            (name.replace("_", " "), *map(_value, values))
            for name, values in described["differences"].items()
            if name != "optimizer"
        ),
    ]
    nearest = described["nearest_common_ancestors"]
    return [
        f"generation {described['generation']}",
        "",
        *table(("", *names), rows, words=(0,)),
        "",
        f"common ancestors  {len(described['common_ancestors'])}"
        + (f", the nearest {uids(nearest)}" if nearest else ""),
        *_distance_lines(names[0], tensors, lost),
    ]


def _value(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _distance_lines(name: str, tensors: list[TensorDistance] | None, lost: list[int]) -> list[str]:
    if tensors is None:
        return [f"weights           of {uids(lost)} {NOT_KEPT}"]
    distance = parameter_distance(tensors)
    farthest = sorted(tensors, key=lambda t: -t.absolute if t.absolute >= 0 else 0.0)[:SHOWN]
    rows = [
        (
            number(tensor.absolute, ".4g"),
            number(tensor.relative, ".4g"),
            "yes" if tensor.equal else "no",
            tensor.entry.kind,
            tensor.entry.name,
        )
        for tensor in farthest
    ]
    more = len(tensors) - len(rows)
    return [
        f"distance          {number(distance.absolute, '.4g')} over all parameters,"
        f" {number(distance.relative, '.4g')} of the norm of {name}",
        "",
        *table(("distance", "relative", "equal", "kind", "tensor"), rows, words=(3, 4)),
        *([f"{more} nearer tensors: --json"] if more else []),
    ]
