"""Web servers of the laboratory: one nginx a host, told apart by name, port, page speed and documents."""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from signal import SIGKILL

from nfqlb.demo.lab import Host, Lab
from nfqlb.demo.programs import Program, require

_MEBI = 1 << 20
FILM_RATE = 1024
"""KiB a second that a server sends of a document asked for under `/film/`."""

_CONFIG = """\
daemon off;
master_process off;
pid {home}/nginx.pid;
error_log {home}/error.log warn;
events {{ worker_connections 8192; }}
http {{
    log_format lab '$remote_addr $remote_port $server_port $request_method $uri $status';
    access_log {access};
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    default_type text/plain;
    sendfile on;
    keepalive_timeout 75;
    keepalive_requests 100000000;
    client_max_body_size 0;
    limit_req_zone $server_name zone=pages:32k rate={rate}r/s;
    server {{
        server_name {name};
{listen}
        add_header X-Server {name};
        location = / {{ return 200 "{name} $remote_addr $remote_port $server_port\\n"; }}
        location = /page {{ root {home}; limit_req zone=pages burst=100000; }}
        location /files/ {{ alias {files}/; }}
        location /film/ {{ alias {files}/; limit_rate {film}k; }}
        location /upload/ {{ root {home}; dav_methods PUT; create_full_put_path on; }}
    }}
}}
"""


def serve(
    lab: Lab, host: Host, *, ports: Sequence[int] = (80,), rate: int = 100_000, log: bool = True
) -> Program:
    """Start nginx on a host and return once it listens.

    `/` answers with a line `NAME CLIENT CLIENTPORT PORT`; `/page` is a page that this server gives at most
    `rate` times a second, later ones wait; `/files/` holds the documents of `document`, `/film/` the same,
    sent slowly; `/upload/` takes PUT, kept in the directory of `home`. `log`: one line a request in
    `access.log` there. Raises LabError.
    """
    require("nginx")
    files = lab.directory / "files"
    files.mkdir(exist_ok=True)
    place = home(lab, host)
    place.mkdir()
    (place / "page").write_text(f"<p>This page comes from {host.name}.</p>\n" * 40)
    config = place / "nginx.conf"
    config.write_text(
        _CONFIG.format(
            home=place,
            name=host.name,
            rate=rate,
            film=FILM_RATE,
            access=f"{place}/access.log lab" if log else "off",
            listen="\n".join(
                f"        listen {address}{port} backlog=4096;" for port in ports for address in ("", "[::]:")
            ),
            files=files,
        )
    )
    # SIGKILL, as a SIGTERM that comes while it starts would be noticed with the next request only
    program = host.start("nginx", "-e", f"{place}/error.log", "-c", str(config), ending=SIGKILL)
    program.wait_for(place / "nginx.pid", "\n")
    return program


def home(lab: Lab, host: Host) -> Path:
    """The directory of a host's nginx: `access.log`, `error.log`, `upload/`."""
    return lab.directory / f"{host.name}.www"


def document(lab: Lab, name: str, mebibytes: int) -> str:
    """Make a document that every server then has at `/files/NAME`; return its sha256 in hexadecimal.

    Its bytes are random-looking and the same in each run, so that a lost or exchanged part is noticed.
    """
    source = random.Random(name)  # noqa: S311 - content, not a secret
    digest = hashlib.sha256()
    with (lab.directory / "files" / name).open("wb") as file:
        for _ in range(mebibytes):
            block = source.randbytes(_MEBI)
            digest.update(block)
            file.write(block)
    return digest.hexdigest()
