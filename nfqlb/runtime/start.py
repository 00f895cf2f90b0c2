"""A gateway as a process: from its configuration, or from a gateway that is there, to its exit status."""

import logging
import os
import traceback
from contextlib import ExitStack

from nfqlb import __version__
from nfqlb.netfilter import state
from nfqlb.netfilter.errors import KernelError
from nfqlb.netfilter.state import Kept
from nfqlb.runtime import beginning, files, logs, takeover
from nfqlb.runtime.handover import Source
from nfqlb.runtime.notify import from_environment
from nfqlb.runtime.protocol import ControlError
from nfqlb.runtime.supervisor import Supervisor

logger = logging.getLogger(__name__)


def run(source: Source, *, take_over: bool = False) -> int:
    """`nfqlb run`: serve in the foreground until SIGTERM or Ctrl-C; returns the exit status.

    `source` is where the configuration comes from. Prints "ready" once packets flow. `take_over`: from a
    gateway that runs. Does not return where the gateway is left as it is. Raises ConfigError where the
    configuration is refused, and none of before is there.
    """
    notifier = from_environment(os.environ)
    supervisor = None
    try:
        files.have_enough()
        with ExitStack() as undo:
            heir, kept = takeover.find(take_over=take_over), Kept()
            if heir is not None:
                undo.callback(heir.close)
            follows = heir.orphan if heir is not None else state.owner() is None
            begins = beginning.choose(source, kept if follows else None, alone=heir is None)
            logger.info("nfqlb %s, configuration %s", __version__, source.path)
            if begins is None:
                return 1
            heir = takeover.accepted(heir, begins.config) if heir is not None else None
            config = takeover.continued(heir, begins.config) if heir is not None else begins.config
            supervisor = Supervisor(
                config, begins, source, kept, lambda: logs.say("ready"), notifier, heir
            )
            supervisor.run()
    except (KernelError, ControlError) as error:
        logger.error("%s", error)
        status = 1
    except OSError as error:  # of whatever the machine has too little
        where = traceback.extract_tb(error.__traceback__)[-1]
        logger.error("the gateway cannot go on: %s (%s:%d)", error, where.filename, where.lineno)
        status = 1
    else:
        status = 0
    finally:
        notifier.close()
    if supervisor is not None and supervisor.leaving:
        logging.shutdown()
        os._exit(status)
    return status
