"""A score on disk: its rules, its digest, and every reason to refuse it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import orchestra
from orchestra.errors import NoSuchScore, UnfitScore
from orchestra.player.rules import KEYS, Rules, read_rules
from orchestra.player.scorefile import ScoreFile, candidates, current, fit_directory, load

ME = os.getuid()
STRANGER = 54_321
as_root = pytest.mark.skipif(ME != 0, reason="only root can give files away")
not_as_root = pytest.mark.skipif(ME == 0, reason="root reads everything")

DEFAULTS = Rules(
    interface="env",
    description="",
    timeout=3_600_000,
    kill_grace=10_000,
    idempotent=False,
    max_attempts=3,
    concurrency=1,
    lock="",
    user=None,
    group=None,
    dir="/",
    path="/usr/bin:/bin:/usr/sbin:/sbin",
    umask=0o022,
    nice=0,
    limit_cpu=None,
    limit_memory=None,
    limit_files=None,
    limit_processes=None,
    limit_core=None,
    limit_file_size=None,
    output_limit=262_144,
    response_limit=65_536,
    dry_run=False,
    hidden=False,
    params=(),
)


def put(path: Path, content: str | bytes = "#!/bin/sh\n", mode: int = 0o755) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    """A directory with one good score, ``deploy``."""
    directory = tmp_path / "scores"
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)
    put(directory / "deploy")
    return directory


def loaded(scores: Path, name: str = "deploy") -> ScoreFile:
    return load(str(scores), name, {ME})


def refusal(scores: Path, name: str = "deploy") -> UnfitScore:
    with pytest.raises(UnfitScore) as caught:
        loaded(scores, name)
    assert caught.value.sentence.isprintable()
    return caught.value


# ---- what is fit


def test_a_score_without_a_conf_has_the_default_rules(scores: Path) -> None:
    score = loaded(scores)
    assert (score.name, score.path, score.rules) == ("deploy", str(scores / "deploy"), DEFAULTS)


def test_the_defaults_are_what_the_keys_say() -> None:
    """Each rule has its key and each key, but min_version, its rule."""
    assert [key.name for key in KEYS] == [*Rules._fields[:-1], "min_version"]
    assert all(key.meaning and key.default is not None for key in KEYS)


def test_every_key_is_heard(scores: Path) -> None:
    conf = """
        # all of them
        interface = pipe
        description = Deploys the café
        timeout = 90s
        kill_grace = 0
        idempotent = yes
        max_attempts = 5
        concurrency = 4
        lock = apt
        user = deploy
        group = www-data
        dir = /srv/../srv/app
        path = /opt/bin:/bin
        umask = 077
        nice = 5
        limit_cpu = 90s
        limit_memory = 1G
        limit_files = 64
        limit_processes = 20
        limit_core = 0
        limit_file_size = 10M
        output_limit = 1M
        response_limit = 128k
        dry_run = yes
        hidden = yes
        min_version = 1
    """
    put(scores / "deploy.conf", conf, 0o644)
    assert loaded(scores).rules == Rules(
        "pipe",
        "Deploys the café",
        90_000,
        0,
        True,
        5,
        4,
        "apt",
        "deploy",
        "www-data",
        "/srv/app",
        "/opt/bin:/bin",
        0o077,
        5,
        90_000,
        1 << 30,
        64,
        20,
        0,
        10 << 20,
        1 << 20,
        128 << 10,
        True,
        True,
    )


@pytest.mark.parametrize("target", ["deploy", "./deploy", "lib/../deploy", "lib/tool", "second", "{scores}/deploy"])
def test_a_symbolic_link_that_stays_inside_is_followed(scores: Path, target: str) -> None:
    """The path stays the link's, so that a script can tell by which name it was called."""
    (scores / "lib").mkdir(mode=0o755)
    put(scores / "lib" / "tool")
    (scores / "second").symlink_to("deploy")
    (scores / "link").symlink_to(target.format(scores=scores))
    score = loaded(scores, "link")
    assert score.path == str(scores / "link")
    assert score.digest == loaded(scores).digest


def test_a_directory_may_be_reached_by_a_link(scores: Path) -> None:
    """What was checked is what will run: the path is the real one."""
    alias = scores.parent / "alias"
    alias.symlink_to("scores")
    assert loaded(alias).path == str(scores / "deploy")


