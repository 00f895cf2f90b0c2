"""What `nfqlb explain` prints: a decision as a person would tell it.

Owns the words for reasons, sticky entries and schedulers. Every function takes documents as they came over
the socket and returns text; the times of day are local.
"""

from collections.abc import Sequence
from datetime import datetime
from textwrap import wrap

from nfqlb.operator.document import items, number, optional, optional_text, part, port, rows, text
from nfqlb.operator.text import age, clean, count, endpoint, several
from nfqlb.runtime.protocol import JSON, JSONObject

#: Columns of a terminal.
WIDTH = 80

#: What is said of a server that could not be chosen, instead of what it was judged by.
_BARRED = {
    "failed": "had failed {before}",
    "testing": "being tested by one connection for {age}",
    "out-of-service": "out of service for {age}",
    "maintenance": "in maintenance for {age}",
    "sticky-only": "takes sticky clients only",
    "max-capacity": "at its maximum of {most}",
    "weight-0": "weight 0: no new clients",
    "standby": "a backup that is not needed",
    "no-answer": "had not answered this connection",
    "refused-before": "had refused this client",
    "no-answer-before": "had not answered this client",
    "collision": "its replies could not have been told apart",
}
_VERDICTS = {
    "chosen": "chosen",
    "over-syn-limit": "over its SYN limit",
    "worse": "worse",
    "later-in-order": "as good, later in order",
    "not-drawn": "not drawn",
    "not-its-turn": "not its turn",
    "address-points-elsewhere": "the client's address points elsewhere",
    "not-asked": "not asked",
    "table-full": "would have been chosen",
}
_STICKY = {
    "failed": "which had failed",
    "testing": "which was being tested",
    "out-of-service": "which was out of service",
    "maintenance": "which was in maintenance",
    "max-capacity": "which had its maximum of connections",
    "standby": "a backup that was not needed",
    "gone": "which has no place here",
    "no-answer": "which had not answered this connection",
    "refused-before": "which had refused this client",
    "no-answer-before": "which had not answered this client",
    "collision": "whose replies could not have been told apart from another connection's",
}
_DOUBTED = {"reset": "refused", "no-answer": "not answered"}
_DITCHED = {"reset": ", which refused it", "no-answer": ", which did not answer"}
_REFUSED = {
    "no-server": "no server could take it",
    "reverse-collision": "no server's replies could have been told apart from another connection's",
    "table-full": "the connection table was full of live connections",
    "out-of-service": "the virtual server is out of service",
}


def story(document: JSON, *, now: float) -> list[str]:
    """All decisions of the document; `now` is the wall time in seconds, to leave out today's date."""
    lines: list[str] = []
    for decision in rows(document):
        lines += [""] if lines else []
        lines += _told(decision, now)
    return [clean(line) for line in lines]


def asked(connection: str) -> tuple[str, int]:
    """The client's address and port in a connection that the gateway could read."""
    address, _, digits = connection.partition("-")[0].rpartition(":")
    return address.strip("[]"), int(digits)


def nothing_kept(who: str, connections: JSON, sticky: JSON, client_port: int | None = None) -> list[str]:
    """What is known of a client, or of a connection from one of its ports, of which no decision is kept."""
    lines = [f"No decision about {who} is kept any more, or there was none."]
    for one in rows(connections):
        if client_port not in (None, port(one, "client_port")):
            continue
        virtual, server = text(one, "virtual"), endpoint(text(one, "real"), port(one, "real_port"))
        client = endpoint(text(one, "client"), port(one, "client_port"))
        state, since = text(one, "state"), age(number(one, "age_s"))
        lines.append(f"  {client} to {virtual} is with {server}: {state}, opened {since} ago")
    for entry in rows(sticky):
        where = f"group {text(entry, 'group')}" if "group" in entry else text(entry, "virtual")
        left = age(number(entry, "expires_s"))
        lines.append(f"  sticky entry for {where}: {text(entry, 'real')}, for {left} more")
    if len(lines) == 1:
        lines.append("  There is no live connection and no sticky entry either.")
    return [clean(line) for line in lines]


def moment(at: float, now: float) -> str:
    """The time of day, with the date where that is not today's."""
    then = datetime.fromtimestamp(at)
    today = then.date() == datetime.fromtimestamp(now).date()
    return then.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")


