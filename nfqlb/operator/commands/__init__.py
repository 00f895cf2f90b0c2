"""The commands, a module for those that belong together.

Each has for every command a function `add_NAME(parser)`, which gives the parser its words and the function
that runs; what that needs is imported when it runs. `ALL` is what `nfqlb --help` lists.
"""

import argparse
from collections.abc import Callable, Mapping

from nfqlb.operator.commands import (
    capture,
    change,
    doctor,
    gateway,
    look,
    reload,
    rules,
    script,
    service,
    top,
)

#: Every command in the order of the help: what it does, in a line, and who adds its words.
ALL: Mapping[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "run": ("balance, in the foreground, until Ctrl-C or SIGTERM", gateway.add_run),
    "check": ("say what is wrong with a configuration, or what it does", gateway.add_check),
    "diff": ("say what a reload would change, and what it would refuse", reload.add_diff),
    "reload": ("take the changed configuration, without losing a connection", reload.add_reload),
    "rules": ("show, apply, verify or remove the iptables rules", rules.add_rules),
    "show": ("look at the running gateway", look.add_show),
    "top": ("watch the running gateway", top.add_top),
    "explain": ("tell why a connection went where it went", look.add_explain),
    "set": ("put a server in or out of service, drain it, weigh it anew", change.add_set),
    "clear": ("forget which client is bound to which server", change.add_clear),
    "wait": ("wait until a server is empty, failed, in service, ...", script.add_wait),
    "batch": ("carry out several orders, all of them or none", script.add_batch),
    "adopt": ("look for connections that the kernel has from another gateway", script.add_adopt),
    "doctor": ("say what is wrong here, and what to do about it", doctor.add_doctor),
    "capture": ("write what a virtual server's packets were, and became, to a file", capture.add_capture),
    "replay": ("run a capture through other settings: what would have gone where?", capture.add_replay),
    "install-service": ("make it a service of this machine, or remove it", service.add_install_service),
    "demo": ("a gateway with clients and servers, all inside this machine", gateway.add_demo),
}
#: What programs ask for and nobody types, so that no list of commands has it.
HIDDEN: Mapping[str, Callable[[argparse.ArgumentParser], None]] = {"complete": service.add_complete}
