"""Commands that change something while the gateway runs: carried out by the worker, between packets.

Owns their names, their arguments and what is said of each: one line a change, for the operator and for the
log. Each is checked first and then carried out, so that of a batch everything can be checked before
anything is done. Pure: a director in, a document out. `views` has the commands that only read.
"""

from collections.abc import Callable, Iterable

from pydantic_core import PydanticCustomError

from nfqlb.config.values import parse_weight
from nfqlb.core.admission import BY_NAME, ServerState
from nfqlb.core.director import Director
from nfqlb.core.observe import deserted, reason_of
from nfqlb.core.operation import Done
from nfqlb.core.plural import several
from nfqlb.core.server import VirtualServer
from nfqlb.runtime import views
from nfqlb.runtime.protocol import JSON, ControlError, JSONObject, Result
from nfqlb.runtime.views import bad

#: What an operator may set. A virtual server is in service or not (A26).
REAL_STATES = tuple(state.shown for state in ServerState if state.operator)
VIRTUAL_STATES = (ServerState.IN_SERVICE.shown, ServerState.OUT_OF_SERVICE.shown)
#: What an operator may say as well.
_WORDS = {"drain": ServerState.STICKY_ONLY}
WARNING = "warning: "  # so begins a line that says what an order has spoilt
_NOBODY = "has no server left that takes new clients: they are refused"
MAX_BATCH = 1000  # orders in a batch: they are carried out in one go, while packets wait
#: Carries out an order that was found to be possible.
Act = Callable[[], JSONObject]


def answer(director: Director, cmd: str, args: JSONObject, now: float) -> Result:
    """The worker's answer to any command.

    An order's result holds `said`, a list of lines. Raises ControlError: "bad-argument", or as
    `views.answer` does.
    """
    if cmd == "batch":
        return _batch(director, args, now)
    if cmd not in _ORDERS:
        return views.answer(director, cmd, args, now)
    result = _checked(director, cmd, args, now)()
    _warn(director, [(cmd, result)])
    return result


def _checked(director: Director, cmd: str, args: JSONObject, now: float) -> Act:
    """An order that can be carried out. Raises ControlError."""
    known, check = _ORDERS[cmd]
    views.check_names(cmd, args, known)
    return check(director, args, now)


def _batch(director: Director, args: JSONObject, now: float) -> Result:
    """Many orders, all of them or none: the argument `commands` holds objects with `cmd` and `args`."""
    views.check_names("batch", args, ("commands",))
    commands = args.get("commands")
    if not isinstance(commands, list) or not commands:
        raise bad("commands: a list of at least one command is missing")
    if len(commands) > MAX_BATCH:
        raise bad(f"commands: {len(commands)} are more than {MAX_BATCH}")
    acts = [(cmd, _one_of_many(director, number, cmd, given, now))
            for number, (cmd, given) in enumerate(map(_command, commands), 1)]  # fmt: skip
    done = [(str(cmd), act()) for cmd, act in acts]
    _warn(director, done)
    results: list[JSON] = [{"cmd": cmd, "result": result} for cmd, result in done]
    return {"results": results, "said": [line for _, result in done for line in _lines(result)]}


def _warn(director: Director, done: list[tuple[str, JSONObject]]) -> None:
    """Add to the last order that concerns it a line for each virtual server left without a server."""
    left = [virtual for virtual in director.virtual_servers if deserted(virtual)]
    for cmd, result in reversed(done):
        concerned = [virtual for virtual in left if _concerns(cmd, result.get("name"), virtual)]
        left = [virtual for virtual in left if virtual not in concerned]
        lines: list[JSON] = [f"{WARNING}{virtual.spec.name} {_NOBODY}" for virtual in concerned]
        result["said"] = _lines(result) + lines


def _concerns(cmd: str, name: JSON, virtual: VirtualServer) -> bool:
    if cmd == "set-virtual":
        return name == virtual.spec.name
    return any(link.real.spec.name == name for link in virtual.everybody)


def _command(document: JSON) -> tuple[JSON, JSON]:
    return (document.get("cmd"), document.get("args")) if isinstance(document, dict) else (None, None)