def test_the_digest_covers_executable_and_conf(scores: Path) -> None:
    """Four different pairs of files whose bytes run together alike have four digests."""
    pairs = [("ab", None), ("ab", ""), ("a", "b = c"), ("ab = c", "")]
    digests = set()
    for number, (executable, conf) in enumerate(pairs):
        name = f"score{number}"
        put(scores / name, executable)
        if conf is not None:
            put(scores / f"{name}.conf", conf.replace("b =", "#b ="), 0o644)
        digests.add(loaded(scores, name).digest)
    assert len(digests) == len(pairs)


def test_the_digest_does_not_depend_on_name_or_time(scores: Path) -> None:
    put(scores / "other")
    os.utime(scores / "other", (1, 1))
    assert loaded(scores, "other").digest == loaded(scores).digest


def test_candidates_are_the_names_that_look_meant(scores: Path) -> None:
    for name in [
        "b",
        "a.sh",
        "b.conf",
        "c~",
        "d.bak",
        "e.orig",
        "f.rpmsave",
        "g.dpkg-new",
        "h.ucf-old",
        ".i",
        "_j",
        "k l",
    ]:
        put(scores / name)
    (scores / "lib").mkdir()
    Path(os.fsdecode(os.fsencode(scores) + b"/\xff")).touch()
    assert candidates(str(scores)) == ["a.sh", "b", "deploy", "lib"]


# ---- what is refused


BAD_NAMES = [
    "",
    ".",
    "..",
    ".a",
    "-a",
    "_a",
    "a b",
    "a/b",
    "../deploy",
    "/bin/sh",
    "é",
    "a\n",
    "a\0",
    "a\udc80",
    "a" * 64,
]
LEFTOVERS = ["a.conf", "a~", "a.bak", "a.orig", "a.rpmsave", "a.rpmnew", "a.pacnew", "a.dpkg-dist", "a.ucf-old"]


@pytest.mark.parametrize("name", BAD_NAMES + LEFTOVERS)
def test_a_bad_name_is_refused(scores: Path, name: str) -> None:
    assert "not a name for a score" in refusal(scores, name).sentence


@pytest.mark.parametrize("name", ["a" * 63, "0", "a.b_c-D", "conf", "a.conf.sh", "dpkg-old"])
def test_a_good_name_is_not(scores: Path, name: str) -> None:
    put(scores / name)
    assert loaded(scores, name).name == name


def test_a_score_that_is_not_there_is_no_such_score(scores: Path) -> None:
    error = refusal(scores, "absent")
    assert isinstance(error, NoSuchScore)
    assert error.sentence == "This player has no score named 'absent'."


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o755)


def a_socket(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        before = os.getcwd()
        os.chdir(path.parent)  # a socket's path has at most 108 bytes
        listener.bind(path.name)
        os.chdir(before)


def link_to(target: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        put(path.parent.parent / "outside")
        os.chmod(path.parent.parent / "outside", 0o755)
        path.unlink()
        path.symlink_to(target.format(scores=path.parent))

    return make


def link_out_and_back(path: Path) -> None:
    path.rename(path.parent / "inside")
    (path.parent.parent / "back").symlink_to("scores/inside")
    path.symlink_to("../back")


def link_through_a_linked_directory(path: Path) -> None:
    (path.parent.parent / "elsewhere").mkdir(mode=0o755)
    put(path.parent.parent / "elsewhere" / "tool")
    (path.parent / "lib").symlink_to("../elsewhere")
    path.unlink()
    path.symlink_to("lib/tool")


def link_whose_dots_the_kernel_reads_otherwise(path: Path) -> None:
    """By the letter ``sub/../tool`` is ours, but ``sub`` is a link, and above its target lies another ``tool``."""
    (path.parent.parent / "elsewhere" / "deep").mkdir(parents=True, mode=0o755)
    put(path.parent.parent / "elsewhere" / "tool", "#!/bin/evil\n")
    (path.parent / "sub").symlink_to("../elsewhere/deep")
    put(path.parent / "tool")
    path.unlink()
    path.symlink_to("sub/../tool")


def link_into_a_writable_directory(path: Path) -> None:
    (path.parent / "open").mkdir()
    (path.parent / "open").chmod(0o777)
    put(path.parent / "open" / "tool")
    path.unlink()
    path.symlink_to("open/tool")


def mode(bits: int) -> Callable[[Path], None]:
    return lambda path: path.chmod(bits)


WRITABLE = "writable by group or others"
LEAVES = "a symbolic link that leaves the directory of the scores"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (mode(0o644), "not executable; 'chmod +x' makes it a score"),
        (mode(0o775), "writable by group or others (mode 0775); 'chmod go-w' mends that"),
        (mode(0o757), WRITABLE),
        (a_directory, "not a regular file"),
        (a_fifo, "not a regular file"),
        (a_socket, "not a regular file"),
        (link_to("../outside"), LEAVES),
        (link_to("{scores}/../outside"), LEAVES),
        (link_to("/bin/sh"), LEAVES),
        (link_to("."), LEAVES),
        (link_to(".."), LEAVES),
        (link_to("absent"), "does not exist"),
        (link_to("deploy"), "leads to too many others"),
        (link_out_and_back, LEAVES),
        (link_through_a_linked_directory, LEAVES),
        (link_whose_dots_the_kernel_reads_otherwise, LEAVES),
        (link_into_a_writable_directory, WRITABLE),
    ],
)
def test_an_executable_is_refused(scores: Path, spoil: Callable[[Path], None], reason: str) -> None:
    """Each refusal names the path and the reason."""
    spoil(scores / "deploy")
    error = refusal(scores)
    assert reason in error.sentence
    assert str(error.fields["path"]).startswith(str(scores))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (mode(0o664), "writable by group or others (mode 0664); 'chmod go-w' mends that"),
        (mode(0o646), WRITABLE),
        (a_directory, "not a regular file"),
        (a_fifo, "not a regular file"),
        (link_to("../outside"), LEAVES),
        (link_to("absent.conf"), "does not exist"),
        (lambda path: put(path, b"description = \xff"), "not UTF-8 text"),
        (lambda path: put(path, "#" * (256 * 1024 + 1)), "larger than 256 KiB"),
    ],
)
def test_a_conf_is_refused(scores: Path, spoil: Callable[[Path], None], reason: str) -> None:
    """Whoever could write the .conf could choose the user it runs as."""
    spoil(put(scores / "deploy.conf", "", 0o644))
    error = refusal(scores)
    assert reason in error.sentence
    assert "deploy.conf" in str(error.fields["path"]) or "absent.conf" in str(error.fields["path"])


