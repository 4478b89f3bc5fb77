"""The tour of a new user, as a script: ``python tests/tour.py [FILE]`` plays it and writes the transcript.

docs/tour.rst is made by it. What differs from run to run (times, paths, ids of processes) is put into one form.
"""

import os
import pwd
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from orchestra.cli.theatre import Theatre, scores_directory, wait_until

TOUR: Final = (
    ("Who is there?", ["orchestra players", "orchestra scores"]),
    ("One host, one answer.", ["submitjob uptime web1 --wait"]),
    ("All of some hosts; answers are shown as they come.", ["submitjob disk-free web1 web2 --all --wait"]),
    (
        "One of some hosts: whichever is there and has least to do.",
        ["submitjob checksum web1 web2 path=/etc/hostname --one --wait"],
    ),
    ("More than one host wants to know which of the two is meant.", ["submitjob uptime web1 web2"]),
    ("A score that fails says so, and so does the exit status.", ["submitjob fail web1 status=3 --wait"]),
    (
        "A host that is down is waited for; the number of the job is all that goes to standard output.",
        ["submitjob uptime db1 --expire 2h", "getstatus 5"],
    ),
    ("Nobody has to wait for it.", ["orchestra cancel 5", "getstatus 5"]),
    (
        "What is not a score is not run, and what is not a host is not guessed.",
        ["submitjob bash web1", "submitjob uptime wbe1"],
    ),
    ("What was done?", ["orchestra jobs", "getstatus 4 --json"]),
)
VARYING: Final = (
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", "2026-01-02 03:04:05 UTC"),
    (r"\b\d+\.\d+ s\b", "5 ms"),
    (r"\b\d+ ms\b", "5 ms"),
    (r"\b17\d{11}\b", "1767323045000"),
    (r"up \d+ days? \d+ hours? \d+ minutes?, load [\d. ]+", "up 3 days 4 hours 5 minutes, load 0.10 0.12 0.09"),
    (r"\d+% used, \d+ [KMGT]iB free", "42% used, 120 GiB free"),
    (r"\b[0-9a-f]{64}\b", "(sha256)"),
    (r"size = \d+", "size = 12"),
    (r"asked by \S+ \(uid \d+(, logged in as \d+)?\)", "asked by you (uid 1000)"),
    (r'"(login_)?uid":(\d+|null)', r'"\1uid":1000'),
)


def play(theatre: Theatre) -> str:
    """The transcript of the tour, in reStructuredText."""
    lines = [
        "A tour",
        "======",
        "",
        "Made by ``python tests/tour.py docs/tour.rst``, on a conductor and two players; a third is down.",
        "",
    ]
    for title, commands in TOUR:
        lines += [title, "", "::", ""]
        for command in commands:
            lines += [f"    $ {command}"] + [f"    {line}" for line in said(theatre, command)]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def said(theatre: Theatre, command: str) -> list[str]:
    """What a command prints, and its exit status if that is not 0."""
    name, *words = command.split()
    program = str(Path(sys.executable).with_name(name))
    environment = {**os.environ, "ORCHESTRA_SOCKET": str(theatre.socket)}
    done = subprocess.run([program, *words], capture_output=True, text=True, env=environment, timeout=60, check=False)
    text = done.stdout + done.stderr
    for pattern, one_form in VARYING:
        text = re.sub(pattern, one_form, text)
    text = text.replace(str(theatre.home), "/srv/tour")
    us = pwd.getpwuid(os.geteuid()).pw_name
    text = re.sub(rf"\b{us}(?=  )", "you".ljust(len(us)), text)
    text = re.sub(rf"\b{us}\b", "you", text)
    status = [f"(exit status {done.returncode})"] if done.returncode else []
    return [line.rstrip() for line in text.splitlines()] + status


def main(target: Path) -> None:
    """Play it in a temporary directory, and write it down."""
    with tempfile.TemporaryDirectory(prefix="orchestra-tour-") as home:
        theatre = Theatre(Path(home), ["web1", "web2", "db1"])
        try:
            theatre.build(scores_directory())
            theatre.start_conductor()
            for player in ("web1", "web2"):
                theatre.start_player(player)
                log = theatre.home / "log" / "conductor.log"
                wait_until(
                    lambda player=player, log=log: f"{player}.demo.test is online" in log.read_text(), player, log
                )
            target.write_text(play(theatre))
        finally:
            theatre.close()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "/dev/stdout"))