def _one_of_many(director: Director, number: int, cmd: JSON, args: JSON, now: float) -> Act:
    try:
        if not isinstance(cmd, str) or cmd not in _ORDERS:
            raise bad(f"{cmd!r} is no order", views.suggest(str(cmd), _ORDERS))
        if not isinstance(args, dict):
            raise bad("args must be an object")
        return _checked(director, cmd, args, now)
    except ControlError as error:
        raise ControlError(
            error.code, f"command {number}: {error.message}; nothing was changed", error.hint
        ) from None


def _lines(result: JSONObject) -> list[JSON]:
    lines = result["said"]
    assert isinstance(lines, list)
    return lines


def _set_real(director: Director, args: JSONObject, now: float) -> Act:
    name = _name("real server", args, director.real_servers)
    if director.real_servers[name].draining:
        raise bad(f"{name} is not in the configuration any more", "it drains, and is gone when it is empty")
    setting = _state(args, REAL_STATES, "a real server") if args.get("state") is not None else None
    weight = _weight(args["weight"]) if args.get("weight") is not None else None
    if setting is None and weight is None:
        raise bad("nothing to set", f"a state ({', '.join(REAL_STATES)}) or weight=N")

    def act() -> JSONObject:
        done = director.operation.set_real(name, setting=setting, weight=weight, now=now)
        said = []
        if setting is not None:
            real = director.real_servers[name]
            said.append(_said(done, real.health.reason or reason_of(real)))
        if weight is not None:
            said.append(_said_weight(done))
        return _document(done, said)

    return act


def _set_virtual(director: Director, args: JSONObject, _now: float) -> Act:
    names = director.virtual_names()
    name = _name("virtual server", args, names)
    if any(each.draining for each in director.virtual_servers if each.spec.name == name):
        raise bad(f"{name} is not in the configuration any more", "it drains, and is gone when it is empty")
    setting = _state(args, VIRTUAL_STATES, "a virtual server")

    def act() -> JSONObject:
        done = director.operation.set_virtual(name, setting)
        reason = "no server can be chosen" if done.states[1] is ServerState.FAILED else ""
        return _document(done, [_said(done, reason)])

    return act


def _clear_sticky(director: Director, args: JSONObject, now: float) -> Act:
    name = None
    if args.get("virtual") is not None:
        scopes = {virtual.spec.name: virtual.scope for virtual in director.virtual_servers}
        name = _name("virtual server", {"name": args["virtual"]}, scopes)
        if scopes[name] is None:
            raise bad(f"{name} has no stickiness", "`sticky` in the configuration switches it on")
    client = views.client_named(args)

    def act() -> JSONObject:
        cleared = director.operation.clear_sticky(name, client.packed if client else None, now) or 0
        whose = (f" of {args['client']}" if client else "") + (f" for {name}" if name else "")
        said = f"{several(cleared, 'sticky entry', 'sticky entries')}{whose} cleared"
        return {"cleared": cleared, "said": [said]}

    return act


_ORDERS: dict[str, tuple[tuple[str, ...], Callable[[Director, JSONObject, float], Act]]] = {
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
    connections = several(done.connections, "connection")
    if before is not after:
        line = f"{done.name}: {before.shown} -> {after.shown} ({connections})"
    elif was is setting:
        line = f"{done.name}: {setting.shown} already ({connections})"
    else:
        line = f"{done.name}: {setting.shown} is set ({connections})"
    if after is not setting:
        line += f"; it is {after.shown}: {reason}"
    if done.unbound:
        line += f"; {several(done.unbound, 'sticky entry', 'sticky entries')} cleared"
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
    known = (BY_NAME | _WORDS).get(state) if isinstance(state, str) else None
    if known is not None and known.shown in allowed:
        return known
    found_out = known is not None and not known.operator
    wrong = f"{state} is found out, not set" if found_out else f"{state!r} is no state"
    if known is not None and known.operator:
        wrong += f" of {whose}"
    words = {word: meant.shown for word, meant in _WORDS.items() if meant.shown in allowed}
    near = views.suggest(str(state), (*allowed, *words))
    named = [each + "".join(f" (or {word})" for word in words if words[word] == each) for each in allowed]
    listed = f"states that can be set of {whose}: {', '.join(named)}"
    raise bad(wrong, f"{near} {listed}" if near.startswith("did") else listed)


def _weight(value: JSON) -> float:
    try:
        return parse_weight(value)
    except PydanticCustomError as error:
        context = error.context or {}
        raise bad(f"weight: {error.message()}", str(context.get("hint", ""))) from None
