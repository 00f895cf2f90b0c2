"""What an operator has set while the gateway runs, and what a reload would make of it. Pure."""

from collections.abc import Iterator

from nfqlb.core.admission import ServerState
from nfqlb.core.spec import Config
from nfqlb.runtime.protocol import JSON, JSONObject, objects


def by_hand(snapshot: JSONObject, wanted: Config) -> list[JSON]:
    """A line each: what of the snapshot's servers is set, and whether it stays under `wanted`.

    Only a weight is ever given up: where the configuration has another one than before. What `wanted` does
    not have is left out.
    """
    return [*_reals(snapshot, wanted), *_virtuals(snapshot, wanted)]


def _reals(snapshot: JSONObject, wanted: Config) -> Iterator[str]:
    weights = {str(real.address): real.weight for real in wanted.reals}
    for row in objects(snapshot["reals"]):
        name, configured = row["name"], row["weight_configured"]
        after = weights.get(str(row["address"]))
        if after is None:
            continue
        if row["set"] != ServerState.IN_SERVICE.shown:
            yield f"real server {name}: {row['set']}; it stays"
        if row["weight"] != configured and after == configured:
            yield f"real server {name}: weight {_plain(row['weight'])} instead of {after:.10g}; it stays"
        elif row["weight"] != configured:
            yield f"real server {name}: weight {_plain(row['weight'])}; {after:.10g} takes its place"


def _virtuals(snapshot: JSONObject, wanted: Config) -> Iterator[str]:
    known = {(str(each.address), each.protocol, each.port) for each in wanted.virtuals}
    for row in objects(snapshot["virtuals"]):
        service = (row["address"], row["protocol"], row["port"])
        if row["state"] == ServerState.OUT_OF_SERVICE.shown and service in known:
            yield f"virtual server {row['name']}: {row['state']}; it stays"


def _plain(weight: JSON) -> str:
    return f"{weight:.10g}" if isinstance(weight, int | float) else str(weight)
