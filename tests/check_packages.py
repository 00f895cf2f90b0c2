"""Checks a directory with the built wheel and sdist: templates, metadata and entry point are in, and work.

Run by `tests/run.sh` as `check_packages.py DIST` from the checkout; one line a finding, status 1 if any.
"""

import configparser
import email
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def declared() -> configparser.ConfigParser:
    """What setup.cfg says."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def templates() -> dict[str, bytes]:
    """The rule templates of the checkout."""
    return {path.name: path.read_bytes() for path in (ROOT / "iptables").glob("*.rules")}


def wheel_findings(path: Path) -> Iterator[str]:
    """What the wheel lacks."""
    setup = declared()
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        for name, content in templates().items():
            place = f"nfqlb/iptables/{name}"
            if place not in names or wheel.read(place) != content:
                yield f"{path.name}: {place} is not the checkout's iptables/{name}"
        for source in sorted((ROOT / "nfqlb/service").iterdir()):
            if source.is_file() and f"nfqlb/service/{source.name}" not in names:
                yield f"{path.name}: lacks nfqlb/service/{source.name}"
        info = f"nfqlb-{setup['metadata']['version']}.dist-info"
        metadata = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
        if metadata["Name"] != "nfqlb" or metadata["Version"] != setup["metadata"]["version"]:
            yield f"{path.name}: its metadata name {metadata['Name']} {metadata['Version']}"
        required = {text.split(";")[0].replace(" ", "") for text in metadata.get_all("Requires-Dist", [])}
        for need in setup["options"]["install_requires"].split("\n"):
            if need and need.replace(" ", "") not in required:
                yield f"{path.name}: does not require {need}"
        scripts = configparser.ConfigParser()
        scripts.read_string(wheel.read(f"{info}/entry_points.txt").decode())
        if scripts.get("console_scripts", "nfqlb", fallback="") != "nfqlb.operator.cli:main":
            yield f"{path.name}: has no command nfqlb"
        for module in (ROOT / "nfqlb").rglob("*.py"):
            if str(module.relative_to(ROOT)) not in names:
                yield f"{path.name}: lacks {module.relative_to(ROOT)}"
        if not any(name.endswith("/LICENSE") for name in names):
            yield f"{path.name}: lacks LICENSE"


def sdist_findings(path: Path) -> Iterator[str]:
    """What the sdist lacks."""
    with tarfile.open(path) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    wanted = {f"iptables/{name}" for name in templates()} | {"setup.cfg", "pyproject.toml", "LICENSE"}
    yield from (f"{path.name}: lacks {name}" for name in sorted(wanted - names))


def installed_findings(path: Path) -> Iterator[str]:
    """What does not work of the wheel where it is installed, far from the checkout."""
    with tempfile.TemporaryDirectory() as directory:
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", directory)
        subprocess.run((*pip, str(path)), check=True)
        config = Path(directory) / "site.toml"
        config.write_text(
            '[gateway]\noutside = "wan0"\ninside = "lan0"\n'
            '[[real]]\nname = "web1"\naddress = "10.0.0.11"\n'
            '[[virtual]]\nname = "www"\naddress = "192.0.2.100"\nport = 80\nservers = ["web1"]\n'
        )
        entry = (
            f"import sys; sys.path.insert(0, {directory!r})\n"
            "from nfqlb.operator.cli import main; sys.exit(main())"
        )
        nfqlb = (sys.executable, "-I", "-c", entry)
        command = (*nfqlb, "rules", "show", "-c", str(config))
        shown = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
        place = Path(directory) / "system"
        install = (*nfqlb, "install-service", "--root", str(place))
        placed = subprocess.run(install, capture_output=True, text=True, check=False, cwd="/")
        if placed.returncode or not (place / "usr/local/lib/systemd/system/nfqlb.service").is_file():
            yield f"{path.name}: installed alone, `nfqlb install-service` says: {placed.stderr}"
        if shown.returncode or "NFQUEUE" not in shown.stdout or "192.0.2.100" not in shown.stdout:
            yield f"{path.name}: installed alone, `nfqlb rules show` says: {shown.stderr or shown.stdout}"


def main(directory: Path) -> int:
    """Check the one wheel and the one sdist of a directory."""
    (wheel,) = directory.glob("*.whl")
    (sdist,) = directory.glob("*.tar.gz")
    findings = [*wheel_findings(wheel), *sdist_findings(sdist), *installed_findings(wheel)]
    if not templates():
        findings.append("iptables/ holds no rule template")
    for finding in findings:
        print(finding)
    print(f"{wheel.name}, {sdist.name}: {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
