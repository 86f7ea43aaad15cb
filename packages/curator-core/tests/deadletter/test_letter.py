# SPDX-License-Identifier: Apache-2.0
"""The format of the file, and its name."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_core import DataError, Task
from curator_core.deadletter.letter import Letter, decode, encode, letter_path, parse_header
from curator_core.deadletter.payload import Payload, pack_task, unpack

LETTER = Letter(
    task_id="0.1",
    stage="Read videos",
    stage_index=2,
    attempts=3,
    error_type="ValueError",
    error_message="größer\n\ud800",
    error_traceback="Traceback …",
    error_doing="on task '0.1'",
    worker_id="w",
    node_id="n",
    pid=7,
    run_id="r" * 32,
    trace_id="t" * 32,
    pipeline="p",
    failed_at=1_700_000_000.25,
)
PICKLE = Payload("pickle", "0.1", "m.C", b"head\nof it", (b"", b"buffer", b"\n\n"), 18)

UNSAFE = ["", ".", "..", "../../etc/passwd", "/etc", "a/b", "a\\b", "a b", "überstufe", "~", "~root", "-rf", ".hidden"]
UNSAFE += ["*", "a\n", "a\0b", "a" * 129, "ä" * 5000, "\ud800", "a~b", "s3://x", "a::b", "%2e%2e"]

texts = st.text(st.characters(codec=None))


def file_of(letter=LETTER, payload=PICKLE):
    return b"".join(encode(letter, payload))


def test_written_data_is_read_back():
    letter, payload = decode(file_of(), "f")
    assert letter == dataclasses.replace(LETTER, task_class="m.C", payload_kind="pickle", payload_bytes=18)
    assert payload == PICKLE._replace(buffers=[b"", b"buffer", b"\n\n"])
    assert all(isinstance(buffer, memoryview) and buffer.readonly for buffer in payload.buffers)


@given(stage=texts, task_id=texts, message=texts, pid=st.integers(), failed_at=st.integers(0, 2**32))
def test_any_text_is_read_back(stage, task_id, message, pid, failed_at):
    known = {"stage": stage, "task_id": task_id, "error_message": message, "pid": pid, "failed_at": failed_at}
    letter, payload = decode(file_of(Letter(**known), pack_task(Task(data=stage.encode(errors="replace")), 999)), "f")
    assert {name: getattr(letter, name) for name in known} == known
    assert payload.task_id == task_id
    assert unpack(payload).data == stage.encode(errors="replace")


def test_a_letter_without_a_payload_is_read_back():
    letter, payload = decode(file_of(payload=Payload("none", "0.1", "m.C", size=999, note="too large")), "f")
    assert (letter.payload_kind, letter.payload_bytes, letter.payload_note) == ("none", 999, "too large")
    assert (payload.kind, payload.head, payload.buffers, payload.note) == ("none", b"", [], "too large")


def test_the_first_line_is_readable_json(tmp_path):
    path = tmp_path / "a.letter"
    path.write_bytes(file_of())
    command = f"head -1 {path} | {sys.executable} -m json.tool"
    done = subprocess.run(command, shell=True, capture_output=True, check=True)  # noqa: S602 - as users type it
    shown = json.loads(done.stdout)
    assert shown["stage"] == "Read videos"
    assert shown["failed_at_utc"] == "2023-11-14T22:13:20.250+00:00"
    assert shown["parts"] == [10, 0, 6, 2]
    assert re.fullmatch("[0-9a-f]{32}", shown["checksum"])


def test_the_same_letter_is_the_same_bytes():
    assert file_of() == file_of()


def test_the_middle_of_long_texts_is_omitted():
    text = f"the first line\n{'ä' * 100_000}\nthe last line"
    letter, _ = decode(file_of(dataclasses.replace(LETTER, error_traceback=text, error_message=text)), "f")
    for shown in (letter.error_traceback, letter.error_message):
        assert 60_000 < len(shown.encode()) < 64_200
        assert shown.startswith("the first line\nää")
        assert shown.endswith("ää\nthe last line")
        assert "\n… 136,029 bytes omitted …\n" in shown


# --- damage ---------------------------------------------------------------------------------------------


def refused(data):
    with pytest.raises(DataError) as caught:
        decode(data, "dead/S/0.letter")
    assert caught.value.field == "dead/S/0.letter"
    assert caught.value.expected
    assert caught.value.hint
    return caught.value.message


def test_any_changed_byte_is_detected():
    data = file_of()
    for position in range(len(data)):
        for changed in (data[position] ^ 1, ord("0")):
            if changed != data[position]:
                refused(data[:position] + bytes([changed]) + data[position + 1 :])


def test_any_truncation_is_detected():
    data = file_of()
    for length in range(len(data)):
        refused(data[:length])
    refused(data + b"x")


def test_the_payload_of_another_letter_is_detected():
    line, other = encode(LETTER, PICKLE)[0], [b"HEAD\nof it", b"", b"buffer", b"\n\n"]
    assert "checksum" in refused(line + b"".join(other))
    assert "checksum" in refused(line + b"head\nof itbuf\n\nfer")  # complete, but in another order


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "first line is incomplete"),
        (b"\n", "first line is incomplete"),
        (b"PK\x03\x04\n", "not JSON"),
        (b"\xff\xfe\n", "not JSON"),
        (b"[" * 100_000 + b"\n", "not JSON"),
        (b"5\n", "not the header of a letter"),
        (b"[]\n", "not the header of a letter"),
        (b'{"format": "png"}\n', "not the header of a letter"),
        (b'{"format": "curator dead letter"}\n', "'task_id' is missing"),
    ],
)
def test_other_files_are_not_letters(data, why):
    assert why in refused(data)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task_id", 5),
        ("stage", None),
        ("pid", "7"),
        ("pid", True),
        ("pid", 7.5),
        ("failed_at", "now"),
        ("payload_kind", "zip"),
        ("payload_kind", []),
        ("payload_kind", "none"),
        ("version", "1"),
        ("parts", None),
        ("parts", [18.0]),
        ("parts", [-1, 19]),
        ("parts", []),
    ],
)
def test_an_invalid_first_line_is_an_error(field, value):
    header = json.loads(encode(LETTER, PICKLE)[0])
    line = json.dumps({**header, field: value}).encode()
    with pytest.raises(DataError, match=f"'{field}'|its payload is"):
        parse_header(line, "f")


def test_a_letter_of_a_later_version_is_rejected():
    header = json.loads(encode(LETTER, PICKLE)[0])
    message = refused(json.dumps({**header, "version": 2}).encode() + b"\n")
    assert message == "unknown version 2 of a dead letter"


def test_unknown_fields_are_ignored():
    header = json.loads(encode(LETTER, PICKLE)[0])
    letter, sizes = parse_header(json.dumps({**header, "mood": "sad"}).encode(), "f")
    assert (letter.stage, sizes) == ("Read videos", [10, 0, 6, 2])


# --- names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "task_id", "expected"),
    [
        ("CaptionStage", "0.1.2", "CaptionStage/0.1.2.letter"),
        ("ocr_v1.5", "files-0123abcd--2", "ocr_v1.5/files-0123abcd--2.letter"),
        ("a" * 128, "0", f"{'a' * 128}/0.letter"),
    ],
)
def test_plain_names_are_unchanged(stage, task_id, expected):
    assert letter_path(stage, task_id) == expected


@pytest.mark.parametrize("name", UNSAFE)
def test_other_names_are_changed(name):
    for path in (letter_path(name, "0"), letter_path("S", name)):
        stage, _, file = path.partition("/")
        for part in (stage, file):
            assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.~-]*", part)
            assert len(part) < 150
    assert re.fullmatch(r"\w{1,64}~[0-9a-f]{20}", letter_path(name, "0").partition("/")[0], re.ASCII)


@given(st.sets(texts | st.sampled_from(["a b", "a_b", "a/b", "a\tb", "a" * 128, "a" * 129, "a" * 130]), min_size=2))
def test_different_names_have_different_paths(names):
    assert len({letter_path(name, "0") for name in names}) == len(names)
    assert len({letter_path("S", name) for name in names}) == len(names)


def test_changed_names_never_equal_plain_ones():
    altered = letter_path("a b", "0").partition("/")[0]
    assert letter_path(altered, "0") != letter_path("a b", "0")