def score_directory(scores: Path) -> Path:
    return scores


def above(scores: Path) -> Path:
    return scores.parent


@pytest.mark.parametrize("where", [score_directory, above])
@pytest.mark.parametrize("bits", [0o775, 0o757, 0o777])
def test_a_directory_that_others_may_write_is_refused(scores: Path, where: Callable[[Path], Path], bits: int) -> None:
    """Who may write a directory may replace what is in it."""
    where(scores).chmod(bits)
    error = refusal(scores)
    assert error.fields["path"] == str(where(scores))
    assert WRITABLE in error.sentence
    where(scores).chmod(0o755)
    assert loaded(scores)


def test_a_sticky_score_directory_is_refused(scores: Path) -> None:
    """Sticky does not keep others from adding scores."""
    scores.chmod(0o1777)
    assert WRITABLE in refusal(scores).sentence


@as_root
def test_a_sticky_directory_of_roots_above_is_fine(scores: Path) -> None:
    scores.parent.chmod(0o1777)
    assert loaded(scores)
    os.chown(scores.parent, STRANGER, -1)
    with pytest.raises(UnfitScore, match=WRITABLE):
        load(str(scores), "deploy", {STRANGER})


@as_root
@pytest.mark.parametrize("what", ["deploy", "deploy.conf", ".", ".."])
def test_a_strangers_file_or_directory_is_refused(scores: Path, what: str) -> None:
    """Only root and the player's user may own what is run, its rules, and every directory above."""
    put(scores / "deploy.conf", "", 0o644)
    spoilt = (scores / what).resolve()
    os.chown(spoilt, STRANGER, -1)
    error = refusal(scores)
    assert error.sentence == f"{spoilt}: owned by uid {STRANGER}, who is neither root nor the player's user"
    assert load(str(scores), "deploy", [STRANGER])


@as_root
def test_a_strangers_link_on_the_way_is_refused(scores: Path) -> None:
    """In a sticky directory its owner could point it elsewhere."""
    alias = scores.parent / "alias"
    alias.symlink_to("scores")
    os.chown(alias, STRANGER, -1, follow_symlinks=False)
    assert f"alias: owned by uid {STRANGER}" in refusal(alias).sentence


def test_directories_that_are_none_are_refused(scores: Path) -> None:
    assert refusal(scores / "absent").sentence == f"{scores}/absent: does not exist"
    assert refusal(scores / "deploy").sentence == f"{scores}/deploy: not a directory"
    (scores.parent / "round").symlink_to("round")
    assert "too many symbolic links" in refusal(scores.parent / "round").sentence