def outcome(decision: JSONObject) -> str:
    """Where the connection went, in the past tense and without a full stop."""
    before = optional_text(decision, "unanswered_by")
    refused = optional_text(decision, "refused")
    if refused is not None:
        why = _REFUSED.get(refused, refused)
        return f"stayed with {before}, which had not answered: {why}" if before else f"was refused: {why}"
    server = endpoint(text(decision, "chosen"), port(decision, "chosen_port"))
    where = f"was sent on to {server}, as {before} had not answered" if before else f"went to {server}"
    return where + _DITCHED.get(optional_text(decision, "ditched") or "", "")


def server(decision: JSONObject) -> str:
    """Where the connection went, or why nowhere, in a word or two."""
    if optional_text(decision, "refused") is not None:
        return f"- ({text(decision, 'refused')})"
    return endpoint(text(decision, "chosen"), port(decision, "chosen_port"))


def _told(decision: JSONObject, now: float) -> list[str]:
    client = endpoint(text(decision, "client"), port(decision, "client_port"))
    when, virtual = moment(number(decision, "at"), now), text(decision, "virtual")
    lines = [f"{when}  {client} to {virtual} {outcome(decision)}."]
    if optional_text(decision, "refused") == "out-of-service":
        return lines  # nothing was asked: neither sticky entry nor scheduler
    parts = (_sticky(decision), _scheme(decision), _doubt(decision), _shadow(decision))
    said = " ".join(filter(None, parts))
    candidates = [_candidate(each, decision) for each in items(decision, "candidates")]
    lines += wrap(said, WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    lines += ["    " + "   ".join(cells).rstrip() for cells in zip(*_aligned(candidates), strict=True)]
    others = part(decision, "others")
    if others:
        told = ", ".join(f"{count(number(others, reason))} {_in_short(reason)}" for reason in others)
        total = sum(number(others, reason) for reason in others)
        lines.append(f"    and {several(total, 'more server')}: {told}")
    return lines


def _aligned(candidates: Sequence[tuple[str, str, str]]) -> list[list[str]]:
    """The columns of the table, each as wide as it needs to be."""
    columns = []
    for cells in zip(*candidates, strict=True):
        width = max(map(len, cells))
        columns.append([cell.ljust(width) for cell in cells])
    return columns


def _in_short(reason: str) -> str:
    return _VERDICTS.get(reason, reason)


def _sticky(decision: JSONObject) -> str:
    """What the client's sticky entry said, and what is in it now."""
    sticky = part(decision, "sticky")
    said, real, written = (
        text(sticky, "said"),
        optional_text(sticky, "real"),
        optional_text(sticky, "written"),
    )
    if said == "off":
        return "Clients are not sticky here."
    if said == "none":
        now = f" From now on its entry says {written}." if written else ""
        return f"No sticky entry.{now}"
    if said == "used":
        return f"Its sticky entry says {real}" + (", and holds anew." if written else ".")
    reason = text(sticky, "reason")
    now = f" From now on it says {written}." if written else ""
    return f"Its sticky entry said {real}, {_STICKY.get(reason, reason)}.{now}"


def _scheme(decision: JSONObject) -> str:
    """How the choice was made."""
    by, chosen = text(decision, "by"), optional_text(decision, "chosen")
    if by == "sticky":
        return "So no scheduler was asked."
    if by == "test":
        return "One connection tests whether a failed server is back."
    if by == "backup":
        return "No server could be chosen, so the virtual server's backup was."
    if by == "none":
        return "No scheduler had a server to choose."
    aside = optional_text(decision, "set_aside")
    way = _way(decision, chosen)
    if by != "startup":
        return way
    return f"The scheduler would have taken {aside}; while servers start up, {way}" if aside else (
        f"While servers start up, {way}"
    )


def _doubt(decision: JSONObject) -> str:
    """That the chosen server had not taken this client lately; nothing where that is not so."""
    chosen = optional_text(decision, "chosen")
    doubted = part(decision, "doubted") if decision.get("doubted") else {}
    if chosen is None or chosen not in doubted:
        return ""
    why = _DOUBTED.get(text(doubted, chosen), text(doubted, chosen))
    return f"{chosen} had {why} this client, but no better server could be chosen."


def _shadow(decision: JSONObject) -> str:
    """What the shadow would have chosen; nothing where none was asked."""
    if decision.get("shadow") is None:
        return ""
    shadow = part(decision, "shadow")
    scheduler, real, own = text(shadow, "scheduler"), text(shadow, "real"), port(shadow, "port")
    same = (real, own) == (optional_text(decision, "chosen"), port(decision, "chosen_port"))
    return f"In shadow, {scheduler} would have taken {'the same' if same else endpoint(real, own)}."


def _way(decision: JSONObject, chosen: str | None) -> str:
    scheduler, last = text(decision, "scheduler"), optional_text(decision, "last_used")
    after = f"after {last}" if last else "from the first"
    noted = list(map(str, _names(decision)))
    if scheduler == "round-robin":
        return f"round-robin took the next in order {after}."
    if scheduler == "weighted-round-robin":
        return f"weighted-round-robin gave {chosen or 'a server'} its turn."
    if scheduler == "power-of-two":
        return f"power-of-two drew {' and '.join(noted)}."
    if scheduler in ("source-hash", "maglev"):
        first = noted[0] if noted else ""
        instead = "" if first == chosen else ", which could not be chosen"
        return f"{scheduler}: the client's address points at {first}{instead}."
    compared = several(_compared(decision), "server")
    if scheduler == "fastest-response":
        compared += " by connections x R - age / ageing, in ms"
    tie = f" Of equals it took the next in order {after}." if decision.get("tie_break") is True else ""
    return f"{scheduler} compared {compared}.{tie}"


def _names(decision: JSONObject) -> list[JSON]:
    noted = decision.get("scheduler_note")
    return noted if isinstance(noted, list) else []


def _compared(decision: JSONObject) -> float:
    """How many servers stood to choice."""
    able = ("chosen", "table-full", "worse", "later-in-order", "over-syn-limit")
    told = sum(text(each, "reason") in able for each in items(decision, "candidates"))
    others = part(decision, "others")
    return told + sum(number(others, reason) for reason in others if reason in able)


def _candidate(candidate: JSONObject, decision: JSONObject) -> tuple[str, str, str]:
    """A server's name, what it was judged by, and what became of it."""
    name, reason = text(candidate, "real"), text(candidate, "reason")
    if reason in _BARRED:
        since = number(candidate, "state_age_s")
        most = several(number(candidate, "max_connections"), "connection")
        return name, _BARRED[reason].format(age=age(since), before=_before(since), most=most), "passed over"
    return name, _figure(candidate, decision), _verdict(candidate, reason)


def _figure(candidate: JSONObject, decision: JSONObject) -> str:
    connections = several(number(candidate, "connections"), "connection")
    weight = f"{number(candidate, 'weight'):g}"
    indicium = optional(candidate, "indicium")
    scheduler = optional_text(decision, "scheduler")
    if indicium is not None and scheduler in ("weighted-least-connections", "power-of-two"):
        return f"{connections} / weight {weight} = {indicium:.4g}"
    if scheduler == "least-connections":
        return connections
    if scheduler == "fastest-response":
        return _prediction(candidate, decision)
    return f"{connections}, weight {weight}"


def _prediction(candidate: JSONObject, decision: JSONObject) -> str:
    """What a server's response times promised: the prediction as it is reckoned, in milliseconds."""
    connections = number(candidate, "connections")
    ratio = optional(candidate, "ratio_s")
    if ratio is None:
        return f"{several(connections, 'connection')}, response time not known yet"
    following = optional_text(decision, "predict") == "next"
    counted = f"({count(connections)} + 1)" if following else count(connections)
    measured, ageing = number(candidate, "response_age_s"), number(decision, "ageing")
    reckoned = f"{counted} x {_ms(ratio)} - {_ms(measured)} / {ageing:.6g}"
    return f"{reckoned} = {_ms(number(candidate, 'predicted_s'))} ms"


def _ms(seconds: float) -> str:
    """Milliseconds, to the microsecond where they are few."""
    return f"{1000 * seconds:.4g}" if abs(seconds) < 10 else f"{1000 * seconds:.0f}"


def _before(seconds: float) -> str:
    """How long before the decision something was."""
    return "just before" if seconds < 0.05 else f"{age(seconds)} before"


def _verdict(candidate: JSONObject, reason: str) -> str:
    verdict = _VERDICTS.get(reason, reason)
    limit, unanswered = optional(candidate, "syn_limit"), number(candidate, "unanswered")
    over = limit is not None and unanswered >= limit
    if over and reason in ("chosen", "over-syn-limit"):
        return f"{verdict} ({several(unanswered, 'unanswered SYN')})"
    return verdict
