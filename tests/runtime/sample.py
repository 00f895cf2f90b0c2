"""A snapshot as the control protocol has it, with everything in it that can be."""

from typing import Any

#: An address that only a client has: it must not come out anywhere.
CLIENT = "203.0.113.77"


def real(name: str, number: int = 1) -> dict[str, Any]:
    """One row of `reals`; the first server is one that has seen something."""
    measured = number == 1
    return {
        "name": name,
        "address": f"10.0.{number // 250}.{number % 250 + 1}",
        "state": "in-service",
        "reason": "",
        "since_s": 12.5,
        "set": "in-service",
        "weight": 2.5,
        "weight_configured": 2.5,
        "connections": 3,
        "total": 40,
        "max_connections": 100 if measured else 0,
        "unanswered": 1,
        "ditched": {"no_answer": 2, "reset": 5},
        "response_s": 0.0042 if measured else None,
        "predicted_s": 0.011 if measured else None,
        "virtuals": ["shop"],
        "failed_s": None,
        "test_in_s": None,
        "in_a_row": {"connections": 3, "why": ["reset"]},
        "suspect": False,
        "mac": "02:00:00:00:00:01" if measured else None,
        "neighbour": "reachable" if measured else None,
        "rate": 1.5,
    }


def link(name: str, port: int | None = 8080) -> dict[str, Any]:
    """One of a virtual server's `servers`."""
    return {
        "real": name,
        "port": port,
        "connections": 3,
        "total": 40,
        "state": "in-service",
        "share": 0.5,
        "fair_share": 0.25,
        "backup": False,
    }


def virtual(name: str, servers: list[dict[str, Any]], *, port: int | None = 80) -> dict[str, Any]:
    """One row of `virtuals`."""
    return {
        "name": name,
        "address": "192.0.2.10",
        "protocol": "tcp",
        "port": port,
        "state": "in-service",
        "scheduler": {"desired": "fastest-response", "actual": "round-robin"},
        "connections": 6,
        "total": 80,
        "servers": servers,
        "rate": 3.0,
        "traffic": {"packets_in": 10, "bytes_in": 1000, "packets_out": 20, "bytes_out": 20000},
        "drops": {"no-server": 4},
        "shadow": {"scheduler": "least-connections", "evaluated": 50, "differed": 9},
        "half_open": 2,
        "flood": False,
        "evicted": {"half_open": 24},
    }


def snapshot(*, reals: int = 2) -> dict[str, Any]:
    """A gateway with one virtual server over so many real servers."""
    names = [f"web{number}" for number in range(1, reals + 1)]
    return {
        "at": 1_700_000_000.25,
        "version": "1.2.3",
        "datapath": "rewrite",
        "state": "running",
        "verdict": "1 of 2 servers failed",
        "problems": [{"level": "error", "what": "web2 has failed"}],
        "uptime_s": 3600.5,
        "worker": {"pid": 4711, "restarts": 2},
        "connections": {"now": 6, "total": 80, "limit": 1000, "rate": 3.0},
        "sticky": {"now": 7, "limit": 2000},
        "queues": [
            {
                "number": 0,
                "role": "new",
                "depth": 11,
                "peak": 17,
                "limit": 1024,
                "socket_bytes": 18_000,
                "socket_limit": 2_000_000,
                "dropped_full": 12,
                "dropped_socket": 13,
                "overruns": 14,
                "refused": 15,
                "unreadable": 16,
                "packets": 1700,
                "busy_s": 1.8,
            }
        ],
        "journal": {"lost": 19},
        "defects": {"worker": 33, "supervisor": 34},
        "conntrack": {"now": 28, "limit": 29, "lost": {"drop": 30, "early_drop": 31, "insert_failed": 32}},
        "followed": {"lost": 20},
        "evicted": {"connections": 25, "sticky": 26},
        "audit": {"drift": 27},
        "drops": {"no-connection": 21},
        "replies": {"reset": 22},
        "rules": {"present": True, "repairs": 23, "repaired_at": 1_690_000_000.0, "why": "flushed"},
        "reload": {"at": 1_695_000_000.0, "ok": False, "error": "line 3"},
        "virtuals": [virtual("shop", [link(name) for name in names])],
        "reals": [real(name, number) for number, name in enumerate(names, 1)],
        "response": {
            name: {"counts": {"0.0001": 1, "0.0005": 2, "+Inf": 1}, "sum_s": 11.5} for name in names
        },
        # nothing of this is for metrics
        "events": [{"at": 1_700_000_000.0, "who": CLIENT, "text": f"a client {CLIENT}"}],
        "connections_list": [{"client": CLIENT}],
    }
