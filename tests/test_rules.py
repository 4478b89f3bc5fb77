"""What a ``.conf`` may declare, and what it is refused for, at once."""

import time

import pytest

from orchestra.errors import UnfitScore
from orchestra.parameters.declared import MOST, Param
from orchestra.player.rules import PARAM_KEYS, read_rules

CONF = """
interface = json
[param host]
required = yes
pattern = [a-z0-9-]+(\\.[a-z0-9-]+)*
max = 253
description = Which host
[param port]
type = int
default = 8080
min = 1
max = 65535
[ param  load ]
type = float
min = 0.5
[param mode]
type = enum
values = fast, safe
default = safe
[param tags]
type = list
values = ["a,b", "c"]
max = 3
[param force]
type = bool
default = no
[param password]
secret = yes
"""


def test_every_key_of_a_parameter_is_heard() -> None:
    """In the order in which they are written."""
    assert read_rules("x.conf", CONF).params == (
        Param("host", required=True, pattern="[a-z0-9-]+(\\.[a-z0-9-]+)*", max=253, description="Which host"),
        Param("port", "int", default="8080", min=1, max=65535),
        Param("load", "float", min=0.5),
        Param("mode", "enum", default="safe", values=("fast", "safe")),
        Param("tags", "list", values=("a,b", "c"), max=3),
        Param("force", "bool", default="no"),
        Param("password", secret=True),
    )


def test_a_parameter_has_the_keys_it_is_told_with() -> None:
    """Each key has its field, and what a field is by default its key says."""
    assert [key.name for key in PARAM_KEYS] == list(Param._fields[1:])
    assert read_rules("x.conf", "[param x]").params == (Param("x"),)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "[web]",
            "line 1: [web]: expected [param KEY], where KEY is a letter or _, then up to 63 letters, digits or _",
        ),
        (
            "[param 1]",
            "line 1: [param 1]: expected [param KEY], where KEY is a letter or _, then up to 63 letters, digits or _",
        ),
        ("[param x]\n[param y]\n[param x]", "line 3: [param x]: this parameter is declared before"),
        ("[param x]\nsecret = yes", "line 1: [param x]: a secret parameter is for scores with 'interface = json' only"),
        ("[param x]\nrequird = yes", "line 2: requird: unknown key; did you mean 'required'?"),
        ("[param x]\ntype = uuid", "line 2: type: expected string or int or float or bool or enum or list, not 'uuid'"),
        ("[param x]\ntype = enum", "line 2: type: an enum needs its 'values'"),
        ("[param x]\nvalues = a", "line 2: values: values are for enum and list; this is of type string"),
        (
            "[param x]\ntype = int\npattern = a",
            "line 3: pattern: a pattern is for string and list; this is of type int",
        ),
        ("[param x]\ntype = bool\nmin = 1", "line 3: min: there is no min of type bool"),
        ("[param x]\nmax = 1.5", "line 2: max: expected a whole number"),
        ("[param x]\nmin = 3\nmax = 2", "line 3: max: it is less than 'min'"),
        ("[param x]\nmin = few", "line 2: min: expected a number, not 'few'"),
        (
            "[param x]\npattern = (a",
            "line 2: pattern: expected a sound pattern (this has a '(' that is not closed), not '(a'",
        ),
        (
            "[param x]\npattern = (?=a)",
            "line 2: pattern: expected a sound pattern (this has a '(?' that is no '(?:'; only plain groups are known), not '(?=a)'",
        ),
        ("[param x]\nrequired = yes\ndefault = a", "line 3: default: a parameter that is required has no default"),
        ("[param x]\ntype = int\ndefault = a", "line 3: default: expected a whole number, such as 42"),
        ("[param x]\ntype = enum\nvalues = a, b\ndefault = c", "line 4: default: expected a or b"),
        ("[param x]\ndefault = 123\npattern = [a-z]+", "line 2: default: the value must match the pattern [a-z]+"),
        (
            "interface = json\n[param x]\nsecret = yes\ndefault = a",
            "line 4: default: a secret has no default: everybody may read this file",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_by_line_and_key(text: str, sentence: str) -> None:
    with pytest.raises(UnfitScore) as caught:
        read_rules("x.conf", text)
    assert caught.value.sentence == f"x.conf: {sentence}"


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(f"[param p{n}]" for n in range(20_000)),
        "[param p]\ndefault = " + "a" * 60_000 + "\npattern = ((a*)*)*b",
        "[param p]\npattern = " + "(" * 400,
        "[param p]\npattern = " + "(" * 18 + "a" + "{400})" * 18,
        "[param p]\npattern = ((((a{99}){99}){99}){99}){99}",
        "[param p]\ndescription = " + "x" * 250_000,
        "[" * 250_000,
        "= \n" * 100_000,
        "description = " + "\x1b" * 250_000,
        "\n".join(f"[param p{n}]\npattern = (a?){{330}}{n}\ndefault = {'a' * 330}" for n in range(MOST)),
    ],
)
def test_a_hostile_conf_is_refused_at_once(text: str) -> None:
    """However many sections, however a pattern would make others try everything twice."""
    begun = time.process_time()
    with pytest.raises(UnfitScore) as caught:
        read_rules("x.conf", text)
    assert time.process_time() - begun < 0.5
    assert len(caught.value.sentence) < 1000
