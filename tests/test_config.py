"""One syntax for every .conf file: what is written is understood, or an error names file, line and key."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra import config
from orchestra.config import Key
from orchestra.errors import ConfigError, FileProblem

KEYS = (
    Key("slots", config.integer(1, 9), "8", "How many."),
    Key("grace", config.duration, "10s", "How long."),
    Key("name", config.text, None, "Who."),
)
FILE = "x.conf"

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"]), min_size=1).map(str.strip)
keys = words.filter(lambda word: word and "=" not in word and word[0] not in "#[\ufeff")


def parsed(text: str, **overrides: str) -> config.Parsed:
    return config.parse(FILE, config.sections(FILE, text)[0].entries, KEYS, overrides)


def refused(text: str, **overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parsed(text, **overrides)
    return caught.value.sentence


def test_what_is_written_wins_over_the_default_and_the_command_line_over_both() -> None:
    """Every declared key has a value, and the line it stands on."""
    found = parsed("# a comment\n\nname = a = b\ngrace=1.5m\n", grace="2h")
    assert found.values == {"slots": 8, "grace": 7_200_000, "name": "a = b"}
    assert found.lines == {"slots": 0, "grace": 0, "name": 3}
    assert found.error("grace", "is odd").sentence == "command line: grace: is odd"
    assert found.error("name", "is odd").sentence == "x.conf, line 3: name: is odd"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name = x\nslot = 3", "x.conf, line 2: slot: unknown key; did you mean 'slots'?"),
        ("name = x\nzzz = 3", "x.conf, line 2: zzz: unknown key"),
        ("name = x\n\nname = y", "x.conf, line 3: name: already written on line 1"),
        ("slots 3", "x.conf, line 1: 'slots 3': expected 'key = value'"),
        ("= 3", "x.conf, line 1: '= 3': expected 'key = value'"),
        ("name = x\0y", "x.conf, line 1: name: contains a NUL byte"),
        ("slots = ten", "x.conf, line 1: slots: expected a whole number from 1 to 9, not 'ten'"),
        ("slots = 3", "x.conf: name: must be written: Who."),
    ],
)
def test_what_is_wrong_has_a_line_and_a_sentence(text: str, sentence: str) -> None:
    assert refused(text) == sentence


def test_a_bad_option_is_blamed_on_the_command_line() -> None:
    assert refused("name = x", slots="0") == "command line: slots: expected a whole number from 1 to 9, not '0'"


def test_sections_keep_their_titles_and_lines() -> None:
    """The untitled section comes first, be it empty."""
    first, second = config.sections(FILE, "[param path]\r\n type = string \r\n")
    assert (first.title, first.entries) == ("", ())
    assert (second.title, second.line, second.entries) == ("param path", 1, (config.Entry(2, "type", "string"),))


@given(st.lists(st.tuples(keys, st.one_of(st.just(""), words))))
def test_any_entries_are_read_as_they_were_written(entries: list[tuple[str, str]]) -> None:
    """No character that a line may hold cuts it in two or moves the count of lines."""
    text = "".join(f"\n  {key}  =  {value}  # no comment\n" for key, value in entries)
    (section,) = config.sections(FILE, text)
    assert [(entry.line, entry.key) for entry in section.entries] == [
        (2 * n + 2, key) for n, (key, _) in enumerate(entries)
    ]
    assert [entry.value for entry in section.entries] == [f"{value}  # no comment".strip() for _, value in entries]


@given(st.text())
def test_any_text_is_understood_or_refused_with_a_sentence(text: str) -> None:
    """There is no file that makes the reader fail in another way."""
    with suppress(ConfigError):
        assert isinstance(parsed(text).values["name"], str)


PARSERS = [
    config.duration,
    config.duration_or_never,
    config.size,
    config.yes_no,
    config.integer(-5, 5),
    config.choice("a", "b"),
    config.octal,
    config.absolute_path,
    config.host_name,
    config.words,
]
numbers = st.from_regex(r"[0-9]{1,400}(\.[0-9]{1,400})?\s?[kKmMgGisdh]?[ib]?", fullmatch=True)


@given(st.sampled_from(PARSERS), st.one_of(st.text(), numbers, st.just("9" * 5000)))
def test_a_value_is_understood_or_the_error_says_what_was_expected(parser: object, text: str) -> None:
    """Numbers of any length and digits of any script end in a value or in a sentence, never in a crash."""
    said = "expected "
    try:
        parser(text)  # type: ignore[operator]
    except ValueError as problem:
        said = str(problem)
    assert said.startswith("expected ")


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("0", 0), ("10", 10_000), ("250ms", 250), ("1.001s", 1001), ("1.5h", 5_400_000), ("2 d", 172_800_000)],
)
def test_durations(text: str, milliseconds: int) -> None:
    assert config.duration(text) == milliseconds


@pytest.mark.parametrize(
    "text", ["", "s", "-1s", "1y", "1e3", "1.s", "\N{ARABIC-INDIC DIGIT ONE}s", "never", "9999999999999"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="such as 10s"):
        config.duration(text)


@pytest.mark.parametrize(
    ("text", "many"), [("7", 7), ("7b", 7), ("64k", 65536), ("10 MiB", 10 << 20), ("1GB", 1 << 30)]
)
def test_sizes(text: str, many: int) -> None:
    assert config.size(text) == many


@pytest.mark.parametrize("text", ["", "k", "-1k", "1.5M", "10i", "1T", "10 M B"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="such as 64k"):
        config.size(text)


@pytest.mark.parametrize(("text", "path"), [("/a//b/", "/a/b"), ("/a/../b", "/b")])
def test_paths_are_normal(text: str, path: str) -> None:
    assert config.absolute_path(text) == path


@pytest.mark.parametrize("text", ["web1", "WEB1.Example.ORG", "a-b.c", "x" * 63, "1.2.3.a"])
def test_host_names_become_lower_case(text: str) -> None:
    assert config.host_name(text) == text.lower()


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "web1.",
        ".web1",
        "web 1",
        "web_1",
        "-a",
        "a-",
        "a..b",
        "x" * 64,
        "a." * 127 + "ab",
        "*.a",
        "10.0.0.1",
        "ä.de",
        "\N{KELVIN SIGN}.de",
        "a\n",
    ],
)
def test_what_is_no_host_name(text: str) -> None:
    """No wildcard, no address, no trailing dot: certificates name hosts, and nothing guesses."""
    with pytest.raises(ValueError, match="expected a host name"):
        config.host_name(text)


# ---- files


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    file = tmp_path / "x.conf"
    file.write_bytes(b"\xef\xbb\xbfname = x\n")
    assert parsed(config.read_text(str(file))).values["name"] == "x"


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """Absent, a directory, too large, or not text: each has its sentence."""
    large, binary = tmp_path / "large", tmp_path / "binary"
    large.write_bytes(b"#" * (config.MAX_FILE + 1))
    binary.write_bytes(b"\xff\xfe")
    expected = {
        tmp_path / "absent": "cannot be read: No such file or directory",
        tmp_path: "cannot be read: Is a directory",
        large: "is larger than 256 KiB; this is not one of our files",
        binary: "is not UTF-8 text",
    }
    for file, problem in expected.items():
        with pytest.raises(FileProblem) as caught:
            config.read_text(str(file))
        assert caught.value.sentence == f"{file}: {problem}"


def test_a_file_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"#" * config.MAX_FILE)
    assert len(config.read_text(str(file))) == config.MAX_FILE
