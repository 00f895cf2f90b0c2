"""Commands that change something while the gateway runs: carried out by the worker, between packets.

Owns their names, their arguments and what is said of each: one line a change, for the operator and for the
log. Pure: a director in, a document out. `views` has the commands that only read.
"""

from collections.abc import Callable, Iterable

from pydantic_core import PydanticCustomError

from nfqlb.config.values import parse_weight
from nfqlb.core.admission import BY_NAME, ServerState
from nfqlb.core.director import Director
from nfqlb.core.operation import Done
from nfqlb.runtime import views
from nfqlb.runtime.protocol import JSON, JSONObject, Result
from nfqlb.runtime.views import bad

#: What an operator may set. A virtual server is in service or not (A26).
REAL_STATES = tuple(state.shown for state in ServerState if state.operator)
VIRTUAL_STATES = (ServerState.IN_SERVICE.shown, ServerState.OUT_OF_SERVICE.shown)


def answer(director: Director, cmd: str, args: JSONObject, now: float) -> Result:
    """The worker's answer to any command.

    An order's result holds `said`, a list of lines. Raises ControlError: "bad-argument", or as
    `views.answer` does.
    """
    order = _ORDERS.get(cmd)
    if order is None:
        return views.answer(director, cmd, args, now)
    known, carry_out = order
    views.check_names(cmd, args, known)
    return carry_out(director, args, now)


def _set_real(director: Director, args: JSONObject, now: float) -> Result:
    name = _name("real server", args, director.real_servers)
    setting = _state(args, REAL_STATES, "a real server") if args.get("state") is not None else None
    weight = _weight(args["weight"]) if args.get("weight") is not None else None
    if setting is None and weight is None:
        raise bad("nothing to set", f"a state ({', '.join(REAL_STATES)}) or weight=N")
    done = director.operation.set_real(name, setting=setting, weight=weight, now=now)
    said = []
    if setting is not None:
        found_out = director.real_servers[name].health.reason
        reason = found_out or next(each.reason for each in director.reals(now) if each.name == name)
        said.append(_said(done, reason))
    if weight is not None:
        said.append(_said_weight(done))
    return _document(done, said)


def _set_virtual(director: Director, args: JSONObject, _now: float) -> Result:
    names = [virtual.spec.name for virtual in director.virtual_servers]
    name = _name("virtual server", args, names)
    setting = _state(args, VIRTUAL_STATES, "a virtual server")
    done = director.operation.set_virtual(name, setting)
    reason = "no server can be chosen" if done.states[1] is ServerState.FAILED else ""
    return _document(done, [_said(done, reason)])


def _clear_sticky(director: Director, args: JSONObject, now: float) -> Result:
    name = None
    if args.get("virtual") is not None:
        names = [virtual.spec.name for virtual in director.virtual_servers]
        name = _name("virtual server", {"name": args["virtual"]}, names)
    client = views.client_named(args)
    cleared = director.operation.clear_sticky(name, client.packed if client else None, now)
    if cleared is None:
        raise bad(f"{name} has no stickiness", "`sticky` in the configuration switches it on")
    whose = (f" of {args['client']}" if client else "") + (f" for {name}" if name else "")
    said = f"{_several(cleared, 'sticky entry', 'sticky entries')}{whose} cleared"
    return {"cleared": cleared, "said": [said]}


_ORDERS: dict[str, tuple[tuple[str, ...], Callable[[Director, JSONObject, float], Result]]] = {
    "set-real": (("name", "state", "weight"), _set_real),
    "set-virtual": (("name", "state"), _set_virtual),
    "clear-sticky": (("virtual", "client"), _clear_sticky),
}
ORDERS = tuple(_ORDERS)


def _document(done: Done, said: list[str]) -> JSONObject:
    lines: list[JSON] = list(said)
    return {
        "name": done.name,
        "state": done.states[1].shown,
        "set": done.settings[1].shown,
        "connections": done.connections,
        "said": lines,
    }


def _said(done: Done, reason: str) -> str:
    """What a setting came to. What is set and what the server then is may differ: it may have failed."""
    (before, after), (was, setting) = done.states, done.settings
    connections = _several(done.connections, "connection", "connections")
    if before is not after:
        line = f"{done.name}: {before.shown} -> {after.shown} ({connections})"
    elif was is setting:
        line = f"{done.name}: {setting.shown} already ({connections})"
    else:
        line = f"{done.name}: {setting.shown} is set ({connections})"
    if after is not setting:
        line += f"; it is {after.shown}: {reason}"
    if done.unbound:
        line += f"; {_several(done.unbound, 'sticky entry', 'sticky entries')} cleared"
    return line


def _said_weight(done: Done) -> str:
    assert done.weights is not None
    before, after = done.weights
    if before == after:
        return f"{done.name}: weight {after:.10g} already"
    return f"{done.name}: weight {before:.10g} -> {after:.10g}"


def _name(what: str, args: JSONObject, names: Iterable[str]) -> str:
    name, known = args.get("name"), list(names)
    if isinstance(name, str) and name in known:
        return name
    raise bad(f"there is no {what} {name!r}", views.suggest(str(name), known))


def _state(args: JSONObject, allowed: tuple[str, ...], whose: str) -> ServerState:
    state = args.get("state")
    if isinstance(state, str) and state in allowed:
        return BY_NAME[state]
    known = BY_NAME.get(state) if isinstance(state, str) else None
    found_out = known is not None and not known.operator
    wrong = f"{state} is found out, not set" if found_out else f"{state!r} is no state"
    if known is not None and known.operator:
        wrong += f" of {whose}"
    near = views.suggest(str(state), allowed)
    listed = f"states that can be set of {whose}: {', '.join(allowed)}"
    raise bad(wrong, f"{near} {listed}" if near.startswith("did") and not found_out else listed)


def _weight(value: JSON) -> float:
    try:
        return parse_weight(value)
    except PydanticCustomError as error:
        context = error.context or {}
        raise bad(f"weight: {error.message()}", str(context.get("hint", ""))) from None


def _several(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
