"""`nfqlb install-service` into a directory that stands for another system."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nfqlb
from nfqlb.config.load import load
from nfqlb.operator.commands.gateway import MISTAKES
from nfqlb.service.install import CONFIG, GROUPS, LINK, PLACES, Installation, InstallError, this_command

COMMAND = Path("/opt/nfqlb/bin/nfqlb")


def contents(root: Path) -> dict[str, bytes | str]:
    """Every file below a directory, and where every link leads."""
    found: dict[str, bytes | str] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def under(root: Path, place: Path) -> Path:
    return root / place.relative_to("/")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system with groups of its own."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/group").write_text("root:x:0:\nadm:x:4:\n")
    return tmp_path


def installation(root: Path, **changes: Path) -> Installation:
    return Installation(**{"command": COMMAND, "root": root, **changes})


def test_everything_is_put_in_place_and_said(root: Path) -> None:
    said = list(installation(root).install())
    for place in (*PLACES.values(), CONFIG):
        assert f"wrote   {place}" in said
        assert under(root, place).is_file()
        assert under(root, place).stat().st_mode & 0o777 == 0o644
    assert f"wrote   {LINK} -> {COMMAND}" in said
    assert under(root, LINK).readlink() == COMMAND
    groups = (root / "etc/group").read_text()
    for group in GROUPS:
        assert f"added   group {group}" in said
        assert f"\n{group}:x:" in groups


def test_a_second_time_changes_nothing(root: Path) -> None:
    list(installation(root).install())
    before = contents(root)
    said = list(installation(root).install())
    assert not [line for line in said if not line.startswith(("is ", "kept "))]
    assert contents(root) == before


def test_what_was_changed_in_the_unit_is_written_anew(root: Path) -> None:
    list(installation(root).install())
    unit = under(root, PLACES["nfqlb.service"])
    before = unit.read_bytes()
    unit.write_text("[Service]\n")
    assert f"wrote   {PLACES['nfqlb.service']}" in list(installation(root).install())
    assert unit.read_bytes() == before


def test_removing_leaves_the_configuration_alone(root: Path) -> None:
    before = contents(root)
    list(installation(root).install())
    config = under(root, CONFIG)
    config.write_text("# mine\n")
    said = list(installation(root).remove())
    for place in (*PLACES.values(), LINK):
        assert f"removed {place}" in said
    assert {f"removed group {group}" for group in GROUPS} <= set(said)
    assert said[-1] == f"kept    {CONFIG}"
    left = contents(root).keys() - before.keys()
    accounts = {"etc/.pwd.lock", "etc/group-", "etc/gshadow", "etc/gshadow-"}  # of the tools for groups
    assert left - accounts == {"etc/nfqlb/nfqlb.toml"}
    assert config.read_text() == "# mine\n"
    assert (root / "etc/group").read_text() == "root:x:0:\nadm:x:4:\n"


def test_removing_twice_is_no_mistake(root: Path) -> None:
    list(installation(root).install())
    list(installation(root).remove())
    assert list(installation(root).remove()) == [f"kept    {CONFIG}"]


def test_a_configuration_that_is_there_is_kept(root: Path) -> None:
    under(root, CONFIG).parent.mkdir(parents=True)
    under(root, CONFIG).write_text("# mine\n")
    assert f"kept    {CONFIG}" in list(installation(root).install())
    assert under(root, CONFIG).read_text() == "# mine\n"


def test_another_program_of_the_name_is_kept(root: Path) -> None:
    other = under(root, LINK)
    other.parent.mkdir(parents=True)
    other.write_text("the other nfqlb")
    assert f"kept    {LINK}, which is another program" in list(installation(root).install())
    list(installation(root).remove())
    assert other.read_text() == "the other nfqlb"


def test_a_group_that_has_members_is_kept(root: Path) -> None:
    list(installation(root).install())
    groups = root / "etc/group"
    lines = [f"{line}anna" if line.startswith("nfqlb:") else line for line in groups.read_text().splitlines()]
    groups.write_text("\n".join(lines) + "\n")
    said = list(installation(root).remove())
    assert "kept    group nfqlb, which has members: anna" in said
    assert "removed group nfqlb-read" in said


def test_the_sample_is_a_good_configuration(root: Path) -> None:
    list(installation(root).install())
    assert [virtual.name for virtual in load(under(root, CONFIG)).virtuals] == ["shop"]


def test_the_unit_starts_what_was_installed_with_its_configuration(root: Path) -> None:
    config = Path("/srv/balance.toml")
    list(installation(root, config=config).install())
    unit = under(root, PLACES["nfqlb.service"]).read_text()
    assert f"ExecStart={COMMAND} run -c {config}\n" in unit
    assert f"ExecReload={COMMAND} reload -c {config}\n" in unit
    assert f"{COMMAND} check" not in unit, "a file with mistakes must not keep it from going on as before"
    assert f"RestartPreventExitStatus={MISTAKES}\n" in unit
    assert "ProtectHome=yes\n" in unit
    assert not re.search("@[A-Z]+@", unit)
    assert under(root, config).is_file()


@pytest.mark.parametrize("command", [Path("/home/anna/nfqlb/bin/nfqlb"), Path("/root/.venv/bin/nfqlb")])
def test_an_environment_at_home_can_be_read(root: Path, command: Path) -> None:
    list(installation(root, command=command).install())
    assert "ProtectHome=read-only\n" in under(root, PLACES["nfqlb.service"]).read_text()


@pytest.mark.parametrize("path", ["/opt/my lb/nfqlb", "/opt/50%/nfqlb", "/opt/$HOME", "nfqlb", "/opt/a\nb"])
def test_a_path_that_a_unit_cannot_say_is_refused(root: Path, path: str) -> None:
    with pytest.raises(InstallError, match="without blanks"):
        installation(root, command=Path(path))
    with pytest.raises(InstallError):
        installation(root, config=Path(path))


def test_a_module_that_is_not_installed_cannot_be_started_by_a_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "__main__.py")])
    with pytest.raises(InstallError, match="pip install"):
        this_command()
    (tmp_path / "nfqlb").touch(0o755)
    assert this_command() == tmp_path / "nfqlb"


def test_without_the_right_one_line_says_so(root: Path) -> None:
    """Nobody but root may write there; what is missing is said, and nothing is half done."""
    root.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(Path(nfqlb.__file__).parents[1])}
    entry = (
        "import os, sys; from nfqlb.service import install; from nfqlb.operator.cli import main\n"
        "install.this_command = lambda: install.LINK\n"
        f"os.chdir({str(root)!r}); os.seteuid(65534); sys.exit(main(['install-service', '--root', '.']))"
    )
    words = [sys.executable, "-c", entry]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.endswith("permission denied; run as root")
    assert contents(root).keys() == {"etc/group"}


def test_the_command_says_each_file_and_what_is_next(root: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(nfqlb.__file__).parents[1])}
    words = [sys.executable, "-P", "-m", "nfqlb", "install-service", "--root", str(root)]
    for extra, expected in (([], "systemctl enable --now nfqlb"), (["--remove"], f"kept    {CONFIG}")):
        done = subprocess.run(
            [*words, *extra], capture_output=True, text=True, env=environment, check=False, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert str(PLACES["nfqlb.8"]) in done.stdout
        assert done.stdout.splitlines()[-1].endswith(expected)
