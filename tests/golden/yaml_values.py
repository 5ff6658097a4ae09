"""Writes yaml/values.json: texts, and what PyYAML's safe_load makes of them.

    pip install pyyaml==6.0.4
    python yaml_values.py
"""

import itertools
import json
import pathlib
import struct

import yaml

WORDS = [
    "yes", "Yes", "YES", "yEs", "y", "no", "No", "NO", "n", "true", "True", "TRUE", "tRUE", "false", "False", "FALSE", "on",
    "On", "ON", "off", "Off", "OFF", "~", "null", "Null", "NULL", "nULL", "None", "none", "nan", ".nan", ".NaN", ".NAN", ".Nan",
    "inf", ".inf", ".Inf", ".INF", ".iNF", "-.inf", "+.inf", "-.nan", "auto", "a b", "v1.0", "1.2.3", "q_proj", "100%", "1 2",
    "org/name", "./out", "$HOME/x", "${VAR}", "train[:5%]", "1e", "e5", "0.", "-0.", ".", "--", "+", "_1", "1_", "1__0",
    "-_1", "0_", "00", "007", "08", "09", "018", "-010", "+010", "0o17", "0O17", "0b101", "0B101", "-0b11", "0b12", "0x10", "0X10",
    "-0xfF", "0xg", "0x_f", "1:30", "1:60", "01:30", "190:20:30", "190:20:30.15", "-1:30", "1:2:3:4", ":1", "12e03", "1e3",
    "1e+3", "1e-3", "1.e3", "1.e+3", "1.5e3", "1.5e+3", "1.5E-3", "1.5e+", ".5e-1", ".5e1", "-.5", "+.5", ".5_5", "._5", "1_0.5_0",
    "2e-4", "2E-4", "2.0e-4", "2.0e4", "685_230.15", "9223372036854775807", "-9223372036854775807", "1,000", "1.", "+1.", "01.5",
]
NUMBERS = ["".join(parts) for parts in itertools.product(["", "-", "+"], ["0", "1", "12", "1_2"], ["", ".", ".5", ".50_1"], ["", "e3", "e-3", "E+3"])]
DOCUMENTS = [
    "a: &x 8\nb: *x\n",
    "a: &x [1, two]\nb: [*x, *x]\n",
    "a: &x {k: 1}\nb: {<<: *x, l: 2}\n",
    "a: &x {k: 1, l: 1}\nb: {l: 2, <<: *x}\n",
    "a: &x {k: 1}\nb: &y {k: 2, m: 3}\nc: {<<: [*x, *y], n: 4}\n",
    "a: &x {k: 1}\nb: &y {k: 2, m: 3}\nc:\n  <<: [*y, *x]\n",
    "a: &x {k: 1}\nb: &y {<<: *x, l: 2}\nc: {<<: *y}\n",
    "base: &base\n  type: chat_template\n  field: messages\nsets:\n  - <<: *base\n    path: a\n  - {<<: *base, path: b, type: alpaca}\n",
    "a: '1'\nb: \"yes\"\nc: |\n  010\nd: >\n  yes\n  no\n",
    "a: !!str 5\nb: !!int '5'\nc: !!float 1.5\nd: !!null ''\ne: !!bool 'yes'\n",
    "a:\nb: ''\nc: []\nd: {}\n",
    "%YAML 1.1\n---\na: on\n",
    "a: 1 # comment\nb: 'x # y'\n",
    "a: [x, -3, .5, {b: ~}]\n",
    "- a\n- b: 1\n",
    "? a\n: b\n",
    "a: first\n  second\n",
]


def shown(value):
    match value:
        case None | bool() | str():
            return value
        case int():
            return {"int": str(value)}
        case float():
            return {"float": "nan" if value != value else struct.pack(">d", value).hex()}
        case list():
            return [shown(item) for item in value]
        case dict():
            return {"map": {key: shown(item) for key, item in value.items()}}
    raise TypeError(value)


def main():
    texts = DOCUMENTS + [f"key: {word}\n" for word in dict.fromkeys(WORDS + NUMBERS)]
    cases = [(text, shown(yaml.safe_load(text))) for text in texts]
    file = pathlib.Path(__file__).parent / "yaml" / "values.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text("[\n" + ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases) + "\n]\n")


main()