@not_as_root
@pytest.mark.parametrize("what", ["deploy", "deploy.conf"])
def test_what_cannot_be_read_is_refused(scores: Path, what: str) -> None:
    put(scores / "deploy.conf", "", 0o644)
    (scores / what).chmod(0o111)
    assert "cannot be read: Permission denied" in refusal(scores).sentence


def test_a_hostile_name_in_a_path_is_printed_plainly(scores: Path) -> None:
    hostile = Path(os.fsdecode(os.fsencode(scores.parent) + b"/\xff\x1b[2J"))
    assert refusal(hostile).sentence == f"{scores.parent}/\\udcff\\x1b[2J: does not exist"


def test_the_way_down_is_read_as_the_kernel_reads_it(scores: Path) -> None:
    """The directory's real path, with .., doubled slashes, and links to absolute and relative paths."""
    (scores.parent / "down").symlink_to(scores)
    (scores.parent / "up").symlink_to("down/..")
    assert fit_directory(f"{scores.parent}//up/./down/", {ME}) == os.path.realpath(scores)


# ---- the conf


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("interface = shell", "line 1: interface: expected env or pipe or json, not 'shell'"),
        ("\n# note\ntimout = 5s", "line 3: timout: unknown key; did you mean 'timeout'?"),
        ("timeout", "line 1: 'timeout': expected 'key = value'"),
        ("timeout = 5s\ntimeout = 6s", "line 2: timeout: already written on line 1"),
        ("timeout = soon", "line 1: timeout: expected a duration such as 10s, 5m, 1h or 2d, not 'soon'"),
        ("timeout = 0", "line 1: timeout: expected a duration of more than 0 and at most 365d, not '0'"),
        ("timeout = 366d", "line 1: timeout: expected a duration of more than 0 and at most 365d, not '366d'"),
        ("kill_grace = 2d", "line 1: kill_grace: expected a duration of at most 1d, not '2d'"),
        ("idempotent = true", "line 1: idempotent: expected yes or no, not 'true'"),
        ("max_attempts = 0", "line 1: max_attempts: expected a whole number from 1 to 100, not '0'"),
        ("concurrency = many", "line 1: concurrency: expected a whole number from 1 to 1000, not 'many'"),
        ("user = a:b", "line 1: user: expected the name or number of an account, not 'a:b'"),
        ("group = -x", "line 1: group: expected the name or number of an account, not '-x'"),
        ("dir = tmp", "line 1: dir: expected an absolute path, not 'tmp'"),
        ("path = /bin::/usr/bin", "line 1: path: expected absolute directories separated by ':', not '/bin::/usr/bin'"),
        ("path =", "line 1: path: expected absolute directories separated by ':', not ''"),
        ("umask = 1777", "line 1: umask: expected an octal number from 000 to 777, not '1777'"),
        ("umask = 888", "line 1: umask: expected an octal number such as 022, not '888'"),
        ("output_limit = 65M", "line 1: output_limit: expected a size of at most 64M, not '65M'"),
        ("min_version = new", "line 1: min_version: expected a whole number from 1 to 1000000, not 'new'"),
        ("lock = a b", "line 1: lock: expected a name of up to 63 letters, digits and . _ -, not 'a b'"),
        ("nice = -1", "line 1: nice: expected a whole number from 0 to 19, not '-1'"),
        ("limit_cpu = 0", "line 1: limit_cpu: expected a duration of more than 0 and at most 365d, not '0'"),
        ("limit_memory = 1k", "line 1: limit_memory: expected a size of at least 1M, not '1k'"),
        ("limit_files = 3", "line 1: limit_files: expected a whole number from 8 to 1048576, not '3'"),
        ("limit_core = all", "line 1: limit_core: expected a size such as 64k, 10M or 1G, not 'all'"),
        ("response_limit = 1M", "line 1: response_limit: expected a size of at most 256k, not '1M'"),
        (
            "sandbox = yes\nmin_version = 2\n[x]",
            "line 2: min_version: this score needs a newer player, one that knows format 2; this one knows 1",
        ),
    ],
)
def test_a_conf_that_does_not_parse_is_refused_by_file_line_and_key(scores: Path, text: str, sentence: str) -> None:
    conf = put(scores / "deploy.conf", text, 0o644)
    assert refusal(scores).sentence == f"{conf}: {sentence}"


