"""What docs/binary-port.md says is true: its tables are the layouts and numbers of the code, its examples are run."""
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from gateways import binary_protocol
from gateways.binary_front import SERVICE_TIMEOUT, SERVICE_UNAVAILABLE
from gateways.binary_protocol import COMMAND_KINDS, FIELDS_USED, NO_RESULT, GatewayField, RequestKind
from gateways.protocol import INVALID_ARGUMENT, METHODS
from shm import configuration
from shm.configuration import Binary
from shm.records import LABEL_BYTES_MAX, Field, Result
from tests.test_docs import DOCS, sections
from tools import local_exchange
from tools.local_exchange import PROJECT

TEXT = (DOCS / "binary-port.md").read_text(encoding="utf-8")
SECTIONS = sections(TEXT)
LAYOUTS = {"Hello": "HELLO", "Welcome": "WELCOME", "Request": "REQUEST", "Reply to an order": "ORDER_REPLY",
           "Reply to a balance": "BALANCE_REPLY"}
ENGINE_FIELDS = (Field.USER, Field.ASSET, Field.MARKET, Field.SIDE, Field.AMOUNT, Field.PRICE, Field.TAKER_FEE,
                 Field.MAKER_FEE, Field.PRODUCT, Field.ORDERS, Field.LEVELS, Field.BALANCES)

_ROW = re.compile(r"^\| (\d+) \| `(u8\[\d+\]|[ui]\d+)` \| `(\w+)` \|", re.MULTILINE)
_NUMBERED = re.compile(r"^\| (\d+) \| `(\w+)` \| (.*) \|$", re.MULTILINE)
_KIND = re.compile(r"^\| (\d+) \| `([A-Z_]+)` \| (.*?) ?\| (.*?) ?\|$", re.MULTILINE)
_CODE = re.compile(r"^\| (\d+) \| (\d+) \|", re.MULTILINE)
_EXAMPLE = re.compile(r"^```python\n(.*?)^```\n\n(?:.*?)^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def written(dtype):
    """A field's type as the tables write it."""
    if dtype.shape:
        return f"u8[{dtype.shape[0]}]"
    return f"{dtype.kind}{dtype.itemsize * 8}"


@pytest.mark.parametrize("heading, name", LAYOUTS.items())
def test_a_table_is_the_layout_byte_by_byte(heading, name):
    layout = getattr(binary_protocol, name)
    rows = [(int(at), kind, field) for at, kind, field in _ROW.findall(SECTIONS[heading])]
    assert rows == [(layout.fields[field][1], written(layout[field]), field) for field in layout.names]
    assert sum(layout[field].itemsize for field in layout.names) == layout.itemsize  # no gaps
    assert f"{layout.itemsize} bytes" in SECTIONS[heading]
    assert all(layout[field].base.newbyteorder("<") == layout[field].base for field in layout.names)


def test_the_kinds_are_those_that_are_taken_with_the_fields_that_they_use():
    rows = _KIND.findall(SECTIONS["Request"])
    assert [(int(number), name) for number, name, _, _ in rows] == [(int(kind), kind.name) for kind in RequestKind]
    for number, _name, method, uses in rows:
        kind = RequestKind(int(number))
        assert tuple(re.findall(r"`(\w+)`", uses)) == FIELDS_USED[kind]
        assert re.findall(r"`([\w.]+)`", method) == ([COMMAND_KINDS[kind][1]] if kind in COMMAND_KINDS else [])


def test_the_codes_are_all_that_a_reply_can_have():
    engine = {(INVALID_ARGUMENT.code, Result.INVALID), (SERVICE_UNAVAILABLE.code, Result.FULL), (0, Result.OK)}
    for _kind, method in COMMAND_KINDS.values():
        engine |= {(error.code, result) for result, (error, _, _) in METHODS[method].refusals.items()}
    own = {(error.code, NO_RESULT) for error in (INVALID_ARGUMENT, SERVICE_UNAVAILABLE, SERVICE_TIMEOUT)}
    assert {(int(code), int(result)) for code, result in _CODE.findall(SECTIONS["Codes"])} == engine | own


def test_the_fields_are_all_that_a_refusal_can_name():
    numbers = {**{field.name: int(field) for field in ENGINE_FIELDS},
               **{field.name: int(field) for field in GatewayField}}
    assert {name: int(number) for number, name, _ in _NUMBERED.findall(SECTIONS["Fields"])} == numbers
    assert set(binary_protocol.FIELD_NUMBERS.values()) <= set(numbers.values())


@pytest.mark.parametrize("number", [
    LABEL_BYTES_MAX, Binary().connections_max, Binary().in_flight_max, Binary().timeout_ms, binary_protocol.VERSION,
    NO_RESULT])
def test_a_limit_is_the_one_that_holds(number):
    assert re.search(rf"\b{number}\b", TEXT)


def test_the_letters_of_the_magic_are_told():
    assert f"`{binary_protocol.MAGIC.to_bytes(8, 'little').decode()}`" in TEXT
    assert np.array([binary_protocol.MAGIC], "<u8").tobytes() == b"EXCHORDR"


def test_every_example_prints_what_it_says(tmp_path):
    settings = local_exchange.private(configuration.load(PROJECT / "exchange.toml"))
    settings = replace(settings, binary=replace(settings.binary, gateways=1))
    examples = _EXAMPLE.findall(TEXT)
    assert len(examples) == 2
    with local_exchange.running(tmp_path / "data", settings):
        for program, expected in examples:
            for port, own in ((8080, settings.http.port), (8070, settings.binary.port)):
                program = program.replace(str(port), str(own))
            done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True)
            assert (done.stderr, done.stdout) == ("", expected)