@pytest.mark.parametrize(
    "text",
    [
        "timeout = " + "9" * 400 + "d",
        "output_limit = " + "9" * 5000,
        "max_attempts = " + "9" * 5000,
        "description = " + "x" * 201,
        "description = \x1b[2J",
        "path = /bin\0",
        "dir = /\0",
        "min_version = " + "9" * 18,
        "= x",
        "[",
    ],
)
def test_no_conf_brings_anything_but_a_refusal(text: str) -> None:
    """Not even one that is meant to."""
    with pytest.raises(UnfitScore) as caught:
        read_rules("x.conf", text)
    assert caught.value.sentence.isprintable()


# ---- what changes


def test_a_score_is_current_while_nothing_changes(scores: Path) -> None:
    """The same object: nothing was read again."""
    put(scores / "deploy.conf", "", 0o644)
    score = settled(scores)
    assert current(score, str(scores), {ME}) is score


def settled(scores: Path) -> ScoreFile:
    """The score, its files taken for old enough."""
    return loaded(scores)._replace(stamp=(*loaded(scores).stamp[:2], True))


@pytest.fixture(autouse=True)
def a_second_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock, what the tests write is always a second old."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 10**9)


def rewrite(path: Path) -> None:
    put(path, "#!/bin/sh\n# new\n")


def replace(path: Path) -> None:
    os.replace(put(path.parent / ".new", path.read_bytes()), path)


def add_conf(path: Path) -> None:
    put(path.with_suffix(".conf"), "timeout = 5s", 0o644)


@pytest.mark.parametrize("change", [rewrite, replace, add_conf, mode(0o700)])
def test_a_changed_score_is_read_again(scores: Path, change: Callable[[Path], None]) -> None:
    old = settled(scores)
    change(scores / "deploy")
    new = current(old, str(scores), {ME})
    assert new is not old
    assert new == loaded(scores)


def test_a_changed_or_removed_conf_is_noticed(scores: Path) -> None:
    conf = put(scores / "deploy.conf", "timeout = 1s", 0o644)
    first = settled(scores)
    put(conf, "timeout = 2s", 0o644)
    second = current(first, str(scores), {ME})
    conf.unlink()
    third = current(second, str(scores), {ME})
    assert [score.rules.timeout for score in (first, second, third)] == [1_000, 2_000, 3_600_000]
    assert len({score.digest for score in (first, second, third)}) == 3


def test_a_link_that_is_pointed_elsewhere_is_noticed(scores: Path) -> None:
    put(scores / "other", "#!/bin/sh\n# other\n")
    (scores / "link").symlink_to("deploy")
    old = loaded(scores, "link")
    (scores / "link").unlink()
    (scores / "link").symlink_to("other")
    assert current(old, str(scores), {ME}).digest == loaded(scores, "other").digest


@pytest.mark.parametrize(("what", "bits"), [("deploy", 0o775), ("deploy", 0o644), (".", 0o777), ("..", 0o777)])
def test_a_score_that_became_unfit_is_not_current(scores: Path, what: str, bits: int) -> None:
    """The trust in every directory above is looked at again each time."""
    score = settled(scores)
    (scores / what).chmod(bits)
    with pytest.raises(UnfitScore):
        current(score, str(scores), {ME})
    (scores / what).chmod(0o755)


def test_a_score_that_was_removed_is_not_current(scores: Path) -> None:
    score = settled(scores)
    (scores / "deploy").unlink()
    with pytest.raises(NoSuchScore):
        current(score, str(scores), {ME})


def test_what_was_read_in_the_tick_it_was_written_is_read_once_more(
    scores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second write in the same tick of the clock would leave the file's times as they are."""
    written = (scores / "deploy").stat().st_ctime_ns
    monkeypatch.setattr(time, "time_ns", lambda: written + 1_000_000)
    stale = loaded(scores)._replace(digest="as before the second write")
    assert current(stale, str(scores), {ME}) is stale
    monkeypatch.setattr(time, "time_ns", lambda: written + 100_000_000)
    fresh = current(stale, str(scores), {ME})
    assert fresh.digest == loaded(scores).digest
    assert current(fresh, str(scores), {ME}) is fresh


def test_the_stage_can_import_it() -> None:
    """Without site-packages, and without what would make the stage large."""
    home = str(Path(orchestra.__file__).parent.parent)
    code = (
        f"import sys; sys.path.insert(0, {home!r}); import orchestra.parameters, orchestra.player.scorefile;"
        "print(sorted({'dataclasses', 'inspect', 'msgspec', 'twisted', 'asyncio', 'logging'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
